//! The comparison of the two routing strategies of Switchboard: directory against router, in relays that this
//! program starts. Rounds alternate, and every figure is the median of all rounds.

mod show;

use std::time::Duration;

use serde::Serialize;

use crate::error::BenchError;
use crate::number::{median, rounded};
use crate::options::{BenchOptions, Scenario};
use crate::outcome::{LatencySummary, Outcome, Row};
use crate::progress::Progress;
use crate::scenario;
use crate::scenario_run::ScenarioRun;
use crate::spawned_relay::{CpuPinning, SpawnedRelay};
use crate::target::Target;

const STRATEGIES: [&str; 2] = ["directory", "router"];

/// Numbers of pairs that exchange messages at once.
const PAIRS: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Numbers of pairs that flood beside the quiet one.
const FLOODS: [u32; 5] = [0, 1, 2, 4, 8];

/// The figures of both strategies.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    version: &'static str,
    rounds: u32,
    /// Whether the server and the load generator had CPUs of their own.
    cpus_apart: bool,
    strategies: Vec<StrategyMedians>,
    /// Whether every message of every run is accounted for.
    pub(crate) ok: bool,
    /// The checks of the runs that had faults.
    faults: Vec<String>,
}

/// The medians of one strategy.
#[derive(Debug, Serialize)]
struct StrategyMedians {
    strategy: &'static str,
    by_pairs: Vec<ByPairs>,
    beside_floods: Vec<BesideFloods>,
    slow_reader: SlowReader,
}

#[derive(Debug, Serialize)]
struct ByPairs {
    pairs: u32,
    messages_per_second: f64,
    cpu_us_per_message: f64,
    p50_us: f64,
    p99_us: f64,
    slowest_pair_to_fastest: f64,
    /// Whether the load generator was the limit in any round.
    limited_by_bench: bool,
}

#[derive(Debug, Serialize)]
struct BesideFloods {
    floods: u32,
    p50_us: f64,
    p99_us: f64,
}

/// The effect of a user that stops reading on other pairs.
#[derive(Debug, Serialize)]
struct SlowReader {
    p50_before_us: f64,
    p50_during_us: f64,
    p99_before_us: f64,
    p99_during_us: f64,
    rate_during_to_before: f64,
    server_memory_growth_bytes: f64,
    /// Percentile curves of the last round.
    curve_before: Vec<(f64, f64)>,
    curve_during: Vec<(f64, f64)>,
}

/// One round of one strategy.
struct Round {
    by_pairs: Vec<Outcome>,
    beside_floods: Outcome,
    slow_reader: Outcome,
}

pub(crate) fn run(options: &BenchOptions) -> Result<Comparison, BenchError> {
    let cpus = if options.unpinned {
        CpuPinning::shared()
    } else {
        CpuPinning::apart().map_err(|source| BenchError::RelayNotStarted { source })?
    };
    let plan = Plan::new(options);
    let progress = Progress::new(plan.expected() * 2 * options.rounds);
    let mut rounds = [const { Vec::new() }; 2];
    for round in 0..options.rounds {
        // The strategies take turns to go first, so that a change of the machine over time affects both.
        let first = round as usize % 2;
        for index in [first, 1 - first] {
            progress.scenario(STRATEGIES[index].to_owned());
            let server = SpawnedRelay::start(STRATEGIES[index], &cpus)?;
            rounds[index].push(plan.round(&server, &progress)?);
        }
    }
    progress.finish();
    let faults: Vec<_> = rounds
        .iter()
        .flatten()
        .flat_map(Round::outcomes)
        .filter(|outcome| !outcome.check.ok)
        .map(|outcome| format!("{}: {}", outcome.load, outcome.check))
        .collect();
    let figures = STRATEGIES.iter().zip(&rounds);
    Ok(Comparison {
        version: env!("CARGO_PKG_VERSION"),
        rounds: options.rounds,
        cpus_apart: cpus.are_apart(),
        strategies: figures
            .map(|(strategy, rounds)| plan.figures(strategy, rounds))
            .collect(),
        ok: faults.is_empty(),
        faults,
    })
}

/// The runs of a round.
struct Plan {
    options: BenchOptions,
    pairs: Vec<u32>,
    floods: Vec<u32>,
}

impl Plan {
    /// `--pairs` is the largest number of pairs and of floods.
    fn new(options: &BenchOptions) -> Self {
        let most = options.pairs.unwrap_or(u32::MAX);
        let within = |counts: &[u32]| {
            let within = counts.iter().filter(|count| **count <= most);
            within.copied().collect()
        };
        Self {
            options: options.clone(),
            pairs: within(&PAIRS),
            floods: within(&FLOODS),
        }
    }

    fn expected(&self) -> Duration {
        let phase = self.options.duration() + Duration::from_millis(300);
        let pairs = u32::try_from(self.pairs.len()).unwrap_or(u32::MAX);
        let floods = u32::try_from(self.floods.len()).unwrap_or(u32::MAX);
        (phase + self.options.warmup) * pairs + phase * (floods + 3)
    }

    fn round(&self, server: &SpawnedRelay, progress: &Progress) -> Result<Round, BenchError> {
        let address = server.address();
        let mut target = Target {
            url: format!("ws://{address}/").parse().expect("an address"),
            address,
            server: Some(server.process()),
            token: None,
            metrics_token: None,
            next_id: 1,
        };
        let mut run = |scenario, pairs| {
            let mut options = self.options.clone();
            options.pairs = pairs;
            let scenario_run = ScenarioRun::new(&options, &mut target, scenario, progress.clone())?;
            match scenario {
                Scenario::Isolation => scenario::beside_floods(scenario_run, &self.floods),
                scenario => scenario::run(scenario_run, scenario),
            }
        };
        let by_pairs = self.pairs.iter();
        Ok(Round {
            by_pairs: by_pairs
                .map(|pairs| run(Scenario::Pairs, Some(*pairs)))
                .collect::<Result<_, _>>()?,
            beside_floods: run(Scenario::Isolation, None)?,
            slow_reader: run(Scenario::SlowReader, None)?,
        })
    }

    fn figures(&self, strategy: &'static str, rounds: &[Round]) -> StrategyMedians {
        let by_pairs = self.pairs.iter().enumerate().map(|(at, pairs)| {
            let rows: Vec<_> = rounds
                .iter()
                .map(|round| &round.by_pairs[at].rows[0])
                .collect();
            let fairness = rounds
                .iter()
                .filter_map(|round| round.by_pairs[at].fact("slowest_pair_to_fastest"));
            let cpu = |row: &Row| row.server.and_then(|server| server.cpu_us_per_message);
            ByPairs {
                pairs: *pairs,
                messages_per_second: median_of(&rows, |row| Some(row.messages_per_second)),
                cpu_us_per_message: median_of(&rows, cpu),
                p50_us: latency_of(&rows, |latency| latency.p50),
                p99_us: latency_of(&rows, |latency| latency.p99),
                slowest_pair_to_fastest: median(fairness.collect()),
                limited_by_bench: rows.iter().any(|row| row.limited_by_bench),
            }
        });
        let beside_floods = self.floods.iter().enumerate().map(|(at, floods)| {
            let rows: Vec<_> = rounds
                .iter()
                .map(|round| &round.beside_floods.rows[at])
                .collect();
            BesideFloods {
                floods: *floods,
                p50_us: latency_of(&rows, |latency| latency.p50),
                p99_us: latency_of(&rows, |latency| latency.p99),
            }
        });
        StrategyMedians {
            strategy,
            by_pairs: by_pairs.collect(),
            beside_floods: beside_floods.collect(),
            slow_reader: SlowReader::of(rounds),
        }
    }
}

impl Round {
    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.by_pairs
            .iter()
            .chain([&self.beside_floods, &self.slow_reader])
    }
}

impl SlowReader {
    fn of(rounds: &[Round]) -> Self {
        let rows = |label: &str| -> Vec<&Row> {
            let found = rounds.iter().map(|round| round.slow_reader.row(label));
            found.flatten().collect()
        };
        let (before, during) = (rows("before"), rows("one does not read"));
        let fact = |name: &str| {
            let found = rounds.iter().map(|round| round.slow_reader.fact(name));
            median(found.flatten().collect())
        };
        let curve = |rows: &[&Row]| rows.last().map_or_else(Vec::new, |row| row.curve.clone());
        Self {
            p50_before_us: latency_of(&before, |latency| latency.p50),
            p50_during_us: latency_of(&during, |latency| latency.p50),
            p99_before_us: latency_of(&before, |latency| latency.p99),
            p99_during_us: latency_of(&during, |latency| latency.p99),
            rate_during_to_before: fact("rate_during_to_before"),
            server_memory_growth_bytes: fact("server_memory_growth"),
            curve_before: curve(&before),
            curve_during: curve(&during),
        }
    }
}

fn median_of(rows: &[&Row], figure: impl Fn(&Row) -> Option<f64>) -> f64 {
    let figures = rows.iter().filter_map(|row| figure(row)).collect();
    rounded(median(figures), 3)
}

fn latency_of(rows: &[&Row], figure: impl Fn(LatencySummary) -> f64) -> f64 {
    median_of(rows, |row| row.latency_us.map(&figure))
}
