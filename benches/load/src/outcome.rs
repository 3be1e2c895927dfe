//! The result of a run as data: rows of figures, single facts, and the check of every message. The names of
//! the fields are the keys of the JSON output.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::faults::Faults;
use crate::number::{float, rounded};
use crate::options::Scenario;
use crate::server_counters::Account;

/// The result of one call of `switchboard bench`.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    pub(crate) version: &'static str,
    pub(crate) url: String,
    pub(crate) server: Option<ServerInfo>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Whether every message of every scenario is accounted for.
    pub(crate) ok: bool,
}

/// The process of the server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ServerInfo {
    pub(crate) pid: u32,
    pub(crate) name: Option<String>,
}

/// The result of one scenario.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: Scenario,
    /// The load as a sentence.
    pub(crate) load: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) facts: Vec<Fact>,
    pub(crate) check: Check,
    /// Conditions that a reader of the figures should know.
    pub(crate) notes: Vec<String>,
    pub(crate) timelines: Vec<Timeline>,
}

/// Figures of one group of flows in one phase.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) seconds: f64,
    pub(crate) messages: u64,
    pub(crate) messages_per_second: f64,
    pub(crate) latency_us: Option<LatencySummary>,
    /// Share of the time in which the load generator worked.
    pub(crate) bench_busy: f64,
    /// Whether the load generator used its whole CPU while the server had CPU time left. The server can then
    /// relay more messages, and faster, than this row shows.
    pub(crate) limited_by_bench: bool,
    /// CPU time of the whole phase, for all groups together.
    pub(crate) server: Option<ServerUse>,
    /// Points of the percentile curve: the share of messages that took longer, and the latency.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// CPU time that the server used in a phase.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ServerUse {
    /// CPU time divided by the time of the phase.
    pub(crate) cores: f64,
    pub(crate) cpu_us_per_message: Option<f64>,
}

/// Latencies, microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LatencySummary {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) p9999: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

/// One figure with a name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// Messages that arrived in each tick of 100 ms.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Timeline {
    pub(crate) name: &'static str,
    pub(crate) per_tick: Vec<u64>,
    /// The beginning of each phase in ticks, with its name.
    pub(crate) phases: Vec<(f64, &'static str)>,
}

/// The check of every message.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) ok: bool,
    /// Messages that were written to the server.
    pub(crate) sent: u64,
    /// Messages that arrived unaltered at the right user.
    pub(crate) arrived: u64,
    /// Messages that did not arrive.
    pub(crate) lost: u64,
    /// Messages that are missing here or in the server's metrics, and that the server's metrics do not explain.
    pub(crate) unexplained: u64,
    #[serde(flatten)]
    pub(crate) faults: Faults,
    /// The server's metrics about these messages, where they could be read.
    pub(crate) account: Option<Account>,
    /// Why they could not, for a server that should have them: a status, or an error.
    pub(crate) metrics_unreadable: Option<String>,
}

impl LatencySummary {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
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

/// Points of a percentile curve: the share of messages that took longer, and the latency in microseconds.
/// Each share is half the one before, down to one message.
pub(crate) fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
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
    pub(crate) fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    pub(crate) fn fact(&self, name: &str) -> Option<f64> {
        let fact = self.facts.iter().find(|fact| fact.name == name)?;
        Some(fact.value)
    }
}
