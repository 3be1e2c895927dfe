//! Every setting has an effect in a running relay. The table names a test for each key of `config/default.toml`; the
//! tests of keys whose effect no other topic shows are here. Each sees a difference from the default, so that it
//! fails where the relay is built without the key.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use switchboard::app::App;
use switchboard::auth;
use switchboard::config::{
    Algorithm, AuthMode, DEFAULT, ForwardedHeader, Secret, Settings, Strategy,
};
use tokio::time::Instant;

use crate::harness::raw::{PING, message, question};
use crate::harness::{Dialect, Handshake, Raw, Relay, Seen, Wire, clog, eventually};

/// The keys, and the file and the name of a test that shows the effect of each.
const TABLE: &[(&str, &str)] = &[
    (
        "server.listen",
        "it/handshake.rs a_listener_on_all_ipv6_addresses_takes_ipv4_where_it_is_alone_on_its_port",
    ),
    (
        "server.allowed_origins",
        "it/hostile.rs a_page_of_another_origin_may_not_connect",
    ),
    (
        "server.allowed_hosts",
        "it/handshake.rs a_page_of_a_foreign_name_with_our_address_may_not_connect",
    ),
    (
        "server.trusted_proxies",
        "it/hostile.rs forged_proxy_headers_change_nothing_and_limits_of_an_address_hold",
    ),
    (
        "server.forwarded_header",
        "it/settings.rs a_proxy_is_believed_in_one_header",
    ),
    (
        "server.proxy_protocol",
        "it/hostile.rs forwarding_headers_through_a_proxy_that_names_no_client_are_ignored",
    ),
    (
        "server.worker_threads",
        "it/cli.rs the_worker_threads_are_as_many_as_the_setting_says",
    ),
    (
        "server.tls.cert_file",
        "it/tls.rs users_talk_over_both_versions_of_tls",
    ),
    (
        "server.tls.key_file",
        "it/tls.rs users_talk_over_both_versions_of_tls",
    ),
    (
        "admin.listen",
        "it/http.rs metrics_and_health_move_to_the_admin_listener",
    ),
    (
        "admin.token_file",
        "it/api.rs a_request_without_the_token_learns_nothing",
    ),
    (
        "admin.metrics_token_file",
        "it/tls.rs the_metrics_token_reads_metrics_and_opens_nothing_else",
    ),
    (
        "admin.ready_when_full",
        "it/limits.rs a_full_node_is_not_ready_where_the_setting_says_so",
    ),
    (
        "admin.outcome_timeout",
        "it/api.rs the_wait_for_an_outcome_ends",
    ),
    (
        "admin.tls.cert_file",
        "it/tls.rs metrics_need_the_token_and_health_does_not",
    ),
    (
        "admin.tls.key_file",
        "it/tls.rs metrics_need_the_token_and_health_does_not",
    ),
    ("auth.mode", "it/settings.rs a_token_must_fit_the_settings"),
    (
        "auth.secret_file",
        "it/settings.rs a_token_must_fit_the_settings",
    ),
    (
        "auth.public_key_file",
        "it/settings.rs a_token_must_fit_the_settings",
    ),
    (
        "auth.jwks_file",
        "it/settings.rs a_token_must_fit_the_settings",
    ),
    (
        "auth.jwks_url",
        "it/drain.rs a_handshake_that_waits_for_a_key_server_is_refused_when_the_drain_begins",
    ),
    (
        "auth.jwks_timeout",
        "it/settings.rs a_key_server_that_hangs_delays_the_start_no_longer_than_its_timeout",
    ),
    (
        "auth.refresh_interval",
        "it/settings.rs a_new_secret_counts_without_a_restart",
    ),
    (
        "auth.algorithm",
        "it/settings.rs a_token_must_fit_the_settings",
    ),
    (
        "auth.issuer",
        "it/settings.rs a_token_must_have_the_issuer_and_the_audience_of_the_settings",
    ),
    (
        "auth.audience",
        "it/settings.rs a_token_must_have_the_issuer_and_the_audience_of_the_settings",
    ),
    (
        "auth.leeway",
        "it/hostile.rs a_token_that_expires_ends_its_connection",
    ),
    (
        "auth.query_token",
        "it/settings.rs a_token_in_the_url_counts_where_it_may",
    ),
    (
        "limits.connections",
        "it/limits.rs a_full_node_refuses_users_and_answers_its_probes",
    ),
    (
        "limits.handshakes",
        "it/hostile.rs an_evicted_connection_is_reset_unless_it_had_a_response",
    ),
    (
        "limits.header_bytes",
        "it/handshake.rs a_head_that_is_too_large_is_counted_and_names_the_limit",
    ),
    (
        "limits.header_timeout",
        "it/settings.rs timeouts_are_shorter_where_the_settings_say_so",
    ),
    (
        "limits.connection_age",
        "it/settings.rs an_old_connection_is_asked_to_reconnect",
    ),
    (
        "limits.message_bytes",
        "it/v1.rs a_message_above_the_limit_is_reported_to_the_sender",
    ),
    (
        "limits.frame_bytes",
        "it/v1.rs a_message_above_the_limit_is_reported_to_the_sender",
    ),
    (
        "limits.bad_messages",
        "it/v1.rs bad_messages_in_one_read_chunk_are_answered_before_the_1008",
    ),
    (
        "limits.outcomes_pending",
        "it/settings.rs reading_pauses_at_the_outcomes_that_may_be_pending",
    ),
    (
        "limits.outcomes_bytes",
        "it/mailbox.rs unread_outcomes_are_bounded_by_bytes_and_others_get_theirs",
    ),
    (
        "limits.message_rate",
        "it/bare.rs messages_over_the_rate_are_dropped_and_the_connection_stays",
    ),
    (
        "limits.byte_rate",
        "it/settings.rs bytes_over_the_rate_are_dropped",
    ),
    (
        "limits.accept_rate",
        "it/hostile.rs connections_beyond_the_accept_rate_wait_in_the_kernel",
    ),
    (
        "limits.handshake_rate",
        "it/listeners.rs a_rate_of_all_answers_503_and_a_rate_of_an_address_429",
    ),
    (
        "limits.address_handshake_rate",
        "it/listeners.rs a_rate_of_all_answers_503_and_a_rate_of_an_address_429",
    ),
    (
        "limits.tls_handshake_rate",
        "it/tls.rs operators_connect_when_the_total_tls_rate_is_exceeded",
    ),
    (
        "limits.address_tls_handshake_rate",
        "it/tls.rs tls_handshakes_beyond_the_rate_of_an_address_are_reset",
    ),
    (
        "limits.address_connections",
        "it/hostile.rs a_full_node_or_address_refuses_before_it_checks_the_token",
    ),
    (
        "limits.address_auth_failures",
        "it/hostile.rs an_address_that_guesses_tokens_is_soon_refused",
    ),
    (
        "mailbox.messages",
        "it/mailbox.rs a_mailbox_is_bounded_by_messages",
    ),
    (
        "mailbox.bytes",
        "it/mailbox.rs a_mailbox_is_bounded_by_bytes",
    ),
    (
        "mailbox.total_bytes",
        "it/mailbox.rs all_mailboxes_together_are_bounded_by_bytes",
    ),
    (
        "mailbox.max_age",
        "it/mailbox.rs a_message_that_waits_too_long_is_dropped_as_expired",
    ),
    (
        "mailbox.overflow",
        "it/mailbox.rs disconnect_closes_with_1013",
    ),
    (
        "keepalive.ping_interval",
        "it/v1.rs the_welcome_comes_first",
    ),
    (
        "keepalive.pong_timeout",
        "it/settings.rs timeouts_are_shorter_where_the_settings_say_so",
    ),
    (
        "keepalive.slowest_rate",
        "it/settings.rs timeouts_are_shorter_where_the_settings_say_so",
    ),
    (
        "keepalive.write_timeout",
        "it/settings.rs timeouts_are_shorter_where_the_settings_say_so",
    ),
    (
        "keepalive.close_timeout",
        "it/settings.rs timeouts_are_shorter_where_the_settings_say_so",
    ),
    (
        "routing.strategy",
        "it/settings.rs the_router_has_the_queue_of_the_settings",
    ),
    (
        "routing.router_queue",
        "it/settings.rs the_router_has_the_queue_of_the_settings",
    ),
    (
        "drain.delay",
        "it/drain.rs readiness_ends_at_once_and_everything_else_after_the_delay",
    ),
    (
        "drain.spread",
        "it/drain.rs upgrades_are_refused_while_http_is_answered_to_the_end",
    ),
    (
        "drain.timeout",
        "it/drain.rs messages_queued_at_the_timeout_have_the_outcome_draining",
    ),
    (
        "tickets.secret_file",
        "it/tickets.rs a_ticket_takes_no_id_from_a_user_of_another_origin",
    ),
    ("tickets.ttl", "it/settings.rs a_ticket_expires"),
    (
        "ui.enabled",
        "it/http.rs the_page_its_client_and_the_descriptions_are_files_with_types",
    ),
    (
        "log.format",
        "it/cli.rs logs_go_to_stderr_in_the_format_of_the_settings",
    ),
    (
        "log.filter",
        "it/traces.rs sighup_reads_the_filter_again_and_keeps_the_old_one_if_the_file_is_invalid",
    ),
    (
        "tracing.otlp_endpoint",
        "it/traces.rs a_message_is_a_tree_of_two_spans_in_either_strategy",
    ),
    (
        "tracing.tls_ca_file",
        "it/traces.rs spans_go_by_https_and_gzip_to_a_receiver_that_a_given_authority_signed",
    ),
    (
        "tracing.compression",
        "it/traces.rs spans_go_by_https_and_gzip_to_a_receiver_that_a_given_authority_signed",
    ),
    (
        "tracing.sample_ratio",
        "it/traces.rs an_untrusted_client_cannot_force_a_trace",
    ),
    (
        "tracing.trust_clients",
        "it/traces.rs a_trusted_client_continues_its_trace",
    ),
    (
        "tracing.queue_spans",
        "it/traces.rs a_receiver_that_hangs_blocks_no_message_and_its_loss_is_counted",
    ),
    (
        "tracing.export_interval",
        "it/traces.rs a_message_is_a_tree_of_two_spans_in_either_strategy",
    ),
    (
        "tracing.export_timeout",
        "it/traces.rs a_receiver_that_hangs_blocks_no_message_and_its_loss_is_counted",
    ),
    (
        "tracing.flush_timeout",
        "it/traces.rs a_receiver_that_hangs_blocks_no_message_and_its_loss_is_counted",
    ),
];

/// The keys of a document of settings, those that stand there as a comment included.
fn keys(document: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut keys = BTreeSet::new();
    for line in document.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ")
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            keys.insert(format!("{section}.{key}"));
        }
    }
    keys
}

/// A new setting needs a row here, and so a test. The tests of other nodes, which need NATS, show the settings of the
/// cluster.
#[test]
fn every_setting_has_a_test_of_its_effect() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let listed: BTreeSet<String> = TABLE.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(listed.len(), TABLE.len(), "a key has two rows");
    let known = keys(DEFAULT);
    let (of_cluster, others): (BTreeSet<_>, BTreeSet<_>) = known
        .into_iter()
        .partition(|key| key.starts_with("cluster."));
    assert!(of_cluster.len() > 10, "{of_cluster:?}");
    let differing: Vec<_> = others.symmetric_difference(&listed).collect();
    assert!(
        differing.is_empty(),
        "set or listed, not both: {differing:?}"
    );
    for (key, test) in TABLE {
        let (file, name) = test.split_once(' ').unwrap();
        let source = fs::read_to_string(tests.join(file)).unwrap();
        assert!(
            source.contains(&format!("fn {name}(")),
            "{key}: {file} has no test {name}"
        );
        let (_, last) = key.rsplit_once('.').unwrap();
        // By its field, or by the end of its variable.
        let sets = [
            format!("{last} = "),
            format!("{last}: "),
            last.to_uppercase(),
        ];
        assert!(
            sets.iter().any(|text| source.contains(text)),
            "{key}: {file} does not set it"
        );
    }
}

/// A file that the drop removes.
struct TempFile(PathBuf);

impl TempFile {
    fn new(content: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("settings-{}-{count}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

const SECRET: [u8; 64] = [b's'; 64];

fn with_token(token: &str) -> Handshake {
    Handshake::new().with("Authorization", &format!("Bearer {token}"))
}

/// A token that a relay with these settings of `auth` accepts.
fn token(key: &[u8], change: impl FnOnce(&mut Settings)) -> String {
    let mut settings = Settings::default();
    change(&mut settings);
    let minute = Duration::from_mins(1);
    auth::issue(&settings.auth, &Secret::new(key), "ann", minute).unwrap()
}

async fn status(relay: &Relay, handshake: &Handshake) -> u16 {
    relay.raw().await.ask(handshake).await.status
}

type Change<'a> = Box<dyn Fn(&mut Settings) + 'a>;

#[tokio::test]
async fn a_token_must_fit_the_settings() {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
    let rsa = fs::read(keys.join("rsa.pem")).unwrap();
    let secret = TempFile::new(&SECRET);
    let set = format!(
        r#"{{"keys":[{{"kty":"oct","alg":"HS384","k":"{}"}}]}}"#,
        data_encoding::BASE64URL_NOPAD.encode(&SECRET)
    );
    let set = TempFile::new(set.as_bytes());
    let plain = token(&SECRET, |_| ());
    let hs384 = token(&SECRET, |s| s.auth.algorithm = Some(Algorithm::HS384));
    let hs512 = token(&SECRET, |s| s.auth.algorithm = Some(Algorithm::HS512));
    let rs256 = token(&rsa, |s| s.auth.algorithm = Some(Algorithm::RS256));
    let by_secret = |s: &mut Settings| s.auth.secret_file = vec![secret.0.clone()];
    let cases: Vec<(Change<'_>, Vec<&String>, Vec<&String>)> = vec![
        (Box::new(by_secret), vec![&plain], vec![&hs512, &rs256]),
        (
            Box::new(|s| {
                by_secret(s);
                s.auth.algorithm = Some(Algorithm::HS512);
            }),
            vec![&hs512],
            vec![&plain],
        ),
        (
            Box::new(|s| s.auth.public_key_file = vec![keys.join("rsa.pub.pem")]),
            vec![&rs256],
            vec![&plain],
        ),
        (
            Box::new(|s| s.auth.jwks_file = Some(set.0.clone())),
            vec![&hs384],
            vec![&plain],
        ),
    ];
    for (change, good, bad) in cases {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.auth.mode = AuthMode::Jwt;
            change(settings);
        })
        .await;
        assert_eq!(status(&relay, &Handshake::new()).await, 401);
        for token in good {
            assert_eq!(status(&relay, &with_token(token)).await, 101, "{token}");
        }
        for token in bad {
            assert_eq!(status(&relay, &with_token(token)).await, 401, "{token}");
        }
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_token_must_have_the_issuer_and_the_audience_of_the_settings() {
    let secret = TempFile::new(&SECRET);
    let plain = token(&SECRET, |_| ());
    let claims = |issuer: &str, audience: &str| {
        token(&SECRET, |s| {
            s.auth.issuer = Some(issuer.to_owned());
            s.auth.audience = Some(audience.to_owned());
        })
    };
    for (issuer, audience) in [(true, false), (false, true)] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.auth.mode = AuthMode::Jwt;
            settings.auth.secret_file = vec![secret.0.clone()];
            settings.auth.issuer = issuer.then(|| "ours".to_owned());
            settings.auth.audience = audience.then(|| "ours".to_owned());
        })
        .await;
        let ours = claims("ours", "ours");
        assert_eq!(status(&relay, &with_token(&plain)).await, 401);
        if issuer {
            assert_eq!(
                status(&relay, &with_token(&claims("theirs", "ours"))).await,
                401
            );
            let ours = token(&SECRET, |s| s.auth.issuer = Some("ours".to_owned()));
            assert_eq!(status(&relay, &with_token(&ours)).await, 101);
        } else {
            assert_eq!(
                status(&relay, &with_token(&claims("ours", "theirs"))).await,
                401
            );
            assert_eq!(status(&relay, &with_token(&ours)).await, 101);
        }
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_token_in_the_url_counts_where_it_may() {
    let secret = TempFile::new(&SECRET);
    let good = token(&SECRET, |_| ());
    for (query_token, expected) in [(false, 401), (true, 101)] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.auth.mode = AuthMode::Jwt;
            settings.auth.secret_file = vec![secret.0.clone()];
            settings.auth.query_token = query_token;
        })
        .await;
        let in_url = Handshake::new().target(&format!("/?token={good}"));
        assert_eq!(status(&relay, &in_url).await, expected);
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_new_secret_counts_without_a_restart() {
    let secret = TempFile::new(&SECRET);
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.auth.mode = AuthMode::Jwt;
        settings.auth.secret_file = vec![secret.0.clone()];
        settings.auth.refresh_interval = Duration::from_millis(50);
    })
    .await;
    let (old, new) = (token(&SECRET, |_| ()), token(&[b'n'; 64], |_| ()));
    assert_eq!(status(&relay, &with_token(&old)).await, 101);
    fs::write(&secret.0, [b'n'; 64]).unwrap();
    eventually("the new secret counts", async || {
        (status(&relay, &with_token(&new)).await == 101).then_some(())
    })
    .await;
    assert_eq!(status(&relay, &with_token(&old)).await, 401);
    relay.stop().await;
}

#[tokio::test]
async fn a_key_server_that_hangs_delays_the_start_no_longer_than_its_timeout() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begin = Instant::now();
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.auth.mode = AuthMode::Jwt;
        settings.auth.jwks_url = Some(format!("http://{}/", silent.local_addr().unwrap()));
        settings.auth.jwks_timeout = Duration::from_millis(100);
    })
    .await;
    // The default is 5 s.
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_proxy_is_believed_in_one_header() {
    for (header, believed) in [
        (ForwardedHeader::XForwardedFor, "X-Forwarded-For: 10.0.0."),
        (ForwardedHeader::Forwarded, "Forwarded: for=10.0.0."),
    ] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
            settings.server.forwarded_header = header;
            settings.limits.address_connections = Some(1);
        })
        .await;
        let mut held = Vec::new();
        let (name, prefix) = believed.split_once(": ").unwrap();
        for (client, expected) in [(1, 101), (2, 101), (2, 429)] {
            let mut peer = relay.raw().await;
            let handshake = Handshake::new().with(name, &format!("{prefix}{client}"));
            assert_eq!(peer.ask(&handshake).await.status, expected, "{header:?}");
            held.push(peer);
        }
        drop(held);
        relay.stop().await;
    }
}

/// Each limit is far below its default, and what it ends has ended before the default would.
#[tokio::test]
async fn timeouts_are_shorter_where_the_settings_say_so() {
    let short = Duration::from_millis(200);

    // The default of header_timeout is 5 s.
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.header_timeout = short;
    })
    .await;
    let mut peer = relay.raw().await;
    peer.write(b"GET / HTTP/1.1\r\n").await;
    let begin = Instant::now();
    drop(peer.answer(true).await);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(4), "header_timeout: {took:?}");
    relay.stop().await;

    // The default of pong_timeout is 10 s. By that of slowest_rate, the 60 kB before the ping take 15 s more.
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.ping_interval = short;
        settings.keepalive.pong_timeout = short;
        settings.keepalive.slowest_rate = 1 << 30;
    })
    .await;
    let mut peer = relay.raw_user(Dialect::Bare).await;
    peer.say(peer.id, &"x".repeat(60_000)).await;
    while peer.frame().await.opcode != PING {}
    let begin = Instant::now();
    relay.until_closed("server", "pong_timeout", 1).await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(8), "pong_timeout: {took:?}");
    relay.stop().await;

    // The default of write_timeout is 10 s.
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.write_timeout = short;
    })
    .await;
    let mut sender = relay.bare().await;
    let slow = relay.narrow_user(Dialect::Bare).await;
    let begin = Instant::now();
    let text = "x".repeat(60_000);
    for _ in 0..100 {
        sender.say(slow.id, &text).await;
    }
    relay.until_closed("server", "write_timeout", 1).await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(8), "write_timeout: {took:?}");
    relay.stop().await;

    // The default of close_timeout is 5 s.
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.close_timeout = short;
    })
    .await;
    let mut peer = relay.raw_user(Dialect::Bare).await;
    peer.write(&Wire::text("[]").bytes()).await;
    assert_eq!(peer.close().await.0, 1007);
    let begin = Instant::now();
    assert!(!matches!(peer.next().await, Seen::Frame(_)));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(4), "close_timeout: {took:?}");
    relay.stop().await;
}

#[tokio::test]
async fn an_old_connection_is_asked_to_reconnect() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.connection_age = Duration::from_millis(300);
    })
    .await;
    let mut user = relay.v1().await;
    let (frames, code, _) = user.rest().await;
    assert_eq!((frames.len(), code), (1, 1012), "{frames:?}");
    assert_eq!(frames[0]["type"], "reconnect");
    relay.stop().await;
}

#[tokio::test]
async fn reading_pauses_at_the_outcomes_that_may_be_pending() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.outcomes_pending = 3;
    })
    .await;
    let mut writer = relay.bare().await;
    let slow = relay.narrow_user(Dialect::Bare).await;
    clog(&relay, &mut writer, slow.id, 60_000, 5).await;
    let received = "switchboard_messages_received_total";
    let before = relay.metric(received, &[]).await;
    let mut sender = relay.raw_user(Dialect::V1).await;
    for id in 0..20 {
        sender.write(&question(slow.id, "waits", id).bytes()).await;
    }
    // Others are read long after the 20 have come.
    for _ in 0..20 {
        writer.say(writer.id, "hi").await;
        writer.hears(writer.id, "hi").await;
    }
    let read = relay.metric(received, &[]).await - before - 20;
    assert_eq!(read, 3, "of 20 messages whose outcomes are pending");
    slow.reset();
    relay.until_metric(received, &[], before + 40).await;
    drop(sender);
    relay.stop().await;
}

#[tokio::test]
async fn bytes_over_the_rate_are_dropped() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.message_bytes = 1000;
        settings.limits.byte_rate = Some(1);
    })
    .await;
    let mut user = relay.raw_user(Dialect::Bare).await;
    let large = message(user.id, &"x".repeat(600)).bytes();
    user.write(&large.repeat(5)).await;
    let labels = [("reason", "rate_limited")];
    relay
        .until_metric("switchboard_messages_dropped_total", &labels, 4)
        .await;
    relay.stop().await;
}

#[tokio::test]
async fn a_ticket_expires() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.tickets.ttl = Duration::from_secs(1);
    })
    .await;
    let join = async |handshake: Handshake| {
        let mut peer: Raw = relay.raw().await;
        peer.upgrade(&handshake.dialect(Dialect::V1)).await;
        peer.json().await
    };
    let welcome = join(Handshake::new()).await;
    let ticket = welcome["ticket"].as_str().unwrap().to_owned();
    eventually("the ticket expires", async || {
        let welcome = join(Handshake::new().with("X-Ticket", &ticket)).await;
        (welcome["reason"] == "ticket_expired").then_some(())
    })
    .await;
    relay.stop().await;
}

/// No peer can tell whether messages pass through the router, so this looks at the parts of a relay.
#[tokio::test]
async fn the_router_has_the_queue_of_the_settings() {
    let mut settings = Settings::default();
    settings.server.listen = vec!["127.0.0.1:0".parse().unwrap()];
    let app = App::build(settings.clone()).await.unwrap();
    assert!(format!("{app:?}").contains("router: None"));
    settings.routing.strategy = Strategy::Router;
    settings.routing.router_queue = 12_321;
    let app = App::build(settings).await.unwrap();
    let parts = format!("{app:?}");
    assert!(parts.contains("router: Some(Router { queue: 12321"));
}
