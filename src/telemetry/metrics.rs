//! Every Prometheus family, with one method an event. What a message touches is counted in shards,
//! one a worker thread, so that workers do not share a cache line; what a connection touches is an
//! ordinary counter. Gauges of users and queues are no variables: they are read from the statistics of the
//! directory at scrape time, so they cannot drift.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::{self, MetricFamily, MetricType};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use super::export::{SpanCounts, SpanLoss};
use super::link::{self, ClusterStats, LinkMetrics};
use super::process::Process;
use super::trace::Traces;

/// Why a message was dropped: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Nobody with that id was here.
    Offline,
    /// The mailbox, or the room for all mailboxes, was used up.
    QueueFull,
    /// The recipient left before it was flushed.
    Disconnected,
    /// Over `limits.message_bytes`.
    TooLarge,
    /// Over the sender's rate.
    RateLimited,
    /// Still queued when the drain timed out.
    Draining,
    /// For another node, which could not be reached.
    Unavailable,
    /// A fault of ours: the message was lost in hand.
    Internal,
}

impl DropReason {
    /// Every reason, in the order of the figures.
    pub const ALL: [Self; 8] = [
        Self::Offline,
        Self::QueueFull,
        Self::Disconnected,
        Self::TooLarge,
        Self::RateLimited,
        Self::Draining,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::QueueFull => "queue_full",
            Self::Disconnected => "disconnected",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// Who ended a connection: the `initiator` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The user's side.
    Client,
    /// Ours.
    Server,
}

impl Initiator {
    const ALL: [Self; 2] = [Self::Client, Self::Server];

    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How a connection ended: the `code` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// A WebSocket close code.
    Code(u16),
    /// The connection was reset.
    Reset,
    /// No pong within `keepalive.pong_timeout`.
    PongTimeout,
    /// A write made no progress for `keepalive.write_timeout`.
    WriteTimeout,
}

/// The codes that have a label of their own: the registered ones, and ours. Any other code that a
/// peer sends counts as `other`.
const CODES: [u16; 15] = [
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4401, 4409, 4410,
];
const OTHER: usize = CODES.len();
const CODE_LABELS: usize = OTHER + 4;

impl CloseCode {
    fn index(self) -> usize {
        match self {
            Self::Code(code) => CODES
                .iter()
                .position(|known| *known == code)
                .unwrap_or(OTHER),
            Self::Reset => OTHER + 1,
            Self::PongTimeout => OTHER + 2,
            Self::WriteTimeout => OTHER + 3,
        }
    }
}

/// The label's value for an index of [`CloseCode::index`].
fn code_label(index: usize) -> String {
    match CODES.get(index) {
        Some(code) => code.to_string(),
        None => ["other", "reset", "pong_timeout", "write_timeout"][index - OTHER].to_owned(),
    }
}

/// Why a handshake was refused, of TLS or an upgrade: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request is no WebSocket handshake as RFC 6455 section 4.2.1 wants it.
    Malformed,
    /// Another version of the protocol.
    Version,
    /// A page of an origin that may not connect.
    Origin,
    /// No token, or none that holds.
    Unauthorized,
    /// Too many handshakes, over all.
    Rate,
    /// Too many handshakes from one address.
    AddressRate,
    /// Too many TLS handshakes, over all.
    TlsRate,
    /// Too many TLS handshakes from one address.
    AddressTlsRate,
    /// Too many users from one address.
    AddressConnections,
    /// Too many failed authentications from one address.
    AddressFailures,
    /// `limits.connections` is reached.
    Full,
    /// No id is left to give.
    NoId,
    /// The server drains.
    Draining,
}

impl Rejection {
    const ALL: [Self; 13] = [
        Self::Malformed,
        Self::Version,
        Self::Origin,
        Self::Unauthorized,
        Self::Rate,
        Self::AddressRate,
        Self::TlsRate,
        Self::AddressTlsRate,
        Self::AddressConnections,
        Self::AddressFailures,
        Self::Full,
        Self::NoId,
        Self::Draining,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Origin => "origin",
            Self::Unauthorized => "unauthorized",
            Self::Rate => "rate",
            Self::AddressRate => "address_rate",
            Self::TlsRate => "tls_rate",
            Self::AddressTlsRate => "address_tls_rate",
            Self::AddressConnections => "address_connections",
            Self::AddressFailures => "address_failures",
            Self::Full => "full",
            Self::NoId => "no_id",
            Self::Draining => "draining",
        }
    }
}

/// Connected users and what their mailboxes hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectoryStats {
    /// Users who are joined.
    pub connections: u64,
    /// Messages in mailboxes and write buffers.
    pub mailbox_messages: u64,
    /// Their bytes as WebSocket frames.
    pub mailbox_bytes: u64,
    /// Bytes that mailboxes have reserved of those that all may hold together.
    pub mailbox_reserved_bytes: u64,
    /// Segments of the user directory.
    pub segments: u64,
    /// The link to other nodes, where there is to be one.
    pub link: Option<ClusterStats>,
}

/// The upper bounds of the latency buckets, microseconds. A relay's work takes tens of them, and
/// what is over ten seconds has met a timeout.
const BOUNDS_US: [u64; 17] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

#[derive(Debug, Default)]
struct Latency {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Latency {
    fn observe(&self, each_us: u64, count: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < each_us);
        self.buckets[bucket].fetch_add(count, Relaxed);
        self.sum_us
            .fetch_add(each_us.saturating_mul(count), Relaxed);
    }
}

/// One worker's counters. The alignment keeps two workers off one pair of cache lines, which x86
/// fetches together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    received: AtomicU64,
    delivered: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    cluster_received: AtomicU64,
    cluster_sent: AtomicU64,
    delivery: Latency,
    wait: Latency,
    /// Counted by system call and not by message.
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// The commit that was built, where whoever built it has said so.
const REVISION: &str = match option_env!("SWITCHBOARD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Every family of one app.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Shard]>,
    /// What is read before the stats; all else that is registered is read behind it.
    ended: Registry,
    registry: Registry,
    opened: IntCounter,
    closed: [[IntCounter; CODE_LABELS]; 2],
    rejected: [IntCounter; Rejection::ALL.len()],
    panics: IntCounter,
    accept_errors: IntCounter,
    accepts_deferred: IntCounter,
    http_evicted: IntCounter,
    bad_messages: IntCounter,
    spans: Arc<SpanCounts>,
    process: Process,
    levels: Levels,
}

/// Gauges that are set, not counted.
#[derive(Debug)]
struct Levels {
    connections_limit: IntGauge,
    http_connections: IntGauge,
    http_connections_limit: IntGauge,
    mailbox_limit_bytes: IntGauge,
    draining: IntGauge,
    drain_deadline: IntGauge,
}

impl Levels {
    fn new(registry: &Registry) -> Self {
        let level = |name, help| register(registry, IntGauge::new(name, help));
        Self {
            connections_limit: level(
                "switchboard_connections_limit",
                "The most users that are let in.",
            ),
            http_connections: level(
                "switchboard_http_connections",
                "Connections to listeners for users that are not users, or not yet.",
            ),
            http_connections_limit: level(
                "switchboard_http_connections_limit",
                "The most of them; beyond that a newer one closes an older.",
            ),
            mailbox_limit_bytes: level(
                "switchboard_mailbox_limit_bytes",
                "The most bytes that all mailboxes may reserve together.",
            ),
            draining: level("switchboard_draining", "1 while the server drains."),
            drain_deadline: level(
                "switchboard_drain_deadline_timestamp_seconds",
                "When the drain ends at the latest, Unix time; 0 while there is none.",
            ),
        }
    }
}

/// An HTTP connection on a listener for users, until it ends or is a user's; ends by Drop.
#[derive(Debug)]
pub(crate) struct HttpConnection(IntGauge);

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// The families of a new app, all at zero, for `workers` worker threads.
    pub fn new(workers: usize) -> Self {
        let registry = Registry::new();
        let ended = Registry::new();
        let count = |name, help| register(&registry, IntCounter::new(name, help));
        let vector = |registry: &Registry, name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let closed = vector(
            &ended,
            "switchboard_connections_closed_total",
            "Connections that ended, by who ended them and how.",
            &["initiator", "code"],
        );
        let rejected = vector(
            &registry,
            "switchboard_handshakes_rejected_total",
            "WebSocket upgrades that were refused, and TLS handshakes over their rate.",
            &["reason"],
        );
        let build = Opts::new("switchboard_build_info", "What is running; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("revision", REVISION);
        register(&registry, IntGauge::with_opts(build)).set(1);
        Self {
            shards: (0..=workers).map(|_| Shard::default()).collect(),
            opened: count(
                "switchboard_connections_opened_total",
                "Connections that joined.",
            ),
            closed: Initiator::ALL.map(|initiator| {
                std::array::from_fn(|code| {
                    closed.with_label_values(&[initiator.as_str(), &code_label(code)])
                })
            }),
            rejected: Rejection::ALL.map(|reason| rejected.with_label_values(&[reason.as_str()])),
            panics: count(
                "switchboard_session_panics_total",
                "Sessions that ended by a panic.",
            ),
            accept_errors: count(
                "switchboard_accept_errors_total",
                "Connections that could not be accepted, for want of file descriptors mostly.",
            ),
            accepts_deferred: count(
                "switchboard_accepts_deferred_total",
                "Connections that waited in the kernel for limits.accept_rate.",
            ),
            http_evicted: count(
                "switchboard_http_evicted_total",
                "HTTP connections that were closed to make room for newer ones.",
            ),
            bad_messages: count(
                "switchboard_bad_messages_total",
                "Messages from clients that could not be decoded; not in the ledger.",
            ),
            spans: Arc::default(),
            process: Process::new(),
            levels: Levels::new(&registry),
            ended,
            registry,
        }
    }

    /// Shows what becomes of the spans of these traces.
    #[must_use]
    pub fn with_spans_of(mut self, traces: &Traces) -> Self {
        self.spans = traces.counts.clone();
        self
    }

    /// The families of the link to other nodes, from now on there; once an app.
    pub(crate) fn with_link(&self) -> LinkMetrics {
        LinkMetrics::new(&self.registry)
    }

    fn shard(&self) -> &Shard {
        // The first shard is for threads that are no workers: tests, mostly.
        let index = tokio::runtime::worker_index().map_or(0, |worker| worker + 1);
        self.shards.get(index).unwrap_or(&self.shards[0])
    }

    pub(crate) fn message_received(&self) {
        self.shard().received.fetch_add(1, Relaxed);
    }

    pub(crate) fn messages_delivered(&self, count: u64) {
        self.shard().delivered.fetch_add(count, Release);
    }

    pub(crate) fn messages_dropped(&self, reason: DropReason, count: u64) {
        self.shard().dropped[reason as usize].fetch_add(count, Release);
    }

    /// A message came from another node, or one of ours came back since nobody takes it.
    pub(crate) fn cluster_received(&self) {
        self.shard().cluster_received.fetch_add(1, Relaxed);
    }

    /// Messages were handed to the cluster, for other nodes.
    pub(crate) fn cluster_sent(&self, count: u64) {
        self.shard().cluster_sent.fetch_add(count, Release);
    }

    /// `count` messages took `each_us` microseconds from being read to being flushed.
    pub(crate) fn delivery_took(&self, each_us: u64, count: u64) {
        self.shard().delivery.observe(each_us, count);
    }

    /// `count` messages waited `each_us` microseconds in a mailbox.
    pub(crate) fn mailbox_waited(&self, each_us: u64, count: u64) {
        self.shard().wait.observe(each_us, count);
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
        self.levels
            .connections_limit
            .set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// So many HTTP connections may be open on listeners for users.
    pub(crate) fn http_connections_limited_to(&self, limit: usize) {
        self.levels
            .http_connections_limit
            .set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    pub(crate) fn http_connection(&self) -> HttpConnection {
        self.levels.http_connections.inc();
        HttpConnection(self.levels.http_connections.clone())
    }

    pub(crate) fn mailboxes_limited_to(&self, bytes: u64) {
        self.levels
            .mailbox_limit_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn bytes_read(&self, count: usize) {
        self.shard().read_bytes.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn bytes_written(&self, count: usize) {
        self.shard().written_bytes.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn drain_started(&self, timeout: Duration) {
        let end = SystemTime::now() + timeout;
        let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.levels
            .drain_deadline
            .set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
        self.levels.draining.set(1);
    }

    /// When the drain ends at the latest, since the Unix epoch; nothing while there is none.
    pub(crate) fn drain_deadline(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.levels.drain_deadline.get()).ok()?;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards
            .iter()
            .map(|shard| counter(shard).load(Acquire))
            .sum()
    }

    pub(crate) fn received(&self) -> u64 {
        self.sum(|shard| &shard.received)
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.sum(|shard| &shard.delivered)
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.sum(|shard| &shard.dropped[reason as usize])
    }

    pub(crate) fn received_from_cluster(&self) -> u64 {
        self.sum(|shard| &shard.cluster_received)
    }

    pub(crate) fn sent_to_cluster(&self) -> u64 {
        self.sum(|shard| &shard.cluster_sent)
    }

    /// The text exposition, version 0.0.4. Both balances are read in the order in which a message
    /// and a connection go backwards (ended, held, begun), so what is under way shows as a gap of
    /// more than zero and never of less.
    pub fn scrape(&self, stats: impl FnOnce() -> DirectoryStats) -> String {
        let mut families = self.ended.gather();
        let delivered = self.delivered();
        let dropped = DropReason::ALL.map(|reason| (reason.as_str(), self.dropped(reason)));
        let sent_to_cluster = self.sent_to_cluster();
        fence(SeqCst);
        let stats = stats();
        fence(SeqCst);
        let received = self.received();
        let received_from_cluster = self.received_from_cluster();
        families.extend(self.registry.gather());
        families.extend([
            counter(
                "switchboard_messages_received_total",
                "Messages that were decoded.",
                vec![(None, received)],
            ),
            counter(
                "switchboard_messages_delivered_total",
                "Messages written and flushed to their recipient's socket.",
                vec![(None, delivered)],
            ),
            counter(
                "switchboard_messages_dropped_total",
                "Messages that were not delivered.",
                dropped
                    .map(|(reason, count)| (Some(("reason", reason)), count))
                    .to_vec(),
            ),
            counter(
                "switchboard_cluster_received_total",
                "Messages that came from other nodes, or came back since no node takes them.",
                vec![(None, received_from_cluster)],
            ),
            counter(
                "switchboard_cluster_sent_total",
                "Messages that went to other nodes.",
                vec![(None, sent_to_cluster)],
            ),
            counter(
                "switchboard_socket_read_bytes_total",
                "Bytes read from users' sockets after the handshake.",
                vec![(None, self.sum(|shard| &shard.read_bytes))],
            ),
            counter(
                "switchboard_socket_written_bytes_total",
                "Bytes written to users' sockets after the handshake.",
                vec![(None, self.sum(|shard| &shard.written_bytes))],
            ),
            self.histogram(
                "switchboard_delivery_seconds",
                "From a message's frame being read to its being flushed.",
                |shard| &shard.delivery,
            ),
            self.histogram(
                "switchboard_mailbox_wait_seconds",
                "From a message's frame being read to its being taken from the mailbox.",
                |shard| &shard.wait,
            ),
        ]);
        families.extend(self.process.found());
        families.extend(self.spans());
        families.extend(found(&stats));
        families.extend(stats.link.iter().flat_map(link::found));
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("families that all have a name and a value")
    }

    fn spans(&self) -> [MetricFamily; 2] {
        let lost = |loss: SpanLoss| (Some(("reason", loss.as_str())), self.spans.lost(loss));
        [
            counter(
                "switchboard_trace_spans_exported_total",
                "Spans that the OTLP receiver took.",
                vec![(None, self.spans.exported())],
            ),
            counter(
                "switchboard_trace_spans_dropped_total",
                "Spans that were lost on the way to the OTLP receiver.",
                SpanLoss::ALL.map(lost).to_vec(),
            ),
        ]
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        latency: impl Fn(&Shard) -> &Latency,
    ) -> MetricFamily {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_US.len());
        for (index, bound) in BOUNDS_US.iter().enumerate() {
            cumulative += self.sum(|shard| &latency(shard).buckets[index]);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound));
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        // The last bucket's line is written by the encoder, from the count.
        cumulative += self.sum(|shard| &latency(shard).buckets[BOUNDS_US.len()]);
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(cumulative);
        histogram.set_sample_sum(seconds(self.sum(|shard| &latency(shard).sum_us)));
        let mut metric = proto::Metric::default();
        metric.set_histogram(histogram);
        family(name, help, MetricType::HISTOGRAM, vec![metric])
    }
}

/// The statistics as gauges.
fn found(stats: &DirectoryStats) -> [MetricFamily; 5] {
    [
        gauge(
            "switchboard_connections",
            "Users who are joined.",
            stats.connections,
        ),
        gauge(
            "switchboard_mailbox_messages",
            "Messages in mailboxes and write buffers.",
            stats.mailbox_messages,
        ),
        gauge(
            "switchboard_mailbox_bytes",
            "Bytes of the frames in mailboxes and write buffers.",
            stats.mailbox_bytes,
        ),
        gauge(
            "switchboard_mailbox_reserved_bytes",
            "Bytes that mailboxes have reserved, in steps.",
            stats.mailbox_reserved_bytes,
        ),
        gauge(
            "switchboard_directory_segments",
            "Segments of the user directory.",
            stats.segments,
        ),
    ]
}

pub(super) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("a family's name and labels are constants");
    registry
        .register(Box::new(collector.clone()))
        .expect("every family is registered once");
    collector
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other number; exact to 2^53"
)]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(name: &str, help: &str, values: Vec<(Option<(&str, &str)>, u64)>) -> MetricFamily {
    let metrics = values
        .into_iter()
        .map(|(label, count)| {
            let mut value = proto::Counter::default();
            value.set_value(float(count));
            let mut metric = proto::Metric::default();
            metric.set_counter(value);
            metric.set_label(
                label
                    .into_iter()
                    .map(|(name, value)| pair(name, value))
                    .collect(),
            );
            metric
        })
        .collect();
    family(name, help, MetricType::COUNTER, metrics)
}

fn pair(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(super) fn gauge(name: &str, help: &str, count: u64) -> MetricFamily {
    let mut value = proto::Gauge::default();
    value.set_value(float(count));
    let metric = proto::Metric::from_gauge(value);
    family(name, help, MetricType::GAUGE, vec![metric])
}
