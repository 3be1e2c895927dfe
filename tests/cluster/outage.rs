//! Nodes without a connection to NATS: what still works, what does not, and the recovery.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::eventually;
use crate::ids::subscriptions;
use crate::messages::clog;
use crate::nats::{Nats, free_port};
use crate::node::Node;
use crate::proxy::{Condition, Proxy};

crate::tests!("outage":
    a_node_is_not_ready_before_it_reaches_nats,
    an_unready_node_names_the_cause_that_holds,
    a_server_that_is_too_old_is_refused_by_name,
    local_messages_arrive_without_nats_and_remote_ones_are_unavailable,
    users_are_refused_while_the_table_cannot_be_reached,
    a_node_that_requires_nats_is_not_ready_without_it,
    a_short_outage_of_nats_refuses_no_new_user,
    nats_gives_up_a_node_that_does_not_answer,
    an_outcome_of_a_short_outage_is_told_afterwards,
);

async fn a_node_is_not_ready_before_it_reaches_nats() {
    let mut nats = Nats::stopped("");
    let node = Node::begin(&nats.url(), &[]).await;
    assert_eq!(
        node.get("/readyz").await,
        (
            503,
            "nats cannot be reached (cluster.nats_url)\n".to_owned()
        )
    );
    assert_eq!(node.get("/livez").await.0, 200);
    let refused = crate::user::User::try_connect(node.port, crate::user::Dialect::V1).await;
    let refused = format!("{:?}", refused.unwrap_err());
    assert!(refused.contains("503"), "{refused}");
    let rejected = "switchboard_handshakes_rejected_total";
    assert_eq!(node.metric(rejected).await, 1);
    nats.run().await;
    node.until_ready().await;
    let mut alice = node.user().await;
    assert_eq!(alice.id, 1);
    alice.ask(1, "to myself", 1).await;
    assert_eq!(alice.outcome(1).await, "delivered");
    drop(alice);
    node.stop().await;
}

async fn an_unready_node_names_the_cause_that_holds() {
    // Without JetStream for the account of clients that name no user.
    let without = "accounts { A { users: [ { user: a, password: b } ] } }\nno_auth_user: a";
    let login = "authorization { user: relay, password: \"s3cret\" }";
    for (extra, cause) in [
        (login, "nats refuses the login"),
        (without, "jetstream leases no ids"),
    ] {
        let nats = Nats::with(extra).await;
        let node = Node::begin(&nats.url(), &[]).await;
        eventually(cause, async || {
            let (status, body) = node.get("/readyz").await;
            (status == 503 && body.starts_with(cause)).then_some(())
        })
        .await;
        node.stop().await;
    }
}

async fn a_server_that_is_too_old_is_refused_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The version of NATS in Debian 12. The client sends a ping with its first words.
            let info = "INFO {\"server_id\":\"old\",\"version\":\"2.9.10\",\"proto\":1,\"headers\":true,\
                        \"jetstream\":true,\"max_payload\":1048576}\r\nPONG\r\n";
            tokio::spawn(async move {
                stream.write_all(info.as_bytes()).await.unwrap();
                let mut ignored = Vec::new();
                // The client breaks the connection off.
                let _ended = stream.read_to_end(&mut ignored).await.is_err();
            });
        }
    });
    let node = Node::begin(&url, &[]).await;
    eventually("the node names the version", async || {
        let (status, body) = node.get("/readyz").await;
        (status == 503 && body == "nats is older than 2.11\n").then_some(())
    })
    .await;
    let log = node.log();
    let needed = "nats has version 2.9.10, and a cluster needs 2.11.0 or later";
    assert!(log.contains(needed), "{log}");
    node.stop().await;
}

async fn local_messages_arrive_without_nats_and_remote_ones_are_unavailable() {
    let mut nats = Nats::start().await;
    let nodes = [
        Node::start(&nats.url(), &[]).await,
        Node::start(&nats.url(), &[]).await,
    ];
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[0].user().await);
    let mut carol = nodes[1].user().await;
    alice.ask(carol.id, "before", 1).await;
    assert_eq!(alice.outcome(1).await, "delivered");
    nats.kill();
    nodes[0].until_up(false).await;

    alice.ask(bob.id, "meanwhile", 2).await;
    assert_eq!(alice.outcome(2).await, "delivered");
    let begin = Instant::now();
    for id in 100..200 {
        alice.ask(carol.id, "meanwhile", id).await;
    }
    for id in 100..200 {
        assert_eq!(alice.outcome(id).await, "unavailable");
    }
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(nodes[0].scrape().await.dropped("unavailable"), 100);
    // The user of such an id may be on any node.
    alice.ask(alice.id + 500, "are you there?", 3).await;
    assert_eq!(alice.outcome(3).await, "unavailable");
    nodes[0].ledger().await;

    nats.run().await;
    for node in &nodes {
        node.until_up(true).await;
    }
    alice.ask(carol.id, "afterwards", 4).await;
    assert_eq!(alice.outcome(4).await, "delivered");
    carol.ask(alice.id, "and back", 5).await;
    assert_eq!(carol.outcome(5).await, "delivered");
    let received = carol.received();
    let texts: Vec<_> = received
        .messages
        .iter()
        .map(|(_, text)| text.as_str())
        .collect();
    assert_eq!(
        texts,
        ["before", "afterwards"],
        "a message from the outage was sent later"
    );
    bob.hears(alice.id, "meanwhile").await;
    for node in &nodes {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert_eq!(
            connects, 2,
            "one connect at the start, and one after the outage"
        );
    }
    drop((alice, bob, carol));
    for node in nodes {
        node.stop().await;
    }
}

async fn users_are_refused_while_the_table_cannot_be_reached() {
    let mut nats = Nats::start().await;
    let node = Node::start(&nats.url(), &[]).await;
    let mut first = node.user().await;
    nats.kill();
    node.until_up(false).await;
    let next = crate::user::User::try_connect(node.port, crate::user::Dialect::V1).await;
    assert!(format!("{:?}", next.unwrap_err()).contains("503"));
    // That one has waited for the table as long as the outage could be short, and an id was used up for it.
    for _ in 0..3 {
        let next = crate::user::User::try_connect(node.port, crate::user::Dialect::V1).await;
        assert!(format!("{:?}", next.unwrap_err()).contains("503"));
    }
    // The ticket stays good, and the connection that has the id stays open.
    let ticket = first.ticket().await;
    let refused = crate::user::User::try_reconnect(node.port, &ticket).await;
    assert!(format!("{:?}", refused.unwrap_err()).contains("503"));
    first.ask(first.id, "to myself", 1).await;
    assert_eq!(first.outcome(1).await, "delivered");
    let id = first.id;
    nats.run().await;
    node.until_up(true).await;
    let next = node.user().await;
    assert_eq!(next.id, id + 2, "an id was used up for each refusal");
    let again = crate::user::User::reconnect(node.port, &ticket).await;
    assert_eq!(again.id, id);
    drop((first, next, again));
    node.stop().await;
}

async fn a_node_that_requires_nats_is_not_ready_without_it() {
    let mut nats = Nats::start().await;
    let required = ("CLUSTER__REQUIRED", "true");
    let node = Node::start(&nats.url(), &[required, ("CLUSTER__UNREADY_AFTER", "0s")]).await;
    nats.stop();
    node.until_readiness(503).await;
    assert_eq!(
        node.get("/readyz").await.1,
        "nats cannot be reached (cluster.nats_url)\n"
    );
    assert_eq!(node.get("/livez").await.0, 200);
    nats.run().await;
    node.until_ready().await;
    node.stop().await;
}

/// A short outage of NATS ends at all nodes at once. If all nodes were unready meanwhile, a load balancer would
/// have no node for a new user.
async fn a_short_outage_of_nats_refuses_no_new_user() {
    let mut nats = Nats::start().await;
    let required = ("CLUSTER__REQUIRED", "true");
    let node = Node::start(&nats.url(), &[required]).await;
    nats.stop();
    node.until_up(false).await;
    assert_eq!(node.get("/readyz").await.0, 200);
    // The user waits for the table, and gets no refusal.
    let (newcomer, ()) = tokio::join!(node.user(), async {
        sleep(Duration::from_millis(500)).await;
        nats.run().await;
    });
    node.until_up(true).await;
    drop(newcomer);
    node.stop().await;
}

/// With the ping settings of config/nats, NATS notices that a node does not answer. The test sends no message
/// meanwhile: up to version 2.9, NATS does not ping a node to which it has just sent something.
async fn nats_gives_up_a_node_that_does_not_answer() {
    let config = include_str!("../../config/nats/nats.conf");
    let pings = config.lines().filter(|line| line.starts_with("ping_"));
    let mut lines: Vec<_> = pings.map(str::to_owned).collect();
    assert_eq!(lines.len(), 2);
    let monitor = free_port();
    lines.push(format!("http: \"127.0.0.1:{monitor}\""));
    let nats = Nats::with(&lines.join("\n")).await;
    let proxy = Proxy::to(nats.port).await;
    let near = Node::start(&nats.url(), &[]).await;
    let mut alice = near.user().await;
    near.until("switchboard_cluster_blocks", |blocks| blocks == 2)
        .await;
    let alone = subscriptions(monitor).await;
    let far = Node::start(&proxy.url(), &[]).await;
    let bob = far.user().await;
    alice.ask(bob.id, "before", 0).await;
    assert_eq!(alice.outcome(0).await, "delivered");
    assert!(subscriptions(monitor).await > alone);
    proxy.set(Condition::Silent);
    let begin = Instant::now();
    eventually("nats has given the node up", async || {
        (subscriptions(monitor).await == alone).then_some(())
    })
    .await;
    println!("   noticed after {:?}", begin.elapsed());
    alice.ask(bob.id, "still there?", 1).await;
    assert_eq!(alice.outcome(1).await, "offline");
    proxy.set(Condition::Normal);
    far.until_up(true).await;
    alice.ask(bob.id, "afterwards", 2).await;
    assert_eq!(alice.outcome(2).await, "delivered");
    drop((alice, bob));
    near.stop().await;
    far.stop().await;
}

/// A node keeps what it owes to others while its link is away, for as long as they wait for it.
async fn an_outcome_of_a_short_outage_is_told_afterwards() {
    let nats = Nats::start().await;
    let proxy = Proxy::to(nats.port).await;
    // It looks at what waits eight times in this time.
    let patient = [("CLUSTER__OUTCOME_TIMEOUT", "8s")];
    let near = Node::start(&nats.url(), &patient).await;
    let far = Node::start(&proxy.url(), &patient).await;
    let (mut alice, bob) = (near.user().await, far.user().await);
    bob.reads(false);
    let count = clog(&mut alice, bob.id, &far, &"x".repeat(30_000)).await;
    // A message or an outcome that is on its way is lost with the link.
    far.until("switchboard_cluster_received_total", |received| {
        received == count
    })
    .await;
    let waiting = far.metric("switchboard_mailbox_messages").await;
    alice
        .until("the outcomes of all others", |received| {
            received.outcomes.len() as u64 == count - waiting
        })
        .await;
    proxy.set(Condition::Reset);
    far.until_up(false).await;
    bob.reads(true);
    far.until("switchboard_mailbox_messages", |waiting| waiting == 0)
        .await;
    sleep(Duration::from_millis(1500)).await;
    proxy.set(Condition::Normal);
    for number in 0..count {
        assert_eq!(alice.outcome(number).await, "delivered");
    }
    drop((alice, bob));
    near.stop().await;
    far.stop().await;
}
