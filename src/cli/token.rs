//! `switchboard token`: issues and verifies tokens by the settings.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Command, value_parser};

use super::options::{Options, command, option, path, positional, text};
use crate::auth::{self, Auth, AuthError, Authenticated, Denied, IssueError};
use crate::config::{self, Settings};
use crate::identity::Subject;

pub(super) fn commands() -> Vec<Command> {
    let subject = option("subject", "NAME", "The subject of the token").required(true);
    let expires_in = option("expires-in", "DURATION", "The lifetime of the token")
        .default_value("1h")
        .value_parser(lifetime);
    let key_file = option(
        "key-file",
        "FILE",
        "A shared secret, or a private key in PEM, instead of the first `auth.secret_file`",
    );
    let key_file = key_file.value_parser(value_parser!(PathBuf));
    let token = positional(
        "TOKEN",
        "The token; read from stdin if absent, so that other processes cannot see it",
    );
    let with_options = |name, about| command(name, about, Options::arguments());
    vec![
        with_options("issue", "Sign a token and print it").args([subject, expires_in, key_file]),
        with_options(
            "verify",
            "Check a token and print its subject and lifetime: exit code 0 if it is valid, else 1",
        )
        .arg(token),
    ]
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

/// Issues a token.
pub fn issue_token(matches: &ArgMatches, settings: &Settings) -> Result<String, TokenError> {
    let subject = text(matches, "subject").expect("the argument is required");
    let lifetime = matches.get_one("expires-in");
    let lifetime = *lifetime.expect("the argument has a default");
    let key_file = path(matches, "key-file");
    let token = auth::issue_from(&settings.auth, key_file.as_deref(), &subject, lifetime)?;
    Ok(token)
}

/// Checks a token. Returns its subject and lifetime as a text.
pub async fn verified_token(
    matches: &ArgMatches,
    settings: &Settings,
    mut stdin: impl io::Read,
) -> Result<String, TokenError> {
    let (auth, refresher) = Auth::load(&settings.auth).await?;
    let token = match text(matches, "TOKEN") {
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
