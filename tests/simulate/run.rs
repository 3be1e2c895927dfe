//! One run: nodes, persons and NATS, in steps of one clock. Nothing in it depends on anything but the seed and the
//! schedule.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::checks;
use super::frames::{Frame, encode};
use super::node::{Handshake, Node};
use super::oracle::{Broken, Oracle};
use super::person::{Connection, ConnectionId, ConnectionStage, Person};
use super::schedule::{Action, Event, Loss, Shape};
use super::settings::settings;
use super::socket;
use crate::cluster::model::Model;
use crate::config::Settings;
use crate::ledger::LedgerTotals;

const SECOND: u64 = 1_000_000;
pub(super) const BUCKETS: [&str; 3] = [
    "switchboard_2_ids",
    "switchboard_2_nodes",
    "switchboard_2_blocks",
];
/// How long a client waits for the answer to its handshake, and for a node that does not run.
const PATIENCE: u64 = 5 * SECOND;
/// The time from the last fault until everybody is connected, and can reach everybody.
const SETTLES: u64 = 20 * SECOND;
/// The time from a probe until it has its outcome.
pub(super) const PROBED: u64 = 10 * SECOND;

/// How long NATS knows that an entry was deleted.
const DELETED_MAX_AGE: Duration = Duration::from_secs(15);

/// The longest step while all settles.
const SETTLING_TICK_MAX: u64 = 30_000;

/// How a run went.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) broken: Option<(u64, Broken)>,
    pub(super) trace: String,
    pub(super) delivered: u64,
    pub(super) unknown: u64,
    pub(super) written: u64,
}

pub(super) struct Run {
    pub(super) shape: Shape,
    pub(super) settings: Settings,
    pub(super) rng: fastrand::Rng,
    pub(super) now: u64,
    pub(super) nodes: Vec<NodeSlot>,
    pub(super) persons: Vec<Person>,
    pub(super) connections: Vec<Connection>,
    pub(super) oracle: Oracle,
    /// Messages so far, whose last number is that of the last one.
    pub(super) messages: u64,
    trace: Option<String>,
    /// The longest step.
    tick_max: u64,
    pub(super) model: Model,
    /// What ends a fault, and when.
    undo: BTreeMap<(u64, u64), Undo>,
    faults: u64,
    /// When something was wrong last.
    pub(super) faulty_at: u64,
    /// Two open connections with one id, and since when.
    pub(super) twins: BTreeMap<(ConnectionId, ConnectionId), u64>,
    /// Connections that have not ended.
    pub(super) live: Vec<ConnectionId>,
    /// NATS has lost something that it had confirmed.
    pub(super) has_lost: bool,
    /// It may be that a later write has a lower revision than an earlier one, because NATS has lost power, or a store
    /// that a node had made whose clock was wrong.
    pub(super) has_lost_order: bool,
    has_wrong_clocks: bool,
}

/// A message of which something is expected, as long as both connections last.
pub(super) struct Probe {
    pub(super) message: u64,
    pub(super) between: [ConnectionId; 2],
}

/// What ends a fault.
#[derive(Clone, Debug)]
enum Undo {
    Heal(usize),
    Fast(usize),
    Start(usize, Loss),
    HealServers(usize, usize),
}

/// The place of a node, and what its former processes have done.
pub(super) struct NodeSlot {
    pub(super) node: Option<Node>,
    pub(super) processes: u64,
    pub(super) starts_at: Option<u64>,
    pub(super) paused_until: Option<u64>,
    pub(super) paused_at: u64,
    /// When its drain began.
    drains_since: Option<u64>,
    pub(super) clock_ahead: i64,
    /// Its counters when its ledger was looked at last.
    pub(super) counted: Option<LedgerTotals>,
    /// Sums of the processes that have ended.
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Runs a schedule.
pub(super) fn run(seed: u64, shape: &Shape, events: &[Event], is_traced: bool) -> Report {
    // What the code of the relay draws.
    fastrand::seed(seed);
    let mut run = Run::new(seed, shape, is_traced);
    let all = catch_unwind(AssertUnwindSafe(|| run.all(events)));
    let all = all.unwrap_or_else(|_| Err("a panic".to_owned()));
    let broken = all.err().map(|broken| (run.now, broken));
    if let Some((at, broken)) = &broken {
        run.note(format_args!("broken at {at}: {broken}"));
    }
    run.end();
    Report {
        broken,
        trace: run.trace.take().unwrap_or_default(),
        delivered: run.oracle.delivered,
        unknown: run.oracle.unknown,
        written: run.messages,
    }
}

impl Run {
    fn new(seed: u64, shape: &Shape, is_traced: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let settings = settings(shape, &mut rng);
        let nodes = (0..shape.nodes).map(|_| NodeSlot::new()).collect();
        let persons = (0..shape.persons).map(|_| Person::new()).collect();
        let mut run = Self {
            shape: shape.clone(),
            settings,
            rng,
            now: 0,
            nodes,
            persons,
            connections: Vec::new(),
            oracle: Oracle::default(),
            messages: 0,
            trace: is_traced.then(String::new),
            tick_max: shape.tick_max,
            model: Model::new(shape.servers, seed),
            undo: BTreeMap::new(),
            faults: 0,
            faulty_at: 0,
            twins: BTreeMap::new(),
            live: Vec::new(),
            has_lost: false,
            has_lost_order: false,
            has_wrong_clocks: false,
        };
        let cluster = &run.settings.cluster;
        let inbound = cluster.inbound_messages as usize;
        run.model.limit(cluster.link_timeout, inbound);
        // Above the time for which a write can be late, as it is for real.
        run.model.keep_deleted(DELETED_MAX_AGE);
        if is_traced {
            run.model.record();
        }
        for node in 0..shape.nodes {
            run.model.add_node(node);
            run.start_node(node);
        }
        run
    }

    fn all(&mut self, events: &[Event]) -> Result<(), Broken> {
        let mut events = events.iter().peekable();
        while self.now < self.shape.duration {
            self.step()?;
            while let Some(event) = events.next_if(|event| event.at <= self.now) {
                self.act(&event.action);
            }
        }
        self.heal();
        // Little happens from here on.
        self.tick_max = self.tick_max.max(SETTLING_TICK_MAX);
        self.steps(SETTLES)?;
        self.eventually(checks::all_are_connected)?;
        // A node may remember that a user is on a node that has died since. Nothing tells it but a message.
        let first = self.probes()?;
        checks::are_settled(self, &first)?;
        let second = self.probes()?;
        checks::are_settled(self, &second)?;
        checks::are_delivered(self, &second)?;
        self.eventually(checks::at_quiet)
    }

    /// Checks something that need not hold in the moment in which a user moves because of its connection's age.
    fn eventually(&mut self, check: fn(&Self) -> Result<(), Broken>) -> Result<(), Broken> {
        for _ in 0..5 {
            if check(self).is_ok() {
                return Ok(());
            }
            self.steps(SECOND)?;
        }
        check(self)
    }

    /// Everybody writes to everybody, and waits for the outcomes.
    fn probes(&mut self) -> Result<Vec<Probe>, Broken> {
        let mut probes = Vec::new();
        for person in 0..self.persons.len() {
            probes.extend(self.probe(person));
            self.steps(SECOND / 2)?;
        }
        self.steps(PROBED)?;
        Ok(probes)
    }

    fn steps(&mut self, micros: u64) -> Result<(), Broken> {
        let end = self.now + micros;
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Moves the clock, and lets all do what they do until then.
    fn step(&mut self) -> Result<(), Broken> {
        self.now += self.rng.u64(1_000..=self.tick_max);
        // Before the nodes, so that NATS is never behind a node that counts on its time.
        self.undo_until(self.now);
        self.model.advance_to(self.now);
        self.nodes_step()?;
        self.note_model();
        if self.is_faulty() {
            self.faulty_at = self.now;
        }
        for connection in self.live.clone() {
            self.handshake_step(connection);
        }
        // All messages that were written in this step come before all outcomes, which may speak of them.
        let mut frames = Vec::new();
        for connection in self.live.clone() {
            if self.connections[connection].is_open() {
                let written = self.connections[connection].take_frames();
                frames.extend(written.into_iter().map(|frame| (connection, frame)));
            }
        }
        let (outcomes, others): (Vec<_>, Vec<_>) = frames
            .into_iter()
            .partition(|(_, frame)| matches!(frame, Frame::Outcome { .. }));
        for (connection, frame) in others.into_iter().chain(outcomes) {
            self.note(format_args!("connection {connection} gets {frame:?}"));
            checks::on_frame(self, connection, &frame)?;
            self.connections[connection].frames.push_back(frame);
        }
        for connection in self.live.clone() {
            if self.connections[connection].is_open() {
                self.open_step(connection);
            }
        }
        let connections = &self.connections;
        let has_ended = |id: &ConnectionId| connections[*id].stage == ConnectionStage::Ended;
        self.live.retain(|id| !has_ended(id));
        for person in 0..self.persons.len() {
            self.person_step(person);
        }
        checks::always(self)
    }

    fn nodes_step(&mut self) -> Result<(), Broken> {
        let first = self.rng.usize(..self.nodes.len());
        for index in 0..self.nodes.len() {
            let index = (first + index) % self.nodes.len();
            let now = self.now;
            let slot = &mut self.nodes[index];
            if slot.paused_until.is_some_and(|until| until <= now) {
                slot.paused_until = None;
                self.model.resume(index);
                let slot = &mut self.nodes[index];
                if let Some(node) = &slot.node {
                    // By one short of the present, so that the node runs on from there.
                    node.jump_to(now - 1_000);
                    self.note(format_args!("node {index} runs again"));
                }
            }
            let slot = &mut self.nodes[index];
            if let (Some(node), None) = (&slot.node, slot.paused_until) {
                node.run_until(now);
                if node.has_ended() {
                    let (place, since) = (node.number(), slot.drains_since);
                    self.note(format_args!("node {index} has drained"));
                    // Where nothing else was wrong, the others had answered in time.
                    if let Some(place) = place
                        && since.is_some_and(|since| self.faulty_at + PROBED < since)
                    {
                        checks::has_left_nothing(self, place)?;
                    }
                    self.end_node(index);
                    self.nodes[index].starts_at = Some(now + self.rng.u64(..SECOND));
                }
            }
            if self.nodes[index].starts_at.is_some_and(|at| at <= now) {
                self.start_node(index);
            }
        }
        Ok(())
    }

    fn start_node(&mut self, index: usize) {
        let seed = self.rng.u64(..);
        let slot = &mut self.nodes[index];
        let nats = self.shape.has_cluster.then(|| self.model.nats(index));
        let node = Node::start(&self.settings, nats, (seed, self.now));
        node.set_clock(slot.clock_ahead);
        slot.node = Some(node);
        slot.counted = None;
        slot.drains_since = None;
        slot.starts_at = None;
        slot.processes += 1;
        let process = slot.processes;
        self.note(format_args!("node {index} starts, process {process}"));
    }

    /// A process ends, and its connections with it.
    fn end_node(&mut self, index: usize) {
        if self.shape.has_cluster {
            self.model.crash(index);
        }
        let slot = &mut self.nodes[index];
        if let Some(node) = slot.node.take() {
            let ledger = node.ledger();
            slot.sent += ledger.cluster_sent;
            slot.received += ledger.cluster_received;
            slot.paused_until = None;
        }
    }

    fn act(&mut self, action: &Action) {
        self.note(format_args!("{action:?}"));
        match *action {
            Action::Connect { person, node } => self.connect(person, node, true),
            Action::ConnectAnew { person, node } => self.connect(person, node, false),
            Action::GiveUp { person } => self.give_up(person),
            Action::Leave { person } => self.leave(person),
            Action::Reset { person } => self.reset(person),
            Action::Stall { person, micros } => {
                self.persons[person].stalls_until = self.now + micros;
            }
            Action::Send {
                from,
                to,
                count,
                bytes,
            } => {
                if let Some(recipient) = self.persons[to].id {
                    for _ in 0..count {
                        let wants_outcome = self.rng.u8(..4) > 0;
                        self.send(from, recipient, bytes, wants_outcome);
                    }
                }
            }
            Action::SendNowhere { from } => {
                let recipient = self.rng.u64(1_000_000..2_000_000);
                self.send(from, recipient, 10, true);
            }
            Action::Malformed { from } => {
                if let Some(connection) = self.open_of(from) {
                    self.connections[connection]
                        .socket
                        .send(&encode(1, b"{\"x\":"));
                }
            }
            Action::Drain { node } => self.drain(node),
            Action::Crash { node, micros } => {
                if self.nodes[node].node.is_some() {
                    self.end_node(node);
                    self.nodes[node].starts_at = Some(self.now + micros);
                }
            }
            Action::Pause { node, micros } => {
                let slot = &mut self.nodes[node];
                if slot.node.is_some() && slot.paused_until.is_none() {
                    slot.paused_at = self.now;
                    slot.paused_until = Some(self.now + micros);
                    if self.shape.has_cluster {
                        self.model.pause(node);
                    }
                }
            }
            Action::Clock { node, ahead } => {
                self.has_wrong_clocks = true;
                self.has_lost_order |= self.has_lost;
                let slot = &mut self.nodes[node];
                slot.clock_ahead = ahead;
                if let Some(running) = &slot.node {
                    running.set_clock(ahead);
                }
                if self.shape.has_cluster {
                    self.model.set_clock(node, ahead);
                }
            }
            ref of_nats => self.act_on_nats(of_nats),
        }
    }

    fn drain(&mut self, node: usize) {
        let slot = &mut self.nodes[node];
        if let Some(node) = &mut slot.node {
            node.drain();
            slot.drains_since.get_or_insert(self.now);
        }
    }

    fn act_on_nats(&mut self, action: &Action) {
        match *action {
            Action::Cut { node, micros } => {
                self.model.cut(node);
                self.undo_after(micros, Undo::Heal(node));
            }
            Action::Break { node } => self.model.reset(node),
            Action::Slow {
                node,
                delay,
                micros,
            } => {
                let delay = Duration::from_micros(delay);
                self.model.delay(node, delay / 2..=delay);
                self.undo_after(micros, Undo::Fast(node));
            }
            Action::Stop {
                server,
                micros,
                loses,
            } => {
                if self.model.is_running(server) {
                    // The servers of a cluster have each other's.
                    let may_lose = self.shape.servers == 1;
                    self.has_lost |= may_lose && loses != Loss::Nothing;
                    self.has_lost_order |= may_lose && loses == Loss::Last;
                    self.model.stop(server, loses == Loss::Last);
                    self.undo_after(micros, Undo::Start(server, loses));
                }
            }
            Action::DeleteBucket { bucket } => {
                self.has_lost = true;
                self.model.delete_bucket(BUCKETS[bucket]);
            }
            Action::CutServers { one, other, micros } => {
                if one != other {
                    self.model.cut_servers(one, other);
                    self.undo_after(micros, Undo::HealServers(one, other));
                }
            }
            Action::Listen => self.model.listen(">"),
            Action::Forge { .. } => self.forge(),
            ref other => unreachable!("{other:?} is not of NATS"),
        }
        self.has_lost_order |= self.has_lost && self.has_wrong_clocks;
        // A broken connection or a lost bucket takes a while to be noticed.
        self.faulty_at = self.now;
    }

    /// Sends something odd to where a node listens.
    fn forge(&mut self) {
        let patterns = self.model.patterns();
        let nodes: Vec<_> = patterns
            .iter()
            .filter_map(|pattern| pattern.strip_suffix('>'))
            .collect();
        if nodes.is_empty() {
            return;
        }
        let node = nodes[self.rng.usize(..nodes.len())];
        // Another version of the protocol: an earlier or a later one.
        self.model.echo([0, 2, 3, 255][self.rng.usize(..4)]);
        let kind = ["m", "a", "c", "r.1.2.3.4", "x"][self.rng.usize(..5)];
        let mut payload: Vec<u8> = (0..self.rng.usize(..40)).map(|_| self.rng.u8(..)).collect();
        if let (Some(first), true) = (payload.first_mut(), self.rng.bool()) {
            // Often the version of the protocol.
            *first = self.rng.u8(0..4);
        }
        self.model
            .forge(0, &format!("{node}{kind}"), payload.into());
    }

    fn undo_after(&mut self, micros: u64, undo: Undo) {
        self.faults += 1;
        self.undo.insert((self.now + micros, self.faults), undo);
    }

    fn undo_until(&mut self, until: u64) {
        while let Some(entry) = self.undo.first_entry()
            && entry.key().0 <= until
        {
            match entry.remove() {
                Undo::Heal(node) => self.model.heal(node),
                Undo::Fast(node) => {
                    self.model
                        .delay(node, Duration::from_micros(100)..=Duration::from_millis(1));
                }
                Undo::Start(server, loses) => {
                    if loses == Loss::Everything && self.shape.servers == 1 {
                        self.model.forget();
                    }
                    self.model.start(server);
                }
                Undo::HealServers(one, other) => self.model.heal_servers(one, other),
            }
            self.faulty_at = self.now;
        }
    }

    /// Whether something is wrong now that may keep two connections with one id.
    fn is_faulty(&self) -> bool {
        let is_away = |slot: &NodeSlot| slot.node.is_none() || slot.paused_until.is_some();
        !self.undo.is_empty() || self.nodes.iter().any(is_away)
    }

    fn note_model(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.push_str(&self.model.take_trace());
        }
    }

    /// Ends all faults.
    fn heal(&mut self) {
        self.note(format_args!("all faults end"));
        self.undo_until(u64::MAX);
        if self.shape.has_cluster {
            for node in 0..self.nodes.len() {
                self.model.set_clock(node, 0);
            }
        }
        for slot in &mut self.nodes {
            slot.clock_ahead = 0;
            if slot.paused_until.is_some() {
                slot.paused_until = Some(self.now);
            }
            if slot.starts_at.is_some() {
                slot.starts_at = Some(self.now);
            }
            if let Some(node) = &slot.node {
                node.set_clock(0);
            }
        }
        for person in 0..self.persons.len() {
            self.persons[person].stalls_until = 0;
            self.persons[person].is_away = false;
            if self.alive_of(person).is_none() && self.persons[person].connects_at.is_none() {
                self.persons[person].connects_at = Some(self.now);
            }
        }
    }

    fn connect(&mut self, person: usize, node: usize, with_ticket: bool) {
        self.persons[person].is_away = false;
        self.persons[person].connects_at = None;
        let outbound_max = 1 << self.rng.u32(10..16);
        let write_max = 1 << self.rng.u32(4..16);
        let Some(running) = &self.nodes[node].node else {
            // Nothing listens.
            let again = self.now + self.rng.u64(10_000..SECOND);
            self.persons[person].connects_at = Some(again);
            return;
        };
        let (near, far) = socket::pair(outbound_max, write_max);
        let ticket = self.persons[person].ticket.clone().filter(|_| with_ticket);
        if !with_ticket {
            self.persons[person].ticket = None;
        }
        let expects = self.persons[person].id.filter(|_| ticket.is_some());
        let begun = running.connect(near, ticket);
        let mut connection = Connection::new((person, node), far, begun, self.now);
        connection.expects = expects;
        self.persons[person].connection = Some(self.connections.len());
        let id = self.connections.len();
        self.note(format_args!(
            "connection {id}: person {person} to node {node}"
        ));
        self.live.push(id);
        self.connections.push(connection);
    }

    /// Ends a handshake that is under way, as a client that closes its socket does.
    fn give_up(&mut self, person: usize) {
        if let Some(connection) = self.persons[person].connection
            && self.connections[connection].stage == ConnectionStage::Handshake
        {
            self.connections[connection].task.abort();
            self.connections[connection].is_given_up = true;
            self.end_connection(connection);
        }
    }

    fn leave(&mut self, person: usize) {
        if let Some(connection) = self.open_of(person) {
            let connection = &mut self.connections[connection];
            connection.socket.send(&encode(8, &1000_u16.to_be_bytes()));
            connection.socket.finish();
            connection.is_given_up = true;
            self.persons[person].is_away = true;
        }
    }

    fn reset(&mut self, person: usize) {
        if let Some(connection) = self.open_of(person) {
            self.connections[connection].socket.reset();
            self.connections[connection].is_given_up = true;
            self.end_connection(connection);
        }
    }

    /// The connection that a person uses, if it is open.
    pub(super) fn open_of(&self, person: usize) -> Option<ConnectionId> {
        let connection = self.persons[person].connection?;
        self.connections[connection].is_open().then_some(connection)
    }

    fn alive_of(&self, person: usize) -> Option<ConnectionId> {
        let connection = self.persons[person].connection?;
        (self.connections[connection].stage != ConnectionStage::Ended).then_some(connection)
    }

    fn send(&mut self, from: usize, to: u64, bytes: usize, wants_outcome: bool) -> Option<u64> {
        let connection = self.open_of(from)?;
        if self.connections[connection].is_given_up {
            return None;
        }
        self.messages += 1;
        let message = self.messages;
        let padding = "x".repeat(bytes);
        let id = if wants_outcome {
            format!(",\"id\":{message}")
        } else {
            String::new()
        };
        let text = format!("{{\"recipient_id\":{to},\"message\":\"{message}:{padding}\"{id}}}");
        self.oracle
            .written(message, (connection, wants_outcome), (to, self.now));
        let connection = &mut self.connections[connection];
        connection.socket.send(&encode(1, text.as_bytes()));
        if wants_outcome {
            connection.unsettled.insert(message, self.now);
        }
        Some(message)
    }

    /// A person writes to everybody, itself included.
    fn probe(&mut self, from: usize) -> Vec<Probe> {
        self.note(format_args!("person {from} probes"));
        let mut probes = Vec::new();
        for to in 0..self.persons.len() {
            if let (Some(from_connection), Some(to)) = (self.open_of(from), self.open_of(to))
                && let Some(recipient) = self.connections[to].id
                && let Some(message) = self.send(from, recipient, 0, true)
            {
                probes.push(Probe {
                    message,
                    between: [from_connection, to],
                });
            }
        }
        probes
    }

    fn person_step(&mut self, person: usize) {
        let at = self.persons[person].connects_at;
        if at.is_some_and(|at| at <= self.now) {
            let node = self.rng.usize(..self.nodes.len());
            self.connect(person, node, true);
        }
    }

    /// A connection is over, as its client sees it.
    pub(super) fn end_connection(&mut self, id: ConnectionId) {
        let now = self.now;
        let connection = &mut self.connections[id];
        connection.stage = ConnectionStage::Ended;
        connection.ended_at = Some(now);
        let (person, code) = (connection.person, connection.close_code);
        let after = connection.reconnect_ms.map(|after| after * 1_000);
        self.note(format_args!("connection {id} has ended: {code:?}"));
        let is_used = self.persons[person].connection == Some(id);
        if is_used && !self.persons[person].is_away {
            let wait = self.rng.u64(1_000..SECOND);
            self.persons[person].connects_at = Some(now + after.unwrap_or(wait));
        }
    }

    /// Whether a node does not run although its process lives.
    fn is_hung(&self, node: usize) -> bool {
        self.nodes[node].paused_until.is_some()
    }

    fn handshake_step(&mut self, id: ConnectionId) {
        let connection = &mut self.connections[id];
        if connection.stage != ConnectionStage::Handshake {
            return;
        }
        let handshake = connection.handshake.lock().clone();
        match handshake {
            Handshake::Accepted => {
                connection.stage = ConnectionStage::Open;
                connection.accepted_at = self.now;
            }
            Handshake::Refused => {
                self.note(format_args!("connection {id} is refused"));
                self.end_connection(id);
            }
            Handshake::Waits => {
                let is_over = connection.socket.is_closed_by_node();
                if is_over || self.now > connection.begun_at + PATIENCE {
                    connection.task.abort();
                    connection.is_given_up = true;
                    self.end_connection(id);
                }
            }
        }
    }

    fn open_step(&mut self, id: ConnectionId) {
        let (person, node) = (self.connections[id].person, self.connections[id].node);
        if self.now >= self.persons[person].stalls_until {
            self.connections[id].socket.read();
            while let Some(frame) = self.connections[id].frames.pop_front() {
                self.on_frame(id, frame);
            }
        }
        if self.connections[id].socket.is_closed_by_node() {
            self.end_connection(id);
        } else if self.is_hung(node)
            && person % 2 == 0
            && self.now > self.nodes[node].paused_at + PATIENCE
        {
            self.connections[id].socket.reset();
            self.connections[id].is_given_up = true;
            self.end_connection(id);
        }
    }

    fn on_frame(&mut self, id: ConnectionId, frame: Frame) {
        let connection = &mut self.connections[id];
        match frame {
            Frame::Welcome {
                user_id, ticket, ..
            } => {
                let person = &mut self.persons[connection.person];
                // An older connection may hear later.
                if person.connection == Some(id) {
                    person.ticket = Some(ticket);
                    person.id = Some(user_id);
                }
            }
            Frame::Ping(payload) => connection.socket.send(&encode(10, &payload)),
            Frame::Reconnect { after_ms } => connection.reconnect_ms = Some(after_ms),
            Frame::Close(code) => {
                connection.socket.send(&encode(8, &code.to_be_bytes()));
                connection.socket.finish();
            }
            Frame::Message { .. }
            | Frame::Outcome { .. }
            | Frame::Error
            | Frame::Dropped
            | Frame::Pong => {}
        }
    }

    fn end(&mut self) {
        for index in 0..self.nodes.len() {
            self.end_node(index);
        }
    }

    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{now} {what}").expect("a String takes all that is written to it");
        }
    }
}

impl NodeSlot {
    fn new() -> Self {
        Self {
            node: None,
            processes: 0,
            starts_at: None,
            paused_until: None,
            paused_at: 0,
            drains_since: None,
            clock_ahead: 0,
            counted: None,
            sent: 0,
            received: 0,
        }
    }
}
