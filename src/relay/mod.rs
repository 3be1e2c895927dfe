//! The product in two verbs: join a user, and send a message. The directory strategy and the router
//! strategy both stand behind them. A message carries its own settlement through either.

mod membership;
mod reserve;
mod router;
mod shared;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::cluster::{Cluster, Unready};
use crate::directory::{Client, Directory, MailboxBounds, Message, Receipt, Wakes};
use crate::id_file::IdFile;
use crate::identity::{Sender, Sequence, Subject, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::{Dialect, Status, close_code};
use crate::telemetry::metrics::{CloseCode, DirectoryStats, Initiator, Metrics};
use crate::telemetry::trace_context::TraceHeaders;
use crate::telemetry::traces::Traces;
pub use membership::Membership;
use reserve::{ReserveError, ReservedId};
use router::{RoutedMessage, Router};
use shared::{RelayShared, UserPermit, send_elsewhere};

/// The relay: a cheap handle.
#[derive(Clone, Debug)]
pub struct Relay {
    shared: Arc<RelayShared>,
}

/// What a relay is built from.
#[derive(Debug)]
pub struct Dependencies {
    /// The limits of mailboxes.
    pub bounds: MailboxBounds,
    /// The most users, upgrades in progress included.
    pub users_max: usize,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Decides which messages are traced.
    pub traces: Arc<Traces>,
    /// The connected users: none yet.
    pub directory: Directory,
    /// The other nodes, which deliver into the same directory.
    pub cluster: Option<Cluster>,
    /// Keeps ids across a restart. Not used with other nodes, which lease ids.
    pub id_file: Option<Arc<IdFile>>,
}

/// A message that no connected user sends: an operator's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Submission<'a> {
    /// The author's id, or [`Sender::SYSTEM`].
    pub(crate) sender: Sender,
    /// The recipient's id.
    pub(crate) recipient: UserId,
    /// The text, as a JSON string literal.
    pub(crate) body: &'a str,
    /// When it was read, microseconds of the app's clock.
    pub(crate) read_at: u64,
}

/// Why a user cannot join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// `limits.connections` is reached.
    #[error("the server is full")]
    Full,
    /// No new id is left.
    #[error("no id is left")]
    NoId,
    /// The id cannot be registered with the other nodes now.
    #[error("the cluster is away")]
    Unavailable,
}

/// A connection that counts as opened before its client is in the directory, so that no scrape finds more connections
/// there than were opened. Drop counts it as closed: its user has not joined.
struct OpenedConnection<'a>(Option<&'a Metrics>);

impl<'a> OpenedConnection<'a> {
    fn count(metrics: &'a Metrics) -> Self {
        metrics.connection_opened();
        Self(Some(metrics))
    }

    /// From here on, its membership counts the end.
    fn joined(mut self) {
        self.0 = None;
    }
}

impl Drop for OpenedConnection<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            let code = CloseCode::Code(close_code::TRY_AGAIN);
            metrics.connection_closed(Initiator::Server, code);
        }
    }
}

impl From<ReserveError> for JoinError {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::NoId => Self::NoId,
            // An id that was not new is not asked for here.
            ReserveError::InUse | ReserveError::Unavailable => Self::Unavailable,
        }
    }
}

impl Dependencies {
    /// The dependencies of a relay without other nodes.
    pub fn alone(
        bounds: MailboxBounds,
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
            id_file: None,
        }
    }
}

impl Relay {
    /// A relay without other nodes, in the directory strategy, for up to `users_max` users, upgrades in
    /// progress included.
    pub fn new(
        bounds: MailboxBounds,
        users_max: usize,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
    ) -> Self {
        Self::of(Dependencies::alone(bounds, users_max, metrics, traces))
    }

    /// A relay in the directory strategy.
    pub fn of(dependencies: Dependencies) -> Self {
        Self::with_router(dependencies, None)
    }

    /// A relay in the router strategy, and the router's task, which has to run for as long as the relay.
    /// Up to `queue` messages wait for the task.
    pub fn routed(
        dependencies: Dependencies,
        queue: usize,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let cluster = dependencies.cluster.clone();
        let elsewhere = move |routed: RoutedMessage, wakes: &mut Wakes| {
            routed.open(|recipient, message, in_hand| {
                send_elsewhere(cluster.as_ref(), recipient, message, in_hand, wakes);
            });
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
            id_file,
        } = dependencies;
        let sequence = match &cluster {
            Some(cluster) => cluster.sequence(),
            None => Sequence::local(id_file.as_ref().map_or(1, |id_file| id_file.first())),
        };
        Self {
            shared: Arc::new(RelayShared {
                directory,
                cluster,
                router,
                metrics,
                traces,
                bounds: Arc::new(bounds),
                sequence,
                id_file,
                users: AtomicUsize::new(0),
                users_max,
                emptied: Notify::new(),
                started: Instant::now(),
                started_at: SystemTime::now(),
            }),
        }
    }

    /// Whether no user may join now.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// Registers a user: its messages queue from now on. The user leaves when the membership is dropped.
    /// `subject` is that of its token.
    ///
    /// With `resume` the user gets that id back, from wherever in the cluster it is. It gets a new id without it, or
    /// where another user has the earlier one.
    pub async fn join(
        &self,
        dialect: Dialect,
        subject: Option<Subject>,
        resume: Option<UserIdentity>,
    ) -> Result<Membership, JoinError> {
        let shared = &self.shared;
        let permit = UserPermit::take(shared).ok_or(JoinError::Full)?;
        let resumed = match resume {
            Some(identity) => match ReservedId::take_back(shared, identity).await {
                Ok(reserved) => Some(reserved),
                Err(ReserveError::InUse) => None,
                Err(error) => return Err(error.into()),
            },
            None => None,
        };
        let mut reserved = match resumed {
            Some(reserved) => reserved,
            None => ReservedId::next(shared).await?,
        };
        let opened = OpenedConnection::count(&shared.metrics);
        let client = loop {
            match self.register(dialect, subject.as_ref(), &reserved) {
                Some(client) => break client,
                // A user of another resumption id has the id: it holds the resumed one, or it has just resumed the
                // new one.
                None => reserved = ReservedId::next(shared).await?,
            }
        };
        opened.joined();
        let ReservedId { registration, .. } = reserved;
        let mut membership = Membership::new(client, permit, registration);
        if let Some(id_file) = &shared.id_file {
            // The user learns its id only after this, so no crash can leave it with an id that is given again.
            id_file.covers(membership.client().id()).await;
        }
        if let Some(router) = &shared.router {
            let leave_permit = router.join(membership.client().clone()).await;
            membership.route_by(leave_permit, router.sink());
        }
        Ok(membership)
    }

    /// Puts a client with a reserved id into the directory. `None` where another user has the id.
    fn register(
        &self,
        dialect: Dialect,
        subject: Option<&Subject>,
        reserved: &ReservedId,
    ) -> Option<Arc<Client>> {
        let shared = &self.shared;
        let identity = reserved.identity;
        let client = shared.client(identity, dialect, subject.cloned());
        if !shared.directory.join(&client) {
            return None;
        }
        // Another connection may have got the id before the client was in the directory, where its end would have
        // been told.
        let registration = reserved.registration.as_ref();
        if let Some(end) = registration.and_then(|registration| registration.seated()) {
            shared.directory.revoke(identity, end);
        }
        Some(client)
    }

    /// Sends a message of no connected user, as soon as there is room for it. The relay settles it from
    /// then on, in every case. The channel tells the outcome.
    pub(crate) async fn submit(&self, submission: Submission<'_>) -> oneshot::Receiver<Status> {
        let Submission {
            sender,
            recipient,
            body,
            read_at,
        } = submission;
        let shared = &self.shared;
        let mut sink = shared.router.as_ref().map(Router::sink);
        if let Some(sink) = &mut sink {
            poll_fn(|cx| sink.poll_ready(cx)).await;
        }
        let in_hand = InHand::receive(&*shared.metrics);
        // Without the quotes of the literal.
        let trace = shared
            .traces
            .message(TraceHeaders::default(), Some(body.len() - 2));
        let (receipt, outcome) = Receipt::to_task(trace);
        let message = Message {
            sender,
            body,
            read_at,
            receipt: Some(receipt),
        };
        match &mut sink {
            Some(sink) => {
                let in_hand = in_hand.carry(shared.metrics.clone());
                sink.send(RoutedMessage::new(recipient, message, in_hand));
            }
            None => shared.deliver(recipient, message, in_hand, &mut Wakes::default()),
        }
        outcome
    }

    /// Counts users, and the messages and bytes in mailboxes, and the messages on their way to the router and to other
    /// nodes.
    pub fn stats(&self) -> DirectoryStats {
        let link = self.shared.cluster.as_ref().map(Cluster::stats);
        let local = self.shared.directory.stats();
        // Read last: what has left the router by now may not be in the numbers above, and is in none of them twice.
        let waiting = self.shared.router.as_ref().map_or(0, Router::waiting);
        let queued = link.map_or(0, |link| link.queue_messages);
        DirectoryStats {
            mailbox_messages: local.mailbox_messages + waiting + queued,
            mailbox_reserved_bytes: self.shared.bounds.budget.used(),
            link,
            ..local
        }
    }

    /// Whether the cluster lets new users in.
    pub(crate) fn ready(&self) -> Result<(), Unready> {
        self.shared.cluster.as_ref().map_or(Ok(()), Cluster::ready)
    }

    /// Waits until there is no user, upgrades in progress included.
    pub(crate) async fn emptied(&self) {
        loop {
            // Created before the count is read, so that the last user's leave between the two is not
            // missed: `notify_waiters` reaches futures that exist.
            let emptied = self.shared.emptied.notified();
            if self.users() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Users, upgrades in progress included.
    pub fn users(&self) -> usize {
        self.shared.users()
    }

    /// When the user of a client joined, to the second.
    pub(crate) fn joined_at(&self, client: &Client) -> SystemTime {
        self.shared.started_at + Duration::from_secs(client.joined_at().into())
    }

    /// What keeps ids across a restart.
    pub(crate) fn id_file(&self) -> Option<&Arc<IdFile>> {
        self.shared.id_file.as_ref()
    }

    /// The connected users.
    pub(crate) fn directory(&self) -> &Directory {
        &self.shared.directory
    }

    /// The counters.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Decides which messages are traced.
    pub(crate) fn traces(&self) -> &Traces {
        &self.shared.traces
    }
}
