//! One session on paused time: how much it holds for a peer that does not read, how long it waits, and how often it
//! runs meanwhile.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::{Value, json};
use switchboard::admission::token_bucket::Rate;
use switchboard::config::Overflow;
use switchboard::net::{Directions, Transport};
use switchboard::protocol::Dialect;
use switchboard::session::{Session, SessionConfig, Welcome};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::time::{Instant, timeout};

use crate::session::{
    ReadBy, SECOND, TestRelay, config, frame, message, next_frame, run_all_tasks,
};

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// More than any session of these tests lasts.
const LONG: Duration = Duration::from_hours(1);

/// A peer to which the relay can write so many bytes before it reads. What it sends is not limited.
async fn deaf_user(
    relay: &TestRelay,
    dialect: Dialect,
    room: usize,
) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let (from_client, to_server) = tokio::io::simplex(1 << 20);
    let (from_server, to_client) = tokio::io::simplex(room);
    let ours = tokio::io::join(from_client, to_client);
    relay.session(dialect, ours).await;
    tokio::io::join(from_server, to_server)
}

fn ask(to: u64, id: u64) -> Vec<u8> {
    let json = json!({"recipient_id": to, "message": "", "id": id});
    frame(1, json.to_string().as_bytes())
}

fn close_code(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[0], payload[1]])
}

/// The next frame that is no ping.
async fn hear(client: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    loop {
        let heard = next_frame(client).await.expect("a frame");
        if heard.0 != PING {
            return heard;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pongs_that_a_peer_does_not_read_are_bounded_and_the_last_one_comes() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let mut peer = deaf_user(&relay, Dialect::Bare, 200).await;
    for number in 0..200_u8 {
        let ping = frame(PING, &[number; 125]);
        peer.write_all(&ping).await.unwrap();
    }
    tokio::time::sleep(SECOND).await;
    let mut pongs = Vec::new();
    while pongs.last() != Some(&199) {
        let (opcode, payload) = next_frame(&mut peer).await.unwrap();
        assert_eq!(opcode, PONG, "the last pong does not come");
        pongs.push(payload[0]);
    }
    assert!(pongs.is_sorted(), "{pongs:?}");
    // Those in the pipe, 4 KiB of them in the session, 1 KiB in the library, and the newest one.
    assert!(pongs.len() <= 2 + 32 + 8 + 1, "{} pongs", pongs.len());
}

/// The write buffer leaves in the turn that has filled it with pongs, and nothing else wakes the session.
#[tokio::test(start_paused = true)]
async fn a_pong_that_found_no_room_follows_when_the_buffer_has_left() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let mut peer = deaf_user(&relay, Dialect::Bare, 1 << 20).await;
    // The message makes the chunk none of small frames, so that one turn passes on all of it.
    let text = format!(
        "{{\"recipient_id\":9,\"message\":\"{}\"}}",
        "x".repeat(20_000)
    );
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    let mut chunk = [&[0x81, 0xfe], &length[..], &[0; 4], text.as_bytes()].concat();
    for number in 0..60_u8 {
        chunk.extend(frame(PING, &[number; 125]));
    }
    peer.write_all(&chunk).await.unwrap();
    run_all_tasks().await;
    let mut last = None;
    while last != Some(59) {
        let pong = timeout(SECOND, next_frame(&mut peer)).await;
        let (opcode, payload) = pong.expect("the last pong comes").unwrap();
        assert_eq!(opcode, PONG);
        last = Some(payload[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_goes_on_has_the_whole_timeout_again() {
    let patient = SessionConfig {
        ping_interval: LONG,
        ..config()
    };
    let relay = TestRelay::with(Overflow::DropNewest, patient);
    let (mut slow, session) = relay.user(Dialect::Bare, 100).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    for _ in 0..8 {
        let message = message(1, &"x".repeat(60));
        sender.write_all(&message).await.unwrap();
    }
    for _ in 0..5 {
        tokio::time::sleep(9 * SECOND).await;
        let heard = next_frame(&mut slow).await;
        assert_eq!(heard.expect("the session goes on").0, 1);
    }
    run_all_tasks().await;
    let blocked = Instant::now();
    session.await.unwrap();
    assert!(blocked.elapsed().abs_diff(10 * SECOND) < SECOND / 100);
}

/// Each of its frames wakes the session, which then writes again in vain.
#[tokio::test(start_paused = true)]
async fn a_write_without_progress_gets_no_more_time_however_much_the_peer_sends() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (from_client, to_server) = tokio::io::simplex(1 << 20);
    let (_from_server, to_client) = tokio::io::simplex(40);
    let ours = tokio::io::join(from_client, to_client);
    let session = relay.session(Dialect::Bare, ours).await;
    let mut peer = to_server;
    for _ in 0..3 {
        peer.write_all(&message(1, "to myself")).await.unwrap();
    }
    run_all_tasks().await;
    let blocked = Instant::now();
    while !session.is_finished() {
        // A pong, so that the missing answer to a ping is not the reason.
        drop(peer.write_all(&frame(PONG, b"")).await);
        tokio::time::sleep(SECOND / 2).await;
        assert!(blocked.elapsed() < 11 * SECOND);
    }
    let series =
        "switchboard_connections_closed_total{code=\"write_timeout\",initiator=\"server\"}";
    assert_eq!(relay.metric(series), 1);
}

/// All messages are in the write buffer when the socket takes no more. Those behind the first go back, so that newer
/// ones can replace them.
#[tokio::test(start_paused = true)]
async fn messages_in_the_write_buffer_make_room_for_newer_ones() {
    let relay = TestRelay::new(Overflow::DropOldest);
    let (mut slow, _slow) = relay.user(Dialect::Bare, 40).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    let all = |numbers: std::ops::Range<u64>| -> Vec<u8> {
        let messages = numbers.map(|number| message(1, &number.to_string()));
        messages.collect::<Vec<_>>().concat()
    };
    sender.write_all(&all(100..108)).await.unwrap();
    run_all_tasks().await;
    sender.write_all(&all(108..120)).await.unwrap();
    run_all_tasks().await;
    assert_eq!(relay.ledger().2, 8);
    let mut texts = Vec::new();
    for _ in 0..9 {
        let (_, payload) = next_frame(&mut slow).await.unwrap();
        let value: Value = serde_json::from_slice(&payload).unwrap();
        texts.push(value["message"].as_str().unwrap().to_owned());
    }
    assert_eq!(
        texts[2..],
        ["113", "114", "115", "116", "117", "118", "119"]
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_for_outcomes_a_missing_pong_closes() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let mut peer = deaf_user(&relay, Dialect::V1, 90).await;
    assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
    assert_eq!(next_frame(&mut peer).await.unwrap().0, PING);
    for id in 0..6 {
        peer.write_all(&ask(9, id)).await.unwrap();
        run_all_tasks().await;
    }
    let read = relay.metric("switchboard_messages_received_total");
    assert!(read < 6, "reading has not paused");
    tokio::time::sleep(9 * SECOND).await;
    for _ in 0..6 {
        assert_eq!(hear(&mut peer).await.0, 1);
    }
    let begin = Instant::now();
    let (opcode, payload) = hear(&mut peer).await;
    assert_eq!((opcode, close_code(&payload)), (CLOSE, 1008));
    assert!(
        begin.elapsed() < 11 * SECOND,
        "{:?} until the close",
        begin.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_pause_for_outcomes_with_no_ping_before_it_needs_no_pong() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let mut peer = deaf_user(&relay, Dialect::V1, 90).await;
    assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
    for id in 0..6 {
        peer.write_all(&ask(9, id)).await.unwrap();
        run_all_tasks().await;
    }
    let read = relay.metric("switchboard_messages_received_total");
    assert!(read < 6, "reading has not paused");
    tokio::time::sleep(5 * SECOND).await;
    for _ in 0..6 {
        assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
    }
    assert_eq!(next_frame(&mut peer).await.unwrap().0, PING);
}

#[tokio::test(start_paused = true)]
async fn frames_that_end_no_message_count_towards_the_rate_of_bytes() {
    let first = vec![0x01, 0x81, 0, 0, 0, 0, b' '];
    let more = vec![0x00, 0x81, 0, 0, 0, 0, b' '];
    for frames in [
        vec![frame(PING, b""); 3],
        vec![frame(PONG, b""); 3],
        vec![first, more.clone(), more],
    ] {
        let limited = SessionConfig {
            byte_rate: Some(Rate::per_second(50, 1)),
            ..config()
        };
        let relay = TestRelay::with(Overflow::DropNewest, limited);
        let (mut peer, _session) = relay.user(Dialect::Bare, 4096).await;
        for frame in &frames {
            peer.write_all(frame).await.unwrap();
        }
        let (opcode, payload) = loop {
            let heard = timeout(SECOND, next_frame(&mut peer)).await;
            match heard.expect("the relay closes").expect("a close frame") {
                (PONG, _) => {}
                heard => break heard,
            }
        };
        assert_eq!((opcode, close_code(&payload)), (CLOSE, 1008), "{frames:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_and_has_no_id_is_a_bad_message() {
    let limited = SessionConfig {
        message_bytes: 50,
        bad_messages: 2,
        outcomes_pending: 100,
        ..config()
    };
    let relay = TestRelay::with(Overflow::DropNewest, limited);
    let (mut peer, _session) = relay.user(Dialect::V1, 4096).await;
    assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
    for _ in 0..2 {
        let large = message(1, &"x".repeat(40));
        peer.write_all(&large).await.unwrap();
        let (_, payload) = next_frame(&mut peer).await.unwrap();
        let error: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(error["code"], "too_large", "{error}");
    }
    let (opcode, payload) = next_frame(&mut peer).await.unwrap();
    assert_eq!((opcode, close_code(&payload)), (CLOSE, 1008));
}

#[tokio::test(start_paused = true)]
async fn errors_that_a_peer_does_not_read_are_bounded() {
    let lenient = SessionConfig {
        bad_messages: u32::MAX,
        ..config()
    };
    let relay = TestRelay::with(Overflow::DropNewest, lenient);
    // Room for the welcome and one error.
    let mut peer = deaf_user(&relay, Dialect::V1, 300).await;
    for _ in 0..100 {
        peer.write_all(&frame(1, b"[")).await.unwrap();
        run_all_tasks().await;
    }
    let read = relay.metric("switchboard_bad_messages_total");
    // Those in the pipe, and two that the user is owed at most.
    assert!(
        (1..=8).contains(&read),
        "{read} bad messages were read and answered"
    );
}

/// Counts how often a future runs.
struct Counted<F> {
    future: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polls = self.polls.fetch_add(1, Relaxed);
        assert!(polls < 10_000, "the session runs without an end");
        self.future.as_mut().poll(cx)
    }
}

/// What has been due must not stay due: the timer would fire again and again.
#[tokio::test(start_paused = true)]
async fn a_session_that_closes_sleeps_until_its_deadline() {
    // Closed by the token, and by the peer while an outcome is missing.
    for peer_closes in [false, true] {
        let patient = SessionConfig {
            write_timeout: 100 * SECOND,
            ..config()
        };
        let relay = TestRelay::with(Overflow::DropNewest, patient);
        let _stalled = relay.user(Dialect::Bare, 4).await;
        let (ours, mut peer) = duplex(4096);
        let membership = relay.relay.join(Dialect::V1, None, None).await.unwrap();
        let (welcome, context) = (Welcome::default(), relay.context.clone());
        let mut session = Session::new(ours, &[], membership, &welcome, context);
        session.expire_in(2 * SECOND);
        let polls = Arc::new(AtomicUsize::new(0));
        let session = tokio::spawn(Counted {
            future: Box::pin(session),
            polls: polls.clone(),
        });
        if peer_closes {
            let close = frame(CLOSE, &1000_u16.to_be_bytes());
            let all = [ask(1, 1), close].concat();
            peer.write_all(&all).await.unwrap();
        }
        // The peer neither reads nor answers.
        session.await.unwrap();
        let polls = polls.load(Relaxed);
        assert!(polls < 60, "{polls} turns in some seconds");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_of_one_time_are_not_asked_to_reconnect_at_one_time() {
    let old = SessionConfig {
        connection_age: Some(1000 * SECOND),
        ping_interval: 5000 * SECOND,
        ..config()
    };
    let mut ages = Vec::new();
    for _ in 0..40 {
        let relay = TestRelay::with(Overflow::DropNewest, old.clone());
        let begin = Instant::now();
        let (mut peer, _session) = relay.user(Dialect::V1, 4096).await;
        assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
        let (_, payload) = next_frame(&mut peer).await.unwrap();
        assert!(payload.starts_with(br#"{"type":"reconnect""#));
        ages.push(begin.elapsed().as_secs());
    }
    let (first, last) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    // A fifth either way. That forty ages leave out a third of the range on a side happens once in 5 million times.
    assert!((800..=933).contains(first), "{ages:?}");
    assert!((1067..=1201).contains(last), "{ages:?}");
}

#[tokio::test(start_paused = true)]
async fn a_second_panic_ends_the_session_at_once() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (io, mut peer) = duplex(4096);
    let panics = Arc::new(AtomicUsize::new(0));
    let reads = panics.clone();
    let socket = ReadBy::new(io, move |_, _, _| {
        // Nobody catches what the orderly end of an ended session panics with.
        if reads.fetch_add(1, Relaxed) >= 2 {
            return Poll::Pending;
        }
        panic!("the socket panics in its first two reads");
    });
    let session = relay.session(Dialect::Bare, socket).await;
    let begin = Instant::now();
    session.await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert!(panics.load(Relaxed) >= 2);
    assert_eq!(relay.metric("switchboard_session_panics_total"), 2);
    let series = "switchboard_connections_closed_total{code=\"1011\",initiator=\"server\"}";
    assert_eq!(relay.metric(series), 1);
    drop(peer.shutdown().await);
}

/// The peer ends its side only after the relay's, as a proxy between them may do.
#[tokio::test(start_paused = true)]
async fn the_relay_ends_its_side_before_the_peer_does() {
    for first in ["the relay", "the peer"] {
        let relay = TestRelay::new(Overflow::DropNewest);
        let (mut peer, session) = relay.user(Dialect::Bare, 4096).await;
        let begin = Instant::now();
        if first == "the peer" {
            let close = frame(CLOSE, &1000_u16.to_be_bytes());
            peer.write_all(&close).await.unwrap();
        } else {
            peer.write_all(&frame(1, b"[]")).await.unwrap();
        }
        let (opcode, payload) = next_frame(&mut peer).await.unwrap();
        assert_eq!(opcode, CLOSE);
        if first == "the relay" {
            peer.write_all(&frame(CLOSE, &payload[..2])).await.unwrap();
        }
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
        assert!(begin.elapsed() < SECOND, "{first} closes first");
        run_all_tasks().await;
        assert!(!session.is_finished(), "it waits for the peer's end");
        drop(peer);
        session.await.unwrap();
    }
}

/// A user that sends itself eight messages over a stream that brings at most `piece` bytes at a read, as TLS does with
/// small records. Returns the time of each read and the number of the session's turn, and how many bytes all are.
async fn reads_of(piece: usize) -> (Vec<(Instant, usize)>, usize) {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (ours, mut client) = duplex(1 << 16);
    let turns = Arc::new(AtomicUsize::new(0));
    let reads: Arc<Mutex<Vec<_>>> = Arc::default();
    let (turn, noted) = (turns.clone(), reads.clone());
    let stream = ReadBy::new(ours, move |io, cx, buffer| {
        let mut bytes = vec![0; piece.min(buffer.remaining())];
        let mut bytes = ReadBuf::new(&mut bytes);
        ready!(io.poll_read(cx, &mut bytes))?;
        buffer.put_slice(bytes.filled());
        noted
            .lock()
            .unwrap()
            .push((Instant::now(), turn.load(Relaxed)));
        Poll::Ready(Ok(()))
    });
    let membership = relay.relay.join(Dialect::Bare, None, None).await.unwrap();
    let (welcome, context) = (Welcome::default(), relay.context.clone());
    let mut session = Box::pin(Session::new(stream, &[], membership, &welcome, context));
    tokio::spawn(poll_fn(move |cx| {
        turns.fetch_add(1, Relaxed);
        session.as_mut().poll(cx)
    }));
    let sent = message(1, &"x".repeat(60)).repeat(8);
    client.write_all(&sent).await.unwrap();
    for _ in 0..8 {
        hear(&mut client).await;
    }
    let reads = reads.lock().unwrap().clone();
    (reads, sent.len())
}

/// The most reads that have the same in common.
fn most_at_once<T: PartialEq>(reads: impl Iterator<Item = T>) -> usize {
    let reads: Vec<T> = reads.collect();
    let turns = reads.chunk_by(PartialEq::eq);
    turns.map(<[T]>::len).max().unwrap_or_default()
}

/// Each TLS record costs a read, however little is in it.
#[tokio::test(start_paused = true)]
async fn a_turn_makes_four_reads_and_the_next_one_waits_where_they_brought_nearly_nothing() {
    for (piece, is_slow) in [(1, true), (5, true), (6, false), (100, false)] {
        let (reads, bytes) = reads_of(piece).await;
        assert_eq!(reads.len(), bytes.div_ceil(piece), "{piece}");
        assert_eq!(most_at_once(reads.iter().map(|read| read.1)), 4, "{piece}");
        let took = reads[reads.len() - 1].0 - reads[0].0;
        let turns = u32::try_from(reads.len().div_ceil(4)).unwrap();
        let waits = Duration::from_millis(1) * (turns - 1);
        let expected = if is_slow { waits } else { Duration::ZERO };
        assert_eq!(took, expected, "{piece}: {turns} turns");
    }
}

/// A socket about which the kernel knows more than tokio, as in a relay that was frozen. It is never ready to be read.
struct StaleSocket {
    known: Arc<Mutex<Directions>>,
    takes_all: bool,
}

impl Transport for StaleSocket {
    fn readiness(&self) -> Directions {
        *self.known.lock().unwrap()
    }
}

impl AsyncRead for StaleSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for StaleSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.takes_all {
            Poll::Ready(Ok(bytes.len()))
        } else {
            Poll::Pending
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The peer has answered, or has made room, and the session could not see it yet.
#[tokio::test(start_paused = true)]
async fn what_the_kernel_knows_of_a_peer_counts_at_a_deadline() {
    let without_pings = SessionConfig {
        ping_interval: LONG,
        ..config()
    };
    for (config, takes_all, code) in [
        (config(), true, "pong_timeout"),
        (without_pings, false, "write_timeout"),
    ] {
        let relay = TestRelay::with(Overflow::DropNewest, config);
        let known = Arc::new(Mutex::new(Directions {
            read: takes_all,
            write: !takes_all,
        }));
        let socket = StaleSocket {
            known: known.clone(),
            takes_all,
        };
        // Its first frame is the welcome.
        let session = relay.session(Dialect::V1, socket).await;
        tokio::time::sleep(100 * SECOND).await;
        assert!(!session.is_finished(), "{code}");
        *known.lock().unwrap() = Directions::default();
        timeout(100 * SECOND, session).await.expect(code).unwrap();
        let series =
            format!("switchboard_connections_closed_total{{code=\"{code}\",initiator=\"server\"}}");
        assert_eq!(relay.metric(&series), 1);
    }
}
