//! The secrets that the settings name by a file and that are used as they are: the operators' token and the
//! secret of tickets. Keys of `[auth]` and credentials of `[cluster]` are read by those modules.

use std::path::{Path, PathBuf};

use super::secret::{Secret, SecretError};
use super::settings::{AdminSettings, Settings, TicketSettings};

/// The least bytes of `tickets.secret_file`: the size of the hash (RFC 2104 section 3).
const TICKET_SECRET_BYTES_MIN: usize = 32;

/// The least bytes of `admin.token_file` without a warning: 16 digits of base64 are 96 bits.
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
    /// The token of operators: visible ASCII, because a header carries it.
    pub fn operator_token(&self) -> Result<Option<Secret>, SecretFileError> {
        read(self.token_file.as_deref(), "admin.token_file", |token| {
            if token.expose().iter().all(u8::is_ascii_graphic) {
                Ok(())
            } else {
                Err(SecretError::NotVisibleAscii)
            }
        })
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
    /// A warning where the operators' token is so short that it can be guessed.
    pub fn weak_token(&self) -> Option<String> {
        // An unusable file is an error of its own.
        let token = self.admin.operator_token().ok()??;
        let bytes = token.expose().len();
        (bytes < TOKEN_BYTES_STRONG).then(|| {
            format!(
                "admin.token_file: {bytes} bytes can be guessed, because nothing limits the rate of \
                 guesses: use {TOKEN_BYTES_STRONG} bytes or more"
            )
        })
    }
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
