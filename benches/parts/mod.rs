//! The code that the benchmarks run, so that the one that times and the one that counts instructions measure
//! the same.
#![allow(dead_code, reason = "not every benchmark uses all of it")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use switchboard::config::Overflow;
use switchboard::directory::{
    Budget, Client, Flushed, MailboxBounds, Message, QueuedMessage, Wakes, give_back,
};
use switchboard::identity::{ResumptionId, UserId, UserIdentity};
use switchboard::ledger::InHand;
use switchboard::net::Transport;
use switchboard::protocol::Dialect;
use switchboard::relay::Relay;
use switchboard::session::{Session, SessionConfig, SessionContext, Welcome};
use switchboard::telemetry::metrics::Metrics;
use switchboard::telemetry::traces::Traces;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

/// The id with that number.
pub(crate) fn user(id: u64) -> UserId {
    UserId::new(id).expect("not 0")
}

/// Random ids, the same in every run. To make one is cheap beside a lookup.
pub(crate) struct Ids {
    state: u64,
    among: u64,
}

impl Ids {
    pub(crate) fn up_to(among: u64) -> Self {
        Self {
            state: 88_172_645_463_325_252,
            among,
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        1 + self.state % self.among
    }
}

/// A message of `bytes` bytes of text, in the layout that nearly every client uses.
pub(crate) fn plain(recipient: u64, bytes: usize) -> String {
    let message = "x".repeat(bytes);
    format!(r#"{{"recipient_id":{recipient},"message":"{message}"}}"#)
}

/// A message that asks for an outcome.
pub(crate) fn with_id(recipient: u64, bytes: usize) -> String {
    let message = "x".repeat(bytes);
    format!(r#"{{"recipient_id":{recipient},"message":"{message}","id":7}}"#)
}

/// A message in a layout that the fast path of decoding does not know.
pub(crate) fn turned(recipient: u64, bytes: usize) -> String {
    let message = "x".repeat(bytes);
    format!(r#"{{"message":"{message}","recipient_id":{recipient}}}"#)
}

/// `count` masked frames of a client, each with `text` (RFC 6455 section 5.2).
pub(crate) fn frames(text: &str, count: usize) -> Vec<u8> {
    let mask = [0x5a, 0xa5, 0x3c, 0xc3];
    let length = u16::try_from(text.len()).expect("a short text");
    let mut frame = vec![0x81];
    if let Ok(short @ ..=125) = u8::try_from(length) {
        frame.push(0x80 | short);
    } else {
        frame.push(0xfe);
        frame.extend(length.to_be_bytes());
    }
    frame.extend(mask);
    let masked = text.bytes().zip(mask.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame.repeat(count)
}

fn bounds() -> MailboxBounds {
    MailboxBounds {
        messages: 256,
        bytes: 1 << 20,
        max_age: Duration::MAX,
        overflow: Overflow::DropNewest,
        budget: Budget::new(1 << 28),
    }
}

/// Makes clients.
pub(crate) struct Joiner {
    bounds: Arc<MailboxBounds>,
    metrics: Arc<Metrics>,
}

impl Joiner {
    pub(crate) fn new() -> Self {
        Self {
            bounds: Arc::new(bounds()),
            metrics: Arc::new(Metrics::new(1)),
        }
    }

    pub(crate) fn client(&self, id: u64) -> Arc<Client> {
        let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
        let identity = UserIdentity {
            id: user(id),
            resumption_id: ResumptionId::from(0),
        };
        Arc::new(Client::new(identity, Dialect::Bare, None, bounds, metrics))
    }
}

/// One mailbox, with a sender that fills it and a session that takes from it.
pub(crate) struct Mail {
    metrics: Arc<Metrics>,
    client: Arc<Client>,
    message: String,
    flushed: Flushed,
    wakes: Wakes,
}

impl Mail {
    pub(crate) fn new(bytes: usize) -> Self {
        let joiner = Joiner::new();
        let mut mail = Self {
            client: joiner.client(2),
            metrics: joiner.metrics,
            message: format!("\"{}\"", "x".repeat(bytes)),
            flushed: Flushed::default(),
            wakes: Wakes::default(),
        };
        mail.pass(1);
        mail
    }

    /// Pushes `count` messages, takes them together, and settles them as delivered. Returns their bytes.
    pub(crate) fn pass(&mut self, count: u32) -> usize {
        for _ in 0..count {
            let message = Message {
                sender: user(1).into(),
                body: &self.message,
                read_at: 0,
                receipt: None,
            };
            let in_hand = InHand::receive(&*self.metrics);
            self.client.push(message, in_hand, &mut self.wakes);
        }
        self.wakes.wake();
        let (frames, messages) = self.take();
        self.flushed.messages = count;
        self.flushed.bytes = u32::try_from(frames.len()).expect("a few frames");
        let bytes = frames.len();
        give_back(frames, messages);
        // The session takes once more, finds nothing, and waits.
        self.take();
        bytes
    }

    fn take(&mut self) -> (Vec<u8>, VecDeque<QueuedMessage>) {
        let (mut frames, mut messages) = (Vec::new(), VecDeque::new());
        let flushed = std::mem::take(&mut self.flushed);
        let cx = Context::from_waker(Waker::noop());
        self.client.take(flushed, &mut frames, &mut messages, &cx);
        (frames, messages)
    }
}

/// Users in a [`FullRoom`].
const FULL_ROOM_USERS: u64 = 4400;
/// The most messages in each of their mailboxes.
const FULL: u32 = 60;

/// Users that read nothing, with mailboxes as full as they can be and all alike.
pub(crate) struct FullRoom {
    joiner: Joiner,
    clients: Vec<Arc<Client>>,
    message: String,
    wakes: Wakes,
}

impl FullRoom {
    /// All mailboxes together may hold `bytes` for each. With [`FULL`] KiB or more, each mailbox is full of messages of
    /// a kilobyte; with less, they have used up their bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let joiner = Joiner {
            bounds: Arc::new(MailboxBounds {
                messages: FULL,
                budget: Budget::new(FULL_ROOM_USERS * bytes),
                ..bounds()
            }),
            ..Joiner::new()
        };
        let clients = (1..=FULL_ROOM_USERS).map(|id| joiner.client(id)).collect();
        let mut room = Self {
            joiner,
            clients,
            message: format!("\"{}\"", "x".repeat(960)),
            wakes: Wakes::default(),
        };
        for _ in 0..FULL {
            for index in 0..room.clients.len() {
                room.push(index);
            }
        }
        room
    }

    /// Pushes a message to one of the mailboxes. It is refused, because the mailbox or the budget is used up.
    pub(crate) fn push(&mut self, index: usize) {
        let message = Message {
            sender: user(1).into(),
            body: &self.message,
            read_at: 0,
            receipt: None,
        };
        let in_hand = InHand::receive(&*self.joiner.metrics);
        self.clients[index].push(message, in_hand, &mut self.wakes);
    }
}

/// A socket in memory, with the bytes that its client has sent and got.
#[derive(Clone, Default)]
struct Socket(Rc<RefCell<Buffers>>);

#[derive(Default)]
struct Buffers {
    sent: Vec<u8>,
    got: Vec<u8>,
}

impl Transport for Socket {}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let sent = &mut self.0.borrow_mut().sent;
        if sent.is_empty() {
            // The benchmark wakes the session after it has sent.
            return Poll::Pending;
        }
        let count = sent.len().min(buffer.remaining());
        buffer.put_slice(&sent[..count]);
        sent.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().got.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Whether a session was woken.
#[derive(Default)]
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct DrivenSession {
    session: Pin<Box<Session<Socket>>>,
    socket: Socket,
    wake_flag: Arc<WakeFlag>,
    waker: Waker,
}

impl DrivenSession {
    fn new(session: impl FnOnce(Socket) -> Session<Socket>) -> Self {
        let socket = Socket::default();
        let wake_flag = Arc::new(WakeFlag(AtomicBool::new(true)));
        Self {
            session: Box::pin(session(socket.clone())),
            socket,
            waker: wake_flag.clone().into(),
            wake_flag,
        }
    }

    /// Polls the session until nothing has woken it; returns whether it was polled at all.
    fn run(&mut self) -> bool {
        let mut woken = false;
        while self.wake_flag.0.swap(false, Ordering::Relaxed) {
            woken = true;
            let ended = self
                .session
                .as_mut()
                .poll(&mut Context::from_waker(&self.waker));
            assert!(ended.is_pending(), "the session goes on");
        }
        woken
    }

    /// Takes the bytes that the client has received; returns their number.
    fn receive(&mut self) -> usize {
        let got = &mut self.socket.0.borrow_mut().got;
        let bytes = got.len();
        got.clear();
        bytes
    }
}

/// Two users, each with a session over a socket in memory. Between them is the relay alone, without a scheduler and
/// without a kernel.
pub(crate) struct Pair {
    sender: DrivenSession,
    recipient: DrivenSession,
    /// Owns the sessions' timers.
    _runtime: Runtime,
}

/// The recipient's id in a [`Pair`].
pub(crate) const RECIPIENT: u64 = 2;

impl Pair {
    pub(crate) fn new(dialect: Dialect) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let metrics = Arc::new(Metrics::new(1));
        let traces = Arc::new(Traces::off());
        let relay = Relay::new(bounds(), 2, metrics.clone(), traces);
        let context = Arc::new(SessionContext::new(config(), metrics));
        let join = || {
            let membership = runtime
                .block_on(relay.join(dialect, None, None))
                .expect("room for two users");
            let (welcome, context) = (Welcome::default(), context.clone());
            let _entered = runtime.enter();
            DrivenSession::new(|socket| Session::new(socket, &[], membership, &welcome, context))
        };
        let (sender, recipient) = (join(), join());
        let mut pair = Self {
            sender,
            recipient,
            _runtime: runtime,
        };
        pair.settle();
        pair
    }

    /// Sends frames from the sender's client; returns the bytes that the recipient's client has received.
    pub(crate) fn pass(&mut self, frames: &[u8]) -> usize {
        self.sender
            .socket
            .0
            .borrow_mut()
            .sent
            .extend_from_slice(frames);
        self.sender.waker.wake_by_ref();
        self.settle()
    }

    fn settle(&mut self) -> usize {
        while self.sender.run() | self.recipient.run() {}
        self.sender.receive();
        self.recipient.receive()
    }
}

/// A configuration in which no timer fires while a benchmark runs.
fn config() -> SessionConfig {
    let never = Duration::from_hours(24);
    SessionConfig {
        ping_interval: never,
        pong_timeout: never,
        slowest_rate: 4096,
        write_timeout: never,
        close_timeout: never,
        connection_age: None,
        message_bytes: 1 << 16,
        frame_bytes: 1 << 17,
        bad_messages: 16,
        outcomes_pending: 1024,
        message_rate: None,
        byte_rate: None,
        echo: false,
    }
}
