//! Asks NATS what the state machines of this node want to know: carries out the actions of the registry, looks up
//! places, reads the keys of other nodes and greets them. The only task that does any of this, so that the actions
//! stay in order.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval};

use super::envelope::{Answer, Node, Notice, encode_answers};
use super::nats::{
    Bucket, BucketFailure, Entry, LinkLost, NatsLink, Outgoing, PublishFailure, Revision,
    WriteFailure,
};
use super::record::{Record, decode_link};
use super::registry::{Action, Loss};
use super::shared::Shared;
use crate::directory::Wakes;
use crate::identity::UserId;

/// How often it is looked at the time.
const TICK: Duration = Duration::from_millis(100);

/// A call on a bucket.
enum Request {
    Read(UserId),
    Write(UserId, Option<Bytes>, Revision),
    Locate(UserId),
    Key(Node),
}

/// Its answer.
enum Response {
    Read(UserId, Result<Entry, BucketFailure>),
    Wrote(UserId, Result<Revision, WriteFailure>),
    Located(UserId, Result<Entry, BucketFailure>),
    Key(Node, Result<Entry, BucketFailure>),
}

pub(super) struct Registrar<L: NatsLink> {
    shared: Arc<Shared>,
    link: L,
    ids: L::Bucket,
    nodes: L::Bucket,
    /// Nodes whose keys are being read.
    reading: BTreeSet<Node>,
    /// Links that nodes have announced, until their keys confirm them.
    hellos: BTreeMap<Node, u64>,
    /// What is to be done beside the actions of the registry.
    actions: Vec<Action>,
    wakes: Wakes,
}

impl<L: NatsLink> Registrar<L> {
    pub(super) fn new(shared: Arc<Shared>, link: L, ids: L::Bucket, nodes: L::Bucket) -> Self {
        Self {
            shared,
            link,
            ids,
            nodes,
            reading: BTreeSet::new(),
            hellos: BTreeMap::new(),
            actions: Vec::new(),
            wakes: Wakes::default(),
        }
    }

    /// Works until the link is lost.
    pub(super) async fn run(mut self) -> LinkLost {
        let mut calls = FuturesUnordered::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let requests = match self.requests().await {
                Ok(requests) => requests,
                Err(lost) => return lost,
            };
            for request in requests {
                calls.push(call(self.ids.clone(), self.nodes.clone(), request));
            }
            self.wakes.wake();
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                Some(response) = calls.next(), if !calls.is_empty() => self.on_response(response),
                () = poll_fn(|cx| shared.askable.poll_notified(cx)) => {}
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// Does what there is to do, and returns what is to be asked.
    async fn requests(&mut self) -> Result<Vec<Request>, LinkLost> {
        let mut requests = Vec::new();
        loop {
            // Its own statement, so that nothing is done under the lock.
            let action = self.shared.registry().next_action();
            let Some(action) = action.or_else(|| self.actions.pop()) else {
                break;
            };
            match action {
                Action::Read(id) => requests.push(Request::Read(id)),
                Action::Write(id, value, over) => requests.push(Request::Write(id, value, over)),
                Action::Notify(to, notice) => self.notify(to, notice).await?,
                Action::ReadKey(node) => self.read_key(node, &mut requests),
                Action::Revoke(identity, loss) if loss != Loss::Left => {
                    carry_out(&self.shared, action);
                    // Before another node is told that the entry was compared, and so before the user is welcomed
                    // there: what is written to the user from then on is not sent here.
                    self.tell_gone(identity.id).await?;
                }
                action => carry_out(&self.shared, action),
            }
        }
        let hellos = self.shared.take_hellos();
        for (node, link) in hellos {
            self.hellos.insert(node, link);
            self.read_key(node, &mut requests);
        }
        loop {
            let greeting = self.shared.queue().next_greeting();
            let Some(node) = greeting else {
                break;
            };
            let link = self.shared.link();
            self.notify(node, Notice::Hello { link }).await?;
            self.read_key(node, &mut requests);
        }
        let mut queue = self.shared.queue();
        while let Some(id) = queue.next_lookup() {
            requests.push(Request::Locate(id));
        }
        Ok(requests)
    }

    fn read_key(&mut self, node: Node, requests: &mut Vec<Request>) {
        if self.reading.insert(node) {
            requests.push(Request::Key(node));
        }
    }

    async fn notify(&self, to: Node, notice: Notice) -> Result<(), LinkLost> {
        let subject = self.shared.subjects.notice(to);
        self.publish(subject, notice.encode(self.shared.node)).await
    }

    async fn publish(&self, subject: Subject, payload: Bytes) -> Result<(), LinkLost> {
        match self.link.publish(Outgoing::new(subject, payload)).await {
            // No server takes less than a notice has.
            Ok(()) | Err(PublishFailure::TooLarge) => Ok(()),
            Err(PublishFailure::Lost(lost)) => Err(lost),
        }
    }

    async fn tell_gone(&self, id: UserId) -> Result<(), LinkLost> {
        let payload = encode_answers(self.shared.node, &[Answer::Gone(id)]);
        for node in self.shared.peers.all().keys() {
            let subject = self.shared.subjects.answers(*node);
            self.publish(subject, payload.clone()).await?;
        }
        Ok(())
    }

    fn on_response(&mut self, response: Response) {
        let shared = self.shared.clone();
        let now = shared.now();
        match response {
            Response::Read(id, answer) => shared.registry().read(id, answer, now),
            Response::Wrote(id, answer) => shared.registry().wrote(id, answer, now),
            Response::Located(id, answer) => self.on_place(id, answer),
            Response::Key(node, answer) => self.on_key(node, answer, now),
        }
    }

    fn on_place(&mut self, id: UserId, answer: Result<Entry, BucketFailure>) {
        let own = self.shared.node;
        let place = answer.map_err(|_unanswered| ()).map(|entry| {
            let record = entry.value.and_then(|value| Record::decode(&value))?;
            // Its user has left this node, or was about to join when the message was sent.
            (record.node != own).then_some(record.node)
        });
        let dropped = self.shared.queue().located(id, place);
        dropped.settle(&mut self.wakes);
        self.shared.publish();
    }

    fn on_key(&mut self, node: Node, answer: Result<Entry, BucketFailure>, now: u64) {
        self.reading.remove(&node);
        let hello = self.hellos.remove(&node);
        // A node that waits asks again.
        let Ok(Entry { value, revision }) = answer else {
            return;
        };
        let shared = &self.shared;
        match value {
            Some(value) => {
                if let Some(link) = hello.filter(|link| decode_link(&value) == Some(*link)) {
                    shared.peers.accept(node, link, now);
                    self.actions
                        .push(Action::Notify(node, Notice::Ready { link }));
                }
            }
            // A node that ends deletes its key. A key that is not there at all may be lost with its bucket.
            None if revision != Revision::NONE
                || shared.lease.can_judge(now, shared.node_timeout()) =>
            {
                shared.registry().node_died(node, now);
                let dropped = shared.queue().node_died(node);
                dropped.settle(&mut self.wakes);
            }
            None => {}
        }
    }

    fn tick(&mut self) {
        let now = self.shared.now();
        self.shared.registry().tick(now);
        let ticked = self.shared.queue().tick(now);
        ticked.dropped.settle(&mut self.wakes);
        if ticked.has_waited {
            self.shared.publish();
        }
        self.actions
            .extend(ticked.silent.into_iter().map(Action::ReadKey));
    }
}

async fn call<B: Bucket>(ids: B, nodes: B, request: Request) -> Response {
    match request {
        Request::Read(id) => Response::Read(id, ids.get(&id.to_string()).await),
        Request::Write(id, value, over) => {
            Response::Wrote(id, ids.write(&id.to_string(), value, over).await)
        }
        Request::Locate(id) => Response::Located(id, ids.get(&id.to_string()).await),
        Request::Key(node) => Response::Key(node, nodes.get(&node.0.to_string()).await),
    }
}

/// Carries out an action that needs no link.
pub(super) fn carry_out(shared: &Shared, action: Action) {
    match action {
        Action::Revoke(identity, loss) => {
            if loss == Loss::Conflict {
                shared.link_metrics.id_conflict();
            }
            shared.directory.revoke(identity, loss.end());
        }
        Action::Reply(reply, result) => {
            // A connection that has ended leaves by its registration.
            let _ended = reply.send(result).is_err();
        }
        Action::Compared(lease) => shared.lease.compared(lease),
        Action::Read(_) | Action::Write(..) | Action::Notify(..) | Action::ReadKey(_) => {}
    }
}
