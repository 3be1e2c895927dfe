//! Persons and their connections. A person keeps its ticket and comes back when a connection ends, as the clients of
//! the project do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::frames::{self, Frame};
use super::node::Handshake;
use super::socket::ClientSocket;

pub(super) type ConnectionId = usize;

pub(super) struct Person {
    pub(super) ticket: Option<String>,
    /// The id by which others write to this person.
    pub(super) id: Option<u64>,
    /// The connection that it uses; an earlier one may live still.
    pub(super) connection: Option<ConnectionId>,
    /// When it tries to connect.
    pub(super) connects_at: Option<u64>,
    pub(super) stalls_until: u64,
    /// It has left in order, and comes back only when the schedule says so.
    pub(super) is_away: bool,
}

pub(super) struct Connection {
    pub(super) person: usize,
    pub(super) node: usize,
    pub(super) socket: ClientSocket,
    pub(super) handshake: Arc<Mutex<Handshake>>,
    pub(super) task: AbortHandle,
    pub(super) stage: ConnectionStage,
    /// When the handshake began, and when it was accepted.
    pub(super) begun_at: u64,
    pub(super) accepted_at: u64,
    pub(super) ended_at: Option<u64>,
    pub(super) id: Option<u64>,
    /// The id of the ticket that it has shown.
    pub(super) expects: Option<u64>,
    pub(super) close_code: Option<u16>,
    /// The person has ended it.
    pub(super) is_given_up: bool,
    /// Bytes that are not a whole frame yet.
    bytes: Vec<u8>,
    /// Frames that the client has not read.
    pub(super) frames: VecDeque<Frame>,
    /// Messages without an outcome, with the time when they were written.
    pub(super) unsettled: BTreeMap<u64, u64>,
    pub(super) reconnect_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionStage {
    Handshake,
    Open,
    Ended,
}

impl Person {
    pub(super) fn new() -> Self {
        Self {
            ticket: None,
            id: None,
            connection: None,
            connects_at: None,
            stalls_until: 0,
            is_away: true,
        }
    }
}

impl Connection {
    pub(super) fn new(
        (person, node): (usize, usize),
        socket: ClientSocket,
        (handshake, task): (Arc<Mutex<Handshake>>, AbortHandle),
        now: u64,
    ) -> Self {
        Self {
            person,
            node,
            socket,
            handshake,
            task,
            stage: ConnectionStage::Handshake,
            begun_at: now,
            accepted_at: 0,
            ended_at: None,
            id: None,
            expects: None,
            close_code: None,
            is_given_up: false,
            bytes: Vec::new(),
            frames: VecDeque::new(),
            unsettled: BTreeMap::new(),
            reconnect_ms: None,
        }
    }

    /// Whole frames that the node has written since the last call.
    pub(super) fn take_frames(&mut self) -> Vec<Frame> {
        let written = self.socket.take_written();
        if written.is_empty() {
            return Vec::new();
        }
        self.bytes.extend(written);
        frames::parse(&mut self.bytes)
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage == ConnectionStage::Open
    }
}
