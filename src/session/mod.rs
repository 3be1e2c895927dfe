//! The life of one connection, in one task, as a future written by hand: a million idle ones are
//! paid for by its size. A turn reads a gulp and sends what is in it, then writes whatever has come
//! for this user, in as few writes as the socket takes. Nobody else touches the socket.
//!
//! The phases: open; leaving, where all that is owed is written and a close frame behind it;
//! discarding, where the peer's close is awaited and nothing counts as a message; and ending, where
//! the answer to the peer's close is written.

mod frames;
mod read;
mod write;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{unconstrained, yield_now};
use tokio::time::{Instant, Sleep};

use crate::admission::token_bucket::{Bucket, Rate};
use crate::directory::{Command, Flushed, QueuedMessage, Wakes};
use crate::protocol::{Dialect, Outbound, close_code, push_frame, push_ping};
use crate::relay::Membership;
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator, Metrics};
use frames::{GULP_BYTES, Wire};

/// The bounds and waits of a session, the same for all of an app.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// From one ping to the next.
    pub ping_interval: Duration,
    /// From a ping to its pong.
    pub pong_timeout: Duration,
    /// For a write to make progress.
    pub write_timeout: Duration,
    /// From our close frame to the peer's, and for what is written before it.
    pub close_timeout: Duration,
    /// How old a connection may grow, give or take a fifth.
    pub connection_age: Option<Duration>,
    /// The most bytes of a message as sent.
    pub message_bytes: usize,
    /// The most bytes of a frame, and of a message's fragments together, that are read at all.
    pub frame_bytes: usize,
    /// Bad messages until a `switchboard.v1` connection is closed.
    pub bad_messages: u32,
    /// Outcomes and errors that a `switchboard.v1` connection may have under way.
    pub outcomes_pending: u32,
    /// How fast messages may come, frames that are none counted, too.
    pub message_rate: Option<Rate>,
    /// How fast their bytes may come.
    pub byte_rate: Option<Rate>,
    /// Whether messages go back as they came and nowhere else: for suites of tests that want a server
    /// which does so. No setting asks for it.
    pub echo: bool,
}

/// What a user is told when it has arrived, beside its id and the limits.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    /// What to show in order to come back with the same id.
    pub ticket: String,
    /// Whether this id is the one of the ticket that was shown.
    pub resumed: bool,
    /// Why it is not, where a ticket was shown.
    pub reason: Option<&'static str>,
}

/// What all sessions of an app share.
#[derive(Debug)]
pub struct SessionContext {
    config: SessionConfig,
    metrics: Arc<Metrics>,
    /// Time zero of the microseconds that messages are stamped with.
    epoch: Instant,
}

impl SessionContext {
    /// What the sessions of one app share.
    pub fn new(config: SessionConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            config,
            metrics,
            epoch: Instant::now(),
        }
    }

    /// Time zero of the microseconds that messages are stamped with.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// That time now.
    pub(crate) fn now(&self) -> u64 {
        micros(self.epoch.elapsed())
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Ends a turn that has more to do: the next one comes when all who are ready had theirs and the sockets
/// were looked at. A task that wakes itself comes before whatever the sockets have for others, and a few
/// of these hold up everybody for the dozens of turns that the runtime takes between two looks.
fn come_again(cx: &mut Context<'_>) {
    let asked = pin!(yield_now()).poll(cx);
    debug_assert!(asked.is_pending(), "it is woken, now or later");
}

/// How long nothing is read from whoever sends what costs by its number, or talks on behind our close,
/// once a turn's worth of it was read: microseconds. Others' turns would come in between without it, but
/// a relay that never sleeps waits for its core whenever anything else of the machine wants that.
const REST: u64 = 1000;

/// Pieces in which a gulp is lent to tungstenite, bytes. It zeroes as much before each, so more costs
/// where little comes, and less costs more turns where much does.
const READ_BUFFER_BYTES: usize = 1024;

/// How a connection is to be closed.
#[derive(Debug)]
struct Close {
    initiator: Initiator,
    code: CloseCode,
    /// The close frame's code and reason.
    frame: (u16, Cow<'static, str>),
    /// Not before every outcome that this user asked for is known.
    awaits_outcomes: bool,
}

impl Close {
    fn server(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            initiator: Initiator::Server,
            code: CloseCode::Code(code),
            frame: (code, reason.into()),
            awaits_outcomes: false,
        }
    }
}

#[derive(Debug)]
enum Phase {
    Open,
    /// Until then, microseconds.
    Leaving(Box<Close>, u64),
    Discarding(u64),
    Ending(u64),
}

/// The connection is over, and how.
#[derive(Debug)]
struct End(Initiator, CloseCode);

/// Times at which something is due, microseconds of the app's clock; [`NEVER`] where nothing is.
#[derive(Debug)]
struct Due {
    ping: u64,
    pong: u64,
    stall: u64,
    /// Of the token.
    expiry: u64,
    /// Of the connection.
    age: u64,
    /// When the timer will fire.
    armed: u64,
}

const NEVER: u64 = u64::MAX;

pin_project_lite::pin_project! {
    /// One connection: a future that ends with it.
    pub struct Session<S> {
        core: Core<S>,
        #[pin]
        timer: Sleep,
    }
}

/// What reading left behind when it paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paused {
    /// A pong, for which there is this much time once reading goes on, microseconds.
    AwaitingPong(u64),
    AwaitingNothing,
}

struct Core<S> {
    wire: Wire<S>,
    /// The half of a message that has come; see [`Scratch`].
    ws: Option<Box<WebSocketContext>>,
    membership: Membership,
    context: Arc<SessionContext>,
    phase: Phase,
    due: Due,
    /// Messages in the write buffer.
    flights: VecDeque<QueuedMessage>,
    flushed: Flushed,
    /// Outcomes and errors that were promised and have not left.
    promised: u32,
    /// Those of them in the write buffer.
    leaving: u32,
    bad_messages: u32,
    /// What is used up of the rates.
    messages: Bucket,
    bytes: Bucket,
    /// While nothing is read, since too much is promised to this user or the router has no room.
    paused: Option<Paused>,
    /// Nothing is read until the timer fires, which is within [`REST`].
    resting: bool,
    /// What is taken and not flushed at the end was cut by the drain.
    cut: bool,
    panicked: bool,
}

/// What a turn borrows from its worker thread: room for a gulp, and tungstenite's side of a
/// connection, which has a buffer and no way to shrink it. A connection keeps one of its own only
/// while half a message is in it, so that an idle one owns no buffer at all.
#[derive(Debug)]
struct Scratch {
    room: Vec<u8>,
    wakes: Wakes,
    ws: Option<Box<WebSocketContext>>,
    /// Something was read or written in this turn, so that its time is over.
    is_late: bool,
}

thread_local! {
    // In a box, so that a turn moves a pointer there and back.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "it is the thread's box, and goes back there"
    )]
    fn borrow() -> Box<Self> {
        SCRATCH.take().unwrap_or_else(|| {
            Box::new(Self {
                room: vec![0; GULP_BYTES],
                wakes: Wakes::default(),
                ws: None,
                is_late: false,
            })
        })
    }

    fn give_back(mut self: Box<Self>) {
        self.wakes.wake();
        self.is_late = false;
        SCRATCH.set(Some(self));
    }

    /// A side of tungstenite's that is new, or as good as new.
    fn websocket(&mut self, config: &SessionConfig, dialect: Dialect) -> Box<WebSocketContext> {
        // Bare closes on any message over the limit, so it need not be read; in switchboard.v1 its
        // id is wanted, for the outcome.
        let bytes_max = match dialect {
            Dialect::Bare => config.message_bytes,
            Dialect::V1 => config.frame_bytes,
        };
        let mut ws = self.ws.take().unwrap_or_else(|| {
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER_BYTES)
                .write_buffer_size(0)
                .max_write_buffer_size(READ_BUFFER_BYTES);
            Box::new(WebSocketContext::new(Role::Server, Some(config)))
        });
        if ws.get_config().max_frame_size != Some(bytes_max) {
            ws.set_config(|config| {
                config.max_message_size = Some(bytes_max);
                config.max_frame_size = Some(bytes_max);
            });
        }
        ws
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// A session over `io`, the socket of a handshake that is complete, of which `read` was read
    /// already.
    pub fn new(
        io: S,
        read: &[u8],
        (membership, arrival): (Membership, Arrival),
        context: Arc<SessionContext>,
    ) -> Self {
        let now = context.now();
        let interval = micros(context.config.ping_interval);
        // The first ping comes at a random point of the interval's second half, so that users who
        // came in one wave are not pinged in one.
        let ping = now + interval / 2 + fastrand::u64(0..=interval / 2);
        let mut wire = Wire::new(io, read);
        let client = membership.client();
        push_frame(
            &mut wire.out,
            client.dialect(),
            Outbound::Welcome {
                user_id: client.id(),
                heartbeat_ms: u64::try_from(context.config.ping_interval.as_millis())
                    .unwrap_or(u64::MAX),
                max_message_bytes: context.config.message_bytes,
                ticket: &arrival.ticket,
                resumed: arrival.resumed,
                reason: arrival.reason,
            },
        );
        let core = Core {
            wire,
            ws: None,
            membership,
            phase: Phase::Open,
            due: Due {
                ping,
                pong: NEVER,
                stall: NEVER,
                expiry: NEVER,
                age: context.config.connection_age.map_or(NEVER, |age| {
                    // A fifth either way, so that those who came together do not go together.
                    now + micros(age.mul_f64(0.8 + 0.4 * fastrand::f64()))
                }),
                armed: NEVER,
            },
            flights: VecDeque::new(),
            flushed: Flushed::default(),
            promised: 0,
            leaving: 0,
            bad_messages: 0,
            messages: Bucket::default(),
            bytes: Bucket::default(),
            paused: None,
            resting: false,
            cut: false,
            panicked: false,
            context,
        };
        let timer = tokio::time::sleep_until(core.instant(ping));
        Self { core, timer }
    }

    /// Closes the connection with 4401 after this time.
    pub fn expire_in(&mut self, remaining: Duration) {
        let now = self.core.context.now();
        self.core.due.expiry = now.saturating_add(micros(remaining));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Session<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let mut scratch = Scratch::borrow();
        let core = &mut *this.core;
        // A panic ends this connection and no other: the ledger's types settle what it held.
        let turn = catch_unwind(AssertUnwindSafe(|| core.turn(cx, &mut scratch)));
        let turn = turn.unwrap_or_else(|_| core.recover(cx));
        core.wire.settle_inbox(&mut scratch.room);
        scratch.give_back();
        if let Poll::Ready(End(initiator, code)) = turn {
            core.membership.ended(initiator, code);
            return Poll::Ready(());
        }
        // Armed anew only for something earlier; what has moved later is found out when it fires.
        let mut next = core.next_due();
        if core.resting {
            next = next.min(core.context.now() + REST);
        }
        if next < core.due.armed {
            core.due.armed = next;
            let mut timer = this.timer;
            timer.as_mut().reset(core.instant(next));
            // Outside of the task's budget: in a turn that has used it up the timer would say
            // pending without having heard whom to wake.
            if pin!(unconstrained(timer)).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Core<S> {
    fn instant(&self, micros: u64) -> Instant {
        // Far beyond any setting, and no overflow.
        self.context.epoch + Duration::from_micros(micros.min(1 << 52))
    }

    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<End> {
        let now = self.context.now();
        if now >= self.due.armed {
            self.due.armed = NEVER;
            self.resting = false;
            if let Some(end) = self.on_due(now) {
                return Poll::Ready(end);
            }
        }
        if let Some(end) = self.read(cx, scratch, now) {
            return Poll::Ready(end);
        }
        match self.pump(cx, scratch, now) {
            Some(end) => Poll::Ready(end),
            None => Poll::Pending,
        }
    }

    fn next_due(&self) -> u64 {
        let phase = match &self.phase {
            Phase::Open => NEVER,
            Phase::Leaving(_, by) | Phase::Discarding(by) | Phase::Ending(by) => *by,
        };
        let Due {
            ping,
            pong,
            stall,
            expiry,
            age,
            armed: _,
        } = self.due;
        ping.min(pong).min(stall).min(expiry).min(age).min(phase)
    }

    /// Does what is due.
    fn on_due(&mut self, now: u64) -> Option<End> {
        let config = &self.context.config;
        if now >= self.due.stall {
            return Some(End(Initiator::Server, CloseCode::WriteTimeout));
        }
        match &self.phase {
            Phase::Open => {}
            Phase::Leaving(_, by) | Phase::Discarding(by) | Phase::Ending(by) => {
                return (now >= *by).then(|| self.ending());
            }
        }
        if now >= self.due.expiry {
            let close = Close::server(close_code::EXPIRED, "the token has expired");
            self.leave(close, now);
            return None;
        }
        if now >= self.due.age {
            // At once: there is nothing to be spread, since no two are of an age.
            return self.on_command(Command::Restart { after_ms: 0 }, now);
        }
        if now >= self.due.pong {
            self.due.pong = NEVER;
            let mut close = Close::server(close_code::POLICY, "no pong in time");
            close.code = CloseCode::PongTimeout;
            self.leave(close, now);
            return None;
        }
        if now >= self.due.ping {
            self.due.ping = now + micros(config.ping_interval);
            if self.due.pong == NEVER && self.paused.is_none() {
                self.due.pong = now + micros(config.pong_timeout);
                push_ping(&mut self.wire.out);
            }
        }
        None
    }

    /// Begins to close: no message is read from here on, and what is owed is written first.
    fn leave(&mut self, close: Close, now: u64) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        let by = if close.awaits_outcomes {
            NEVER
        } else {
            now + micros(self.context.config.close_timeout)
        };
        self.membership.ended(close.initiator, close.code);
        self.stop_heartbeat();
        self.wire.forget_inbox();
        self.membership.close_port();
        if !close.awaits_outcomes {
            self.membership.client().shut();
        }
        self.phase = Phase::Leaving(Box::new(close), by);
    }

    fn stop_heartbeat(&mut self) {
        self.due.ping = NEVER;
        self.due.pong = NEVER;
        self.due.expiry = NEVER;
        self.due.age = NEVER;
    }

    /// The end that was decided when the connection began to close.
    fn ending(&self) -> End {
        let (initiator, code) = self.membership.ending();
        End(initiator, code)
    }

    fn on_command(&mut self, command: Command, now: u64) -> Option<End> {
        match command {
            Command::Abort => {
                self.cut = true;
                return Some(End(Initiator::Server, CloseCode::Code(close_code::RESTART)));
            }
            Command::Restart { after_ms } if matches!(self.phase, Phase::Open) => {
                push_frame(
                    &mut self.wire.out,
                    self.membership.client().dialect(),
                    Outbound::Reconnect { after_ms },
                );
                let mut close = Close::server(close_code::RESTART, "restart");
                close.awaits_outcomes = self.membership.client().dialect() == Dialect::V1;
                self.leave(close, now);
            }
            Command::Close { code, reason } => self.leave(Close::server(code, reason), now),
            Command::Remove { reason } => {
                let close = Close::server(close_code::REMOVED, reason.to_string());
                self.leave(close, now);
            }
            Command::Restart { .. } => {}
        }
        None
    }

    /// After a panic in a turn: one more try, to say goodbye.
    fn recover(&mut self, cx: &Context<'_>) -> Poll<End> {
        self.context.metrics.session_panicked();
        if std::mem::replace(&mut self.panicked, true) {
            return Poll::Ready(End(
                Initiator::Server,
                CloseCode::Code(close_code::INTERNAL),
            ));
        }
        self.phase = Phase::Open;
        self.leave(
            Close::server(close_code::INTERNAL, "internal error"),
            self.context.now(),
        );
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> Drop for Core<S> {
    fn drop(&mut self) {
        let reason = if self.cut {
            DropReason::Draining
        } else {
            DropReason::Disconnected
        };
        let taken = std::mem::take(&mut self.flights);
        self.membership
            .client()
            .settle(std::mem::take(&mut self.flushed));
        self.membership
            .give_up(taken, reason, &mut Wakes::default());
    }
}

impl<S> std::fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("membership", &self.core.membership)
            .finish_non_exhaustive()
    }
}
