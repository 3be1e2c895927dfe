//! `switchboard token`: issues and verifies tokens by the settings.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::options::Options;
use crate::auth::{self, Auth, AuthError, Authenticated, Denied, IssueError};
use crate::config::{self, Settings};
use crate::identity::Subject;

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
