//! Slots for the connections that have not completed an upgrade: at most `limits.handshakes` at a time on a
//! listener. When all slots are in use, a new connection evicts an old one: the oldest of the network that
//! has the most. Peers that connect and send nothing therefore cannot keep other peers out. A handshake that waits for
//! the cluster lends its slot meanwhile, so that they cannot end its wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::network::Network;

/// A fixed number of slots: a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct PendingConnections {
    pool: Arc<SlotPool>,
}

#[derive(Debug)]
struct SlotPool {
    slots_max: usize,
    usage: Mutex<SlotUsage>,
    /// Notified when a slot becomes free.
    freed: Notify,
}

/// Which connections hold the slots. Its size is bounded by the number of slots.
#[derive(Debug, Default)]
struct SlotUsage {
    /// Slots in use. Counts evicted connections until they have ended.
    in_use: usize,
    /// The number of the next connection. A lower number is an older connection.
    next_number: u64,
    networks: HashMap<Network, Evictable>,
    /// One rank for each network in `networks`. The last network loses a connection first.
    ranks: BTreeSet<Rank>,
}

/// The connections of one network that are not evicted, by number, each with the notification that evicts it.
type Evictable = BTreeMap<u64, Arc<Notify>>;

/// Orders networks: more connections rank higher, and among equals the older oldest connection does. The
/// derived order goes by the fields from top to bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    connections: usize,
    oldest: Reverse<u64>,
    network: Network,
}

/// One slot. Drop frees it.
#[derive(Debug)]
pub(crate) struct PendingSlot {
    pool: Arc<SlotPool>,
    network: Network,
    /// Written under the lock of the pool.
    number: AtomicU64,
    evict: Arc<Notify>,
}

/// A slot that others may use. Drop takes it back, and evicts another connection if too many are in use then.
#[derive(Debug)]
pub(crate) struct LentSlot<'a>(&'a PendingSlot);

impl PendingConnections {
    /// Slots that are all free.
    pub(crate) fn new(slots_max: usize) -> Self {
        Self {
            pool: Arc::new(SlotPool {
                slots_max,
                usage: Mutex::default(),
                freed: Notify::new(),
            }),
        }
    }

    /// Takes a slot for a connection from `peer`. If none is free, evicts a connection and waits until a
    /// slot is. Only one caller may wait at a time, because a freed slot notifies one waiter.
    pub(crate) async fn acquire(&self, peer: IpAddr) -> PendingSlot {
        let network = Network::of(peer);
        let mut has_evicted = false;
        loop {
            {
                let mut usage = self.pool.usage.lock();
                if usage.in_use < self.pool.slots_max {
                    let evict = Arc::new(Notify::new());
                    return PendingSlot {
                        pool: self.pool.clone(),
                        network,
                        number: usage.occupy(network, &evict).into(),
                        evict,
                    };
                }
                if !has_evicted && let Some(evict) = usage.remove_oldest_of_largest() {
                    evict.notify_one();
                    has_evicted = true;
                }
            }
            // A slot that becomes free before this line is not missed: `notify_one` without a waiter
            // leaves a permit for the next one. The permit may be of a slot that is in use again, so the
            // loop waits once more and evicts no second connection.
            self.pool.freed.notified().await;
        }
    }
}

impl SlotUsage {
    /// Uses a slot for a connection, which is the youngest from now on. Returns its number.
    fn occupy(&mut self, network: Network, evict: &Arc<Notify>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.in_use += 1;
        self.update(network, |evictable| {
            evictable.insert(number, evict.clone());
        });
        number
    }

    /// Changes the connections of a network, and its rank with them.
    fn update(&mut self, network: Network, change: impl FnOnce(&mut Evictable)) {
        let evictable = self.networks.entry(network).or_default();
        if let Some(rank) = Rank::of(network, evictable) {
            self.ranks.remove(&rank);
        }
        change(evictable);
        match Rank::of(network, evictable) {
            Some(rank) => {
                self.ranks.insert(rank);
            }
            None => {
                self.networks.remove(&network);
            }
        }
    }

    /// Removes the oldest connection of the network that has the most. Its slot stays in use until the
    /// connection has ended.
    fn remove_oldest_of_largest(&mut self) -> Option<Arc<Notify>> {
        let largest = *self.ranks.last()?;
        let Reverse(number) = largest.oldest;
        let mut oldest = None;
        self.update(largest.network, |evictable| {
            oldest = evictable.remove(&number);
        });
        oldest
    }
}

impl Rank {
    /// The rank of a network; none without connections.
    fn of(network: Network, evictable: &Evictable) -> Option<Self> {
        let (oldest, _) = evictable.first_key_value()?;
        Some(Self {
            connections: evictable.len(),
            oldest: Reverse(*oldest),
            network,
        })
    }
}

impl PendingSlot {
    /// Completes when the slot is needed for another connection.
    pub(crate) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// Lets others use the slot while the connection waits for something that has a limit of its own.
    pub(crate) fn lend(&self) -> LentSlot<'_> {
        self.vacate();
        LentSlot(self)
    }

    fn vacate(&self) {
        {
            let mut usage = self.pool.usage.lock();
            usage.in_use -= 1;
            // Does nothing for an evicted connection, which was removed before.
            usage.update(self.network, |evictable| {
                evictable.remove(&self.number.load(Relaxed));
            });
        }
        self.pool.freed.notify_one();
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        self.vacate();
    }
}

impl Drop for LentSlot<'_> {
    fn drop(&mut self) {
        let Self(slot) = self;
        let mut usage = slot.pool.usage.lock();
        let evicted = if usage.in_use < slot.pool.slots_max {
            None
        } else {
            usage.remove_oldest_of_largest()
        };
        let number = usage.occupy(slot.network, &slot.evict);
        slot.number.store(number, Relaxed);
        drop(usage);
        if let Some(evict) = evicted {
            evict.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn is_evicted(slot: &PendingSlot) -> bool {
        tokio::select! {
            biased;
            () = slot.evicted() => true,
            () = yield_now() => false,
        }
    }

    #[tokio::test]
    async fn the_oldest_of_the_largest_network_is_evicted() {
        let pending = PendingConnections::new(4);
        let user = pending.acquire(address("1.1.1.1")).await;
        // One network, because IPv6 addresses are grouped by /64.
        let large_network = [
            pending.acquire(address("2001:db8::1")).await,
            pending.acquire(address("2001:db8::2")).await,
            pending.acquire(address("2001:db8::ffff:3")).await,
        ];
        let mut newcomer = Box::pin(pending.acquire(address("2.2.2.2")));
        assert!(poll_once(newcomer.as_mut()).await.is_none());
        assert!(is_evicted(&large_network[0]).await, "its oldest is evicted");
        for slot in [&user, &large_network[1], &large_network[2]] {
            assert!(!is_evicted(slot).await, "{slot:?}");
        }
        let [first, second, third] = large_network;
        drop(first);
        let newcomer = newcomer.await;

        // Two of the large network and one of each other: the large network is first again.
        let end_when_evicted = async |slot: PendingSlot| slot.evicted().await;
        let (another, ()) = tokio::join!(
            pending.acquire(address("3.3.3.3")),
            end_when_evicted(second)
        );
        // One of each: the oldest of all is first.
        let (last, ()) = tokio::join!(pending.acquire(address("4.4.4.4")), end_when_evicted(user));
        drop((last, another, newcomer, third));
        let usage = pending.pool.usage.lock();
        assert_eq!(
            (usage.in_use, usage.networks.len(), usage.ranks.len()),
            (0, 0, 0)
        );
    }

    #[tokio::test]
    async fn no_more_slots_are_in_use_than_there_are() {
        let pending = PendingConnections::new(3);
        let mut held = Vec::new();
        for number in 0..100_u8 {
            let acquire = pending.acquire(IpAddr::from([10, 0, 0, number % 7]));
            let mut acquire = Box::pin(acquire);
            if let Some(slot) = poll_once(acquire.as_mut()).await {
                held.push(slot);
                continue;
            }
            let mut evicted = 0;
            let mut kept = Vec::new();
            for slot in held {
                if is_evicted(&slot).await {
                    evicted += 1;
                } else {
                    kept.push(slot);
                }
            }
            assert_eq!(evicted, 1, "one for one");
            held = kept;
            held.push(acquire.await);
            let in_use = pending.pool.usage.lock().in_use;
            assert_eq!((held.len(), in_use), (3, 3));
        }
    }

    /// A slot that became free while no caller waited has notified a later one, which then finds all slots in
    /// use again.
    #[tokio::test]
    async fn one_connection_is_evicted_for_one_newcomer_after_slots_were_free() {
        let pending = PendingConnections::new(3);
        let mut held = Vec::new();
        for number in 0..4 {
            held.push(pending.acquire(IpAddr::from([10, 0, 0, number])).await);
            if number == 0 {
                held.clear();
            }
        }
        let mut newcomer = Box::pin(pending.acquire(address("2.2.2.2")));
        assert!(poll_once(newcomer.as_mut()).await.is_none());
        let mut evicted = Vec::new();
        for slot in &held {
            evicted.push(is_evicted(slot).await);
        }
        assert_eq!(evicted, [true, false, false]);
        held.remove(0);
        newcomer.await;
        for slot in &held {
            assert!(!is_evicted(slot).await);
        }
    }

    #[tokio::test]
    async fn a_lent_slot_is_not_evicted_and_others_make_room_when_it_comes_back() {
        let pending = PendingConnections::new(2);
        let waiting = [
            pending.acquire(address("1.1.1.1")).await,
            pending.acquire(address("1.1.1.1")).await,
        ];
        let lent = waiting.each_ref().map(PendingSlot::lend);
        let others = [
            pending.acquire(address("2.2.2.2")).await,
            pending.acquire(address("3.3.3.3")).await,
        ];
        drop(lent);
        for slot in &others {
            assert!(is_evicted(slot).await);
        }
        for slot in &waiting {
            assert!(!is_evicted(slot).await, "the youngest of all");
        }
        drop((waiting, others));
        let usage = pending.pool.usage.lock();
        assert_eq!(
            (usage.in_use, usage.networks.len(), usage.ranks.len()),
            (0, 0, 0)
        );
    }

    /// The output of a future that is ready at its first poll.
    async fn poll_once<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
