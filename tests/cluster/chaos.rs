//! Parts of the whole are killed, cut off or slow, while everybody talks. Afterwards the books of every
//! node that is left balance exactly, every outcome that was asked for has come, and `unknown` is only
//! what was under way to the part that failed, or by way of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::load::{Load, Summary, Unknown};
use crate::nats::Nats;
use crate::node::Node;
use crate::proxy::{Proxy, Weather};

crate::tests!("chaos":
    a_node_is_killed,
    nats_is_killed_and_comes_back,
    nats_is_restarted,
    a_node_is_cut_off_in_silence,
    a_node_is_cut_off_with_a_reset,
    a_link_is_slow,
    all_nodes_are_restarted_one_by_one,
);

const USERS: usize = 24;
/// Time before and after what happens.
const CALM: Duration = Duration::from_secs(2);
/// By how much what is under way at a moment may have been sent before it, on a busy machine.
const UNDER_WAY: Duration = Duration::from_secs(1);

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

/// The books of everybody who is left.
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

/// Every message of unknown fate went to or came from one of these nodes, and was under way at some
/// time between those two.
fn check_unknown(summary: &Summary, ports: &[u16], from: Instant, to: Instant) {
    for unknown in &summary.unknown {
        let Unknown {
            from_port,
            to_port,
            at,
        } = *unknown;
        assert_ne!(from_port, to_port, "unknown, and never left the node");
        assert!(
            ports.contains(&from_port) || ports.contains(&to_port),
            "unknown from {from_port} to {to_port}, and {ports:?} had failed"
        );
        assert!(
            at + UNDER_WAY >= from && at <= to,
            "unknown and sent {:?} before the failure began, {:?} behind its end",
            from.saturating_duration_since(at),
            at.saturating_duration_since(to)
        );
    }
}

async fn a_node_is_killed() {
    let nats = Nats::start().await;
    let mut nodes = three(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let mut killed = nodes.pop().unwrap();
    load.route(&ports(&nodes));
    let at = Instant::now();
    killed.kill();
    load.settled(&ports(&nodes)).await;
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a node is killed");
    assert!(summary.count("delivered") > summary.asked / 2);
    check_unknown(&summary, &[killed.port], at, at + UNDER_WAY);
    let lost = balance(&nodes).await;
    println!("   the two others have sent {lost} messages more than they have received");
    assert_eq!(
        nodes[0].metric("switchboard_cluster_connects_total").await,
        1
    );
    stop(nodes).await;
}

async fn nats_is_killed_and_comes_back() {
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
    // Only what NATS had not passed on when it was killed: nothing that was sent while it was away.
    check_unknown(&summary, &ports(&nodes), from, from + UNDER_WAY);
    println!(
        "   {} messages were lost, back after {:?}",
        balance(&nodes).await,
        to - from
    );
    stop(nodes).await;
}

async fn nats_is_restarted() {
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
    check_unknown(&summary, &ports(&nodes), from, from + UNDER_WAY);
    for node in &nodes {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert!(connects <= 3, "{connects} connections");
    }
    println!("   {} messages were lost", balance(&nodes).await);
    stop(nodes).await;
}

/// Three nodes, the last of which has a network of its own to NATS.
async fn three_of_which_one_is_apart(nats: &Nats) -> (Vec<Node>, Proxy) {
    let proxy = Proxy::to(nats.port).await;
    let mut nodes = Vec::new();
    for url in [&nats.url(), &nats.url(), &proxy.url()] {
        nodes.push(Node::start(url, &[]).await);
    }
    (nodes, proxy)
}

async fn a_node_is_cut_off_in_silence() {
    let nats = Nats::start().await;
    let (nodes, proxy) = three_of_which_one_is_apart(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let from = Instant::now();
    proxy.set(Weather::Silent);
    // Longer than cluster.link_timeout.
    nodes[2].until_up(false).await;
    let noticed = from.elapsed();
    assert!(noticed < Duration::from_secs(10), "{noticed:?}");
    sleep(CALM).await;
    proxy.set(Weather::Fine);
    nodes[2].until_up(true).await;
    let to = Instant::now();
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a node hears nothing of nats for 4 s");
    assert!(
        summary.count("unavailable") > 0,
        "of the node that was cut off"
    );
    check_unknown(&summary, &[nodes[2].port], from, to);
    for node in &nodes[..2] {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert_eq!(connects, 1, "the others have noticed nothing");
    }
    println!(
        "   noticed after {noticed:?}; {} messages were lost",
        balance(&nodes).await
    );
    stop(nodes).await;
}

async fn a_node_is_cut_off_with_a_reset() {
    let nats = Nats::start().await;
    let (nodes, proxy) = three_of_which_one_is_apart(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    let from = Instant::now();
    proxy.set(Weather::Cut);
    nodes[2].until_up(false).await;
    let noticed = from.elapsed();
    sleep(CALM).await;
    proxy.set(Weather::Fine);
    nodes[2].until_up(true).await;
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("a node's connections to nats are reset for 2 s");
    // Whoever writes to it is told at once that nobody takes its block.
    assert!(summary.count("offline") > 0 && summary.count("unavailable") > 0);
    check_unknown(&summary, &[nodes[2].port], from, from + UNDER_WAY);
    println!(
        "   noticed after {noticed:?}; {} messages were lost",
        balance(&nodes).await
    );
    stop(nodes).await;
}

async fn a_link_is_slow() {
    let nats = Nats::start().await;
    let (nodes, proxy) = three_of_which_one_is_apart(&nats).await;
    let load = Load::begin(USERS, &ports(&nodes)).await;
    sleep(CALM).await;
    proxy.set(Weather::Slow {
        delay: Duration::from_millis(30),
        bytes_per_second: 300_000,
    });
    sleep(CALM + CALM).await;
    let summary = load.end().await;
    summary.print("a link is slow");
    assert_eq!(summary.unknown.len(), 0);
    assert_eq!(summary.count("delivered"), summary.asked);
    assert_eq!(balance(&nodes).await, 0, "nothing was lost");
    for node in &nodes {
        let connects = node.metric("switchboard_cluster_connects_total").await;
        assert_eq!(connects, 1, "slow is not away");
    }
    stop(nodes).await;
}

async fn all_nodes_are_restarted_one_by_one() {
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
        // The new one first, as a rolling update does with `maxUnavailable: 0`.
        nodes.push(Node::start(&nats.url(), &changes).await);
        let mut old = nodes.remove(0);
        load.route(&ports(&nodes));
        old.begin_stop();
        let ledger = old.ended().await;
        lost += ledger.cluster_sent.cast_signed() - ledger.cluster_received.cast_signed();
        load.settled(&ports(&nodes)).await;
    }
    sleep(CALM).await;
    let summary = load.end().await;
    summary.print("all nodes are restarted one by one");
    lost += balance(&nodes).await;
    println!("   {lost} messages were lost between nodes");
    assert!(summary.count("delivered") > summary.asked * 8 / 10);
    assert_eq!(summary.count("unavailable"), 0);
    // A node that leaves in order answers for what it has got; what NATS was handing over as it left has
    // nobody to answer for it.
    assert!(summary.unknown.len() <= 3, "{:?}", summary.unknown);
    stop(nodes).await;
}
