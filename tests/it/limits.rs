//! A full node: it says so, goes on with those it has, and still answers its probes.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use switchboard::config::Strategy;

use crate::harness::raw::joined;
use crate::harness::{Answer, Client, Dialect, Handshake, Raw, Relay, Wire, eventually, within};

fn assert_full(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    let retry = answer.header("retry-after").expect("a Retry-After header");
    let seconds: u64 = retry.parse().expect("seconds");
    assert!((1..=3600).contains(&seconds), "{seconds}");
}

both_strategies! {
    async fn a_full_node_refuses_users_and_answers_its_probes(strategy) {
        let relay = Relay::start(strategy, |settings| settings.limits.connections = Some(3)).await;
        let mut one = relay.bare().await;
        let two = relay.v1().await;
        let three = relay.raw_user(Dialect::Bare).await;
        for _ in 0..5 {
            assert_full(&relay.raw().await.ask(&Handshake::new()).await);
        }
        for target in ["/livez", "/healthz", "/readyz", "/metrics"] {
            assert_eq!(relay.http("GET", target).await.status, 200, "{target}");
        }
        let scrape = relay.scrape().await;
        assert_eq!(scrape.value("switchboard_handshakes_rejected_total", &[]), 5);
        assert_eq!(scrape.value("switchboard_connections", &[]), 3);
        one.say(two.id, "it is full in here").await;

        // Whoever leaves makes room, however it leaves.
        two.leave().await;
        let four = eventually("there is room for one", async || {
            let mut peer = relay.raw().await;
            let answer = peer.ask(&Handshake::new()).await;
            (answer.status == 101).then_some(peer)
        })
        .await;
        assert_full(&relay.raw().await.ask(&Handshake::new()).await);
        three.reset();
        four.reset();
        for _ in 0..2 {
            eventually("there is room again", async || {
                let mut peer = relay.raw().await;
                (peer.ask(&Handshake::new()).await.status == 101).then_some(())
            })
            .await;
        }
        relay.stop().await;
    }

    /// Many at the door at once: never more than the limit come in.
    async fn a_rush_fills_the_node_and_no_more(strategy) {
        let relay = Relay::start(strategy, |settings| settings.limits.connections = Some(10)).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let addr = relay.addr;
            tasks.spawn(async move {
                let mut peer = Raw::connect(addr).await;
                let answer = peer.ask(&Handshake::new()).await;
                (peer, answer)
            });
        }
        let answers = within("everybody is answered", tasks.join_all()).await;
        let (mut inside, mut outside) = (0, 0);
        for (_, answer) in &answers {
            if answer.status == 101 {
                inside += 1;
            } else {
                assert_full(answer);
                outside += 1;
            }
        }
        assert_eq!((inside, outside), (10, 50));
        drop(answers);
        relay.stop().await;
    }
}

/// A connection that has asked for nothing yet takes no user's place.
#[tokio::test]
async fn a_handshake_that_never_completes_keeps_nobody_out() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.connections = Some(2);
        settings.limits.header_timeout = Duration::from_secs(20);
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut peer = relay.raw().await;
        let handshake = Handshake::new().bytes();
        peer.write(&handshake[..handshake.len() - 1]).await;
        idle.push(peer);
    }
    let one = relay.bare().await;
    let two = relay.v1().await;
    assert_full(&relay.raw().await.ask(&Handshake::new()).await);
    drop(idle);
    one.leave().await;
    two.leave().await;
    relay.stop().await;
}

/// Connections that are no users are limited too, and the operators' door is another one.
#[tokio::test]
async fn silent_connections_do_not_keep_the_operators_out() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.handshakes = 4;
        settings.limits.header_timeout = Duration::from_millis(500);
        settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(relay.raw().await);
    }
    for _ in 0..3 {
        assert_eq!(relay.admin("GET", "/livez").await.status, 200);
    }
    // Their time runs out, and a user comes in.
    let user = eventually("a user comes in", async || {
        let upgrade = Client::upgrade(relay.addr, Dialect::Bare).await;
        upgrade.ok()
    })
    .await;
    drop(user);
    drop(idle);
    relay.stop().await;
}

/// Users are not handshakes: the bound on the latter does not bound the former.
#[tokio::test]
async fn users_do_not_count_as_handshakes() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.handshakes = 2;
    })
    .await;
    let mut users = Vec::new();
    for _ in 0..20 {
        users.push(relay.bare().await);
    }
    for user in &mut users {
        user.say(user.id, "here").await;
        user.hears(user.id, "here").await;
    }
    relay.stop().await;
}

/// A refusal is read by those who have sent more than a handshake already.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_talks_on() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.connections = Some(0x1);
    })
    .await;
    let _user = relay.bare().await;
    let mut peer = relay.raw().await;
    let mut bytes = Handshake::new().bytes();
    bytes.extend(joined(&[Wire::text(r#"{"recipient_id":1,"message":"m"}"#)]));
    peer.write(&bytes).await;
    assert_full(&peer.answer(true).await.expect("an answer"));
    let scrape = relay.ledger().await;
    assert_eq!(scrape.ledger().received, 0);
    relay.stop().await;
}

/// A relay of its own process, ended by Drop.
struct Process {
    child: Child,
    addr: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    /// Starts one that may have that many files open.
    async fn start(files: u32) -> Self {
        // Both are held until both are known, so that they differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [addr, admin] = free.map(|listener| listener.local_addr().unwrap());
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {files} && exec \"$0\"")])
            .arg(env!("CARGO_BIN_EXE_switchboard"))
            .env_clear()
            .env("SWITCHBOARD__SERVER__LISTEN", addr.to_string())
            .env("SWITCHBOARD__ADMIN__LISTEN", admin.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let process = Self { child, addr, admin };
        eventually("it is ready", async || {
            let stream = tokio::net::TcpStream::connect(admin).await.ok();
            drop(stream?);
            (process.ask("/readyz").await.status == 200).then_some(())
        })
        .await;
        process
    }

    async fn ask(&self, target: &str) -> Answer {
        Raw::connect(self.admin).await.http("GET", target).await
    }

    async fn metric(&self, series: &str) -> u64 {
        let text = self.ask("/metrics").await.body;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.expect("the series is there").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// With all its file descriptors asked for, many times over, a node goes on: those who are in talk,
/// others are told that it is full, its probes are answered, and no connection fails to be accepted.
#[tokio::test]
async fn a_node_that_is_asked_for_more_files_than_it_has_goes_on() {
    let process = Process::start(620).await;
    let mut first = Raw::connect(process.addr).await.joined(Dialect::Bare).await;
    let mut second = Raw::connect(process.addr).await.joined(Dialect::Bare).await;
    let mut inside = Vec::new();
    let mut refused = 0;
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(Raw::connect(process.addr).await);
        let mut peer = Raw::connect(process.addr).await;
        let answer = peer.ask(&Handshake::new()).await;
        if answer.status == 101 {
            inside.push(peer);
        } else {
            assert_full(&answer);
            refused += 1;
        }
    }
    // 500 are kept back for what is no user.
    assert_eq!((inside.len(), refused), (118, 882));
    first.say(second.id, "is it full?").await;
    let heard = second.json().await;
    assert_eq!(heard, Dialect::Bare.message(first.id, "is it full?"));
    assert_eq!(process.ask("/readyz").await.status, 200);
    assert_eq!(process.ask("/livez").await.status, 200);
    let failed = "switchboard_accept_errors_total";
    assert_eq!(process.metric(failed).await, 0);
    let full = "switchboard_handshakes_rejected_total{reason=\"full\"}";
    assert_eq!(process.metric(full).await, 882);
    // Whoever leaves makes room.
    drop((inside, silent));
    eventually("there is room again", async || {
        let mut peer = Raw::connect(process.addr).await;
        (peer.ask(&Handshake::new()).await.status == 101).then_some(())
    })
    .await;
}
