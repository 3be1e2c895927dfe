//! The id that survives a reconnect, on whichever node: one connection has it, and gets each message
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::crossing::stop;
use crate::eventually;
use crate::nats::{Folder, Nats};
use crate::node::Node;
use crate::user::{Dialect, User};

crate::tests!("tickets":
    somebody_comes_back_on_any_node,
    the_older_connection_on_another_node_is_closed,
    whoever_moves_under_load_gets_each_message_once,
    whoever_moves_in_a_flood_leaves_nothing_behind,
    what_comes_while_an_id_is_claimed_is_settled_at_once,
    of_two_at_once_one_has_the_id,
    of_two_at_once_one_has_the_id_that_nobody_holds,
    the_node_that_held_the_block_is_gone,
    a_claim_lapses_with_its_node,
    a_link_that_breaks_keeps_the_guests,
    a_holder_that_was_away_does_not_answer_for_who_has_gone,
    tickets_that_do_not_hold_give_another_id,
    an_id_of_somebody_else_is_not_taken,
    new_users_get_ids_behind_those_that_came_back,
    no_more_ids_leave_than_may,
);

const TAKEN_OVER: Option<u16> = Some(4409);

/// Settings of nodes that know each other's tickets.
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

/// Somebody is reached by all of them, by each message once.
async fn all_reach(senders: &mut [User], recipient: &mut User, text: &str) {
    for (sender, number) in senders.iter_mut().zip(1_000_000..) {
        let number = number + fastrand::u64(..1 << 40);
        sender.ask(recipient.id, text, number).await;
        assert_eq!(sender.outcome(number).await, "delivered", "{text}");
        recipient.hears(sender.id, text).await;
    }
    let heard = recipient.look(|told| {
        let heard = told.messages.iter().filter(|(_, heard)| heard == text);
        heard.count()
    });
    assert_eq!(heard, senders.len(), "{text}: each once");
}

async fn nobody_reaches(senders: &mut [User], id: u64) {
    for sender in senders {
        let number = fastrand::u64(1 << 41..1 << 42);
        sender.ask(id, "anybody?", number).await;
        assert_eq!(sender.outcome(number).await, "offline");
    }
}

async fn senders(nodes: &[Node]) -> Vec<User> {
    let mut users = Vec::new();
    for node in nodes {
        users.push(node.user().await);
    }
    users
}

async fn comes_back(node: &Node, id: u64, ticket: &str) -> User {
    let mut user = User::come_back(node.port, ticket).await;
    let welcome = user.welcome().await;
    assert_eq!(
        (user.id, &welcome["resumed"]),
        (id, &json!(true)),
        "{welcome}"
    );
    user
}

async fn is_taken_over(user: &mut User) {
    user.until("the end", |told| told.closed.is_some()).await;
    assert_eq!(user.told().closed, TAKEN_OVER);
}

async fn somebody_comes_back_on_any_node() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let id = alice.id;
        // Away from the holder of the block, between two others, home, and away again.
        for (round, node) in [1, 2, 1, 0, 0, 2].into_iter().enumerate() {
            let ticket = alice.ticket().await;
            alice.leave().await;
            nobody_reaches(&mut others, id).await;
            alice = comes_back(&nodes[node], id, &ticket).await;
            all_reach(&mut others, &mut alice, &format!("round {round}")).await;
            for other in &mut others {
                alice.ask(other.id, "here again", other.id).await;
                assert_eq!(alice.outcome(other.id).await, "delivered");
            }
        }
        assert_eq!(nodes[2].metric("switchboard_cluster_guests").await, 1);
        assert_eq!(nodes[0].metric("switchboard_cluster_claims").await, 1);
        alice.leave().await;
        nodes[2]
            .until("switchboard_cluster_guests", |guests| guests == 0)
            .await;
        assert_eq!(nodes[0].metric("switchboard_cluster_claims").await, 0);
        nobody_reaches(&mut others, id).await;
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
            let mut newer = comes_back(&nodes[node], id, &ticket).await;
            all_reach(&mut others, &mut newer, &format!("round {round}")).await;
            is_taken_over(&mut alice).await;
            let heard = alice.look(|told| told.messages.clone());
            let own = format!("round {round}");
            assert!(heard.iter().all(|(_, text)| *text != own));
            // What leaves late takes nobody out.
            drop(alice);
            alice = newer;
            all_reach(&mut others, &mut alice, &format!("still {round}")).await;
        }
        drop((alice, others));
        stop(nodes).await;
    }
}

/// Writes to somebody all the time, and waits for all outcomes.
async fn writes(mut writer: User, to: u64, stopped: tokio::sync::watch::Receiver<bool>) -> User {
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

async fn whoever_moves_under_load_gets_each_message_once() {
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
            writers.push(tokio::spawn(writes(writer, id, stopped)));
        }
        let mut heard = Vec::new();
        for number in 0..MOVES {
            sleep(Duration::from_millis(20)).await;
            let ticket = alice.ticket().await;
            let node = &nodes[fastrand::usize(..3)];
            let before = alice;
            if number % 3 == 0 {
                // In order, with a time between in which nobody has the id.
                heard.push(before.leave().await);
                alice = comes_back(node, id, &ticket).await;
            } else {
                let mut before = before;
                alice = comes_back(node, id, &ticket).await;
                is_taken_over(&mut before).await;
                heard.push(before.told());
            }
        }
        sleep(Duration::from_millis(50)).await;
        stop_writing.send_replace(true);
        let mut delivered = BTreeSet::new();
        let mut outcomes = BTreeMap::<String, usize>::new();
        for writer in writers {
            let writer = writer.await.unwrap();
            for (number, outcome) in writer.told().outcomes {
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
        for (_, text) in heard.iter().flat_map(|told| &told.messages) {
            assert!(once.insert(text.clone()), "{text} was delivered twice");
        }
        let lost: Vec<_> = delivered.difference(&once).collect();
        assert!(lost.is_empty(), "{lost:?} were reported delivered");
        println!("   {MOVES} moves: {outcomes:?}");
        let known = ["delivered", "offline", "disconnected", "queue_full"];
        for outcome in outcomes.keys() {
            assert!(known.contains(&&**outcome), "{outcomes:?}");
        }
        assert!(outcomes["delivered"] > 100, "{outcomes:?}");
        stop(nodes).await;
    }
}

/// More is on its way than a node takes in one go, when the id goes to another.
async fn whoever_moves_in_a_flood_leaves_nothing_behind() {
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
        let mut alice = comes_back(&nodes[1], id, &ticket).await;
        let mut heard = 0;
        for round in 0..8 {
            let ticket = alice.ticket().await;
            for other in &mut others {
                for number in 0..EACH {
                    let id_of_it = round * EACH + number;
                    let frame = json!({"recipient_id": id, "message": "flood", "id": id_of_it});
                    other.feed(frame).await;
                }
            }
            let flood = futures_util::future::join_all(others.iter_mut().map(User::flush));
            let node = &nodes[[2, 1][usize::try_from(round).unwrap() % 2]];
            let (mut newer, _) = tokio::join!(comes_back(node, id, &ticket), flood);
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
        println!("   {heard} were delivered");
        drop((alice, others));
        stop(nodes).await;
    }
}

/// And lets the whole node go on, where nothing else comes.
async fn what_comes_while_an_id_is_claimed_is_settled_at_once() {
    use crate::proxy::{Proxy, Weather};
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
        proxy.set(Weather::Slow {
            delay: Duration::from_millis(100),
            bytes_per_second: 10_000_000,
        });
        let first = number;
        let (mut alice, ()) = tokio::join!(comes_back(&far, id, &ticket), async {
            // Once it is listened for, and before it is known that nobody else has it.
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
        proxy.set(Weather::Fine);
        ticket = alice.ticket().await;
        alice.leave().await;
        far.until("switchboard_cluster_guests", |guests| guests == 0)
            .await;
    }
    drop(bob);
    stop([far, near]).await;
}

/// Two come back with one ticket at the same moment; whoever is left with the id.
async fn two_at_once(nodes: [&Node; 2], id: u64, ticket: &str) -> User {
    let (one, other) = tokio::join!(
        User::come_back(nodes[0].port, ticket),
        User::come_back(nodes[1].port, ticket),
    );
    let mut users = [one, other];
    assert!(users.iter().any(|user| user.id == id), "one has the id");
    for user in &mut users {
        let welcome = user.welcome().await;
        if user.id != id {
            assert_eq!(welcome["resumed"], json!(false), "{welcome}");
            assert_eq!(welcome["reason"], json!("id_in_use"), "{welcome}");
        }
    }
    if users.iter().all(|user| user.id == id) {
        eventually("one is closed", async || {
            let closed = users.iter().filter(|user| user.told().closed == TAKEN_OVER);
            (closed.count() == 1).then_some(())
        })
        .await;
    }
    let stays = |user: &User| user.id == id && user.told().closed.is_none();
    let mut left: Vec<_> = users.into_iter().filter(stays).collect();
    assert_eq!(left.len(), 1);
    left.pop().unwrap()
}

async fn of_two_at_once_one_has_the_id() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let id = alice.id;
        for round in 0..20 {
            let ticket = alice.ticket().await;
            let [one, other] = [[1, 2], [0, 1], [2, 0], [1, 1], [0, 0]][round % 5];
            alice = two_at_once([&nodes[one], &nodes[other]], id, &ticket).await;
            all_reach(&mut others, &mut alice, &format!("round {round}")).await;
        }
        drop((alice, others));
        stop(nodes).await;
    }
}

async fn of_two_at_once_one_has_the_id_that_nobody_holds() {
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
            alice = two_at_once([&nodes[0], &nodes[1]], id, &ticket).await;
            all_reach(&mut others, &mut alice, &format!("round {round}")).await;
            ticket = alice.ticket().await;
            if round % 2 == 0 {
                alice.leave().await;
            }
        }
        drop(others);
        stop(nodes).await;
    }
}

async fn the_node_that_held_the_block_is_gone() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let [mut held, second, third] = deployment.nodes(&[]).await;
        let mut alice = held.user().await;
        let id = alice.id;
        let ticket = alice.ticket().await;
        held.kill();
        is_cut(&mut alice).await;
        let fresh = deployment.node(&[]).await;
        let nodes = [second, third, fresh];
        let mut others = senders(&nodes).await;
        assert!(others.iter().all(|other| other.id != id));
        let mut ticket = ticket;
        for (round, node) in [0, 1, 2, 2, 0].into_iter().enumerate() {
            let mut newer = comes_back(&nodes[node], id, &ticket).await;
            all_reach(&mut others, &mut newer, &format!("round {round}")).await;
            ticket = newer.ticket().await;
            if round > 0 && round < 3 {
                is_taken_over(&mut alice).await;
            }
            alice = newer;
            if round == 2 {
                alice = comes_back(&nodes[2], id, &ticket).await;
            }
        }
        alice.leave().await;
        nobody_reaches(&mut others, id).await;
        drop(others);
        stop(nodes).await;
    }
}

async fn is_cut(user: &mut User) {
    user.until("the end", |told| told.closed.is_some()).await;
}

const SHORT: [(&str, &str); 2] = [
    ("CLUSTER__LINK_TIMEOUT", "500ms"),
    ("CLUSTER__CLAIM_TIMEOUT", "2s"),
];

async fn a_claim_lapses_with_its_node() {
    for strategy in STRATEGIES {
        let deployment = Deployment::new(strategy).await;
        let [held, mut second, third] = deployment.nodes(&SHORT).await;
        let mut alice = held.user().await;
        let (id, ticket) = (alice.id, alice.ticket().await);
        alice.leave().await;
        let mut alice = comes_back(&second, id, &ticket).await;
        let ticket = alice.ticket().await;
        assert_eq!(held.metric("switchboard_cluster_claims").await, 1);
        // As long as it is renewed it lasts.
        sleep(Duration::from_secs(3)).await;
        assert_eq!(held.metric("switchboard_cluster_claims").await, 1);
        second.kill();
        held.until("switchboard_cluster_claims", |claims| claims == 0)
            .await;
        let nodes = [held, third];
        let mut others = senders(&nodes).await;
        nobody_reaches(&mut others, id).await;
        is_cut(&mut alice).await;
        let mut alice = comes_back(&nodes[1], id, &ticket).await;
        all_reach(&mut others, &mut alice, "after it").await;
        // Nor has anybody to wait for that.
        let ticket = alice.ticket().await;
        let [held, mut third] = nodes;
        third.kill();
        is_cut(&mut alice).await;
        let mut alice = comes_back(&held, id, &ticket).await;
        others.truncate(1);
        all_reach(&mut others, &mut alice, "at once").await;
        // And this one lasts, though nobody else renews it.
        sleep(Duration::from_secs(3)).await;
        all_reach(&mut others, &mut alice, "for long").await;
        drop((alice, others));
        held.stop().await;
    }
}

async fn a_link_that_breaks_keeps_the_guests() {
    for strategy in STRATEGIES {
        let mut deployment = Deployment::new(strategy).await;
        let nodes: [Node; 3] = deployment.nodes(&[]).await;
        let mut others = senders(&nodes).await;
        let mut alice = nodes[0].user().await;
        let (id, ticket) = (alice.id, alice.ticket().await);
        alice.leave().await;
        let mut alice = comes_back(&nodes[1], id, &ticket).await;
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
        let mut alice = comes_back(&nodes[2], id, &ticket).await;
        all_reach(&mut others, &mut alice, "elsewhere").await;
        drop((alice, others));
        stop(nodes).await;
    }
}

/// While the holder of a block is away, ids of it are taken by others; when it is back it has to be
/// silent for them from the first message on.
async fn a_holder_that_was_away_does_not_answer_for_who_has_gone() {
    use crate::proxy::{Proxy, Weather};
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
        proxy.set(Weather::Cut);
        held.until_up(false).await;
        // The connection to the holder still stands.
        let mut alice = comes_back(&second, id, &ticket).await;
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
        proxy.set(Weather::Fine);
        held.until_up(true).await;
        is_taken_over(&mut stale).await;
        sleep(Duration::from_millis(200)).await;
        stop_writing.send_replace(true);
        let count = writer.await.unwrap();
        assert!(count > 10);
        // That it was delivered may be told before it is read.
        alice.hears(writer_id, &(count - 1).to_string()).await;
        let heard: Vec<_> = alice
            .told()
            .messages
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        let all: Vec<_> = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(heard, all);
        assert!(stale.told().messages.is_empty());
        let nodes = [held, second, third];
        let mut others = senders(&nodes).await;
        all_reach(&mut others, &mut alice, "after it").await;
        drop((alice, stale, others));
        stop(nodes).await;
    }
}

async fn has_another_id(node: &Node, ticket: &str, id: u64) -> Value {
    let mut user = User::come_back(node.port, ticket).await;
    let welcome = user.welcome().await;
    assert_eq!(welcome["resumed"], json!(false), "{welcome}");
    assert_ne!(user.id, id);
    assert_eq!(welcome["user_id"], json!(user.id));
    user.leave().await;
    welcome["reason"].clone()
}

async fn tickets_that_do_not_hold_give_another_id() {
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
        assert_eq!(has_another_id(node, ticket, id).await, "ticket_invalid");
    }
    // Forged tickets take nothing from anybody.
    let mut bob = second.user().await;
    bob.ask(id, "still there?", 1).await;
    assert_eq!(bob.outcome(1).await, "delivered");
    alice.leave().await;
    eventually("the ticket is over", async || {
        let mut user = User::come_back(second.port, &ticket).await;
        let welcome = user.welcome().await;
        user.leave().await;
        (welcome["reason"] == "ticket_expired").then_some(())
    })
    .await;
    assert_eq!(has_another_id(&second, &ticket, id).await, "ticket_expired");
    drop(bob);
    stop([first, second, foreign]).await;
}

/// As after a loss of power on NATS's host: ids are given anew, to others.
async fn an_id_of_somebody_else_is_not_taken() {
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
        assert_eq!(has_another_id(node, &ticket, id).await, "id_in_use");
    }
    // Nor from another node than the holder of the block.
    let own = stranger.ticket().await;
    let mut moved = comes_back(&nodes[1], id, &own).await;
    for node in &nodes {
        assert_eq!(has_another_id(node, &ticket, id).await, "id_in_use");
    }
    let mut others = senders(&nodes).await;
    all_reach(&mut others, &mut moved, "still here").await;
    drop((stranger, moved, others));
    stop(nodes).await;
}

async fn new_users_get_ids_behind_those_that_came_back() {
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
    // One to the holder of the block itself, one to another.
    let (third, fifth) = (&tickets[2], &tickets[4]);
    let ann = comes_back(&nodes[0], third.0, &third.1).await;
    assert_eq!(nodes[0].user().await.id, 4);
    let ben = comes_back(&nodes[1], fifth.0, &fifth.1).await;
    assert_eq!(nodes[0].user().await.id, 6);
    drop((ann, ben));
    stop(nodes).await;
}

async fn no_more_ids_leave_than_may() {
    let deployment = Deployment::new("directory").await;
    let few = ("CLUSTER__CLAIMS", "1");
    let nodes: [Node; 2] = deployment.nodes(&[few]).await;
    let mut tickets = Vec::new();
    for _ in 0..2 {
        let mut user = User::connect(nodes[0].port, Dialect::V1).await;
        tickets.push((user.id, user.ticket().await));
        user.leave().await;
    }
    let first = comes_back(&nodes[1], tickets[0].0, &tickets[0].1).await;
    let (id, ticket) = &tickets[1];
    assert_eq!(
        has_another_id(&nodes[1], ticket, *id).await,
        "id_unavailable"
    );
    first.leave().await;
    nodes[0]
        .until("switchboard_cluster_claims", |claims| claims == 0)
        .await;
    let second = comes_back(&nodes[1], *id, ticket).await;
    drop(second);
    stop(nodes).await;
}
