//! The product in two verbs: join a user, and send a message. Both strategies stand behind them, and
//! a message carries its own settlement through either.

mod router;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::cluster::{Cluster, MigratedId, Ownership, Refusal, Unready};
use crate::directory::{Bounds, Client, Directory, Message, QueuedMessage, Receipt, Wakes};
use crate::identity::{ResumptionId, Sender, Sequence, Subject, UserId};
use crate::ledger::InHand;
use crate::protocol::{Dialect, Inbound, Status, close_code};
use crate::telemetry::metrics::{CloseCode, DirectoryStats, DropReason, Initiator, Metrics};
use crate::telemetry::traces::Traces;
use router::{LeavePlace, Port, RoutedMessage, Router};

/// Why nobody more is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// `limits.connections` is reached.
    #[error("the server is full")]
    Full,
    /// There is no id left to give.
    #[error("no id is left")]
    NoId,
}

/// The relay: a cheap handle.
#[derive(Clone, Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// In both strategies the register of who is here, for scrapes and the drain; in one of them
    /// also the way to a recipient.
    directory: Directory,
    /// The way to those who are not here.
    cluster: Option<Cluster>,
    router: Option<Router>,
    metrics: Arc<Metrics>,
    traces: Arc<Traces>,
    bounds: Arc<Bounds>,
    sequence: Sequence,
    users: AtomicUsize,
    users_max: usize,
    /// Told when the last user has left.
    emptied: Notify,
    /// Time zero of the seconds at which users join, by either clock.
    epoch: (Instant, SystemTime),
}

/// A message of nobody who is connected.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// In whose name it is.
    pub sender: Sender,
    /// Whom it is for.
    pub recipient: UserId,
    /// A JSON string literal.
    pub message: &'a str,
    /// When it was read, microseconds of the app's clock.
    pub read_at: u64,
}

/// What a relay is made of.
#[derive(Debug)]
pub struct Dependencies {
    /// The bounds of mailboxes.
    pub bounds: Bounds,
    /// The most users, upgrades in progress included.
    pub users_max: usize,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// What is traced.
    pub traces: Arc<Traces>,
    /// Who is here: nobody yet.
    pub directory: Directory,
    /// The other nodes, which know the same directory.
    pub cluster: Option<Cluster>,
}

impl Dependencies {
    /// Those of a relay without other nodes.
    pub fn alone(
        bounds: Bounds,
        users_max: usize,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
    ) -> Self {
        Self {
            bounds,
            users_max,
            metrics,
            traces,
            directory: Directory::new(),
            cluster: None,
        }
    }
}

impl Relay {
    /// A relay by itself for up to `users_max` users, upgrades in progress included.
    pub fn new(
        bounds: Bounds,
        users_max: usize,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
    ) -> Self {
        Self::of(Dependencies::alone(bounds, users_max, metrics, traces))
    }

    /// A relay of these parts.
    pub fn of(dependencies: Dependencies) -> Self {
        Self::with_router(dependencies, None)
    }

    /// The same by the router strategy, with the router's task, to be run for as long as the relay.
    /// `queue` messages may wait for it.
    pub fn routed(
        dependencies: Dependencies,
        queue: usize,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let cluster = dependencies.cluster.clone();
        let elsewhere = move |routed: RoutedMessage, wakes: &mut Wakes| {
            let message = Message {
                sender: routed.sender,
                body: &routed.message,
                read_at: routed.read_at,
                receipt: routed.receipt,
            };
            let cluster = cluster.as_ref();
            send_elsewhere(cluster, routed.recipient, message, routed.in_hand, wakes);
        };
        let (router, task) = Router::new(dependencies.users_max, queue, elsewhere);
        (Self::with_router(dependencies, Some(router)), task)
    }

    fn with_router(dependencies: Dependencies, router: Option<Router>) -> Self {
        let Dependencies {
            bounds,
            users_max,
            metrics,
            traces,
            directory,
            cluster,
        } = dependencies;
        let sequence = cluster
            .as_ref()
            .map_or_else(Sequence::local, Cluster::sequence);
        Self {
            shared: Arc::new(Shared {
                directory,
                cluster,
                router,
                metrics,
                traces,
                bounds: Arc::new(bounds),
                sequence,
                users: AtomicUsize::new(0),
                users_max,
                emptied: Notify::new(),
                epoch: (Instant::now(), SystemTime::now()),
            }),
        }
    }

    /// Whether there is no room for one more user just now.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.users.load(Relaxed) >= self.shared.users_max
    }

    /// Registers a user: messages for it queue from now on. It leaves when the membership is dropped.
    /// `subject` is whom its token is about.
    ///
    /// The id is a new one, or that of `claim`, which is taken from wherever in the cluster it was, unless
    /// somebody of another resumption id has it.
    pub async fn join(
        &self,
        dialect: Dialect,
        subject: Option<Subject>,
        claim: Option<(UserId, ResumptionId)>,
    ) -> Result<Membership, Refused> {
        let shared = &self.shared;
        let place = Place::take(self).ok_or(Refused::Full)?;
        let (claimed, unclaimed) = match claim {
            Some((id, resumption_id)) => match self.claim(id, resumption_id).await {
                Ok(claimed) => (Some(claimed), None),
                Err(unclaimed) => (None, Some(unclaimed)),
            },
            None => (None, None),
        };
        let (client, migrated) = self.register(dialect, subject.as_ref(), claimed)?;
        let mut membership = Membership {
            ended: (Initiator::Client, CloseCode::Code(ABNORMAL)),
            unclaimed,
            client,
            migrated,
            leave_place: None,
            port: None,
            place,
        };
        if let Some(router) = &shared.router {
            membership.leave_place = router.join(membership.client.clone()).await;
            membership.port = Some(Box::new(router.port()));
        }
        Ok(membership)
    }

    /// Takes an id that somebody comes back with.
    async fn claim(&self, id: UserId, resumption_id: ResumptionId) -> Result<Claimed, Unclaimed> {
        let shared = &self.shared;
        let taken = if let Some(cluster) = &shared.cluster {
            cluster.take_back(id, resumption_id).await
        } else {
            shared.sequence.give_back(id);
            Ok(Ownership::Local)
        };
        let migrated = match taken {
            Ok(Ownership::Local) => None,
            Ok(Ownership::Migrated(migrated)) => Some(migrated),
            Err(Refusal::InUse) => return Err(Unclaimed::InUse),
            Err(Refusal::Unavailable) => return Err(Unclaimed::Unavailable),
        };
        Ok(Claimed {
            relay: self.clone(),
            id,
            resumption_id,
            migrated,
            is_registered: false,
        })
    }

    fn register(
        &self,
        dialect: Dialect,
        subject: Option<&Subject>,
        mut claimed: Option<Claimed>,
    ) -> Result<(Arc<Client>, Option<Box<MigratedId>>), Refused> {
        let shared = &self.shared;
        let mut is_opened = false;
        loop {
            let mut claimed = claimed.take();
            let old = claimed
                .as_ref()
                .map(|claimed| (claimed.id, claimed.resumption_id));
            let new = || Some((shared.sequence.next()?, ResumptionId::new()));
            let Some((id, resumption_id)) = old.or_else(new) else {
                if is_opened {
                    let code = CloseCode::Code(close_code::TRY_AGAIN);
                    shared.metrics.connection_closed(Initiator::Server, code);
                }
                return Err(Refused::NoId);
            };
            // Before the client is there, so that no scrape finds more connections than were opened.
            if !std::mem::replace(&mut is_opened, true) {
                shared.metrics.connection_opened();
            }
            let client = Client::new(
                (id, resumption_id),
                dialect,
                subject.cloned(),
                shared.bounds.clone(),
                shared.metrics.clone(),
            );
            let seconds = shared.epoch.0.elapsed().as_secs();
            let client = Arc::new(client.joined_at(u32::try_from(seconds).unwrap_or(u32::MAX)));
            if shared.directory.join(&client) {
                return Ok((client, claimed.as_mut().and_then(Claimed::registered)));
            }
            // A claim that somebody else holds, or a new id that somebody came back with just now.
            if claimed.is_none() {
                shared.sequence.left(id);
            }
        }
    }

    /// Sends a message of nobody who is connected; it is settled from here on, whatever happens. What
    /// became of it is told as soon as it is known.
    pub async fn post(
        &self,
        Post {
            sender,
            recipient,
            message,
            read_at,
        }: Post<'_>,
    ) -> oneshot::Receiver<Status> {
        let shared = &self.shared;
        let port = match &shared.router {
            None => None,
            Some(router) => {
                let mut port = router.port();
                poll_fn(|cx| port.poll_ready(cx)).await;
                Some(port)
            }
        };
        let in_hand = InHand::receive(&*shared.metrics);
        let trace = shared.traces.message(None, Some(message.len() - 2));
        let (receipt, outcome) = Receipt::to_task(trace);
        if let Some(mut port) = port {
            port.send(RoutedMessage {
                sender,
                recipient,
                message: message.into(),
                read_at,
                receipt: Some(receipt),
                in_hand: in_hand.carry(shared.metrics.clone()),
            });
            return outcome;
        }
        let message = Message {
            sender,
            body: message,
            read_at,
            receipt: Some(receipt),
        };
        self.hand_over(recipient, message, in_hand, &mut Wakes::default());
        outcome
    }

    /// Gives a message to its recipient's client, or sends it elsewhere.
    fn hand_over<M: Deref<Target = Metrics>>(
        &self,
        recipient: UserId,
        message: Message<'_>,
        in_hand: InHand<M>,
        wakes: &mut Wakes,
    ) {
        let shared = &self.shared;
        shared.directory.with(recipient, |client| match client {
            Some(client) => client.push(message, in_hand, wakes),
            None => send_elsewhere(shared.cluster.as_ref(), recipient, message, in_hand, wakes),
        });
    }

    /// Counts users and what their mailboxes hold.
    pub fn stats(&self) -> DirectoryStats {
        let link = self.shared.cluster.as_ref().map(Cluster::stats);
        let here = self.shared.directory.stats();
        DirectoryStats {
            mailbox_messages: here.mailbox_messages + link.map_or(0, |link| link.queue_messages),
            mailbox_reserved_bytes: self.shared.bounds.budget.used(),
            link,
            ..here
        }
    }

    /// Whether new users can be let in, as far as that is for other nodes to say.
    pub fn ready(&self) -> Result<(), Unready> {
        self.shared.cluster.as_ref().map_or(Ok(()), Cluster::ready)
    }

    /// Waits until nobody is here, upgrades in progress included.
    pub async fn emptied(&self) {
        loop {
            let emptied = self.shared.emptied.notified();
            if self.users() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Users, upgrades in progress included.
    pub fn users(&self) -> usize {
        self.shared.users.load(Acquire)
    }

    /// When the user of a client joined, to the second.
    pub(crate) fn joined_at(&self, client: &Client) -> SystemTime {
        self.shared.epoch.1 + Duration::from_secs(client.joined().into())
    }

    /// Who is here.
    pub fn directory(&self) -> &Directory {
        &self.shared.directory
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// What is traced.
    pub fn traces(&self) -> &Traces {
        &self.shared.traces
    }
}

/// How a connection counts that ended without a close frame (RFC 6455 section 7.1.5).
const ABNORMAL: u16 = 1006;

/// Why somebody who came back has another id than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed {
    /// Somebody else has it.
    InUse,
    /// It cannot be had from the node that it belongs to.
    Unavailable,
}

/// An id that somebody has come back with. Dropping it gives it up, unless it was registered.
struct Claimed {
    relay: Relay,
    id: UserId,
    resumption_id: ResumptionId,
    migrated: Option<Box<MigratedId>>,
    is_registered: bool,
}

impl Claimed {
    /// There is a client with the id: whoever has that gives the id up. What goes with it.
    fn registered(&mut self) -> Option<Box<MigratedId>> {
        self.is_registered = true;
        let shared = &self.relay.shared;
        // Another node may have claimed it before the client was there to be found.
        let is_taken = match (&self.migrated, &shared.cluster) {
            (Some(migrated), _) => !migrated.is_current(),
            (None, Some(cluster)) => cluster.is_claimed(self.id),
            (None, None) => false,
        };
        if is_taken {
            shared.directory.evict(self.id, self.resumption_id);
        }
        self.migrated.take()
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if !self.is_registered && self.migrated.is_none() {
            self.relay.shared.sequence.left(self.id);
        }
    }
}

/// One of `limits.connections`, given back by Drop.
#[derive(Debug)]
struct Place(Relay);

impl Place {
    fn take(relay: &Relay) -> Option<Self> {
        let max = relay.shared.users_max;
        relay
            .shared
            .users
            .try_update(Relaxed, Relaxed, |users| (users < max).then(|| users + 1))
            .ok()?;
        Some(Self(relay.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.shared.users.fetch_sub(1, Release) == 1 {
            self.0.shared.emptied.notify_waiters();
        }
    }
}

/// A joined user. Dropping it leaves: what is still queued is settled as dropped, the client is given
/// up, and the connection counts as closed.
pub struct Membership {
    client: Arc<Client>,
    ended: (Initiator, CloseCode),
    unclaimed: Option<Unclaimed>,
    /// Where the id is of no block of this node.
    migrated: Option<Box<MigratedId>>,
    leave_place: Option<LeavePlace>,
    port: Option<Box<Port>>,
    place: Place,
}

impl Membership {
    /// The user's client.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Why it has another id than the one it came back with.
    pub fn unclaimed(&self) -> Option<Unclaimed> {
        self.unclaimed
    }

    /// How the connection will count as closed; without this, as ended by the client with 1006.
    pub fn ended(&mut self, initiator: Initiator, code: CloseCode) {
        self.ended = (initiator, code);
    }

    /// How the connection counts as closed.
    pub fn ending(&self) -> (Initiator, CloseCode) {
        self.ended
    }

    /// Waits until a message can be sent. A user directory always takes one.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.port {
            None => Poll::Ready(()),
            Some(port) => port.poll_ready(cx),
        }
    }

    /// Gives back the room that [`Membership::poll_ready`] has found and no message has used: others
    /// wait for it.
    pub(crate) fn release_room(&mut self) {
        if let Some(port) = &mut self.port {
            port.release();
        }
    }

    /// Nothing will be sent any more: whoever waits for room need not wait behind this.
    pub(crate) fn close_port(&mut self) {
        if let Some(port) = &mut self.port {
            port.close();
        }
        // Where the user has come back elsewhere, messages for it are not for this client any more.
        if !self.client.is_open()
            && let Some(place) = self.leave_place.take()
        {
            place.leave(self.client.clone());
        }
    }

    /// Sends a message, which was read at `read_at` (microseconds of the app's clock). It is settled
    /// from here on, whatever happens.
    pub(crate) fn send(&mut self, inbound: Inbound<'_>, read_at: u64, wakes: &mut Wakes) {
        let Inbound {
            recipient,
            message,
            id,
            traceparent,
        } = inbound;
        let shared = &self.place.0.shared;
        let in_hand = InHand::receive(&*shared.metrics);
        // Without the quotes of the literal.
        let trace = shared.traces.message(traceparent, Some(message.len() - 2));
        let receipt = Receipt::to_user(&self.client, id, trace);
        let sender = self.client.id().into();
        if let Some(port) = &mut self.port {
            let in_hand = in_hand.carry(shared.metrics.clone());
            port.send(RoutedMessage {
                sender,
                recipient,
                message: message.into(),
                read_at,
                receipt,
                in_hand,
            });
            return;
        }
        let message = Message {
            sender,
            body: message,
            read_at,
            receipt,
        };
        self.place.0.hand_over(recipient, message, in_hand, wakes);
    }

    /// Receives a message and drops it at once, telling the sender where it asked.
    pub(crate) fn refuse(
        &self,
        id: Option<&str>,
        reason: DropReason,
        status: Status,
        wakes: &mut Wakes,
    ) {
        let shared = &self.place.0.shared;
        InHand::receive(&*shared.metrics).dropped(reason);
        let trace = shared.traces.message(None, None);
        if let Some(receipt) = Receipt::to_user(&self.client, id, trace) {
            receipt.settle(status, wakes);
        }
    }

    /// Settles what the session has taken and not flushed, and all that is queued.
    pub(crate) fn give_up(
        &self,
        taken: VecDeque<QueuedMessage>,
        reason: DropReason,
        wakes: &mut Wakes,
    ) {
        self.client.leave(taken, reason, wakes);
    }
}

/// Sends a message on whose recipient is not here.
fn send_elsewhere<M: Deref<Target = Metrics>>(
    cluster: Option<&Cluster>,
    recipient: UserId,
    message: Message<'_>,
    in_hand: InHand<M>,
    wakes: &mut Wakes,
) {
    if let Some(cluster) = cluster {
        return cluster.send(recipient, message, in_hand, wakes);
    }
    in_hand.dropped(DropReason::Offline);
    if let Some(receipt) = message.receipt {
        receipt.settle(Status::Offline, wakes);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let shared = &self.place.0.shared;
        self.client.leave(
            VecDeque::new(),
            DropReason::Disconnected,
            &mut Wakes::default(),
        );
        shared.directory.leave(&self.client);
        if self.migrated.is_none() {
            shared.sequence.left(self.client.id());
        }
        if let Some(place) = self.leave_place.take() {
            place.leave(self.client.clone());
        }
        // Behind the client's leave, so that no scrape finds the connection both open and closed.
        let (initiator, code) = self.ended;
        shared.metrics.connection_closed(initiator, code);
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
