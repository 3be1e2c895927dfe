//! Who takes the messages of one guest, from when its id was granted until the link is lost, or the id goes to
//! another node or back to the holder of its block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::arrive::{Arrival, Asked, Early, ask};
use super::{Phase, Takers, Task};
use crate::cluster::Shared;
use crate::cluster::envelope::{Node, ReplyTo, reply_to};
use crate::cluster::handover::{Ask, Claimant, Cut, Grant, Refusal, Reply, is_ask};
use crate::cluster::inbound::{Intake, arrived};
use crate::cluster::link::Link;
use crate::directory::Wakes;
use crate::identity::{ResumptionId, UserId};

/// Lets a guest stay whose id was granted; its messages are taken from now on.
pub(super) fn settle(
    shared: &Arc<Shared>,
    link: Arc<Link>,
    claimant: Claimant,
    number: u64,
    arrival: Arrival,
) {
    let Arrival {
        subscriber,
        early,
        holder,
        cut,
        withdrawn,
    } = arrival;
    let (takers, asks) = mpsc::channel(1);
    let task = Task {
        link: link.number,
        takers,
        leave: CancellationToken::new(),
        holder: Arc::new(AtomicU64::new(holder.map_or(0, |node| node.0))),
    };
    let host = Host {
        intake: Intake::new(shared.clone()),
        shared: shared.clone(),
        link,
        id: claimant.id,
        resumption_id: claimant.resumption_id,
        number,
        cut,
        limit: None,
        withdrawn,
        task: task.clone(),
        is_over: false,
    };
    let begun = shared.guests.with(claimant.id, number, |stay| {
        stay.phase = Phase::Here;
        stay.task = Some(task);
    });
    shared.guests.changed.notify_waiters();
    // Else it has left while it was claimed again, and the claim lapses.
    if begun.is_some() {
        shared.tracker.spawn(host.stay(subscriber, early, asks));
    }
}

/// Takes the messages of one guest for as long as a link lasts.
struct Host {
    shared: Arc<Shared>,
    link: Arc<Link>,
    id: UserId,
    resumption_id: ResumptionId,
    number: u64,
    intake: Intake,
    /// What was seen, here or by whoever had the id before.
    cut: Cut,
    /// Beyond this it is the holder's again.
    limit: Option<Cut>,
    /// A node that has given way, whose own claim may be still to come.
    withdrawn: Option<Node>,
    task: Task,
    /// Another node has the id.
    is_over: bool,
}

impl Host {
    async fn stay(mut self, mut subscriber: Subscriber, early: Early, mut takers: Takers) {
        let mut wakes = Wakes::default();
        for message in early.messages {
            self.on_message(&message, &mut wakes).await;
        }
        // Nothing else may come for long.
        wakes.wake();
        let leave = self.task.leave.clone();
        while !self.is_over {
            tokio::select! {
                biased;
                () = self.link.lost.cancelled() => return self.cut_off(),
                Some(taker) = takers.recv() => {
                    // All that has come is behind what is handed over.
                    self.take_what_is_there(&mut subscriber, &mut wakes).await;
                    self.shared.evict(self.id, self.number, self.resumption_id);
                    // Whoever asked may be gone; the id is its.
                    let _gone = taker.send(self.cut).is_err();
                    return;
                }
                () = leave.cancelled() => {
                    return self.leave((subscriber, takers), &mut wakes).await;
                }
                next = subscriber.next() => {
                    let Some(message) = next else {
                        self.link.lost.cancel();
                        continue;
                    };
                    self.on_message(&message, &mut wakes).await;
                    self.take_what_is_there(&mut subscriber, &mut wakes).await;
                }
            }
        }
    }

    async fn take_what_is_there(&mut self, subscriber: &mut Subscriber, wakes: &mut Wakes) {
        while let Some(message) = arrived(subscriber).await {
            self.on_message(&message, wakes).await;
        }
        wakes.wake();
    }

    /// The link is lost. Who is here stays, and the id is claimed again by the next.
    fn cut_off(self) {
        let is_over = self.shared.guests.with(self.id, self.number, |stay| {
            // Else it was claimed again meanwhile.
            let is_own = stay.is_served_by(self.link.number);
            if is_own {
                stay.task = None;
            }
            is_own && stay.phase == Phase::Leaving
        });
        if is_over == Some(true) {
            self.shared.forget_guest(self.id, self.number);
        }
    }

    /// Gives the id back to the holder of its block, up to what that has seen by then; or, where another
    /// node has claimed it meanwhile, to that one.
    async fn leave(
        mut self,
        (mut subscriber, mut takers): (Subscriber, Takers),
        wakes: &mut Wakes,
    ) {
        let given_back = self.release().await;
        let taker = match &given_back {
            Some(grant) if grant.previous.is_some() => {
                self.is_asked(&mut subscriber, &mut takers, wakes).await
            }
            _ => None,
        };
        if taker.is_some() {
            self.take_what_is_there(&mut subscriber, wakes).await;
        } else {
            self.limit = given_back.map(|grant| grant.cut);
            self.drain(&mut subscriber, wakes).await;
        }
        self.shared.guests.remove(self.id, self.number);
        takers.close();
        let more = std::iter::from_fn(|| takers.try_recv().ok());
        for taker in taker.into_iter().chain(more) {
            // Whoever asked may be gone; the id is its.
            let _gone = taker.send(self.cut.clone()).is_err();
        }
    }

    /// What the holder of the block says to a release. What comes meanwhile waits: one of the two has seen
    /// it already, and is told or tells so.
    async fn release(&mut self) -> Option<Grant> {
        if self.shared.leases.holds(self.id) {
            return Some(self.shared.release_own(self.id, &self.cut));
        }
        let block = self.shared.leases.blocks().block_of(self.id);
        let release = Ask::Release(self.shared.node, self.id, None, self.cut.clone()).encode();
        match ask(&self.link, self.shared.subjects.claim(block), release).await {
            Asked::Said(Reply::Granted(grant)) => Some(grant),
            _ => None,
        }
    }

    /// Waits for another node to ask for the id, since it has claimed it.
    async fn is_asked(
        &mut self,
        subscriber: &mut Subscriber,
        takers: &mut Takers,
        wakes: &mut Wakes,
    ) -> Option<oneshot::Sender<Cut>> {
        let patience = sleep(self.shared.settings.link_timeout);
        let mut patience = std::pin::pin!(patience);
        let link = self.link.clone();
        loop {
            tokio::select! {
                biased;
                () = link.lost.cancelled() => return None,
                taker = takers.recv() => return taker,
                () = &mut patience => return None,
                Some(message) = subscriber.next() => {
                    self.on_message(&message, wakes).await;
                    wakes.wake();
                }
            }
        }
    }

    async fn drain(&mut self, subscriber: &mut Subscriber, wakes: &mut Wakes) {
        // The client forgets a subscription that drains as soon as it looks, and what the server has sent
        // by then and the client has not read is lost: let it come first.
        wakes.wake();
        let _lost = self.link.is_heard(&self.shared).await.is_err();
        // Fails where the connection has ended, and then nothing comes.
        let _ended = subscriber.drain().await.is_err();
        loop {
            let next = tokio::select! {
                biased;
                next = subscriber.next() => next,
                () = self.link.lost.cancelled() => None,
            };
            let Some(message) = next else { break };
            self.on_message(&message, wakes).await;
        }
        if let Some(limit) = &self.limit {
            self.cut.join(limit);
        }
        wakes.wake();
    }

    async fn on_message(&mut self, message: &Message, wakes: &mut Wakes) {
        if is_ask(&message.payload) {
            return self.on_ask(message).await;
        }
        let now = self.shared.now();
        let reply = message.reply.as_deref().and_then(reply_to);
        if let Some(reply) = reply {
            if self.is_over || self.cut.covers(reply) || self.is_holders(reply) {
                return;
            }
            self.cut.note(reply);
            if self.is_to_say_what_was_seen(reply) {
                self.intake.note_seen(reply, wakes);
            }
        }
        self.shared
            .link_metrics
            .bytes_received(message.payload.len());
        self.intake.on_letter(message, reply, (self.id, now), wakes);
    }

    /// Whether it is beyond what the holder had seen when it took the id back.
    fn is_holders(&self, reply: ReplyTo) -> bool {
        let limit = self.limit.as_ref();
        limit.is_some_and(|limit| !limit.covers(reply))
    }

    /// The holder of the block says it, to all but itself.
    fn is_to_say_what_was_seen(&self, reply: ReplyTo) -> bool {
        let holder = self.task.holder.load(Ordering::Relaxed);
        holder == 0 || holder == reply.node.0
    }

    /// Another node claims the id, and nobody holds its block.
    async fn on_ask(&mut self, message: &Message) {
        let Some(Ask::Claim(claimant)) = Ask::decode(&message.payload) else {
            debug!(subject = %message.subject, "unknown question");
            return self.shared.link_metrics.malformed();
        };
        let is_leaving = self.task.leave.is_cancelled();
        let has_withdrawn = self
            .withdrawn
            .take_if(|node| *node == claimant.node)
            .is_some();
        let may = claimant.resumption_id == self.resumption_id && !claimant.again && !has_withdrawn;
        let reply = if self.is_over {
            return;
        } else if may || is_leaving {
            self.shared.evict(self.id, self.number, self.resumption_id);
            self.is_over = true;
            Reply::Granted(Grant {
                cut: self.cut.clone(),
                ..Grant::default()
            })
        } else {
            Reply::Refused(Refusal::InUse)
        };
        if let Some(to) = message.reply.clone() {
            // Fails where the connection has ended, and then nobody is there to hear it.
            let _ended = self.link.publish(to, None, reply.encode()).await.is_err();
        }
    }
}
