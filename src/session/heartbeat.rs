//! The pings of an open session, and the pongs that must follow them. Must not send anything.

use super::context::SessionConfig;
use super::timers::{NEVER, micros};

/// When the next ping goes out, and until when its pong must come.
#[derive(Debug)]
pub(super) struct Heartbeat {
    ping_at: u64,
    pong: PongClock,
}

#[derive(Debug)]
enum PongClock {
    /// The peer is read from. Its pong is due at this time; [`NEVER`] if no ping is unanswered.
    Running(u64),
    /// Reading is paused, and the pong may be behind what is not read. It has this much time left once
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
        }
    }

    pub(super) fn deadline(&self) -> u64 {
        match self.pong {
            PongClock::Running(due) => self.ping_at.min(due),
            PongClock::Stopped(_) => self.ping_at,
        }
    }

    pub(super) fn beat(&mut self, config: &SessionConfig, now: u64) -> Beat {
        if matches!(self.pong, PongClock::Running(due) if now >= due) {
            return Beat::TimedOut;
        }
        if now < self.ping_at {
            return Beat::Rest;
        }
        self.ping_at = now + micros(config.ping_interval);
        match &mut self.pong {
            PongClock::Running(due) if *due == NEVER => {
                *due = now + micros(config.pong_timeout);
                Beat::Ping
            }
            PongClock::Running(_) | PongClock::Stopped(_) => Beat::Rest,
        }
    }

    pub(super) fn on_pong(&mut self) {
        self.pong = PongClock::Running(NEVER);
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
