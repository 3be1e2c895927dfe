//! `switchboard init`: writes a first configuration with secrets of its own. Overwrites nothing.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command, value_parser};
use data_encoding::BASE64URL_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use toml::Value;

use super::options::{self, path, positional};

/// The files, in the order in which they are written: the one with the settings exists only if all do.
const FILES: [&str; 3] = ["ticket-secret", "admin-token", "switchboard.toml"];

/// The random bytes of a secret: the size of the hash that signs tickets.
const SECRET_BYTES: usize = 32;

pub(super) fn command() -> Command {
    let folder = positional("DIR", "The folder of the files").default_value(".");
    let about = "Write a first configuration with secrets of its own; overwrites nothing";
    options::command(
        "init",
        about,
        vec![folder.value_parser(value_parser!(PathBuf))],
    )
}

/// Why there is no new configuration.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file exists.
    #[error("{} exists, and init overwrites nothing", .0.display())]
    Exists(PathBuf),
    /// A file cannot be created.
    #[error("cannot create {}", .0.display())]
    Create(PathBuf, #[source] io::Error),
    /// The settings name the secrets by their full path.
    #[error("{}: not UTF-8, so the settings cannot name it", .0.display())]
    NotUtf8(PathBuf),
    /// The system has no random numbers.
    #[error("the system has no random numbers")]
    NoRandom,
}

/// Writes the files. Returns what to do next.
pub fn init(matches: &ArgMatches) -> Result<String, InitError> {
    let folder = path(matches, "DIR").expect("the argument has a default");
    let create = |error| InitError::Create(folder.clone(), error);
    let folder = fs::canonicalize(&folder).map_err(create)?;
    let paths = FILES.map(|name| folder.join(name));
    if let Some(path) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(InitError::Exists(path.clone()));
    }
    let [tickets, token, settings] = &paths;
    let text = settings_text(tickets, token)?;
    create_private(tickets, &secret()?)?;
    create_private(token, &secret()?)?;
    create_private(settings, &text)?;
    Ok(next_steps(settings, token))
}

fn secret() -> Result<String, InitError> {
    let mut bytes = [0; SECRET_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| InitError::NoRandom)?;
    Ok(BASE64URL_NOPAD.encode(&bytes) + "\n")
}

/// Creates a file that only its owner can read.
fn create_private(path: &Path, text: &str) -> Result<(), InitError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| InitError::Create(path.to_owned(), error))
}

/// The settings. They name the secrets by full paths, because the relay may run in another folder.
fn settings_text(tickets: &Path, token: &Path) -> Result<String, InitError> {
    let quoted = |path: &Path| match path.to_str() {
        Some(path) => Ok(Value::String(path.to_owned()).to_string()),
        None => Err(InitError::NotUtf8(path.to_owned())),
    };
    let (tickets, token) = (quoted(tickets)?, quoted(token)?);
    Ok(format!(
        r#"# Made by `switchboard init`. `switchboard config default` prints every setting with its meaning.
[server]
listen = ["127.0.0.1:8080", "[::1]:8080"] # where users connect; "[::]:8080" lets other machines in
allowed_origins = [] # web pages from elsewhere that may connect, such as ["http://localhost:5173"]

[tickets] # users keep their ids across a restart of the relay
secret_file = {tickets}

[admin] # the API for operators: switchboard send, users, status, drain, log-filter
listen = "127.0.0.1:9090"
token_file = {token}
"#
    ))
}

fn next_steps(settings: &Path, token: &Path) -> String {
    let (settings, token) = (settings.display(), token.display());
    format!(
        "Wrote {settings}, and two secrets beside it. Next:
  switchboard -c {settings}
      serves; then open http://127.0.0.1:8080 in two tabs and talk
  switchboard connect
      talks from another terminal
  switchboard send -c {settings} --to 1 \"Hello\"
      sends to user 1 as an operator; `users` and `status` look at the relay
  switchboard check --changed -c {settings}
      prints what differs from the defaults, and warns of what is unsafe
  switchboard bench pairs --metrics http://127.0.0.1:9090/metrics --metrics-token-file {token}
      measures the relay and checks every message (cargo install --locked --path benches/load)
"
    )
}
