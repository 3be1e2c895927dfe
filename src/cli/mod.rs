//! The command line: commands, options, and the work of the small commands. Does not exit, bind or serve.

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

use clap::{Arg, ArgAction, Command};

use options::command;

pub use bench::{StartBenchError, exec_bench, installed};
pub use connect::{ConnectError, ConnectOptions};
pub use conversation::{ConversationError, InputError};
pub use describe::{help_arguments, write_completions, write_manual};
pub use endpoint::EndpointError;
pub use healthcheck::healthcheck;
pub use init::{InitError, init};
pub use operate::{ApiAnswer, OperateError, ask_api};
pub use options::Options;
pub use token::{TokenError, issue_token, verified_token};

const ABOUT: &str = "A WebSocket relay between two people that says what became of every message";

const AFTER_HELP: &str = "Exit codes: 0 success, 1 failure, 2 usage, 78 configuration, \
    128 + number for a second signal.\nSettings: `switchboard config default` prints them all.";

/// The description of this command line. `main` runs each command by its name.
pub fn program() -> Command {
    let version = Arg::new("version")
        .short('v')
        .short_alias('V')
        .long("version")
        .help("Print version")
        .action(ArgAction::Version);
    command("switchboard", ABOUT, Options::arguments())
        .version(env!("CARGO_PKG_VERSION"))
        .arg(version)
        .term_width(80)
        // Its own command takes --help.
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .after_help(AFTER_HELP)
        .subcommands(commands())
}

fn commands() -> Vec<Command> {
    let with_options = |name, about| command(name, about, Options::arguments());
    let changed = Arg::new("changed")
        .long("changed")
        .help("Print only what differs from the defaults")
        .action(ArgAction::SetTrue);
    let mut commands = vec![
        with_options("serve", "Serve until SIGTERM or SIGINT (the default)"),
        init::command(),
        with_options(
            "check",
            "Check the configuration, print it as it takes effect, and warn if this machine is too small for it",
        )
        .arg(changed),
        group(
            "config",
            "Show the configuration's documentation",
            vec![command(
                "default",
                "Print every setting with its default and its meaning",
                Vec::new(),
            )],
        ),
        with_options(
            "healthcheck",
            "Ask the relay of this configuration whether it is alive: exit code 0 if it is, else 1",
        ),
        connect::command(),
    ];
    commands.extend(operate::commands());
    commands.push(bench::command());
    commands.push(group(
        "token",
        "Issue or verify tokens by the auth section of the configuration, to try it out",
        token::commands(),
    ));
    commands.extend(describe::commands());
    commands
}

/// A command that needs a command of its own.
fn group(name: &'static str, about: &'static str, commands: Vec<Command>) -> Command {
    command(name, about, Vec::new())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands)
}
