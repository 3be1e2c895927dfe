//! User ids, and where they come from: a sequence of this process, or blocks that this node has leased in a
//! cluster. Must not know of sockets, JSON, settings or how a block is leased.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A user's id: 1 to 2^53 - 1, which every JSON reader holds exactly (RFC 8259 section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(NonZeroU64);

impl UserId {
    /// The largest id, 2^53 - 1.
    pub const MAX: u64 = (1 << 53) - 1;

    /// The id with this number. `None` for 0 and above [`UserId::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number)
            .filter(|number| number.get() <= Self::MAX)
            .map(Self)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserId({})", self.0)
    }
}

/// The author of a message: a user, or the system, which has the number 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender(u64);

impl Sender {
    /// The system: an operator or an operator's program.
    pub const SYSTEM: Self = Self(0);

    /// The sender with this number. `None` above [`UserId::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        (number <= UserId::MAX).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<UserId> for Sender {
    fn from(user: UserId) -> Self {
        Self(user.get())
    }
}

/// The subject of a token, as its issuer names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject(Arc<str>);

impl Subject {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Tells apart users that had the same id at different times: a random number that stays the same from one
/// connection of a user to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumptionId(u64);

impl ResumptionId {
    /// A new random resumption id.
    pub(crate) fn new() -> Self {
        Self(fastrand::u64(..))
    }

    /// The number.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl Default for ResumptionId {
    fn default() -> Self {
        Self::new()
    }
}

impl From<u64> for ResumptionId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// A user's id with the resumption id of its owner. A connection with both may have the id again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIdentity {
    /// The id.
    pub id: UserId,
    /// Tells this owner of the id from other ones.
    pub resumption_id: ResumptionId,
}

/// The division of ids into blocks of one size: block n has the ids (n - 1) * size + 1 to n * size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks(NonZeroU64);

impl Blocks {
    /// Blocks of `size` ids.
    pub(crate) fn of_size(size: NonZeroU64) -> Self {
        Self(size)
    }

    /// The number of ids in a block.
    pub(crate) fn size(self) -> u64 {
        self.0.get()
    }

    /// The block of an id.
    pub(crate) fn block_of(self, id: UserId) -> u64 {
        (id.get() - 1) / self.0 + 1
    }

    /// The id at `index` of a block, counted from 0. `None` above [`UserId::MAX`].
    fn id(self, block: u64, index: u64) -> Option<UserId> {
        let before = block.checked_sub(1)?.checked_mul(self.size())?;
        UserId::new(before.checked_add(index)?.checked_add(1)?)
    }
}

/// The source of new users' ids. It gives no id twice.
#[derive(Debug)]
pub(crate) enum Sequence {
    /// 1, 2, 3, …, or from where an earlier process has ended; unique while the process lives.
    Local(AtomicU64),
    /// Ids of blocks that this node has leased; unique while the cluster lives.
    Leased(Arc<Leases>),
}

impl Sequence {
    /// A sequence of this process, which begins with the id `first`.
    pub(crate) fn local(first: u64) -> Self {
        Self::Local(AtomicU64::new(first))
    }

    /// The next id. `None` when all 2^53 - 1 are given, or while no leased block has an id left.
    pub(crate) fn next(&self) -> Option<UserId> {
        match self {
            Self::Local(next) => UserId::new(next.fetch_add(1, Ordering::Relaxed)),
            Self::Leased(leases) => leases.next(),
        }
    }

    /// Gives no more ids of the current block, because other users have them.
    pub(crate) fn skip_block(&self) {
        match self {
            Self::Local(_) => {}
            Self::Leased(leases) => leases.skip_block(),
        }
    }

    /// Gives a user an id that it had before. No new user gets this id from here on.
    pub(crate) fn give_back(&self, id: UserId) {
        match self {
            Self::Local(next) => {
                next.fetch_max(id.get() + 1, Ordering::Relaxed);
            }
            Self::Leased(leases) => leases.give_back(id),
        }
    }
}

/// The blocks of ids that this node has leased and that have ids left.
#[derive(Debug)]
pub(crate) struct Leases {
    blocks: Blocks,
    state: Mutex<LeasedBlocks>,
    changed: Notify,
}

/// State behind the lock.
#[derive(Debug, Default)]
struct LeasedBlocks {
    /// In the order in which they were leased, each with the number of its ids that were given.
    open: VecDeque<(u64, u64)>,
    unspent: u64,
    /// The highest block that is known from a lease or an id.
    highest: u64,
}

impl Leases {
    /// No blocks.
    pub(crate) fn new(blocks: Blocks) -> Self {
        Self {
            blocks,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The number of ids in a block.
    pub(crate) fn block_size(&self) -> u64 {
        self.blocks.size()
    }

    /// The number of ids left.
    pub(crate) fn unspent(&self) -> u64 {
        self.state.lock().unspent
    }

    /// The number of blocks with ids left.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().open.len()
    }

    /// The highest block that is known to be leased.
    pub(crate) fn highest(&self) -> u64 {
        self.state.lock().highest
    }

    /// Adds a block. Its ids are given after those of earlier blocks.
    pub(crate) fn add(&self, block: u64) {
        let mut state = self.state.lock();
        state.open.push_back((block, 0));
        state.unspent += self.blocks.size();
        state.highest = state.highest.max(block);
    }

    /// Gives no more ids of the current block, because others have them already.
    pub(crate) fn skip_block(&self) {
        let mut state = self.state.lock();
        if let Some((_, given)) = state.open.pop_front() {
            state.unspent -= self.blocks.size() - given;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Waits until fewer ids are left than a block has, or an id of a higher block than all before was seen.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn next(&self) -> Option<UserId> {
        let mut state = self.state.lock();
        let (block, given) = state.open.front_mut()?;
        let id = self.blocks.id(*block, *given);
        *given += 1;
        if *given == self.blocks.size() {
            state.open.pop_front();
        }
        state.unspent -= 1;
        let is_low = state.unspent < self.blocks.size();
        drop(state);
        if is_low {
            self.changed.notify_one();
        }
        id
    }

    /// Notes an id that a user had before, on this node or another one. No new user gets this id from here on.
    fn give_back(&self, id: UserId) {
        let block = self.blocks.block_of(id);
        let mut state = self.state.lock();
        let is_higher = block > state.highest;
        state.highest = state.highest.max(block);
        let mut skipped = 0;
        if let Some((_, given)) = state.open.iter_mut().find(|(open, _)| *open == block) {
            let after = (id.get() - 1) % self.blocks.size() + 1;
            skipped = after.saturating_sub(*given);
            *given += skipped;
            let size = self.blocks.size();
            state.open.retain(|(_, given)| *given < size);
        }
        state.unspent -= skipped;
        let is_low = state.unspent < self.blocks.size();
        drop(state);
        if is_higher || (is_low && skipped > 0) {
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases(size: u64) -> (Arc<Leases>, Sequence) {
        let leases = Arc::new(Leases::new(Blocks::of_size(NonZeroU64::new(size).unwrap())));
        (leases.clone(), Sequence::Leased(leases))
    }

    fn given(sequence: &Sequence) -> Vec<u64> {
        std::iter::from_fn(|| sequence.next())
            .map(UserId::get)
            .collect()
    }

    #[test]
    fn each_id_is_in_its_block() {
        for size in [1, 3, 4, 1024] {
            let blocks = Blocks::of_size(NonZeroU64::new(size).unwrap());
            let mut expected = 1;
            for block in 1..4 {
                for index in 0..size {
                    let id = blocks.id(block, index).unwrap();
                    assert_eq!((id.get(), blocks.block_of(id)), (expected, block));
                    expected += 1;
                }
            }
        }
        let blocks = Blocks::of_size(NonZeroU64::new(1024).unwrap());
        let last = UserId::MAX / 1024 + 1;
        assert_eq!(blocks.id(last, 1022).map(UserId::get), Some(UserId::MAX));
        assert_eq!(blocks.id(last, 1023), None);
        assert_eq!(blocks.id(u64::MAX, 1023), None);
    }

    #[test]
    fn blocks_give_ids_in_the_order_of_their_leases() {
        let (leases, sequence) = leases(3);
        assert_eq!(sequence.next(), None);
        leases.add(1);
        assert_eq!((leases.unspent(), leases.len()), (3, 1));
        leases.add(5);
        assert_eq!(given(&sequence), [1, 2, 3, 13, 14, 15]);
        assert_eq!((leases.unspent(), leases.len()), (0, 0));
        leases.add(4);
        assert_eq!(given(&sequence), [10, 11, 12]);
        assert_eq!(leases.highest(), 5);
    }

    #[test]
    fn a_resumed_id_is_not_given_to_a_new_user() {
        let sequence = Sequence::local(1);
        assert_eq!(sequence.next(), UserId::new(1));
        sequence.give_back(UserId::new(3).unwrap());
        sequence.give_back(UserId::new(2).unwrap());
        assert_eq!(sequence.next(), UserId::new(4));
        sequence.give_back(UserId::new(UserId::MAX).unwrap());
        assert_eq!(sequence.next(), None);

        let (leases, sequence) = leases(3);
        leases.add(1);
        leases.add(2);
        sequence.give_back(UserId::new(7).unwrap());
        assert_eq!((leases.unspent(), leases.highest()), (6, 3));
        sequence.give_back(UserId::new(2).unwrap());
        sequence.give_back(UserId::new(1).unwrap());
        assert_eq!((leases.unspent(), sequence.next()), (4, UserId::new(3)));
        sequence.give_back(UserId::new(6).unwrap());
        assert_eq!((leases.unspent(), sequence.next()), (0, None));
    }

    #[test]
    fn a_block_whose_ids_others_have_is_skipped() {
        let (leases, sequence) = leases(4);
        leases.add(1);
        leases.add(2);
        assert_eq!(sequence.next(), UserId::new(1));
        leases.skip_block();
        assert_eq!((leases.unspent(), sequence.next()), (4, UserId::new(5)));
        leases.skip_block();
        leases.skip_block();
        assert_eq!((leases.unspent(), sequence.next()), (0, None));
    }
}
