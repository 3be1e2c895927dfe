//! One session by itself, over a socket in memory and on paused time: what its clock does, what a
//! write that stops half-way settles, and what a panic leaves behind.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use switchboard::admission::token_bucket::Rate;
use switchboard::config::Overflow;
use switchboard::directory::{Budget, MailboxBounds};
use switchboard::protocol::Dialect;
use switchboard::relay::{Dependencies, Relay};
use switchboard::session::{Session, SessionConfig, SessionContext, Welcome};
use switchboard::telemetry::metrics::Metrics;
use switchboard::telemetry::traces::Traces;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> SessionConfig {
    SessionConfig {
        ping_interval: 25 * SECOND,
        pong_timeout: 10 * SECOND,
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
struct Bench {
    relay: Relay,
    context: Arc<SessionContext>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new(overflow: Overflow) -> Self {
        Self::with(overflow, config())
    }

    fn with(overflow: Overflow, config: SessionConfig) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let bounds = MailboxBounds {
            messages: 8,
            bytes: 1 << 20,
            overflow,
            budget: Budget::new(1 << 30),
        };
        let relay = Relay::new(bounds, 10, metrics.clone(), Arc::new(Traces::off()));
        let context = Arc::new(SessionContext::new(config, metrics.clone()));
        Self {
            relay,
            context,
            metrics,
        }
    }

    /// A user behind a pipe that holds `room` bytes each way.
    async fn user(&self, dialect: Dialect, room: usize) -> (DuplexStream, JoinHandle<()>) {
        let (ours, theirs) = duplex(room);
        (theirs, self.session(dialect, ours).await)
    }

    async fn session<S>(&self, dialect: Dialect, io: S) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let membership = self.relay.join(dialect, None, None).await.unwrap();
        let context = self.context.clone();
        let session = Session::new(io, &[], membership, &Welcome::default(), context);
        tokio::spawn(session)
    }

    fn metric(&self, series: &str) -> u64 {
        let text = self.metrics.scrape(|| self.relay.stats());
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or("0").parse().unwrap()
    }

    /// Received, delivered, still held; all else is dropped, and the sum is exact.
    fn ledger(&self) -> (u64, u64, u64) {
        let dropped: u64 = [
            "offline",
            "queue_full",
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

/// A masked frame of up to 125 bytes, by a mask of zeros.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
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

fn message(to: u64, text: &str) -> Vec<u8> {
    let json = format!("{{\"recipient_id\":{to},\"message\":\"{text}\"}}");
    frame(1, json.as_bytes())
}

/// The next frame of up to 125 bytes; nothing at the end.
async fn heard(client: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[1])];
    client.read_exact(&mut payload).await.unwrap();
    Some((head[0] & 0x0f, payload))
}

/// Lets every task run until none has anything to do.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_ping_comes_in_the_second_half_of_the_interval() {
    let bench = Bench::new(Overflow::DropNewest);
    let begin = Instant::now();
    let (mut client, _session) = bench.user(Dialect::Bare, 1024).await;
    assert_eq!(heard(&mut client).await.unwrap().0, 9);
    let first = begin.elapsed();
    assert!(
        first >= Duration::from_millis(12_500) && first <= Duration::from_millis(25_002),
        "{first:?}"
    );
    client.write_all(&frame(10, &[])).await.unwrap();
    assert_eq!(heard(&mut client).await.unwrap().0, 9);
    let second = begin.elapsed();
    assert!(
        second.abs_diff(first + 25 * SECOND) < Duration::from_millis(5),
        "{second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_pong_in_time_closes_and_no_answer_to_that_ends() {
    let bench = Bench::new(Overflow::DropNewest);
    let (mut client, session) = bench.user(Dialect::Bare, 1024).await;
    assert_eq!(heard(&mut client).await.unwrap().0, 9);
    let pinged = Instant::now();
    let (opcode, payload) = heard(&mut client).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1008_u16.to_be_bytes()[..]));
    assert!(pinged.elapsed().abs_diff(10 * SECOND) < Duration::from_millis(5));
    let closed = Instant::now();
    assert_eq!(heard(&mut client).await, None);
    assert!(closed.elapsed().abs_diff(5 * SECOND) < Duration::from_millis(5));
    session.await.unwrap();
    let series = "switchboard_connections_closed_total{code=\"pong_timeout\",initiator=\"server\"}";
    assert_eq!(bench.metric(series), 1);
}

#[tokio::test(start_paused = true)]
async fn who_has_grown_old_is_asked_to_come_back() {
    let old = SessionConfig {
        connection_age: Some(1000 * SECOND),
        ..config()
    };
    let bench = Bench::with(Overflow::DropNewest, old);
    let begin = Instant::now();
    let (mut client, session) = bench.user(Dialect::V1, 1024).await;
    assert_eq!(heard(&mut client).await.unwrap().0, 1);
    let (opcode, payload) = loop {
        let frame = heard(&mut client).await.unwrap();
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
    let (opcode, payload) = heard(&mut client).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1012_u16.to_be_bytes()[..]));
    client
        .write_all(&self::frame(8, &payload[..2]))
        .await
        .unwrap();
    session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn messages_are_settled_as_they_leave_and_the_rest_when_the_write_stalls() {
    let bench = Bench::new(Overflow::DropNewest);
    let (mut slow, session) = bench.user(Dialect::Bare, 100).await;
    let (mut sender, _sender) = bench.user(Dialect::Bare, 4096).await;
    let text = "x".repeat(30);
    for _ in 0..5 {
        sender.write_all(&message(1, &text)).await.unwrap();
    }
    settle().await;
    // Each frame is 59 bytes: one has left whole, and of the second a part.
    assert_eq!(bench.ledger(), (5, 1, 4));
    assert!(heard(&mut slow).await.is_some());
    settle().await;
    assert_eq!(bench.ledger(), (5, 2, 3));
    let stalled = Instant::now();
    session.await.unwrap();
    assert!(stalled.elapsed().abs_diff(10 * SECOND) < Duration::from_millis(5));
    assert_eq!(bench.ledger(), (5, 2, 0));
    let series =
        "switchboard_connections_closed_total{code=\"write_timeout\",initiator=\"server\"}";
    assert_eq!(bench.metric(series), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_finds_the_newest_where_the_oldest_make_room() {
    let bench = Bench::new(Overflow::DropOldest);
    let (mut slow, _slow) = bench.user(Dialect::Bare, 40).await;
    let (mut sender, _sender) = bench.user(Dialect::Bare, 4096).await;
    for number in 100..120 {
        sender
            .write_all(&message(1, &number.to_string()))
            .await
            .unwrap();
        settle().await;
    }
    assert_eq!(bench.ledger().2, 8);
    let mut texts = Vec::new();
    for _ in 0..9 {
        let (_, payload) = heard(&mut slow).await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        texts.push(value["message"].as_str().unwrap().to_owned());
    }
    // What had begun to leave cannot be taken back; behind it come the newest, in order.
    assert_eq!(texts[0], "100");
    assert_eq!(
        texts[2..],
        ["113", "114", "115", "116", "117", "118", "119"]
    );
    settle().await;
    assert_eq!(bench.ledger(), (20, 9, 0));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_take_outcomes_is_not_read_from_and_not_timed_out_for_its_pong() {
    let bench = Bench::new(Overflow::DropNewest);
    let (from_client, to_server) = tokio::io::simplex(4096);
    let (from_server, to_client) = tokio::io::simplex(90);
    let ours = tokio::io::join(from_client, to_client);
    let _session = bench.session(Dialect::V1, ours).await;
    let mut client = tokio::io::join(from_server, to_server);
    assert_eq!(heard(&mut client).await.unwrap().0, 1);
    assert_eq!(heard(&mut client).await.unwrap().0, 9);
    // Outcomes that it does not read: two are under way, and no more is read; the pong is behind.
    for id in 0..6 {
        let json = format!("{{\"recipient_id\":9,\"message\":\"\",\"id\":{id}}}");
        client.write_all(&frame(1, json.as_bytes())).await.unwrap();
        settle().await;
    }
    let read = bench.metric("switchboard_messages_received_total");
    assert!(read < 6, "all {read} were read");
    client.write_all(&frame(10, &[])).await.unwrap();
    tokio::time::sleep(9 * SECOND).await;
    for id in 0..6 {
        let (opcode, payload) = heard(&mut client).await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((opcode, &value["id"]), (1, &serde_json::json!(id)));
    }
    // The pong came in time after all: the next thing is a ping, and no close.
    assert_eq!(heard(&mut client).await.unwrap().0, 9);
    assert_eq!(bench.ledger().0, 6);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_close_frame() {
    let bench = Bench::new(Overflow::DropNewest);
    let (mut closing, session) = bench.user(Dialect::Bare, 4096).await;
    let (mut sender, _sender) = bench.user(Dialect::Bare, 4096).await;
    closing.write_all(&frame(1, b"[]")).await.unwrap();
    settle().await;
    sender.write_all(&message(1, "late")).await.unwrap();
    settle().await;
    let (opcode, payload) = heard(&mut closing).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1007_u16.to_be_bytes()[..]));
    // After our close frame nothing counts as a message.
    closing.write_all(&message(2, "too late")).await.unwrap();
    closing
        .write_all(&frame(8, &1007_u16.to_be_bytes()))
        .await
        .unwrap();
    assert_eq!(heard(&mut closing).await, None);
    session.await.unwrap();
    assert_eq!(bench.ledger(), (1, 0, 0));
    assert_eq!(
        bench.metric("switchboard_messages_dropped_total{reason=\"offline\"}"),
        1
    );
}

/// A socket whose reading panics once it is told to.
struct Mine {
    io: DuplexStream,
    armed: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl AsyncRead for Mine {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(armed) = &mut self.armed
            && Pin::new(armed).poll(cx).is_ready()
        {
            self.armed = None;
            panic!("the mine goes off");
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Mine {
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

#[tokio::test(start_paused = true)]
async fn a_panic_ends_one_connection_and_leaves_the_ledger_whole() {
    let bench = Bench::new(Overflow::DropNewest);
    let (ours, mut theirs) = duplex(100);
    let (arm, armed) = tokio::sync::oneshot::channel();
    let session = bench
        .session(
            Dialect::Bare,
            Mine {
                io: ours,
                armed: Some(armed),
            },
        )
        .await;
    let (mut sender, _sender) = bench.user(Dialect::Bare, 4096).await;
    for _ in 0..4 {
        sender
            .write_all(&message(1, &"x".repeat(30)))
            .await
            .unwrap();
    }
    settle().await;
    assert_eq!(bench.ledger(), (4, 1, 3));
    arm.send(()).unwrap();
    // What was queued is still written, and then it is closed for a fault of ours.
    for _ in 0..4 {
        assert_eq!(heard(&mut theirs).await.unwrap().0, 1);
    }
    let (opcode, payload) = heard(&mut theirs).await.unwrap();
    assert_eq!((opcode, &payload[..2]), (8, &1011_u16.to_be_bytes()[..]));
    drop(theirs);
    session.await.unwrap();
    assert_eq!(bench.ledger(), (4, 4, 0));
    assert_eq!(bench.metric("switchboard_session_panics_total"), 1);
    sender.write_all(&message(2, "still here")).await.unwrap();
    assert_eq!(heard(&mut sender).await.unwrap().0, 1);
}

fn limited(messages: Option<u64>, bytes: Option<u64>) -> Bench {
    let config = SessionConfig {
        outcomes_pending: 100,
        message_rate: messages.map(|rate| Rate::per_second(rate, 1)),
        byte_rate: bytes.map(|rate| Rate::per_second(rate, 1)),
        ..config()
    };
    Bench::with(Overflow::DropNewest, config)
}

const RATE_LIMITED: &str = "switchboard_messages_dropped_total{reason=\"rate_limited\"}";

#[tokio::test(start_paused = true)]
async fn what_is_over_the_rate_is_dropped_and_the_connection_stays() {
    let bench = limited(Some(2), None);
    let (mut client, _session) = bench.user(Dialect::Bare, 4096).await;
    for text in ["1", "2", "3", "4", "5", "6"] {
        client.write_all(&message(1, text)).await.unwrap();
    }
    settle().await;
    assert_eq!(bench.ledger(), (6, 4, 0));
    assert_eq!(bench.metric(RATE_LIMITED), 2);
    tokio::time::sleep(SECOND / 2).await;
    client.write_all(&message(1, "7")).await.unwrap();
    for text in ["1", "2", "3", "4", "7"] {
        let (_, payload) = heard(&mut client).await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(value["message"], text);
    }
    // Bad input within the rate is bad input still.
    tokio::time::sleep(SECOND / 2).await;
    client.write_all(&frame(1, b"[]")).await.unwrap();
    assert_eq!(heard(&mut client).await.unwrap().0, 8);
}

#[tokio::test(start_paused = true)]
async fn a_sender_learns_that_it_is_over_its_rate() {
    let bench = limited(None, Some(50));
    let (mut client, _session) = bench.user(Dialect::V1, 4096).await;
    assert_eq!(heard(&mut client).await.unwrap().0, 1);
    let ask = |id: &str| {
        let json = format!("{{\"recipient_id\":9,\"message\":\"\"{id}}}");
        frame(1, json.as_bytes())
    };
    // 38 and 31 bytes of the 100 that may come at once.
    for id in [",\"id\":1", ",\"id\":2", ",\"id\":3", ""] {
        client.write_all(&ask(id)).await.unwrap();
    }
    let mut heard_of = Vec::new();
    for _ in 0..4 {
        let (_, payload) = heard(&mut client).await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let what = value.get("status").unwrap_or(&value["code"]).clone();
        heard_of.push(format!("{} {what}", value["id"]));
    }
    heard_of.sort();
    let expected = [
        "1 \"offline\"",
        "2 \"offline\"",
        "3 \"rate_limited\"",
        "null \"rate_limited\"",
    ];
    assert_eq!(heard_of, expected);
    assert_eq!(bench.metric(RATE_LIMITED), 2);
    bench.ledger();
}

#[tokio::test(start_paused = true)]
async fn frames_that_are_no_messages_count_and_too_many_of_them_close() {
    for flooding in [
        frame(9, b""),
        frame(10, b"x"),
        vec![0x01, 0x81, 0, 0, 0, 0, b' '],
    ] {
        let bench = limited(Some(2), None);
        let (mut client, _session) = bench.user(Dialect::Bare, 4096).await;
        // Fragments: one begins a message, and the rest go on with it.
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
            let (opcode, payload) = heard(&mut client).await.unwrap();
            if opcode == 8 {
                break payload[..2].to_vec();
            }
        };
        assert_eq!(code, 1008_u16.to_be_bytes(), "{flooding:?}");
    }
    // Those that came count for messages, too.
    let bench = limited(Some(2), None);
    let (mut client, _session) = bench.user(Dialect::Bare, 4096).await;
    for _ in 0..4 {
        client.write_all(&frame(9, b"")).await.unwrap();
    }
    client.write_all(&message(1, "1")).await.unwrap();
    settle().await;
    assert_eq!((bench.ledger(), bench.metric(RATE_LIMITED)), ((1, 0, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_expires_closes_its_connection() {
    let bench = Bench::new(Overflow::DropNewest);
    let (ours, mut client) = duplex(4096);
    let membership = bench.relay.join(Dialect::Bare, None, None).await.unwrap();
    let (welcome, context) = (Welcome::default(), bench.context.clone());
    let mut session = Session::new(ours, &[], membership, &welcome, context);
    session.expire_in(7 * SECOND);
    let begin = Instant::now();
    let session = tokio::spawn(session);
    let (opcode, payload) = heard(&mut client).await.unwrap();
    assert!(begin.elapsed().abs_diff(7 * SECOND) < Duration::from_millis(5));
    assert_eq!((opcode, &payload[..2]), (8, &4401_u16.to_be_bytes()[..]));
    let close = frame(8, &4401_u16.to_be_bytes());
    client.write_all(&close).await.unwrap();
    session.await.unwrap();
    let series = "switchboard_connections_closed_total{code=\"4401\",initiator=\"server\"}";
    assert_eq!(bench.metric(series), 1);
}

/// The first message behind a silence is read in the turn that the silence ends with.
#[tokio::test(start_paused = true)]
async fn a_message_after_a_silence_waits_for_room_in_the_router() {
    let bench = routed();
    let (mut recipient, _recipient) = bench.user(Dialect::Bare, 4096).await;
    let (mut sender, _sender) = bench.user(Dialect::Bare, 4096).await;
    for count in 1..=3 {
        settle().await;
        sender.write_all(&message(1, "hi")).await.unwrap();
        assert_eq!(heard(&mut recipient).await.unwrap().0, 1);
        settle().await;
        assert_eq!(bench.ledger(), (count, count, 0));
    }
}

/// A relay by way of the router, which has room for one message.
fn routed() -> Bench {
    let metrics = Arc::new(Metrics::new(1));
    let bounds = MailboxBounds {
        messages: 8,
        bytes: 1 << 20,
        overflow: Overflow::DropNewest,
        budget: Budget::new(1 << 30),
    };
    let traces = Arc::new(Traces::off());
    let (relay, router) =
        Relay::routed(Dependencies::alone(bounds, 10, metrics.clone(), traces), 1);
    tokio::spawn(router);
    Bench {
        relay,
        context: Arc::new(SessionContext::new(config(), metrics.clone())),
        metrics,
    }
}

/// A stream that takes all that it is given, and gives it on when it is flushed, which it may not be
/// at once: as TLS does.
struct Lazy {
    io: DuplexStream,
    inside: Vec<u8>,
    locked: Arc<std::sync::atomic::AtomicBool>,
}

impl AsyncRead for Lazy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lazy {
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
            // Reading wakes: what comes is looked at, and the flush is tried again.
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
async fn what_a_stream_has_taken_and_not_flushed_is_not_delivered() {
    let bench = Bench::new(Overflow::DropNewest);
    let (io, mut reader) = duplex(4096);
    let locked = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let lazy = Lazy {
        io,
        inside: Vec::new(),
        locked: locked.clone(),
    };
    let _reader = bench.session(Dialect::Bare, lazy).await;
    let (mut sender, _sender) = bench.user(Dialect::Bare, 4096).await;
    for _ in 0..3 {
        let text = "x".repeat(60);
        sender.write_all(&message(1, &text)).await.unwrap();
    }
    settle().await;
    assert_eq!(bench.ledger(), (3, 0, 3));
    locked.store(false, std::sync::atomic::Ordering::SeqCst);
    reader.write_all(&frame(10, b"")).await.unwrap();
    settle().await;
    assert_eq!(bench.ledger(), (3, 3, 0));
    for _ in 0..3 {
        assert_eq!(heard(&mut reader).await.unwrap().0, 1);
    }
}

/// Frames of one byte with a mask of zeros.
fn small_frames(first: u8, others: u8, count: usize) -> Vec<u8> {
    let frame = |first| [first, 0x81, 0, 0, 0, 0, b' '];
    let mut frames = frame(first).to_vec();
    frames.extend(frame(others).repeat(count));
    frames
}

/// How long it takes until `last` has come of what was sent in one go.
async fn time_until(sent: &[u8], last: &[u8]) -> Duration {
    let bench = Bench::new(Overflow::DropNewest);
    let (mut peer, session) = bench.user(Dialect::Bare, 1 << 20).await;
    let begin = Instant::now();
    peer.write_all(sent).await.unwrap();
    let mut heard = Vec::new();
    while !heard.windows(last.len()).any(|part| part == last) {
        assert_ne!(peer.read_buf(&mut heard).await.unwrap(), 0, "it comes");
    }
    session.abort();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_many_small_frames_is_read_a_kib_a_millisecond() {
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
async fn whoever_talks_on_behind_our_close_is_read_a_little_at_a_time() {
    let wrong = [
        vec![0x83, 0x80, 0, 0, 0, 0],
        small_frames(0x89, 0x89, 80_000),
    ]
    .concat();
    let all = [wrong, vec![0x88, 0x82, 0, 0, 0, 0, 3, 232]].concat();
    let bench = Bench::new(Overflow::DropNewest);
    let (mut peer, session) = bench.user(Dialect::Bare, 1 << 20).await;
    let begin = Instant::now();
    peer.write_all(&all).await.unwrap();
    session.await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(30), "{took:?} for 560 kB");
    assert!(took < 5 * SECOND, "{took:?}: its close frame was found");
}
