//! What comes next in each state, and registries of some nodes over one table, in which calls are slow, answers get
//! lost and writes come late. After each step at most one welcomed connection has the id.

use std::collections::BTreeMap;

use super::procedure::{Call, Holder, Known, Next, Procedure, Tell};
use super::*;
use crate::cluster::nats::{BucketFailure, Entry, WriteFailure};
use crate::cluster::record::Record;
use crate::identity::ResumptionId;

const OWN: Node = Node(1);
const OTHER: Node = Node(2);
const BOUNDS: RegistryBounds = RegistryBounds {
    joins_max: 64,
    join_timeout: 5_000_000,
    renew_after: 1_000_000_000,
};

fn id(number: u64) -> UserId {
    UserId::new(number).unwrap()
}

fn join(nonce: u32, resumption_id: u64) -> (Join, oneshot::Receiver<Result<(), Refusal>>) {
    let (reply, replied) = oneshot::channel();
    let join = Join {
        nonce,
        resumption_id: resumption_id.into(),
        is_new: false,
        until: 0,
        is_unsure: false,
        reply,
    };
    (join, replied)
}

fn record(node: Node, nonce: u32, resumption_id: u64, arrival: u64) -> Record {
    Record {
        node,
        nonce,
        resumption_id: resumption_id.into(),
        arrival: (arrival > 0).then_some(Revision(arrival)),
    }
}

fn holder() -> Holder {
    Holder {
        nonce: 7,
        is_seated: true,
        resumption_id: ResumptionId::from(9),
        arrival: Revision(10),
        revision: Revision(20),
        renew_at: 0,
    }
}

/// What comes next for a holder, if there is one, and a join of the user with resumption id 9, if there is one.
fn next(
    known: Option<(u64, Option<Record>)>,
    holder: bool,
    joins: bool,
    change: fn(&mut Procedure),
) -> Next {
    let known = known.map(|(revision, record)| Known {
        revision: Revision(revision),
        record,
    });
    let mut work = Procedure {
        known,
        ..Procedure::default()
    };
    if joins {
        work.joins.push_back(join(8, 9).0);
    }
    change(&mut work);
    work.next(OWN, holder.then(self::holder).as_ref(), 0)
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn each_state_has_one_next_step() {
    let plain: fn(&mut Procedure) = |_| {};
    let mine = (20, Some(record(OWN, 7, 9, 10)));
    let joined = (21, Some(record(OWN, 8, 9, 0)));
    let orphan = (21, Some(record(OWN, 6, 9, 0)));
    let earlier = (21, Some(record(OTHER, 5, 9, 9)));
    let later = (21, Some(record(OTHER, 5, 9, 0)));
    let stranger = (21, Some(record(OTHER, 5, 3, 9)));
    // By a revision that NATS has given twice: the nonces decide.
    let [twin_before, twin_behind] = [6, 8].map(|nonce| (21, Some(record(OTHER, nonce, 9, 10))));
    let absent = (19, None);
    let known = |(revision, record): (u64, Option<Record>)| Known {
        revision: Revision(revision),
        record,
    };
    let renew = |entry| Next::Write(Call::Renew, known(entry));
    let write = |entry| Next::Write(Call::Join(8), known(entry));
    let table = [
        // Not known.
        (None, false, false, Next::Done),
        (None, true, false, Next::Read),
        (None, false, true, Next::Read),
        // The holder's own entry, or what is to become of it.
        (Some(mine), true, false, Next::Done),
        (Some(absent), true, false, renew(absent)),
        (Some(orphan), true, false, renew(orphan)),
        (Some(earlier), true, false, renew(earlier)),
        (Some(later), true, false, Next::Lose(record(OTHER, 5, 9, 0))),
        (Some(twin_before), true, false, renew(twin_before)),
        (
            Some(twin_behind),
            true,
            false,
            Next::Lose(record(OTHER, 8, 9, 10)),
        ),
        // A join beside a holder.
        (Some(mine), true, true, write(mine)),
        (Some(joined), true, true, Next::Confirm(Revision(21))),
        (Some(later), true, true, Next::Lose(record(OTHER, 5, 9, 0))),
        // A join without one.
        (Some(absent), false, true, write(absent)),
        (Some(joined), false, true, Next::Confirm(Revision(21))),
        (Some(orphan), false, true, write(orphan)),
        (Some(later), false, true, write(later)),
        (Some(stranger), false, true, Next::Refuse(Refusal::InUse)),
        // Nobody.
        (Some(absent), false, false, Next::Done),
        (Some(later), false, false, Next::Done),
        (
            Some(mine),
            false,
            false,
            Next::Write(Call::Delete, known(mine)),
        ),
        (
            Some(orphan),
            false,
            false,
            Next::Write(Call::Delete, known(orphan)),
        ),
    ];
    for (entry, holder, joins, expected) in table {
        assert_eq!(
            next(entry, holder, joins, plain),
            expected,
            "{entry:?} {holder} {joins}"
        );
        let calling: fn(&mut Procedure) = |work| work.call = Some(Call::Read);
        assert_eq!(next(entry, holder, joins, calling), Next::Wait);
        let waiting: fn(&mut Procedure) = |work| work.wait_until = 1;
        assert_eq!(next(entry, holder, joins, waiting), Next::Wait);
        let reading: fn(&mut Procedure) = |work| work.read = true;
        assert_eq!(next(entry, holder, joins, reading), Next::Read);
    }
    let renewing: fn(&mut Procedure) = |work| work.renew = true;
    assert_eq!(next(Some(mine), true, false, renewing), renew(mine));
    let unsure: fn(&mut Procedure) = |work| work.unsure = Some(8);
    assert_eq!(
        next(Some(absent), false, false, unsure),
        Next::Write(Call::Rewrite, known(absent))
    );
    assert_eq!(
        next(Some(later), false, false, unsure),
        Next::Write(Call::Rewrite, known(later))
    );
    // A holder that is not seated yet.
    let mut work = Procedure {
        known: Some(known(mine)),
        ..Procedure::default()
    };
    work.joins.push_back(join(8, 9).0);
    let new = Holder {
        is_seated: false,
        ..holder()
    };
    assert_eq!(work.next(OWN, Some(&new), 0), Next::Wait);
    let checked: fn(&mut Procedure) = |work| work.checks.push(check(15));
    assert_eq!(next(Some(mine), true, true, checked), Next::AnswerChecks);
    assert_eq!(next(None, false, false, checked), Next::AnswerChecks);
}

fn check(over: u64) -> Check {
    Check {
        from: OTHER,
        nonce: 1,
        over: Revision(over),
    }
}

#[test]
fn a_check_waits_for_what_was_written_over_before_and_for_nothing_else() {
    let mut work = Procedure {
        known: Some(Known {
            revision: Revision(9),
            record: None,
        }),
        ..Procedure::default()
    };
    work.tells.push(Tell {
        node: Node(3),
        nonce: 1,
        over: Revision(5),
        next_at: 0,
        dead_until: None,
    });
    assert!(work.can_answer(&check(5)) && !work.can_answer(&check(6)));
    work.checks.push(check(6));
    assert_eq!(work.next(OWN, None, 0), Next::Wait);
    work.tells[0].dead_until = Some(100);
    assert_eq!(work.next(OWN, None, 0), Next::AnswerChecks);
    work.tells.clear();
    work.displaced = Some((Node(3), Revision(5)));
    assert!(work.can_answer(&check(5)) && !work.can_answer(&check(6)));
}

/// A check of an entry between the two waits for the answer about the first.
#[test]
fn a_node_that_is_written_over_again_is_told_of_both_entries() {
    let mut work = Procedure::default();
    for over in [5, 7, 7] {
        work.displaced = Some((OTHER, Revision(over)));
        work.tell_displaced(0);
    }
    let overs: Vec<_> = work.tells.iter().map(|tell| tell.over).collect();
    assert_eq!(overs, [Revision(5), Revision(7)]);
    let nonce = work.tells[0].nonce;
    assert!(!work.can_answer(&check(6)));
    work.tells.retain(|tell| tell.nonce != nonce);
    assert!(work.can_answer(&check(6)));
}

/// Some nodes over one table, with one id.
struct World {
    rng: fastrand::Rng,
    now: u64,
    nodes: BTreeMap<Node, Registry>,
    entry: (u64, Option<Bytes>),
    revision: u64,
    /// Calls and notices on their way, each with its node.
    pending: Vec<(Node, Action)>,
    clients: BTreeMap<u32, Connection>,
    is_faulty: bool,
    lost_table: bool,
    log: Vec<String>,
}

struct Connection {
    node: Node,
    identity: UserIdentity,
    replied: Option<oneshot::Receiver<Result<(), Refusal>>>,
    state: ConnectionState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    Joins,
    Welcomed,
    Closed,
}

impl World {
    fn new(seed: u64) -> Self {
        let nodes = (1..=3).map(Node);
        let mut nodes: BTreeMap<_, _> = nodes
            .map(|node| (node, Registry::new(node, BOUNDS)))
            .collect();
        for registry in nodes.values_mut() {
            registry.link_up(0);
        }
        Self {
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
            nodes,
            entry: (0, None),
            revision: 0,
            pending: Vec::new(),
            clients: BTreeMap::new(),
            is_faulty: true,
            lost_table: false,
            log: Vec::new(),
        }
    }

    fn step(&mut self) {
        let node = Node(self.rng.u64(1..=3));
        match self.rng.u32(..100) {
            0..4 => self.join(node),
            4..8 => self.leave(),
            8..10 => {
                self.log.push(format!("{node:?} loses its link"));
                let now = self.now;
                self.registry(node).link_down(now);
                // What is on its way may still come, and nobody hears the answer.
                self.pending.retain_mut(|(of, action)| {
                    let is_write = matches!(action, Action::Write(..));
                    let is_of_link = *of == node;
                    if is_of_link && is_write {
                        *of = Node(0);
                    }
                    !is_of_link || is_write || matches!(action, Action::Notify(..))
                });
                self.act(node);
                let now = self.now;
                self.registry(node).link_up(now);
                self.registry(node).compare(1, now);
            }
            10..13 if self.rng.u32(..20) == 0 => {
                self.log.push("the table is lost".to_owned());
                // Until all have compared, two may have the id.
                self.lost_table = true;
                self.entry = (0, None);
                for node in (1..=3).map(Node) {
                    let now = self.now;
                    self.registry(node).compare(2, now);
                }
            }
            13..40 => {
                self.now += self.rng.u64(1..300_000);
                let now = self.now;
                self.registry(node).tick(now);
            }
            _ => self.deliver(),
        }
        for node in (1..=3).map(Node) {
            self.act(node);
        }
    }

    fn registry(&mut self, node: Node) -> &mut Registry {
        self.nodes.get_mut(&node).unwrap()
    }

    fn join(&mut self, node: Node) {
        let nonce = self.rng.u32(1..);
        self.log.push(format!("{node:?} joins {nonce}"));
        let resumption_id = 9;
        let (join, replied) = join(nonce, resumption_id);
        let now = self.now;
        self.registry(node).join(id(1), join, now);
        let identity = UserIdentity {
            id: id(1),
            resumption_id: resumption_id.into(),
        };
        self.clients.insert(
            nonce,
            Connection {
                node,
                identity,
                replied: Some(replied),
                state: ConnectionState::Joins,
            },
        );
    }

    fn leave(&mut self) {
        let open = self
            .clients
            .iter()
            .filter(|(_, client)| client.state != ConnectionState::Closed);
        let open: Vec<_> = open.map(|(nonce, _)| *nonce).collect();
        if !open.is_empty() {
            let nonce = open[self.rng.usize(..open.len())];
            self.log.push(format!("{nonce} leaves"));
            self.end(nonce);
        }
    }

    /// A connection ends, and its registration with it.
    fn end(&mut self, nonce: u32) {
        let client = self.clients.get_mut(&nonce).unwrap();
        client.state = ConnectionState::Closed;
        client.replied = None;
        let (node, now) = (client.node, self.now);
        self.registry(node).leave(id(1), nonce, now);
    }

    /// Carries out what a registry wants.
    fn act(&mut self, node: Node) {
        while let Some(action) = self.registry(node).next_action() {
            match action {
                Action::Revoke(identity, loss) => {
                    self.log.push(format!("{node:?} revokes {loss:?}"));
                    for nonce in
                        self.welcomed(|client| client.node == node && client.identity == identity)
                    {
                        self.end(nonce);
                    }
                }
                Action::Reply(reply, result) => {
                    let _ended = reply.send(result).is_err();
                    self.welcome(node);
                }
                Action::Compared(_) | Action::ReadKey(_) => {}
                action => self.pending.push((node, action)),
            }
        }
    }

    fn welcomed(&self, is_meant: impl Fn(&Connection) -> bool) -> Vec<u32> {
        let welcomed = self
            .clients
            .iter()
            .filter(|(_, client)| client.state == ConnectionState::Welcomed && is_meant(client));
        welcomed.map(|(nonce, _)| *nonce).collect()
    }

    /// Clients that were answered come into the directory, in place of an earlier one of their node.
    fn welcome(&mut self, node: Node) {
        let nonces: Vec<_> = self.clients.keys().copied().collect();
        for nonce in nonces {
            let client = self.clients.get_mut(&nonce).unwrap();
            let answer = client.replied.as_mut().map(oneshot::Receiver::try_recv);
            match answer {
                Some(Ok(Ok(()))) => {
                    client.replied = None;
                    for replaced in self.welcomed(|client| client.node == node) {
                        self.end(replaced);
                    }
                    let now = self.now;
                    if self.registry(node).seated(id(1), nonce, now).is_none() {
                        self.clients.get_mut(&nonce).unwrap().state = ConnectionState::Welcomed;
                        self.log.push(format!("{nonce} is welcomed"));
                        let all = self.welcomed(|_| true);
                        let is_alone = all == [nonce] || self.lost_table;
                        assert!(is_alone, "{all:?}\n{}", self.log.join("\n"));
                    } else {
                        self.end(nonce);
                    }
                }
                Some(Ok(Err(refusal))) => {
                    self.log.push(format!("{nonce} is refused: {refusal:?}"));
                    self.end(nonce);
                }
                _ => {}
            }
        }
    }

    /// One call or notice arrives, or does not.
    fn deliver(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let (node, action) = self
            .pending
            .swap_remove(self.rng.usize(..self.pending.len()));
        let fault = if self.is_faulty {
            self.rng.u32(..20)
        } else {
            20
        };
        let now = self.now;
        match action {
            Action::Read(id) if fault == 0 => {
                self.registry(node)
                    .read(id, Err(BucketFailure::Unknown), now);
            }
            Action::Read(id) => {
                let (revision, value) = self.entry.clone();
                let revision = Revision(revision);
                self.registry(node)
                    .read(id, Ok(Entry { value, revision }), now);
            }
            Action::Write(id, value, over) => {
                if fault == 1 && node != Node(0) {
                    // It comes late, or never.
                    self.registry(node)
                        .wrote(id, Err(BucketFailure::Unknown.into()), now);
                    if self.rng.bool() {
                        self.pending.push((Node(0), Action::Write(id, value, over)));
                    }
                    return;
                }
                let written = self.write(node, value, over);
                if node == Node(0) {
                    return;
                }
                let answer = if fault == 0 {
                    Err(BucketFailure::Unknown.into())
                } else {
                    written
                };
                self.registry(node).wrote(id, answer, now);
            }
            Action::Notify(to, notice) if fault > 2 => match notice {
                Notice::Check { id, nonce, over } => {
                    let from = node;
                    self.registry(to)
                        .check(id, Check { from, nonce, over }, now);
                }
                Notice::Checked { id, nonce } => self.registry(to).checked(id, node, nonce, now),
                Notice::Hello { .. } | Notice::Ready { .. } => {}
            },
            _ => {}
        }
    }

    fn write(
        &mut self,
        node: Node,
        value: Option<Bytes>,
        over: Revision,
    ) -> Result<Revision, WriteFailure> {
        if self.entry.0 != over.0 {
            return Err(WriteFailure::Conflict);
        }
        self.revision += 1;
        let what = value.as_ref().and_then(|value| Record::decode(value));
        self.log
            .push(format!("{node:?} writes {} {what:?}", self.revision));
        self.entry = (self.revision, value);
        Ok(Revision(self.revision))
    }

    /// Nothing fails any more; everything comes to an end.
    fn settle(&mut self) {
        self.is_faulty = false;
        for _ in 0..20_000 {
            self.now += 10_000;
            for node in (1..=3).map(Node) {
                let now = self.now;
                self.registry(node).tick(now);
                self.act(node);
            }
            while !self.pending.is_empty() {
                self.deliver();
                for node in (1..=3).map(Node) {
                    self.act(node);
                }
            }
            let is_idle = self
                .nodes
                .values()
                .all(|registry| registry.procedures.is_empty());
            if is_idle {
                return;
            }
        }
        let left: Vec<_> = self
            .nodes
            .iter()
            .map(|(node, registry)| (node, &registry.procedures))
            .collect();
        panic!("not idle: {left:#?}\n{}", self.log.join("\n"));
    }
}

fn explore(seed: u64) {
    fastrand::seed(seed);
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.step();
    }
    world.settle();
    let welcomed = world.welcomed(|_| true);
    let log = world.log.join("\n");
    let record = world
        .entry
        .1
        .as_ref()
        .and_then(|value| Record::decode(value));
    match (&welcomed[..], record) {
        ([], None) => {}
        ([nonce], Some(record)) => {
            let node = world.clients[nonce].node;
            assert_eq!(
                (record.nonce, record.node),
                (*nonce, node),
                "seed {seed}\n{log}"
            );
            assert!(
                world.nodes[&node].holds(id(1), *nonce),
                "seed {seed}\n{log}"
            );
        }
        other => panic!("seed {seed}: {other:?}\n{log}"),
    }
    let waiting: usize = world.nodes.values().map(Registry::joins).sum();
    assert_eq!(waiting, 0, "seed {seed}");
}

#[test]
fn one_connection_has_an_id_whatever_gets_lost_or_comes_late() {
    for seed in 0..3000 {
        explore(seed);
    }
}

#[test]
fn joins_beyond_the_limit_and_without_a_link_are_refused() {
    let mut registry = Registry::new(OWN, BOUNDS);
    let answer = |registry: &mut Registry| {
        while let Some(action) = registry.next_action() {
            if let Action::Reply(reply, result) = action {
                reply.send(result).unwrap();
            }
        }
    };
    let (first, mut replied) = join(1, 9);
    registry.join(id(1), first, 0);
    answer(&mut registry);
    assert_eq!(replied.try_recv(), Ok(Err(Refusal::Unavailable)));
    registry.link_up(0);
    let mut waiting = Vec::new();
    for number in 1..=64 {
        let (join, replied) = join(number, 9);
        registry.join(id(number.into()), join, 0);
        waiting.push(replied);
    }
    let (one_more, mut replied) = join(65, 9);
    registry.join(id(65), one_more, 0);
    answer(&mut registry);
    assert_eq!(replied.try_recv(), Ok(Err(Refusal::Unavailable)));
    assert_eq!(registry.joins(), 64);
    // They are refused in time, and nothing is left of them.
    registry.tick(BOUNDS.join_timeout);
    answer(&mut registry);
    for mut replied in waiting {
        assert_eq!(replied.try_recv(), Ok(Err(Refusal::Unavailable)));
    }
    assert_eq!((registry.joins(), registry.len()), (0, 0));
}

/// Without a bound, the calls for 10,000 users took longer than `cluster.link_timeout`, the link was lost, and all were
/// made again.
#[test]
fn thousands_who_leave_at_once_have_a_bounded_number_of_calls_and_nobody_waits_for_them() {
    let users = 1..=4 * WINDOW as u64;
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_up(0);
    for number in users.clone() {
        registry.holders.insert(id(number), holder());
    }
    for number in users.clone() {
        registry.leave(id(number), 7, 0);
    }
    let asked = |registry: &mut Registry| {
        let actions = std::iter::from_fn(|| registry.next_action());
        let actions = actions.filter(|action| !matches!(action, Action::Revoke(..)));
        actions.collect::<VecDeque<_>>()
    };
    assert_eq!(asked(&mut registry).len(), WINDOW);
    // After a lost link, too.
    registry.link_down(0);
    registry.link_up(0);
    let mut calls = asked(&mut registry);
    assert_eq!(calls.len(), WINDOW);
    // Another node's user, and one who comes back here, are served in front of what waits.
    let queued = *registry.queued.back().unwrap();
    registry.check(queued, check(20), 0);
    let actions = asked(&mut registry);
    assert!(
        matches!(actions[0], Action::Notify(OTHER, Notice::Checked { .. })),
        "{actions:?}"
    );
    let back = registry.queued[0];
    let (join, _replied) = join(8, 9);
    registry.join(back, join, 0);
    let mut reads = asked(&mut registry);
    assert!(matches!(reads[0], Action::Read(id) if id == back));
    calls.append(&mut reads);
    // The others go on as calls are answered.
    let mut deleted = 0;
    while let Some(call) = calls.pop_front() {
        match call {
            Action::Read(id) => {
                let entry = Entry {
                    value: Some(record(OWN, 7, 9, 10).encode()),
                    revision: Revision(20),
                };
                registry.read(id, Ok(entry), 0);
            }
            Action::Write(id, value, _) => {
                deleted += usize::from(value.is_none());
                registry.wrote(id, Ok(Revision(21)), 0);
            }
            _ => {}
        }
        calls.append(&mut asked(&mut registry));
        assert!(calls.len() <= WINDOW + 2);
    }
    assert_eq!((deleted, registry.len()), (4 * WINDOW - 1, 1));
    assert!(registry.procedures.is_empty() && registry.queued.is_empty());
}

#[test]
fn an_id_that_is_new_here_and_has_a_user_is_in_use() {
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_up(0);
    registry.holders.insert(id(1), holder());
    let (mut new, mut replied) = join(8, 9);
    new.is_new = true;
    registry.join(id(1), new, 0);
    let Some(Action::Reply(reply, result)) = registry.next_action() else {
        panic!("no answer");
    };
    reply.send(result).unwrap();
    assert_eq!(replied.try_recv(), Ok(Err(Refusal::InUse)));
    assert!(registry.next_action().is_none() && registry.holds(id(1), 7));
}

/// Answers to a procedure that has ended meanwhile.
#[test]
fn an_answer_that_nothing_waits_for_changes_nothing() {
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_up(0);
    registry.holders.insert(id(1), holder());
    let entry = Entry {
        value: Some(record(OTHER, 5, 9, 0).encode()),
        revision: Revision(30),
    };
    registry.read(id(1), Ok(entry), 0);
    registry.wrote(id(1), Ok(Revision(31)), 0);
    registry.wrote(id(1), Err(WriteFailure::Conflict), 0);
    registry.checked(id(1), OTHER, 1, 0);
    assert!(registry.next_action().is_none() && registry.procedures.is_empty());
    assert!(registry.holds(id(1), 7));
}

#[test]
fn entries_are_written_again_in_time_and_a_lost_one_is_noticed() {
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_up(0);
    let (first, mut replied) = join(1, 9);
    registry.join(id(1), first, 0);
    registry.read(
        id(1),
        Ok(Entry {
            value: None,
            revision: Revision(4),
        }),
        0,
    );
    registry.wrote(id(1), Ok(Revision(5)), 0);
    let mut actions: Vec<_> = std::iter::from_fn(|| registry.next_action()).collect();
    assert!(matches!(actions.pop(), Some(Action::Reply(_, Ok(())))));
    assert_eq!(registry.seated(id(1), 1, 0), None);
    registry.tick(BOUNDS.renew_after - 1);
    assert!(registry.next_action().is_none());
    registry.tick(BOUNDS.renew_after);
    let Some(Action::Write(_, Some(value), Revision(5))) = registry.next_action() else {
        panic!("the entry is not written again");
    };
    assert_eq!(Record::decode(&value), Some(record(OWN, 1, 9, 5)));
    let now = BOUNDS.renew_after;
    registry.wrote(id(1), Err(WriteFailure::Conflict), now);
    assert!(matches!(registry.next_action(), Some(Action::Read(_))));
    let value = Some(record(OTHER, 2, 9, 0).encode());
    registry.read(
        id(1),
        Ok(Entry {
            value,
            revision: Revision(8),
        }),
        now,
    );
    assert!(matches!(
        registry.next_action(),
        Some(Action::Revoke(_, Loss::TakenOver))
    ));
    assert!(!registry.holds(id(1), 1));
    replied.close();
}

/// NATS has lost the last writes, and has given their revisions to those of other nodes since.
#[test]
fn a_revision_from_before_a_lost_link_counts_only_after_the_entry_was_read() {
    type Change = fn(&mut Registry);
    let leave: Change = |registry| assert!(registry.leave(id(1), 7, 0));
    let come: Change = |registry| registry.join(id(1), join(8, 9).0, 0);
    let come_back: Change = |registry| {
        assert!(registry.leave(id(1), 7, 0));
        registry.join(id(1), join(8, 9).0, 0);
    };
    let renew: Change = |registry| registry.tick(BOUNDS.renew_after);
    for (what, change) in [
        ("leave", leave),
        ("come", come),
        ("come back", come_back),
        ("renew", renew),
    ] {
        for is_before_the_link in [true, false] {
            let mut registry = Registry::new(OWN, BOUNDS);
            registry.link_up(0);
            registry.holders.insert(id(1), holder());
            registry.renewals.push_back((0, id(1)));
            registry.link_down(0);
            if is_before_the_link {
                change(&mut registry);
                registry.link_up(0);
                registry.tick(0);
            } else {
                registry.link_up(0);
                change(&mut registry);
            }
            let calls = |action: &Action| matches!(action, Action::Read(_) | Action::Write(..));
            let asked = std::iter::from_fn(|| registry.next_action());
            let asked: Vec<_> = asked.filter(calls).collect();
            assert!(matches!(&*asked, [Action::Read(_)]), "{what}: {asked:?}");
        }
    }
    // After a comparison they count.
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_down(0);
    registry.link_up(0);
    registry.compare(1, 0);
    registry.holders.insert(id(1), holder());
    registry.leave(id(1), 7, 0);
    let asked: Vec<_> = std::iter::from_fn(|| registry.next_action()).collect();
    assert!(
        matches!(
            &*asked,
            [
                Action::Compared(1),
                Action::Revoke(..),
                Action::Write(_, None, Revision(20))
            ]
        ),
        "{asked:?}"
    );
}

/// More than are compared at a time.
#[test]
fn a_comparison_ends_when_the_table_has_every_entry_or_another_one() {
    let mut registry = Registry::new(OWN, BOUNDS);
    let ids = 1..=WINDOW as u64 + 2;
    registry.link_down(0);
    registry.link_up(0);
    for number in ids.clone() {
        registry.holders.insert(id(number), holder());
    }
    registry.compare(1, 0);
    let mut answered = 0;
    while let Some(action) = registry.next_action() {
        match action {
            Action::Read(of) => {
                let record = match of.get() {
                    1 => record(OTHER, 5, 9, 0),
                    _ => record(OWN, 7, 9, 10),
                };
                let entry = Entry {
                    value: Some(record.encode()),
                    revision: Revision(20),
                };
                registry.read(of, Ok(entry), 0);
            }
            Action::Write(of, Some(_), Revision(20)) => {
                registry.wrote(of, Ok(Revision(21)), 0);
                answered += 1;
            }
            Action::Revoke(of, Loss::TakenOver) if of.id == id(1) => answered += 1,
            Action::Compared(1) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, ids.count());
    assert!(registry.has_compared && registry.procedures.is_empty());
}

#[test]
fn renewals_that_were_done_earlier_are_forgotten_where_they_are_many() {
    for (stale, left) in [(4 * WINDOW + 1, 4 * WINDOW + 2), (4 * WINDOW + 2, 1)] {
        let mut registry = Registry::new(OWN, BOUNDS);
        registry.link_up(0);
        let renew_at = 10;
        registry.holders.insert(
            id(1),
            Holder {
                renew_at,
                ..holder()
            },
        );
        let stale = std::iter::repeat_n((5, id(1)), stale);
        registry.renewals.extend(stale.chain([(renew_at, id(1))]));
        registry.tick(0);
        assert_eq!(registry.renewals.len(), left);
        assert_eq!(registry.renewals.back(), Some(&(renew_at, id(1))));
    }
}

#[test]
fn a_check_that_is_told_again_meanwhile_is_answered_all_the_same() {
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_up(0);
    registry.holders.insert(id(1), holder());
    registry.check(id(1), check(20), 0);
    assert!(matches!(registry.next_action(), Some(Action::Read(_))));
    registry.check(id(1), check(20), 250_000);
    let entry = Entry {
        value: Some(record(OTHER, 2, 9, 0).encode()),
        revision: Revision(21),
    };
    registry.read(id(1), Ok(entry), 400_000);
    let actions: Vec<_> = std::iter::from_fn(|| registry.next_action()).collect();
    let [
        Action::Revoke(..),
        Action::Notify(OTHER, Notice::Checked { .. }),
    ] = &*actions
    else {
        panic!("{actions:?}");
    };
}

/// The end of a node waits for its registry to be idle.
#[test]
fn a_registry_is_idle_when_its_entries_are_deleted_though_it_goes_on_telling_a_dead_node() {
    let mut registry = Registry::new(OWN, BOUNDS);
    registry.link_up(0);
    registry.join(id(1), join(7, 9).0, 0);
    let entry = Entry {
        value: Some(record(OTHER, 2, 9, 0).encode()),
        revision: Revision(4),
    };
    registry.read(id(1), Ok(entry), 0);
    registry.wrote(id(1), Ok(Revision(5)), 0);
    let told = |registry: &mut Registry| {
        let actions = std::iter::from_fn(|| registry.next_action());
        actions
            .filter(|action| matches!(action, Action::Notify(OTHER, Notice::Check { .. })))
            .count()
    };
    assert_eq!(told(&mut registry), 1);
    registry.leave(id(1), 7, 0);
    assert!(!registry.is_idle(), "the other node has not answered");
    registry.node_died(OTHER, 0);
    assert!(!registry.is_idle(), "the entry is not deleted");
    registry.wrote(id(1), Ok(Revision(6)), 0);
    assert!(registry.is_idle());
    for second in [2, 4, 6, 8, 10] {
        registry.tick(second * 1_000_000);
        assert_eq!(told(&mut registry), 1, "after {second} s");
    }
    registry.tick(12_000_000);
    assert_eq!(told(&mut registry), 0);
    assert!(registry.procedures.is_empty());
}

#[test]
fn a_registration_that_is_lost_before_its_client_is_seated_says_to_whom() {
    for (resumption_id, loss) in [(9, Loss::TakenOver), (3, Loss::Conflict)] {
        let mut registry = Registry::new(OWN, BOUNDS);
        registry.link_up(0);
        let (join, mut replied) = join(1, 9);
        registry.join(
            id(1),
            Join {
                is_new: true,
                ..join
            },
            0,
        );
        registry.wrote(id(1), Ok(Revision(5)), 0);
        registry.check(id(1), check(5), 0);
        let entry = Entry {
            value: Some(record(OTHER, 2, resumption_id, 0).encode()),
            revision: Revision(6),
        };
        registry.read(id(1), Ok(entry), 0);
        for action in std::iter::from_fn(|| registry.next_action()) {
            if let Action::Reply(reply, result) = action {
                reply.send(result).unwrap();
            }
        }
        assert_eq!(replied.try_recv(), Ok(Ok(())));
        assert_eq!(registry.seated(id(1), 1, 0), Some(loss));
        registry.leave(id(1), 1, 0);
        assert!(registry.lost.is_empty());
    }
}
