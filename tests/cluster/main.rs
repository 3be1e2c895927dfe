//! Nodes, as the processes that users run, with a real NATS server between them: what crosses, and what
//! becomes of it when parts of the whole are killed, cut off or slow.
//!
//! A binary of its own, since it can say by name what it leaves out where there is no `nats-server`. The
//! tests run one after the other: they wait for time to pass, and count what happens in it.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "what fails here is a test, which may leave a task behind and says what it has seen"
)]

mod access; // how NATS knows a node
mod away; // NATS is not there, or has forgotten
mod chaos; // parts are killed, cut off or slow, under load
mod crossing; // what is said on one node and heard on another
mod ids; // blocks of ids
mod load; // many users, and what each of them has seen
mod nats; // a NATS server
mod node; // a node, and its metrics
#[allow(dead_code, reason = "the other binary needs more of it")]
#[path = "../it/otlp.rs"]
mod otlp; // an OTLP receiver
mod proxy; // a network that can fail
mod tickets; // an id that moves from node to node
mod traces; // one tree across two nodes
mod user; // somebody who is connected

use std::future::Future;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take before a test gives up: far more than it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let is_there = nats::program().is_some();
    let mut trials = Vec::new();
    for list in [
        crossing::tests(),
        ids::tests(),
        away::tests(),
        access::tests(),
        traces::tests(),
        tickets::tests(),
        chaos::tests(),
    ] {
        for (name, test) in list {
            let trial = Trial::test(name, move || {
                run(test);
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!is_there));
        }
    }
    let names: Vec<_> = trials.iter().map(Trial::name).collect();
    if !is_there {
        println!(
            "left out, since nats-server is not installed (tests/run installs it): {}",
            names.join(", ")
        );
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test: its name and what it does.
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

/// Looks again and again until there is something to see.
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

/// Waits for something that has to happen.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let output = timeout(PATIENCE, future).await;
    output.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
