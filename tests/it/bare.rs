//! Connections without a subprotocol: `{"recipient_id":2,"message":"Go Braves!"}` from the sender,
//! `{"sender_id":1,"message":"Go Braves!"}` to the recipient, and no other data frame.

use serde_json::{Value, json};
use switchboard::config::Strategy;

use crate::harness::raw::{BINARY, CONTINUATION, TEXT, joined, message};
use crate::harness::{Dialect, Heard, Relay, Wire, clog};

both_strategies! {
    async fn text_and_binary_frames_arrive_as_text(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut one = relay.bare().await;
        let mut two = relay.raw_user(Dialect::Bare).await;
        one.send_text(r#"{"recipient_id":2,"message":"Go Braves!"}"#).await;
        let frame = two.frame().await;
        assert_eq!(frame.opcode, TEXT);
        assert_eq!(frame.json(), json!({"sender_id": 1, "message": "Go Braves!"}));
        one.send_binary(br#"{"recipient_id":2,"message":"Go Braves!"}"#).await;
        assert_eq!(two.frame().await, frame);
        two.say(1, "Go!").await;
        one.hears(2, "Go!").await;
        relay.stop().await;
    }

    async fn a_message_to_oneself_arrives(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        for dialect in Dialect::BOTH {
            let mut user = relay.connect(dialect).await;
            user.say(user.id, "note to self").await;
            user.hears(user.id, "note to self").await;
        }
        relay.stop().await;
    }

    async fn messages_cross_between_the_dialects(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut bare = relay.bare().await;
        let mut v1 = relay.v1().await;
        bare.say(v1.id, "hello").await;
        v1.hears(bare.id, "hello").await;
        v1.say(bare.id, "hello yourself").await;
        bare.hears(v1.id, "hello yourself").await;
        relay.stop().await;
    }

    /// A bare sender gets no notice about it.
    async fn a_message_to_an_offline_user_is_dropped_and_counted(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut user = relay.bare().await;
        let friend = relay.bare().await;
        let gone = friend.id;
        friend.leave().await;
        let ids = [gone, 3, 4_000_000, (1 << 53) - 1];
        for id in ids {
            user.say(id, "hello?").await;
        }
        user.say(user.id, "note to self").await;
        user.hears(user.id, "note to self").await;
        let scrape = relay.ledger().await;
        assert_eq!(scrape.dropped("offline"), 4);
        assert_eq!(scrape.ledger().received, 5);
        relay.stop().await;
    }

    /// A bare sender gets no notice about messages over its rate.
    async fn messages_over_the_rate_are_dropped_and_the_connection_stays(strategy) {
        let relay = Relay::start(strategy, |settings| settings.limits.message_rate = Some(1)).await;
        let mut sender = relay.bare().await;
        let mut friend = relay.bare().await;
        for _ in 0..10 {
            sender.say(friend.id, "x").await;
        }
        let limited = [("reason", "rate_limited")];
        relay.until_metric("switchboard_messages_received_total", &[], 10).await;
        let dropped = relay.metric("switchboard_messages_dropped_total", &limited).await;
        assert!((6..=8).contains(&dropped), "{dropped}");
        for _ in dropped..10 {
            friend.hears(sender.id, "x").await;
        }
        assert_eq!(sender.leave().await, Vec::<Value>::new());
        relay.stop().await;
    }

    async fn an_id_is_never_given_to_another_user(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut last = 0;
        for _ in 0..50 {
            let user = relay.bare().await;
            assert!(user.id > last, "{} after {last}", user.id);
            last = user.id;
            user.leave().await;
        }
        assert_eq!(last, 50, "ids are a sequence from 1");
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().connections, 0);
        relay.stop().await;
    }

    /// The user sends invalid input while messages to it are queued.
    async fn queued_messages_are_written_before_a_1007(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.v1().await;
        let mut slow = relay.narrow_user(Dialect::Bare).await;
        let sent = clog(&relay, &mut sender, slow.id, 60_000, 5).await;
        slow.write(&Wire::text("nonsense").bytes()).await;
        let (frames, code, _) = slow.rest().await;
        assert_eq!(code, 1007);
        assert_eq!(u64::try_from(frames.len()).unwrap(), sent);
        for n in 0..sent {
            sender.learns(format!("clog-{n}"), "delivered").await;
        }
        relay.stop().await;
    }

    async fn messages_to_oneself_are_written_before_the_1007(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut user = relay.raw_user(Dialect::Bare).await;
        let mut frames: Vec<Wire> = (0..100).map(|n| message(1, &n.to_string())).collect();
        frames.push(Wire::text("nonsense"));
        user.write(&joined(&frames)).await;
        let (heard, code, _) = user.rest().await;
        let expected: Vec<Value> = (0..100).map(|n| Dialect::Bare.message(1, &n.to_string())).collect();
        match strategy {
            Strategy::Directory => assert_eq!(heard, expected),
            // Messages that the router still has find that the client no longer accepts messages.
            Strategy::Router => assert!(expected.starts_with(&heard), "{heard:?}"),
        }
        assert_eq!(code, 1007);
        relay.stop().await;
    }

    async fn a_message_of_exactly_the_limit_passes_and_one_byte_more_closes_with_1009(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.limits.message_bytes = 256;
            settings.limits.frame_bytes = 512;
        })
        .await;
        let mut friend = relay.bare().await;
        let sized = |bytes: usize| {
            let mut text = json!({"recipient_id": 1, "message": "size"}).to_string();
            text.push_str(&" ".repeat(bytes - text.len()));
            text.into_bytes()
        };
        let fragmented = |bytes: usize| {
            let payload = sized(bytes);
            let (head, tail) = payload.split_at(100);
            vec![Wire::text(head).more(), Wire::new(CONTINUATION, tail)]
        };
        let cases = [
            |payload: Vec<u8>| vec![Wire::text(payload)],
            |payload: Vec<u8>| vec![Wire::new(BINARY, payload)],
        ];
        for case in cases {
            let mut peer = relay.raw_user(Dialect::Bare).await;
            peer.write(&joined(&case(sized(256)))).await;
            friend.hears(peer.id, "size").await;
            peer.write(&joined(&case(sized(257)))).await;
            assert_eq!(peer.rest().await.1, 1009);
        }
        let mut peer = relay.raw_user(Dialect::Bare).await;
        peer.write(&joined(&fragmented(256))).await;
        friend.hears(peer.id, "size").await;
        peer.write(&joined(&fragmented(257))).await;
        assert_eq!(peer.rest().await.1, 1009);

        let scrape = relay.ledger().await;
        assert_eq!(scrape.dropped("too_large"), 3, "a message above the limit counts as received and dropped");
        assert_eq!(scrape.ledger().received, 6);
        assert_eq!(scrape.ledger().delivered, 3);
        relay.stop().await;
    }
}

/// Above `limits.frame_bytes` the relay closes as soon as it has the header; it does not wait for the payload.
#[tokio::test]
async fn a_frame_above_the_frame_limit_closes_with_1009_on_its_header() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.limits.message_bytes = 256;
        settings.limits.frame_bytes = 512;
    })
    .await;
    let (begun, more) = ([b' '; 300], [b' '; 213]);
    let cases = [
        vec![Wire::text("").claiming((1 << 63) - 1)],
        vec![Wire::text("").claiming(65536)],
        vec![Wire::text(begun).more(), Wire::new(CONTINUATION, more)],
    ];
    for dialect in Dialect::BOTH {
        for case in &cases {
            let mut peer = relay.raw_user(dialect).await;
            peer.write(&joined(case)).await;
            assert_eq!(peer.rest().await.1, 1009, "{dialect:?} {case:?}");
        }
        let mut peer = relay.raw_user(dialect).await;
        let header = &Wire::text([b' '; 513]).bytes()[..8];
        peer.write(header).await;
        assert_eq!(peer.rest().await.1, 1009, "{dialect:?}");
    }
    let scrape = relay.ledger().await;
    let received = scrape.ledger().received;
    assert_eq!(
        received, 8,
        "a message above the limit counts as received and dropped"
    );
    assert_eq!(scrape.dropped("too_large"), 8);
    relay.stop().await;
}

/// Unknown fields are accepted; `recipient_id` and `message` may occur only once.
#[tokio::test]
async fn every_form_of_valid_json_is_accepted() {
    let relay = Relay::plain().await;
    let mut user = relay.bare().await;
    let nested = format!(
        r#"{{"recipient_id":1,"message":"fine","deep":{}{}}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    let good = [
        r#"{"message":"fine","recipient_id":1}"#,
        " \t\r\n{ \"recipient_id\" :\t1 ,\r\n\"message\" : \"fine\" } \n",
        r#"{"recipient_id":1,"message":"fine","extra":null}"#,
        r#"{"extra":{"recipient_id":"no","message":[7]},"recipient_id":1,"message":"fine"}"#,
        r#"{"a":1,"a":2,"a":{"a":3},"recipient_id":1,"message":"fine"}"#,
        r#"{"recipient_id":1,"message":"fine","id":7}"#,
        r#"{"recipient_id":1,"message":"fine","id":{"any":["thing"]}}"#,
        r#"{"recipient_id":1,"message":"fine","type":"message"}"#,
        r#"{"recipient_id":1,"message":"fine","":"","Recipient_ID":2,"MESSAGE":3}"#,
        r#"{"recipient_id":1,"message":"fine","n":-0.5e-7,"t":true,"f":false}"#,
        r#"{"recipient\u005fid":1,"\u006dessage":"fine"}"#,
        r#"{"recipient_id":1,"message":"\u0066\u0069\u006e\u0065"}"#,
        &nested,
    ];
    for text in good {
        user.send_text(text).await;
        assert_eq!(
            user.hear().await,
            json!({"sender_id": 1, "message": "fine"}),
            "{text}"
        );
    }
    relay.stop().await;
}

/// Sends one invalid message. The relay closes with 1007, and the reason contains one of `words`.
async fn check_bad(relay: &Relay, text: impl AsRef<[u8]>, words: &[&str]) {
    let text = text.as_ref();
    let shown = String::from_utf8_lossy(&text[..text.len().min(100)]).into_owned();
    for opcode in [TEXT, BINARY] {
        let mut peer = relay.raw_user(Dialect::Bare).await;
        peer.write(&Wire::new(opcode, text).bytes()).await;
        let (frames, code, reason) = peer.rest().await;
        assert_eq!((frames, code), (vec![], 1007), "{shown}");
        assert!(reason.len() <= 123, "{shown}: {reason}");
        assert!(
            words.iter().any(|word| reason.contains(word)),
            "{shown}: {reason}"
        );
    }
}

/// Checks that no bad input counts as received.
async fn stop_with_nothing_received(relay: Relay) {
    let scrape = relay.ledger().await;
    assert_eq!(
        scrape.ledger().received,
        0,
        "bad input does not count as received"
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_bad_recipient_is_named_in_the_reason() {
    let relay = Relay::plain().await;
    let bad = [
        r#"{"message":"m"}"#,
        r#"{"message":"m","recipient-id":1,"recipient_Id":1}"#,
        r#"{"recipient_id":1,"message":"m","recipient_id":1}"#,
        r#"{"recipient_id":1,"recipient_id":2,"message":"m"}"#,
        r#"{"recipient_id":1,"recipient\u005fid":2,"message":"m"}"#,
        r#"{"recipient_id":0,"message":"m"}"#,
        r#"{"recipient_id":-1,"message":"m"}"#,
        r#"{"recipient_id":1.5,"message":"m"}"#,
        r#"{"recipient_id":9007199254740992,"message":"m"}"#,
        r#"{"recipient_id":18446744073709551616,"message":"m"}"#,
        r#"{"recipient_id":18446744073709551617,"message":"m"}"#,
        r#"{"recipient_id":1e400,"message":"m"}"#,
        r#"{"recipient_id":"1","message":"m"}"#,
        r#"{"recipient_id":null,"message":"m"}"#,
        r#"{"recipient_id":true,"message":"m"}"#,
        r#"{"recipient_id":[1],"message":"m"}"#,
        r#"{"recipient_id":{"id":1},"message":"m"}"#,
    ];
    for text in bad {
        check_bad(&relay, text, &["recipient_id"]).await;
    }
    let long = json!({"recipient_id": "🎺".repeat(200), "message": "m"}).to_string();
    check_bad(&relay, long, &["recipient_id"]).await;
    stop_with_nothing_received(relay).await;
}

#[tokio::test]
async fn a_bad_message_is_named_in_the_reason() {
    let relay = Relay::plain().await;
    let bad = [
        r#"{"recipient_id":1}"#,
        r#"{"recipient_id":1,"massage":"m"}"#,
        r#"{"recipient_id":1,"message":"m","message":"m"}"#,
        r#"{"message":"m","recipient_id":1,"\u006dessage":"m"}"#,
        r#"{"recipient_id":1,"message":7}"#,
        r#"{"recipient_id":1,"message":null}"#,
        r#"{"recipient_id":1,"message":false}"#,
        r#"{"recipient_id":1,"message":["m"]}"#,
        r#"{"recipient_id":1,"message":{"m":"m"}}"#,
        r#"{"recipient_id":1,"message":"\ud83c"}"#,
        r#"{"recipient_id":1,"message":"\udfba"}"#,
        r#"{"recipient_id":1,"message":"\uD83C and more"}"#,
        r#"{"recipient_id":1,"message":"\ud83c\ud83c"}"#,
        r#"{"recipient_id":1,"message":"\udfba\ud83c"}"#,
        r#"{"recipient_id":1,"message":"\ud83c\n\udfba"}"#,
        r#"{"recipient_id":1,"message":"\ud83c\\udfba"}"#,
    ];
    for text in bad {
        check_bad(&relay, text, &["message"]).await;
    }
    stop_with_nothing_received(relay).await;
}

#[tokio::test]
async fn invalid_json_is_named_in_the_reason() {
    let relay = Relay::plain().await;
    let bad = [
        "",
        " ",
        "hello",
        "{",
        r#"{"recipient_id":1,"message":"m""#,
        r#"{"recipient_id":1,"message":"m"}}"#,
        r#"{"recipient_id":1,"message":"m"} {}"#,
        r#"{"recipient_id":1,"message":"m",}"#,
        r#"{"recipient_id":1 "message":"m"}"#,
        r"{'recipient_id':1,'message':'m'}",
        r#"{recipient_id:1,message:"m"}"#,
        "\u{feff}{\"recipient_id\":1,\"message\":\"m\"}",
        "{\"recipient_id\":1,\"message\":\"m\"}\0",
    ];
    for text in bad {
        check_bad(&relay, text, &["JSON", "json"]).await;
    }
    // The error is within a field, so the reason may name the field instead.
    let bad = [
        r#"{"recipient_id":01,"message":"m"}"#,
        r#"{"recipient_id":+1,"message":"m"}"#,
        r#"{"recipient_id":0x1,"message":"m"}"#,
        r#"{"recipient_id":NaN,"message":"m"}"#,
        r#"{"recipient_id":1.,"message":"m"}"#,
        r#"{"recipient_id":1,"message":"\x41"}"#,
        r#"{"recipient_id":1,"message":"\u12"}"#,
        r#"{"recipient_id":1,"message":"\u12g4"}"#,
        r#"{"recipient_id":1,"message":"m"#,
        r#"{"recipient_id":1,"message":'m'}"#,
        "{\"recipient_id\":1,\"message\":\"two\nlines\"}",
        "{\"recipient_id\":1,\"message\":\"a\0b\"}",
        "{\"recipient_id\":1,\"message\":\"tab\there\"}",
        r#"{"recipient_id":1,"message":"m","extra":nope}"#,
        r#"{"recipient_id":1,"message":"m","extra":[1,]}"#,
    ];
    for text in bad {
        check_bad(&relay, text, &["JSON", "json", "recipient_id", "message"]).await;
    }
    stop_with_nothing_received(relay).await;
}

#[tokio::test]
async fn json_other_than_an_object_is_bad_input() {
    let relay = Relay::plain().await;
    for text in ["[]", r#"[1,"m"]"#, "null", "7", "true", r#""m""#] {
        check_bad(&relay, text, &["JSON", "json", "object"]).await;
    }
    check_bad(&relay, "{}", &["recipient_id", "message"]).await;
    stop_with_nothing_received(relay).await;
}

/// The recipient decodes the same string, whichever escapes the sender used.
#[tokio::test]
async fn a_string_arrives_as_the_same_string() {
    let relay = Relay::plain().await;
    let mut sender = relay.raw_user(Dialect::Bare).await;
    let mut bare = relay.bare().await;
    let mut v1 = relay.v1().await;
    let strings = [
        (r"", ""),
        (r"plain", "plain"),
        (r"\u0000", "\0"),
        (r"a\u0000b", "a\0b"),
        (r"\ud83c\udfba", "🎺"),
        (r"\uD83C\uDFBA", "🎺"),
        ("🎺", "🎺"),
        (r"\u00e9é", "éé"),
        (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r"\\ud83c", "\\ud83c"),
        (r"\u005cud83c", "\\ud83c"),
        (r"\\\ud83c\udfba\\", "\\🎺\\"),
        (
            "\u{7f}\u{80}\u{2028}\u{2029}\u{feff}\u{fffd}\u{ffff}",
            "\u{7f}\u{80}\u{2028}\u{2029}\u{feff}\u{fffd}\u{ffff}",
        ),
        (
            r"\ufeff\uFFFE\uffff\ud7ff\ue000",
            "\u{feff}\u{fffe}\u{ffff}\u{d7ff}\u{e000}",
        ),
        (r"\ud800\udc00\udbff\udfff", "\u{10000}\u{10ffff}"),
        (r"<>&'\u2028", "<>&'\u{2028}"),
        (r#"{\"recipient_id\":2}"#, r#"{"recipient_id":2}"#),
    ];
    for (escaped, text) in strings {
        for to in [bare.id, v1.id] {
            let frame = format!(r#"{{"recipient_id":{to},"message":"{escaped}"}}"#);
            sender.write(&Wire::text(frame).bytes()).await;
        }
        bare.hears(1, text).await;
        v1.hears(1, text).await;
    }
    relay.stop().await;
}

/// A bare user gets neither errors nor notices.
#[tokio::test]
async fn a_bare_user_gets_no_data_frame_but_messages() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.mailbox.messages = 8;
    })
    .await;
    let mut user = relay.narrow_user(Dialect::Bare).await;
    let mut sender = relay.v1().await;
    let sent = clog(&relay, &mut sender, user.id, 60_000, 8).await;
    for n in 0..20 {
        sender.ask(user.id, &"over ".repeat(10_000), n).await;
    }
    let mut overflown = 0;
    while overflown < 1 {
        let outcome = sender.hear().await;
        overflown += u64::from(outcome["status"] == "queue_full");
    }
    user.write(&Wire::text(r#"{"recipient_id":99,"message":"m","id":"no outcome"}"#).bytes())
        .await;
    user.write(&Wire::close(1000, "").bytes()).await;
    let (frames, code, _) = user.answered().await;
    assert_eq!(code, 1000);
    assert!(u64::try_from(frames.len()).unwrap() <= sent + 20);
    for frame in frames {
        let keys: Vec<&String> = frame.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "sender_id"], "{frame}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_library_client_reads_the_reason_of_a_1007() {
    let relay = Relay::plain().await;
    let mut user = relay.bare().await;
    user.send_text("nonsense").await;
    let reason = user.closed_with(1007).await;
    assert!(reason.contains("JSON"), "{reason}");
    assert_eq!(user.next().await, Heard::End(None));
    relay.until_closed("server", "1007", 1).await;
    relay.stop().await;
}
