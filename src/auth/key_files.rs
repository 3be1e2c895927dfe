//! Reads keys from the files that the settings name: secrets, public keys, a key set.

use std::path::Path;

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use super::key::{
    KeyError, VerificationKey, algorithm, default_algorithm, hash_bytes, is_rsa_size, rsa_bits,
};
use super::key_set::{self, SymmetricKeys};
use crate::config::{AuthSettings, Secret};

/// All keys of these files.
pub(super) fn read_all(settings: &AuthSettings) -> Result<Vec<VerificationKey>, KeyError> {
    let algorithm = settings.algorithm.map(algorithm);
    let mut keys = Vec::new();
    for path in &settings.secret_file {
        keys.push(secret(path, algorithm)?);
    }
    for path in &settings.public_key_file {
        keys.push(public_key(path, algorithm)?);
    }
    if let Some(path) = &settings.jwks_file {
        let text = read(path)?;
        let origin = path.display().to_string();
        let set = key_set::parse(text.expose(), &origin, SymmetricKeys::Accepted)?;
        keys.extend(set);
    }
    Ok(keys)
}

fn read(path: &Path) -> Result<Secret, KeyError> {
    Secret::read(path).map_err(|source| KeyError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn secret(path: &Path, setting: Option<Algorithm>) -> Result<VerificationKey, KeyError> {
    let secret = read(path)?;
    let algorithm = setting
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
    Ok(VerificationKey {
        id: None,
        algorithm,
        key: DecodingKey::from_secret(secret.expose()),
    })
}

fn public_key(path: &Path, setting: Option<Algorithm>) -> Result<VerificationKey, KeyError> {
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
        if !is_rsa_size(found) {
            let path = path.to_owned();
            return Err(KeyError::RsaBits { path, found });
        }
    }
    let default = default_algorithm(&key).ok_or_else(no_public_key)?;
    // An HMAC setting is for the secrets.
    let setting = setting.filter(|setting| setting.family() != AlgorithmFamily::Hmac);
    let algorithm = setting.unwrap_or(default);
    // An RSA key fits each of the RSA algorithms.
    let fits = algorithm == default
        || (default == Algorithm::RS256 && algorithm.family() == AlgorithmFamily::Rsa);
    if !fits {
        let path = path.to_owned();
        return Err(KeyError::OtherAlgorithm { path, algorithm });
    }
    Ok(VerificationKey {
        id: None,
        algorithm,
        key,
    })
}
