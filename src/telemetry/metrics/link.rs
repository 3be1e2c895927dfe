//! The metrics of the link to other nodes. They exist only with `cluster.nats_url`.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::families::{register, registered_counter};

/// The counters of the link, with one method for each event. A clone counts into the same metrics.
#[derive(Clone, Debug)]
pub(crate) struct LinkMetrics {
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    connects: IntCounter,
    round_trip: Histogram,
    unknown: IntCounter,
    overrun: IntCounter,
    malformed: IntCounter,
    conflicts: IntCounter,
}

/// Buckets. A round trip to a server in the same rack takes tens of microseconds; the link ends when a probe
/// takes seconds.
const ROUND_TRIP_SECONDS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 2.5,
];

impl LinkMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let count = |name, help| registered_counter(registry, name, help);
        let bytes = IntCounterVec::new(
            Opts::new(
                "switchboard_cluster_bytes_total",
                "Bytes of messages and outcomes to and from other nodes.",
            ),
            &["direction"],
        );
        let bytes = register(registry, bytes);
        let round_trip = HistogramOpts::new(
            "switchboard_cluster_round_trip_seconds",
            "Time of a round trip to NATS, including its wait behind other traffic.",
        );
        let round_trip = round_trip.buckets(ROUND_TRIP_SECONDS.to_vec());
        Self {
            sent_bytes: bytes.with_label_values(&["sent"]),
            received_bytes: bytes.with_label_values(&["received"]),
            connects: count(
                "switchboard_cluster_connects_total",
                "Connections to NATS that were established; all but the first are reconnects.",
            ),
            round_trip: register(registry, Histogram::with_opts(round_trip)),
            unknown: count(
                "switchboard_cluster_outcomes_unknown_total",
                "Outcomes that no other node reported in time; the message may have arrived.",
            ),
            overrun: count(
                "switchboard_cluster_overrun_total",
                "Times that NATS delivered messages faster than this node took them, which loses some.",
            ),
            malformed: count(
                "switchboard_cluster_malformed_total",
                "Messages and outcomes from other nodes that could not be decoded.",
            ),
            conflicts: count(
                "switchboard_cluster_id_conflicts_total",
                "Users that lost their id to another user: NATS lost the table.",
            ),
        }
    }

    pub(crate) fn bytes_sent(&self, count: usize) {
        self.sent_bytes.inc_by(count as u64);
    }

    pub(crate) fn bytes_received(&self, count: usize) {
        self.received_bytes.inc_by(count as u64);
    }

    pub(crate) fn connected(&self) {
        self.connects.inc();
    }

    pub(crate) fn round_trip(&self, took: Duration) {
        self.round_trip.observe(took.as_secs_f64());
    }

    pub(crate) fn outcomes_unknown(&self, count: usize) {
        self.unknown.inc_by(count as u64);
    }

    pub(crate) fn overrun(&self) {
        self.overrun.inc();
    }

    pub(crate) fn malformed(&self) {
        self.malformed.inc();
    }

    pub(crate) fn id_conflict(&self) {
        self.conflicts.inc();
    }
}
