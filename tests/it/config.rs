//! Which source of a setting wins, and the texts about settings that are refused or less safe. In process, from
//! sources of the test: no file, no environment.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use switchboard::config::{
    Algorithm, AuthMode, Compression, ConnectionLimits, DEFAULT, ForwardedHeader, LogFormat,
    MachineLimits, Overflow, Settings, SettingsProblem, Sources, Strategy, TlsSettings,
};

/// Names with texts or values.
type Pairs = &'static [(&'static str, &'static str)];

fn file(text: &str) -> Sources {
    files(&[("relay.toml", text)])
}

fn files(files: &[(&str, &str)]) -> Sources {
    let own = |&(name, text): &(&str, &str)| (name.to_owned(), text.to_owned());
    Sources {
        files: files.iter().map(own).collect(),
        ..Sources::default()
    }
}

fn variables(variables: &[(&str, &str)]) -> Sources {
    let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    Sources {
        variables: variables.iter().map(own).collect(),
        ..Sources::default()
    }
}

/// Checks that these sources make the default settings, changed like this.
#[track_caller]
fn check(sources: &Sources, change: impl FnOnce(&mut Settings)) {
    let mut expected = Settings::default();
    change(&mut expected);
    match Settings::resolve(sources) {
        Ok(settings) => assert_eq!(settings, expected),
        Err(error) => panic!("{error}"),
    }
}

/// Checks the problems of these sources, a line each.
#[track_caller]
fn check_refused(sources: &Sources, expected: &[&str]) {
    let error = Settings::resolve(sources).expect_err("should be refused");
    let problems: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, expected);
}

#[test]
fn the_documented_file_is_the_default() {
    check(&file(DEFAULT), |_| {});
    check(&file(""), |_| {});
    let Settings {
        server,
        admin,
        auth,
        limits,
        mailbox,
        keepalive,
        routing,
        cluster: _,
        drain,
        log,
        tracing,
        tickets,
        ui,
    } = Settings::default();
    assert_eq!(
        server.listen,
        [
            "127.0.0.1:8080".parse().unwrap(),
            "[::1]:8080".parse().unwrap()
        ]
    );
    assert_eq!((admin.listen, limits.connections), (None, None));
    assert_eq!(admin.outcome_timeout, Duration::from_secs(5));
    assert_eq!((auth.mode, auth.query_token), (AuthMode::None, false));
    assert_eq!((limits.handshakes, limits.header_bytes), (400, 16 << 10));
    assert_eq!(
        (limits.message_bytes, limits.frame_bytes),
        (64 << 10, 128 << 10)
    );
    assert_eq!((limits.bad_messages, limits.outcomes_pending), (16, 1024));
    assert_eq!(
        (mailbox.messages, mailbox.bytes, mailbox.total_bytes),
        (256, 1 << 20, 256 << 20)
    );
    assert_eq!(
        (mailbox.overflow, routing.strategy),
        (Overflow::DropNewest, Strategy::Directory)
    );
    assert_eq!((routing.router_queue, log.format), (1024, LogFormat::Text));
    assert_eq!(log.filter, "info");
    assert_eq!(
        (tracing.otlp_endpoint, tracing.trust_clients),
        (None, false)
    );
    assert_eq!((tracing.sample_ratio, tracing.queue_spans), (0.01, 2048));
    assert!(ui.enabled);
    assert_eq!(
        (tickets.secret_file, tickets.ttl.as_secs()),
        (None, 24 * 3600)
    );
    let seconds = [
        limits.header_timeout,
        limits.connection_age,
        keepalive.ping_interval,
        keepalive.pong_timeout,
        keepalive.write_timeout,
        keepalive.close_timeout,
        drain.delay,
        drain.spread,
        drain.timeout,
        tracing.export_timeout,
        tracing.flush_timeout,
    ];
    assert_eq!(
        seconds.map(|duration| duration.as_secs()),
        [5, 0, 25, 10, 20, 5, 5, 30, 40, 10, 5]
    );
}

#[test]
fn a_node_is_alone_unless_nats_is_set() {
    let cluster = Settings::default().cluster;
    assert_eq!(cluster.nats_url, [""; 0]);
    assert_eq!(
        (cluster.name.as_str(), cluster.required),
        ("switchboard", false)
    );
    assert_eq!(
        (cluster.block_size.get(), cluster.lease_replicas),
        (1024, 1)
    );
    assert_eq!(
        (
            cluster.user_messages,
            cluster.user_bytes,
            cluster.queue_bytes
        ),
        (256, 1 << 20, 64 << 20)
    );
    assert_eq!(
        (cluster.in_flight_bytes, cluster.inbound_messages),
        (256 << 10, 65536)
    );
    assert_eq!(cluster.outcomes_pending, 65536);
    let seconds = [cluster.outcome_timeout, cluster.link_timeout];
    assert_eq!(seconds.map(|duration| duration.as_secs()), [5, 3]);
}

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "a line for each key without a default"
)]
fn the_documented_file_has_every_key_each_with_a_comment() {
    let mut documented = BTreeSet::new();
    let (mut section, mut last) = (String::new(), "");
    let mut uncommented = String::new();
    for line in DEFAULT.lines() {
        // An optional key is commented out.
        let key = line
            .strip_prefix("# ")
            .unwrap_or(line)
            .split_once(" = ")
            .map(|(key, _)| key);
        let key = key.filter(|key| {
            key.bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
        });
        if let Some(key) = key {
            assert!(
                last.starts_with("# ") || documented.contains(last),
                "{key} has no comment"
            );
            documented.insert(format!("{section}.{key}"));
            // Only one way to identify a node to NATS may be set.
            let is_other_way =
                section == "cluster" && ["token_file", "nkey_file", "creds_file"].contains(&key);
            let uncomment = if is_other_way { "" } else { "# " };
            uncommented += line.strip_prefix(uncomment).unwrap_or(line);
        } else if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
            uncommented += line;
        }
        uncommented += "\n";
        last = line;
    }

    let known = |text: &str| match Settings::resolve(&file(text)).unwrap_err().problems() {
        [SettingsProblem::UnknownKey { known, .. }] => known.clone(),
        problems => panic!("{problems:?}"),
    };
    let sections = known("no_such_section = 1");
    let within = |section: &String| known(&format!("[{section}]\nno_such_key = 1"));
    // A nested section is listed among the keys of its section.
    let keys = sections.iter().flat_map(within).flat_map(|key| {
        if key.rsplit('.').next() == Some("tls") {
            within(&key)
        } else {
            vec![key]
        }
    });
    assert_eq!(documented, keys.collect());

    check(&file(&uncommented), |settings| {
        settings.admin.listen = Some("127.0.0.1:9090".parse().unwrap());
        settings.admin.token_file = Some("/etc/switchboard/admin-token".into());
        settings.admin.metrics_token_file = Some("/etc/switchboard/metrics-token".into());
        settings.server.worker_threads = Some(4);
        settings.admin.tls.cert_file = Some("/etc/switchboard/admin.crt".into());
        settings.admin.tls.key_file = Some("/etc/switchboard/admin.key".into());
        settings.server.tls.cert_file = Some("/etc/switchboard/tls.crt".into());
        settings.server.tls.key_file = Some("/etc/switchboard/tls.key".into());
        settings.tickets.secret_file = Some("/etc/switchboard/ticket-secret".into());
        settings.tracing.otlp_endpoint = Some("http://127.0.0.1:4318".to_owned());
        settings.tracing.tls_ca_file = Some("/run/secrets/collector-ca.pem".into());
        let auth = &mut settings.auth;
        auth.jwks_file = Some("/etc/switchboard/jwks.json".into());
        auth.jwks_url = Some("https://example.com/.well-known/jwks.json".to_owned());
        auth.algorithm = Some(Algorithm::HS512);
        auth.issuer = Some("https://example.com".to_owned());
        auth.audience = Some("switchboard".to_owned());
        let limits = &mut settings.limits;
        limits.connections = Some(10_000);
        (limits.message_rate, limits.byte_rate) = (Some(100), Some(1 << 20));
        limits.accept_rate = Some(5000);
        (limits.handshake_rate, limits.address_handshake_rate) = (Some(1000), Some(10));
        (limits.tls_handshake_rate, limits.address_tls_handshake_rate) = (Some(2000), Some(20));
        (limits.address_connections, limits.address_auth_failures) = (Some(100), Some(10));
        let secret = |name| Some(Path::new("/run/secrets").join(name));
        settings.cluster.user = Some("switchboard".to_owned());
        settings.cluster.password_file = secret("nats-password");
        settings.cluster.tls_ca_file = secret("nats-ca.pem");
        settings.cluster.tls_cert_file = secret("nats-cert.pem");
        settings.cluster.tls_key_file = secret("nats-key.pem");
    });
}

#[test]
fn cluster_settings_need_each_other() {
    check(
        &variables(&[(
            "SWITCHBOARD__CLUSTER__NATS_URL",
            "nats://a:4222,tls://[::1]:4222",
        )]),
        |settings| {
            settings.cluster.nats_url =
                vec!["nats://a:4222".to_owned(), "tls://[::1]:4222".to_owned()];
        },
    );
    let url = "addresses of NATS servers, such as \"nats://127.0.0.1:4222\" or \
        \"tls://nats.example.com:4222\", without a user, a password or a path";
    for wrong in [
        "nats",
        "http://a:4222",
        "nats://me:secret@a",
        "nats://a/b",
        "nats://a:4222?b",
        "nats://:4222",
    ] {
        let found = wrong.replace("me:secret", "***");
        check_refused(
            &file(&format!("[cluster]\nnats_url = [{wrong:?}]")),
            &[&format!(
                "relay.toml: cluster.nats_url: found [{found:?}], allowed: {url}"
            )],
        );
    }
    check_refused(
        &file("[cluster]\nname = \"a.b\"\nblock_size = 0"),
        &[
            "relay.toml: cluster.block_size: found 0, allowed: a whole number from 1 to 1048576",
            "relay.toml: cluster.name: found \"a.b\", allowed: 1 to 32 letters, digits, \"-\" and \"_\"",
        ],
    );
    let refused = |text: &str, with: &str| {
        let error = Settings::resolve(&file(text)).unwrap_err().to_string();
        assert!(error.contains(with), "{error}");
    };
    refused("[cluster]\nuser = \"a\"", "set together with cluster.");
    refused(
        "[cluster]\npassword_file = \"a\"",
        "set together with cluster.",
    );
    refused(
        "[cluster]\ntoken_file = \"a\"\nnkey_file = \"b\"",
        "at most one of the four set",
    );
    refused(
        "[cluster]\ntls_cert_file = \"a\"",
        "set together with cluster.tls_key_file, or both not set",
    );
    refused(
        "[cluster]\nrequired = true",
        "false while cluster.nats_url is empty",
    );
    refused(
        "[cluster]\nuser_bytes = \"64KiB\"",
        "at least limits.message_bytes + 256 bytes",
    );
    refused(
        "[cluster]\nqueue_bytes = \"64KiB\"",
        "at least cluster.user_bytes",
    );
}

#[test]
fn settings_print_as_a_file_that_loads_to_them() {
    let mut settings = Settings::default();
    let print = |settings: &Settings| settings.to_string();
    check(&file(&print(&settings)), |_| {});

    settings.server.listen = vec!["[::]:0".parse().unwrap()];
    settings.admin.listen = Some("10.0.0.1:9090".parse().unwrap());
    settings.server.allowed_origins = vec![
        "https://*.example.com".to_owned().try_into().unwrap(),
        "http://localhost:3000".to_owned().try_into().unwrap(),
        "null".to_owned().try_into().unwrap(),
        "app://*".to_owned().try_into().unwrap(),
    ];
    settings.server.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    settings.server.forwarded_header = ForwardedHeader::Forwarded;
    settings.server.proxy_protocol = true;
    settings.limits.connections = Some(7);
    settings.limits.message_bytes = 1001;
    settings.limits.byte_rate = Some(512 << 10);
    settings.mailbox.total_bytes = 3 << 30;
    settings.mailbox.overflow = Overflow::Disconnect;
    settings.keepalive.ping_interval = Duration::from_millis(1500);
    settings.keepalive.pong_timeout = Duration::from_mins(2);
    settings.routing.strategy = Strategy::Router;
    settings.drain.delay = Duration::ZERO;
    settings.log.format = LogFormat::Json;
    settings.log.filter = "warn,switchboard::http=debug".to_owned();
    let printed = print(&settings);
    for line in [
        "listen = [\"[::]:0\"]",
        "allowed_origins = [\"https://*.example.com\", \"http://localhost:3000\", \"null\", \"app://*\"]",
        "trusted_proxies = [\"10.0.0.0/8\"]",
        "forwarded_header = \"forwarded\"",
        "connections = 7",
        "message_bytes = \"1001B\"",
        "byte_rate = \"512KiB\"",
        "frame_bytes = \"128KiB\"",
        "total_bytes = \"3GiB\"",
        "overflow = \"disconnect\"",
        "ping_interval = \"1500ms\"",
        "pong_timeout = \"2m\"",
        "delay = \"0s\"",
    ] {
        assert!(
            printed.lines().any(|found| found == line),
            "{line} in\n{printed}"
        );
    }
    assert_eq!(
        Settings::resolve(&file(&printed)).unwrap().to_string(),
        printed
    );
}

#[test]
fn later_sources_win_key_by_key() {
    let mut sources = files(&[
        (
            "base.toml",
            "[limits]\nhandshakes = 1\nbad_messages = 1\noutcomes_pending = 1",
        ),
        (
            "site.toml",
            "[limits]\nbad_messages = 2\noutcomes_pending = 2\n[server]\nlisten = []",
        ),
    ]);
    sources.variables = variables(&[
        ("SWITCHBOARD__LIMITS__OUTCOMES_PENDING", "3"),
        ("SWITCHBOARD__SERVER__LISTEN", "127.0.0.1:1,127.0.0.1:2"),
    ])
    .variables;
    let expect = |settings: &mut Settings| {
        settings.limits.handshakes = 1;
        settings.limits.bad_messages = 2;
        settings.limits.outcomes_pending = 3;
        settings.server.listen = vec![
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        ];
    };
    check(&sources, expect);
    sources.listen = Some("[::1]:3".to_owned());
    check(&sources, |settings| {
        expect(settings);
        settings.server.listen = vec!["[::1]:3".parse().unwrap()];
    });
}

#[test]
fn a_variable_may_have_any_type() {
    type Change = fn(&mut Settings);
    let cases: [(&str, &str, Change); 15] = [
        ("UI__ENABLED", "false", |s| {
            s.ui.enabled = false;
        }),
        ("LIMITS__CONNECTIONS", "5", |s| {
            s.limits.connections = Some(5);
        }),
        ("ADMIN__LISTEN", "0.0.0.0:9090", |s| {
            s.admin.listen = "0.0.0.0:9090".parse().ok();
        }),
        ("SERVER__LISTEN", " [::]:80 ,", |s| {
            s.server.listen = vec!["[::]:80".parse().unwrap()];
        }),
        ("LIMITS__MESSAGE_BYTES", "512B", |s| {
            s.limits.message_bytes = 512;
        }),
        ("LIMITS__MESSAGE_BYTES", "512", |s| {
            s.limits.message_bytes = 512;
        }),
        ("LIMITS__FRAME_BYTES", "1MiB", |s| {
            s.limits.frame_bytes = 1 << 20;
        }),
        ("MAILBOX__TOTAL_BYTES", "2GiB", |s| {
            s.mailbox.total_bytes = 2 << 30;
        }),
        ("MAILBOX__OVERFLOW", "drop-oldest", |s| {
            s.mailbox.overflow = Overflow::DropOldest;
        }),
        ("KEEPALIVE__PING_INTERVAL", "500ms", |s| {
            s.keepalive.ping_interval = Duration::from_millis(500);
        }),
        ("KEEPALIVE__PING_INTERVAL", "2m", |s| {
            s.keepalive.ping_interval = Duration::from_mins(2);
        }),
        ("KEEPALIVE__PING_INTERVAL", "1h", |s| {
            s.keepalive.ping_interval = Duration::from_hours(1);
        }),
        ("DRAIN__DELAY", "0s", |s| s.drain.delay = Duration::ZERO),
        ("LOG__FILTER", "warn,hyper=off", |s| {
            "warn,hyper=off".clone_into(&mut s.log.filter);
        }),
        // Text stays text, even if it looks like a number.
        ("LOG__FILTER", "0", |s| "0".clone_into(&mut s.log.filter)),
    ];
    for (name, value, change) in cases {
        check(
            &variables(&[(&format!("SWITCHBOARD__{name}"), value)]),
            change,
        );
    }
}

#[test]
fn empty_and_foreign_variables_change_nothing() {
    check(
        &variables(&[
            ("SWITCHBOARD__LOG__FILTER", ""),
            ("SWITCHBOARD__NO__SUCH", ""),
            ("SWITCHBOARD_PORT", "tcp://10.96.0.11:8080"),
            ("SWITCHBOARD_SERVICE_HOST", "10.96.0.11"),
            ("SWITCHBOARD_LOG_FILTER", "debug"),
            ("MY_SWITCHBOARD__LOG__FILTER", "debug"),
            ("RUST_LOG", "debug"),
        ]),
        |_| {},
    );
}

const HANDSHAKES: &str = "a whole number from 1 to 1048576";
const MESSAGE_BYTES: &str = "a size such as \"512B\", \"64KiB\" or \"1MiB\", or bytes as a whole \
    number, from 1B to 64MiB";
const PING_INTERVAL: &str = "a duration such as \"500ms\", \"25s\" or \"2m\", from 1ms to 24h";
const LISTEN: &str = "IP addresses with a port, at least one, each once, such as \
    \"127.0.0.1:8080\" or \"[::1]:8080\"";
const OVERFLOW: &str = "\"drop-newest\", \"drop-oldest\", \"disconnect\"";
const FILTER: &str = "off, error, warn, info, debug, trace, or targets with one of these, such as \
    \"info,switchboard=debug\"";

#[test]
fn a_refused_value_in_a_file_names_place_value_and_allowed_values() {
    let cases = [
        ("limits.handshakes", "\"lots\"", HANDSHAKES),
        // Text, where a file has numbers.
        ("limits.handshakes", "\"5\"", HANDSHAKES),
        ("limits.handshakes", "1.5", HANDSHAKES),
        ("limits.handshakes", "2.0", HANDSHAKES),
        ("limits.handshakes", "true", HANDSHAKES),
        ("limits.handshakes", "-5", HANDSHAKES),
        ("limits.handshakes", "0", HANDSHAKES),
        ("limits.handshakes", "1048577", HANDSHAKES),
        ("limits.handshakes", "[1]", HANDSHAKES),
        ("limits.bad_messages", "5000000000", HANDSHAKES),
        ("limits.message_bytes", "0", MESSAGE_BYTES),
        ("limits.message_bytes", "-1", MESSAGE_BYTES),
        ("limits.message_bytes", "1.5", MESSAGE_BYTES),
        ("limits.message_bytes", "\"64KB\"", MESSAGE_BYTES),
        ("limits.message_bytes", "\"64 KiB\"", MESSAGE_BYTES),
        ("limits.message_bytes", "\"99999999999GiB\"", MESSAGE_BYTES),
        ("limits.message_bytes", "\"\"", MESSAGE_BYTES),
        ("keepalive.ping_interval", "25", PING_INTERVAL),
        ("keepalive.ping_interval", "\"25\"", PING_INTERVAL),
        ("keepalive.ping_interval", "\"0s\"", PING_INTERVAL),
        ("keepalive.ping_interval", "\"2 m\"", PING_INTERVAL),
        ("keepalive.ping_interval", "\"-1s\"", PING_INTERVAL),
        ("keepalive.ping_interval", "\"25h\"", PING_INTERVAL),
        ("keepalive.ping_interval", "\"5é\"", PING_INTERVAL),
        ("server.listen", "[]", LISTEN),
        ("server.listen", "\"\"", LISTEN),
        ("server.listen", "[\"[::1]:80\", \"[::1]:80\"]", LISTEN),
        ("mailbox.overflow", "\"explode\"", OVERFLOW),
        ("mailbox.overflow", "1", OVERFLOW),
        ("log.filter", "\"info=lots\"", FILTER),
        ("log.filter", "1", FILTER),
        (
            "admin",
            "5",
            "a table of listen, token_file, metrics_token_file, ready_when_full, outcome_timeout, tls",
        ),
    ];
    for (key, value, allowed) in cases {
        let problem = format!("relay.toml: {key}: found {value}, allowed: {allowed}");
        check_refused(&file(&format!("{key} = {value}")), &[&problem]);
    }
    let inside = [
        (
            "limits.handshakes.x = 1",
            "limits.handshakes: found a table",
            HANDSHAKES,
        ),
        (
            "server.listen = [\"localhost:80\"]",
            "server.listen: found \"localhost:80\"",
            LISTEN,
        ),
        (
            "server.listen = [\"[::1]:80\", 80]",
            "server.listen: found 80",
            LISTEN,
        ),
    ];
    for (text, found, allowed) in inside {
        check_refused(
            &file(text),
            &[&format!("relay.toml: {found}, allowed: {allowed}")],
        );
    }
}

/// A word that is no level would be taken as a target, and nothing else would be logged.
#[test]
fn a_log_filter_without_a_level_is_refused_with_a_suggestion() {
    for (filter, suggestion) in [
        ("verbose", "debug"),
        ("Debugg", "debug"),
        ("WARNING", "warn"),
        ("none", "off"),
        ("switchboard", "switchboard=debug"),
        ("info,switchboard::http", "switchboard::http=debug"),
        ("info,switchboard=debgu", "switchboard=debug"),
        ("info,switchboard=verbose", "switchboard=debug"),
        ("info,switchboard[{user=\"7\"}]=tracee", "switchboard=trace"),
        ("off,switchboard[session]=info", "switchboard=info"),
        ("info, debug", "debug"),
        ("warn,hyper=", "hyper=debug"),
    ] {
        let allowed = format!("{FILTER} (did you mean {suggestion:?}?)");
        let name = "SWITCHBOARD__LOG__FILTER";
        check_refused(
            &variables(&[(name, filter)]),
            &[&format!(
                "{name}: log.filter: found {filter:?}, allowed: {allowed}"
            )],
        );
    }
    for filter in ["INFO", "5", "warn,", "error,a-b::c=Trace"] {
        check(&variables(&[("SWITCHBOARD__LOG__FILTER", filter)]), |s| {
            filter.clone_into(&mut s.log.filter);
        });
    }
}

#[test]
fn a_list_may_be_written_as_one_text() {
    check(
        &file(
            "auth.secret_file = \"a\"\n[server]\nlisten = \"[::1]:80\"\n\
             allowed_origins = \"https://a.com, null\"\nallowed_hosts = \"a.com\"\n\
             trusted_proxies = \"10.0.0.0/8,::1/128\"\n[cluster]\nnats_url = \"nats://a:4222\"",
        ),
        |settings| {
            settings.auth.secret_file = vec!["a".into()];
            settings.server.listen = vec!["[::1]:80".parse().unwrap()];
            let origin = |text: &str| text.to_owned().try_into().unwrap();
            settings.server.allowed_origins = vec![origin("https://a.com"), origin("null")];
            settings.server.allowed_hosts = vec!["a.com".to_owned()];
            settings.server.trusted_proxies =
                vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
            settings.cluster.nats_url = vec!["nats://a:4222".to_owned()];
        },
    );
}

#[test]
fn a_refused_variable_is_named_with_value_and_allowed_values() {
    let cases = [
        ("LIMITS__HANDSHAKES", "1.5", HANDSHAKES),
        ("LIMITS__HANDSHAKES", "yes", HANDSHAKES),
        ("LIMITS__HANDSHAKES", " ", HANDSHAKES),
        ("LIMITS__MESSAGE_BYTES", "-1", MESSAGE_BYTES),
        ("SERVER__LISTEN", ",", LISTEN),
        ("MAILBOX__OVERFLOW", "explode", OVERFLOW),
        (
            "ADMIN",
            "5",
            "a table of listen, token_file, metrics_token_file, ready_when_full, outcome_timeout, tls",
        ),
    ];
    for (name, value, allowed) in cases {
        let key = name.to_lowercase().replace("__", ".");
        let problem = format!("SWITCHBOARD__{name}: {key}: found {value:?}, allowed: {allowed}");
        let name = format!("SWITCHBOARD__{name}");
        check_refused(&variables(&[(&name, value)]), &[&problem]);
    }
    check_refused(
        &variables(&[("SWITCHBOARD__SERVER__LISTEN", "[::1]:80,x")]),
        &[&format!(
            "SWITCHBOARD__SERVER__LISTEN: server.listen: found \"x\", allowed: {LISTEN}"
        )],
    );
    check_refused(
        &variables(&[("SWITCHBOARD__LOG__FORMAT__X", "1")]),
        &["SWITCHBOARD__LOG__FORMAT__X: log.format: found a table, allowed: \"text\", \"json\""],
    );
}

#[test]
fn a_refused_option_is_named() {
    for listen in ["8080", "localhost:8080"] {
        let sources = Sources {
            listen: Some(listen.to_owned()),
            ..Sources::default()
        };
        let problem = format!("--listen: server.listen: found {listen:?}, allowed: {LISTEN}");
        check_refused(&sources, &[&problem]);
    }
}

#[test]
fn a_removed_key_is_refused_with_the_one_that_replaces_it() {
    for (removed, replacement) in [
        ("cluster.claims", "cluster.routes"),
        ("cluster.claim_timeout", "cluster.node_timeout"),
    ] {
        let error =
            Settings::resolve(&file(&format!("{removed} = 1"))).expect_err("should be refused");
        let refused = error.to_string();
        let hint = format!("(removed; {replacement} replaces it)");
        assert!(
            refused.contains(removed) && refused.contains(&hint),
            "{refused}"
        );
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    const KEYS: &str = "unknown key, allowed: drain.delay, drain.spread, drain.timeout";
    let sections: Vec<_> = DEFAULT
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
        .filter(|section| !section.contains('.'))
        .collect();
    let sections = format!("unknown key, allowed: {}", sections.join(", "));
    let in_files = [
        (
            "drain.timeuot = 1",
            format!("drain.timeuot: {KEYS} (did you mean drain.timeout?)"),
        ),
        (
            "drain.time-out = 1",
            format!("drain.time-out: {KEYS} (did you mean drain.timeout?)"),
        ),
        (
            "drain.Delay = 1",
            format!("drain.Delay: {KEYS} (did you mean drain.delay?)"),
        ),
        ("drain.patience = 1", format!("drain.patience: {KEYS}")),
        (
            "drian.delay = \"1s\"",
            format!("drian: {sections} (did you mean drain?)"),
        ),
        (
            "'limits.handshakes' = 1",
            format!("limits.handshakes: {sections}"),
        ),
        ("'a[1000000000]' = 1", format!("a[1000000000]: {sections}")),
        ("'' = 1", format!(": {sections}")),
    ];
    for (text, problem) in in_files {
        check_refused(&file(text), &[&format!("relay.toml: {problem}")]);
    }
    let in_variables = [
        (
            "DRAIN__TIMEUOT",
            format!("drain.timeuot: {KEYS} (did you mean drain.timeout?)"),
        ),
        ("DRAIN_TIMEOUT", format!("drain_timeout: {sections}")),
        ("DRAIN____DELAY", format!("drain.: {KEYS}")),
        ("A[1000000000]", format!("a[1000000000]: {sections}")),
        ("", format!(": {sections}")),
        (&*"__A".repeat(100_000), format!(": {sections}")),
    ];
    for (name, problem) in in_variables {
        let name = format!("SWITCHBOARD__{name}");
        check_refused(
            &variables(&[(&name, "1")]),
            &[&format!("{name}: {problem}")],
        );
    }
}

#[test]
fn a_secret_in_a_url_is_refused_and_masked() {
    for (name, key, wrong, found) in [
        (
            "SWITCHBOARD__CLUSTER__NATS_URL",
            "cluster.nats_url",
            "nats://a:4222,nats://me:secr@t@b",
            "nats://***@b",
        ),
        (
            "SWITCHBOARD__AUTH__JWKS_URL",
            "auth.jwks_url",
            "https://me:secret@a/keys",
            "https://***@a/keys",
        ),
    ] {
        let error = Settings::resolve(&variables(&[(name, wrong)])).unwrap_err();
        let text = error.to_string();
        let place = format!("{name}: {key}: found {found:?}, allowed: ");
        assert!(text.contains(&place), "{text}");
        assert!(!text.contains("secr"), "{text}");
    }
}

#[test]
fn the_url_of_a_key_set_is_checked() {
    let url = "an http or https URL without a user and a password, such as \
        \"https://example.com/.well-known/jwks.json\"";
    for wrong in [
        "example.com",
        "ftp://a/",
        "https://",
        "https://a b/",
        "HTTPS:",
        "https://[::1/",
    ] {
        check_refused(
            &file(&format!("[auth]\njwks_url = {wrong:?}")),
            &[&format!(
                "relay.toml: auth.jwks_url: found {wrong:?}, allowed: {url}"
            )],
        );
    }
}

#[test]
fn a_network_that_contains_no_client_is_refused() {
    check_refused(
        &file("[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"::ffff:10.0.0.0/104\"]"),
        &[
            "relay.toml: server.trusted_proxies: found [\"10.0.0.0/8\", \"::ffff:10.0.0.0/104\"], \
             allowed: networks such as \"10.0.0.0/8\" or \"2001:db8::1/128\", and none of IPv4 written as \
             IPv6",
        ],
    );
}

#[test]
fn more_key_files_than_a_token_is_tried_on_are_refused() {
    let nine = ["\"k\""; 9].join(", ");
    let paths = "a path, or a list of up to 8 paths";
    for key in ["secret_file", "public_key_file"] {
        check_refused(
            &file(&format!("[auth]\n{key} = [{nine}]")),
            &[&format!(
                "relay.toml: auth.{key}: found [{nine}], allowed: {paths}"
            )],
        );
    }
}

#[test]
fn values_that_contradict_each_other_are_refused_with_both_places() {
    let cases: [(Pairs, Pairs, &str); 8] = [
        (
            &[("a.toml", "limits.frame_bytes = \"32KiB\"")],
            &[],
            "a.toml: limits.frame_bytes: found \"32KiB\", allowed: at least limits.message_bytes \
             (limits.message_bytes is \"64KiB\", set by the built-in default)",
        ),
        (
            &[("a.toml", "mailbox.bytes = \"64KiB\"")],
            &[],
            "a.toml: mailbox.bytes: found \"64KiB\", allowed: at least limits.message_bytes + 136 bytes \
             (limits.message_bytes is \"64KiB\", set by the built-in default)",
        ),
        (
            &[(
                "a.toml",
                "limits.message_bytes = 100000\nlimits.frame_bytes = 90000",
            )],
            &[],
            "a.toml: limits.frame_bytes: found 90000, allowed: at least limits.message_bytes \
             (limits.message_bytes is 100000, set by a.toml)",
        ),
        (
            &[],
            &[("SWITCHBOARD__LIMITS__MESSAGE_BYTES", "129KiB")],
            "the built-in default: limits.frame_bytes: found \"128KiB\", allowed: at least limits.message_bytes \
             (limits.message_bytes is \"129KiB\", set by SWITCHBOARD__LIMITS__MESSAGE_BYTES)",
        ),
        (
            &[("a.toml", "mailbox.total_bytes = 1048575")],
            &[],
            "a.toml: mailbox.total_bytes: found 1048575, allowed: at least mailbox.bytes \
             (mailbox.bytes is \"1MiB\", set by the built-in default)",
        ),
        (
            &[
                ("a.toml", "drain.spread = \"1m\""),
                ("b.toml", "drain.timeout = \"64s\""),
            ],
            &[],
            "b.toml: drain.timeout: found \"64s\", allowed: at least drain.delay + drain.spread \
             (drain.delay is \"5s\", set by the built-in default; drain.spread is \"1m\", set by a.toml)",
        ),
        (
            &[("a.toml", "limits.header_bytes = 8191")],
            &[],
            "a.toml: limits.header_bytes: found 8191, allowed: a size such as \"512B\", \"64KiB\" or \"1MiB\", \
             or bytes as a whole number, from 8KiB to 1MiB",
        ),
        (
            &[],
            &[("SWITCHBOARD__ADMIN__LISTEN", "127.0.0.1:8080")],
            "SWITCHBOARD__ADMIN__LISTEN: admin.listen: found \"127.0.0.1:8080\", allowed: an IP address with a \
             port that server.listen does not have, such as \"127.0.0.1:9090\" (server.listen is \
             [\"127.0.0.1:8080\", \"[::1]:8080\"], set by the built-in default)",
        ),
    ];
    for (in_files, in_variables, problem) in cases {
        let variables = variables(in_variables).variables;
        check_refused(
            &Sources {
                variables,
                ..files(in_files)
            },
            &[problem],
        );
    }
}

#[test]
fn values_at_the_edge_of_the_allowed_range_are_accepted() {
    check(
        &file("limits.frame_bytes = \"64KiB\"\nmailbox.bytes = 65672"),
        |settings| {
            settings.limits.frame_bytes = 64 << 10;
            settings.mailbox.bytes = (64 << 10) + 136;
        },
    );
    check(
        &file("drain.timeout = \"35s\"\nmailbox.total_bytes = \"1MiB\""),
        |settings| {
            settings.drain.timeout = Duration::from_secs(35);
            settings.mailbox.total_bytes = 1 << 20;
        },
    );
    check(
        &file("server.listen = [\"[::1]:0\", \"[::1]:0\"]\nadmin.listen = \"[::1]:0\""),
        |settings| {
            settings.server.listen = vec!["[::1]:0".parse().unwrap(); 2];
            settings.admin.listen = Some("[::1]:0".parse().unwrap());
        },
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut sources = files(&[
        (
            "a.toml",
            "log = 5\n[limits]\nhandshakes = 0\nbad_messages = -1\nconections = 2",
        ),
        (
            "b.toml",
            "[limits]\nhandshakes = 5\nmessage_bytes = \"1GiB\"\nframe_bytes = \"big\"",
        ),
        ("c.toml", "[limits\n"),
    ]);
    sources.variables = variables(&[
        ("SWITCHBOARD__DRAIN", "1"),
        ("SWITCHBOARD__DRAIN__DELAY", "soon"),
    ])
    .variables;
    let error = Settings::resolve(&sources).unwrap_err();
    let places: Vec<_> = error.problems().iter().map(place).collect();
    // Not reported: limits.handshakes of a.toml, because b.toml overrides it; limits.frame_bytes below
    // limits.message_bytes, because the intended frame_bytes is not known.
    assert_eq!(
        places,
        [
            "c.toml",
            "a.toml limits.bad_messages",
            "a.toml limits.conections",
            "a.toml log",
            "b.toml limits.frame_bytes",
            "SWITCHBOARD__DRAIN drain",
            "SWITCHBOARD__DRAIN__DELAY drain.delay",
            "b.toml limits.message_bytes",
        ]
    );
    assert_eq!(
        error.to_string().lines().next(),
        Some("invalid configuration")
    );
}

#[test]
fn at_most_20_problems_of_a_file_are_reported() {
    let text: Vec<_> = (0..1000)
        .map(|number| format!("key_{number} = 1"))
        .collect();
    let error = Settings::resolve(&file(&text.join("\n"))).unwrap_err();
    assert_eq!(error.problems().len(), 20);
}

fn place(problem: &SettingsProblem) -> String {
    match problem {
        SettingsProblem::Unreadable { origin, .. } | SettingsProblem::Syntax { origin, .. } => {
            origin.clone()
        }
        SettingsProblem::UnknownKey { origin, key, .. }
        | SettingsProblem::Value { origin, key, .. } => {
            format!("{origin} {key}")
        }
    }
}

#[test]
fn settings_above_the_machine_get_a_warning() {
    const GIB: u64 = 1 << 30;
    let cases = [
        ((None, 1_000_000, None), ""),
        ((None, 20_000, Some(GIB)), ""),
        ((Some(19_164), 20_000, Some(GIB)), ""),
        (
            (Some(19_165), 20_000, Some(GIB)),
            "RLIMIT_NOFILE is 20000, which is enough for 19164 users (836 are reserved): raise it to \
             20001, or lower limits.connections, which is 19165",
        ),
        (
            (None, 256, None),
            "RLIMIT_NOFILE is 256, which is enough for 44 users (836 are reserved): raise it to 837",
        ),
        (
            (Some(1_000_000), 2_000_000, Some(4 * GIB)),
            "memory is 4GiB, but 1000000 idle users need 6054MiB, mailbox.total_bytes is 256MiB and \
             limits.outcomes_bytes is 64MiB: lower limits.connections or lower mailbox.total_bytes",
        ),
        (
            (None, u64::MAX, Some(4 * GIB)),
            "memory is 4GiB, but 10000000 idle users need 60548MiB, mailbox.total_bytes is 256MiB and \
             limits.outcomes_bytes is 64MiB: set limits.connections or lower mailbox.total_bytes",
        ),
    ];
    for ((connections, descriptors, memory), expected) in cases {
        let mut settings = Settings::default();
        settings.limits.connections = connections;
        let machine = MachineLimits {
            descriptors,
            memory,
        };
        assert_eq!(machine.warnings(&settings).join("\n"), expected);
    }
    assert!(MachineLimits::read().unwrap().memory.is_some());
}

/// A change of the default settings, and the warning about it.
type Exposure = (fn(&mut Settings), &'static str);

const EXPOSURES: &[Exposure] = &[
    (
        |s| s.server.listen = vec!["0.0.0.0:80".parse().unwrap()],
        "auth.mode is \"none\": any client that reaches 0.0.0.0:80 may connect",
    ),
    (
        |s| s.server.listen = vec!["0.0.0.0:80".parse().unwrap()],
        "server.tls is not set",
    ),
    (
        |s| s.server.listen = vec!["0.0.0.0:80".parse().unwrap()],
        "server.allowed_hosts is not set: a page under any host name",
    ),
    (
        |s| s.limits.address_connections = Some(1),
        "server.trusted_proxies is not set: all clients of a proxy in front share one address, and with it \
         limits.address_connections",
    ),
    (
        |s| s.server.listen = vec!["[2001:db8::1]:80".parse().unwrap()],
        "admin.listen is not set: any client that reaches [2001:db8::1]:80 can read /metrics",
    ),
    (
        |s| s.admin.listen = "10.0.0.1:9090".parse().ok(),
        "admin.metrics_token_file is not set: any client that reaches 10.0.0.1:9090 can read /metrics",
    ),
    (
        |s| {
            s.admin.listen = "10.0.0.1:9090".parse().ok();
            s.admin.token_file = Some("token".into());
        },
        "admin.metrics_token_file is not set: a scrape needs the token of admin.token_file",
    ),
    (
        |s| {
            s.admin.listen = "10.0.0.1:9090".parse().ok();
            s.admin.token_file = Some("token".into());
        },
        "admin.tls is not set",
    ),
    (
        |s| {
            s.admin.listen = "10.0.0.1:9090".parse().ok();
            s.admin.metrics_token_file = Some("token".into());
        },
        "admin.tls is not set",
    ),
    (
        |s| s.server.allowed_origins = vec!["https://a.b".to_owned().try_into().unwrap()],
        "server.allowed_origins: pages of https://a.b may connect",
    ),
    (
        |s| s.server.trusted_proxies = vec!["::/0".parse().unwrap()],
        "server.trusted_proxies: ::/0 lets every client choose",
    ),
    (
        |s| (s.auth.mode, s.auth.query_token) = (AuthMode::Jwt, true),
        "auth.query_token: tokens appear in the logs",
    ),
    (|s| s.auth.mode = AuthMode::Jwt, "auth.audience is not set"),
    (
        |s| {
            s.auth.mode = AuthMode::Jwt;
            s.auth.jwks_url = Some("http://keys/".to_owned());
        },
        "auth.jwks_url: an attacker on the network between this machine and http://keys/",
    ),
    (
        |s| s.auth.mode = AuthMode::Jwt,
        "rates without a limit: limits.message_rate, limits.byte_rate, limits.accept_rate, \
         limits.handshake_rate, limits.address_handshake_rate, limits.address_connections, \
         limits.address_auth_failures",
    ),
    (
        |s| s.limits.header_timeout = Duration::from_mins(1),
        "limits.header_timeout is 1m, which is above the default of 5s",
    ),
    (
        |s| s.mailbox.bytes = 2 << 20,
        "mailbox.bytes is 2MiB, which is above the default of 1MiB",
    ),
    (
        |s| s.mailbox.total_bytes = 512 << 20,
        "mailbox.total_bytes is 512MiB, which is above the default of 256MiB",
    ),
    (
        |s| s.limits.bad_messages = 17,
        "limits.bad_messages is 17, which is above the default of 16",
    ),
    (
        |s| s.cluster.nats_url = vec!["nats://10.0.0.2:4222".to_owned()],
        "cluster: no secret is set for nats://10.0.0.2:4222",
    ),
    (
        |s| s.cluster.nats_url = vec!["nats://[::1]:1".to_owned(), "nats://nats".to_owned()],
        "cluster: messages to nats://nats can be read on the network",
    ),
    (
        |s| s.cluster.nats_url = vec!["tls://nats".to_owned(), "nats://other".to_owned()],
        "cluster: messages to nats://other can be read on the network",
    ),
    (
        |s| {
            s.tracing.trust_clients = true;
            s.tracing.otlp_endpoint = Some("http://127.0.0.1:4318".to_owned());
        },
        "tracing.trust_clients: any client can have all of its messages traced",
    ),
    (
        |s| s.auth.secret_file = vec!["secret".into()],
        "auth.mode is \"none\": no token is checked, although auth names keys",
    ),
    (
        |s| s.tickets.ttl = Duration::from_hours(48),
        "tickets.ttl is 48h, which is above the default of 24h",
    ),
    (
        |s| s.auth.refresh_interval = Duration::from_hours(1),
        "auth.refresh_interval is 1h, which is above the default of 5m",
    ),
    (
        |s| s.cluster.queue_bytes = 65 << 20,
        "cluster.queue_bytes is 65MiB, which is above the default of 64MiB",
    ),
    (
        |s| s.tracing.queue_spans = 2049,
        "tracing.queue_spans is 2049, which is above the default of 2048",
    ),
];

#[test]
fn settings_less_safe_than_the_defaults_get_a_warning() {
    let warnings = |change: fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.exposure_warnings().join("\n")
    };
    let default = warnings(|_| {});
    assert!(
        default.starts_with("rates without a limit: limits.message_rate, "),
        "{default}"
    );
    assert_eq!(default.lines().count(), 1);
    let nearby = warnings(|s| {
        s.cluster.nats_url = vec!["nats://[::1]:1".to_owned(), "nats://localhost".to_owned()];
    });
    assert_eq!(nearby.lines().count(), 1, "{nearby}");
    let nearby = warnings(|s| {
        s.cluster.nats_url = vec!["nats://[::1]".to_owned(), "nats://127.0.0.2/".to_owned()];
    });
    assert_eq!(nearby.lines().count(), 1, "{nearby}");
    let shown = warnings(|s| {
        s.cluster.nats_url = vec!["nats://nats".to_owned()];
        s.cluster.tls_cert_file = Some("cert.pem".into());
        s.cluster.tls_key_file = Some("key.pem".into());
    });
    assert_eq!(shown.lines().count(), 1, "it asks for TLS: {shown}");
    for (change, expected) in EXPOSURES {
        let found = warnings(*change);
        assert!(found.contains(expected), "{expected}\nin\n{found}");
    }
}

/// The warnings about a relay that speaks TLS and limits all rates except those of handshakes.
fn tls_warnings(change: impl FnOnce(&mut Settings)) -> Vec<String> {
    let mut settings = Settings::default();
    settings.admin.listen = Some("127.0.0.1:9090".parse().unwrap());
    settings.server.tls.cert_file = Some("cert.pem".into());
    settings.server.tls.key_file = Some("key.pem".into());
    settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    let limits = &mut settings.limits;
    (limits.message_rate, limits.byte_rate) = (Some(1), Some(1));
    limits.accept_rate = Some(5000);
    limits.address_connections = Some(1);
    change(&mut settings);
    settings.exposure_warnings()
}

/// Sets the rates of upgrades and of TLS handshakes, of all clients and of one address.
fn set_handshake_rates(settings: &mut Settings, upgrade: [u32; 2], tls: [u32; 2]) {
    let limits = &mut settings.limits;
    [limits.handshake_rate, limits.address_handshake_rate] = upgrade.map(Some);
    [limits.tls_handshake_rate, limits.address_tls_handshake_rate] = tls.map(Some);
}

#[test]
fn unset_tls_rates_get_a_warning_only_with_tls() {
    assert_eq!(
        tls_warnings(|_| {}),
        [
            "rates without a limit: limits.handshake_rate, limits.address_handshake_rate, \
             limits.tls_handshake_rate, limits.address_tls_handshake_rate"
        ]
    );
    assert_eq!(
        tls_warnings(|s| s.server.tls = TlsSettings::default()),
        ["rates without a limit: limits.handshake_rate, limits.address_handshake_rate"]
    );
    for key in ["tls_handshake_rate", "address_tls_handshake_rate"] {
        check_refused(
            &file(&format!("[limits]\n{key} = 0")),
            &[&format!(
                "relay.toml: limits.{key}: found 0, allowed: a whole number from 1 to 1048576"
            )],
        );
    }
}

#[test]
fn limits_that_refuse_without_a_response_get_a_warning() {
    let warnings = |upgrade, tls, change: fn(&mut Settings)| {
        tls_warnings(|settings| {
            set_handshake_rates(settings, upgrade, tls);
            change(settings);
        })
    };
    let none: [&str; 0] = [];
    assert_eq!(warnings([1000, 10], [1001, 11], |_| {}), none);
    let reset = "a client above the rate is reset, and no response tells it when to retry";
    assert_eq!(
        warnings([1000, 10], [1000, 9], |_| {}),
        [
            format!("limits.tls_handshake_rate is not above limits.handshake_rate: {reset}"),
            format!(
                "limits.address_tls_handshake_rate is not above limits.address_handshake_rate: {reset}"
            ),
        ]
    );
    let without_tls = warnings([1000, 10], [1, 1], |s| {
        s.server.tls = TlsSettings::default();
        s.admin.listen = None;
    });
    assert_eq!(
        without_tls,
        ["tls_handshake_rate", "address_tls_handshake_rate"]
            .map(|key| format!("server.tls is not set: limits.{key} has no effect"))
    );
    assert_eq!(
        warnings([1000, 10], [2000, 20], |s| s.limits.accept_rate =
            Some(1000)),
        [
            "limits.accept_rate is not above limits.handshake_rate: a client above the rate waits, and no \
             response tells it when to retry"
        ]
    );
    check_refused(
        &file("[limits]\naccept_rate = 0"),
        &["relay.toml: limits.accept_rate: found 0, allowed: a whole number from 1 to 1048576"],
    );
    assert_eq!(
        warnings([1000, 10], [2000, 20], |s| s.admin.listen = None),
        ["tls_handshake_rate", "address_tls_handshake_rate"].map(|key| format!(
            "admin.listen is not set: limits.{key} also resets health checks and scrapes of /metrics"
        ))
    );
    let behind = warnings([1000, 10], [2000, 20], |s| s.server.trusted_proxies.clear());
    let expected = "server.trusted_proxies is not set: all clients of a proxy in front share one address, \
        and with it limits.address_handshake_rate, limits.address_tls_handshake_rate, \
        limits.address_connections";
    assert!(behind[0].starts_with(expected), "{behind:?}");
}

/// Each address of `server.listen` has its own pending connections, and so has `admin.listen`.
#[test]
fn all_connections_together_are_within_the_descriptors() {
    for (listeners, has_admin, connections, descriptors, expected) in [
        (2, false, None, 1200, (364, 400, 0)),
        (2, true, None, 1200, (300, 400, 64)),
        (1, true, None, 1200, (700, 400, 64)),
        (1, true, Some(10), 1200, (10, 400, 64)),
        (1, true, Some(1000), 1200, (700, 400, 64)),
        (2, false, None, 536, (100, 200, 0)),
        (2, true, None, 20, (0, 1, 64)),
    ] {
        let mut settings = Settings::default();
        settings.server.listen.truncate(listeners);
        settings.admin.listen = has_admin.then(|| "127.0.0.1:9090".parse().unwrap());
        settings.limits.connections = connections;
        let ConnectionLimits {
            users,
            pending,
            admin,
        } = settings.connection_limits(descriptors);
        assert_eq!((users, pending, admin), expected);
    }
}

#[test]
fn the_standard_variables_of_opentelemetry_win() {
    let mut sources = file(
        "[tracing]\notlp_endpoint = \"http://file:1\"\nsample_ratio = 0.5\nexport_timeout = \"1s\"",
    );
    sources.variables = variables(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/otlp/"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("SWITCHBOARD__TRACING__SAMPLE_RATIO", "0.75"),
        ("SWITCHBOARD__TRACING__TRUST_CLIENTS", "true"),
    ])
    .variables;
    let expected = |settings: &mut Settings| {
        settings.tracing.otlp_endpoint = Some("http://collector:4318/otlp/v1/traces".to_owned());
        settings.tracing.sample_ratio = 0.25;
        settings.tracing.trust_clients = true;
        settings.tracing.queue_spans = 7;
        settings.tracing.export_timeout = Duration::from_millis(2500);
    };
    check(&sources, expected);

    let mut set = |name: &str, value: &str| {
        sources.variables.insert(name.to_owned(), value.to_owned());
        sources.clone()
    };
    // A variable for spans wins over one for all signals, and its URL gets no path.
    set("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1");
    let narrower = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://spans:1/x");
    check(&narrower, |settings| {
        expected(settings);
        settings.tracing.export_timeout = Duration::from_millis(1);
        settings.tracing.otlp_endpoint = Some("http://spans:1/x".to_owned());
    });
    check_off(&[("OTEL_TRACES_EXPORTER", "none")]);
    check_off(&[("OTEL_SDK_DISABLED", "true")]);
}

#[test]
fn a_sampler_is_a_ratio() {
    for (sampler, argument, ratio) in [
        ("always_on", "", 1.0),
        ("always_off", "", 0.0),
        ("parentbased_always_on", "0.5", 1.0),
        ("parentbased_always_off", "0.5", 0.0),
        ("traceidratio", "0.5", 0.5),
        ("traceidratio", "", 1.0),
    ] {
        let sources = variables(&[
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_TRACES_SAMPLER", sampler),
            ("OTEL_TRACES_SAMPLER_ARG", argument),
        ]);
        check(&sources, |settings| {
            settings.tracing.otlp_endpoint = Some("http://localhost:4318/v1/traces".to_owned());
            settings.tracing.sample_ratio = ratio;
        });
    }
}

/// Checks the warnings about these variables, beside a file that turns tracing on.
#[track_caller]
fn check_unsupported(variables: &[(&str, &str)], expected: &[&str]) {
    let mut sources = self::variables(variables);
    sources.files = file("[tracing]\notlp_endpoint = \"http://file:1\"\nqueue_spans = 9").files;
    check(&sources, |settings| {
        settings.tracing.otlp_endpoint = Some("http://file:1".to_owned());
        settings.tracing.queue_spans = 9;
        settings.tracing.warnings = expected.iter().map(ToString::to_string).collect();
    });
}

#[test]
fn a_standard_variable_that_is_not_supported_is_a_warning_and_changes_nothing() {
    let timeout = "tracing.export_timeout is \"10s\", set by the built-in default";
    let endpoint = "tracing.otlp_endpoint is \"http://file:1\", set by relay.toml";
    for (name, value, instead) in [
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "http/protobuf is used",
        ),
        (
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "http/json",
            "http/protobuf is used",
        ),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", timeout),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0", timeout),
        (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "99999999999999999999",
            timeout,
        ),
        ("OTEL_BSP_EXPORT_TIMEOUT", "30000", timeout),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", endpoint),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "grpc://collector",
            endpoint,
        ),
        ("OTEL_TRACES_EXPORTER", "console", endpoint),
        ("OTEL_TRACES_EXPORTER", "otlp,console", endpoint),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", SAMPLE_RATIO),
        ("OTEL_TRACES_SAMPLER", "0.5", SAMPLE_RATIO),
        (
            "OTEL_BSP_MAX_QUEUE_SIZE",
            "0",
            "tracing.queue_spans is 9, set by relay.toml",
        ),
        (
            "OTEL_BSP_SCHEDULE_DELAY",
            "0",
            "tracing.export_interval is \"5s\", set by the built-in default",
        ),
        (
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "zstd",
            "tracing.compression is \"none\", set by the built-in default",
        ),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many", "512 is used"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-1", "128 is used"),
        (
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
            "/key.pem",
            "no client certificate is used",
        ),
        ("OTEL_PROPAGATORS", "b3", "tracecontext is used"),
        ("OTEL_SDK_DISABLED", "yes", "false is used"),
    ] {
        let warning = format!("{name}: {value:?} is not supported; {instead}");
        check_unsupported(&[(name, value)], &[&warning]);
    }
    // A password is not shown.
    check_unsupported(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@a")],
        &[&format!(
            "OTEL_EXPORTER_OTLP_ENDPOINT: \"http://***@a\" is not supported; {endpoint}"
        )],
    );
}

const SAMPLE_RATIO: &str = "tracing.sample_ratio is 0.01, set by the built-in default";

#[test]
fn the_next_source_counts_in_place_of_a_variable_that_is_not_supported() {
    let sources = variables(&[
        ("OTEL_TRACES_EXPORTER", "OTLP"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_TRACES_SAMPLER", "TraceIDRatio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_PROPAGATORS", "tracecontext,baggage"),
    ]);
    check(&sources, |settings| {
        let tracing = &mut settings.tracing;
        tracing.otlp_endpoint = Some("http://localhost:4318/v1/traces".to_owned());
        tracing.export_timeout = Duration::from_millis(2500);
        tracing.compression = Compression::Gzip;
        tracing.sample_ratio = 1.0;
        tracing.tls_ca_file = Some("/ca.pem".into());
        tracing.warnings = vec![
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: \"soon\" is not supported; tracing.export_timeout is \
             \"2500ms\", set by OTEL_EXPORTER_OTLP_TIMEOUT"
                .to_owned(),
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION: \"zstd\" is not supported; tracing.compression is \
             \"gzip\", set by OTEL_EXPORTER_OTLP_COMPRESSION"
                .to_owned(),
            "OTEL_TRACES_SAMPLER_ARG: \"1.5\" is not supported; tracing.sample_ratio is \"1\", set by \
             OTEL_TRACES_SAMPLER"
                .to_owned(),
        ];
    });
}

#[test]
fn standard_variables_are_checked_only_where_spans_are_sent() {
    let wrong = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ];
    check(&variables(&wrong), |_| {});
    let off = [wrong[0], ("OTEL_TRACES_EXPORTER", "none")];
    check_off(&off);
    check_off(&[wrong[0], ("OTEL_SDK_DISABLED", "TRUE")]);
    // It asks for spans where the relay can send none.
    check(
        &variables(&[("OTEL_TRACES_EXPORTER", "console"), wrong[0]]),
        |settings| {
            settings.tracing.warnings = vec![
            "OTEL_TRACES_EXPORTER: \"console\" is not supported; tracing.otlp_endpoint is not set"
                .to_owned(),
        ];
        },
    );
}

/// Checks that these variables turn tracing off without a warning, where a file turns it on.
#[track_caller]
fn check_off(off: &[(&str, &str)]) {
    let mut sources = variables(off);
    sources.files = file("[tracing]\notlp_endpoint = \"http://file:1\"").files;
    check(&sources, |_| {});
}

#[test]
fn spans_go_to_a_path_of_their_own() {
    for (endpoint, url) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
        ("https://collector", "https://collector/v1/traces"),
        ("http://collector/v1/traces", "http://collector/v1/traces"),
        ("http://collector/otlp?x=1", "http://collector/otlp?x=1"),
    ] {
        let mut settings = Settings::default();
        assert_eq!(settings.tracing.endpoint(), None);
        settings.tracing.otlp_endpoint = Some(endpoint.to_owned());
        assert_eq!(settings.tracing.endpoint().as_deref(), Some(url));
    }
    for endpoint in [
        "unix:///run/collector",
        "collector:4318",
        "http://",
        "http://a:b@c",
        "",
    ] {
        let text = format!("[tracing]\notlp_endpoint = {endpoint:?}");
        let found = endpoint.replace("a:b", "***");
        let problem = format!(
            "relay.toml: tracing.otlp_endpoint: found {found:?}, allowed: an http or https URL \
             without a user and a password, such as \"http://127.0.0.1:4318\""
        );
        check_refused(&file(&text), &[&problem]);
    }
}
