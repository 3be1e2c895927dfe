//! The files that operators run: image, compose file, dashboard, alerts. Checks what can be checked without running
//! them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use switchboard::config::{Origin, Settings, Site};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The rest of the first line that begins with `begin`, after spaces.
fn after<'a>(text: &'a str, begin: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.trim_start().strip_prefix(begin))
        .unwrap_or_else(|| panic!("no line begins with {begin:?}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("config/grafana/dashboards/switchboard.json")).unwrap()
}

/// All panels with queries, those of collapsed rows included.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().unwrap();
    let inner = all.iter().filter_map(|panel| panel["panels"].as_array());
    all.iter()
        .chain(inner.flatten())
        .filter(|panel| panel["type"] != "row")
        .collect()
}

#[test]
fn the_image_has_this_version_and_this_toolchain() {
    let dockerfile = read("Dockerfile");
    let rust = env!("CARGO_PKG_RUST_VERSION");
    let image = after(&dockerfile, "ARG RUST_IMAGE=");
    assert!(image.starts_with(&format!("rust:{rust}-")), "{image}");
    assert_eq!(
        after(&dockerfile, "ARG VERSION="),
        env!("CARGO_PKG_VERSION")
    );
    let compose = read("docker-compose.yml");
    assert_eq!(
        after(&compose, "image: switchboard:"),
        env!("CARGO_PKG_VERSION")
    );
}

/// A page that is open on the host connects from the address of the bridge, and not from loopback.
#[test]
fn compose_refuses_pages_of_foreign_names_with_its_address() {
    let compose = read("docker-compose.yml");
    let names = after(&compose, "SWITCHBOARD__SERVER__ALLOWED_HOSTS: ");
    assert_eq!(names, "${ALLOWED_HOSTS:-localhost}");
    let rebound = Origin::parse("http://evil.com:8080").unwrap();
    let here = Origin::parse("http://localhost:8080").unwrap();
    for (page, host, allowed) in [
        (rebound, "evil.com:8080", false),
        (here, "localhost:8080", true),
    ] {
        let site = Site {
            host,
            client_addr: [172, 18, 0, 1].into(),
            is_tls: false,
            names: &["localhost".to_owned()],
        };
        assert_eq!(page.is_of(&site), allowed, "{host}");
    }
}

#[test]
fn compose_waits_longer_than_a_drain() {
    let compose = read("docker-compose.yml");
    let period = after(&compose, "stop_grace_period: ");
    let seconds: u64 = period.trim_end_matches('s').parse().unwrap();
    assert!(seconds >= Settings::default().drain.timeout.as_secs() + 10);
}

#[test]
fn compose_pins_its_images_and_mounts_only_configuration() {
    let compose = read("docker-compose.yml");
    assert!(!compose.contains("\nversion:"), "obsolete");
    let lines = || compose.lines().map(str::trim);
    for image in lines().filter_map(|line| line.strip_prefix("image: ")) {
        let (_, tag) = image.rsplit_once(':').unwrap();
        assert!(tag.contains('.'), "{image} is not pinned");
    }
    for mount in lines().filter(|line| line.starts_with("- ./")) {
        assert!(
            mount.starts_with("- ./config/") && mount.ends_with(":ro"),
            "{mount}"
        );
    }
    for ports in lines().filter_map(|line| line.strip_prefix("ports: ")) {
        assert!(ports == "[]" || ports.contains("\"127.0.0.1:"), "{ports}");
    }
}

#[test]
fn dashboard_has_its_rows_and_variables() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "switchboard");
    let names = |list: &Value, field: &str| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|one| one[field].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&dashboard["templating"]["list"], "name"),
        [
            "datasource",
            "job",
            "namespace",
            "pod",
            "instance",
            "traces",
            "repository"
        ]
    );
    let all = dashboard["panels"].as_array().unwrap();
    let rows: Vec<_> = all
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|row| row["title"].as_str().unwrap())
        .collect();
    assert_eq!(
        rows,
        [
            "Overview",
            "Connections",
            "Messages and outcomes",
            "Latency",
            "Mailboxes",
            "Limits and refusals",
            "Drain",
            "Cluster",
            "Process"
        ]
    );
}

#[test]
fn panels_have_descriptions_and_use_the_variables() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut squares = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64()),
            "{title}: another panel has its id"
        );
        assert!(
            panel["description"].as_str().unwrap().ends_with('.'),
            "{title}"
        );
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
        assert!(
            unit.is_some_and(|unit| unit != "none"),
            "{title} has no unit"
        );
        let edge = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in edge("x")..edge("x") + edge("w") {
            assert!(x < 24, "{title} is too wide");
            for y in edge("y")..edge("y") + edge("h") {
                assert!(squares.insert((x, y)), "{title} overlaps another panel");
            }
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} has no query");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().unwrap();
            assert!(!expression.contains("vector(0)"), "{title} hides a gap");
            for selector in expression.split('{').skip(1) {
                let begin =
                    r#"job=~"$job", namespace=~"$namespace", pod=~"$pod", instance=~"$instance""#;
                assert!(selector.starts_with(begin), "{title}: {selector}");
            }
            for range in expression.split('[').skip(1) {
                assert!(range.starts_with("$__rate_interval]"), "{title}: {range}");
            }
        }
    }
}

#[test]
fn each_alert_has_a_runbook_and_test_cases() {
    let cases = read("tests/prometheus/alerts.yml");
    let rules = read("config/prometheus/rules/alerts.yml");
    let runbooks = read("config/prometheus/README.md");
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 8, "the alerts are not found");
    for alert in alerts {
        let (name, body) = alert.split_once('\n').unwrap();
        let summary = after(body, "summary: ");
        // A summary names the node, or the job if the alert is about all nodes, and the namespace.
        let node = summary.contains("or $labels.pod $labels.instance");
        assert!(node || summary.contains("$labels.job"), "{name}");
        // Where no target is left, nothing has a namespace.
        let is_absent = body.contains("expr: absent(");
        assert!(summary.contains("$labels.namespace") || is_absent, "{name}");
        let shown = [summary, after(body, "description: ")];
        assert!(shown.iter().all(|text| text.len() > 20), "{name}");
        let place = format!("config/prometheus/README.md#{}", name.to_lowercase());
        assert_eq!(after(body, "runbook_url: "), place, "{name}");
        let runbook = runbooks
            .split("\n### ")
            .find(|text| text.starts_with(&format!("{name}\n")));
        assert!(
            runbook.is_some_and(|text| text.len() > 100),
            "{name} has no runbook"
        );
        assert!(after(body, "labels: ").contains("severity: "), "{name}");
        let raised = format!("- alertname: {name}\n");
        assert!(cases.contains(&raised), "no case fires {name}");
        let silent = format!("alertname: {name}, eval_time");
        assert!(cases.contains(&silent), "no case shows {name} silent");
    }
}
