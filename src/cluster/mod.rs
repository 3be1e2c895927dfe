//! Past one machine: other nodes, through NATS. A table in NATS says on which node each id is. A message for an id
//! that is not here goes to the node that the table names, which puts it into a mailbox or drops it and never sends
//! it on. The page beside this file has the states, the messages and the faults.
//!
//! ```text
//! relay → queue ── place? ──→ registrar ══ table in NATS
//!           ↓                     ↑
//!        outbound ══ NATS ══ inbound → directory
//! ```
//!
//! The decisions are in `registry`, `queue`, `flow`, `lease` and `waiting`, which do no I/O. One connection is one
//! `link`: it is made, used and given up as a whole, so that nothing which waited in a dead one is sent later.

mod blocks;
mod buckets;
mod envelope;
mod flow;
mod inbound;
mod lease;
mod link;
mod nats;
mod outbound;
mod pace;
mod peers;
mod queue;
mod record;
mod registrar;
mod registration;
mod registry;
mod renewal;
mod routes;
mod shared;
mod unready;
mod waiting;
mod window;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use crate::config;
use crate::directory::{Directory, Message, Wakes};
use crate::identity::{Sequence, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::lifecycle::Shutdown;
use crate::telemetry::metrics::{ClusterStats, Metrics};
use crate::telemetry::traces::Traces;
use envelope::encode_message;
pub use nats::AccessError;
#[cfg(test)]
pub(crate) use nats::model;
use nats::{Access, Nats, NatsClient};
use queue::QueuedMessage;
pub(crate) use registration::Registration;
pub(crate) use registry::Refusal;
use shared::{Shared, micros};
pub use unready::Unready;

/// The other nodes: a cheap handle.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

/// The tasks of a cluster. They end by [`Tasks::finish`], or when this is dropped.
#[derive(Debug)]
pub struct Tasks {
    tracker: Shutdown,
    stop: DropGuard,
}

/// A node that was not heard of for so long, and is owed nothing, is forgotten.
const PEER_FORGOTTEN: Duration = Duration::from_mins(10);
/// Looks in `cluster.outcome_timeout` at what waits.
const TICKS: u32 = 8;

impl Cluster {
    /// Joins the cluster of these settings: the link is made, and made again, by a task. Needs a tokio runtime.
    pub fn join(
        settings: &config::ClusterSettings,
        directory: Directory,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
        epoch: Instant,
    ) -> Result<(Self, Tasks), AccessError> {
        // Read once here, so that a missing file is said at the start.
        let access = Access::new(settings);
        access.read()?;
        let shared = Shared::new(settings, directory, metrics, traces, epoch);
        let nats = NatsClient::new(access, shared.subjects.inbox_prefix());
        Ok(Self::join_over(nats, shared))
    }

    /// Joins over NATS in memory.
    #[cfg(test)]
    pub(crate) fn join_model(
        nats: model::ModelNats,
        settings: &config::ClusterSettings,
        directory: Directory,
        metrics: Arc<Metrics>,
        epoch: Instant,
    ) -> (Self, Tasks) {
        let traces = Arc::new(Traces::off());
        let shared = Shared::new(settings, directory, metrics, traces, epoch);
        Self::join_over(nats, shared)
    }

    /// The number by which other nodes know this one.
    #[cfg(test)]
    pub(crate) fn node(&self) -> u64 {
        self.shared.node.0
    }

    /// Joins by this way to NATS.
    fn join_over(nats: impl Nats, shared: Shared) -> (Self, Tasks) {
        let shared = Arc::new(shared);
        let tracker = shared.tracker.clone();
        tracker.spawn(link::keep(shared.clone(), nats));
        tracker.spawn(tidy(shared.clone()));
        let tasks = Tasks {
            tracker,
            stop: shared.stop.clone().drop_guard(),
        };
        (Self { shared }, tasks)
    }

    /// Whether the files that the settings name can be used, where there are other nodes.
    pub fn check_files(settings: &config::ClusterSettings) -> Result<(), AccessError> {
        if settings.nats_url.is_empty() {
            return Ok(());
        }
        Access::new(settings).read()
    }

    /// Where new users' ids come from.
    pub(crate) fn sequence(&self) -> Sequence {
        Sequence::Leased(self.shared.leases.clone())
    }

    /// Whether a user could be registered now, as far as this node knows.
    pub(crate) fn can_register(&self) -> bool {
        self.shared.registry().has_room(self.shared.now())
    }

    /// Registers a user that is about to be welcomed.
    pub(crate) async fn register(
        &self,
        identity: UserIdentity,
        is_new: bool,
    ) -> Result<Registration, Refusal> {
        Registration::create(self.shared.clone(), identity, is_new).await
    }

    /// Sends a message to a user that is not here. It is settled from here on.
    pub(crate) fn send<M: Deref<Target = Metrics>>(
        &self,
        recipient: UserId,
        message: Message<'_>,
        in_hand: InHand<M>,
        wakes: &mut Wakes,
    ) {
        let shared = &self.shared;
        let (receipt, trace) = match message.receipt {
            Some(receipt) => receipt.without_trace(),
            None => (None, None),
        };
        let queued = QueuedMessage {
            recipient,
            payload: encode_message(recipient, message.sender, message.body),
            receipt,
            trace,
        };
        // Its own statement, so that nothing is settled under the lock.
        let pushed = shared.queue().push(queued, in_hand);
        match pushed {
            Ok(()) => wakes.add(shared.publishable.notify()),
            Err((status, queued)) => queued.settle(status, wakes),
        }
    }

    /// Whether this node should get new users.
    pub fn ready(&self) -> Result<(), Unready> {
        let shared = &self.shared;
        let has_no_id = shared.leases.unspent() == 0;
        if has_no_id || (shared.settings.required && shared.is_long_away()) {
            Err(shared.unready())
        } else {
            Ok(())
        }
    }

    /// The link and what waits at it.
    pub fn stats(&self) -> ClusterStats {
        let shared = &self.shared;
        let (registrations, joins) = {
            let registry = shared.registry();
            (registry.len() as u64, registry.joins() as u64)
        };
        let queue = shared.queue();
        ClusterStats {
            up: shared.is_up(),
            lease: shared.lease.takes(shared.now()),
            blocks: shared.leases.len() as u64,
            ids_left: shared.leases.unspent(),
            registrations,
            joins,
            routes: queue.routes() as u64,
            queue_messages: queue.messages().into(),
            queue_bytes: queue.bytes() as u64,
            outcomes_pending: shared.waiting().len() as u64,
        }
    }
}

/// From time to time, until the end: gives up what waits for an answer that does not come, tells other nodes what of
/// theirs is still here, and forgets those that are gone.
async fn tidy(shared: Arc<Shared>) {
    let outcome_timeout = shared.settings.outcome_timeout;
    let mut ticks = tokio::time::interval(outcome_timeout / TICKS);
    let mut last_up = shared.now();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = shared.now();
        shared.give_up(now);
        if shared.is_up() {
            last_up = now;
            let before = now.saturating_sub(micros(outcome_timeout / 4));
            if shared.peers.note_held(before) {
                shared.publish();
            }
        } else if now > last_up + micros(outcome_timeout) {
            // Nobody waits for these any more.
            for peer in shared.peers.all().values() {
                drop(peer.take_answers());
            }
        }
        shared
            .peers
            .forget(now.saturating_sub(micros(PEER_FORGOTTEN)));
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("subjects", &self.shared.subjects)
            .finish_non_exhaustive()
    }
}

impl Tasks {
    /// Sends what is queued, answers what has arrived, leaves the cluster, and waits for the end.
    pub async fn finish(self) {
        let Self { tracker, stop } = self;
        stop.disarm().cancel();
        tracker.stop();
        tracker.finished().await;
    }
}
