//! The states of a session. Each state owns the fields that only it needs, and exactly one deadline.
//!
//! ```text
//! Open ────────────────► Flushing ──► Discarding ──► Lingering ──► Ended
//!  │└► AwaitingOutcomes ──┘                            ▲             ▲
//!  └── the stream ends without a close frame ──────────┘             │
//!  a failed socket, a passed deadline, Command::Abort: from any state┘
//! ```
//!
//! A connection that the peer closes takes the same way as one that the relay closes: what the peer sent before its
//! close frame is settled and answered before the relay's close frame is written.
//!
//! A function that may end a state returns a [`Step`]. The functions that create a state, below, do all that has
//! to happen on the way into it.

use std::borrow::Cow;
use std::io;
use std::ops::ControlFlow;

use hyper_tungstenite::tungstenite::protocol::WebSocketContext;

use super::context::SessionConfig;
use super::endpoint::Endpoint;
use super::heartbeat::{Beat, Heartbeat};
use super::rates::RateBuckets;
use super::timers::{NEVER, micros};
use crate::directory::Strength;
use crate::net::Transport;
use crate::net::ending::Ending;
use crate::protocol::{Outbound, close_code, push_close, push_ping};
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator};

/// Goes on, or breaks with the next state of the session. The state is boxed, so that a step returns in
/// registers.
pub(super) type Step<T = ()> = ControlFlow<Box<SessionState>, T>;

/// What a session is doing.
pub(super) enum SessionState {
    /// Messages go both ways.
    Open(Open),
    /// What comes is discarded, from here on. The relay closes the connection once the user has the outcome
    /// of each of its messages.
    AwaitingOutcomes {
        close: Close,
        deadline: u64,
        /// When the user's token expires, which does not wait for outcomes.
        expires_at: u64,
    },
    /// What is queued is written, and the close frame behind it.
    Flushing { close: Close, deadline: u64 },
    /// The relay's close frame was put into the write buffer. The write side stays open until the peer's close
    /// frame, or the end of its stream: a proxy in between drops both connections at the end of one, and the peer's
    /// close frame would then meet a reset.
    Discarding { deadline: u64 },
    /// Both sides have said all. The write side is shut down, and the connection ends when the peer ends it.
    Lingering { ending: Ending, deadline: u64 },
    /// The session is over.
    Ended {
        /// How messages count that were taken from the mailbox and not flushed.
        drop_reason: DropReason,
    },
}

impl SessionState {
    /// Breaks with this as the next state.
    #[cold]
    pub(super) fn into_step<T>(self) -> Step<T> {
        ControlFlow::Break(Box::new(self))
    }

    /// The one time at which this state has something to do by itself. Every state but the last one has such a
    /// time, so that no peer can keep a connection in it.
    pub(super) fn deadline(&self) -> u64 {
        match self {
            Self::Open(open) => open.deadline(),
            Self::AwaitingOutcomes {
                deadline,
                expires_at,
                ..
            } => *deadline.min(expires_at),
            Self::Flushing { deadline, .. }
            | Self::Discarding { deadline }
            | Self::Lingering { deadline, .. } => *deadline,
            Self::Ended { .. } => NEVER,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    /// Whether reading waits for room, which a finished write may have made.
    pub(super) fn is_reading_paused(&self) -> bool {
        matches!(self, Self::Open(open) if open.heartbeat.is_paused())
    }

    /// Begins to close: no message is read from here on, and what is queued is written first.
    pub(super) fn close<S>(close: Close, endpoint: &mut Endpoint<S>, now: u64) -> Self {
        endpoint.close_input(Initiator::Server, close.counts_as);
        Self::flush(close, endpoint, now)
    }

    /// Takes no more messages for the user, and gives what is queued time to be written.
    pub(super) fn flush<S>(close: Close, endpoint: &Endpoint<S>, now: u64) -> Self {
        endpoint.membership.client().shut();
        Self::Flushing {
            close,
            deadline: endpoint.close_deadline(now),
        }
    }

    /// Writes the close frame, behind which nothing may follow (RFC 6455 section 5.5.1).
    pub(super) fn discard<S>(close: &Close, endpoint: &mut Endpoint<S>, now: u64) -> Self {
        let frame = close.code.map(|code| (code, &*close.reason));
        push_close(&mut endpoint.io.output, frame);
        Self::Discarding {
            deadline: endpoint.close_deadline(now),
        }
    }

    /// Ends the write side of the connection.
    pub(super) fn linger<S>(endpoint: &Endpoint<S>, deadline: u64) -> Self {
        endpoint.membership.client().finish();
        Self::Lingering {
            ending: Ending::default(),
            deadline,
        }
    }

    /// The stream of an open session has ended without a close frame.
    pub(super) fn lose_stream<S>(endpoint: &mut Endpoint<S>, now: u64) -> Self {
        // RFC 6455 section 7.1.5: it counts as 1006.
        endpoint.close_input(Initiator::Client, CloseCode::Code(1006));
        Self::linger(endpoint, endpoint.close_deadline(now))
    }

    /// Ends a session that has begun to close, which has decided how the connection counts.
    pub(super) fn end() -> Self {
        Self::Ended {
            drop_reason: DropReason::Disconnected,
        }
    }

    /// Ends the session at once; the connection counts as `code`.
    pub(super) fn end_as<S>(
        initiator: Initiator,
        code: CloseCode,
        endpoint: &mut Endpoint<S>,
    ) -> Self {
        endpoint.membership.ended(initiator, code);
        Self::end()
    }

    /// Ends an open session whose socket has failed.
    pub(super) fn fail<S>(error: &io::Error, endpoint: &mut Endpoint<S>) -> Self {
        let code = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseCode::Reset,
            _ => CloseCode::Code(1006),
        };
        Self::end_as(Initiator::Client, code, endpoint)
    }

    /// Ends the session at once, for a drain that has run out of time.
    pub(super) fn abort<S>(endpoint: &mut Endpoint<S>) -> Self {
        let code = CloseCode::Code(close_code::RESTART);
        endpoint.membership.ended(Initiator::Server, code);
        Self::Ended {
            drop_reason: DropReason::Draining,
        }
    }
}

/// How a connection is closed.
#[derive(Clone, Debug)]
pub(super) struct Close {
    pub(super) counts_as: CloseCode,
    /// What may replace it, until its close frame is written.
    pub(super) strength: Strength,
    /// The close frame's code, if it has one, and its reason.
    code: Option<u16>,
    reason: Cow<'static, str>,
}

impl Close {
    pub(super) fn new(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            counts_as: CloseCode::Code(code),
            strength: Strength::Close,
            code: Some(code),
            reason: reason.into(),
        }
    }

    pub(super) fn too_large(bytes_max: usize) -> Self {
        let reason = format!("a message has at most {bytes_max} bytes");
        Self::new(close_code::SIZE, reason)
    }

    fn pong_timeout() -> Self {
        Self {
            counts_as: CloseCode::PongTimeout,
            ..Self::new(close_code::POLICY, "no sign of life in time")
        }
    }

    pub(super) fn of(self, strength: Strength) -> Self {
        Self { strength, ..self }
    }

    pub(super) fn expired() -> Self {
        Self::new(close_code::EXPIRED, "the token has expired").of(Strength::Revoke)
    }

    /// The answer to the peer's close frame, which repeats its code (RFC 6455 section 5.5.1).
    fn answer(code: Option<u16>) -> Self {
        Self {
            // Section 7.1.5: a close frame without a code counts as 1005.
            counts_as: CloseCode::Code(code.unwrap_or(1005)),
            strength: Strength::Close,
            code,
            reason: Cow::Borrowed(""),
        }
    }
}

/// What a session keeps only while messages go both ways.
pub(super) struct Open {
    /// Tungstenite's side of the connection, while half a message is in it.
    pub(super) websocket: Option<Box<WebSocketContext>>,
    pub(super) heartbeat: Heartbeat,
    /// When the user's token expires.
    expires_at: u64,
    /// When the connection is too old.
    aged_at: u64,
    pub(super) bad_messages: u32,
    pub(super) rates: RateBuckets,
}

impl Open {
    pub(super) fn new(config: &SessionConfig, now: u64) -> Self {
        Self {
            websocket: None,
            heartbeat: Heartbeat::new(config, now),
            expires_at: NEVER,
            aged_at: config.connection_age.map_or(NEVER, |age| {
                // A fifth either way, so that users who came together do not leave together.
                now + micros(age.mul_f64(0.8 + 0.4 * fastrand::f64()))
            }),
            bad_messages: 0,
            rates: RateBuckets::default(),
        }
    }

    pub(super) fn expire_at(&mut self, time: u64) {
        self.expires_at = time;
    }

    /// Asks the user to reconnect, and closes once it has its outcomes, at the latest after `within`.
    pub(super) fn restart<S>(
        &self,
        after_ms: u64,
        within: u64,
        endpoint: &mut Endpoint<S>,
        now: u64,
    ) -> SessionState {
        endpoint.push(Outbound::Reconnect { after_ms });
        let close = Close::new(close_code::RESTART, "restart").of(Strength::Restart);
        endpoint.close_input(Initiator::Server, close.counts_as);
        self.close_after_outcomes(close, now.saturating_add(within), endpoint, now)
    }

    /// Answers the peer's close frame once the peer has its outcomes.
    pub(super) fn answer<S>(
        &self,
        code: Option<u16>,
        endpoint: &mut Endpoint<S>,
        now: u64,
    ) -> SessionState {
        let close = Close::answer(code);
        endpoint.close_input(Initiator::Client, close.counts_as);
        self.close_after_outcomes(close, endpoint.close_deadline(now), endpoint, now)
    }

    fn close_after_outcomes<S>(
        &self,
        close: Close,
        deadline: u64,
        endpoint: &Endpoint<S>,
        now: u64,
    ) -> SessionState {
        if endpoint.replies.owed() == 0 {
            return SessionState::flush(close, endpoint, now);
        }
        // The user still gets messages: those to itself may be among the ones that it waits for.
        SessionState::AwaitingOutcomes {
            close,
            deadline,
            expires_at: self.expires_at,
        }
    }

    fn deadline(&self) -> u64 {
        let heartbeat = self.heartbeat.deadline();
        heartbeat.min(self.expires_at).min(self.aged_at)
    }

    /// Does one of the things that are due; what else is due follows in the next turn.
    pub(super) fn on_deadline<S: Transport>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        now: u64,
    ) -> Step {
        if now >= self.expires_at {
            return SessionState::close(Close::expired(), endpoint, now).into_step();
        }
        if now >= self.aged_at {
            // Without a spread of its own, because `aged_at` has one. A recipient that reads
            // nothing is gone after these two timeouts, and its messages have their outcomes then.
            let config = endpoint.config();
            let within = micros(config.write_timeout + config.close_timeout);
            return self.restart(0, within, endpoint, now).into_step();
        }
        let unflushed = endpoint.io.unflushed();
        match self.heartbeat.beat(endpoint.config(), unflushed, now) {
            Beat::Rest => {}
            Beat::Ping => push_ping(&mut endpoint.io.output),
            // Bytes have come that tokio does not know of yet, so this turn could not read them.
            Beat::TimedOut if endpoint.io.readiness().read => {
                self.heartbeat.on_sign_of_life(endpoint.config(), now);
            }
            Beat::TimedOut => {
                let close = Close::pong_timeout();
                return SessionState::close(close, endpoint, now).into_step();
            }
        }
        ControlFlow::Continue(())
    }
}
