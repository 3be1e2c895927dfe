//! The router strategy, the first design of the essay: one task owns the users, and joins, leaves and
//! messages reach it through bounded channels. When the channel for messages is full, the sender's session
//! stops reading until there is room; the channel serves waiting senders in order.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use rustc_hash::FxHasher;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use crate::directory::{Client, Message, Receipt, Undeliverable, Wakes, settle_undeliverable};
use crate::identity::{Sender, UserId};
use crate::ledger::InHand;
use crate::telemetry::metrics::Metrics;

/// Messages that the router takes at once. Users are woken once a batch, and a join waits for at most one
/// batch.
const BATCH: usize = 64;

enum Change {
    Join(Arc<Client>),
    Leave(Arc<Client>),
}

/// A message on its way to the router: [`Message`] with a body of its own.
#[derive(Debug)]
pub(super) struct RoutedMessage {
    sender: Sender,
    recipient: UserId,
    body: Box<str>,
    read_at: u64,
    receipt: Option<Box<Receipt>>,
    in_hand: InHand<Arc<Metrics>>,
}

impl RoutedMessage {
    pub(super) fn new(
        recipient: UserId,
        message: Message<'_>,
        in_hand: InHand<Arc<Metrics>>,
    ) -> Self {
        let Message {
            sender,
            body,
            read_at,
            receipt,
        } = message;
        Self {
            sender,
            recipient,
            body: body.into(),
            read_at,
            receipt,
            in_hand,
        }
    }

    /// Calls `f` with the recipient, the message and its account.
    pub(super) fn open(self, f: impl FnOnce(UserId, Message<'_>, InHand<Arc<Metrics>>)) {
        let Self {
            sender,
            recipient,
            body,
            read_at,
            receipt,
            in_hand,
        } = self;
        let message = Message {
            sender,
            body: &body,
            read_at,
            receipt,
        };
        f(recipient, message, in_hand);
    }
}

/// A cheap handle of the router's task, which ends when the last handle is gone.
#[derive(Clone)]
pub(super) struct Router {
    changes: mpsc::Sender<Change>,
    messages: mpsc::Sender<RoutedMessage>,
    /// Messages in that channel. Its own count would have the room that senders have reserved, too.
    waiting: Arc<AtomicU64>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.messages.max_capacity();
        f.debug_struct("Router")
            .field("queue", &queue)
            .finish_non_exhaustive()
    }
}

/// Room in the router's channel that a user's leave has from its join on, so that a full channel cannot
/// lose it.
pub(super) struct LeavePermit(mpsc::OwnedPermit<Change>);

impl LeavePermit {
    pub(super) fn leave(self, client: Arc<Client>) {
        self.0.send(Change::Leave(client));
    }
}

impl Router {
    /// A router for up to `users` users and `queue` waiting messages, and the task to run for it.
    /// Messages for recipients that are not connected here go `elsewhere`.
    pub(super) fn new(
        users: usize,
        queue: usize,
        elsewhere: impl FnMut(RoutedMessage, &mut Wakes) + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        // One permit for each user's leave, and as many again for joins in progress.
        let permits = users
            .saturating_mul(2)
            .min(tokio::sync::Semaphore::MAX_PERMITS);
        let (changes, changes_rx) = mpsc::channel(permits);
        let (messages, messages_rx) = mpsc::channel(queue);
        let waiting = Arc::new(AtomicU64::new(0));
        let task = run(changes_rx, messages_rx, waiting.clone(), elsewhere);
        let router = Self {
            changes,
            messages,
            waiting,
        };
        (router, task)
    }

    /// Hands a user to the router. Messages that are sent after this has returned find the user.
    pub(super) async fn join(&self, client: Arc<Client>) -> Option<LeavePermit> {
        let permit = self.changes.clone().reserve_owned().await.ok()?;
        self.changes.send(Change::Join(client)).await.ok()?;
        Some(LeavePermit(permit))
    }

    /// Messages that wait for the router.
    pub(super) fn waiting(&self) -> u64 {
        // A router that has failed has dropped all of them.
        if self.messages.is_closed() {
            return 0;
        }
        self.waiting.load(Relaxed)
    }

    pub(super) fn sink(&self) -> RouterSink {
        RouterSink {
            messages: PollSender::new(self.messages.clone()),
            waiting: self.waiting.clone(),
            has_room: false,
        }
    }
}

/// One sender's way to the router.
pub(super) struct RouterSink {
    messages: PollSender<RoutedMessage>,
    waiting: Arc<AtomicU64>,
    /// Room was found and is not used yet.
    has_room: bool,
}

impl RouterSink {
    /// Waits for room for one message.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Fails only if the router is gone. Sending then settles the message.
        let _closed = ready!(self.messages.poll_reserve(cx)).is_err();
        self.has_room = true;
        Poll::Ready(())
    }

    /// Gives back room that was found and not used. A wait for room goes on.
    pub(super) fn release(&mut self) {
        if std::mem::take(&mut self.has_room) {
            self.messages.abort_send();
        }
    }

    /// Gives back room and stops a wait for it.
    pub(super) fn close(&mut self) {
        self.has_room = false;
        self.messages.abort_send();
    }

    /// Sends into the room that [`RouterSink::poll_ready`] has found.
    pub(super) fn send(&mut self, routed: RoutedMessage) {
        self.has_room = false;
        self.waiting.fetch_add(1, Relaxed);
        if let Err(refused) = self.messages.send_item(routed)
            && let Some(routed) = refused.into_inner()
        {
            self.waiting.fetch_sub(1, Relaxed);
            settle_undeliverable(
                routed.in_hand,
                routed.receipt,
                Undeliverable::Offline,
                &mut Wakes::default(),
            );
        }
    }
}

type Users = HashMap<UserId, Arc<Client>, BuildHasherDefault<FxHasher>>;

async fn run(
    mut changes: mpsc::Receiver<Change>,
    mut messages: mpsc::Receiver<RoutedMessage>,
    waiting: Arc<AtomicU64>,
    mut elsewhere: impl FnMut(RoutedMessage, &mut Wakes),
) {
    let mut users = Users::default();
    let mut batch = Vec::with_capacity(BATCH);
    let mut wakes = Wakes::default();
    loop {
        tokio::select! {
            // No return on `None`: messages may still be in their channel.
            Some(change) = changes.recv() => apply(&mut users, change),
            count = messages.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return;
                }
                // Before they are in a mailbox, so that a scrape counts none of them twice.
                waiting.fetch_sub(count as u64, Relaxed);
                // A user that joined before one of these messages was sent is in the other channel by
                // now. Without this, the message would not find it.
                while let Ok(change) = changes.try_recv() {
                    apply(&mut users, change);
                }
                for routed in batch.drain(..) {
                    match users.get(&routed.recipient) {
                        Some(client) => routed.open(|_, message, in_hand| {
                            client.push(message, in_hand, &mut wakes);
                        }),
                        None => elsewhere(routed, &mut wakes),
                    }
                }
                wakes.wake();
            }
        }
    }
}

fn apply(users: &mut Users, change: Change) {
    match change {
        // The joins of two clients of one id may arrive in the other order. The earlier client is
        // replaced by then, so it is not open.
        Change::Join(client) => {
            if client.is_open() {
                users.insert(client.id(), client);
            }
        }
        Change::Leave(client) => {
            if users
                .get(&client.id())
                .is_some_and(|registered| Arc::ptr_eq(registered, &client))
            {
                users.remove(&client.id());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Overflow;
    use crate::directory::{Budget, Command, MailboxBounds};
    use crate::identity::{ResumptionId, UserIdentity};
    use crate::ledger::LedgerTotals;
    use crate::protocol::Dialect;

    fn client(id: u64, metrics: &Arc<Metrics>) -> Arc<Client> {
        let bounds = Arc::new(MailboxBounds {
            messages: 8,
            bytes: 1024,
            max_age: Duration::MAX,
            overflow: Overflow::DropNewest,
            budget: Budget::new(4096),
        });
        let identity = UserIdentity {
            id: UserId::new(id).unwrap(),
            resumption_id: ResumptionId::from(0),
        };
        let metrics = metrics.clone();
        Arc::new(Client::new(identity, Dialect::Bare, None, bounds, metrics))
    }

    fn routed(recipient: &Client, metrics: &Arc<Metrics>) -> RoutedMessage {
        let message = Message {
            sender: Sender::SYSTEM,
            body: "\"hi\"",
            read_at: 0,
            receipt: None,
        };
        let in_hand = InHand::receive(&**metrics).carry(metrics.clone());
        RoutedMessage::new(recipient.id(), message, in_hand)
    }

    fn held(client: &Client) -> u32 {
        client.stats().queue_messages
    }

    /// The router finds a join and a message in two channels at once and may take either first. With 64
    /// tries a message overtakes the join at least once.
    #[tokio::test]
    async fn a_message_finds_a_user_that_joined_before_it_was_sent() {
        let metrics = Arc::new(Metrics::new(1));
        for _ in 0..64 {
            let (router, task) = Router::new(2, 8, |routed, _| {
                panic!("the recipient of {routed:?} is connected")
            });
            let mut sink = router.sink();
            let recipient = client(2, &metrics);
            let permit = router.join(recipient.clone()).await.unwrap();
            std::future::poll_fn(|cx| sink.poll_ready(cx)).await;
            sink.send(routed(&recipient, &metrics));
            drop((router, sink, permit));
            task.await;
            assert_eq!(held(&recipient), 1);
        }
    }

    /// A panic of the router's task drops what waits for it.
    #[tokio::test]
    async fn messages_of_a_router_that_has_failed_are_counted_once() {
        let metrics = Arc::new(Metrics::new(1));
        let (router, task) = Router::new(1, 8, |_, _| ());
        let mut sink = router.sink();
        let recipient = client(2, &metrics);
        for failed in [None, Some(task)] {
            std::future::poll_fn(|cx| sink.poll_ready(cx)).await;
            sink.send(routed(&recipient, &metrics));
            let totals = LedgerTotals::read(&metrics, || router.waiting());
            assert_eq!((totals.mailbox, totals.gap()), (totals.received, 0));
            drop(failed);
        }
        let totals = LedgerTotals::read(&metrics, || router.waiting());
        assert_eq!((totals.received, totals.dropped, totals.gap()), (2, 2, 0));
    }

    /// Of two clients of one id, the later may reach the router first.
    #[tokio::test]
    async fn a_replaced_client_does_not_come_back() {
        let metrics = Arc::new(Metrics::new(1));
        let (router, task) = Router::new(3, 8, |routed, _| {
            panic!("the recipient of {routed:?} is connected")
        });
        let (earlier, later) = (client(2, &metrics), client(2, &metrics));
        earlier.on_replaced(Command::taken_over());
        let later_permit = router.join(later.clone()).await.unwrap();
        let earlier_permit = router.join(earlier.clone()).await.unwrap();
        earlier_permit.leave(earlier.clone());
        let mut sink = router.sink();
        std::future::poll_fn(|cx| sink.poll_ready(cx)).await;
        sink.send(routed(&later, &metrics));
        drop((router, sink, later_permit));
        task.await;
        assert_eq!((held(&earlier), held(&later)), (0, 1));
    }

    /// The leave of an earlier connection does not remove the user's newer one.
    #[tokio::test]
    async fn a_replaced_clients_leave_removes_no_other() {
        let metrics = Arc::new(Metrics::new(1));
        let (router, task) = Router::new(3, 8, |routed, _| {
            panic!("the recipient of {routed:?} is connected")
        });
        let (replaced, recipient) = (client(2, &metrics), client(2, &metrics));
        let replaced_permit = router.join(replaced.clone()).await.unwrap();
        let permit = router.join(recipient.clone()).await.unwrap();
        replaced_permit.leave(replaced.clone());
        let mut sink = router.sink();
        std::future::poll_fn(|cx| sink.poll_ready(cx)).await;
        sink.send(routed(&recipient, &metrics));
        drop((router, sink, permit));
        task.await;
        assert_eq!((held(&replaced), held(&recipient)), (0, 1));
    }
}
