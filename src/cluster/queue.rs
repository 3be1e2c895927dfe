//! What waits to be published: one line for each remote user, served in turns, so that a flood to one
//! does not hold up the others. A sender never waits for room; what does not fit is an answer. Must not
//! know of NATS or of locks.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::directory::Receipt;
use crate::identity::UserId;
use crate::ledger::{Held, InHand};
use crate::protocol::Status;
use crate::telemetry::metrics::{DropReason, Metrics};

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
}

/// A message on its way to another node.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) recipient: UserId,
    pub(super) payload: Bytes,
    pub(super) receipt: Option<Box<Receipt>>,
}

impl Parcel {
    /// What it counts for in every bound.
    pub(super) fn bytes(&self) -> usize {
        PARCEL_BYTES + self.payload.len()
    }
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
    bytes: usize,
    /// Counts those that were taken, too, until they are settled.
    held: Held,
    bounds: Bounds,
    is_open: bool,
}

impl Queue {
    pub(super) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            lines: HashMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
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

    /// Whether nothing is queued, or taken and not settled.
    pub(super) fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// Takes no more.
    pub(super) fn close(&mut self) {
        self.is_open = false;
    }

    /// Queues a message, or drops it; what became of it then, with its receipt.
    pub(super) fn push<M: Deref<Target = Metrics>>(
        &mut self,
        parcel: Parcel,
        in_hand: InHand<M>,
    ) -> Result<(), (Status, Option<Box<Receipt>>)> {
        if !self.is_open {
            in_hand.dropped(DropReason::Unavailable);
            return Err((Status::Unavailable, parcel.receipt));
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
            return Err((Status::QueueFull, parcel.receipt));
        }
        if line.parcels.is_empty() {
            self.turns.push_back(parcel.recipient);
        }
        line.bytes += bytes;
        self.bytes += bytes;
        line.parcels.push_back(parcel);
        self.held.hold(in_hand);
        Ok(())
    }

    /// Takes up to `count` messages of about `bytes_max` bytes, turn by turn. They count as held until [`Queue::sent`] or [`Queue::dropped`].
    pub(super) fn take(&mut self, batch: &mut Vec<Parcel>, count: usize, bytes_max: usize) {
        let mut taken = 0;
        while batch.len() < count && taken < bytes_max {
            let Some(recipient) = self.turns.pop_front() else {
                return;
            };
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
                batch.push(parcel);
            }
            if line.parcels.is_empty() {
                self.lines.remove(&recipient);
            } else {
                self.turns.push_back(recipient);
            }
        }
    }

    /// Settles taken messages as sent to other nodes.
    pub(super) fn sent(&mut self, count: u32) {
        self.held.sent_to_cluster(count);
    }

    /// Settles one taken message as dropped.
    pub(super) fn dropped(&mut self, reason: DropReason) {
        self.held.dropped(1, reason);
    }

    /// Drops all that was not taken; the receipts.
    pub(super) fn drop_queued(&mut self, reason: DropReason) -> Vec<Receipt> {
        self.turns.clear();
        self.bytes = 0;
        let lines = std::mem::take(&mut self.lines);
        let mut receipts = Vec::new();
        for parcel in lines.into_values().flat_map(|line| line.parcels) {
            self.held.dropped(1, reason);
            receipts.extend(parcel.receipt.map(|receipt| *receipt));
        }
        receipts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Figures;

    const BOUNDS: Bounds = Bounds {
        user_messages: 100,
        user_bytes: 200_000,
        total_bytes: 300_000,
    };

    fn queue(bounds: Bounds) -> (Arc<Metrics>, Queue) {
        let metrics = Arc::new(Metrics::new(1));
        let mut queue = Queue::new(bounds, metrics.clone());
        queue.open();
        (metrics, queue)
    }

    fn push(queue: &mut Queue, metrics: &Metrics, recipient: u64, bytes: usize) -> Option<Status> {
        let parcel = Parcel {
            recipient: UserId::new(recipient).unwrap(),
            payload: vec![0; bytes].into(),
            receipt: None,
        };
        let pushed = queue.push(parcel, InHand::receive(metrics));
        pushed.err().map(|(status, _)| status)
    }

    fn take(queue: &mut Queue, count: usize, bytes_max: usize) -> Vec<u64> {
        let mut batch = Vec::new();
        queue.take(&mut batch, count, bytes_max);
        let recipients = batch.iter().map(|parcel| parcel.recipient.get());
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
            queue.take(&mut batch, count, 1);
        }
        let sizes: Vec<_> = batch.iter().map(|parcel| parcel.payload.len()).collect();
        assert_eq!(sizes, [1, 20_000, 2, 3, 9000, 4]);
        assert_eq!((queue.bytes(), queue.messages()), (0, 6));
    }

    #[test]
    fn what_does_not_fit_is_an_answer() {
        let bounds = Bounds {
            user_messages: 2,
            user_bytes: 2000,
            total_bytes: 3000,
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
        assert_eq!(queue.drop_queued(DropReason::Unavailable).len(), 0);
        assert!(queue.is_empty());
        let figures = Figures::read(&metrics, queue.messages().into());
        assert_eq!(
            (figures.gap(), figures.cluster_sent, figures.dropped),
            (0, 2, 3)
        );
        assert_eq!(metrics.dropped(DropReason::Unavailable), 2);
        assert!(take(&mut queue, 10, 1000).is_empty());
    }
}
