//! The options that name the sources of settings.

use std::path::PathBuf;

use clap::Args;

use crate::config::{ConfigError, Settings};

/// The sources of settings. The options exist before and after the verb: with clap's global options, files
/// after the verb would replace those before it.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// A file of settings (TOML); can be repeated, and later files override earlier ones
    #[arg(short, long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Addresses to listen on, separated by commas, instead of server.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

impl Options {
    /// These options together with those after the verb.
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
