//! The limits of mailboxes: of each one, and of all together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::memory_pressure::EvictionCandidates;
use crate::config::Overflow;

/// The limits of mailboxes.
#[derive(Debug)]
pub struct MailboxBounds {
    /// The most messages in one mailbox.
    pub messages: u32,
    /// The most bytes of frames in one mailbox.
    pub bytes: usize,
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
    pub(super) const STEP: u64 = 4096;

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
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        self.used
            .try_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.total)
            })
            .is_ok()
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}
