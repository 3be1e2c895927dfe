//! Tests of memory pressure: clients that fill the budget of all mailboxes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::memory_pressure::SizeClass;
use super::{Budget, Client, Command, Flushed, MailboxBounds, Message, Wakes};
use crate::config::Overflow;
use crate::identity::{ResumptionId, Sender, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::Dialect;
use crate::telemetry::metrics::{DropReason, Metrics};

const ALL: [Overflow; 3] = [
    Overflow::DropNewest,
    Overflow::DropOldest,
    Overflow::Disconnect,
];

/// Clients that share one budget.
struct SharedBudget {
    bounds: Arc<MailboxBounds>,
    metrics: Arc<Metrics>,
}

impl SharedBudget {
    fn new(overflow: Overflow) -> Self {
        Self::with_total(overflow, 512 << 10)
    }

    fn with_total(overflow: Overflow, total: u64) -> Self {
        Self::with(1 << 20, overflow, total)
    }

    fn with(bytes: usize, overflow: Overflow, total: u64) -> Self {
        Self {
            bounds: Arc::new(MailboxBounds {
                messages: 10_000,
                bytes,
                max_age: Duration::MAX,
                overflow,
                budget: Budget::new(total),
            }),
            metrics: Arc::new(Metrics::new(1)),
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
    fn fill(&self, client: &Arc<Client>, count: u32) -> u32 {
        for _ in 0..count {
            self.push(client, 987);
        }
        held(client)
    }

    fn push(&self, client: &Arc<Client>, bytes: usize) {
        let message = Message {
            sender: Sender::SYSTEM,
            body: &format!("\"{}\"", "x".repeat(bytes)),
            read_at: 0,
            receipt: None,
        };
        let in_hand = InHand::receive(&*self.metrics);
        client.push(message, in_hand, &mut Wakes::default());
    }

    fn balances(&self, clients: &[Arc<Client>]) {
        let held: u64 = clients.iter().map(|client| u64::from(held(client))).sum();
        let dropped = self.metrics.dropped(DropReason::QueueFull);
        assert_eq!(self.metrics.received(), held + dropped);
    }
}

fn held(client: &Client) -> u32 {
    client.stats().queue_messages
}

#[test]
fn messages_that_fill_the_bytes_of_a_mailbox_exactly_fit() {
    let shared = SharedBudget::new(Overflow::DropNewest);
    let one = shared.client(1);
    shared.push(&one, 100);
    let bytes = one.stats().queue_bytes;
    for (spare, fit) in [(0, 3), (1, 3), (-1, 2)] {
        let bytes = (3 * bytes).checked_add_signed(spare).unwrap();
        let exact = SharedBudget::with(bytes, Overflow::DropNewest, 512 << 10);
        let client = exact.client(1);
        (0..4).for_each(|_| exact.push(&client, 100));
        assert_eq!(held(&client), fit, "{spare}");
        exact.balances(&[client]);
    }
}

#[test]
fn the_fullest_mailbox_is_evicted_first_and_the_ledger_balances() {
    for overflow in ALL {
        let shared = SharedBudget::new(overflow);
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
        shared.balances(&clients);
        drop(clients);
        assert_eq!(shared.bounds.budget.used(), 0);
    }
}

/// Whatever the others hold, many small mailboxes or few large ones, an empty one gets its first messages.
#[test]
fn an_empty_mailbox_gets_its_first_messages_whatever_others_hold() {
    for overflow in ALL {
        for messages in [1, 5, 60, 400] {
            let shared = SharedBudget::new(overflow);
            let mut clients = Vec::new();
            while shared.metrics.dropped(DropReason::QueueFull) == 0 {
                let client = shared.client(clients.len() as u64 + 1);
                shared.fill(&client, messages);
                clients.push(client);
            }
            for id in 1001..1020 {
                let client = shared.client(id);
                assert_eq!(shared.fill(&client, 1), 1, "{overflow:?}, {messages} each");
                clients.push(client);
            }
            // Also a message that is larger than what any of them holds.
            let client = shared.client(2000);
            shared.push(&client, 60_000);
            assert_eq!(held(&client), 1, "{overflow:?}, {messages} each");
            clients.push(client);
            shared.balances(&clients);
            for client in &clients {
                assert_eq!(
                    client.settle(Flushed::default()),
                    None,
                    "no client is closed"
                );
            }
        }
    }
}

#[test]
fn only_a_mailbox_that_is_itself_full_is_a_reason_to_disconnect() {
    let shared = SharedBudget::new(Overflow::Disconnect);
    let clients = [1, 2].map(|id| shared.client(id));
    for client in &clients {
        shared.fill(client, 600);
        assert_eq!(client.settle(Flushed::default()), None);
    }
    let bytes = shared.bounds.bytes;
    let large = SharedBudget::with_total(Overflow::Disconnect, 4 * bytes as u64);
    let client = large.client(1);
    for _ in 0..=bytes / 60_000 {
        large.push(&client, 60_000);
    }
    let command = client.settle(Flushed::default());
    assert!(matches!(command, Some(Command::Close { code: 1013, .. })));
}

/// A frame that the socket has begun to take cannot be evicted. It does not count, or such frames could use
/// up the budget.
#[test]
fn a_frame_that_is_stuck_in_a_socket_takes_nothing_of_the_budget() {
    let shared = SharedBudget::new(Overflow::DropNewest);
    let clients: Vec<_> = (1..=20).map(|id| shared.client(id)).collect();
    let mut in_flight = Vec::new();
    for client in &clients {
        shared.push(client, 60_000);
        let (mut frames, mut taken) = (Vec::new(), VecDeque::new());
        let cx = Context::from_waker(Waker::noop());
        client.take(Flushed::default(), &mut frames, &mut taken, &cx);
        client.put_back(&[], VecDeque::new());
        in_flight.push(taken);
        assert_eq!(held(client), 1);
    }
    let used = shared.bounds.budget.used();
    assert_eq!(used, 20 * u64::from(Budget::STEP) * 2, "for the entries");
    for (client, taken) in clients.iter().zip(in_flight) {
        let flushed = Flushed {
            messages: 1,
            bytes: taken[0].bytes,
            ..Flushed::default()
        };
        client.settle(flushed);
        assert_eq!((held(client), client.stats().queue_bytes), (0, 0));
    }
    assert_eq!(shared.bounds.budget.used(), 0);
}

#[test]
fn a_client_is_a_candidate_by_the_size_of_its_mailbox_until_it_leaves() {
    let shared = SharedBudget::new(Overflow::DropNewest);
    let clients: Vec<_> = (1..=4).map(|id| shared.client(id)).collect();
    let candidates = &shared.bounds.clone().budget.candidates;
    assert_eq!(candidates.count(), 0);
    for client in &clients {
        shared.fill(client, 70);
    }
    assert_eq!(candidates.count(), 4);
    let mut wakes = Wakes::default();
    clients[0].leave(VecDeque::new(), DropReason::Disconnected, &mut wakes);
    assert_eq!(candidates.count(), 3);
    // One that is dropped without leaving is found out by a search.
    drop(clients);
    let floor = SizeClass::default();
    assert!(!candidates.evict(1, floor, || false, &mut wakes));
    assert_eq!(candidates.count(), 0);
}

#[test]
fn a_size_class_spans_at_most_a_quarter() {
    let classes: Vec<_> = (0..1 << 20).map(SizeClass::of).collect();
    assert!(classes.is_sorted());
    for class in 1..classes.len() {
        let next = class + class / 4 + 1;
        if next < classes.len() {
            assert!(classes[class] < classes[next], "{class}");
        }
    }
    assert!(SizeClass::of(u32::MAX) > classes[classes.len() - 1]);
}

/// The oldest are dropped where a full mailbox drops the oldest, and else the newest.
#[test]
fn messages_are_evicted_from_the_end_that_the_policy_drops_from() {
    for overflow in ALL {
        let shared = SharedBudget::new(overflow);
        let [full, new] = [1, 2].map(|id| shared.client(id));
        for number in 100..550 {
            let message = Message {
                sender: Sender::SYSTEM,
                body: &format!("\"{number}{}\"", "x".repeat(984)),
                read_at: 0,
                receipt: None,
            };
            full.push(
                message,
                InHand::receive(&*shared.metrics),
                &mut Wakes::default(),
            );
        }
        let before = held(&full);
        shared.fill(&new, 60);
        let evicted = (before - held(&full)) as usize;
        assert!(evicted > 0, "{overflow:?}");
        let mut frames = Vec::new();
        let cx = Context::from_waker(Waker::noop());
        while held(&full) > 0 {
            let mut taken = VecDeque::new();
            full.take(Flushed::default(), &mut frames, &mut taken, &cx);
            let flushed = Flushed {
                messages: u32::try_from(taken.len()).expect("a few"),
                bytes: taken.iter().map(|message| message.bytes).sum(),
                ..Flushed::default()
            };
            full.settle(flushed);
        }
        let texts = String::from_utf8_lossy(&frames).into_owned();
        let numbers = texts.split("\"message\":\"").skip(1);
        let numbers: Vec<usize> = numbers
            .map(|text| text.split_at(3).0.parse().unwrap())
            .collect();
        let count = before as usize - evicted;
        // What a mailbox has dropped by itself is from the same end.
        let left = match overflow {
            Overflow::DropOldest => 550 - count..550,
            Overflow::DropNewest | Overflow::Disconnect => 100..100 + count,
        };
        let left: Vec<usize> = left.collect();
        assert_eq!(numbers, left, "{overflow:?}");
    }
}

#[test]
fn a_user_is_told_how_many_messages_were_evicted() {
    for overflow in ALL {
        let shared = SharedBudget::new(overflow);
        let (bounds, metrics) = (shared.bounds.clone(), shared.metrics.clone());
        let identity = shared.client(1).identity();
        let full = Arc::new(Client::new(identity, Dialect::V1, None, bounds, metrics));
        let before = shared.fill(&full, 480);
        shared.fill(&shared.client(2), 60);
        let evicted = before - held(&full);
        assert!(evicted > 0, "{overflow:?}");
        let (mut frames, mut taken) = (Vec::new(), VecDeque::new());
        let cx = Context::from_waker(Waker::noop());
        full.take(Flushed::default(), &mut frames, &mut taken, &cx);
        let notice = format!("{{\"type\":\"dropped\",\"count\":{evicted}}}");
        let frames = String::from_utf8_lossy(&frames);
        assert!(frames.contains(&notice), "{notice} in {frames}");
    }
}
