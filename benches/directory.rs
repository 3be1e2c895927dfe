//! The user directory beside other ways to keep users: 64 maps behind locks, and one map that is
//! cloned for each change, as the essay's directory does. All take turns of a fraction of a
//! millisecond, and the medians count, so that a busy machine disturbs all of them alike.
//!
//! Joins and leaves are timed one by one, as they come in life, with the clock's own time in it; and in
//! a row, where the processor waits for the memory of several at once if nothing forbids it.
#![allow(clippy::print_stdout, reason = "the table is the result")]

mod parts;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use parts::{Ids, Joiner, user};
use rustc_hash::FxHasher;
use switchboard::directory::{Client, Directory};
use tokio::time::Instant;

fn main() {
    let joiner = Joiner::new();
    println!("| users | way | join + leave ns | in a row | hot lookup ns | random lookup ns |");
    println!("| - | - | - | - | - | - |");
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let clients: Vec<_> = (1..=count).map(|id| joiner.client(id)).collect();
        let map = || {
            clients
                .iter()
                .map(|client| (client.id().get(), client.clone()))
        };
        let segments = Directory::new();
        let shards = Shards(std::array::from_fn(|_| RwLock::default()));
        let clones = Clones(ArcSwap::from_pointee(map().collect()));
        for client in &clients {
            segments.join(client);
            Users::join(&shards, client);
        }
        let mut this = Way::new("this directory", &segments, &clients, TURN);
        let mut locks = Way::new("64 RwLock<HashMap>", &shards, &clients, TURN);
        let mut clone = Way::new("ArcSwap<HashMap>", &clones, &clients, 1);
        for turn in 0..TURNS {
            this.take_turn(&joiner);
            locks.take_turn(&joiner);
            // A clone of a large map takes so long that a few have to do.
            if turn % 16 == 0 {
                clone.take_turn(&joiner);
            }
        }
        let [this, locks, _] = [this.row(count), locks.row(count), clone.row(count)];
        let [single, row, hot, random] = std::array::from_fn(|at| this[at] / locks[at]);
        let name = "this / 64 RwLock";
        println!("| {count} | {name} | {single:.2} | {row:.2} | {hot:.2} | {random:.2} |");
    }
}

/// Turns of each way.
const TURNS: usize = 200;
/// Changes, or lookups, in one turn.
const TURN: usize = 512;
/// Ids that are looked up again and again.
const HOT: u64 = 64;

/// A way to keep users.
trait Users {
    fn join(&self, client: &Arc<Client>);
    fn leave(&self, client: &Arc<Client>);
    /// The id that the look-up found, which proves that it read the memory of that user.
    fn find(&self, id: u64) -> u64;
}

impl Users for Directory {
    fn join(&self, client: &Arc<Client>) {
        assert!(self.join(client), "the place is vacant");
    }

    fn leave(&self, client: &Arc<Client>) {
        self.leave(client);
    }

    fn find(&self, id: u64) -> u64 {
        self.with(user(id), |client| {
            client.map_or(0, |client| client.id().get())
        })
    }
}

type Map = HashMap<u64, Arc<Client>, BuildHasherDefault<FxHasher>>;

/// What is usual: maps behind locks, 64 of them.
struct Shards([RwLock<Map>; 64]);

impl Shards {
    fn of(&self, id: u64) -> &RwLock<Map> {
        &self.0[usize::try_from(id % 64).expect("below 64")]
    }
}

impl Users for Shards {
    fn join(&self, client: &Arc<Client>) {
        let id = client.id().get();
        self.of(id).write().insert(id, client.clone());
    }

    fn leave(&self, client: &Arc<Client>) {
        let id = client.id().get();
        self.of(id).write().remove(&id);
    }

    fn find(&self, id: u64) -> u64 {
        let users = self.of(id).read();
        users.get(&id).map_or(0, |client| client.id().get())
    }
}

/// The essay's directory: one map, cloned for each join and each leave.
struct Clones(ArcSwap<Map>);

impl Users for Clones {
    fn join(&self, client: &Arc<Client>) {
        self.0.rcu(|users| {
            let mut users = Map::clone(users);
            users.insert(client.id().get(), client.clone());
            users
        });
    }

    fn leave(&self, client: &Arc<Client>) {
        self.0.rcu(|users| {
            let mut users = Map::clone(users);
            users.remove(&client.id().get());
            users
        });
    }

    fn find(&self, id: u64) -> u64 {
        let users = self.0.load();
        users.get(&id).map_or(0, |client| client.id().get())
    }
}

/// One of them under measurement: ever new users come, and the oldest go.
struct Way<'a, U> {
    name: &'static str,
    users: &'a U,
    changes: usize,
    here: VecDeque<Arc<Client>>,
    hot: Ids,
    random: Ids,
    /// Nanoseconds each: join and leave one by one and in a row, lookup of the hot and at random.
    figures: [Vec<f64>; 4],
}

impl<'a, U: Users> Way<'a, U> {
    fn new(name: &'static str, users: &'a U, clients: &[Arc<Client>], changes: usize) -> Self {
        Self {
            name,
            users,
            changes,
            here: clients.iter().cloned().collect(),
            hot: Ids::up_to(HOT),
            random: Ids::up_to(clients.len() as u64),
            figures: Default::default(),
        }
    }

    fn take_turn(&mut self, joiner: &Joiner) {
        let (join, leave) = self.people(joiner);
        let mut spent = Duration::ZERO;
        for (join, leave) in join.iter().zip(&leave) {
            let begin = Instant::now();
            self.users.join(join);
            self.users.leave(leave);
            spent += begin.elapsed();
        }
        self.figures[0].push(each(spent, self.changes));

        let (join, leave) = self.people(joiner);
        let begin = Instant::now();
        for (join, leave) in join.iter().zip(&leave) {
            self.users.join(join);
            self.users.leave(leave);
        }
        self.figures[1].push(each(begin.elapsed(), self.changes));

        let oldest = self.here[0].id().get();
        for (at, ids) in [(2, &mut self.hot), (3, &mut self.random)] {
            let ids: Vec<_> = (0..TURN).map(|_| oldest - 1 + ids.next()).collect();
            let expected: u64 = ids.iter().sum();
            let begin = Instant::now();
            let found: u64 = ids.iter().map(|id| self.users.find(*id)).sum();
            self.figures[at].push(each(begin.elapsed(), TURN));
            assert_eq!(found, expected, "all of them are here");
        }
    }

    /// Those who join, and as many of the oldest, who leave.
    fn people(&mut self, joiner: &Joiner) -> (Vec<Arc<Client>>, Vec<Arc<Client>>) {
        let newest = self.here[0].id().get() + self.here.len() as u64;
        let ids = (newest..).take(self.changes);
        let join: Vec<_> = ids.map(|id| joiner.client(id)).collect();
        self.here.extend(join.iter().cloned());
        let leave: Vec<_> = self.here.drain(..join.len()).collect();
        // In life, too, a session has been at its client when it leaves the directory.
        black_box(leave.iter().map(|client| client.id()).max());
        (join, leave)
    }

    /// Prints the medians.
    fn row(self, count: u64) -> [f64; 4] {
        let row @ [single, in_a_row, hot, random] = self.figures.map(median);
        let name = self.name;
        println!("| {count} | {name} | {single:.0} | {in_a_row:.0} | {hot:.1} | {random:.1} |");
        row
    }
}

#[allow(clippy::cast_precision_loss, reason = "a turn is short")]
fn each(spent: Duration, times: usize) -> f64 {
    spent.as_nanos() as f64 / times as f64
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
