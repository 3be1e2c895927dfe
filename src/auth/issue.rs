//! Issues tokens for `switchboard token issue` and for tests.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{AlgorithmFamily, EncodingKey, Header};
use memchr::memmem;
use serde::Serialize;

use super::{crypto, key};
use crate::config::{Algorithm, AuthSettings, Secret, SecretError};

/// The claims of an issued token.
#[derive(Debug, Serialize)]
struct IssuedClaims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No file names a key.
    #[error("no key to sign with: name one by --key-file, or set auth.secret_file")]
    NoKey,
    /// The key cannot be read.
    #[error("the key to sign with")]
    Key(#[from] SecretError),
    /// The file has no usable private key.
    #[error("{path}: not a private key in PEM (RSA; P-256, P-384 or Ed25519 in PKCS #8)")]
    NoPrivateKey {
        /// The file's name.
        path: PathBuf,
    },
    /// The key does not fit the algorithm.
    #[error("the key does not fit {0:?} (auth.algorithm)")]
    OtherAlgorithm(Algorithm),
}

/// Signs a token that these settings accept, with the shared secret or the private key (PEM) in `key_file`. Without
/// `key_file`, uses the first of `auth.secret_file`. `auth.algorithm` counts only for a key that it can fit, as
/// when tokens are verified.
pub fn issue_from(
    settings: &AuthSettings,
    key_file: Option<&Path>,
    subject: &str,
    lifetime: Duration,
) -> Result<String, IssueError> {
    let first = || settings.secret_file.first().map(PathBuf::as_path);
    let path = key_file.or_else(first).ok_or(IssueError::NoKey)?;
    let secret = Secret::read(path)?;
    let is_private =
        key_file.is_some() && memmem::find(secret.expose(), b"PRIVATE KEY-----").is_some();
    let setting = settings.algorithm;
    let algorithm = if is_private {
        let setting = setting.filter(|setting| !is_hmac(*setting));
        setting
            .or_else(|| private_key_algorithm(&secret))
            .ok_or_else(|| IssueError::NoPrivateKey {
                path: path.to_owned(),
            })?
    } else {
        let setting = setting.filter(|setting| key_file.is_some() || is_hmac(*setting));
        setting.unwrap_or(Algorithm::HS256)
    };
    let settings = AuthSettings {
        algorithm: Some(algorithm),
        ..settings.clone()
    };
    issue(&settings, &secret, subject, lifetime)
}

/// Signs a token that these settings accept. `secret` has the bytes of a shared secret, or of a private key in PEM.
pub fn issue(
    settings: &AuthSettings,
    secret: &Secret,
    subject: &str,
    lifetime: Duration,
) -> Result<String, IssueError> {
    crypto::install();
    let setting = settings.algorithm.unwrap_or(Algorithm::HS256);
    let misfit = || IssueError::OtherAlgorithm(setting);
    let key = encoding_key(setting, secret.expose()).map_err(|_| misfit())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let iat = now.unwrap_or_default().as_secs();
    let claims = IssuedClaims {
        sub: subject,
        iat,
        exp: iat.saturating_add(lifetime.as_secs()),
        iss: settings.issuer.as_deref(),
        aud: settings.audience.as_deref(),
    };
    jsonwebtoken::encode(&Header::new(key::algorithm(setting)), &claims, &key).map_err(|_| misfit())
}

/// The first algorithm that a private key in PEM can sign with.
fn private_key_algorithm(secret: &Secret) -> Option<Algorithm> {
    let all = [
        Algorithm::RS256,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ];
    all.into_iter().find(|algorithm| {
        let key = encoding_key(*algorithm, secret.expose());
        key.is_ok_and(|key| crypto::can_sign(key::algorithm(*algorithm), &key))
    })
}

fn is_hmac(algorithm: Algorithm) -> bool {
    key::algorithm(algorithm).family() == AlgorithmFamily::Hmac
}

fn encoding_key(algorithm: Algorithm, bytes: &[u8]) -> jsonwebtoken::errors::Result<EncodingKey> {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            Ok(EncodingKey::from_secret(bytes))
        }
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => EncodingKey::from_rsa_pem(bytes),
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(bytes),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(bytes),
    }
}
