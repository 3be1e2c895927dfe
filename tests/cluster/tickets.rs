//! Users that reconnect with a ticket, to any node: one connection has the id, and it gets each message once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::messages::stop;
use crate::nats::{Folder, Nats};
use crate::node::Node;
use crate::user::User;
use crate::{eventually, within};

crate::tests!("tickets":
    a_user_keeps_its_id_on_any_node,
    the_older_connection_on_another_node_is_closed,
    a_user_that_moves_under_load_gets_each_message_once,
    a_message_of_a_flood_gets_an_outcome_when_its_recipient_moves,
    a_message_during_a_claim_is_settled_at_once,
    one_of_two_simultaneous_connections_gets_the_id,
    one_of_two_simultaneous_connections_gets_an_id_without_a_holder,
    an_id_outlives_the_node_that_held_its_block,
    a_user_of_a_killed_node_comes_back_within_ten_seconds,
    a_user_that_waits_for_its_dead_node_is_not_evicted_by_handshakes,
    a_migrated_id_survives_a_restart_of_nats,
    a_reconnected_holder_does_not_answer_for_migrated_ids,
    an_invalid_ticket_gives_a_new_id,
    a_ticket_does_not_take_the_id_of_another_user,
    new_ids_are_above_resumed_ids,
);

const TAKEN_OVER: Option<u16> = Some(4409);

/// A NATS server, and the settings of nodes that accept each other's tickets.
struct Deployment {
    nats: Nats,
    folder: Folder,
    secret: String,
    strategy: &'static str,
}

impl Deployment {
    async fn new(strategy: &'static str) -> Self {
        let folder = Folder::new();
        let secret = folder.file("secret", &"a secret of a test ".repeat(3));
        Self {
            nats: Nats::start().await,
            folder,
            secret,
            strategy,
        }
    }

    async fn node(&self, changes: &[(&str, &str)]) -> Node {
        let settings = [
            ("TICKETS__SECRET_FILE", &*self.secret),
            ("ROUTING__STRATEGY", self.strategy),
        ];
        Node::start(&self.nats.url(), &[&settings, changes].concat()).await
    }

    async fn nodes<const N: usize>(&self, changes: &[(&str, &str)]) -> [Node; N] {
        let mut nodes = Vec::new();
        for _ in 0..N {
            nodes.push(self.node(changes).await);
        }
        nodes.try_into().unwrap()
    }
}

const STRATEGIES: [&str; 2] = ["directory", "router"];

/// Checks that a message of each sender reaches the recipient once.
async fn all_reach(senders: &mut [User], recipient: &mut User, text: &str) {
    for (sender, number) in senders.iter_mut().zip(1_000_000..) {
        let number = number + fastrand::u64(..1 << 40);
        sender.ask(recipient.id, text, number).await;
        assert_eq!(sender.outcome(number).await, "delivered", "{text}");
        recipient.hears(sender.id, text).await;
    }
    let heard = recipient.look(|received| {
        let heard = received.messages.iter().filter(|(_, heard)| heard == text);
        heard.count()
    });
    assert_eq!(
        heard,
        senders.len(),
        "{text}: not one message of each sender"
    );
}

/// Checks that each sender reaches the recipient by its first or second message. Its node may still know the place that
/// the recipient had: that node is dead, or the word that the recipient has left is on its way.
async fn all_reach_again(senders: &mut [User], recipient: &mut User, text: &str) {
    for sender in senders.iter_mut() {
        let number = fastrand::u64(1 << 42..1 << 43);
        sender.ask(recipient.id, "are you there?", number).await;
        let outcome = sender.outcome(number).await;
        assert!(["offline", "delivered"].contains(&&*outcome), "{outcome}");
    }
    all_reach(senders, recipient, text).await;
}

/// Checks that no user has the id.
async fn is_offline(senders: &mut [User], id: u64) {
    for sender in senders {
        let number = fastrand::u64(1 << 41..1 << 42);
        sender.ask(id, "are you there?", number).await;
        assert_eq!(sender.outcome(number).await, "offline");
    }
}

/// Connects a user to each node.
async fn senders(nodes: &[Node]) -> Vec<User> {
    let mut users = Vec::new();
    for node in nodes {
        users.push(node.user().await);
    }
    users
}

/// Reconnects with a ticket, and checks that the id stays.
async fn resume(node: &Node, id: u64, ticket: &str) -> User {
    let mut user = User::reconnect(node.port, ticket).await;
    let welcome = user.welcome().await;
    assert_eq!(
        (user.id, &welcome["resumed"]),
        (id, &json!(true)),
        "{welcome}"
    );
    user
}

/// Waits until the relay closes the connection, because a newer one has taken over its id.
async fn is_taken_over(user: &mut User) {
    user.until("the end", |received| received.closed.is_some())
        .await;
    assert_eq!(user.received().closed, TAKEN_OVER);
}

async fn a_user_keeps_its_id_on_any_node() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let id = alice.id;
        // From the holder of the block to another node, between two others, back to the holder, and away again.
        for (round, node) in [1, 2, 1, 0, 0, 2].into_iter().enumerate() {
            let ticket = alice.ticket().await;
            alice.leave().await;
            is_offline(&mut others, id).await;
            alice = resume(&nodes[node], id, &ticket).await;
            all_reach_again(&mut others, &mut alice, &format!("round {round}")).await;
            for other in &mut others {
                alice.ask(other.id, "back again", other.id).await;
                assert_eq!(alice.outcome(other.id).await, "delivered");
            }
        }
        let registrations = "switchboard_cluster_registrations";
        assert_eq!(nodes[2].metric(registrations).await, 2);
        assert_eq!(nodes[0].metric(registrations).await, 1);
        alice.leave().await;
        nodes[2].until(registrations, |ids| ids == 1).await;
        is_offline(&mut others, id).await;
        drop(others);
        stop(nodes).await;
    }
}

async fn the_older_connection_on_another_node_is_closed() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let id = alice.id;
        for (round, node) in [1, 2, 2, 0, 1, 0].into_iter().enumerate() {
            let ticket = alice.ticket().await;
            let mut newer = resume(&nodes[node], id, &ticket).await;
            all_reach_again(&mut others, &mut newer, &format!("round {round}")).await;
            is_taken_over(&mut alice).await;
            let heard = alice.look(|received| received.messages.clone());
            let own = format!("round {round}");
            assert!(heard.iter().all(|(_, text)| *text != own));
            // The end of the older connection does not remove the newer one.
            drop(alice);
            alice = newer;
            all_reach(&mut others, &mut alice, &format!("still {round}")).await;
        }
        drop((alice, others));
        stop(nodes).await;
    }
}

/// Writes to a user until `stopped`, and waits for all outcomes.
async fn write_until(
    mut writer: User,
    to: u64,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> User {
    let mut count = 0;
    while !*stopped.borrow() {
        let text = format!("{}-{count}", writer.id);
        writer.ask(to, &text, count).await;
        count += 1;
        sleep(Duration::from_micros(300)).await;
    }
    for number in 0..count {
        writer.outcome(number).await;
    }
    writer
}

async fn a_user_that_moves_under_load_gets_each_message_once() {
    const MOVES: usize = 24;
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut alice = nodes[0].user().await;
        let id = alice.id;
        let mut writers = Vec::new();
        let (stop_writing, stopped) = tokio::sync::watch::channel(false);
        for node in &nodes {
            let (writer, stopped) = (node.user().await, stopped.clone());
            writers.push(tokio::spawn(write_until(writer, id, stopped)));
        }
        let mut heard = Vec::new();
        for number in 0..MOVES {
            sleep(Duration::from_millis(20)).await;
            let ticket = alice.ticket().await;
            let node = &nodes[fastrand::usize(..3)];
            let before = alice;
            if number % 3 == 0 {
                // The user leaves first, so that no connection has the id for a while.
                heard.push(before.leave().await);
                alice = resume(node, id, &ticket).await;
            } else {
                let mut before = before;
                alice = resume(node, id, &ticket).await;
                is_taken_over(&mut before).await;
                heard.push(before.received());
            }
        }
        sleep(Duration::from_millis(50)).await;
        stop_writing.send_replace(true);
        let mut delivered = BTreeSet::new();
        let mut outcomes = BTreeMap::<String, usize>::new();
        for writer in writers {
            let writer = writer.await.unwrap();
            for (number, outcome) in writer.received().outcomes {
                let [outcome] = &outcome[..] else {
                    panic!("{number} of {} has {outcome:?}", writer.id);
                };
                *outcomes.entry(outcome.clone()).or_default() += 1;
                if outcome == "delivered" {
                    delivered.insert(format!("{}-{number}", writer.id));
                }
            }
        }
        heard.push(alice.leave().await);
        let mut once = BTreeSet::new();
        for (_, text) in heard.iter().flat_map(|received| &received.messages) {
            assert!(once.insert(text.clone()), "{text} was delivered twice");
        }
        let lost: Vec<_> = delivered.difference(&once).collect();
        assert!(
            lost.is_empty(),
            "messages were reported as delivered, but did not arrive: {lost:?}"
        );
        println!("   {MOVES} moves: {outcomes:?}");
        let known = ["delivered", "offline", "disconnected", "queue_full"];
        for outcome in outcomes.keys() {
            assert!(known.contains(&&**outcome), "{outcomes:?}");
        }
        assert!(outcomes["delivered"] > 100, "{outcomes:?}");
        stop(nodes).await;
    }
}

/// The id moves while more messages are in flight than a node takes in one turn.
async fn a_message_of_a_flood_gets_an_outcome_when_its_recipient_moves() {
    const EACH: u64 = 240;
    let many = ("LIMITS__OUTCOMES_PENDING", "4096");
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[many]).await;
        let mut others = senders(&nodes).await;
        others.extend(senders(&nodes).await);
        let mut alice = nodes[0].user().await;
        let (id, ticket) = (alice.id, alice.ticket().await);
        alice.leave().await;
        let mut alice = resume(&nodes[1], id, &ticket).await;
        let mut heard = 0;
        for round in 0..8 {
            let ticket = alice.ticket().await;
            for other in &mut others {
                for number in 0..EACH {
                    let message_id = round * EACH + number;
                    let frame = json!({"recipient_id": id, "message": "flood", "id": message_id});
                    other.feed(frame).await;
                }
            }
            let flood = futures_util::future::join_all(others.iter_mut().map(User::flush));
            let node = &nodes[[2, 1][usize::try_from(round).unwrap() % 2]];
            let (mut newer, _) = tokio::join!(resume(node, id, &ticket), flood);
            is_taken_over(&mut alice).await;
            for other in &mut others {
                for number in 0..EACH {
                    let outcome = other.outcome(round * EACH + number).await;
                    let known = ["delivered", "offline", "disconnected", "queue_full"];
                    assert!(known.contains(&&*outcome), "{outcome} in round {round}");
                    heard += u64::from(outcome == "delivered");
                }
            }
            newer.welcome().await;
            alice = newer;
        }
        println!("   {heard} messages were delivered");
        drop((alice, others));
        stop(nodes).await;
    }
}

/// No other message arrives that could wake the node.
async fn a_message_during_a_claim_is_settled_at_once() {
    use crate::proxy::{Condition, Proxy};
    let deployment = Deployment::new("directory").await;
    let proxy = Proxy::to(deployment.nats.port).await;
    let secret = ("TICKETS__SECRET_FILE", &*deployment.secret);
    let far = Node::start(&proxy.url(), &[secret]).await;
    let [held, near] = deployment.nodes(&[]).await;
    let mut alice = held.user().await;
    let (id, mut ticket) = (alice.id, alice.ticket().await);
    drop(alice);
    held.stop().await;
    let mut bob = near.user().await;
    let mut number = 0;
    for round in 0..5 {
        proxy.set(Condition::Slow {
            delay: Duration::from_millis(100),
            bytes_per_second: 10_000_000,
        });
        let first = number;
        let (mut alice, ()) = tokio::join!(resume(&far, id, &ticket), async {
            // After the node has subscribed to the id, and before it knows that no other node has the id.
            sleep(Duration::from_millis(120 + 15 * round)).await;
            for _ in 0..4 {
                sleep(Duration::from_millis(15)).await;
                bob.ask(id, "early", number).await;
                number += 1;
            }
        });
        for number in first..number {
            let outcome = bob.outcome(number).await;
            assert_ne!(outcome, "unknown", "{number} in round {round}");
        }
        proxy.set(Condition::Normal);
        ticket = alice.ticket().await;
        alice.leave().await;
        far.until("switchboard_cluster_registrations", |ids| ids == 0)
            .await;
    }
    drop(bob);
    stop([far, near]).await;
}

/// Reconnects twice with one ticket at the same time. Returns the connection that keeps the id.
async fn resume_twice(nodes: [&Node; 2], id: u64, ticket: &str) -> User {
    let (one, other) = tokio::join!(
        User::reconnect(nodes[0].port, ticket),
        User::reconnect(nodes[1].port, ticket),
    );
    let mut users = [one, other];
    assert!(
        users.iter().any(|user| user.id == id),
        "neither connection has the id"
    );
    for user in &mut users {
        let welcome = user.welcome().await;
        if user.id != id {
            assert_eq!(welcome["resumed"], json!(false), "{welcome}");
            assert_eq!(welcome["reason"], json!("id_in_use"), "{welcome}");
        }
    }
    if users.iter().all(|user| user.id == id) {
        eventually("one is closed", async || {
            let closed = users
                .iter()
                .filter(|user| user.received().closed == TAKEN_OVER);
            (closed.count() == 1).then_some(())
        })
        .await;
    }
    let keeps_id = |user: &User| user.id == id && user.received().closed.is_none();
    let mut left: Vec<_> = users.into_iter().filter(keeps_id).collect();
    assert_eq!(left.len(), 1);
    left.pop().unwrap()
}

async fn one_of_two_simultaneous_connections_gets_the_id() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let id = alice.id;
        for round in 0..20 {
            let ticket = alice.ticket().await;
            let [one, other] = [[1, 2], [0, 1], [2, 0], [1, 1], [0, 0]][round % 5];
            alice = resume_twice([&nodes[one], &nodes[other]], id, &ticket).await;
            all_reach_again(&mut others, &mut alice, &format!("round {round}")).await;
        }
        drop((alice, others));
        stop(nodes).await;
    }
}

async fn one_of_two_simultaneous_connections_gets_an_id_without_a_holder() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let [held, one, other] = deployment.nodes(&[]).await;
        let mut alice = held.user().await;
        let (id, ticket) = (alice.id, alice.ticket().await);
        drop(alice);
        held.stop().await;
        let nodes = [one, other];
        let mut others = senders(&nodes).await;
        let mut ticket = ticket;
        for round in 0..20 {
            alice = resume_twice([&nodes[0], &nodes[1]], id, &ticket).await;
            all_reach_again(&mut others, &mut alice, &format!("round {round}")).await;
            ticket = alice.ticket().await;
            if round % 2 == 0 {
                alice.leave().await;
            }
        }
        drop(others);
        stop(nodes).await;
    }
}

async fn an_id_outlives_the_node_that_held_its_block() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let [mut held, second, third] = deployment.nodes(&[]).await;
        let mut alice = held.user().await;
        let id = alice.id;
        let ticket = alice.ticket().await;
        held.kill();
        is_closed(&mut alice).await;
        let fresh = deployment.node(&[]).await;
        let nodes = [second, third, fresh];
        let mut others = senders(&nodes).await;
        assert!(others.iter().all(|other| other.id != id));
        let mut ticket = ticket;
        for (round, node) in [0, 1, 2, 2, 0].into_iter().enumerate() {
            let mut newer = resume(&nodes[node], id, &ticket).await;
            all_reach_again(&mut others, &mut newer, &format!("round {round}")).await;
            ticket = newer.ticket().await;
            if round > 0 && round < 3 {
                is_taken_over(&mut alice).await;
            }
            alice = newer;
            if round == 2 {
                alice = resume(&nodes[2], id, &ticket).await;
            }
        }
        alice.leave().await;
        is_offline(&mut others, id).await;
        drop(others);
        stop(nodes).await;
    }
}

async fn is_closed(user: &mut User) {
    user.until("the end", |received| received.closed.is_some())
        .await;
}

async fn a_user_of_a_killed_node_comes_back_within_ten_seconds() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let [first, mut second, third] = deployment.nodes(&[]).await;
        let mut alice = first.user().await;
        let (id, ticket) = (alice.id, alice.ticket().await);
        alice.leave().await;
        let mut alice = resume(&second, id, &ticket).await;
        let ticket = alice.ticket().await;
        // The lease of the node lasts longer than its timeout, because the node renews it.
        sleep(Duration::from_secs(5)).await;
        let nodes = [first, third];
        let mut others = senders(&nodes).await;
        all_reach(&mut others, &mut alice, "after a while").await;
        second.kill();
        is_closed(&mut alice).await;
        let killed = tokio::time::Instant::now();
        let mut alice = resume(&nodes[1], id, &ticket).await;
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        println!("   back after {took:?}");
        all_reach_again(&mut others, &mut alice, "after it").await;
        sleep(Duration::from_secs(5)).await;
        all_reach(&mut others, &mut alice, "after the timeout").await;
        alice.leave().await;
        is_offline(&mut others, id).await;
        drop(others);
        // What was sent to the killed node is lost.
        for node in nodes {
            node.stop().await;
        }
    }
}

async fn a_user_that_waits_for_its_dead_node_is_not_evicted_by_handshakes() {
    let deployment = Deployment::new("directory").await;
    let mut first = deployment.node(&[]).await;
    let second = deployment.node(&[("LIMITS__HANDSHAKES", "4")]).await;
    let mut alice = first.user().await;
    let (id, ticket) = (alice.id, alice.ticket().await);
    first.kill();
    is_closed(&mut alice).await;
    let port = second.port;
    let returning = tokio::spawn(async move { User::try_reconnect(port, &ticket).await });
    let joins = "switchboard_cluster_joins_waiting";
    second.until(joins, |joins| joins == 1).await;
    // Alice has the oldest connection of the only address.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    let evicted = "switchboard_http_evicted_total";
    second.until(evicted, |evicted| evicted >= 4).await;
    let alice = within("the upgrade", returning).await.unwrap().unwrap();
    assert_eq!(alice.id, id);
    drop((alice, silent));
    second.stop().await;
}

async fn a_migrated_id_survives_a_restart_of_nats() {
    for strategy in STRATEGIES {
        let mut deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let (id, ticket) = (alice.id, alice.ticket().await);
        alice.leave().await;
        let mut alice = resume(&nodes[1], id, &ticket).await;
        for round in 0..2 {
            deployment.nats.kill();
            for node in &nodes {
                node.until_up(false).await;
            }
            deployment.nats.run().await;
            for node in &nodes {
                node.until_up(true).await;
            }
            all_reach(&mut others, &mut alice, &format!("round {round}")).await;
        }
        let ticket = alice.ticket().await;
        let mut alice = resume(&nodes[2], id, &ticket).await;
        all_reach_again(&mut others, &mut alice, "elsewhere").await;
        drop((alice, others));
        stop(nodes).await;
    }
}

/// An id moves while the holder of its block has no connection to NATS. Once the holder is connected again, it must not
/// answer for the id, from the first message on.
async fn a_reconnected_holder_does_not_answer_for_migrated_ids() {
    use crate::proxy::{Condition, Proxy};
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let proxy = Proxy::to(deployment.nats.port).await;
        let settings = [
            ("TICKETS__SECRET_FILE", &*deployment.secret),
            ("ROUTING__STRATEGY", strategy),
        ];
        let held = Node::start(&proxy.url(), &settings).await;
        let [second, third] = deployment.nodes(&[]).await;
        let mut stale = held.user().await;
        let (id, ticket) = (stale.id, stale.ticket().await);
        proxy.set(Condition::Reset);
        held.until_up(false).await;
        // The user's connection to the holder is still open.
        let mut alice = resume(&second, id, &ticket).await;
        let mut bob = third.user().await;
        let writer_id = bob.id;
        let (stop_writing, stopped) = tokio::sync::watch::channel(false);
        let writer = tokio::spawn(async move {
            let mut count = 0;
            while !*stopped.borrow() {
                bob.ask(id, &count.to_string(), count).await;
                assert_eq!(bob.outcome(count).await, "delivered");
                count += 1;
            }
            count
        });
        proxy.set(Condition::Normal);
        held.until_up(true).await;
        is_taken_over(&mut stale).await;
        sleep(Duration::from_millis(200)).await;
        stop_writing.send_replace(true);
        let count = writer.await.unwrap();
        assert!(count > 10);
        // The outcome may arrive before the recipient has read the message.
        alice.hears(writer_id, &(count - 1).to_string()).await;
        let heard: Vec<_> = alice
            .received()
            .messages
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        let all: Vec<_> = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(heard, all);
        assert!(stale.received().messages.is_empty());
        let nodes = [held, second, third];
        let mut others = senders(&nodes).await;
        all_reach(&mut others, &mut alice, "after it").await;
        drop((alice, stale, others));
        stop(nodes).await;
    }
}

/// Reconnects with a ticket, and checks that the relay gives a new id. Returns the reason.
async fn refused_ticket(node: &Node, ticket: &str, id: u64) -> Value {
    let mut user = User::reconnect(node.port, ticket).await;
    let welcome = user.welcome().await;
    assert_eq!(welcome["resumed"], json!(false), "{welcome}");
    assert_ne!(user.id, id);
    assert_eq!(welcome["user_id"], json!(user.id));
    user.leave().await;
    welcome["reason"].clone()
}

async fn an_invalid_ticket_gives_a_new_id() {
    let deployment = Deployment::new("directory").await;
    let short = ("TICKETS__TTL", "1s");
    let [first, second] = deployment.nodes(&[short]).await;
    let other = deployment
        .folder
        .file("other", &"another secret entirely ".repeat(3));
    let foreign = Node::start(&deployment.nats.url(), &[("TICKETS__SECRET_FILE", &other)]).await;
    let mut alice = first.user().await;
    let (id, ticket) = (alice.id, alice.ticket().await);
    let mut forged = ticket.clone();
    let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
    forged.push(last);
    for (node, ticket) in [(&second, &forged), (&foreign, &ticket)] {
        assert_eq!(refused_ticket(node, ticket, id).await, "ticket_invalid");
    }
    // A forged ticket does not affect the user.
    let mut bob = second.user().await;
    bob.ask(id, "still there?", 1).await;
    assert_eq!(bob.outcome(1).await, "delivered");
    alice.leave().await;
    eventually("the ticket expires", async || {
        let mut user = User::reconnect(second.port, &ticket).await;
        let welcome = user.welcome().await;
        user.leave().await;
        (welcome["reason"] == "ticket_expired").then_some(())
    })
    .await;
    assert_eq!(refused_ticket(&second, &ticket, id).await, "ticket_expired");
    drop(bob);
    stop([first, second, foreign]).await;
}

/// As after a power loss on the host of NATS: the relay gives the same ids to other users.
async fn a_ticket_does_not_take_the_id_of_another_user() {
    let mut deployment = Deployment::new("directory").await;
    let first = deployment.node(&[]).await;
    let mut alice = first.user().await;
    let (id, ticket) = (alice.id, alice.ticket().await);
    alice.leave().await;
    first.stop().await;
    deployment.nats.kill();
    deployment.nats.forget();
    deployment.nats.run().await;
    let nodes: [Node; 3] = deployment.nodes(&[]).await;
    let mut stranger = nodes[0].user().await;
    assert_eq!(stranger.id, id);
    for node in &nodes {
        assert_eq!(refused_ticket(node, &ticket, id).await, "id_in_use");
    }
    // The same holds when the user has moved to another node.
    let own = stranger.ticket().await;
    let mut moved = resume(&nodes[1], id, &own).await;
    for node in &nodes {
        assert_eq!(refused_ticket(node, &ticket, id).await, "id_in_use");
    }
    let mut others = senders(&nodes).await;
    all_reach(&mut others, &mut moved, "still here").await;
    drop((stranger, moved, others));
    stop(nodes).await;
}

async fn new_ids_are_above_resumed_ids() {
    let mut deployment = Deployment::new("directory").await;
    let first = deployment.node(&[]).await;
    let mut users = Vec::new();
    for _ in 0..5 {
        users.push(first.user().await);
    }
    let mut tickets = Vec::new();
    for user in &mut users {
        tickets.push((user.id, user.ticket().await));
    }
    drop(users);
    first.stop().await;
    deployment.nats.kill();
    deployment.nats.forget();
    deployment.nats.run().await;
    let nodes: [Node; 2] = deployment.nodes(&[]).await;
    // One user returns to the holder of the block, and one to another node.
    let (third, fifth) = (&tickets[2], &tickets[4]);
    let ann = resume(&nodes[0], third.0, &third.1).await;
    assert_eq!(nodes[0].user().await.id, 4);
    let ben = resume(&nodes[1], fifth.0, &fifth.1).await;
    assert_eq!(nodes[0].user().await.id, 6);
    drop((ann, ben));
    stop(nodes).await;
}
