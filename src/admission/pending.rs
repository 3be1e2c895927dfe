//! The connections that are not users, or not yet: no more than `limits.handshakes` at a time. When
//! one more comes, another makes room at once, so that peers who connect and then say nothing hold
//! up nobody: of the network that has the most of them, the one that has been here longest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::network::Network;

/// A bounded number of places: a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct PendingConnections {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    slots_max: usize,
    guests: Mutex<NetworkConnections>,
    /// Told when a place is free again.
    freed: Notify,
}

/// Who is here. Its size is bounded by the number of places.
#[derive(Debug, Default)]
struct NetworkConnections {
    /// Places taken, those of guests that are about to leave included.
    taken: usize,
    /// Guests so far.
    came: u64,
    networks: HashMap<Network, Waiting>,
    /// The network that has the most guests last; among equals, the one whose first came first.
    ranks: BTreeSet<(usize, Reverse<u64>, Network)>,
}

/// A network's guests that were not asked to leave, by their order of arrival.
type Waiting = BTreeMap<u64, Arc<Notify>>;

/// One place, given back by Drop.
#[derive(Debug)]
pub(crate) struct PendingSlot {
    pending: PendingConnections,
    network: Network,
    number: u64,
    leave: Arc<Notify>,
}

impl PendingConnections {
    /// An empty room.
    pub(crate) fn new(slots_max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                slots_max,
                guests: Mutex::default(),
                freed: Notify::new(),
            }),
        }
    }

    /// Takes a place for a connection from `peer`; where there is none, one that is taken is given
    /// up first. For one caller at a time.
    pub(crate) async fn enter(&self, peer: IpAddr) -> PendingSlot {
        let network = Network::of(peer);
        loop {
            let freed = self.shared.freed.notified();
            {
                let mut guests = self.guests();
                if guests.taken < self.shared.slots_max {
                    return self.client(&mut guests, network);
                }
                if let Some(leave) = guests.take_oldest_of_most() {
                    leave.notify_one();
                }
            }
            freed.await;
        }
    }

    fn client(&self, guests: &mut NetworkConnections, network: Network) -> PendingSlot {
        let number = guests.came;
        let leave = Arc::new(Notify::new());
        guests.came += 1;
        guests.taken += 1;
        guests.change(network, |waiting| {
            waiting.insert(number, leave.clone());
        });
        PendingSlot {
            pending: self.clone(),
            network,
            number,
            leave,
        }
    }

    fn guests(&self) -> MutexGuard<'_, NetworkConnections> {
        self.shared
            .guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetworkConnections {
    fn change(&mut self, network: Network, change: impl FnOnce(&mut Waiting)) {
        let rank = |waiting: &Waiting| {
            let (first, _) = waiting.first_key_value()?;
            Some((waiting.len(), Reverse(*first), network))
        };
        let waiting = self.networks.entry(network).or_default();
        if let Some(rank) = rank(waiting) {
            self.ranks.remove(&rank);
        }
        change(waiting);
        match rank(waiting) {
            Some(rank) => {
                self.ranks.insert(rank);
            }
            None => {
                self.networks.remove(&network);
            }
        }
    }

    fn take_oldest_of_most(&mut self) -> Option<Arc<Notify>> {
        let (_, Reverse(number), network) = *self.ranks.last()?;
        let mut oldest = None;
        self.change(network, |waiting| oldest = waiting.remove(&number));
        oldest
    }
}

impl PendingSlot {
    /// Completes when the place is needed for somebody else.
    pub(crate) async fn is_wanted(&self) {
        self.leave.notified().await;
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        let mut guests = self.pending.guests();
        guests.taken -= 1;
        guests.change(self.network, |waiting| {
            waiting.remove(&self.number);
        });
        drop(guests);
        self.pending.shared.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn wanted(slot: &PendingSlot) -> bool {
        tokio::select! {
            biased;
            () = slot.is_wanted() => true,
            () = yield_now() => false,
        }
    }

    #[tokio::test]
    async fn the_oldest_of_the_network_with_the_most_makes_room() {
        let pending = PendingConnections::new(4);
        let user = pending.enter(address("1.1.1.1")).await;
        // One network: IPv6 goes by /64.
        let crowd = [
            pending.enter(address("2001:db8::1")).await,
            pending.enter(address("2001:db8::2")).await,
            pending.enter(address("2001:db8::ffff:3")).await,
        ];
        let mut newcomer = Box::pin(pending.enter(address("2.2.2.2")));
        assert!(futures_now(newcomer.as_mut()).await.is_none());
        assert!(wanted(&crowd[0]).await, "its first has to go");
        for slot in [&user, &crowd[1], &crowd[2]] {
            assert!(!wanted(slot).await, "{slot:?}");
        }
        let [first, second, third] = crowd;
        drop(first);
        let newcomer = newcomer.await;

        // Two of the crowd, and one each of the others: the crowd goes first again.
        let leave = async |slot: PendingSlot| slot.is_wanted().await;
        let (another, ()) = tokio::join!(pending.enter(address("3.3.3.3")), leave(second));
        // One each: the one that came first.
        let (last, ()) = tokio::join!(pending.enter(address("4.4.4.4")), leave(user));
        drop((last, another, newcomer, third));
        let guests = pending.guests();
        assert_eq!(
            (guests.taken, guests.networks.len(), guests.ranks.len()),
            (0, 0, 0)
        );
    }

    #[tokio::test]
    async fn a_room_holds_no_more_than_its_places() {
        let pending = PendingConnections::new(3);
        let mut here = Vec::new();
        for number in 0..100_u8 {
            let enter = pending.enter(IpAddr::from([10, 0, 0, number % 7]));
            let mut enter = Box::pin(enter);
            if let Some(slot) = futures_now(enter.as_mut()).await {
                here.push(slot);
                continue;
            }
            let mut left = 0;
            let mut stay = Vec::new();
            for slot in here {
                if wanted(&slot).await {
                    left += 1;
                } else {
                    stay.push(slot);
                }
            }
            assert_eq!(left, 1, "one for one");
            here = stay;
            here.push(enter.await);
            assert_eq!((here.len(), pending.guests().taken), (3, 3));
        }
    }

    /// What a future gives without waiting.
    async fn futures_now<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
