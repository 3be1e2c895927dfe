//! The scenarios: which connections each opens, which load it makes, and which phases it measures.

mod neighbours;
mod peers;
mod steps;
mod throughput;

use std::time::Duration;

use crate::error::BenchError;
use crate::options::{BenchOptions, Scenario};
use crate::outcome::Outcome;
use crate::scenario_run::ScenarioRun;

pub(crate) use neighbours::beside_floods;

/// Runs a scenario to its end.
pub(crate) fn run(run: ScenarioRun<'_>, scenario: Scenario) -> Result<Outcome, BenchError> {
    match scenario {
        Scenario::Pairs => throughput::pairs(run),
        Scenario::OpenLoop => throughput::open_loop(run),
        Scenario::Idle => peers::idle(run),
        Scenario::FanIn => throughput::fan_in(run),
        Scenario::SlowReader => neighbours::slow_reader(run),
        Scenario::Churn => peers::churn(run),
        Scenario::Isolation => neighbours::isolation(run),
        Scenario::Storm => peers::storm(run),
        Scenario::All => unreachable!("BenchOptions::scenarios expands it"),
    }
}

/// How long a scenario takes, for the progress bar.
pub(crate) fn expected(options: &BenchOptions, scenario: Scenario) -> Duration {
    let phases = match scenario {
        Scenario::Pairs | Scenario::OpenLoop | Scenario::FanIn => 1,
        Scenario::Idle => 2,
        Scenario::SlowReader | Scenario::Churn | Scenario::Storm => 3,
        Scenario::Isolation => 4,
        Scenario::All => 0,
    };
    options.warmup + steps::SETTLE + options.duration() * phases
}
