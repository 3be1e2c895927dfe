//! The contract with operators: `/metrics` has exactly the documented metrics, dashboards and rules use no
//! others, and the number of series does not depend on users.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flate2::read::GzDecoder;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::Value;
use switchboard::app::{App, Stop};
use switchboard::config::{self, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// The labels that Prometheus adds to every series of a target, the last two in Kubernetes.
const TARGET_LABELS: [&str; 4] = ["job", "instance", "namespace", "pod"];
/// The metrics that Prometheus itself records for every target.
const OF_PROMETHEUS: [&str; 2] = ["up", "scrape_duration_seconds"];

/// Metrics, by the beginning of their name, that neither a panel nor a rule uses, each with the reason.
const IN_NO_PANEL: [(&str, &str); 3] = [
    (
        "process_",
        "the same as switchboard_process_, for dashboards of others",
    ),
    (
        "switchboard_process_virtual_memory_bytes",
        "says nothing about the memory in use",
    ),
    (
        "switchboard_process_threads",
        "does not change while the process runs",
    ),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} is empty");
    files
}

/// A relay on a free port for as long as `f` runs.
async fn with_relay<R>(f: impl AsyncFnOnce(SocketAddr) -> R) -> R {
    with_relay_of(Settings::default(), f).await
}

/// The exposition with all metrics that exist: those of the link to other nodes, of certificates and of keys
/// included. NATS need not run.
async fn whole_exposition() -> String {
    let files = Files::new();
    let mut settings = Settings::default();
    settings.cluster.nats_url = vec!["nats://127.0.0.1:1".to_owned()];
    settings.server.tls = config::TlsSettings {
        cert_file: Some(files.0.join("cert.pem")),
        key_file: Some(files.0.join("key.pem")),
    };
    settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    settings.auth.mode = config::AuthMode::Jwt;
    settings.auth.secret_file = vec![files.0.join("token.key")];
    let exposition = with_relay_of(settings, exposition).await;
    // The machine of the test need not have a cgroup with a limit.
    let of_cgroup =
        ["usage", "limit"].map(|name| format!("switchboard_cgroup_memory_{name}_bytes"));
    let missing = of_cgroup.iter().filter(|name| !exposition.contains(*name));
    let missing = missing.map(|name| format!("# TYPE {name} gauge\n{name} 0\n"));
    exposition.clone() + &missing.collect::<String>()
}

/// A folder with a certificate and keys, which the drop removes.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("metrics-{}-{name}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
        fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
        fs::write(folder.join("token.key"), [b'k'; 64]).unwrap();
        Self(folder)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

async fn with_relay_of<R>(mut settings: Settings, f: impl AsyncFnOnce(SocketAddr) -> R) -> R {
    settings.server.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    settings.drain.spread = Duration::ZERO;
    settings.keepalive.close_timeout = Duration::from_millis(100);
    let app = App::build(settings).await.unwrap();
    let addr = app.admin_addr().unwrap_or(app.addrs()[0]);
    let (stop, stopped) = oneshot::channel();
    let run = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::DrainNow) }));
    let result = f(addr).await;
    stop.send(Stop::DrainNow).unwrap();
    run.await.unwrap();
    result
}

async fn exposition(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body.to_owned()
}

/// The head and the body of a response to a scraper that sends this field.
async fn exposition_for(addr: SocketAddr, field: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: relay\r\n{field}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let body = answer.split_off(end.unwrap() + 4);
    let head = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    (head, body)
}

/// The series of an exposition with the bounds of buckets as numbers, which the formats write differently.
fn comparable_series(exposition: &str) -> BTreeSet<String> {
    let number = |series: String| match series.split_once("le=\"") {
        None => series,
        Some((before, bound)) => {
            let bound: f64 = bound.trim_end_matches("\"}").parse().unwrap();
            format!("{before}{bound}")
        }
    };
    series(exposition).into_iter().map(number).collect()
}

#[tokio::test]
async fn open_metrics_has_the_series_of_the_text_format() {
    let (text, (head, open_metrics)) = with_relay(async |addr| {
        let field = "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1";
        (exposition(addr).await, exposition_for(addr, field).await)
    })
    .await;
    assert!(
        head.contains(
            "\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
        ),
        "{head}"
    );
    let open_metrics = String::from_utf8(open_metrics).unwrap();
    assert!(open_metrics.ends_with("\n# EOF\n"), "{open_metrics}");
    assert_eq!(comparable_series(&open_metrics), comparable_series(&text));
    // A counter's family has no suffix, its sample has, and a unit is the last word of a name.
    for line in [
        "# TYPE switchboard_socket_read_bytes counter",
        "# UNIT switchboard_socket_read_bytes bytes",
        "switchboard_socket_read_bytes_total 0",
        "# UNIT switchboard_delivery_seconds seconds",
        "switchboard_delivery_seconds_bucket{le=\"5e-05\"} 0",
    ] {
        assert!(
            open_metrics.lines().any(|has| has == line),
            "no {line} in {open_metrics}"
        );
    }
    let declared = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    assert_eq!(
        declared.clone().count(),
        declared.collect::<BTreeSet<_>>().len()
    );
}

#[tokio::test]
async fn a_scraper_that_takes_gzip_gets_it() {
    let (head, body) =
        with_relay(async |addr| exposition_for(addr, "Accept-Encoding: gzip").await).await;
    assert!(head.contains("\r\ncontent-encoding: gzip\r\n"), "{head}");
    assert!(
        head.contains("\r\nvary: accept, accept-encoding\r\n"),
        "{head}"
    );
    let mut text = String::new();
    GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
    assert!(text.contains("\nswitchboard_connections 0\n"), "{text}");
    assert!(
        body.len() * 4 < text.len(),
        "{} of {}",
        body.len(),
        text.len()
    );
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
}

/// The labels of a series such as `name{a="1",b="2"}`. No value has a quote, a comma or a brace.
fn labels(series: &str) -> Vec<(&str, &str)> {
    let inside = series.split_once('{').map_or("", |(_, rest)| rest);
    let pairs = inside.trim_end_matches('}').split(',');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect()
}

/// Series names with their labels, without values.
fn series(exposition: &str) -> BTreeSet<String> {
    let lines = exposition.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

fn families(exposition: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    for line in exposition.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            kind.clone_into(&mut family.kind);
        }
    }
    for series in series(exposition) {
        let name = series.split('{').next().unwrap();
        let family = family(&families, name).unwrap_or_else(|| panic!("{name} has no TYPE"));
        let family = families.get_mut(&family).unwrap();
        let names = labels(&series).into_iter().map(|(name, _)| name.to_owned());
        family.labels.extend(names);
    }
    families
}

/// The family that a series of this name belongs to.
fn family(families: &BTreeMap<String, Family>, name: &str) -> Option<String> {
    if families.contains_key(name) {
        return Some(name.to_owned());
    }
    let parts = ["_bucket", "_sum", "_count"];
    let base = parts.iter().find_map(|part| name.strip_suffix(part))?;
    let histogram = families
        .get(base)
        .is_some_and(|family| family.kind == "histogram");
    histogram.then(|| base.to_owned())
}

const DOCUMENT: &str = "config/prometheus/README.md";

/// The rows of the document's tables below `## Metrics`, in cells.
fn documented_rows() -> Vec<Vec<String>> {
    let document = read(repository(DOCUMENT));
    let (_, rest) = document.split_once("\n## Metrics\n").unwrap();
    let (section, _) = rest.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

/// The texts between backticks.
fn quoted(cell: &str) -> BTreeSet<String> {
    let parts = cell.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

#[tokio::test]
async fn document_lists_exactly_the_families_of_the_exposition() {
    let shown = families(&whole_exposition().await);
    let rows = documented_rows().into_iter().filter(|row| row.len() == 4);
    let listed: BTreeMap<_, _> = rows
        .filter(|row| row[0].starts_with('`'))
        .map(|row| {
            let family = Family {
                kind: row[1].clone(),
                labels: quoted(&row[2]),
            };
            (row[0].trim_matches('`').to_owned(), family)
        })
        .collect();
    let names: BTreeSet<_> = shown.keys().chain(listed.keys()).collect();
    let differing: Vec<_> = names
        .into_iter()
        .filter(|name| shown.get(*name) != listed.get(*name))
        .map(|name| (name, shown.get(name), listed.get(name)))
        .collect();
    assert!(
        differing.is_empty(),
        "name, as shown, as listed: {differing:#?}"
    );
}

#[tokio::test]
async fn document_lists_exactly_the_label_values_of_the_exposition() {
    let of = |label: &str| match label {
        "`initiator`" => (&["switchboard_connections_closed_total"][..], "initiator"),
        "`code`" => (&["switchboard_connections_closed_total"][..], "code"),
        "`reason` of a drop" => (&["switchboard_messages_dropped_total"][..], "reason"),
        "`reason` of a refused handshake" => (
            &[
                "switchboard_handshakes_rejected_total",
                "switchboard_handshake_checks_rejected_total",
            ][..],
            "reason",
        ),
        "`direction`" => (&["switchboard_cluster_bytes_total"][..], "direction"),
        "`reason` of a lost span" => (&["switchboard_trace_spans_dropped_total"][..], "reason"),
        other => panic!("no family for {other}"),
    };
    let mut listed = BTreeSet::new();
    let mut label = String::new();
    for row in documented_rows().into_iter().filter(|row| row.len() == 3) {
        let [first, value, _] = &row[..] else {
            unreachable!("three cells")
        };
        if !value.starts_with('`') {
            continue; // the head of the table
        }
        if !first.is_empty() {
            label.clone_from(first);
        }
        if label == "`listener`" {
            continue;
        }
        let (families, name) = of(&label);
        let value = value.trim_matches('`');
        listed.extend(
            families
                .iter()
                .map(|family| (*family, name, value.to_owned())),
        );
    }
    let exposition = whole_exposition().await;
    let series = series(&exposition);
    let shown: BTreeSet<_> = series
        .iter()
        .flat_map(|series| {
            let family = series.split('{').next().unwrap();
            let pairs = labels(series).into_iter();
            pairs.map(move |(name, value)| (family, name, value.to_owned()))
        })
        // The labels of a build are open, the bounds of buckets are numbers, and the relay of the test has one
        // listener with a certificate.
        .filter(|(family, name, _)| {
            !["le", "listener"].contains(name) && *family != "switchboard_build_info"
        })
        .collect();
    let differing: Vec<_> = shown.symmetric_difference(&listed).collect();
    assert!(
        differing.is_empty(),
        "shown or listed, not both: {differing:#?}"
    );
}

#[test]
fn document_lists_exactly_the_alerts_of_the_rules() {
    let rules = read(repository("config/prometheus/rules/alerts.yml"));
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: BTreeSet<_> = alerts.collect();
    let document = read(repository(DOCUMENT));
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| Some(row.split_once('`')?.0));
    let listed: BTreeSet<_> = names
        .filter(|name| name.starts_with("Switchboard"))
        .collect();
    assert_eq!(alerts, listed);
}

#[tokio::test]
async fn series_do_not_depend_on_users() {
    const USERS: usize = 50;
    let (before, after) = with_relay(async |addr| {
        let before = exposition(addr).await;
        let mut users = Vec::new();
        for _ in 0..USERS {
            users.push(talking_user(addr).await);
        }
        // All users have sent a message to a user that is not connected before the scrape.
        let written = format!("switchboard_messages_received_total {USERS}\n");
        let mut after = exposition(addr).await;
        while !after.contains(&written) {
            after = exposition(addr).await;
        }
        (before, after)
    })
    .await;
    assert!(after.contains("\nswitchboard_connections 50\n"), "{after}");
    assert_eq!(series(&before), series(&after));
}

/// A connected user that has sent a message to a user that is not connected.
async fn talking_user(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    let message = br#"{"recipient_id":9000000,"message":"x"}"#;
    // Text, masked with zeros (RFC 6455 section 5.2).
    let mut frame = vec![
        0x81,
        0x80 | u8::try_from(message.len()).unwrap(),
        0,
        0,
        0,
        0,
    ];
    frame.extend_from_slice(message);
    stream.write_all(&frame).await.unwrap();
    stream
}

/// The metrics and labels that an expression of Prometheus names.
#[derive(Debug, Default)]
struct Named {
    /// Metrics, each with the labels that its selector matches.
    metrics: Vec<(String, Vec<String>)>,
    /// Labels of `by`, `on` and the like.
    grouping: Vec<String>,
}

/// Reads an expression word by word, without a grammar: Prometheus checks the grammar in another test.
fn named(expression: &str) -> Named {
    const GROUPING: [&str; 6] = [
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
    ];
    const WORDS: [&str; 11] = [
        "and", "or", "unless", "offset", "bool", "sum", "min", "max", "avg", "count", "topk",
    ];
    let mut named = Named::default();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$');
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        rest = behind.trim_start();
        if first == '"' {
            rest = behind.splitn(3, '"').nth(2).unwrap();
        } else if word.is_empty() {
            rest = behind.strip_prefix(first).unwrap().trim_start();
        } else if first.is_ascii_digit() || first == '$' || WORDS.contains(&word) {
            // A number, a duration, a variable, an operator.
        } else if GROUPING.contains(&word) {
            let (inside, behind) = rest.strip_prefix('(').unwrap().split_once(')').unwrap();
            let labels = inside.split(',').map(|label| label.trim().to_owned());
            named
                .grouping
                .extend(labels.filter(|label| !label.is_empty()));
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix('{') {
            let (inside, behind) = behind.split_once('}').unwrap();
            let matchers = inside.split(", ");
            let labels = matchers.map(|one| one.split(['=', '!']).next().unwrap().to_owned());
            named.metrics.push((word.to_owned(), labels.collect()));
            rest = behind;
        } else if !rest.starts_with('(') {
            named.metrics.push((word.to_owned(), Vec::new()));
        }
    }
    named
}

#[test]
fn metrics_and_labels_of_an_expression_are_told_apart() {
    let Named { metrics, grouping } = named(
        r#"histogram_quantile(0.99, sum by (le) (rate(a_bucket{job=~"$job", x!="1"}[5m]))) > on (job) group_left () 10 * b offset 5m"#,
    );
    let metrics: Vec<_> = metrics
        .iter()
        .map(|(name, labels)| format!("{name} {}", labels.join(" ")))
        .collect();
    assert_eq!(metrics, ["a_bucket job x", "b "]);
    assert_eq!(grouping, ["le", "job"]);
}

/// An expression, its place, and the legend that is made from its labels.
#[derive(Debug)]
struct Asked {
    place: String,
    expression: String,
    legend: String,
}

/// All `expr` and `label_values(…)` of a dashboard, however deep.
fn asked_by_dashboard(place: &str, value: &Value, asked: &mut Vec<Asked>) {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    if !text("expr").is_empty() {
        asked.push(Asked {
            place: place.to_owned(),
            expression: text("expr").to_owned(),
            legend: format!("{}{}", text("legendFormat"), text("titleFormat")),
        });
    }
    if let Some(values) = text("definition").strip_prefix("label_values(") {
        let (metric, label) = values.trim_end_matches(')').rsplit_once(", ").unwrap();
        asked.push(Asked {
            place: place.to_owned(),
            expression: metric.to_owned(),
            legend: format!("{{{{{label}}}}}"),
        });
    }
    match value {
        Value::Array(values) => values
            .iter()
            .for_each(|value| asked_by_dashboard(place, value, asked)),
        Value::Object(fields) => fields
            .values()
            .for_each(|value| asked_by_dashboard(place, value, asked)),
        _ => {}
    }
}

/// All expressions of a file of rules, with the name of their record or alert. An expression is on the line
/// of its `expr:` or, if it is folded, on the deeper lines after it.
fn asked_by_rules(text: &str) -> Vec<Asked> {
    let mut asked: Vec<Asked> = Vec::new();
    let mut name = "";
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let field = line.trim_start().trim_start_matches("- ");
        if let Some(of) = field
            .strip_prefix("alert: ")
            .or_else(|| field.strip_prefix("record: "))
        {
            name = of;
        } else if let Some(first) = field.strip_prefix("expr: ") {
            let mut expression = first.trim_start_matches(">-").to_owned();
            while let Some(next) = lines.next_if(|next| indent(next) > indent(line)) {
                expression += " ";
                expression += next.trim();
            }
            asked.push(Asked {
                place: name.to_owned(),
                expression,
                legend: String::new(),
            });
        } else {
            let legend = asked.last_mut().filter(|asked| asked.place == name);
            if let Some(asked) = legend {
                // Annotations name labels as `$labels.reason`.
                for label in field.split("$labels.").skip(1) {
                    let end = label.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    let (label, _) = label.split_at(end.unwrap_or(label.len()));
                    asked.legend.extend(["{{", label, "}}"]);
                }
            }
        }
    }
    asked
}

#[tokio::test]
async fn dashboards_and_rules_use_only_exposed_metrics() {
    let families = families(&whole_exposition().await);
    let rules: Vec<_> = files("config/prometheus/rules")
        .iter()
        .flat_map(|path| asked_by_rules(&read(path)))
        .collect();
    let mut asked = Vec::new();
    for path in files("config/grafana/dashboards") {
        let dashboard = serde_json::from_str(&read(&path)).unwrap();
        asked_by_dashboard(&path.display().to_string(), &dashboard, &mut asked);
    }
    assert!(rules.len() > 20 && asked.len() > 50, "nothing was found");

    // The labels that a metric has, recorded ones included.
    let recorded = |name: &str| rules.iter().find(|rule| rule.place == name);
    let labels = |name: &str| -> Option<BTreeSet<String>> {
        let of_family = |name: &str| Some(families[&family(&families, name)?].labels.clone());
        if OF_PROMETHEUS.contains(&name) {
            return Some(BTreeSet::new());
        }
        let Some(rule) = recorded(name) else {
            return of_family(name);
        };
        let metrics = named(&rule.expression).metrics;
        // The first part of a recorded name lists labels, those that the rule adds included.
        let level = name.split(':').next().unwrap_or_default();
        let added = level.split('_').map(str::to_owned);
        let labels = metrics.iter().filter_map(|(name, _)| of_family(name));
        Some(labels.flatten().chain(added).collect())
    };
    let mut mistakes = Vec::new();
    for Asked {
        place,
        expression,
        legend,
    } in rules.iter().chain(&asked)
    {
        let Named { metrics, grouping } = named(expression);
        let mut known: BTreeSet<String> = TARGET_LABELS.map(str::to_owned).into();
        for (metric, matched) in &metrics {
            let Some(mut labels) = labels(metric) else {
                mistakes.push(format!("{place}: there is no {metric}"));
                continue;
            };
            labels.extend(TARGET_LABELS.map(str::to_owned));
            for label in matched.iter().filter(|label| !labels.contains(*label)) {
                mistakes.push(format!("{place}: {metric} has no label {label}"));
            }
            known.extend(labels);
        }
        let shown = legend.split("{{").skip(1);
        let shown = shown.filter_map(|rest| rest.split_once("}}"));
        for label in grouping
            .iter()
            .map(String::as_str)
            .chain(shown.map(|(label, _)| label))
        {
            if !known.contains(label) {
                mistakes.push(format!(
                    "{place}: nothing has a label {label}: {expression}"
                ));
            }
        }
    }
    assert!(mistakes.is_empty(), "{mistakes:#?}");

    assert_all_are_used(&families, rules.iter().chain(&asked));
}

/// Checks that a panel or a rule shows each metric, or that a reason says why not.
fn assert_all_are_used<'a>(
    families: &BTreeMap<String, Family>,
    expressions: impl Iterator<Item = &'a Asked>,
) {
    let used: BTreeSet<_> = expressions
        .flat_map(|asked| named(&asked.expression).metrics)
        .filter_map(|(name, _)| family(families, &name))
        .collect();
    let is_exempt = |name: &str| {
        IN_NO_PANEL
            .iter()
            .any(|(prefix, _)| name.starts_with(prefix))
    };
    let unused: Vec<_> = families
        .keys()
        .filter(|name| !used.contains(*name) && !is_exempt(name))
        .collect();
    assert!(
        unused.is_empty(),
        "neither on a panel nor in a rule: {unused:#?}"
    );
}
