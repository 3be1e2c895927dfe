//! The families of the link to other nodes, which are there only where a node has others.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, proto::MetricFamily,
};

use super::metrics::{gauge, register};

/// What is counted on the link, by one method an event: a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct LinkMetrics {
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    came_up: IntCounter,
    round_trip: Histogram,
    unknown: IntCounter,
    overrun: IntCounter,
    malformed: IntCounter,
    conflicts: IntCounter,
}

/// The link at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterStats {
    /// Whether NATS can be reached.
    pub up: bool,
    /// Blocks of ids that this node holds.
    pub blocks: u64,
    /// Ids in them that can be given.
    pub ids_left: u64,
    /// Outcomes that other nodes owe.
    pub outcomes_pending: u64,
    /// Ids of other nodes' blocks that are here.
    pub migrated_ids: u64,
    /// Ids of blocks of this node that other nodes have.
    pub claims: u64,
    /// Messages that wait to go to other nodes.
    pub queue_messages: u64,
    /// Their bytes.
    pub queue_bytes: u64,
}

/// A round trip to a server in the same rack takes tens of microseconds, and one that takes seconds ends
/// the link.
const ROUND_TRIP_SECONDS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 2.5,
];

impl LinkMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let count = |name, help| register(registry, IntCounter::new(name, help));
        let bytes = IntCounterVec::new(
            Opts::new(
                "switchboard_cluster_bytes_total",
                "Bytes of messages and of answers to and from other nodes.",
            ),
            &["direction"],
        );
        let bytes = register(registry, bytes);
        let round_trip = HistogramOpts::new(
            "switchboard_cluster_round_trip_seconds",
            "From a probe's being handed to the NATS client to its coming back.",
        );
        let round_trip = round_trip.buckets(ROUND_TRIP_SECONDS.to_vec());
        Self {
            sent_bytes: bytes.with_label_values(&["sent"]),
            received_bytes: bytes.with_label_values(&["received"]),
            came_up: count(
                "switchboard_cluster_connects_total",
                "Connections to NATS that came about; all but the first are reconnects.",
            ),
            round_trip: register(registry, Histogram::with_opts(round_trip)),
            unknown: count(
                "switchboard_cluster_outcomes_unknown_total",
                "Outcomes that no other node told in time; the message may have arrived.",
            ),
            overrun: count(
                "switchboard_cluster_overrun_total",
                "Times that NATS brought messages faster than they were taken, which loses some.",
            ),
            malformed: count(
                "switchboard_cluster_malformed_total",
                "Messages and answers from other nodes that could not be read.",
            ),
            conflicts: count(
                "switchboard_cluster_block_conflicts_total",
                "Blocks that were leased and another node held already: NATS has lost leases.",
            ),
        }
    }

    pub(crate) fn bytes_sent(&self, count: usize) {
        self.sent_bytes.inc_by(count as u64);
    }

    pub(crate) fn bytes_received(&self, count: usize) {
        self.received_bytes.inc_by(count as u64);
    }

    pub(crate) fn came_up(&self) {
        self.came_up.inc();
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

    pub(crate) fn block_conflict(&self) {
        self.conflicts.inc();
    }
}

/// The statistics as gauges.
pub(super) fn found(stats: &ClusterStats) -> [MetricFamily; 8] {
    [
        gauge(
            "switchboard_cluster_up",
            "1 while NATS can be reached.",
            stats.up.into(),
        ),
        gauge(
            "switchboard_cluster_blocks",
            "Blocks of ids that this node holds.",
            stats.blocks,
        ),
        gauge(
            "switchboard_cluster_ids_left",
            "Ids that can be given to new users without another lease.",
            stats.ids_left,
        ),
        gauge(
            "switchboard_cluster_outcomes_pending",
            "Outcomes that other nodes owe to users here.",
            stats.outcomes_pending,
        ),
        gauge(
            "switchboard_cluster_guests",
            "Users here whose ids are of other nodes' blocks, by a ticket.",
            stats.migrated_ids,
        ),
        gauge(
            "switchboard_cluster_claims",
            "Ids of this node's blocks whose users are on other nodes, by a ticket.",
            stats.claims,
        ),
        gauge(
            "switchboard_cluster_queue_messages",
            "Messages that wait to go to other nodes, or are being handed over.",
            stats.queue_messages,
        ),
        gauge(
            "switchboard_cluster_queue_bytes",
            "Bytes of the messages that wait to go to other nodes.",
            stats.queue_bytes,
        ),
    ]
}
