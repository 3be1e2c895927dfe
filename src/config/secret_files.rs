//! The secrets that the settings name by a file and that are used as they are: the tokens of `[admin]` and the
//! secret of tickets. Keys of `[auth]` and credentials of `[cluster]` are read by those modules.

use std::path::{Path, PathBuf};

use super::secret::{Secret, SecretError};
use super::settings::{AdminSettings, Settings, TicketSettings};

/// The least bytes of `tickets.secret_file`: the size of the hash (RFC 2104 section 3).
const TICKET_SECRET_BYTES_MIN: usize = 32;

const TOKEN_FILE: &str = "admin.token_file";
const METRICS_TOKEN_FILE: &str = "admin.metrics_token_file";

/// The least bytes of a token without a warning: 16 digits of base64 are 96 bits.
const TOKEN_BYTES_STRONG: usize = 16;

/// Why the file of a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} ({key})", path.display())]
pub struct SecretFileError {
    path: PathBuf,
    key: &'static str,
    source: SecretError,
}

impl AdminSettings {
    /// The token of operators.
    pub fn operator_token(&self) -> Result<Option<Secret>, SecretFileError> {
        read_token(self.token_file.as_deref(), TOKEN_FILE)
    }

    /// The token of scrapers: that of operators where it has no file of its own.
    pub fn metrics_token(&self) -> Result<Option<Secret>, SecretFileError> {
        match &self.metrics_token_file {
            Some(path) => read_token(Some(path), METRICS_TOKEN_FILE),
            None => self.operator_token(),
        }
    }
}

impl TicketSettings {
    /// The secret that signs tickets.
    pub fn secret(&self) -> Result<Option<Secret>, SecretFileError> {
        read(
            self.secret_file.as_deref(),
            "tickets.secret_file",
            |secret| {
                if secret.expose().len() >= TICKET_SECRET_BYTES_MIN {
                    Ok(())
                } else {
                    Err(SecretError::TooShort {
                        bytes_min: TICKET_SECRET_BYTES_MIN,
                    })
                }
            },
        )
    }
}

impl Settings {
    /// Warnings about tokens that are so short that they can be guessed.
    pub(super) fn weak_tokens(&self) -> Vec<String> {
        let admin = &self.admin;
        let files = [
            (TOKEN_FILE, &admin.token_file),
            (METRICS_TOKEN_FILE, &admin.metrics_token_file),
        ];
        let weak = files.into_iter().filter_map(|(key, path)| {
            // An unusable file is an error of its own.
            let token = read_token(path.as_deref(), key).ok()??;
            let bytes = token.expose().len();
            (bytes < TOKEN_BYTES_STRONG).then(|| {
                format!(
                    "{key}: {bytes} bytes can be guessed, because nothing limits the rate of \
                     guesses: use {TOKEN_BYTES_STRONG} bytes or more"
                )
            })
        });
        weak.collect()
    }
}

/// Reads a token: visible ASCII, because a header carries it.
fn read_token(path: Option<&Path>, key: &'static str) -> Result<Option<Secret>, SecretFileError> {
    read(path, key, |token| {
        if token.expose().iter().all(u8::is_ascii_graphic) {
            Ok(())
        } else {
            Err(SecretError::NotVisibleAscii)
        }
    })
}

/// Reads and checks the secret of a key, where the key is set.
fn read(
    path: Option<&Path>,
    key: &'static str,
    check: impl Fn(&Secret) -> Result<(), SecretError>,
) -> Result<Option<Secret>, SecretFileError> {
    let Some(path) = path else { return Ok(None) };
    let secret = Secret::read(path).and_then(|secret| check(&secret).map(|()| secret));
    secret.map(Some).map_err(|source| SecretFileError {
        path: path.to_owned(),
        key,
        source,
    })
}
