//! Blocks of ids: nobody's id is given twice, however nodes come and go.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::nats::{Nats, free_port};
use crate::node::Node;

crate::tests!("ids":
    a_new_cluster_begins_at_one,
    tiny_blocks_turn_over,
    a_node_that_starts_again_gives_other_ids,
    leases_that_nats_has_lost_are_not_given_twice,
    nodes_agree_on_the_size_of_blocks,
);

const TINY: (&str, &str) = ("CLUSTER__BLOCK_SIZE", "4");

async fn a_new_cluster_begins_at_one() {
    let nats = Nats::start().await;
    let first = Node::start(&nats.url(), &[]).await;
    let alice = first.user().await;
    assert_eq!(alice.id, 1);
    let second = Node::start(&nats.url(), &[]).await;
    let bob = second.user().await;
    assert_eq!(bob.id % 1024, 1, "the first of another block");
    assert!(bob.id > 1024);
    drop((alice, bob));
    first.stop().await;
    second.stop().await;
}

async fn tiny_blocks_turn_over() {
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
    // Everybody can be reached, in whichever block.
    for (user, number) in users.iter_mut().zip(0..) {
        admin.ask(user.id, "hello", number).await;
        assert_eq!(admin.outcome(number).await, "delivered");
    }
    for node in &nodes {
        let blocks = node.metric("switchboard_cluster_blocks").await;
        assert!(blocks >= 8, "{blocks} blocks of 4 for 30 users");
    }
    // What nobody needs any more is given up.
    for user in users {
        user.leave().await;
    }
    for node in &nodes {
        node.until("switchboard_cluster_blocks", |blocks| blocks <= 3)
            .await;
    }
    crate::eventually("NATS sends nothing for the others", async || {
        (subscriptions(monitor).await <= before + 4).then_some(())
    })
    .await;
    let last = given.last().copied().unwrap();
    given.remove(&admin.id);
    for (id, number) in given.iter().zip(1000..) {
        admin.ask(*id, "still there?", number).await;
        assert_eq!(admin.outcome(number).await, "offline");
    }
    assert!(
        last <= 4 * 2 * (USERS as u64 / 4 + 3),
        "ids are not wasted: {last}"
    );
    drop(admin);
    for node in nodes {
        node.stop().await;
    }
}

/// Subscriptions that the server counts.
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

async fn a_node_that_starts_again_gives_other_ids() {
    let nats = Nats::start().await;
    let stays = Node::start(&nats.url(), &[TINY]).await;
    let mut alice = stays.user().await;
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
    stays.stop().await;
}

/// As after a loss of power on NATS's host: its stream begins anew, and so would ids.
async fn leases_that_nats_has_lost_are_not_given_twice() {
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
    assert!(conflicts >= 2, "{conflicts} blocks were in use");
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

async fn nodes_agree_on_the_size_of_blocks() {
    let nats = Nats::start().await;
    let first = Node::start(&nats.url(), &[]).await;
    let second = Node::begin(&nats.url(), &[TINY]).await;
    second.until_up(true).await;
    crate::eventually("what is wrong is said", async || {
        let log = second.log();
        (log.contains("block_size=1024") && log.contains("cluster.block_size")).then_some(())
    })
    .await;
    assert_eq!(
        second.get("/readyz").await,
        (503, "no id is left\n".to_owned())
    );
    first.stop().await;
    second.stop().await;
}
