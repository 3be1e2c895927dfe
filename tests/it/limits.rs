//! A full node: it refuses new users, keeps its connected users, and still answers probes.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use switchboard::config::Strategy;

use crate::harness::raw::joined;
use crate::harness::{
    Answer, Client, Dialect, Handshake, Raw, Relay, Wire, eventually, profile, within,
};

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

        // Each user that leaves makes room, by a close or by a reset.
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

    /// With `admin.ready_when_full = false` a load balancer sends the next user to another node.
    async fn a_full_node_is_not_ready_where_the_setting_says_so(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.limits.connections = Some(1);
            settings.admin.ready_when_full = false;
        })
        .await;
        assert_eq!(relay.http("GET", "/readyz").await.status, 200);
        let one = relay.v1().await;
        let answer = relay.http("GET", "/readyz").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "the server is full\n"));
        assert_eq!(relay.http("GET", "/livez").await.status, 200);
        one.leave().await;
        eventually("the node is ready again", async || {
            (relay.http("GET", "/readyz").await.status == 200).then_some(())
        })
        .await;
        relay.stop().await;
    }

    /// Many upgrades at once: at most as many as the limit are accepted.
    async fn simultaneous_upgrades_do_not_exceed_the_limit(strategy) {
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

/// A connection that has sent no request does not count as a user.
#[tokio::test]
async fn an_incomplete_handshake_keeps_no_user_out() {
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

/// Pending connections have a limit of their own, and the admin listener has another one.
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
    // Their header timeout ends them, and a user joins.
    let user = eventually("a user comes in", async || {
        let upgrade = Client::upgrade(relay.addr, Dialect::Bare).await;
        upgrade.ok()
    })
    .await;
    drop(user);
    drop(idle);
    relay.stop().await;
}

/// The limit of pending connections does not limit users.
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

/// A client that has sent frames behind its handshake can still read the refusal.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_has_already_sent_more() {
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

/// A relay in a process of its own. Drop ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    addr: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    /// Starts a relay with this limit of open files, and a listener for users and one for operators.
    pub(crate) async fn start(files: u32) -> Self {
        Self::start_with(files, |addr, admin| {
            let listen = "SWITCHBOARD__SERVER__LISTEN";
            vec![
                (listen, addr.to_string()),
                ("SWITCHBOARD__ADMIN__LISTEN", admin.to_string()),
            ]
        })
        .await
    }

    /// Starts a relay that has two listeners for users, which probes use as well.
    async fn with_two_listeners(files: u32) -> Self {
        Self::start_with(files, |addr, admin| {
            vec![("SWITCHBOARD__SERVER__LISTEN", format!("{addr},{admin}"))]
        })
        .await
    }

    pub(crate) async fn start_with(
        files: u32,
        variables: impl FnOnce(SocketAddr, SocketAddr) -> Vec<(&'static str, String)>,
    ) -> Self {
        // Both listeners are held until both ports are known, so that the ports differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [addr, admin] = free.map(|listener| listener.local_addr().unwrap());
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {files} && exec \"$0\"")])
            .arg(env!("CARGO_BIN_EXE_switchboard"))
            .env_clear()
            .envs(profile())
            .envs(variables(addr, admin))
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

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The address of the listener for users.
    pub(crate) fn users(&self) -> SocketAddr {
        self.addr
    }

    /// The address of the listener for operators.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    async fn ask(&self, target: &str) -> Answer {
        Raw::connect(self.admin).await.http("GET", target).await
    }

    async fn metric(&self, series: &str) -> u64 {
        let text = self.ask("/metrics").await.body;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.expect("the series exists").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// More connections than file descriptors: connected users talk, other users get a refusal, probes get a response,
/// and no accept fails.
#[tokio::test]
async fn a_node_without_free_file_descriptors_keeps_working() {
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
    // The relay keeps 500 file descriptors for other uses than users.
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
    // A user that leaves makes room.
    drop((inside, silent));
    eventually("there is room again", async || {
        let mut peer = Raw::connect(process.addr).await;
        (peer.ask(&Handshake::new()).await.status == 101).then_some(())
    })
    .await;
}

/// The descriptors that users cannot take are enough for the connections without an upgrade on all listeners.
#[tokio::test]
async fn probes_are_answered_whatever_strangers_hold_open_on_two_listeners() {
    let process = Process::with_two_listeners(1200).await;
    let mut held = Vec::new();
    for number in 0..900 {
        for addr in [process.addr, process.admin] {
            // As many connections as may be open in each state before an upgrade: silent, in the middle of a
            // request, and behind an answer.
            let mut peer = Raw::connect(addr).await;
            match number % 3 {
                0 => {}
                1 => peer.write(b"GET / HTTP/1.1\r\nHost: ").await,
                _ => assert_eq!(peer.http("GET", "/healthz").await.status, 200),
            }
            held.push(peer);
        }
        let mut user = Raw::connect(process.addr).await;
        let answer = user.ask(&Handshake::new()).await;
        if answer.status == 101 {
            held.push(user);
        } else {
            assert_full(&answer);
        }
    }
    for target in ["/livez", "/healthz", "/readyz", "/metrics"] {
        for addr in [process.addr, process.admin] {
            let probe = async { Raw::connect(addr).await.http("GET", target).await };
            let answer = within("the probe is answered", probe).await;
            assert_eq!(answer.status, 200, "{target} on {addr}");
        }
    }
    assert_eq!(process.metric("switchboard_accept_errors_total").await, 0);
    drop(held);
}
