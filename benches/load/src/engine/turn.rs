//! The loop: one turn after the other, until a time or a condition.

use std::time::Duration;

use mio::Events;

use super::state::{Engine, PollMode};
use crate::number::nanos;

/// How often a condition is looked at while nothing arrives.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// What a poll costs that finds something, nanoseconds: counted as work, not as waiting.
const POLL_NS: u64 = 500;

/// What an idle turn costs beside its poll, nanoseconds: counted as waiting.
const IDLE_TURN_NS: u64 = 50;

impl Engine {
    /// Takes turns for a while.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now() + nanos(duration);
        while self.now() < end {
            self.turn(end);
        }
    }

    /// Takes turns until the condition is met; returns whether it was within `timeout`.
    pub(crate) fn run_until(
        &mut self,
        timeout: Duration,
        mut is_met: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.now() + nanos(timeout);
        while !is_met(self) {
            let now = self.now();
            if now >= end {
                return false;
            }
            self.turn(end.min(now + nanos(CHECK_INTERVAL)));
        }
        true
    }

    /// Sends the messages that are due, waits for a socket, for the next due time or for `end`, and handles
    /// the events.
    pub(super) fn turn(&mut self, end: u64) {
        let begin = self.now();
        let due = self.send_due(begin).min(end);
        let sends = !self.unflushed.is_empty();
        self.flush_all();
        let before = if sends { self.now() } else { begin };
        let wait = self.wait(before, due);
        // An interrupted wait is a short wait: the next turn polls again.
        drop(self.poll.poll(&mut self.events, Some(wait)));
        let after = self.now();
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let slept = after - before;
        self.waited_ns += match (events.is_empty(), sends) {
            (true, false) => slept + IDLE_TURN_NS,
            (true, true) => slept,
            (false, _) => slept.saturating_sub(POLL_NS),
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        for event in &events {
            self.on_event(event, &mut scratch);
        }
        self.scratch = scratch;
        self.events = events;
        self.flush_all();
        self.free.append(&mut self.freed);
        self.progress.tick(after);
    }

    /// Sends all that is due by now; returns when the next event of a schedule is due.
    fn send_due(&mut self, now: u64) -> u64 {
        self.send_paced(now).min(self.step_churn(now))
    }

    fn wait(&self, now: u64, due: u64) -> Duration {
        match self.poll_mode {
            PollMode::Spin => Duration::ZERO,
            PollMode::Sleep => {
                // epoll counts in milliseconds. Rounded down, so that no message is late.
                let ms = due.saturating_sub(now) / 1_000_000;
                Duration::from_millis(ms)
            }
        }
    }
}
