//! The state machine of a session: its state and its endpoint, and what may end any state, which is a
//! deadline, a command or a panic.
//!
//! What an order to end does in each state. A stronger order replaces a weaker one until the close frame is in the
//! write buffer; a second one could not follow it (RFC 6455 section 5.5.1).
//!
//! | order | strength | in `Open` | in `AwaitingOutcomes` | in `Flushing` | in `Discarding`, `Lingering` |
//! | - | - | - | - | - | - |
//! | a drain, an old connection | `Restart` | `AwaitingOutcomes` | none | none | none |
//! | a fault, a panic, a full mailbox, a newer connection | `Close` | `Flushing` | `Flushing`, if the close is a `Restart` | new code, likewise | none |
//! | the peer's close frame | `Close` | `AwaitingOutcomes` | shortens the wait | none | `Lingering` |
//! | an expired token, an operator | `Revoke` | `Flushing` | `Flushing` | new code, if the close is weaker | none |
//! | the drain's timeout | `Abort` | `Ended` | `Ended` | `Ended` | `Ended` |
//!
//! `AwaitingOutcomes` is left out where no outcome is owed. A new code does not move the deadline.

use std::task::Context;

use super::endpoint::Endpoint;
use super::state::{Close, Open, SessionState};
use super::timers::micros;
use crate::directory::Command;
use crate::net::Transport;
use crate::protocol::close_code;
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator};

pub(super) struct Machine<S> {
    pub(super) state: SessionState,
    pub(super) endpoint: Endpoint<S>,
    has_panicked: bool,
}

impl<S> Machine<S> {
    pub(super) fn new(endpoint: Endpoint<S>, now: u64) -> Self {
        Self {
            state: SessionState::Open(Open::new(endpoint.config(), now)),
            endpoint,
            has_panicked: false,
        }
    }

    /// The time of the next deadline, of the state or of a blocked write.
    pub(super) fn next_deadline(&self) -> u64 {
        self.state.deadline().min(self.endpoint.write_deadline)
    }

    /// Acts on a command.
    pub(super) fn on_command(&mut self, command: Command, now: u64) {
        let strength = command.strength();
        match command {
            Command::Abort => self.state = SessionState::abort(&mut self.endpoint),
            Command::Restart {
                after_ms,
                within_ms,
            } => {
                if let SessionState::Open(open) = &self.state {
                    let within = within_ms.saturating_mul(1000);
                    self.state = open.restart(after_ms, within, &mut self.endpoint, now);
                }
            }
            Command::Close { code, reason } => {
                self.close(Close::new(code, reason).of(strength), now);
            }
            Command::Remove { reason } => {
                let close = Close::new(close_code::REMOVED, reason.to_string());
                self.close(close.of(strength), now);
            }
        }
    }

    /// Begins to close, or replaces a close that is weaker and whose frame is not written yet.
    fn close(&mut self, close: Close, now: u64) {
        let endpoint = &mut self.endpoint;
        match &mut self.state {
            SessionState::Open(_) => self.state = SessionState::close(close, endpoint, now),
            SessionState::AwaitingOutcomes { close: weaker, .. }
                if weaker.strength < close.strength =>
            {
                self.state = SessionState::close(close, endpoint, now);
            }
            SessionState::Flushing { close: weaker, .. } if weaker.strength < close.strength => {
                // The deadline stays: else each order would give a peer that does not read more time.
                endpoint.close_input(Initiator::Server, close.counts_as);
                *weaker = close;
            }
            _ => {}
        }
    }

    /// After a panic in a turn: tries once to close the connection properly. A session that has written its
    /// close frame goes on to its end, because a second one may not follow.
    pub(super) fn recover(&mut self, cx: &Context<'_>) {
        let endpoint = &mut self.endpoint;
        endpoint.context.metrics.session_panicked();
        // A second panic may come from the close itself, which would go on for ever.
        if std::mem::replace(&mut self.has_panicked, true) {
            let code = CloseCode::Code(close_code::INTERNAL);
            self.state = SessionState::end_as(Initiator::Server, code, endpoint);
            return;
        }
        let close = Close::new(close_code::INTERNAL, "internal error");
        let now = endpoint.context.now();
        self.close(close, now);
        cx.waker().wake_by_ref();
    }
}

impl<S: Transport> Machine<S> {
    pub(super) fn on_deadline(&mut self, now: u64) {
        let endpoint = &mut self.endpoint;
        // A relay that was frozen finds the deadline passed, and room in its socket.
        if now >= endpoint.write_deadline && endpoint.io.readiness().write {
            endpoint.write_deadline = now + micros(endpoint.config().write_timeout);
        }
        if now >= endpoint.write_deadline {
            // A session that has begun to close has decided how the connection counts.
            self.state = match self.state {
                SessionState::Open(_) => {
                    SessionState::end_as(Initiator::Server, CloseCode::WriteTimeout, endpoint)
                }
                _ => SessionState::end(),
            };
            return;
        }
        match &mut self.state {
            // A timer may fire early, for a deadline that has moved to a later time: every arm compares again.
            SessionState::Open(open) => {
                if let Some(next) = open.on_deadline(endpoint, now).break_value() {
                    self.state = *next;
                }
            }
            SessionState::AwaitingOutcomes { expires_at, .. } if now >= *expires_at => {
                self.close(Close::expired(), now);
            }
            SessionState::AwaitingOutcomes {
                close, deadline, ..
            } if now >= *deadline => {
                // The outcomes that are still missing stay unknown.
                self.state = SessionState::flush(close.clone(), endpoint, now);
            }
            other if now >= other.deadline() => self.state = SessionState::end(),
            _ => {}
        }
    }
}

impl<S> Drop for Machine<S> {
    fn drop(&mut self) {
        // Runs before the fields are dropped: the senders learn the outcomes while the socket is still open.
        let reason = match self.state {
            SessionState::Ended { drop_reason } => drop_reason,
            // The future was dropped before its end.
            _ => DropReason::Disconnected,
        };
        self.endpoint.leave(reason);
    }
}
