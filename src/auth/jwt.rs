//! Verifies JSON Web Tokens (RFC 7519) with the keys of a [`KeyStore`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::key::{self, VerificationKey};
use super::refresh::KeyStore;
use crate::config::AuthSettings;
use crate::identity::Subject;

/// Bytes of a usual token head in base64url: its algorithm, its type and its key id.
const HEAD_BYTES_USUAL: usize = 256;

/// The result of a valid token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    /// The token's `sub`, for operators.
    pub subject: Option<Subject>,
    /// Time until the token expires; `None`: never.
    pub remaining: Option<Duration>,
}

/// Verifies JSON Web Tokens.
#[derive(Debug)]
pub struct Jwt {
    store: Arc<KeyStore>,
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) leeway: Duration,
    /// `auth.query_token`
    pub(super) query_token: bool,
}

/// The head of a token (RFC 7515 section 4.1), without the members that are not used.
pub(super) struct TokenHead {
    pub(super) alg: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) crit: Option<IgnoredAny>,
    /// Longer than usual. The library parses the whole head more than once for each key, so it gets a long head
    /// only after the signature has been verified.
    is_long: bool,
}

/// The claims that are used here. The library checks the others (`nbf`, `iss`, `aud`).
#[derive(Debug, Deserialize)]
pub(super) struct TokenClaims {
    sub: Option<String>,
    exp: f64,
}

impl Jwt {
    pub(super) fn new(settings: &AuthSettings, store: Arc<KeyStore>) -> Self {
        Self {
            store,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway: settings.leeway,
            query_token: settings.query_token,
        }
    }

    /// Verifies a token. If it names an unknown key, first waits for the key set to be fetched again.
    pub(super) async fn verify(&self, token: &str) -> Option<Authenticated> {
        let head = TokenHead::parse(token)?;
        // No extension is supported, so a critical one makes the token invalid (RFC 7515 section 4.1.11).
        if head.crit.is_some() {
            return None;
        }
        let keys = self.store.keys();
        if let Some(authenticated) = self.verify_with(&keys, &head, token) {
            return Some(authenticated);
        }
        let id = head.kid.as_deref()?;
        if key::is_known(&keys, id) || !self.store.refreshed().await {
            return None;
        }
        self.verify_with(&self.store.keys(), &head, token)
    }

    fn verify_with(
        &self,
        keys: &[VerificationKey],
        head: &TokenHead,
        token: &str,
    ) -> Option<Authenticated> {
        let validation = self.validation(head.alg);
        key::candidates(keys, head.alg, head.kid.as_deref())
            .filter(|key| !head.is_long || key.has_signed(token))
            .find_map(|key| jsonwebtoken::decode::<TokenClaims>(token, &key.key, &validation).ok())
            .and_then(|data| self.authenticated(&data.claims))
    }

    /// The keys in use.
    pub(super) fn keys(&self) -> Arc<Vec<VerificationKey>> {
        self.store.keys()
    }

    /// What the library checks.
    pub(super) fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        validation.validate_aud = self.audience.is_some();
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        validation
    }

    fn authenticated(&self, claims: &TokenClaims) -> Option<Authenticated> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let expires = Duration::try_from_secs_f64(claims.exp).unwrap_or(Duration::MAX);
        let expires = expires.saturating_add(self.leeway);
        let remaining = expires.saturating_sub(now);
        // The library compares whole seconds. Without this check, a client that was just closed could connect
        // again for the rest of a second.
        (!remaining.is_zero()).then(|| Authenticated {
            subject: claims.sub.as_deref().map(Subject::from),
            remaining: Some(remaining),
        })
    }
}

impl TokenHead {
    pub(super) fn parse(token: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Fields {
            alg: Algorithm,
            kid: Option<String>,
            crit: Option<IgnoredAny>,
        }
        let (text, _) = token.split_once('.')?;
        let head = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let Fields { alg, kid, crit } = serde_json::from_slice(&head).ok()?;
        Some(Self {
            alg,
            kid,
            crit,
            is_long: text.len() > HEAD_BYTES_USUAL,
        })
    }
}
