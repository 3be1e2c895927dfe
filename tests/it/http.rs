//! Metrics and health, and the listeners that serve them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use switchboard::config::Strategy;

use crate::harness::{Answer, Dialect, Handshake, Relay, Scrape};

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
            line.starts_with("# ") || line.starts_with("switchboard_"),
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
async fn the_wire_is_described_beside_the_client() {
    let relay = Relay::plain().await;
    let answer = relay.http("GET", "/asyncapi.yaml").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/yaml"));
    let version = format!("\n  version: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(answer.body.contains(&version));
    relay.stop().await;
    let relay = Relay::start(Strategy::Directory, |settings| settings.ui.enabled = false).await;
    assert_eq!(relay.http("GET", "/asyncapi.yaml").await.status, 404);
    relay.stop().await;
}
