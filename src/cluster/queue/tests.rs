//! What waits, in which order it goes, and what becomes of the rest.

use super::*;
use crate::ledger::LedgerTotals;

const BOUNDS: Bounds = Bounds {
    user_messages: 100,
    user_bytes: 200_000,
    total_bytes: 1_200_000,
    node_bytes: 1_000_000,
    routes: 1000,
    patience: 100,
};

fn queue(bounds: Bounds) -> (Arc<Metrics>, Queue) {
    let metrics = Arc::new(Metrics::new(1));
    let mut queue = Queue::new(bounds, metrics.clone());
    queue.open();
    (metrics, queue)
}

fn user(number: u64) -> UserId {
    UserId::new(number).unwrap()
}

fn push(queue: &mut Queue, metrics: &Metrics, recipient: u64, bytes: usize) -> Option<Status> {
    let queued = QueuedMessage {
        recipient: user(recipient),
        payload: vec![0; bytes].into(),
        receipt: None,
        trace: None,
    };
    let pushed = queue.push(queued, InHand::receive(metrics));
    pushed.err().map(|(status, _)| status)
}

/// Takes what there is; its recipients.
fn take(queue: &mut Queue, count: usize, bytes_max: usize) -> Vec<u64> {
    let mut batch = Vec::new();
    assert_eq!(statuses(queue.take(&mut batch, count, bytes_max, 0)), []);
    batch
        .iter()
        .map(|taken| taken.queued.recipient.get())
        .collect()
}

/// The same, where all that asks for it is answered: user n is on node n / 10 + 1, which takes everything.
fn take_all(queue: &mut Queue, count: usize, bytes_max: usize) -> Vec<u64> {
    answer(queue);
    take(queue, count, bytes_max)
}

fn answer(queue: &mut Queue) {
    let turns: Vec<_> = queue.turns.iter().copied().collect();
    for id in turns {
        let node = Node(id.get() / 10 + 1);
        queue.routes.insert(id, node);
        let mark = queue.taken;
        let flow = queue
            .flows
            .entry(node)
            .or_insert_with(|| Flow::new(mark, 0));
        if flow.is_opening() {
            flow.open(0);
        }
    }
}

fn statuses(dropped: Dropped) -> Vec<(u64, Status)> {
    let dropped = dropped.0.into_iter();
    dropped
        .map(|(queued, status)| (queued.recipient.get(), status))
        .collect()
}

#[test]
fn a_flood_to_one_does_not_hold_up_the_others() {
    let (metrics, mut queue) = queue(BOUNDS);
    for _ in 0..100 {
        assert_eq!(push(&mut queue, &metrics, 1, 1000), None);
    }
    for recipient in [2, 3] {
        assert_eq!(push(&mut queue, &metrics, recipient, 1000), None);
    }
    let taken = take_all(&mut queue, 1000, 12_000);
    let firsts = taken.iter().filter(|recipient| **recipient == 1).count();
    assert_eq!(taken.len() - firsts, 2, "{taken:?}");
    assert!(firsts <= 2 * TURN_BYTES / 1000, "{taken:?}");
}

#[test]
fn a_large_message_is_paid_for_by_turns() {
    let (metrics, mut queue) = queue(BOUNDS);
    push(&mut queue, &metrics, 1, 4 * TURN_BYTES);
    for _ in 0..50 {
        push(&mut queue, &metrics, 2, 1000);
    }
    let taken = take_all(&mut queue, 1000, 1_000_000);
    let before = taken.iter().position(|recipient| *recipient == 1).unwrap();
    assert!((20..40).contains(&before), "{before}");
    assert_eq!(taken.len(), 51);
    assert!(take(&mut queue, 1000, 1).is_empty());
}

#[test]
fn the_order_for_one_user_is_kept() {
    let (metrics, mut queue) = queue(BOUNDS);
    for bytes in [1, 20_000, 2, 3, 9000, 4] {
        push(&mut queue, &metrics, 1, bytes);
    }
    answer(&mut queue);
    let mut batch = Vec::new();
    while batch.len() < 6 {
        let count = batch.len() + 1;
        assert_eq!(statuses(queue.take(&mut batch, count, 1, 0)), []);
    }
    let sizes = batch.iter().map(|taken| taken.queued.payload.len());
    assert!(sizes.eq([1, 20_000, 2, 3, 9000, 4]));
    assert_eq!((queue.bytes(), queue.messages()), (0, 6));
}

/// The bound of a user and that of all, each with room for two messages and not for a byte more.
#[test]
fn messages_that_fit_exactly_are_queued() {
    let two = 2 * (160 + 1000);
    for (user_bytes, total_bytes, other) in [(two, 10 * two, 1), (10 * two, two, 2)] {
        let (metrics, mut queue) = queue(Bounds {
            user_bytes,
            total_bytes,
            ..BOUNDS
        });
        let full = Some(Status::QueueFull);
        assert_eq!(push(&mut queue, &metrics, 1, 1000), None);
        assert_eq!(push(&mut queue, &metrics, other, 1001), full);
        assert_eq!(push(&mut queue, &metrics, other, 1000), None);
        assert_eq!(push(&mut queue, &metrics, other, 0), full);
        assert_eq!(queue.bytes(), two);
    }
}

#[test]
fn a_place_is_looked_up_once_and_its_node_greeted_before_anything_is_sent() {
    let (metrics, mut queue) = queue(BOUNDS);
    for recipient in [1, 1, 2] {
        push(&mut queue, &metrics, recipient, 10);
    }
    assert!(take(&mut queue, 10, 1000).is_empty() && queue.asks());
    assert_eq!(queue.next_lookup(), Some(user(1)));
    assert_eq!(queue.next_lookup(), Some(user(2)));
    assert_eq!((queue.next_lookup(), queue.asks()), (None, false));
    assert_eq!(statuses(queue.located(user(1), Ok(Some(Node(7))))), []);
    assert_eq!(statuses(queue.located(user(2), Ok(Some(Node(7))))), []);
    assert!(take(&mut queue, 10, 1000).is_empty());
    assert_eq!(
        (queue.next_greeting(), queue.next_greeting()),
        (Some(Node(7)), None)
    );
    assert!(queue.opened(Node(7), 1) && !queue.opened(Node(7), 1));
    assert_eq!(take(&mut queue, 10, 1000), [1, 1, 2]);
    // From now on it goes there at once, until the node says that the user is not there.
    push(&mut queue, &metrics, 1, 10);
    assert_eq!(take(&mut queue, 10, 1000), [1]);
    queue.gone(user(1), Node(6));
    queue.gone(user(1), Node(7));
    push(&mut queue, &metrics, 1, 10);
    push(&mut queue, &metrics, 2, 10);
    assert_eq!(take(&mut queue, 10, 1000), [2]);
    assert_eq!(queue.next_lookup(), Some(user(1)));
    assert_eq!(
        statuses(queue.located(user(1), Ok(None))),
        [(1, Status::Offline)]
    );
    push(&mut queue, &metrics, 1, 10);
    assert!(take(&mut queue, 10, 1000).is_empty());
    assert_eq!(queue.next_lookup(), Some(user(1)));
    assert_eq!(
        statuses(queue.located(user(1), Err(()))),
        [(1, Status::Unavailable)]
    );
}

#[test]
fn a_node_gets_no_more_than_it_takes() {
    let bounds = Bounds {
        node_bytes: 3000,
        ..BOUNDS
    };
    let (metrics, mut queue) = queue(bounds);
    // Users 1 and 2 are on node 1, user 11 on node 2.
    for recipient in [1, 1, 1, 1, 1, 1, 2, 11] {
        push(&mut queue, &metrics, recipient, 4000);
    }
    answer(&mut queue);
    let mut batch = Vec::new();
    assert_eq!(statuses(queue.take(&mut batch, 100, 1_000_000, 0)), []);
    let taken = batch
        .iter()
        .map(|taken| (taken.queued.recipient.get(), taken.node, taken.mark));
    // A turn of a user is more than the node may have.
    assert!(taken.eq([(1, Node(1), 4160), (11, Node(2), 4160)]));
    assert!(take(&mut queue, 100, 1_000_000).is_empty());
    assert!(!queue.seen(Node(2), 4160, 10), "nobody waits there");
    assert!(!queue.seen(Node(1), 9999, 10), "that was never sent");
    assert!(queue.seen(Node(1), 4160, 10));
    // Whoever waited for the first time goes before whoever comes again.
    assert_eq!(take(&mut queue, 100, 1_000_000), [2]);
    assert!(!queue.tick(109).has_waited);
    let ticked = queue.tick(110);
    assert!(ticked.has_waited, "what was under way is given up");
    assert_eq!(take(&mut queue, 1, 1_000_000), [1]);
}

#[test]
fn a_node_that_hangs_leaves_room_for_the_others() {
    let (metrics, mut queue) = queue(BOUNDS);
    let share = BOUNDS.total_bytes / NODE_SHARE;
    assert_eq!(statuses(queue.located(user(1), Ok(Some(Node(1))))), []);
    push(&mut queue, &metrics, 1, 100);
    let _parked = take(&mut queue, 10, 1000);
    let mut full = 0;
    for _ in 0..99 {
        full += u32::from(push(&mut queue, &metrics, 1, 1500).is_some());
    }
    assert_eq!(full, 0);
    for recipient in 2..20 {
        assert_eq!(
            statuses(queue.located(user(recipient), Ok(Some(Node(1))))),
            []
        );
        for _ in 0..20 {
            push(&mut queue, &metrics, recipient, 1500);
        }
    }
    let mut batch = Vec::new();
    let dropped = statuses(queue.take(&mut batch, 10, 1000, 0));
    assert!(
        dropped
            .iter()
            .all(|(_, status)| *status == Status::QueueFull)
    );
    assert!(!dropped.is_empty() && queue.bytes() <= share);
    // The node answers nothing, and lives: it cannot be found out what has become of the users.
    let ticked = queue.tick(50);
    assert_eq!(ticked.silent, [Node(1)]);
    let dropped = statuses(queue.tick(100).dropped);
    assert!(
        dropped
            .iter()
            .all(|(_, status)| *status == Status::Unavailable)
    );
    assert_eq!(queue.bytes(), 0);
    assert!(queue.flows.is_empty());
}

#[test]
fn users_of_a_dead_node_are_looked_up_again_once() {
    let (metrics, mut queue) = queue(BOUNDS);
    assert_eq!(statuses(queue.located(user(1), Ok(Some(Node(1))))), []);
    push(&mut queue, &metrics, 1, 100);
    assert!(take(&mut queue, 10, 1000).is_empty());
    // The place was an old one.
    assert_eq!(statuses(queue.node_died(Node(1))), []);
    assert_eq!(queue.next_lookup(), Some(user(1)));
    assert_eq!(statuses(queue.located(user(1), Ok(Some(Node(1))))), []);
    assert!(take(&mut queue, 10, 1000).is_empty());
    assert_eq!(statuses(queue.node_died(Node(1))), [(1, Status::Offline)]);
    assert_eq!((queue.bytes(), queue.routes()), (0, 0));
}

#[test]
fn it_is_looked_from_time_to_time_whether_a_node_lives_that_owes_nothing() {
    let (metrics, mut queue) = queue(BOUNDS);
    push(&mut queue, &metrics, 1, 100);
    assert_eq!(take_all(&mut queue, 10, 1000), [1]);
    let mark = queue.taken;
    assert!(!queue.seen(Node(1), mark, 0), "nobody has waited");
    assert!(queue.tick(4 * 50 - 1).silent.is_empty());
    assert_eq!(queue.tick(4 * 50).silent, [Node(1)]);
    assert!(queue.tick(4 * 50 + 1).silent.is_empty());
    assert_eq!(statuses(queue.node_died(Node(1))), []);
    assert_eq!(queue.routes(), 0, "the next message is looked up");
}

#[test]
fn what_does_not_fit_is_an_answer() {
    let bounds = Bounds {
        user_messages: 2,
        user_bytes: 2000,
        total_bytes: 3000,
        ..BOUNDS
    };
    let (metrics, mut queue) = queue(bounds);
    let full = Some(Status::QueueFull);
    assert_eq!(push(&mut queue, &metrics, 1, 1), None);
    assert_eq!(push(&mut queue, &metrics, 1, 1), None);
    assert_eq!(push(&mut queue, &metrics, 1, 1), full, "messages");
    assert_eq!(push(&mut queue, &metrics, 2, 1900), full, "bytes");
    assert_eq!(push(&mut queue, &metrics, 2, 1500), None);
    assert_eq!(push(&mut queue, &metrics, 3, 1500), full, "all bytes");
    assert_eq!(take_all(&mut queue, 10, 10_000).len(), 3);
    assert_eq!(push(&mut queue, &metrics, 3, 1500), None);
    queue.close();
    assert_eq!(push(&mut queue, &metrics, 1, 1), Some(Status::Unavailable));
}

#[test]
fn every_message_is_settled_once() {
    let (metrics, mut queue) = queue(BOUNDS);
    for recipient in 1..=5 {
        push(&mut queue, &metrics, recipient, 10);
    }
    assert_eq!(take_all(&mut queue, 3, 1000).len(), 3);
    queue.sent(2);
    queue.settle_dropped(DropReason::TooLarge);
    assert_eq!(
        statuses(queue.drop_queued(DropReason::Unavailable)).len(),
        2
    );
    assert!(queue.is_empty());
    let figures = LedgerTotals::read(&metrics, || queue.messages().into());
    assert_eq!(
        (figures.gap(), figures.cluster_sent, figures.dropped),
        (0, 2, 3)
    );
    assert_eq!(metrics.dropped(DropReason::Unavailable), 2);
    assert!(take(&mut queue, 10, 1000).is_empty());
}
