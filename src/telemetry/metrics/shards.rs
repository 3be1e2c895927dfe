//! The counters that every message touches, one set for each worker thread, so that two workers never
//! write to the same cache line.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use prometheus::proto::{self, MetricFamily};

use super::families::{counter, float, histogram};
use super::labels::DropReason;

/// Upper bounds of the latency buckets, microseconds. A relayed message takes tens of microseconds, and
/// above ten seconds a timeout has ended the connection.
pub(super) const BOUNDS_US: [u64; 17] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// The histogram of the time from reading a message to flushing it.
pub(super) const DELIVERY: &str = "switchboard_delivery_seconds";
/// The histogram of the time from reading a message to taking it from the mailbox.
pub(super) const MAILBOX_WAIT: &str = "switchboard_mailbox_wait_seconds";

/// A histogram of durations.
#[derive(Debug, Default)]
pub(super) struct Latency {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Latency {
    /// Counts `count` messages that took `each_us` microseconds.
    pub(super) fn observe(&self, each_us: u64, count: u64) {
        self.buckets[bucket_of(each_us)].fetch_add(count, Relaxed);
        self.sum_us
            .fetch_add(each_us.saturating_mul(count), Relaxed);
    }
}

/// The counters of one worker. The alignment is two cache lines, because x86 fetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Shard {
    pub(super) received: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) dropped: [AtomicU64; DropReason::ALL.len()],
    pub(super) cluster_received: AtomicU64,
    pub(super) cluster_sent: AtomicU64,
    pub(super) delivery: Latency,
    pub(super) wait: Latency,
    /// Counted once a system call, not once a message.
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

/// One shard for each worker thread, after a first one for all other threads.
#[derive(Debug)]
pub(super) struct WorkerShards(Box<[Shard]>);

impl WorkerShards {
    /// Shards for this number of worker threads.
    pub(super) fn new(workers: usize) -> Self {
        Self((0..=workers).map(|_| Shard::default()).collect())
    }

    /// The shard of the current thread.
    pub(super) fn current(&self) -> &Shard {
        // Threads that are not workers, as in tests, share the first shard.
        let index = tokio::runtime::worker_index().map_or(0, |worker| worker + 1);
        self.0.get(index).unwrap_or(&self.0[0])
    }

    /// The sum of a counter over all shards.
    ///
    /// The load acquires what the counters of settled messages release: a reader that sees a message
    /// settled then also sees it received.
    pub(super) fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.0
            .iter()
            .map(|shard| counter(shard).load(Acquire))
            .sum()
    }

    /// Bytes and latencies of sockets.
    pub(super) fn socket_families(&self) -> [MetricFamily; 4] {
        [
            counter(
                "switchboard_socket_read_bytes_total",
                "Bytes read from users' sockets after the upgrade.",
                self.sum(|shard| &shard.read_bytes),
            ),
            counter(
                "switchboard_socket_written_bytes_total",
                "Bytes written to users' sockets after the upgrade.",
                self.sum(|shard| &shard.written_bytes),
            ),
            histogram(
                DELIVERY,
                "Time from reading a message's frame to flushing it to the recipient.",
                self.histogram(|shard| &shard.delivery),
            ),
            histogram(
                MAILBOX_WAIT,
                "Time from reading a message's frame to taking it from the mailbox.",
                self.histogram(|shard| &shard.wait),
            ),
        ]
    }

    /// The sum of a histogram over all shards.
    fn histogram(&self, latency: impl Fn(&Shard) -> &Latency) -> proto::Histogram {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_US.len());
        for (index, bound) in BOUNDS_US.iter().enumerate() {
            cumulative += self.sum(|shard| &latency(shard).buckets[index]);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound));
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        // The encoder writes the line of the last bucket (`+Inf`) from the count.
        cumulative += self.sum(|shard| &latency(shard).buckets[BOUNDS_US.len()]);
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(cumulative);
        histogram.set_sample_sum(seconds(self.sum(|shard| &latency(shard).sum_us)));
        histogram
    }
}

/// The index of the bucket that a duration counts in.
pub(super) fn bucket_of(us: u64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < us)
}

pub(super) fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}
