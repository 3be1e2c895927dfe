//! The directory under a model checker, which tries every order of the steps of a few threads, stale
//! loads included. Segments have two slots here, and ids count from 0: 2 and 3 share one segment, 4 and 5
//! the next.
//!
//! Run with `RUSTFLAGS="--cfg switchboard_loom" cargo test --release --lib directory::model`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{Budget, Client, Directory, Flushed, MailboxBounds, Message, SLOTS, Wakes};
use crate::config::Overflow;
use crate::identity::{ResumptionId, Sender, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::Dialect;
use crate::telemetry::metrics::{DropReason, Metrics};

/// One directory, and what its clients are built from.
#[derive(Clone)]
struct ModelledDirectory {
    directory: Directory,
    bounds: Arc<MailboxBounds>,
    metrics: Arc<Metrics>,
}

/// Runs the scenario in every order of its steps.
fn check(scenario: impl Fn(ModelledDirectory) + Send + Sync + 'static) {
    assert_eq!(SLOTS, 2);
    loom::model(move || {
        let bounds = MailboxBounds {
            messages: 8,
            bytes: 1 << 20,
            max_age: Duration::MAX,
            overflow: Overflow::DropNewest,
            // Two holders use it up.
            budget: Budget::new(4 * u64::from(Budget::STEP)),
        };
        scenario(ModelledDirectory {
            directory: Directory::new(),
            bounds: Arc::new(bounds),
            metrics: Arc::new(Metrics::new(1)),
        });
    });
}

impl ModelledDirectory {
    fn client(&self, id: u64) -> Arc<Client> {
        self.client_of(id, 0)
    }

    fn client_of(&self, id: u64, resumption_id: u64) -> Arc<Client> {
        // Segments begin at odd ids.
        let identity = UserIdentity {
            id: UserId::new(id + 1).expect("a small id"),
            resumption_id: ResumptionId::from(resumption_id),
        };
        let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
        Arc::new(Client::new(identity, Dialect::Bare, None, bounds, metrics))
    }

    fn join(&self, id: u64) -> Arc<Client> {
        let client = self.client(id);
        assert!(self.directory.join(&client));
        client
    }

    /// A client that holds one message, which takes half of the budget.
    fn holder(&self, id: u64) -> Arc<Client> {
        let client = self.client(id);
        self.push(&client, 5000);
        assert_eq!(held(&client), 1);
        client
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

    /// All messages are accounted for, and so is the budget once all clients have left.
    fn balances(&self, clients: &[&Arc<Client>]) {
        let queued: u32 = clients.iter().map(|client| held(client)).sum();
        let reasons = [DropReason::QueueFull, DropReason::Disconnected];
        let dropped: u64 = reasons
            .map(|reason| self.metrics.dropped(reason))
            .iter()
            .sum();
        let settled = dropped + self.metrics.delivered();
        assert_eq!(self.metrics.received(), u64::from(queued) + settled);
        for client in clients {
            leave(client);
        }
        assert_eq!(self.bounds.budget.used(), 0);
    }

    /// Runs a part of the scenario in a thread of its own.
    fn beside<R: 'static>(
        &self,
        part: impl FnOnce(&Self) -> R + Send + 'static,
    ) -> thread::JoinHandle<R> {
        let world = self.clone();
        thread::spawn(move || part(&world))
    }

    /// Whether this client is found, and not another of the same id.
    fn finds(&self, client: &Client) -> bool {
        let found =
            |found: Option<&Arc<Client>>| found.is_some_and(|found| std::ptr::eq(&**found, client));
        self.directory.with(client.id(), found)
    }

    /// All clients leave. After that there is only the newest segment.
    fn all_leave(&self, clients: &[&Arc<Client>]) {
        for client in clients {
            assert!(self.finds(client));
            self.directory.leave(client);
            assert!(!self.finds(client));
        }
        assert_eq!(self.directory.segments(), 1);
        // Only the directory's own claim is left. It moves to a newer segment, and the older one is
        // retired.
        let next = self.join(98);
        assert_eq!(self.directory.segments(), 1);
        self.directory.leave(&next);
        assert_eq!(self.directory.segments(), 1);
    }
}

#[test]
fn joins_that_race_for_a_new_segment_are_all_found() {
    check(|world| {
        let three = world.beside(|world| world.join(3));
        let two = world.join(2);
        let three = three.join().unwrap();
        assert_eq!(world.directory.segments(), 1);
        assert!(world.finds(&two) && world.finds(&three));
        world.all_leave(&[&two, &three]);
    });
}

#[test]
fn joins_that_race_for_two_new_segments_leave_the_higher_as_the_newest() {
    check(|world| {
        let four = world.beside(|world| world.join(4));
        let two = world.join(2);
        let four = four.join().unwrap();
        assert_eq!(world.directory.segments(), 2);
        assert!(world.finds(&two) && world.finds(&four));
        world.directory.leave(&two);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

/// The segment is not the newest, so the leave of its only user retires it. Meanwhile a user with an old
/// id joins it.
#[test]
fn a_late_join_is_found_though_its_segment_is_being_retired() {
    check(|world| {
        let two = world.join(2);
        let four = world.join(4);
        let three = world.beside(|world| world.join(3));
        world.directory.leave(&two);
        assert!(!world.finds(&two));
        assert!(world.finds(&four));
        let three = three.join().unwrap();
        assert!(world.finds(&three));
        assert_eq!(world.directory.segments(), 2);
        world.directory.leave(&three);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

/// A segment's claims change in three ways at once: its user leaves, another joins, and the directory releases
/// its own for a newer segment.
#[test]
fn a_segment_with_a_user_stays_when_it_is_no_longer_the_newest() {
    check(|world| {
        let two = world.join(2);
        let three = world.beside(|world| world.join(3));
        let four = world.beside(|world| world.join(4));
        world.directory.leave(&two);
        let (three, four) = (three.join().unwrap(), four.join().unwrap());
        assert!(!world.finds(&two));
        assert!(world.finds(&three) && world.finds(&four));
        assert_eq!(world.directory.segments(), 2);
        world.directory.leave(&three);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

#[test]
fn the_last_leaves_of_a_segment_retire_it_once() {
    check(|world| {
        let (two, three, four) = (world.join(2), world.join(3), world.join(4));
        let leaves = world.beside(move |world| world.directory.leave(&two));
        world.directory.leave(&three);
        leaves.join().unwrap();
        assert!(world.finds(&four));
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

/// A replaced client leaves late.
#[test]
fn a_replaced_clients_leave_removes_no_other() {
    check(|world| {
        let (replaced, four) = (world.join(2), world.join(4));
        let two = world.beside(|world| world.join(2));
        world.directory.leave(&replaced);
        let two = two.join().unwrap();
        assert!(!world.finds(&replaced));
        assert!(world.finds(&two));
        world.directory.leave(&replaced);
        assert_eq!(world.directory.segments(), 2);
        assert!(world.finds(&two));
        world.directory.leave(&two);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

/// Two connections replace a client at once. One of them stays; the others are replaced until they leave.
#[test]
fn of_two_that_replace_a_client_at_once_one_stays() {
    check(|world| {
        let (first, four) = (world.join(2), world.join(4));
        let second = world.beside(|world| world.join(2));
        let third = world.join(2);
        let second = second.join().unwrap();
        assert!(!world.finds(&first));
        assert!(world.finds(&second) != world.finds(&third));
        assert_eq!(world.directory.stats().connections, 4);
        let (last, before) = if world.finds(&third) {
            (third, second)
        } else {
            (second, third)
        };
        assert!(last.is_open() && !before.is_open() && !first.is_open());
        world.directory.leave(&before);
        world.directory.leave(&first);
        assert_eq!(world.directory.stats().connections, 2);
        world.directory.leave(&last);
        assert_eq!(world.directory.stats().connections, 1);
        world.all_leave(&[&four]);
    });
}

/// A client that is replaced while it leaves is in no list afterwards.
#[test]
fn a_client_that_leaves_while_it_is_replaced_is_gone() {
    check(|world| {
        let (first, four) = (world.join(2), world.join(4));
        let second = world.beside(|world| world.join(2));
        world.directory.leave(&first);
        let second = second.join().unwrap();
        assert!(world.finds(&second) && second.is_open());
        assert_eq!(world.directory.stats().connections, 2);
        world.directory.leave(&second);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

/// A user of another resumption id gets an id when its owner has left, and not before.
#[test]
fn another_user_gets_an_id_only_when_it_is_vacant() {
    check(|world| {
        let (first, four) = (world.join(2), world.join(4));
        let other = world.client_of(2, 1);
        let joins = world.beside({
            let other = other.clone();
            move |world| world.directory.join(&other)
        });
        let was_here = world.finds(&first) && first.is_open();
        world.directory.leave(&first);
        let is_registered = joins.join().unwrap();
        assert!(was_here, "the owner keeps it");
        assert_eq!(world.finds(&other), is_registered);
        world.directory.leave(&other);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

#[test]
fn leaving_twice_at_once_counts_once() {
    check(|world| {
        let (two, three, four) = (world.join(2), world.join(3), world.join(4));
        let again = two.clone();
        let leaves = world.beside(move |world| world.directory.leave(&again));
        world.directory.leave(&two);
        leaves.join().unwrap();
        assert_eq!(world.directory.segments(), 2);
        world.directory.leave(&three);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

/// A third thread looks users up during a join and a leave that retires a segment.
#[test]
fn a_lookup_finds_all_that_have_joined_and_none_that_have_left() {
    check(|world| {
        let (three, four) = (world.join(3), world.join(4));
        let (joined, left) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let two = world.client(2);
        let joins = world.beside({
            let (two, joined) = (two.clone(), joined.clone());
            move |world| {
                world.directory.join(&two);
                joined.store(true, Ordering::Release);
            }
        });
        let leaves = world.beside({
            let (three, left) = (three.clone(), left.clone());
            move |world| {
                world.directory.leave(&three);
                left.store(true, Ordering::Release);
            }
        });
        let (has_joined, has_left) = (joined.load(Ordering::Acquire), left.load(Ordering::Acquire));
        assert!(world.finds(&two) || !has_joined);
        assert!(!has_left || !world.finds(&three));
        assert!(world.finds(&four));
        joins.join().unwrap();
        leaves.join().unwrap();
        assert_eq!(world.directory.segments(), 2);
        world.directory.leave(&two);
        assert_eq!(world.directory.segments(), 1);
        world.all_leave(&[&four]);
    });
}

fn held(client: &Client) -> u32 {
    client.stats().queue_messages
}

/// Takes and flushes all messages.
fn flush(client: &Client) {
    let (mut frames, mut taken) = (Vec::new(), VecDeque::new());
    let cx = Context::from_waker(Waker::noop());
    client.take(Flushed::default(), &mut frames, &mut taken, &cx);
    client.settle(Flushed {
        messages: u32::try_from(taken.len()).expect("a few"),
        bytes: taken.iter().map(|message| message.bytes).sum(),
        ..Flushed::default()
    });
}

fn leave(client: &Arc<Client>) {
    let reason = DropReason::Disconnected;
    client.leave(VecDeque::new(), reason, &mut Wakes::default());
}

/// The budget is used up by two clients, and two others with empty mailboxes get a message each at once.
#[test]
fn two_empty_mailboxes_get_a_message_each_at_the_cost_of_others() {
    check(|world| {
        let (one, two) = (world.holder(2), world.holder(3));
        let (three, four) = (world.client(4), world.client(5));
        let pushes = world.beside({
            let three = three.clone();
            move |world| world.push(&three, 1)
        });
        world.push(&four, 1);
        pushes.join().unwrap();
        assert!(held(&one) + held(&two) <= 1);
        assert_eq!((held(&three), held(&four)), (1, 1));
        world.balances(&[&one, &two, &three, &four]);
    });
}

/// The client that a search has found leaves before it is locked.
#[test]
fn an_empty_mailbox_gets_a_message_while_a_candidate_leaves() {
    check(|world| {
        let (one, two, three) = (world.holder(2), world.holder(3), world.client(4));
        let leaves = world.beside({
            let (one, two) = (one.clone(), two.clone());
            move |_| {
                leave(&two);
                leave(&one);
            }
        });
        world.push(&three, 1);
        leaves.join().unwrap();
        assert_eq!(held(&three), 1);
        world.balances(&[&one, &two, &three]);
    });
}

/// A mailbox is emptied and filled again while a search looks at it: it stays a candidate.
#[test]
fn a_mailbox_that_fills_again_is_found_by_a_later_search() {
    check(|world| {
        let (one, two, three) = (world.holder(2), world.holder(3), world.client(4));
        let fills = world.beside({
            let one = one.clone();
            move |world| {
                flush(&one);
                world.push(&one, 5000);
            }
        });
        world.push(&three, 1);
        fills.join().unwrap();
        assert_eq!(held(&three), 1);
        world.push(&three, 3000);
        assert!(held(&one) + held(&two) <= 1, "one of them is found");
        world.balances(&[&one, &two, &three]);
    });
}
