//! What waits to be published: one line for each remote user, served in turns, so that a flood to one does not
//! hold up the others. A sender never waits for room; what does not fit is an answer. A line waits for its turn, for
//! the place of its user, or for the node there: no more goes to a node than it takes. Must not know of NATS or of
//! locks.

mod bounds;
mod message;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

pub(in crate::cluster) use bounds::Bounds;
pub(in crate::cluster) use message::{Dropped, QueuedMessage, Taken, Ticked};
use message::{Line, WaitsFor};

use crate::cluster::envelope::Node;
use crate::cluster::flow::Flow;
use crate::cluster::routes::Routes;
use crate::identity::UserId;
use crate::ledger::{Held, InHand};
use crate::protocol::Status;
use crate::telemetry::metrics::{DropReason, Metrics};

/// What a user's line may send in a turn, bytes: one write's worth of small messages, and a large one has to wait
/// for a few turns.
const TURN_BYTES: usize = 8 * 1024;
/// Places that are looked up at a time.
const LOOKUPS: usize = 256;
/// The part of all bytes that may wait for one node, so that a node which hangs leaves room for the others.
const NODE_SHARE: usize = 4;

/// The queue. It takes messages only while there is a link.
#[derive(Debug)]
pub(in crate::cluster) struct Queue {
    // Recipients are any numbers that peers write: the keys are hashed with a secret.
    lines: HashMap<UserId, Line>,
    turns: VecDeque<UserId>,
    routes: Routes,
    /// Users to be looked up in the table.
    unplaced: VecDeque<UserId>,
    looking: usize,
    /// Nodes that are to be told of the link.
    greetings: VecDeque<Node>,
    flows: BTreeMap<Node, Flow>,
    bytes: usize,
    /// All bytes that were taken. Marks begin here, so that those of a node only ever rise.
    taken: u64,
    /// Counts those that were taken, too, until they are settled.
    held: Held,
    bounds: Bounds,
    is_open: bool,
}

impl Queue {
    pub(in crate::cluster) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            lines: HashMap::new(),
            turns: VecDeque::new(),
            routes: Routes::new(bounds.routes),
            unplaced: VecDeque::new(),
            looking: 0,
            greetings: VecDeque::new(),
            flows: BTreeMap::new(),
            bytes: 0,
            taken: 0,
            held: Held::new(metrics),
            bounds,
            is_open: false,
        }
    }

    /// Messages queued, or taken and not settled.
    pub(in crate::cluster) fn messages(&self) -> u32 {
        self.held.messages()
    }

    /// Bytes queued.
    pub(in crate::cluster) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Places that are remembered.
    pub(in crate::cluster) fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Whether nothing is queued, or taken and not settled.
    pub(in crate::cluster) fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// Takes messages from now on, for a new link.
    pub(in crate::cluster) fn open(&mut self) {
        self.is_open = true;
        self.flows.clear();
        self.routes.clear();
        self.looking = 0;
    }

    /// Takes no more.
    pub(in crate::cluster) fn close(&mut self) {
        self.is_open = false;
    }

    /// Queues a message, or drops it; then it is given back, with what became of it.
    pub(in crate::cluster) fn push<M: Deref<Target = Metrics>>(
        &mut self,
        mut queued: QueuedMessage,
        in_hand: InHand<M>,
    ) -> Result<(), (Status, QueuedMessage)> {
        if !self.is_open {
            in_hand.dropped(DropReason::Unavailable);
            return Err((Status::Unavailable, queued));
        }
        let bytes = queued.bytes();
        let line = self.lines.entry(queued.recipient).or_default();
        let flow = match line.waits_for {
            WaitsFor::Node(node) => self.flows.get_mut(&node),
            WaitsFor::Turn | WaitsFor::Place => None,
        };
        let share = self.bounds.total_bytes / NODE_SHARE;
        let is_full = line.messages.len() >= self.bounds.user_messages
            || line.bytes + bytes > self.bounds.user_bytes
            || self.bytes + bytes > self.bounds.total_bytes
            || flow
                .as_ref()
                .is_some_and(|flow| flow.parked_bytes + bytes > share);
        if is_full {
            if line.messages.is_empty() {
                self.lines.remove(&queued.recipient);
            }
            in_hand.dropped(DropReason::QueueFull);
            return Err((Status::QueueFull, queued));
        }
        if line.messages.is_empty() {
            self.turns.push_back(queued.recipient);
        }
        if let Some(flow) = flow {
            flow.parked_bytes += bytes;
        }
        line.bytes += bytes;
        self.bytes += bytes;
        if let Some(trace) = &mut queued.trace {
            trace.queued();
        }
        line.messages.push_back(queued);
        self.held.hold(in_hand);
        Ok(())
    }

    /// Takes up to `count` messages of about `bytes_max` bytes, turn by turn. They count as held until
    /// [`Queue::sent`] or [`Queue::settle_dropped`]. A line whose turn comes too early waits for what it needs.
    pub(in crate::cluster) fn take(
        &mut self,
        batch: &mut Vec<Taken>,
        count: usize,
        bytes_max: usize,
        now: u64,
    ) -> Dropped {
        let mut dropped = Dropped::default();
        let mut taken = 0;
        while batch.len() < count && taken < bytes_max {
            let Some(recipient) = self.turns.pop_front() else {
                break;
            };
            let line = self.lines.get_mut(&recipient).expect("a turn is a line's");
            let Some(node) = self.routes.get(recipient) else {
                line.waits_for = WaitsFor::Place;
                self.unplaced.push_back(recipient);
                continue;
            };
            let flow = self
                .flows
                .entry(node)
                .or_insert_with(|| Flow::new(self.taken, now));
            if !flow.has_room(self.bounds.node_bytes) {
                if flow.parked_bytes + line.bytes > self.bounds.total_bytes / NODE_SHARE {
                    self.drop_line(recipient, DropReason::QueueFull, &mut dropped);
                } else {
                    line.waits_for = WaitsFor::Node(node);
                    flow.park(recipient, line.bytes);
                    if flow.is_to_be_greeted(now) {
                        self.greetings.push_back(node);
                    }
                }
                continue;
            }
            line.credit += TURN_BYTES;
            while batch.len() < count
                && let Some(queued) = line
                    .messages
                    .pop_front_if(|next| next.bytes() <= line.credit)
            {
                let bytes = queued.bytes();
                line.credit -= bytes;
                line.bytes -= bytes;
                self.bytes -= bytes;
                taken += bytes;
                self.taken += bytes as u64;
                let mark = flow.send(bytes as u64);
                batch.push(Taken { queued, node, mark });
            }
            if line.messages.is_empty() {
                self.lines.remove(&recipient);
            } else {
                self.turns.push_back(recipient);
            }
        }
        dropped
    }

    /// The next user to be looked up in the table, while not too many are.
    pub(in crate::cluster) fn next_lookup(&mut self) -> Option<UserId> {
        if self.looking >= LOOKUPS {
            return None;
        }
        let id = self.unplaced.pop_front()?;
        self.looking += 1;
        Some(id)
    }

    /// The next node that is to be told of the link.
    pub(in crate::cluster) fn next_greeting(&mut self) -> Option<Node> {
        self.greetings.pop_front()
    }

    /// Whether there is a place to look up or a node to tell.
    pub(in crate::cluster) fn asks(&self) -> bool {
        !self.greetings.is_empty() || (!self.unplaced.is_empty() && self.looking < LOOKUPS)
    }

    /// The place of a user was looked up: `Ok(None)` if it is nowhere, and `Err` if that could not be found out.
    pub(in crate::cluster) fn located(
        &mut self,
        id: UserId,
        place: Result<Option<Node>, ()>,
    ) -> Dropped {
        self.looking = self.looking.saturating_sub(1);
        let mut dropped = Dropped::default();
        match place {
            Ok(Some(node)) => {
                self.routes.insert(id, node);
                if let Some(line) = self.lines.get_mut(&id)
                    && line.waits_for == WaitsFor::Place
                {
                    (line.waits_for, line.is_placed) = (WaitsFor::Turn, true);
                    self.turns.push_back(id);
                }
            }
            Ok(None) => self.drop_line(id, DropReason::Offline, &mut dropped),
            Err(()) => self.drop_line(id, DropReason::Unavailable, &mut dropped),
        }
        dropped
    }

    /// A node says that it has read up to this mark. Whether a line has waited for that.
    pub(in crate::cluster) fn seen(&mut self, node: Node, mark: u64, now: u64) -> bool {
        let Some(flow) = self.flows.get_mut(&node) else {
            return false;
        };
        let waited = flow.seen(mark, now);
        self.unpark(waited)
    }

    /// A node takes what this link sends. Whether a line has waited for that.
    pub(in crate::cluster) fn opened(&mut self, node: Node, now: u64) -> bool {
        let Some(flow) = self.flows.get_mut(&node) else {
            return false;
        };
        let waited = flow.open(now);
        self.unpark(waited)
    }

    /// No node takes what is sent there: it has no link, or is gone.
    pub(in crate::cluster) fn returned(&mut self, node: Node, now: u64) {
        if let Some(flow) = self.flows.get_mut(&node) {
            flow.close(now);
        }
    }

    /// An id is not on this node.
    pub(in crate::cluster) fn gone(&mut self, id: UserId, node: Node) {
        self.routes.remove(id, node);
    }

    /// The key of a node is gone, so its users are nowhere, or elsewhere.
    pub(in crate::cluster) fn node_died(&mut self, node: Node) -> Dropped {
        self.routes.forget(node);
        let mut dropped = Dropped::default();
        if let Some(mut flow) = self.flows.remove(&node) {
            for id in flow.take_parked() {
                match self.lines.get_mut(&id) {
                    Some(line) if !line.is_placed => {
                        line.waits_for = WaitsFor::Place;
                        self.unplaced.push_back(id);
                    }
                    _ => self.drop_line(id, DropReason::Offline, &mut dropped),
                }
            }
        }
        dropped
    }

    /// Looks at the time. Gives up waiting for a node that takes nothing.
    pub(in crate::cluster) fn tick(&mut self, now: u64) -> Ticked {
        let patience = self.bounds.patience;
        let (mut ticked, mut waited, mut refused) = (Ticked::default(), Vec::new(), Vec::new());
        self.flows.retain(|node, flow| {
            if flow.is_to_be_greeted(now) {
                self.greetings.push_back(*node);
            }
            if flow.is_to_be_polled(now, patience / 2) {
                ticked.silent.push(*node);
            }
            if flow.is_opening() {
                if flow.is_silent(now, patience) {
                    refused.extend(flow.take_parked());
                }
                // The next message opens another one.
                return flow.is_awaited();
            }
            // What was under way to it is lost, or it would have said so.
            waited.extend(flow.give_up(now, patience));
            true
        });
        for id in refused {
            self.drop_line(id, DropReason::Unavailable, &mut ticked.dropped);
        }
        ticked.has_waited = self.unpark(waited);
        ticked
    }

    /// Settles taken messages as sent to other nodes.
    pub(in crate::cluster) fn sent(&mut self, count: u32) {
        self.held.sent_to_cluster(count);
    }

    /// Settles one taken message as dropped.
    pub(in crate::cluster) fn settle_dropped(&mut self, reason: DropReason) {
        self.held.dropped(1, reason);
    }

    /// Drops all that was not taken.
    pub(in crate::cluster) fn drop_queued(&mut self, reason: DropReason) -> Dropped {
        self.turns.clear();
        self.unplaced.clear();
        self.greetings.clear();
        self.flows.clear();
        let mut ids: Vec<_> = self.lines.keys().copied().collect();
        // A run is the same each time with the same seed.
        ids.sort_unstable();
        let mut dropped = Dropped::default();
        for id in ids {
            self.drop_line(id, reason, &mut dropped);
        }
        dropped
    }

    fn unpark(&mut self, waited: Vec<UserId>) -> bool {
        let any = !waited.is_empty();
        for id in &waited {
            if let Some(line) = self.lines.get_mut(id) {
                line.waits_for = WaitsFor::Turn;
            }
        }
        self.turns.extend(waited);
        any
    }

    /// Drops the messages of a line that is in no list of those who wait.
    fn drop_line(&mut self, id: UserId, reason: DropReason, dropped: &mut Dropped) {
        let Some(line) = self.lines.remove(&id) else {
            return;
        };
        self.bytes -= line.bytes;
        let status = match reason {
            DropReason::Offline => Status::Offline,
            DropReason::QueueFull => Status::QueueFull,
            _ => Status::Unavailable,
        };
        for queued in line.messages {
            self.held.dropped(1, reason);
            dropped.0.push((queued, status));
        }
    }
}

#[cfg(test)]
mod tests;
