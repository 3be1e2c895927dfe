//! Connections with the subprotocol `switchboard.v1`: the welcome, outcomes, errors and notices.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard::config::{Overflow, Strategy};

use crate::harness::raw::{BINARY, CONTINUATION, PING, PONG, joined, message, question};
use crate::harness::{
    Client, Dialect, Handshake, Heard, PATIENCE, Raw, Relay, Seen, Wire, clog, eventually,
};

/// The outcomes of each message id, in order.
type Outcomes = BTreeMap<String, Vec<String>>;

fn note(outcomes: &mut Outcomes, frame: &Value) {
    assert_eq!(frame["type"], "outcome", "{frame}");
    assert_eq!(frame.as_object().unwrap().len(), 3, "{frame}");
    let status = frame["status"].as_str().expect("a status").to_owned();
    outcomes
        .entry(frame["id"].to_string())
        .or_default()
        .push(status);
}

/// Receives `count` outcomes.
async fn hear_outcomes(client: &mut Client, count: u64) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for _ in 0..count {
        note(&mut outcomes, &client.hear().await);
    }
    outcomes
}

both_strategies! {
    async fn the_welcome_comes_first(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.keepalive.ping_interval = Duration::from_millis(23_456);
            settings.limits.message_bytes = 12_345;
        })
        .await;
        let mut eager = relay.raw_user(Dialect::Bare).await;
        for id in 2..30 {
            let flood: Vec<Wire> = (0..50).map(|n| message(id, &n.to_string())).collect();
            let mut peer = relay.raw().await;
            eager.write(&joined(&flood)).await;
            peer.upgrade(&Handshake::new().dialect(Dialect::V1)).await;
            assert_eq!(peer.id, id);
            let welcome = json!({
                "type": "welcome",
                "user_id": id,
                "heartbeat_ms": 23_456,
                "max_message_bytes": 12_345,
                "resumed": false,
            });
            let mut told = peer.json().await;
            let ticket = told.as_object_mut().unwrap().remove("ticket").unwrap();
            assert_eq!(ticket.as_str().unwrap().len(), 75);
            assert_eq!(told, welcome);
        }
        relay.stop().await;
    }

    async fn an_outcome_carries_the_id_of_its_message(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        let mut friend = relay.bare().await;
        let ids = [
            json!("a"),
            json!(""),
            json!("x".repeat(64)),
            json!("🎺".repeat(16)),
            json!("\"\\\n\0\u{2028}é"),
            json!(0),
            json!(1),
            json!(-1),
            json!((1_u64 << 53) - 1),
            json!(-((1_i64 << 53) - 1)),
        ];
        for id in ids {
            sender.ask(friend.id, "did you get it?", id.clone()).await;
            friend.hears(sender.id, "did you get it?").await;
            sender.learns(id, "delivered").await;
        }
        let escaped = r#"{"\u0069d":"\u0061\ud83c\udfba","recipient_id":2,"message":"m"}"#;
        sender.send_text(escaped).await;
        sender.learns("a🎺", "delivered").await;
        relay.stop().await;
    }

    async fn a_message_without_an_id_gets_no_outcome(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        for to in [1, 99] {
            sender.say(to, "no answer, please").await;
        }
        sender.ask(99, "an answer, please", "last").await;
        let frames = [sender.hear().await, sender.hear().await];
        assert!(frames.contains(&Dialect::V1.message(1, "no answer, please")), "{frames:?}");
        let offline = json!({"type": "outcome", "id": "last", "status": "offline"});
        assert!(frames.contains(&offline), "{frames:?}");
        assert_eq!(sender.leave().await, Vec::<Value>::new());
        relay.stop().await;
    }

    /// The user receives both the message and its outcome.
    async fn a_message_to_oneself_gets_an_outcome(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut user = relay.v1().await;
        user.ask(1, "note to self", 1).await;
        let frames = [user.hear().await, user.hear().await];
        assert!(frames.contains(&Dialect::V1.message(1, "note to self")), "{frames:?}");
        let delivered = json!({"type": "outcome", "id": 1, "status": "delivered"});
        assert!(frames.contains(&delivered), "{frames:?}");
        relay.stop().await;
    }

    /// The sender gets an outcome for each message with an id, and an error for each message without one.
    async fn messages_over_the_rate_are_reported_and_the_connection_stays(strategy) {
        let relay = Relay::start(strategy, |settings| settings.limits.message_rate = Some(1)).await;
        let mut sender = relay.v1().await;
        // The burst allows two messages, and the rate at most two more while the loop sends.
        for n in 0..10 {
            sender.ask(99, "x", n).await;
        }
        let mut limited = 0;
        for _ in 0..10 {
            let frame = sender.hear().await;
            match frame["status"].as_str() {
                Some("rate_limited") => limited += 1,
                status => assert_eq!(status, Some("offline"), "{frame}"),
            }
        }
        assert!((6..=8).contains(&limited), "{limited}");
        let error = eventually("a message is over the rate", async || {
            sender.say(99, "no id").await;
            sender.ask(99, "with one", "last").await;
            let mut error = None;
            loop {
                let frame = sender.hear().await;
                if frame["id"] == "last" {
                    return error;
                }
                error = Some(frame);
            }
        })
        .await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("rate_limited")));
        let scrape = relay.ledger().await;
        assert!(scrape.dropped("rate_limited") > limited);
        sender.leave().await;
        relay.stop().await;
    }

    async fn a_recipient_without_a_connection_is_offline(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        let friend = relay.bare().await;
        let gone = friend.id;
        friend.leave().await;
        for id in [gone, 77, (1 << 53) - 1] {
            sender.ask(id, "are you there?", id).await;
            sender.learns(id, "offline").await;
        }
        let scrape = relay.ledger().await;
        assert_eq!(scrape.dropped("offline"), 3);
        relay.stop().await;
    }

    async fn a_full_mailbox_is_reported_to_the_sender(strategy) {
        let relay = Relay::start(strategy, |settings| settings.mailbox.messages = 4).await;
        let mut sender = relay.v1().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        let sent = clog(&relay, &mut sender, slow.id, 60_000, 4).await;
        for n in 0..50 {
            sender.ask(slow.id, &"x".repeat(60_000), n).await;
        }
        // The full mailbox does not affect other recipients.
        let mut friend = relay.v1().await;
        sender.ask(friend.id, "hello", "hello").await;
        friend.hears(sender.id, "hello").await;
        let mut outcomes = Outcomes::new();
        let told = |outcomes: &Outcomes, status: &str| {
            outcomes.values().filter(|told| **told == [status]).count() as u64
        };
        while told(&outcomes, "queue_full") == 0 || !outcomes.contains_key("\"hello\"") {
            note(&mut outcomes, &sender.hear().await);
        }
        assert_eq!(outcomes["\"hello\""], ["delivered"]);
        let slow = tokio::spawn(slow.drained());
        while (outcomes.len() as u64) < sent + 51 {
            note(&mut outcomes, &sender.hear().await);
        }
        let (full, delivered) = (told(&outcomes, "queue_full"), told(&outcomes, "delivered"));
        assert_eq!(full + delivered, sent + 51, "{outcomes:?}");
        let scrape = relay.ledger().await;
        assert_eq!(scrape.dropped("queue_full"), full);
        assert_eq!(scrape.ledger().delivered, delivered);
        relay.stop().await;
        assert_eq!(slow.await.unwrap(), Seen::End);
    }

    /// Messages that the recipient has not received before it leaves are `disconnected`; later ones are `offline`.
    async fn a_recipient_that_leaves_is_reported_to_the_sender(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        let slow = relay.narrow_user(Dialect::V1).await;
        let id = slow.id;
        let sent = clog(&relay, &mut sender, id, 60_000, 5).await;
        slow.reset();
        let outcomes = hear_outcomes(&mut sender, sent).await;
        assert_eq!(outcomes.len() as u64, sent, "not one outcome for each id: {outcomes:?}");
        let count = |status| outcomes.values().filter(|told| **told == [status]).count() as u64;
        let (delivered, disconnected) = (count("delivered"), count("disconnected"));
        assert_eq!(delivered + disconnected, sent, "{outcomes:?}");
        assert!(disconnected >= 5, "{outcomes:?}");
        sender.ask(id, "still there?", "late").await;
        sender.learns("late", "offline").await;
        let scrape = relay.ledger().await;
        assert_eq!(scrape.dropped("disconnected"), disconnected);
        relay.stop().await;
    }

    /// The connection stays open up to `limits.frame_bytes`, and closes above it.
    async fn a_message_above_the_limit_is_reported_to_the_sender(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.limits.message_bytes = 256;
            settings.limits.frame_bytes = 512;
        })
        .await;
        let mut sender = relay.v1().await;
        let sized = |id: Option<&str>, bytes: usize| {
            let mut frame = json!({"recipient_id": 1, "message": ""});
            if let Some(id) = id {
                frame["id"] = json!(id);
            }
            let missing = bytes - frame.to_string().len();
            frame["message"] = json!("x".repeat(missing));
            frame.to_string()
        };
        for bytes in [257, 400, 512] {
            sender.send_text(&sized(Some("big"), bytes)).await;
            sender.learns("big", "too_large").await;
            sender.send_binary(sized(Some("big"), bytes).as_bytes()).await;
            sender.learns("big", "too_large").await;
            sender.send_text(&sized(None, bytes)).await;
            sender.errs("too_large").await;
        }
        sender.send_text(&sized(None, 256)).await;
        assert_eq!(sender.hear().await["type"], "message");
        let scrape = relay.ledger().await;
        assert_eq!(scrape.dropped("too_large"), 9);
        assert_eq!(scrape.ledger().received, 10);

        let mut peer = relay.raw_user(Dialect::V1).await;
        let text = sized(Some("parts"), 512);
        let (head, tail) = text.split_at(250);
        peer.write(&joined(&[Wire::text(head).more(), Wire::new(CONTINUATION, tail)])).await;
        let outcome = json!({"type": "outcome", "id": "parts", "status": "too_large"});
        assert_eq!(peer.json().await, outcome);
        sender.send_text(&sized(Some("bigger"), 513)).await;
        sender.closed_with(1009).await;
        relay.stop().await;
    }

    /// The notice arrives as soon as the recipient reads again.
    async fn dropped_messages_are_reported_to_the_recipient(strategy) {
        for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
            let relay = Relay::start(strategy, |settings| {
                settings.mailbox.messages = 6;
                settings.mailbox.overflow = overflow;
            })
            .await;
            let mut sender = relay.v1().await;
            let mut slow = relay.narrow_user(Dialect::V1).await;
            let clogged = clog(&relay, &mut sender, slow.id, 60_000, 6).await;
            let sent = clogged + 30;
            for n in clogged..sent {
                sender.ask(slow.id, &"x".repeat(60_000), format!("clog-{n}")).await;
            }
            relay.until_metric("switchboard_messages_received_total", &[], sent).await;
            let (mut messages, mut missed) = (0, 0);
            while messages + missed < sent {
                let frame = slow.json().await;
                match frame["type"].as_str() {
                    Some("message") => messages += 1,
                    Some("dropped") => missed += frame["count"].as_u64().expect("a count"),
                    _ => panic!("{frame}"),
                }
            }
            assert_eq!(messages + missed, sent);
            assert!(missed > 0, "{overflow:?}");
            let outcomes = hear_outcomes(&mut sender, sent).await;
            let full = outcomes.values().filter(|told| **told == ["queue_full"]).count();
            assert_eq!(full as u64, missed, "{overflow:?}");
            assert_eq!(outcomes.len() as u64, sent, "{overflow:?}");
            relay.stop().await;
        }
    }

    /// A user with a full mailbox still receives the outcomes of its own messages.
    async fn outcomes_arrive_despite_a_full_mailbox(strategy) {
        let relay = Relay::start(strategy, |settings| settings.mailbox.messages = 4).await;
        let mut flooder = relay.v1().await;
        let mut slow = relay.narrow_user(Dialect::V1).await;
        let mut friend = relay.bare().await;
        let sent = clog(&relay, &mut flooder, slow.id, 60_000, 4).await;
        for n in 0..10 {
            flooder.ask(slow.id, &"x".repeat(60_000), n).await;
        }
        let told = loop {
            let frame = flooder.hear().await;
            if frame["status"] == "queue_full" {
                break frame;
            }
        };
        assert_eq!(told["type"], "outcome");
        let questions = [
            question(friend.id, "hello", "friend"),
            question(slow.id, "note to self", "self"),
            question(99, "hello", "offline"),
            Wire::text("nonsense"),
        ];
        slow.write(&joined(&questions)).await;
        friend.hears(slow.id, "hello").await;
        let mut seen = BTreeMap::new();
        while seen.len() < 4 {
            let frame = slow.json().await;
            match frame["type"].as_str() {
                Some("outcome") => {
                    let id = frame["id"].as_str().unwrap().to_owned();
                    let before = seen.insert(id, frame["status"].as_str().unwrap().to_owned());
                    assert_eq!(before, None, "{frame}");
                }
                Some("error") => {
                    seen.insert("error".to_owned(), frame["code"].as_str().unwrap().to_owned());
                }
                Some("message" | "dropped") => {}
                _ => panic!("{frame}"),
            }
        }
        assert_eq!(seen["friend"], "delivered");
        assert_eq!(seen["offline"], "offline");
        assert!(["queue_full", "delivered"].contains(&seen["self"].as_str()), "{seen:?}");
        assert_eq!(seen["error"], "not_json");
        assert!(sent > 0);
        relay.stop().await;
    }

    /// The messages are pipelined, to connected and to offline recipients.
    async fn every_id_gets_exactly_one_outcome(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.raw_user(Dialect::V1).await;
        let mut friend = relay.bare().await;
        let recipients = [friend.id, 99, friend.id, 1000];
        let questions: Vec<Wire> = (0..4000_usize)
            .map(|n| question(recipients[n % 4], "how is it?", n))
            .collect();
        let listen = tokio::spawn(async move {
            let mut heard = 0;
            while let Heard::Frame(_) = friend.next().await {
                heard += 1;
            }
            heard
        });
        let mut outcomes = Outcomes::new();
        for part in questions.chunks(500) {
            sender.write(&joined(part)).await;
            for _ in 0..400 {
                note(&mut outcomes, &sender.json().await);
            }
        }
        while outcomes.values().map(Vec::len).sum::<usize>() < 4000 {
            note(&mut outcomes, &sender.json().await);
        }
        sender.write(&Wire::close(1000, "").bytes()).await;
        assert_eq!(sender.answered().await.0, Vec::<Value>::new(), "an outcome came twice");
        assert!(outcomes.values().all(|told| told.len() == 1), "not one outcome for each id");
        let scrape = relay.ledger().await;
        let delivered = outcomes.values().filter(|told| **told == ["delivered"]).count() as u64;
        assert_eq!(scrape.ledger().delivered, delivered);
        relay.stop().await;
        assert_eq!(listen.await.unwrap(), delivered, "delivered messages, and messages that the recipient read");
    }

    /// The relay stops reading from a client that does not read its outcomes.
    async fn a_sender_that_does_not_read_outcomes_slows_only_itself(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.limits.outcomes_pending = 16;
            settings.keepalive.ping_interval = Duration::from_millis(500);
            settings.keepalive.pong_timeout = Duration::from_secs(2);
            settings.keepalive.write_timeout = PATIENCE * 2;
        })
        .await;
        let mut silent = relay.narrow_user(Dialect::V1).await;
        let mut one = relay.v1().await;
        let mut two = relay.bare().await;
        let (asked, rest) = ask_until_blocked(&mut silent, &mut one, &mut two).await;
        let offline = relay.scrape().await.dropped("offline");
        assert!(offline < asked, "the relay read {offline} of {asked} messages");

        // Its pong deadline is paused, because the relay does not read: it stays while another client is pinged
        // many times.
        let mut pinged = relay.raw_user(Dialect::Bare).await;
        for _ in 0..8 {
            let ping = pinged.frame().await;
            assert_eq!(ping.opcode, PING);
            pinged.write(&Wire::new(PONG, ping.payload).bytes()).await;
            talk(&mut one, &mut two).await;
        }
        assert_eq!(relay.metric("switchboard_connections", &[]).await, 4);

        // Once it reads, it gets all its outcomes.
        let mut outcomes = Outcomes::new();
        read_outcomes(&mut silent, rest, asked, &mut outcomes).await;
        assert!(outcomes.values().all(|told| **told == ["offline"]), "not one outcome for each id");
        relay.stop().await;
    }

    async fn bad_input_whose_id_can_be_read_has_one_outcome_and_its_id_on_the_error(strategy) {
        let relay = Relay::start(strategy, |settings| settings.limits.bad_messages = 1000).await;
        let mut user = relay.v1().await;
        for (text, code, id) in BAD_WITH_ID {
            let id: Value = serde_json::from_str(id).unwrap();
            for is_binary in [false, true] {
                if is_binary {
                    user.send_binary(text.as_bytes()).await;
                } else {
                    user.send_text(text).await;
                }
                let error = user.hear().await;
                assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{text}: {error}");
                assert_eq!((&error["id"], error.as_object().unwrap().len()), (&id, 4), "{text}: {error}");
                user.learns(id.clone(), "invalid").await;
            }
        }
        // An id that cannot be read, or that could be either of two.
        for text in [r#"{"id":{}}"#, r#"{"id":1.5}"#, r#"{"id":1,"id":2}"#, r#"{"id":1"#] {
            user.send_text(text).await;
            let error = user.hear().await;
            assert_eq!((&error["type"], &error["id"]), (&json!("error"), &Value::Null), "{text}: {error}");
        }
        user.ask(1, "still here", "last").await;
        user.hears(1, "still here").await;
        user.learns("last", "delivered").await;
        assert_eq!(relay.ledger().await.ledger().received, 1, "bad input is outside of the ledger");
        relay.stop().await;
    }

    /// Too large, or over the rate, and bad as well: the ledger counts these, and one outcome says so.
    async fn bad_input_over_a_limit_has_the_outcome_of_the_limit(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.limits.message_bytes = 1024;
            settings.limits.frame_bytes = 8192;
        })
        .await;
        let mut user = relay.v1().await;
        let text = format!(r#"{{"recipient_id":0,"message":"{}","id":5}}"#, "x".repeat(2000));
        user.send_text(&text).await;
        user.learns(5, "too_large").await;
        let scrape = relay.ledger().await;
        assert_eq!((scrape.ledger().received, scrape.dropped("too_large")), (1, 1));
        relay.stop().await;

        let relay = Relay::start(strategy, |settings| settings.limits.message_rate = Some(1)).await;
        let mut user = relay.v1().await;
        for _ in 0..4 {
            user.send_text(r#"{"recipient_id":0,"message":"x","id":6}"#).await;
        }
        let mut statuses = Vec::new();
        while statuses.len() < 4 {
            let frame = user.hear().await;
            assert_eq!(frame["id"], 6, "{frame}");
            statuses.extend(frame["status"].as_str().map(str::to_owned));
        }
        statuses.sort();
        assert_eq!(statuses, ["invalid", "invalid", "rate_limited", "rate_limited"]);
        relay.stop().await;
    }

    /// As `… | websocat` does: all that it has to say, its close frame, and the end of its side, in one write.
    async fn a_program_that_ends_at_once_gets_its_outcomes_before_the_close(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.keepalive.close_timeout = PATIENCE * 2;
        })
        .await;
        let mut friend = relay.bare().await;
        for round in 0..20 {
            let mut peer = relay.raw_user(Dialect::V1).await;
            let mut frames: Vec<Wire> = (0..60)
                .map(|n| question([friend.id, peer.id, 1 << 40][n % 3], "last words", n))
                .collect();
            frames.push(Wire::text(r#"{"recipient_id":0,"message":"x","id":60}"#));
            frames.push(Wire::close(1000, ""));
            peer.write(&joined(&frames)).await;
            peer.half_close().await;
            let (heard, code, _) = peer.answered().await;
            assert_eq!(code, 1000);
            let mut outcomes: Vec<_> = heard
                .iter()
                .filter(|frame| frame["type"] == "outcome")
                .map(|frame| (frame["id"].as_u64().unwrap(), frame["status"].as_str().unwrap()))
                .collect();
            outcomes.sort_unstable();
            let expected: Vec<_> = (0..60)
                .map(|n| (n, if n % 3 == 2 { "offline" } else { "delivered" }))
                .chain([(60, "invalid")])
                .collect();
            assert_eq!(outcomes, expected, "round {round}");
            for _ in 0..20 {
                friend.hears(peer.id, "last words").await;
            }
        }
        relay.until_closed("client", "1000", 20).await;
        relay.stop().await;
    }
}

/// Sends a message from `one` to `two`, and waits for it and its outcome.
async fn talk(one: &mut Client, two: &mut Client) {
    one.ask(two.id, "and how are you?", 0).await;
    two.hears(one.id, "and how are you?").await;
    one.learns(0, "delivered").await;
}

/// Sends messages until the socket accepts no more bytes, even while two other users exchange messages in between.
/// Returns the number of messages, and the bytes of them that are not written.
async fn ask_until_blocked(sender: &mut Raw, one: &mut Client, two: &mut Client) -> (u64, Vec<u8>) {
    let mut asked: u64 = 0;
    let mut blocked = 0;
    let mut rest = Vec::new();
    while blocked < 3 {
        assert!(asked < 300_000, "the relay still reads");
        if rest.is_empty() {
            let batch = (asked..asked + 100).map(|n| question(99, "are you there?", n));
            rest = joined(&batch.collect::<Vec<_>>());
            asked += 100;
        }
        match sender.stream.try_write(&rest) {
            Ok(written) => {
                rest.drain(..written);
                blocked = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                for _ in 0..20 {
                    talk(one, two).await;
                }
                blocked += 1;
            }
        }
    }
    (asked, rest)
}

/// Writes `rest`, reads `count` outcomes, and answers pings.
async fn read_outcomes(peer: &mut Raw, rest: Vec<u8>, count: u64, outcomes: &mut Outcomes) {
    let mut unwritten = &rest[..];
    while (outcomes.len() as u64) < count {
        if let Ok(written) = peer.stream.try_write(unwritten) {
            unwritten = &unwritten[written..];
        }
        let frame = peer.frame().await;
        match frame.opcode {
            PING if unwritten.is_empty() => {
                peer.write(&Wire::new(PONG, frame.payload).bytes()).await;
            }
            PING => {}
            _ => note(outcomes, &frame.json()),
        }
    }
    assert!(unwritten.is_empty());
}

/// Bad input, the code of its error, and the field that the detail names.
const BAD_INPUT: [(&str, &str, &str); 25] = [
    ("nonsense", "not_json", ""),
    ("", "not_json", ""),
    (r#"{"recipient_id":1,"message":"m""#, "not_json", ""),
    (r#"{"recipient_id":1,"message":"m"}}"#, "not_json", ""),
    (r#"{"message":"m"}"#, "missing_field", "recipient_id"),
    (r#"{"recipient_id":1}"#, "missing_field", "message"),
    (
        r#"{"recipient_id":1,"message":"m","recipient_id":1}"#,
        "duplicate_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","message":"m"}"#,
        "duplicate_field",
        "message",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":1,"id":1}"#,
        "duplicate_field",
        "id",
    ),
    (
        r#"{"recipient_id":0,"message":"m"}"#,
        "invalid_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":-3,"message":"m"}"#,
        "invalid_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":1.5,"message":"m"}"#,
        "invalid_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":9007199254740992,"message":"m"}"#,
        "invalid_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":"1","message":"m"}"#,
        "invalid_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":null,"message":"m"}"#,
        "invalid_field",
        "recipient_id",
    ),
    (
        r#"{"recipient_id":1,"message":7}"#,
        "invalid_field",
        "message",
    ),
    (
        r#"{"recipient_id":1,"message":null}"#,
        "invalid_field",
        "message",
    ),
    (
        r#"{"recipient_id":1,"message":"\ud83c"}"#,
        "invalid_field",
        "message",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":1.5}"#,
        "invalid_field",
        "id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":true}"#,
        "invalid_field",
        "id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":[1]}"#,
        "invalid_field",
        "id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":{}}"#,
        "invalid_field",
        "id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":"\ud83c"}"#,
        "invalid_field",
        "id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":9007199254740992}"#,
        "invalid_field",
        "id",
    ),
    (
        r#"{"recipient_id":1,"message":"m","id":-9007199254740992}"#,
        "invalid_field",
        "id",
    ),
];

#[tokio::test]
async fn an_error_has_a_code_and_names_the_field() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.bad_messages = 1000;
    })
    .await;
    let mut user = relay.v1().await;
    for (text, code, field) in BAD_INPUT {
        user.send_text(text).await;
        let detail = user.errs(code).await;
        assert!(
            !detail.is_empty() && detail.contains(field),
            "{text}: {detail}"
        );
        user.send_binary(text.as_bytes()).await;
        user.errs(code).await;
    }
    for id in ["x".repeat(65), "🎺".repeat(17)] {
        user.ask(1, "m", id).await;
        let detail = user.errs("invalid_field").await;
        assert!(detail.contains("id"), "{detail}");
    }
    user.say(1, "still here").await;
    user.hears(1, "still here").await;
    let scrape = relay.ledger().await;
    assert_eq!(
        scrape.ledger().received,
        1,
        "bad input does not count as received"
    );
    relay.stop().await;
}

/// A message that the relay cannot take, and the id by which its sender waits for the outcome.
const BAD_WITH_ID: &[(&str, &str, &str)] = &[
    (
        r#"{"recipient_id":0,"message":"x","id":7}"#,
        "invalid_field",
        "7",
    ),
    (
        r#"{"recipient_id":"2","message":"x","id":"a"}"#,
        "invalid_field",
        r#""a""#,
    ),
    (
        r#"{"recipient_id":2.5,"message":"x","id":-1}"#,
        "invalid_field",
        "-1",
    ),
    (
        r#"{"id":8,"recipient_id":9007199254740992,"message":"x"}"#,
        "invalid_field",
        "8",
    ),
    (
        r#"{"recipient_id":null,"message":"x","id":0}"#,
        "invalid_field",
        "0",
    ),
    (r#"{"recipient_id":2,"id":9}"#, "missing_field", "9"),
    (r#"{"message":"x","id":10}"#, "missing_field", "10"),
    (r#"{"id":11}"#, "missing_field", "11"),
    (
        r#"{"id":"\u0061\ud83c\udfba","unknown":[{}]}"#,
        "missing_field",
        r#""a🎺""#,
    ),
    (
        r#"{"recipient_id":2,"message":7,"id":12}"#,
        "invalid_field",
        "12",
    ),
    (
        r#"{"recipient_id":2,"message":"\ud83c","id":13}"#,
        "invalid_field",
        "13",
    ),
    (
        r#"{"recipient_id":2,"recipient_id":2,"message":"x","id":14}"#,
        "duplicate_field",
        "14",
    ),
    (
        r#"{"recipient_id":2,"message":"x","message":"x","id":15}"#,
        "duplicate_field",
        "15",
    ),
    (
        r#" { "id" : "" , "recipient_id" : [ ] , "message" : { } } "#,
        "invalid_field",
        r#""""#,
    ),
];

#[tokio::test]
async fn a_ping_gets_a_pong_and_is_no_message() {
    let relay = Relay::plain().await;
    let mut user = relay.v1().await;
    for (ping, pong) in [
        (r#"{"type":"ping"}"#, r#"{"type":"pong"}"#),
        (
            r#" { "id" : "a" , "type" : "ping" } "#,
            r#"{"type":"pong","id":"a"}"#,
        ),
        (
            r#"{"type":"ping","id":-7,"more":[]}"#,
            r#"{"type":"pong","id":-7}"#,
        ),
    ] {
        user.send_text(ping).await;
        let pong: Value = serde_json::from_str(pong).unwrap();
        assert_eq!(user.hear().await, pong, "{ping}");
    }
    // A message may have other fields, `type` among them.
    user.send_text(r#"{"type":"ping","recipient_id":1,"message":"hi"}"#)
        .await;
    user.hears(1, "hi").await;
    for other in [r#"{"type":"pong"}"#, r#"{"type":["ping"]}"#] {
        user.send_text(other).await;
        user.errs("missing_field").await;
    }
    let ledger = relay.ledger().await.ledger();
    assert_eq!((ledger.received, ledger.delivered), (1, 1));
    // The bare contract has no pings.
    let mut bare = relay.bare().await;
    bare.send_text(r#"{"type":"ping"}"#).await;
    bare.closed_with(1007).await;
    relay.stop().await;
}

#[tokio::test]
async fn pings_over_the_rate_get_no_pong() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.message_rate = Some(1);
    })
    .await;
    let mut user = relay.v1().await;
    let mut limited = 0;
    for _ in 0..10 {
        user.send_text(r#"{"type":"ping","id":1}"#).await;
        let frame = user.hear().await;
        if frame["type"] == "error" {
            assert_eq!(frame["code"], "rate_limited", "{frame}");
            limited += 1;
        }
    }
    assert!((6..=8).contains(&limited), "{limited}");
    assert_eq!(relay.ledger().await.ledger().received, 0);
    relay.stop().await;
}

#[tokio::test]
async fn json_other_than_an_object_is_an_error() {
    let relay = Relay::plain().await;
    let mut user = relay.v1().await;
    for text in ["[]", r#"[1,"m"]"#, "null", "7", r#""m""#] {
        user.send_text(text).await;
        let frame = user.hear().await;
        assert_eq!(frame["type"], "error", "{text}: {frame}");
    }
    user.send_text("{}").await;
    user.errs("missing_field").await;
    relay.stop().await;
}

/// RFC 6455 section 8.1 requires UTF-8 only in text frames.
#[tokio::test]
async fn a_binary_frame_that_is_not_utf8_is_an_error_and_the_connection_stays() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw_user(Dialect::V1).await;
    peer.write(&Wire::new(BINARY, b"{\"recipient_id\":1,\"message\":\"\xFF\"}").bytes())
        .await;
    let frame = peer.json().await;
    assert_eq!(frame["type"], "error", "{frame}");
    assert_eq!(frame["code"], "not_json", "{frame}");
    peer.say(1, "still here").await;
    assert_eq!(peer.json().await, Dialect::V1.message(1, "still here"));
    relay.stop().await;
}

#[tokio::test]
async fn the_last_of_too_many_bad_messages_closes_with_1008() {
    let relay = Relay::plain().await;
    let mut user = relay.v1().await;
    for _ in 0..15 {
        user.send_text("nonsense").await;
        user.errs("not_json").await;
    }
    user.say(1, "sorry").await;
    user.hears(1, "sorry").await;
    user.send_text("nonsense").await;
    user.errs("not_json").await;
    user.closed_with(1008).await;
    relay.until_closed("server", "1008", 1).await;
    relay.stop().await;
}

#[tokio::test]
async fn bad_messages_in_one_read_chunk_are_answered_before_the_1008() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.bad_messages = 3;
    })
    .await;
    let mut peer = relay.raw_user(Dialect::V1).await;
    let mut frames = vec![question(1, "good", "good")];
    frames.extend(vec![Wire::text("nonsense"); 50]);
    frames.push(question(1, "too late", "too late"));
    peer.write(&joined(&frames)).await;
    let (heard, code, _) = peer.rest().await;
    assert_eq!(code, 1008);
    let of_type = |kind: &str| heard.iter().filter(|frame| frame["type"] == kind).count();
    assert_eq!(of_type("error"), 3, "{heard:?}");
    assert_eq!(of_type("message"), 1, "{heard:?}");
    assert_eq!(of_type("outcome"), 1, "{heard:?}");
    assert_eq!(heard.len(), 5, "{heard:?}");
    relay.stop().await;
}

/// An outcome that becomes known after the close frame is not sent: no frame may follow a close frame.
#[tokio::test]
async fn no_outcome_follows_a_close() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.bad_messages = 1;
        settings.keepalive.close_timeout = PATIENCE * 2;
    })
    .await;
    let mut flooder = relay.bare().await;
    let mut slow = relay.narrow_user(Dialect::Bare).await;
    let mut peer = relay.raw_user(Dialect::V1).await;
    clog(&relay, &mut flooder, slow.id, 60_000, 5).await;
    let frames = [question(slow.id, "late", "late"), Wire::text("nonsense")];
    peer.write(&joined(&frames)).await;
    assert_eq!(peer.json().await["type"], "error");
    assert_eq!(peer.close().await.0, 1008);
    while slow.json().await["message"] != "late" {}
    relay
        .until_metric("switchboard_mailbox_messages", &[], 0)
        .await;
    peer.write(&Wire::close(1008, "").bytes()).await;
    assert_eq!(peer.next().await, Seen::End);
    slow.write(&Wire::close(1000, "").bytes()).await;
    slow.answered().await;
    flooder.leave().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_user_that_leaves_gets_each_outcome_at_most_once() {
    let relay = Relay::plain().await;
    let friend = relay.bare().await;
    for _ in 0..20 {
        let mut user = relay.v1().await;
        for n in 0..10 {
            user.ask(friend.id, "bye", n).await;
        }
        let mut outcomes = Outcomes::new();
        for frame in user.leave().await {
            note(&mut outcomes, &frame);
        }
        assert!(
            outcomes.values().all(|told| told.len() == 1),
            "{outcomes:?}"
        );
    }
    eventually("only one user is connected", async || {
        (relay.metric("switchboard_connections", &[]).await == 1).then_some(())
    })
    .await;
    relay.stop().await;
}
