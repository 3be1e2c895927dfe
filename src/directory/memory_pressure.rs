//! When the room for all mailboxes is used up, the fullest gives first: whoever does not read pays
//! before those who do. Nothing here is touched by a message while there is room, but when a mailbox
//! grows large; and no two locks are held at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::client::{Client, Wakes};

/// Bytes from which on a mailbox is kept in mind as one that could give.
pub(super) const LARGE_BYTES: usize = 64 * 1024;

/// What a mailbox gives at once, bytes, so that the next messages find room without asking again.
const RELIEF_BYTES: usize = 64 * 1024;

/// Mailboxes that are looked at for the fullest. Of more than these it is the fullest of some, others
/// each time.
const SAMPLE: usize = 256;

/// Mailboxes that were large when they last grew, at most one entry each.
#[derive(Debug, Default)]
pub(super) struct Large {
    clients: Mutex<VecDeque<Weak<Client>>>,
}

impl Large {
    /// Keeps a client in mind whose mailbox has grown large.
    pub(super) fn note(&self, client: &Arc<Client>) {
        let mut clients = self.clients();
        if clients.len() == clients.capacity() {
            // Before it grows: those who have left.
            clients.retain(|client| client.strong_count() > 0);
        }
        clients.push_back(Arc::downgrade(client));
    }

    /// Has the fullest mailbox give up at least `needed` bytes, and not so many that less is left of
    /// it than `fill`, which is what the mailbox that needs them has.
    pub(super) fn relieve(&self, needed: usize, fill: usize, wakes: &mut Wakes) {
        let sample: Vec<_> = {
            let mut clients = self.clients();
            let count = clients.len().min(SAMPLE);
            clients.drain(..count).collect()
        };
        let mut fullest: Option<(usize, Arc<Client>)> = None;
        let mut large = Vec::with_capacity(sample.len());
        for entry in sample {
            let Some(client) = entry.upgrade() else {
                continue;
            };
            let Some(bytes) = client.can_give() else {
                continue;
            };
            large.push(entry);
            if fullest.as_ref().is_none_or(|(most, _)| bytes > *most) {
                fullest = Some((bytes, client));
            }
        }
        self.clients().extend(large);
        if let Some((bytes, client)) = fullest
            && let Some(spare) = bytes.checked_sub(fill)
            && spare > needed
        {
            client.give(needed.max(RELIEF_BYTES).min(spare), wakes);
        }
    }

    fn clients(&self) -> MutexGuard<'_, VecDeque<Weak<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overflow;
    use crate::directory::{Bounds, Budget, Message};
    use crate::identity::{ResumptionId, Sender, UserId};
    use crate::ledger::InHand;
    use crate::protocol::Dialect;
    use crate::telemetry::metrics::{DropReason, Metrics};

    struct House {
        bounds: Arc<Bounds>,
        metrics: Arc<Metrics>,
        received: u64,
    }

    impl House {
        fn new(overflow: Overflow) -> Self {
            Self {
                bounds: Arc::new(Bounds {
                    messages: 10_000,
                    bytes: 1 << 20,
                    overflow,
                    budget: Budget::new(512 << 10),
                }),
                metrics: Arc::new(Metrics::new(1)),
                received: 0,
            }
        }

        fn client(&self, id: u64) -> Arc<Client> {
            let id = UserId::new(id).unwrap();
            let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
            Arc::new(Client::new(
                (id, ResumptionId::from(0)),
                Dialect::Bare,
                None,
                bounds,
                metrics,
            ))
        }

        /// Pushes messages of about a kilobyte; how many the client holds then.
        fn fill(&mut self, client: &Arc<Client>, count: u32) -> u32 {
            let message = format!("\"{}\"", "x".repeat(987));
            for _ in 0..count {
                let message = Message {
                    sender: Sender::SYSTEM,
                    body: &message,
                    read_at: 0,
                    receipt: None,
                };
                self.received += 1;
                client.push(
                    message,
                    InHand::receive(&*self.metrics),
                    &mut Wakes::default(),
                );
            }
            client.held().0
        }
    }

    #[test]
    fn the_fullest_gives_first_and_the_ledger_balances() {
        for overflow in [
            Overflow::DropNewest,
            Overflow::DropOldest,
            Overflow::Disconnect,
        ] {
            let mut house = House::new(overflow);
            let clients = [1, 2, 3].map(|id| house.client(id));
            let [full, half, new] = &clients;
            assert_eq!(house.fill(half, 160), 160);
            assert_eq!(house.fill(full, 320), 320);
            // There is room for some 30 more, and after that at somebody's cost.
            assert_eq!(house.fill(new, 100), 100);
            assert_eq!(half.held().0, 160, "{overflow:?}");
            let given = house.metrics.dropped(DropReason::QueueFull);
            assert!((64..=130).contains(&given), "{given}");

            // Whoever is as full as the fullest gets no more from it: the two share what is there.
            let (in_new, in_full) = (house.fill(new, 500), full.held().0);
            assert!(in_new.abs_diff(in_full) <= 80, "{in_new} and {in_full}");
            assert!(half.held().0 >= 100);
            let held: u64 = clients
                .iter()
                .map(|client| u64::from(client.held().0))
                .sum();
            let dropped = house.metrics.dropped(DropReason::QueueFull);
            assert_eq!(house.received, held + dropped, "{overflow:?}");
            drop(clients);
            assert_eq!(house.bounds.budget.used(), 0);
        }
    }

    #[test]
    fn who_is_no_longer_large_or_here_is_forgotten() {
        let mut house = House::new(Overflow::DropNewest);
        let clients: Vec<_> = (1..=4).map(|id| house.client(id)).collect();
        for client in &clients {
            house.fill(client, 70);
        }
        let large = &house.bounds.budget.large;
        assert_eq!(large.clients().len(), 4);
        let mut wakes = Wakes::default();
        clients[0].give(60 << 10, &mut wakes);
        let kept = clients[0..3].to_vec();
        drop(clients);
        large.relieve(1, usize::MAX, &mut wakes);
        assert_eq!(large.clients().len(), 2);
        // It is noted again when it grows again.
        let large = Arc::clone(&kept[0]);
        house.fill(&large, 70);
        assert_eq!(house.bounds.budget.large.clients().len(), 3);
    }
}
