//! What all sessions of an app share: settings, metrics and the clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::timers::micros;
use crate::admission::token_bucket::Rate;
use crate::config::Settings;
use crate::telemetry::metrics::Metrics;

/// The limits and timeouts of a session, the same for all sessions of an app.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Time from one ping to the next.
    pub ping_interval: Duration,
    /// Time from a ping, or a later sign of life, until the pong or the next sign of life must have come.
    pub pong_timeout: Duration,
    /// Bytes a second of the slowest link; at least 1. A pong has more time by what was written before its ping.
    pub slowest_rate: u64,
    /// Time within which a write must make progress.
    pub write_timeout: Duration,
    /// Time for the outcomes that a peer which closes is owed; again for all that is written before the relay's
    /// close frame; and again from that frame until the end of the connection.
    pub close_timeout: Duration,
    /// Age at which a connection is asked to reconnect, give or take a fifth.
    pub connection_age: Option<Duration>,
    /// The most bytes of a message as sent.
    pub message_bytes: usize,
    /// The most bytes of a frame, and of all fragments of a message together, that are read at all.
    pub frame_bytes: usize,
    /// Bad messages after which a `switchboard.v1` connection is closed.
    pub bad_messages: u32,
    /// Outcomes and errors that a `switchboard.v1` connection may be owed before reading pauses.
    pub outcomes_pending: u32,
    /// The rate of messages. Frames that end no message count as messages.
    pub message_rate: Option<Rate>,
    /// The rate of the messages' bytes.
    pub byte_rate: Option<Rate>,
    /// Whether messages go back to their sender and nowhere else, as test suites for WebSocket servers
    /// expect. No setting turns this on.
    pub echo: bool,
}

impl SessionConfig {
    /// By the settings of `keepalive` and `limits`.
    pub(crate) fn new(settings: &Settings) -> Self {
        let Settings {
            keepalive, limits, ..
        } = settings;
        Self {
            ping_interval: keepalive.ping_interval,
            pong_timeout: keepalive.pong_timeout,
            slowest_rate: keepalive.slowest_rate,
            write_timeout: keepalive.write_timeout,
            close_timeout: keepalive.close_timeout,
            connection_age: Some(limits.connection_age).filter(|age| !age.is_zero()),
            message_bytes: limits.message_bytes,
            frame_bytes: limits.frame_bytes,
            bad_messages: limits.bad_messages,
            outcomes_pending: limits.outcomes_pending,
            message_rate: limits
                .message_rate
                .map(|rate| Rate::per_second(rate.into(), 1)),
            byte_rate: limits
                .byte_rate
                .map(|rate| Rate::per_second(rate, limits.message_bytes as u64)),
            echo: false,
        }
    }
}

/// What the welcome message of a user says beside its id and the limits.
#[derive(Clone, Debug, Default)]
pub struct Welcome {
    /// The ticket to show in order to come back with the same id.
    pub ticket: String,
    /// Whether the user has the id of the ticket that it showed.
    pub resumed: bool,
    /// Why the user does not have that id, where it showed a ticket.
    pub reason: Option<&'static str>,
}

/// What all sessions of an app share.
#[derive(Debug)]
pub struct SessionContext {
    pub(super) config: SessionConfig,
    pub(super) metrics: Arc<Metrics>,
    epoch: Instant,
}

impl SessionContext {
    /// Creates the context and starts its clock.
    pub fn new(config: SessionConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            config,
            metrics,
            epoch: Instant::now(),
        }
    }

    /// Time zero of the clock that stamps messages.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// `keepalive.close_timeout`, which also bounds the ends of connections that are no sessions.
    pub(crate) fn close_timeout(&self) -> Duration {
        self.config.close_timeout
    }

    /// Microseconds since [`SessionContext::epoch`].
    pub(super) fn now(&self) -> u64 {
        micros(self.epoch.elapsed())
    }
}
