//! The program `switchboard-bench`: options and exit code. No other file of the load generator exits.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use switchboard_bench::{BenchError, BenchOptions, RunVerdict};

/// The exit code of clap for wrong usage.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match switchboard_bench::run(&BenchOptions::parse(), &mut io::stdout()) {
        Ok(RunVerdict::Clean | RunVerdict::Unaccounted) => ExitCode::SUCCESS,
        Ok(RunVerdict::Faulty) => ExitCode::FAILURE,
        Err(error) if error.is_usage() => {
            complain(error);
            ExitCode::from(EXIT_USAGE)
        }
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

fn complain(error: BenchError) {
    let error = anyhow::Error::from(error);
    // A message that cannot be written to a closed stderr has no other place to go.
    drop(writeln!(io::stderr(), "switchboard-bench: {error:#}"));
}
