//! The rules of `[cluster]`.

use std::time::Duration;

use hyper::Uri;

use crate::config::rule::{
    COUNT_MAX, DAY, GIB, KIB, MINUTE, Rule, SECOND, count, size, time, waiting,
};
use crate::config::settings::{ClusterSettings, LimitSettings};

/// A node checks eight times within a timeout whether another node has answered.
const WAIT_MIN: Duration = Duration::from_millis(100);
const YEAR: Duration = Duration::from_hours(8760);
/// What a queued message takes beside its own bytes on its way to another node.
const QUEUED_OVERHEAD_BYTES: u64 = 256;

pub(super) fn rules(cluster: &ClusterSettings, limits: &LimitSettings) -> Vec<Rule> {
    let ClusterSettings {
        nats_url,
        name,
        user: _,
        password_file: _,
        token_file: _,
        nkey_file: _,
        creds_file: _,
        tls_ca_file: _,
        tls_cert_file: _,
        tls_key_file: _,
        required: _,
        unready_after,
        block_size,
        lease_replicas,
        outcome_timeout,
        outcomes_pending,
        node_timeout,
        entry_ttl,
        joins,
        routes,
        link_timeout,
        user_messages: _,
        user_bytes: _,
        queue_bytes: _,
        in_flight_bytes: _,
        inbound_messages: _,
    } = cluster;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut rules = vec![
        Rule::new(
            "cluster.nats_url",
            "addresses of NATS servers, such as \"nats://127.0.0.1:4222\" or \
             \"tls://nats.example.com:4222\", without a user, a password or a path",
            nats_url.iter().all(|url| is_nats_url(url)),
        ),
        Rule::new(
            "cluster.name",
            "1 to 32 letters, digits, \"-\" and \"_\"",
            (1..=32).contains(&name.len()) && name.bytes().all(is_word),
        ),
        count("cluster.block_size", block_size.get(), COUNT_MAX),
        count("cluster.lease_replicas", *lease_replicas, 5),
        time("cluster.outcome_timeout", *outcome_timeout, WAIT_MIN..=DAY),
        count("cluster.outcomes_pending", *outcomes_pending, COUNT_MAX).warn_above_default(),
        time(
            "cluster.unready_after",
            *unready_after,
            Duration::ZERO..=DAY,
        ),
        time("cluster.link_timeout", *link_timeout, WAIT_MIN..=DAY),
        time("cluster.node_timeout", *node_timeout, SECOND..=DAY),
        // A node that has lost NATS has to notice that before its own lease ends.
        Rule::new(
            "cluster.node_timeout",
            "at least twice cluster.link_timeout",
            *node_timeout >= 2 * *link_timeout,
        )
        .with(&["cluster.link_timeout"]),
        time("cluster.entry_ttl", *entry_ttl, MINUTE..=YEAR),
        count("cluster.joins", *joins, COUNT_MAX).warn_above_default(),
        count("cluster.routes", *routes, COUNT_MAX).warn_above_default(),
    ];
    rules.extend(credential_rules(cluster));
    rules.extend(queue_rules(cluster, limits));
    rules
}

/// A node identifies itself in at most one way, and each way needs all of its parts.
fn credential_rules(cluster: &ClusterSettings) -> [Rule; 4] {
    let ClusterSettings {
        nats_url,
        user,
        password_file,
        token_file,
        nkey_file,
        creds_file,
        tls_cert_file,
        tls_key_file,
        required,
        ..
    } = cluster;
    let files = [token_file, nkey_file, creds_file];
    let ways = files.iter().filter(|file| file.is_some()).count() + usize::from(user.is_some());
    [
        Rule::new("cluster.user", "at most one of the four set", ways <= 1).with(&[
            "cluster.token_file",
            "cluster.nkey_file",
            "cluster.creds_file",
        ]),
        Rule::new(
            "cluster.user",
            "set together with cluster.password_file, or both not set",
            user.is_some() == password_file.is_some(),
        )
        .with(&["cluster.password_file"]),
        Rule::new(
            "cluster.tls_cert_file",
            "set together with cluster.tls_key_file, or both not set",
            tls_cert_file.is_some() == tls_key_file.is_some(),
        )
        .with(&["cluster.tls_key_file"]),
        Rule::new(
            "cluster.required",
            "false while cluster.nats_url is empty",
            !required || !nats_url.is_empty(),
        )
        .with(&["cluster.nats_url"]),
    ]
}

fn queue_rules(cluster: &ClusterSettings, limits: &LimitSettings) -> Vec<Rule> {
    let ClusterSettings {
        user_messages,
        user_bytes,
        queue_bytes,
        in_flight_bytes,
        inbound_messages,
        ..
    } = cluster;
    let mut rules = Vec::from(waiting(
        &[
            "cluster.user_messages",
            "cluster.user_bytes",
            "cluster.queue_bytes",
        ],
        [
            u64::from(*user_messages),
            *user_bytes as u64,
            *queue_bytes as u64,
        ],
        limits.message_bytes,
        QUEUED_OVERHEAD_BYTES,
    ));
    rules.extend([
        size("cluster.in_flight_bytes", *in_flight_bytes, 64 * KIB..=GIB).warn_above_default(),
        count("cluster.inbound_messages", *inbound_messages, COUNT_MAX).warn_above_default(),
    ]);
    rules
}

/// Whether a NATS server can be at this URL. A user or a password does not belong here, because the URL is
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
