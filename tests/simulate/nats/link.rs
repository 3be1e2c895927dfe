//! Links of the model: the two queues of a connection, and the traits that nodes use.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::Subject;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::jetstream::{StreamAnswer, StreamCall};
use super::{Event, LinkId, Model, World};
use crate::cluster::nats::{
    Bucket, BucketConfig, BucketFailure, BucketIdentity, ConnectFailure, Entry, Incoming, LinkLost,
    Nats, NatsLink, Outgoing, PublishFailure, Revision, Subscription, WriteFailure,
};

/// Frames that a connection takes before its users wait.
const UP_MAX: usize = 256;
/// Frames that a server holds for a client before it gives the client up.
const DOWN_MAX: usize = 20_000;
/// How fast a refusal comes back.
const REFUSED: RangeInclusive<u64> = 200..=2_000;

/// What a node sends.
pub(crate) enum Up {
    Publish(Outgoing),
    Subscribe(u64, String),
    Unsubscribe(u64),
    Probe(u64),
    Call(u64, StreamCall),
    Fin,
}

/// What a server sends.
pub(crate) enum Down {
    Message(u64, Incoming),
    Probe(u64),
    Answer(u64, StreamAnswer),
}

/// Both ends of a connection.
pub(crate) struct LinkEnds {
    pub(super) node: usize,
    pub(super) server: usize,
    server_is_open: bool,
    client_is_open: bool,
    /// Frames with the time when they are due.
    up: VecDeque<(u64, Up)>,
    down: VecDeque<(u64, Down)>,
    /// The end that belongs to the node.
    client: Arc<ClientEnd>,
    subscriptions: BTreeMap<u64, mpsc::Sender<Incoming>>,
    answers: BTreeMap<u64, oneshot::Sender<StreamAnswer>>,
    probed: watch::Sender<u64>,
    /// Subscriptions, calls and probes so far.
    count: u64,
}

struct ClientEnd {
    lost: CancellationToken,
    overruns: AtomicU64,
    /// Told when the connection takes frames again.
    has_room: Notify,
}

/// The way of one node to the model.
pub(crate) struct ModelNats {
    model: Model,
    node: usize,
    /// The only server that it uses; otherwise any.
    server: Option<usize>,
    /// The highest revision that the process has seen.
    highest: Arc<AtomicU64>,
}

/// A link of the model.
#[derive(Clone)]
pub(crate) struct ModelLink(Arc<Handle>);

struct Handle {
    model: Model,
    id: LinkId,
    client: Arc<ClientEnd>,
    probed: watch::Receiver<u64>,
    highest: Arc<AtomicU64>,
}

pub(crate) struct ModelSubscription {
    link: ModelLink,
    sid: u64,
    messages: mpsc::Receiver<Incoming>,
}

#[derive(Clone)]
pub(crate) struct ModelBucket {
    link: ModelLink,
    name: Arc<str>,
    identity: BucketIdentity,
}

impl ModelNats {
    pub(super) fn new(model: Model, node: usize, server: Option<usize>) -> Self {
        Self {
            model,
            node,
            server,
            highest: Arc::default(),
        }
    }

    /// The server that takes a new connection; how long it takes until there is none.
    fn choose(&self) -> Result<usize, std::time::Duration> {
        let mut world = self.model.world();
        let count = world.servers.len();
        let server = self.server.unwrap_or_else(|| world.rng.usize(..count));
        if world.way(self.node).is_blocked() {
            Err(world.link_timeout)
        } else if world.servers[server].is_running {
            Ok(server)
        } else {
            let micros = world.random(&REFUSED);
            Err(std::time::Duration::from_micros(micros))
        }
    }
}

impl Nats for ModelNats {
    type Link = ModelLink;

    async fn connect(&self) -> Result<ModelLink, ConnectFailure> {
        let server = match self.choose() {
            Ok(server) => server,
            Err(after) => {
                sleep(after).await;
                return Err(LinkLost.into());
            }
        };
        let (probe, probed) = watch::channel(0);
        let client = Arc::new(ClientEnd {
            lost: CancellationToken::new(),
            overruns: AtomicU64::new(0),
            has_room: Notify::new(),
        });
        let (id, round_trip) = {
            let mut world = self.model.world();
            world.links_made += 1;
            let id = world.links_made;
            let ends = LinkEnds {
                node: self.node,
                server,
                server_is_open: true,
                client_is_open: true,
                up: VecDeque::new(),
                down: VecDeque::new(),
                client: client.clone(),
                subscriptions: BTreeMap::new(),
                answers: BTreeMap::new(),
                probed: probe,
                count: 0,
            };
            world.links.insert(id, ends);
            let node = self.node;
            world.note(|| format!("link {id} of node {node} to server {server}"));
            (id, world.link_timeout)
        };
        let link = ModelLink(Arc::new(Handle {
            model: self.model.clone(),
            id,
            client,
            probed,
            highest: self.highest.clone(),
        }));
        // The handshake.
        match timeout(round_trip, link.round_trip()).await {
            Ok(Ok(())) => Ok(link),
            Ok(Err(LinkLost)) | Err(_) => Err(LinkLost.into()),
        }
    }
}

impl ModelLink {
    /// Waits until the connection takes a frame, and hands it over.
    async fn push(&self, frame: impl FnOnce(&mut LinkEnds) -> Up) -> Result<(), LinkLost> {
        let handle = &self.0;
        loop {
            let has_room = handle.client.has_room.notified();
            {
                let mut world = handle.model.world();
                let ends = world.links.get_mut(&handle.id).ok_or(LinkLost)?;
                if !ends.client_is_open {
                    return Err(LinkLost);
                }
                if ends.up.len() < UP_MAX {
                    let frame = frame(ends);
                    world.push_up(handle.id, frame);
                    return Ok(());
                }
            }
            tokio::select! {
                () = has_room => {}
                () = handle.client.lost.cancelled() => return Err(LinkLost),
            }
        }
    }

    fn see(&self, Revision(revision): Revision) {
        self.0.highest.fetch_max(revision, Ordering::Relaxed);
    }

    async fn call(&self, call: StreamCall) -> Result<StreamAnswer, BucketFailure> {
        let link_timeout = self.0.model.world().link_timeout;
        let (answer, answered) = oneshot::channel();
        let called = async {
            let pushed = self.push(|ends| {
                ends.count += 1;
                ends.answers.insert(ends.count, answer);
                Up::Call(ends.count, call)
            });
            pushed.await.map_err(|LinkLost| BucketFailure::Unknown)?;
            answered.await.map_err(|_lost| BucketFailure::Unknown)
        };
        match timeout(link_timeout, called).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(BucketFailure::Unknown),
        }
    }
}

impl NatsLink for ModelLink {
    type Subscription = ModelSubscription;
    type Bucket = ModelBucket;

    fn max_payload(&self) -> usize {
        self.0.model.world().max_payload
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishFailure> {
        if message.payload.len() > self.max_payload() {
            return Err(PublishFailure::TooLarge);
        }
        Ok(self.push(|_| Up::Publish(message)).await?)
    }

    async fn subscribe(&self, subject: Subject) -> Result<ModelSubscription, LinkLost> {
        let inbound_max = self.0.model.world().inbound_max;
        let (sender, messages) = mpsc::channel(inbound_max);
        let mut sid = 0;
        self.push(|ends| {
            ends.count += 1;
            sid = ends.count;
            ends.subscriptions.insert(sid, sender);
            Up::Subscribe(sid, subject.to_string())
        })
        .await?;
        Ok(ModelSubscription {
            link: self.clone(),
            sid,
            messages,
        })
    }

    async fn round_trip(&self) -> Result<(), LinkLost> {
        let mut number = 0;
        self.push(|ends| {
            ends.count += 1;
            number = ends.count;
            Up::Probe(number)
        })
        .await?;
        let mut probed = self.0.probed.clone();
        tokio::select! {
            heard = probed.wait_for(|probed| *probed >= number) => heard.map(drop).map_err(|_ended| LinkLost),
            () = self.0.client.lost.cancelled() => Err(LinkLost),
        }
    }

    async fn lost(&self) {
        self.0.client.lost.cancelled().await;
    }

    fn overruns(&self) -> u64 {
        self.0.client.overruns.load(Ordering::Relaxed)
    }

    async fn open_bucket(&self, config: &BucketConfig) -> Result<ModelBucket, BucketFailure> {
        let clock = {
            let world = self.0.model.world();
            let ends = world.links.get(&self.0.id).ok_or(BucketFailure::Unknown)?;
            world.clock(ends.node)
        };
        let first = clock.max(self.0.highest.load(Ordering::Relaxed) + 1);
        match self.call(StreamCall::Open(config.clone(), first)).await? {
            StreamAnswer::Opened(identity) => Ok(ModelBucket {
                link: self.clone(),
                name: config.name.as_str().into(),
                identity,
            }),
            other => Err(other.failure()),
        }
    }

    async fn last_sequence(&self, stream: &str) -> Result<Option<u64>, BucketFailure> {
        match self
            .call(StreamCall::LastSequence(stream.to_owned()))
            .await?
        {
            StreamAnswer::LastSequence(sequence) => Ok(sequence),
            other => Err(other.failure()),
        }
    }
}

impl Subscription for ModelSubscription {
    async fn next(&mut self) -> Option<Incoming> {
        self.messages.recv().await
    }
}

impl Drop for ModelSubscription {
    fn drop(&mut self) {
        let Handle { model, id, .. } = &*self.link.0;
        let mut world = model.world();
        if let Some(ends) = world.links.get_mut(id) {
            ends.subscriptions.remove(&self.sid);
            world.push_up(*id, Up::Unsubscribe(self.sid));
        }
    }
}

impl Bucket for ModelBucket {
    fn identity(&self) -> &BucketIdentity {
        &self.identity
    }

    async fn get(&self, key: &str) -> Result<Entry, BucketFailure> {
        let call = StreamCall::Get(self.name.clone(), key.to_owned());
        match self.link.call(call).await? {
            StreamAnswer::Got(entry) => {
                self.link.see(entry.revision);
                Ok(entry)
            }
            other => Err(other.failure()),
        }
    }

    async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        over: Revision,
    ) -> Result<Revision, WriteFailure> {
        let call = StreamCall::Write(self.name.clone(), key.to_owned(), value, over);
        match self.link.call(call).await? {
            StreamAnswer::Written(revision) => {
                self.link.see(revision);
                Ok(revision)
            }
            StreamAnswer::Conflict => Err(WriteFailure::Conflict),
            other => Err(other.failure().into()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.model.world().close_client(self.id);
    }
}

impl super::Way {
    pub(super) fn is_blocked(&self) -> bool {
        self.cut.is_some() || self.paused.is_some()
    }
}

impl World {
    pub(super) fn links_of(&self, node: usize) -> Vec<LinkId> {
        let of_node = self.links.iter().filter(|(_, ends)| ends.node == node);
        of_node.map(|(link, _)| *link).collect()
    }

    pub(super) fn is_open_at_server(&self, link: LinkId) -> bool {
        self.links
            .get(&link)
            .is_some_and(|ends| ends.server_is_open)
    }

    fn push_up(&mut self, link: LinkId, frame: Up) {
        let Some(node) = self.links.get(&link).map(|ends| ends.node) else {
            return;
        };
        let delay = self.way(node).delay.clone();
        let due = self.now + self.random(&delay);
        let Some(ends) = self.links.get_mut(&link) else {
            return;
        };
        let due = due.max(ends.up.back().map_or(0, |(last, _)| *last));
        ends.up.push_back((due, frame));
        self.at(due, Event::Up(link));
    }

    pub(super) fn push_down(&mut self, link: LinkId, frame: Down) {
        let Some(node) = self.links.get(&link).map(|ends| ends.node) else {
            return;
        };
        let delay = self.way(node).delay.clone();
        let due = self.now + self.random(&delay);
        let Some(ends) = self.links.get_mut(&link) else {
            return;
        };
        if ends.down.len() >= DOWN_MAX {
            self.note(|| format!("slow consumer: link {link}"));
            return self.end_at_server(link);
        }
        let due = due.max(ends.down.back().map_or(0, |(last, _)| *last));
        ends.down.push_back((due, frame));
        self.at(due, Event::Down(link));
    }

    /// Takes what is due at the server of a link.
    pub(super) fn flush_up(&mut self, link: LinkId) {
        loop {
            let Some(ends) = self.links.get_mut(&link) else {
                return;
            };
            // What a paused process has written before is in its socket, and goes on.
            let is_cut = self
                .ways
                .get(&ends.node)
                .is_some_and(|way| way.cut.is_some());
            if is_cut || !ends.server_is_open {
                return;
            }
            match ends.up.front() {
                Some((due, _)) if *due <= self.now => {}
                _ => return,
            }
            let Some((_, frame)) = ends.up.pop_front() else {
                return;
            };
            ends.client.has_room.notify_one();
            self.on_up(link, frame);
        }
    }

    /// Takes what is due at the node of a link.
    pub(super) fn flush_down(&mut self, link: LinkId) {
        loop {
            let Some(ends) = self.links.get_mut(&link) else {
                return;
            };
            let is_blocked = self
                .ways
                .get(&ends.node)
                .is_some_and(super::Way::is_blocked);
            if is_blocked || !ends.client_is_open {
                return;
            }
            match ends.down.front() {
                Some((due, _)) if *due <= self.now => {}
                _ => return,
            }
            let Some((_, frame)) = ends.down.pop_front() else {
                return;
            };
            ends.take(frame);
        }
    }

    /// Gives the frames that were held back a way again.
    pub(super) fn flush_links(&mut self, node: usize) {
        for link in self.links_of(node) {
            self.flush_up(link);
            self.flush_down(link);
            let is_reset = self
                .links
                .get(&link)
                .is_some_and(|ends| !ends.server_is_open && ends.client_is_open);
            if is_reset {
                self.reset_client(link);
            }
        }
    }

    /// Both sides of each link of a node will find that it is silent.
    pub(super) fn watch_links(&mut self, node: usize, cut: u64) {
        let client_patience = u64::try_from(self.link_timeout.as_micros()).unwrap_or(u64::MAX) * 3;
        for link in self.links_of(node) {
            let patience = self.random(&super::STALE);
            self.after(patience, Event::ServerStale(link, cut));
            self.after(client_patience, Event::ClientStale(link, cut));
        }
    }

    /// Whether nothing comes to the node of a link.
    pub(super) fn is_blocked(&self, link: LinkId) -> bool {
        let node = self.links.get(&link).map(|ends| ends.node);
        let way = node.and_then(|node| self.ways.get(&node));
        way.is_none_or(super::Way::is_blocked)
    }

    /// Whether a link is silent because of this cut or pause.
    pub(super) fn is_silent(&self, link: LinkId, cut: u64) -> bool {
        let way = self
            .links
            .get(&link)
            .and_then(|ends| self.ways.get(&ends.node));
        way.is_some_and(|way| [way.cut, way.paused].contains(&Some(cut)))
    }

    /// The server ends a link; the node learns of it unless its network is cut.
    pub(super) fn end_at_server(&mut self, link: LinkId) {
        let Some(ends) = self.links.get_mut(&link) else {
            return;
        };
        if !std::mem::replace(&mut ends.server_is_open, false) {
            return;
        }
        ends.up.clear();
        let (server, node) = (ends.server, ends.node);
        self.unsubscribe_all(server, link);
        self.forget_if_closed(link);
        if !self.way(node).is_blocked() {
            // Behind what is on its way: a reset may come before that, but an end in order comes behind.
            let delay = self.way(node).delay.clone();
            let delay = self.random(&delay);
            self.after(delay, Event::Reset(link));
        }
    }

    /// The node learns that its link has ended.
    pub(super) fn reset_client(&mut self, link: LinkId) {
        let Some(ends) = self.links.get_mut(&link) else {
            return;
        };
        if self
            .ways
            .get(&ends.node)
            .is_some_and(|way| way.paused.is_some())
        {
            return;
        }
        if std::mem::replace(&mut ends.client_is_open, false) {
            ends.end_client();
            self.note(|| format!("link {link} is lost"));
            self.end_at_server(link);
        }
    }

    /// The node gives a link up. What it has handed over leaves in part, and late.
    pub(super) fn close_client(&mut self, link: LinkId) {
        let Some(ends) = self.links.get_mut(&link) else {
            return;
        };
        if std::mem::replace(&mut ends.client_is_open, false) {
            ends.end_client();
            ends.down.clear();
            let sent = ends.up.len();
            self.note(|| format!("link {link} is given up"));
            let kept = self.rng.usize(..=sent);
            if let Some(ends) = self.links.get_mut(&link) {
                ends.up.truncate(kept);
            }
            self.push_up(link, Up::Fin);
        }
        self.forget_if_closed(link);
    }

    fn forget_if_closed(&mut self, link: LinkId) {
        let is_closed = self
            .links
            .get(&link)
            .is_some_and(|ends| !ends.client_is_open && !ends.server_is_open);
        if is_closed {
            self.links.remove(&link);
        }
    }
}

impl LinkEnds {
    /// A frame has come to the node.
    fn take(&mut self, frame: Down) {
        match frame {
            Down::Message(sid, message) => {
                if let Some(subscription) = self.subscriptions.get(&sid)
                    && let Err(mpsc::error::TrySendError::Full(_)) = subscription.try_send(message)
                {
                    self.client.overruns.fetch_add(1, Ordering::Relaxed);
                }
            }
            Down::Probe(number) => {
                self.probed.send_replace(number);
            }
            Down::Answer(token, answer) => {
                if let Some(waits) = self.answers.remove(&token) {
                    // Nobody waits any more if the call has timed out.
                    let _late = waits.send(answer).is_err();
                }
            }
        }
    }

    fn end_client(&mut self) {
        self.client.lost.cancel();
        self.subscriptions.clear();
        self.answers.clear();
    }
}
