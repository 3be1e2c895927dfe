//! Situations in which an earlier design of the cluster broke its promises: a hung node, a stranger on NATS, a lost
//! store, a slow link, a partition.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, sleep};

use crate::eventually;
use crate::nats::{Folder, Nats};
use crate::node::Node;
use crate::proxy::{Condition, Proxy};
use crate::user::User;

crate::tests!("situations":
    a_node_that_hangs_costs_its_own_users_only,
    a_listener_to_everything_changes_nothing,
    a_forged_message_harms_nothing_else,
    a_deleted_bucket_is_made_again,
    a_lost_store_leaves_one_user_with_each_id,
    the_newest_connection_stays_after_a_partition,
    the_newest_connection_stays_after_a_partition_between_servers,
    places_on_a_dead_node_are_forgotten,
    a_message_over_a_slow_link_arrives_once,
    ten_idle_nodes_are_nearly_silent,
);

/// A NATS client that shares no code with the relay. It reads all that comes and forgets it, but for the subjects.
struct Stranger {
    write: OwnedWriteHalf,
    subjects: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Stranger {
    async fn connect(nats: &Nats) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", nats.port)).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let subjects = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let heard = subjects.clone();
        write
            .write_all(b"CONNECT {\"verbose\":false}\r\n")
            .await
            .unwrap();
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..count]);
                let lines = text.lines().filter_map(|line| line.split_once("MSG "));
                let found = lines.filter_map(|(_, rest)| rest.split(' ').next());
                let mut heard = heard.lock().unwrap();
                heard.extend(found.map(str::to_owned));
                let from = heard.len().saturating_sub(10_000);
                heard.drain(..from);
            }
        });
        Self { write, subjects }
    }

    async fn say(&mut self, line: &str) {
        self.write
            .write_all(format!("{line}\r\n").as_bytes())
            .await
            .unwrap();
    }

    async fn publish(&mut self, subject: &str, reply: &str, payload: &[u8]) {
        self.say(&format!("PUB {subject} {reply} {}", payload.len()))
            .await;
        self.write.write_all(payload).await.unwrap();
        self.say("").await;
    }

    /// The numbers of the nodes that something was sent to.
    fn nodes(&self) -> Vec<String> {
        let subjects = self.subjects.lock().unwrap();
        let nodes = subjects.iter().filter_map(|subject| {
            let rest = subject.strip_prefix("switchboard.2.n.")?;
            rest.split('.').next().map(str::to_owned)
        });
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }
}

async fn nodes<const N: usize>(nats: &Nats, secret: &str) -> [Node; N] {
    let mut nodes = Vec::new();
    for _ in 0..N {
        nodes.push(Node::start(&nats.url(), &[("TICKETS__SECRET_FILE", secret)]).await);
    }
    nodes.try_into().unwrap()
}

fn secret(folder: &Folder) -> String {
    folder.file("secret", &"a secret of a test ".repeat(3))
}

/// Checks that two users reach each other.
async fn talk(one: &mut User, other: &mut User, text: &str) {
    let id = fastrand::u64(1..1 << 50);
    one.ask(other.id, text, id).await;
    assert_eq!(one.outcome(id).await, "delivered", "{text}");
    other.hears(one.id, text).await;
    let id = fastrand::u64(1..1 << 50);
    other.ask(one.id, text, id).await;
    assert_eq!(other.outcome(id).await, "delivered", "{text}, back");
}

/// Waits until two users reach each other.
async fn until_they_talk(one: &mut User, other: &mut User) -> Duration {
    let begin = Instant::now();
    for way in 0..2 {
        eventually("a message is delivered", async || {
            let (from, to) = if way == 0 {
                (&mut *one, &mut *other)
            } else {
                (&mut *other, &mut *one)
            };
            let id = fastrand::u64(1..1 << 50);
            from.ask(to.id, "again?", id).await;
            (from.outcome(id).await == "delivered").then_some(())
        })
        .await;
    }
    begin.elapsed()
}

/// How often a user has received each text.
fn counts(user: &User) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, text) in user.received().messages {
        *counts.entry(text).or_default() += 1;
    }
    counts
}

async fn stop(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        node.stop().await;
    }
}

async fn a_node_that_hangs_costs_its_own_users_only() {
    let folder = Folder::new();
    let secret = secret(&folder);
    let nats = Nats::start().await;
    let [hung, second, third] = nodes(&nats, &secret).await;
    // Users of the hung node, some of whom have ids of other nodes' blocks, and users of the others with its ids.
    let mut victim = hung.user().await;
    let mut bystander = hung.user().await;
    let (id, ticket) = (victim.id, victim.ticket().await);
    let moved_ticket = bystander.ticket().await;
    let mut moved = User::reconnect(second.port, &moved_ticket).await;
    let (mut bob, mut carol) = (second.user().await, third.user().await);
    talk(&mut bob, &mut victim, "before").await;
    hung.freeze();
    let frozen = Instant::now();
    let mut returned = None;
    let mut round = 0;
    while returned.is_none() || frozen.elapsed() < Duration::from_secs(8) {
        let begin = Instant::now();
        talk(&mut bob, &mut carol, &format!("round {round}")).await;
        talk(&mut moved, &mut carol, &format!("moved {round}")).await;
        let newcomer = third.user().await;
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?} in round {round}");
        newcomer.leave().await;
        if returned.is_none() {
            let back = User::reconnect(third.port, &ticket);
            let back = tokio::time::timeout(Duration::from_secs(10), back).await;
            returned = Some(back.expect("the user is back within 10 s"));
            let took = frozen.elapsed();
            assert!(took < Duration::from_secs(10), "{took:?}");
            println!("   back after {took:?}");
        }
        sleep(Duration::from_millis(200)).await;
        round += 1;
    }
    let mut returned = returned.unwrap();
    assert_eq!(returned.id, id);
    until_they_talk(&mut bob, &mut returned).await;
    hung.thaw();
    victim
        .until("the end", |received| received.closed.is_some())
        .await;
    assert_eq!(victim.received().closed, Some(4409));
    talk(&mut bob, &mut returned, "after it").await;
    assert!(!counts(&victim).contains_key("after it"));
    assert_eq!(counts(&returned)["after it"], 1);
    drop((victim, bystander, moved, bob, carol, returned));
    stop([hung, second, third]).await;
}

async fn a_listener_to_everything_changes_nothing() {
    let nats = Nats::start().await;
    let folder = Folder::new();
    let [first, mut second] = nodes(&nats, &secret(&folder)).await;
    let mut stranger = Stranger::connect(&nats).await;
    stranger.say("SUB > 1").await;
    stranger.say("SUB switchboard.> 2").await;
    let stream = br#"{"name":"spy","subjects":["switchboard.>"],"storage":"memory"}"#;
    stranger
        .publish("$JS.API.STREAM.CREATE.spy", "answer", stream)
        .await;
    eventually("the stream is made", async || {
        let heard = stranger.subjects.lock().unwrap();
        heard
            .iter()
            .any(|subject| subject == "answer")
            .then_some(())
    })
    .await;
    let (mut alice, mut bob) = (first.user().await, second.user().await);
    // Longer than a link may be silent.
    for round in 0..6 {
        talk(&mut alice, &mut bob, &format!("round {round}")).await;
        alice.ask(9_000_000 + round, "nobody", round).await;
        assert_eq!(alice.outcome(round).await, "offline");
        sleep(Duration::from_secs(1)).await;
    }
    for node in [&first, &second] {
        assert_eq!(node.metric("switchboard_cluster_connects_total").await, 1);
        assert_eq!(node.metric("switchboard_cluster_malformed_total").await, 0);
    }
    assert!(counts(&bob).values().all(|count| *count == 1));
    // Nothing says that the node is gone but its key.
    second.kill();
    eventually("messages to the killed node are offline", async || {
        let id = fastrand::u64(1000..1 << 50);
        alice.ask(bob.id, "and now?", id).await;
        let outcome = alice.outcome(id).await;
        assert!(
            ["unknown", "unavailable", "offline"].contains(&&*outcome),
            "{outcome}"
        );
        (outcome == "offline").then_some(())
    })
    .await;
    drop((alice, bob));
    first.stop().await;
}

async fn a_forged_message_harms_nothing_else() {
    let nats = Nats::start().await;
    let folder = Folder::new();
    let [first, second] = nodes(&nats, &secret(&folder)).await;
    let (mut alice, mut bob) = (first.user().await, second.user().await);
    let mut stranger = Stranger::connect(&nats).await;
    stranger.say("SUB switchboard.> 1").await;
    talk(&mut alice, &mut bob, "before").await;
    let numbers = eventually("the stranger knows both nodes", async || {
        Some(stranger.nodes()).filter(|nodes| nodes.len() == 2)
    })
    .await;
    for (node, other) in [(&numbers[0], &numbers[1]), (&numbers[1], &numbers[0])] {
        let other_number: u64 = other.parse().unwrap();
        let mut varint = Vec::new();
        let mut number = other_number;
        while number >= 0x80 {
            varint.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        varint.push(number.to_le_bytes()[0]);
        for link in [0, u64::from(u32::MAX), u64::MAX] {
            let subject = format!("switchboard.2.n.{node}.m");
            let reply = format!("switchboard.2.n.{other}.r.{link}.{node}.{}.7", u64::MAX);
            stranger
                .publish(&subject, &reply, b"\x01\x01\x02\"forged\"")
                .await;
            stranger.publish(&subject, "", b"noise").await;
        }
        for kind in ["a", "c", "m", "x", "r.1.2.3.4"] {
            for code in [0_u8, 1, 2, 3, 4, 9, 254, 255] {
                let subject = format!("switchboard.2.n.{node}.{kind}");
                let payload = [&[1], &varint[..], &[code, 1, 1, 1]].concat();
                stranger.publish(&subject, "nowhere", &payload).await;
            }
            for _ in 0..200 {
                let noise: Vec<u8> = (0..fastrand::usize(..64))
                    .map(|_| fastrand::u8(..))
                    .collect();
                let subject = format!("switchboard.2.n.{node}.{kind}");
                let reply = format!("switchboard.2.n.{other}.r.1.{node}.{}.7", fastrand::u64(..));
                stranger.publish(&subject, &reply, &noise).await;
            }
        }
    }
    for node in [&first, &second] {
        node.until("switchboard_cluster_malformed_total", |count| count > 10)
            .await;
    }
    for round in 0..20 {
        talk(&mut alice, &mut bob, &format!("round {round}")).await;
    }
    for user in [&alice, &bob] {
        assert!(!counts(user).contains_key("forged"));
        assert!(user.received().closed.is_none());
    }
    let mut lost = 0;
    for node in [&first, &second] {
        let ledger = node.ledger().await;
        lost += ledger.cluster_sent.cast_signed() - ledger.cluster_received.cast_signed();
        assert_eq!(node.metric("switchboard_cluster_connects_total").await, 1);
    }
    assert_eq!(lost, 0);
    drop((alice, bob));
    stop([first, second]).await;
}

async fn a_deleted_bucket_is_made_again() {
    let nats = Nats::start().await;
    let folder = Folder::new();
    let [first, second] = nodes(&nats, &secret(&folder)).await;
    let (mut alice, mut bob) = (first.user().await, second.user().await);
    talk(&mut alice, &mut bob, "before").await;
    let mut stranger = Stranger::connect(&nats).await;
    for bucket in ["ids", "nodes", "blocks"] {
        let begin = Instant::now();
        let connects = "switchboard_cluster_connects_total";
        let before = [first.metric(connects).await, second.metric(connects).await];
        let api = format!("$JS.API.STREAM.DELETE.KV_switchboard_2_{bucket}");
        stranger.publish(&api, "answer", b"").await;
        for (node, before) in [&first, &second].into_iter().zip(before) {
            // Noticed, and the link made again.
            node.until(connects, |now| now > before).await;
            node.until("switchboard_cluster_lease", |lease| lease == 1)
                .await;
        }
        until_they_talk(&mut alice, &mut bob).await;
        println!(
            "   {bucket}: all is right again after {:?}",
            begin.elapsed()
        );
        // Entries are there again, and no id is given twice.
        let newcomers = [first.user().await, second.user().await];
        for newcomer in newcomers {
            assert!(newcomer.id > 1 && newcomer.id != bob.id, "{}", newcomer.id);
            newcomer.leave().await;
        }
        assert!(alice.received().closed.is_none() && bob.received().closed.is_none());
    }
    drop((alice, bob));
    stop([first, second]).await;
}

async fn a_lost_store_leaves_one_user_with_each_id() {
    let folder = Folder::new();
    let secret = secret(&folder);
    let mut nats = Nats::start().await;
    let proxy = Proxy::to(nats.port).await;
    let settings = [("TICKETS__SECRET_FILE", &*secret)];
    let old = Node::start(&proxy.url(), &settings).await;
    let mut alice = old.user().await;
    let ticket = alice.ticket().await;
    assert_eq!(alice.id, 1);
    proxy.set(Condition::Reset);
    old.until_up(false).await;
    nats.kill();
    nats.forget();
    nats.run().await;
    // Nothing that can be reached knows of the id.
    let fresh = Node::start(&nats.url(), &settings).await;
    let mut newcomer = fresh.user().await;
    assert_eq!(newcomer.id, 1);
    let mut bob = fresh.user().await;
    let begin = Instant::now();
    proxy.set(Condition::Normal);
    alice
        .until("the end", |received| received.closed.is_some())
        .await;
    let took = begin.elapsed();
    assert_eq!(alice.received().closed, Some(1013));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let mut back = User::reconnect(old.port, &ticket).await;
    let welcome = back.welcome().await;
    assert_eq!(welcome["reason"], "id_in_use", "{welcome}");
    assert_ne!(back.id, 1);
    talk(&mut bob, &mut newcomer, "to the one").await;
    talk(&mut bob, &mut back, "to the other").await;
    assert_eq!(counts(&newcomer)["to the one"], 1);
    assert!(!counts(&alice).contains_key("to the one"));
    drop((alice, newcomer, bob, back));
    stop([old, fresh]).await;
}

async fn the_newest_connection_stays_after_a_partition() {
    let folder = Folder::new();
    let secret = secret(&folder);
    let nats = Nats::start().await;
    let proxy = Proxy::to(nats.port).await;
    let settings = [("TICKETS__SECRET_FILE", &*secret)];
    let cut = Node::start(&proxy.url(), &settings).await;
    let other = Node::start(&nats.url(), &settings).await;
    let mut older = cut.user().await;
    let (id, ticket) = (older.id, older.ticket().await);
    let mut local = cut.user().await;
    let mut remote = other.user().await;
    talk(&mut older, &mut remote, "before").await;
    proxy.set(Condition::Silent);
    let mut newest = User::reconnect(other.port, &ticket).await;
    assert_eq!(newest.id, id);
    // Users of the node that is cut off still reach each other.
    talk(&mut local, &mut older, "meanwhile").await;
    let mut text = 0;
    for _ in 0..5 {
        talk(&mut remote, &mut newest, &text.to_string()).await;
        text += 1;
    }
    let healed = Instant::now();
    proxy.set(Condition::Normal);
    older
        .until("the end", |received| received.closed.is_some())
        .await;
    let took = healed.elapsed();
    assert_eq!(older.received().closed, Some(4409));
    assert!(took < Duration::from_secs(10), "{took:?}");
    until_they_talk(&mut local, &mut newest).await;
    for _ in 0..5 {
        talk(&mut remote, &mut newest, &text.to_string()).await;
        text += 1;
    }
    let heard = counts(&newest);
    for number in 0..text {
        assert_eq!(heard[&number.to_string()], 1);
        assert!(!counts(&older).contains_key(&number.to_string()));
    }
    drop((older, local, remote, newest));
    stop([cut, other]).await;
}

/// Three servers with one store. Each way from one to another goes through a proxy.
struct Three {
    servers: Vec<Nats>,
    routes: Vec<(usize, usize, Proxy)>,
}

impl Three {
    async fn start() -> Self {
        let ports = [(); 3].map(|()| crate::nats::free_port());
        let mut routes = Vec::new();
        let mut servers = Vec::new();
        for (one, port) in ports.iter().enumerate() {
            let mut urls = Vec::new();
            for (other, port) in ports.iter().enumerate().filter(|(other, _)| *other != one) {
                let proxy = Proxy::to(*port).await;
                urls.push(proxy.url());
                routes.push((one, other, proxy));
            }
            // Servers tell each other where they are. Nothing listens at the address that they tell, so that they
            // keep to the proxies.
            servers.push(Nats::stopped(&format!(
                "server_name: s{one}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", \
                 advertise: \"127.0.0.1:1\", no_advertise: true, routes: {urls:?} }}"
            )));
        }
        for server in &mut servers {
            server.run().await;
        }
        Self { servers, routes }
    }

    /// Sets what passes between a server and the two others.
    fn set(&self, server: usize, condition: Condition) {
        let routes = self.routes.iter();
        for (_, _, proxy) in routes.filter(|(one, other, _)| [*one, *other].contains(&server)) {
            proxy.set(condition);
        }
    }
}

/// Both nodes reach NATS all the time, but the servers do not reach each other.
async fn the_newest_connection_stays_after_a_partition_between_servers() {
    let folder = Folder::new();
    let secret = secret(&folder);
    let servers = Three::start().await;
    let settings = [
        ("TICKETS__SECRET_FILE", &*secret),
        ("CLUSTER__LEASE_REPLICAS", "3"),
    ];
    let [cut, other] = [0, 1].map(|server| servers.servers[server].url());
    let cut = Node::start(&cut, &settings).await;
    let other = Node::start(&other, &settings).await;
    let mut older = cut.user().await;
    let mut local = cut.user().await;
    let mut remote = other.user().await;
    let (id, ticket) = (older.id, older.ticket().await);
    until_they_talk(&mut older, &mut remote).await;
    servers.set(0, Condition::Silent);
    // The servers may have to elect a leader, and the key of the node that is cut off has to end.
    let mut newest = eventually("the user is back", async || {
        User::try_reconnect(other.port, &ticket).await.ok()
    })
    .await;
    assert_eq!(newest.id, id);
    let mut outcomes = BTreeMap::new();
    for number in 0..40 {
        remote.ask(id, &format!("apart {number}"), number).await;
        local
            .ask(remote.id, &format!("across {number}"), number)
            .await;
        sleep(Duration::from_millis(20)).await;
    }
    for number in 0..40 {
        outcomes.insert(format!("apart {number}"), remote.outcome(number).await);
        outcomes.insert(format!("across {number}"), local.outcome(number).await);
    }
    assert!((0..40).all(|number| outcomes[&format!("apart {number}")] == "delivered"));
    let healed = Instant::now();
    servers.set(0, Condition::Normal);
    older
        .until("the end", |received| received.closed.is_some())
        .await;
    assert_eq!(older.received().closed, Some(4409));
    println!(
        "   the older connection is closed {:?} after the partition",
        healed.elapsed()
    );
    until_they_talk(&mut local, &mut newest).await;
    until_they_talk(&mut local, &mut remote).await;
    talk(&mut remote, &mut newest, "afterwards").await;
    assert!(newest.received().closed.is_none());
    let heard = [&older, &newest, &remote].map(counts);
    for (text, outcome) in &outcomes {
        let times: usize = heard.iter().filter_map(|heard| heard.get(text)).sum();
        let is_true = match &**outcome {
            "delivered" => times == 1,
            "unknown" => times <= 1,
            _ => times == 0,
        };
        assert!(is_true, "{text} is {outcome} and has arrived {times} times");
    }
    assert_eq!(heard[1]["afterwards"], 1);
    drop((older, local, remote, newest));
    stop([cut, other]).await;
}

/// What is sent long after a node has died is `offline` without being sent, and the sender's node knows that before.
async fn places_on_a_dead_node_are_forgotten() {
    let nats = Nats::start().await;
    let folder = Folder::new();
    let [first, mut second] = nodes(&nats, &secret(&folder)).await;
    let (mut alice, mut bob) = (first.user().await, second.user().await);
    talk(&mut alice, &mut bob, "before").await;
    assert_eq!(first.metric("switchboard_cluster_routes").await, 1);
    second.kill();
    first
        .until("switchboard_cluster_routes", |routes| routes == 0)
        .await;
    let sent = first.ledger().await.cluster_sent;
    alice.ask(bob.id, "are you there?", 1).await;
    assert_eq!(alice.outcome(1).await, "offline");
    assert_eq!(first.ledger().await.cluster_sent, sent);
    drop((alice, bob));
    first.stop().await;
}

async fn a_message_over_a_slow_link_arrives_once() {
    for delay in [200, 400] {
        let folder = Folder::new();
        let secret = secret(&folder);
        let nats = Nats::start().await;
        let proxy = Proxy::to(nats.port).await;
        let settings = [
            ("TICKETS__SECRET_FILE", &*secret),
            ("CLUSTER__LINK_TIMEOUT", "5s"),
            ("CLUSTER__NODE_TIMEOUT", "10s"),
            ("CLUSTER__OUTCOME_TIMEOUT", "5s"),
        ];
        let slow = Node::start(&proxy.url(), &settings).await;
        let fast = Node::start(&nats.url(), &settings).await;
        proxy.set(Condition::Slow {
            delay: Duration::from_millis(delay),
            bytes_per_second: 1_000_000,
        });
        let mut bob = fast.user().await;
        let mut alice = slow.user().await;
        let id = alice.id;
        let mut heard = BTreeMap::<String, usize>::new();
        let mut delivered = Vec::new();
        let mut number = 0;
        for round in 0..6 {
            let first = number;
            for _ in 0..20 {
                bob.ask(id, &number.to_string(), number).await;
                number += 1;
                sleep(Duration::from_millis(10)).await;
            }
            let ticket = alice.ticket().await;
            let node = if round % 2 == 0 { &fast } else { &slow };
            let newer = User::reconnect(node.port, &ticket).await;
            assert_eq!(newer.id, id);
            for number in first..number {
                let outcome = bob.outcome(number).await;
                if outcome == "delivered" {
                    delivered.push(number.to_string());
                }
            }
            alice
                .until("the end", |received| received.closed.is_some())
                .await;
            assert_eq!(alice.received().closed, Some(4409));
            for (text, count) in counts(&alice) {
                *heard.entry(text).or_default() += count;
            }
            alice = newer;
        }
        for (text, count) in counts(&alice) {
            *heard.entry(text).or_default() += count;
        }
        assert!(heard.values().all(|count| *count == 1), "{heard:?}");
        for text in &delivered {
            assert!(heard.contains_key(text), "{text} was not delivered");
        }
        println!("   {delay} ms: {} of {number} delivered", delivered.len());
        assert!(delivered.len() > 20);
        drop((alice, bob));
        // Outcomes of the last messages are on their way, and the key of the node is to be deleted.
        let mut slow = slow;
        slow.begin_stop();
        slow.ended().await;
        let log = slow.log();
        assert!(!log.contains("leaving the cluster took too long"), "{log}");
        stop([fast]).await;
    }
}

/// Background traffic grows with nodes, and not with their blocks.
async fn ten_idle_nodes_are_nearly_silent() {
    let monitor = crate::nats::free_port();
    let nats = Nats::with(&format!("http: \"127.0.0.1:{monitor}\"")).await;
    let mut nodes = Vec::new();
    for _ in 0..10 {
        nodes.push(Node::start(&nats.url(), &[("CLUSTER__BLOCK_SIZE", "4")]).await);
    }
    let before = crate::ids::messages(monitor).await;
    let begin = Instant::now();
    sleep(Duration::from_secs(4)).await;
    let messages = crate::ids::messages(monitor).await - before;
    let rate = messages * 1000 / u64::try_from(begin.elapsed().as_millis()).unwrap();
    println!("   10 idle nodes send {rate} messages a second to NATS");
    assert!(rate < 200, "{rate}");
    stop(nodes).await;
}
