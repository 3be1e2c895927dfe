//! Past one machine: other nodes, through NATS. A block of ids is the route: this node listens to one
//! subject for each block that it holds, so a message for an id that is not here is published to the
//! subject of its block, and NATS knows where that leads, or says that it leads nowhere. What comes in is
//! put into a mailbox here or dropped, never sent on.
//!
//! ```text
//! relay → queue → outbound ══ NATS ══ inbound → directory
//!           waiting ← inbound ══ NATS ══ outbound ← answers
//! ```
//!
//! One connection is one `link`: it is made, used and given up as a whole, so that nothing which
//! waited in a dead one is sent later. Between links nothing is queued.

mod claims;
mod envelope;
mod guests;
mod handover;
mod inbound;
mod leases;
mod link;
mod nats;
mod outbound;
mod queue;
mod waiting;
mod window;

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustc_hash::FxHasher;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config;
use crate::directory::{
    Directory, Message, Notifier, PendingOutcomes, Undeliverable, Wakes, settle_undeliverable,
};
use crate::identity::{Blocks, Leases, Sequence, UserId};
use crate::ledger::InHand;
use crate::lifecycle::Shutdown;
use crate::protocol::Status;
use crate::telemetry::metrics::{ClusterStats, LinkMetrics};
use crate::telemetry::metrics::{DropReason, Metrics};
use crate::telemetry::traces::Traces;
use claims::Claims;
use envelope::{Answer, Node, Subjects, encode_message};
use guests::Guests;
pub(crate) use guests::{MigratedId, Ownership};
use handover::Cut;
pub(crate) use handover::Refusal;
use link::Link;
use nats::Access;
pub use nats::AccessError;
use queue::{Parcel, Queue};
use waiting::Waiting;

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

/// Why a node in a cluster should get no new users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// There is no id to give, and the next block is not leased yet.
    #[error("no id is left")]
    NoId,
    /// No server of `cluster.nats_url` answers.
    #[error("nats cannot be reached (cluster.nats_url)")]
    Unreachable,
    /// The server does not take the node's credentials.
    #[error("nats refuses the login (cluster.user, token_file, nkey_file or creds_file)")]
    LoginRefused,
    /// JetStream leases no block.
    #[error("jetstream leases no ids: it is off, or this account may not use it")]
    NoJetStream,
    /// Other nodes have another `cluster.block_size`.
    #[error("the other nodes have another cluster.block_size")]
    BlockSize,
}

struct Shared {
    node: Node,
    settings: config::ClusterSettings,
    subjects: Subjects,
    leases: Arc<Leases>,
    directory: Directory,
    metrics: Arc<Metrics>,
    link_metrics: LinkMetrics,
    traces: Arc<Traces>,
    /// Time zero of the microseconds that messages are stamped with.
    epoch: Instant,
    /// Rung when there is something to publish.
    notifier: Arc<Notifier>,
    queue: Mutex<Queue>,
    /// Who waits for whatever is being published to be out.
    fences: Mutex<Vec<oneshot::Sender<()>>>,
    /// What other nodes owe.
    waiting: Mutex<Waiting>,
    /// What other nodes are owed.
    peers: ArcSwap<Peers>,
    /// Ids of blocks of this node that others have.
    claims: Claims,
    /// Ids of blocks of others that are here.
    guests: Guests,
    /// What has come for each block of this node.
    seen: Mutex<HashMap<u64, Arc<Mutex<Cut>>>>,
    /// The present link, while it is up.
    link: Mutex<Option<Arc<Link>>>,
    /// The cause, while the node is unready.
    unready: Mutex<Unready>,
    /// When the link was lost, microseconds; 0 while it is up.
    away_since: AtomicU64,
    /// The highest block that was ever leased here.
    highest_block: AtomicU64,
    tracker: Shutdown,
    stop: CancellationToken,
}

/// Another node that has sent something here.
#[derive(Debug)]
struct Peer {
    answers: Arc<PendingOutcomes>,
    /// What else the node is to be told: what of its messages is still here, and what was seen.
    notes: Mutex<Vec<Answer>>,
    /// The newest of its links that a message has come by.
    link: AtomicU64,
    /// When it was last heard of, microseconds.
    heard_at: AtomicU64,
}

type Peers = HashMap<Node, Arc<Peer>, BuildHasherDefault<FxHasher>>;

/// What a node has that has not been heard of for so long, and is owed nothing, is forgotten.
const PEER_FORGOTTEN: Duration = Duration::from_mins(10);

impl Cluster {
    /// Joins the cluster of these settings: the link is made, and made again, by a task. Until then
    /// there is no id to give. Needs a tokio runtime.
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
        let shared = Arc::new(Shared::new(settings, directory, metrics, traces, epoch));
        let tracker = shared.tracker.clone();
        tracker.spawn(link::keep(shared.clone(), access));
        tracker.spawn(shared.clone().tidy());
        let tasks = Tasks {
            tracker,
            stop: shared.stop.clone().drop_guard(),
        };
        Ok((Self { shared }, tasks))
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

    /// Sends a message to a user that is not here. It is settled from here on.
    pub(crate) fn send<M: Deref<Target = Metrics>>(
        &self,
        recipient: UserId,
        message: Message<'_>,
        in_hand: InHand<M>,
        wakes: &mut Wakes,
    ) {
        let shared = &self.shared;
        if shared.is_here(recipient) {
            return settle_undeliverable(in_hand, message.receipt, Undeliverable::Offline, wakes);
        }
        let (receipt, trace) = match message.receipt {
            Some(receipt) => receipt.without_trace(),
            None => (None, None),
        };
        let parcel = Parcel {
            recipient,
            payload: encode_message(message.sender, message.body),
            receipt,
            trace,
        };
        // Its own statement, so that nothing is settled under the lock.
        let pushed = shared.queue().push(parcel, in_hand);
        match pushed {
            Ok(()) => wakes.add(shared.notifier.notify()),
            Err((status, parcel)) => parcel.settle(status, wakes),
        }
    }

    /// Whether this node should get new users.
    pub fn ready(&self) -> Result<(), Unready> {
        let shared = &self.shared;
        let has_no_id = shared.leases.unspent() == 0;
        if has_no_id || (shared.settings.required && shared.is_long_away()) {
            Err(*shared
                .unready
                .lock()
                .unwrap_or_else(PoisonError::into_inner))
        } else {
            Ok(())
        }
    }

    /// The link and what waits at it.
    pub fn stats(&self) -> ClusterStats {
        let shared = &self.shared;
        let (queue_messages, queue_bytes) = {
            let queue = shared.queue();
            (queue.messages().into(), queue.bytes() as u64)
        };
        ClusterStats {
            up: shared.is_up(),
            blocks: shared.leases.list().len() as u64,
            ids_left: shared.leases.unspent(),
            outcomes_pending: shared.waiting().len() as u64,
            migrated_ids: shared.guests.len() as u64,
            claims: shared.claims.len() as u64,
            queue_messages,
            queue_bytes,
        }
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

impl Shared {
    fn new(
        settings: &config::ClusterSettings,
        directory: Directory,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
        epoch: Instant,
    ) -> Self {
        let node = Node(fastrand::u64(1..1 << 48));
        let blocks = Blocks::of_size(settings.block_size.into());
        let bounds = queue::Bounds {
            user_messages: settings.user_messages as usize,
            user_bytes: settings.user_bytes,
            total_bytes: settings.queue_bytes,
            block_bytes: settings.in_flight_bytes,
        };
        Self {
            subjects: Subjects::new(&settings.name, node, blocks),
            leases: Arc::new(Leases::new(blocks)),
            directory,
            link_metrics: metrics.with_link(),
            traces,
            epoch,
            notifier: Arc::default(),
            queue: Mutex::new(Queue::new(bounds, blocks, metrics.clone())),
            fences: Mutex::default(),
            waiting: Mutex::new(Waiting::new(settings.outcomes_pending)),
            peers: ArcSwap::default(),
            claims: Claims::new(settings.claims),
            guests: Guests::default(),
            seen: Mutex::default(),
            link: Mutex::default(),
            unready: Mutex::new(Unready::Unreachable),
            node,
            away_since: AtomicU64::new(1),
            highest_block: AtomicU64::new(0),
            tracker: Shutdown::new(),
            stop: CancellationToken::new(),
            metrics,
            settings: settings.clone(),
        }
    }

    /// Microseconds of the app's clock.
    fn now(&self) -> u64 {
        micros(self.epoch.elapsed())
    }

    fn is_up(&self) -> bool {
        self.away_since.load(Ordering::Acquire) == 0
    }

    /// Whether the link has been down for longer than a short outage of NATS. A node that was never linked
    /// has no id to give, and is unready for that reason.
    fn is_long_away(&self) -> bool {
        let since = self.away_since.load(Ordering::Acquire);
        since != 0 && self.now().saturating_sub(since) >= micros(self.settings.unready_after)
    }

    /// Whether nobody else has this id, whoever is here.
    fn is_here(&self, id: UserId) -> bool {
        self.guests.has(id) || (self.leases.holds(id) && self.claims.of(id).is_none())
    }

    /// Whether an id that was elsewhere when it was written to is not any more.
    fn is_back(&self, id: UserId) -> bool {
        // Mostly there are no claims, and nothing of this node's own blocks is sent.
        self.guests.has(id) || (!self.claims.is_empty() && self.is_here(id))
    }

    /// The present link, while it is up.
    fn link(&self) -> Option<Arc<Link>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.clone()
    }

    fn set_link(&self, link: Option<Arc<Link>>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of that number, known from now on.
    fn peer(&self, node: Node) -> Arc<Peer> {
        let known = self.peers.load().get(&node).cloned();
        known.unwrap_or_else(|| self.meet(node))
    }

    #[cold]
    fn meet(&self, node: Node) -> Arc<Peer> {
        let peer = Arc::new(Peer {
            answers: Arc::new(PendingOutcomes::new(self.notifier.clone())),
            notes: Mutex::default(),
            link: AtomicU64::new(0),
            heard_at: AtomicU64::new(self.now()),
        });
        self.peers.rcu(|peers| {
            let mut peers = Peers::clone(peers);
            peers.entry(node).or_insert_with(|| peer.clone());
            peers
        });
        // Another task may have met it first.
        self.peers.load().get(&node).cloned().unwrap_or(peer)
    }

    /// Sets the cause that `/readyz` names while the node is unready.
    fn set_unready(&self, cause: Unready) {
        *self.unready.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// Opens the way out, and closes it again when the guard is dropped: what was queued is dropped
    /// then.
    fn come_up(self: &Arc<Self>, link: &Arc<Link>) -> Up {
        self.set_unready(Unready::NoId);
        self.queue().open();
        self.set_link(Some(link.clone()));
        self.away_since.store(0, Ordering::Release);
        Up(self.clone())
    }

    /// From time to time, until the end: gives up what waits for an answer that does not come, tells
    /// other nodes what of theirs is still here, and forgets those that are gone.
    async fn tidy(self: Arc<Self>) {
        let timeout = self.settings.outcome_timeout;
        let mut ticks = tokio::time::interval(timeout / TICKS);
        let mut last_up = self.now();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = self.now();
            self.give_up(now);
            self.renew_own();
            self.lapse(now);
            if self.is_up() {
                last_up = now;
                self.remind(now.saturating_sub(micros(timeout / 4)));
                let patience = micros(self.settings.link_timeout);
                let unparked = self.queue().unpark(now, patience);
                if unparked && let Some(waker) = self.notifier.notify() {
                    waker.wake();
                }
            } else if now > last_up + micros(timeout) {
                // Nobody waits for these any more.
                for peer in self.peers.load().values() {
                    drop(peer.take_answers());
                }
            }
            self.forget(now.saturating_sub(micros(PEER_FORGOTTEN)));
        }
    }

    /// Settles what has waited until before `now` as unknown.
    fn give_up(&self, now: u64) {
        let expired = self.waiting().expire(now);
        self.link_metrics.outcomes_unknown(expired.len());
        let mut wakes = Wakes::default();
        for receipt in expired {
            receipt.settle(Status::Unknown, &mut wakes);
        }
    }

    fn remind(&self, before: u64) {
        let mut notified = None;
        for peer in self.peers.load().values() {
            let open = peer.answers.open_since(before);
            if !open.is_empty() {
                peer.notes().extend(open.into_iter().map(Answer::Held));
                notified = notified.or(self.notifier.notify());
            }
        }
        if let Some(waker) = notified {
            waker.wake();
        }
    }

    fn forget(&self, before: u64) {
        let is_gone = |peer: &Peer| {
            peer.heard_at.load(Ordering::Relaxed) < before && peer.answers.is_settled()
        };
        if self.peers.load().values().any(|peer| is_gone(peer)) {
            self.peers.rcu(|peers| {
                let mut peers = Peers::clone(peers);
                peers.retain(|_, peer| !is_gone(peer));
                peers
            });
        }
    }
}

/// How often in `cluster.outcome_timeout` it is looked at what waits.
const TICKS: u32 = 8;

impl Peer {
    fn notes(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that the node is to be told.
    fn take_answers(&self) -> Vec<Answer> {
        let mut answers = std::mem::take(&mut *self.notes());
        let settled = self.answers.take().into_iter();
        answers.extend(settled.map(|(token, status)| Answer::Settled(token, status)));
        answers
    }
}

/// While NATS can be reached.
struct Up(Arc<Shared>);

impl Drop for Up {
    fn drop(&mut self) {
        self.0
            .away_since
            .store(self.0.now().max(1), Ordering::Release);
        self.0.set_link(None);
        let parcels = {
            let mut queue = self.0.queue();
            queue.close();
            queue.drop_queued(DropReason::Unavailable)
        };
        let mut wakes = Wakes::default();
        for parcel in parcels {
            parcel.settle(Status::Unavailable, &mut wakes);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overflow;
    use crate::directory::{Budget, Client, MailboxBounds};
    use crate::identity::{ResumptionId, UserIdentity};
    use crate::protocol::Dialect;

    /// A node without a link, which holds block 1.
    pub(super) fn node(change: impl FnOnce(&mut config::ClusterSettings)) -> Arc<Shared> {
        let mut settings = config::Settings::default().cluster;
        change(&mut settings);
        let metrics = Arc::new(Metrics::new(1));
        let traces = Arc::new(Traces::off());
        let shared = Shared::new(&settings, Directory::new(), metrics, traces, Instant::now());
        shared.leases.add(1);
        Arc::new(shared)
    }

    /// Seats a user of a node.
    pub(super) fn client(shared: &Shared, id: UserId, resumption_id: ResumptionId) -> Arc<Client> {
        let bounds = Arc::new(MailboxBounds {
            messages: 8,
            bytes: 1024,
            max_age: Duration::MAX,
            overflow: Overflow::DropNewest,
            budget: Budget::new(4096),
        });
        let metrics = shared.metrics.clone();
        let identity = UserIdentity { id, resumption_id };
        let client = Client::new(identity, Dialect::V1, None, bounds, metrics);
        let client = Arc::new(client);
        assert!(shared.directory.join(&client));
        client
    }
}
