//! The cases of the Autobahn test suite, sections 1 to 7 and 10, with its numbers: the bytes that the suite's fuzzing
//! client sends to an echo server, and the result. Each case runs over real sockets against a session: in one
//! write, frame by frame, and byte by byte.
//!
//! If the suite allows more than one behaviour, this test requires the one that the suite calls strict. There is one
//! exception: text in one frame that is not UTF-8 is refused when the whole frame has arrived (6.4.3 and 6.4.4). If
//! the suite allows a server to drop the connection or to close it, this test requires a close frame.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use switchboard::config::Overflow;
use switchboard::directory::{Budget, MailboxBounds};
use switchboard::ledger::LedgerTotals;
use switchboard::protocol::Dialect;
use switchboard::relay::Relay;
use switchboard::session::{Session, SessionConfig, SessionContext, Welcome};
use switchboard::telemetry::metrics::Metrics;
use switchboard::telemetry::traces::Traces;
use tokio::net::TcpListener;

use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use crate::harness::{Frame, PATIENCE, Raw, Seen, Wire};

/// A step of a case. The peer is the suite's client.
#[derive(Clone, Debug)]
enum Step {
    /// The peer sends a frame.
    Send(Wire),
    /// The peer sends a part of a frame.
    Bytes(Vec<u8>),
    /// The peer receives a frame with this opcode and payload.
    Hear(u8, Vec<u8>),
    /// The peer sends a close with 1000, and receives the same code.
    Close,
    /// The server closes with this code.
    Closed(u16),
    /// The server answers an earlier close frame of the peer with this code.
    Answered(u16),
}

use Step::{Answered, Bytes, Close, Closed, Hear, Send};

#[derive(Clone, Debug)]
struct Case {
    number: String,
    steps: Vec<Step>,
}

/// How the peer divides the bytes of a case into writes.
#[derive(Clone, Copy, Debug)]
enum Chop {
    /// All bytes up to the next frame of the server, in one write.
    Together,
    /// Each frame in a write of its own.
    Frames,
    /// Pieces of this many bytes.
    Pieces(usize),
}

/// An echo server, with its metrics.
struct Echo {
    addr: SocketAddr,
    relay: Relay,
    metrics: Arc<Metrics>,
}

impl Echo {
    async fn start() -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let bounds = MailboxBounds {
            messages: 8,
            bytes: 1 << 20,
            max_age: Duration::MAX,
            overflow: Overflow::DropNewest,
            budget: Budget::new(1 << 30),
        };
        let relay = Relay::new(bounds, 10, metrics.clone(), Arc::new(Traces::off()));
        let config = SessionConfig {
            ping_interval: 10 * PATIENCE,
            pong_timeout: 10 * PATIENCE,
            slowest_rate: 4096,
            write_timeout: 10 * PATIENCE,
            close_timeout: 10 * PATIENCE,
            connection_age: None,
            message_bytes: 1 << 20,
            frame_bytes: 1 << 20,
            bad_messages: 1,
            outcomes_pending: 8,
            message_rate: None,
            byte_rate: None,
            echo: true,
        };
        let context = Arc::new(SessionContext::new(config, metrics.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let host = relay.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let client = host.join(Dialect::Bare, None, None).await.unwrap();
                let welcome = Welcome::default();
                tokio::spawn(Session::new(stream, &[], client, &welcome, context.clone()));
            }
        });
        Self {
            addr,
            relay,
            metrics,
        }
    }

    async fn play(&self, case: &Case, chop: Chop) {
        let what = format!("case {}, {chop:?}", case.number);
        let mut peer = Raw::connect(self.addr).await;
        let mut unsent: Vec<Vec<u8>> = Vec::new();
        for step in &case.steps {
            match step {
                Send(frame) => unsent.push(frame.bytes()),
                Bytes(bytes) => unsent.push(bytes.clone()),
                Hear(opcode, payload) => {
                    write_all(&mut peer, &mut unsent, chop).await;
                    let expected = Frame {
                        opcode: *opcode,
                        payload: payload.clone(),
                    };
                    let heard = peer.next().await;
                    assert!(heard == Seen::Frame(expected), "{what}: {heard:?}");
                }
                Close => {
                    unsent.push(Wire::close(1000, "").bytes());
                    write_all(&mut peer, &mut unsent, chop).await;
                    closed(&mut peer, 1000, &what).await;
                }
                Answered(code) => {
                    write_all(&mut peer, &mut unsent, chop).await;
                    closed(&mut peer, *code, &what).await;
                }
                Closed(code) => {
                    write_all(&mut peer, &mut unsent, chop).await;
                    closed(&mut peer, *code, &what).await;
                    // The write may fail: the server may have ended the connection, because it read the close frame of
                    // the case after the invalid frame.
                    drop(peer.try_write(&Wire::close(*code, "").bytes()).await);
                }
            }
        }
        // The server ends the connection (RFC 6455 section 7.1.1), and no frame follows its close.
        assert_eq!(peer.next().await, Seen::End, "{what}");
    }
}

/// Writes the frames that are not sent yet.
async fn write_all(peer: &mut Raw, unsent: &mut Vec<Vec<u8>>, chop: Chop) {
    let unsent = std::mem::take(unsent);
    let pieces = match chop {
        Chop::Together => vec![unsent.concat()],
        Chop::Frames => unsent,
        Chop::Pieces(bytes) => unsent.concat().chunks(bytes).map(<[u8]>::to_vec).collect(),
    };
    for piece in pieces {
        // After an invalid frame, the server need not read the rest.
        if peer.try_write(&piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn closed(peer: &mut Raw, code: u16, what: &str) {
    match peer.next().await {
        Seen::Frame(frame) if frame.opcode == CLOSE => assert_eq!(frame.close().0, code, "{what}"),
        other => panic!("{what}: expected a close with {code}, got {other:?}"),
    }
}

fn case(number: impl Into<String>, steps: impl IntoIterator<Item = Step>) -> Case {
    Case {
        number: number.into(),
        steps: steps.into_iter().collect(),
    }
}

/// A case in which the server sends `back`, and then closes with `code`.
fn fails(number: impl Into<String>, code: u16, sent: Vec<Wire>, back: Vec<(u8, &[u8])>) -> Case {
    let sent = sent.into_iter().map(Send);
    let back = back.into_iter();
    let back = back.map(|(opcode, payload)| Hear(opcode, payload.to_vec()));
    case(number, sent.chain(back).chain([Closed(code)]))
}

/// A case in which the server sends `back`, and the peer closes.
fn passes(number: impl Into<String>, sent: Vec<Wire>, back: Vec<(u8, &[u8])>) -> Case {
    let sent = sent.into_iter().map(Send);
    let back = back.into_iter();
    let back = back.map(|(opcode, payload)| Hear(opcode, payload.to_vec()));
    case(number, sent.chain(back).chain([Close]))
}

fn frame(opcode: u8, payload: impl AsRef<[u8]>) -> Wire {
    Wire::new(opcode, payload)
}

/// A text message in fragments of `bytes` bytes.
fn in_fragments(text: &[u8], bytes: usize) -> Vec<Wire> {
    let count = text.len().div_ceil(bytes);
    let fragments = text.chunks(bytes).enumerate().map(|(number, piece)| {
        let opcode = if number == 0 { TEXT } else { CONTINUATION };
        let fragment = frame(opcode, piece);
        if number + 1 == count {
            fragment
        } else {
            fragment.more()
        }
    });
    fragments.collect()
}

const HELLO: &[u8] = b"Hello, world!";
const ODD: &[u8] = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff";
/// The Greek word kosme.
const KOSME: &[u8] = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes();

/// Section 1: text and binary messages with every encoding of the length.
fn framing() -> Vec<Case> {
    let mut cases = Vec::new();
    for (group, opcode, byte) in [(1, TEXT, b'*'), (2, BINARY, 0xfe)] {
        // 65536 twice: the suite sends the second one in pieces.
        for (number, length) in [0, 125, 126, 127, 128, 65535, 65536, 65536]
            .into_iter()
            .enumerate()
        {
            let payload = vec![byte; length];
            let number = format!("1.{group}.{}", number + 1);
            cases.push(passes(
                number,
                vec![frame(opcode, &payload)],
                vec![(opcode, &payload)],
            ));
        }
    }
    cases
}

/// Section 2: pings and pongs.
fn pings() -> Vec<Case> {
    let long = [0xfe; 125];
    let unsolicited = frame(PONG, "unsolicited pong payload");
    let mut cases: Vec<_> = [("2.1", &b""[..]), ("2.2", HELLO), ("2.3", ODD)]
        .into_iter()
        .chain([("2.4", &long[..]), ("2.6", &long[..])])
        .map(|(number, payload)| passes(number, vec![frame(PING, payload)], vec![(PONG, payload)]))
        .collect();
    cases.push(fails("2.5", 1002, vec![frame(PING, [0xfe; 126])], vec![]));
    cases.push(passes("2.7", vec![frame(PONG, "")], vec![]));
    cases.push(passes("2.8", vec![unsolicited.clone()], vec![]));
    let ping = frame(PING, "ping payload");
    cases.push(passes(
        "2.9",
        vec![unsolicited, ping],
        vec![(PONG, b"ping payload")],
    ));
    for number in ["2.10", "2.11"] {
        let payloads: Vec<_> = (0..10).map(|ping| format!("payload-{ping}")).collect();
        let sent = payloads.iter().map(|payload| frame(PING, payload));
        let back = payloads.iter().map(|payload| (PONG, payload.as_bytes()));
        cases.push(passes(number, sent.collect(), back.collect()));
    }
    cases
}

/// Sections 3 and 4: reserved bits and opcodes, alone, and between a message and a ping.
fn reserved() -> Vec<Case> {
    let alone = |number: &str, wrong: Wire| fails(number, 1002, vec![wrong], vec![]);
    let between = |number: &str, wrong: Wire| {
        let sent = vec![frame(TEXT, HELLO), wrong, frame(PING, "")];
        fails(number, 1002, sent, vec![(TEXT, HELLO)])
    };
    vec![
        alone("3.1", frame(TEXT, HELLO).reserved(1)),
        between("3.2", frame(TEXT, HELLO).reserved(2)),
        between("3.3", frame(TEXT, HELLO).reserved(3)),
        between("3.4", frame(TEXT, HELLO).reserved(4)),
        alone("3.5", frame(BINARY, ODD).reserved(5)),
        alone("3.6", frame(BINARY, HELLO).reserved(6)),
        alone("3.7", frame(CLOSE, "").reserved(7)),
        alone("4.1.1", frame(3, "")),
        alone("4.1.2", frame(4, "reserved opcode payload")),
        between("4.1.3", frame(5, "")),
        between("4.1.4", frame(6, HELLO)),
        between("4.1.5", frame(7, HELLO)),
        alone("4.2.1", frame(11, "")),
        alone("4.2.2", frame(12, "reserved opcode payload")),
        between("4.2.3", frame(13, "")),
        between("4.2.4", frame(14, HELLO)),
        between("4.2.5", frame(15, HELLO)),
    ]
}

/// Section 5: fragments, with control frames in between.
fn fragments() -> Vec<Case> {
    let first = || frame(TEXT, "fragment1").more();
    let middle = |text: &str| frame(CONTINUATION, text).more();
    let last = |text: &str| frame(CONTINUATION, text);
    let both = &b"fragment1fragment2"[..];
    let mut cases = Vec::new();
    for number in ["5.3", "5.4", "5.5"] {
        let sent = vec![first(), last("fragment2")];
        cases.push(passes(number, sent, vec![(TEXT, both)]));
    }
    for number in ["5.6", "5.7", "5.8"] {
        let sent = vec![first(), frame(PING, "ping payload"), last("fragment2")];
        let back = vec![(PONG, &b"ping payload"[..]), (TEXT, both)];
        cases.push(passes(number, sent, back));
    }
    for number in ["5.19", "5.20"] {
        // The first ping is answered before the rest is sent.
        let steps = [
            Send(first()),
            Send(middle("fragment2")),
            Send(frame(PING, "pongme 1!")),
            Hear(PONG, b"pongme 1!".to_vec()),
            Send(middle("fragment3")),
            Send(middle("fragment4")),
            Send(frame(PING, "pongme 2!")),
            Send(last("fragment5")),
            Hear(PONG, b"pongme 2!".to_vec()),
            Hear(
                TEXT,
                b"fragment1fragment2fragment3fragment4fragment5".to_vec(),
            ),
            Close,
        ];
        cases.push(case(number, steps));
    }
    cases
}

/// Section 5: invalid fragments.
fn broken_fragments() -> Vec<Case> {
    let first = || frame(TEXT, "fragment1").more();
    let middle = |text: &str| frame(CONTINUATION, text).more();
    let last = |text: &str| frame(CONTINUATION, text);
    let both = &b"fragment1fragment2"[..];
    let mut cases = Vec::new();
    for (number, opcode) in [("5.1", PING), ("5.2", PONG)] {
        let sent = vec![frame(opcode, "fragment1").more(), last("fragment2")];
        cases.push(fails(number, 1002, sent, vec![]));
    }
    let stray = "non-continuation payload";
    for number in ["5.9", "5.10", "5.11"] {
        let sent = vec![last(stray), frame(TEXT, HELLO)];
        cases.push(fails(number, 1002, sent, vec![]));
    }
    for number in ["5.12", "5.13", "5.14"] {
        let sent = vec![middle(stray), frame(TEXT, HELLO)];
        cases.push(fails(number, 1002, sent, vec![]));
    }
    let begun = vec![first(), last("fragment2"), middle("fragment3")];
    let sent = [begun, vec![frame(TEXT, "fragment4")]].concat();
    cases.push(fails("5.15", 1002, sent, vec![(TEXT, both)]));
    for (number, begin) in [("5.16", middle("fragment1")), ("5.17", last("fragment1"))] {
        let round = [begin, frame(TEXT, "fragment2").more(), last("fragment3")];
        cases.push(fails(number, 1002, [round.clone(), round].concat(), vec![]));
    }
    let sent = vec![first(), frame(TEXT, "fragment2")];
    cases.push(fails("5.18", 1002, sent, vec![]));
    cases
}

/// Sections 6.1 to 6.4: text in fragments of any size, and early refusal of text that is not UTF-8.
fn utf8_fragments() -> Vec<Case> {
    let greeting = "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!".as_bytes();
    let surrogate = [KOSME, b"\xed\xa0\x80edited"].concat();
    let beyond = [KOSME, b"\xf4\x90\x80\x80edited"].concat();
    let empty = |last: bool| {
        let fragment = frame(CONTINUATION, "");
        if last { fragment } else { fragment.more() }
    };
    let text = "middle frame payload";
    let around = vec![
        frame(TEXT, "").more(),
        frame(CONTINUATION, text).more(),
        empty(true),
    ];
    let halves = greeting.len() / 2;
    let mut cases = vec![
        passes("6.1.1", vec![frame(TEXT, "")], vec![(TEXT, b"")]),
        passes(
            "6.1.2",
            vec![frame(TEXT, "").more(), empty(false), empty(true)],
            vec![(TEXT, b"")],
        ),
        passes("6.1.3", around, vec![(TEXT, text.as_bytes())]),
        passes("6.2.1", vec![frame(TEXT, greeting)], vec![(TEXT, greeting)]),
        passes(
            "6.2.2",
            in_fragments(greeting, halves),
            vec![(TEXT, greeting)],
        ),
        passes("6.2.3", in_fragments(greeting, 1), vec![(TEXT, greeting)]),
        passes("6.2.4", in_fragments(KOSME, 1), vec![(TEXT, KOSME)]),
        fails("6.3.1", 1007, vec![frame(TEXT, &surrogate)], vec![]),
        fails("6.3.2", 1007, in_fragments(&surrogate, 1), vec![]),
    ];
    // The pong shows that the server has accepted the first fragment, which is valid so far. The server refuses the
    // second fragment, so the third one is never sent.
    for (number, split) in [
        ("6.4.1", (KOSME.len(), beyond.len() - 6)),
        ("6.4.2", (12, 13)),
    ] {
        let steps = [
            Send(frame(TEXT, &beyond[..split.0]).more()),
            Send(frame(PING, "A")),
            Hear(PONG, b"A".to_vec()),
            Send(frame(CONTINUATION, &beyond[split.0..split.1]).more()),
            Closed(1007),
        ];
        cases.push(case(number, steps));
    }
    // The exception: the text is in one frame, so the server refuses it when the whole frame has arrived.
    for (number, split) in [
        ("6.4.3", (KOSME.len(), beyond.len() - 6)),
        ("6.4.4", (12, 13)),
    ] {
        let bytes = frame(TEXT, &beyond).bytes();
        let head = bytes.len() - beyond.len();
        let steps = [
            Bytes(bytes[..head + split.0].to_vec()),
            Bytes(bytes[head + split.0..head + split.1].to_vec()),
            Bytes(bytes[head + split.1..].to_vec()),
            Closed(1007),
        ];
        cases.push(case(number, steps));
    }
    cases
}

const GOOD: bool = true;
const BAD: bool = false;

/// Most of sections 6.5 to 6.23, with texts of Markus Kuhn's decoder stress test: the section, whether the texts are
/// valid, and the texts.
const UTF8_TEXTS: [(u8, bool, &[&[u8]]); 20] = [
    (
        5,
        GOOD,
        &[
            b"hello\x24world",
            b"hello\xc2\xa2world",
            b"hello\xe2\x82\xacworld",
            b"hello\xf0\xa4\xad\xa2world",
            KOSME,
        ],
    ),
    (
        7,
        GOOD,
        &[b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"],
    ),
    (
        8,
        BAD,
        &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"],
    ),
    (
        9,
        GOOD,
        &[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"],
    ),
    (
        10,
        BAD,
        &[
            b"\xf7\xbf\xbf\xbf",
            b"\xfb\xbf\xbf\xbf\xbf",
            b"\xfd\xbf\xbf\xbf\xbf\xbf",
        ],
    ),
    (
        11,
        GOOD,
        &[
            b"\xed\x9f\xbf",
            b"\xee\x80\x80",
            b"\xef\xbf\xbd",
            b"\xf4\x8f\xbf\xbf",
        ],
    ),
    (11, BAD, &[b"\xf4\x90\x80\x80"]),
    (
        12,
        BAD,
        &[
            b"\x80",
            b"\xbf",
            b"\x80\xbf",
            b"\x80\xbf\x80",
            b"\x80\xbf\x80\xbf",
            b"\x80\xbf\x80\xbf\x80",
            b"\x80\xbf\x80\xbf\x80\xbf",
        ],
    ),
    (14, BAD, &LAST_BYTE_MISSING),
    (16, BAD, &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
    (
        17,
        BAD,
        &[
            b"\xc0\xaf",
            b"\xe0\x80\xaf",
            b"\xf0\x80\x80\xaf",
            b"\xf8\x80\x80\x80\xaf",
            b"\xfc\x80\x80\x80\x80\xaf",
        ],
    ),
    (
        18,
        BAD,
        &[
            b"\xc1\xbf",
            b"\xe0\x9f\xbf",
            b"\xf0\x8f\xbf\xbf",
            b"\xf8\x87\xbf\xbf\xbf",
            b"\xfc\x83\xbf\xbf\xbf\xbf",
        ],
    ),
    (
        19,
        BAD,
        &[
            b"\xc0\x80",
            b"\xe0\x80\x80",
            b"\xf0\x80\x80\x80",
            b"\xf8\x80\x80\x80\x80",
            b"\xfc\x80\x80\x80\x80\x80",
        ],
    ),
    (
        20,
        BAD,
        &[
            b"\xed\xa0\x80",
            b"\xed\xad\xbf",
            b"\xed\xae\x80",
            b"\xed\xaf\xbf",
            b"\xed\xb0\x80",
            b"\xed\xbe\x80",
            b"\xed\xbf\xbf",
        ],
    ),
    (
        21,
        BAD,
        &[
            b"\xed\xa0\x80\xed\xb0\x80",
            b"\xed\xa0\x80\xed\xbf\xbf",
            b"\xed\xad\xbf\xed\xb0\x80",
            b"\xed\xad\xbf\xed\xbf\xbf",
            b"\xed\xae\x80\xed\xb0\x80",
            b"\xed\xae\x80\xed\xbf\xbf",
            b"\xed\xaf\xbf\xed\xb0\x80",
            b"\xed\xaf\xbf\xed\xbf\xbf",
        ],
    ),
    (22, GOOD, &[b"\xef\xbf\xbe", b"\xef\xbf\xbf"]),
    // Specials, such as the replacement character.
    (23, GOOD, &[b"\xef\xbf\xb9", b"\xef\xbf\xba"]),
    (23, GOOD, &[b"\xef\xbf\xbb", b"\xef\xbf\xbc"]),
    (23, GOOD, &[b"\xef\xbf\xbd", b"\xef\xbf\xbe"]),
    (23, GOOD, &[b"\xef\xbf\xbf"]),
];

const LAST_BYTE_MISSING: [&[u8]; 10] = [
    b"\xc0",
    b"\xe0\x80",
    b"\xf0\x80\x80",
    b"\xf8\x80\x80\x80",
    b"\xfc\x80\x80\x80\x80",
    b"\xdf",
    b"\xef\xbf",
    b"\xf7\xbf\xbf",
    b"\xfb\xbf\xbf\xbf",
    b"\xfd\xbf\xbf\xbf\xbf",
];

/// Sections 6.5 to 6.23: whole texts.
fn utf8_texts() -> Vec<Case> {
    let fixed = UTF8_TEXTS.iter().flat_map(|(section, is_good, texts)| {
        let texts = texts.iter();
        texts.map(|text| (*section, *is_good, text.to_vec()))
    });
    let mut texts: Vec<(u8, bool, Vec<u8>)> = fixed.collect();
    texts.extend((1..=KOSME.len()).map(|length| {
        let prefix = &KOSME[..length];
        (6, str::from_utf8(prefix).is_ok(), prefix.to_vec())
    }));
    texts.push((12, BAD, (0x80..0xbf).collect()));
    for first in [
        0xc0..0xdf,
        0xe0..0xef,
        0xf0..0xf7,
        0xf8..0xfb,
        0xfc..0xfd_u8,
    ] {
        let lone = first.flat_map(|byte| [byte, b' ']);
        texts.push((13, BAD, lone.collect()));
    }
    texts.push((15, BAD, LAST_BYTE_MISSING.concat()));
    // The last two code points of each plane after the first: they are no characters, but valid UTF-8.
    for plane in 1..=16_u32 {
        for point in [0xfffe, 0xffff] {
            let point = char::from_u32(plane << 16 | point).expect("no surrogate");
            texts.push((22, GOOD, point.to_string().into_bytes()));
        }
    }
    texts.sort_by_key(|(section, ..)| *section);
    let mut numbers = [0; 24];
    let cases = texts.into_iter().map(|(section, is_good, text)| {
        numbers[usize::from(section)] += 1;
        let number = format!("6.{section}.{}", numbers[usize::from(section)]);
        let sent = vec![frame(TEXT, &text)];
        if is_good {
            passes(number, sent, vec![(TEXT, &text)])
        } else {
            fails(number, 1007, sent, vec![])
        }
    });
    cases.collect()
}

/// Section 7: close frames, their valid and invalid payloads, and frames after them.
fn closes() -> Vec<Case> {
    let normal = || Wire::close(1000, "");
    let followed_by = |number: &str, more: Wire| case(number, [normal(), more].map(Send));
    let answer = |mut case: Case, code| {
        case.steps.push(Answered(code));
        case
    };
    let only = |number: String, close: Wire, code| case(number, [Send(close), Answered(code)]);
    let text = frame(TEXT, "Hello World!");
    let large = b"BAsd7&jh23".repeat(26_215);
    let large = &large[..256 << 10];
    let mut cases = vec![
        passes("7.1.1", vec![text.clone()], vec![(TEXT, b"Hello World!")]),
        answer(followed_by("7.1.2", frame(CLOSE, "")), 1000),
        answer(followed_by("7.1.3", frame(PING, "")), 1000),
        answer(followed_by("7.1.4", text.clone()), 1000),
        case(
            "7.1.5",
            [
                Send(frame(TEXT, "fragment1").more()),
                Send(normal()),
                Send(frame(CONTINUATION, "fragment2")),
                Answered(1000),
            ],
        ),
        // The suite allows any result of this case. This server sends the messages before the close back.
        case(
            "7.1.6",
            [
                Send(frame(TEXT, large)),
                Send(text),
                Send(normal()),
                Send(frame(PING, "")),
                Hear(TEXT, large.to_vec()),
                Hear(TEXT, b"Hello World!".to_vec()),
                Answered(1000),
            ],
        ),
        only("7.3.1".to_owned(), frame(CLOSE, ""), 1005),
        only("7.3.2".to_owned(), frame(CLOSE, "a"), 1002),
        only("7.3.3".to_owned(), normal(), 1000),
        only("7.3.4".to_owned(), Wire::close(1000, "Hello World!"), 1000),
        only("7.3.5".to_owned(), Wire::close(1000, [b'*'; 123]), 1000),
        only("7.3.6".to_owned(), Wire::close(1000, [b'*'; 124]), 1002),
        only(
            "7.5.1".to_owned(),
            Wire::close(1000, [KOSME, b"\xed\xa0\x80edited"].concat()),
            1007,
        ),
    ];
    let valid = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999,
    ];
    let valid = valid.into_iter().zip(1..);
    cases.extend(valid.map(|(code, n)| only(format!("7.7.{n}"), Wire::close(code, ""), code)));
    let invalid = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999];
    let invalid = invalid.into_iter().zip(1..);
    cases.extend(invalid.map(|(code, n)| only(format!("7.9.{n}"), Wire::close(code, ""), 1002)));
    // Informational in the suite: the largest valid code is 4999.
    for (number, code) in [("7.13.1", 5000), ("7.13.2", 65535)] {
        cases.push(only(number.to_owned(), Wire::close(code, ""), 1002));
    }
    cases
}

/// Section 10: a message in fragments of 1300 bytes.
fn automatic() -> Vec<Case> {
    let text = vec![b'*'; 65536];
    vec![passes(
        "10.1.1",
        in_fragments(&text, 1300),
        vec![(TEXT, &text)],
    )]
}

async fn check(cases: Vec<Case>, count: usize) {
    assert_eq!(cases.len(), count);
    let echo = Echo::start().await;
    for case in &cases {
        echo.play(case, Chop::Together).await;
        echo.play(case, Chop::Frames).await;
        // Byte by byte if the case is short; a long case would take minutes.
        let length = case.steps.iter().map(|step| match step {
            Send(frame) => frame.bytes().len(),
            Bytes(bytes) => bytes.len(),
            _ => 0,
        });
        let short = length.sum::<usize>() < 4096;
        let bytes = if short { 1 } else { 997 };
        echo.play(case, Chop::Pieces(bytes)).await;
    }
    // All sessions have ended, and no frame counted as a message to a user.
    let gone = tokio::time::timeout(PATIENCE, async {
        while echo.relay.users() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    gone.await.expect("all sessions end");
    let totals = LedgerTotals::read(&echo.metrics, || 0);
    assert_eq!((totals.received, totals.gap()), (0, 0));
}

#[tokio::test]
async fn section_1_framing() {
    check(framing(), 16).await;
}

#[tokio::test]
async fn section_2_pings_and_pongs() {
    check(pings(), 11).await;
}

#[tokio::test]
async fn sections_3_and_4_reserved_bits_and_opcodes() {
    check(reserved(), 17).await;
}

#[tokio::test]
async fn section_5_fragmentation() {
    check(fragments(), 8).await;
    check(broken_fragments(), 12).await;
}

#[tokio::test]
async fn section_6_utf8() {
    check(utf8_fragments(), 13).await;
    check(utf8_texts(), 132).await;
}

#[tokio::test]
async fn section_7_closes() {
    check(closes(), 37).await;
}

#[tokio::test]
async fn section_10_automatic_fragmentation() {
    check(automatic(), 1).await;
}
