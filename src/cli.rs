//! The command line: its verbs and options, and what the small verbs do. Does not exit, bind or serve.

use std::env;
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::auth::{self, Auth, AuthError, Authenticated, Denied, IssueError};
use crate::config::{self, ConfigError, Settings};
use crate::identity::Subject;
use crate::net::http_client::{HttpClient, HttpError, Limits};
use crate::net::trust::{Trust, TrustError};

/// How long a health check may take, because containers ask every few seconds; and more than the body of
/// `/livez` has.
const HEALTH_LIMITS: Limits = Limits {
    timeout: Duration::from_secs(3),
    body_bytes_max: 64 * 1024,
};

/// A WebSocket relay between two people that says what became of every message.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 success, 1 failure, 2 usage, 78 configuration, \
    128 + number for a second signal.\nSettings: `switchboard config default` prints them all."
)]
pub struct Cli {
    /// What to do; to serve where none is named.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Options before the verb.
    #[command(flatten)]
    pub options: Options,
}

/// What to do, with the options after the verb.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve until SIGTERM or SIGINT (the default)
    Serve(Options),
    /// Check the configuration, print it as it takes effect, warn where the machine cannot hold it
    Check(Options),
    /// About the configuration itself
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Ask the server of this configuration whether it lives: exit code 0, or 1
    Healthcheck(Options),
    /// Load a relay, measure it, and check every message meanwhile: exit code 0, or 1
    #[command(disable_help_flag = true)]
    Bench(Bench),
    /// Tokens for trying out, by the auth section of the configuration
    #[command(subcommand)]
    Token(TokenVerb),
}

/// Where settings come from. The same on both sides of the verb, where clap's own global options
/// forget the files of the one side as soon as there is one on the other.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// A file of settings (TOML); may come again, the later file wins
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Addresses to listen on, separated by commas, in place of server.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

impl Options {
    /// These options and those further right together.
    #[must_use]
    pub fn with(mut self, right: Self) -> Self {
        self.config.extend(right.config);
        self.listen = right.listen.or(self.listen);
        self
    }

    /// The settings by these options, as the files are now.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        Settings::load(&self.config, self.listen.clone())
    }
}

/// What to do about the configuration itself.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print every setting with its default and what it does
    Default,
}

/// What to do about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Sign a token and print it
    Issue(Issue),
    /// Say whether a token holds, for whom and how long: exit code 0, or 1
    Verify(Verify),
}

/// A token to sign.
#[derive(Debug, Args)]
pub struct Issue {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// Whom it is about
    #[arg(long, value_name = "NAME")]
    subject: String,
    /// How long it is good for
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = lifetime)]
    expires_in: Duration,
    /// A shared secret, or a private key in PEM, in place of the first `auth.secret_file`
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A token to check.
#[derive(Debug, Args)]
pub struct Verify {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// The token; without one it is read from stdin, so that no other process sees it
    token: Option<String>,
}

/// A run of the load generator, which is a program of its own.
#[derive(Debug, Args)]
pub struct Bench {
    /// Passed on unchanged; `switchboard bench --help` lists the options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Why the load generator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartBenchError {
    /// The program is not installed.
    #[error(
        "{PROGRAM} is neither beside this program nor on PATH: \
         `cargo build --release --workspace` builds both",
        PROGRAM = Bench::PROGRAM
    )]
    Missing,
    /// The program is installed and cannot be run.
    #[error("cannot run {}", Bench::PROGRAM)]
    Start(#[source] io::Error),
}

impl Bench {
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

fn lifetime(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
        .ok_or_else(|| "a duration such as \"30s\", \"5m\" or \"12h\"".to_owned())
}

/// Why there is no token, or none that holds.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The keys cannot be read.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Stdin cannot be read.
    #[error("cannot read the token")]
    Stdin(#[from] io::Error),
    /// It does not hold.
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl Issue {
    /// The token that was asked for.
    pub fn token(&self, settings: &Settings) -> Result<String, TokenError> {
        let key_file = self.key_file.as_deref();
        let token = auth::issue_from(&settings.auth, key_file, &self.subject, self.expires_in)?;
        Ok(token)
    }
}

impl Verify {
    /// What a token that holds allows, in words.
    pub async fn verified(
        self,
        settings: &Settings,
        mut stdin: impl io::Read,
    ) -> Result<String, TokenError> {
        let (auth, refresher) = Auth::load(&settings.auth).await?;
        let token = match self.token {
            Some(token) => token,
            None => io::read_to_string(&mut stdin)?,
        };
        // A token may have to wait for the keeper, which never ends by itself.
        let keeping = async {
            match refresher {
                Some(refresher) => refresher.run().await,
                None => pending().await,
            }
        };
        let verified = tokio::select! {
            verified = auth.verify(token.trim()) => verified,
            () = keeping => Err(Denied),
        };
        let Authenticated { subject, remaining } = verified?;
        let subject = subject.as_ref().map_or("nobody", Subject::as_str);
        let seconds = remaining.map_or(0, |remaining| remaining.as_secs());
        Ok(format!(
            "subject {subject:?}, good for {seconds} s with the leeway"
        ))
    }
}

/// Why a server counts as not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// The file of its certificate has none.
    #[error("cannot check the server's certificate")]
    Trust(#[from] TrustError),
    /// It does not answer, or not with 200.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Asks the server of these settings for `/livez`, where it serves health.
pub async fn healthcheck(settings: &Settings) -> Result<(), Unhealthy> {
    let first = || {
        (
            settings.server.listen.first().copied(),
            &settings.server.tls,
        )
    };
    let (address, tls) = match settings.admin.listen {
        Some(address) => (Some(address), &settings.admin.tls),
        None => first(),
    };
    let address = reachable(address.expect("server.listen has an address, by its rule"));
    let (scheme, client) = match &tls.cert_file {
        None => ("http", HttpClient::plain(HEALTH_LIMITS)),
        Some(cert_file) => (
            "https",
            HttpClient::new(Trust::Certificate(cert_file), HEALTH_LIMITS)?,
        ),
    };
    let url = format!("{scheme}://{address}/livez");
    let url = url.parse().expect("an address is the host of a URL");
    client.get(&url, "*/*").await?;
    Ok(())
}

/// An address to connect to, for one to listen on: all addresses are not one to connect to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
