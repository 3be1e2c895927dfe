//! Who is here: from an id to the client of its user. A lookup takes no lock and waits for nobody; a
//! join, a leave and a lookup cost the same with ten users and with a million.
//!
//! Ids are dense, so the directory is a table of segments of [`SLOTS`] slots each, and a slot is one
//! atomic cell. Only one join in [`SLOTS`] changes which segments there are. A segment is retired as
//! soon as nobody holds a claim on it: each user in it does, and the directory itself does on the
//! segment where the next id will come, so that lone users who come and go do not make and retire it
//! over and over. A claim cannot be had on a retired segment, so a join that comes too late makes a new
//! one.
//!
//! Whoever comes back under an id while its earlier connection still stands takes the slot over; the
//! earlier client stands aside, in a list of its own, until its session is gone.
//!
//! The same table is the register that scrapes, the drain and the API walk.

mod chunks;
mod client;
mod mailbox;
mod memory_pressure;
#[cfg(all(test, switchboard_loom))]
mod model;
mod outcomes;
#[cfg(all(test, not(switchboard_loom)))]
mod stress;
mod sync;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

pub(crate) use chunks::WRITE_BYTES;
pub(crate) use client::ClientStats;
pub use client::{Client, Command, Flushed, Found, Receipt, Wakes};
pub use mailbox::{Bounds, Budget, Message, QueuedMessage, give_back};
pub(crate) use outcomes::{Notifier, PendingOutcomes};
use sync::{ArcSwap, ArcSwapOption, Mutex, MutexGuard};
pub use table::SLOTS;
use table::{Segment, Segments, segment_number};

use crate::identity::{ResumptionId, UserId};
use crate::telemetry::metrics::DirectoryStats;

/// The user directory: a cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    segments: ArcSwap<Segments>,
    /// Guards changes of the map, and is the number of the segment that the directory itself claims.
    newest: Mutex<Option<u64>>,
    /// Clients whose place was taken, by their addresses. Locked while a place is taken, so that whoever
    /// finds its own gone finds itself here.
    replaced: Mutex<HashMap<usize, Arc<Client>>>,
}

impl Directory {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `f` on the client of `id`, or on nothing where nobody with that id is here.
    pub fn with<R>(&self, id: UserId, f: impl FnOnce(Option<&Arc<Client>>) -> R) -> R {
        let segments = self.shared.segments.load();
        let Some(segment) = segments.get(segment_number(id)) else {
            return f(None);
        };
        let client = segment.slot(id).load();
        // The id is checked again: arc-swap before 1.9.5 could load another cell's value, and a
        // message to the wrong user is the one fault that no counter would show.
        f(client.as_ref().filter(|client| client.id() == id))
    }

    /// Registers a user, in the place of one of the same resumption id if there is one. Whether there was a
    /// place: not where somebody of another resumption id has the id.
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
            let may = previous.resumption_id() == client.resumption_id();
            if may && !self.take_over(slot, previous, client) {
                continue;
            }
            // The place comes with the claim of whoever had it.
            self.give_up(number, segment);
            return may;
        }
    }

    /// Puts a client into the place of another. Whether that one was still there.
    #[cold]
    fn take_over(
        &self,
        slot: &ArcSwapOption<Client>,
        previous: &Arc<Client>,
        client: &Arc<Client>,
    ) -> bool {
        let mut replaced = self.replaced();
        let found = slot.compare_and_swap(previous, Some(client.clone()));
        let took = found
            .as_ref()
            .is_some_and(|found| Arc::ptr_eq(found, previous));
        if took {
            replaced.insert(Arc::as_ptr(previous).addr(), previous.clone());
            drop(replaced);
            previous.give_way();
        }
        took
    }

    /// Takes the client of an id out, if it is of that resumption id: its user is on another node now. It stands
    /// aside, and is told to end.
    pub(crate) fn evict(&self, id: UserId, resumption_id: ResumptionId) {
        let number = segment_number(id);
        let segments = self.shared.segments.load();
        let Some(segment) = segments.get(number) else {
            return;
        };
        let slot = segment.slot(id);
        let client = slot.load().as_ref().cloned();
        let Some(previous) =
            client.filter(|client| client.id() == id && client.resumption_id() == resumption_id)
        else {
            return;
        };
        let mut replaced = self.replaced();
        let found = slot.compare_and_swap(&previous, None);
        if found
            .as_ref()
            .is_some_and(|found| Arc::ptr_eq(found, &previous))
        {
            replaced.insert(Arc::as_ptr(&previous).addr(), previous.clone());
            drop(replaced);
            previous.give_way();
            self.give_up(number, segment);
        }
    }

    fn replaced(&self) -> MutexGuard<'_, HashMap<usize, Arc<Client>>> {
        self.shared
            .replaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes that very client out; one that has taken its place stays.
    pub fn leave(&self, client: &Arc<Client>) {
        let number = segment_number(client.id());
        let segments = self.shared.segments.load();
        let joined_in = segments.get(number).filter(|segment| {
            let previous = segment.slot(client.id()).compare_and_swap(client, None);
            previous
                .as_ref()
                .is_some_and(|previous| Arc::ptr_eq(previous, client))
        });
        match joined_in {
            Some(segment) => self.give_up(number, segment),
            None => drop(self.replaced().remove(&Arc::as_ptr(client).addr())),
        }
    }

    fn newest(&self) -> MutexGuard<'_, Option<u64>> {
        self.shared
            .newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a claim back.
    fn give_up(&self, number: u64, segment: &Arc<Segment>) {
        if segment.release() {
            let newest = self.newest();
            self.take_out(&newest, number, segment);
        }
    }

    /// A claim on a segment that was not in the map, or was retired: one that another join has made
    /// meanwhile, or a new one.
    #[cold]
    fn claim_new(&self, number: u64) -> Arc<Segment> {
        let mut newest = self.newest();
        let segments = self.shared.segments.load_full();
        if let Some(segment) = segments.get(number)
            && segment.claim()
        {
            return segment.clone();
        }
        let is_newest = newest.is_none_or(|newest| number > newest);
        let segment = Arc::new(Segment::new(if is_newest { 2 } else { 1 }));
        let changed = segments.with(number, Some(segment.clone()));
        self.shared.segments.store(Arc::new(changed));
        if is_newest
            && let Some(before) = newest.replace(number)
            && let Some(before_segment) = segments.get(before)
            && before_segment.release()
        {
            self.take_out(&newest, before, before_segment);
        }
        segment
    }

    /// Takes a retired segment out of the map, unless a new one has its place already.
    fn take_out(&self, _newest: &MutexGuard<'_, Option<u64>>, number: u64, segment: &Arc<Segment>) {
        let segments = self.shared.segments.load_full();
        if segments
            .get(number)
            .is_some_and(|current| Arc::ptr_eq(current, segment))
        {
            let changed = segments.with(number, None);
            self.shared.segments.store(Arc::new(changed));
        }
    }

    /// Runs `f` on every client, at most once. Who joins or leaves meanwhile, or loses its place, may be
    /// seen or not.
    pub fn for_each(&self, mut f: impl FnMut(&Arc<Client>)) {
        // First, since clients go from the table to here and never back; and not under the lock.
        let replaced: Vec<_> = self.replaced().values().cloned().collect();
        replaced.iter().for_each(&mut f);
        let segments = self.shared.segments.load_full();
        for slot in segments.iter().flat_map(|segment| segment.slots()) {
            if let Some(client) = slot.load().as_ref() {
                f(client);
            }
        }
    }

    /// Counts users and what their mailboxes hold.
    pub fn stats(&self) -> DirectoryStats {
        let mut stats = DirectoryStats {
            segments: self.segments() as u64,
            ..DirectoryStats::default()
        };
        self.for_each(|client| {
            let (messages, bytes) = client.held();
            stats.connections += 1;
            stats.mailbox_messages += u64::from(messages);
            stats.mailbox_bytes += bytes as u64;
        });
        stats
    }

    /// How many segments stand.
    pub fn segments(&self) -> usize {
        self.shared.segments.load().count()
    }
}
