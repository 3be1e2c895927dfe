//! The options of `switchboard bench`: what is measured where, how much and how long.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};
use serde::Serialize;

use super::label::LABEL_BYTES;
use super::target::Url;
use switchboard::config::{parse_duration, parse_size};

/// Load a relay, measure it, and check every message meanwhile: exit code 0, or 1
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct BenchOptions {
    /// What to measure, in this order
    #[arg(value_enum, default_value = "all")]
    pub(super) scenarios: Vec<Scenario>,
    /// The relay to load
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/")]
    pub(super) url: Url,
    /// Load an address that is not loopback, too
    #[arg(long)]
    pub(super) i_own_this_server: bool,
    /// Where the server's books are; default /metrics on the same host, if the server is a
    /// Switchboard
    #[arg(long, value_name = "URL")]
    pub(super) metrics: Option<Url>,
    /// The server's process, whose CPU and memory are read; default the one that listens on the
    /// loopback address
    #[arg(long)]
    pub(super) pid: Option<u32>,
    /// The first id that the server may have given, where it does not announce ids
    #[arg(long, value_name = "ID", default_value_t = 1)]
    pub(super) first_id: u64,

    /// How long each phase is measured [2s; 1s to compare strategies]
    #[arg(long, value_name = "TIME", value_parser = phase)]
    duration: Option<Duration>,
    /// How long the load runs before it is measured
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub(super) warmup: Duration,
    /// Bytes of a message's text
    #[arg(long, value_name = "BYTES", default_value = "32", value_parser = size)]
    pub(super) size: usize,
    /// Pairs that talk [pairs: 100; open-loop, slow-reader, churn: 10; idle, storm: 4]; the most of
    /// them to compare strategies (128)
    #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) pairs: Option<u32>,
    /// Messages that each pair has under way [pairs, isolation: 64; fan-in: 4]
    #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) window: Option<u32>,
    /// Messages a second that all pairs together offer [open-loop: 10000; isolation: 500 by the
    /// quiet pair; else 2000]
    #[arg(long, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub(super) rate: Option<u32>,
    /// Users that are silent (idle), or that all come back at once (storm) [10000; 5000; or what
    /// the limit of open files allows]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) connections: Option<u32>,
    /// Connections that are opened side by side (idle)
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) parallel: u32,
    /// Senders to the one recipient (fan-in)
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) senders: u32,
    /// Messages a second of those who flood (slow-reader, isolation)
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub(super) flood_rate: u32,
    /// Bytes of a message's text that floods the slow reader
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = size)]
    pub(super) flood_size: usize,
    /// Users a second that come and go (churn)
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) churn_rate: u32,
    /// How long each of them stays (churn)
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration)]
    pub(super) hold: Duration,

    /// Start the relay beside this program, once for each routing strategy, and compare the two
    #[arg(long, conflicts_with_all = ["scenarios", "url", "metrics", "pid", "i_own_this_server"])]
    pub(super) compare_strategies: bool,
    /// How often each strategy is measured; what is shown are medians
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Let the server use all CPUs, not all but the one that measures
    #[arg(long)]
    pub(super) unpinned: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
    /// Write a page with pictures: one file, nothing in it comes from elsewhere
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    /// Write the pictures of --compare-strategies as SVG files
    #[arg(long, value_name = "DIR", requires = "compare_strategies")]
    pub(super) svg: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Pairs that always have a number of messages under way
    Pairs,
    /// Pairs at a fixed rate; latency from the time at which a message should have been sent
    OpenLoop,
    /// Many silent users: what they cost, and what they cost those who talk
    Idle,
    /// Many senders to one recipient
    FanIn,
    /// One user stops reading while another floods it: what the others notice
    SlowReader,
    /// Users come and go: what those who stay notice
    Churn,
    /// A quiet pair beside busy ones
    Isolation,
    /// All users lose their connections and come back at once
    Storm,
    /// All of them
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
    /// How long each phase is measured.
    pub(super) fn duration(&self) -> Duration {
        let default = if self.compare_strategies { 1 } else { 2 };
        self.duration.unwrap_or(Duration::from_secs(default))
    }

    /// The scenarios, with `all` spelt out.
    pub(super) fn scenarios(&self) -> Vec<Scenario> {
        let spelt = self.scenarios.iter().flat_map(|scenario| match scenario {
            Scenario::All => Scenario::EACH.to_vec(),
            one => vec![*one],
        });
        spelt.collect()
    }
}

/// The longest that a phase or a pause may be: numbers of messages have 32 bits.
const DURATION_MAX: Duration = Duration::from_mins(5);

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| "a duration such as 500ms or 3s, up to 5m".to_owned())
}

fn phase(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("more than nothing".to_owned()),
        duration => Ok(duration),
    })
}

/// The most text in a message: within what a frame of the server may have.
const SIZE_MAX: u64 = 256 * 1024;

fn size(text: &str) -> Result<usize, String> {
    parse_size(text)
        .filter(|bytes| (LABEL_BYTES as u64..=SIZE_MAX).contains(bytes))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("{LABEL_BYTES} to {SIZE_MAX} bytes, such as 32 or 1KiB"))
}
