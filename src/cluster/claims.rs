//! Ids of this node's blocks that others have: their users came back there with a ticket. The holder of
//! the block is silent for such an id, so that whoever has it is the only one to take its messages,
//! until it is released, or not renewed for `cluster.claim_timeout`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::envelope::{Node, ReplyTo};
use super::handover::{Claimant, Cut, Grant, Refusal, Reply};
use super::{Shared, micros};
use crate::identity::{ResumptionId, UserId, UserIdentity};

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
    resumption_id: ResumptionId,
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

    pub(super) fn is_empty(&self) -> bool {
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

    /// What was taken of an id by whoever has released it.
    pub(super) fn taken(&self, id: UserId) -> Option<Cut> {
        let table = self.table();
        table.get(&id).and_then(|claim| claim.taken.clone())
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
    /// Somebody of another resumption id has it.
    InUse,
}

impl Shared {
    /// Gives an id of this node's to another, or says why not. `cut` is what this node has seen.
    pub(super) fn grant(&self, claimant: Claimant, cut: &Cut) -> Reply {
        let Claimant {
            node,
            id,
            resumption_id,
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
            // The node was about to renew what it has released since.
            Some(claim) if again && claim.taken.is_some() && claim.node == node => {
                return Reply::Refused(Refusal::InUse);
            }
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
            Some(claim) if claim.resumption_id != resumption_id => {
                return Reply::Refused(Refusal::InUse);
            }
            Some(claim) if claim.node == node => claim.until = until,
            Some(_) if again => return Reply::Refused(Refusal::InUse),
            Some(claim) => {
                grant.previous = Some(claim.node);
                (claim.node, claim.until, claim.is_first) = (node, until, false);
            }
            None => {
                let here = self
                    .directory
                    .with(id, |client| Some(client?.identity().resumption_id));
                if here.is_some_and(|here| here != resumption_id || again) {
                    return Reply::Refused(Refusal::InUse);
                }
                if self.claims.len() >= self.claims.max || !self.leases.give_back(id) {
                    return Reply::Refused(Refusal::Unavailable);
                }
                let claim = Claim {
                    node,
                    resumption_id,
                    until,
                    is_first: true,
                    taken: None,
                };
                self.claims.add(&mut table, id, claim);
                drop(table);
                self.directory.revoke(UserIdentity { id, resumption_id });
                // Not what this node has sent: that is for whoever has the id now, but for what went to the
                // one before.
                grant.cut = cut.clone();
                grant.cut.join(&taken);
            }
        }
        Reply::Granted(grant)
    }

    /// Somebody comes back here; nothing where the id is not of a block of this node.
    pub(super) fn come_home(&self, id: UserId, resumption_id: ResumptionId) -> Option<Own> {
        let until = self.claimed_until();
        let mut table = self.claims.table();
        match table.get_mut(&id).filter(|claim| claim.taken.is_none()) {
            None => self.leases.give_back(id).then_some(Own::Home),
            Some(claim) if claim.resumption_id != resumption_id => Some(Own::InUse),
            Some(claim) => {
                let previous = claim.node;
                // This node takes it as any other would.
                (claim.node, claim.until) = (self.node, until);
                Some(Own::From(previous))
            }
        }
    }

    /// A guest of this node has an id of a block of its own. Whether no other has it by now.
    pub(super) fn keep_own(&self, id: UserId, resumption_id: ResumptionId) -> bool {
        let until = self.claimed_until();
        let mut table = self.claims.table();
        if let Some(claim) = table.get_mut(&id) {
            let is_kept = claim.node == self.node && claim.taken.is_none();
            if is_kept {
                claim.until = until;
            }
            return is_kept;
        }
        // The guest was here before the block was this node's.
        let has_room = self.claims.len() < self.claims.max;
        let is_kept = has_room && self.leases.give_back(id);
        if is_kept {
            let claim = Claim {
                node: self.node,
                resumption_id,
                until,
                is_first: false,
                taken: None,
            };
            self.claims.add(&mut table, id, claim);
        }
        is_kept
    }

    /// What a node says that it still has; those that it has no more.
    pub(super) fn renew(
        &self,
        node: Node,
        ids: &[(UserId, ResumptionId)],
        again: bool,
        cut: &Cut,
    ) -> Vec<UserId> {
        let mut lost = Vec::new();
        for (id, resumption_id) in ids {
            let claimant = Claimant {
                node,
                id: *id,
                resumption_id: *resumption_id,
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
        let mut taken = taken.clone();
        // What this node has sent until now is that one's to take, since this node does not hear itself.
        if let Some(link) = self.link() {
            let mark = self.queue().mark(self.leases.blocks().block_of(id));
            taken.note_place(self.node, (link.number, mark));
        }
        claim.taken = Some(taken);
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
            cut: seen.clone(),
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::super::envelope::Seen;
    use super::super::tests::{client, node};
    use super::*;

    const ONE: Node = Node(1 << 50);
    const TWO: Node = Node(2 << 50);
    const THREE: Node = Node(3 << 50);

    const TIMEOUT: Duration = Duration::from_secs(15);
    const MOMENT: Duration = Duration::from_millis(1);
    /// The first without the second.
    const ALMOST: Duration = Duration::from_millis(14_999);

    fn user(id: u64) -> UserId {
        UserId::new(id).unwrap()
    }

    /// Of the user who was given the id first.
    fn a() -> ResumptionId {
        ResumptionId::from(1)
    }

    /// Of somebody else.
    fn b() -> ResumptionId {
        ResumptionId::from(2)
    }

    fn message(node: Node, mark: u64) -> ReplyTo {
        ReplyTo {
            node,
            link: 1,
            seen: Seen { block: 1, mark },
            token: None,
        }
    }

    fn cut(node: Node, mark: u64) -> Cut {
        let mut cut = Cut::default();
        cut.note(message(node, mark));
        cut
    }

    /// A node's claim, at once or again by its next link.
    fn claims(
        shared: &Shared,
        node: Node,
        id: u64,
        resumption_id: ResumptionId,
        again: bool,
    ) -> Reply {
        let claimant = Claimant {
            node,
            id: user(id),
            resumption_id,
            again,
        };
        shared.grant(claimant, &Cut::default())
    }

    /// Whom the claimant has to ask next; an error where it is refused.
    fn claim(
        shared: &Shared,
        node: Node,
        id: u64,
        resumption_id: ResumptionId,
    ) -> Result<Option<Node>, Refusal> {
        match claims(shared, node, id, resumption_id, false) {
            Reply::Granted(grant) => Ok(grant.previous),
            Reply::Refused(refusal) => Err(refusal),
            Reply::Lost(_) => panic!("no renewal"),
        }
    }

    /// Whether the node has the id still.
    fn renews(shared: &Shared, node: Node, id: u64, resumption_id: ResumptionId) -> bool {
        let lost = shared.renew(node, &[(user(id), resumption_id)], true, &Cut::default());
        lost.is_empty()
    }

    fn release(shared: &Shared, node: Node, id: u64) -> Option<Node> {
        shared.release(node, user(id), None, &Cut::default())
    }

    /// Who has the ids from 1 on, and how many the holder counts.
    fn check(shared: &Shared, expected: &[Option<Node>]) {
        let found = (1..).take(expected.len());
        let found: Vec<_> = found.map(|id| shared.claims.of(user(id))).collect();
        assert_eq!(found, expected);
        assert_eq!(
            shared.claims.len(),
            expected.iter().flatten().count(),
            "those that are held"
        );
    }

    #[test]
    fn the_last_who_claims_an_id_has_it_and_asks_the_one_before() {
        let shared = node(|_| {});
        assert_eq!(claim(&shared, ONE, 1, a()), Ok(None));
        check(&shared, &[Some(ONE), None]);
        assert_eq!(claim(&shared, ONE, 1, a()), Ok(None), "nobody else had it");
        assert_eq!(claim(&shared, TWO, 1, a()), Ok(Some(ONE)));
        assert_eq!(claim(&shared, THREE, 1, a()), Ok(Some(TWO)));
        check(&shared, &[Some(THREE), None]);
        let renewed = [ONE, TWO, THREE].map(|node| renews(&shared, node, 1, a()));
        assert_eq!(renewed, [false, false, true]);
        assert_eq!(claim(&shared, ONE, 2, a()), Ok(None));
        check(&shared, &[Some(THREE), Some(ONE)]);
    }

    #[test]
    fn an_id_of_another_lineage_is_refused_to_all() {
        let in_use = Err(Refusal::InUse);
        let shared = node(|_| {});
        let own = client(&shared, user(1), a());
        assert_eq!(claim(&shared, ONE, 1, b()), in_use, "its user is here");
        assert!(own.is_open());
        check(&shared, &[None]);
        assert_eq!(claim(&shared, ONE, 1, a()), Ok(None));
        assert!(!own.is_open(), "it has given way");
        for node in [ONE, TWO] {
            assert_eq!(claim(&shared, node, 1, b()), in_use);
            assert!(!renews(&shared, node, 1, b()));
        }
        assert_eq!(shared.come_home(user(1), b()), Some(Own::InUse));
        check(&shared, &[Some(ONE)]);
        // It is anybody's who comes, once it is released.
        assert_eq!(release(&shared, ONE, 1), None);
        assert_eq!(claim(&shared, TWO, 1, b()), Ok(None));
    }

    #[test]
    fn no_user_here_gives_way_to_one_that_was_elsewhere_before() {
        let shared = node(|_| {});
        let own = client(&shared, user(1), a());
        let refused = Reply::Refused(Refusal::InUse);
        assert_eq!(claims(&shared, ONE, 1, a(), true), refused);
        assert!(!renews(&shared, ONE, 1, a()));
        assert!(own.is_open());
        // Nobody is here with this one: the claim has lapsed, or this node has not heard of it.
        assert!(renews(&shared, ONE, 2, a()));
        check(&shared, &[None, Some(ONE)]);
    }

    #[test]
    fn what_was_released_is_not_renewed() {
        let shared = node(|_| {});
        claim(&shared, ONE, 1, a()).unwrap();
        assert_eq!(release(&shared, ONE, 1), None);
        check(&shared, &[None]);
        // On its way when the user left.
        assert!(!renews(&shared, ONE, 1, a()));
        check(&shared, &[None]);
        assert_eq!(release(&shared, ONE, 1), None, "once is enough");
        check(&shared, &[None]);
        assert_eq!(claim(&shared, ONE, 1, a()), Ok(None));
        assert!(renews(&shared, ONE, 1, a()));
        check(&shared, &[Some(ONE)]);
    }

    #[test]
    fn who_releases_an_id_is_told_who_will_ask_for_it() {
        let shared = node(|_| {});
        claim(&shared, ONE, 1, a()).unwrap();
        claim(&shared, TWO, 1, a()).unwrap();
        assert_eq!(release(&shared, ONE, 1), Some(TWO));
        check(&shared, &[Some(TWO)]);
        // Nothing came of it: it is the other's again.
        let back = shared.release(TWO, user(1), Some(ONE), &Cut::default());
        assert_eq!(back, None);
        check(&shared, &[Some(ONE)]);
        assert!(renews(&shared, ONE, 1, a()) && !renews(&shared, TWO, 1, a()));
        assert_eq!(release(&shared, ONE, 1), None);
        assert_eq!(release(&shared, TWO, 2), None, "it never had that one");
        check(&shared, &[None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_lasts_as_long_as_it_is_renewed() {
        let shared = node(|settings| settings.claim_timeout = TIMEOUT);
        claim(&shared, ONE, 1, a()).unwrap();
        claim(&shared, ONE, 2, a()).unwrap();
        claim(&shared, ONE, 3, a()).unwrap();
        release(&shared, ONE, 3);
        advance(ALMOST).await;
        shared.lapse(shared.now());
        assert!(renews(&shared, ONE, 1, a()));
        check(&shared, &[Some(ONE), Some(ONE), None]);
        advance(MOMENT).await;
        shared.lapse(shared.now());
        check(&shared, &[Some(ONE), None, None]);
        let kept: Vec<_> = shared.claims.table().keys().copied().collect();
        assert_eq!(kept, [user(1)], "nor is what was released kept for longer");
        // Nothing could be heard.
        advance(ALMOST).await;
        shared.extend_claims();
        advance(ALMOST).await;
        shared.lapse(shared.now());
        check(&shared, &[Some(ONE), None, None]);
        advance(MOMENT).await;
        shared.lapse(shared.now());
        check(&shared, &[None, None, None]);
        assert!(shared.claims.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_comes_home_from_whoever_has_it() {
        let shared = node(|settings| settings.claim_timeout = TIMEOUT);
        let home = |id, resumption_id| shared.come_home(user(id), resumption_id);
        assert_eq!(home(1, a()), Some(Own::Home));
        assert_eq!(home(1025, a()), None, "the block is not this node's");
        claim(&shared, ONE, 2, a()).unwrap();
        assert_eq!(home(2, b()), Some(Own::InUse));
        assert_eq!(home(2, a()), Some(Own::From(ONE)));
        check(&shared, &[None, Some(shared.node)]);
        assert!(!renews(&shared, ONE, 2, a()), "that one has it no more");
        // Or it was not given, after all.
        shared.release(shared.node, user(2), Some(ONE), &Cut::default());
        assert!(renews(&shared, ONE, 2, a()));
        assert_eq!(home(2, a()), Some(Own::From(ONE)));
        // It leaves again, as from any node.
        assert_eq!(claim(&shared, TWO, 2, a()), Ok(Some(shared.node)));
        assert!(!shared.keep_own(user(2), a()));
        assert_eq!(release(&shared, shared.node, 2), Some(TWO));
        release(&shared, TWO, 2);
        assert_eq!(home(2, b()), Some(Own::Home));
        check(&shared, &[None, None]);
        // A claim of this node's own is renewed as others are.
        claim(&shared, ONE, 3, a()).unwrap();
        claim(&shared, ONE, 4, a()).unwrap();
        home(3, a());
        home(4, a());
        advance(ALMOST).await;
        assert!(shared.keep_own(user(3), a()));
        advance(MOMENT).await;
        shared.lapse(shared.now());
        check(&shared, &[None, None, Some(shared.node), None]);
    }

    #[test]
    fn a_guest_keeps_its_id_when_the_block_becomes_this_nodes() {
        let shared = node(|settings| settings.claims = 2);
        assert!(shared.keep_own(user(1), a()));
        check(&shared, &[Some(shared.node)]);
        assert!(shared.keep_own(user(1), a()));
        check(&shared, &[Some(shared.node)]);
        assert!(!shared.keep_own(user(1025), a()), "that one has not");
        claim(&shared, ONE, 2, a()).unwrap();
        assert!(!shared.keep_own(user(2), a()), "another node has it");
        assert!(!shared.keep_own(user(3), a()), "cluster.claims is used up");
        release(&shared, ONE, 2);
        assert!(!shared.keep_own(user(2), a()), "another node has had it");
        assert!(shared.keep_own(user(3), a()));
        check(&shared, &[Some(shared.node), None, Some(shared.node)]);
        shared.release(shared.node, user(3), None, &Cut::default());
        assert!(!shared.keep_own(user(3), a()), "its user has left");
        // No new user gets it.
        assert_eq!(shared.leases.unspent(), shared.leases.blocks().size() - 3);
    }

    #[test]
    fn no_more_are_claimed_than_may_be() {
        const MAX: u64 = 3;
        let shared = node(|settings| settings.claims = 3);
        let full = Err(Refusal::Unavailable);
        for round in 0..10 {
            let first = round * MAX + 1;
            for id in first..first + MAX {
                assert_eq!(claim(&shared, ONE, id, a()), Ok(None));
            }
            assert_eq!(claim(&shared, ONE, first + MAX, a()), full);
            // Those that are claimed already may move.
            assert_eq!(claim(&shared, TWO, first, a()), Ok(Some(ONE)));
            release(&shared, TWO, first);
            for id in first + 1..first + MAX {
                release(&shared, ONE, id);
            }
            assert_eq!(shared.claims.len(), 0);
            let most = 2 * usize::try_from(MAX).unwrap();
            assert!(shared.claims.table().len() <= most, "in round {round}");
        }
        assert_eq!(claim(&shared, ONE, 1025, a()), full, "of another's block");
        assert_eq!(shared.claims.len(), 0);
    }

    /// For as long as somebody has an id of it, whatever way that one goes, and no longer.
    #[tokio::test(start_paused = true)]
    async fn a_block_is_held_while_an_id_of_it_is_claimed() {
        type Ends = fn(&Shared);
        let ends: [(&str, Ends); 5] = [
            ("released", |shared| {
                assert_eq!(release(shared, ONE, 2), None);
            }),
            ("released by the next", |shared| {
                claim(shared, TWO, 2, a()).unwrap();
                release(shared, ONE, 2);
                release(shared, TWO, 2);
            }),
            ("released here", |shared| {
                shared.come_home(user(2), a());
                shared.release_own(user(2), &Cut::default());
            }),
            ("claimed again and again", |shared| {
                claim(shared, ONE, 2, a()).unwrap();
                release(shared, ONE, 2);
                assert!(!renews(shared, ONE, 2, a()));
            }),
            ("lapsed", |shared| shared.lapse(u64::MAX)),
        ];
        for (how, end) in ends {
            let shared = node(|settings| settings.block_size = 2.try_into().unwrap());
            claim(&shared, ONE, 2, a()).unwrap();
            assert_eq!(shared.leases.list(), [1], "{how}");
            assert_eq!(shared.leases.unspent(), 0, "{how}");
            end(&shared);
            assert!(shared.leases.list().is_empty(), "{how}");
        }
    }

    #[test]
    fn who_holds_the_block_is_silent_for_what_others_take() {
        let shared = node(|_| {});
        let is_silent = |node, mark| shared.claims.silence(user(1), message(node, mark));
        let check = |expected: [bool; 3], when| {
            let found = [ONE, TWO, THREE].map(|node| is_silent(node, 10));
            assert_eq!(found, expected, "{when}");
        };
        check([false; 3], "it is nobody's");
        claim(&shared, ONE, 1, a()).unwrap();
        // A node hears nothing of itself, and nobody but this one had the id before.
        check([false, true, true], "from here to one");
        claim(&shared, TWO, 1, a()).unwrap();
        check([true; 3], "from one to two");
        shared.release(TWO, user(1), None, &cut(ONE, 10));
        check([true, false, false], "two has taken that much");
        assert!(!is_silent(ONE, 11));
        // Whoever has it next skips that, too, and what was seen here.
        let claimant = Claimant {
            node: THREE,
            id: user(1),
            resumption_id: a(),
            again: false,
        };
        let Reply::Granted(grant) = shared.grant(claimant, &cut(TWO, 5)) else {
            panic!("it is nobody's");
        };
        assert_eq!(grant.holder, Some(shared.node));
        let covered = [(ONE, 10), (ONE, 11), (TWO, 5)]
            .map(|(node, mark)| grant.cut.covers(message(node, mark)));
        assert_eq!(covered, [true, false, true]);
        shared.come_home(user(1), a());
        check([true, true, true], "the guest here takes it");
    }
}
