//! The keys that tokens are checked by: from secrets, from public keys, from key sets. Each has one
//! algorithm, whatever a token says.

use std::fmt;
use std::path::{Path, PathBuf};

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use crate::config::{self, Secret, SecretError};

/// Keys of one set that are taken.
const KEYS_MAX: usize = 64;

/// Keys that a token which names none may be tried on: rotation needs two, and each costs.
const TRIES_MAX: usize = 8;

/// One key and its algorithm.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) check: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Why keys cannot be had from where they should be.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file has nothing to read.
    #[error("{path}")]
    Unreadable {
        /// Its name.
        path: PathBuf,
        /// What is wrong.
        source: SecretError,
    },
    /// A secret that could be guessed.
    #[error("{path}: a secret for {algorithm:?} has at least {least} bytes, and this has {found}")]
    Short {
        /// The file's name.
        path: PathBuf,
        /// The algorithm that it is for.
        algorithm: Algorithm,
        /// Bytes of its hash (RFC 7518 section 3.2).
        least: usize,
        /// Bytes of the secret.
        found: usize,
    },
    /// Not a public key in PEM, of a kind that is known.
    #[error("{path}: is no public key in PEM: RSA, P-256, P-384 or Ed25519")]
    NoPublicKey {
        /// The file's name.
        path: PathBuf,
    },
    /// A public key for another algorithm than `auth.algorithm`.
    #[error("{path}: is no key for {algorithm:?} (auth.algorithm)")]
    OtherAlgorithm {
        /// The file's name.
        path: PathBuf,
        /// The algorithm asked for.
        algorithm: Algorithm,
    },
    /// Not a set of keys.
    #[error("{origin}: is no JSON Web Key Set")]
    NoKeySet {
        /// The file's name, or the address.
        origin: String,
        /// Where the text is wrong.
        source: serde_json::Error,
    },
    /// No key of a set can check anything.
    #[error("{origin}: has no key for HS, RS, ES256, ES384 or EdDSA signatures")]
    NoKey {
        /// The file's name, or the address.
        origin: String,
    },
}

/// All keys of the files that the settings name.
pub(super) fn from_files(settings: &config::Auth) -> Result<Vec<Key>, KeyError> {
    let algorithm = settings.algorithm.map(algorithm);
    let mut keys = Vec::new();
    for path in &settings.secret_file {
        keys.push(from_secret(path, algorithm)?);
    }
    for path in &settings.public_key_file {
        keys.push(from_public_key(path, algorithm)?);
    }
    if let Some(path) = &settings.jwks_file {
        let text = read(path)?;
        keys.extend(from_set(
            text.expose(),
            &path.display().to_string(),
            Secrets::Taken,
        )?);
    }
    Ok(keys)
}

fn read(path: &Path) -> Result<Secret, KeyError> {
    Secret::read(path).map_err(|source| KeyError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn from_secret(path: &Path, algorithm: Option<Algorithm>) -> Result<Key, KeyError> {
    let secret = read(path)?;
    let algorithm = algorithm
        .filter(|algorithm| algorithm.family() == AlgorithmFamily::Hmac)
        .unwrap_or(Algorithm::HS256);
    let least = hash_bytes(algorithm);
    let found = secret.expose().len();
    if found < least {
        return Err(KeyError::Short {
            path: path.to_owned(),
            algorithm,
            least,
            found,
        });
    }
    Ok(Key {
        id: None,
        algorithm,
        check: DecodingKey::from_secret(secret.expose()),
    })
}

fn from_public_key(path: &Path, asked: Option<Algorithm>) -> Result<Key, KeyError> {
    let text = read(path)?;
    let pem = text.expose();
    let no_public_key = || KeyError::NoPublicKey {
        path: path.to_owned(),
    };
    if memchr::memmem::find(pem, b"PRIVATE KEY").is_some() {
        return Err(no_public_key());
    }
    let key = DecodingKey::from_rsa_pem(pem)
        .or_else(|_| DecodingKey::from_ec_pem(pem))
        .or_else(|_| DecodingKey::from_ed_pem(pem))
        .map_err(|_| no_public_key())?;
    let natural = natural_algorithm(&key).ok_or_else(no_public_key)?;
    let asked = asked.filter(|asked| asked.family() != AlgorithmFamily::Hmac);
    let fits = |asked: Algorithm| {
        asked == natural || (natural == Algorithm::RS256 && asked.family() == AlgorithmFamily::Rsa)
    };
    match asked {
        Some(algorithm) if !fits(algorithm) => Err(KeyError::OtherAlgorithm {
            path: path.to_owned(),
            algorithm,
        }),
        asked => Ok(Key {
            id: None,
            algorithm: asked.unwrap_or(natural),
            check: key,
        }),
    }
}

/// The algorithm that a public key is for, where it says none.
fn natural_algorithm(key: &DecodingKey) -> Option<Algorithm> {
    let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match (key.family(), bytes) {
        (AlgorithmFamily::Rsa, _) => Some(Algorithm::RS256),
        // A point without compression (SEC 1 section 2.3.3).
        (AlgorithmFamily::Ec, 65) => Some(Algorithm::ES256),
        (AlgorithmFamily::Ec, 97) => Some(Algorithm::ES384),
        (AlgorithmFamily::Ed, 32) => Some(Algorithm::EdDSA),
        _ => None,
    }
}

/// Whether secrets in a key set are used. One that a server tells everybody is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    Taken,
    LeftOut,
}

/// The keys of a set that can check a token; what it has besides is left out (RFC 7517 section 5).
pub(super) fn from_set(text: &[u8], origin: &str, secrets: Secrets) -> Result<Vec<Key>, KeyError> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|source| KeyError::NoKeySet {
        origin: origin.to_owned(),
        source,
    })?;
    let keys = set.keys.iter().filter_map(|jwk| from_jwk(jwk, secrets));
    let keys: Vec<_> = keys.take(KEYS_MAX).collect();
    if keys.is_empty() {
        return Err(KeyError::NoKey {
            origin: origin.to_owned(),
        });
    }
    Ok(keys)
}

fn from_jwk(jwk: &Jwk, secrets: Secrets) -> Option<Key> {
    let common = &jwk.common;
    let signs = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        && common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !signs {
        return None;
    }
    let natural = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) if secrets == Secrets::LeftOut => return None,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let algorithm = match common.key_algorithm {
        Some(algorithm) => Algorithm::try_from(algorithm).ok()?,
        None => natural,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let fits = match algorithm.family() {
        AlgorithmFamily::Hmac => {
            key.family() == AlgorithmFamily::Hmac
                && key
                    .try_get_as_bytes()
                    .is_ok_and(|secret| secret.len() >= hash_bytes(algorithm))
        }
        AlgorithmFamily::Rsa => key.family() == AlgorithmFamily::Rsa && is_known_rsa(algorithm),
        _ => algorithm == natural,
    };
    fits.then(|| Key {
        id: common.key_id.clone(),
        algorithm,
        check: key,
    })
}

fn is_known_rsa(algorithm: Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512
    )
}

/// Bytes of the hash that an HMAC algorithm uses.
pub(super) fn hash_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    }
}

/// The keys that a token with this head may be signed by.
pub(super) fn candidates<'a>(
    keys: &'a [Key],
    algorithm: Algorithm,
    id: Option<&'a str>,
) -> impl Iterator<Item = &'a Key> {
    keys.iter()
        .filter(move |key| key.algorithm == algorithm)
        .filter(move |key| match (id, &key.id) {
            (Some(id), Some(own)) => id == own,
            _ => true,
        })
        .take(TRIES_MAX)
}

/// Whether a key with this name is there.
pub(super) fn knows(keys: &[Key], id: &str) -> bool {
    keys.iter().any(|key| key.id.as_deref() == Some(id))
}

pub(super) fn algorithm(setting: config::Algorithm) -> Algorithm {
    match setting {
        config::Algorithm::HS256 => Algorithm::HS256,
        config::Algorithm::HS384 => Algorithm::HS384,
        config::Algorithm::HS512 => Algorithm::HS512,
        config::Algorithm::RS256 => Algorithm::RS256,
        config::Algorithm::RS384 => Algorithm::RS384,
        config::Algorithm::RS512 => Algorithm::RS512,
        config::Algorithm::ES256 => Algorithm::ES256,
        config::Algorithm::ES384 => Algorithm::ES384,
        config::Algorithm::EdDSA => Algorithm::EdDSA,
    }
}
