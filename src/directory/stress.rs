//! The directory under real threads: many users and the real cells, which the model checker's few steps cannot
//! cover. Users come and go in the lowest segments, which are retired and created again all the time, and
//! with new ids, so that the newest segment changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::{Budget, Client, Directory, MailboxBounds, SLOTS};
use crate::config::Overflow;
use crate::identity::{ResumptionId, UserId, UserIdentity};
use crate::protocol::Dialect;
use crate::telemetry::metrics::{DirectoryStats, Metrics};

const THREADS: usize = 4;
const RUNS_FOR: Duration = Duration::from_millis(1500);
/// The lowest segments, which all threads use.
const BUSY_SEGMENTS: u64 = 3;
/// Users of each thread at a time.
const USERS: usize = 3;

/// What one thread tells the others: the user that it joined last and that has not left, if any, with a
/// number that is never used again.
#[derive(Default)]
struct LastJoined(AtomicU64);

impl LastJoined {
    fn set(&self, turn: u64, id: UserId) {
        self.0.store(turn << 32 | id.get(), Ordering::SeqCst);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Whether `found` finds the user. Also true where there is none, or it has left meanwhile.
    fn holds(&self, found: impl FnOnce(UserId) -> bool) -> bool {
        let posted = self.0.load(Ordering::SeqCst);
        match UserId::new(posted & 0xffff_ffff) {
            Some(id) => found(id) || self.0.load(Ordering::SeqCst) != posted,
            None => true,
        }
    }
}

struct StressTest {
    directory: Directory,
    bounds: Arc<MailboxBounds>,
    metrics: Arc<Metrics>,
    last_joined: [LastJoined; THREADS],
    new_ids: AtomicU64,
    until: Instant,
    is_over: AtomicBool,
}

impl StressTest {
    fn join(&self, id: UserId) -> Arc<Client> {
        let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
        let identity = UserIdentity {
            id,
            resumption_id: ResumptionId::from(0),
        };
        let client = Arc::new(Client::new(identity, Dialect::Bare, None, bounds, metrics));
        assert!(self.directory.join(&client));
        let id = client.id();
        assert!(self.finds(&client), "{id} has joined and is not found");
        client
    }

    fn finds(&self, client: &Arc<Client>) -> bool {
        let found =
            |found: Option<&Arc<Client>>| found.is_some_and(|found| Arc::ptr_eq(found, client));
        self.directory.with(client.id(), found)
    }

    /// An id that only this thread uses: in a busy segment, or a new one, four to a segment.
    fn pick(&self, thread: u64, busy: bool, random: &mut fastrand::Rng) -> UserId {
        let number = if busy {
            random.u64(0..BUSY_SEGMENTS) * SLOTS as u64 + 1 + thread
        } else {
            let new = self.new_ids.fetch_add(1, Ordering::Relaxed);
            (BUSY_SEGMENTS + new / 4) * SLOTS as u64 + 1 + new % 4
        };
        UserId::new(number).expect("a small id")
    }

    /// Lets users come and go until the time is over. Then all leave.
    fn churn(&self, thread: u64, last_joined: &LastJoined) {
        let mut random = fastrand::Rng::with_seed(thread);
        let mut clients: Vec<Arc<Client>> = Vec::new();
        for turn in 1.. {
            let over = Instant::now() >= self.until;
            if clients.len() == USERS || over {
                last_joined.clear();
                let Some(at) = (!clients.is_empty()).then(|| random.usize(..clients.len())) else {
                    return;
                };
                let client = clients.swap_remove(at);
                if !over && random.u8(..) < 64 {
                    // It is replaced, and then it leaves.
                    let newer = self.join(client.id());
                    assert!(!self.finds(&client));
                    assert!(!client.is_open(), "a replaced client accepts no messages");
                    self.directory.leave(&client);
                    clients.push(newer);
                } else {
                    self.directory.leave(&client);
                    assert!(
                        !self.finds(&client),
                        "{} has left and is found",
                        client.id()
                    );
                }
            } else {
                let busy = random.u8(..) < 192;
                let id = self.pick(thread, busy, &mut random);
                if clients.iter().all(|client| client.id() != id) {
                    clients.push(self.join(id));
                    last_joined.set(turn, id);
                }
            }
            for client in &clients {
                assert!(
                    self.finds(client),
                    "{} is here and is not found",
                    client.id()
                );
            }
        }
    }

    /// Looks up the users that the other threads name.
    fn look(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            for last_joined in &self.last_joined {
                let is_found =
                    last_joined.holds(|id| self.directory.with(id, |client| client.is_some()));
                assert!(is_found, "other threads do not find a user that has joined");
            }
        }
    }
}

#[test]
fn threads_neither_lose_nor_leave_behind_a_user() {
    let world = StressTest {
        directory: Directory::new(),
        bounds: Arc::new(MailboxBounds {
            messages: 1,
            bytes: 1,
            max_age: Duration::MAX,
            overflow: Overflow::DropNewest,
            budget: Budget::new(1),
        }),
        metrics: Arc::new(Metrics::new(1)),
        last_joined: Default::default(),
        new_ids: AtomicU64::new(0),
        until: Instant::now() + RUNS_FOR,
        is_over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let churns: Vec<_> = (0..)
            .zip(&world.last_joined)
            .map(|(thread, last_joined)| {
                scope.spawn({
                    let world = &world;
                    move || world.churn(thread, last_joined)
                })
            })
            .collect();
        let look = scope.spawn(|| world.look());
        let churned: Vec<_> = churns
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        world.is_over.store(true, Ordering::Relaxed);
        look.join().unwrap();
        for result in churned {
            result.unwrap();
        }
    });
    let all_have_left = DirectoryStats {
        segments: 1,
        ..DirectoryStats::default()
    };
    assert_eq!(world.directory.stats(), all_have_left);
    assert!(world.new_ids.into_inner() > 100);
}
