//! The directory's table: from an id to its slot. The set of segments is an immutable value. A change
//! replaces it by a new one that shares all unchanged parts with the old one.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rustc_hash::FxHasher;

use super::client::Client;
use super::sync::{ArcSwapOption, AtomicU32, Ordering};
use crate::identity::UserId;

/// Ids in one segment. It has 8 KiB of slots, which is little beside its clients, and the table changes
/// once in about a thousand joins. The model checker must fill a segment in a few steps.
pub const SLOTS: usize = if cfg!(all(test, switchboard_loom)) {
    2
} else {
    1024
};

/// Segments in one group. A change of the table copies one group and the map of groups. With a million
/// users that is about 60 pointers instead of a thousand.
const GROUP: usize = if cfg!(all(test, switchboard_loom)) {
    2
} else {
    32
};

/// The claims of a segment that is removed from the table for good.
const RETIRED: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Segment {
    /// One for each user that is in it or joins, and one more for the newest. [`RETIRED`] is final.
    claims: AtomicU32,
    // Not behind a pointer: a lookup among many users waits for memory, once for each pointer.
    slots: [ArcSwapOption<Client>; SLOTS],
}

impl Segment {
    pub(super) fn new(claims: u32) -> Self {
        Self {
            claims: AtomicU32::new(claims),
            slots: std::array::from_fn(|_| ArcSwapOption::empty()),
        }
    }

    /// Takes a claim. Returns false if the segment is retired.
    pub(super) fn claim(&self) -> bool {
        self.claims
            .try_update(Ordering::AcqRel, Ordering::Acquire, |claims| {
                (claims != RETIRED).then(|| claims + 1)
            })
            .is_ok()
    }

    /// Releases a claim. Returns true if that was the last one: the segment is retired, and the caller
    /// removes it from the table.
    pub(super) fn release(&self) -> bool {
        // In two steps: a join may take a claim in between, and then the segment stays.
        self.claims.fetch_sub(1, Ordering::AcqRel) == 1
            && self
                .claims
                .compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }

    pub(super) fn slot(&self, id: UserId) -> &ArcSwapOption<Client> {
        &self.slots[part(id.get() - 1, SLOTS).1]
    }

    pub(super) fn slots(&self) -> &[ArcSwapOption<Client>] {
        &self.slots
    }
}

/// The number of an id's segment. Ids start at 1.
pub(super) fn segment_number(id: UserId) -> u64 {
    part(id.get() - 1, SLOTS).0
}

/// The part of that size that a number is in, and the index in that part.
fn part(number: u64, size: usize) -> (u64, usize) {
    let at = usize::try_from(number % size as u64).expect("below a usize");
    (number / size as u64, at)
}

type Group = [Option<Arc<Segment>>; GROUP];

/// The segments in the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    // Keys come from ids that this relay gave out, so no peer can choose them to collide.
    groups: HashMap<u64, Arc<Group>, BuildHasherDefault<FxHasher>>,
    count: usize,
}

impl Segments {
    pub(super) fn get(&self, number: u64) -> Option<&Arc<Segment>> {
        let (group, at) = part(number, GROUP);
        self.groups.get(&group)?[at].as_ref()
    }

    /// A copy with that segment, or none, under a number.
    pub(super) fn with(&self, number: u64, segment: Option<Arc<Segment>>) -> Self {
        let (number, at) = part(number, GROUP);
        let mut group = match self.groups.get(&number) {
            Some(group) => Group::clone(group),
            None => Group::default(),
        };
        let mut changed = self.clone();
        changed.count += usize::from(segment.is_some());
        changed.count -= usize::from(group[at].is_some());
        group[at] = segment;
        if group.iter().all(Option::is_none) {
            changed.groups.remove(&number);
        } else {
            changed.groups.insert(number, Arc::new(group));
        }
        changed
    }

    /// The number of segments.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.groups
            .values()
            .flat_map(|group| group.iter().flatten())
    }
}
