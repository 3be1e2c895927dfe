//! What goes to NATS: answers to other nodes first, then messages, in batches and within the window. The
//! only task that publishes either, so that what is for one recipient stays in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use async_nats::{HeaderMap, HeaderValue, Subject};
use tokio::sync::oneshot;
use tracing::debug;

use super::envelope::{ANSWERS_MAX, Seen, encode_answers};
use super::link::{
    HEADER_BYTES, Letter, Link, Lost, TRACEPARENT, TRACESTATE, TRACESTATE_HEADER_BYTES,
};
use super::queue::{Parcel, Taken};
use super::{Shared, micros};
use crate::directory::Wakes;
use crate::identity::UserId;
use crate::protocol::Status;
use crate::telemetry::metrics::DropReason;

/// Messages that are taken from the queue at once.
const BATCH: usize = 128;

/// Publishes whatever there is until the link is lost; or, once `finishing` is set and the bell was
/// rung, until there is nothing.
pub(super) async fn publish(shared: Arc<Shared>, link: Arc<Link>, finishing: Arc<AtomicBool>) {
    let mut pump = Pump {
        shared,
        link,
        batch: Vec::with_capacity(BATCH),
        sent: 0,
        wakes: Wakes::default(),
        last: None,
    };
    loop {
        let is_finishing = finishing.load(Ordering::Acquire);
        match pump.turn().await {
            Err(Lost) => return pump.link.lost.cancel(),
            Ok(true) => continue,
            Ok(false) => {}
        }
        if is_finishing && pump.shared.queue().is_empty() {
            return;
        }
        tokio::select! {
            () = std::future::poll_fn(|cx| pump.shared.notifier.poll_notified(cx)) => {}
            () = pump.link.lost.cancelled() => return,
        }
    }
}

impl Shared {
    /// Waits until all is published whose recipient was looked for before.
    pub(super) async fn fence(&self, link: &Link) -> Result<(), Lost> {
        let (open, opened) = oneshot::channel();
        self.fences().push(open);
        if let Some(waker) = self.notifier.notify() {
            waker.wake();
        }
        tokio::select! {
            opened = opened => opened.map_err(|_gone| Lost),
            () = link.lost.cancelled() => Err(Lost),
        }
    }

    /// Nothing is between the look for its recipient and its publishing.
    fn open_fences(&self) {
        let fences = std::mem::take(&mut *self.fences());
        for fence in fences {
            // Whoever waited may be gone with a link.
            let _gone = fence.send(()).is_err();
        }
    }

    fn fences(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Pump {
    shared: Arc<Shared>,
    link: Arc<Link>,
    batch: Vec<Taken>,
    /// Messages that were published and are not settled yet.
    sent: u32,
    wakes: Wakes,
    /// The last recipient and its subject: mostly, those of the next message.
    last: Option<(UserId, Subject)>,
}

impl Pump {
    /// Sends what there is room for; whether there was anything.
    async fn turn(&mut self) -> Result<bool, Lost> {
        self.shared.open_fences();
        let any_answers = self.answer().await?;
        let sent = self.send().await;
        self.shared.queue().sent(std::mem::take(&mut self.sent));
        self.wakes.wake();
        Ok(sent? || any_answers)
    }

    /// Sends the answers that other nodes are owed; whether there were any.
    async fn answer(&mut self) -> Result<bool, Lost> {
        let mut any = false;
        for (node, peer) in &*self.shared.peers.load_full() {
            for some in peer.take_answers().chunks(ANSWERS_MAX) {
                let payload = encode_answers(some);
                let bytes = payload.len();
                self.shared.link_metrics.bytes_sent(bytes);
                self.link
                    .publish(self.shared.subjects.answers(*node), None, payload)
                    .await?;
                self.count(bytes).await?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Sends a batch of messages; whether there was any and there was room for it.
    async fn send(&mut self) -> Result<bool, Lost> {
        let room = self.link.window().room();
        let mut batch = std::mem::take(&mut self.batch);
        let now = self.shared.now();
        self.shared.queue().take(&mut batch, BATCH, room, now);
        let any = !batch.is_empty();
        let mut sent = Ok(());
        for taken in batch.drain(..) {
            if sent.is_err() {
                self.drop_taken(taken.parcel, DropReason::Unavailable, Status::Unavailable);
            } else {
                sent = self.send_one(taken, now).await;
            }
        }
        self.batch = batch;
        sent.map(|()| any)
    }

    async fn send_one(&mut self, next: Taken, now: u64) -> Result<(), Lost> {
        let Taken {
            mut parcel,
            block,
            mark,
        } = next;
        if parcel.payload.len() > self.link.client.max_payload() {
            debug!(
                bytes = parcel.payload.len(),
                "a message is larger than nats takes"
            );
            self.drop_taken(parcel, DropReason::TooLarge, Status::TooLarge);
            return Ok(());
        }
        if self.shared.is_back(parcel.recipient) {
            // It is here by now, or on its way, and this node hears nothing of itself.
            self.drop_taken(parcel, DropReason::Offline, Status::Offline);
            return Ok(());
        }
        let until = now + micros(self.shared.settings.outcome_timeout);
        let receipt = parcel.receipt.take();
        let token = receipt.map(|receipt| self.shared.waiting().insert(receipt, until));
        let token = match token.transpose() {
            Ok(token) => token,
            Err(receipt) => {
                parcel.receipt = Some(receipt);
                self.drop_taken(parcel, DropReason::QueueFull, Status::QueueFull);
                return Ok(());
            }
        };
        let bytes = parcel.bytes();
        let headers = self.headers(&parcel);
        self.shared.link_metrics.bytes_sent(parcel.payload.len());
        let subject = self.subject(parcel.recipient);
        let seen = Seen { block, mark };
        let reply = self.shared.subjects.reply(self.link.number, seen, token);
        let payload = std::mem::take(&mut parcel.payload);
        let letter = Letter {
            subject,
            reply,
            headers,
            payload,
        };
        if self.link.send(letter).await.is_err() {
            parcel.receipt = token.and_then(|token| self.shared.waiting().take(token));
            self.drop_taken(parcel, DropReason::Unavailable, Status::Unavailable);
            return Err(Lost);
        }
        self.sent += 1;
        self.count(bytes).await
    }

    /// Counts what was published, with a probe behind it if it is time for one.
    async fn count(&self, bytes: usize) -> Result<(), Lost> {
        let is_due = self.link.window().sent(bytes);
        if is_due {
            self.link.probe(&self.shared).await?;
        }
        Ok(())
    }

    fn drop_taken(&mut self, parcel: Parcel, reason: DropReason, status: Status) {
        self.shared.queue().dropped(reason);
        parcel.settle(status, &mut self.wakes);
    }

    /// What goes into the headers, where the message is traced and NATS takes one as large.
    fn headers(&self, parcel: &Parcel) -> Option<HeaderMap> {
        let trace = parcel.trace.as_ref()?;
        let mut headers = HeaderMap::new();
        let mut bytes = parcel.payload.len() + HEADER_BYTES;
        headers.insert(TRACEPARENT, HeaderValue::from(trace.traceparent()));
        if let Some(state) = trace.tracestate() {
            bytes += TRACESTATE_HEADER_BYTES + state.len();
            headers.insert(TRACESTATE, HeaderValue::from(state));
        }
        (bytes <= self.link.client.max_payload()).then_some(headers)
    }

    fn subject(&mut self, recipient: UserId) -> Subject {
        match &self.last {
            Some((last, subject)) if *last == recipient => subject.clone(),
            _ => {
                let subject = self.shared.subjects.user(recipient);
                self.last = Some((recipient, subject.clone()));
                subject
            }
        }
    }
}
