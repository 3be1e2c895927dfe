//! `switchboard bench`: becomes the load generator, which is a program of its own.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process;

use clap::{ArgMatches, Command, value_parser};

use super::options::{self, positional};

const PROGRAM: &str = "switchboard-bench";

pub(super) fn command() -> Command {
    let arguments = positional(
        "ARGUMENTS",
        "Passed on unchanged; `switchboard bench --help` lists the options",
    );
    let arguments = arguments
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(value_parser!(OsString));
    let about = "Put load on a relay, measure it and check every message: exit code 0 if all is right, else 1";
    options::command("bench", about, vec![arguments]).disable_help_flag(true)
}

/// Why the load generator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartBenchError {
    /// The program is not installed.
    #[error(
        "{PROGRAM} is neither beside this program nor on PATH: `cargo install --locked --path benches/load` installs it, \
         or `cargo install --locked --git URL {PROGRAM}`"
    )]
    Missing,
    /// The program is installed and cannot be run.
    #[error("cannot run {PROGRAM}")]
    Start(#[source] io::Error),
}

/// Replaces this process by the load generator, so that the caller gets the load generator's exit code.
/// Returns only an error.
pub fn exec_bench(matches: &ArgMatches) -> StartBenchError {
    let arguments = matches.get_many::<OsString>("ARGUMENTS");
    let error = process::Command::new(installed(PROGRAM))
        .arg0("switchboard bench") // the name that the help shows
        .args(arguments.unwrap_or_default())
        .exec();
    match error.kind() {
        io::ErrorKind::NotFound => StartBenchError::Missing,
        _ => StartBenchError::Start(error),
    }
}

/// The path of a program that is installed beside the one that runs; else the bare name, which the system
/// looks up on PATH.
pub fn installed(program: &str) -> PathBuf {
    env::current_exe()
        .map(|this| this.with_file_name(program))
        .ok()
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}
