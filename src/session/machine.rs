//! The state machine of a session: its state and its endpoint, and what may end any state, which is a
//! deadline, a command or a panic.

use std::task::Context;

use super::endpoint::Endpoint;
use super::state::{Close, Open, SessionState};
use crate::directory::Command;
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

    pub(super) fn on_deadline(&mut self, now: u64) {
        let endpoint = &mut self.endpoint;
        if now >= endpoint.write_deadline {
            self.state = SessionState::end_as(Initiator::Server, CloseCode::WriteTimeout, endpoint);
            return;
        }
        if let SessionState::Open(open) = &mut self.state {
            if let Some(next) = open.on_deadline(endpoint, now).break_value() {
                self.state = *next;
            }
        } else if now >= self.state.deadline() {
            self.state = SessionState::end();
        }
    }

    /// Acts on a command. Once the session has begun to close, only an abort counts.
    pub(super) fn on_command(&mut self, command: Command, now: u64) {
        let endpoint = &mut self.endpoint;
        self.state = match command {
            Command::Abort => SessionState::abort(endpoint),
            _ if !self.state.is_open() => return,
            Command::Restart { after_ms } => SessionState::restart(after_ms, endpoint, now),
            Command::Close { code, reason } => {
                SessionState::close(Close::new(code, reason), endpoint, now)
            }
            Command::Remove { reason } => {
                let close = Close::new(close_code::REMOVED, reason.to_string());
                SessionState::close(close, endpoint, now)
            }
        };
    }

    /// After a panic in a turn: tries once to close the connection properly.
    pub(super) fn recover(&mut self, cx: &Context<'_>) {
        let endpoint = &mut self.endpoint;
        endpoint.context.metrics.session_panicked();
        if std::mem::replace(&mut self.has_panicked, true) {
            let code = CloseCode::Code(close_code::INTERNAL);
            self.state = SessionState::end_as(Initiator::Server, code, endpoint);
            return;
        }
        let close = Close::new(close_code::INTERNAL, "internal error");
        let now = endpoint.context.now();
        self.state = SessionState::close(close, endpoint, now);
        cx.waker().wake_by_ref();
    }
}

impl<S> Drop for Machine<S> {
    fn drop(&mut self) {
        let reason = match self.state {
            SessionState::Ended { drop_reason } => drop_reason,
            // The future was dropped before its end.
            _ => DropReason::Disconnected,
        };
        self.endpoint.leave(reason);
    }
}
