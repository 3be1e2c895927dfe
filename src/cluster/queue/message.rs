//! Messages that wait to be published: in lines, taken, or dropped.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::cluster::envelope::Node;
use crate::directory::{Receipt, Wakes};
use crate::identity::UserId;
use crate::protocol::Status;
use crate::telemetry::traces::Traced;

/// What a message takes beside its payload, bytes: its place in a line, and its subjects on the wire.
const QUEUED_MESSAGE_BYTES: usize = 160;

/// A message on its way to another node.
#[derive(Debug)]
pub(in crate::cluster) struct QueuedMessage {
    pub(in crate::cluster) recipient: UserId,
    pub(in crate::cluster) payload: Bytes,
    pub(in crate::cluster) receipt: Option<Box<Receipt>>,
    /// Where the message is traced.
    pub(in crate::cluster) trace: Option<Box<Traced>>,
}

impl QueuedMessage {
    /// The message does not leave this node, and this became of it.
    pub(in crate::cluster) fn settle(self, status: Status, wakes: &mut Wakes) {
        if let Some(trace) = self.trace {
            trace.dropped(status.as_str());
        }
        if let Some(receipt) = self.receipt {
            receipt.settle(status, wakes);
        }
    }

    /// What it counts for in every bound.
    pub(in crate::cluster) fn bytes(&self) -> usize {
        QUEUED_MESSAGE_BYTES + self.payload.len()
    }
}

/// A message that was taken, its node, and where it is in what goes there.
#[derive(Debug)]
pub(in crate::cluster) struct Taken {
    pub(in crate::cluster) queued: QueuedMessage,
    pub(in crate::cluster) node: Node,
    /// All bytes that have gone to the node by this link, up to the end of this message.
    pub(in crate::cluster) mark: u64,
}

/// Messages that were dropped and counted, to be settled without the lock.
#[derive(Debug, Default)]
#[must_use = "their senders wait for the outcomes"]
pub(in crate::cluster) struct Dropped(pub(super) Vec<(QueuedMessage, Status)>);

impl Dropped {
    pub(in crate::cluster) fn settle(self, wakes: &mut Wakes) {
        for (queued, status) in self.0 {
            queued.settle(status, wakes);
        }
    }
}

/// What has come of a look at the time.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Ticked {
    /// Nodes that have not answered for a while: their keys are to be read.
    pub(in crate::cluster) silent: Vec<Node>,
    pub(in crate::cluster) dropped: Dropped,
    /// Lines wait no more.
    pub(in crate::cluster) has_waited: bool,
}

/// The messages for one user.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) messages: VecDeque<QueuedMessage>,
    pub(super) bytes: usize,
    /// What it has not sent of its turns so far.
    pub(super) credit: usize,
    pub(super) waits_for: WaitsFor,
    /// Its place was looked up since it began. Else it may be an old one.
    pub(super) is_placed: bool,
}

/// What a line waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum WaitsFor {
    #[default]
    Turn,
    Place,
    Node(Node),
}
