//! User ids, and where they come from: a sequence of this process, or blocks that this node has leased in a
//! cluster. Must not know of sockets, JSON, settings or how a block is leased.

use std::collections::{BTreeMap, VecDeque};
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

    /// Gives a user an id that it had before. No new user gets this id from here on. Returns whether the id is
    /// of this node; then the caller owes a call of [`Sequence::left`].
    pub(crate) fn give_back(&self, id: UserId) -> bool {
        match self {
            Self::Local(next) => {
                next.fetch_max(id.get() + 1, Ordering::Relaxed);
                true
            }
            Self::Leased(leases) => leases.give_back(id),
        }
    }

    /// Notes that the user with this id has left.
    pub(crate) fn left(&self, id: UserId) {
        match self {
            Self::Local(_) => {}
            Self::Leased(leases) => leases.left(id),
        }
    }
}

/// The blocks of ids that this node has leased. A block is retired when all its ids were given and all their
/// users have left. Until then this node receives the messages for its ids.
#[derive(Debug)]
pub(crate) struct Leases {
    blocks: Blocks,
    state: Mutex<LeasedBlocks>,
    changed: Notify,
}

/// State behind the lock.
#[derive(Debug, Default)]
struct LeasedBlocks {
    leases: BTreeMap<u64, Lease>,
    /// Blocks with ids left, in the order in which they were leased.
    open: VecDeque<u64>,
    unspent: u64,
    retired: Vec<u64>,
}

#[derive(Debug, Default)]
struct Lease {
    given: u64,
    users: u64,
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

    /// The division into blocks.
    pub(crate) fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// The number of ids left.
    pub(crate) fn unspent(&self) -> u64 {
        self.state.lock().unspent
    }

    /// The leased blocks, the lowest first.
    pub(crate) fn list(&self) -> Vec<u64> {
        self.state.lock().leases.keys().copied().collect()
    }

    /// Whether this node has leased the block of an id.
    pub(crate) fn holds(&self, id: UserId) -> bool {
        let block = self.blocks.block_of(id);
        self.state.lock().leases.contains_key(&block)
    }

    /// Adds a block. Its ids are given after those of earlier blocks.
    pub(crate) fn add(&self, block: u64) {
        let mut state = self.state.lock();
        if state.leases.insert(block, Lease::default()).is_none() {
            state.open.push_back(block);
            state.unspent += self.blocks.size();
        }
    }

    /// Gives no more ids of a block, because another node may give the same ones.
    pub(crate) fn close(&self, block: u64) {
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&block) else {
            return;
        };
        let unspent = self.blocks.size() - lease.given;
        lease.given = self.blocks.size();
        state.open.retain(|open| *open != block);
        state.unspent -= unspent;
        state.retire(block, self.blocks);
        drop(state);
        self.changed.notify_one();
    }

    /// Waits until fewer ids are left than a block has, or a block was retired.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes the blocks that were retired since the last call.
    pub(crate) fn take_retired(&self) -> Vec<u64> {
        std::mem::take(&mut self.state.lock().retired)
    }

    fn next(&self) -> Option<UserId> {
        let mut state = self.state.lock();
        let block = *state.open.front()?;
        let lease = state
            .leases
            .get_mut(&block)
            .expect("an open block is leased");
        let id = self.blocks.id(block, lease.given);
        lease.given += 1;
        lease.users += u64::from(id.is_some());
        if lease.given == self.blocks.size() {
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

    /// Gives a user an id that it had before, on this node or another one. No new user gets this id from here
    /// on. Returns whether its block is leased; then the caller owes a call of [`Leases::left`].
    pub(crate) fn give_back(&self, id: UserId) -> bool {
        let block = self.blocks.block_of(id);
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&block) else {
            return false;
        };
        lease.users += 1;
        let given = lease.given.max((id.get() - 1) % self.blocks.size() + 1);
        let skipped = given - std::mem::replace(&mut lease.given, given);
        if skipped > 0 && given == self.blocks.size() {
            state.open.retain(|open| *open != block);
        }
        state.unspent -= skipped;
        let is_low = state.unspent < self.blocks.size();
        drop(state);
        if is_low && skipped > 0 {
            self.changed.notify_one();
        }
        true
    }

    /// Notes that the user with this id has left.
    pub(crate) fn left(&self, id: UserId) {
        let block = self.blocks.block_of(id);
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&block) else {
            return;
        };
        lease.users = lease.users.saturating_sub(1);
        if state.retire(block, self.blocks) {
            drop(state);
            self.changed.notify_one();
        }
    }
}

impl LeasedBlocks {
    fn retire(&mut self, block: u64, blocks: Blocks) -> bool {
        let is_over = self
            .leases
            .get(&block)
            .is_some_and(|lease| lease.given == blocks.size() && lease.users == 0);
        if is_over {
            self.leases.remove(&block);
            self.retired.push(block);
        }
        is_over
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
        assert_eq!(leases.unspent(), 3);
        leases.add(5);
        assert_eq!(given(&sequence), [1, 2, 3, 13, 14, 15]);
        assert_eq!(leases.unspent(), 0);
        leases.add(4);
        assert_eq!(given(&sequence), [10, 11, 12]);
        assert_eq!(leases.list(), [1, 4, 5]);
        assert!(given(&sequence).is_empty());
    }

    #[test]
    fn a_block_is_retired_when_its_ids_are_given_and_its_users_have_left() {
        let (leases, sequence) = leases(2);
        leases.add(1);
        let [first, second] = [(); 2].map(|()| sequence.next().unwrap());
        sequence.left(second);
        assert!(leases.holds(first) && leases.take_retired().is_empty());
        sequence.left(first);
        assert!(!leases.holds(first));
        assert_eq!(leases.take_retired(), [1]);
        assert!(leases.take_retired().is_empty());

        leases.add(2);
        let third = sequence.next().unwrap();
        sequence.left(third);
        assert!(leases.holds(third), "it still has an id to give");
        leases.close(2);
        assert_eq!((leases.unspent(), leases.take_retired()), (0, vec![2]));
    }

    #[test]
    fn a_resumed_id_is_not_given_to_a_new_user() {
        let sequence = Sequence::local(1);
        assert_eq!(sequence.next(), UserId::new(1));
        assert!(sequence.give_back(UserId::new(3).unwrap()));
        assert!(sequence.give_back(UserId::new(2).unwrap()));
        assert_eq!(sequence.next(), UserId::new(4));
        assert!(sequence.give_back(UserId::new(UserId::MAX).unwrap()));
        assert_eq!(sequence.next(), None);

        let (leases, sequence) = leases(3);
        leases.add(1);
        leases.add(2);
        assert!(!sequence.give_back(UserId::new(7).unwrap()));
        assert!(sequence.give_back(UserId::new(2).unwrap()));
        assert_eq!((leases.unspent(), sequence.next()), (4, UserId::new(3)));
        let sixth = UserId::new(6).unwrap();
        assert!(sequence.give_back(sixth));
        assert_eq!((leases.unspent(), sequence.next()), (0, None));
        sequence.left(sixth);
        assert_eq!(leases.take_retired(), [2]);
        assert_eq!(leases.list(), [1]);
    }

    #[test]
    fn a_closed_block_gives_no_ids_and_keeps_its_users() {
        let (leases, sequence) = leases(4);
        leases.add(1);
        leases.add(2);
        let first = sequence.next().unwrap();
        leases.close(1);
        assert_eq!(given(&sequence), [5, 6, 7, 8]);
        assert!(leases.holds(first));
        sequence.left(first);
        assert_eq!(leases.take_retired(), [1]);
    }
}
