//! The keys that tokens are checked by: from secrets, from public keys, from key sets. Each has one
//! algorithm, whatever a token says.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;
use zeroize::Zeroizing;

use crate::config::{self, Secret, SecretError};

/// Keys of one set that are taken.
const KEYS_MAX: usize = 64;

/// Keys that a token which names none may be tried on: rotation needs two, and each costs. As many files
/// of secrets, and of public keys, can be set (`KEY_FILES_MAX` in src/config/rules.rs).
const TRIES_MAX: usize = 8;

/// Bits of an RSA key: below it is weak (RFC 7518 section 3.3), above it costs, and *ring* takes neither.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

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
    /// An RSA key that is not used.
    #[error("{path}: an RSA key has {} to {} bits, and this has {found}", RSA_BITS.start(), RSA_BITS.end())]
    RsaBits {
        /// The file's name.
        path: PathBuf,
        /// Bits of its modulus.
        found: usize,
    },
    /// Not a set of keys. What stands there instead may be a secret, and is not said.
    #[error("{origin}: is no JSON Web Key Set: line {line}, column {column}")]
    NoKeySet {
        /// The file's name, or the address.
        origin: String,
        /// Where the text is wrong, from 1.
        line: usize,
        /// And how far in, bytes.
        column: usize,
    },
    /// No key of a set can check anything.
    #[error("{origin}: has no key for HS, RS, ES256, ES384 or EdDSA signatures")]
    NoKey {
        /// The file's name, or the address.
        origin: String,
    },
}

/// All keys of the files that the settings name.
pub(super) fn from_files(settings: &config::AuthSettings) -> Result<Vec<Key>, KeyError> {
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
    if key.family() == AlgorithmFamily::Rsa {
        let found = rsa_bits(&key).ok_or_else(no_public_key)?;
        if !RSA_BITS.contains(&found) {
            let path = path.to_owned();
            return Err(KeyError::RsaBits { path, found });
        }
    }
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

/// The algorithm that a key is for, where it says none.
fn natural_algorithm(key: &DecodingKey) -> Option<Algorithm> {
    let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match (key.family(), bytes) {
        (AlgorithmFamily::Hmac, _) => Some(Algorithm::HS256),
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

/// A set of keys (RFC 7517 section 5), each as it came.
#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// One of them (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2), as far as it is looked at.
/// What is base64url is borrowed: a secret is nowhere else than in the text.
#[derive(Deserialize)]
struct Jwk<'a> {
    kty: &'a str,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<&'a str>,
    n: Option<&'a str>,
    e: Option<&'a str>,
    x: Option<&'a str>,
    y: Option<&'a str>,
    k: Option<&'a str>,
}

/// The keys of a set that can check a token; what it has besides is left out, and a key that is none, too
/// (RFC 7517 section 5).
pub(super) fn from_set(text: &[u8], origin: &str, secrets: Secrets) -> Result<Vec<Key>, KeyError> {
    let Set { keys } = serde_json::from_slice(text).map_err(|error| KeyError::NoKeySet {
        origin: origin.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    let keys = keys.iter().filter_map(|key| from_jwk(key.get(), secrets));
    let mut keys: Vec<_> = keys.take(KEYS_MAX + 1).collect();
    if keys.len() > KEYS_MAX {
        keys.truncate(KEYS_MAX);
        warn!(
            origin,
            "a key set has more than {KEYS_MAX} keys: the rest is left out"
        );
    }
    if keys.is_empty() {
        return Err(KeyError::NoKey {
            origin: origin.to_owned(),
        });
    }
    Ok(keys)
}

fn from_jwk(text: &str, secrets: Secrets) -> Option<Key> {
    let jwk: Jwk<'_> = serde_json::from_str(text).ok()?;
    let key = jwk.key(secrets).filter(|_| jwk.is_to_verify())?;
    let natural = natural_algorithm(&key)?;
    let algorithm = match &jwk.alg {
        Some(algorithm) => algorithm.parse().ok()?,
        None => natural,
    };
    let fits = match natural.family() {
        AlgorithmFamily::Hmac => {
            let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
            algorithm.family() == AlgorithmFamily::Hmac && bytes >= hash_bytes(algorithm)
        }
        AlgorithmFamily::Rsa => is_known_rsa(algorithm) && RSA_BITS.contains(&rsa_bits(&key)?),
        _ => algorithm == natural,
    };
    fits.then_some(Key {
        id: jwk.kid,
        algorithm,
        check: key,
    })
}

impl Jwk<'_> {
    fn is_to_verify(&self) -> bool {
        let operations = self.key_ops.as_ref();
        self.usage.as_ref().is_none_or(|usage| usage == "sig")
            && operations.is_none_or(|all| all.iter().any(|operation| operation == "verify"))
    }

    fn key(&self, secrets: Secrets) -> Option<DecodingKey> {
        match (self.kty, self.crv) {
            ("oct", _) if secrets == Secrets::Taken => {
                Some(DecodingKey::from_secret(&bytes(self.k?)?))
            }
            ("RSA", _) => {
                let (n, e) = (bytes(self.n?)?, bytes(self.e?)?);
                let (n, e) = (significant(&n), significant(&e));
                Some(DecodingKey::from_rsa_raw_components(n, e))
            }
            ("EC", Some(curve)) => {
                let (x, y) = (bytes(self.x?)?, bytes(self.y?)?);
                let size = match curve {
                    "P-256" => 32,
                    "P-384" => 48,
                    _ => return None,
                };
                // A point without compression (SEC 1 section 2.3.3).
                let point = [&[4], x.as_slice(), &y].concat();
                (x.len() == size && y.len() == size).then(|| DecodingKey::from_ec_der(&point))
            }
            ("OKP", Some("Ed25519")) => Some(DecodingKey::from_ed_der(&bytes(self.x?)?)),
            _ => None,
        }
    }
}

/// What a text in base64url says, wiped when it is dropped.
fn bytes(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.as_bytes();
    let mut bytes = Zeroizing::new(vec![0; BASE64URL_NOPAD.decode_len(text.len()).ok()?]);
    BASE64URL_NOPAD.decode_mut(text, &mut bytes).ok()?;
    Some(bytes)
}

/// A number without the zeros that some programs put before it (RFC 7518 section 6.3.1.1).
fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// Bits of an RSA key's modulus; nothing for another key.
fn rsa_bits(key: &DecodingKey) -> Option<usize> {
    let modulus = match key.kind() {
        _ if key.family() != AlgorithmFamily::Rsa => return None,
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.as_slice(),
        // A sequence of two integers, of which it is the first (RFC 8017 appendix A.1.1).
        DecodingKeyKind::SecretOrDer(der) => der_content(der_content(der, 0x30)?, 0x02)?,
    };
    let modulus = significant(modulus);
    let unused = modulus.first()?.leading_zeros() as usize;
    Some(modulus.len() * 8 - unused)
}

/// The content of what stands at the front of a text in DER, if it is of this kind (X.690 section 8.1).
fn der_content(der: &[u8], tag: u8) -> Option<&[u8]> {
    let (head, rest) = der.split_at_checked(2)?;
    let (length, rest) = match head[1] {
        short @ ..0x80 => (usize::from(short), rest),
        long => {
            let (length, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let sum = |sum: usize, byte: &u8| sum.checked_mul(256)?.checked_add((*byte).into());
            (length.iter().try_fold(0, sum)?, rest)
        }
    };
    rest.get(..length).filter(|_| head[0] == tag)
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

/// The keys that a token with this head may be signed by: those that it names, then those that have no
/// name, or all where it names none.
pub(super) fn candidates<'a>(
    keys: &'a [Key],
    algorithm: Algorithm,
    id: Option<&'a str>,
) -> impl Iterator<Item = &'a Key> {
    let keys = keys.iter().filter(move |key| key.algorithm == algorithm);
    let is_named = move |key: &Key| id.is_some() && key.id.as_deref() == id;
    let is_nameless = move |key: &Key| id.is_none() || key.id.is_none();
    let named = keys.clone().filter(move |key| is_named(key));
    let others = keys.filter(move |key| is_nameless(key));
    named.chain(others).take(TRIES_MAX)
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
