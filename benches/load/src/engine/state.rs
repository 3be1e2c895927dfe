//! The state of the engine: connections, flows, groups, phases, and what waits to be written.

use std::io;
use std::net::SocketAddr;

use mio::{Events, Poll};
use tokio::time::Instant;

use super::batch::PeerBatch;
use super::churn::Churn;
use super::group::Group;
use super::pacer::Pacer;
use super::probes::Probes;
use crate::codec::{ClientHandshake, PAYLOAD_BYTES_MAX};
use crate::connection::Connection;
use crate::faults::Faults;
use crate::flow::MessageFlow;
use crate::number::nanos;
use crate::progress::Progress;
use switchboard::identity::UserId;

/// The buffer that all connections read through: a frame of the largest size, and the bytes behind it.
const SCRATCH_BYTES: usize = PAYLOAD_BYTES_MAX + 128 * 1024;
const EVENTS_MAX: usize = 1024;

/// The clients of one scenario.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) faults: Faults,
    pub(crate) flows: Vec<MessageFlow>,
    pub(crate) groups: Vec<Group>,
    pub(crate) pacers: Vec<Pacer>,
    /// The short-lived peers, while there are any.
    pub(crate) churn: Option<Churn>,
    pub(crate) progress: Progress,
    pub(super) connections: Vec<Connection>,
    /// Slots whose connection has ended, to be used again.
    pub(super) free: Vec<usize>,
    /// Slots that became free in this turn. Events of the old connection may still be at hand, so they are
    /// used again from the next turn on.
    pub(super) freed: Vec<usize>,
    /// Slots of connections that have bytes to write.
    pub(super) unflushed: Vec<usize>,
    /// The idle peers that are connecting.
    pub(super) batch: Option<PeerBatch>,
    pub(super) probes: Probes,
    /// When each phase began.
    pub(super) phases: Vec<u64>,
    /// How many connections were begun.
    pub(super) begun: usize,
    pub(super) poll: Poll,
    pub(super) events: Events,
    pub(super) scratch: Vec<u8>,
    pub(super) target: SocketAddr,
    pub(super) handshake: ClientHandshake,
    pub(super) poll_mode: PollMode,
    pub(super) waited_ns: u64,
    started: Instant,
}

/// How the thread waits for sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollMode {
    /// Polls without a pause, so that no latency contains the time that waking up takes.
    Spin,
    /// Sleeps, because the machine has one CPU for both sides.
    Sleep,
}

impl Engine {
    pub(crate) fn new(
        target: SocketAddr,
        handshake: ClientHandshake,
        poll_mode: PollMode,
        progress: Progress,
    ) -> io::Result<Self> {
        Ok(Self {
            faults: Faults::default(),
            flows: Vec::new(),
            groups: Vec::new(),
            pacers: Vec::new(),
            churn: None,
            progress,
            connections: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            unflushed: Vec::new(),
            batch: None,
            probes: Probes::default(),
            phases: vec![0],
            begun: 0,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            target,
            handshake,
            poll_mode,
            waited_ns: 0,
            started: Instant::now(),
        })
    }

    /// Nanoseconds since the engine was made.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    /// Time spent with nothing to do, nanoseconds.
    pub(crate) fn waited_ns(&self) -> u64 {
        self.waited_ns
    }

    pub(crate) fn id(&self, slot: usize) -> Option<UserId> {
        self.connections[slot].id
    }

    pub(crate) fn is_open(&self, slot: usize) -> bool {
        self.connections[slot].is_open()
    }

    /// Adds a group of flows; returns its number.
    pub(crate) fn add_group(&mut self, name: &'static str) -> usize {
        self.groups.push(Group::new(name, self.phases.len()));
        self.groups.len() - 1
    }

    /// Begins the next phase; returns its number.
    pub(crate) fn begin_phase(&mut self) -> usize {
        self.phases.push(self.now());
        self.groups.iter_mut().for_each(Group::begin_phase);
        self.phases.len() - 1
    }

    /// The number of the phase that is on.
    #[inline]
    pub(super) fn current_phase(&self) -> usize {
        self.phases.len() - 1
    }

    /// Notes that a connection has bytes to write.
    #[inline]
    pub(super) fn queue(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if !connection.is_queued {
            connection.is_queued = true;
            self.unflushed.push(slot);
        }
    }
}
