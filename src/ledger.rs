//! The ledger: no message can be lost without being counted. A message is [`InHand`] when it is decoded, then
//! at most once [`Held`] by a mailbox or by the queue to other nodes. It is settled once: delivered, sent on to
//! another node, or dropped with a reason. Drop settles a message that is not settled yet, so that an early
//! return, a panic or a dropped task keeps the balance:
//!
//! `received + cluster_received = delivered + dropped + mailbox + cluster_sent`
//!
//! Each term has its own counter; none is computed from the others.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;

use crate::telemetry::metrics::{DropReason, Metrics};

/// A message that was received and that no mailbox holds yet. `M` borrows the counters on the way through the
/// directory. It shares them where the message crosses tasks.
#[derive(Debug)]
#[must_use = "dropping it counts the message as dropped by an internal error"]
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
    pub(crate) fn receive_from_cluster(metrics: M) -> Self {
        metrics.cluster_received();
        Self {
            metrics,
            open: true,
        }
    }

    /// Settles the message as dropped.
    pub(crate) fn dropped(mut self, reason: DropReason) {
        self.open = false;
        self.metrics.messages_dropped(reason, 1);
    }

    /// Gives the message counters that it can take to another task.
    pub(crate) fn carry(mut self, metrics: Arc<Metrics>) -> InHand<Arc<Metrics>> {
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

/// The messages of one mailbox, or of the queue to other nodes: queued, or taken and not flushed yet. Drop
/// counts the remaining ones as dropped because the recipient disconnected.
///
/// A settlement first takes the message from here and then counts it elsewhere. A scrape reads in the other
/// order, so it never counts a message twice.
#[derive(Debug)]
pub(crate) struct Held {
    metrics: Arc<Metrics>,
    messages: u32,
    /// Messages delivered in all. It fits into the padding, so it costs an idle user no memory.
    delivered: u32,
}

impl Held {
    /// No messages.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            messages: 0,
            delivered: 0,
        }
    }

    /// The number of held messages.
    pub(crate) fn messages(&self) -> u32 {
        self.messages
    }

    /// The number of delivered messages; counts from 0 again after `u32::MAX`.
    pub(crate) fn delivered_in_all(&self) -> u32 {
        self.delivered
    }

    /// Adds a message.
    pub(crate) fn hold<M: Deref<Target = Metrics>>(&mut self, mut message: InHand<M>) {
        message.open = false;
        self.messages += 1;
    }

    /// Settles `count` messages as delivered.
    pub(crate) fn delivered(&mut self, count: u32) {
        self.release(count);
        self.delivered = self.delivered.wrapping_add(count);
        self.metrics.messages_delivered(count.into());
    }

    /// Settles `count` messages as dropped.
    pub(crate) fn dropped(&mut self, count: u32, reason: DropReason) {
        self.release(count);
        self.metrics.messages_dropped(reason, count.into());
    }

    /// Settles `count` messages as sent to other nodes.
    pub(crate) fn sent_to_cluster(&mut self, count: u32) {
        self.release(count);
        self.metrics.cluster_sent(count.into());
    }

    fn release(&mut self, count: u32) {
        self.messages = self
            .messages
            .checked_sub(count)
            .expect("only held messages are settled, each once");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.messages > 0 {
            self.dropped(self.messages, DropReason::Disconnected);
        }
    }
}

/// The terms of the balance at one moment, for the last line of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerTotals {
    /// Messages received.
    pub received: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages dropped, for all reasons.
    pub dropped: u64,
    /// Messages dropped, in the order of [`DropReason::ALL`].
    pub dropped_by: [u64; DropReason::ALL.len()],
    /// Messages in mailboxes and write buffers, and on their way to the router and to other nodes.
    pub mailbox: u64,
    /// Messages received from the cluster.
    pub cluster_received: u64,
    /// Messages sent to other nodes.
    pub cluster_sent: u64,
}

impl LedgerTotals {
    /// Reads the counters, and `mailbox` in between. As in a scrape, what has ended is read first and what has
    /// begun last: a message that moves meanwhile can make the gap positive, but never negative.
    pub fn read(metrics: &Metrics, mailbox: impl FnOnce() -> u64) -> Self {
        let delivered = metrics.delivered();
        let dropped_by = DropReason::ALL.map(|reason| metrics.dropped(reason));
        let cluster_sent = metrics.sent_to_cluster();
        // Neither the compiler nor the CPU may move the reads of one step into another.
        fence(SeqCst);
        let mailbox = mailbox();
        fence(SeqCst);
        Self {
            delivered,
            dropped: dropped_by.iter().sum(),
            dropped_by,
            cluster_sent,
            mailbox,
            received: metrics.received(),
            cluster_received: metrics.received_from_cluster(),
        }
    }

    /// `received + cluster_received - delivered - dropped - mailbox - cluster_sent`: zero when no message is in
    /// hand.
    pub fn gap(&self) -> i64 {
        let received = self.received + self.cluster_received;
        let settled = self.delivered + self.dropped + self.mailbox + self.cluster_sent;
        i64::try_from(i128::from(received) - i128::from(settled)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(metrics: &Metrics, held: &Held) -> (u64, u64, u64, u32) {
        let totals = LedgerTotals::read(metrics, || held.messages().into());
        assert_eq!(totals.gap(), 0);
        (
            totals.received,
            totals.delivered,
            totals.dropped,
            held.messages(),
        )
    }

    #[test]
    fn drop_settles_unsettled_messages() {
        let metrics = Arc::new(Metrics::new(1));
        let mut held = Held::new(metrics.clone());
        drop(InHand::receive(&*metrics));
        assert_eq!(totals(&metrics, &held), (1, 0, 1, 0));
        assert_eq!(metrics.dropped(DropReason::Internal), 1);
        held.hold(InHand::receive(&*metrics));
        held.hold(InHand::receive(&*metrics).carry(metrics.clone()));
        held.hold(InHand::receive(&*metrics));
        assert_eq!(totals(&metrics, &held), (4, 0, 1, 3));
        held.delivered(1);
        held.dropped(1, DropReason::QueueFull);
        assert_eq!(totals(&metrics, &held), (4, 1, 2, 1));
        drop(held);
        assert_eq!(metrics.dropped(DropReason::Disconnected), 1);
        InHand::receive(&*metrics).dropped(DropReason::Offline);
        assert_eq!(totals(&metrics, &Held::new(metrics.clone())), (5, 1, 4, 0));
    }

    #[test]
    fn a_message_that_moves_during_a_reading_makes_no_negative_gap() {
        let metrics = Arc::new(Metrics::new(1));
        let mut held = Held::new(metrics.clone());
        held.hold(InHand::receive(&*metrics));
        held.hold(InHand::receive(&*metrics));
        let totals = LedgerTotals::read(&metrics, || {
            let mailbox = held.messages().into();
            held.delivered(1);
            held.dropped(1, DropReason::Offline);
            mailbox
        });
        assert_eq!((totals.gap(), totals.mailbox), (0, 2));
        let totals = LedgerTotals::read(&metrics, || {
            drop(InHand::receive(&*metrics));
            0
        });
        assert_eq!(totals.gap(), 1);
    }

    #[test]
    fn messages_that_cross_nodes_are_in_the_balance() {
        let metrics = Arc::new(Metrics::new(1));
        let mut held = Held::new(metrics.clone());
        held.hold(InHand::receive(&*metrics));
        held.hold(InHand::receive_from_cluster(&*metrics));
        assert_eq!(totals(&metrics, &held), (1, 0, 0, 2));
        held.sent_to_cluster(1);
        assert_eq!(totals(&metrics, &held), (1, 0, 0, 1));
        held.delivered(1);
        InHand::receive_from_cluster(&*metrics).dropped(DropReason::Offline);
        assert_eq!(totals(&metrics, &held), (1, 1, 1, 0));
        let totals = LedgerTotals::read(&metrics, || 0);
        assert_eq!((totals.cluster_received, totals.cluster_sent), (2, 1));
    }
}
