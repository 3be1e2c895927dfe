//! The options of `switchboard bench`: which scenarios run, against which relay, with how much load.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};
use serde::Serialize;
use switchboard::config::{parse_duration, parse_size};

use crate::label::LABEL_BYTES;
use crate::url::Url;

/// Load a relay, measure it and check every message. Exit code 0: no fault was found; 1: a fault or an error
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[derive(Clone, Debug, Parser)]
#[command(version, term_width = 80)]
pub struct BenchOptions {
    /// The scenarios to run, in this order
    #[arg(value_enum, default_value = "all")]
    pub(crate) scenarios: Vec<Scenario>,
    /// The relay to load
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/")]
    pub(crate) url: Url,
    /// Allow an address that is not loopback
    #[arg(long)]
    pub(crate) i_own_this_server: bool,
    /// The URL of the server's metrics; default: /metrics on the same host, if the server is a
    /// Switchboard
    #[arg(long, value_name = "URL")]
    pub(crate) metrics: Option<Url>,
    /// A file with the token that the server's metrics require
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics_token_file: Option<PathBuf>,
    /// A token for a server that requires one
    #[arg(long, conflicts_with = "key_file")]
    pub(crate) token: Option<String>,
    /// Sign such a token by this shared secret or private key in PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The server's process, whose CPU time and memory are read; default: the process that listens
    /// on the loopback address
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// The first id that the server may have given, for a server that does not announce ids
    #[arg(long, value_name = "ID", default_value_t = 1)]
    pub(crate) first_id: u64,

    /// Length of each measured phase [default: 2s; with --compare-strategies: 1s]
    #[arg(long, value_name = "TIME", value_parser = phase)]
    duration: Option<Duration>,
    /// How long the load runs before the first measured phase
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub(crate) warmup: Duration,
    /// Length of the text of a message
    #[arg(long, value_name = "BYTES", default_value = "32", value_parser = size)]
    pub(crate) size: usize,
    /// Pairs that exchange messages [default: pairs: 100; open-loop, slow-reader, churn: 10; idle,
    /// storm: 4]; with --compare-strategies: the largest number of pairs [default: 128]
    #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) pairs: Option<u32>,
    /// Messages that each pair has in flight [default: pairs, isolation: 64; fan-in: 4]
    #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) window: Option<u32>,
    /// Messages a second of all pairs together [default: open-loop: 10000; isolation: 500 of the
    /// quiet pair; else 2000]
    #[arg(long, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: Option<u32>,
    /// Users that are silent (idle), or that all connect again at once (storm) [default: idle:
    /// 10000; storm: 5000; fewer where the limit of open files is lower]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: Option<u32>,
    /// Connections that are opened at a time (idle)
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) parallel: u32,
    /// Senders to the one recipient (fan-in)
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) senders: u32,
    /// Messages a second of the pairs that flood (slow-reader, isolation)
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub(crate) flood_rate: u32,
    /// Length of the text of the messages that flood the slow reader
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = size)]
    pub(crate) flood_size: usize,
    /// Users a second that connect and leave (churn)
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) churn_rate: u32,
    /// How long each of these users is connected (churn)
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration)]
    pub(crate) hold: Duration,

    /// Start the relay that is installed beside this program, once for each routing strategy, and
    /// compare the two
    #[arg(long, conflicts_with_all = [
        "scenarios", "url", "metrics", "metrics_token_file", "token", "key_file", "pid", "i_own_this_server",
    ])]
    pub(crate) compare_strategies: bool,
    /// How often each strategy is measured; the output shows medians
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Let the server use all CPUs, the one of the load generator included
    #[arg(long)]
    pub(crate) unpinned: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Write an HTML page with charts: one file that loads nothing from elsewhere
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write the charts of --compare-strategies as SVG files
    #[arg(long, value_name = "DIR", requires = "compare_strategies")]
    pub(crate) svg: Option<PathBuf>,
}

/// A load and the phases that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Pairs that always have the same number of messages in flight
    Pairs,
    /// Pairs at a fixed rate; latency counts from the time at which a message is due
    OpenLoop,
    /// Many silent users: their cost, and their effect on pairs that exchange messages
    Idle,
    /// Many senders to one recipient
    FanIn,
    /// One user stops reading while another floods it: the effect on other pairs
    SlowReader,
    /// Users connect and leave: the effect on other pairs
    Churn,
    /// A quiet pair beside busy ones
    Isolation,
    /// All users lose their connections and connect again at once
    Storm,
    /// All scenarios
    All,
}

impl Scenario {
    const EACH: [Self; 8] = [
        Self::Pairs,
        Self::OpenLoop,
        Self::Idle,
        Self::FanIn,
        Self::SlowReader,
        Self::Churn,
        Self::Isolation,
        Self::Storm,
    ];
}

impl BenchOptions {
    /// The length of each measured phase.
    pub(crate) fn duration(&self) -> Duration {
        let default = if self.compare_strategies { 1 } else { 2 };
        self.duration.unwrap_or(Duration::from_secs(default))
    }

    /// The scenarios, with `all` expanded.
    pub(crate) fn scenarios(&self) -> Vec<Scenario> {
        let expanded = self.scenarios.iter().flat_map(|scenario| match scenario {
            Scenario::All => Scenario::EACH.to_vec(),
            one => vec![*one],
        });
        expanded.collect()
    }
}

/// The longest phase or pause, because the numbers of messages have 32 bits.
const DURATION_MAX: Duration = Duration::from_mins(5);

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| "a duration such as 500ms or 3s, up to 5m".to_owned())
}

fn phase(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("a duration longer than 0".to_owned()),
        duration => Ok(duration),
    })
}

/// The longest text of a message: its frame fits into the largest one that is read.
const SIZE_MAX: u64 = 256 * 1024;

fn size(text: &str) -> Result<usize, String> {
    parse_size(text)
        .filter(|bytes| (LABEL_BYTES as u64..=SIZE_MAX).contains(bytes))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("{LABEL_BYTES} to {SIZE_MAX} bytes, such as 32 or 1KiB"))
}
