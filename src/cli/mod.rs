//! The command line: verbs, options, and the work of the small verbs. Does not exit, bind or serve.

mod bench;
mod connect;
mod conversation;
mod describe;
mod endpoint;
mod healthcheck;
mod init;
mod lines;
mod operate;
mod options;
mod readable;
mod terminal;
mod token;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

pub use bench::{BenchArguments, StartBenchError, installed};
pub use connect::{ConnectError, ConnectOptions};
pub use conversation::{ConversationError, InputError};
pub use describe::{CompletionArguments, HelpArguments, ManArguments};
pub use endpoint::EndpointError;
pub use healthcheck::healthcheck;
pub use init::{InitArguments, InitError};
pub use operate::{ApiAnswer, ApiOptions, OperateError, Operation, Sort};
pub use options::Options;
pub use token::{IssueOptions, TokenError, TokenVerb, VerifyOptions};

/// A WebSocket relay between two people that says what became of every message.
#[derive(Debug, Parser)]
#[command(
    version,
    term_width = 80,
    // Its own verb takes --help.
    disable_help_subcommand = true,
    disable_version_flag = true,
    after_help = "Exit codes: 0 success, 1 failure, 2 usage, 78 configuration, \
    128 + number for a second signal.\nSettings: `switchboard config default` prints them all."
)]
pub struct Cli {
    /// The verb; `serve` if there is none.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Options before the verb.
    #[command(flatten)]
    pub options: Options,
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    pub version: (),
}

/// The verbs, with the options after the verb.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve until SIGTERM or SIGINT (the default)
    Serve(Options),
    /// Write a first configuration with secrets of its own; overwrites nothing
    Init(InitArguments),
    /// Check the configuration, print it as it takes effect, and warn if this machine is too small for it
    Check(CheckOptions),
    /// Show the configuration's documentation
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Ask the relay of this configuration whether it is alive: exit code 0 if it is, else 1
    Healthcheck(Options),
    /// Talk to a relay as a user: by hand on a terminal, by JSON lines in a pipe
    Connect(ConnectOptions),
    /// The commands of operators.
    #[command(flatten)]
    Operate(Operation),
    /// Put load on a relay, measure it and check every message: exit code 0 if all is right, else 1
    #[command(disable_help_flag = true)]
    Bench(BenchArguments),
    /// Issue or verify tokens by the auth section of the configuration, to try it out
    #[command(subcommand)]
    Token(TokenVerb),
    /// Print a script that completes this command line in a shell
    Completions(CompletionArguments),
    /// Print the manual page, or write one for each command
    Man(ManArguments),
    /// Print the help of the program or of a command
    Help(HelpArguments),
}

/// The options of `check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// Print only what differs from the defaults
    #[arg(long)]
    pub changed: bool,
}

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print every setting with its default and its meaning
    Default,
}

impl Cli {
    /// The description of this command line.
    pub fn program() -> clap::Command {
        Self::command()
    }
}
