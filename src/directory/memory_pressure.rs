//! Evicts messages from the fullest mailboxes when all mailboxes together are over their budget, so that
//! a user that does not read loses messages before users that do.
//!
//! The list of candidates is changed only under the lock of the client that it is about, so an entry and
//! its client agree. A search looks at an entry without that lock first, and takes the client's lock
//! without the list's.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use super::sync::{Mutex, MutexGuard, lock};
use super::wake::Wakes;
use crate::identity::UserId;

/// The most candidates that one search looks at. Only candidates that have become smaller, or that hold
/// less than is needed, make it look at more than one.
const SEARCH_MAX: usize = 1024;

/// The size of a mailbox in steps of about a quarter: 0 is empty. A mailbox changes its class rarely,
/// and all mailboxes of a class count as equally full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SizeClass(u8);

impl SizeClass {
    /// The class of so many units.
    pub(super) fn of(units: u32) -> Self {
        if units < 4 {
            return Self(units.to_le_bytes()[0]);
        }
        // The position of the highest bit, and the two bits behind it.
        let highest = units.ilog2();
        let class = 4 * (highest - 1) + ((units >> (highest - 2)) & 3);
        Self(class.to_le_bytes()[0])
    }
}

/// A holder of messages that can be evicted: a client. A client's mailbox points to the candidates, so they
/// know clients by this trait only.
pub(super) trait Evictable: fmt::Debug + Send + Sync {
    /// Drops messages until the mailbox has released so many bytes, as far as that leaves it with no less
    /// than a mailbox of class `floor` has. Updates its entry among the candidates.
    fn evict(self: Arc<Self>, bytes: u32, floor: SizeClass, wakes: &mut Wakes);
}

/// Where a client is in the list. The address is that of the client, because two clients may have one id. It
/// is not used again while the entry exists.
type Key = (SizeClass, UserId, usize);

/// Clients whose mailboxes have reserved bytes. Each has one entry, of its mailbox's class or a larger
/// one: a mailbox that grows moves its entry at once, and a search moves that of one that has shrunk. So
/// a mailbox that fills and empties again and again costs nothing here.
#[derive(Debug, Default)]
pub(super) struct EvictionCandidates {
    clients: Mutex<BTreeMap<Key, Weak<dyn Evictable>>>,
}

impl EvictionCandidates {
    /// Moves the entry of a client from one class to another. Class 0 has no entries. The caller holds the
    /// lock of the client.
    pub(super) fn move_entry(
        &self,
        client: Weak<dyn Evictable>,
        id: UserId,
        from: SizeClass,
        to: SizeClass,
    ) {
        let address = client.as_ptr().addr();
        let mut clients = self.clients();
        clients.remove(&(from, id, address));
        if to != SizeClass::default() {
            clients.insert((to, id, address), client);
        }
    }

    /// Evicts messages, from the fullest mailboxes first, until `has_room` says that so many bytes are
    /// free, and returns true then. A mailbox of class `floor` or a lower one loses nothing: that is the class
    /// of the mailbox that needs room, so two of them end up equally full instead of taking room from each
    /// other in turn.
    pub(super) fn evict(
        &self,
        needed: u32,
        floor: SizeClass,
        has_room: impl Fn() -> bool,
        wakes: &mut Wakes,
    ) -> bool {
        let mut below = Bound::Unbounded;
        for _ in 0..SEARCH_MAX {
            let Some((key, client)) = self.largest_between(floor, below) else {
                return false;
            };
            below = Bound::Excluded(key);
            match client {
                Some(client) => client.evict(needed, floor, wakes),
                // It was dropped without leaving, so no other thread changes its entry.
                None => drop(self.clients().remove(&key)),
            }
            if has_room() {
                return true;
            }
        }
        false
    }

    /// The largest candidate of a class above `floor` whose key is within `below`.
    fn largest_between(
        &self,
        floor: SizeClass,
        below: Bound<Key>,
    ) -> Option<(Key, Option<Arc<dyn Evictable>>)> {
        let clients = self.clients();
        let (key, client) = clients.range((Bound::Unbounded, below)).next_back()?;
        (key.0 > floor).then(|| (*key, client.upgrade()))
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<Key, Weak<dyn Evictable>>> {
        lock(&self.clients)
    }

    #[cfg(all(test, not(switchboard_loom)))]
    pub(super) fn count(&self) -> usize {
        self.clients().len()
    }
}
