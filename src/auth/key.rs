//! A key that verifies tokens. Each key has one algorithm, whatever a token asks for.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};

use crate::config::{self, SecretError};

/// Keys that a token without a key id is tried on. Rotation needs two, and each costs CPU time. As many files of
/// secrets, and of public keys, can be set (`KEY_FILES_MAX` in src/config/rules.rs).
const TRIES_MAX: usize = 8;

/// Bits of an RSA key. Fewer are weak (RFC 7518 section 3.3), more cost CPU time, and *ring* takes neither.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// A key and its algorithm.
#[derive(Clone)]
pub(super) struct VerificationKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Why keys cannot be loaded from a file or a URL.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file has no secret.
    #[error("{path}")]
    Unreadable {
        /// The file's name.
        path: PathBuf,
        /// The reason.
        source: SecretError,
    },
    /// A secret that could be guessed.
    #[error("{path}: the secret has {found} bytes, but {algorithm:?} needs at least {least}")]
    Short {
        /// The file's name.
        path: PathBuf,
        /// The algorithm of the secret.
        algorithm: Algorithm,
        /// Bytes of the algorithm's hash (RFC 7518 section 3.2).
        least: usize,
        /// Bytes of the secret.
        found: usize,
    },
    /// Not a public key in PEM, or of an unknown kind.
    #[error("{path}: not a public key in PEM (RSA, P-256, P-384 or Ed25519)")]
    NoPublicKey {
        /// The file's name.
        path: PathBuf,
    },
    /// A public key for another algorithm than `auth.algorithm`.
    #[error("{path}: the key does not fit {algorithm:?} (auth.algorithm)")]
    OtherAlgorithm {
        /// The file's name.
        path: PathBuf,
        /// The value of `auth.algorithm`.
        algorithm: Algorithm,
    },
    /// An RSA key of a size that is not allowed.
    #[error(
        "{path}: the RSA key has {found} bits, but {} to {} are allowed",
        RSA_BITS.start(),
        RSA_BITS.end()
    )]
    RsaBits {
        /// The file's name.
        path: PathBuf,
        /// Bits of its modulus.
        found: usize,
    },
    /// Not a key set. The error does not show the text, because it may be a secret.
    #[error("{origin}: not a JSON Web Key Set: line {line}, column {column}")]
    NoKeySet {
        /// The file's name, or the URL.
        origin: String,
        /// The line of the error, from 1.
        line: usize,
        /// The column of the error, in bytes.
        column: usize,
    },
    /// A key set without a usable key.
    #[error("{origin}: no key for HS, RS, ES256, ES384 or EdDSA signatures")]
    NoKey {
        /// The file's name, or the URL.
        origin: String,
    },
}

impl VerificationKey {
    /// Whether this key has signed the token. Does not look at the token's claims.
    pub(super) fn has_signed(&self, token: &str) -> bool {
        token.rsplit_once('.').is_some_and(|(message, signature)| {
            let message = message.as_bytes();
            jsonwebtoken::crypto::verify(signature, message, &self.key, self.algorithm)
                .unwrap_or(false)
        })
    }
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The keys that may have signed a token: first those with the id that the token names, then those without an
/// id. A token that names no id is tried on all keys. At most [`TRIES_MAX`].
pub(super) fn candidates<'a>(
    keys: &'a [VerificationKey],
    algorithm: Algorithm,
    id: Option<&'a str>,
) -> impl Iterator<Item = &'a VerificationKey> {
    let keys = keys.iter().filter(move |key| key.algorithm == algorithm);
    let has_id = move |key: &VerificationKey| id.is_some() && key.id.as_deref() == id;
    let may_match = move |key: &VerificationKey| id.is_none() || key.id.is_none();
    let named = keys.clone().filter(move |key| has_id(key));
    let others = keys.filter(move |key| may_match(key));
    named.chain(others).take(TRIES_MAX)
}

/// Whether a key has this id.
pub(super) fn is_known(keys: &[VerificationKey], id: &str) -> bool {
    keys.iter().any(|key| key.id.as_deref() == Some(id))
}

/// The algorithm of a key that names none.
pub(super) fn default_algorithm(key: &DecodingKey) -> Option<Algorithm> {
    let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match (key.family(), bytes) {
        (AlgorithmFamily::Hmac, _) => Some(Algorithm::HS256),
        (AlgorithmFamily::Rsa, _) => Some(Algorithm::RS256),
        // Lengths of an uncompressed point (SEC 1 section 2.3.3).
        (AlgorithmFamily::Ec, 65) => Some(Algorithm::ES256),
        (AlgorithmFamily::Ec, 97) => Some(Algorithm::ES384),
        (AlgorithmFamily::Ed, 32) => Some(Algorithm::EdDSA),
        _ => None,
    }
}

/// Bytes of the hash of an HMAC algorithm, which are the least that its secret needs.
pub(super) fn hash_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    }
}

/// Whether a modulus of so many bits is allowed.
pub(super) fn is_rsa_size(bits: usize) -> bool {
    RSA_BITS.contains(&bits)
}

/// Bits of an RSA key's modulus; `None` for another kind of key.
pub(super) fn rsa_bits(key: &DecodingKey) -> Option<usize> {
    let modulus = match key.kind() {
        _ if key.family() != AlgorithmFamily::Rsa => return None,
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.as_slice(),
        // The first of a sequence of two integers (RFC 8017 appendix A.1.1).
        DecodingKeyKind::SecretOrDer(der) => der_content(der_content(der, 0x30)?, 0x02)?,
    };
    let modulus = significant(modulus);
    let unused = modulus.first()?.leading_zeros() as usize;
    Some(modulus.len() * 8 - unused)
}

/// A number without leading zeros, which some programs write (RFC 7518 section 6.3.1.1).
pub(super) fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// The content of the first DER element, if it has this tag (X.690 section 8.1).
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

/// The algorithm of a setting, as jsonwebtoken names it.
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
