//! What goes to other nodes: answers first, then messages, in batches and within the window. The only task that
//! publishes either, so that what is for one recipient stays in order.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::Subject;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::envelope::{ANSWERS_MAX, Node, encode_answers};
use super::nats::{
    HEADER_BYTES, LinkLost, NatsLink, Outgoing, PublishFailure, TRACESTATE_HEADER_BYTES,
};
use super::pace::Pace;
use super::queue::{QueuedMessage, Taken};
use super::shared::{Shared, micros};
use crate::directory::Wakes;
use crate::protocol::Status;
use crate::telemetry::metrics::DropReason;

/// Messages that are taken from the queue at once.
const BATCH: usize = 128;
/// Subjects that are kept. There are few nodes.
const SUBJECTS_MAX: usize = 1024;

pub(super) struct Publisher<L> {
    shared: Arc<Shared>,
    link: L,
    /// The number of the link.
    number: u64,
    pace: Arc<Pace>,
    lost: CancellationToken,
    batch: Vec<Taken>,
    /// Messages that were published and are not settled yet.
    sent: u32,
    wakes: Wakes,
    subjects: BTreeMap<Node, Subject>,
}

impl<L: NatsLink> Publisher<L> {
    pub(super) fn new(
        shared: Arc<Shared>,
        link: L,
        number: u64,
        pace: Arc<Pace>,
        lost: CancellationToken,
    ) -> Self {
        Self {
            shared,
            link,
            number,
            pace,
            lost,
            batch: Vec::with_capacity(BATCH),
            sent: 0,
            wakes: Wakes::default(),
            subjects: BTreeMap::new(),
        }
    }

    /// Publishes what there is until the link is lost; or, once `finishing` is set and the task was notified, until
    /// there is nothing.
    pub(super) async fn run(mut self, finishing: Arc<AtomicBool>) -> Result<(), LinkLost> {
        loop {
            let is_finishing = finishing.load(Ordering::Acquire);
            if self.turn().await? {
                continue;
            }
            if is_finishing && self.shared.queue().is_empty() {
                return Ok(());
            }
            tokio::select! {
                () = poll_fn(|cx| self.shared.publishable.poll_notified(cx)) => {}
                () = self.lost.cancelled() => return Err(LinkLost),
            }
        }
    }

    /// Sends what there is room for. Whether there was anything.
    async fn turn(&mut self) -> Result<bool, LinkLost> {
        let any_answers = self.answer().await?;
        let sent = self.send().await;
        self.settle_sent();
        self.wakes.wake();
        Ok(sent? || any_answers)
    }

    fn settle_sent(&mut self) {
        self.shared.queue().sent(std::mem::take(&mut self.sent));
    }

    /// Sends the answers that other nodes are owed. Whether there were any.
    async fn answer(&mut self) -> Result<bool, LinkLost> {
        let mut any = false;
        for (node, peer) in &*self.shared.peers.all() {
            for some in peer.take_answers().chunks(ANSWERS_MAX) {
                let payload = encode_answers(self.shared.node, some);
                let bytes = payload.len();
                self.shared.link_metrics.bytes_sent(bytes);
                let subject = self.shared.subjects.answers(*node);
                match self.publish(Outgoing::new(subject, payload)).await {
                    Ok(()) | Err(PublishFailure::TooLarge) => {}
                    Err(PublishFailure::Lost(lost)) => return Err(lost),
                }
                self.pace.sent(bytes);
                any = true;
            }
        }
        Ok(any)
    }

    /// Sends a batch of messages. Whether there was any, and room for it.
    async fn send(&mut self) -> Result<bool, LinkLost> {
        let room = self.pace.room();
        let mut batch = std::mem::take(&mut self.batch);
        let now = self.shared.now();
        let (dropped, asks) = {
            let mut queue = self.shared.queue();
            let dropped = queue.take(&mut batch, BATCH, room, now);
            (dropped, queue.asks())
        };
        dropped.settle(&mut self.wakes);
        if asks {
            self.shared.ask();
        }
        let any = !batch.is_empty();
        let mut sent = Ok(());
        for taken in batch.drain(..) {
            if sent.is_err() {
                self.drop_taken(taken.queued, DropReason::Unavailable, Status::Unavailable);
            } else {
                sent = self.send_one(taken, now).await;
            }
        }
        self.batch = batch;
        sent.map(|()| any)
    }

    async fn send_one(&mut self, next: Taken, now: u64) -> Result<(), LinkLost> {
        let Taken {
            mut queued,
            node,
            mark,
        } = next;
        if queued.payload.len() > self.link.max_payload() {
            let bytes = queued.payload.len();
            debug!(bytes, "a message is larger than nats takes");
            self.drop_taken(queued, DropReason::TooLarge, Status::TooLarge);
            return Ok(());
        }
        let until = now + micros(self.shared.settings.outcome_timeout);
        let receipt = queued.receipt.take();
        let token = receipt.map(|receipt| self.shared.waiting().insert(receipt, until));
        let token = match token.transpose() {
            Ok(token) => token,
            Err(receipt) => {
                queued.receipt = Some(receipt);
                self.drop_taken(queued, DropReason::QueueFull, Status::QueueFull);
                return Ok(());
            }
        };
        let bytes = queued.bytes();
        self.shared.link_metrics.bytes_sent(queued.payload.len());
        let (traceparent, tracestate) = self.trace(&queued);
        let message = Outgoing {
            subject: self.subject(node),
            reply: Some(self.shared.subjects.reply(self.number, node, mark, token)),
            traceparent,
            tracestate,
            payload: std::mem::take(&mut queued.payload),
        };
        if let Err(failure) = self.publish(message).await {
            queued.receipt = token.and_then(|token| self.shared.waiting().take(token));
            let (reason, status) = match failure {
                PublishFailure::Lost(_) => (DropReason::Unavailable, Status::Unavailable),
                PublishFailure::TooLarge => (DropReason::TooLarge, Status::TooLarge),
            };
            self.drop_taken(queued, reason, status);
            return match failure {
                PublishFailure::Lost(lost) => Err(lost),
                PublishFailure::TooLarge => Ok(()),
            };
        }
        self.sent += 1;
        self.pace.sent(bytes);
        Ok(())
    }

    /// Hands a message to the link. The task goes on when the link is lost, so that each message is settled.
    async fn publish(&self, message: Outgoing) -> Result<(), PublishFailure> {
        tokio::select! {
            biased;
            published = self.link.publish(message) => published,
            () = self.lost.cancelled() => Err(LinkLost.into()),
        }
    }

    fn drop_taken(&mut self, queued: QueuedMessage, reason: DropReason, status: Status) {
        self.shared.queue().settle_dropped(reason);
        queued.settle(status, &mut self.wakes);
    }

    /// The trace of a message, where it is traced and NATS takes one as large with it.
    fn trace(&self, queued: &QueuedMessage) -> (Option<String>, Option<String>) {
        let Some(trace) = &queued.trace else {
            return (None, None);
        };
        let state = trace.tracestate();
        let state_bytes = state
            .as_ref()
            .map_or(0, |state| TRACESTATE_HEADER_BYTES + state.len());
        let bytes = queued.payload.len() + HEADER_BYTES + state_bytes;
        if bytes > self.link.max_payload() {
            return (None, None);
        }
        (Some(trace.traceparent()), state)
    }

    fn subject(&mut self, node: Node) -> Subject {
        if self.subjects.len() > SUBJECTS_MAX {
            self.subjects.clear();
        }
        let subjects = &self.shared.subjects;
        let subject = self.subjects.entry(node);
        subject.or_insert_with(|| subjects.message(node)).clone()
    }
}
