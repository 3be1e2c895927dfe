//! What waits to be published: one line for each remote user, served in turns, so that a flood to one
//! does not hold up the others. A sender never waits for room; what does not fit is an answer. And no
//! more goes to a block than its holder takes: it says up to which mark it has seen what was sent, so what
//! is too much for it waits here, line by line, and not there, where one line would hold up the next.
//! Must not know of NATS or of locks.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::directory::{Receipt, Wakes};
use crate::identity::{Blocks, UserId};
use crate::ledger::{Held, InHand};
use crate::protocol::Status;
use crate::telemetry::metrics::{DropReason, Metrics};
use crate::telemetry::traces::Traced;

/// What a user's line may send in a turn, bytes: one write's worth of small messages, and a large one
/// has to wait for a few turns.
const TURN_BYTES: usize = 8 * 1024;
/// What a message takes beside its payload, bytes: its place in a line, and its subjects on the wire.
const PARCEL_BYTES: usize = 128;

/// The bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The most messages for one user.
    pub(super) user_messages: usize,
    /// The most bytes for one user.
    pub(super) user_bytes: usize,
    /// The most bytes for all.
    pub(super) total_bytes: usize,
    /// The most bytes on their way to one block.
    pub(super) block_bytes: usize,
}

/// A message on its way to another node.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) recipient: UserId,
    pub(super) payload: Bytes,
    pub(super) receipt: Option<Box<Receipt>>,
    /// Where the message is traced.
    pub(super) trace: Option<Box<Traced>>,
}

impl Parcel {
    /// The message does not leave this node, and this became of it.
    pub(super) fn settle(self, status: Status, wakes: &mut Wakes) {
        if let Some(trace) = self.trace {
            trace.dropped(status.as_str());
        }
        if let Some(receipt) = self.receipt {
            receipt.settle(status, wakes);
        }
    }

    /// What it counts for in every bound.
    pub(super) fn bytes(&self) -> usize {
        PARCEL_BYTES + self.payload.len()
    }
}

/// A message that was taken, and where it is in what goes to its block.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) parcel: Parcel,
    pub(super) block: u64,
    /// All bytes that have gone to the block by this link, up to the end of this message.
    pub(super) mark: u64,
}

/// What has gone to one block by the present link.
#[derive(Debug)]
struct Flow {
    /// The mark of what was sent last.
    sent: u64,
    /// The mark up to which its holder, or nobody, has seen it.
    seen: u64,
    /// When it was last heard of, microseconds.
    heard_at: u64,
    /// Users whose turn has come while there was no room.
    parked: VecDeque<UserId>,
}

#[derive(Debug, Default)]
struct Line {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    /// What it has not sent of its turns so far.
    credit: usize,
}

/// The queue. It takes messages only while there is a link.
#[derive(Debug)]
pub(super) struct Queue {
    // Recipients are any numbers that peers write: the map's keys are hashed with a secret.
    lines: HashMap<UserId, Line>,
    turns: VecDeque<UserId>,
    flows: HashMap<u64, Flow>,
    blocks: Blocks,
    bytes: usize,
    /// All bytes that were taken. Marks begin here, so that those of a block only ever rise.
    taken: u64,
    /// Counts those that were taken, too, until they are settled.
    held: Held,
    bounds: Bounds,
    is_open: bool,
}

impl Queue {
    pub(super) fn new(bounds: Bounds, blocks: Blocks, metrics: Arc<Metrics>) -> Self {
        Self {
            lines: HashMap::new(),
            turns: VecDeque::new(),
            flows: HashMap::new(),
            blocks,
            bytes: 0,
            taken: 0,
            held: Held::new(metrics),
            bounds,
            is_open: false,
        }
    }

    /// Messages queued, or taken and not settled.
    pub(super) fn messages(&self) -> u32 {
        self.held.messages()
    }

    /// Bytes queued.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// No message for a block that was taken has a higher mark, and each that will be taken has.
    pub(super) fn mark(&self, block: u64) -> u64 {
        self.flows.get(&block).map_or(self.taken, |flow| flow.sent)
    }

    /// Whether nothing is queued, or taken and not settled.
    pub(super) fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// Takes messages from now on, for a new link.
    pub(super) fn open(&mut self) {
        self.is_open = true;
        self.flows.clear();
    }

    /// Takes no more.
    pub(super) fn close(&mut self) {
        self.is_open = false;
    }

    /// Queues a message, or drops it; then it is given back, with what became of it.
    pub(super) fn push<M: Deref<Target = Metrics>>(
        &mut self,
        mut parcel: Parcel,
        in_hand: InHand<M>,
    ) -> Result<(), (Status, Parcel)> {
        if !self.is_open {
            in_hand.dropped(DropReason::Unavailable);
            return Err((Status::Unavailable, parcel));
        }
        let bytes = parcel.bytes();
        let line = self.lines.entry(parcel.recipient).or_default();
        let is_full = line.parcels.len() >= self.bounds.user_messages
            || line.bytes + bytes > self.bounds.user_bytes
            || self.bytes + bytes > self.bounds.total_bytes;
        if is_full {
            if line.parcels.is_empty() {
                self.lines.remove(&parcel.recipient);
            }
            in_hand.dropped(DropReason::QueueFull);
            return Err((Status::QueueFull, parcel));
        }
        if line.parcels.is_empty() {
            self.turns.push_back(parcel.recipient);
        }
        line.bytes += bytes;
        self.bytes += bytes;
        if let Some(trace) = &mut parcel.trace {
            trace.queued();
        }
        line.parcels.push_back(parcel);
        self.held.hold(in_hand);
        Ok(())
    }

    /// Takes up to `count` messages of about `bytes_max` bytes, turn by turn. They count as held until
    /// [`Queue::sent`] or [`Queue::dropped`].
    pub(super) fn take(
        &mut self,
        batch: &mut Vec<Taken>,
        count: usize,
        bytes_max: usize,
        now: u64,
    ) {
        let mut taken = 0;
        while batch.len() < count && taken < bytes_max {
            let Some(recipient) = self.turns.pop_front() else {
                return;
            };
            let block = self.blocks.block_of(recipient);
            let flow = self.flows.entry(block).or_insert_with(|| Flow {
                sent: self.taken,
                seen: self.taken,
                heard_at: now,
                parked: VecDeque::new(),
            });
            if flow.sent - flow.seen >= self.bounds.block_bytes as u64 {
                flow.parked.push_back(recipient);
                continue;
            }
            let line = self.lines.get_mut(&recipient).expect("a turn is a line's");
            line.credit += TURN_BYTES;
            while batch.len() < count
                && let Some(parcel) = line
                    .parcels
                    .pop_front_if(|next| next.bytes() <= line.credit)
            {
                let bytes = parcel.bytes();
                line.credit -= bytes;
                line.bytes -= bytes;
                self.bytes -= bytes;
                taken += bytes;
                flow.sent += bytes as u64;
                self.taken += bytes as u64;
                batch.push(Taken {
                    parcel,
                    block,
                    mark: flow.sent,
                });
            }
            if line.parcels.is_empty() {
                self.lines.remove(&recipient);
            } else {
                self.turns.push_back(recipient);
            }
        }
    }

    /// What went to a block was seen up to this mark. Whether somebody has waited for that.
    pub(super) fn seen(&mut self, block: u64, mark: u64, now: u64) -> bool {
        let Some(flow) = self.flows.get_mut(&block) else {
            return false;
        };
        if mark > flow.sent || mark < flow.seen {
            return false;
        }
        flow.seen = mark;
        flow.heard_at = now;
        let had_waited = !flow.parked.is_empty();
        self.turns.append(&mut flow.parked);
        had_waited
    }

    /// What went to a block came back: nobody holds it, so nothing has to be known of it.
    pub(super) fn returned(&mut self, block: u64, mark: u64, now: u64) -> bool {
        let had_waited = self.seen(block, mark, now);
        if self
            .flows
            .get(&block)
            .is_some_and(|flow| flow.seen == flow.sent)
        {
            self.flows.remove(&block);
        }
        had_waited
    }

    /// Gives up waiting for holders of blocks that were not heard of for so long: what was under way to
    /// them is lost. Whether there was any.
    pub(super) fn unpark(&mut self, now: u64, patience: u64) -> bool {
        let mut any = false;
        for flow in self.flows.values_mut() {
            if now >= flow.heard_at + patience && !flow.parked.is_empty() {
                flow.seen = flow.sent;
                flow.heard_at = now;
                self.turns.append(&mut flow.parked);
                any = true;
            }
        }
        any
    }

    /// Settles taken messages as sent to other nodes.
    pub(super) fn sent(&mut self, count: u32) {
        self.held.sent_to_cluster(count);
    }

    /// Settles one taken message as dropped.
    pub(super) fn dropped(&mut self, reason: DropReason) {
        self.held.dropped(1, reason);
    }

    /// Drops all that was not taken, and gives it back to be settled.
    pub(super) fn drop_queued(&mut self, reason: DropReason) -> Vec<Parcel> {
        self.turns.clear();
        self.flows.clear();
        self.bytes = 0;
        let lines = std::mem::take(&mut self.lines);
        let parcels = lines.into_values().flat_map(|line| line.parcels);
        parcels.inspect(|_| self.held.dropped(1, reason)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::ledger::LedgerTotals;

    const BOUNDS: Bounds = Bounds {
        user_messages: 100,
        user_bytes: 200_000,
        total_bytes: 300_000,
        block_bytes: 1_000_000,
    };

    fn queue(bounds: Bounds) -> (Arc<Metrics>, Queue) {
        let metrics = Arc::new(Metrics::new(1));
        let blocks = Blocks::of_size(NonZeroU64::new(10).unwrap());
        let mut queue = Queue::new(bounds, blocks, metrics.clone());
        queue.open();
        (metrics, queue)
    }

    fn push(queue: &mut Queue, metrics: &Metrics, recipient: u64, bytes: usize) -> Option<Status> {
        let parcel = Parcel {
            recipient: UserId::new(recipient).unwrap(),
            payload: vec![0; bytes].into(),
            receipt: None,
            trace: None,
        };
        let pushed = queue.push(parcel, InHand::receive(metrics));
        pushed.err().map(|(status, _)| status)
    }

    fn take(queue: &mut Queue, count: usize, bytes_max: usize) -> Vec<u64> {
        let mut batch = Vec::new();
        queue.take(&mut batch, count, bytes_max, 0);
        let recipients = batch.iter().map(|taken| taken.parcel.recipient.get());
        recipients.collect()
    }

    #[test]
    fn a_flood_to_one_does_not_hold_up_the_others() {
        let (metrics, mut queue) = queue(BOUNDS);
        for _ in 0..100 {
            assert_eq!(push(&mut queue, &metrics, 1, 1000), None);
        }
        for recipient in [2, 3] {
            assert_eq!(push(&mut queue, &metrics, recipient, 1000), None);
        }
        let taken = take(&mut queue, 1000, 12_000);
        let firsts = taken.iter().filter(|recipient| **recipient == 1).count();
        assert_eq!(taken.len() - firsts, 2, "{taken:?}");
        assert!(firsts <= 2 * TURN_BYTES / 1000, "{taken:?}");
    }

    #[test]
    fn a_large_message_is_paid_for_by_turns() {
        let (metrics, mut queue) = queue(BOUNDS);
        push(&mut queue, &metrics, 1, 4 * TURN_BYTES);
        for _ in 0..50 {
            push(&mut queue, &metrics, 2, 1000);
        }
        let taken = take(&mut queue, 1000, 1_000_000);
        let before = taken.iter().position(|recipient| *recipient == 1).unwrap();
        assert!((20..40).contains(&before), "{before}");
        assert_eq!(taken.len(), 51);
        assert!(take(&mut queue, 1000, 1).is_empty());
    }

    #[test]
    fn the_order_for_one_user_is_kept() {
        let (metrics, mut queue) = queue(BOUNDS);
        for bytes in [1, 20_000, 2, 3, 9000, 4] {
            push(&mut queue, &metrics, 1, bytes);
        }
        let mut batch = Vec::new();
        while batch.len() < 6 {
            let count = batch.len() + 1;
            queue.take(&mut batch, count, 1, 0);
        }
        let sizes = batch.iter().map(|taken| taken.parcel.payload.len());
        let sizes: Vec<_> = sizes.collect();
        assert_eq!(sizes, [1, 20_000, 2, 3, 9000, 4]);
        assert_eq!((queue.bytes(), queue.messages()), (0, 6));
    }

    #[test]
    fn a_block_gets_no_more_than_its_holder_takes() {
        let bounds = Bounds {
            block_bytes: 3000,
            ..BOUNDS
        };
        let (metrics, mut queue) = queue(bounds);
        // Users 1 and 2 are of block 1, user 11 of block 2.
        for recipient in [1, 1, 1, 1, 1, 1, 2, 11] {
            push(&mut queue, &metrics, recipient, 4000);
        }
        let mut batch = Vec::new();
        queue.take(&mut batch, 100, 1_000_000, 0);
        let taken: Vec<_> = batch
            .iter()
            .map(|taken| (taken.parcel.recipient.get(), taken.block, taken.mark))
            .collect();
        // One user's turn is more than the block may have, and one message of it was over that.
        assert_eq!(taken, [(1, 1, 4128), (11, 2, 8256)]);
        assert!(take(&mut queue, 100, 1_000_000).is_empty());
        assert!(!queue.seen(2, 8256, 10), "nobody waits there");
        assert!(!queue.seen(1, 9999, 10), "that was never sent");
        assert!(queue.seen(1, 4128, 10));
        // Whoever waited for the first time goes before whoever comes again.
        assert_eq!(take(&mut queue, 100, 1_000_000), [2]);
        assert!(!queue.unpark(15, 10));
        assert!(queue.unpark(20, 10), "what was under way is given up");
        assert_eq!(take(&mut queue, 1, 1_000_000), [1]);
    }

    #[test]
    fn marks_of_a_block_only_rise() {
        let (metrics, mut queue) = queue(BOUNDS);
        let mut batch = Vec::new();
        let mut last = 0;
        for round in 0..4 {
            let before = queue.mark(1);
            assert!(before >= last);
            for recipient in [1, 11, 2, 21] {
                push(&mut queue, &metrics, recipient, 100);
            }
            queue.take(&mut batch, 100, 1_000_000, 0);
            for taken in batch.drain(..).filter(|taken| taken.block == 1) {
                assert!(taken.mark > before.max(last), "{round}");
                last = taken.mark;
            }
            assert_eq!(queue.mark(1), last);
            if round == 1 {
                // Nobody holds it: it is forgotten, and begins anew.
                assert!(!queue.returned(1, last, 0));
            }
        }
    }

    #[test]
    fn a_block_that_nobody_holds_is_forgotten() {
        let (metrics, mut queue) = queue(BOUNDS);
        for recipient in 1..=100 {
            push(&mut queue, &metrics, recipient * 10, 0);
        }
        let mut batch = Vec::new();
        queue.take(&mut batch, 100, 1_000_000, 0);
        assert_eq!(queue.flows.len(), 100);
        for taken in batch {
            assert!(!queue.returned(taken.block, taken.mark, 0));
        }
        assert!(queue.flows.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_an_answer() {
        let bounds = Bounds {
            user_messages: 2,
            user_bytes: 2000,
            total_bytes: 3000,
            block_bytes: 3000,
        };
        let (metrics, mut queue) = queue(bounds);
        let full = Some(Status::QueueFull);
        assert_eq!(push(&mut queue, &metrics, 1, 1), None);
        assert_eq!(push(&mut queue, &metrics, 1, 1), None);
        assert_eq!(push(&mut queue, &metrics, 1, 1), full, "messages");
        assert_eq!(push(&mut queue, &metrics, 2, 1900), full, "bytes");
        assert_eq!(push(&mut queue, &metrics, 2, 1500), None);
        assert_eq!(push(&mut queue, &metrics, 3, 1500), full, "all bytes");
        assert_eq!(take(&mut queue, 10, 10_000).len(), 3);
        assert_eq!(push(&mut queue, &metrics, 3, 1500), None);
        queue.close();
        assert_eq!(push(&mut queue, &metrics, 1, 1), Some(Status::Unavailable));
    }

    #[test]
    fn every_message_is_settled_once() {
        let (metrics, mut queue) = queue(BOUNDS);
        for recipient in 1..=5 {
            push(&mut queue, &metrics, recipient, 10);
        }
        assert_eq!(take(&mut queue, 3, 1000).len(), 3);
        queue.sent(2);
        queue.dropped(DropReason::TooLarge);
        assert_eq!(queue.drop_queued(DropReason::Unavailable).len(), 2);
        assert!(queue.is_empty());
        let figures = LedgerTotals::read(&metrics, || queue.messages().into());
        assert_eq!(
            (figures.gap(), figures.cluster_sent, figures.dropped),
            (0, 2, 3)
        );
        assert_eq!(metrics.dropped(DropReason::Unavailable), 2);
        assert!(take(&mut queue, 10, 1000).is_empty());
    }
}
