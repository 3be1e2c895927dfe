//! Who somebody is: `UserId` and where ids come from, the node's own sequence or blocks that it holds
//! among other nodes. Parses once, at the edge; must not know of sockets, JSON, settings or how a block
//! is leased.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A user's id: 1 to 2^53 - 1, so that every JSON reader holds it exactly (RFC 8259 section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(NonZeroU64);

impl UserId {
    /// The largest id, 2^53 - 1.
    pub const MAX: u64 = (1 << 53) - 1;

    /// The id of that number, or nothing where it is 0 or over [`UserId::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number)
            .filter(|number| number.get() <= Self::MAX)
            .map(Self)
    }

    /// The number itself.
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

/// Who writes: a user, or by the number 0 the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender(u64);

impl Sender {
    /// The system: an operator, or a program of one.
    pub const SYSTEM: Self = Self(0);

    /// The sender of that number, or nothing where it is over [`UserId::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        (number <= UserId::MAX).then_some(Self(number))
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<UserId> for Sender {
    fn from(user: UserId) -> Self {
        Self(user.get())
    }
}

/// Whom a token is about, in the words of whoever issued it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject(Arc<str>);

impl Subject {
    /// The words themselves.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Tells apart whoever was given one id at different times: a random number that goes from each of
/// their connections to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumptionId(u64);

impl ResumptionId {
    /// A resumption id that nobody else has.
    pub fn new() -> Self {
        Self(fastrand::u64(..))
    }

    /// The number itself.
    pub fn get(self) -> u64 {
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

/// A user's id with the resumption id of its owner: proves that a connection may have the id again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIdentity {
    /// The id.
    pub id: UserId,
    /// Tells this owner of the id from others.
    pub resumption_id: ResumptionId,
}

/// Ids in blocks of one size: block n holds (n - 1) * size + 1 to n * size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks(NonZeroU64);

impl Blocks {
    /// Blocks of `size` ids.
    pub fn of_size(size: NonZeroU64) -> Self {
        Self(size)
    }

    /// Ids in a block.
    pub fn size(self) -> u64 {
        self.0.get()
    }

    /// The block that holds an id.
    pub fn block_of(self, id: UserId) -> u64 {
        (id.get() - 1) / self.0 + 1
    }

    /// The `index`th id of a block, from 0; nothing beyond [`UserId::MAX`].
    fn id(self, block: u64, index: u64) -> Option<UserId> {
        let before = block.checked_sub(1)?.checked_mul(self.size())?;
        UserId::new(before.checked_add(index)?.checked_add(1)?)
    }
}

/// Where new users' ids come from; none is given twice.
#[derive(Debug)]
pub enum Sequence {
    /// The node's own: 1, 2, 3, …, never the same twice while the process lives.
    Local(AtomicU64),
    /// Blocks that this node holds among others, never the same twice while the cluster lives.
    Leased(Arc<Leases>),
}

impl Sequence {
    /// A sequence of one's own, whose first id is 1.
    pub fn local() -> Self {
        Self::Local(AtomicU64::new(1))
    }

    /// The next id; nothing once all 2^53 - 1 are spent, or while no leased block has one.
    pub fn next(&self) -> Option<UserId> {
        match self {
            Self::Local(next) => UserId::new(next.fetch_add(1, Ordering::Relaxed)),
            Self::Leased(leases) => leases.next(),
        }
    }

    /// Somebody comes back with an id that it was given before: no new user gets that one any more.
    /// Whether the id is this node's to give back; then [`Sequence::left`] is owed for it.
    pub fn give_back(&self, id: UserId) -> bool {
        match self {
            Self::Local(next) => {
                next.fetch_max(id.get() + 1, Ordering::Relaxed);
                true
            }
            Self::Leased(leases) => leases.give_back(id),
        }
    }

    /// The user to whom the id was given has left.
    pub fn left(&self, id: UserId) {
        match self {
            Self::Local(_) => {}
            Self::Leased(leases) => leases.left(id),
        }
    }
}

/// The blocks of ids that this node holds. A block is retired once all its ids were given and all
/// their users have left; until then messages for its ids are this node's to take.
#[derive(Debug)]
pub struct Leases {
    blocks: Blocks,
    held: Mutex<Held>,
    changed: Notify,
}

/// What the lock guards.
#[derive(Debug, Default)]
struct Held {
    leases: BTreeMap<u64, Lease>,
    /// Blocks with ids to give, in the order in which they were leased.
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
    /// No block yet.
    pub fn new(blocks: Blocks) -> Self {
        Self {
            blocks,
            held: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The size and borders of blocks.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Ids that can be given.
    pub fn unspent(&self) -> u64 {
        self.held().unspent
    }

    /// The blocks held, the lowest first.
    pub fn list(&self) -> Vec<u64> {
        self.held().leases.keys().copied().collect()
    }

    /// Whether the block that an id is in is held here.
    pub fn holds(&self, id: UserId) -> bool {
        let block = self.blocks.block_of(id);
        self.held().leases.contains_key(&block)
    }

    /// Takes a block in; its ids follow those that are here already.
    pub fn add(&self, block: u64) {
        let mut held = self.held();
        if held.leases.insert(block, Lease::default()).is_none() {
            held.open.push_back(block);
            held.unspent += self.blocks.size();
        }
    }

    /// Gives no more ids of a block: somebody else may give the same.
    pub fn close(&self, block: u64) {
        let mut held = self.held();
        let Some(lease) = held.leases.get_mut(&block) else {
            return;
        };
        let unspent = self.blocks.size() - lease.given;
        lease.given = self.blocks.size();
        held.open.retain(|open| *open != block);
        held.unspent -= unspent;
        held.retire(block, self.blocks);
        drop(held);
        self.changed.notify_one();
    }

    /// Waits until fewer ids than a block has are left, or blocks were retired.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The blocks that were retired since this was last asked.
    pub fn take_retired(&self) -> Vec<u64> {
        std::mem::take(&mut self.held().retired)
    }

    fn next(&self) -> Option<UserId> {
        let mut held = self.held();
        let block = *held.open.front()?;
        let lease = held.leases.get_mut(&block).expect("what is open is held");
        let id = self.blocks.id(block, lease.given);
        lease.given += 1;
        lease.users += u64::from(id.is_some());
        if lease.given == self.blocks.size() {
            held.open.pop_front();
        }
        held.unspent -= 1;
        let is_low = held.unspent < self.blocks.size();
        drop(held);
        if is_low {
            self.changed.notify_one();
        }
        id
    }

    /// Somebody comes back with an id, here or elsewhere: no new user gets it any more. Whether its
    /// block is held; then [`Leases::left`] is owed for it.
    pub fn give_back(&self, id: UserId) -> bool {
        let block = self.blocks.block_of(id);
        let mut held = self.held();
        let Some(lease) = held.leases.get_mut(&block) else {
            return false;
        };
        lease.users += 1;
        let given = lease.given.max((id.get() - 1) % self.blocks.size() + 1);
        let skipped = given - std::mem::replace(&mut lease.given, given);
        if skipped > 0 && given == self.blocks.size() {
            held.open.retain(|open| *open != block);
        }
        held.unspent -= skipped;
        let is_low = held.unspent < self.blocks.size();
        drop(held);
        if is_low && skipped > 0 {
            self.changed.notify_one();
        }
        true
    }

    /// The user to whom an id was given has left.
    pub fn left(&self, id: UserId) {
        let block = self.blocks.block_of(id);
        let mut held = self.held();
        let Some(lease) = held.leases.get_mut(&block) else {
            return;
        };
        lease.users = lease.users.saturating_sub(1);
        if held.retire(block, self.blocks) {
            drop(held);
            self.changed.notify_one();
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn retire(&mut self, block: u64, blocks: Blocks) -> bool {
        let over = self
            .leases
            .get(&block)
            .is_some_and(|lease| lease.given == blocks.size() && lease.users == 0);
        if over {
            self.leases.remove(&block);
            self.retired.push(block);
        }
        over
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
    fn an_id_is_in_the_block_that_gives_it() {
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
    fn ids_come_from_leased_blocks_in_their_order() {
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
    fn a_block_is_retired_when_its_ids_are_spent_and_its_users_gone() {
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
    fn an_id_that_is_given_back_is_not_given_again() {
        let sequence = Sequence::local();
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
    fn a_closed_block_gives_no_more_and_keeps_its_users() {
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
