//! Hundreds of clients that join, talk, flood, stall, reset and leave in an order that a seed decides. Then
//! the ledger must balance exactly, and each message of the clients that stayed must have one outcome.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard::config::{Overflow, Strategy};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_websockets::Message;

use crate::harness::client::heard;
use crate::harness::raw::{CONTINUATION, joined, message, question};
use crate::harness::{Client, Dialect, Handshake, Heard, Raw, Relay, Wire, within};

/// The relay, and the ids that clients have had so far.
#[derive(Clone, Debug)]
struct World {
    addr: SocketAddr,
    newest: Arc<AtomicU64>,
}

impl World {
    /// An id: mostly of a connected user, sometimes of one that left or never joins.
    fn any_id(&self, rng: &mut Rng) -> u64 {
        let newest = self.newest.load(Ordering::Relaxed).max(1);
        match rng.u8(..) {
            0..10 => rng.u64(1..1 << 53),
            10..80 => rng.u64(1..=newest),
            _ => rng.u64(newest.saturating_sub(200).max(1)..=newest),
        }
    }

    fn here(&self, id: u64) {
        self.newest.fetch_max(id, Ordering::Relaxed);
    }

    async fn raw(&self, rng: &mut Rng, narrow: bool) -> Raw {
        let peer = if narrow {
            Raw::connect_narrow(self.addr).await
        } else {
            Raw::connect(self.addr).await
        };
        let peer = peer.joined(dialect(rng)).await;
        self.here(peer.id);
        if narrow { peer.narrowed() } else { peer }
    }
}

fn dialect(rng: &mut Rng) -> Dialect {
    Dialect::BOTH[usize::from(rng.bool())]
}

fn text(rng: &mut Rng, n: usize) -> String {
    let length = match rng.u8(..) {
        0..200 => rng.usize(..100),
        200..250 => rng.usize(..5000),
        _ => rng.usize(..60_000),
    };
    format!("{n} {}", "x".repeat(length))
}

/// The outcomes of one client that stayed: how many of each status.
type Statuses = BTreeMap<String, u64>;

/// Talks and listens until all its outcomes are known, then closes properly. Messages of one sender arrive in
/// order, and no outcome arrives twice or for a message that asked for none.
async fn talker(world: World, mut rng: Rng, count: usize) -> Statuses {
    let Client {
        id,
        dialect,
        socket,
    } = Client::connect(world.addr, Dialect::V1).await;
    world.here(id);
    let (mut tx, mut rx) = socket.split();
    let listen = async {
        let mut statuses: Vec<Option<String>> = vec![None; count];
        let mut last = BTreeMap::new();
        let mut answered = 0;
        while answered < count {
            let message = within("something to hear", rx.next()).await;
            let Some(Ok(message)) = message else {
                panic!("user {id} was cut off: {message:?}");
            };
            let frame = match heard(&message) {
                None => continue,
                Some(Heard::Frame(frame)) => frame,
                Some(end) => panic!("user {id} was closed: {end:?}"),
            };
            match frame["type"].as_str() {
                Some("outcome") => {
                    let n = usize::try_from(frame["id"].as_u64().unwrap()).unwrap();
                    let status = frame["status"].as_str().unwrap().to_owned();
                    assert_eq!(statuses[n].replace(status), None, "two outcomes for {n}");
                    answered += 1;
                }
                Some("message") => assert_in_order(&mut last, &frame),
                Some("dropped") => assert!(frame["count"].as_u64().unwrap() > 0),
                _ => panic!("{frame}"),
            }
        }
        statuses
    };
    let talk = async {
        for n in 0..count {
            let to = world.any_id(&mut rng);
            let frame = json!({"recipient_id": to, "message": text(&mut rng, n), "id": n});
            let message = if rng.bool() {
                Message::text(frame.to_string())
            } else {
                Message::binary(frame.to_string().into_bytes())
            };
            within("a write", tx.send(message)).await.unwrap();
            if rng.u8(..) < 8 {
                sleep(Duration::from_millis(rng.u64(..30))).await;
            }
        }
    };
    let (statuses, ()) = tokio::join!(listen, talk);
    let socket = rx.reunite(tx).unwrap();
    let client = Client {
        id,
        dialect,
        socket,
    };
    for frame in client.leave().await {
        assert_ne!(frame["type"], "outcome", "one outcome too many");
    }
    let mut counts = Statuses::new();
    for status in statuses.into_iter().flatten() {
        *counts.entry(status).or_default() += 1;
    }
    counts
}

/// The numbers of a sender only grow: some may be missing, none comes twice.
fn assert_in_order(last: &mut BTreeMap<u64, u64>, frame: &Value) {
    let text = frame["message"].as_str().expect("a text");
    let (number, filler) = text.split_once(' ').expect("a number");
    let number: u64 = number.parse().unwrap();
    assert!(filler.bytes().all(|byte| byte == b'x'));
    let sender = frame["sender_id"].as_u64().unwrap();
    let before = last.insert(sender, number);
    assert!(
        before.is_none_or(|before| before < number),
        "{sender}: {number} after {before:?}"
    );
}

/// Sends chunks of frames without reading, and then ends in one of many ways.
async fn flooder(world: World, mut rng: Rng) {
    let narrow = rng.bool();
    let mut peer = world.raw(&mut rng, narrow).await;
    for round in 0..rng.usize(1..8) {
        let count = rng.usize(1..60);
        let frames = (0..count).map(|n| {
            let (to, text) = (world.any_id(&mut rng), text(&mut rng, round * 100 + n));
            if rng.bool() {
                message(to, &text)
            } else {
                question(to, &text, n)
            }
        });
        let bytes = joined(&frames.collect::<Vec<_>>());
        if peer.try_write(&bytes).await.is_err() {
            return;
        }
    }
    go(peer, &mut rng).await;
}

/// Reads nothing while others write to it, until it leaves or is disconnected.
async fn staller(world: World, mut rng: Rng) {
    let mut peer = world.raw(&mut rng, true).await;
    let to_itself = message(peer.id, &format!("0 {}", "x".repeat(50_000))).bytes();
    for _ in 0..40 {
        if peer.try_write(&to_itself).await.is_err() {
            return;
        }
    }
    sleep(Duration::from_millis(rng.u64(..1000))).await;
    go(peer, &mut rng).await;
}

/// Connects, sends one message or none, and leaves; again and again.
async fn blinker(world: World, mut rng: Rng) {
    for n in 0..8 {
        let mut peer = world.raw(&mut rng, false).await;
        for word in 0..rng.usize(..3) {
            let text = format!("{} ", n * 10 + word);
            peer.say(world.any_id(&mut rng), &text).await;
        }
        go(peer, &mut rng).await;
    }
}

/// Asks to connect, and is gone before the handshake ends.
async fn passer_by(world: World, mut rng: Rng) {
    for _ in 0..8 {
        let mut peer = Raw::connect(world.addr).await;
        let handshake = Handshake::new().dialect(dialect(&mut rng)).bytes();
        let length = if rng.bool() {
            handshake.len()
        } else {
            rng.usize(..handshake.len())
        };
        drop(peer.try_write(&handshake[..length]).await);
        if rng.bool() {
            peer.reset();
        }
    }
}

/// All the ways to end a connection.
async fn go(mut peer: Raw, rng: &mut Rng) {
    let bytes = match rng.u8(..8) {
        0 => return peer.reset(),
        1 => return drop(peer),
        2 => {
            peer.half_close().await;
            vec![]
        }
        3 => Wire::close(1000, "").bytes(),
        4 => Wire::text("nonsense").bytes().repeat(20),
        5 => Wire::new(CONTINUATION, "out of the blue").bytes(),
        6 => Wire::text("").claiming(1 << 40).bytes(),
        _ => {
            // In the middle of a frame.
            let bytes = message(1, "never said").bytes();
            drop(peer.try_write(&bytes[..rng.usize(1..bytes.len())]).await);
            return peer.reset();
        }
    };
    drop(peer.try_write(&bytes).await);
    if rng.bool() {
        peer.drained().await;
    }
}

/// Three of eight are talkers, unless slow clients are disconnected.
const CLIENTS: usize = 240;
/// Messages that each of them sends.
const QUESTIONS: usize = 80;

/// Runs all clients with one seed.
async fn chaos(strategy: Strategy, overflow: Overflow, seed: u64) {
    let relay = Relay::start(strategy, |settings| {
        settings.mailbox.messages = 64;
        settings.mailbox.total_bytes = 16 << 20;
        settings.mailbox.overflow = overflow;
        settings.limits.outcomes_pending = 64;
        settings.limits.header_timeout = Duration::from_secs(20);
        settings.keepalive.ping_interval = Duration::from_millis(500);
        settings.keepalive.pong_timeout = Duration::from_secs(10);
        settings.keepalive.write_timeout = Duration::from_secs(2);
    })
    .await;
    let mut rng = Rng::with_seed(seed);
    let world = World {
        addr: relay.addr,
        newest: Arc::default(),
    };
    let mut talkers = JoinSet::new();
    let mut others = JoinSet::new();
    // With `disconnect`, a client that gets messages too fast is disconnected, so no client has to stay.
    let lives = !matches!(overflow, Overflow::Disconnect);
    for n in 0..CLIENTS {
        let (world, rng) = (world.clone(), rng.fork());
        match n % 8 {
            0..=2 if lives => drop(talkers.spawn(talker(world, rng, QUESTIONS))),
            0..=3 => drop(others.spawn(flooder(world, rng))),
            4 => drop(others.spawn(staller(world, rng))),
            5 | 6 => drop(others.spawn(blinker(world, rng))),
            _ => drop(others.spawn(passer_by(world, rng))),
        }
        if n % 10 == 9 {
            let ledger = relay.scrape().await.ledger();
            assert!(ledger.gap() >= 0, "{ledger:?}");
        }
    }
    let mut counts = Statuses::new();
    for statuses in within("the talkers are answered", talkers.join_all()).await {
        for (status, count) in statuses {
            *counts.entry(status).or_default() += count;
        }
    }
    within("the others are gone", others.join_all()).await;
    relay.until_metric("switchboard_connections", &[], 0).await;
    let scrape = relay.ledger().await;
    let ledger = scrape.ledger();
    assert_eq!((ledger.connections, ledger.mailbox), (0, 0), "{ledger:?}");
    let told = |status: &str| counts.get(status).copied().unwrap_or(0);
    assert!(
        ledger.delivered >= told("delivered"),
        "{counts:?} {ledger:?}"
    );
    for reason in ["offline", "queue_full", "disconnected"] {
        assert!(
            scrape.dropped(reason) >= told(reason),
            "{reason}: {counts:?} {ledger:?}"
        );
    }
    let answers: u64 = counts.values().sum();
    let expected = if lives {
        CLIENTS / 8 * 3 * QUESTIONS
    } else {
        0
    };
    assert_eq!(answers, expected as u64, "{counts:?}");
    relay.stop().await;
}

both_strategies! {
    async fn the_ledger_balances_however_clients_behave(strategy) {
        chaos(strategy, Overflow::DropNewest, 0x5EED).await;
    }

    async fn the_ledger_balances_where_the_oldest_is_dropped(strategy) {
        chaos(strategy, Overflow::DropOldest, 0xB0A7).await;
    }

    async fn the_ledger_balances_where_slow_clients_are_disconnected(strategy) {
        chaos(strategy, Overflow::Disconnect, 0xFACE).await;
    }
}
