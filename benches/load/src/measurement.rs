//! One measured phase: its snapshots, and the rows of figures that they give.

use crate::engine::{Engine, Group};
use crate::number::{float, rounded, seconds};
use crate::outcome::{self, LatencySummary, Row, ServerUse};
use crate::process::MonitoredProcess;
use crate::snapshot::Snapshot;

/// The share of its time from which on the load generator counts as the limit.
const BENCH_FULL: f64 = 0.95;

/// One measured phase.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    /// The label and the group of each row.
    pub(crate) rows: Vec<(String, usize)>,
    /// The engine's number of the phase.
    pub(crate) phase: usize,
    pub(crate) from: Snapshot,
    pub(crate) to: Snapshot,
}

impl Measurement {
    /// The rows of figures of this phase.
    pub(crate) fn rows(&self, engine: &Engine, server: Option<MonitoredProcess>) -> Vec<Row> {
        let Self {
            name: _,
            rows,
            phase,
            from,
            to,
        } = self;
        let wall = to.since(from);
        let server_is_full = server.is_some_and(|server| to.server_is_full_since(from, server));
        let busy = to.busy_since(from);
        let row = |(label, group): &(String, usize)| {
            let group = &engine.groups[*group];
            let (messages, latency) = (group.arrived[*phase], &group.latency[*phase]);
            Row {
                label: label.clone(),
                seconds: rounded(seconds(wall), 3),
                messages,
                messages_per_second: rounded(float(messages) / seconds(wall), 1),
                latency_us: LatencySummary::of(latency),
                bench_busy: rounded(busy, 3),
                limited_by_bench: busy > BENCH_FULL && !server_is_full,
                server: self.server_use(&engine.groups),
                curve: outcome::curve(latency),
            }
        };
        rows.iter().map(row).collect()
    }

    /// CPU time of the server by message. A dropped message counts, too, because it costs CPU time.
    fn server_use(&self, groups: &[Group]) -> Option<ServerUse> {
        let sum = |counts: fn(&Group) -> &[u64]| -> u64 {
            groups.iter().map(|group| counts(group)[self.phase]).sum()
        };
        let messages = sum(|group| &group.sent).max(sum(|group| &group.arrived));
        let ns = float(self.to.server_since(&self.from)?);
        let wall = float(self.to.since(&self.from));
        Some(ServerUse {
            cores: rounded(ns / wall, 3),
            cpu_us_per_message: (messages > 0).then(|| rounded(ns / 1e3 / float(messages), 3)),
        })
    }
}
