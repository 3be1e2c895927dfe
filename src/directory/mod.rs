//! The user directory: from a user's id to its client. A lookup takes no lock and never waits. A join,
//! a leave and a lookup cost the same with ten users and with a million.
//!
//! Ids are dense, so the directory is a table of segments with [`SLOTS`] slots each, and a slot is one
//! atomic cell. Only about one join in [`SLOTS`] changes the table of segments. A segment is retired when
//! its last claim is released. Each user in the segment holds a claim. The directory holds one on the
//! newest segment, where the next id will be, so that single users that come and go do not create and
//! retire it again and again. A retired segment gives no claims, so a join that comes too late creates
//! a new segment.
//!
//! A user that reconnects under its id while the earlier connection still stands replaces the earlier
//! client. The replaced client stays in a list of its own until its session is gone.
//!
//! Scrapes, the drain and the API walk the same table.

mod bounds;
mod chunks;
mod client;
#[cfg(all(test, not(switchboard_loom)))]
mod eviction;
mod mailbox;
mod memory_pressure;
mod message;
#[cfg(all(test, switchboard_loom))]
mod model;
mod outcomes;
mod receipt;
mod session_side;
mod spares;
mod state;
#[cfg(all(test, not(switchboard_loom)))]
mod stress;
mod sync;
mod table;
mod wake;

use std::collections::HashMap;
use std::sync::Arc;

pub use bounds::{Budget, MailboxBounds};
pub use client::Client;
pub(crate) use client::ClientStats;
pub use message::{Message, QueuedMessage};
pub(crate) use outcomes::PendingOutcomes;
pub use receipt::Receipt;
pub(crate) use receipt::{Undeliverable, outcome_bytes, settle_undeliverable};
pub use session_side::Taken;
pub use spares::give_back;
pub(crate) use state::Strength;
pub use state::{Command, Flushed};
use sync::{ArcSwap, ArcSwapOption, Mutex, MutexGuard, lock};
pub use table::SLOTS;
use table::{Segment, Segments, segment_number};
pub(crate) use wake::Notifier;
pub use wake::Wakes;

use crate::identity::{UserId, UserIdentity};
use crate::telemetry::metrics::DirectoryStats;

/// The user directory: a cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    shared: Arc<DirectoryShared>,
}

#[derive(Debug, Default)]
struct DirectoryShared {
    segments: ArcSwap<Segments>,
    /// The number of the newest segment, which the directory itself claims. The lock also guards
    /// changes of `segments`.
    newest: Mutex<Option<u64>>,
    /// Replaced clients by their addresses. The lock is held while a client is replaced, so that a
    /// client that no longer finds itself in its slot finds itself here.
    replaced: Mutex<HashMap<usize, Arc<Client>>>,
}

impl Directory {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `f` with the client of `id`, or with `None` where no client has that id.
    pub fn with<R>(&self, id: UserId, f: impl FnOnce(Option<&Arc<Client>>) -> R) -> R {
        let segments = self.shared.segments.load();
        let Some(segment) = segments.get(segment_number(id)) else {
            return f(None);
        };
        let client = segment.slot(id).load();
        // The id is compared again, because arc-swap before 1.9.5 could load another cell's value. No
        // counter would show a message to the wrong user.
        f(client.as_ref().filter(|client| client.id() == id))
    }

    /// Registers a client. It replaces one of the same identity. Returns false, and changes nothing,
    /// where a client with another resumption id has the id.
    pub fn join(&self, client: &Arc<Client>) -> bool {
        let id = client.id();
        let number = segment_number(id);
        let segments = self.shared.segments.load();
        let new;
        let segment = match segments.get(number) {
            Some(segment) if segment.claim() => segment,
            _ => {
                new = self.claim_new(number);
                &new
            }
        };
        let slot = segment.slot(id);
        loop {
            let vacant: Option<Arc<Client>> = None;
            let previous = slot.compare_and_swap(&vacant, Some(client.clone()));
            let Some(previous) = previous.as_ref() else {
                return true;
            };
            let is_same_user = previous.identity() == client.identity();
            let end = Command::taken_over();
            if is_same_user && !self.replace(slot, previous, Some(client.clone()), end) {
                continue;
            }
            // The slot comes with the claim of the replaced client, so the new claim is one too many.
            self.release_claim(number, segment);
            return is_same_user;
        }
    }

    /// Puts `client` into the slot, or empties it, if `previous` is still there, and tells that one how to
    /// end. Returns whether it was there.
    #[cold]
    fn replace(
        &self,
        slot: &ArcSwapOption<Client>,
        previous: &Arc<Client>,
        client: Option<Arc<Client>>,
        end: Command,
    ) -> bool {
        let mut replaced = self.replaced();
        let was_there = swap_if_same(slot, previous, client);
        if was_there {
            replaced.insert(Arc::as_ptr(previous).addr(), previous.clone());
            drop(replaced);
            previous.on_replaced(end);
        }
        was_there
    }

    /// Removes the client of this identity, because its id is on another node now, and tells it how to end.
    pub(crate) fn revoke(&self, identity: UserIdentity, end: Command) {
        let number = segment_number(identity.id);
        let segments = self.shared.segments.load();
        let Some(segment) = segments.get(number) else {
            return;
        };
        let slot = segment.slot(identity.id);
        let client = slot.load().as_ref().cloned();
        if let Some(client) = client.filter(|client| client.identity() == identity)
            && self.replace(slot, &client, None, end)
        {
            self.release_claim(number, segment);
        }
    }

    /// Removes this client. A client that has replaced it stays.
    pub fn leave(&self, client: &Arc<Client>) {
        let number = segment_number(client.id());
        let segments = self.shared.segments.load();
        let joined_in = segments
            .get(number)
            .filter(|segment| swap_if_same(segment.slot(client.id()), client, None));
        match joined_in {
            Some(segment) => self.release_claim(number, segment),
            None => drop(self.replaced().remove(&Arc::as_ptr(client).addr())),
        }
    }

    fn replaced(&self) -> MutexGuard<'_, HashMap<usize, Arc<Client>>> {
        lock(&self.shared.replaced)
    }

    /// Releases a claim, and removes the segment if that was the last one.
    fn release_claim(&self, number: u64, segment: &Arc<Segment>) {
        if segment.release() {
            let newest = lock(&self.shared.newest);
            self.remove_retired(&newest, number, segment);
        }
    }

    /// Claims a segment that was not in the table or was retired: the one that another join has
    /// created meanwhile, or a new one.
    #[cold]
    fn claim_new(&self, number: u64) -> Arc<Segment> {
        let mut newest = lock(&self.shared.newest);
        let segments = self.shared.segments.load_full();
        if let Some(segment) = segments.get(number)
            && segment.claim()
        {
            return segment.clone();
        }
        let is_newest = newest.is_none_or(|newest| number > newest);
        // One claim is the joining user's; the newest segment has the directory's own beside it.
        let segment = Arc::new(Segment::new(if is_newest { 2 } else { 1 }));
        let changed = segments.with(number, Some(segment.clone()));
        self.shared.segments.store(Arc::new(changed));
        if is_newest
            && let Some(before) = newest.replace(number)
            && let Some(before_segment) = segments.get(before)
            && before_segment.release()
        {
            self.remove_retired(&newest, before, before_segment);
        }
        segment
    }

    /// Removes a retired segment from the table, unless a new one has its number already. The guard
    /// shows that the caller may change the table.
    fn remove_retired(
        &self,
        _newest: &MutexGuard<'_, Option<u64>>,
        number: u64,
        segment: &Arc<Segment>,
    ) {
        let segments = self.shared.segments.load_full();
        if segments
            .get(number)
            .is_some_and(|current| Arc::ptr_eq(current, segment))
        {
            let changed = segments.with(number, None);
            self.shared.segments.store(Arc::new(changed));
        }
    }

    /// Calls `f` with every client, at most once each. A client that joins, leaves or is replaced
    /// meanwhile may be left out.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&Arc<Client>)) {
        // The replaced ones first, because clients move from the table to that list and never back. A
        // copy, because `f` may take other locks.
        let replaced: Vec<_> = self.replaced().values().cloned().collect();
        replaced.iter().for_each(&mut f);
        let segments = self.shared.segments.load_full();
        for slot in segments.iter().flat_map(|segment| segment.slots()) {
            if let Some(client) = slot.load().as_ref() {
                f(client);
            }
        }
    }

    /// Counts users, and the messages and bytes in their mailboxes.
    pub(crate) fn stats(&self) -> DirectoryStats {
        let mut stats = DirectoryStats {
            segments: self.segments() as u64,
            ..DirectoryStats::default()
        };
        self.for_each(|client| {
            let client = client.stats();
            stats.connections += 1;
            stats.mailbox_messages += u64::from(client.queue_messages);
            stats.mailbox_bytes += client.queue_bytes as u64;
        });
        stats
    }

    /// The number of segments in the table.
    pub(crate) fn segments(&self) -> usize {
        self.shared.segments.load().count()
    }
}

/// Puts `new` into a slot if `current` is there. Returns whether it was.
fn swap_if_same(
    slot: &ArcSwapOption<Client>,
    current: &Arc<Client>,
    new: Option<Arc<Client>>,
) -> bool {
    let found = slot.compare_and_swap(current, new);
    found
        .as_ref()
        .is_some_and(|found| Arc::ptr_eq(found, current))
}
