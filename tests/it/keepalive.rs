//! Pings, and peers that do not answer them or do not read. The timeouts are short; the tests wait for what
//! has to happen, and do not measure how long it takes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use switchboard::config::{Settings, Strategy};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::harness::raw::{PING, PONG, TEXT, message};
use crate::harness::{
    Dialect, Handshake, Raw, Relay, Seen, Wire, clog, eventually, profile, within,
};

/// A relay that pings every `interval` and waits `timeout` for the pong.
async fn pinging(strategy: Strategy, interval: Duration, timeout: Duration) -> Relay {
    Relay::start(strategy, |settings| {
        settings.keepalive.ping_interval = interval;
        settings.keepalive.pong_timeout = timeout;
    })
    .await
}

const SOON: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_secs(20);

/// The pong of a slow link may take this long, and a test of one takes several times as long.
const SLOW: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_silent_user_is_pinged_and_stays_while_it_answers() {
    let relay = pinging(Strategy::Directory, SOON, Duration::from_secs(5)).await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        for _ in 0..6 {
            let ping = peer.frame().await;
            assert_eq!(ping.opcode, PING);
            assert!(ping.payload.len() <= 125);
            peer.write(&Wire::new(PONG, ping.payload).bytes()).await;
        }
        peer.write(&Wire::close(1000, "").bytes()).await;
        assert_eq!(peer.answered().await.1, 1000);
    }
    relay.until_closed("client", "1000", 2).await;
    relay.stop().await;
}

both_strategies! {
    /// Its pong clock runs, however much it sent before.
    async fn a_user_that_sends_much_and_then_nothing_is_pinged(strategy) {
        let relay = pinging(strategy, SOON, SOON).await;
        let mut peer = relay.raw().await;
        let mut bytes = Handshake::new().bytes();
        bytes.extend(message(99, "").bytes().repeat(1000));
        peer.write(&bytes).await;
        assert_eq!(peer.answer(false).await.map(|answer| answer.status), Some(101));
        assert_eq!(peer.frame().await.opcode, PING);
        peer.drained().await;
        relay.until_closed("server", "pong_timeout", 1).await;
        relay.stop().await;
    }

    async fn a_user_who_answers_no_ping_is_closed(strategy) {
        let relay = pinging(strategy, SOON, SOON).await;
        let mut friend = relay.v1().await;
        for dialect in Dialect::BOTH {
            let peer = relay.raw_user(dialect).await;
            let id = peer.id;
            let ended = tokio::spawn(peer.drained());
            // The library of this client answers pings while it reads.
            let labels = [("initiator", "server"), ("code", "pong_timeout")];
            let closed = u64::from(dialect == Dialect::V1) + 1;
            let name = "switchboard_connections_closed_total";
            let wait = relay.until_metric(name, &labels, closed);
            tokio::select! {
                () = wait => {}
                heard = friend.next() => panic!("{heard:?}"),
            }
            within("the end", ended).await.unwrap();
            friend.ask(id, "are you asleep?", id).await;
            friend.learns(id, "offline").await;
        }
        relay.stop().await;
    }

    /// The peer is connected and reads nothing.
    async fn a_user_who_never_reads_is_closed(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.keepalive.write_timeout = Duration::from_millis(500);
        })
        .await;
        let mut sender = relay.v1().await;
        for times in 1..=2 {
            let slow = relay.narrow_user(Dialect::BOTH[times - 1]).await;
            // On a busy machine, the time may be over before the mailbox has anything.
            let labels = [("initiator", "server"), ("code", "write_timeout")];
            let closed = "switchboard_connections_closed_total";
            let mut sent = 0;
            while relay.metric("switchboard_mailbox_messages", &[]).await < 3
                && relay.metric(closed, &labels).await < times as u64
            {
                sender.ask(slow.id, &"x".repeat(60_000), sent).await;
                sent += 1;
            }
            relay.until_closed("server", "write_timeout", times as u64).await;
            let mut disconnected = 0;
            for _ in 0..sent {
                let outcome = sender.hear().await;
                disconnected += u64::from(outcome["status"] == "disconnected");
            }
            assert!(disconnected > 0, "none of {sent}");
            sender.ask(slow.id, "are you asleep?", "late").await;
            sender.learns("late", "offline").await;
        }
        relay.stop().await;
    }

    /// A message of an allowed size takes longer than a pong may, and no pong can be inside it.
    async fn a_user_with_a_slow_uplink_stays(strategy) {
        let relay = pinging(strategy, SOON, SLOW).await;
        for dialect in Dialect::BOTH {
            let mut slow = relay.raw_user(dialect).await;
            let text = "x".repeat(40_000);
            let bytes = message(slow.id, &text).bytes();
            for piece in bytes.chunks(bytes.len() / 25) {
                slow.try_write(piece).await.expect("the relay reads on");
                sleep(SLOW / 10).await;
            }
            let frame = loop {
                let frame = slow.frame().await;
                if frame.opcode != PING {
                    break frame;
                }
            };
            assert_eq!(frame.json(), dialect.message(slow.id, &text));
        }
        relay.stop().await;
    }

    /// It reads on at a steady rate what was written to it at once. Its pongs would come behind that, so it
    /// answers no ping.
    async fn a_user_with_a_slow_downlink_stays(strategy) {
        let relay = pinging(strategy, SOON, SLOW).await;
        for dialect in Dialect::BOTH {
            let mut slow = relay.narrow_user(dialect).await;
            let text = "x".repeat(10_000);
            let message = message(slow.id, &text).bytes();
            for _ in 0..32 {
                slow.write(&message).await;
            }
            let mut left = 32 * text.len();
            let mut piece = [0; 8 * 1024];
            while left > 0 {
                let read = within("bytes", slow.stream.read(&mut piece)).await;
                let piece = &piece[..read.expect("the relay keeps the connection")];
                assert!(!piece.is_empty(), "closed with {left} bytes left");
                left -= piece.iter().map(|&byte| usize::from(byte == b'x')).sum::<usize>();
                sleep(SLOW / 10).await;
            }
            assert_eq!(relay.metric("switchboard_connections", &[]).await, 1);
            drop(slow);
            relay.until_metric("switchboard_connections", &[], 0).await;
        }
        relay.stop().await;
    }
}

/// A relay in a process of its own.
struct Process {
    child: Child,
    addr: SocketAddr,
}

impl Process {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let child = Command::new(env!("CARGO_BIN_EXE_switchboard"))
            .args(["--listen", &addr.to_string()])
            .env_clear()
            .envs(profile())
            .envs(variables.iter().copied())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("the relay listens", async || {
            TcpStream::connect(addr).await.ok()
        })
        .await;
        Self { child, addr }
    }

    async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let kill = Command::new("kill").args(["-s", name, &id]).status().await;
        assert!(kill.unwrap().success());
    }
}

/// A paused container and a suspended laptop find all deadlines passed, and the pongs in their sockets. There are
/// more users than tokio takes events for in one look at the sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_relay_closes_no_user_who_has_answered() {
    let relay = Process::start(&[
        ("SWITCHBOARD__KEEPALIVE__PING_INTERVAL", "2s"),
        ("SWITCHBOARD__KEEPALIVE__PONG_TIMEOUT", "2s"),
    ])
    .await;
    let mut users = JoinSet::new();
    let (thawed, has_thawed) = watch::channel(false);
    for n in 0..1200 {
        let mut user = Raw::connect(relay.addr).await;
        user.upgrade(&Handshake::new().dialect(Dialect::BOTH[n % 2]))
            .await;
        let has_thawed = has_thawed.clone();
        users.spawn(async move {
            let mut pings_after = 0;
            while pings_after < 2 {
                let frame = user.frame().await;
                if frame.opcode == PING {
                    // So late that the pongs of about half of the users come while the relay is frozen.
                    sleep(Duration::from_secs(1)).await;
                    user.write(&Wire::new(PONG, frame.payload).bytes()).await;
                    pings_after += usize::from(*has_thawed.borrow());
                } else {
                    assert_eq!(frame.opcode, TEXT, "{frame:?}");
                }
            }
        });
    }
    sleep(Duration::from_secs(3)).await;
    relay.signal("STOP").await;
    sleep(Duration::from_secs(4)).await;
    relay.signal("CONT").await;
    thawed.send(true).unwrap();
    within("all are pinged twice", users.join_all()).await;
}

/// A peer is alive while bytes come from it, and dead once none do.
#[tokio::test]
async fn a_user_who_sends_messages_but_answers_no_ping_is_closed_when_it_falls_silent() {
    let relay = pinging(Strategy::Directory, SOON, SOON).await;
    let mut peer = relay.raw_user(Dialect::Bare).await;
    let id = peer.id;
    let begun = Instant::now();
    while begun.elapsed() < 6 * SOON {
        peer.say(id, "I am so busy").await;
        let talks = async { while peer.frame().await.opcode == PING {} };
        within("its message", talks).await;
        sleep(SOON / 10).await;
    }
    peer.drained().await;
    relay.until_closed("server", "pong_timeout", 1).await;
    relay.stop().await;
}

/// Each user has a clock of its own: no ping comes before half of the interval, and not all come at once.
#[tokio::test]
async fn first_pings_are_spread_over_the_second_half_of_the_interval() {
    let interval = Duration::from_secs(2);
    let relay = pinging(Strategy::Directory, interval, LATE).await;
    let mut tasks = JoinSet::new();
    for _ in 0..40 {
        let mut peer = relay.raw().await;
        let before = Instant::now();
        peer.upgrade(&Handshake::new()).await;
        tasks.spawn(async move {
            assert_eq!(peer.frame().await.opcode, PING);
            before.elapsed()
        });
    }
    let waited = within("all users are pinged", tasks.join_all()).await;
    let (least, most) = (waited.iter().min().unwrap(), waited.iter().max().unwrap());
    assert!(*least >= interval / 2, "a ping after {least:?}");
    assert!(
        *most > *least + interval / 20,
        "all pings between {least:?} and {most:?}"
    );
    relay.stop().await;
}

/// The write timeout starts anew with every byte that leaves.
#[tokio::test]
async fn a_user_who_reads_slowly_stays() {
    let write_timeout = Duration::from_secs(2);
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.write_timeout = write_timeout;
    })
    .await;
    let mut sender = relay.v1().await;
    let mut slow = relay.narrow_user(Dialect::Bare).await;
    let mut taken = Vec::new();
    let pause = Duration::from_millis(50);
    let sent = tokio::select! {
        sent = clog(&relay, &mut sender, slow.id, 60_000, 10) => sent,
        never = read_slowly(&mut slow, &mut taken, 16 * 1024, pause) => match never {},
    };
    let reading = read_slowly(&mut slow, &mut taken, 16 * 1024, pause);
    timeout(2 * write_timeout, reading).await.unwrap_err();
    assert_eq!(relay.metric("switchboard_connections", &[]).await, 2);
    // All messages arrive, and the sender gets their outcomes.
    let all = tokio::spawn(async move {
        let (_, code, _) = slow.after(&taken).rest().await;
        code
    });
    for n in 0..sent {
        sender.learns(format!("clog-{n}"), "delivered").await;
    }
    relay.stop().await;
    assert_eq!(all.await.unwrap(), 1012);
}

/// A kernel lets a slow reader take no less than about 130 KB at a time on loopback. A reader of 10 kB/s is one that a
/// write makes progress for every 13 s; the test has twice the rate, and half of the default timeout.
#[tokio::test]
async fn a_user_who_reads_ten_kilobytes_a_second_stays_by_default() {
    const FASTER: u32 = 2;
    const RATE: u32 = 10_000 * FASTER;
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.write_timeout = Settings::default().keepalive.write_timeout / FASTER;
    })
    .await;
    let mut sender = relay.v1().await;
    let mut slow = relay.raw_user(Dialect::Bare).await;
    let (piece, pause) = (5_000, Duration::from_secs(5_000) / RATE);
    let mut taken = Vec::new();
    tokio::select! {
        _ = clog(&relay, &mut sender, slow.id, 60_000, 15) => {}
        never = read_slowly(&mut slow, &mut taken, piece, pause) => match never {},
    }
    let reading = read_slowly(&mut slow, &mut taken, piece, pause);
    timeout(Duration::from_secs(20), reading).await.unwrap_err();
    relay.stop().await;
}

/// Reads so many bytes at most, again and again, until it is dropped. What it has read is in `taken`.
async fn read_slowly(
    slow: &mut Raw,
    taken: &mut Vec<u8>,
    most: usize,
    pause: Duration,
) -> Infallible {
    let mut piece = vec![0; most];
    loop {
        let read = slow.stream.read(&mut piece).await;
        let read = read.expect("the relay keeps the connection");
        assert_ne!(read, 0, "closed after {} bytes", taken.len());
        taken.extend_from_slice(&piece[..read]);
        sleep(pause).await;
    }
}

#[tokio::test]
async fn a_client_with_a_library_answers_pings_by_itself() {
    let relay = pinging(
        Strategy::Directory,
        Duration::from_millis(100),
        Duration::from_secs(5),
    )
    .await;
    let mut user = relay.v1().await;
    let mut counted = relay.raw_user(Dialect::Bare).await;
    let count = async {
        for _ in 0..20 {
            let ping = counted.frame().await;
            counted.write(&Wire::new(PONG, ping.payload).bytes()).await;
        }
    };
    tokio::select! {
        () = count => {}
        heard = user.next() => panic!("{heard:?}"),
    }
    user.say(user.id, "still here").await;
    user.hears(user.id, "still here").await;
    relay.stop().await;
}

/// A peer that reads and sends nothing, as behind a broken cable, misses its pong.
#[tokio::test]
async fn a_user_who_reads_but_does_not_answer_sees_the_end() {
    let relay = pinging(Strategy::Directory, SOON, SOON).await;
    let mut peer = relay.raw_user(Dialect::V1).await;
    let mut pings = 0;
    let end = loop {
        match peer.next().await {
            Seen::Frame(frame) if frame.opcode == PING => pings += 1,
            Seen::Frame(frame) => assert_eq!(frame.opcode, crate::harness::raw::CLOSE, "{frame:?}"),
            end => break end,
        }
    };
    assert!(pings >= 1);
    assert_eq!(end, Seen::End);
    relay.until_closed("server", "pong_timeout", 1).await;
    relay.stop().await;
}
