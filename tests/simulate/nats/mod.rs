//! NATS in memory, for tests and the simulator: servers, the ways of nodes to them, and what can go wrong with
//! either. Everything happens at a time of the model's own clock, in microseconds, and in an order that a seed
//! decides. Whoever owns the model moves its clock: a task on tokio's paused time ([`Model::run`]), or the simulator.
//!
//! The model is one machine behind one lock. A frame that a node sends waits in the queue of its link until it is
//! due at the server, and the answer likewise, so that order is kept as TCP keeps it.

#![allow(dead_code, reason = "not every test needs every failure")]

mod jetstream;
mod link;
mod server;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use jetstream::{JetStream, StreamCall};
pub(crate) use link::ModelNats;
use link::{LinkEnds, Up};
use server::{RouteFrame, Server};

use super::{BucketConfig, Outgoing, Revision};
use crate::cluster::record::{Counter, Record};

/// When the model's clock began, in microseconds since 1970.
pub(crate) const BEGIN: u64 = 1_800_000_000_000_000;

/// How long a server or a client waits for a silent peer: `ping_interval` and `ping_max` of the documented
/// configuration, and as long again where the ping has just gone out.
const STALE: RangeInclusive<u64> = 5_000_000..=10_000_000;
/// How long the servers of a cluster wait for a silent leader, and how long a leader goes on that hears nobody.
const ELECTION: RangeInclusive<u64> = 4_000_000..=9_000_000;
const STEP_DOWN: u64 = 10_000_000;

pub(crate) type LinkId = u64;

/// A handle on the model.
#[derive(Clone)]
pub(crate) struct Model {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

struct World {
    now: u64,
    rng: fastrand::Rng,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Events so far, which orders those of one moment.
    order: u64,
    links: BTreeMap<LinkId, LinkEnds>,
    links_made: u64,
    ways: BTreeMap<usize, Way>,
    servers: Vec<Server>,
    /// What is on its way from one server to another.
    routes: BTreeMap<(usize, usize), VecDeque<(u64, RouteFrame)>>,
    /// Pairs of servers between which nothing passes, with the number of the cut.
    cut_routes: BTreeMap<(usize, usize), u64>,
    jetstream: JetStream,
    /// Delay of one way between two servers, and from a server to its disk.
    inner_delay: RangeInclusive<u64>,
    cuts: u64,
    link_timeout: Duration,
    inbound_max: usize,
    max_payload: usize,
    /// What a node has published last.
    last_message: Option<Outgoing>,
    /// What has happened, if it is recorded.
    trace: Option<String>,
    changed: Arc<Notify>,
}

/// The network between a node and all servers.
#[derive(Clone, Debug)]
struct Way {
    /// Of one direction, microseconds.
    delay: RangeInclusive<u64>,
    /// Nothing passes; the number of the cut.
    cut: Option<u64>,
    /// The node reads and writes nothing; the number of the pause.
    paused: Option<u64>,
    /// By how much the clock of the node is ahead, microseconds.
    clock_ahead: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Something is due at the server, from this link.
    Up(LinkId),
    /// Something is due at the node, on this link.
    Down(LinkId),
    /// The node learns that its link has ended.
    Reset(LinkId),
    /// The server gives a link up if it is silent still because of this cut.
    ServerStale(LinkId, u64),
    /// So does the node's side of it.
    ClientStale(LinkId, u64),
    /// Something is due at the second server, from the first.
    Route(usize, usize),
    /// Two servers give up the connection between them if it is silent still because of this cut.
    RouteStale(usize, usize, u64),
    /// A call has come to the leader of JetStream.
    Apply(u64),
    /// The servers have waited long enough for their leader.
    Elect,
}

impl Model {
    pub(crate) fn new(servers: usize, seed: u64) -> Self {
        let changed = Arc::new(Notify::new());
        let world = World {
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            events: BinaryHeap::new(),
            order: 0,
            links: BTreeMap::new(),
            links_made: 0,
            ways: BTreeMap::new(),
            servers: (0..servers).map(|_| Server::running()).collect(),
            routes: BTreeMap::new(),
            cut_routes: BTreeMap::new(),
            jetstream: JetStream::new(),
            inner_delay: 50..=500,
            cuts: 0,
            link_timeout: Duration::from_secs(2),
            inbound_max: 4096,
            max_payload: 1024 * 1024,
            last_message: None,
            trace: None,
            changed: changed.clone(),
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            changed,
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock()
    }

    /// The way of a node to NATS.
    pub(crate) fn nats(&self, node: usize) -> ModelNats {
        self.add_node(node);
        ModelNats::new(self.clone(), node, None)
    }

    /// The way of a node that connects to one server only.
    pub(crate) fn nats_at(&self, node: usize, server: usize) -> ModelNats {
        self.add_node(node);
        ModelNats::new(self.clone(), node, Some(server))
    }

    /// Adds the network of a node.
    pub(crate) fn add_node(&self, node: usize) {
        self.world().ways.entry(node).or_insert(Way {
            delay: 100..=1000,
            cut: None,
            paused: None,
            clock_ahead: 0,
        });
    }

    /// Sets the limits that the settings of the nodes name: how long a call waits, and how many messages a
    /// subscription holds.
    pub(crate) fn limit(&self, link_timeout: Duration, inbound_max: usize) {
        let mut world = self.world();
        world.link_timeout = link_timeout;
        world.inbound_max = inbound_max;
    }

    /// Sets how long a deleted entry keeps its revision.
    pub(crate) fn keep_deleted(&self, max_age: Duration) {
        self.world().jetstream.deleted_max_age = max_age;
    }

    /// Moves the clock for as long as it is polled, by tokio's.
    pub(crate) async fn run(self) {
        let begin = tokio::time::Instant::now();
        let micros = |instant: tokio::time::Instant| {
            u64::try_from((instant - begin).as_micros()).unwrap_or(u64::MAX)
        };
        loop {
            let changed = self.changed.notified();
            self.advance_to(micros(tokio::time::Instant::now()));
            let next = self.next_event();
            let until = next.map(|next| begin + Duration::from_micros(next));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until.unwrap_or(begin)), if until.is_some() => {}
            }
        }
    }

    /// When something happens next.
    pub(crate) fn next_event(&self) -> Option<u64> {
        let world = self.world();
        world.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Moves the clock, and does everything that is due by then.
    pub(crate) fn advance_to(&self, now: u64) {
        let mut world = self.world();
        while let Some(Reverse((at, ..))) = world.events.peek()
            && *at <= now
        {
            let Some(Reverse((at, _, event))) = world.events.pop() else {
                break;
            };
            world.now = world.now.max(at);
            world.on_event(event);
        }
        world.now = world.now.max(now);
    }

    /// Records what happens from now on.
    pub(crate) fn record(&self) {
        self.world().trace = Some(String::new());
    }

    /// Takes what was recorded.
    pub(crate) fn take_trace(&self) -> String {
        let mut world = self.world();
        world.trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Sets the delay of each direction between a node and NATS.
    pub(crate) fn delay(&self, node: usize, delay: RangeInclusive<Duration>) {
        let micros = |delay: &Duration| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let delay = micros(delay.start())..=micros(delay.end());
        self.world().way(node).delay = delay;
    }

    /// Sets by how much the clock of a node is ahead.
    pub(crate) fn set_clock(&self, node: usize, ahead: i64) {
        self.world().way(node).clock_ahead = ahead;
    }

    /// The wall clock of a node: microseconds since 1970.
    pub(crate) fn clock(&self, node: usize) -> u64 {
        self.world().clock(node)
    }

    /// Lets nothing pass between a node and NATS, while connections stay open.
    pub(crate) fn cut(&self, node: usize) {
        let mut world = self.world();
        world.note(|| format!("cut node {node}"));
        let cut = world.next_cut();
        world.way(node).cut = Some(cut);
        world.watch_links(node, cut);
    }

    /// Lets everything pass again, first what was held back.
    pub(crate) fn heal(&self, node: usize) {
        let mut world = self.world();
        world.note(|| format!("heal node {node}"));
        world.way(node).cut = None;
        world.flush_links(node);
    }

    /// The node does not run: it reads nothing.
    pub(crate) fn pause(&self, node: usize) {
        let mut world = self.world();
        world.note(|| format!("pause node {node}"));
        let cut = world.next_cut();
        world.way(node).paused = Some(cut);
        world.watch_links(node, cut);
    }

    /// The node runs again.
    pub(crate) fn resume(&self, node: usize) {
        let mut world = self.world();
        world.note(|| format!("resume node {node}"));
        world.way(node).paused = None;
        world.flush_links(node);
    }

    /// Breaks the connections of a node, which may connect again at once.
    pub(crate) fn reset(&self, node: usize) {
        let mut world = self.world();
        world.note(|| format!("reset node {node}"));
        for link in world.links_of(node) {
            world.end_at_server(link);
        }
    }

    /// The process of the node has ended without a word.
    pub(crate) fn crash(&self, node: usize) {
        let mut world = self.world();
        world.note(|| format!("crash node {node}"));
        world.way(node).paused = None;
        for link in world.links_of(node) {
            world.close_client(link);
        }
    }

    /// Stops a server. What it had not synced is lost if `loses_power` is true.
    pub(crate) fn stop(&self, server: usize, loses_power: bool) {
        self.world().stop_server(server, loses_power);
    }

    pub(crate) fn is_running(&self, server: usize) -> bool {
        self.world().servers[server].is_running
    }

    /// What nodes subscribe to.
    pub(crate) fn patterns(&self) -> Vec<String> {
        let world = self.world();
        let servers = world.servers.iter();
        servers.flat_map(server::Server::patterns).collect()
    }

    /// The table of ids: each with the number of the node where it is.
    pub(crate) fn places(&self, bucket: &str) -> BTreeMap<u64, u64> {
        let world = self.world();
        let entries = world.jetstream.entries(bucket, world.now).into_iter();
        let place = |(key, value): (String, Bytes)| {
            let record = Record::decode(&value).expect("only nodes write to the table");
            (key.parse().expect("a key is an id"), record.node.0)
        };
        entries.map(place).collect()
    }

    /// The block of ids that is leased next.
    pub(crate) fn next_block(&self, bucket: &str) -> Option<u64> {
        let world = self.world();
        let (_, value) = world.jetstream.entries(bucket, world.now).pop()?;
        Some(Counter::decode(&value)?.next)
    }

    /// Makes a bucket that begins with this revision.
    pub(in crate::cluster) fn make_bucket(&self, config: &BucketConfig, first: Revision) {
        let mut world = self.world();
        let now = world.now;
        world.jetstream.make(config, first.0, now);
    }

    /// Starts a server again.
    pub(crate) fn start(&self, server: usize) {
        self.world().start_server(server);
    }

    /// Removes what the servers have stored.
    pub(crate) fn forget(&self) {
        let mut world = self.world();
        world.note(|| "forget the store".to_owned());
        world.jetstream.forget();
    }

    /// Deletes a bucket.
    pub(crate) fn delete_bucket(&self, name: &str) {
        let mut world = self.world();
        world.note(|| format!("delete bucket {name}"));
        world.jetstream.delete(name);
    }

    /// Lets nothing pass between two servers.
    pub(crate) fn cut_servers(&self, one: usize, other: usize) {
        self.world().cut_route(one, other);
    }

    /// Lets everything pass again between two servers.
    pub(crate) fn heal_servers(&self, one: usize, other: usize) {
        self.world().heal_route(one, other);
    }

    /// Sends a message of a stranger.
    pub(crate) fn forge(&self, server: usize, subject: &str, payload: Bytes) {
        let mut world = self.world();
        world.note(|| format!("forged message to {subject}"));
        world.publish(
            server,
            None,
            Outgoing {
                subject: Subject::from(subject.to_owned()),
                reply: None,
                traceparent: None,
                tracestate: None,
                payload,
            },
        );
    }

    /// Sends the last message of a node once more, as a node of another version of the protocol writes it.
    pub(crate) fn echo(&self, version: u8) {
        let mut world = self.world();
        let Some(mut message) = world.last_message.clone() else {
            return;
        };
        let mut payload = message.payload.to_vec();
        if let Some(first) = payload.first_mut() {
            *first = version;
        }
        message.payload = payload.into();
        world.note(|| format!("echo of version {version} to {}", message.subject));
        world.publish(0, None, message);
    }

    /// Subscribes a stranger to a subject, on every server.
    pub(crate) fn listen(&self, pattern: &str) {
        self.world().listen(pattern);
    }
}

impl World {
    fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            let written = writeln!(trace, "{now} nats: {}", what());
            written.expect("a String takes all that is written to it");
        }
    }

    fn way(&mut self, node: usize) -> &mut Way {
        self.ways.get_mut(&node).expect("the node has a way")
    }

    fn clock(&self, node: usize) -> u64 {
        let ahead = self.ways.get(&node).map_or(0, |way| way.clock_ahead);
        (BEGIN + self.now).saturating_add_signed(ahead)
    }

    fn next_cut(&mut self) -> u64 {
        self.cuts += 1;
        self.cuts
    }

    fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events
            .push(Reverse((at.max(self.now), self.order, event)));
        self.changed.notify_one();
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn random(&mut self, range: &RangeInclusive<u64>) -> u64 {
        self.rng.u64(range.clone())
    }

    #[allow(clippy::needless_pass_by_value, reason = "an event happens once")]
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Up(link) => self.flush_up(link),
            Event::Down(link) => self.flush_down(link),
            Event::Reset(link) => {
                if !self.is_blocked(link) {
                    self.reset_client(link);
                }
            }
            Event::ServerStale(link, cut) => {
                if self.is_silent(link, cut) {
                    self.note(|| format!("server gives up link {link}"));
                    self.end_at_server(link);
                }
            }
            Event::ClientStale(link, cut) => {
                if self.is_silent(link, cut) {
                    self.reset_client(link);
                }
            }
            Event::Route(from, to) => self.flush_route(from, to),
            Event::RouteStale(one, other, cut) => self.on_route_stale(one, other, cut),
            Event::Apply(call) => self.apply(call),
            Event::Elect => self.elect(),
        }
    }

    /// A frame of a node has come to its server.
    fn on_up(&mut self, link: LinkId, frame: Up) {
        let Some(server) = self.links.get(&link).map(|ends| ends.server) else {
            return;
        };
        match frame {
            Up::Publish(message) => {
                self.last_message = Some(message.clone());
                self.publish(server, Some(link), message);
            }
            Up::Subscribe(sid, pattern) => self.subscribe(server, link, sid, pattern),
            Up::Unsubscribe(sid) => self.unsubscribe(server, link, sid),
            Up::Probe(number) => self.push_down(link, link::Down::Probe(number)),
            Up::Call(token, call) => self.call(server, (link, token), call),
            Up::Fin => self.end_at_server(link),
        }
    }

    fn call(&mut self, server: usize, from: (LinkId, u64), call: StreamCall) {
        let delay = self.random(&self.inner_delay.clone());
        let number = self.jetstream.arrive(server, from, call);
        self.after(delay, Event::Apply(number));
    }
}
