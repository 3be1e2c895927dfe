//! Compares the user directory with two other tables: 64 maps behind locks, and one map that is cloned for
//! each change, as the essay's directory does. They run in turns of less than a millisecond, and the medians
//! count, so that a busy machine disturbs all of them alike.
//!
//! Joins and leaves are timed one by one, as they come in a relay, which includes the time of reading the
//! clock; and in a row, where the processor can wait for the memory of several of them at once.
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
    println!("| users | table | join + leave ns | in a row | hot lookup ns | random lookup ns |");
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
            UserTable::join(&shards, client);
        }
        let mut this = Contender::new("this directory", &segments, &clients, TURN);
        let mut locks = Contender::new("64 RwLock<HashMap>", &shards, &clients, TURN);
        let mut clone = Contender::new("ArcSwap<HashMap>", &clones, &clients, 1);
        for turn in 0..TURNS {
            this.take_turn(&joiner);
            locks.take_turn(&joiner);
            // A clone of a large map takes so long that there are only a few.
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

/// Turns of each table.
const TURNS: usize = 200;
/// Changes, or lookups, in one turn.
const TURN: usize = 512;
/// Ids of the lookup that finds everything in the processor's cache.
const HOT: u64 = 64;

/// A table of users.
trait UserTable {
    fn join(&self, client: &Arc<Client>);
    fn leave(&self, client: &Arc<Client>);
    /// The id that the look-up found, which proves that it read the memory of that user.
    fn find(&self, id: u64) -> u64;
}

impl UserTable for Directory {
    fn join(&self, client: &Arc<Client>) {
        assert!(self.join(client), "the id is free");
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

/// The usual table: 64 maps, each behind a lock.
struct Shards([RwLock<Map>; 64]);

impl Shards {
    fn of(&self, id: u64) -> &RwLock<Map> {
        &self.0[usize::try_from(id % 64).expect("below 64")]
    }
}

impl UserTable for Shards {
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

impl UserTable for Clones {
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

/// A table under measurement: new users join, and the oldest leave.
struct Contender<'a, U> {
    name: &'static str,
    users: &'a U,
    changes: usize,
    joined: VecDeque<Arc<Client>>,
    hot: Ids,
    random: Ids,
    /// Nanoseconds of each turn: join and leave, one by one and in a row; lookup, hot and at random.
    figures: [Vec<f64>; 4],
}

impl<'a, U: UserTable> Contender<'a, U> {
    fn new(name: &'static str, users: &'a U, clients: &[Arc<Client>], changes: usize) -> Self {
        Self {
            name,
            users,
            changes,
            joined: clients.iter().cloned().collect(),
            hot: Ids::up_to(HOT),
            random: Ids::up_to(clients.len() as u64),
            figures: Default::default(),
        }
    }

    fn take_turn(&mut self, joiner: &Joiner) {
        let (join, leave) = self.change(joiner);
        let mut spent = Duration::ZERO;
        for (join, leave) in join.iter().zip(&leave) {
            let begin = Instant::now();
            self.users.join(join);
            self.users.leave(leave);
            spent += begin.elapsed();
        }
        self.figures[0].push(each(spent, self.changes));

        let (join, leave) = self.change(joiner);
        let begin = Instant::now();
        for (join, leave) in join.iter().zip(&leave) {
            self.users.join(join);
            self.users.leave(leave);
        }
        self.figures[1].push(each(begin.elapsed(), self.changes));

        let oldest = self.joined[0].id().get();
        for (at, ids) in [(2, &mut self.hot), (3, &mut self.random)] {
            let ids: Vec<_> = (0..TURN).map(|_| oldest - 1 + ids.next()).collect();
            let expected: u64 = ids.iter().sum();
            let begin = Instant::now();
            let found: u64 = ids.iter().map(|id| self.users.find(*id)).sum();
            self.figures[at].push(each(begin.elapsed(), TURN));
            assert_eq!(found, expected, "all of them have joined");
        }
    }

    /// Returns clients that join, and as many of the oldest, which leave.
    fn change(&mut self, joiner: &Joiner) -> (Vec<Arc<Client>>, Vec<Arc<Client>>) {
        let newest = self.joined[0].id().get() + self.joined.len() as u64;
        let ids = (newest..).take(self.changes);
        let join: Vec<_> = ids.map(|id| joiner.client(id)).collect();
        self.joined.extend(join.iter().cloned());
        let leave: Vec<_> = self.joined.drain(..join.len()).collect();
        // In a relay, too, a session has just used its client when it leaves the directory.
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
