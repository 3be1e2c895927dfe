//! Blocks of ids: an id is never given to two users, even when nodes start, stop and lose NATS.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::nats::{Nats, free_port};
use crate::node::Node;

crate::tests!("ids":
    ids_of_a_new_cluster_begin_at_one,
    a_used_up_block_is_replaced_and_costs_nothing,
    a_restarted_node_gives_new_ids,
    ids_stay_unique_after_nats_has_lost_its_leases,
    a_node_with_another_block_size_is_not_ready,
);

const TINY: (&str, &str) = ("CLUSTER__BLOCK_SIZE", "4");

async fn ids_of_a_new_cluster_begin_at_one() {
    let nats = Nats::start().await;
    let first = Node::start(&nats.url(), &[]).await;
    let alice = first.user().await;
    assert_eq!(alice.id, 1);
    let second = Node::start(&nats.url(), &[]).await;
    let bob = second.user().await;
    assert_eq!(bob.id % 1024, 1, "not the first id of a block: {}", bob.id);
    assert!(bob.id > 1024);
    drop((alice, bob));
    first.stop().await;
    second.stop().await;
}

async fn a_used_up_block_is_replaced_and_costs_nothing() {
    const USERS: usize = 60;
    let monitor = free_port();
    let nats = Nats::with(&format!("http: \"127.0.0.1:{monitor}\"")).await;
    let nodes = [
        Node::start(&nats.url(), &[TINY]).await,
        Node::start(&nats.url(), &[TINY]).await,
    ];
    let mut given = BTreeSet::new();
    let mut users = Vec::new();
    let mut admin = nodes[0].user().await;
    given.insert(admin.id);
    let before = subscriptions(monitor).await;
    for round in 0..USERS {
        let node = &nodes[round % 2];
        node.until("switchboard_cluster_ids_left", |left| left > 0)
            .await;
        let user = node.user().await;
        assert!(given.insert(user.id), "{} was given twice", user.id);
        users.push(user);
    }
    // Users of every block are reachable.
    for (user, number) in users.iter_mut().zip(0..) {
        admin.ask(user.id, "hello", number).await;
        assert_eq!(admin.outcome(number).await, "delivered");
    }
    assert_eq!(
        subscriptions(monitor).await,
        before,
        "no block or user has one of its own"
    );
    for node in &nodes {
        let blocks = node.metric("switchboard_cluster_blocks").await;
        assert!(blocks <= 2, "{blocks} blocks have ids left");
    }
    for user in users {
        user.leave().await;
    }
    let registrations = "switchboard_cluster_registrations";
    nodes[0].until(registrations, |ids| ids == 1).await;
    nodes[1].until(registrations, |ids| ids == 0).await;
    let last = given.last().copied().unwrap();
    given.remove(&admin.id);
    for (id, number) in given.iter().zip(1000..) {
        admin.ask(*id, "still there?", number).await;
        assert_eq!(admin.outcome(number).await, "offline");
    }
    assert!(
        last <= 4 * 2 * (USERS as u64 / 4 + 3),
        "ids were skipped: the last one is {last}"
    );
    drop(admin);
    for node in nodes {
        node.stop().await;
    }
}

/// The number of subscriptions.
pub(crate) async fn subscriptions(monitor: u16) -> u64 {
    figure(monitor, "subsz", "num_subscriptions").await
}

/// The number of messages that NATS has received.
pub(crate) async fn messages(monitor: u16) -> u64 {
    figure(monitor, "varz", "in_msgs").await
}

/// Reads a figure from the monitoring port of NATS.
async fn figure(monitor: u16, page: &str, name: &str) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", monitor)).await.unwrap();
    let request = format!("GET /{page} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body[name].as_u64().unwrap()
}

async fn a_restarted_node_gives_new_ids() {
    let nats = Nats::start().await;
    let first = Node::start(&nats.url(), &[TINY]).await;
    let mut alice = first.user().await;
    let mut given = BTreeSet::from([alice.id]);
    for round in 0..3 {
        let node = Node::start(&nats.url(), &[TINY]).await;
        let mut bob = node.user().await;
        assert!(given.insert(bob.id), "{} was given twice", bob.id);
        bob.ask(alice.id, "here again", 1).await;
        assert_eq!(bob.outcome(1).await, "delivered");
        alice.ask(bob.id, "welcome back", round).await;
        assert_eq!(alice.outcome(round).await, "delivered");
        drop(bob);
        node.stop().await;
        for (id, number) in given.iter().skip(1).zip(0..) {
            let number = 100 * (round + 1) + number;
            alice.ask(*id, "and now?", number).await;
            assert_eq!(alice.outcome(number).await, "offline");
        }
    }
    drop(alice);
    first.stop().await;
}

/// As after a power loss on the host of NATS: the buckets are gone, so the same blocks could be leased again.
async fn ids_stay_unique_after_nats_has_lost_its_leases() {
    let mut nats = Nats::start().await;
    let first = Node::start(&nats.url(), &[TINY]).await;
    let mut users = Vec::new();
    for _ in 0..10 {
        first
            .until("switchboard_cluster_ids_left", |left| left > 0)
            .await;
        users.push(first.user().await);
    }
    nats.kill();
    nats.forget();
    first.until_up(false).await;
    nats.run().await;
    first.until_up(true).await;
    let second = Node::start(&nats.url(), &[TINY]).await;
    for _ in 0..10 {
        for node in [&first, &second] {
            node.until("switchboard_cluster_ids_left", |left| left > 0)
                .await;
            users.push(node.user().await);
        }
    }
    let ids: BTreeSet<_> = users.iter().map(|user| user.id).collect();
    assert_eq!(ids.len(), users.len(), "{ids:?}");
    drop(users);
    first.stop().await;
    second.stop().await;
}

async fn a_node_with_another_block_size_is_not_ready() {
    let nats = Nats::start().await;
    let first = Node::start(&nats.url(), &[]).await;
    let second = Node::begin(&nats.url(), &[TINY]).await;
    second.until_up(true).await;
    crate::eventually("the node logs both block sizes", async || {
        let log = second.log();
        (log.contains("block_size=1024") && log.contains("cluster.block_size")).then_some(())
    })
    .await;
    assert_eq!(
        second.get("/readyz").await,
        (
            503,
            "the other nodes have another cluster.block_size\n".to_owned()
        )
    );
    first.stop().await;
    second.stop().await;
}
