//! The metrics of one app: one method for each event, and the text that Prometheus scrapes.
//!
//! To add a metric: a field and a method here, and its row in `config/prometheus/README.md`. The events of a
//! message are counted in `shards`, the events of a connection in ordinary counters. `stats` holds gauges
//! that a scrape reads from the directory. Labels are the enums in `labels`, never a value of a peer.

mod exposition;
mod families;
mod gauges;
mod labels;
mod link;
mod memory;
mod open_metrics;
mod process;
mod reloads;
mod shards;
mod spans;
mod stats;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::export::SpanCounts;
use super::traces::{Traced, Traces};
pub use exposition::Exposition;
use families::{counter, counter_by_reason, register, registered_counter};
use gauges::Gauges;
pub(crate) use gauges::HttpConnection;
use labels::CODE_LABELS;
pub use labels::{CloseCode, DropReason, Initiator, Rejection};
pub(crate) use link::LinkMetrics;
use open_metrics::Exemplars;
use process::ProcessMetrics;
pub(crate) use reloads::{CertificateMetrics, ReloadMetrics};
use shards::WorkerShards;
pub use stats::{ClusterStats, DirectoryStats};

/// The commit of the build, from the environment of the build.
const REVISION: &str = match option_env!("SWITCHBOARD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// All metrics of one app.
#[derive(Debug)]
pub struct Metrics {
    shards: WorkerShards,
    /// Closed connections, which a scrape reads before the directory.
    closed_registry: Registry,
    /// Everything else that is registered, which a scrape reads after the directory.
    registry: Registry,
    opened: IntCounter,
    closed: [[IntCounter; CODE_LABELS]; Initiator::ALL.len()],
    rejected: [IntCounter; Rejection::ALL.len()],
    checks_refused: [IntCounter; Rejection::ALL.len()],
    panics: IntCounter,
    accept_errors: IntCounter,
    accepts_deferred: IntCounter,
    http_evicted: IntCounter,
    bad_messages: IntCounter,
    spans: Arc<SpanCounts>,
    delivery_exemplars: Exemplars,
    wait_exemplars: Exemplars,
    process: ProcessMetrics,
    gauges: Gauges,
}

/// A counter for each reason of a refusal.
fn refusals(registry: &Registry, name: &str, help: &str) -> [IntCounter; Rejection::ALL.len()] {
    let counters = IntCounterVec::new(Opts::new(name, help), &["reason"]);
    let counters = register(registry, counters);
    Rejection::ALL.map(|reason| counters.with_label_values(&[reason.as_str()]))
}

impl Metrics {
    /// The metrics of a new app with `workers` worker threads, all at zero.
    pub fn new(workers: usize) -> Self {
        let registry = Registry::new();
        let closed_registry = Registry::new();
        let count = |name, help| registered_counter(&registry, name, help);
        let closed = Opts::new(
            "switchboard_connections_closed_total",
            "Connections that ended, by the side that ended them and by close code.",
        );
        let closed = IntCounterVec::new(closed, &["initiator", "code"]);
        let closed = register(&closed_registry, closed);
        let build = Opts::new(
            "switchboard_build_info",
            "Always 1; the labels are the version and commit.",
        );
        let build = build
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("revision", REVISION);
        register(&registry, IntGauge::with_opts(build)).set(1);
        Self {
            shards: WorkerShards::new(workers),
            opened: count(
                "switchboard_connections_opened_total",
                "Connections that completed the upgrade.",
            ),
            closed: Initiator::ALL.map(|initiator| {
                std::array::from_fn(|code| {
                    closed.with_label_values(&[initiator.as_str(), &labels::code_label(code)])
                })
            }),
            rejected: refusals(
                &registry,
                "switchboard_handshakes_rejected_total",
                "WebSocket upgrades that were refused, heads above limits.header_bytes, and TLS handshakes above their rate.",
            ),
            checks_refused: refusals(
                &registry,
                "switchboard_handshake_checks_rejected_total",
                "Requests to /handshake whose answer was the refusal of a handshake.",
            ),
            panics: count(
                "switchboard_session_panics_total",
                "Sessions that ended by a panic.",
            ),
            accept_errors: count(
                "switchboard_accept_errors_total",
                "Connections that could not be accepted, mostly because no file descriptor was left.",
            ),
            accepts_deferred: count(
                "switchboard_accepts_deferred_total",
                "Connections that waited in the kernel's queue because of limits.accept_rate.",
            ),
            http_evicted: count(
                "switchboard_http_evicted_total",
                "Connections closed before their upgrade to make room for newer ones.",
            ),
            bad_messages: count(
                "switchboard_bad_messages_total",
                "Messages that could not be decoded; not in the ledger.",
            ),
            spans: Arc::default(),
            delivery_exemplars: Exemplars::default(),
            wait_exemplars: Exemplars::default(),
            process: ProcessMetrics::new(),
            gauges: Gauges::new(&registry),
            closed_registry,
            registry,
        }
    }

    /// Counts the spans of these traces, too.
    #[must_use]
    pub fn with_spans_of(mut self, traces: &Traces) -> Self {
        self.spans = traces.counts.clone();
        self
    }

    /// Registers the metrics of the link to other nodes. At most once for each app.
    pub(crate) fn with_link(&self) -> LinkMetrics {
        LinkMetrics::new(&self.registry)
    }

    /// Registers the metrics of the keys for tokens. At most once for each app.
    pub(crate) fn with_keys(&self) -> ReloadMetrics {
        ReloadMetrics::of_keys(&self.registry)
    }

    /// Registers the metrics of a listener's certificate. At most once for each listener.
    pub(crate) fn with_certificate(&self, listener: &str) -> CertificateMetrics {
        CertificateMetrics::new(&self.registry, listener)
    }

    pub(crate) fn message_received(&self) {
        self.shards.current().received.fetch_add(1, Relaxed);
    }

    pub(crate) fn messages_delivered(&self, count: u64) {
        self.shards.current().delivered.fetch_add(count, Release);
    }

    pub(crate) fn messages_dropped(&self, reason: DropReason, count: u64) {
        self.shards.current().dropped[reason as usize].fetch_add(count, Release);
    }

    /// A message came from another node, or NATS returned it because no node takes it.
    pub(crate) fn cluster_received(&self) {
        self.shards.current().cluster_received.fetch_add(1, Relaxed);
    }

    /// `count` messages were handed to NATS.
    pub(crate) fn cluster_sent(&self, count: u64) {
        self.shards.current().cluster_sent.fetch_add(count, Release);
    }

    /// `count` messages took `each_us` microseconds from being read to being flushed.
    pub(crate) fn delivery_took(&self, each_us: u64, count: u64) {
        self.shards.current().delivery.observe(each_us, count);
    }

    /// `count` messages waited `each_us` microseconds in a mailbox.
    pub(crate) fn mailbox_waited(&self, each_us: u64, count: u64) {
        self.shards.current().wait.observe(each_us, count);
    }

    /// A traced message took `us` microseconds from being read to being flushed.
    pub(crate) fn traced_delivery_took(&self, trace: &Traced, us: u64) {
        self.delivery_exemplars.keep(trace.sampled_id(), us);
    }

    /// A traced message waited `us` microseconds in a mailbox.
    pub(crate) fn traced_mailbox_waited(&self, trace: &Traced, us: u64) {
        self.wait_exemplars.keep(trace.sampled_id(), us);
    }

    pub(crate) fn connection_opened(&self) {
        self.opened.inc();
    }

    pub(crate) fn connection_closed(&self, initiator: Initiator, code: CloseCode) {
        self.closed[initiator as usize][code.index()].inc();
    }

    pub(crate) fn handshake_rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].inc();
    }

    /// A request to `/handshake` learned why its handshake would be refused. Counted apart: a page asks after its
    /// handshake was refused, and that was counted.
    pub(crate) fn handshake_check_refused(&self, reason: Rejection) {
        self.checks_refused[reason as usize].inc();
    }

    pub(crate) fn session_panicked(&self) {
        self.panics.inc();
    }

    pub(crate) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    pub(crate) fn accept_deferred(&self) {
        self.accepts_deferred.inc();
    }

    pub(crate) fn http_evicted(&self) {
        self.http_evicted.inc();
    }

    pub(crate) fn bad_message(&self) {
        self.bad_messages.inc();
    }

    pub(crate) fn connections_limited_to(&self, limit: usize) {
        gauges::set(&self.gauges.connections_limit, limit as u64);
    }

    pub(crate) fn http_connections_limited_to(&self, limit: usize) {
        gauges::set(&self.gauges.http_connections_limit, limit as u64);
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn http_connection(&self) -> HttpConnection {
        HttpConnection::new(&self.gauges.http_connections)
    }

    pub(crate) fn mailboxes_limited_to(&self, bytes: u64) {
        gauges::set(&self.gauges.mailbox_limit_bytes, bytes);
    }

    pub(crate) fn outcomes_limited_to(&self, bytes: u64) {
        gauges::set(&self.gauges.outcome_limit_bytes, bytes);
    }

    /// Bytes of `limits.outcomes_bytes` that no user has reserved.
    pub(crate) fn outcome_bytes_free(&self) -> u64 {
        let free = self.gauges.outcome_limit_bytes.get() - self.gauges.outcome_bytes.get();
        u64::try_from(free).unwrap_or(0)
    }

    pub(crate) fn outcome_bytes_reserved(&self, bytes: u32) {
        self.gauges.outcome_bytes.add(bytes.into());
    }

    pub(crate) fn outcome_bytes_released(&self, bytes: u32) {
        self.gauges.outcome_bytes.sub(bytes.into());
    }

    pub(crate) fn bytes_read(&self, count: usize) {
        self.shards
            .current()
            .read_bytes
            .fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn bytes_written(&self, count: usize) {
        self.shards
            .current()
            .written_bytes
            .fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn drain_started(&self, timeout: Duration) {
        self.gauges.drain_started(timeout);
    }

    /// The time since the Unix epoch at which the drain ends at the latest; nothing while there is none.
    pub(crate) fn drain_deadline(&self) -> Option<Duration> {
        self.gauges.drain_deadline()
    }

    pub(crate) fn received(&self) -> u64 {
        self.shards.sum(|shard| &shard.received)
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.shards.sum(|shard| &shard.delivered)
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.shards.sum(|shard| &shard.dropped[reason as usize])
    }

    pub(crate) fn received_from_cluster(&self) -> u64 {
        self.shards.sum(|shard| &shard.cluster_received)
    }

    pub(crate) fn sent_to_cluster(&self) -> u64 {
        self.shards.sum(|shard| &shard.cluster_sent)
    }

    pub(crate) fn rejected(&self, reason: Rejection) -> u64 {
        self.rejected[reason as usize].get()
    }

    pub(crate) fn http_evictions(&self) -> u64 {
        self.http_evicted.get()
    }

    /// All metrics as a text.
    ///
    /// Reads against the way of a message and of a connection: first what has ended, then what the
    /// directory holds, then what has begun. A message that moves meanwhile can therefore make the left
    /// side of the ledger larger than the right, but never smaller.
    pub fn scrape(&self, exposition: Exposition, stats: impl FnOnce() -> DirectoryStats) -> String {
        let mut families = self.closed_registry.gather();
        let delivered = self.delivered();
        let dropped = DropReason::ALL.map(|reason| (reason.as_str(), self.dropped(reason)));
        let sent_to_cluster = self.sent_to_cluster();
        // Neither the compiler nor the CPU may move the reads of one step into another.
        fence(SeqCst);
        let stats = stats();
        fence(SeqCst);
        let received = self.received();
        let received_from_cluster = self.received_from_cluster();
        families.extend(self.registry.gather());
        families.extend([
            counter(
                "switchboard_messages_received_total",
                "Messages decoded from users.",
                received,
            ),
            counter(
                "switchboard_messages_delivered_total",
                "Messages written and flushed to their recipient's socket.",
                delivered,
            ),
            counter_by_reason(
                "switchboard_messages_dropped_total",
                "Messages not delivered.",
                dropped,
            ),
            counter(
                "switchboard_cluster_received_total",
                "Messages that came from other nodes, or that NATS returned because no node takes them.",
                received_from_cluster,
            ),
            counter(
                "switchboard_cluster_sent_total",
                "Messages sent to other nodes.",
                sent_to_cluster,
            ),
        ]);
        families.extend(self.shards.socket_families());
        families.extend(spans::families(&self.spans));
        families.extend(self.process.families());
        families.extend(stats.families());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let exemplars = [
            (shards::DELIVERY, self.delivery_exemplars.newest()),
            (shards::MAILBOX_WAIT, self.wait_exemplars.newest()),
        ];
        exposition.write(&families, &exemplars)
    }
}
