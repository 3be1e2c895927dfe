//! One session by itself, over a socket in memory and on paused time: its deadlines, which messages a write
//! that stops half-way settles, and what a panic leaves.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use switchboard::admission::token_bucket::Rate;
use switchboard::config::Overflow;
use switchboard::directory::{Budget, Client, Command, MailboxBounds};
use switchboard::net::Transport;
use switchboard::protocol::Dialect;
use switchboard::relay::{Dependencies, Relay};
use switchboard::session::{Session, SessionConfig, SessionContext, Welcome};
use switchboard::telemetry::metrics::{Exposition, Metrics};
use switchboard::telemetry::traces::Traces;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn config() -> SessionConfig {
    SessionConfig {
        ping_interval: 25 * SECOND,
        pong_timeout: 10 * SECOND,
        slowest_rate: 4096,
        write_timeout: 10 * SECOND,
        close_timeout: 5 * SECOND,
        connection_age: None,
        message_bytes: 64 << 10,
        frame_bytes: 128 << 10,
        bad_messages: 16,
        outcomes_pending: 2,
        message_rate: None,
        byte_rate: None,
        echo: false,
    }
}

/// A relay without a network.
pub(crate) struct TestRelay {
    pub(crate) relay: Relay,
    pub(crate) context: Arc<SessionContext>,
    metrics: Arc<Metrics>,
    /// The clients of its users, in the order of their ids.
    clients: Mutex<Vec<Arc<Client>>>,
}

impl TestRelay {
    pub(crate) fn new(overflow: Overflow) -> Self {
        Self::with(overflow, config())
    }

    pub(crate) fn with(overflow: Overflow, config: SessionConfig) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let bounds = MailboxBounds {
            messages: 8,
            bytes: 1 << 20,
            max_age: Duration::MAX,
            overflow,
            budget: Budget::new(1 << 30),
        };
        let relay = Relay::new(bounds, 10, metrics.clone(), Arc::new(Traces::off()));
        let context = Arc::new(SessionContext::new(config, metrics.clone()));
        Self {
            relay,
            context,
            metrics,
            clients: Mutex::default(),
        }
    }

    /// Joins a user behind a pipe that holds `room` bytes each way.
    pub(crate) async fn user(
        &self,
        dialect: Dialect,
        room: usize,
    ) -> (DuplexStream, JoinHandle<()>) {
        let (ours, theirs) = duplex(room);
        (theirs, self.session(dialect, ours).await)
    }

    pub(crate) async fn session<S>(&self, dialect: Dialect, io: S) -> JoinHandle<()>
    where
        S: Transport + Send + 'static,
    {
        let membership = self.relay.join(dialect, None, None).await.unwrap();
        self.clients
            .lock()
            .unwrap()
            .push(membership.client().clone());
        let context = self.context.clone();
        let session = Session::new(io, &[], membership, &Welcome::default(), context);
        tokio::spawn(session)
    }

    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.metrics.scrape(Exposition::Text, || self.relay.stats());
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or("0").parse().unwrap()
    }

    /// Returns the messages received, delivered and still held. Asserts that all others are counted as dropped.
    pub(crate) fn ledger(&self) -> (u64, u64, u64) {
        let dropped: u64 = [
            "offline",
            "queue_full",
            "expired",
            "disconnected",
            "too_large",
            "rate_limited",
            "draining",
        ]
        .iter()
        .map(|reason| {
            self.metric(&format!(
                "switchboard_messages_dropped_total{{reason=\"{reason}\"}}"
            ))
        })
        .sum();
        let received = self.metric("switchboard_messages_received_total");
        let delivered = self.metric("switchboard_messages_delivered_total");
        let held = self.metric("switchboard_mailbox_messages");
        assert_eq!(received, delivered + dropped + held);
        (received, delivered, held)
    }
}

/// A frame with a payload of up to 125 bytes and a mask of zeros.
pub(crate) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![
        0x80 | opcode,
        0x80 | u8::try_from(payload.len()).unwrap(),
        0,
        0,
        0,
        0,
    ];
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn message(to: u64, text: &str) -> Vec<u8> {
    let json = format!("{{\"recipient_id\":{to},\"message\":\"{text}\"}}");
    frame(1, json.as_bytes())
}

/// Reads the next frame, of up to 125 bytes; nothing at the end, which an abort puts within a frame.
pub(crate) async fn next_frame(client: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[1])];
    client.read_exact(&mut payload).await.ok()?;
    Some((head[0] & 0x0f, payload))
}

/// Writes a message to user `to` for each text.
async fn say(
    client: &mut (impl AsyncWrite + Unpin),
    to: u64,
    texts: impl IntoIterator<Item = impl ToString>,
) {
    for text in texts {
        let message = message(to, &text.to_string());
        client.write_all(&message).await.unwrap();
    }
}

/// Reads the text of the next message.
async fn hear(client: &mut (impl AsyncRead + Unpin)) -> String {
    let (_, payload) = next_frame(client).await.unwrap();
    let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    value["message"].as_str().unwrap().to_owned()
}

/// Lets all tasks run until they have nothing to do.
pub(crate) async fn run_all_tasks() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_ping_comes_in_the_second_half_of_the_interval() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let begin = Instant::now();
    let (mut client, _session) = relay.user(Dialect::Bare, 1024).await;
    assert_eq!(next_frame(&mut client).await.unwrap().0, 9);
    let first = begin.elapsed();
    assert!(
        first >= Duration::from_millis(12_500) && first <= Duration::from_millis(25_002),
        "{first:?}"
    );
    client.write_all(&frame(10, &[])).await.unwrap();
    assert_eq!(next_frame(&mut client).await.unwrap().0, 9);
    let second = begin.elapsed();
    assert!(
        second.abs_diff(first + 25 * SECOND) < Duration::from_millis(5),
        "{second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_pong_closes_and_a_missing_answer_to_the_close_ends() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (mut client, session) = relay.user(Dialect::Bare, 1024).await;
    assert_eq!(next_frame(&mut client).await.unwrap().0, 9);
    let pinged = Instant::now();
    let (opcode, payload) = next_frame(&mut client).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1008_u16.to_be_bytes()[..]));
    assert!(pinged.elapsed().abs_diff(10 * SECOND) < Duration::from_millis(5));
    let closed = Instant::now();
    assert_eq!(next_frame(&mut client).await, None);
    assert!(closed.elapsed().abs_diff(5 * SECOND) < Duration::from_millis(5));
    session.await.unwrap();
    let series = "switchboard_connections_closed_total{code=\"pong_timeout\",initiator=\"server\"}";
    assert_eq!(relay.metric(series), 1);
}

/// What the relay sends next is its close for a missing pong. Returns how long that took, in seconds.
async fn seconds_to_pong_timeout(client: &mut (impl AsyncRead + Unpin), begin: Instant) -> f64 {
    let (opcode, payload) = next_frame(client).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1008_u16.to_be_bytes()[..]));
    begin.elapsed().as_secs_f64()
}

/// RFC 6455 section 5.4: a pong cannot be inside a frame that is on its way.
#[tokio::test(start_paused = true)]
async fn bytes_that_come_are_a_sign_of_life() {
    for dialect in [Dialect::Bare, Dialect::V1] {
        let relay = TestRelay::new(Overflow::DropNewest);
        let (mut client, _session) = relay.user(dialect, 1024).await;
        while next_frame(&mut client).await.unwrap().0 != 9 {}
        let message = message(1, &"x".repeat(40));
        for byte in &message[..30] {
            client.write_all(std::slice::from_ref(byte)).await.unwrap();
            tokio::time::sleep(9 * SECOND).await;
        }
        client.write_all(&message[30..]).await.unwrap();
        assert_eq!(next_frame(&mut client).await.unwrap().0, 1);
        // No pong has come, so the next silence is the last.
        let silent = seconds_to_pong_timeout(&mut client, Instant::now()).await;
        assert!((10.0..10.2).contains(&silent), "{dialect:?}: {silent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocked_write_that_goes_on_is_a_sign_of_life() {
    for dialect in [Dialect::Bare, Dialect::V1] {
        let relay = TestRelay::new(Overflow::DropNewest);
        let (mut slow, _slow) = relay.user(dialect, 100).await;
        let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
        for _ in 0..8 {
            let message = message(1, &"x".repeat(60));
            sender.write_all(&message).await.unwrap();
        }
        // It reads for twice as long as the time to a ping and for its pong.
        let mut opcodes = Vec::new();
        while relay.ledger() != (8, 8, 0) {
            opcodes.push(next_frame(&mut slow).await.unwrap().0);
            tokio::time::sleep(9 * SECOND).await;
        }
        assert!(!opcodes.contains(&8), "{dialect:?}: {opcodes:?}");
        assert!(opcodes.contains(&9), "{dialect:?}: {opcodes:?}");
    }
}

/// The kernel takes messages for a dead peer, too.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_blocked_is_no_sign_of_life() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (mut dead, session) = relay.user(Dialect::Bare, 1 << 20).await;
    assert_eq!(next_frame(&mut dead).await.unwrap().0, 9);
    let pinged = Instant::now();
    while !session.is_finished() {
        let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
        let message = message(1, "are you there?");
        sender.write_all(&message).await.unwrap();
        tokio::time::sleep(SECOND).await;
    }
    let ended = pinged.elapsed();
    // The time for the pong, and the time for the answer to the close.
    assert!(ended < 17 * SECOND, "{ended:?}");
}

/// A pong comes behind all that was written before its ping.
#[tokio::test(start_paused = true)]
async fn a_pong_has_more_time_by_what_the_slowest_link_needs() {
    for answers in [0, 1] {
        let ten_bytes_a_second = SessionConfig {
            slowest_rate: 10,
            ..config()
        };
        let relay = TestRelay::with(Overflow::DropNewest, ten_bytes_a_second);
        let (mut client, _session) = relay.user(Dialect::Bare, 4096).await;
        say(&mut client, 1, ["hi"; 5]).await;
        let mut bytes = 0;
        for answer in 0..=answers {
            loop {
                let (opcode, payload) = next_frame(&mut client).await.unwrap();
                if opcode == 9 {
                    break;
                }
                bytes += 2 + payload.len();
            }
            if answer < answers {
                client.write_all(&frame(10, &[])).await.unwrap();
            }
        }
        let silent = seconds_to_pong_timeout(&mut client, Instant::now()).await;
        // A pong shows that what was before its ping has been read.
        let ahead = [bytes, 0][answers];
        let expected = 10.0 + f64::from(u32::try_from(ahead).unwrap()) / 10.0;
        assert!(bytes > 100, "{bytes}");
        assert!((silent - expected).abs() < 0.3, "{silent}, not {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_asked_to_reconnect() {
    let old = SessionConfig {
        connection_age: Some(1000 * SECOND),
        ..config()
    };
    let relay = TestRelay::with(Overflow::DropNewest, old);
    let begin = Instant::now();
    let (mut client, session) = relay.user(Dialect::V1, 1024).await;
    assert_eq!(next_frame(&mut client).await.unwrap().0, 1);
    let (opcode, payload) = loop {
        let frame = next_frame(&mut client).await.unwrap();
        if frame.0 != 9 {
            break frame;
        }
        client.write_all(&self::frame(10, &[])).await.unwrap();
    };
    let age = begin.elapsed();
    assert!(age >= 800 * SECOND && age <= 1201 * SECOND, "{age:?}");
    assert_eq!(
        (opcode, &payload[..]),
        (1, &br#"{"type":"reconnect","after_ms":0}"#[..])
    );
    let (opcode, payload) = next_frame(&mut client).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1012_u16.to_be_bytes()[..]));
    client
        .write_all(&self::frame(8, &payload[..2]))
        .await
        .unwrap();
    session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn messages_are_settled_when_flushed_and_the_rest_when_the_write_times_out() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (mut slow, session) = relay.user(Dialect::Bare, 100).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    let text = "x".repeat(30);
    say(&mut sender, 1, vec![text; 5]).await;
    run_all_tasks().await;
    // Each frame has 59 bytes, so the pipe holds the first and a part of the second.
    assert_eq!(relay.ledger(), (5, 1, 4));
    assert!(next_frame(&mut slow).await.is_some());
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (5, 2, 3));
    let stalled = Instant::now();
    session.await.unwrap();
    assert!(stalled.elapsed().abs_diff(10 * SECOND) < Duration::from_millis(5));
    assert_eq!(relay.ledger(), (5, 2, 0));
    let series =
        "switchboard_connections_closed_total{code=\"write_timeout\",initiator=\"server\"}";
    assert_eq!(relay.metric(series), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_gets_the_newest_messages_where_the_oldest_are_dropped() {
    let relay = TestRelay::new(Overflow::DropOldest);
    let (mut slow, _slow) = relay.user(Dialect::Bare, 40).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    for number in 100..120 {
        say(&mut sender, 1, [number]).await;
        run_all_tasks().await;
    }
    assert_eq!(relay.ledger().2, 8);
    let mut texts = Vec::new();
    for _ in 0..9 {
        texts.push(hear(&mut slow).await);
    }
    // A message that has begun to leave cannot be taken back. Behind it come the newest, in order.
    assert_eq!(texts[0], "100");
    assert_eq!(
        texts[2..],
        ["113", "114", "115", "116", "117", "118", "119"]
    );
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (20, 9, 0));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_outcomes_is_not_read_from_and_needs_no_pong_meanwhile() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (from_client, to_server) = tokio::io::simplex(4096);
    let (from_server, to_client) = tokio::io::simplex(90);
    let ours = tokio::io::join(from_client, to_client);
    let _session = relay.session(Dialect::V1, ours).await;
    let mut client = tokio::io::join(from_server, to_server);
    assert_eq!(next_frame(&mut client).await.unwrap().0, 1);
    assert_eq!(next_frame(&mut client).await.unwrap().0, 9);
    // It does not read the outcomes: two are owed, so the session stops reading, and the pong comes behind.
    for id in 0..6 {
        let json = format!("{{\"recipient_id\":9,\"message\":\"\",\"id\":{id}}}");
        client.write_all(&frame(1, json.as_bytes())).await.unwrap();
        run_all_tasks().await;
    }
    let read = relay.metric("switchboard_messages_received_total");
    assert!(read < 6, "all {read} were read");
    client.write_all(&frame(10, &[])).await.unwrap();
    tokio::time::sleep(9 * SECOND).await;
    for id in 0..6 {
        let (opcode, payload) = next_frame(&mut client).await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((opcode, &value["id"]), (1, &serde_json::json!(id)));
    }
    // The pong clock stood still, so the next frame is a ping and no close.
    assert_eq!(next_frame(&mut client).await.unwrap().0, 9);
    assert_eq!(relay.ledger().0, 6);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_close_frame() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (mut closing, session) = relay.user(Dialect::Bare, 4096).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    closing.write_all(&frame(1, b"[]")).await.unwrap();
    run_all_tasks().await;
    say(&mut sender, 1, ["late"]).await;
    run_all_tasks().await;
    let (opcode, payload) = next_frame(&mut closing).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1007_u16.to_be_bytes()[..]));
    // Behind the relay's close frame nothing counts as a message.
    say(&mut closing, 2, ["too late"]).await;
    closing
        .write_all(&frame(8, &1007_u16.to_be_bytes()))
        .await
        .unwrap();
    assert_eq!(next_frame(&mut closing).await, None);
    session.await.unwrap();
    assert_eq!(relay.ledger(), (1, 0, 0));
    assert_eq!(
        relay.metric("switchboard_messages_dropped_total{reason=\"offline\"}"),
        1
    );
}

/// A pipe that is read by a function.
pub(crate) struct ReadBy<F> {
    io: DuplexStream,
    read: F,
}

impl<F> ReadBy<F>
where
    F: FnMut(Pin<&mut DuplexStream>, &mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>
        + Unpin,
{
    pub(crate) fn new(io: DuplexStream, read: F) -> Self {
        Self { io, read }
    }
}

impl<F: Unpin> Transport for ReadBy<F> where Self: AsyncRead {}

impl<F> AsyncRead for ReadBy<F>
where
    F: FnMut(Pin<&mut DuplexStream>, &mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>
        + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, read } = &mut *self;
        read(Pin::new(io), cx, buffer)
    }
}

impl<F: Unpin> AsyncWrite for ReadBy<F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A pipe whose read panics once, when it is told to.
fn panicking(io: DuplexStream, armed: oneshot::Receiver<()>) -> impl Transport + Send + 'static {
    let mut armed = Some(armed);
    ReadBy::new(io, move |io, cx, buffer| {
        if let Some(told) = &mut armed
            && Pin::new(told).poll(cx).is_ready()
        {
            armed = None;
            panic!("the socket was told to");
        }
        io.poll_read(cx, buffer)
    })
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_one_connection_and_leaves_the_ledger_whole() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (ours, mut theirs) = duplex(100);
    let (arm, armed) = oneshot::channel();
    let session = relay.session(Dialect::Bare, panicking(ours, armed)).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    say(&mut sender, 1, vec!["x".repeat(30); 4]).await;
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (4, 1, 3));
    arm.send(()).unwrap();
    // The queued messages are still written, and then the relay closes with its internal error.
    for _ in 0..4 {
        assert_eq!(next_frame(&mut theirs).await.unwrap().0, 1);
    }
    let (opcode, payload) = next_frame(&mut theirs).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1011_u16.to_be_bytes()[..]));
    drop(theirs);
    session.await.unwrap();
    assert_eq!(relay.ledger(), (4, 4, 0));
    assert_eq!(relay.metric("switchboard_session_panics_total"), 1);
    say(&mut sender, 2, ["still here"]).await;
    assert_eq!(next_frame(&mut sender).await.unwrap().0, 1);
}

fn limited(messages: Option<u64>, bytes: Option<u64>) -> TestRelay {
    let config = SessionConfig {
        outcomes_pending: 100,
        message_rate: messages.map(|rate| Rate::per_second(rate, 1)),
        byte_rate: bytes.map(|rate| Rate::per_second(rate, 1)),
        ..config()
    };
    TestRelay::with(Overflow::DropNewest, config)
}

const RATE_LIMITED: &str = "switchboard_messages_dropped_total{reason=\"rate_limited\"}";

#[tokio::test(start_paused = true)]
async fn messages_over_the_rate_are_dropped_and_the_connection_stays() {
    let relay = limited(Some(2), None);
    let (mut client, _session) = relay.user(Dialect::Bare, 4096).await;
    say(&mut client, 1, 1..=6).await;
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (6, 4, 0));
    assert_eq!(relay.metric(RATE_LIMITED), 2);
    tokio::time::sleep(SECOND / 2).await;
    say(&mut client, 1, [7]).await;
    for text in ["1", "2", "3", "4", "7"] {
        assert_eq!(hear(&mut client).await, text);
    }
    // Bad input within the rate is still bad input.
    tokio::time::sleep(SECOND / 2).await;
    client.write_all(&frame(1, b"[]")).await.unwrap();
    assert_eq!(next_frame(&mut client).await.unwrap().0, 8);
}

#[tokio::test(start_paused = true)]
async fn a_sender_learns_that_it_is_over_its_rate() {
    let relay = limited(None, Some(50));
    let (mut client, _session) = relay.user(Dialect::V1, 4096).await;
    assert_eq!(next_frame(&mut client).await.unwrap().0, 1);
    let ask = |id: &str| {
        let json = format!("{{\"recipient_id\":9,\"message\":\"\"{id}}}");
        frame(1, json.as_bytes())
    };
    // Messages of 38 and 31 bytes, of which 100 bytes may come at once.
    for id in [",\"id\":1", ",\"id\":2", ",\"id\":3", ""] {
        client.write_all(&ask(id)).await.unwrap();
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        let (_, payload) = next_frame(&mut client).await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let what = value.get("status").unwrap_or(&value["code"]).clone();
        answers.push(format!("{} {what}", value["id"]));
    }
    answers.sort();
    let expected = [
        "1 \"offline\"",
        "2 \"offline\"",
        "3 \"rate_limited\"",
        "null \"rate_limited\"",
    ];
    assert_eq!(answers, expected);
    assert_eq!(relay.metric(RATE_LIMITED), 2);
    relay.ledger();
}

#[tokio::test(start_paused = true)]
async fn frames_that_end_no_message_count_and_too_many_of_them_close() {
    for flooding in [
        frame(9, b""),
        frame(10, b"x"),
        vec![0x01, 0x81, 0, 0, 0, 0, b' '],
    ] {
        let relay = limited(Some(2), None);
        let (mut client, _session) = relay.user(Dialect::Bare, 4096).await;
        // Of the fragments, the first begins a message, and the others continue it.
        let more = if flooding[0] == 0x01 {
            0x00
        } else {
            flooding[0]
        };
        for count in 0..9 {
            let mut flooding = flooding.clone();
            flooding[0] = if count == 0 { flooding[0] } else { more };
            client.write_all(&flooding).await.unwrap();
        }
        let code = loop {
            let (opcode, payload) = next_frame(&mut client).await.unwrap();
            if opcode == 8 {
                break payload[..2].to_vec();
            }
        };
        assert_eq!(code, 1008_u16.to_be_bytes(), "{flooding:?}");
    }
    // Each of them counts as a message, too.
    let relay = limited(Some(2), None);
    let (mut client, _session) = relay.user(Dialect::Bare, 4096).await;
    for _ in 0..4 {
        client.write_all(&frame(9, b"")).await.unwrap();
    }
    say(&mut client, 1, ["1"]).await;
    run_all_tasks().await;
    assert_eq!((relay.ledger(), relay.metric(RATE_LIMITED)), ((1, 0, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_closes_its_connection() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (ours, mut client) = duplex(4096);
    let membership = relay.relay.join(Dialect::Bare, None, None).await.unwrap();
    let (welcome, context) = (Welcome::default(), relay.context.clone());
    let mut session = Session::new(ours, &[], membership, &welcome, context);
    session.expire_in(7 * SECOND);
    let begin = Instant::now();
    let session = tokio::spawn(session);
    let (opcode, payload) = next_frame(&mut client).await.unwrap();
    assert!(begin.elapsed().abs_diff(7 * SECOND) < Duration::from_millis(5));
    assert_eq!((opcode, &payload[..2]), (8, &4401_u16.to_be_bytes()[..]));
    let close = frame(8, &4401_u16.to_be_bytes());
    client.write_all(&close).await.unwrap();
    session.await.unwrap();
    let series = "switchboard_connections_closed_total{code=\"4401\",initiator=\"server\"}";
    assert_eq!(relay.metric(series), 1);
}

/// A handshake looks for room before it reads a token. Of several that saw the last place, one gets it.
#[tokio::test]
async fn no_more_users_join_than_have_room() {
    let relay = TestRelay::new(Overflow::DropNewest).relay;
    let mut members = Vec::new();
    while let Ok(member) = relay.join(Dialect::Bare, None, None).await {
        members.push(member);
    }
    assert_eq!(members.len(), 10);
    members.pop();
    members.push(relay.join(Dialect::Bare, None, None).await.unwrap());
    assert!(relay.join(Dialect::Bare, None, None).await.is_err());
}

/// The first message after a silence is read in the turn that ends the silence.
#[tokio::test(start_paused = true)]
async fn a_message_after_a_silence_waits_for_room_in_the_router() {
    let (relay, router) = routed();
    tokio::spawn(router);
    let (mut recipient, _recipient) = relay.user(Dialect::Bare, 4096).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    for count in 1..=3 {
        run_all_tasks().await;
        say(&mut sender, 1, ["hi"]).await;
        assert_eq!(next_frame(&mut recipient).await.unwrap().0, 1);
        run_all_tasks().await;
        assert_eq!(relay.ledger(), (count, count, 0));
    }
}

/// Messages wait where the router takes them, and one that waits there takes no room from those behind it.
#[tokio::test(start_paused = true)]
async fn messages_go_through_the_router_and_idle_senders_hold_no_room_in_it() {
    let (relay, router) = routed();
    let (mut recipient, _recipient) = relay.user(Dialect::Bare, 4096).await;
    let (mut idle, _idle) = relay.user(Dialect::Bare, 4096).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    // A frame that is no message: room is found for one and not used.
    idle.write_all(&frame(10, b"")).await.unwrap();
    run_all_tasks().await;
    say(&mut sender, 1, ["hi"]).await;
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (1, 0, 1), "nobody runs the router");
    tokio::spawn(router);
    assert_eq!(next_frame(&mut recipient).await.unwrap().0, 1);
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (1, 1, 0));
}

/// A relay with the router strategy, whose queue has room for one message, and the router.
fn routed() -> (TestRelay, impl Future<Output = ()> + Send) {
    let metrics = Arc::new(Metrics::new(1));
    let bounds = MailboxBounds {
        messages: 8,
        bytes: 1 << 20,
        max_age: Duration::MAX,
        overflow: Overflow::DropNewest,
        budget: Budget::new(1 << 30),
    };
    let traces = Arc::new(Traces::off());
    let (relay, router) =
        Relay::routed(Dependencies::alone(bounds, 10, metrics.clone(), traces), 1);
    let relay = TestRelay {
        relay,
        context: Arc::new(SessionContext::new(config(), metrics.clone())),
        metrics,
        clients: Mutex::default(),
    };
    (relay, router)
}

/// A stream that, as TLS does, takes all bytes at once and passes them on when it is flushed, which may have
/// to wait.
struct BufferingStream {
    io: DuplexStream,
    inside: Vec<u8>,
    locked: Arc<std::sync::atomic::AtomicBool>,
}

impl Transport for BufferingStream {}

impl AsyncRead for BufferingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for BufferingStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(100);
        self.inside.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, inside, locked } = self.get_mut();
        if locked.load(std::sync::atomic::Ordering::SeqCst) {
            // The next bytes that come wake the session, which flushes again.
            return Poll::Pending;
        }
        while !inside.is_empty() {
            let count = std::task::ready!(Pin::new(&mut *io).poll_write(cx, inside))?;
            inside.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_a_stream_has_taken_and_not_flushed_are_not_delivered() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (io, mut reader) = duplex(4096);
    let locked = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let stream = BufferingStream {
        io,
        inside: Vec::new(),
        locked: locked.clone(),
    };
    let _reader = relay.session(Dialect::Bare, stream).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    say(&mut sender, 1, vec!["x".repeat(60); 3]).await;
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (3, 0, 3));
    locked.store(false, std::sync::atomic::Ordering::SeqCst);
    reader.write_all(&frame(10, b"")).await.unwrap();
    run_all_tasks().await;
    assert_eq!(relay.ledger(), (3, 3, 0));
    for _ in 0..3 {
        assert_eq!(next_frame(&mut reader).await.unwrap().0, 1);
    }
}

/// Frames of one byte with a mask of zeros.
fn small_frames(first: u8, others: u8, count: usize) -> Vec<u8> {
    let frame = |first| [first, 0x81, 0, 0, 0, 0, b' '];
    let mut frames = frame(first).to_vec();
    frames.extend(frame(others).repeat(count));
    frames
}

/// Sends all of `sent` at once. Returns the time until `last` has come back.
async fn time_until(sent: &[u8], last: &[u8]) -> Duration {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (mut peer, session) = relay.user(Dialect::Bare, 1 << 20).await;
    let begin = Instant::now();
    peer.write_all(sent).await.unwrap();
    let mut heard = Vec::new();
    while !heard.windows(last.len()).any(|part| part == last) {
        assert_ne!(
            peer.read_buf(&mut heard).await.unwrap(),
            0,
            "the end came first"
        );
    }
    session.abort();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_floods_small_frames_is_read_one_kib_a_millisecond() {
    let least = Duration::from_millis(50);
    let pings = [
        small_frames(0x89, 0x89, 8000),
        vec![0x89, 0x81, 0, 0, 0, 0, b'!'],
    ]
    .concat();
    let took = time_until(&pings, &[0x8a, 1, b'!']).await;
    assert!(took >= least, "{took:?} for 56 kB of pings");

    let end = [0x80, 0x80, 0, 0, 0, 0];
    let fragments = [small_frames(0x01, 0x00, 8000), end.to_vec()].concat();
    let close = [0x03, 0xef]; // 1007: spaces are no JSON
    let took = time_until(&fragments, &close).await;
    assert!(took >= least, "{took:?} for 56 kB of fragments");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_on_behind_the_close_frame_is_read_slowly() {
    let wrong = [
        vec![0x83, 0x80, 0, 0, 0, 0],
        small_frames(0x89, 0x89, 80_000),
    ]
    .concat();
    let all = [wrong, vec![0x88, 0x82, 0, 0, 0, 0, 3, 232]].concat();
    let relay = TestRelay::new(Overflow::DropNewest);
    let (mut peer, session) = relay.user(Dialect::Bare, 1 << 20).await;
    let begin = Instant::now();
    peer.write_all(&all).await.unwrap();
    assert_eq!(next_frame(&mut peer).await.unwrap().0, 8);
    assert_eq!(next_frame(&mut peer).await, None);
    drop(peer);
    session.await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(30), "{took:?} for 560 kB");
    assert!(took < 5 * SECOND, "{took:?}: its close frame was found");
}

const WITHIN: Duration = Duration::from_secs(30);

/// What a session is doing when an order comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Open,
    /// It awaits outcomes, after a command to restart.
    AwaitingToRestart,
    /// It awaits outcomes, after the peer's close frame with 1000.
    AwaitingToAnswer,
    /// It waits for its socket, after this order.
    Flushing(Order),
    /// It waits for the peer's close frame, after its own with 1013.
    Discarding,
    /// It waits for the end of the peer's stream, after both close frames.
    Lingering,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Restart,
    TooSlow,
    TakenOver,
    Remove,
    Abort,
}

impl Order {
    const ALL: [Self; 5] = [
        Self::Restart,
        Self::TooSlow,
        Self::TakenOver,
        Self::Remove,
        Self::Abort,
    ];

    fn command(self) -> Command {
        let close = |code, reason| Command::Close { code, reason };
        match self {
            Self::Restart => Command::Restart {
                after_ms: 0,
                within_ms: 30_000,
            },
            Self::TooSlow => close(1013, "reads too slowly"),
            Self::TakenOver => close(4409, "taken over"),
            Self::Remove => Command::Remove {
                reason: "out".into(),
            },
            Self::Abort => Command::Abort,
        }
    }
}

/// A user in a state, and what keeps it there.
struct Case {
    relay: TestRelay,
    peer: DuplexStream,
    session: JoinHandle<()>,
    /// Reads nothing, so that messages for it have no outcome.
    _stalled: (DuplexStream, JoinHandle<()>),
}

impl Case {
    async fn new(state: In) -> Self {
        let patient = SessionConfig {
            ping_interval: 1000 * SECOND,
            write_timeout: 100 * SECOND,
            ..config()
        };
        let relay = TestRelay::with(Overflow::DropNewest, patient);
        let (mut peer, session) = relay.user(Dialect::V1, 200).await;
        let mut stalled = relay.user(Dialect::Bare, 4).await;
        assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
        let ask = |to: u64| {
            let json = format!("{{\"recipient_id\":{to},\"message\":\"hi\",\"id\":1}}");
            frame(1, json.as_bytes())
        };
        let close = |code: u16| frame(8, &code.to_be_bytes());
        match state {
            In::Open => {}
            In::AwaitingToRestart => {
                peer.write_all(&ask(2)).await.unwrap();
                run_all_tasks().await;
                relay.order(1, Order::Restart);
                let (_, payload) = next_frame(&mut peer).await.unwrap();
                assert!(payload.starts_with(b"{\"type\":\"reconnect\""));
            }
            In::AwaitingToAnswer => {
                peer.write_all(&ask(2)).await.unwrap();
                peer.write_all(&close(1000)).await.unwrap();
            }
            In::Flushing(order) => {
                for _ in 0..3 {
                    let text = message(1, &"x".repeat(70));
                    stalled.0.write_all(&text).await.unwrap();
                }
                run_all_tasks().await;
                relay.order(1, order);
            }
            In::Discarding | In::Lingering => {
                relay.order(1, Order::TooSlow);
                assert_eq!(next_frame(&mut peer).await.unwrap().0, 8);
                if state == In::Lingering {
                    peer.write_all(&close(1013)).await.unwrap();
                }
            }
        }
        run_all_tasks().await;
        assert!(!session.is_finished(), "{state:?}");
        Self {
            relay,
            peer,
            session,
            _stalled: stalled,
        }
    }

    /// Reads to the end, and answers the close. Returns the codes of the close frames, the code that the connection
    /// counts as, and the time that it took.
    async fn end(mut self) -> (Vec<u16>, u16, Duration) {
        let begin = Instant::now();
        let mut codes = Vec::new();
        while let Some((opcode, payload)) = next_frame(&mut self.peer).await {
            if opcode == 8 {
                codes.push(u16::from_be_bytes([payload[0], payload[1]]));
                // Fails where the session has ended already.
                drop(self.peer.write_all(&frame(8, &payload[..2])).await);
            }
        }
        drop(self.peer);
        self.session.await.unwrap();
        let counted = [1000, 1011, 1012, 1013, 4401, 4409, 4410]
            .into_iter()
            .find(|code| {
                ["client", "server"].iter().any(|initiator| {
                    let series = "switchboard_connections_closed_total";
                    self.relay.metric(&format!(
                        "{series}{{code=\"{code}\",initiator=\"{initiator}\"}}"
                    )) > 0
                })
            });
        (codes, counted.expect("one of these codes"), begin.elapsed())
    }
}

impl TestRelay {
    /// Gives an order to the session of the user `id`.
    fn order(&self, id: usize, order: Order) {
        self.clients.lock().unwrap()[id - 1].command(order.command());
    }
}

/// The table at the head of `src/session/machine.rs`.
#[tokio::test(start_paused = true)]
async fn every_order_to_end_is_obeyed_in_every_state() {
    let close_timeout = config().close_timeout;
    let flushing = [
        Order::Restart,
        Order::TooSlow,
        Order::TakenOver,
        Order::Remove,
    ];
    let states = [
        In::Open,
        In::AwaitingToRestart,
        In::AwaitingToAnswer,
        In::Discarding,
        In::Lingering,
    ]
    .into_iter()
    .chain(flushing.map(In::Flushing));
    for state in states {
        // The close code after an order to restart, to close with 1013, 4409 and 4410.
        let expected: [u16; 4] = match state {
            In::Open | In::AwaitingToRestart | In::Flushing(Order::Restart) => {
                [1012, 1013, 4409, 4410]
            }
            In::AwaitingToAnswer => [1000, 1000, 1000, 4410],
            In::Flushing(Order::TooSlow) => [1013, 1013, 1013, 4410],
            In::Flushing(Order::TakenOver) => [4409, 4409, 4409, 4410],
            In::Flushing(_) => [4410; 4],
            In::Discarding | In::Lingering => [1013; 4],
        };
        for (order, code) in Order::ALL
            .into_iter()
            .zip(expected.into_iter().map(Some).chain([None]))
        {
            let case = Case::new(state).await;
            case.relay.order(1, order);
            run_all_tasks().await;
            if order == Order::Abort {
                assert!(
                    case.session.is_finished(),
                    "{state:?} does not obey an abort"
                );
            }
            let (codes, counted, took) = case.end().await;
            let what =
                format!("{order:?} in {state:?}: {codes:?}, counts as {counted}, took {took:?}");
            // The close frame of these two came before the order.
            let is_first = !matches!(state, In::Discarding | In::Lingering);
            assert_eq!(codes, Vec::from_iter(code.filter(|_| is_first)), "{what}");
            assert_eq!(counted, code.unwrap_or(1012), "{what}");
            let waits = match (state, order) {
                (In::AwaitingToRestart, Order::Restart) => WITHIN,
                (In::AwaitingToAnswer, Order::Restart | Order::TooSlow | Order::TakenOver) => {
                    close_timeout
                }
                (In::Discarding, order) if order != Order::Abort => close_timeout,
                _ => Duration::ZERO,
            };
            assert!(took.abs_diff(waits) < Duration::from_millis(5), "{what}");
        }
    }
}

/// Without a peer that answers, every state ends by itself.
#[tokio::test(start_paused = true)]
async fn every_state_that_closes_has_a_deadline() {
    for (state, waits) in [
        (In::AwaitingToRestart, WITHIN + 5 * SECOND),
        (In::AwaitingToAnswer, 5 * SECOND),
        (In::Flushing(Order::Restart), 5 * SECOND),
        (In::Flushing(Order::Remove), 5 * SECOND),
        (In::Discarding, 5 * SECOND),
        (In::Lingering, 5 * SECOND),
    ] {
        let begin = Instant::now();
        let case = Case::new(state).await;
        // Still there, reads nothing and says nothing.
        let Case { peer, session, .. } = case;
        session.await.unwrap();
        let took = begin.elapsed();
        assert!(
            took <= waits + 5 * SECOND + SECOND / 100,
            "{state:?}: {took:?}"
        );
        drop(peer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_does_not_wait_for_outcomes() {
    let config = SessionConfig {
        connection_age: Some(4 * SECOND),
        write_timeout: 100 * SECOND,
        ..config()
    };
    let relay = TestRelay::with(Overflow::DropNewest, config);
    let _stalled = relay.user(Dialect::Bare, 4).await;
    let (ours, mut client) = duplex(4096);
    let membership = relay.relay.join(Dialect::V1, None, None).await.unwrap();
    let (welcome, context) = (Welcome::default(), relay.context.clone());
    let mut session = Session::new(ours, &[], membership, &welcome, context);
    session.expire_in(7 * SECOND);
    let begin = Instant::now();
    let _session = tokio::spawn(session);
    let ask = br#"{"recipient_id":1,"message":"hi","id":1}"#;
    client.write_all(&frame(1, ask)).await.unwrap();
    let mut kinds = Vec::new();
    let close = loop {
        match next_frame(&mut client).await.unwrap() {
            (8, payload) => break payload,
            (_, payload) => kinds.push(String::from_utf8(payload).unwrap()),
        }
    };
    assert!(
        kinds[1].contains("reconnect") && kinds.len() == 2,
        "{kinds:?}"
    );
    assert_eq!(close[..2], 4401_u16.to_be_bytes());
    assert!(
        begin.elapsed().abs_diff(7 * SECOND) < SECOND / 100,
        "{:?}",
        begin.elapsed()
    );
}

/// The peer may give up its wait, and a program that has gone is noticed.
#[tokio::test(start_paused = true)]
async fn a_close_of_the_peer_shortens_the_wait_for_outcomes() {
    let mut case = Case::new(In::AwaitingToRestart).await;
    let begin = Instant::now();
    case.peer
        .write_all(&frame(8, &1000_u16.to_be_bytes()))
        .await
        .unwrap();
    let (codes, counted, _) = case.end().await;
    assert_eq!((codes, counted), (vec![1012], 1012));
    assert!(begin.elapsed() < 6 * SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_told_to_go_while_its_session_waits_in_a_write() {
    let relay = TestRelay::new(Overflow::Disconnect);
    let (mut slow, session) = relay.user(Dialect::Bare, 40).await;
    let (mut sender, _sender) = relay.user(Dialect::Bare, 4096).await;
    say(&mut sender, 1, 100..120).await;
    run_all_tasks().await;
    let begin = Instant::now();
    // It reads nothing: it is gone after the close timeout, which is shorter than the write timeout.
    session.await.unwrap();
    assert!(
        begin.elapsed().abs_diff(5 * SECOND) < SECOND / 100,
        "{:?}",
        begin.elapsed()
    );
    let series = "switchboard_connections_closed_total{code=\"1013\",initiator=\"server\"}";
    assert_eq!(relay.metric(series), 1);
    assert!(next_frame(&mut slow).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_panic_behind_the_close_frame_writes_no_second_one() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let (ours, mut peer) = duplex(4096);
    let (arm, armed) = oneshot::channel();
    let _session = relay.session(Dialect::Bare, panicking(ours, armed)).await;
    relay.order(1, Order::TooSlow);
    run_all_tasks().await;
    arm.send(()).unwrap();
    peer.write_all(&frame(1, b"something to read"))
        .await
        .unwrap();
    let mut codes = Vec::new();
    while let Some((opcode, payload)) = next_frame(&mut peer).await {
        assert_eq!(opcode, 8);
        codes.push(u16::from_be_bytes([payload[0], payload[1]]));
    }
    assert_eq!(codes, [1013]);
    assert_eq!(relay.metric("switchboard_session_panics_total"), 1);
}

/// `… | websocat`: the peer's last bytes are messages and a close frame, and then its side ends.
#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_close_of_the_peer_is_answered_before_the_close() {
    let (by_router, router) = routed();
    tokio::spawn(router);
    for relay in [TestRelay::new(Overflow::DropNewest), by_router] {
        let (mut peer, session) = relay.user(Dialect::V1, 4096).await;
        let (mut friend, _friend) = relay.user(Dialect::Bare, 4096).await;
        let (mut stalled, _stalled) = relay.user(Dialect::Bare, 4).await;
        assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
        let ask = |to: u64| {
            let json = format!("{{\"recipient_id\":{to},\"message\":\"hi\",\"id\":{to}}}");
            frame(1, json.as_bytes())
        };
        let close = frame(8, &1000_u16.to_be_bytes());
        // To itself, a friend, and a user who is not connected.
        let all = [ask(1), ask(2), ask(9), close].concat();
        peer.write_all(&all).await.unwrap();
        peer.shutdown().await.unwrap();
        let begin = Instant::now();
        let mut frames = Vec::new();
        while let Some((opcode, payload)) = next_frame(&mut peer).await {
            if opcode == 8 {
                frames.push("close".to_owned());
                assert_eq!(payload, 1000_u16.to_be_bytes());
                continue;
            }
            let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            frames.push(format!("{} {}", frame["id"], frame["status"]));
        }
        session.await.unwrap();
        assert_eq!(frames.pop().unwrap(), "close");
        frames.sort();
        let expected = [
            "1 \"delivered\"",
            "2 \"delivered\"",
            "9 \"offline\"",
            "null null",
        ];
        assert_eq!(frames, expected);
        assert!(begin.elapsed() < SECOND / 10, "{:?}", begin.elapsed());
        assert_eq!(next_frame(&mut friend).await.unwrap().0, 1);

        // An outcome that does not come holds the close up for the close timeout.
        let (mut peer, session) = relay.user(Dialect::V1, 4096).await;
        assert_eq!(next_frame(&mut peer).await.unwrap().0, 1);
        peer.write_all(&[ask(3), frame(8, b"")].concat())
            .await
            .unwrap();
        peer.shutdown().await.unwrap();
        let begin = Instant::now();
        assert_eq!(next_frame(&mut peer).await, Some((8, Vec::new())));
        assert_eq!(next_frame(&mut peer).await, None);
        session.await.unwrap();
        assert!(
            begin.elapsed().abs_diff(5 * SECOND) < SECOND / 100,
            "{:?}",
            begin.elapsed()
        );
        drop(stalled.shutdown().await);
    }
}

/// A stream that always has something to read, one byte at a time: as TLS does whose records have one byte each.
struct ByteByByte {
    bytes: Vec<u8>,
    reads: Arc<AtomicUsize>,
}

impl Transport for ByteByByte {}

impl AsyncRead for ByteByByte {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let at = self.reads.fetch_add(1, Relaxed) % self.bytes.len();
        buffer.put_slice(&self.bytes[at..=at]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteByByte {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_reads_a_few_times_however_little_each_read_brings() {
    let relay = TestRelay::new(Overflow::DropNewest);
    let reads = Arc::new(AtomicUsize::new(0));
    let (bytes, counted) = (message(2, "hi"), reads.clone());
    let stream = ByteByByte { bytes, reads };
    let _session = relay.session(Dialect::Bare, stream).await;
    for millisecond in 1..=100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let reads = counted.load(Relaxed);
        assert!(
            reads <= 4 * (millisecond + 2),
            "{reads} reads in {millisecond} ms"
        );
    }
    assert!(counted.load(Relaxed) > 100);
}
