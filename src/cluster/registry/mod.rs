//! The ids that are registered on this node, and what the table in NATS has to say for them: a state machine
//! without I/O. Inputs are joins, leaves, notices, answers of the bucket and the time. What is to be done comes out
//! as [`Action`]s, in order. At most one call is under way for an id.

mod answers;
mod comparison;
mod procedure;
mod telling;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry as Place;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use bytes::Bytes;
use rustc_hash::FxHasher;
use tokio::sync::oneshot;

use super::envelope::{Node, Notice};
use super::nats::Revision;
use crate::directory::Command;
use crate::identity::{UserId, UserIdentity};
use crate::protocol::close_code;
pub(super) use procedure::Check;
use procedure::{Call, CallTurn, Holder, Known, Next, Procedure};
pub(crate) use procedure::{Join, Refusal};

/// Entries that are compared at a time, and calls under way that no user waits for. A call takes about one round trip,
/// so this many keep NATS busy and leave room for joins.
const WINDOW: usize = 256;
/// The wait before a call is repeated that was not answered.
const RETRY: u64 = 200_000;

/// The bounds and times of a registry, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegistryBounds {
    /// The most joins that wait at a time.
    pub(super) joins_max: usize,
    /// How long a join waits.
    pub(super) join_timeout: u64,
    /// After this time an entry is written again.
    pub(super) renew_after: u64,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Read the entry of an id.
    Read(UserId),
    /// Write the entry of an id over this revision, or delete it.
    Write(UserId, Option<Bytes>, Revision),
    /// Tell a node something.
    Notify(Node, Notice),
    /// Find out whether a node lives.
    ReadKey(Node),
    /// Close the connection of this user.
    Revoke(UserIdentity, Loss),
    /// Answer a join.
    Reply(oneshot::Sender<Result<(), Refusal>>, Result<(), Refusal>),
    /// All entries were compared for the lease of this number.
    Compared(u64),
}

/// Why a connection loses its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its registration has ended.
    Left,
    /// A newer connection of the same user has it.
    TakenOver,
    /// Another user has it: NATS has lost the table.
    Conflict,
}

// Keys are ids that this deployment has given, so no peer can choose them to collide.
type Holders = HashMap<UserId, Holder, BuildHasherDefault<FxHasher>>;

/// The ids of this node.
#[derive(Debug)]
pub(super) struct Registry {
    node: Node,
    bounds: RegistryBounds,
    holders: Holders,
    /// In order, so that a run is the same each time with the same seed.
    procedures: BTreeMap<UserId, Procedure>,
    /// When entries are to be written again. Of an id that has left or was written since, it is skipped.
    renewals: VecDeque<(u64, UserId)>,
    /// Ids that are still to be compared, and those that are being compared.
    to_compare: Vec<UserId>,
    comparing: usize,
    /// The lease that they are compared for.
    compared_for: Option<u64>,
    /// Whether all were compared since the link was lost. A store that has lost its last writes gives their revisions
    /// again, to other writes, so a revision from before says nothing until the entry was read.
    has_compared: bool,
    /// Calls under way that no user waits for, and the ids that wait until there are fewer.
    turns_taken: usize,
    queued: VecDeque<UserId>,
    joins: usize,
    /// Registrations that were lost between the answer to their join and [`Registry::seated`], by nonce. Their owners
    /// leave.
    lost: BTreeMap<u32, Loss>,
    is_up: bool,
    /// Until then, joins wait for the next link, because it mostly comes soon.
    accepts_until: u64,
    actions: VecDeque<Action>,
}

impl Registry {
    pub(super) fn new(node: Node, bounds: RegistryBounds) -> Self {
        Self {
            node,
            bounds,
            holders: Holders::default(),
            procedures: BTreeMap::new(),
            renewals: VecDeque::new(),
            to_compare: Vec::new(),
            comparing: 0,
            compared_for: None,
            has_compared: true,
            turns_taken: 0,
            queued: VecDeque::new(),
            joins: 0,
            lost: BTreeMap::new(),
            is_up: false,
            accepts_until: 0,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Ids that are registered.
    pub(super) fn len(&self) -> usize {
        self.holders.len()
    }

    /// Joins that wait.
    pub(super) fn joins(&self) -> usize {
        self.joins
    }

    /// Whether one more may join.
    pub(super) fn has_room(&self, now: u64) -> bool {
        (self.is_up || now < self.accepts_until) && self.joins < self.bounds.joins_max
    }

    /// Whether nothing is registered and nothing is to be done.
    pub(super) fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.procedures.values().all(Procedure::only_lingers)
    }

    /// Whether this registration of an id still holds.
    pub(super) fn holds(&self, id: UserId, nonce: u32) -> bool {
        self.holders
            .get(&id)
            .is_some_and(|holder| holder.nonce == nonce)
    }

    /// The client of this registration is in the directory. Returns why the registration holds no more, if it was
    /// lost meanwhile.
    pub(super) fn seated(&mut self, id: UserId, nonce: u32, now: u64) -> Option<Loss> {
        if let Some(holder) = self.holders.get_mut(&id)
            && holder.nonce == nonce
        {
            holder.is_seated = true;
            self.step(id, now);
        }
        self.lost.remove(&nonce)
    }

    /// A connection wants an id.
    pub(super) fn join(&mut self, id: UserId, mut join: Join, now: u64) {
        if !self.has_room(now) {
            self.reply(join.reply, Err(Refusal::Unavailable));
            return;
        }
        let holder = self.holders.get(&id);
        if join.is_new && holder.is_some() {
            self.reply(join.reply, Err(Refusal::InUse));
            return;
        }
        join.until = now + self.bounds.join_timeout;
        self.joins += 1;
        let known = match holder {
            Some(holder) => self.known(holder),
            None => join.is_new.then_some(Known::NOTHING),
        };
        let work = self.procedures.entry(id).or_insert_with(|| Procedure {
            known,
            ..Procedure::default()
        });
        work.joins.push_back(join);
        self.step(id, now);
    }

    /// A connection has left, or wants its id no more. Whether the id was registered for it.
    pub(super) fn leave(&mut self, id: UserId, nonce: u32, now: u64) -> bool {
        let was_here = self.holds(id, nonce);
        self.lost.remove(&nonce);
        self.remove(id, nonce);
        self.step(id, now);
        self.go_on_comparing(now);
        was_here
    }

    /// Ends a join and a registration. What the table has of it is deleted by the next steps.
    fn remove(&mut self, id: UserId, nonce: u32) {
        self.give_up(id, nonce);
        let holder = match self.holders.entry(id) {
            Place::Occupied(place) if place.get().nonce == nonce => place.remove(),
            _ => return,
        };
        let identity = holder.identity(id);
        // An earlier connection of the user may be here still, which the registration was no longer for.
        self.actions.push_back(Action::Revoke(identity, Loss::Left));
        let known = self.known(&holder);
        self.procedures.entry(id).or_insert_with(|| Procedure {
            known,
            read: known.is_none(),
            ..Procedure::default()
        });
    }

    /// What the entry of a holder is, if that is sure.
    fn known(&self, holder: &Holder) -> Option<Known> {
        self.has_compared.then(|| holder.known(self.node))
    }

    /// Another node says that the entry of an id is its own.
    pub(super) fn check(&mut self, id: UserId, check: Check, now: u64) {
        if self.holders.contains_key(&id) {
            self.procedures.entry(id).or_default();
        }
        let Some(work) = self.procedures.get_mut(&id) else {
            let nonce = check.nonce;
            return self.notify(check.from, Notice::Checked { id, nonce });
        };
        // One that is told again, because the answer takes longer than `TELL_INTERVAL`, must not begin anew: it would
        // never be answered.
        if work.checks.contains(&check) || work.checks.len() >= CHECKS_MAX {
            return;
        }
        work.checks.push(check);
        // Also if there is only a join: its write may be done already, and written over since.
        (work.read, work.renew) = (true, true);
        self.step(id, now);
    }

    /// Another node has compared an entry.
    pub(super) fn checked(&mut self, id: UserId, from: Node, nonce: u32, now: u64) {
        if let Some(work) = self.procedures.get_mut(&id) {
            work.tells
                .retain(|tell| (tell.node, tell.nonce) != (from, nonce));
            self.step(id, now);
        }
    }

    /// NATS can be reached.
    pub(super) fn link_up(&mut self, now: u64) {
        self.is_up = true;
        for id in self.procedures.keys().copied().collect::<Vec<_>>() {
            self.step(id, now);
        }
    }

    /// The link is lost, and with it all answers that have not come.
    pub(super) fn link_down(&mut self, now: u64) {
        self.is_up = false;
        self.accepts_until = now + self.bounds.join_timeout;
        self.to_compare.clear();
        (self.comparing, self.compared_for, self.has_compared) = (0, None, false);
        self.turns_taken = 0;
        self.queued.clear();
        self.actions
            .retain(|action| matches!(action, Action::Reply(..) | Action::Revoke(..)));
        for work in self.procedures.values_mut() {
            match work.call.take() {
                Some(Call::Join(nonce)) => {
                    work.tell_displaced(0);
                    match work.joins.iter_mut().find(|join| join.nonce == nonce) {
                        Some(join) => join.is_unsure = true,
                        None => work.unsure = Some(nonce),
                    }
                }
                Some(Call::Renew) => work.tell_displaced(0),
                _ => {}
            }
            (work.turn, work.is_compared) = (CallTurn::Free, false);
            work.wait_until = 0;
            (work.known, work.read, work.renew) = (None, true, true);
            work.checks.clear();
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: u64) {
        if !self.is_up {
            return;
        }
        for id in self.procedures.keys().copied().collect::<Vec<_>>() {
            self.expire_joins(id, now);
            self.tell(id, now);
            self.step(id, now);
        }
        while self.procedures.len() < 2 * WINDOW
            && let Some((due, id)) = self.renewals.pop_front_if(|(due, _)| *due <= now)
        {
            let Some(holder) = self
                .holders
                .get(&id)
                .filter(|holder| holder.renew_at == due)
            else {
                continue;
            };
            let known = self.known(holder);
            let work = self.procedures.entry(id).or_insert_with(|| Procedure {
                known,
                ..Procedure::default()
            });
            work.renew = true;
            self.step(id, now);
        }
        if self.renewals.len() > 2 * self.holders.len() + 4 * WINDOW {
            let holders = &self.holders;
            self.renewals.retain(|(due, id)| {
                holders
                    .get(id)
                    .is_some_and(|holder| holder.renew_at == *due)
            });
        }
        self.go_on_comparing(now);
    }

    fn expire_joins(&mut self, id: UserId, now: u64) {
        let Some(work) = self.procedures.get(&id) else {
            return;
        };
        let is_over = |join: &&Join| join.until <= now || join.reply.is_closed();
        let over: Vec<_> = work
            .joins
            .iter()
            .filter(is_over)
            .map(|join| join.nonce)
            .collect();
        for nonce in over {
            self.leave(id, nonce, now);
        }
    }

    /// Refuses a join that still waits. Its entry may be written all the same, or late.
    fn give_up(&mut self, id: UserId, nonce: u32) {
        let Some(work) = self.procedures.get_mut(&id) else {
            return;
        };
        let Some(at) = work.joins.iter().position(|join| join.nonce == nonce) else {
            return;
        };
        let join = work.joins.remove(at).expect("a position of the queue");
        if join.is_unsure || work.call == Some(Call::Join(nonce)) {
            work.unsure = Some(nonce);
        }
        self.joins -= 1;
        self.reply(join.reply, Err(Refusal::Unavailable));
    }

    fn reply(&mut self, reply: oneshot::Sender<Result<(), Refusal>>, result: Result<(), Refusal>) {
        self.actions.push_back(Action::Reply(reply, result));
    }

    fn notify(&mut self, to: Node, notice: Notice) {
        self.actions.push_back(Action::Notify(to, notice));
    }
}

impl Loss {
    /// What the session is told.
    pub(super) fn end(self) -> Command {
        match self {
            Self::Left | Self::TakenOver => Command::taken_over(),
            Self::Conflict => Command::Close {
                code: close_code::TRY_AGAIN,
                reason: "another user has this id",
            },
        }
    }
}

/// Nodes that may wait for one id to be compared.
const CHECKS_MAX: usize = 16;
