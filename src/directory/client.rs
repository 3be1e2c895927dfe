//! One connected user as others see it: its mailbox, the replies that it is owed, and the command to
//! end. One lock guards all three. It is held for a few lines, and never while another client's is.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};

use super::bounds::MailboxBounds;
use super::mailbox::{Fit, Mailbox, Message, MessageFrame, QueuedMessage, message_cost};
use super::memory_pressure::{Evictable, SizeClass};
use super::receipt::{
    Addressee, MessageId, Receipt, Undeliverable, outcome_bytes, settle_undeliverable,
};
use super::state::{Accepts, ClientState, Command, Flushed};
use super::sync::{ClientGuard, ClientMutex};
use super::wake::Wakes;
use crate::identity::{Subject, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::{Dialect, Outbound, Status, message_frame_bytes, push_frame};
use crate::telemetry::metrics::{DropReason, Metrics};
use crate::telemetry::traces::Traced;

/// One connected user. Its session owns the socket; all others reach the user through this.
pub struct Client {
    identity: UserIdentity,
    dialect: Dialect,
    /// Seconds of the relay's clock. 32 bits, because that much is free beside the dialect.
    joined_at: u32,
    subject: Option<Subject>,
    state: ClientMutex<ClientState>,
}

/// What a session took from its client.
#[derive(Debug, Default)]
pub struct Taken {
    /// Messages were added to the buffers.
    pub messages: bool,
    /// Outcomes that were added to the write buffer.
    pub outcomes: u32,
    /// What these took while they were outstanding.
    pub outcome_bytes: u32,
    /// The command to end, if there is one.
    pub command: Option<Command>,
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
        let trace = message.receipt.as_ref().and_then(|receipt| receipt.trace());
        let traceparent = trace.map(Traced::traceparent);
        let tracestate = trace.and_then(Traced::tracestate);
        let (traceparent, tracestate) = (traceparent.as_deref(), tracestate.as_deref());
        let (dialect, sender, body_bytes) = (self.dialect, message.sender, message.body.len());
        let bytes = message_frame_bytes(dialect, sender, body_bytes, traceparent, tracestate);
        let bytes = u32::try_from(bytes).expect("limits.frame_bytes is far below 4 GiB");
        let frame = MessageFrame {
            dialect,
            traceparent,
            tracestate,
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
    fn move_candidate(self: &Arc<Self>, state: &mut ClientState, class: SizeClass) {
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

    /// Settles what the session has flushed, and moves replies and about a write's worth of messages
    /// to the ends of its buffers. If there is nothing, the session is woken for the next.
    pub fn take(
        &self,
        flushed: Flushed,
        frames: &mut Vec<u8>,
        messages: &mut VecDeque<QueuedMessage>,
        cx: &Context<'_>,
    ) -> Taken {
        let mut state = self.state.lock();
        state.note_flushed(flushed);
        let mut taken = Taken {
            command: state.command.take(),
            ..Taken::default()
        };
        let mut is_empty = true;
        if !state.replies.is_empty() {
            if frames.capacity() == 0 {
                std::mem::swap(frames, &mut state.replies);
            } else {
                frames.append(&mut state.replies);
                state.replies = Vec::new();
            }
            taken.outcomes = std::mem::take(&mut state.outcomes);
            taken.outcome_bytes = std::mem::take(&mut state.outcome_bytes);
            is_empty = false;
        }
        if state.overflowed > 0 && self.dialect == Dialect::V1 {
            let count = std::mem::take(&mut state.overflowed).into();
            push_frame(frames, self.dialect, Outbound::Dropped { count });
            is_empty = false;
        }
        taken.messages = state.mailbox.take(frames, messages);
        // Under the lock that a push takes: a message that comes after this finds `parked` and the
        // waker, so no wake-up is lost between the look into the mailbox and the sleep.
        state.parked = is_empty && !taken.messages;
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        taken
    }

    /// Settles what the session has flushed while it cannot write more. Returns the command to end, if
    /// there is one.
    pub(crate) fn settle(&self, flushed: Flushed) -> Option<Command> {
        let mut state = self.state.lock();
        state.note_flushed(flushed);
        state.command.take()
    }

    /// Puts messages back that were taken and not written, not even in part, so that they can make
    /// room for others.
    pub(crate) fn put_back(&self, frames: &[u8], messages: VecDeque<QueuedMessage>) {
        self.state.lock().mailbox.put_back(frames, messages);
    }

    /// Drops messages that have waited for longer than `mailbox.max_age` at `now`. Returns when to ask
    /// again. Only a session that cannot write asks: all others take at once what comes.
    pub(crate) fn expire(&self, now: u64, wakes: &mut Wakes) -> u64 {
        let mut state = self.state.lock();
        let next_expiry = state.mailbox.next_expiry(now);
        if next_expiry > now {
            return next_expiry;
        }
        let expired = state.mailbox.expire(now);
        state.note_overflow(expired.len());
        let next_expiry = state.mailbox.next_expiry(now);
        drop(state);
        settle_dropped(expired, Status::Expired, wakes);
        next_expiry
    }

    /// Settles messages that were taken and not flushed, and all queued ones, as dropped. Accepts
    /// nothing from here on.
    pub(crate) fn leave(
        self: &Arc<Self>,
        taken: VecDeque<QueuedMessage>,
        reason: DropReason,
        wakes: &mut Wakes,
    ) {
        let mut state = self.state.lock();
        state.accepts = Accepts::Nothing;
        state.parked = false;
        state.waker = None;
        state.replies = Vec::new();
        let queued = state.mailbox.drop_all(&taken, reason);
        if state.size_class != SizeClass::default() {
            self.move_candidate(&mut state, SizeClass::default());
        }
        drop(state);
        let status = if reason == DropReason::Draining {
            Status::Draining
        } else {
            Status::Disconnected
        };
        settle_dropped(taken.into_iter().chain(queued), status, wakes);
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

    /// Accepts nothing more, because its session has written all that it could. The session may still hear a
    /// command while it waits for the end of its connection.
    pub(crate) fn finish(&self) {
        self.state.lock().accepts = Accepts::Nothing;
    }

    pub(crate) fn has_finished(&self) -> bool {
        self.state.lock().accepts == Accepts::Nothing
    }

    /// Accepts no more messages. Queued ones stay and are written.
    pub(crate) fn shut(&self) {
        self.state.lock().accepts = Accepts::Replies;
    }
}

/// Tells the senders of dropped messages. The lock must not be held.
fn settle_dropped(
    dropped: impl IntoIterator<Item = QueuedMessage>,
    status: Status,
    wakes: &mut Wakes,
) {
    let receipts = dropped.into_iter().filter_map(|message| message.receipt);
    receipts.for_each(|receipt| receipt.settle(status, wakes));
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
