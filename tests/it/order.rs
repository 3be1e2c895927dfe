//! The order within a pair, and fairness between pairs.

use std::collections::BTreeMap;

use switchboard::config::Strategy;
use tokio::task::JoinSet;

use crate::harness::raw::{joined, message};
use crate::harness::{Client, Dialect, Heard, PATIENCE, Relay, Wire, within};

/// A relay with mailboxes so large that these tests drop nothing.
async fn roomy(strategy: Strategy) -> Relay {
    Relay::start(strategy, |settings| {
        settings.mailbox.messages = 1 << 20;
        settings.mailbox.bytes = 1 << 30;
        settings.mailbox.total_bytes = 1 << 30;
        // The raw clients do not answer pings, and a test on a busy machine may be slow.
        settings.keepalive.ping_interval = PATIENCE * 4;
        settings.keepalive.write_timeout = PATIENCE * 4;
    })
    .await
}

/// Receives `count` messages and checks that those of each sender are in order, none missing.
async fn in_order(mut client: Client, count: usize) {
    let mut next = BTreeMap::new();
    for _ in 0..count {
        let frame = client.hear().await;
        let text = frame["message"].as_str().expect("a message");
        let number: u64 = text.split_once(' ').unwrap().0.parse().unwrap();
        let sender = frame["sender_id"].as_u64().unwrap();
        let expected = next.entry(sender).or_insert(0);
        assert_eq!(number, *expected, "from {sender}");
        *expected += 1;
    }
}

/// A numbered message. Some are short, some long.
fn numbered(to: u64, n: usize) -> Wire {
    let length = [0, 1, 100, 126, 3000, 3, 20_000][n % 7];
    message(to, &format!("{n} {}", "x".repeat(length)))
}

both_strategies! {
    async fn every_pair_keeps_its_order(strategy) {
        const EACH: usize = 300;
        let relay = roomy(strategy).await;
        let mut tasks = JoinSet::new();
        let mut recipients = Vec::new();
        for n in 0..3 {
            let client = relay.connect(Dialect::BOTH[n % 2]).await;
            recipients.push(client.id);
            tasks.spawn(in_order(client, 4 * EACH));
        }
        for _ in 0..4 {
            let mut sender = relay.raw_user(Dialect::Bare).await;
            let recipients = recipients.clone();
            tasks.spawn(async move {
                // Round by round, in chunks that end within frames.
                let mut bytes = Vec::new();
                for n in 0..EACH {
                    bytes.extend(recipients.iter().flat_map(|to| numbered(*to, n).bytes()));
                    if bytes.len() > 30_000 {
                        let rest = bytes.split_off(30_000);
                        sender.write(&std::mem::replace(&mut bytes, rest)).await;
                    }
                }
                sender.write(&bytes).await;
                sender.write(&Wire::close(1000, "").bytes()).await;
                assert_eq!(sender.answered().await.1, 1000);
            });
        }
        within("all messages arrive", tasks.join_all()).await;
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().received, 12 * EACH as u64);
        relay.stop().await;
    }

    async fn notes_to_oneself_keep_their_order(strategy) {
        let relay = roomy(strategy).await;
        let mut user = relay.raw_user(Dialect::Bare).await;
        let mut tasks = JoinSet::new();
        let notes: Vec<Wire> = (0..500).map(|n| numbered(user.id, n)).collect();
        tasks.spawn(async move {
            for part in notes.chunks(10) {
                user.write(&joined(part)).await;
                for _ in part {
                    user.json().await;
                }
            }
            let notes: Vec<Wire> = (0..2000).map(|n| message(user.id, &format!("{n} "))).collect();
            user.write(&joined(&notes)).await;
            for n in 0..2000 {
                assert_eq!(user.json().await["message"], format!("{n} "));
            }
        });
        within("all notes arrive", tasks.join_all()).await;
        relay.stop().await;
    }

    /// The last message and the close frame are in order, too.
    async fn a_last_message_comes_before_the_end(strategy) {
        let relay = roomy(strategy).await;
        let mut friend = relay.bare().await;
        for round in 0..50 {
            let mut peer = relay.raw_user(Dialect::Bare).await;
            let text = round.to_string();
            peer.write(&joined(&[message(friend.id, &text), Wire::close(1000, "")])).await;
            friend.hears(peer.id, &text).await;
            assert_eq!(peer.answered().await.1, 1000);
        }
        relay.stop().await;
    }

    /// All pairs get through when all send alike.
    async fn no_pair_is_starved(strategy) {
        const PAIRS: usize = 16;
        const GOAL: usize = 3000;
        let relay = roomy(strategy).await;
        let (tx, mut served) = tokio::sync::mpsc::channel(PAIRS * 4);
        let mut pairs = JoinSet::new();
        for pair in 0..PAIRS {
            let mut one = relay.raw_user(Dialect::Bare).await;
            let mut two = relay.raw_user(Dialect::Bare).await;
            let tx = tx.clone();
            pairs.spawn(async move {
                let ask = message(two.id, "ping-pong").bytes();
                one.write(&ask.repeat(32)).await;
                loop {
                    two.json().await;
                    one.write(&ask).await;
                    if tx.send(pair).await.is_err() {
                        return;
                    }
                }
            });
        }
        let mut counts = [0; PAIRS];
        while counts.iter().max().unwrap() < &GOAL {
            let pair = within("a pair is served", served.recv()).await.unwrap();
            counts[pair] += 1;
        }
        // No pair has less than a quarter of what the fastest one has.
        assert!(counts.iter().all(|count| *count > GOAL / 4), "{counts:?}");
        drop(served);
        pairs.shutdown().await;
        relay.stop().await;
    }
}

/// Users come and go. Each message reaches its recipient or is dropped, and never reaches another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_goes_to_a_stranger() {
    for strategy in [Strategy::Directory, Strategy::Router] {
        let relay = roomy(strategy).await;
        let mut sender = relay.raw_user(Dialect::Bare).await;
        let flood = tokio::spawn(async move {
            for id in 2..400 {
                let frames: Vec<Wire> = (id..id + 5)
                    .map(|to| message(to, &to.to_string()))
                    .collect();
                sender.write(&joined(&frames)).await;
                tokio::task::yield_now().await;
            }
            sender
        });
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let addr = relay.addr;
            tasks.spawn(async move {
                for _ in 0..50 {
                    let mut client = Client::connect(addr, Dialect::Bare).await;
                    client.say(client.id, "mark").await;
                    loop {
                        let Heard::Frame(frame) = client.next().await else {
                            panic!("closed");
                        };
                        if frame["message"] == "mark" {
                            break;
                        }
                        assert_eq!(frame["message"], client.id.to_string());
                    }
                    client.leave().await;
                }
            });
        }
        within("everybody has come and gone", tasks.join_all()).await;
        drop(flood.await.unwrap());
        relay.stop().await;
    }
}
