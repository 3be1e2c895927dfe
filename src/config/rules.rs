//! What values must be for the relay to work with them. A rule also gives the words for a value of
//! the wrong type; a field without a rule is an unused variable here.

use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::Uri;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::capacity::CONNECTIONS_MAX;
use super::origin::is_host_name;
use super::units::{duration_text, size_text};
use super::{
    AdminSettings, AuthMode, AuthSettings, ClusterSettings, DrainSettings, KeepaliveSettings,
    LimitSettings, LogSettings, MailboxSettings, RoutingSettings, ServerSettings, Settings,
    TicketSettings, TlsSettings, TracingSettings, UiSettings, otel,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const NO_TIME: Duration = Duration::ZERO;
const ONE_MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(24 * 365);
/// More than anything here needs, and small enough that what is reserved per piece cannot overflow.
const COUNT_MAX: u64 = 1 << 20;
/// Hyper's own minimum of a connection's buffer; it panics below.
const HEADER_BYTES_MIN: u64 = 8 * KIB;
/// What a node waits for from others is looked at eight times in that time.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// A message of the largest size takes its bytes and this on its way to another node.
const QUEUED_OVERHEAD_BYTES: u64 = 256;
/// A message of the largest size takes its bytes and this for what stands around them: what a frame
/// adds to what the sender wrote itself, and a traceparent.
const MESSAGE_OVERHEAD: u64 = 64 + 72;

/// Secrets, and public keys: a token that names no key is not tried on more.
const KEY_FILES_MAX: usize = 8;

/// A condition on one key, or on one key with others.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) key: &'static str,
    /// The other keys that the condition looks at.
    pub(super) with: &'static [&'static str],
    /// The values that it allows, in words.
    pub(super) allowed: String,
    pub(super) holds: bool,
}

/// All rules, and how these settings keep them.
pub(super) fn rules(settings: &Settings) -> Vec<Rule> {
    let Settings {
        server,
        admin,
        auth,
        limits,
        mailbox,
        keepalive,
        routing,
        cluster,
        drain,
        tickets,
        ui,
        log,
        tracing,
    } = settings;
    let UiSettings { enabled: _ } = ui;
    let TicketSettings {
        secret_file: _,
        ttl,
    } = tickets;
    let mut rules = listeners(server, admin);
    rules.extend(edge_rules(server, admin));
    rules.extend(auth_rules(auth));
    rules.extend(limit_rules(limits));
    rules.extend(mailbox_rules(mailbox, limits));
    rules.extend(keepalive_rules(keepalive));
    rules.extend(routing_rules(routing));
    rules.extend(cluster_rules(cluster, limits));
    rules.extend(drain_rules(drain));
    rules.push(time("tickets.ttl", *ttl, SECOND..=YEAR));
    rules.extend(log_rules(log));
    rules.extend(tracing_rules(tracing));
    rules
}

fn listeners(server: &ServerSettings, admin: &AdminSettings) -> Vec<Rule> {
    let (listen, admin) = (&server.listen, admin.listen);
    // Port 0 is another port each time.
    let fixed: Vec<_> = listen
        .iter()
        .filter(|address| address.port() != 0)
        .collect();
    let twice = (1..fixed.len()).any(|index| fixed[..index].contains(&fixed[index]));
    vec![
        Rule {
            key: "server.listen",
            with: &[],
            allowed: "IP addresses with a port, at least one, each once, such as \
                \"127.0.0.1:8080\" or \"[::1]:8080\""
                .to_owned(),
            holds: !listen.is_empty() && !twice,
        },
        Rule {
            key: "admin.listen",
            with: &["server.listen"],
            allowed: "an IP address with a port that server.listen does not have, such as \
                \"127.0.0.1:9090\""
                .to_owned(),
            holds: !admin.is_some_and(|admin| fixed.contains(&&admin)),
        },
    ]
}

fn edge_rules(server: &ServerSettings, admin: &AdminSettings) -> Vec<Rule> {
    let ServerSettings {
        listen: _,
        allowed_origins: _,
        allowed_hosts,
        trusted_proxies,
        forwarded_header: _,
        proxy_protocol,
        tls,
    } = server;
    let AdminSettings {
        listen: admin,
        token_file,
        outcome_timeout,
        tls: admin_tls,
    } = admin;
    let both = |TlsSettings {
                    cert_file,
                    key_file,
                }: &TlsSettings| cert_file.is_some() == key_file.is_some();
    vec![
        Rule {
            key: "server.tls.key_file",
            with: &["server.tls.cert_file"],
            allowed: "a path beside server.tls.cert_file, and none without".to_owned(),
            holds: both(tls),
        },
        Rule {
            key: "admin.tls.key_file",
            with: &["admin.tls.cert_file", "admin.listen"],
            allowed: "a path beside admin.tls.cert_file and admin.listen, and none without"
                .to_owned(),
            holds: both(admin_tls) && (admin.is_some() || admin_tls.cert_file.is_none()),
        },
        Rule {
            key: "admin.token_file",
            with: &["admin.listen"],
            allowed: "a path beside admin.listen, and none without".to_owned(),
            holds: admin.is_some() || token_file.is_none(),
        },
        time("admin.outcome_timeout", *outcome_timeout, ONE_MS..=MINUTE),
        Rule {
            key: "server.allowed_origins",
            with: &[],
            allowed: "origins without a path, such as \"https://example.com\" or \
                \"https://*.example.com\""
                .to_owned(),
            holds: true,
        },
        Rule {
            key: "server.allowed_hosts",
            with: &[],
            allowed: "host names without a port, such as \"chat.example.com\"".to_owned(),
            holds: allowed_hosts.iter().all(|name| is_host_name(name)),
        },
        Rule {
            key: "server.trusted_proxies",
            with: &[],
            allowed:
                "networks such as \"10.0.0.0/8\" or \"2001:db8::1/128\", none of IPv4 within IPv6"
                    .to_owned(),
            holds: !trusted_proxies.iter().any(is_mapped),
        },
        Rule {
            key: "server.proxy_protocol",
            with: &["server.trusted_proxies"],
            allowed: "false, while server.trusted_proxies names nobody".to_owned(),
            holds: !*proxy_protocol || !trusted_proxies.is_empty(),
        },
    ]
}

/// A network of IPv4 addresses as IPv6 writes them (RFC 4291 section 2.5.5.2), which would hold nobody:
/// each address counts as the IPv4 address that it is.
fn is_mapped(network: &IpNet) -> bool {
    matches!(network, IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some())
}

fn auth_rules(auth: &AuthSettings) -> Vec<Rule> {
    let AuthSettings {
        mode,
        secret_file,
        public_key_file,
        jwks_file: _,
        jwks_url,
        jwks_timeout,
        refresh_interval,
        algorithm: _,
        issuer: _,
        audience: _,
        leeway,
        query_token: _,
    } = auth;
    let words = |key, allowed: &str, holds| Rule {
        key,
        with: &[],
        allowed: allowed.to_owned(),
        holds,
    };
    let paths = format!("the path of a file, or a list of up to {KEY_FILES_MAX}");
    vec![
        words(
            "auth.mode",
            "\"none\", or \"jwt\" beside auth.secret_file, auth.public_key_file, auth.jwks_file or \
                auth.jwks_url",
            *mode == AuthMode::None || auth.has_keys(),
        ),
        words(
            "auth.secret_file",
            &paths,
            secret_file.len() <= KEY_FILES_MAX,
        ),
        words(
            "auth.public_key_file",
            &paths,
            public_key_file.len() <= KEY_FILES_MAX,
        ),
        words(
            "auth.jwks_url",
            "an http or https address without a user and a password, such as \
                \"https://example.com/.well-known/jwks.json\"",
            jwks_url.as_deref().is_none_or(is_key_set_url),
        ),
        time("auth.jwks_timeout", *jwks_timeout, ONE_MS..=MINUTE),
        time("auth.refresh_interval", *refresh_interval, SECOND..=DAY),
        time("auth.leeway", *leeway, NO_TIME..=HOUR),
    ]
}

fn limit_rules(limits: &LimitSettings) -> Vec<Rule> {
    let LimitSettings {
        connections,
        handshakes,
        header_bytes,
        header_timeout,
        connection_age,
        message_bytes,
        frame_bytes,
        bad_messages,
        outcomes_pending,
        message_rate,
        byte_rate,
        accept_rate,
        handshake_rate,
        address_handshake_rate,
        tls_handshake_rate,
        address_tls_handshake_rate,
        address_connections,
        address_auth_failures,
    } = limits;
    let optional = |key, number: &Option<u32>| count(key, number.unwrap_or(1).into(), COUNT_MAX);
    vec![
        count(
            "limits.connections",
            connections.unwrap_or(1) as u64,
            CONNECTIONS_MAX,
        ),
        count("limits.handshakes", *handshakes as u64, COUNT_MAX),
        size(
            "limits.header_bytes",
            *header_bytes as u64,
            HEADER_BYTES_MIN..=MIB,
        ),
        time("limits.header_timeout", *header_timeout, ONE_MS..=DAY),
        time(
            "limits.connection_age",
            *connection_age,
            Duration::ZERO..=DAY,
        ),
        size("limits.message_bytes", *message_bytes as u64, 1..=64 * MIB),
        size("limits.frame_bytes", *frame_bytes as u64, 1..=64 * MIB),
        Rule {
            key: "limits.frame_bytes",
            with: &["limits.message_bytes"],
            allowed: "at least limits.message_bytes".to_owned(),
            holds: frame_bytes >= message_bytes,
        },
        count("limits.bad_messages", (*bad_messages).into(), COUNT_MAX),
        count(
            "limits.outcomes_pending",
            (*outcomes_pending).into(),
            COUNT_MAX,
        ),
        optional("limits.message_rate", message_rate),
        size("limits.byte_rate", byte_rate.unwrap_or(1), 1..=GIB),
        optional("limits.accept_rate", accept_rate),
        optional("limits.handshake_rate", handshake_rate),
        optional("limits.address_handshake_rate", address_handshake_rate),
        optional("limits.tls_handshake_rate", tls_handshake_rate),
        optional(
            "limits.address_tls_handshake_rate",
            address_tls_handshake_rate,
        ),
        optional("limits.address_connections", address_connections),
        optional("limits.address_auth_failures", address_auth_failures),
    ]
}

fn mailbox_rules(mailbox: &MailboxSettings, limits: &LimitSettings) -> Vec<Rule> {
    let MailboxSettings {
        messages,
        bytes,
        total_bytes,
        overflow: _,
    } = mailbox;
    let bytes = *bytes as u64;
    vec![
        count("mailbox.messages", (*messages).into(), COUNT_MAX),
        size("mailbox.bytes", bytes, 1..=GIB),
        Rule {
            key: "mailbox.bytes",
            with: &["limits.message_bytes"],
            allowed: format!("at least limits.message_bytes + {MESSAGE_OVERHEAD} bytes"),
            holds: bytes >= (limits.message_bytes as u64).saturating_add(MESSAGE_OVERHEAD),
        },
        size("mailbox.total_bytes", *total_bytes, 1..=1024 * GIB),
        Rule {
            key: "mailbox.total_bytes",
            with: &["mailbox.bytes"],
            allowed: "at least mailbox.bytes".to_owned(),
            holds: *total_bytes >= bytes,
        },
    ]
}

fn keepalive_rules(keepalive: &KeepaliveSettings) -> Vec<Rule> {
    let KeepaliveSettings {
        ping_interval,
        pong_timeout,
        write_timeout,
        close_timeout,
    } = keepalive;
    vec![
        time("keepalive.ping_interval", *ping_interval, ONE_MS..=DAY),
        time("keepalive.pong_timeout", *pong_timeout, ONE_MS..=DAY),
        time("keepalive.write_timeout", *write_timeout, ONE_MS..=DAY),
        time("keepalive.close_timeout", *close_timeout, ONE_MS..=DAY),
    ]
}

fn routing_rules(routing: &RoutingSettings) -> Vec<Rule> {
    let RoutingSettings {
        strategy: _,
        router_queue,
    } = routing;
    vec![count(
        "routing.router_queue",
        *router_queue as u64,
        COUNT_MAX,
    )]
}

fn cluster_rules(cluster: &ClusterSettings, limits: &LimitSettings) -> Vec<Rule> {
    let ClusterSettings {
        nats_url,
        name,
        block_size,
        lease_replicas,
        outcome_timeout,
        outcomes_pending,
        claims,
        claim_timeout,
        link_timeout,
        ..
    } = cluster;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut rules = vec![
        Rule {
            key: "cluster.nats_url",
            with: &[],
            allowed: "addresses of NATS servers, such as \"nats://127.0.0.1:4222\" or \
                \"tls://nats.example.com:4222\", without a user, a password or a path"
                .to_owned(),
            holds: nats_url.iter().all(|url| is_nats_url(url)),
        },
        Rule {
            key: "cluster.name",
            with: &[],
            allowed: "1 to 32 letters, digits, \"-\" and \"_\"".to_owned(),
            holds: (1..=32).contains(&name.len()) && name.bytes().all(is_word),
        },
        count("cluster.block_size", block_size.get().into(), COUNT_MAX),
        count("cluster.lease_replicas", (*lease_replicas).into(), 5),
        time("cluster.outcome_timeout", *outcome_timeout, WAIT_MIN..=DAY),
        count(
            "cluster.outcomes_pending",
            (*outcomes_pending).into(),
            COUNT_MAX,
        ),
        time("cluster.link_timeout", *link_timeout, WAIT_MIN..=DAY),
        count("cluster.claims", (*claims).into(), COUNT_MAX),
        time("cluster.claim_timeout", *claim_timeout, WAIT_MIN..=DAY),
        Rule {
            key: "cluster.claim_timeout",
            with: &["cluster.link_timeout"],
            allowed: "at least four times cluster.link_timeout".to_owned(),
            // A node that has lost its link knows that before its claims lapse.
            holds: *claim_timeout >= 4 * *link_timeout,
        },
    ];
    rules.extend(cluster_access(cluster));
    rules.extend(cluster_queues(cluster, limits));
    rules
}

fn cluster_queues(cluster: &ClusterSettings, limits: &LimitSettings) -> [Rule; 7] {
    let ClusterSettings {
        user_messages,
        user_bytes,
        queue_bytes,
        in_flight_bytes,
        inbound_messages,
        ..
    } = cluster;
    let [user_bytes, queue_bytes] = [*user_bytes, *queue_bytes].map(|bytes| bytes as u64);
    [
        count("cluster.user_messages", (*user_messages).into(), COUNT_MAX),
        size("cluster.user_bytes", user_bytes, 1..=GIB),
        Rule {
            key: "cluster.user_bytes",
            with: &["limits.message_bytes"],
            allowed: format!("at least limits.message_bytes + {QUEUED_OVERHEAD_BYTES} bytes"),
            holds: user_bytes
                >= (limits.message_bytes as u64).saturating_add(QUEUED_OVERHEAD_BYTES),
        },
        size("cluster.queue_bytes", queue_bytes, 1..=1024 * GIB),
        Rule {
            key: "cluster.queue_bytes",
            with: &["cluster.user_bytes"],
            allowed: "at least cluster.user_bytes".to_owned(),
            holds: queue_bytes >= user_bytes,
        },
        size(
            "cluster.in_flight_bytes",
            *in_flight_bytes as u64,
            64 * KIB..=GIB,
        ),
        count(
            "cluster.inbound_messages",
            (*inbound_messages).into(),
            COUNT_MAX,
        ),
    ]
}

/// At most one way to be known, each of them whole.
fn cluster_access(cluster: &ClusterSettings) -> [Rule; 4] {
    let ClusterSettings {
        user,
        password_file,
        token_file,
        nkey_file,
        creds_file,
        tls_cert_file,
        tls_key_file,
        ..
    } = cluster;
    let ways = [
        user.is_some(),
        token_file.is_some(),
        nkey_file.is_some(),
        creds_file.is_some(),
    ];
    [
        Rule {
            key: "cluster.user",
            with: &[
                "cluster.token_file",
                "cluster.nkey_file",
                "cluster.creds_file",
            ],
            allowed: "one of the four, or none".to_owned(),
            holds: ways.iter().filter(|is_set| **is_set).count() <= 1,
        },
        Rule {
            key: "cluster.user",
            with: &["cluster.password_file"],
            allowed: "a user and a password, or neither".to_owned(),
            holds: user.is_some() == password_file.is_some(),
        },
        Rule {
            key: "cluster.tls_cert_file",
            with: &["cluster.tls_key_file"],
            allowed: "a certificate and its key, or neither".to_owned(),
            holds: tls_cert_file.is_some() == tls_key_file.is_some(),
        },
        Rule {
            key: "cluster.required",
            with: &["cluster.nats_url"],
            allowed: "false, while cluster.nats_url names no server".to_owned(),
            holds: !cluster.required || !cluster.nats_url.is_empty(),
        },
    ]
}

/// Whether a key set can be at this address; a secret in it would be printed and logged.
fn is_key_set_url(url: &str) -> bool {
    let has_scheme = url.starts_with("https://") || url.starts_with("http://");
    let uri = url.parse::<Uri>().ok().filter(|_| has_scheme);
    let authority = uri.as_ref().and_then(Uri::authority);
    authority
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
}

/// Whether this is where a NATS server can be, and nothing that ought to be in a file: addresses are
/// printed and logged.
fn is_nats_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else {
        return false;
    };
    let authority = uri.authority();
    matches!(uri.scheme_str(), Some("nats" | "tls"))
        && authority.is_some_and(|authority| {
            !authority.host().is_empty() && !authority.as_str().contains('@')
        })
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
}

fn drain_rules(drain: &DrainSettings) -> Vec<Rule> {
    let DrainSettings {
        delay,
        spread,
        timeout,
    } = drain;
    vec![
        time("drain.delay", *delay, NO_TIME..=DAY),
        time("drain.spread", *spread, NO_TIME..=DAY),
        time("drain.timeout", *timeout, ONE_MS..=DAY),
        Rule {
            key: "drain.timeout",
            with: &["drain.delay", "drain.spread"],
            allowed: "at least drain.delay + drain.spread".to_owned(),
            holds: *timeout >= delay.saturating_add(*spread),
        },
    ]
}

fn log_rules(log: &LogSettings) -> Vec<Rule> {
    let LogSettings { format: _, filter } = log;
    vec![Rule {
        key: "log.filter",
        with: &[],
        allowed: "off, error, warn, info, debug, trace, or targets with one of these, such as \
            \"info,switchboard=debug\""
            .to_owned(),
        holds: EnvFilter::try_new(filter).is_ok(),
    }]
}

fn tracing_rules(tracing: &TracingSettings) -> Vec<Rule> {
    let TracingSettings {
        otlp_endpoint,
        sample_ratio,
        trust_clients: _,
        queue_spans,
        export_timeout,
        flush_timeout,
    } = tracing;
    vec![
        Rule {
            key: "tracing.otlp_endpoint",
            with: &[],
            allowed: "an http:// URL such as \"http://127.0.0.1:4318\" (https is for a collector \
                nearby to speak)"
                .to_owned(),
            holds: otlp_endpoint.as_deref().is_none_or(otel::is_endpoint),
        },
        Rule {
            key: "tracing.sample_ratio",
            with: &[],
            allowed: "a number from 0.0 to 1.0".to_owned(),
            holds: (0.0..=1.0).contains(sample_ratio),
        },
        count("tracing.queue_spans", *queue_spans as u64, COUNT_MAX),
        time("tracing.export_timeout", *export_timeout, ONE_MS..=DAY),
        time("tracing.flush_timeout", *flush_timeout, NO_TIME..=DAY),
    ]
}

fn count(key: &'static str, count: u64, most: u64) -> Rule {
    let allowed = format!("a whole number from 1 to {most}");
    Rule {
        key,
        with: &[],
        allowed,
        holds: (1..=most).contains(&count),
    }
}

fn size(key: &'static str, bytes: u64, range: RangeInclusive<u64>) -> Rule {
    let (least, most) = (size_text(*range.start()), size_text(*range.end()));
    let allowed = format!(
        "a size such as \"512B\", \"64KiB\" or \"1MiB\", or bytes as a whole number, from {least} to {most}"
    );
    Rule {
        key,
        with: &[],
        allowed,
        holds: range.contains(&bytes),
    }
}

fn time(key: &'static str, duration: Duration, range: RangeInclusive<Duration>) -> Rule {
    let (least, most) = (duration_text(*range.start()), duration_text(*range.end()));
    let allowed =
        format!("a duration such as \"500ms\", \"25s\" or \"2m\", from {least} to {most}");
    Rule {
        key,
        with: &[],
        allowed,
        holds: range.contains(&duration),
    }
}
