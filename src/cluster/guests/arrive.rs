//! How an id is had from whoever had it: from the holder of its block and, through that, from the node that
//! the user was on last; where nobody holds the block, from whoever listens to the id.

use std::sync::Arc;

use async_nats::{Message, RequestErrorKind, Subject, Subscriber};
use futures_util::StreamExt;

use super::host::settle;
use super::{MigratedId, Staying};
use crate::cluster::Shared;
use crate::cluster::envelope::Node;
use crate::cluster::handover::{Ask, Claimant, Cut, Grant, Refusal, Reply, is_ask};
use crate::cluster::inbound::arrived;
use crate::cluster::link::{Link, Lost};
use crate::identity::UserId;

/// What comes for an id while it is asked who has it, at most `cluster.inbound_messages`.
pub(super) struct Early {
    pub(super) messages: Vec<Message>,
    max: usize,
}

/// A guest whose id was granted.
pub(super) struct Arrival {
    pub(super) subscriber: Subscriber,
    /// What has come while it was claimed.
    pub(super) early: Early,
    pub(super) holder: Option<Node>,
    pub(super) cut: Cut,
    /// A node that has given way, whose own claim may be still to come.
    pub(super) withdrawn: Option<Node>,
}

impl Early {
    fn new(max: u32) -> Self {
        Self {
            messages: Vec::new(),
            max: max as usize,
        }
    }

    /// Keeps a message. Whether there was room; else it is lost, as where NATS brings more than is taken.
    fn push(&mut self, message: Message) -> bool {
        let has_room = self.messages.len() < self.max;
        if has_room {
            self.messages.push(message);
        }
        has_room
    }
}

/// Claims an id for a new connection; of a block of this node, from the node that has it.
pub(super) async fn arrive(
    shared: Arc<Shared>,
    staying: Staying,
    previous: Option<Node>,
) -> Result<MigratedId, Refusal> {
    let Staying {
        id,
        resumption_id,
        number,
    } = staying;
    let claimant = Claimant {
        node: shared.node,
        id,
        resumption_id,
        again: false,
    };
    let link = shared.link();
    let bid = async {
        let link = link.as_ref().ok_or(Refusal::Unavailable)?;
        // What this node has still published to the id comes before the claim: behind it, whoever has the
        // id may have given it away, and this node does not hear itself.
        let is_out = shared.fence(link).await;
        is_out.map_err(|Lost| Refusal::Unavailable)?;
        let subscriber = subscribe(&shared, link, id).await;
        let subscriber = subscriber.map_err(|Lost| Refusal::Unavailable)?;
        // The server may have looked up who listens just before, for a message that it gives to the
        // holder just behind the claim: neither of the two would take it.
        let is_listening = link.is_heard(&shared).await;
        is_listening.map_err(|Lost| Refusal::Unavailable)?;
        bid(&shared, link, claimant, previous, subscriber).await
    };
    match (bid.await, link) {
        (Ok(arrival), Some(link)) => {
            let guest = MigratedId {
                shared: shared.clone(),
                id,
                number,
            };
            shared.guests.with(id, number, |stay| stay.users += 1);
            settle(&shared, link, claimant, number, arrival);
            Ok(guest)
        }
        (refused, _) => {
            if previous.is_some() {
                shared.release(shared.node, id, previous, &Cut::default());
            }
            shared.guests.remove(id, number);
            Err(refused.err().unwrap_or(Refusal::Unavailable))
        }
    }
}

pub(super) async fn subscribe(
    shared: &Shared,
    link: &Link,
    id: UserId,
) -> Result<Subscriber, Lost> {
    let subject = shared.subjects.user(id);
    link.client.subscribe(subject).await.map_err(|_ended| Lost)
}

/// Asks whoever has the id for it; where it is of a block of this `own` node, that other node.
pub(super) async fn bid(
    shared: &Shared,
    link: &Link,
    claimant: Claimant,
    own: Option<Node>,
    subscriber: Subscriber,
) -> Result<Arrival, Refusal> {
    let block = shared.leases.blocks().block_of(claimant.id);
    let claim = Ask::Claim(claimant).encode();
    let asked = match own {
        Some(_) => Asked::Said(Reply::Granted(Grant {
            holder: Some(shared.node),
            previous: own,
            cut: Cut::default(),
        })),
        None => ask(link, shared.subjects.claim(block), claim).await,
    };
    let grant = match asked {
        Asked::Said(Reply::Granted(grant)) => grant,
        Asked::Said(Reply::Refused(refusal)) => return Err(refusal),
        // Nobody holds the block. Another node may have the id, or want it at the same time.
        Asked::Nobody => return bid_alone(shared, link, claimant, subscriber).await,
        Asked::Said(Reply::Lost(_)) | Asked::Silence => {
            hand_back(shared, link, claimant, None).await;
            return Err(Refusal::Unavailable);
        }
    };
    let mut cut = grant.cut;
    if let Some(previous) = grant.previous.filter(|node| *node != shared.node) {
        let give = Ask::Give(claimant.id, claimant.resumption_id).encode();
        match ask(link, shared.subjects.give(previous), give).await {
            Asked::Said(Reply::Granted(given)) => cut.join(&given.cut),
            // It is gone, and has seen nothing since.
            Asked::Nobody => {}
            // It may take messages still.
            Asked::Said(_) | Asked::Silence => {
                hand_back(shared, link, claimant, Some(previous)).await;
                return Err(Refusal::Unavailable);
            }
        }
    }
    Ok(Arrival {
        subscriber,
        // That waits in the subscription.
        early: Early::new(0),
        holder: grant.holder,
        cut,
        withdrawn: None,
    })
}

/// The same where nobody holds the block: whoever has the id, or wants it too, listens to it.
async fn bid_alone(
    shared: &Shared,
    link: &Link,
    claimant: Claimant,
    mut subscriber: Subscriber,
) -> Result<Arrival, Refusal> {
    let claim = Ask::Claim(claimant).encode();
    let mut asking = std::pin::pin!(ask(link, shared.subjects.user(claimant.id), claim));
    let mut early = Early::new(shared.settings.inbound_messages);
    let mut refused = None;
    let asked = loop {
        tokio::select! {
            biased;
            asked = &mut asking => break asked,
            Some(message) = subscriber.next() => {
                if !is_ask(&message.payload) {
                    if !early.push(message) {
                        shared.link_metrics.overrun();
                    }
                    continue;
                }
                match meet(link, claimant, &message, false).await {
                    Met::Yielded => return Err(Refusal::InUse),
                    Met::Refused(node) => refused = Some(node),
                    Met::Nobody => {}
                }
            }
        }
    };
    let mut grant = match asked {
        Asked::Said(Reply::Granted(grant)) => grant,
        Asked::Nobody => Grant::default(),
        Asked::Said(Reply::Refused(refusal)) => {
            // Whoever has refused may wait for an answer of its own.
            while let Some(message) = arrived(&mut subscriber).await {
                if is_ask(&message.payload) {
                    meet(link, claimant, &message, true).await;
                }
            }
            return Err(refusal);
        }
        Asked::Said(Reply::Lost(_)) | Asked::Silence => return Err(Refusal::Unavailable),
    };
    let withdrawn = grant.previous.take();
    Ok(Arrival {
        subscriber,
        early,
        holder: None,
        cut: grant.cut,
        withdrawn: withdrawn.filter(|node| refused != Some(*node)),
    })
}

/// Tells the holder of a block that nothing came of a claim.
async fn hand_back(shared: &Shared, link: &Link, claimant: Claimant, previous: Option<Node>) {
    let block = shared.leases.blocks().block_of(claimant.id);
    let release = Ask::Release(claimant.node, claimant.id, previous, Cut::default()).encode();
    let to = shared.subjects.claim(block);
    // Fails where the connection has ended, and then the claim lapses.
    let _ended = link.publish(to, None, release).await.is_err();
}

/// What came of meeting another claim.
enum Met {
    Yielded,
    Refused(Node),
    /// It was no claim.
    Nobody,
}

/// Of two nodes that claim an id at the same time while nobody holds its block, the one of the higher
/// number has it; or the other, where this one has been refused.
async fn meet(link: &Link, claimant: Claimant, message: &Message, is_refused: bool) -> Met {
    let Some(Ask::Claim(other)) = Ask::decode(&message.payload) else {
        return Met::Nobody;
    };
    let is_first = other.resumption_id == claimant.resumption_id && other.node.0 > claimant.node.0;
    let (met, reply) = if is_first || is_refused {
        let grant = Grant {
            previous: Some(claimant.node),
            ..Grant::default()
        };
        (Met::Yielded, Reply::Granted(grant))
    } else {
        (Met::Refused(other.node), Reply::Refused(Refusal::InUse))
    };
    if let Some(to) = message.reply.clone() {
        // Fails where the connection has ended, and with it both claims.
        let _ended = link.publish(to, None, reply.encode()).await.is_err();
    }
    met
}

/// What came of a question.
pub(super) enum Asked {
    Said(Reply),
    /// NATS knows of nobody who could answer.
    Nobody,
    /// No answer, or none that is understood.
    Silence,
}

pub(super) async fn ask(link: &Link, subject: Subject, question: bytes::Bytes) -> Asked {
    let asked = tokio::select! {
        asked = link.client.request(subject, question) => asked,
        () = link.lost.cancelled() => return Asked::Silence,
    };
    match asked {
        Ok(answer) => Reply::decode(&answer.payload).map_or(Asked::Silence, Asked::Said),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Asked::Nobody,
        Err(_) => Asked::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &'static str) -> Message {
        Message {
            subject: "chat.b.1.1".into(),
            reply: None,
            payload: text.into(),
            headers: None,
            status: None,
            description: None,
            length: text.len(),
        }
    }

    #[test]
    fn what_comes_early_is_kept_up_to_a_bound() {
        let mut early = Early::new(2);
        assert!(early.push(message("one")) && early.push(message("two")));
        assert!(!early.push(message("three")));
        let kept = early.messages.iter().map(|message| &message.payload[..]);
        assert_eq!(kept.collect::<Vec<_>>(), [b"one", b"two"]);
    }
}
