//! The limits of mailboxes: of each one, and of all together.

use std::time::Duration;

use super::memory_pressure::{EvictionCandidates, SizeClass};
use super::sync::AtomicU64;
use super::sync::Ordering::Relaxed;
use super::wake::Wakes;
use crate::config::Overflow;

/// The limits of mailboxes.
#[derive(Debug)]
pub struct MailboxBounds {
    /// The most messages in one mailbox.
    pub messages: u32,
    /// The most bytes of frames in one mailbox.
    pub bytes: usize,
    /// The longest time that a message may wait in a mailbox.
    pub max_age: Duration,
    /// What a full mailbox does with one more message.
    pub overflow: Overflow,
    /// The bytes that all mailboxes may hold together.
    pub budget: Budget,
}

/// Bytes that all mailboxes share. A mailbox reserves them in steps of [`Budget::STEP`], so that a busy
/// one does not touch the shared counter for every message.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    used: AtomicU64,
    pub(super) candidates: EvictionCandidates,
}

impl Budget {
    /// The least that a mailbox reserves at once, bytes.
    pub(super) const STEP: u32 = 4096;

    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            used: AtomicU64::new(0),
            candidates: EvictionCandidates::default(),
        }
    }

    /// Bytes that mailboxes have reserved, in whole steps.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Reserves bytes. Returns false where the budget has not that many left.
    pub(super) fn reserve(&self, bytes: u32) -> bool {
        self.used
            .try_update(Relaxed, Relaxed, |used| self.with(used, bytes))
            .is_ok()
    }

    pub(super) fn release(&self, bytes: u32) {
        self.used.fetch_sub(bytes.into(), Relaxed);
    }

    /// Evicts messages from mailboxes that are larger than `floor`, until so many bytes are free. Returns
    /// whether they are.
    pub(super) fn evict(&self, bytes: u32, floor: SizeClass, wakes: &mut Wakes) -> bool {
        let has_room = || self.with(self.used(), bytes).is_some();
        self.candidates.evict(bytes, floor, has_room, wakes)
    }

    /// What is used with so many bytes more, if that is within the budget.
    fn with(&self, used: u64, bytes: u32) -> Option<u64> {
        used.checked_add(bytes.into())
            .filter(|used| *used <= self.total)
    }
}
