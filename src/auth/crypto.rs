//! Signs and verifies tokens with *ring*, which TLS needs anyway. jsonwebtoken's own providers would bring a second
//! library of the same algorithms.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::{hmac, signature as ring_signature};
use signature::{Signer, Verifier};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| {
        let signing = SigningKey::new(*algorithm, key)?;
        Ok(Box::new(RingSigner(*algorithm, signing)))
    },
    verifier_factory: |algorithm, key| {
        if key.family() == algorithm.family() {
            Ok(Box::new(RingVerifier(*algorithm, key.clone())))
        } else {
            Err(ErrorKind::InvalidKeyFormat.into())
        }
    },
    // Converts keys to JWKs, which is not used.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes *ring* the provider of the process.
pub(super) fn install() {
    // Fails only if another app of this process has installed it, which is fine.
    let _ = PROVIDER.install_default();
}

struct RingVerifier(Algorithm, DecodingKey);

impl Verifier<Vec<u8>> for RingVerifier {
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
                .map_err(failed);
        }
        let bytes = key.try_get_as_bytes().map_err(failed)?;
        if let Some(hmac) = hmac_algorithm(*algorithm) {
            return hmac::verify(&hmac::Key::new(hmac, bytes), message, signature).map_err(failed);
        }
        let verification: &dyn ring_signature::VerificationAlgorithm = match algorithm {
            Algorithm::ES256 => &ring_signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &ring_signature::ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDSA => &ring_signature::ED25519,
            other => rsa_verification(*other).ok_or_else(signature::Error::new)?,
        };
        ring_signature::UnparsedPublicKey::new(verification, bytes)
            .verify(message, signature)
            .map_err(failed)
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

/// Whether a key can sign with an algorithm.
pub(super) fn can_sign(algorithm: Algorithm, key: &EncodingKey) -> bool {
    SigningKey::new(algorithm, key).is_ok()
}

struct RingSigner(Algorithm, SigningKey);

enum SigningKey {
    Hmac(hmac::Key),
    Ecdsa(ring_signature::EcdsaKeyPair),
    Ed25519(ring_signature::Ed25519KeyPair),
    Rsa(
        ring_signature::RsaKeyPair,
        &'static dyn ring_signature::RsaEncoding,
    ),
}

impl SigningKey {
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
            // `maybe_unchecked`, because other programs write keys without the public half.
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

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        match &self.1 {
            SigningKey::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            SigningKey::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            SigningKey::Ecdsa(key) => key
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(failed),
            SigningKey::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(*encoding, &SystemRandom::new(), message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

impl JwtSigner for RingSigner {
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

/// ring's errors have no details, and neither has this.
fn failed<E>(_: E) -> signature::Error {
    signature::Error::new()
}
