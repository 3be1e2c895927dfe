//! What a client's lock guards: its mailbox, the replies that it is owed, and the command to end.

use std::sync::Arc;
use std::task::Waker;

use super::mailbox::Mailbox;
use super::memory_pressure::SizeClass;
use crate::config::Overflow;
use crate::protocol::close_code;

/// Why a session has to end, as others tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The server drains: write what is queued, then close with 1012.
    Restart {
        /// How long the peer is asked to wait before it reconnects, milliseconds.
        after_ms: u64,
        /// How long the session may wait for the outcomes that its user is owed, milliseconds.
        within_ms: u64,
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

/// How strong an order to end is. A stronger order replaces a weaker one that is not carried out yet; of two
/// equal orders the first one stands. The table of what each order does is in `session::machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    /// The user may come back at once, and may wait for its outcomes first: a drain, an old connection.
    Restart,
    /// A fault of the peer or of the relay, a full mailbox, a newer connection of the user, or the peer's own
    /// close frame.
    Close,
    /// The user has lost the right to be here: its token has expired, or an operator has removed it.
    Revoke,
    /// Time is up.
    Abort,
}

impl Command {
    /// A newer connection has the user's id.
    pub(crate) fn taken_over() -> Self {
        Self::Close {
            code: close_code::TAKEN_OVER,
            reason: "taken over",
        }
    }

    pub(crate) fn strength(&self) -> Strength {
        match self {
            Self::Restart { .. } => Strength::Restart,
            Self::Close { .. } => Strength::Close,
            Self::Remove { .. } => Strength::Revoke,
            Self::Abort => Strength::Abort,
        }
    }
}

/// What a session has flushed since it last reported to its client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushed {
    /// Messages.
    pub messages: u32,
    /// Bytes of their frames.
    pub bytes: u32,
    /// Bytes of their receipts.
    pub receipt_bytes: u32,
    /// Messages that were received from the user meanwhile.
    pub received: u32,
}

/// What a client still accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepts {
    /// Messages and replies.
    All,
    /// Replies only: the session is about to close.
    Replies,
    /// Nothing: the session writes nothing more, or is gone.
    Nothing,
}

/// The part of a client that its lock guards.
pub(super) struct ClientState {
    pub(super) mailbox: Mailbox,
    /// Outcome frames that wait for the socket.
    pub(super) replies: Vec<u8>,
    pub(super) outcomes: u32,
    /// What these took while they were outstanding.
    pub(super) outcome_bytes: u32,
    /// Messages dropped for want of room since the last notice.
    pub(super) overflowed: u32,
    /// Messages received from the user.
    pub(super) received: u32,
    pub(super) command: Option<Command>,
    pub(super) waker: Option<Waker>,
    /// The session has taken all there was and waits to be woken.
    pub(super) parked: bool,
    /// The class by which the client is among the eviction candidates.
    pub(super) size_class: SizeClass,
    pub(super) accepts: Accepts,
}

impl ClientState {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            replies: Vec::new(),
            outcomes: 0,
            outcome_bytes: 0,
            overflowed: 0,
            received: 0,
            command: None,
            waker: None,
            parked: false,
            size_class: SizeClass::default(),
            accepts: Accepts::All,
        }
    }

    // Inlined, because most turns have flushed nothing.
    #[inline]
    pub(super) fn note_flushed(&mut self, flushed: Flushed) {
        let Flushed {
            messages,
            bytes,
            receipt_bytes,
            received,
        } = flushed;
        if messages > 0 {
            self.mailbox.delivered(messages, bytes, receipt_bytes);
        }
        self.received = self.received.wrapping_add(received);
    }

    pub(super) fn note_overflow(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.overflowed = self.overflowed.saturating_add(count);
    }

    /// Keeps a command for the session, unless one that is as strong waits for it already.
    pub(super) fn order(&mut self, command: Command) {
        let waiting = self.command.as_ref().map(Command::strength);
        if waiting < Some(command.strength()) {
            self.command = Some(command);
        }
    }

    pub(super) fn disconnect_if_that_is_the_policy(&mut self) {
        if self.mailbox.overflow() == Overflow::Disconnect {
            self.order(Command::Close {
                code: close_code::TRY_AGAIN,
                reason: "reads too slowly",
            });
        }
    }

    /// The waker to call if the session waits for something new, or has a command to hear: a session that
    /// waits for its socket is not parked, and must hear a command all the same. The waker stays registered.
    pub(super) fn unpark(&mut self) -> Option<Waker> {
        if std::mem::take(&mut self.parked) || self.command.is_some() {
            self.waker.clone()
        } else {
            None
        }
    }
}
