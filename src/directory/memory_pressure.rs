//! Evicts messages from the fullest mailbox when all mailboxes together are over their budget, so that
//! a user that does not read loses messages before users that do. A push comes here only when its
//! mailbox grows large or the budget is spent. Locks are never nested.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::wake::Wakes;

/// A mailbox of this many bytes becomes a candidate for eviction.
pub(super) const LARGE_BYTES: usize = 64 * 1024;

/// Bytes evicted at once, so that the next messages find room without another eviction.
const EVICT_BYTES: usize = 64 * 1024;

/// Candidates that one eviction compares. Of more candidates it compares some, others each time, so
/// that its cost does not grow with their number.
const SAMPLE: usize = 256;

/// A holder of messages that can be evicted: a client. A client's mailbox points to the candidates, so they
/// know clients by this trait only.
pub(super) trait Evictable: fmt::Debug + Send + Sync {
    /// Bytes that can be evicted, or nothing where the mailbox is no longer large. It is then no
    /// candidate any more, until it grows large again.
    fn evictable_bytes(&self) -> Option<usize>;

    /// Drops messages of at least so many bytes, as far as there are any.
    fn evict(&self, bytes: usize, wakes: &mut Wakes);
}

/// Clients with large mailboxes, each at most once.
#[derive(Debug, Default)]
pub(super) struct EvictionCandidates {
    clients: Mutex<VecDeque<Weak<dyn Evictable>>>,
}

impl EvictionCandidates {
    /// Adds a client when its mailbox has grown large.
    pub(super) fn add(&self, client: Weak<dyn Evictable>) {
        let mut clients = self.clients.lock();
        if clients.len() == clients.capacity() {
            // Removes clients that have left before the list allocates more.
            clients.retain(|client| client.strong_count() > 0);
        }
        clients.push_back(client);
    }

    /// Evicts at least `needed` bytes from the fullest mailbox. That mailbox keeps at least `fill`
    /// bytes, which is what the mailbox that needs room holds: two mailboxes end up equally full
    /// instead of taking room from each other in turn.
    pub(super) fn evict_fullest(&self, needed: usize, fill: usize, wakes: &mut Wakes) {
        let sample: Vec<_> = {
            let mut clients = self.clients.lock();
            let count = clients.len().min(SAMPLE);
            clients.drain(..count).collect()
        };
        let mut fullest: Option<(usize, Arc<dyn Evictable>)> = None;
        let mut large = Vec::with_capacity(sample.len());
        for candidate in sample {
            let Some(client) = candidate.upgrade() else {
                continue;
            };
            let Some(bytes) = client.evictable_bytes() else {
                continue;
            };
            large.push(candidate);
            if fullest.as_ref().is_none_or(|(most, _)| bytes > *most) {
                fullest = Some((bytes, client));
            }
        }
        self.clients.lock().extend(large);
        if let Some((bytes, client)) = fullest
            && let Some(spare) = bytes.checked_sub(fill)
            && spare > needed
        {
            client.evict(needed.max(EVICT_BYTES).min(spare), wakes);
        }
    }

    #[cfg(all(test, not(switchboard_loom)))]
    pub(super) fn count(&self) -> usize {
        self.clients.lock().len()
    }
}
