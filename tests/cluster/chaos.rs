//! A node, a link or NATS fails while users write to each other. Afterwards the ledger of every remaining node balances
//! exactly, every requested outcome has arrived, and only messages in flight to, from or through the failed part are
//! `unknown`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::load::{Load, Summary, Unknown};
use crate::nats::Nats;
use crate::node::Node;
use crate::proxy::{Condition, Proxy};

crate::tests!("chaos":
    ledgers_balance_after_a_node_is_killed,
    ledgers_balance_after_nats_is_killed,
    ledgers_balance_after_nats_is_restarted,
    ledgers_balance_after_a_link_is_silent,
    ledgers_balance_after_a_link_is_reset,
    all_messages_arrive_over_a_slow_link,
    ledgers_balance_after_a_rolling_restart,
);

const USERS: usize = 24;
/// The time before and after the failure.
const CALM: Duration = Duration::from_secs(2);
/// The longest time that a message is in flight on a busy machine.
const IN_FLIGHT: Duration = Duration::from_secs(1);

async fn three(nats: &Nats) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::start(&nats.url(), &[]).await);
    }
    nodes
}

fn ports(nodes: &[Node]) -> Vec<u16> {
    nodes.iter().map(|node| node.port).collect()
}

/// Checks the ledgers of the remaining nodes. Returns the number of messages lost between them.
async fn balance(nodes: &[Node]) -> i64 {
    let mut lost = 0;
    for node in nodes {
        let ledger = node.ledger().await;
        lost += ledger.cluster_sent.cast_signed() - ledger.cluster_received.cast_signed();
        let pending = "switchboard_cluster_outcomes_pending";
        assert_eq!(node.metric(pending).await, 0);
    }
    lost
}

async fn stop(nodes: Vec<Node>) {
    for node in nodes {
        node.stop().await;
    }
}

/// Checks that every message with the outcome `unknown` went to or came from one of these nodes, and was in flight at
/// some time between `from` and `to`.
fn check_unknown(summary: &Summary, ports: &[u16], from: Instant, to: Instant) {
    for unknown in &summary.unknown {
        let Unknown {
            from_port,
            to_port,
            at,
        } = *unknown;
        assert_ne!(
            from_port, to_port,
            "unknown, but sender and recipient are on one node"
        );
        assert!(
            ports.contains(&from_port) || ports.contains(&to_port),
            "unknown from {from_port} to {to_port}, but only {ports:?} had failed"
        );
        assert!(
            at + IN_FLIGHT >= from && at <= to,
            "unknown, but sent {:?} before the failure began and {:?} after its end",
            from.saturating_duration_since(at),
            at.saturating_duration_since(to)
        );
    }
}

async fn ledgers_balance_after_a_node_is_killed() {
    let nats = Nats::start().await;
    let mut nodes = three(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let mut killed = nodes.pop().unwrap();
    load.route(&ports(&nodes));
    let at = Instant::now();
    killed.kill();
    load.until_connected(&ports(&nodes)).await;
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a node is killed");
    assert!(summary.count("delivered") > summary.asked / 2);
    check_unknown(&summary, &[killed.port], at, at + IN_FLIGHT);
    let lost = balance(&nodes).await;
    println!("   the other two nodes have sent {lost} more messages than they have received");
    assert_eq!(
        nodes[0].metric("switchboard_cluster_connects_total").await,
        1
    );
    stop(nodes).await;
}

async fn ledgers_balance_after_nats_is_killed() {
    let mut nats = Nats::start().await;
    let nodes = three(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let from = Instant::now();
    nats.kill();
    sleep(CALM).await;
    nats.run().await;
    for node in &nodes {
        node.until_up(true).await;
    }
    let to = Instant::now();
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("nats is killed for 2 s");
    assert!(summary.count("unavailable") > 0);
    // Only messages that NATS had not passed on when it was killed, and none that was sent during the outage.
    check_unknown(&summary, &ports(&nodes), from, from + IN_FLIGHT);
    println!(
        "   {} messages were lost; connected again after {:?}",
        balance(&nodes).await,
        to - from
    );
    stop(nodes).await;
}

async fn ledgers_balance_after_nats_is_restarted() {
    let mut nats = Nats::start().await;
    let nodes = three(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let from = Instant::now();
    nats.stop();
    nats.run().await;
    for node in &nodes {
        node.until("switchboard_cluster_connects_total", |count| count > 1)
            .await;
        node.until_up(true).await;
    }
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("nats is restarted");
    check_unknown(&summary, &ports(&nodes), from, from + IN_FLIGHT);
    for node in &nodes {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert!(connects <= 3, "{connects} connections");
    }
    println!("   {} messages were lost", balance(&nodes).await);
    stop(nodes).await;
}

/// Three nodes; the last one connects to NATS through a proxy.
async fn three_with_one_behind_a_proxy(nats: &Nats) -> (Vec<Node>, Proxy) {
    let proxy = Proxy::to(nats.port).await;
    let mut nodes = Vec::new();
    for url in [&nats.url(), &nats.url(), &proxy.url()] {
        nodes.push(Node::start(url, &[]).await);
    }
    (nodes, proxy)
}

async fn ledgers_balance_after_a_link_is_silent() {
    let nats = Nats::start().await;
    let (nodes, proxy) = three_with_one_behind_a_proxy(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let from = Instant::now();
    proxy.set(Condition::Silent);
    // Longer than cluster.link_timeout.
    nodes[2].until_up(false).await;
    let noticed = from.elapsed();
    assert!(noticed < Duration::from_secs(10), "{noticed:?}");
    sleep(CALM).await;
    proxy.set(Condition::Normal);
    nodes[2].until_up(true).await;
    let to = Instant::now();
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a node receives nothing from nats for 4 s");
    assert!(
        summary.count("unavailable") > 0,
        "messages of the disconnected node are unavailable"
    );
    check_unknown(&summary, &[nodes[2].port], from, to);
    for node in &nodes[..2] {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert_eq!(connects, 1, "another node has reconnected");
    }
    println!(
        "   noticed after {noticed:?}; {} messages were lost",
        balance(&nodes).await
    );
    stop(nodes).await;
}

async fn ledgers_balance_after_a_link_is_reset() {
    let nats = Nats::start().await;
    let (nodes, proxy) = three_with_one_behind_a_proxy(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let from = Instant::now();
    proxy.set(Condition::Reset);
    nodes[2].until_up(false).await;
    let noticed = from.elapsed();
    sleep(CALM).await;
    proxy.set(Condition::Normal);
    nodes[2].until_up(true).await;
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a node's connections to nats are reset for 2 s");
    // NATS reports at once that no node subscribes to the blocks of this node.
    assert!(summary.count("offline") > 0 && summary.count("unavailable") > 0);
    check_unknown(&summary, &[nodes[2].port], from, from + IN_FLIGHT);
    println!(
        "   noticed after {noticed:?}; {} messages were lost",
        balance(&nodes).await
    );
    stop(nodes).await;
}

async fn all_messages_arrive_over_a_slow_link() {
    let nats = Nats::start().await;
    let (nodes, proxy) = three_with_one_behind_a_proxy(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    proxy.set(Condition::Slow {
        delay: Duration::from_millis(30),
        bytes_per_second: 300_000,
    });
    sleep(CALM + CALM).await;
    let summary = load.end().await;
    summary.print("a link is slow");
    assert_eq!(summary.unknown.len(), 0);
    assert_eq!(summary.count("delivered"), summary.asked);
    assert_eq!(balance(&nodes).await, 0, "messages were lost");
    for node in &nodes {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert_eq!(
            connects, 1,
            "a node has reconnected, although its link was only slow"
        );
    }
    stop(nodes).await;
}

async fn ledgers_balance_after_a_rolling_restart() {
    let nats = Nats::start().await;
    let changes = [("DRAIN__SPREAD", "1s")];
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::start(&nats.url(), &changes).await);
    }
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let mut lost = 0;
    for _ in 0..3 {
        // The new node starts first, as in a rolling update with `maxUnavailable: 0`.
        nodes.push(Node::start(&nats.url(), &changes).await);
        let mut old = nodes.remove(0);
        load.route(&ports(&nodes));
        old.begin_stop();
        let ledger = old.ended().await;
        lost += ledger.cluster_sent.cast_signed() - ledger.cluster_received.cast_signed();
        load.until_connected(&ports(&nodes)).await;
    }
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a rolling restart");
    lost += balance(&nodes).await;
    println!("   {lost} messages were lost between nodes");
    assert!(summary.count("delivered") > summary.asked * 8 / 10);
    assert_eq!(summary.count("unavailable"), 0);
    // A node that drains sends the outcome of every message that it has received. Messages that NATS still delivers
    // while the node leaves get no outcome.
    assert!(summary.unknown.len() <= 3, "{:?}", summary.unknown);
    stop(nodes).await;
}
