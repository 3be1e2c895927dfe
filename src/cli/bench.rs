//! `switchboard bench`: becomes the load generator, which is a program of its own.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

/// The arguments of the load generator.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Passed on unchanged; `switchboard bench --help` lists the options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Why the load generator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartBenchError {
    /// The program is not installed.
    #[error(
        "{PROGRAM} is neither beside this program nor on PATH: `cargo install --path benches/load` installs it, \
         or `cargo install --git URL {PROGRAM}`",
        PROGRAM = BenchArguments::PROGRAM
    )]
    Missing,
    /// The program is installed and cannot be run.
    #[error("cannot run {}", BenchArguments::PROGRAM)]
    Start(#[source] io::Error),
}

impl BenchArguments {
    const PROGRAM: &str = "switchboard-bench";

    /// Replaces this process by the load generator, so that the caller gets the load generator's exit code.
    /// Returns only an error.
    pub fn exec(self) -> StartBenchError {
        let error = Command::new(installed(Self::PROGRAM))
            .arg0("switchboard bench") // the name that the help shows
            .args(self.arguments)
            .exec();
        match error.kind() {
            io::ErrorKind::NotFound => StartBenchError::Missing,
            _ => StartBenchError::Start(error),
        }
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
