//! Recipients that do not read: the bounds of one mailbox and of all mailboxes together, and the overflow
//! policies.

use std::time::Duration;

use serde_json::Value;
use switchboard::config::{Overflow, Strategy};

use crate::harness::{Client, Dialect, PATIENCE, Raw, Relay, Seen, Wire, clog, eventually};

const MAILBOX: &str = "switchboard_mailbox_messages";

/// Sends until one message is refused. Returns the number of sent messages, and the outcomes of those that
/// are settled. `to` does not read.
async fn overfill(sender: &mut Client, to: u64, bytes: usize) -> (u64, Vec<(u64, String)>) {
    let text = "x".repeat(bytes);
    let mut outcomes = Vec::new();
    for sent in 0..2000 {
        sender.ask(to, &text, sent).await;
        // A message to an offline user has its outcome at once, which shows that the relay got this far.
        sender.ask(u64::from(u32::MAX), "", "barrier").await;
        loop {
            let (id, status) = outcome(&sender.hear().await);
            match id.as_u64() {
                None => break,
                Some(id) => outcomes.push((id, status)),
            }
        }
        if outcomes.iter().any(|(_, status)| status != "delivered") {
            return (sent + 1, outcomes);
        }
    }
    panic!("{to} refuses nothing, though it does not read");
}

fn outcome(frame: &Value) -> (Value, String) {
    assert_eq!(frame["type"], "outcome", "{frame}");
    let status = frame["status"].as_str().expect("a status");
    (frame["id"].clone(), status.to_owned())
}

/// Reads outcomes until `sent` are known, and returns them by id. Each id has one.
async fn settle(sender: &mut Client, sent: u64, mut outcomes: Vec<(u64, String)>) -> Vec<String> {
    while (outcomes.len() as u64) < sent {
        let (id, status) = outcome(&sender.hear().await);
        outcomes.push((id.as_u64().expect("a number"), status));
    }
    outcomes.sort();
    let ids: Vec<u64> = outcomes.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (0..sent).collect::<Vec<_>>(), "one outcome an id");
    outcomes.into_iter().map(|(_, status)| status).collect()
}

/// The texts that a raw user receives, and how many messages it is told to have missed.
async fn hear_all(peer: &mut Raw, sent: u64) -> (Vec<String>, u64) {
    let (mut texts, mut missed) = (Vec::new(), 0);
    while texts.len() as u64 + missed < sent {
        let frame = peer.json().await;
        match frame["type"].as_str() {
            Some("message") => texts.push(frame["message"].as_str().unwrap().to_owned()),
            Some("dropped") => missed += frame["count"].as_u64().expect("a count"),
            _ => panic!("{frame}"),
        }
    }
    (texts, missed)
}

both_strategies! {
    async fn a_mailbox_is_bounded_by_messages(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 8;
            settings.mailbox.bytes = 1 << 30;
            settings.mailbox.total_bytes = 1 << 30;
        })
        .await;
        let mut sender = relay.v1().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        let (sent, outcomes) = overfill(&mut sender, slow.id, 60_000).await;
        let held = relay.metric(MAILBOX, &[]).await;
        // One or two more may be in the write buffer.
        assert!((8..=12).contains(&held), "{held} of 8");
        let slow = tokio::spawn(slow.drained());
        let outcomes = settle(&mut sender, sent, outcomes).await;
        assert_eq!(outcomes.iter().filter(|status| *status == "queue_full").count(), 1);
        relay.stop().await;
        assert_eq!(slow.await.unwrap(), Seen::End);
    }

    async fn a_mailbox_is_bounded_by_bytes(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 1 << 20;
            settings.mailbox.bytes = 600_000;
        })
        .await;
        let mut sender = relay.v1().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        let (sent, outcomes) = overfill(&mut sender, slow.id, 60_000).await;
        let held = relay.metric(MAILBOX, &[]).await;
        assert!((5..=14).contains(&held), "{held} of 60,000 bytes each in 600,000");
        let slow = tokio::spawn(slow.drained());
        let outcomes = settle(&mut sender, sent, outcomes).await;
        assert_eq!(outcomes.iter().filter(|status| *status == "queue_full").count(), 1);
        relay.stop().await;
        assert_eq!(slow.await.unwrap(), Seen::End);
    }

    /// All mailboxes share one budget. When it is spent, the fullest mailbox is evicted first; a user that
    /// reads returns its bytes to the budget.
    async fn all_mailboxes_together_are_bounded_by_bytes(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 1 << 20;
            settings.mailbox.bytes = 1 << 30;
            settings.mailbox.total_bytes = 600_000;
        })
        .await;
        let mut sender = relay.v1().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        let mut friend = relay.bare().await;
        let (sent, mut outcomes) = overfill(&mut sender, slow.id, 60_000).await;
        let held = relay.metric(MAILBOX, &[]).await;
        assert!((5..=14).contains(&held), "{held} of 60,000 bytes each in 600,000");
        sender.ask(friend.id, &"x".repeat(60_000), "room").await;
        friend.hears(sender.id, &"x".repeat(60_000)).await;
        // Other users' messages were evicted for it. Each sender was told.
        loop {
            let (id, status) = outcome(&sender.hear().await);
            let Some(id) = id.as_u64() else {
                assert_eq!(status, "delivered");
                break;
            };
            assert_eq!(status, "queue_full");
            outcomes.push((id, status));
        }
        let slow = tokio::spawn(slow.drained());
        settle(&mut sender, sent, outcomes).await;
        relay.until_metric(MAILBOX, &[], 0).await;
        sender.ask(friend.id, &"x".repeat(60_000), "room").await;
        friend.hears(sender.id, &"x".repeat(60_000)).await;
        sender.learns("room", "delivered").await;
        relay.stop().await;
        assert_eq!(slow.await.unwrap(), Seen::End);
    }

    /// Many readers are slow, none of them by much, until they have used up the room of all together. Users that
    /// read at once get everything, and none of them is closed for the others' sake.
    async fn slow_readers_take_no_room_from_users_that_read(strategy) {
        for overflow in [Overflow::DropNewest, Overflow::DropOldest, Overflow::Disconnect] {
            for (bytes, waiting) in [(4000, 10), (60_000, 1)] {
                let relay = Relay::start(strategy, |settings| {
                    settings.mailbox.total_bytes = 1 << 20;
                    settings.mailbox.overflow = overflow;
                })
                .await;
                let mut pairs = Vec::new();
                for _ in 0..3 {
                    pairs.push((relay.v1().await, relay.v1().await));
                }
                let slow = use_up(&relay, bytes, waiting).await;
                for id in 0..20 {
                    for (sender, friend) in &mut pairs {
                        sender.ask(friend.id, "hi", id).await;
                        friend.hears(sender.id, "hi").await;
                        sender.learns(id, "delivered").await;
                    }
                }
                let closed = "switchboard_connections_closed_total";
                assert_eq!(relay.metric(closed, &[("code", "1013")]).await, 0, "{overflow:?}");
                for peer in slow {
                    peer.reset();
                }
                relay.stop().await;
            }
        }
    }

    /// A user that leaves returns its bytes, too.
    async fn a_user_that_leaves_returns_its_bytes(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 1 << 20;
            settings.mailbox.bytes = 1 << 30;
            settings.mailbox.total_bytes = 600_000;
        })
        .await;
        let mut sender = relay.v1().await;
        let mut friend = relay.bare().await;
        for round in 0..3 {
            let slow = relay.narrow_user(Dialect::Bare).await;
            let (sent, outcomes) = overfill(&mut sender, slow.id, 60_000).await;
            slow.reset();
            settle(&mut sender, sent, outcomes).await;
            relay.until_metric(MAILBOX, &[], 0).await;
            let text = format!("{round} {}", "x".repeat(60_000));
            sender.ask(friend.id, &text, "room").await;
            friend.hears(sender.id, &text).await;
            sender.learns("room", "delivered").await;
        }
        assert_eq!(relay.metric("switchboard_mailbox_bytes", &[]).await, 0);
        relay.stop().await;
    }

    async fn drop_newest_refuses_new_messages(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 8;
            settings.mailbox.overflow = Overflow::DropNewest;
        })
        .await;
        outcomes_for_a_slow_user(&relay, 12).await;
        relay.stop().await;
    }

    async fn drop_oldest_drops_queued_messages(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 8;
            settings.mailbox.overflow = Overflow::DropOldest;
        })
        .await;
        let outcomes = outcomes_for_a_slow_user(&relay, 12).await;
        // One or two of the eight may be older ones in the write buffer.
        let newest = &outcomes[outcomes.len() - 4..];
        assert!(newest.iter().all(|status| status == "delivered"), "{newest:?}");
        relay.stop().await;
    }

    /// A message that is larger than the mailbox does not drop older ones.
    async fn drop_oldest_keeps_to_the_bytes(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 1 << 20;
            settings.mailbox.bytes = 600_000;
            settings.mailbox.overflow = Overflow::DropOldest;
        })
        .await;
        outcomes_for_a_slow_user(&relay, 14).await;
        relay.stop().await;
    }

    async fn disconnect_closes_with_1013(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 8;
            settings.mailbox.overflow = Overflow::Disconnect;
            // The relay closes before the test reads, and the frames before the close have to wait for it.
            settings.keepalive.close_timeout = PATIENCE;
        })
        .await;
        for dialect in Dialect::BOTH {
            let mut sender = relay.v1().await;
            let mut slow = relay.narrow_user(dialect).await;
            let (sent, outcomes) = overfill(&mut sender, slow.id, 60_000).await;
            let (frames, code, _) = slow.rest().await;
            assert_eq!(code, 1013, "{dialect:?}");
            let outcomes = settle(&mut sender, sent, outcomes).await;
            let heard = frames.iter().filter(|frame| frame.get("message").is_some()).count();
            // A message that is `disconnected` may have arrived.
            assert!(with_status(&outcomes, "delivered").len() <= heard, "{outcomes:?}");
            let refused = with_status(&outcomes, "delivered").len()
                + with_status(&outcomes, "queue_full").len()
                + with_status(&outcomes, "disconnected").len();
            assert_eq!(refused as u64, sent, "{outcomes:?}");
            sender.ask(slow.id, "still there?", "late").await;
            sender.learns("late", "offline").await;
        }
        relay.until_closed("server", "1013", 2).await;
        relay.stop().await;
    }

    /// No sender waits for a recipient that does not read.
    async fn a_sender_never_waits_for_a_recipient(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.mailbox.messages = 8;
            // The recipient must stay for the whole test, however long that takes.
            settings.keepalive.write_timeout = PATIENCE * 4;
            settings.keepalive.ping_interval = PATIENCE * 4;
        })
        .await;
        let mut sender = relay.bare().await;
        let mut friend = relay.bare().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        clog(&relay, &mut sender, slow.id, 60_000, 8).await;
        for n in 0..200 {
            sender.say(slow.id, &"x".repeat(60_000)).await;
            sender.say(friend.id, &n.to_string()).await;
            friend.hears(sender.id, &n.to_string()).await;
        }
        let scrape = relay.ledger().await;
        assert!(scrape.dropped("queue_full") >= 190, "{:?}", scrape.ledger());
        slow.reset();
        relay.stop().await;
    }

    /// A burst that fits arrives complete, though the recipient does not read at first.
    async fn a_burst_that_fits_is_not_dropped(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        let mut friend = relay.raw_user(Dialect::Bare).await;
        for n in 0..256 {
            sender.ask(friend.id, &n.to_string(), n).await;
        }
        for n in 0..256 {
            assert_eq!(friend.json().await, Dialect::Bare.message(1, &n.to_string()));
        }
        let outcomes = settle(&mut sender, 256, Vec::new()).await;
        assert!(outcomes.iter().all(|status| status == "delivered"));
        relay.stop().await;
    }
}

/// The sender does not read either, and still the recipient's mailbox is emptied.
#[tokio::test]
async fn a_mailbox_is_emptied_when_its_owner_times_out() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.write_timeout = Duration::from_millis(300);
    })
    .await;
    let mut sender = relay.v1().await;
    let slow = relay.narrow_user(Dialect::Bare).await;
    let (sent, outcomes) = overfill(&mut sender, slow.id, 60_000).await;
    let outcomes = settle(&mut sender, sent, outcomes).await;
    assert!(
        !with_status(&outcomes, "disconnected").is_empty(),
        "{outcomes:?}"
    );
    eventually("the mailbox is gone", async || {
        (relay.metric(MAILBOX, &[]).await == 0).then_some(())
    })
    .await;
    drop(slow);
    relay.stop().await;
}

/// Users that ask for outcomes and do not read them share the room for outcomes, and leave a part of it to others. An
/// id takes no more room than its value, however it is spelt.
#[tokio::test]
async fn unread_outcomes_are_bounded_by_bytes_and_others_get_theirs() {
    const LIMIT: u64 = 256 << 10;
    const USERS: u64 = 8;
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.outcomes_bytes = LIMIT;
        settings.limits.outcomes_pending = 1 << 20;
    })
    .await;
    let id = "\\u0041".repeat(64);
    let text = format!(r#"{{"recipient_id":4294967295,"message":"","id":"{id}"}}"#);
    let bytes = Wire::text(&text).bytes();
    let mut writers = Vec::new();
    for _ in 0..USERS {
        let mut peer = relay.narrow_user(Dialect::V1).await;
        let bytes = bytes.clone();
        writers.push(tokio::spawn(async move {
            // Until the relay stops reading from it.
            let write = async { while peer.try_write(&bytes).await.is_ok() {} };
            drop(tokio::time::timeout(Duration::from_secs(5), write).await);
            peer
        }));
    }
    let mut slow = Vec::new();
    for writer in writers {
        slow.push(writer.await.unwrap());
    }
    let reserved = relay.metric("switchboard_outcome_bytes", &[]).await;
    assert!(
        (LIMIT / 2..LIMIT).contains(&reserved),
        "{reserved} of {LIMIT}"
    );
    assert_eq!(
        relay.metric("switchboard_outcome_limit_bytes", &[]).await,
        LIMIT
    );
    let mut user = relay.v1().await;
    for id in 0..100 {
        user.ask(u64::from(u32::MAX), "", id).await;
    }
    for id in 0..100 {
        user.learns(id, "offline").await;
    }
    for peer in slow {
        peer.reset();
    }
    drop(user);
    relay
        .until_metric("switchboard_outcome_bytes", &[], 0)
        .await;
    relay.stop().await;
}

/// A message waits no longer than `mailbox.max_age` for a peer that reads nothing, and for one that reads a little at
/// a time and so makes each write progress.
#[tokio::test]
async fn a_message_that_waits_too_long_is_dropped_as_expired() {
    for reads in [false, true] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.mailbox.max_age = Duration::from_millis(500);
            settings.keepalive.write_timeout = Duration::from_mins(10);
            settings.keepalive.ping_interval = Duration::from_hours(1);
        })
        .await;
        let mut sender = relay.v1().await;
        let mut slow = relay.narrow_user(Dialect::V1).await;
        let sent = clog(&relay, &mut sender, slow.id, 60_000, 5).await;
        let mut outcomes = Vec::new();
        // The last one is in the socket, at least in part, and so are those before it.
        while (outcomes.len() as u64) < sent - 1 {
            if reads {
                slow.read_a_little(200).await;
            }
            let told = tokio::time::timeout(Duration::from_millis(10), sender.hear()).await;
            outcomes.extend(told.map(|frame| outcome(&frame).1));
        }
        let expired = with_status(&outcomes, "expired").len();
        assert!(expired >= 3, "{outcomes:?}");
        assert_eq!(relay.scrape().await.dropped("expired"), expired as u64);
        assert_eq!(
            relay.metric("switchboard_connections", &[]).await,
            2,
            "nobody is closed"
        );
        slow.reset();
        relay.stop().await;
    }
}

/// Uses up the room of all mailboxes with users that do not read. About as many messages of this size wait for each.
async fn use_up(relay: &Relay, bytes: usize, waiting: u64) -> Vec<Raw> {
    let mut writer = relay.bare().await;
    let first = relay.narrow_user(Dialect::Bare).await;
    // So many fill the mailbox and the socket.
    let count = clog(relay, &mut writer, first.id, bytes, waiting).await;
    let (mut slow, mut sent) = (vec![first], count);
    while relay.scrape().await.dropped("queue_full") == 0 {
        let peer = relay.narrow_user(Dialect::Bare).await;
        for _ in 0..count {
            writer.say(peer.id, &"x".repeat(bytes)).await;
        }
        sent += count;
        relay
            .until_metric("switchboard_messages_received_total", &[], sent)
            .await;
        slow.push(peer);
    }
    slow
}

/// Sends messages that begin with their number, many more than fit.
async fn numbered(sender: &mut Client, to: u64, count: u64) -> u64 {
    for n in 0..count {
        sender
            .ask(to, &format!("{n} {}", "x".repeat(60_000)), n)
            .await;
    }
    count
}

/// Reads outcomes until at most `held` of them are missing: those messages wait in the mailbox.
async fn until_settled_but(sender: &mut Client, sent: u64, held: u64) -> Vec<(u64, String)> {
    let mut outcomes = Vec::new();
    while (outcomes.len() as u64) < sent - held {
        let (id, status) = outcome(&sender.hear().await);
        outcomes.push((id.as_u64().expect("a number"), status));
    }
    outcomes
}

/// Writes 150 messages to a user that reads them only when all but `held` are settled. What it hears is what was
/// delivered, and it is told how many it missed.
async fn outcomes_for_a_slow_user(relay: &Relay, held: u64) -> Vec<String> {
    let mut sender = relay.v1().await;
    let mut slow = relay.narrow_user(Dialect::V1).await;
    let sent = numbered(&mut sender, slow.id, 150).await;
    let outcomes = until_settled_but(&mut sender, sent, held).await;
    let (texts, missed) = hear_all(&mut slow, sent).await;
    let outcomes = settle(&mut sender, sent, outcomes).await;
    assert!(missed > 0);
    let delivered = with_status(&outcomes, "delivered");
    assert_eq!(
        numbers(&texts),
        delivered,
        "delivered is what arrived, in order"
    );
    assert_eq!(with_status(&outcomes, "queue_full").len() as u64, missed);
    outcomes
}

fn numbers(texts: &[String]) -> Vec<usize> {
    let number = |text: &String| text.split_once(' ').unwrap().0.parse().unwrap();
    texts.iter().map(number).collect()
}

fn with_status(outcomes: &[String], status: &str) -> Vec<usize> {
    let found = outcomes
        .iter()
        .enumerate()
        .filter(|(_, has)| *has == status);
    found.map(|(id, _)| id).collect()
}
