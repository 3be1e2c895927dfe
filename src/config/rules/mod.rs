//! The table of rules: which values each key may have, and above which numbers a warning is due. A field
//! without a rule is an unused variable here, so that a new field cannot be forgotten.
//!
//! A rule also gives the words for a value of the wrong type.

mod auth;
mod cluster;
mod log;

use std::time::Duration;

use ipnet::IpNet;

use crate::config::capacity::CONNECTIONS_MAX;
use crate::config::origin::is_host_name;
use crate::config::otel;
use crate::config::rule::{
    COUNT_MAX, DAY, GIB, KIB, MIB, MINUTE, ONE_MS, Rule, SECOND, count, size, time, waiting,
};
use crate::config::settings::{
    AdminSettings, DrainSettings, KeepaliveSettings, LimitSettings, MailboxSettings,
    RoutingSettings, ServerSettings, Settings, TicketSettings, TlsSettings, TracingSettings,
    UiSettings,
};

const YEAR: Duration = Duration::from_hours(24 * 365);
/// More than any machine has CPUs for.
const WORKER_THREADS_MAX: u64 = 1024;
/// The smallest buffer that hyper accepts for a connection; it panics below.
const HEADER_BYTES_MIN: u64 = 8 * KIB;
/// What a message takes in a mailbox beside its own bytes: 64 bytes that a frame adds to what the sender wrote,
/// and 72 of a traceparent.
const MESSAGE_OVERHEAD_BYTES: u64 = 64 + 72;

/// All rules, and whether these settings meet them. Their number and order are always the same.
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
    let mut rules = server_rules(server);
    rules.extend(admin_rules(admin, server));
    rules.extend(auth::rules(auth));
    rules.extend(limit_rules(limits));
    rules.extend(mailbox_rules(mailbox, limits));
    rules.extend(keepalive_rules(keepalive));
    rules.push(routing_rule(routing));
    rules.extend(cluster::rules(cluster, limits));
    rules.extend(drain_rules(drain));
    rules.push(time("tickets.ttl", *ttl, SECOND..=YEAR).warn_above_default());
    rules.push(log::rule(log));
    rules.extend(tracing_rules(tracing));
    rules
}

fn server_rules(server: &ServerSettings) -> Vec<Rule> {
    let ServerSettings {
        listen,
        allowed_origins: _,
        allowed_hosts,
        trusted_proxies,
        forwarded_header: _,
        proxy_protocol,
        worker_threads,
        tls,
    } = server;
    // Port 0 may occur more than once, because it is another port each time.
    let is_repeated = |index: usize| {
        let addr = &listen[index];
        addr.port() != 0 && listen[..index].contains(addr)
    };
    vec![
        Rule::new(
            "server.listen",
            "IP addresses with a port, at least one, each once, such as \"127.0.0.1:8080\" or \
             \"[::1]:8080\"",
            !listen.is_empty() && !(0..listen.len()).any(is_repeated),
        ),
        Rule::new(
            "server.tls.key_file",
            "a path if server.tls.cert_file is set, otherwise not set",
            is_whole(tls),
        )
        .with(&["server.tls.cert_file"]),
        count(
            "server.worker_threads",
            worker_threads.unwrap_or(1),
            WORKER_THREADS_MAX,
        ),
        Rule::new(
            "server.allowed_origins",
            "origins without a path, such as \"https://example.com\", \"https://*.example.com\", \
             \"capacitor://localhost\", \"app://*\", \"file://\" or \"null\"",
            true, // the type allows nothing else
        ),
        Rule::new(
            "server.allowed_hosts",
            "host names without a port, such as \"chat.example.com\"",
            allowed_hosts.iter().all(|name| is_host_name(name)),
        ),
        Rule::new(
            "server.trusted_proxies",
            "networks such as \"10.0.0.0/8\" or \"2001:db8::1/128\", and none of IPv4 written as IPv6",
            !trusted_proxies.iter().any(is_mapped),
        ),
        Rule::new(
            "server.proxy_protocol",
            "false while server.trusted_proxies is empty",
            !proxy_protocol || !trusted_proxies.is_empty(),
        )
        .with(&["server.trusted_proxies"]),
    ]
}

fn admin_rules(admin: &AdminSettings, server: &ServerSettings) -> Vec<Rule> {
    let AdminSettings {
        listen,
        token_file,
        metrics_token_file,
        ready_when_full: _,
        outcome_timeout,
        tls,
    } = admin;
    let is_taken = listen.is_some_and(|addr| addr.port() != 0 && server.listen.contains(&addr));
    vec![
        Rule::new(
            "admin.listen",
            "an IP address with a port that server.listen does not have, such as \"127.0.0.1:9090\"",
            !is_taken,
        )
        .with(&["server.listen"]),
        Rule::new(
            "admin.tls.key_file",
            "a path if admin.tls.cert_file and admin.listen are set, otherwise not set",
            is_whole(tls) && (listen.is_some() || tls.cert_file.is_none()),
        )
        .with(&["admin.tls.cert_file", "admin.listen"]),
        Rule::new(
            "admin.token_file",
            "a path if admin.listen is set, otherwise not set",
            listen.is_some() || token_file.is_none(),
        )
        .with(&["admin.listen"]),
        Rule::new(
            "admin.metrics_token_file",
            "a path if admin.listen is set, otherwise not set",
            listen.is_some() || metrics_token_file.is_none(),
        )
        .with(&["admin.listen"]),
        time("admin.outcome_timeout", *outcome_timeout, ONE_MS..=MINUTE),
    ]
}

/// Whether a certificate and its key are both set, or neither.
fn is_whole(tls: &TlsSettings) -> bool {
    let TlsSettings {
        cert_file,
        key_file,
    } = tls;
    cert_file.is_some() == key_file.is_some()
}

/// Whether this is a network of IPv4 addresses as IPv6 writes them (RFC 4291 section 2.5.5.2). It would contain
/// no client, because a client's address of that kind counts as IPv4.
fn is_mapped(network: &IpNet) -> bool {
    matches!(network, IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some())
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
        outcomes_bytes,
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
    let rate =
        |key, limit: &Option<u32>| count(key, limit.unwrap_or(1), COUNT_MAX).rate(limit.is_some());
    let (tls_rate, address_tls_rate) = (tls_handshake_rate, address_tls_handshake_rate);
    vec![
        count(
            "limits.connections",
            connections.unwrap_or(1),
            CONNECTIONS_MAX,
        ),
        count("limits.handshakes", *handshakes, COUNT_MAX).warn_above_default(),
        size("limits.header_bytes", *header_bytes, HEADER_BYTES_MIN..=MIB).warn_above_default(),
        time("limits.header_timeout", *header_timeout, ONE_MS..=DAY).warn_above_default(),
        time(
            "limits.connection_age",
            *connection_age,
            Duration::ZERO..=DAY,
        ),
        size("limits.message_bytes", *message_bytes, 1..=64 * MIB).warn_above_default(),
        size("limits.frame_bytes", *frame_bytes, 1..=64 * MIB).warn_above_default(),
        Rule::new(
            "limits.frame_bytes",
            "at least limits.message_bytes",
            frame_bytes >= message_bytes,
        )
        .with(&["limits.message_bytes"]),
        count("limits.bad_messages", *bad_messages, COUNT_MAX).warn_above_default(),
        count("limits.outcomes_pending", *outcomes_pending, COUNT_MAX).warn_above_default(),
        size(
            "limits.outcomes_bytes",
            *outcomes_bytes,
            64 * KIB..=1024 * GIB,
        )
        .warn_above_default(),
        rate("limits.message_rate", message_rate),
        size("limits.byte_rate", byte_rate.unwrap_or(1), 1..=GIB).rate(byte_rate.is_some()),
        rate("limits.accept_rate", accept_rate),
        rate("limits.handshake_rate", handshake_rate),
        rate("limits.address_handshake_rate", address_handshake_rate),
        rate("limits.tls_handshake_rate", tls_rate),
        rate("limits.address_tls_handshake_rate", address_tls_rate),
        rate("limits.address_connections", address_connections),
        rate("limits.address_auth_failures", address_auth_failures),
    ]
}

fn mailbox_rules(
    mailbox: &MailboxSettings,
    limits: &LimitSettings,
) -> impl Iterator<Item = Rule> + use<> {
    let MailboxSettings {
        messages,
        bytes,
        total_bytes,
        max_age,
        overflow: _,
    } = mailbox;
    let waiting = waiting(
        &["mailbox.messages", "mailbox.bytes", "mailbox.total_bytes"],
        [u64::from(*messages), *bytes as u64, *total_bytes],
        limits.message_bytes,
        MESSAGE_OVERHEAD_BYTES,
    );
    let max_age = time("mailbox.max_age", *max_age, ONE_MS..=DAY).warn_above_default();
    waiting.into_iter().chain([max_age])
}

fn keepalive_rules(keepalive: &KeepaliveSettings) -> [Rule; 5] {
    let KeepaliveSettings {
        ping_interval,
        pong_timeout,
        slowest_rate,
        write_timeout,
        close_timeout,
    } = keepalive;
    let within_a_day =
        |key, duration: &Duration| time(key, *duration, ONE_MS..=DAY).warn_above_default();
    [
        within_a_day("keepalive.ping_interval", ping_interval),
        within_a_day("keepalive.pong_timeout", pong_timeout),
        size("keepalive.slowest_rate", *slowest_rate, 256..=GIB),
        within_a_day("keepalive.write_timeout", write_timeout),
        within_a_day("keepalive.close_timeout", close_timeout),
    ]
}

fn routing_rule(routing: &RoutingSettings) -> Rule {
    let RoutingSettings {
        strategy: _,
        router_queue,
    } = routing;
    count("routing.router_queue", *router_queue, COUNT_MAX).warn_above_default()
}

fn drain_rules(drain: &DrainSettings) -> [Rule; 4] {
    let DrainSettings {
        delay,
        spread,
        timeout,
    } = drain;
    [
        time("drain.delay", *delay, Duration::ZERO..=DAY),
        time("drain.spread", *spread, Duration::ZERO..=DAY),
        time("drain.timeout", *timeout, ONE_MS..=DAY),
        Rule::new(
            "drain.timeout",
            "at least drain.delay + drain.spread",
            *timeout >= delay.saturating_add(*spread),
        )
        .with(&["drain.delay", "drain.spread"]),
    ]
}

fn tracing_rules(tracing: &TracingSettings) -> Vec<Rule> {
    let TracingSettings {
        otlp_endpoint,
        tls_ca_file: _,
        compression: _,
        sample_ratio,
        trust_clients: _,
        queue_spans,
        export_interval,
        export_timeout,
        flush_timeout,
        warnings: _,
    } = tracing;
    vec![
        Rule::new(
            "tracing.otlp_endpoint",
            "an http or https URL without a user and a password, such as \"http://127.0.0.1:4318\"",
            otlp_endpoint.as_deref().is_none_or(otel::is_endpoint),
        ),
        Rule::new(
            "tracing.sample_ratio",
            "a number from 0.0 to 1.0",
            (0.0..=1.0).contains(sample_ratio),
        ),
        count("tracing.queue_spans", *queue_spans, COUNT_MAX).warn_above_default(),
        time("tracing.export_interval", *export_interval, ONE_MS..=DAY),
        time("tracing.export_timeout", *export_timeout, ONE_MS..=DAY),
        time(
            "tracing.flush_timeout",
            *flush_timeout,
            Duration::ZERO..=DAY,
        ),
    ]
}
