//! Blocks of ids: an id is never given to two users, even when nodes start, stop and lose NATS.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::nats::{Nats, free_port};
use crate::node::Node;

crate::tests!("ids":
    ids_of_a_new_cluster_begin_at_one,
    empty_blocks_are_released,
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

async fn empty_blocks_are_released() {
    const USERS: usize = 60;
    let monitor = free_port();
    let nats = Nats::with(&format!("http: \"127.0.0.1:{monitor}\"")).await;
    let nodes = [
        Node::start(&nats.url(), &[TINY]).await,
        Node::start(&nats.url(), &[TINY]).await,
    ];
    let before = subscriptions(monitor).await;
    let mut given = BTreeSet::new();
    let mut users = Vec::new();
    let mut admin = nodes[0].user().await;
    given.insert(admin.id);
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
    for node in &nodes {
        let blocks = node.metric("switchboard_cluster_blocks").await;
        assert!(blocks >= 8, "{blocks} blocks of 4 for 30 users");
    }
    // A node releases a block when no user has an id of it.
    for user in users {
        user.leave().await;
    }
    for node in &nodes {
        node.until("switchboard_cluster_blocks", |blocks| blocks <= 3)
            .await;
    }
    crate::eventually(
        "NATS has no subscriptions for the released blocks",
        async || (subscriptions(monitor).await <= before + 4).then_some(()),
    )
    .await;
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

/// Reads the number of subscriptions from the monitoring port of NATS.
pub(crate) async fn subscriptions(monitor: u16) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", monitor)).await.unwrap();
    let request = "GET /subsz HTTP/1.0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["num_subscriptions"].as_u64().unwrap()
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

/// As after a power loss on the host of NATS: the stream of leases is empty, so the same blocks are leased again.
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
    let conflicts = second
        .metric("switchboard_cluster_block_conflicts_total")
        .await;
    assert!(
        conflicts >= 2,
        "only {conflicts} blocks in use were refused"
    );
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
