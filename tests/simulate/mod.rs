//! The simulator: a whole cluster in one thread, on a clock of its own, with everything drawn from a seed. Persons
//! join, leave, move with tickets, write, flood, stall and break off, while nodes, networks and NATS fail. After each
//! step it is checked what the relay promises. The same seed gives the same run, to the byte of its trace.
//!
//! ```console
//! $ tests/run simulate
//! $ tests/run simulate --from 5000 --seeds 200
//! ```

#![allow(
    clippy::decimal_bitwise_operands,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::manual_flatten,
    clippy::no_effect_underscore_binding,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "the simulator prints what it finds, measures its own speed, and may panic"
)]

mod checks;
mod frames;
mod node;
mod oracle;
mod person;
mod run;
mod scenarios;
mod schedule;
mod settings;
mod shrink;
mod socket;

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use schedule::{Shape, schedule};

/// Seeds of a run of all tests.
const SEEDS: u64 = 20;

/// Seeds from one line of progress to the next.
const PROGRESS: u64 = 100;

/// A number in the environment.
fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

#[test]
fn no_seed_breaks_a_promise() {
    let from = number("SWITCHBOARD_SIMULATE_FROM").unwrap_or(1);
    let seconds = number("SWITCHBOARD_SIMULATE_SECONDS");
    let seeds = number("SWITCHBOARD_SIMULATE_SEEDS").unwrap_or(match seconds {
        Some(_) => u64::MAX - from,
        None => SEEDS,
    });
    let (next, done) = (AtomicU64::new(from), AtomicU64::new(0));
    let has_failed = AtomicBool::new(false);
    let begin = Instant::now();
    let is_over = || seconds.is_some_and(|seconds| begin.elapsed() > Duration::from_secs(seconds));
    let sums = thread::scope(|scope| {
        let work = || {
            let mut sums = [0; 4];
            while !is_over() && !has_failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= from + seeds {
                    break;
                }
                let report = simulate(seed);
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(PROGRESS) {
                    println!("{done} seeds in {:.0?}", begin.elapsed());
                }
                if report.broken.is_some() {
                    has_failed.store(true, Ordering::Relaxed);
                    shrink::explain(seed, &shape(seed), schedule(seed, &shape(seed)));
                }
                let counts = [1, report.written, report.delivered, report.unknown];
                for (sum, count) in sums.iter_mut().zip(counts) {
                    *sum += count;
                }
            }
            sums
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let sums = workers
            .into_iter()
            .map(|worker| worker.join().expect("no worker panics"));
        sums.fold([0; 4], |left, right| {
            std::array::from_fn(|index| left[index] + right[index])
        })
    });
    let [runs, written, delivered, unknown] = sums;
    println!(
        "{runs} seeds from {from} in {:.0?}: {written} messages, {delivered} delivered, {unknown} unknown",
        begin.elapsed()
    );
    assert!(!has_failed.load(Ordering::Relaxed), "a promise was broken");
}

/// Of ten runs, one is of a node by itself.
fn shape(seed: u64) -> Shape {
    Shape::of(seed, !seed.is_multiple_of(10))
}

fn simulate(seed: u64) -> run::Report {
    let shape = shape(seed);
    run::run(seed, &shape, &schedule(seed, &shape), false)
}

/// Only with tokio's random numbers from a seed, which is an unstable interface of tokio.
#[cfg(tokio_unstable)]
#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in 1..=20 {
        let shape = shape(seed);
        let events = schedule(seed, &shape);
        let traced = || run::run(seed, &shape, &events, true).trace;
        let (one, other) = (traced(), traced());
        assert!(!one.is_empty());
        let differs = one
            .lines()
            .zip(other.lines())
            .find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(one.len(), other.len(), "seed {seed}");
    }
}
