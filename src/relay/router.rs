//! The essay's first design behind the same two verbs: one task owns the users, and joins, leaves
//! and messages reach it through bounded channels. A message that finds its channel full waits with its
//! sender, which is then not read from; the channel's queue of waiters is fair.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustc_hash::FxHasher;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use crate::directory::{Client, Message, Receipt, Wakes};
use crate::identity::{Sender, UserId};
use crate::ledger::InHand;
use crate::protocol::Status;
use crate::telemetry::metrics::{DropReason, Metrics};

/// Messages that the router takes at once: enough that users are woken once a batch, few enough that
/// a join does not wait for long.
const BATCH: usize = 64;

enum Change {
    Join(Arc<Client>),
    Leave(Arc<Client>),
}

/// A message on its way to the router.
#[derive(Debug)]
pub(crate) struct RoutedMessage {
    pub(crate) sender: Sender,
    pub(crate) recipient: UserId,
    pub(crate) message: Box<str>,
    pub(crate) read_at: u64,
    pub(crate) receipt: Option<Box<Receipt>>,
    pub(crate) in_hand: InHand<Arc<Metrics>>,
}

/// The way to the router: a cheap handle. The task ends when the last one is gone.
#[derive(Clone)]
pub(crate) struct Router {
    changes: mpsc::Sender<Change>,
    messages: mpsc::Sender<RoutedMessage>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

/// The place in the router's channel that a user's leave has from its join on, so that it cannot be
/// lost for want of room.
pub(crate) struct LeavePlace(mpsc::OwnedPermit<Change>);

impl LeavePlace {
    pub(crate) fn leave(self, client: Arc<Client>) {
        self.0.send(Change::Leave(client));
    }
}

impl Router {
    /// A router for up to `users` users and `queue` messages under way, and the task to run for it.
    /// Messages for those who are not here go `elsewhere`.
    pub(crate) fn new(
        users: usize,
        queue: usize,
        elsewhere: impl FnMut(RoutedMessage, &mut Wakes) + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        // One place for each user's leave, and as many more for joins under way.
        let places = users
            .saturating_mul(2)
            .min(tokio::sync::Semaphore::MAX_PERMITS);
        let (changes, changes_rx) = mpsc::channel(places);
        let (messages, messages_rx) = mpsc::channel(queue);
        let task = run(changes_rx, messages_rx, elsewhere);
        (Self { changes, messages }, task)
    }

    /// Hands a user to the router. Messages that are sent after this has returned find it.
    pub(crate) async fn join(&self, client: Arc<Client>) -> Option<LeavePlace> {
        let place = self.changes.clone().reserve_owned().await.ok()?;
        self.changes.send(Change::Join(client)).await.ok()?;
        Some(LeavePlace(place))
    }

    pub(crate) fn port(&self) -> Port {
        Port {
            sender: PollSender::new(self.messages.clone()),
            has_room: false,
        }
    }
}

/// One session's way to send messages.
pub(crate) struct Port {
    sender: PollSender<RoutedMessage>,
    /// Room was found and is not used yet.
    has_room: bool,
}

impl Port {
    /// Waits for room for one message.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // It fails only when the router is gone; sending then settles the message.
        let _closed = ready!(self.sender.poll_reserve(cx)).is_err();
        self.has_room = true;
        Poll::Ready(())
    }

    /// Gives back room that was found and not used; one that is still waited for stays so.
    pub(crate) fn release(&mut self) {
        if std::mem::take(&mut self.has_room) {
            self.sender.abort_send();
        }
    }

    /// Gives back room and stops waiting for it: nothing will be sent any more.
    pub(crate) fn close(&mut self) {
        self.has_room = false;
        self.sender.abort_send();
    }

    /// Sends into the room that [`Port::poll_ready`] has found.
    pub(crate) fn send(&mut self, routed: RoutedMessage) {
        self.has_room = false;
        if let Err(refused) = self.sender.send_item(routed)
            && let Some(routed) = refused.into_inner()
        {
            settle_offline(routed.in_hand, routed.receipt, &mut Wakes::default());
        }
    }
}

fn settle_offline(in_hand: InHand<Arc<Metrics>>, receipt: Option<Box<Receipt>>, wakes: &mut Wakes) {
    in_hand.dropped(DropReason::Offline);
    if let Some(receipt) = receipt {
        receipt.settle(Status::Offline, wakes);
    }
}

type Users = HashMap<UserId, Arc<Client>, BuildHasherDefault<FxHasher>>;

async fn run(
    mut changes: mpsc::Receiver<Change>,
    mut messages: mpsc::Receiver<RoutedMessage>,
    mut elsewhere: impl FnMut(RoutedMessage, &mut Wakes),
) {
    let mut users = Users::default();
    let mut batch = Vec::with_capacity(BATCH);
    let mut wakes = Wakes::default();
    loop {
        tokio::select! {
            // When nobody is left to join or leave, messages may still be under way: no return here.
            Some(change) = changes.recv() => apply(&mut users, change),
            count = messages.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return;
                }
                // A user that joined before one of these was sent is in the other channel by now.
                while let Ok(change) = changes.try_recv() {
                    apply(&mut users, change);
                }
                for routed in batch.drain(..) {
                    match users.get(&routed.recipient) {
                        Some(client) => deliver(client, routed, &mut wakes),
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
        // Of two that took the place one after the other, the later may come here first; by then the
        // earlier is shut.
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

fn deliver(client: &Arc<Client>, routed: RoutedMessage, wakes: &mut Wakes) {
    let RoutedMessage {
        sender,
        recipient: _,
        message,
        read_at,
        receipt,
        in_hand,
    } = routed;
    let message = Message {
        sender,
        body: &message,
        read_at,
        receipt,
    };
    client.push(message, in_hand, wakes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overflow;
    use crate::directory::{Bounds, Budget};
    use crate::identity::ResumptionId;
    use crate::protocol::Dialect;

    fn client(id: u64, metrics: &Arc<Metrics>) -> Arc<Client> {
        let bounds = Arc::new(Bounds {
            messages: 8,
            bytes: 1024,
            overflow: Overflow::DropNewest,
            budget: Budget::new(4096),
        });
        let id = UserId::new(id).unwrap();
        let id = (id, ResumptionId::from(0));
        Arc::new(Client::new(
            id,
            Dialect::Bare,
            None,
            bounds,
            metrics.clone(),
        ))
    }

    fn routed(recipient: &Client, metrics: &Arc<Metrics>) -> RoutedMessage {
        RoutedMessage {
            sender: Sender::SYSTEM,
            recipient: recipient.id(),
            message: "\"hi\"".into(),
            read_at: 0,
            receipt: None,
            in_hand: InHand::receive(&**metrics).carry(metrics.clone()),
        }
    }

    /// The router finds a join and a message in two channels at once and may take either first: often
    /// enough, that a message overtakes the join at least once.
    #[tokio::test]
    async fn a_letter_finds_whoever_had_joined_before_it_was_sent() {
        let metrics = Arc::new(Metrics::new(1));
        for _ in 0..64 {
            let (router, task) =
                Router::new(2, 8, |routed, _| panic!("{routed:?} is for somebody here"));
            let mut port = router.port();
            let recipient = client(2, &metrics);
            let place = router.join(recipient.clone()).await.unwrap();
            std::future::poll_fn(|cx| port.poll_ready(cx)).await;
            port.send(routed(&recipient, &metrics));
            drop((router, port, place));
            task.await;
            assert_eq!(recipient.held().0, 1);
        }
    }

    /// Of two that took a place one after the other, the later may come to the router first.
    #[tokio::test]
    async fn whoever_has_given_way_does_not_come_back() {
        let metrics = Arc::new(Metrics::new(1));
        let (router, task) =
            Router::new(3, 8, |routed, _| panic!("{routed:?} is for somebody here"));
        let (earlier, later) = (client(2, &metrics), client(2, &metrics));
        earlier.give_way();
        let later_place = router.join(later.clone()).await.unwrap();
        let earlier_place = router.join(earlier.clone()).await.unwrap();
        earlier_place.leave(earlier.clone());
        let mut port = router.port();
        std::future::poll_fn(|cx| port.poll_ready(cx)).await;
        port.send(routed(&later, &metrics));
        drop((router, port, later_place));
        task.await;
        assert_eq!((earlier.held().0, later.held().0), (0, 1));
    }

    /// A user that comes back under its id is not taken out by the leave of the connection before.
    #[tokio::test]
    async fn a_strangers_leave_takes_nobody_else_out() {
        let metrics = Arc::new(Metrics::new(1));
        let (router, task) =
            Router::new(3, 8, |routed, _| panic!("{routed:?} is for somebody here"));
        let (stranger, recipient) = (client(2, &metrics), client(2, &metrics));
        let stranger_place = router.join(stranger.clone()).await.unwrap();
        let place = router.join(recipient.clone()).await.unwrap();
        stranger_place.leave(stranger.clone());
        let mut port = router.port();
        std::future::poll_fn(|cx| port.poll_ready(cx)).await;
        port.send(routed(&recipient, &metrics));
        drop((router, port, place));
        task.await;
        assert_eq!((stranger.held().0, recipient.held().0), (0, 1));
    }
}
