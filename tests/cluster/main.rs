//! Clusters: nodes as separate processes, with a real NATS server between them. The tests send messages between nodes,
//! and kill, disconnect or slow down a node or NATS.
//!
//! This is a binary of its own, because its main function can list the tests that it skips if `nats-server` is not
//! installed. The tests run one after the other, because they measure time and compare counters.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test may panic, may end before the tasks that it has spawned, and prints its results"
)]

mod access; // the ways in which a node authenticates to NATS
mod chaos; // failures of nodes, links and NATS under load
mod ids; // blocks of ids
mod load; // many users that write to each other, and a check of their outcomes
mod messages; // messages between nodes
mod nats; // a NATS server
mod node; // a node, and its metrics
#[allow(dead_code, reason = "tests/it uses the rest of this file")]
#[path = "../it/otlp.rs"]
mod otlp; // an OTLP receiver
mod outage; // NATS does not run, or does not answer
mod proxy; // a network between a node and NATS that can fail
mod situations; // what an earlier design did wrong
mod tickets; // users that keep their id on another node
mod traces; // traces of messages between nodes
mod user; // a connected user

use std::future::Future;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tokio::time::{Instant, sleep, timeout};

/// The time limit of each wait: far more than a wait takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let is_installed = nats::program().is_some();
    let mut trials = Vec::new();
    for list in [
        messages::tests(),
        ids::tests(),
        outage::tests(),
        access::tests(),
        traces::tests(),
        tickets::tests(),
        situations::tests(),
        chaos::tests(),
    ] {
        for (name, test) in list {
            let trial = Trial::test(name, move || {
                run(test);
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!is_installed));
        }
    }
    let names: Vec<_> = trials.iter().map(Trial::name).collect();
    if !is_installed {
        println!(
            "skipped, because nats-server is not installed (tests/run installs it): {}",
            names.join(", ")
        );
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// The name and the function of a test.
pub(crate) type Named = (&'static str, fn() -> Running);
pub(crate) type Running = std::pin::Pin<Box<dyn Future<Output = ()>>>;

fn run(test: fn() -> Running) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let begin = Instant::now();
    runtime.block_on(test());
    print!("({:.1?}) ", begin.elapsed());
}

/// Names the async functions of a module as its tests.
macro_rules! tests {
    ($module:literal: $($name:ident),+ $(,)?) => {
        pub(crate) fn tests() -> Vec<crate::Named> {
            vec![$((
                concat!($module, "::", stringify!($name)),
                || -> crate::Running { Box::pin($name()) },
            )),+]
        }
    };
}
pub(crate) use tests;

/// Calls `look` every 10 ms until it returns a value.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a future, at most [`PATIENCE`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let output = timeout(PATIENCE, future).await;
    output.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
