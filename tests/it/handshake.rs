//! Which requests get a 101, and how the others are refused (RFC 6455 section 4.2, RFC 9110 section 7.8).

use std::time::Duration;

use serde_json::json;
use switchboard::config::{AuthMode, Strategy};
use tokio::time::sleep;

use crate::harness::raw::message;
use crate::harness::{Answer, Dialect, Handshake, Raw, Relay, Seen, Wire, eventually};

/// Checks that a handshake is refused with `status`, and that the response contains `word`.
async fn check_refused(relay: &Relay, what: &str, handshake: Handshake, status: u16, word: &str) {
    let answer = relay.raw().await.ask(&handshake).await;
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    let said = format!("{:?} {}", answer.headers, answer.body).to_ascii_lowercase();
    assert!(
        said.contains(&word.to_ascii_lowercase()),
        "{what}: {answer:?}"
    );
}

/// Checks that no user has joined, and stops the relay.
async fn stop_untouched(relay: Relay) {
    let mut user = relay.raw_user(Dialect::Bare).await;
    assert_eq!(user.id, 1, "a refusal uses up no id");
    user.write(&Wire::close(1000, "").bytes()).await;
    user.answered().await;
    let scrape = relay.ledger().await;
    assert_eq!(scrape.value("switchboard_connections_opened_total", &[]), 1);
    relay.stop().await;
}

#[tokio::test]
async fn a_broken_key_is_refused_and_named() {
    let relay = Relay::plain().await;
    let key = "Sec-WebSocket-Key";
    let good = Handshake::new();
    let broken = [
        ("no key", good.clone().without(key)),
        ("an empty key", good.clone().but(key, "")),
        ("15 bytes", good.clone().but(key, "AAAAAAAAAAAAAAAAAAAA")),
        (
            "17 bytes",
            good.clone().but(key, "AAAAAAAAAAAAAAAAAAAAAAA="),
        ),
        (
            "18 bytes",
            good.clone().but(key, "AAAAAAAAAAAAAAAAAAAAAAAA"),
        ),
        (
            "13 bytes with the padding of 16",
            good.clone().but(key, "AAAAAAAAAAAAAAAAAA=="),
        ),
        (
            "no padding",
            good.clone().but(key, "dGhlIHNhbXBsZSBub25jZQ"),
        ),
        (
            "not base64",
            good.clone().but(key, "!!!!!!!!!!!!!!!!!!!!!!=="),
        ),
        (
            "two keys",
            good.clone().with(key, "AQIDBAUGBwgJCgsMDQ4PEA=="),
        ),
    ];
    for (what, handshake) in broken {
        check_refused(&relay, what, handshake, 400, key).await;
    }
    stop_untouched(relay).await;
}

#[tokio::test]
async fn another_version_gets_426_and_the_supported_one() {
    let relay = Relay::plain().await;
    let version = "Sec-WebSocket-Version";
    for other in ["0", "7", "8", "14", "255", "thirteen", ""] {
        let handshake = Handshake::new().but(version, other);
        let answer = relay.raw().await.ask(&handshake).await;
        assert_eq!(answer.status, 426, "{other}: {answer:?}");
        assert_eq!(
            answer.header("sec-websocket-version"),
            Some("13"),
            "{other}"
        );
    }
    for handshake in [
        Handshake::new().without(version),
        Handshake::new().with(version, "8"),
        Handshake::new().with(version, "13"),
    ] {
        let answer = relay.raw().await.ask(&handshake).await;
        assert_eq!(answer.status, 426, "{handshake:?}: {answer:?}");
        assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    }
    stop_untouched(relay).await;
}

#[tokio::test]
async fn a_request_that_is_no_handshake_gets_no_101() {
    let relay = Relay::plain().await;
    let good = Handshake::new();
    let upgrade = "upgrade";
    let cases = [
        (
            "no Connection",
            good.clone().without("Connection"),
            400,
            "connection",
        ),
        ("no Upgrade", good.clone().without("Upgrade"), 426, upgrade),
        (
            "another Connection",
            good.clone().but("Connection", "keep-alive"),
            400,
            "connection",
        ),
        (
            "another Upgrade",
            good.clone().but("Upgrade", "h2c"),
            426,
            upgrade,
        ),
        ("no Host", good.clone().without("Host"), 400, "host"),
        (
            "two Hosts",
            good.clone().with("Host", "chat.example.com"),
            400,
            "host is given twice",
        ),
        (
            "a body",
            good.clone().with("Content-Length", "1"),
            400,
            "content-length",
        ),
        (
            "a body in chunks",
            good.clone().with("Transfer-Encoding", "chunked"),
            400,
            "transfer-encoding",
        ),
        ("POST", good.clone().method("POST"), 405, "allow"),
        ("PUT", good.clone().method("PUT"), 405, "allow"),
        ("another path", good.clone().target("/chat"), 404, ""),
        ("a path below", good.clone().target("//"), 404, ""),
    ];
    for (what, handshake, status, word) in cases {
        check_refused(&relay, what, handshake, status, word).await;
    }
    stop_untouched(relay).await;
}

#[tokio::test]
async fn http_1_0_cannot_upgrade() {
    let relay = Relay::plain().await;
    let answer = relay
        .raw()
        .await
        .ask(&Handshake::new().version("HTTP/1.0"))
        .await;
    assert!([400, 426, 505].contains(&answer.status), "{answer:?}");
    stop_untouched(relay).await;
}

/// nginx forwards by HTTP/1.0 and without both headers unless it is told otherwise.
#[tokio::test]
async fn a_handshake_that_a_proxy_has_stripped_is_counted_and_names_the_proxy() {
    let relay = Relay::plain().await;
    let good = Handshake::new();
    let bare = good.clone().without("Upgrade").without("Connection");
    let closing = bare.clone().with("Connection", "close");
    for (what, handshake, status, reason) in [
        ("both stripped", bare.clone(), 426, "no_upgrade"),
        ("HTTP/1.0", closing.version("HTTP/1.0"), 426, "no_upgrade"),
        (
            "for a browser",
            bare.with("Accept", "text/html"),
            426,
            "no_upgrade",
        ),
        (
            "another Upgrade",
            good.clone().but("Upgrade", "h2c"),
            426,
            "no_upgrade",
        ),
        (
            "no Connection",
            good.clone().without("Connection"),
            400,
            "malformed",
        ),
        ("HTTP/1.0 alone", good.version("HTTP/1.0"), 400, "malformed"),
    ] {
        let labels = [("reason", reason)];
        let name = "switchboard_handshakes_rejected_total";
        let before = relay.metric(name, &labels).await;
        check_refused(&relay, what, handshake, status, "proxy in front").await;
        assert_eq!(relay.metric(name, &labels).await, before + 1, "{what}");
    }
    stop_untouched(relay).await;
}

#[tokio::test]
async fn bytes_that_are_not_http_get_no_101() {
    let relay = Relay::plain().await;
    let handshake = String::from_utf8(Handshake::new().bytes()).unwrap();
    let broken = [
        "\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".repeat(64),
        handshake.replacen("GET / HTTP/1.1", "GET /", 1),
        handshake.replacen("Host:", "Ho st:", 1),
        handshake.replacen("Host:", "Host", 1),
        handshake.replacen("GET / HTTP/1.1", "GET / HTTP/9.9", 1),
    ];
    for bytes in broken {
        let mut peer = relay.raw().await;
        drop(peer.try_write(bytes.as_bytes()).await);
        peer.half_close().await;
        if let Some(answer) = peer.answer(true).await {
            assert!(
                (400..=505).contains(&answer.status),
                "{bytes:?}: {answer:?}"
            );
        }
    }
    stop_untouched(relay).await;
}

#[tokio::test]
async fn a_get_without_an_upgrade_says_how_to_connect() {
    let relay = Relay::plain().await;
    let answer = relay.http("GET", "/").await;
    assert_eq!(answer.status, 426, "{answer:?}");
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    let connection = answer.header("connection").unwrap_or_default();
    assert!(
        connection.to_ascii_lowercase().contains("upgrade"),
        "{answer:?}"
    );
    assert_eq!(answer.body.trim_end().lines().count(), 1, "{answer:?}");
    assert!(answer.body.contains("WebSocket"), "{answer:?}");

    let mut peer = relay.raw().await;
    let head = peer.http("HEAD", "/").await;
    assert_eq!(head.status, 426, "{head:?}");
    let next = peer.http("GET", "/livez").await;
    assert_eq!(next.status, 200, "the response to a HEAD has no body");
    stop_untouched(relay).await;
}

#[tokio::test]
async fn a_101_proves_that_the_key_was_read_and_carries_the_id() {
    let relay = Relay::plain().await;
    for id in ["1", "2", "3"] {
        let answer = relay.raw().await.upgrade(&Handshake::new()).await;
        let accept = answer.header("sec-websocket-accept");
        assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(
            answer.header("x-user-id"),
            Some(id),
            "an id is never used again"
        );
        let upgrade = answer.header("upgrade").expect("an Upgrade header");
        assert!(upgrade.eq_ignore_ascii_case("websocket"), "{answer:?}");
        let connection = answer.header("connection").expect("a Connection header");
        assert!(connection.eq_ignore_ascii_case("upgrade"), "{answer:?}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn header_names_and_lists_are_read_by_the_rules_of_http() {
    let relay = Relay::plain().await;
    let good = Handshake::new();
    let accepted = [
        good.clone().but("Connection", "keep-alive, Upgrade"),
        good.clone().but("Connection", "UPGRADE"),
        good.clone()
            .but("Connection", "keep-alive")
            .with("Connection", "upgrade"),
        good.clone().but("Upgrade", "WebSocket"),
        good.clone().but("Upgrade", "h2c, websocket"),
        good.clone()
            .without("Sec-WebSocket-Key")
            .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        good.clone().with("Cookie", "a=b"),
        good.clone().target("/?from=here"),
    ];
    for handshake in accepted {
        relay.raw().await.upgrade(&handshake).await;
    }
    relay.stop().await;
}

#[tokio::test]
async fn only_our_subprotocol_is_echoed() {
    async fn check(relay: &Relay, offers: &[&str], echoed: Option<&str>) {
        let mut peer = relay.raw().await;
        let handshake = offers.iter().fold(Handshake::new(), |handshake, offer| {
            handshake.with("Sec-WebSocket-Protocol", offer)
        });
        let answer = peer.upgrade(&handshake).await;
        assert_eq!(
            answer.header("sec-websocket-protocol"),
            echoed,
            "{offers:?}"
        );
        peer.say(peer.id, "who am I?").await;
        let dialect = match echoed {
            Some(_) => {
                assert_eq!(peer.json().await["type"], "welcome");
                Dialect::V1
            }
            None => Dialect::Bare,
        };
        assert_eq!(
            peer.json().await,
            dialect.message(peer.id, "who am I?"),
            "{offers:?}"
        );
    }

    let relay = Relay::plain().await;
    let v1 = Some("switchboard.v1");
    check(&relay, &[], None).await;
    check(&relay, &["switchboard.v1"], v1).await;
    check(&relay, &["chat, switchboard.v1"], v1).await;
    check(&relay, &["switchboard.v1,chat"], v1).await;
    check(&relay, &["chat", "switchboard.v1"], v1).await;
    check(&relay, &["chat"], None).await;
    check(&relay, &["switchboard.v2"], None).await;
    check(&relay, &["switchboard.v10"], None).await;
    check(&relay, &["xswitchboard.v1"], None).await;
    relay.stop().await;
}

#[tokio::test]
async fn no_extension_is_ever_claimed() {
    let relay = Relay::plain().await;
    let offers = [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame",
        "unheard-of",
    ];
    for offer in offers {
        let handshake = Handshake::new().with("Sec-WebSocket-Extensions", offer);
        let answer = relay.raw().await.upgrade(&handshake).await;
        assert_eq!(answer.header("sec-websocket-extensions"), None, "{offer}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_handshake_may_come_byte_by_byte() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw().await;
    peer.trickle(&Handshake::new().bytes()).await.unwrap();
    let answer = peer.answer(false).await.expect("an answer");
    assert_eq!(answer.status, 101, "{answer:?}");
    relay.stop().await;
}

both_strategies! {
    /// A client may guess its id, and send before it has read the response.
    async fn frames_behind_the_handshake_are_read(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        for id in 1..=20 {
            let mut peer = relay.raw().await;
            let mut bytes = Handshake::new().bytes();
            bytes.extend(message(id, "first").bytes());
            bytes.extend(message(id, "second").bytes());
            peer.write(&bytes).await;
            assert_eq!(peer.answer(false).await.map(|answer| answer.status), Some(101));
            assert_eq!(peer.json().await, json!({"sender_id": id, "message": "first"}));
            assert_eq!(peer.json().await, json!({"sender_id": id, "message": "second"}));
        }
        relay.stop().await;
    }

    /// The user's mailbox exists before the 101 is sent, so no message is lost in between.
    async fn a_user_with_a_101_receives_messages_at_once(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        for round in 0..100 {
            let mut peer = relay.raw().await;
            peer.upgrade(&Handshake::new()).await;
            sender.ask(peer.id, "welcome", round).await;
            assert_eq!(peer.json().await, json!({"sender_id": 1, "message": "welcome"}));
            sender.learns(round, "delivered").await;
        }
        relay.stop().await;
    }

    /// A client is removed when its connection ends before the 101 has left.
    async fn a_client_is_removed_when_its_upgrade_fails(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        for _ in 0..50 {
            let mut peer = relay.raw().await;
            peer.write(&Handshake::new().bytes()).await;
            peer.reset();
        }
        let mut last = relay.bare().await;
        for id in 1..last.id {
            last.say(id, "is anybody there?").await;
        }
        eventually("all but one are gone", async || {
            let scrape = relay.ledger().await;
            let value = |name: &str| scrape.value(name, &[]);
            let open = (value("switchboard_connections"), value("switchboard_http_connections"));
            // The scrape itself is an HTTP connection.
            (open == (1, 1)).then_some(())
        })
        .await;
        // Only now, because the resets above may be handled after the last user has joined.
        let newest = relay.bare().await;
        let scrape = relay.ledger().await;
        assert_eq!(scrape.value("switchboard_connections_opened_total", &[]), newest.id);
        relay.stop().await;
    }
}

/// A relay with a header timeout of 250 ms.
async fn with_short_timeout() -> Relay {
    Relay::start(Strategy::Directory, |settings| {
        settings.limits.header_timeout = Duration::from_millis(250);
    })
    .await
}

/// Checks that the connection ended without a response or with a 408.
fn assert_timed_out(answer: Option<&Answer>) {
    if let Some(answer) = answer {
        assert_eq!(answer.status, 408, "{answer:?}");
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_the_header_timeout() {
    let relay = with_short_timeout().await;
    let mut peer = relay.raw().await;
    assert_timed_out(peer.answer(true).await.as_ref());
    stop_untouched(relay).await;
}

#[tokio::test]
async fn half_a_request_is_closed_after_the_header_timeout() {
    let relay = with_short_timeout().await;
    let mut peer = relay.raw().await;
    let handshake = Handshake::new().bytes();
    peer.write(&handshake[..handshake.len() - 2]).await;
    assert_timed_out(peer.answer(true).await.as_ref());
    stop_untouched(relay).await;
}

/// Slowloris: a peer that sends a byte now and then gets no more time.
#[tokio::test]
async fn a_request_that_trickles_is_closed_after_the_header_timeout() {
    let relay = with_short_timeout().await;
    let mut peer = relay.raw().await;
    let head = String::from_utf8(Handshake::new().bytes()).unwrap();
    peer.write(head.trim_end().as_bytes()).await;
    let drip = async {
        loop {
            let (_, mut tx) = peer.stream.split();
            let header = tokio::io::AsyncWriteExt::write_all(&mut tx, b"\r\nX-Drip: drop").await;
            if header.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    crate::harness::within("the relay closes the connection", drip).await;
    stop_untouched(relay).await;
}

/// The header timeout also holds between two requests of a connection.
#[tokio::test]
async fn an_idle_http_connection_is_closed_after_the_header_timeout() {
    let relay = with_short_timeout().await;
    let mut peer = relay.raw().await;
    assert_eq!(peer.http("GET", "/livez").await.status, 200);
    assert_timed_out(peer.answer(true).await.as_ref());
    stop_untouched(relay).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_counted_and_names_the_limit() {
    let of_bytes = |bytes: usize| {
        let rest = Handshake::new().with("Cookie", "").bytes().len();
        Handshake::new().with("Cookie", &"c".repeat(bytes - rest))
    };
    for (limit, accepted, refused) in [
        (8192, &[7000, 8191][..], &[8193, 9000, 20_000][..]),
        (16 << 10, &[8193, 9000, 16_383], &[16_385, 20_000, 200_000]),
    ] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.limits.header_bytes = limit;
        })
        .await;
        for bytes in accepted {
            relay.raw().await.upgrade(&of_bytes(*bytes)).await;
        }
        for bytes in refused {
            let mut peer = relay.raw().await;
            // Fails if the relay has answered and closed before it.
            drop(peer.try_write(&of_bytes(*bytes).bytes()).await);
            let answer = peer.answer(true).await.expect("an answer");
            assert_eq!(answer.status, 431, "{bytes}: {answer:?}");
            assert_eq!(answer.header("connection"), Some("close"));
            let named = format!("limits.header_bytes, which is {limit} bytes");
            assert!(answer.body.contains(&named), "{answer:?}");
        }
        let many = (0..120).fold(Handshake::new(), |handshake, _| handshake.with("A", "b"));
        let answer = relay.raw().await.ask(&many).await;
        assert_eq!(answer.status, 431, "{answer:?}");
        assert!(answer.body.contains("100 fields"), "{answer:?}");
        let labels = [("reason", "head_too_large")];
        let count = refused.len() as u64 + 1;
        relay
            .until_metric("switchboard_handshakes_rejected_total", &labels, count)
            .await;
        relay.stop().await;
    }
}

/// The relay does not read a head beyond its limit, and closes the connection.
#[tokio::test]
async fn the_connection_of_an_endless_head_is_closed() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw().await;
    peer.write(b"GET / HTTP/1.1\r\nX-Filler: ").await;
    let filler = vec![b'f'; 64 * 1024];
    let mut cut_off = false;
    for _ in 0..1024 {
        if peer.try_write(&filler).await.is_err() {
            cut_off = true;
            break;
        }
    }
    assert!(cut_off, "the relay has read 64 MiB of one header");
    stop_untouched(relay).await;
}

/// A user that ends its half without a close frame gets an orderly end.
#[tokio::test]
async fn a_user_that_never_sends_ends_in_order() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let peer: Raw = relay.raw_user(dialect).await;
        let mut peer = peer;
        peer.half_close().await;
        assert_eq!(peer.drained().await, Seen::End);
    }
    relay.until_closed("client", "1006", 2).await;
    relay.stop().await;
}

/// DNS rebinding: a foreign name resolves to this machine's address, and a page of that name connects.
#[tokio::test]
async fn a_page_of_a_foreign_name_with_our_address_may_not_connect() {
    let page = |host: &str| {
        let origin = format!("http://{host}");
        Handshake::new().but("Host", host).with("Origin", &origin)
    };
    let relay = Relay::plain().await;
    for host in ["evil.com:8080", "localhost.evil.com", "relay.test"] {
        check_refused(&relay, host, page(host), 403, "allowed_hosts").await;
    }
    let twice = page("localhost:8080").with("Origin", "http://localhost:8080");
    check_refused(&relay, "two origins", twice, 403, "allowed_origins").await;
    for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080"] {
        let answer = relay.raw().await.ask(&page(host)).await;
        assert_eq!(answer.status, 101, "{host}: {answer:?}");
    }
    relay.stop().await;

    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.server.allowed_hosts = vec!["relay.test".to_owned()];
    })
    .await;
    check_refused(&relay, "another", page("evil.com"), 403, "allowed_hosts").await;
    let answer = relay.raw().await.ask(&page("relay.test:8080")).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    relay.stop().await;
}

/// Apps in a web view, and add-ons of browsers.
#[tokio::test]
async fn origins_without_a_site_connect_where_they_are_allowed_by_name() {
    let strange = [
        "null",
        "file://",
        "capacitor://localhost",
        "app://-",
        "moz-extension://5f1c9a",
    ];
    let page = |origin: &str| Handshake::new().with("Origin", origin);
    let relay = Relay::plain().await;
    for origin in strange {
        check_refused(&relay, origin, page(origin), 403, "allowed_origins").await;
    }
    relay.stop().await;
    let relay = Relay::start(Strategy::Directory, |settings| {
        let names = [
            "null",
            "file://",
            "capacitor://localhost",
            "app://-",
            "moz-extension://*",
        ];
        settings.server.allowed_origins = names
            .map(|name| name.to_owned().try_into().unwrap())
            .to_vec();
    })
    .await;
    for origin in strange {
        relay.raw().await.upgrade(&page(origin)).await;
    }
    check_refused(&relay, "another", page("app://x"), 403, "allowed_origins").await;
    relay.stop().await;
}

#[tokio::test]
async fn a_listener_on_all_ipv6_addresses_takes_ipv4_where_it_is_alone_on_its_port() {
    let Ok(probe) = std::net::TcpListener::bind("[::]:0") else {
        return; // a machine without IPv6
    };
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let ours = |ip: &str| -> std::net::SocketAddr { format!("{ip}:{port}").parse().unwrap() };
    for listen in [vec![ours("[::]")], vec![ours("[::]"), ours("0.0.0.0")]] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.server.listen = listen;
        })
        .await;
        for (ip, id) in [("127.0.0.1", 1), ("[::1]", 2)] {
            let user = Raw::connect(ours(ip)).await.joined(Dialect::Bare).await;
            assert_eq!(user.id, id, "{ip}");
        }
        relay.stop().await;
    }
}

/// A page asks at `/handshake` why it is refused, because its browser hides the answer to a refused upgrade.
#[tokio::test]
async fn a_check_of_a_handshake_names_the_refusal_and_counts_it_apart() {
    let key = std::env::temp_dir().join(format!("handshake-{}", std::process::id()));
    std::fs::write(&key, [b'k'; 64]).unwrap();
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.auth.mode = AuthMode::Jwt;
        settings.auth.secret_file = vec![key.clone()];
        settings.limits.address_auth_failures = Some(2);
    })
    .await;
    std::fs::remove_file(key).unwrap();
    let check = Handshake::request("GET", "/handshake");
    let page = check.clone().with("Origin", "https://chat.test");
    let forged = check.clone().with("Authorization", "Bearer x.y.z");
    let name = "switchboard_handshake_checks_rejected_total";
    for (what, request, status, reason) in [
        ("another origin", page, 403, "origin"),
        ("no token", check.clone(), 401, "unauthorized"),
        ("a forged token", forged.clone(), 401, "unauthorized"),
        ("too many failures", forged, 429, "address_failures"),
    ] {
        let before = relay.metric(name, &[("reason", reason)]).await;
        let answer = relay.raw().await.ask(&request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        // A page of any origin may read why.
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        let after = relay.metric(name, &[("reason", reason)]).await;
        assert_eq!(after, before + 1, "{what}");
    }
    let preflight = Handshake::request("OPTIONS", "/handshake");
    let answer = relay.raw().await.ask(&preflight).await;
    let allowed = answer.header("access-control-allow-headers");
    assert_eq!((answer.status, allowed), (204, Some("authorization")));
    assert_eq!(
        relay
            .metric("switchboard_handshakes_rejected_total", &[])
            .await,
        0
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_check_of_a_handshake_that_would_be_accepted_takes_no_place() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.connections = Some(1);
    })
    .await;
    let check = Handshake::request("GET", "/handshake");
    for _ in 0..3 {
        assert_eq!(relay.raw().await.ask(&check).await.status, 204);
    }
    let mut user = relay.v1().await;
    assert_eq!(user.id, 1);
    let answer = relay.raw().await.ask(&check).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let full = [("reason", "full")];
    let name = "switchboard_handshake_checks_rejected_total";
    assert_eq!(relay.metric(name, &full).await, 1);
    user.say(user.id, "still here").await;
    user.hears(user.id, "still here").await;
    relay.stop().await;
}
