//! `switchboard bench`: loads any relay of this protocol, measures it, and checks every message while
//! it does. Knows nothing of the relay's inside: it speaks to it through sockets, reads its `/metrics`
//! and what /proc says of its process.
//!
//! ```text
//! options ─ scenario ─ stage ─ engine ══ sockets ══ the relay
//!               │        └ books (/metrics), process (/proc)
//!               └ outcome ─ table, JSON, page
//! ```

mod chart;
mod codec;
mod compare;
mod connection;
mod engine;
mod faults;
mod flow;
mod label;
mod number;
mod options;
mod outcome;
mod page;
mod process;
mod progress;
mod scenario;
mod scenario_run;
mod server_counters;
mod spawned_relay;
mod table;
mod target;
mod track;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

use serde::Serialize;

pub use options::{BenchOptions, Scenario};
pub use server_counters::MetricsError;
pub use target::{BadUrl, Url};

use outcome::{RunReport, ServerInfo};
use process::MonitoredProcess;
use progress::Progress;
use scenario_run::ScenarioRun;
use target::Owner;

/// What a whole run shares.
#[derive(Debug)]
struct Target {
    url: Url,
    address: SocketAddr,
    server: Option<MonitoredProcess>,
    /// The first id that the server may give next, where it does not announce them.
    next_id: u64,
}

/// Whether every message is accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunVerdict {
    /// Nothing was lost, misrouted, reordered, duplicated or altered without a reason that the
    /// server accounts for.
    Clean,
    /// Something was.
    Faulty,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The URL's host has no address.
    #[error("{url} has no address")]
    Address {
        /// As it was given.
        url: Url,
        /// What went wrong.
        source: io::Error,
    },
    /// The server may be somebody else's.
    #[error(
        "{url} is at {address}, which is not loopback: a load is an attack on a server that is not \
         yours; if it is, say --i-own-this-server"
    )]
    NotLoopback {
        /// As it was given.
        url: Url,
        /// What it stands for.
        address: SocketAddr,
    },
    /// A connection cannot be made.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// More connections than this process can have.
    #[error(
        "{needed} connections are more than the {room} for which the limit of open files leaves room \
         (ulimit -Hn): take fewer --connections or --pairs"
    )]
    OpenFiles {
        /// How many are asked for.
        needed: u64,
        /// How many are possible.
        room: u64,
    },
    /// The server does not let a talker in.
    #[error("no upgrade: {reason}")]
    Upgrade {
        /// What it said.
        reason: String,
    },
    /// The server does not let a crowd in.
    #[error(
        "{opened} of {wanted} connections opened{}",
        refusal.as_ref().map(|refusal| format!(", the last refused: {refusal}")).unwrap_or_default()
    )]
    PeersMissing {
        /// Those that opened.
        opened: u64,
        /// Those that should have.
        wanted: usize,
        /// What the server said to the last.
        refusal: Option<String>,
    },
    /// Nobody hears the probes.
    #[error(
        "{unknown} connections answer to no id from {first} to {last}: where the server does not \
         announce ids, give the first that it may have given as --first-id"
    )]
    IdsNotFound {
        /// Connections whose id is not known.
        unknown: usize,
        /// The first id that was tried.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A flow is wanted between connections whose ids were not learnt.
    #[error("ids are not known")]
    UnknownIds,
    /// A test message does not arrive.
    #[error(
        "a first message did not arrive within {timeout:?}{}",
        example.as_ref().map(|example| format!("; instead: {example}")).unwrap_or_default()
    )]
    Silence {
        /// How long it was waited for.
        timeout: Duration,
        /// What came in its place.
        example: Option<String>,
    },
    /// The server's books cannot be read.
    #[error("{url} {reason}")]
    Metrics {
        /// Where they should be.
        url: Url,
        /// What is wrong.
        reason: MetricsError,
    },
    /// The process that --pid names cannot be looked at.
    #[error("there is no process {0}, or it may not be looked at")]
    NoProcess(u32),
    /// The relay to compare is not installed.
    #[error(
        "switchboard is neither beside this program nor on PATH: \
         `cargo build --release --workspace` builds both"
    )]
    RelayNotFound,
    /// The relay to compare does not start.
    #[error("the relay does not start")]
    RelayNotStarted {
        /// What went wrong.
        source: io::Error,
    },
    /// A result cannot be written.
    #[error("cannot write {what}")]
    Write {
        /// Which.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl BenchError {
    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotLoopback { .. } | Self::OpenFiles { .. })
    }
}

/// Measures what the options ask for, and writes what was found to `out`.
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> Result<RunVerdict, BenchError> {
    if options.compare_strategies {
        let comparison = compare::run(options)?;
        if let Some(folder) = &options.svg {
            comparison.write_svgs(folder)?;
        }
        publish(options, out, &comparison, || comparison.html())?;
        return Ok(verdict(comparison.ok));
    }
    let report = measure(options)?;
    publish(options, out, &report, || report.html())?;
    Ok(verdict(report.ok))
}

fn verdict(ok: bool) -> RunVerdict {
    if ok {
        RunVerdict::Clean
    } else {
        RunVerdict::Faulty
    }
}

/// Prints what was found, and writes the page.
fn publish<T: Serialize + fmt::Display>(
    options: &BenchOptions,
    out: &mut dyn Write,
    found: &T,
    html: impl Fn() -> String,
) -> Result<(), BenchError> {
    if let Some(path) = &options.report {
        write_file(path, &html())?;
    }
    let written = if options.json {
        serde_json::to_writer_pretty(&mut *out, found)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        write!(out, "{found}")
    };
    written.map_err(|source| BenchError::Write {
        what: "the result".to_owned(),
        source,
    })
}

fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|source| BenchError::Write {
        what: path.display().to_string(),
        source,
    })
}

fn measure(options: &BenchOptions) -> Result<RunReport, BenchError> {
    let owner = if options.i_own_this_server {
        Owner::Ours
    } else {
        Owner::Unknown
    };
    let address = target::resolve(&options.url, owner)?;
    let server = match options.pid {
        Some(pid) => Some(MonitoredProcess::of(pid).ok_or(BenchError::NoProcess(pid))?),
        None if address.ip().is_loopback() => MonitoredProcess::listening_on(address),
        None => None,
    };
    let mut subject = Target {
        url: options.url.clone(),
        address,
        server,
        next_id: options.first_id,
    };
    let scenarios = options.scenarios();
    let expected = scenarios
        .iter()
        .map(|scenario| scenario::expected(options, *scenario))
        .sum();
    let progress = Progress::new(expected);
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        progress.scenario(scenario.to_string());
        let stage = ScenarioRun::new(options, &mut subject, scenario, progress.clone())?;
        outcomes.push(scenario::run(stage, scenario)?);
    }
    progress.finish();
    Ok(RunReport {
        version: env!("CARGO_PKG_VERSION"),
        url: options.url.to_string(),
        server: server.map(|server| ServerInfo {
            pid: server.pid(),
            name: server.name(),
        }),
        ok: outcomes.iter().all(|outcome| outcome.check.ok),
        outcomes,
    })
}
