//! What a run found, as data: rows of figures, single facts, and the verdict over every message.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::faults::Faults;
use super::number::{float, rounded};
use super::options::Scenario;
use super::server_counters::Account;

/// Everything that one call of `switchboard bench` found.
#[derive(Debug, Serialize)]
pub(super) struct RunReport {
    pub(super) version: &'static str,
    pub(super) url: String,
    pub(super) server: Option<ServerInfo>,
    pub(super) outcomes: Vec<Outcome>,
    /// Whether every message of every scenario is accounted for.
    pub(super) ok: bool,
}

/// The server's process.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ServerInfo {
    pub(super) pid: u32,
    pub(super) name: Option<String>,
}

/// What one scenario found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) scenario: Scenario,
    /// The load in words.
    pub(super) load: String,
    pub(super) rows: Vec<Row>,
    pub(super) facts: Vec<Fact>,
    pub(super) check: Check,
    /// What a reader of the figures should know.
    pub(super) notes: Vec<String>,
    pub(super) timelines: Vec<Timeline>,
}

/// StrategyMedians of one group of flows in one phase.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) label: String,
    pub(super) seconds: f64,
    pub(super) messages: u64,
    pub(super) messages_per_second: f64,
    pub(super) latency_us: Option<LatencySummary>,
    /// Share of its time in which the load generator was at work.
    pub(super) bench_busy: f64,
    /// Whether the load generator was full while the server was not: the server can do more than
    /// these messages a second, and sooner than this latency.
    pub(super) limited_by_bench: bool,
    /// Of the whole phase: what it holds of CPU is for all groups.
    pub(super) server: Option<ServerUse>,
    /// Points of the percentile curve: which share took longer, and how long that is.
    pub(super) curve: Vec<(f64, f64)>,
}

/// What the server used meanwhile.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ServerUse {
    /// CPUs that were full with it.
    pub(super) cores: f64,
    pub(super) cpu_us_per_message: Option<f64>,
}

/// Latencies, microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct LatencySummary {
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) p9999: f64,
    pub(super) max: f64,
    pub(super) mean: f64,
}

/// One figure with a name.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: f64,
    pub(super) unit: &'static str,
}

/// Messages that arrived, by tick of 100 ms.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Timeline {
    pub(super) name: &'static str,
    pub(super) per_tick: Vec<u64>,
    /// When which phase began, in ticks.
    pub(super) phases: Vec<(f64, &'static str)>,
}

/// The verdict over every message.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) ok: bool,
    /// Messages handed to the server.
    pub(super) sent: u64,
    /// Those that arrived, once, unaltered, at the right user.
    pub(super) arrived: u64,
    /// Those that did not.
    pub(super) lost: u64,
    /// Those of them, and of the server's own account, that nothing explains.
    pub(super) unexplained: u64,
    #[serde(flatten)]
    pub(super) faults: Faults,
    /// What the server says about them, where it says anything.
    pub(super) account: Option<Account>,
}

impl LatencySummary {
    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let us = |ns: f64| rounded(ns / 1e3, 1);
        let at = |quantile| us(float(histogram.value_at_quantile(quantile)));
        Some(Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: us(float(histogram.max())),
            mean: us(histogram.mean()),
        })
    }
}

/// Points of a percentile curve: the share that took longer, and how long that is in microseconds.
/// The shares halve, down to one message.
pub(super) fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const STEPS: i32 = 24;
    let mut points = Vec::new();
    for step in 0..=STEPS {
        let longer = 0.5_f64.powi(step) * 0.999_999_9;
        if histogram.is_empty() || longer * float(histogram.len()) < 1.0 {
            break;
        }
        let ns = histogram.value_at_quantile(1.0 - longer);
        points.push((longer, float(ns) / 1e3));
    }
    points
}

impl Outcome {
    pub(super) fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    pub(super) fn fact(&self, name: &str) -> Option<f64> {
        let fact = self.facts.iter().find(|fact| fact.name == name)?;
        Some(fact.value)
    }
}
