//! Messages from one node to another: their text, their order, their outcomes, and the effect of a flood on other
//! messages.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::nats::Nats;
use crate::node::Node;
use crate::user::User;
use crate::{PATIENCE, eventually};

crate::tests!("messages":
    users_on_all_nodes_reach_each_other,
    every_string_arrives_as_the_same_string,
    messages_of_a_pair_arrive_in_order,
    a_sender_gets_the_outcome_of_each_message,
    a_recipient_that_reads_slowly_causes_no_unknown_outcome,
    a_full_mailbox_on_another_node_is_reported,
    a_flood_to_one_user_does_not_delay_other_messages,
    two_clusters_on_one_nats_are_separate,
    a_message_above_the_limit_of_nats_is_too_large,
    a_drain_settles_messages_in_flight,
);

const ROUTER: (&str, &str) = ("ROUTING__STRATEGY", "router");

/// Three nodes; the last one uses the strategy `router`.
async fn three(nats: &Nats, changes: &[(&str, &str)]) -> [Node; 3] {
    let routed = [changes, &[ROUTER]].concat();
    [
        Node::start(&nats.url(), changes).await,
        Node::start(&nats.url(), changes).await,
        Node::start(&nats.url(), &routed).await,
    ]
}

/// Stops the nodes, and checks that no message was lost between them.
pub(crate) async fn stop(nodes: impl IntoIterator<Item = Node>) {
    let nodes: Vec<_> = nodes.into_iter().collect();
    let (mut sent, mut received) = (0, 0);
    for node in &nodes {
        let ledger = node.ledger().await;
        sent += ledger.cluster_sent;
        received += ledger.cluster_received;
    }
    assert_eq!(sent, received, "messages were lost between the nodes");
    for node in nodes {
        node.stop().await;
    }
}

async fn users_on_all_nodes_reach_each_other() {
    let nats = Nats::start().await;
    let nodes = three(&nats, &[]).await;
    let mut users = Vec::new();
    for node in &nodes {
        users.push(node.user().await);
        users.push(node.bare_user().await);
    }
    let ids: Vec<_> = users.iter().map(|user| user.id).collect();
    for (from, user) in users.iter_mut().enumerate() {
        for (to, id) in ids.iter().enumerate() {
            user.say(*id, &format!("{from} to {to}")).await;
        }
    }
    for (to, user) in users.iter_mut().enumerate() {
        for (from, id) in ids.iter().enumerate() {
            user.hears(*id, &format!("{from} to {to}")).await;
        }
        user.until("six messages", |received| received.messages.len() == 6)
            .await;
    }
    drop(users);
    stop(nodes).await;
}

async fn every_string_arrives_as_the_same_string() {
    let nats = Nats::start().await;
    let nodes = three(&nats, &[]).await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].bare_user().await);
    let large = "x".repeat(60_000);
    let texts = [
        "",
        "\0",
        "\"\\/\u{8}\n\r\t",
        "é€😀",
        "\u{7f}\u{2028}",
        "a.b.> *",
        &large,
    ];
    for text in texts {
        alice.say(bob.id, text).await;
    }
    for text in texts {
        bob.hears(alice.id, text).await;
    }
    let heard: Vec<_> = bob
        .received()
        .messages
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(heard, texts);
    drop((alice, bob));
    stop(nodes).await;
}

async fn messages_of_a_pair_arrive_in_order() {
    const MESSAGES: u64 = 3000;
    let nats = Nats::start().await;
    // The queues have room for all messages, so that none is dropped.
    let nodes = three(
        &nats,
        &[
            ("MAILBOX__MESSAGES", "20000"),
            ("CLUSTER__USER_MESSAGES", "20000"),
        ],
    )
    .await;
    let mut senders = Vec::new();
    for node in &nodes {
        senders.push(node.user().await);
    }
    let mut recipients = Vec::new();
    for node in &nodes {
        recipients.push(node.user().await);
    }
    let to: Vec<_> = recipients.iter().map(|user| user.id).collect();
    let tasks = senders.into_iter().map(|mut sender| {
        let to = to.clone();
        tokio::spawn(async move {
            for number in 0..MESSAGES {
                for id in &to {
                    let text = number.to_string();
                    sender
                        .feed(json!({"recipient_id": id, "message": text}))
                        .await;
                }
            }
            sender.flush().await;
            sender
        })
    });
    let mut senders = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        senders.push(task.await.unwrap());
    }
    for recipient in &mut recipients {
        let all = 3 * usize::try_from(MESSAGES).unwrap();
        recipient
            .until("all messages", |received| received.messages.len() == all)
            .await;
        let received = recipient.received();
        for sender in &senders {
            let of = received
                .messages
                .iter()
                .filter(|(from, _)| *from == sender.id);
            let numbers: Vec<u64> = of.map(|(_, text)| text.parse().unwrap()).collect();
            assert!(numbers.into_iter().eq(0..MESSAGES), "out of order");
        }
    }
    drop((senders, recipients));
    stop(nodes).await;
}

async fn a_sender_gets_the_outcome_of_each_message() {
    let nats = Nats::start().await;
    let nodes = three(&nats, &[("LIMITS__MESSAGE_BYTES", "1KiB")]).await;
    let mut alice = nodes[0].user().await;
    for (node, id) in nodes[1..].iter().zip(1..) {
        let bob = node.user().await;
        alice.ask(bob.id, "hello", id).await;
        assert_eq!(alice.outcome(id).await, "delivered");
        // A user that has left. This node remembers the place.
        let away = bob.id;
        bob.leave().await;
        alice.ask(away, "still there?", 10 + id).await;
        assert_eq!(alice.outcome(10 + id).await, "offline");
    }
    // An id that was never given.
    alice.ask(9_000_000_000, "are you there?", 20).await;
    assert_eq!(alice.outcome(20).await, "offline");
    // An id that this node will give next.
    alice.ask(alice.id + 1, "are you there?", 21).await;
    assert_eq!(alice.outcome(21).await, "offline");
    let bob = nodes[1].user().await;
    alice.ask(bob.id, &"x".repeat(2000), 22).await;
    assert_eq!(alice.outcome(22).await, "too_large");
    let received = alice.received();
    assert_eq!(received.outcomes.len(), 7);
    let ledger = nodes[0].ledger().await;
    // A message to an id that is nowhere is not sent. Two have arrived; two more were sent only if they were faster
    // than the word of the other node that the user has left.
    assert!((2..=4).contains(&ledger.cluster_sent), "{ledger:?}");
    assert_eq!(ledger.cluster_received, 0);
    drop((alice, bob));
    stop(nodes).await;
}

/// Sends to a user that does not read until messages wait in its mailbox. Returns the number of messages sent.
pub(crate) async fn clog(sender: &mut User, to: u64, node: &Node, text: &str) -> u64 {
    let mut looks = 0;
    for number in 0..2000 {
        sender.ask(to, text, number).await;
        let is_queued = node.metric("switchboard_mailbox_messages").await > 2;
        looks = if is_queued { looks + 1 } else { 0 };
        // Between some requests, a session that can still write has had its turn.
        if looks == 5 {
            return number + 1;
        }
    }
    panic!("no message waits in the mailbox of {to}, although it does not read");
}

async fn a_recipient_that_reads_slowly_causes_no_unknown_outcome() {
    let nats = Nats::start().await;
    let nodes = three(&nats, &[("CLUSTER__OUTCOME_TIMEOUT", "500ms")]).await;
    let (mut alice, bob) = (nodes[0].user().await, nodes[1].user().await);
    bob.reads(false);
    let text = "x".repeat(30_000);
    let count = clog(&mut alice, bob.id, &nodes[1], &text).await;
    // Four times as long as cluster.outcome_timeout.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pending = nodes[0]
        .metric("switchboard_cluster_outcomes_pending")
        .await;
    assert!(pending > 0, "no outcome is pending");
    bob.reads(true);
    for number in 0..count {
        assert_eq!(alice.outcome(number).await, "delivered");
    }
    let unknown = "switchboard_cluster_outcomes_unknown_total";
    assert_eq!(nodes[0].metric(unknown).await, 0);
    drop((alice, bob));
    stop(nodes).await;
}

async fn a_full_mailbox_on_another_node_is_reported() {
    let nats = Nats::start().await;
    let nodes = three(&nats, &[("MAILBOX__MESSAGES", "4")]).await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].user().await);
    bob.reads(false);
    let text = "x".repeat(30_000);
    let count = clog(&mut alice, bob.id, &nodes[1], &text).await;
    for number in count..count + 10 {
        alice.ask(bob.id, &text, number).await;
    }
    assert_eq!(alice.outcome(count + 9).await, "queue_full");
    bob.reads(true);
    bob.until("a notice", |received| {
        received
            .notices
            .iter()
            .any(|notice| notice["type"] == "dropped")
    })
    .await;
    for number in 0..count + 10 {
        let outcome = alice.outcome(number).await;
        assert!(
            ["delivered", "queue_full"].contains(&outcome.as_str()),
            "{outcome}"
        );
    }
    drop((alice, bob));
    stop(nodes).await;
}

async fn a_flood_to_one_user_does_not_delay_other_messages() {
    const ROUNDS: u64 = 50;
    let nats = Nats::start().await;
    let nodes = three(&nats, &[]).await;
    let victim = nodes[1].user().await;
    victim.reads(false);
    let mut flooders = Vec::new();
    for _ in 0..4 {
        let mut flooder = nodes[0].user().await;
        let to = victim.id;
        flooders.push(tokio::spawn(async move {
            let text = "f".repeat(1000);
            loop {
                for _ in 0..100 {
                    flooder
                        .feed(json!({"recipient_id": to, "message": text}))
                        .await;
                }
                flooder.flush().await;
            }
        }));
    }
    nodes[0]
        .until("switchboard_cluster_sent_total", |sent| sent > 5000)
        .await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].user().await);
    let mut slowest = Duration::ZERO;
    for number in 0..ROUNDS {
        let begin = Instant::now();
        alice.ask(bob.id, &number.to_string(), number).await;
        assert_eq!(alice.outcome(number).await, "delivered");
        slowest = slowest.max(begin.elapsed());
    }
    bob.until("all messages", |received| {
        received.messages.len() as u64 == ROUNDS
    })
    .await;
    let sent = nodes[0].metric("switchboard_cluster_sent_total").await;
    println!(
        "   during a flood of {sent} messages, each of {ROUNDS} other messages took at most {slowest:?}"
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    for flooder in flooders {
        flooder.abort();
        assert!(flooder.await.unwrap_err().is_cancelled());
    }
    drop((alice, bob, victim));
    stop(nodes).await;
}

async fn two_clusters_on_one_nats_are_separate() {
    let nats = Nats::start().await;
    let [here, there] = ["here", "there"].map(|name| ("CLUSTER__NAME", name));
    let nodes = [
        Node::start(&nats.url(), &[here]).await,
        Node::start(&nats.url(), &[here]).await,
        Node::start(&nats.url(), &[there]).await,
    ];
    let mut alice = nodes[0].user().await;
    let mut bob = nodes[1].user().await;
    let mut stranger = nodes[2].user().await;
    assert_eq!(
        (alice.id, stranger.id),
        (1, 1),
        "the ids of each cluster begin at 1"
    );
    bob.ask(1, "to alice", 1).await;
    assert_eq!(bob.outcome(1).await, "delivered");
    alice.hears(bob.id, "to alice").await;
    // No user of the other cluster has bob's id.
    stranger.ask(bob.id, "to an unused id", 1).await;
    assert_eq!(stranger.outcome(1).await, "offline");
    assert!(stranger.received().messages.is_empty());
    drop((alice, bob, stranger));
    stop(nodes).await;
}

async fn a_message_above_the_limit_of_nats_is_too_large() {
    let nats = Nats::with("max_payload: 4096").await;
    let nodes = three(&nats, &[]).await;
    let (mut alice, bob) = (nodes[0].user().await, nodes[1].user().await);
    alice.ask(bob.id, &"x".repeat(5000), 1).await;
    alice.ask(bob.id, &"x".repeat(3000), 2).await;
    assert_eq!(alice.outcome(1).await, "too_large");
    assert_eq!(alice.outcome(2).await, "delivered");
    drop((alice, bob));
    stop(nodes).await;
}

async fn a_drain_settles_messages_in_flight() {
    let nats = Nats::start().await;
    let mut nodes = three(&nats, &[("DRAIN__TIMEOUT", "2s")]).await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].user().await);
    let carol = nodes[1].user().await;
    // Carol does not read, so messages to her fill the sockets and wait in her mailbox when the drain ends.
    carol.reads(false);
    let text = "x".repeat(30_000);
    let count = clog(&mut alice, carol.id, &nodes[1], &text).await;
    nodes[1].begin_stop();
    bob.until("a notice", |received| {
        received
            .notices
            .iter()
            .any(|notice| notice["type"] == "reconnect")
    })
    .await;
    let begin = Instant::now();
    for number in 0..count {
        let outcome = alice.outcome(number).await;
        assert!(
            ["delivered", "draining", "disconnected"].contains(&outcome.as_str()),
            "{outcome}"
        );
    }
    assert!(begin.elapsed() < PATIENCE);
    nodes[1].ended().await;
    // The node has deleted its entries.
    eventually("messages to bob are offline", async || {
        let id = count + fastrand::u64(1..1 << 50);
        alice.ask(bob.id, "still there?", id).await;
        (alice.outcome(id).await == "offline").then_some(())
    })
    .await;
    let unknown = "switchboard_cluster_outcomes_unknown_total";
    assert_eq!(nodes[0].metric(unknown).await, 0);
    drop((alice, bob, carol));
    let [first, second, third] = nodes;
    drop(second);
    for node in [first, third] {
        node.stop().await;
    }
}
