//! Explains a failing seed: finds a schedule from which no event can be left out, and prints it.

use std::{fs, path};

use super::run::run;
use super::schedule::{Event, Shape};

/// Prints what a seed breaks, the shortest schedule that breaks anything, and how to see it again.
#[allow(clippy::print_stdout, reason = "it is for who runs the tests")]
pub(super) fn explain(seed: u64, shape: &Shape, events: Vec<Event>) {
    let Some((at, broken)) = run(seed, shape, &events, false).broken else {
        println!("seed {seed} fails not always: something in it is not from the seed");
        return;
    };
    println!(
        "seed {seed} at {}.{:06} s: {broken}",
        at / 1_000_000,
        at % 1_000_000
    );
    println!("{shape:?}");
    let all = events.len();
    let minimal = minimal(seed, shape, events, &kind(&broken));
    let report = run(seed, shape, &minimal, true);
    println!(
        "{} of {all} events are enough, none of which can be left out:",
        minimal.len()
    );
    for event in &minimal {
        println!("  {event}");
    }
    if let Some((at, broken)) = report.broken {
        println!(
            "break at {}.{:06} s: {broken}",
            at / 1_000_000,
            at % 1_000_000
        );
    }
    let folder = path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/simulate");
    let file = folder.join(format!("seed-{seed}.txt"));
    match fs::write(&file, &report.trace) {
        Ok(()) => println!("their trace is in {}; its end:", file.display()),
        Err(error) => println!(
            "their trace is not in {}: {error}; its end:",
            file.display()
        ),
    }
    let lines: Vec<_> = report.trace.lines().collect();
    for line in &lines[lines.len().saturating_sub(60)..] {
        println!("  {line}");
    }
    println!("to see it again: tests/run simulate --from {seed} --seeds 1");
}

/// What is broken, without its numbers.
fn kind(broken: &str) -> String {
    broken
        .chars()
        .filter(|char| !char.is_ascii_digit())
        .collect()
}

/// Leaves out every event, and every run of events, without which the schedule still breaks this promise.
fn minimal(seed: u64, shape: &Shape, mut events: Vec<Event>, promise: &str) -> Vec<Event> {
    let is_broken = |events: &[Event]| {
        let broken = run(seed, shape, events, false).broken;
        broken.is_some_and(|(_, broken)| kind(&broken) == promise)
    };
    let mut chunk = events.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut any = false;
        while at < events.len() {
            let mut fewer = events.clone();
            fewer.drain(at..(at + chunk).min(events.len()));
            if is_broken(&fewer) {
                events = fewer;
                any = true;
            } else {
                at += chunk;
            }
        }
        // The last pass has tried every single event, and all were needed.
        if chunk == 1 && !any {
            return events;
        }
        chunk = chunk.div_ceil(2);
    }
}
