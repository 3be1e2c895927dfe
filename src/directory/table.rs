//! The directory's table: from an id to its slot. Segments of slots come and go; which of them stand
//! is a value that is never changed but replaced, and shares with the one before what has not changed.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rustc_hash::FxHasher;

use super::Client;
use super::sync::{ArcSwapOption, AtomicU32, Ordering};
use crate::identity::UserId;

/// Ids in one segment: 8 KiB of slots, small beside the clients in it, and one change of the table in a
/// thousand joins. The model checker has to fill one in a few steps.
pub const SLOTS: usize = if cfg!(all(test, switchboard_loom)) {
    2
} else {
    1024
};

/// Segments in one group. A change of the table copies one group and the map of groups: of a million
/// users' thousand segments, the pointers to about 60.
const GROUP: usize = if cfg!(all(test, switchboard_loom)) {
    2
} else {
    32
};

/// Claims of a segment that is out of the table for good.
const RETIRED: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Segment {
    /// Users in it, or about to be; one more for the newest. [`RETIRED`] is final.
    claims: AtomicU32,
    // In place: a lookup among many users waits for memory, so each pointer on the way counts.
    slots: [ArcSwapOption<Client>; SLOTS],
}

impl Segment {
    pub(super) fn new(claims: u32) -> Self {
        Self {
            claims: AtomicU32::new(claims),
            slots: std::array::from_fn(|_| ArcSwapOption::empty()),
        }
    }

    /// Takes a claim; none can be had once it is retired.
    pub(super) fn claim(&self) -> bool {
        self.claims
            .try_update(Ordering::AcqRel, Ordering::Acquire, |claims| {
                (claims != RETIRED).then(|| claims + 1)
            })
            .is_ok()
    }

    /// Gives a claim back; whether that was the last one, after which the segment is retired and the
    /// caller takes it out of the table.
    pub(super) fn release(&self) -> bool {
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

/// The number of the segment that an id is in. Ids start at 1.
pub(super) fn segment_number(id: UserId) -> u64 {
    part(id.get() - 1, SLOTS).0
}

/// In which part of that size a number is, and where in it.
fn part(number: u64, size: usize) -> (u64, usize) {
    let at = usize::try_from(number % size as u64).expect("below a usize");
    (number / size as u64, at)
}

type Group = [Option<Arc<Segment>>; GROUP];

/// The segments that stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    // Keys are of ids that we gave out, so nobody can choose them to collide.
    groups: HashMap<u64, Arc<Group>, BuildHasherDefault<FxHasher>>,
    count: usize,
}

impl Segments {
    pub(super) fn get(&self, number: u64) -> Option<&Arc<Segment>> {
        let (group, at) = part(number, GROUP);
        self.groups.get(&group)?[at].as_ref()
    }

    /// The same with that segment, or none, under a number.
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

    /// How many stand.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.groups
            .values()
            .flat_map(|group| group.iter().flatten())
    }
}
