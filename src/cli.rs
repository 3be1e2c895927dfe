//! The command line: verbs, options, and the work of the small verbs. Does not exit, bind or serve.

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

/// Containers run a health check every few seconds, so it must end sooner. The body of `/livez` is shorter.
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
    /// The verb; `serve` if there is none.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Options before the verb.
    #[command(flatten)]
    pub options: Options,
}

/// The verbs, with the options after the verb.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve until SIGTERM or SIGINT (the default)
    Serve(Options),
    /// Check the configuration, print it as it takes effect, and warn if this machine is too small for it
    Check(Options),
    /// Show the configuration's documentation
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Ask the relay of this configuration whether it is alive: exit code 0 if it is, else 1
    Healthcheck(Options),
    /// Put load on a relay, measure it and check every message: exit code 0 if all is right, else 1
    #[command(disable_help_flag = true)]
    Bench(BenchArguments),
    /// Issue or verify tokens by the auth section of the configuration, to try it out
    #[command(subcommand)]
    Token(TokenVerb),
}

/// The sources of settings. The options exist before and after the verb: with clap's global options, files
/// after the verb would replace those before it.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// A file of settings (TOML); can be repeated, and later files override earlier ones
    #[arg(long, value_name = "FILE")]
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

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print every setting with its default and its meaning
    Default,
}

/// The verbs of `token`.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Sign a token and print it
    Issue(IssueOptions),
    /// Check a token and print its subject and lifetime: exit code 0 if it is valid, else 1
    Verify(VerifyOptions),
}

/// The options of `token issue`.
#[derive(Debug, Args)]
pub struct IssueOptions {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// The subject of the token
    #[arg(long, value_name = "NAME")]
    subject: String,
    /// The lifetime of the token
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = lifetime)]
    expires_in: Duration,
    /// A shared secret, or a private key in PEM, instead of the first `auth.secret_file`
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// The options of `token verify`.
#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// The token; read from stdin if absent, so that other processes cannot see it
    token: Option<String>,
}

/// The arguments of the load generator, which is a program of its own.
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
        "{PROGRAM} is neither beside this program nor on PATH: \
         `cargo build --release --workspace` builds both",
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

fn lifetime(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
        .ok_or_else(|| "a duration such as \"30s\", \"5m\" or \"12h\"".to_owned())
}

/// Why a token was not issued, or is not valid.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token cannot be signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The keys cannot be read.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Stdin cannot be read.
    #[error("cannot read the token")]
    Stdin(#[from] io::Error),
    /// The token is invalid, for this reason.
    #[error("invalid token: {0}")]
    Invalid(String),
}

impl IssueOptions {
    /// Issues the token.
    pub fn token(&self, settings: &Settings) -> Result<String, TokenError> {
        let key_file = self.key_file.as_deref();
        let token = auth::issue_from(&settings.auth, key_file, &self.subject, self.expires_in)?;
        Ok(token)
    }
}

impl VerifyOptions {
    /// Checks the token. Returns its subject and lifetime as a text.
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
        // `verify` waits for the refresher where the token's key is unknown. The refresher never ends.
        let refresh = async {
            match refresher {
                Some(refresher) => refresher.run(|_| ()).await,
                None => pending().await,
            }
        };
        let token = token.trim();
        let verified = tokio::select! {
            verified = auth.verify(token) => verified,
            () = refresh => Err(Denied),
        };
        let Authenticated { subject, remaining } =
            verified.map_err(|Denied| TokenError::Invalid(auth.explain(token)))?;
        let subject = subject.as_ref().map_or("none", Subject::as_str);
        let seconds = remaining.map_or(0, |remaining| remaining.as_secs());
        Ok(format!(
            "subject {subject:?}, valid for {seconds} s (auth.leeway included)"
        ))
    }
}

/// Why a relay is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// The file of its certificate contains none.
    #[error("cannot check the server's certificate")]
    Trust(#[from] TrustError),
    /// The relay does not answer, or its status is not 200.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Requests `/livez` from the relay of these settings: on the admin listener if there is one, else on the
/// first address of `server.listen`.
pub async fn healthcheck(settings: &Settings) -> Result<(), Unhealthy> {
    let (address, tls) = match settings.admin.listen {
        Some(address) => (address, &settings.admin.tls),
        // The rules of the settings refuse an empty list.
        None => (settings.server.listen[0], &settings.server.tls),
    };
    let address = reachable(address);
    let scheme = if tls.cert_file.is_none() {
        "http"
    } else {
        "https"
    };
    // On the listener for users, where this address is one of a trusted proxy.
    let networks = match settings.admin.listen {
        None if settings.server.proxy_protocol => settings.server.trusted_proxies.clone(),
        _ => Vec::new(),
    };
    let trust = tls.cert_file.as_deref().map(Trust::Certificate);
    let client = HttpClient::as_proxy(trust, HEALTH_LIMITS, networks)?;
    let url = format!("{scheme}://{address}/livez");
    let url = url.parse().expect("an address is the host of a URL");
    client.get(&url, "*/*").await?;
    Ok(())
}

/// The address to connect to for an address to listen on: `0.0.0.0` and `[::]` become the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
