//! Outcomes and errors that a user is owed. A bound on them bounds what a peer can make the relay hold for it by
//! not reading. Must not know what they say.

use super::context::SessionConfig;
use crate::directory::outcome_bytes;
use crate::telemetry::metrics::Metrics;

/// What a user reserves of `limits.outcomes_bytes` at once, so that a busy one does not touch the shared counter for
/// every message.
const STEP: u32 = 4096;

/// A user may reserve one part of so many of what is free.
const SHARE: u64 = 8;

/// What the next reply takes at most, as far as it counts before it is read.
const NEXT_BYTES: u32 = 512;

/// The replies that one user is owed.
#[derive(Debug, Default)]
pub(super) struct Replies {
    owed: u32,
    /// How many of them are in the write buffer.
    in_buffer: u32,
    /// What those take that are owed, and those in the write buffer.
    owed_bytes: u32,
    in_buffer_bytes: u32,
}

impl Replies {
    pub(super) fn owed(&self) -> u32 {
        self.owed
    }

    /// Whether one more may be owed. A user may reserve a share of what all users together leave free, so that a few
    /// that do not read leave most to others, and one step in any case: a user that is owed nothing has room, because
    /// nothing would wake it when there is room again.
    pub(super) fn have_room(&self, config: &SessionConfig, metrics: &Metrics) -> bool {
        if self.owed == 0 {
            return true;
        }
        let is_reserved = self.owed_bytes + NEXT_BYTES <= self.reserved();
        self.owed < config.outcomes_pending
            && (is_reserved
                || u64::from(self.reserved() + STEP) <= metrics.outcome_bytes_free() / SHARE)
    }

    /// What is reserved for those that are owed, in whole steps.
    fn reserved(&self) -> u32 {
        self.owed_bytes.next_multiple_of(STEP)
    }

    /// Notes that the user will get the outcome of a message with this id.
    pub(super) fn promise(&mut self, id: &str, metrics: &Metrics) {
        self.owe(outcome_bytes(id), metrics);
    }

    /// Notes one of so many bytes that was put into the write buffer at once.
    pub(super) fn on_pushed(&mut self, bytes: usize, metrics: &Metrics) {
        let bytes = u32::try_from(bytes).expect("a reply is far below 4 GiB");
        self.owe(bytes, metrics);
        self.on_taken(1, bytes);
    }

    fn owe(&mut self, bytes: u32, metrics: &Metrics) {
        let before = self.reserved();
        self.owed += 1;
        self.owed_bytes += bytes;
        if self.owed_bytes > before {
            metrics.outcome_bytes_reserved(self.reserved() - before);
        }
    }

    /// Notes that so many of those promised are in the write buffer.
    pub(super) fn on_taken(&mut self, count: u32, bytes: u32) {
        self.in_buffer += count;
        self.in_buffer_bytes += bytes;
    }

    /// Notes that the write buffer has left.
    pub(super) fn on_flushed(&mut self, metrics: &Metrics) {
        if self.in_buffer == 0 {
            return;
        }
        let before = self.reserved();
        self.owed -= std::mem::take(&mut self.in_buffer);
        self.owed_bytes -= std::mem::take(&mut self.in_buffer_bytes);
        let keep = self.reserved();
        if keep < before {
            metrics.outcome_bytes_released(before - keep);
        }
    }

    /// Gives back what is reserved, at the end of the session.
    pub(super) fn release(&mut self, metrics: &Metrics) {
        metrics.outcome_bytes_released(std::mem::take(self).reserved());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_given_back_as_replies_leave_and_at_the_end() {
        let metrics = Metrics::new(1);
        metrics.outcomes_limited_to(1 << 20);
        let all = metrics.outcome_bytes_free();
        let taken = || all - metrics.outcome_bytes_free();
        let mut replies = Replies::default();
        replies.on_pushed(3 * STEP as usize, &metrics);
        assert_eq!(taken(), 3 * u64::from(STEP));
        replies.promise(&"1".repeat(STEP as usize), &metrics);
        assert_eq!(taken(), 5 * u64::from(STEP));
        replies.on_flushed(&metrics);
        assert_eq!((replies.owed(), taken()), (1, 2 * u64::from(STEP)));
        replies.on_flushed(&metrics);
        assert_eq!((replies.owed(), taken()), (1, 2 * u64::from(STEP)));
        replies.release(&metrics);
        assert_eq!(taken(), 0);
    }
}
