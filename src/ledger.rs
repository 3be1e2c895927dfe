//! What makes a message impossible to lose unaccounted. A message is [`InHand`] from the moment it
//! is decoded, then at most once [`Held`] by a mailbox or a queue to the other nodes, and is settled
//! once: delivered, sent on to another node, or dropped with a reason. Both types settle on Drop what nobody has settled, so an early return, a panic or
//! a task that is thrown away leaves the balance whole:
//!
//! `received + cluster_received = delivered + dropped + mailbox + cluster_sent`
//!
//! No term is computed from the others.

use std::ops::Deref;
use std::sync::Arc;

use crate::telemetry::metrics::{DropReason, Metrics};

/// A message that was received and that no mailbox holds yet. The holder of the counters is
/// borrowed on the way through a directory and shared where the message crosses tasks.
#[derive(Debug)]
#[must_use = "dropping it counts the message as lost by a fault of ours"]
pub struct InHand<M: Deref<Target = Metrics>> {
    metrics: M,
    open: bool,
}

impl<M: Deref<Target = Metrics>> InHand<M> {
    /// Counts a message as received.
    pub fn receive(metrics: M) -> Self {
        metrics.message_received();
        Self {
            metrics,
            open: true,
        }
    }

    /// Counts a message as received from the cluster.
    pub fn receive_from_cluster(metrics: M) -> Self {
        metrics.cluster_received();
        Self {
            metrics,
            open: true,
        }
    }

    /// Settles it as dropped.
    pub fn dropped(mut self, reason: DropReason) {
        self.open = false;
        self.metrics.messages_dropped(reason, 1);
    }

    /// Hands it over to another task.
    pub fn carry(mut self, metrics: Arc<Metrics>) -> InHand<Arc<Metrics>> {
        self.open = false;
        InHand {
            metrics,
            open: true,
        }
    }
}

impl<M: Deref<Target = Metrics>> Drop for InHand<M> {
    fn drop(&mut self) {
        if self.open {
            self.metrics.messages_dropped(DropReason::Internal, 1);
        }
    }
}

/// The messages that one mailbox, or the queue to the other nodes, answers for: queued, or taken and
/// not flushed yet. What is left
/// when it is dropped counts as dropped since the recipient disconnected.
///
/// Each settlement takes a message from here before it counts it elsewhere, so that a scrape, which
/// reads the other way round, never counts one twice.
#[derive(Debug)]
pub struct Held {
    metrics: Arc<Metrics>,
    messages: u32,
    /// In the room that alignment leaves, so that it costs an idle user nothing.
    delivered: u32,
}

impl Held {
    /// Nothing held.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            messages: 0,
            delivered: 0,
        }
    }

    /// How many messages are held.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// How many messages were delivered; behind `u32::MAX` it counts from 0 again.
    pub fn delivered_in_all(&self) -> u32 {
        self.delivered
    }

    /// Takes a message in.
    pub fn hold<M: Deref<Target = Metrics>>(&mut self, mut message: InHand<M>) {
        message.open = false;
        self.messages += 1;
    }

    /// Settles `count` messages as delivered.
    pub fn delivered(&mut self, count: u32) {
        self.release(count);
        self.delivered = self.delivered.wrapping_add(count);
        self.metrics.messages_delivered(count.into());
    }

    /// Settles `count` messages as dropped.
    pub fn dropped(&mut self, count: u32, reason: DropReason) {
        self.release(count);
        self.metrics.messages_dropped(reason, count.into());
    }

    /// Settles `count` messages as sent to other nodes.
    pub fn sent_to_cluster(&mut self, count: u32) {
        self.release(count);
        self.metrics.cluster_sent(count.into());
    }

    fn release(&mut self, count: u32) {
        self.messages = self
            .messages
            .checked_sub(count)
            .expect("only what is held is settled, and once");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.messages > 0 {
            self.dropped(self.messages, DropReason::Disconnected);
        }
    }
}

/// The ledger at a moment, for the last line of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerTotals {
    /// Messages received.
    pub received: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages dropped, for all reasons.
    pub dropped: u64,
    /// Messages in mailboxes and write buffers, and on their way to other nodes.
    pub mailbox: u64,
    /// Messages received from the cluster.
    pub cluster_received: u64,
    /// Messages sent to other nodes.
    pub cluster_sent: u64,
}

impl LedgerTotals {
    /// Reads the counters; `mailbox` is from statistics read beforehand.
    pub fn read(metrics: &Metrics, mailbox: u64) -> Self {
        Self {
            delivered: metrics.delivered(),
            dropped: DropReason::ALL
                .iter()
                .map(|reason| metrics.dropped(*reason))
                .sum(),
            cluster_sent: metrics.sent_to_cluster(),
            mailbox,
            received: metrics.received(),
            cluster_received: metrics.received_from_cluster(),
        }
    }

    /// received + `cluster_received` - delivered - dropped - mailbox - `cluster_sent`: zero when
    /// nothing is under way.
    pub fn gap(&self) -> i64 {
        let received = self.received + self.cluster_received;
        let settled = self.delivered + self.dropped + self.mailbox + self.cluster_sent;
        i64::try_from(i128::from(received) - i128::from(settled)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(metrics: &Metrics, held: &Held) -> (u64, u64, u64, u32) {
        let figures = LedgerTotals::read(metrics, held.messages().into());
        assert_eq!(figures.gap(), 0);
        (
            figures.received,
            figures.delivered,
            figures.dropped,
            held.messages(),
        )
    }

    #[test]
    fn what_nobody_settles_is_settled_by_drop() {
        let metrics = Arc::new(Metrics::new(1));
        let mut held = Held::new(metrics.clone());
        drop(InHand::receive(&*metrics));
        assert_eq!(figures(&metrics, &held), (1, 0, 1, 0));
        assert_eq!(metrics.dropped(DropReason::Internal), 1);
        held.hold(InHand::receive(&*metrics));
        held.hold(InHand::receive(&*metrics).carry(metrics.clone()));
        held.hold(InHand::receive(&*metrics));
        assert_eq!(figures(&metrics, &held), (4, 0, 1, 3));
        held.delivered(1);
        held.dropped(1, DropReason::QueueFull);
        assert_eq!(figures(&metrics, &held), (4, 1, 2, 1));
        drop(held);
        assert_eq!(metrics.dropped(DropReason::Disconnected), 1);
        InHand::receive(&*metrics).dropped(DropReason::Offline);
        assert_eq!(figures(&metrics, &Held::new(metrics.clone())), (5, 1, 4, 0));
    }

    #[test]
    fn what_crosses_nodes_is_in_the_balance() {
        let metrics = Arc::new(Metrics::new(1));
        let mut held = Held::new(metrics.clone());
        held.hold(InHand::receive(&*metrics));
        held.hold(InHand::receive_from_cluster(&*metrics));
        assert_eq!(figures(&metrics, &held), (1, 0, 0, 2));
        held.sent_to_cluster(1);
        assert_eq!(figures(&metrics, &held), (1, 0, 0, 1));
        held.delivered(1);
        InHand::receive_from_cluster(&*metrics).dropped(DropReason::Offline);
        assert_eq!(figures(&metrics, &held), (1, 1, 1, 0));
        let read = LedgerTotals::read(&metrics, 0);
        assert_eq!((read.cluster_received, read.cluster_sent), (2, 1));
    }
}
