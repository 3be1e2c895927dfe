//! RFC 6455 sections 5 and 7, byte by byte, over sockets that can break every rule.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard::config::Strategy;

use crate::harness::raw::{
    BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, joined, message, question,
};
use crate::harness::{Dialect, Frame, PATIENCE, Raw, Relay, Seen, Wire, eventually};

/// How the bytes of a case reach the relay.
#[derive(Clone, Copy, Debug)]
enum Delivery {
    /// In one write.
    Whole,
    /// After a valid message, in one write with it.
    AfterMessage,
    /// Byte by byte.
    Trickled,
}

/// Sends `frames` as a user. The relay closes the connection with `code`, and the closing handshake completes.
async fn check_closes(what: &str, frames: &[Wire], code: u16) {
    // Longer than a test's time limit, so that a pass means that the relay found our close frame after the
    // invalid frames.
    check_closes_within(what, frames, code, PATIENCE * 2).await;
}

async fn check_closes_within(what: &str, frames: &[Wire], code: u16, close_timeout: Duration) {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.close_timeout = close_timeout;
    })
    .await;
    let mut times = 0;
    for dialect in Dialect::BOTH {
        for delivery in [Delivery::Whole, Delivery::AfterMessage, Delivery::Trickled] {
            let mut peer = relay.raw_user(dialect).await;
            let mut bytes = Vec::new();
            if matches!(delivery, Delivery::AfterMessage) {
                bytes.extend(message(peer.id, "still fine").bytes());
            }
            bytes.extend(joined(frames));
            // The write may fail, because the relay may stop reading before the last byte.
            drop(match delivery {
                Delivery::Trickled => peer.trickle(&bytes).await,
                Delivery::Whole | Delivery::AfterMessage => peer.try_write(&bytes).await,
            });
            let (heard, closed, reason) = if close_timeout > PATIENCE {
                peer.rest().await
            } else {
                // The relay ends the connection by itself, and resets it where bytes of ours come behind that.
                let closed = peer.until_close().await;
                assert!(!matches!(peer.next().await, Seen::Frame(_)), "{what}");
                closed
            };
            assert_eq!(closed, code, "{what}, {dialect:?}, {delivery:?}: {reason}");
            let fine = dialect.message(peer.id, "still fine");
            assert!(
                heard.iter().all(|frame| *frame == fine),
                "{what}: {heard:?}"
            );
            times += 1;
        }
    }
    relay.until_closed("server", &code.to_string(), times).await;
    relay.stop().await;
}

/// The payload of a valid message to the first user of a relay.
fn hello() -> Vec<u8> {
    br#"{"recipient_id":1,"message":"hello"}"#.to_vec()
}

#[tokio::test]
async fn an_unmasked_frame_is_a_protocol_error() {
    check_closes("text", &[Wire::text(hello()).unmasked()], 1002).await;
    check_closes("binary", &[Wire::new(BINARY, hello()).unmasked()], 1002).await;
    check_closes("ping", &[Wire::new(PING, "p").unmasked()], 1002).await;
    check_closes("close", &[Wire::close(1000, "").unmasked()], 1002).await;
}

#[tokio::test]
async fn a_reserved_bit_is_a_protocol_error() {
    for bits in [1, 2, 4, 7] {
        check_closes("text", &[Wire::text(hello()).reserved(bits)], 1002).await;
    }
    check_closes("ping", &[Wire::new(PING, "p").reserved(4)], 1002).await;
    check_closes("close", &[Wire::close(1000, "").reserved(2)], 1002).await;
    let (head, tail) = (Wire::text(&hello()[..9]), &hello()[9..]);
    let tail = Wire::new(CONTINUATION, tail).reserved(4);
    check_closes("continuation", &[head.more(), tail], 1002).await;
}

#[tokio::test]
async fn a_reserved_opcode_is_a_protocol_error() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        let what = format!("opcode {opcode}");
        check_closes(&what, &[Wire::new(opcode, hello())], 1002).await;
        check_closes(&what, &[Wire::new(opcode, "")], 1002).await;
    }
}

#[tokio::test]
async fn a_fragmented_control_frame_is_a_protocol_error() {
    for opcode in [PING, PONG, CLOSE] {
        let what = format!("opcode {opcode}");
        check_closes(&what, &[Wire::new(opcode, "").more()], 1002).await;
        let tail = Wire::new(CONTINUATION, "");
        check_closes(&what, &[Wire::new(opcode, "").more(), tail], 1002).await;
    }
}

#[tokio::test]
async fn a_control_frame_of_more_than_125_bytes_is_a_protocol_error() {
    let payload = vec![b'p'; 126];
    for opcode in [PING, PONG] {
        let what = format!("opcode {opcode}");
        check_closes(&what, &[Wire::new(opcode, &payload)], 1002).await;
        check_closes(&what, &[Wire::new(opcode, "p").length16()], 1002).await;
        check_closes(&what, &[Wire::new(opcode, "p").length64()], 1002).await;
    }
    check_closes("close", &[Wire::close(1000, "r".repeat(124))], 1002).await;
}

#[tokio::test]
async fn a_continuation_without_a_first_fragment_is_a_protocol_error() {
    let whole = Wire::new(CONTINUATION, hello());
    check_closes("final", std::slice::from_ref(&whole), 1002).await;
    check_closes("not final", &[whole.clone().more()], 1002).await;
    check_closes("empty", &[Wire::new(CONTINUATION, "")], 1002).await;
    let away = br#"{"recipient_id":99,"message":"hello"}"#;
    let (head, tail) = away.split_at(5);
    let ended = [
        Wire::text(head).more(),
        Wire::new(CONTINUATION, tail),
        whole,
    ];
    check_closes("after the last fragment", &ended, 1002).await;
}

#[tokio::test]
async fn a_new_message_between_fragments_is_a_protocol_error() {
    let begun = Wire::text(&hello()[..5]).more();
    check_closes("text in text", &[begun.clone(), Wire::text(hello())], 1002).await;
    check_closes(
        "binary in text",
        &[begun.clone(), Wire::new(BINARY, hello())],
        1002,
    )
    .await;
    check_closes("fragment in text", &[begun, Wire::text("").more()], 1002).await;
    let begun = Wire::new(BINARY, &hello()[..5]).more();
    check_closes("text in binary", &[begun, Wire::text(hello())], 1002).await;
}

#[tokio::test]
async fn a_length_that_is_not_minimal_is_a_protocol_error() {
    let padded = |length: usize| {
        let mut payload = hello();
        payload.resize(length, b' ');
        Wire::text(payload)
    };
    check_closes("16 bits for 36", &[padded(36).length16()], 1002).await;
    check_closes("16 bits for 125", &[padded(125).length16()], 1002).await;
    check_closes("16 bits for 0", &[Wire::text("").length16()], 1002).await;
    check_closes("64 bits for 36", &[padded(36).length64()], 1002).await;
    check_closes("64 bits for 126", &[padded(126).length64()], 1002).await;
    check_closes("64 bits for 65535", &[padded(65535).length64()], 1002).await;
    check_closes("64 bits for 0", &[Wire::text("").length64()], 1002).await;
    let (head, tail) = (Wire::text(&hello()[..9]), &hello()[9..]);
    let tail = Wire::new(CONTINUATION, tail).length16();
    check_closes("continuation", &[head.more(), tail], 1002).await;
}

#[tokio::test]
async fn a_length_with_its_top_bit_set_is_a_protocol_error() {
    // The end of such a frame is unknown, so the relay cannot find our close frame. It waits for the close
    // timeout.
    let short = Duration::from_millis(100);
    for length in [1 << 63, u64::MAX, (1 << 63) + 36] {
        for opcode in [TEXT, BINARY] {
            let frame = Wire::new(opcode, hello()).claiming(length);
            check_closes_within(&format!("{length:x}"), &[frame], 1002, short).await;
        }
    }
}

/// Sessions share read buffers, so no byte of one peer may appear in the input of another.
#[tokio::test]
async fn a_malformed_frame_leaves_no_byte_for_other_sessions() {
    let relay = Relay::plain().await;
    let header = &Wire::text("").length16().bytes();
    let mut bystander = relay.raw_user(Dialect::V1).await;
    for split in 1..8 {
        let mut peer = relay.raw_user(Dialect::V1).await;
        peer.write(&header[..split]).await;
        // The message of another user shows that the relay has read these bytes.
        bystander.say(bystander.id, "still here").await;
        let still_here = Dialect::V1.message(bystander.id, "still here");
        assert_eq!(bystander.json().await, still_here, "split at {split}");
        peer.write(&header[split..]).await;
        assert_eq!(peer.until_close().await.1, 1002, "split at {split}");
        bystander.say(bystander.id, "still here").await;
        assert_eq!(bystander.json().await, still_here, "split at {split}");
    }
    relay.stop().await;
}

/// Text that is not UTF-8, within a JSON string.
const NOT_UTF8: [(&str, &[u8]); 8] = [
    ("a byte that never occurs", b"\xFF"),
    ("a lone continuation byte", b"\x80"),
    ("an overlong slash", b"\xC0\xAF"),
    ("an overlong NUL", b"\xE0\x80\x80"),
    ("a surrogate", b"\xED\xA0\x80"),
    ("above U+10FFFF", b"\xF4\x90\x80\x80"),
    (
        "a character without its last byte, of four",
        b"\xF0\x9F\x98",
    ),
    ("a character without its last byte, of two", b"\xC3"),
];

fn with_bytes(bytes: &[u8]) -> Vec<u8> {
    [br#"{"recipient_id":1,"message":""#, bytes, br#""}"#].concat()
}

#[tokio::test]
async fn text_that_is_not_utf8_is_invalid_data() {
    for (what, bytes) in NOT_UTF8 {
        check_closes(what, &[Wire::text(with_bytes(bytes))], 1007).await;
    }
    check_closes("at the end", &[Wire::text(b"{}\xF0\x9F")], 1007).await;
}

#[tokio::test]
async fn fragmented_text_that_is_not_utf8_is_invalid_data() {
    for (what, bytes) in NOT_UTF8 {
        let payload = with_bytes(bytes);
        for at in [28, 29, 30, payload.len() - 1] {
            let (head, tail) = payload.split_at(at);
            let frames = [Wire::text(head).more(), Wire::new(CONTINUATION, tail)];
            check_closes(&format!("{what}, split at {at}"), &frames, 1007).await;
        }
    }
}

#[tokio::test]
async fn a_fragment_may_end_within_a_character() {
    let relay = Relay::plain().await;
    let text = "🎺é…";
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        let payload = json!({"recipient_id": peer.id, "message": text}).to_string();
        for at in 0..=payload.len() {
            let (head, tail) = payload.as_bytes().split_at(at);
            let frames = [Wire::text(head).more(), Wire::new(CONTINUATION, tail)];
            peer.write(&joined(&frames)).await;
            assert_eq!(
                peer.json().await,
                dialect.message(peer.id, text),
                "split at {at}"
            );
        }
        let bytes = payload.as_bytes();
        let mut frames: Vec<Wire> = bytes
            .chunks(1)
            .map(|byte| Wire::new(CONTINUATION, byte).more())
            .collect();
        frames.insert(0, Wire::text("").more());
        frames.push(Wire::new(CONTINUATION, ""));
        peer.write(&joined(&frames)).await;
        assert_eq!(
            peer.json().await,
            dialect.message(peer.id, text),
            "byte by byte"
        );
    }
    relay.stop().await;
}

#[tokio::test]
async fn valid_frames_may_arrive_byte_by_byte() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        for length in [0, 60, 61, 62, 63, 64, 200, 3000] {
            let text = "x".repeat(length);
            let bytes = message(peer.id, &text).bytes();
            peer.trickle(&bytes).await.unwrap();
            assert_eq!(peer.json().await, dialect.message(peer.id, &text));
        }
        peer.trickle(&Wire::new(PING, "are you there?").bytes())
            .await
            .unwrap();
        let pong = Frame {
            opcode: PONG,
            payload: b"are you there?".to_vec(),
        };
        assert_eq!(peer.frame().await, pong);
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_message_of_every_length_encoding_arrives() {
    let relay = Relay::plain().await;
    let overhead = json!({"recipient_id": 1, "message": ""}).to_string().len();
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        for bytes in [
            125, 126, 127, 128, 1000, 4095, 4096, 4097, 16384, 65535, 65536,
        ] {
            let text = "x".repeat(bytes - overhead);
            peer.say(peer.id, &text).await;
            assert_eq!(
                peer.json().await,
                dialect.message(peer.id, &text),
                "{bytes} bytes"
            );
        }
    }
    relay.stop().await;
}

#[tokio::test]
async fn every_mask_is_removed() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw_user(Dialect::Bare).await;
    for mask in [[0; 4], [0xFF; 4], [1, 2, 3, 4], [0x80, 0, 0, 1]] {
        let text = "masked 🎺".repeat(20);
        peer.write(&message(1, &text).masked_by(mask).bytes()).await;
        assert_eq!(peer.json().await, Dialect::Bare.message(1, &text));
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_pong_carries_the_payload_of_its_ping() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        for payload in [
            vec![],
            b"ping".to_vec(),
            vec![0, 0xFF, 0x80],
            vec![b'p'; 125],
        ] {
            peer.write(&Wire::new(PING, &payload).bytes()).await;
            assert_eq!(
                peer.frame().await,
                Frame {
                    opcode: PONG,
                    payload
                }
            );
        }
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_ping_between_fragments_is_answered_before_the_message_ends() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        let payload = json!({"recipient_id": peer.id, "message": "in three parts"}).to_string();
        let parts: Vec<&[u8]> = payload.as_bytes().chunks(20).collect();
        let mut opcode = TEXT;
        for (index, part) in parts.iter().enumerate() {
            let frame = Wire::new(opcode, part);
            let last = index + 1 == parts.len();
            peer.write(&if last { frame } else { frame.more() }.bytes())
                .await;
            opcode = CONTINUATION;
            if !last {
                peer.write(&Wire::new(PING, part).bytes()).await;
                assert_eq!(
                    peer.frame().await,
                    Frame {
                        opcode: PONG,
                        payload: part.to_vec()
                    }
                );
                peer.write(&Wire::new(PONG, "unsolicited").bytes()).await;
            }
        }
        assert_eq!(
            peer.json().await,
            dialect.message(peer.id, "in three parts")
        );
    }
    relay.stop().await;
}

/// RFC 6455 section 5.5.3: an endpoint may answer only the newest of several pings.
#[tokio::test]
async fn the_last_of_many_pings_is_answered() {
    let relay = Relay::plain().await;
    let mut peer = relay.raw_user(Dialect::Bare).await;
    let pings: Vec<Wire> = (0..500).map(|n| Wire::new(PING, format!("{n}"))).collect();
    peer.write(&joined(&pings)).await;
    loop {
        let frame = peer.frame().await;
        assert_eq!(frame.opcode, PONG);
        if frame.payload == b"499" {
            break;
        }
    }
    relay.stop().await;
}

#[tokio::test]
async fn an_unsolicited_pong_is_ignored() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        peer.write(&Wire::new(PONG, "unsolicited").bytes()).await;
        peer.say(peer.id, "still here").await;
        assert_eq!(peer.json().await, dialect.message(peer.id, "still here"));
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        for code in [
            1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3003,
            3008, 3999, 4000, 4999,
        ] {
            let mut peer = relay.raw_user(dialect).await;
            let reason = "r".repeat(if code == 1000 { 123 } else { 0 });
            peer.write(&Wire::close(code, reason).bytes()).await;
            assert_eq!(peer.answered().await.1, code, "{dialect:?}");
            let mut slow = relay.raw_user(dialect).await;
            let close = Wire::close(code, "").masked_by([7, 140, 9, 200]).bytes();
            slow.trickle(&close).await.unwrap();
            assert_eq!(slow.answered().await.1, code, "{dialect:?}, byte by byte");
        }
    }
    for code in ["1000", "1001", "1002", "1009", "1012"] {
        relay.until_closed("client", code, 4).await;
    }
    relay.until_closed("server", "1002", 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_close_without_a_code_is_answered() {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        peer.write(&Wire::new(CLOSE, "").bytes()).await;
        let (frames, code, reason) = peer.answered().await;
        assert!(
            frames.is_empty() && reason.is_empty(),
            "{frames:?} {reason}"
        );
        assert!([1000, 1005].contains(&code), "{code}");
    }
    relay.until_closed("client", "1005", 2).await;
    relay.stop().await;
}

/// Sends a malformed close. The relay answers with the close code of the error.
async fn check_bad_close(what: &str, close: Wire, code: u16) {
    let relay = Relay::plain().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        peer.write(&close.bytes()).await;
        let (frames, closed, reason) = peer.until_close().await;
        assert!(frames.is_empty(), "{what}: {frames:?}");
        assert_eq!(closed, code, "{what}, {dialect:?}: {reason}");
        assert_eq!(
            peer.next().await,
            Seen::End,
            "{what}: no end after both close frames"
        );
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_close_of_one_byte_is_a_protocol_error() {
    check_bad_close("one byte", Wire::new(CLOSE, [3]), 1002).await;
}

#[tokio::test]
async fn a_close_code_that_must_not_be_sent_is_a_protocol_error() {
    for code in [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ] {
        check_bad_close(&format!("code {code}"), Wire::close(code, ""), 1002).await;
    }
}

#[tokio::test]
async fn a_close_reason_that_is_not_utf8_is_invalid_data() {
    for (what, bytes) in NOT_UTF8 {
        check_bad_close(what, Wire::close(1000, bytes), 1007).await;
    }
}

both_strategies! {
    /// RFC 6455 section 1.4: data after a close frame is discarded.
    async fn frames_after_a_close_of_the_client_are_ignored(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        for dialect in Dialect::BOTH {
            let mut peer = relay.raw_user(dialect).await;
            let mut bytes = Wire::close(1000, "").bytes();
            bytes.extend(message(peer.id, "too late").bytes());
            bytes.extend(Wire::new(PING, "too late").bytes());
            bytes.extend(Wire::text(hello()).unmasked().bytes());
            peer.write(&bytes).await;
            let close = peer.frame().await;
            assert_eq!(close.close().0, 1000);
            // The end is a reset if the relay had unread bytes when it closed, so only a frame is an error.
            assert!(!matches!(peer.next().await, Seen::Frame(_)));
        }
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().received, 0);
        relay.stop().await;
    }

    /// The relay ignores frames after its own close frame. It still reads them: unread bytes would reset the
    /// connection before the peer has read the close frame.
    async fn frames_after_a_close_of_the_relay_are_ignored(strategy) {
        // On a busy machine, the peer may need long for what it sends behind the relay's close.
        let relay = Relay::start(strategy, |settings| {
            settings.keepalive.close_timeout = PATIENCE;
        })
        .await;
        for dialect in Dialect::BOTH {
            let mut peer = relay.raw_user(dialect).await;
            let mut bytes = Wire::text(hello()).unmasked().bytes();
            bytes.extend(message(peer.id, &"too late ".repeat(500)).bytes().repeat(300));
            bytes.extend(Wire::new(PING, "too late").bytes());
            peer.write(&bytes).await;
            let (frames, code, _) = peer.rest().await;
            assert_eq!((frames, code), (vec![], 1002), "{dialect:?}");
        }
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().received, 0);
        relay.stop().await;
    }

    async fn messages_before_a_protocol_error_are_delivered(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut friend = relay.bare().await;
        for dialect in Dialect::BOTH {
            let mut peer = relay.raw_user(dialect).await;
            let good: Vec<Wire> = (0..50).map(|n| message(friend.id, &format!("{n}"))).collect();
            let mut bytes = joined(&good);
            bytes.extend(Wire::new(3, "").bytes());
            peer.write(&bytes).await;
            for n in 0..50 {
                friend.hears(peer.id, &format!("{n}")).await;
            }
            assert_eq!(peer.rest().await.1, 1002);
        }
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().delivered, 100);
        relay.stop().await;
    }

    async fn a_half_closed_connection_delivers_its_messages_and_ends(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut friend = relay.bare().await;
        for dialect in Dialect::BOTH {
            let mut peer = relay.raw_user(dialect).await;
            let sender = peer.id;
            let last_words: Vec<Wire> = (0..20).map(|n| message(1, &format!("{n}"))).collect();
            peer.write(&joined(&last_words)).await;
            peer.half_close().await;
            for n in 0..20 {
                friend.hears(sender, &format!("{n}")).await;
            }
            assert_eq!(peer.drained().await, Seen::End);
        }
        relay.until_closed("client", "1006", 2).await;
        relay.stop().await;
    }

    /// TCP allows a client to half-close after its close frame.
    async fn a_close_with_a_half_close_is_answered(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        for dialect in Dialect::BOTH {
            let mut peer = relay.raw_user(dialect).await;
            peer.write(&joined(&[message(peer.id, "last words"), Wire::close(1000, "")])).await;
            peer.half_close().await;
            let (_, code, _) = peer.answered().await;
            assert_eq!(code, 1000);
        }
        relay.until_closed("client", "1000", 2).await;
        relay.stop().await;
    }

    async fn a_reset_is_counted_as_a_reset(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut friend = relay.v1().await;
        for dialect in Dialect::BOTH {
            let peer = relay.raw_user(dialect).await;
            let id = peer.id;
            peer.reset();
            eventually("one connection is left", async || {
                (relay.metric("switchboard_connections", &[]).await == 1).then_some(())
            })
            .await;
            friend.ask(id, "are you there?", id).await;
            friend.learns(id, "offline").await;
        }
        relay.until_closed("client", "reset", 2).await;
        relay.stop().await;
    }

    async fn a_reset_within_a_frame_delivers_nothing(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut friend = relay.bare().await;
        for split in [1, 3, 6, 20, 40] {
            let mut peer = relay.raw_user(Dialect::V1).await;
            let bytes = question(friend.id, "never said", 1).bytes();
            peer.write(&bytes[..split]).await;
            peer.reset();
        }
        relay.until_closed("client", "reset", 5).await;
        friend.say(friend.id, "nothing else").await;
        friend.hears(friend.id, "nothing else").await;
        let scrape = relay.ledger().await;
        assert_eq!(scrape.ledger().received, 1);
        relay.stop().await;
    }
}

/// A relay with a close timeout of 250 ms.
async fn with_short_close_timeout() -> Relay {
    Relay::start(Strategy::Directory, |settings| {
        settings.keepalive.close_timeout = Duration::from_millis(250);
    })
    .await
}

async fn until_closed_by_the_relay(peer: &mut Raw) -> (Vec<Value>, u16) {
    let (frames, code, _) = peer.until_close().await;
    assert!(
        !matches!(peer.next().await, Seen::Frame(_)),
        "a frame after the close"
    );
    (frames, code)
}

#[tokio::test]
async fn a_client_that_does_not_answer_the_close_is_disconnected_after_the_close_timeout() {
    let relay = with_short_close_timeout().await;
    for dialect in Dialect::BOTH {
        let mut peer = relay.raw_user(dialect).await;
        peer.write(&Wire::new(3, "").bytes()).await;
        assert_eq!(until_closed_by_the_relay(&mut peer).await, (vec![], 1002));
    }
    relay.until_closed("server", "1002", 2).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_on_after_the_close_is_disconnected_after_the_close_timeout() {
    let relay = with_short_close_timeout().await;
    let mut peer = relay.raw_user(Dialect::Bare).await;
    peer.write(&Wire::new(3, "").bytes()).await;
    let more = message(peer.id, &"and another thing ".repeat(200)).bytes();
    let talk = async { while peer.try_write(&more).await.is_ok() {} };
    crate::harness::within("the relay disconnects", talk).await;
    let scrape = relay.ledger().await;
    assert_eq!(scrape.ledger().received, 0);
    assert_eq!(scrape.ledger().connections, 0);
    relay.stop().await;
}

#[tokio::test]
async fn an_empty_fragmented_message_is_bad_input() {
    let relay = Relay::plain().await;
    let frames = [
        Wire::text("").more(),
        Wire::new(CONTINUATION, "").more(),
        Wire::new(CONTINUATION, ""),
    ];
    let mut peer = relay.raw_user(Dialect::Bare).await;
    peer.write(&joined(&frames)).await;
    assert_eq!(peer.rest().await.1, 1007);
    let mut peer = relay.raw_user(Dialect::V1).await;
    peer.write(&joined(&frames)).await;
    assert_eq!(peer.json().await["code"], "not_json");
    relay.stop().await;
}
