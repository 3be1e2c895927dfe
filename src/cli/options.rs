//! Descriptions of commands and their options, and the options that name the sources of settings.
//!
//! These few functions describe every command, because the code that clap derives from types is 117 kB larger.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use crate::config::{ConfigError, Settings};

/// A command with its arguments, in the order of its help.
pub(super) fn command(name: &'static str, about: &'static str, arguments: Vec<Arg>) -> Command {
    Command::new(name).about(about).args(arguments)
}

/// An argument that is known by its position.
pub(super) fn positional(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).help(help)
}

/// An option with a value: `--NAME VALUE`.
pub(super) fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// The text of an argument, if there is one.
pub(super) fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one(name).cloned()
}

/// The path of an argument, if there is one.
pub(super) fn path(matches: &ArgMatches, name: &str) -> Option<PathBuf> {
    matches.get_one(name).cloned()
}

/// The sources of settings. The options exist before and after the command: with clap's global options, files after
/// the command would replace those before it.
#[derive(Clone, Debug)]
pub struct Options {
    config: Vec<PathBuf>,
    listen: Option<String>,
}

impl Options {
    pub(super) fn arguments() -> Vec<Arg> {
        let config =
            "A file of settings (TOML); can be repeated, and later files override earlier ones";
        let listen = "Addresses to listen on, separated by commas, instead of server.listen";
        vec![
            option("config", "FILE", config)
                .short('c')
                .action(clap::ArgAction::Append)
                .value_parser(value_parser!(PathBuf)),
            option("listen", "ADDR", listen),
        ]
    }

    /// The options that a command was given.
    pub fn of(matches: &ArgMatches) -> Self {
        let config = matches.get_many("config");
        Self {
            config: config.unwrap_or_default().cloned().collect(),
            listen: text(matches, "listen"),
        }
    }

    /// These options together with those after the command.
    #[must_use]
    pub fn with(mut self, right: Self) -> Self {
        self.config.extend(right.config);
        self.listen = right.listen.or(self.listen);
        self
    }

    /// Loads the settings. The files are read anew at each call.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        Settings::load(&self.config, self.listen.clone())
    }
}
