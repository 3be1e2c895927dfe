//! Metrics and health, and the listeners that serve them.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use switchboard::config::Strategy;
use tokio::net::TcpStream;

use crate::harness::{Answer, Dialect, Handshake, Raw, Relay, Scrape, Seen, eventually};

#[tokio::test]
async fn health_is_200_while_the_process_works() {
    let relay = Relay::plain().await;
    for target in ["/healthz", "/livez", "/readyz"] {
        let answer = relay.http("GET", target).await;
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        let head = relay.http("HEAD", target).await;
        assert_eq!(head.status, 200, "{target}: {head:?}");
        assert_eq!(head.body, "");
    }
    relay.stop().await;
}

/// A HEAD gets the response of a GET without its body. The next response on the connection shows that.
#[tokio::test]
async fn a_head_has_no_body() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw().await;
    for target in ["/metrics", "/healthz", "/", "/nowhere"] {
        let head = peer.http("HEAD", target).await;
        let get = peer.http("GET", target).await;
        assert_eq!(head.status, get.status, "{target}");
        assert_eq!(
            head.header("content-type"),
            get.header("content-type"),
            "{target}"
        );
    }
    relay.stop().await;
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw().await;
    for _ in 0..20 {
        for (target, status) in [
            ("/livez", 200),
            ("/nowhere", 404),
            ("/", 426),
            ("/metrics", 200),
        ] {
            assert_eq!(peer.http("GET", target).await.status, status, "{target}");
        }
    }
    // The last request may be the upgrade.
    let answer = peer.upgrade(&Handshake::new()).await;
    assert_eq!(answer.status, 101);
    peer.say(1, "after all").await;
    assert_eq!(peer.json().await, Dialect::Bare.message(1, "after all"));
    relay.stop().await;
}

#[tokio::test]
async fn another_method_gets_405_and_the_allowed_ones() {
    let relay = Relay::plain().await;
    for target in ["/", "/metrics", "/healthz", "/livez", "/readyz"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = relay.http(method, target).await;
            assert_eq!(answer.status, 405, "{method} {target}: {answer:?}");
            let allow = answer.header("allow").expect("an Allow header");
            let allowed: BTreeSet<&str> = allow.split(',').map(str::trim).collect();
            assert_eq!(allowed, BTreeSet::from(["GET", "HEAD"]), "{target}");
        }
    }
    relay.stop().await;
}

#[tokio::test]
async fn any_other_path_is_404() {
    let relay = Relay::plain().await;
    for target in [
        "/nowhere",
        "/metrics/",
        "/healthz/x",
        "/%2e",
        "/livez2",
        "/..",
        "/index.html",
    ] {
        assert_eq!(relay.http("GET", target).await.status, 404, "{target}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let relay = Relay::plain().await;
    let answer = relay.http("GET", "/metrics").await;
    let content_type = answer.header("content-type").expect("a Content-Type");
    assert!(
        content_type.starts_with("text/plain; version=0.0.4"),
        "{content_type}"
    );
    for line in answer.body.lines() {
        assert!(
            ["# ", "switchboard_", "process_"]
                .iter()
                .any(|begin| line.starts_with(begin)),
            "{line}"
        );
    }
    for family in families(&answer) {
        assert!(
            answer.body.contains(&format!("# HELP {family} ")),
            "{family} has no help"
        );
        assert!(
            answer.body.contains(&format!("# TYPE {family} ")),
            "{family} has no type"
        );
    }
    relay.stop().await;
}

fn families(answer: &Answer) -> BTreeSet<String> {
    let names = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    names
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn every_promised_metric_exists_from_the_start() {
    let relay = Relay::plain().await;
    let scrape = relay.scrape().await;
    let names = [
        "switchboard_build_info",
        "switchboard_connections",
        "switchboard_connections_opened_total",
        "switchboard_connections_closed_total",
        "switchboard_handshakes_rejected_total",
        "switchboard_messages_received_total",
        "switchboard_messages_delivered_total",
        "switchboard_messages_dropped_total",
        "switchboard_mailbox_messages",
        "switchboard_cluster_received_total",
        "switchboard_cluster_sent_total",
        "switchboard_delivery_seconds_count",
        "switchboard_mailbox_wait_seconds_count",
        "switchboard_process_resident_memory_bytes",
        "switchboard_process_open_fds",
    ];
    for name in names {
        assert!(scrape.has(name), "{name}");
    }
    let has = |name: &str, label: &str, value: &str| {
        let mut series = scrape.series().iter().filter(|series| series.name == name);
        series.any(|series| series.labels.get(label).is_some_and(|has| has == value))
    };
    for reason in [
        "offline",
        "queue_full",
        "expired",
        "disconnected",
        "too_large",
        "rate_limited",
        "draining",
    ] {
        assert!(
            has("switchboard_messages_dropped_total", "reason", reason),
            "{reason}"
        );
    }
    for code in [
        "1000",
        "1012",
        "1013",
        "4401",
        "4409",
        "4410",
        "reset",
        "pong_timeout",
        "write_timeout",
    ] {
        assert!(
            has("switchboard_connections_closed_total", "code", code),
            "{code}"
        );
    }
    for family in ["delivery", "mailbox_wait"] {
        let bucket = format!("switchboard_{family}_seconds_bucket");
        let has = |bound: &str| has(&bucket, "le", bound);
        assert!(has("0.00005") || has("5e-5"), "{family} starts at 50 µs");
        assert!(has("+Inf"), "{family}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn messages_connections_and_refusals_are_counted() {
    let relay = Relay::plain().await;
    let mut one = relay.bare().await;
    let mut two = relay.v1().await;
    for n in 0..10 {
        one.say(two.id, &n.to_string()).await;
        two.hears(one.id, &n.to_string()).await;
    }
    one.say(99, "nobody").await;
    relay
        .raw()
        .await
        .ask(&Handshake::new().without("Sec-WebSocket-Key"))
        .await;
    let scrape = relay.ledger().await;
    let ledger = scrape.ledger();
    assert_eq!(
        (ledger.received, ledger.delivered, ledger.dropped),
        (11, 10, 1)
    );
    assert_eq!(
        (ledger.opened, ledger.connections, ledger.closed),
        (2, 2, 0)
    );
    assert_eq!(
        scrape.value("switchboard_handshakes_rejected_total", &[]),
        1
    );
    assert_eq!(scrape.value("switchboard_delivery_seconds_count", &[]), 10);
    assert_eq!(
        scrape.value("switchboard_mailbox_wait_seconds_count", &[]),
        10
    );
    relay.stop().await;
}

/// No label has a value that a peer chooses, and no user has a series of its own.
#[tokio::test]
async fn the_number_of_series_does_not_depend_on_users() {
    let names = |scrape: &Scrape| -> BTreeSet<String> {
        let series = scrape.series().iter();
        series
            .map(|series| format!("{} {:?}", series.name, series.labels))
            .collect()
    };
    let relay = Relay::plain().await;
    let before = names(&relay.scrape().await);
    let mut users = Vec::new();
    for n in 0..20 {
        let mut user = relay.connect(Dialect::BOTH[n % 2]).await;
        user.say(1, "hello").await;
        users.push(user);
    }
    for code in [1000, 1001, 3000, 4999] {
        let mut peer = relay.raw_user(Dialect::Bare).await;
        peer.write(&crate::harness::Wire::close(code, "mine").bytes())
            .await;
        peer.answered().await;
    }
    relay.http("GET", "/nowhere?x=y").await;
    relay.http("BREW", "/").await;
    assert_eq!(names(&relay.ledger().await), before);
    relay.stop().await;
}

#[tokio::test]
async fn metrics_and_health_move_to_the_admin_listener() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    })
    .await;
    for target in ["/metrics", "/healthz", "/livez", "/readyz"] {
        assert_eq!(relay.admin("GET", target).await.status, 200, "{target}");
        assert_eq!(relay.http("GET", target).await.status, 404, "{target}");
    }
    assert_eq!(relay.http("GET", "/").await.status, 426);
    let user = relay.bare().await;
    assert_eq!(user.id, 1);
    let answer = relay.admin("GET", "/").await;
    assert_eq!(
        answer.status, 404,
        "users cannot join on the admin listener: {answer:?}"
    );
    assert_eq!(relay.metric("switchboard_connections", &[]).await, 1);
    relay.stop().await;
}

/// A scrape does not disturb users that talk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_never_negative_under_load() {
    for strategy in [Strategy::Directory, Strategy::Router] {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut pairs = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let mut one = relay.bare().await;
            let mut two = relay.bare().await;
            pairs.spawn(async move {
                for n in 0..2000 {
                    one.say(two.id, &n.to_string()).await;
                    if n % 10 == 9 {
                        for n in n - 9..=n {
                            two.hears(one.id, &n.to_string()).await;
                        }
                    }
                }
            });
        }
        let mut scrapes = 0;
        while !pairs.is_empty() {
            let ledger = relay.scrape().await.ledger();
            assert!(ledger.gap() >= 0, "{ledger:?}");
            assert!(ledger.opened >= ledger.closed, "{ledger:?}");
            scrapes += 1;
            while let Some(ended) = pairs.try_join_next() {
                ended.unwrap();
            }
        }
        assert!(scrapes > 0);
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().delivered, 8000);
        relay.stop().await;
    }
}

/// tests/python/wire.py checks the frames against the description.
#[tokio::test]
async fn the_page_its_client_and_the_descriptions_are_files_with_types() {
    let relay = Relay::plain().await;
    let version = format!("\n  version: {}\n", env!("CARGO_PKG_VERSION"));
    for (path, content_type, part) in [
        ("/asyncapi.yaml", "application/yaml", &*version),
        (
            "/switchboard.js",
            "text/javascript",
            "export function connect(",
        ),
        (
            "/switchboard.mjs",
            "text/javascript",
            "export function connect(",
        ),
        (
            "/switchboard.d.ts",
            "application/typescript",
            "export declare function connect(",
        ),
        (
            "/switchboard.d.mts",
            "application/typescript",
            "export declare function connect(",
        ),
        ("/page.js", "text/javascript", "./switchboard.js"),
        ("/conversation.js", "text/javascript", "export "),
        ("/tab.js", "text/javascript", "export "),
        ("/page.css", "text/css", "font"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let answer = relay.http("GET", path).await;
        let found = answer.header("content-type").unwrap_or_default();
        assert_eq!(
            (answer.status, found.starts_with(content_type)),
            (200, true),
            "{path}: {found}"
        );
        assert!(answer.body.contains(part), "{path}");
    }
    relay.stop().await;
    let relay = Relay::start(Strategy::Directory, |settings| settings.ui.enabled = false).await;
    assert_eq!(relay.http("GET", "/asyncapi.yaml").await.status, 404);
    assert_eq!(page(&relay, "text/html").await.status, 426);
    relay.stop().await;
}

/// A browser asks for HTML by name. A program that takes anything is told what this address is for.
#[tokio::test]
async fn only_who_asks_for_html_gets_the_page() {
    let relay = Relay::plain().await;
    let answer = page(&relay, "text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("vary"), Some("accept"));
    assert!(answer.body.starts_with("<!doctype html>"), "{answer:?}");
    let answer = page(&relay, "*/*").await;
    assert_eq!(
        (answer.status, answer.header("upgrade")),
        (426, Some("websocket"))
    );
    relay.stop().await;
}

async fn page(relay: &Relay, accept: &str) -> Answer {
    let request = Handshake::request("GET", "/").with("Accept", accept);
    relay.raw().await.ask(&request).await
}

/// An upload that is refused before it was read (RFC 9112 section 9.6). A reset could take the response away.
#[tokio::test]
async fn an_answer_before_the_body_was_read_is_followed_by_an_orderly_end() {
    let relay = Relay::plain().await;
    for (target, status) in [("/livez", 405), ("/", 405), ("/nowhere", 404)] {
        for size in [10, 60_000] {
            let mut peer = relay.raw().await;
            let head =
                format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
            peer.write(head.as_bytes()).await;
            // The relay answers before the rest of the body is sent.
            let answer = peer.answer(true).await.expect("an answer");
            assert_eq!(answer.status, status, "{target}: {answer:?}");
            assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
            peer.write(&vec![b'x'; size]).await;
            assert_eq!(peer.drained().await, Seen::End, "{target}, {size} bytes");
        }
    }
    relay.stop().await;
}

/// The wait for the end of the peer's stream is bounded.
#[tokio::test]
async fn a_peer_that_does_not_end_its_stream_is_dropped() {
    let relay = Relay::plain().await;
    let ask = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut floods = relay.raw().await;
    floods.write(ask).await;
    let flood = async { while floods.try_write(&[b'x'; 4096]).await.is_ok() {} };
    crate::harness::within("the relay disconnects", flood).await;
    let mut silent = relay.raw().await;
    silent.write(ask).await;
    silent.answer(true).await.expect("an answer");
    assert_eq!(silent.next().await, Seen::End);
    // This connection and that of the scrape itself.
    relay
        .until_metric("switchboard_http_connections", &[], 2)
        .await;
    relay
        .until_metric("switchboard_http_connections", &[], 1)
        .await;
    relay.stop().await;
}

/// A proxy in front may take the connection for a tunnel, and pass on what it would not let through.
#[tokio::test]
async fn a_request_behind_a_refused_upgrade_is_not_answered() {
    let relay = Relay::plain().await;
    let hidden = Handshake::request("GET", "/metrics").bytes();
    for (what, refused, status) in [
        (
            "version",
            Handshake::new().but("Sec-WebSocket-Version", "12"),
            426,
        ),
        ("key", Handshake::new().without("Sec-WebSocket-Key"), 400),
        (
            "origin",
            Handshake::new().with("Origin", "https://elsewhere.example"),
            403,
        ),
        ("no upgrade", Handshake::new().without("Upgrade"), 426),
        ("another path", Handshake::new().target("/livez"), 200),
        ("no route", Handshake::new().target("/chat"), 404),
        ("another method", Handshake::new().method("PUT"), 405),
        (
            "another protocol",
            Handshake::request("GET", "/livez").with("Upgrade", "h2c"),
            200,
        ),
    ] {
        let mut peer = relay.raw().await;
        peer.write(&[refused.bytes(), hidden.clone()].concat())
            .await;
        let answer = peer.answer(true).await.expect("an answer");
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let connection = answer.header("connection").expect("a Connection field");
        assert!(connection.ends_with("close"), "{what}: {connection}");
        assert_eq!(peer.next().await, Seen::End, "{what}");
    }
    relay.stop().await;
}

/// nginx with the configuration of an HTTP server in front of `relay`.
struct Nginx {
    process: Child,
    folder: PathBuf,
    addr: SocketAddr,
}

impl Nginx {
    async fn start(relay: SocketAddr) -> Self {
        let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];
        let program = program
            .into_iter()
            .find(|path| PathBuf::from(path).exists())
            .expect("nginx, of the Debian package of the same name");
        let name = format!("nginx-{}", std::process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let addr = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {kind};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; {temporary} client_max_body_size 64m; client_body_buffer_size 16m;\n\
             server {{ listen {addr}; location / {{ proxy_pass http://{relay}; proxy_http_version 1.1; }} }} }}\n"
        );
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(&folder)
            .args(["-c", "nginx.conf", "-e", "stderr"]);
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let process = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        eventually("nginx listens", async || {
            TcpStream::connect(addr).await.ok()
        })
        .await;
        Self {
            process,
            folder,
            addr,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // An error means that nginx has ended by itself, of which the test has noticed.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

#[tokio::test]
async fn an_early_answer_passes_through_nginx() {
    let relay = Relay::plain().await;
    let nginx = Nginx::start(relay.addr).await;
    for size in [1_000, 100_000, 1_000_000, 8_000_000] {
        for _ in 0..5 {
            let mut peer = Raw::connect(nginx.addr).await;
            let head = format!("POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
            let request = [head.as_bytes(), &vec![b'x'; size]].concat();
            peer.write(&request).await;
            let answer = peer.answer(true).await.expect("an answer");
            assert_eq!(answer.status, 405, "{size} bytes: {answer:?}");
        }
    }
    relay.stop().await;
}
