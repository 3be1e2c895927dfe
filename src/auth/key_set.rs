//! Parses a JSON Web Key Set (RFC 7517) from a file or a server. A key that cannot be used is skipped.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;
use zeroize::Zeroizing;

use super::key::{
    KeyError, VerificationKey, default_algorithm, hash_bytes, is_rsa_size, rsa_bits, significant,
};

/// Keys of one set that are used.
const KEYS_MAX: usize = 64;

/// Whether shared secrets in a key set are used. One that a server gives to every client is not a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SymmetricKeys {
    Accepted,
    Ignored,
}

/// The usable keys of a set, at most [`KEYS_MAX`]; `origin` names the set in errors. Members and keys that are
/// not known are skipped (RFC 7517 section 5).
pub(super) fn parse(
    text: &[u8],
    origin: &str,
    symmetric: SymmetricKeys,
) -> Result<Vec<VerificationKey>, KeyError> {
    /// RFC 7517 section 5, each key as text.
    #[derive(Deserialize)]
    struct KeySet<'a> {
        #[serde(borrow)]
        keys: Vec<&'a RawValue>,
    }
    let KeySet { keys } = serde_json::from_slice(text).map_err(|error| KeyError::NoKeySet {
        origin: origin.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    let keys = keys
        .iter()
        .filter_map(|key| parse_key(key.get(), symmetric));
    let mut keys: Vec<_> = keys.take(KEYS_MAX + 1).collect();
    if keys.len() > KEYS_MAX {
        keys.truncate(KEYS_MAX);
        warn!(
            origin,
            "a key set has more than {KEYS_MAX} keys: the rest is ignored"
        );
    }
    if keys.is_empty() {
        return Err(KeyError::NoKey {
            origin: origin.to_owned(),
        });
    }
    Ok(keys)
}

/// The members of a key that are used (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2). Those in
/// base64url are borrowed, so that there is no second copy of a secret.
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

fn parse_key(text: &str, symmetric: SymmetricKeys) -> Option<VerificationKey> {
    let jwk: Jwk<'_> = serde_json::from_str(text).ok()?;
    let key = jwk.key(symmetric).filter(|_| jwk.may_verify())?;
    let default = default_algorithm(&key)?;
    let algorithm = match &jwk.alg {
        Some(algorithm) => algorithm.parse().ok()?,
        None => default,
    };
    let fits = match default.family() {
        AlgorithmFamily::Hmac => {
            let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
            algorithm.family() == AlgorithmFamily::Hmac && bytes >= hash_bytes(algorithm)
        }
        AlgorithmFamily::Rsa => is_known_rsa(algorithm) && is_rsa_size(rsa_bits(&key)?),
        _ => algorithm == default,
    };
    fits.then_some(VerificationKey {
        id: jwk.kid,
        algorithm,
        key,
    })
}

impl Jwk<'_> {
    /// Whether the key is for signatures (RFC 7517 sections 4.2 and 4.3).
    fn may_verify(&self) -> bool {
        let operations = self.key_ops.as_ref();
        self.usage.as_ref().is_none_or(|usage| usage == "sig")
            && operations.is_none_or(|all| all.iter().any(|operation| operation == "verify"))
    }

    fn key(&self, symmetric: SymmetricKeys) -> Option<DecodingKey> {
        match (self.kty, self.crv) {
            ("oct", _) if symmetric == SymmetricKeys::Accepted => {
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
                // An uncompressed point (SEC 1 section 2.3.3).
                let point = [&[4], x.as_slice(), &y].concat();
                (x.len() == size && y.len() == size).then(|| DecodingKey::from_ec_der(&point))
            }
            ("OKP", Some("Ed25519")) => Some(DecodingKey::from_ed_der(&bytes(self.x?)?)),
            _ => None,
        }
    }
}

/// Decodes base64url into bytes that are wiped on drop.
fn bytes(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.as_bytes();
    let mut bytes = Zeroizing::new(vec![0; BASE64URL_NOPAD.decode_len(text.len()).ok()?]);
    BASE64URL_NOPAD.decode_mut(text, &mut bytes).ok()?;
    Some(bytes)
}

/// Whether this is one of the RSA algorithms in use, which leaves out PS256 and its like.
fn is_known_rsa(algorithm: Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512
    )
}
