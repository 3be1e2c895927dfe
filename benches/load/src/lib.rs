//! The load generator: puts a load on any relay of this protocol, measures it, and checks every message.
//! Knows nothing of the relay's inside: it speaks to the relay through sockets, and reads the relay's
//! `/metrics` and the entries of its process in /proc.
//!
//! ```text
//! options ─ scenario ─ scenario_run ─ engine ══ sockets ══ the relay
//!               │            └ server_counters (/metrics), process (/proc)
//!               └ outcome ─ table, JSON, page
//! ```
//!
//! The words of this crate: a *flow* is a sequence of numbered messages from one connection to another. A
//! *group* is a set of flows whose figures are added up. A *phase* is a span of time with figures of its
//! own. A *slot* is the index of a connection in the engine.

mod chart;
mod codec;
mod compare;
mod connection;
mod engine;
mod error;
mod faults;
mod flow;
mod label;
mod measurement;
mod number;
mod open_files;
mod options;
mod outcome;
mod output;
mod page;
mod process;
mod progress;
mod scenario;
mod scenario_run;
mod server_counters;
mod snapshot;
mod spawned_relay;
mod table;
mod target;
mod track;
mod url;

use std::io::Write;

pub use error::BenchError;
pub use options::{BenchOptions, Scenario};
pub use server_counters::MetricsError;
pub use url::{BadUrl, Url};

use outcome::{RunReport, ServerInfo};
use progress::Progress;
use scenario_run::ScenarioRun;
use target::Target;

/// Whether every message is accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunVerdict {
    /// No message was lost without a reason in the server's metrics, and none was misrouted, reordered,
    /// duplicated or altered.
    Clean,
    /// As far as the load generator sees, but the server's metrics could not be read. Lost messages may have a reason.
    Unaccounted,
    /// At least one message was.
    Faulty,
}

/// Measures what the options ask for, and writes the result to `out`.
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> Result<RunVerdict, BenchError> {
    let (ok, is_accounted) = if options.compare_strategies {
        let comparison = compare::run(options)?;
        if let Some(folder) = &options.svg {
            comparison.write_svgs(folder)?;
        }
        output::publish(options, out, &comparison, || comparison.html())?;
        (comparison.ok, true)
    } else {
        let report = measure(options)?;
        output::publish(options, out, &report, || report.html())?;
        let mut checks = report.outcomes.iter().map(|outcome| &outcome.check);
        (
            report.ok,
            checks.all(|check| check.metrics_unreadable.is_none()),
        )
    };
    Ok(match (ok, is_accounted) {
        (true, true) => RunVerdict::Clean,
        (true, false) => RunVerdict::Unaccounted,
        (false, _) => RunVerdict::Faulty,
    })
}

fn measure(options: &BenchOptions) -> Result<RunReport, BenchError> {
    let mut target = Target::from_options(options)?;
    let scenarios = options.scenarios();
    let expected = scenarios
        .iter()
        .map(|scenario| scenario::expected(options, *scenario))
        .sum();
    let progress = Progress::new(expected);
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        progress.scenario(scenario.to_string());
        let run = ScenarioRun::new(options, &mut target, scenario, progress.clone())?;
        outcomes.push(scenario::run(run, scenario)?);
    }
    progress.finish();
    Ok(RunReport {
        version: env!("CARGO_PKG_VERSION"),
        url: options.url.to_string(),
        server: target.server.map(|server| ServerInfo {
            pid: server.pid(),
            name: server.name(),
        }),
        ok: outcomes.iter().all(|outcome| outcome.check.ok),
        outcomes,
    })
}
