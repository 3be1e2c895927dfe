//! What comes from other nodes: messages, which go into mailboxes or are dropped, never out again; answers, notices,
//! and messages that come back because no node takes them. Nothing of it is trusted: see [`Notice`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::FutureExt as _;
use tracing::debug;

use super::envelope::{
    Answer, Kind, Node, Notice, ReplyTo, decode_answers, decode_message, kind, reply_to,
};
use super::nats::{Incoming, LinkLost, Subscription};
use super::peers::Peer;
use super::registry::Check;
use super::shared::{Shared, micros};
use crate::directory::{self, Receipt, Undeliverable, Wakes, settle_undeliverable};
use crate::identity::{Sender, UserId};
use crate::ledger::InHand;
use crate::protocol::Status;
use crate::telemetry::metrics::DropReason;
use crate::telemetry::trace_context::TraceHeaders;
use crate::telemetry::traces::Traced;

/// What a sender's node may send more before it is told that this much was read, bytes: less than half of the least
/// that `cluster.in_flight_bytes` can be.
const SEEN_BYTES: u64 = 16 * 1024;

pub(super) struct Receiver {
    shared: Arc<Shared>,
    /// The sender of the last message: mostly, that of the next one.
    known: Option<(Node, Arc<Peer>)>,
    /// The link and the mark that each sender was last told of.
    noted: BTreeMap<Node, (u64, u64)>,
    wakes: Wakes,
}

/// A message for a user of this node.
struct Delivery<'a> {
    recipient: UserId,
    sender: Sender,
    body: &'a str,
    receipt: Option<Box<Receipt>>,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: None,
            noted: BTreeMap::new(),
            wakes: Wakes::default(),
        }
    }

    /// Takes what comes until the link is lost.
    pub(super) async fn run(mut self, mut subscription: impl Subscription) -> LinkLost {
        while let Some(incoming) = subscription.next().await {
            let now = self.shared.now();
            self.on_incoming(&incoming, now);
            while let Some(Some(incoming)) = subscription.next().now_or_never() {
                self.on_incoming(&incoming, now);
            }
            self.wakes.wake();
        }
        LinkLost
    }

    pub(super) fn on_incoming(&mut self, incoming: &Incoming, now: u64) {
        let is_taken = match (kind(&incoming.subject), incoming.no_responders) {
            (Some(Kind::Message), false) => self.on_message(incoming, now),
            (Some(Kind::Answers), false) => self.on_answers(&incoming.payload, now),
            (Some(Kind::Notice), false) => self.on_notice(&incoming.payload, now),
            (Some(Kind::Return(to)), true) => self.on_return(to, now),
            // A JetStream stream has stored the message, too, and says so.
            (Some(Kind::Return(_)), false) => Some(()),
            _ => None,
        };
        if is_taken.is_none() {
            debug!(subject = %incoming.subject, "odd message from nats");
            self.shared.link_metrics.malformed();
        }
    }

    /// Takes a message for a user. `None` if no node has sent it by its present link; it is not counted then,
    /// because a node that did send it counts it as lost.
    fn on_message(&mut self, incoming: &Incoming, now: u64) -> Option<()> {
        let reply = reply_to(incoming.reply.as_ref()?)?;
        let (recipient, sender, body) = decode_message(&incoming.payload)?;
        let peer = self.peer(reply.sender)?;
        self.shared.note_arrival();
        self.shared
            .link_metrics
            .bytes_received(incoming.payload.len());
        peer.heard_at.store(now, Relaxed);
        let caller = TraceHeaders {
            traceparent: incoming.traceparent.as_deref(),
            tracestate: incoming.tracestate.as_deref(),
        };
        // Without the quotes of the literal.
        let trace = Traced::arrived(&self.shared.traces, caller, body.len() - 2);
        let answers = reply.token.map(|token| (peer.answers.clone(), token));
        let receipt = Receipt::to_node(answers, trace, now);
        // Behind what has come by a newer link it would be out of order.
        if !peer.has_link(reply.link) {
            if let Some(receipt) = receipt {
                receipt.settle(Status::Unavailable, &mut self.wakes);
            }
            return None;
        }
        self.note_seen(&peer, reply);
        let delivery = Delivery {
            recipient,
            sender,
            body,
            receipt,
        };
        self.deliver(&peer, delivery, now);
        Some(())
    }

    fn deliver(&mut self, peer: &Peer, delivery: Delivery<'_>, now: u64) {
        let Delivery {
            recipient,
            sender,
            body,
            receipt,
        } = delivery;
        let shared = &self.shared;
        let wakes = &mut self.wakes;
        let in_hand = InHand::receive_from_cluster(&*shared.metrics);
        if !shared.lease.takes(now) {
            // Its users may be elsewhere by now.
            in_hand.dropped(DropReason::Unavailable);
            if let Some(receipt) = receipt {
                receipt.settle(Status::Unavailable, wakes);
            }
            return;
        }
        let message = directory::Message {
            sender,
            body,
            read_at: now,
            receipt,
        };
        shared.directory.with(recipient, |client| {
            if let Some(client) = client {
                return client.push(message, in_hand, wakes);
            }
            peer.note_gone(recipient);
            wakes.add(shared.publishable.notify());
            settle_undeliverable(in_hand, message.receipt, Undeliverable::Offline, wakes);
        });
    }

    /// Lets the sender's node send more, from time to time.
    fn note_seen(&mut self, peer: &Peer, reply: ReplyTo) {
        let ReplyTo { link, mark, .. } = reply;
        let noted = self.noted.entry(reply.sender).or_default();
        // By another link the marks begin again.
        if noted.0 != link || mark >= noted.1 + SEEN_BYTES {
            *noted = (link, mark);
            peer.note_seen(link, mark);
            self.wakes.add(self.shared.publishable.notify());
        }
    }

    fn peer(&mut self, node: Node) -> Option<Arc<Peer>> {
        match &self.known {
            Some((known, peer)) if *known == node => Some(peer.clone()),
            _ => {
                let peer = self.shared.peers.get(node)?;
                self.known = Some((node, peer.clone()));
                Some(peer)
            }
        }
    }

    fn on_answers(&mut self, payload: &[u8], now: u64) -> Option<()> {
        let (from, answers) = decode_answers(payload)?;
        let shared = self.shared.clone();
        shared.link_metrics.bytes_received(payload.len());
        for answer in answers {
            match answer {
                Answer::Settled(token, status) => self.settle(token, status),
                Answer::Held(token) => {
                    let until = now + micros(shared.settings.outcome_timeout);
                    shared.waiting().extend(token, until);
                }
                Answer::Seen { link, mark } => {
                    if link == shared.link() && shared.queue().seen(from, mark, now) {
                        self.wakes.add(shared.publishable.notify());
                    }
                }
                Answer::Gone(id) => shared.queue().gone(id, from),
            }
        }
        Some(())
    }

    fn settle(&mut self, token: u64, status: Status) {
        // Its own statement, so that nothing is settled under the lock.
        let receipt = self.shared.waiting().take(token);
        if let Some(receipt) = receipt {
            if status == Status::Unknown {
                self.shared.link_metrics.outcomes_unknown(1);
            }
            receipt.settle(status, &mut self.wakes);
        }
    }

    fn on_notice(&mut self, payload: &[u8], now: u64) -> Option<()> {
        let (from, notice) = Notice::decode(payload)?;
        let shared = &self.shared;
        match notice {
            Notice::Hello { link } => shared.hello(from, link),
            Notice::Ready { link } => {
                if link == shared.link() && shared.queue().opened(from, now) {
                    self.wakes.add(shared.publishable.notify());
                }
            }
            Notice::Check { id, nonce, over } => {
                let check = Check { from, nonce, over };
                shared.registry().check(id, check, now);
                shared.ask();
            }
            Notice::Checked { id, nonce } => {
                shared.registry().checked(id, from, nonce, now);
                shared.ask();
            }
        }
        Some(())
    }

    /// A message has come back: nobody takes what is sent to that node. It is received again, and goes nowhere.
    fn on_return(&mut self, to: ReplyTo, now: u64) -> Option<()> {
        let shared = &self.shared;
        if (to.sender, to.link) != (shared.node, shared.link()) {
            return None;
        }
        InHand::receive_from_cluster(&*shared.metrics).dropped(DropReason::Offline);
        shared.queue().returned(to.recipient, now);
        if let Some(token) = to.token {
            self.settle(token, Status::Offline);
        }
        Some(())
    }
}
