//! What comes from NATS: messages for users of this node's blocks, which go into mailboxes or are
//! dropped, never out again; and what comes back to this node: answers, probes, and messages that nobody
//! takes.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{HeaderValue, Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt, stream};
use tokio::task::coop;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::envelope::{
    Answer, ForBlock, ForNode, Node, ReplyTo, Seen, decode_answers, decode_message, for_block,
    for_node, reply_to,
};
use super::handover::{Ask, Cut, Grant, Reply, is_ask};
use super::leases::HOLDER;
use super::link::{Link, TRACEPARENT, TRACESTATE};
use super::{Peer, Shared, micros};
use crate::directory::{self, Receipt, Wakes};
use crate::identity::UserId;
use crate::ledger::InHand;
use crate::protocol::Status;
use crate::telemetry::metrics::DropReason;
use crate::telemetry::trace_context::TraceHeaders;
use crate::telemetry::traces::Traced;

/// What a sender's node may send more before it is told that this much was seen, bytes: less than half
/// of the least that `cluster.in_flight_bytes` can be.
const SEEN_BYTES: u64 = 16 * 1024;

/// Takes what comes back to this node, and what is for all nodes, until the link is lost.
pub(super) async fn take_returns(
    shared: Arc<Shared>,
    link: Arc<Link>,
    subscribers: Vec<Subscriber>,
) {
    let mut subscriber = stream::select_all(subscribers);
    let mut wakes = Wakes::default();
    loop {
        let next = tokio::select! {
            biased;
            next = subscriber.next() => next,
            () = link.lost.cancelled() => return,
        };
        // The connection has ended.
        let Some(message) = next else {
            return link.lost.cancel();
        };
        let now = shared.now();
        on_return(&shared, &link, &message, now, &mut wakes);
        while let Some(Some(message)) = subscriber.next().now_or_never() {
            on_return(&shared, &link, &message, now, &mut wakes);
        }
        wakes.wake();
    }
}

fn on_return(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    message: &Message,
    now: u64,
    wakes: &mut Wakes,
) {
    match for_node(&message.subject) {
        Some(ForNode::Probe(number)) => {
            if let Some(took) = link.came_back(number, now) {
                shared.link_metrics.round_trip(Duration::from_micros(took));
            }
            wakes.add(shared.notifier.notify());
        }
        Some(ForNode::Message(to)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
            // It has come back, so it was received, and it can go nowhere from here.
            let in_hand = InHand::receive_from_cluster(&*shared.metrics);
            in_hand.dropped(DropReason::Offline);
            if to.link == link.number {
                let Seen { block, mark } = to.seen;
                if shared.queue().returned(block, mark, now) {
                    wakes.add(shared.notifier.notify());
                }
            }
            if let Some(token) = to.token {
                settle(shared, token, Status::Offline, wakes);
            }
        }
        Some(ForNode::PendingOutcomes) => {
            shared.link_metrics.bytes_received(message.payload.len());
            for answer in decode_answers(&message.payload) {
                match answer {
                    Answer::Settled(token, status) => settle(shared, token, status, wakes),
                    Answer::Held(token) => {
                        let until = now + micros(shared.settings.outcome_timeout);
                        shared.waiting().extend(token, until);
                    }
                    Answer::Seen(by, Seen { block, mark }) => {
                        if by == link.number && shared.queue().seen(block, mark, now) {
                            wakes.add(shared.notifier.notify());
                        }
                    }
                }
            }
        }
        Some(ForNode::Give) => on_give(shared, link, message),
        Some(ForNode::Claims) => {
            if let Some(Ask::Renew(node, ids)) = Ask::decode(&message.payload) {
                // They came there while this node was away, so they are newer than who is here.
                shared.renew(node, &ids, false, &Cut::default());
            } else {
                shared.link_metrics.malformed();
            }
        }
        Some(ForNode::Holding) => {
            if let Some(Ask::Holding(node, blocks)) = Ask::decode(&message.payload) {
                let (teller, link) = (shared.clone(), link.clone());
                let tell = async move { teller.tell_holder(&link, node, &blocks).await };
                shared.tracker.spawn(tell);
            } else {
                shared.link_metrics.malformed();
            }
        }
        Some(ForNode::Message(_)) | None => {
            debug!(subject = %message.subject, "unknown return");
            shared.link_metrics.malformed();
        }
    }
}

/// Another node wants an id that is here.
fn on_give(shared: &Arc<Shared>, link: &Arc<Link>, message: &Message) {
    let (Some(Ask::Give(id, resumption_id)), Some(to)) =
        (Ask::decode(&message.payload), message.reply.clone())
    else {
        return shared.link_metrics.malformed();
    };
    let (giver, link) = (shared.clone(), link.clone());
    shared.tracker.spawn(async move {
        let reply = giver.give(id, resumption_id).await.encode();
        // Fails where the connection has ended, and then nobody is there to hear it.
        let _ended = link.publish(to, None, reply).await.is_err();
    });
}

fn settle(shared: &Shared, token: u64, status: Status, wakes: &mut Wakes) {
    let receipt = shared.waiting().take(token);
    if let Some(receipt) = receipt {
        if status == Status::Unknown {
            shared.link_metrics.outcomes_unknown(1);
        }
        receipt.settle(status, wakes);
    }
}

/// Takes what comes for a block, until the block is retired or the link is lost.
pub(super) async fn take_block(
    shared: Arc<Shared>,
    link: Arc<Link>,
    block: u64,
    mut subscriber: Subscriber,
    retired: CancellationToken,
) {
    // Until it is known which ids of it are elsewhere.
    tokio::select! {
        () = link.settled.cancelled() => {}
        () = link.lost.cancelled() => {}
    }
    let mut block = Block {
        intake: Intake::new(shared.clone()),
        seen: shared.seen(block),
        shared,
        link,
        number: block,
    };
    let mut wakes = Wakes::default();
    let mut is_draining = false;
    loop {
        let next = tokio::select! {
            biased;
            next = subscriber.next() => next,
            () = retired.cancelled(), if !is_draining => {
                is_draining = true;
                // Fails where the connection has ended, which the next round finds.
                let _ended = subscriber.drain().await.is_err();
                continue;
            }
            () = block.link.lost.cancelled() => {
                // What has arrived comes before whatever the next link will bring.
                arrived(&mut subscriber).await
            }
        };
        let Some(message) = next else {
            return;
        };
        let now = block.shared.now();
        block.on_message(&message, now, &mut wakes).await;
        while let Some(Some(message)) = subscriber.next().now_or_never() {
            block.on_message(&message, now, &mut wakes).await;
        }
        wakes.wake();
    }
}

/// The next message, if it is here by now.
pub(super) async fn arrived(subscriber: &mut Subscriber) -> Option<Message> {
    // The runtime lets a task take only so much in one go, and a channel seem empty after that.
    coop::consume_budget().await;
    let next = coop::unconstrained(subscriber.next());
    next.now_or_never().flatten()
}

struct Block {
    shared: Arc<Shared>,
    link: Arc<Link>,
    number: u64,
    intake: Intake,
    /// What has come.
    seen: Arc<Mutex<Cut>>,
}

impl Block {
    async fn on_message(&mut self, message: &Message, now: u64, wakes: &mut Wakes) {
        self.shared
            .link_metrics
            .bytes_received(message.payload.len());
        match for_block(&message.subject) {
            Some(ForBlock::Message(_)) if is_ask(&message.payload) => {
                self.on_ask(message, wakes).await;
            }
            Some(ForBlock::Message(recipient)) => self.on_letter(message, recipient, now, wakes),
            Some(ForBlock::Claim) => self.on_ask(message, wakes).await,
            Some(ForBlock::Who) => self.on_who(message).await,
            None => {
                debug!(subject = %message.subject, "unknown message");
                self.shared.link_metrics.malformed();
            }
        }
    }

    fn on_letter(&mut self, message: &Message, recipient: UserId, now: u64, wakes: &mut Wakes) {
        let reply = message.reply.as_deref().and_then(reply_to);
        if let Some(reply) = reply {
            self.intake.note_seen(reply, wakes);
            let mut seen = self.seen();
            seen.note(reply);
            if self.shared.claims.silence(recipient, reply) {
                return;
            }
        }
        self.intake
            .on_letter(message, reply, (recipient, now), wakes);
    }

    fn seen(&self) -> MutexGuard<'_, Cut> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another node wants an id of the block, or has one still, or no more.
    async fn on_ask(&self, message: &Message, wakes: &mut Wakes) {
        let shared = &self.shared;
        let reply = match Ask::decode(&message.payload) {
            Some(Ask::Claim(claimant)) => shared.grant(claimant, &self.seen()),
            Some(Ask::Renew(node, ids)) => {
                Reply::Lost(shared.renew(node, &ids, true, &self.seen()))
            }
            Some(Ask::Release(node, id, to, taken)) => {
                let mut cut = self.seen().clone();
                let previous = shared.release(node, id, to, &taken);
                if let Some(taken) = shared.claims.taken(id) {
                    cut.join(&taken);
                }
                // What this node has taken to send by now is for that one, so it goes out before the answer
                // and before anybody else is granted the id, who begins behind it. Fails where the link is
                // lost, and then nobody hears the answer.
                // The publisher may be among those that were rung for and not woken yet.
                wakes.wake();
                let _lost = shared.fence(&self.link).await.is_err();
                Reply::Granted(Grant {
                    holder: Some(shared.node),
                    previous,
                    cut,
                })
            }
            Some(Ask::Give(..) | Ask::Holding(..)) | None => {
                return shared.link_metrics.malformed();
            }
        };
        if let Some(to) = message.reply.clone() {
            // Fails where the connection has ended, and then nobody is there to hear it.
            let _ended = self.link.publish(to, None, reply.encode()).await.is_err();
        }
    }

    /// Another node wants to know who holds the block.
    async fn on_who(&self, message: &Message) {
        let Some(reply) = message.reply.clone() else {
            return self.shared.link_metrics.malformed();
        };
        if message.payload == HOLDER {
            error!(
                block = self.number,
                "another node holds a block of this one"
            );
            self.shared.leases.close(self.number);
        }
        // Fails where the connection has ended, and then nobody is there to hear it.
        let answered = self.link.client.publish(reply, HOLDER.into()).await;
        let _ended = answered.is_err();
    }
}

/// Puts messages into mailboxes, or drops them.
pub(super) struct Intake {
    shared: Arc<Shared>,
    /// Whoever sent the last message: mostly, who sends the next one.
    known: Option<(Node, Arc<Peer>)>,
    /// The link and the mark that each sender was last told of.
    noted: HashMap<Node, (u32, u64)>,
}

impl Intake {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: None,
            noted: HashMap::new(),
        }
    }

    /// Takes a message for this user, at this time.
    pub(super) fn on_letter(
        &mut self,
        message: &Message,
        reply: Option<ReplyTo>,
        (recipient, now): (UserId, u64),
        wakes: &mut Wakes,
    ) {
        let (Some(reply), Some((sender, text))) = (reply, decode_message(&message.payload)) else {
            self.shared.link_metrics.malformed();
            let in_hand = InHand::receive_from_cluster(&*self.shared.metrics);
            return in_hand.dropped(DropReason::Internal);
        };
        let peer = self.peer(reply);
        let in_hand = InHand::receive_from_cluster(&*self.shared.metrics);
        peer.heard_at.store(now, Relaxed);
        let answers = reply.token.map(|token| (peer.answers.clone(), token));
        let receipt = Receipt::to_node(answers, self.trace(message, text), now);
        // From a link that was given up before: behind what has come by a newer one it would be out of
        // order.
        if peer.link.fetch_max(reply.link.into(), Relaxed) > reply.link.into() {
            in_hand.dropped(DropReason::Unavailable);
            if let Some(receipt) = receipt {
                receipt.settle(Status::Unavailable, wakes);
            }
            return;
        }
        let message = directory::Message {
            sender,
            body: text,
            read_at: now,
            receipt,
        };
        self.shared.directory.with(recipient, |client| {
            if let Some(client) = client {
                return client.push(message, in_hand, wakes);
            }
            directory::settle_undeliverable(
                in_hand,
                message.receipt,
                directory::Undeliverable::Offline,
                wakes,
            );
        });
    }

    /// The trace that came with a message.
    fn trace(&self, message: &Message, text: &str) -> Option<Box<Traced>> {
        let headers = message.headers.as_ref()?;
        let caller = TraceHeaders {
            traceparent: headers.get(TRACEPARENT).map(HeaderValue::as_str),
            tracestate: headers.get(TRACESTATE).map(HeaderValue::as_str),
        };
        // Without the quotes of the literal.
        Traced::arrived(&self.shared.traces, caller, text.len() - 2)
    }

    /// Lets the sender's node send more, from time to time.
    pub(super) fn note_seen(&mut self, reply: ReplyTo, wakes: &mut Wakes) {
        let ReplyTo { link, seen, .. } = reply;
        let noted = self.noted.entry(reply.node).or_default();
        // By another link the marks begin anew.
        if noted.0 != link || seen.mark >= noted.1 + SEEN_BYTES {
            *noted = (link, seen.mark);
            let peer = self.peer(reply);
            peer.notes().push(Answer::Seen(link, seen));
            wakes.add(self.shared.notifier.notify());
        }
    }

    fn peer(&mut self, ReplyTo { node, .. }: ReplyTo) -> Arc<Peer> {
        match &self.known {
            Some((known, peer)) if *known == node => peer.clone(),
            _ => {
                let peer = self.shared.peer(node);
                self.known = Some((node, peer.clone()));
                peer
            }
        }
    }
}
