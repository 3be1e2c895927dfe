//! The directory under real threads, for a while: what the model checker's few steps cannot show,
//! many users and the true cells. Users come and go in the lowest segments, which are retired and
//! made anew all the time, and with new ids, so that the newest segment moves on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::{Bounds, Budget, Directory, Overflow, SLOTS, Seat};
use crate::identity::{Lineage, UserId};
use crate::protocol::Dialect;
use crate::telemetry::metrics::{Census, Metrics};

const THREADS: usize = 4;
const RUNS_FOR: Duration = Duration::from_millis(1500);
/// The lowest segments, where everybody meets.
const BUSY_SEGMENTS: u64 = 3;
/// Users that each thread has at a time.
const USERS: usize = 3;

/// What one thread tells the others: the user that it last joined and that has not left, if any,
/// under a number that never comes again.
#[derive(Default)]
struct Posted(AtomicU64);

impl Posted {
    fn post(&self, turn: u64, id: UserId) {
        self.0.store(turn << 32 | id.get(), Ordering::SeqCst);
    }

    fn withdraw(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Asks whether the posted user is found; true where there is none, or none any more.
    fn holds(&self, found: impl FnOnce(UserId) -> bool) -> bool {
        let posted = self.0.load(Ordering::SeqCst);
        match UserId::new(posted & 0xffff_ffff) {
            Some(id) => found(id) || self.0.load(Ordering::SeqCst) != posted,
            None => true,
        }
    }
}

struct World {
    directory: Directory,
    bounds: Arc<Bounds>,
    metrics: Arc<Metrics>,
    posted: [Posted; THREADS],
    new_ids: AtomicU64,
    until: Instant,
    is_over: AtomicBool,
}

impl World {
    fn join(&self, id: UserId) -> Arc<Seat> {
        let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
        let id = (id, Lineage::from(0));
        let seat = Arc::new(Seat::new(id, Dialect::Bare, None, bounds, metrics));
        assert!(self.directory.join(&seat));
        let id = seat.id();
        assert!(self.finds(&seat), "{id} has joined and is not found");
        seat
    }

    fn finds(&self, seat: &Arc<Seat>) -> bool {
        let found = |found: Option<&Arc<Seat>>| found.is_some_and(|found| Arc::ptr_eq(found, seat));
        self.directory.with(seat.id(), found)
    }

    /// An id that this thread alone uses: in a busy segment, or a new one, four to a segment.
    fn pick(&self, thread: u64, busy: bool, random: &mut fastrand::Rng) -> UserId {
        let number = if busy {
            random.u64(0..BUSY_SEGMENTS) * SLOTS as u64 + 1 + thread
        } else {
            let new = self.new_ids.fetch_add(1, Ordering::Relaxed);
            (BUSY_SEGMENTS + new / 4) * SLOTS as u64 + 1 + new % 4
        };
        UserId::new(number).expect("a small id")
    }

    /// Users come and go until the time is over, and then all leave.
    fn churn(&self, thread: u64, posted: &Posted) {
        let mut random = fastrand::Rng::with_seed(thread);
        let mut seats: Vec<Arc<Seat>> = Vec::new();
        for turn in 1.. {
            let over = Instant::now() >= self.until;
            if seats.len() == USERS || over {
                posted.withdraw();
                let Some(at) = (!seats.is_empty()).then(|| random.usize(..seats.len())) else {
                    return;
                };
                let seat = seats.swap_remove(at);
                if !over && random.u8(..) < 64 {
                    // Its place is taken, and then it leaves.
                    let taker = self.join(seat.id());
                    assert!(!self.finds(&seat));
                    assert!(
                        !seat.is_open(),
                        "nothing more is put into what nobody reads"
                    );
                    self.directory.leave(&seat);
                    seats.push(taker);
                } else {
                    self.directory.leave(&seat);
                    assert!(!self.finds(&seat), "{} has left and is found", seat.id());
                }
            } else {
                let busy = random.u8(..) < 192;
                let id = self.pick(thread, busy, &mut random);
                if seats.iter().all(|seat| seat.id() != id) {
                    seats.push(self.join(id));
                    posted.post(turn, id);
                }
            }
            for seat in &seats {
                assert!(self.finds(seat), "{} is here and is not found", seat.id());
            }
        }
    }

    /// Looks up whoever the others say is here.
    fn look(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            for posted in &self.posted {
                let here = posted.holds(|id| self.directory.with(id, |seat| seat.is_some()));
                assert!(here, "a user that has joined is not found by others");
            }
        }
    }
}

#[test]
fn nobody_is_lost_or_left_behind_under_threads() {
    let world = World {
        directory: Directory::new(),
        bounds: Arc::new(Bounds {
            messages: 1,
            bytes: 1,
            overflow: Overflow::DropNewest,
            budget: Budget::new(1),
        }),
        metrics: Arc::new(Metrics::new(1)),
        posted: Default::default(),
        new_ids: AtomicU64::new(0),
        until: Instant::now() + RUNS_FOR,
        is_over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let churns: Vec<_> = (0..)
            .zip(&world.posted)
            .map(|(thread, posted)| {
                scope.spawn({
                    let world = &world;
                    move || world.churn(thread, posted)
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
    let everybody_has_left = Census {
        segments: 1,
        ..Census::default()
    };
    assert_eq!(world.directory.census(), everybody_has_left);
    assert!(world.new_ids.into_inner() > 100);
}
