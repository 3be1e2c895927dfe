//! The pings of an open session, and the signs of life that must follow them. Must not send anything.
//!
//! A pong is not the only sign of life, because it can come late from a peer that is well: behind a long message
//! on its way here (RFC 6455 section 5.4 forbids a pong inside a frame), or behind all that was written before the
//! ping. Bytes that come are a sign of life, and so is a blocked write that goes on. A write that the kernel takes
//! at once is none, because the kernel takes it for a dead peer as well.

use super::context::SessionConfig;
use super::timers::{NEVER, micros};

/// The most bytes before a ping for which a pong may come later: what the kernels on both ends and a proxy usually
/// hold. The relay's kernel alone holds up to 173 KB (measured).
const AHEAD_BYTES_MAX: u32 = 512 * 1024;

/// When the next ping goes out, and until when a sign of life must follow.
#[derive(Debug)]
pub(super) struct Heartbeat {
    ping_at: u64,
    pong: PongClock,
    /// Bytes written that the peer may not have read yet: those behind the last ping that it answered.
    unread: u32,
    /// Those of them that are before the unanswered ping; 0 if no ping is unanswered.
    ahead: u32,
}

#[derive(Debug)]
enum PongClock {
    /// The peer is read from. A sign of life is due at this time; [`NEVER`] if no ping is unanswered.
    Running(u64),
    /// Reading is paused, and the pong may be behind what is not read. The peer has this much time left once
    /// reading goes on, microseconds; [`NEVER`] if no ping is unanswered.
    Stopped(u64),
}

/// What a heartbeat has to do now.
pub(super) enum Beat {
    Rest,
    Ping,
    TimedOut,
}

impl Heartbeat {
    /// The first ping comes at a random point of the interval's second half, so that users who came at
    /// once are not pinged at once.
    pub(super) fn new(config: &SessionConfig, now: u64) -> Self {
        let interval = micros(config.ping_interval);
        Self {
            ping_at: now + interval / 2 + fastrand::u64(0..=interval / 2),
            pong: PongClock::Running(NEVER),
            unread: 0,
            ahead: 0,
        }
    }

    pub(super) fn deadline(&self) -> u64 {
        match self.pong {
            PongClock::Running(due) => self.ping_at.min(due),
            PongClock::Stopped(_) => self.ping_at,
        }
    }

    /// Does what is due. `unwritten` are the bytes that a ping has to wait for before it is written.
    pub(super) fn beat(&mut self, config: &SessionConfig, unwritten: usize, now: u64) -> Beat {
        if matches!(self.pong, PongClock::Running(due) if now >= due) {
            return Beat::TimedOut;
        }
        if now < self.ping_at {
            return Beat::Rest;
        }
        self.ping_at = now + micros(config.ping_interval);
        match self.pong {
            PongClock::Running(NEVER) => {
                self.ahead = self.unread.saturating_add(saturate(unwritten));
                self.pong = PongClock::Running(now + self.patience(config));
                Beat::Ping
            }
            PongClock::Running(_) | PongClock::Stopped(_) => Beat::Rest,
        }
    }

    /// Counts bytes that were written.
    pub(super) fn on_written(&mut self, bytes: usize) {
        self.unread = self.unread.saturating_add(saturate(bytes));
    }

    pub(super) fn on_pong(&mut self) {
        self.unread = self.unread.saturating_sub(self.ahead);
        self.ahead = 0;
        self.pong = PongClock::Running(NEVER);
    }

    /// Gives a peer that has just shown that it lives the whole time again. The ping stays unanswered.
    pub(super) fn on_sign_of_life(&mut self, config: &SessionConfig, now: u64) {
        match self.pong {
            PongClock::Running(NEVER) | PongClock::Stopped(NEVER) => {}
            PongClock::Running(_) => self.pong = PongClock::Running(now + self.patience(config)),
            PongClock::Stopped(_) => self.pong = PongClock::Stopped(self.patience(config)),
        }
    }

    /// How long the peer may show no sign of life: the timeout, and the time that what is before the ping takes
    /// on the slowest link.
    fn patience(&self, config: &SessionConfig) -> u64 {
        let ahead = u64::from(self.ahead.min(AHEAD_BYTES_MAX));
        micros(config.pong_timeout).saturating_add(ahead * 1_000_000 / config.slowest_rate)
    }

    pub(super) fn is_paused(&self) -> bool {
        matches!(self.pong, PongClock::Stopped(_))
    }

    /// Stops the pong clock, where it runs.
    pub(super) fn pause(&mut self, now: u64) {
        if let PongClock::Running(due) = self.pong {
            let left = if due == NEVER {
                NEVER
            } else {
                due.saturating_sub(now)
            };
            self.pong = PongClock::Stopped(left);
        }
    }

    /// Lets the pong clock go on, where it is stopped.
    pub(super) fn resume(&mut self, now: u64) {
        if let PongClock::Stopped(left) = self.pong {
            self.pong = PongClock::Running(now.saturating_add(left));
        }
    }
}

fn saturate(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
