//! Tests of memory pressure: clients that fill the budget of all mailboxes.

use std::sync::Arc;

use super::memory_pressure::Evictable;
use super::{Budget, Client, MailboxBounds, Message, Wakes};
use crate::config::Overflow;
use crate::identity::{ResumptionId, Sender, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::Dialect;
use crate::telemetry::metrics::{DropReason, Metrics};

/// Clients that share one budget.
struct SharedBudget {
    bounds: Arc<MailboxBounds>,
    metrics: Arc<Metrics>,
    received: u64,
}

impl SharedBudget {
    fn new(overflow: Overflow) -> Self {
        Self {
            bounds: Arc::new(MailboxBounds {
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
        let identity = UserIdentity {
            id: UserId::new(id).expect("a small id"),
            resumption_id: ResumptionId::from(0),
        };
        let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
        Arc::new(Client::new(identity, Dialect::Bare, None, bounds, metrics))
    }

    /// Pushes messages of about a kilobyte. Returns how many the client holds then.
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
            let in_hand = InHand::receive(&*self.metrics);
            client.push(message, in_hand, &mut Wakes::default());
        }
        held(client)
    }
}

fn held(client: &Client) -> u32 {
    client.stats().queue_messages
}

#[test]
fn the_fullest_mailbox_is_evicted_first_and_the_ledger_balances() {
    for overflow in [
        Overflow::DropNewest,
        Overflow::DropOldest,
        Overflow::Disconnect,
    ] {
        let mut shared = SharedBudget::new(overflow);
        let clients = [1, 2, 3].map(|id| shared.client(id));
        let [full, half, new] = &clients;
        assert_eq!(shared.fill(half, 160), 160);
        assert_eq!(shared.fill(full, 320), 320);
        // There is room for some 30 more messages, and after that at the cost of another client.
        assert_eq!(shared.fill(new, 100), 100);
        assert_eq!(held(half), 160, "{overflow:?}");
        let evicted = shared.metrics.dropped(DropReason::QueueFull);
        assert!((64..=130).contains(&evicted), "{evicted}");

        // A client as full as the fullest gets no more from it: the two share the room.
        let (in_new, in_full) = (shared.fill(new, 500), held(full));
        assert!(in_new.abs_diff(in_full) <= 80, "{in_new} and {in_full}");
        assert!(held(half) >= 100);
        let held: u64 = clients.iter().map(|client| u64::from(held(client))).sum();
        let dropped = shared.metrics.dropped(DropReason::QueueFull);
        assert_eq!(shared.received, held + dropped, "{overflow:?}");
        drop(clients);
        assert_eq!(shared.bounds.budget.used(), 0);
    }
}

#[test]
fn a_client_that_left_or_is_no_longer_large_is_no_candidate() {
    let mut shared = SharedBudget::new(Overflow::DropNewest);
    let clients: Vec<_> = (1..=4).map(|id| shared.client(id)).collect();
    for client in &clients {
        shared.fill(client, 70);
    }
    let candidates = &shared.bounds.budget.candidates;
    assert_eq!(candidates.count(), 4);
    let mut wakes = Wakes::default();
    clients[0].evict(60 << 10, &mut wakes);
    let kept = clients[0..3].to_vec();
    drop(clients);
    candidates.evict_fullest(1, usize::MAX, &mut wakes);
    assert_eq!(candidates.count(), 2);
    // It is a candidate again when it grows again.
    shared.fill(&kept[0], 70);
    assert_eq!(shared.bounds.budget.candidates.count(), 3);
}
