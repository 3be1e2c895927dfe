//! One connected user as others see it: its mailbox, the replies that it is owed, and the command to
//! end. One lock guards all three. It is held for a few lines, and never while another client's is.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::task::Waker;

use super::bounds::MailboxBounds;
use super::mailbox::{Fit, Mailbox};
use super::memory_pressure::{Evictable, SizeClass};
use super::message::{Message, MessageFrame, QueuedMessage, message_cost, settle_dropped};
use super::receipt::{
    Addressee, MessageId, Receipt, Undeliverable, outcome_bytes, settle_undeliverable,
};
use super::state::{Accepts, ClientState, Command};
use super::sync::{ClientGuard, ClientMutex};
use super::wake::Wakes;
use crate::identity::{Subject, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::{Dialect, Outbound, Status, message_frame_bytes, push_frame, trace_members};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traced;

/// One connected user. Its session owns the socket; all others reach the user through this.
pub struct Client {
    identity: UserIdentity,
    dialect: Dialect,
    /// Seconds of the relay's clock. 32 bits, because that much is free beside the dialect.
    joined_at: u32,
    subject: Option<Subject>,
    pub(super) state: ClientMutex<ClientState>,
}

/// A client's figures for operators.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientStats {
    /// Messages that are queued, or taken and not flushed.
    pub(crate) queue_messages: u32,
    /// The bytes of their frames.
    pub(crate) queue_bytes: usize,
    /// Messages received from the user; counts from 0 again after `u32::MAX`.
    pub(crate) received: u32,
    /// Messages delivered to the user; counts from 0 again after `u32::MAX`.
    pub(crate) delivered: u32,
}

impl Client {
    /// A client with an empty mailbox.
    pub fn new(
        identity: UserIdentity,
        dialect: Dialect,
        subject: Option<Subject>,
        bounds: Arc<MailboxBounds>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            identity,
            dialect,
            joined_at: 0,
            subject,
            state: ClientMutex::new(ClientState::new(Mailbox::new(bounds, metrics))),
        }
    }

    /// Sets when its user joined, seconds of the relay's clock.
    pub(crate) fn with_joined_at(mut self, seconds: u32) -> Self {
        self.joined_at = seconds;
        self
    }

    /// When its user joined, seconds of the relay's clock.
    pub(crate) fn joined_at(&self) -> u32 {
        self.joined_at
    }

    /// The user's id.
    pub fn id(&self) -> UserId {
        self.identity.id
    }

    /// The user's id, and what tells its owners apart. Only a client of the same identity may replace
    /// this one.
    pub(crate) fn identity(&self) -> UserIdentity {
        self.identity
    }

    /// The dialect that its connection speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The subject of its token. For operators only: other users never see it.
    pub(crate) fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    /// A snapshot of its figures.
    pub(crate) fn stats(&self) -> ClientStats {
        let state = self.state.lock();
        ClientStats {
            queue_messages: state.mailbox.messages(),
            queue_bytes: state.mailbox.bytes() as usize,
            received: state.received,
            delivered: state.mailbox.delivered_in_all(),
        }
    }

    /// The receipt for a message that this user sent. Nothing is owed for nearly every one: `id` is set
    /// where the user asked for an outcome.
    pub(crate) fn receipt(
        self: &Arc<Self>,
        id: Option<&str>,
        trace: Option<Box<Traced>>,
    ) -> Option<Box<Receipt>> {
        let to = id.map(|id| (self.clone() as Arc<dyn Addressee>, MessageId::new(id)));
        Receipt::new(to, trace)
    }

    /// Puts a message into the mailbox, or settles it at once. Wakers go into `wakes`.
    pub fn push<M: Deref<Target = Metrics>>(
        self: &Arc<Self>,
        message: Message<'_>,
        in_hand: InHand<M>,
        wakes: &mut Wakes,
    ) {
        let dialect = self.dialect;
        let trace = match &message.receipt {
            Some(receipt) if dialect == Dialect::V1 => {
                receipt.trace().map_or_else(String::new, members)
            }
            _ => String::new(),
        };
        let bytes = message_frame_bytes(dialect, message.sender, message.body.len(), trace.len());
        let bytes = u32::try_from(bytes).expect("limits.frame_bytes is far below 4 GiB");
        let frame = MessageFrame {
            dialect,
            trace: &trace,
            bytes,
            cost: message_cost(bytes, message.receipt.as_deref()),
        };
        let mut dropped = Vec::new();
        let mut state = self.state.lock();
        if state.accepts != Accepts::All {
            drop(state);
            return settle_undeliverable(in_hand, message.receipt, Undeliverable::Offline, wakes);
        }
        match state.mailbox.reserve(&frame) {
            Fit::Reserved => {}
            Fit::Grown => self.on_grown(&mut state),
            Fit::Full | Fit::OverBudget => {
                match self.make_room(state, &frame, &mut dropped, wakes) {
                    Ok(with_room) => state = with_room,
                    Err(why) => {
                        settle_dropped(dropped, Status::QueueFull, wakes);
                        return settle_undeliverable(in_hand, message.receipt, why, wakes);
                    }
                }
            }
        }
        state.mailbox.append(message, frame, in_hand);
        wakes.add(state.unpark());
        drop(state);
        if !dropped.is_empty() {
            settle_dropped(dropped, Status::QueueFull, wakes);
        }
    }

    /// Makes room for a message that did not fit: first at the cost of fuller mailboxes if the budget of
    /// all is spent, then by the overflow policy. Returns the lock, with the room reserved. Messages that
    /// were dropped go to `dropped`; the caller settles them without the lock, because their receipts may
    /// lock another client, or this one.
    #[cold]
    fn make_room<'a>(
        self: &'a Arc<Self>,
        mut state: ClientGuard<'a, ClientState>,
        frame: &MessageFrame<'_>,
        dropped: &mut Vec<QueuedMessage>,
        wakes: &mut Wakes,
    ) -> Result<ClientGuard<'a, ClientState>, Undeliverable> {
        let mut fit = state.mailbox.reserve(frame);
        while fit == Fit::OverBudget {
            let bounds = state.mailbox.bounds().clone();
            let (needed, floor) = (state.mailbox.missing(frame), state.mailbox.size_class());
            // The eviction locks other clients.
            drop(state);
            let has_room = bounds.budget.evict(needed, floor, wakes);
            state = self.state.lock();
            if state.accepts != Accepts::All {
                return Err(Undeliverable::Offline);
            }
            fit = state.mailbox.reserve(frame);
            if !has_room {
                break;
            }
            // Here another user has used the room meanwhile.
        }
        let has_room = match fit {
            Fit::Reserved | Fit::Grown => true,
            Fit::Full | Fit::OverBudget => state.mailbox.make_room(frame, dropped),
        };
        state.note_overflow(dropped.len());
        if has_room {
            self.on_grown(&mut state);
            return Ok(state);
        }
        state.note_overflow(1);
        // Where others have used up the budget, this user is not to blame.
        if fit == Fit::Full {
            state.disconnect_if_that_is_the_policy();
        }
        wakes.add(state.unpark());
        Err(Undeliverable::Full)
    }

    /// Moves the client among the eviction candidates if its mailbox has reserved more than before.
    fn on_grown(self: &Arc<Self>, state: &mut ClientState) {
        let class = state.mailbox.size_class();
        if class > state.size_class {
            self.move_candidate(state, class);
        }
    }

    #[cold]
    pub(super) fn move_candidate(self: &Arc<Self>, state: &mut ClientState, class: SizeClass) {
        let client: Weak<Self> = Arc::downgrade(self);
        let candidates = &state.mailbox.bounds().budget.candidates;
        candidates.move_entry(client, self.id(), state.size_class, class);
        state.size_class = class;
    }

    /// Tells the session to end. Until the session has heard it, a stronger command may replace it.
    pub fn command(&self, command: Command) {
        let mut state = self.state.lock();
        state.order(command);
        // Parked or not: a session that waits for its socket has to hear a command too.
        let waker = state.waker.clone();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A newer connection has this client's id: it accepts no more messages, and its session is told
    /// to end.
    pub(crate) fn on_replaced(&self, end: Command) {
        let mut state = self.state.lock();
        if state.accepts == Accepts::All {
            state.accepts = Accepts::Replies;
        }
        drop(state);
        self.command(end);
    }

    /// Whether it accepts messages. It stops before its session ends.
    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().accepts == Accepts::All
    }

    pub(crate) fn has_finished(&self) -> bool {
        self.state.lock().accepts == Accepts::Nothing
    }
}

/// What the frame of a traced message says of its trace.
#[cold]
fn members(trace: &Traced) -> String {
    trace_members(&trace.traceparent(), trace.tracestate().as_deref())
}

impl Addressee for Client {
    /// Queues the outcome frame. Its room was reserved when the message was read.
    fn tell(&self, id: &MessageId, status: Status) -> Option<Waker> {
        let mut state = self.state.lock();
        if state.accepts == Accepts::Nothing {
            return None;
        }
        let mut number = itoa::Buffer::new();
        let id = match id {
            MessageId::Number(id) => number.format(*id),
            MessageId::Text(id) => id,
        };
        let outbound = Outbound::Outcome { id, status };
        push_frame(&mut state.replies, self.dialect, outbound);
        state.outcomes += 1;
        state.outcome_bytes += outcome_bytes(id);
        state.unpark()
    }
}

impl Evictable for Client {
    fn evict(self: Arc<Self>, bytes: u32, floor: SizeClass, wakes: &mut Wakes) {
        let mut state = self.state.lock();
        let evicted = state.mailbox.evict(bytes, floor);
        let class = state.mailbox.size_class();
        if class != state.size_class {
            self.move_candidate(&mut state, class);
        }
        if evicted.is_empty() {
            return;
        }
        state.note_overflow(evicted.len());
        wakes.add(state.unpark());
        drop(state);
        settle_dropped(evicted, Status::QueueFull, wakes);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.identity.id)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}
