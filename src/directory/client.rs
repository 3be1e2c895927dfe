//! One user as everybody else sees it: the mailbox that others fill, the replies that it is owed,
//! and the command to leave. One lock, held for a few lines and never across another client's.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use tokio::sync::oneshot;

use super::mailbox::{Bounds, Mailbox, Message, Pushed, QueuedMessage, Starving};
use super::memory_pressure::LARGE_BYTES;
use super::outcomes::PendingOutcomes;
use crate::config::Overflow;
use crate::identity::{ResumptionId, Subject, UserId};
use crate::ledger::InHand;
use crate::protocol::{Dialect, Outbound, Status, close_code, push_frame};
use crate::telemetry::metrics::{DropReason, Metrics};
use crate::telemetry::traces::Traced;

/// Why a session has to end, as others tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The server drains: write what is queued, then close with 1012.
    Restart {
        /// How long the client is asked to wait before it comes back, milliseconds.
        after_ms: u64,
    },
    /// Close with this code.
    Close {
        /// The WebSocket close code.
        code: u16,
        /// The close frame's reason.
        reason: &'static str,
    },
    /// An operator removes the user: close with 4410.
    Remove {
        /// The close frame's reason.
        reason: Arc<str>,
    },
    /// The drain timed out: end at once.
    Abort,
}

/// Wakers to call when a step is done, so that one step wakes each task once and a woken task finds
/// all that the step brought. Wakes on Drop, so that a panic on the way strands nobody.
#[derive(Debug, Default)]
pub struct Wakes(Vec<Waker>);

impl Wakes {
    pub(crate) fn add(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }

    /// Wakes all, and keeps the room for more.
    pub fn wake(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.wake();
    }
}

/// What a sender named a message: a JSON integer or string, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MessageId {
    Number(i64),
    Text(Box<str>),
}

impl MessageId {
    pub(crate) fn new(literal: &str) -> Self {
        // What does not read back as it came, "-0" for one, is kept as text.
        match literal.parse::<i64>() {
            Ok(number) if itoa::Buffer::new().format(number) == literal => Self::Number(number),
            _ => Self::Text(literal.into()),
        }
    }
}

/// What is owed for one message once it is known what became of it: the outcome to whoever asked, and
/// the end of its trace. Dropping it says `disconnected`.
#[derive(Debug)]
pub struct Receipt {
    to: Option<Addressee>,
    trace: Option<Box<Traced>>,
}

/// Who is told.
#[derive(Debug)]
enum Addressee {
    /// A user who is here, by its own name for the message.
    User(Arc<Client>, MessageId),
    /// The node that a user elsewhere is on, by the node's token for the message.
    Node(Arc<PendingOutcomes>, u64),
    /// A task of this node's that waits for it.
    Task(oneshot::Sender<Status>),
}

impl Receipt {
    /// For a message of a user who is here; nothing is owed for nearly every one.
    pub(crate) fn to_user(
        sender: &Arc<Client>,
        id: Option<&str>,
        trace: Option<Box<Traced>>,
    ) -> Option<Box<Self>> {
        if id.is_none() && trace.is_none() {
            return None;
        }
        let to = id.map(|id| Addressee::User(sender.clone(), MessageId::new(id)));
        Some(Box::new(Self { to, trace }))
    }

    /// For a message that another node has sent here: its answers and its token where it wants one,
    /// which is owed from `now`, microseconds.
    pub(crate) fn to_node(
        outcomes: Option<(Arc<PendingOutcomes>, u64)>,
        trace: Option<Box<Traced>>,
        now: u64,
    ) -> Option<Box<Self>> {
        if outcomes.is_none() && trace.is_none() {
            return None;
        }
        let to = outcomes.map(|(outcomes, token)| {
            outcomes.open(token, now);
            Addressee::Node(outcomes, token)
        });
        Some(Box::new(Self { to, trace }))
    }

    /// For a message of nobody who is connected, with where its outcome comes.
    pub(crate) fn to_task(trace: Option<Box<Traced>>) -> (Box<Self>, oneshot::Receiver<Status>) {
        let (told, outcome) = oneshot::channel();
        let to = Some(Addressee::Task(told));
        (Box::new(Self { to, trace }), outcome)
    }

    /// The trace of the message.
    pub(crate) fn trace(&self) -> Option<&Traced> {
        self.trace.as_deref()
    }

    /// The trace of the message, to go on with.
    pub(crate) fn trace_mut(&mut self) -> Option<&mut Traced> {
        self.trace.as_deref_mut()
    }

    /// Takes the trace out; what is still owed then, if anything.
    pub(crate) fn without_trace(mut self: Box<Self>) -> (Option<Box<Self>>, Option<Box<Traced>>) {
        let trace = self.trace.take();
        (self.to.is_some().then_some(self), trace)
    }

    pub(crate) fn settle(mut self, status: Status, wakes: &mut Wakes) {
        wakes.add(self.tell(status));
    }

    fn tell(&mut self, status: Status) -> Option<Waker> {
        if let Some(trace) = self.trace.take() {
            match status {
                Status::Delivered => trace.delivered(),
                lost => trace.dropped(lost.as_str()),
            }
        }
        match self.to.take()? {
            Addressee::User(client, id) => client.reply(&id, status),
            Addressee::Node(outcomes, token) => outcomes.settle(token, status),
            Addressee::Task(told) => {
                // Whoever waits no longer has said so to its own caller.
                let _gone = told.send(status).is_err();
                None
            }
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(waker) = self.tell(Status::Disconnected) {
            waker.wake();
        }
    }
}

/// What a session has flushed since it was last at its client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushed {
    /// Messages.
    pub messages: u32,
    /// Bytes of their frames.
    pub bytes: usize,
    /// Messages that were received from the user meanwhile.
    pub received: u32,
}

/// A client as the operator sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientStats {
    /// Messages queued, or taken and not flushed, and their bytes.
    pub(crate) queue: (u32, usize),
    /// Messages received from the user, in all; behind `u32::MAX` from 0 again.
    pub(crate) received: u32,
    /// Messages delivered to the user, likewise.
    pub(crate) delivered: u32,
}

/// What a session found at its client.
#[derive(Debug, Default)]
pub struct Found {
    /// Bytes were added to the buffer.
    pub anything: bool,
    /// Of them, messages.
    pub messages: bool,
    /// Outcomes among them.
    pub outcomes: u32,
    /// The command to end, if there is one.
    pub command: Option<Command>,
}

/// One user who is here.
pub struct Client {
    id: UserId,
    resumption_id: ResumptionId,
    dialect: Dialect,
    /// When the user joined, seconds of the relay's clock: what fits beside the dialect.
    joined_at: u32,
    subject: Option<Subject>,
    state: Mutex<ClientState>,
}

/// What the lock guards.
struct ClientState {
    mailbox: Mailbox,
    /// Outcome frames that wait for the socket.
    replies: Vec<u8>,
    outcomes: u32,
    /// Messages dropped for want of room since the last notice.
    overflowed: u32,
    /// Messages received from the user.
    received: u32,
    command: Option<Command>,
    waker: Option<Waker>,
    /// The session has seen all there was and waits to be woken.
    parked: bool,
    /// Among those that are asked for room when there is none.
    noted_as_large: bool,
    accepts: Accepts,
}

/// What a client still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepts {
    /// Messages and replies.
    All,
    /// Replies: the session is about to close.
    Replies,
    /// Nothing: the session is gone.
    Nothing,
}

impl Client {
    /// A client with nothing at it.
    pub fn new(
        (id, resumption_id): (UserId, ResumptionId),
        dialect: Dialect,
        subject: Option<Subject>,
        bounds: Arc<Bounds>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            id,
            resumption_id,
            dialect,
            joined_at: 0,
            subject,
            state: Mutex::new(ClientState {
                mailbox: Mailbox::new(bounds, metrics),
                replies: Vec::new(),
                outcomes: 0,
                overflowed: 0,
                received: 0,
                command: None,
                waker: None,
                parked: false,
                noted_as_large: false,
                accepts: Accepts::All,
            }),
        }
    }

    /// With the time of its user's joining, seconds of the relay's clock.
    pub(crate) fn joined_at(mut self, seconds: u32) -> Self {
        self.joined_at = seconds;
        self
    }

    /// When its user joined, seconds of the relay's clock.
    pub(crate) fn joined(&self) -> u32 {
        self.joined_at
    }

    /// Whose it is.
    pub fn id(&self) -> UserId {
        self.id
    }

    /// Who may take it over: somebody of the same.
    pub fn resumption_id(&self) -> ResumptionId {
        self.resumption_id
    }

    /// What the connection speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whom its token is about: for the operator, and never for other users.
    pub fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    /// Messages held for this user, and their bytes.
    pub(crate) fn held(&self) -> (u32, usize) {
        self.stats().queue
    }

    /// What an operator sees of it.
    pub(crate) fn stats(&self) -> ClientStats {
        let state = self.state();
        ClientStats {
            queue: (state.mailbox.messages(), state.mailbox.bytes()),
            received: state.received,
            delivered: state.mailbox.delivered_in_all(),
        }
    }

    // A panic under the lock would be a fault of ours; the ledger's types keep their balance even
    // then, so the client stays usable for everybody else.
    fn state(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into the mailbox, or settles it otherwise at once.
    pub fn push<M: Deref<Target = Metrics>>(
        self: &Arc<Self>,
        message: Message<'_>,
        in_hand: InHand<M>,
        wakes: &mut Wakes,
    ) {
        if let Some((message, in_hand, needed)) =
            self.try_push(message, in_hand, Starving::Ask, wakes)
        {
            self.ask_for_room(needed, wakes);
            self.try_push(message, in_hand, Starving::Settle, wakes);
        }
    }

    /// Has the fullest mailbox make room for one more message here.
    #[cold]
    fn ask_for_room(&self, needed: usize, wakes: &mut Wakes) {
        let (bounds, fill) = {
            let state = self.state();
            (state.mailbox.bounds().clone(), state.mailbox.bytes())
        };
        bounds.budget.large.relieve(needed, fill, wakes);
    }

    /// Gives the message back where others have to be asked for room first, and how much.
    fn try_push<'a, M: Deref<Target = Metrics>>(
        self: &Arc<Self>,
        message: Message<'a>,
        in_hand: InHand<M>,
        starving: Starving,
        wakes: &mut Wakes,
    ) -> Option<(Message<'a>, InHand<M>, usize)> {
        let mut state = self.state();
        if state.accepts != Accepts::All {
            drop(state);
            in_hand.dropped(DropReason::Offline);
            if let Some(receipt) = message.receipt {
                receipt.settle(Status::Offline, wakes);
            }
            return None;
        }
        let (refused, evicted) = match state.mailbox.push(self.dialect, message, in_hand, starving)
        {
            Pushed::Starved(message, in_hand, needed) => return Some((message, in_hand, needed)),
            Pushed::Queued(evicted) => (None, evicted),
            Pushed::Refused(receipt, evicted) => {
                state.note_overflow(1);
                state.disconnect_if_that_is_the_policy();
                (receipt, evicted)
            }
        };
        state.note_overflow(evicted.len());
        wakes.add(state.unpark());
        let grown = state.mailbox.bytes() >= LARGE_BYTES && !state.noted_as_large;
        if grown {
            state.noted_as_large = true;
            let bounds = state.mailbox.bounds().clone();
            drop(state);
            bounds.budget.large.note(self);
        } else {
            drop(state);
        }
        let evicted = evicted.into_iter().filter_map(|entry| entry.receipt);
        for receipt in evicted.chain(refused) {
            receipt.settle(Status::QueueFull, wakes);
        }
        None
    }

    /// Bytes that the mailbox could give up; nothing if it is no longer large, and not noted as such
    /// from here on.
    pub(super) fn can_give(&self) -> Option<usize> {
        let mut state = self.state();
        if state.mailbox.bytes() < LARGE_BYTES / 2 {
            state.noted_as_large = false;
            return None;
        }
        Some(state.mailbox.queued_bytes())
    }

    /// Drops messages that were not taken, of so many bytes, to make room for others' mailboxes.
    pub(super) fn give(&self, bytes: usize, wakes: &mut Wakes) {
        let mut state = self.state();
        let given = state.mailbox.give(bytes, DropReason::QueueFull);
        state.note_overflow(given.len());
        state.disconnect_if_that_is_the_policy();
        wakes.add(state.unpark());
        drop(state);
        for receipt in given.into_iter().filter_map(|entry| entry.receipt) {
            receipt.settle(Status::QueueFull, wakes);
        }
    }

    /// Queues an outcome for this user. Its place was reserved when the message was read.
    fn reply(&self, id: &MessageId, status: Status) -> Option<Waker> {
        let mut state = self.state();
        if state.accepts == Accepts::Nothing {
            return None;
        }
        let mut number = itoa::Buffer::new();
        let id = match id {
            MessageId::Number(id) => number.format(*id),
            MessageId::Text(id) => id,
        };
        push_frame(
            &mut state.replies,
            self.dialect,
            Outbound::Outcome { id, status },
        );
        state.outcomes += 1;
        state.unpark()
    }

    /// Tells the session to end. Of several that it has not heard yet the first stands, except that `Cut`
    /// goes over all; of those that it hears while it ends only that one counts.
    pub fn command(&self, command: Command) {
        let mut state = self.state();
        if command == Command::Abort || state.command.is_none() {
            state.command = Some(command);
        }
        // Not only where it is parked: a session that waits for its socket has to hear this, too.
        let waker = state.waker.clone();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The session's visit: settles what it flushed, and moves replies and then messages of up to
    /// about `bytes_max` bytes to the ends of its buffers. Where there is nothing to do, registers
    /// to be woken.
    pub fn visit(
        &self,
        flushed: Flushed,
        buffers: (&mut Vec<u8>, &mut VecDeque<QueuedMessage>),
        bytes_max: usize,
        cx: &Context<'_>,
    ) -> Found {
        let (frames, entries) = buffers;
        let mut state = self.state();
        state.note(flushed);
        let mut found = Found {
            command: state.command.take(),
            ..Found::default()
        };
        if !state.replies.is_empty() {
            if frames.capacity() == 0 {
                std::mem::swap(frames, &mut state.replies);
            } else {
                frames.append(&mut state.replies);
                state.replies = Vec::new();
            }
            found.outcomes = std::mem::take(&mut state.outcomes);
            found.anything = true;
        }
        if state.overflowed > 0 && self.dialect == Dialect::V1 {
            let count = std::mem::take(&mut state.overflowed).into();
            push_frame(frames, self.dialect, Outbound::Dropped { count });
            found.anything = true;
        }
        found.messages = state.mailbox.take(frames, entries, bytes_max);
        found.anything |= found.messages;
        state.parked = !found.anything;
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        found
    }

    /// Settles what was flushed, between two visits. The command to leave, if there is one, and what
    /// happens when the mailbox is full.
    pub(crate) fn settle(&self, flushed: Flushed) -> (Option<Command>, Overflow) {
        let mut state = self.state();
        state.note(flushed);
        (state.command.take(), state.mailbox.overflow())
    }

    /// Settles messages that were taken and not flushed, and all that is queued, as dropped; takes
    /// no more messages.
    pub(crate) fn leave(
        &self,
        taken: VecDeque<QueuedMessage>,
        reason: DropReason,
        wakes: &mut Wakes,
    ) {
        let bytes = taken.iter().map(|entry| entry.bytes as usize).sum();
        let count = u32::try_from(taken.len()).expect("mailbox.messages is a u32");
        let mut state = self.state();
        state.accepts = Accepts::Nothing;
        state.parked = false;
        state.waker = None;
        state.replies = Vec::new();
        state.mailbox.dropped(count, bytes, reason);
        let queued = state.mailbox.drop_queued(reason);
        drop(state);
        settle_all(taken.into_iter().chain(queued), reason, wakes);
    }

    /// Somebody of the same resumption id has this client's place: it takes no more messages, and its session
    /// is told to end.
    pub(crate) fn give_way(&self) {
        let mut state = self.state();
        if state.accepts == Accepts::All {
            state.accepts = Accepts::Replies;
        }
        drop(state);
        self.command(Command::Close {
            code: close_code::TAKEN_OVER,
            reason: "taken over",
        });
    }

    /// Whether messages are taken here; not from a while before the session is gone.
    pub(crate) fn is_open(&self) -> bool {
        self.state().accepts == Accepts::All
    }

    /// Takes no more messages; what is queued stays to be written.
    pub(crate) fn shut(&self) {
        self.state().accepts = Accepts::Replies;
    }

    /// Puts back what was taken and not begun to be written, so that it can make room.
    pub(crate) fn put_back(&self, frames: &[u8], entries: VecDeque<QueuedMessage>) {
        self.state().mailbox.put_back(frames, entries);
    }
}

fn settle_all(entries: impl Iterator<Item = QueuedMessage>, reason: DropReason, wakes: &mut Wakes) {
    let status = if reason == DropReason::Draining {
        Status::Draining
    } else {
        Status::Disconnected
    };
    for receipt in entries.filter_map(|entry| entry.receipt) {
        receipt.settle(status, wakes);
    }
}

impl ClientState {
    fn note(&mut self, flushed: Flushed) {
        let Flushed {
            messages,
            bytes,
            received,
        } = flushed;
        if messages > 0 {
            self.mailbox.delivered(messages, bytes);
        }
        self.received = self.received.wrapping_add(received);
    }

    fn note_overflow(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.overflowed = self.overflowed.saturating_add(count);
    }

    fn disconnect_if_that_is_the_policy(&mut self) {
        if self.mailbox.overflow() == Overflow::Disconnect {
            self.command.get_or_insert(Command::Close {
                code: close_code::TRY_AGAIN,
                reason: "reads too slowly",
            });
        }
    }

    fn unpark(&mut self) -> Option<Waker> {
        if std::mem::take(&mut self.parked) {
            self.waker.clone()
        } else {
            None
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.id)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}
