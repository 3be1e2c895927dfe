//! Users here who came back with a ticket for an id of another node's block, or of nobody's: the table of
//! their stays. Such an id has a subscription of its own, and whoever had the id before goes silent for it:
//! the holder of its block, or the node that the user was on last. While it is not known what that one has
//! seen, what comes waits; then what it had seen is skipped, so nothing is taken twice and nothing by
//! nobody.
//!
//! ```text
//! arrive → host: one task a guest and link, until the id goes to another node or back to its holder
//!            ↑
//!          renew: says who is here, and claims anew what a link had
//! ```

mod arrive;
mod host;
mod renew;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::claims::Own;
use super::envelope::Node;
use super::handover::{Cut, Grant, Refusal, Reply};
use super::{Cluster, Shared};
use crate::directory::Command;
use crate::identity::{ResumptionId, UserId, UserIdentity};
use crate::protocol::close_code;
use arrive::arrive;
pub(super) use renew::{Returning, keep, listen_again};

/// The ids that are guests here.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// Read before the lock is taken, since mostly there are none.
    count: AtomicUsize,
    table: Mutex<HashMap<UserId, Stay>>,
    /// Told whenever a stay begins or ends.
    changed: Notify,
    numbers: AtomicU64,
}

/// One id that is a guest here.
#[derive(Debug)]
struct Stay {
    /// Tells it from another stay of the same id.
    number: u64,
    resumption_id: ResumptionId,
    /// Connections, of which all but the last have given way.
    users: u32,
    phase: Phase,
    /// From its arrival until its link is lost.
    task: Option<Task>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The id is being claimed.
    Arriving,
    Here,
    /// The last user has left, and the id is given back; or another node has it.
    Leaving,
}

/// The task that takes a guest's messages, as others see it.
#[derive(Clone, Debug)]
struct Task {
    /// The number of its link.
    link: u32,
    /// Whoever asks for the id, and is told what was seen.
    takers: mpsc::Sender<oneshot::Sender<Cut>>,
    leave: CancellationToken,
    /// The number of the node that holds the block; 0 for nobody.
    holder: Arc<AtomicU64>,
}

/// One who is here, as others are told of it.
#[derive(Clone, Copy, Debug)]
struct Staying {
    id: UserId,
    resumption_id: ResumptionId,
    /// That of its stay.
    number: u64,
}

type Takers = mpsc::Receiver<oneshot::Sender<Cut>>;

/// A guest's connection. Dropping it leaves.
pub(crate) struct MigratedId {
    shared: Arc<Shared>,
    id: UserId,
    number: u64,
}

/// How somebody has an id that it has come back with.
#[derive(Debug)]
pub(crate) enum Ownership {
    /// The id is of a block of this node.
    Local,
    Migrated(Box<MigratedId>),
}

/// What comes of asking for an id here.
enum Admission {
    Home,
    Stays(MigratedId),
    Refused(Refusal),
    /// It is on its way in or out.
    Wait,
    /// It is to be claimed, for the stay of this number; where it is of a block of this node, from that
    /// other node.
    Arrives(u64, Option<Node>),
}

impl Stay {
    /// It is to be given back. Whether there is no task to do so.
    fn leave(&mut self) -> bool {
        self.phase = Phase::Leaving;
        let Some(task) = &self.task else { return true };
        task.leave.cancel();
        false
    }

    fn is_served_by(&self, link: u32) -> bool {
        self.task.as_ref().is_some_and(|task| task.link == link)
    }
}

impl Guests {
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether the id is a guest here.
    pub(super) fn has(&self, id: UserId) -> bool {
        self.len() > 0 && self.table().contains_key(&id)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<UserId, Stay>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on a stay; nothing where it is over.
    fn with<R>(&self, id: UserId, number: u64, f: impl FnOnce(&mut Stay) -> R) -> Option<R> {
        let mut table = self.table();
        let stay = table.get_mut(&id).filter(|stay| stay.number == number)?;
        Some(f(stay))
    }

    /// Ends a stay. Whether it was there.
    fn remove(&self, id: UserId, number: u64) -> bool {
        let mut table = self.table();
        let is_there = table.get(&id).is_some_and(|stay| stay.number == number);
        if is_there {
            table.remove(&id);
            self.count.store(table.len(), Ordering::Release);
        }
        drop(table);
        self.changed.notify_waiters();
        is_there
    }

    /// Those who are here, of whom this holds.
    fn staying(&self, is_meant: impl Fn(&Stay) -> bool) -> Vec<Staying> {
        if self.len() == 0 {
            return Vec::new();
        }
        let table = self.table();
        let here = table
            .iter()
            .filter(|(_, stay)| stay.phase == Phase::Here && is_meant(stay));
        let staying = here.map(|(id, stay)| Staying {
            id: *id,
            resumption_id: stay.resumption_id,
            number: stay.number,
        });
        staying.collect()
    }

    /// The block of this one is held by that node from now on, or by nobody.
    fn note_holder(&self, staying: Staying, holder: Option<Node>) {
        self.with(staying.id, staying.number, |stay| {
            if let Some(task) = &stay.task {
                let number = holder.map_or(0, |node| node.0);
                task.holder.store(number, Ordering::Relaxed);
            }
        });
    }

    /// Waits until the last one has left.
    pub(super) async fn all_left(&self) {
        loop {
            let changed = self.changed.notified();
            if self.len() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn begin(
        &self,
        table: &mut HashMap<UserId, Stay>,
        id: UserId,
        resumption_id: ResumptionId,
    ) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let stay = Stay {
            number,
            resumption_id,
            users: 0,
            phase: Phase::Arriving,
            task: None,
        };
        table.insert(id, stay);
        self.count.store(table.len(), Ordering::Release);
        number
    }
}

impl Cluster {
    /// Takes an id that somebody comes back with, wherever it was.
    pub(crate) async fn take_back(
        &self,
        id: UserId,
        resumption_id: ResumptionId,
    ) -> Result<Ownership, Refusal> {
        let shared = &self.shared;
        let taken = timeout(
            shared.settings.link_timeout,
            shared.take_back(id, resumption_id),
        )
        .await;
        taken.unwrap_or(Err(Refusal::Unavailable))
    }

    /// Whether an id of a block of this node is on another by now.
    pub(crate) fn is_claimed(&self, id: UserId) -> bool {
        self.shared.claims.of(id).is_some()
    }
}

impl MigratedId {
    /// Whether nobody has taken the id meanwhile.
    pub(crate) fn is_current(&self) -> bool {
        let phase = self
            .shared
            .guests
            .with(self.id, self.number, |stay| stay.phase);
        phase == Some(Phase::Here)
    }
}

impl Drop for MigratedId {
    fn drop(&mut self) {
        let is_over = self.shared.guests.with(self.id, self.number, |stay| {
            stay.users = stay.users.saturating_sub(1);
            stay.users == 0 && stay.leave()
        });
        if is_over == Some(true) {
            self.shared.forget_guest(self.id, self.number);
        }
    }
}

impl std::fmt::Debug for MigratedId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn take_back(
        self: &Arc<Self>,
        id: UserId,
        resumption_id: ResumptionId,
    ) -> Result<Ownership, Refusal> {
        loop {
            let changed = self.guests.changed.notified();
            match self.admit(id, resumption_id) {
                Admission::Home => return Ok(Ownership::Local),
                Admission::Stays(guest) => return Ok(Ownership::Migrated(Box::new(guest))),
                Admission::Refused(refusal) => return Err(refusal),
                Admission::Wait => changed.await,
                Admission::Arrives(number, previous) => {
                    // A task of its own, since whoever waits here may leave at any time.
                    let (tell, told) = oneshot::channel();
                    let staying = Staying {
                        id,
                        resumption_id,
                        number,
                    };
                    let arriving = arrive(self.clone(), staying, previous);
                    self.tracker.spawn(async move {
                        // Whoever has left has left: the guest goes with the answer.
                        let _left = tell.send(arriving.await).is_err();
                    });
                    let arrived = told.await.unwrap_or(Err(Refusal::Unavailable));
                    return arrived.map(|guest| Ownership::Migrated(Box::new(guest)));
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, id: UserId, resumption_id: ResumptionId) -> Admission {
        let mut table = self.guests.table();
        if let Some(stay) = table.get_mut(&id) {
            if stay.phase != Phase::Here {
                return Admission::Wait;
            }
            if stay.resumption_id != resumption_id {
                return Admission::Refused(Refusal::InUse);
            }
            stay.users += 1;
            return Admission::Stays(MigratedId {
                shared: self.clone(),
                id,
                number: stay.number,
            });
        }
        let previous = match self.come_home(id, resumption_id) {
            Some(Own::Home) => return Admission::Home,
            Some(Own::InUse) => return Admission::Refused(Refusal::InUse),
            Some(Own::From(previous)) => Some(previous),
            None if table.len() >= self.settings.claims as usize => {
                return Admission::Refused(Refusal::Unavailable);
            }
            None => None,
        };
        Admission::Arrives(self.guests.begin(&mut table, id, resumption_id), previous)
    }

    /// Gives a guest to whoever asks for it by name, once it is settled whether it is here; what was
    /// seen of its messages.
    pub(super) async fn give(&self, id: UserId, resumption_id: ResumptionId) -> Reply {
        let asked = async {
            loop {
                let changed = self.guests.changed.notified();
                let (phase, task) = match self.guests.table().get(&id) {
                    None => return Reply::Granted(Grant::default()),
                    Some(stay) if stay.resumption_id != resumption_id => {
                        return Reply::Refused(Refusal::InUse);
                    }
                    Some(stay) => (stay.phase, stay.task.clone()),
                };
                let Some(task) = task.filter(|_| phase != Phase::Arriving) else {
                    changed.await;
                    continue;
                };
                let (tell, told) = oneshot::channel();
                if task.takers.send(tell).await.is_ok()
                    && let Ok(cut) = told.await
                {
                    return Reply::Granted(Grant {
                        cut,
                        ..Grant::default()
                    });
                }
                // The task has ended otherwise.
                changed.await;
            }
        };
        let given = timeout(self.settings.link_timeout, asked).await;
        given.unwrap_or(Reply::Refused(Refusal::Unavailable))
    }

    /// A guest is here no more: another node has it.
    fn evict(&self, id: UserId, number: u64, resumption_id: ResumptionId) {
        // Who has no seat yet sees that; and nobody comes anew before this is over.
        let leaving = |stay: &mut Stay| stay.phase = Phase::Leaving;
        if self.guests.with(id, number, leaving).is_some() {
            self.directory.revoke(UserIdentity { id, resumption_id });
            self.guests.remove(id, number);
        }
    }

    /// A guest has left without a link. Nobody can be told: its claim lapses, where it is not this node's.
    fn forget_guest(&self, id: UserId, number: u64) {
        self.release(self.node, id, None, &Cut::default());
        self.guests.remove(id, number);
    }

    /// A guest can have its id no longer. The user is told to end, and the guest leaves at once and in
    /// order: where another node has claimed the id, that may be about to ask what was seen.
    fn turn_out(&self, staying: Staying, refusal: Refusal) {
        let Staying {
            id,
            resumption_id,
            number,
        } = staying;
        let leaving = |stay: &mut Stay| stay.phase = Phase::Leaving;
        if self.guests.with(id, number, leaving).is_none() {
            return;
        }
        if refusal == Refusal::Unavailable {
            // Nobody else is known to have it: the client may come back with it.
            self.directory.with(id, |client| {
                if let Some(client) =
                    client.filter(|client| client.identity().resumption_id == resumption_id)
                {
                    client.command(Command::Close {
                        code: close_code::TRY_AGAIN,
                        reason: "the id cannot be had",
                    });
                }
            });
        }
        self.directory.revoke(UserIdentity { id, resumption_id });
        if self.guests.with(id, number, Stay::leave) == Some(true) {
            self.forget_guest(id, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::handover::Claimant;
    use super::super::tests::{client, node};
    use super::*;
    use crate::directory::Flushed;

    /// An id of a block of another node, as long as a node holds the first block.
    const ELSEWHERE: u64 = 1025;

    fn user(id: u64) -> UserId {
        UserId::new(id).unwrap()
    }

    fn resumption_id() -> ResumptionId {
        ResumptionId::from(1)
    }

    /// A guest of a node, and its connection; where it is served by a link, what the task of it hears.
    pub(super) fn guest(
        shared: &Arc<Shared>,
        id: u64,
        link: Option<u32>,
    ) -> (Staying, MigratedId, Option<Takers>) {
        let (id, resumption_id) = (user(id), resumption_id());
        let number = shared
            .guests
            .begin(&mut shared.guests.table(), id, resumption_id);
        let (takers, asks) = mpsc::channel(1);
        shared.guests.with(id, number, |stay| {
            stay.users = 1;
            stay.phase = Phase::Here;
            stay.task = link.map(|link| Task {
                link,
                takers,
                leave: CancellationToken::new(),
                holder: Arc::default(),
            });
        });
        let guest = MigratedId {
            shared: shared.clone(),
            id,
            number,
        };
        let staying = Staying {
            id,
            resumption_id,
            number,
        };
        (staying, guest, link.map(|_| asks))
    }

    fn phase(shared: &Shared, staying: Staying) -> Option<Phase> {
        let Staying { id, number, .. } = staying;
        shared.guests.with(id, number, |stay| stay.phase)
    }

    fn is_refused(admission: &Admission, expected: Refusal) -> bool {
        matches!(admission, Admission::Refused(refusal) if *refusal == expected)
    }

    #[test]
    fn who_is_turned_out_has_no_seat_and_nobody_is_let_in_before_the_id_is_given_back() {
        let refusals = [
            (Refusal::InUse, close_code::TAKEN_OVER),
            (Refusal::Unavailable, close_code::TRY_AGAIN),
        ];
        for (refusal, expected) in refusals {
            let shared = node(|_| {});
            let (staying, guest, takers) = guest(&shared, ELSEWHERE, Some(1));
            let seated = client(&shared, staying.id, staying.resumption_id);
            assert!(guest.is_current());
            shared.turn_out(staying, refusal);
            assert!(!seated.is_open());
            let command = seated.settle(Flushed::default());
            assert!(matches!(command, Some(Command::Close { code, .. }) if code == expected));
            assert!(!guest.is_current(), "nor has one who is seated only now");
            let admission = shared.admit(staying.id, staying.resumption_id);
            assert!(matches!(admission, Admission::Wait));
            drop(guest);
            assert_eq!(phase(&shared, staying), Some(Phase::Leaving));
            // Its task has ended.
            drop(takers);
            shared.guests.remove(staying.id, staying.number);
            let admission = shared.admit(staying.id, staying.resumption_id);
            assert!(matches!(admission, Admission::Arrives(_, None)));
        }
    }

    #[test]
    fn who_leaves_without_a_link_leaves_at_once() {
        let shared = node(|_| {});
        for id in [1, ELSEWHERE] {
            let (staying, guest, _) = guest(&shared, id, None);
            shared.renew_own();
            assert_eq!(shared.claims.len(), usize::from(id == 1));
            drop(guest);
            assert_eq!(phase(&shared, staying), None);
            assert_eq!(shared.claims.len(), 0);
        }
        for id in [2, ELSEWHERE] {
            let (staying, guest, _) = guest(&shared, id, None);
            shared.renew_own();
            shared.turn_out(staying, Refusal::Unavailable);
            assert_eq!(phase(&shared, staying), None);
            assert!(!guest.is_current());
            // What is over stays so.
            let (next, _newer, _) = self::guest(&shared, id, None);
            shared.turn_out(staying, Refusal::InUse);
            drop(guest);
            assert_eq!(phase(&shared, next), Some(Phase::Here));
        }
    }

    #[test]
    fn the_last_of_several_connections_leaves() {
        let shared = node(|_| {});
        let (staying, first, _takers) = guest(&shared, ELSEWHERE, Some(1));
        let Admission::Stays(second) = shared.admit(staying.id, staying.resumption_id) else {
            panic!("it is here");
        };
        let stranger = shared.admit(staying.id, ResumptionId::from(2));
        assert!(is_refused(&stranger, Refusal::InUse));
        drop(first);
        assert_eq!(phase(&shared, staying), Some(Phase::Here));
        drop(second);
        assert_eq!(phase(&shared, staying), Some(Phase::Leaving));
    }

    #[test]
    fn no_more_guests_come_than_may() {
        let shared = node(|settings| settings.claims = 2);
        let bring = |id| shared.admit(user(id), resumption_id());
        for id in [ELSEWHERE, ELSEWHERE + 1] {
            assert!(matches!(bring(id), Admission::Arrives(_, None)));
        }
        assert!(is_refused(&bring(ELSEWHERE + 2), Refusal::Unavailable));
        assert!(matches!(bring(ELSEWHERE), Admission::Wait));
        assert!(matches!(bring(1), Admission::Home), "that one is none");
        assert_eq!(shared.guests.len(), 2);
    }

    #[test]
    fn a_guest_stays_when_its_block_becomes_this_nodes() {
        let shared = node(|_| {});
        let (staying, guest, _takers) = guest(&shared, ELSEWHERE, Some(1));
        shared.renew_own();
        assert_eq!(shared.claims.len(), 0);
        shared.leases.add(2);
        shared.renew_own();
        assert_eq!(shared.claims.of(staying.id), Some(shared.node));
        assert!(guest.is_current());
        // Until another node claims the id.
        let claimant = Claimant {
            node: Node(1 << 50),
            id: staying.id,
            resumption_id: staying.resumption_id,
            again: false,
        };
        let Reply::Granted(grant) = shared.grant(claimant, &Cut::default()) else {
            panic!("it may");
        };
        assert_eq!(grant.previous, Some(shared.node));
        shared.renew_own();
        assert!(!guest.is_current());
        assert_eq!(shared.claims.of(staying.id), Some(claimant.node));
    }

    #[test]
    fn those_whom_the_present_link_does_not_serve_are_claimed_again() {
        let shared = node(|_| {});
        let _guests = [None, Some(1), Some(2)].map(|link| {
            let id = ELSEWHERE + u64::from(link.unwrap_or(0));
            guest(&shared, id, link)
        });
        let (leaving, _guest, _takers) = guest(&shared, ELSEWHERE + 3, Some(1));
        shared.turn_out(leaving, Refusal::InUse);
        let meant = shared.guests.staying(|stay| !stay.is_served_by(2));
        let mut meant: Vec<_> = meant.iter().map(|staying| staying.id.get()).collect();
        meant.sort_unstable();
        assert_eq!(meant, [ELSEWHERE, ELSEWHERE + 1]);
    }
}
