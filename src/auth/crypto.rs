//! The signatures of tokens by *ring*, which TLS brings already: jsonwebtoken's own choices would be a
//! second library of the same algorithms.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::{hmac, signature as ring_signature};
use signature::{Signer, Verifier};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| {
        let signing = Signing::new(*algorithm, key)?;
        Ok(Box::new(Sign(*algorithm, signing)))
    },
    verifier_factory: |algorithm, key| {
        if key.family() == algorithm.family() {
            Ok(Box::new(Verify(*algorithm, key.clone())))
        } else {
            Err(ErrorKind::InvalidKeyFormat.into())
        }
    },
    // What makes keys into JWKs, which nothing here does.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes this the one provider of the process.
pub(super) fn install() {
    // That it was installed before is what two apps in one process are like.
    let _ = PROVIDER.install_default();
}

struct Verify(Algorithm, DecodingKey);

impl Verifier<Vec<u8>> for Verify {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        let Self(algorithm, key) = self;
        if let (DecodingKeyKind::RsaModulusExponent { n, e }, Some(rsa)) =
            (key.kind(), rsa_verification(*algorithm))
        {
            return ring_signature::RsaPublicKeyComponents { n, e }
                .verify(rsa, message, signature)
                .map_err(|_| signature::Error::new());
        }
        let bytes = key
            .try_get_as_bytes()
            .map_err(|_| signature::Error::new())?;
        if let Some(hmac) = hmac_algorithm(*algorithm) {
            return hmac::verify(&hmac::Key::new(hmac, bytes), message, signature)
                .map_err(|_| signature::Error::new());
        }
        let verification: &dyn ring_signature::VerificationAlgorithm = match algorithm {
            Algorithm::ES256 => &ring_signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &ring_signature::ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDSA => &ring_signature::ED25519,
            other => rsa_verification(*other).ok_or_else(signature::Error::new)?,
        };
        ring_signature::UnparsedPublicKey::new(verification, bytes)
            .verify(message, signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Verify {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

/// Whether a key can sign by an algorithm.
pub(super) fn signs(algorithm: Algorithm, key: &EncodingKey) -> bool {
    Signing::new(algorithm, key).is_ok()
}

struct Sign(Algorithm, Signing);

enum Signing {
    Hmac(hmac::Key),
    Ecdsa(ring_signature::EcdsaKeyPair),
    Ed25519(ring_signature::Ed25519KeyPair),
    Rsa(
        ring_signature::RsaKeyPair,
        &'static dyn ring_signature::RsaEncoding,
    ),
}

impl Signing {
    fn new(algorithm: Algorithm, key: &EncodingKey) -> Result<Self> {
        if key.family() != algorithm.family() {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        let bytes = key.as_bytes();
        if let Some(hmac) = hmac_algorithm(algorithm) {
            return Ok(Self::Hmac(hmac::Key::new(hmac, bytes)));
        }
        let ecdsa = |algorithm| {
            ring_signature::EcdsaKeyPair::from_pkcs8(algorithm, bytes, &SystemRandom::new())
                .map(Self::Ecdsa)
                .map_err(|_| Error::from(ErrorKind::InvalidEcdsaKey))
        };
        let rsa = |encoding: &'static dyn ring_signature::RsaEncoding| {
            ring_signature::RsaKeyPair::from_der(bytes)
                .map(|key| Self::Rsa(key, encoding))
                .map_err(|error| ErrorKind::InvalidRsaKey(error.to_string()).into())
        };
        match algorithm {
            Algorithm::ES256 => ecdsa(&ring_signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => ecdsa(&ring_signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            // Other programs write keys without the public half, which it may do without.
            Algorithm::EdDSA => ring_signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes)
                .map(Self::Ed25519)
                .map_err(|_| ErrorKind::InvalidEddsaKey.into()),
            Algorithm::RS256 => rsa(&ring_signature::RSA_PKCS1_SHA256),
            Algorithm::RS384 => rsa(&ring_signature::RSA_PKCS1_SHA384),
            Algorithm::RS512 => rsa(&ring_signature::RSA_PKCS1_SHA512),
            _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
        }
    }
}

impl Signer<Vec<u8>> for Sign {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        match &self.1 {
            Signing::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signing::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            Signing::Ecdsa(key) => key
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| signature::Error::new()),
            Signing::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(*encoding, &SystemRandom::new(), message, &mut signature)
                    .map_err(|_| signature::Error::new())?;
                Ok(signature)
            }
        }
    }
}

impl JwtSigner for Sign {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

fn hmac_algorithm(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::HS256 => Some(hmac::HMAC_SHA256),
        Algorithm::HS384 => Some(hmac::HMAC_SHA384),
        Algorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

fn rsa_verification(algorithm: Algorithm) -> Option<&'static ring_signature::RsaParameters> {
    match algorithm {
        Algorithm::RS256 => Some(&ring_signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&ring_signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&ring_signature::RSA_PKCS1_2048_8192_SHA512),
        _ => None,
    }
}
