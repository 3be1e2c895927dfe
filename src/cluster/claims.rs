//! Ids of this node's blocks that others have: their users came back there with a ticket. The holder of
//! the block is silent for such an id, so that whoever has it is the only one to take its messages,
//! until it is released, or not renewed for `cluster.claim_timeout`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::envelope::{Node, ReplyTo};
use super::handover::{Claimant, Cut, Grant, Refusal, Reply};
use super::{Shared, micros};
use crate::identity::{Lineage, UserId};

/// The claims, at most `cluster.claims`.
#[derive(Debug)]
pub(super) struct Claims {
    max: usize,
    /// Those in the table. Read before the lock is taken, since mostly there are none.
    count: AtomicUsize,
    /// Those that were not released.
    held: AtomicUsize,
    table: Mutex<HashMap<UserId, Claim>>,
}

#[derive(Clone, Debug)]
struct Claim {
    node: Node,
    lineage: Lineage,
    /// Microseconds of the app's clock.
    until: u64,
    /// No node but the holder of the block had the id before.
    is_first: bool,
    /// It was released, when these messages had been taken, of which some may be still to come here.
    taken: Option<Cut>,
}

impl Claims {
    pub(super) fn new(max: u32) -> Self {
        Self {
            max: max as usize,
            count: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Who has an id, where it is not this node by its block.
    pub(super) fn of(&self, id: UserId) -> Option<Node> {
        if self.is_empty() {
            return None;
        }
        let table = self.table();
        let claim = table.get(&id).filter(|claim| claim.taken.is_none());
        claim.map(|claim| claim.node)
    }

    /// Whether a message for an id is for somebody else to take, or was: for whoever has the id, which
    /// hears nothing of itself.
    pub(super) fn silence(&self, id: UserId, message: ReplyTo) -> bool {
        if self.is_empty() {
            return false;
        }
        self.table()
            .get(&id)
            .is_some_and(|claim| match &claim.taken {
                Some(taken) => taken.covers(message),
                None => claim.node != message.node || !claim.is_first,
            })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<UserId, Claim>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, table: &HashMap<UserId, Claim>) {
        self.count.store(table.len(), Ordering::Release);
    }

    fn add(&self, table: &mut HashMap<UserId, Claim>, id: UserId, claim: Claim) {
        table.insert(id, claim);
        self.held.fetch_add(1, Ordering::AcqRel);
        self.count(table);
    }
}

/// What becomes of an id of a block of this node that somebody here comes back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// It is here.
    Home,
    /// This node has had it.
    From(Node),
    /// Somebody of another lineage has it.
    InUse,
}

impl Shared {
    /// Gives an id of this node's to another, or says why not. `cut` is what this node has seen.
    pub(super) fn grant(&self, claimant: Claimant, cut: &Cut) -> Reply {
        let Claimant {
            node,
            id,
            lineage,
            again,
        } = claimant;
        let until = self.claimed_until();
        let mut grant = Grant {
            holder: Some(self.node),
            ..Grant::default()
        };
        let mut table = self.claims.table();
        let mut taken = Cut::default();
        let claim = match table.get_mut(&id) {
            Some(Claim {
                taken: Some(released),
                ..
            }) => {
                taken.join(released);
                None
            }
            claim => claim,
        };
        match claim {
            Some(claim) if claim.lineage != lineage => return Reply::Refused(Refusal::InUse),
            Some(claim) if claim.node == node => claim.until = until,
            Some(_) if again => return Reply::Refused(Refusal::InUse),
            Some(claim) => {
                grant.previous = Some(claim.node);
                (claim.node, claim.until, claim.is_first) = (node, until, false);
            }
            None => {
                let here = self.directory.with(id, |seat| Some(seat?.lineage()));
                if here.is_some_and(|here| here != lineage || again) {
                    return Reply::Refused(Refusal::InUse);
                }
                if self.claims.len() >= self.claims.max || !self.leases.give_back(id) {
                    return Reply::Refused(Refusal::Unavailable);
                }
                let claim = Claim {
                    node,
                    lineage,
                    until,
                    is_first: true,
                    taken: None,
                };
                self.claims.add(&mut table, id, claim);
                drop(table);
                self.directory.evict(id, lineage);
                grant.cut = self.with_own(cut, self.leases.blocks().block_of(id));
                grant.cut.join(&taken);
            }
        }
        Reply::Granted(grant)
    }

    /// Somebody comes back here, with an id of this node's own.
    pub(super) fn come_home(&self, id: UserId, lineage: Lineage) -> Own {
        let mut table = self.claims.table();
        match table.get_mut(&id).filter(|claim| claim.taken.is_none()) {
            None => {
                self.leases.give_back(id);
                Own::Home
            }
            Some(claim) if claim.lineage != lineage => Own::InUse,
            Some(claim) => {
                let previous = claim.node;
                // This node takes it as any other would.
                (claim.node, claim.until) = (self.node, u64::MAX);
                Own::From(previous)
            }
        }
    }

    /// What a node says that it still has; those that it has no more.
    pub(super) fn renew(
        &self,
        node: Node,
        ids: &[(UserId, Lineage)],
        again: bool,
        cut: &Cut,
    ) -> Vec<UserId> {
        let mut lost = Vec::new();
        for (id, lineage) in ids {
            let claimant = Claimant {
                node,
                id: *id,
                lineage: *lineage,
                again,
            };
            if !matches!(self.grant(claimant, cut), Reply::Granted(_)) {
                lost.push(*id);
            }
        }
        lost
    }

    /// A node has an id no more: another has it again, or nobody, and then it has `taken` these. Who has
    /// claimed it meanwhile, and will ask the node for it.
    pub(super) fn release(
        &self,
        node: Node,
        id: UserId,
        to: Option<Node>,
        taken: &Cut,
    ) -> Option<Node> {
        let until = self.claimed_until();
        let mut table = self.claims.table();
        let claim = table.get_mut(&id).filter(|claim| claim.taken.is_none())?;
        if claim.node != node {
            return Some(claim.node);
        }
        claim.until = until;
        if let Some(to) = to {
            claim.node = to;
            return None;
        }
        claim.taken = Some(taken.clone());
        self.claims.held.fetch_sub(1, Ordering::AcqRel);
        // Beyond any measure: what little may be still to come of it is not worth the room.
        if table.len() > 2 * self.claims.max {
            table.remove(&id);
            self.claims.count(&table);
        }
        drop(table);
        self.leases.left(id);
        None
    }

    /// The same for this node's own claim: what the holder, which is this node too, has seen by then.
    pub(super) fn release_own(&self, id: UserId, taken: &Cut) -> Grant {
        let block = self.leases.blocks().block_of(id);
        let seen = self.seen(block);
        // Under the lock, so that each message is either in the cut or behind the release.
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        Grant {
            holder: Some(self.node),
            previous: self.release(self.node, id, None, taken),
            cut: self.with_own(&seen, block),
        }
    }

    /// What has come for a block, and what this node has sent there itself, which it does not hear.
    pub(super) fn with_own(&self, seen: &Cut, block: u64) -> Cut {
        let mut cut = seen.clone();
        let mark = self.queue().mark(block);
        if let Some(link) = self.link() {
            cut.note_place(self.node, (link.number, mark));
        }
        cut
    }

    /// A block is this node's no more.
    pub(super) fn forget_seen(&self, block: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(&block);
    }

    /// What has come for a block of this node.
    pub(super) fn seen(&self, block: u64) -> Arc<Mutex<Cut>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(block).or_default().clone()
    }

    /// Takes back what was not renewed.
    pub(super) fn lapse(&self, now: u64) {
        if self.claims.is_empty() {
            return;
        }
        let mut table = self.claims.table();
        let lapsed = table.extract_if(|_, claim| claim.until <= now);
        let lapsed = lapsed.filter(|(_, claim)| claim.taken.is_none());
        let lapsed: Vec<_> = lapsed.map(|(id, _)| id).collect();
        self.claims.held.fetch_sub(lapsed.len(), Ordering::AcqRel);
        self.claims.count(&table);
        drop(table);
        for id in lapsed {
            self.leases.left(id);
        }
    }

    /// This node was away, and could not hear of renewals.
    pub(super) fn extend_claims(&self) {
        let until = self.claimed_until();
        for claim in self.claims.table().values_mut() {
            claim.until = claim.until.max(until);
        }
    }

    fn claimed_until(&self) -> u64 {
        self.now() + micros(self.settings.claim_timeout)
    }
}
