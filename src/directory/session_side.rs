//! A client as its own session uses it: what the session takes, settles and gives back. Must not know how others send
//! to the client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;

use super::client::Client;
use super::memory_pressure::SizeClass;
use super::message::{QueuedMessage, settle_dropped};
use super::state::{Accepts, Command, Flushed};
use super::wake::Wakes;
use crate::protocol::{Dialect, Outbound, Status, push_frame};
use crate::telemetry::metrics::DropReason;

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

impl Client {
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
        if state.overflowed > 0 && self.dialect() == Dialect::V1 {
            let count = std::mem::take(&mut state.overflowed).into();
            push_frame(frames, self.dialect(), Outbound::Dropped { count });
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

    /// Accepts nothing more, because its session has written all that it could. The session may still hear a
    /// command while it waits for the end of its connection.
    pub(crate) fn finish(&self) {
        self.state.lock().accepts = Accepts::Nothing;
    }

    /// Accepts no more messages. Queued ones stay and are written.
    pub(crate) fn shut(&self) {
        self.state.lock().accepts = Accepts::Replies;
    }
}
