//! One thread, one epoll set, non-blocking sockets. A turn sends what is due, waits for sockets, reads
//! what came and writes the answers, all that a connection has to say at once.
//!
//! `connect` opens and ends connections, `receive` reads frames and judges messages, `send` paces and
//! sends them, `crowd` and `visitors` are the users that come in numbers, `ids` learns who is who.

mod batch;
mod churn;
mod connect;
mod ids;
mod receive;
mod send;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use mio::{Events, Poll};
use tokio::time::Instant;

use super::codec::{ClientHandshake, PAYLOAD_BYTES_MAX};
use super::connection::Connection;
use super::faults::Faults;
use super::flow::MessageFlow;
use super::number::nanos;
use super::progress::Progress;
use switchboard::identity::UserId;

pub(super) use batch::{BatchPace, PeerBatch};
pub(super) use churn::Churn;
use send::Pacer;

/// The buffer that all connections read through: a frame, and what came behind it.
const SCRATCH_BYTES: usize = PAYLOAD_BYTES_MAX + 128 * 1024;
const EVENTS_MAX: usize = 1024;

/// The step of the timelines.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The longest that can be told from "too long", nanoseconds.
const LATENCY_NS_MAX: u64 = 300_000_000_000;

/// A histogram of nanoseconds, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds that hold")
}

/// What the clients of one run share.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) faults: Faults,
    pub(super) flows: Vec<MessageFlow>,
    pub(super) groups: Vec<Group>,
    pub(super) pacers: Vec<Pacer>,
    pub(super) visitors: Option<Churn>,
    pub(super) progress: Progress,
    connections: Vec<Connection>,
    /// Slots of connections that are gone; those of this turn may still have events.
    free: Vec<usize>,
    freed: Vec<usize>,
    /// Slots of connections with something to write.
    unflushed: Vec<usize>,
    arrivals: Option<PeerBatch>,
    probes: ids::Probes,
    /// When each phase began.
    phases: Vec<u64>,
    /// How many connections were begun.
    begun: usize,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    target: SocketAddr,
    handshake: ClientHandshake,
    started: Instant,
    waiting: PollMode,
    waited_ns: u64,
}

/// StrategyMedians that are kept together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: &'static str,
    /// Messages that were sent, by phase.
    pub(super) sent: Vec<u64>,
    /// Messages that arrived, by the phase in which they did.
    pub(super) arrived: Vec<u64>,
    /// Latencies, by the phase in which the message was due.
    pub(super) latency: Vec<Histogram<u64>>,
    /// Messages that arrived, by tick.
    pub(super) timeline: Vec<u64>,
}

/// How the thread waits for sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollMode {
    /// Asks again and again, so that its own waking up is in no latency.
    Busy,
    /// Sleeps, on a machine that has one CPU for both sides.
    Asleep,
}

impl Engine {
    pub(super) fn new(
        target: SocketAddr,
        handshake: ClientHandshake,
        waiting: PollMode,
        progress: Progress,
    ) -> io::Result<Self> {
        Ok(Self {
            faults: Faults::default(),
            flows: Vec::new(),
            groups: Vec::new(),
            pacers: Vec::new(),
            visitors: None,
            progress,
            connections: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            unflushed: Vec::new(),
            arrivals: None,
            probes: ids::Probes::default(),
            phases: vec![0],
            begun: 0,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            target,
            handshake,
            started: Instant::now(),
            waiting,
            waited_ns: 0,
        })
    }

    /// Nanoseconds since the engine was made.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    /// Time spent with nothing to do, nanoseconds.
    pub(super) fn waited_ns(&self) -> u64 {
        self.waited_ns
    }

    pub(super) fn id(&self, slot: usize) -> Option<UserId> {
        self.connections[slot].id
    }

    pub(super) fn is_open(&self, slot: usize) -> bool {
        self.connections[slot].is_open()
    }

    /// A group of figures; returns its number.
    pub(super) fn add_group(&mut self, name: &'static str) -> usize {
        let phases = self.phases.len();
        self.groups.push(Group {
            name,
            sent: vec![0; phases],
            arrived: vec![0; phases],
            latency: (0..phases).map(|_| histogram()).collect(),
            timeline: Vec::new(),
        });
        self.groups.len() - 1
    }

    /// Begins the next phase; returns its number.
    pub(super) fn begin_phase(&mut self) -> usize {
        self.phases.push(self.now());
        for group in &mut self.groups {
            group.sent.push(0);
            group.arrived.push(0);
            group.latency.push(histogram());
        }
        self.phases.len() - 1
    }

    /// Turns for a while.
    pub(super) fn run_for(&mut self, duration: Duration) {
        let end = self.now() + nanos(duration);
        while self.now() < end {
            self.turn(end);
        }
    }

    /// Turns until something holds; whether it did within `patience`.
    pub(super) fn run_until(
        &mut self,
        patience: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.now() + nanos(patience);
        while !holds(self) {
            let now = self.now();
            if now >= end {
                return false;
            }
            self.turn(end.min(now + nanos(LOOK_AGAIN)));
        }
        true
    }

    /// Sends what is due, waits until something comes, the next thing is due or `end`, and works
    /// through what came.
    fn turn(&mut self, end: u64) {
        let begin = self.now();
        let due = self.send_due(begin).min(end);
        let sends = !self.unflushed.is_empty();
        self.flush_all();
        let before = if sends { self.now() } else { begin };
        let wait = self.wait(before, due);
        // An interrupted wait is a short one.
        drop(self.poll.poll(&mut self.events, Some(wait)));
        let after = self.now();
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let slept = after - before;
        self.waited_ns += match (events.is_empty(), sends) {
            // A turn in which nothing happens is no work at all.
            (true, false) => slept + TURN_NS,
            (true, true) => slept,
            (false, _) => slept.saturating_sub(POLL_NS),
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        for event in &events {
            self.on_event(event, &mut scratch);
        }
        self.scratch = scratch;
        self.events = events;
        self.flush_all();
        self.free.append(&mut self.freed);
        self.progress.tick(after);
    }

    fn wait(&self, now: u64, due: u64) -> Duration {
        match self.waiting {
            PollMode::Busy => Duration::ZERO,
            PollMode::Asleep => {
                // epoll knows milliseconds: the last part of one is not slept.
                let ms = due.saturating_sub(now) / 1_000_000;
                Duration::from_millis(ms)
            }
        }
    }
}

/// How often a condition is looked at while nothing comes.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What a poll costs that finds something: work, not waiting.
const POLL_NS: u64 = 500;

/// What a turn costs in which nothing happens, beside its poll.
const TURN_NS: u64 = 50;
