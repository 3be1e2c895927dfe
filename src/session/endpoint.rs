//! One user's end of the relay, as all states of a session use it: the socket, the membership, and what
//! is on its way to the user. Must not know in which state the session is.

use std::collections::VecDeque;
use std::sync::Arc;

use super::context::{SessionConfig, SessionContext};
use super::frames::FrameIo;
use super::replies::Replies;
use super::timers::{NEVER, micros};
use crate::directory::{Flushed, QueuedMessage, Wakes};
use crate::protocol::{Dialect, Outbound, push_frame};
use crate::relay::Membership;
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator};

/// The longest time that reading pauses for a peer that floods small frames, or that sends on behind
/// the relay's close frame, once a turn has read its share; microseconds.
///
/// To let the turns of others come in between is not enough: a relay that never sleeps waits for its core
/// whenever another program of the machine wants that core.
pub(super) const THROTTLE_MICROS: u64 = 1000;

pub(super) struct Endpoint<S> {
    // Dropped in this order: the socket closes before the user leaves.
    pub(super) io: FrameIo<S>,
    pub(super) membership: Membership,
    pub(super) context: Arc<SessionContext>,
    /// Messages in the write buffer.
    pub(super) in_flight: VecDeque<QueuedMessage>,
    /// What the client has not been told yet.
    pub(super) flushed: Flushed,
    pub(super) replies: Replies,
    /// Until when a blocked write must make progress; [`NEVER`] while none is blocked.
    pub(super) write_deadline: u64,
}

impl<S> Endpoint<S> {
    pub(super) fn new(
        io: FrameIo<S>,
        membership: Membership,
        context: Arc<SessionContext>,
    ) -> Self {
        Self {
            io,
            membership,
            context,
            in_flight: VecDeque::new(),
            flushed: Flushed::default(),
            replies: Replies::default(),
            write_deadline: NEVER,
        }
    }

    pub(super) fn config(&self) -> &SessionConfig {
        &self.context.config
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.membership.client().dialect()
    }

    /// Puts a frame that is owed to no message into the write buffer.
    pub(super) fn push(&mut self, outbound: Outbound<'_>) {
        let dialect = self.dialect();
        push_frame(&mut self.io.output, dialect, outbound);
    }

    /// Puts an error into the write buffer. It counts as a reply, so that reading pauses for a peer that
    /// sends bad messages and does not read the errors.
    pub(super) fn push_error(&mut self, code: &str, detail: &str, id: Option<&str>) {
        self.push_reply(Outbound::Error { code, detail, id });
    }

    /// Puts the answer to a ping into the write buffer. It counts as a reply, as an error does.
    pub(super) fn push_pong(&mut self, id: Option<&str>) {
        self.push_reply(Outbound::Pong { id });
    }

    fn push_reply(&mut self, outbound: Outbound<'_>) {
        let before = self.io.output.len();
        self.push(outbound);
        let bytes = self.io.output.len() - before;
        self.replies.on_pushed(bytes, &self.context.metrics);
    }

    /// Owes the outcome of a message with this id.
    pub(super) fn promise(&mut self, id: &str) {
        self.replies.promise(id, &self.context.metrics);
    }

    /// When a step of a close that begins now has to be done.
    pub(super) fn close_deadline(&self, now: u64) -> u64 {
        now.saturating_add(micros(self.config().close_timeout))
    }

    /// Takes no more messages from the peer; the connection counts as closed by `initiator` with `code`.
    pub(super) fn close_input(&mut self, initiator: Initiator, code: CloseCode) {
        self.membership.ended(initiator, code);
        self.io.discard_input();
        self.membership.stop_sending();
    }

    /// Settles all messages that the user has not got as dropped.
    pub(super) fn leave(&mut self, reason: DropReason) {
        let in_flight = std::mem::take(&mut self.in_flight);
        self.replies.release(&self.context.metrics);
        self.membership
            .client()
            .settle(std::mem::take(&mut self.flushed));
        self.membership
            .client()
            .leave(in_flight, reason, &mut Wakes::default());
    }
}
