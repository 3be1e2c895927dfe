//! Gauges that the app sets: limits, connections without an upgrade, and the drain.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{IntGauge, Registry};

use super::families::registered_gauge;

/// Gauges that the app sets.
#[derive(Debug)]
pub(super) struct Gauges {
    pub(super) connections_limit: IntGauge,
    pub(super) http_connections: IntGauge,
    pub(super) http_connections_limit: IntGauge,
    pub(super) mailbox_limit_bytes: IntGauge,
    /// Also the counter that the limit is compared with.
    pub(super) outcome_bytes: IntGauge,
    pub(super) outcome_limit_bytes: IntGauge,
    draining: IntGauge,
    drain_deadline: IntGauge,
}

impl Gauges {
    pub(super) fn new(registry: &Registry) -> Self {
        let gauge = |name, help| registered_gauge(registry, name, help);
        Self {
            connections_limit: gauge(
                "switchboard_connections_limit",
                "The most users that can connect.",
            ),
            http_connections: gauge(
                "switchboard_http_connections",
                "Connections on the listeners for users that have not completed an upgrade.",
            ),
            http_connections_limit: gauge(
                "switchboard_http_connections_limit",
                "The most connections without an upgrade; one more closes an older one.",
            ),
            mailbox_limit_bytes: gauge(
                "switchboard_mailbox_limit_bytes",
                "The most bytes that all mailboxes may reserve together.",
            ),
            outcome_bytes: gauge(
                "switchboard_outcome_bytes",
                "Bytes that connected users have reserved for outcomes that they have not read.",
            ),
            outcome_limit_bytes: gauge(
                "switchboard_outcome_limit_bytes",
                "The most bytes that all users may reserve for outcomes together.",
            ),
            draining: gauge("switchboard_draining", "1 while the relay drains, else 0."),
            drain_deadline: gauge(
                "switchboard_drain_deadline_timestamp_seconds",
                "Unix time at which the drain ends at the latest; 0 if there is no drain.",
            ),
        }
    }

    pub(super) fn drain_started(&self, timeout: Duration) {
        let end = SystemTime::now() + timeout;
        let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        set(&self.drain_deadline, end.as_secs());
        self.draining.set(1);
    }

    pub(super) fn drain_deadline(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.drain_deadline.get()).ok()?;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

/// Sets a gauge, which holds no more than `i64::MAX`.
pub(super) fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Counts one connection in `switchboard_http_connections` until it is dropped.
#[derive(Debug)]
pub(crate) struct HttpConnection(IntGauge);

impl HttpConnection {
    pub(super) fn new(connections: &IntGauge) -> Self {
        connections.inc();
        Self(connections.clone())
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
