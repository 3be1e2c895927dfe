//! What the tasks of a node share: the state machines behind their locks, and how to wake the tasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::envelope::{Node, Subjects};
use super::lease::NodeLease;
use super::nats::BucketIdentity;
use super::peers::Peers;
use super::queue::{self, Queue};
use super::registry::{Registry, RegistryBounds};
use super::unready::Unready;
use super::waiting::Waiting;
use crate::config;
use crate::directory::{Directory, Notifier, Wakes};
use crate::identity::{Blocks, Leases};
use crate::lifecycle::Shutdown;
use crate::net::backoff::Backoff;
use crate::protocol::Status;
use crate::telemetry::metrics::{LinkMetrics, Metrics};
use crate::telemetry::traces::Traces;

/// The waits between attempts to reach NATS, and to lease a block.
pub(super) const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Links that other nodes have announced and that were not confirmed yet.
const HELLOS_MAX: usize = 1024;

pub(super) struct Shared {
    pub(super) node: Node,
    pub(super) settings: config::ClusterSettings,
    pub(super) subjects: Subjects,
    pub(super) leases: Arc<Leases>,
    pub(super) directory: Directory,
    pub(super) metrics: Arc<Metrics>,
    pub(super) link_metrics: LinkMetrics,
    pub(super) traces: Arc<Traces>,
    /// Time zero of the microseconds of the app's clock.
    epoch: Instant,
    /// Notified when there is something to publish.
    pub(super) publishable: Arc<Notifier>,
    /// Notified when there is something to ask of NATS.
    pub(super) askable: Notifier,
    queue: Mutex<Queue>,
    registry: Mutex<Registry>,
    /// The outcomes that other nodes owe.
    waiting: Mutex<Waiting>,
    /// The outcomes that other nodes are owed.
    pub(super) peers: Peers,
    pub(super) lease: NodeLease,
    /// The number of the present link, or of the last one that was up.
    link: AtomicU64,
    /// When the link was lost, microseconds; 0 while it is up.
    away_since: AtomicU64,
    /// Messages that have come from other nodes.
    arrived: AtomicU64,
    /// The cause that `/readyz` names while the node is unready.
    unready: Mutex<Unready>,
    hellos: Mutex<BTreeMap<Node, u64>>,
    /// The buckets that the entries of this node are in.
    pub(super) buckets: Mutex<Option<[BucketIdentity; 3]>>,
    pub(super) tracker: Shutdown,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        settings: &config::ClusterSettings,
        directory: Directory,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
        epoch: Instant,
    ) -> Self {
        let node = Node(fastrand::u64(1..1 << 48));
        let bounds = queue::Bounds {
            user_messages: settings.user_messages as usize,
            user_bytes: settings.user_bytes,
            total_bytes: settings.queue_bytes,
            node_bytes: settings.in_flight_bytes,
            routes: settings.routes as usize,
            patience: micros(settings.link_timeout),
        };
        let registry = RegistryBounds {
            joins_max: settings.joins as usize,
            join_timeout: micros(join_timeout(settings)),
            renew_after: micros(settings.entry_ttl / 2),
        };
        let publishable = Arc::new(Notifier::default());
        Self {
            node,
            subjects: Subjects::new(&settings.name, node),
            leases: Arc::new(Leases::new(Blocks::of_size(settings.block_size.into()))),
            directory,
            link_metrics: metrics.with_link(),
            traces,
            epoch,
            queue: Mutex::new(Queue::new(bounds, metrics.clone())),
            registry: Mutex::new(Registry::new(node, registry)),
            waiting: Mutex::new(Waiting::new(settings.outcomes_pending)),
            peers: Peers::new(publishable.clone()),
            publishable,
            askable: Notifier::default(),
            lease: NodeLease::default(),
            link: AtomicU64::new(0),
            away_since: AtomicU64::new(1),
            arrived: AtomicU64::new(0),
            unready: Mutex::new(Unready::Unreachable),
            hellos: Mutex::default(),
            buckets: Mutex::default(),
            tracker: Shutdown::new(),
            stop: CancellationToken::new(),
            metrics,
            settings: settings.clone(),
        }
    }

    /// Microseconds of the app's clock.
    pub(super) fn now(&self) -> u64 {
        micros(self.epoch.elapsed())
    }

    pub(super) fn is_up(&self) -> bool {
        self.away_since.load(Ordering::Acquire) == 0
    }

    pub(super) fn set_up(&self, up: bool) {
        let away_since = if up { 0 } else { self.now().max(1) };
        self.away_since.store(away_since, Ordering::Release);
    }

    /// Whether the link has been down for longer than a short outage of NATS. A node that was never linked has no id
    /// to give, and is unready for that reason.
    pub(super) fn is_long_away(&self) -> bool {
        let since = self.away_since.load(Ordering::Acquire);
        since != 0 && self.now().saturating_sub(since) >= micros(self.settings.unready_after)
    }

    pub(super) fn unready(&self) -> Unready {
        *self.unready.lock()
    }

    pub(super) fn set_unready(&self, cause: Unready) {
        *self.unready.lock() = cause;
    }

    pub(super) fn link(&self) -> u64 {
        self.link.load(Ordering::Acquire)
    }

    pub(super) fn set_link(&self, link: u64) {
        self.link.store(link, Ordering::Release);
    }

    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    pub(super) fn note_arrival(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn join_timeout(&self) -> Duration {
        join_timeout(&self.settings)
    }

    pub(super) fn node_timeout(&self) -> u64 {
        micros(self.settings.node_timeout)
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Wakes the task that asks NATS.
    pub(super) fn ask(&self) {
        if let Some(waker) = self.askable.notify() {
            waker.wake();
        }
    }

    /// Wakes the task that publishes.
    pub(super) fn publish(&self) {
        if let Some(waker) = self.publishable.notify() {
            waker.wake();
        }
    }

    /// A node says that this is its link.
    pub(super) fn hello(&self, node: Node, link: u64) {
        let mut hellos = self.hellos.lock();
        if hellos.len() < HELLOS_MAX || hellos.contains_key(&node) {
            hellos.insert(node, link);
        }
        drop(hellos);
        self.ask();
    }

    /// Links that were announced since the last call.
    pub(super) fn take_hellos(&self) -> BTreeMap<Node, u64> {
        std::mem::take(&mut *self.hellos.lock())
    }

    /// Settles outcomes that were to come before `now` as unknown.
    pub(super) fn give_up(&self, now: u64) {
        let expired = self.waiting().expire(now);
        self.link_metrics.outcomes_unknown(expired.len());
        let mut wakes = Wakes::default();
        for receipt in expired {
            receipt.settle(Status::Unknown, &mut wakes);
        }
    }
}

/// How long a user waits to join: one whose node has died is let in when the key of that node is gone.
fn join_timeout(settings: &config::ClusterSettings) -> Duration {
    settings.node_timeout + settings.link_timeout
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
