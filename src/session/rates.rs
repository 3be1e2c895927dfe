//! How much of each of a user's rates is used up. Must not know what happens beyond them.

use std::time::Duration;

use super::context::SessionConfig;
use crate::admission::token_bucket::TokenBucket;

/// Bytes that a frame which ends no message takes off the byte rate: those of the largest control frame.
const NON_MESSAGE_FRAME_BYTES: u64 = 2 + 4 + 125;

#[derive(Debug, Default)]
pub(super) struct RateBuckets {
    messages: TokenBucket,
    bytes: TokenBucket,
}

impl RateBuckets {
    /// Takes a message of `bytes` bytes off the rates. Returns whether it is within them.
    pub(super) fn take(&mut self, bytes: usize, config: &SessionConfig, now: u64) -> bool {
        let now = Duration::from_micros(now);
        let messages = |rate| self.messages.take(rate, 1, now);
        let bytes = |rate| self.bytes.take(rate, bytes as u64, now);
        config.message_rate.is_none_or(messages) && config.byte_rate.is_none_or(bytes)
    }

    /// Takes so many frames that end no message off the rates, in any case. Returns whether they are
    /// within them.
    pub(super) fn owe(&mut self, frames: u64, config: &SessionConfig, now: u64) -> bool {
        let now = Duration::from_micros(now);
        let messages = |rate| self.messages.owe(rate, frames, now);
        let bytes = |rate| self.bytes.owe(rate, frames * NON_MESSAGE_FRAME_BYTES, now);
        // Both are taken, even where the first is over its rate.
        config.message_rate.is_none_or(messages) & config.byte_rate.is_none_or(bytes)
    }
}
