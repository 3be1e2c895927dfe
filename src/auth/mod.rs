//! Who may come in: from a handshake's head to a [`Pass`], or a refusal that says nothing of why. Must
//! not know of connections.

mod crypto;
mod fetch;
mod keys;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use data_encoding::BASE64URL_NOPAD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, Header, Validation};
use memchr::memmem;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

pub use fetch::SourceError;
pub use keys::KeyError;

use crate::config::{self, AuthMode, Secret, SecretError};
use crate::identity::Subject;
use fetch::Source;
use keys::{Key, Secrets};

/// What a token's entry in the list of subprotocols starts with.
const BEARER_ENTRY: &str = "bearer.";

/// From one fetch of a key set, since a token names a key that is not in it, to the next.
const REFRESH_GAP: Duration = Duration::from_secs(30);

/// How people come in: a cheap handle.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Everybody does.
    None,
    /// Whoever has a token that a key of ours has signed.
    Jwt(Arc<Jwt>),
}

/// What a token allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    /// Whom it is about, for the operator's eyes.
    pub subject: Option<Subject>,
    /// How long it is good for; for ever if nothing.
    pub remaining: Option<Duration>,
}

/// There is no pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token does not hold")]
pub struct Denied;

/// Why tokens cannot be checked by these settings.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A key is not there or is none.
    #[error("no key")]
    Key(#[from] KeyError),
    /// The address of the key set cannot be asked.
    #[error("no key set")]
    Source(#[from] SourceError),
}

/// Checks JSON Web Tokens (RFC 7519).
#[derive(Debug)]
pub struct Jwt {
    keys: ArcSwap<Vec<Key>>,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
    query_token: bool,
    refresh: Option<Refresh>,
}

/// The way to the keeper, for a token that names an unknown key.
#[derive(Debug)]
struct Refresh {
    wanted: Notify,
    under_way: AtomicBool,
    /// Changes with every fetch that has ended.
    ended: watch::Sender<u64>,
    /// No fetch for an unknown key before this.
    next: Mutex<Instant>,
    patience: Duration,
}

/// The claims that are looked at; the library checks those of them that it can by itself.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: f64,
}

/// The head of a token (RFC 7515 section 4.1), as far as it is looked at; the rest of it is passed over.
struct Head {
    alg: Algorithm,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
    /// Longer than one has to be. The library reads all of it, more than once for each key, so it gets it
    /// only where a key has signed it.
    is_long: bool,
}

/// What a head takes at most that says its algorithm, its type and its key, in base64url.
const HEAD_BYTES_USUAL: usize = 256;

impl Head {
    fn of(token: &str) -> Option<Self> {
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

fn is_signed_by(key: &Key, token: &str) -> bool {
    token.rsplit_once('.').is_some_and(|(message, signature)| {
        let message = message.as_bytes();
        jsonwebtoken::crypto::verify(signature, message, &key.check, key.algorithm).unwrap_or(false)
    })
}

impl Auth {
    /// Reads the keys; with an address, asks it once. An address that does not answer is asked again
    /// by the keeper, which is to be run for as long as the app.
    pub async fn load(
        settings: &config::AuthSettings,
    ) -> Result<(Self, Option<KeyRefresher>), AuthError> {
        if settings.mode == AuthMode::None {
            return Ok((Self::None, None));
        }
        crypto::install();
        let from_files = keys::from_files(settings)?;
        let source = settings
            .jwks_url
            .as_ref()
            .map(|url| Source::new(url, settings.jwks_timeout))
            .transpose()?;
        let refresh = source.as_ref().map(|_| Refresh {
            wanted: Notify::new(),
            under_way: AtomicBool::new(false),
            ended: watch::Sender::default(),
            next: Mutex::new(Instant::now()),
            patience: settings.jwks_timeout,
        });
        let jwt = Arc::new(Jwt {
            keys: ArcSwap::from_pointee(from_files.clone()),
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway: settings.leeway,
            query_token: settings.query_token,
            refresh,
        });
        let mut refresher = KeyRefresher {
            jwt: jwt.clone(),
            settings: settings.clone(),
            source,
            from_files,
            fetched: Vec::new(),
        };
        refresher.fetch().await;
        refresher.publish();
        Ok((Self::Jwt(jwt), Some(refresher)))
    }

    /// Whether the files that the settings name have keys. An address is not asked, but could be.
    pub fn check_files(settings: &config::AuthSettings) -> Result<(), AuthError> {
        keys::from_files(settings)?;
        let url = settings.jwks_url.as_ref();
        url.map(|url| Source::new(url, settings.jwks_timeout))
            .transpose()?;
        Ok(())
    }

    /// Whether a token holds.
    pub async fn verify(&self, token: &str) -> Result<Authenticated, Denied> {
        match self {
            Self::None => Err(Denied),
            Self::Jwt(jwt) => jwt.check(token).await.ok_or(Denied),
        }
    }

    /// Lets somebody in, or not.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Authenticated, Denied> {
        match self {
            Self::None => Ok(Authenticated::default()),
            Self::Jwt(jwt) => {
                let query = query.filter(|_| jwt.query_token);
                let token = token(headers, query).ok_or(Denied)?;
                jwt.check(token).await.ok_or(Denied)
            }
        }
    }
}

/// The token of a handshake, from the one place that has it: `Authorization`, the subprotocols, or
/// the query.
pub fn token<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Option<&'a str> {
    if headers.contains_key(AUTHORIZATION) {
        return authorization(headers);
    }
    if let Some(token) = bearer_entries(headers).next() {
        return Some(token);
    }
    let mut tokens = query?
        .split('&')
        .filter_map(|pair| pair.strip_prefix("token="));
    tokens.next()
}

/// The token of the one `Authorization` header, if that is of the scheme `Bearer` (RFC 6750 section
/// 2.1).
pub fn authorization(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The tokens among the subprotocols.
pub fn bearer_entries(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|entry| entry.trim().strip_prefix(BEARER_ENTRY))
}

impl Jwt {
    /// Waits until a token names a key that is not there.
    async fn is_refresh_wanted(&self) {
        match &self.refresh {
            Some(refresh) => refresh.wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    async fn check(&self, token: &str) -> Option<Authenticated> {
        let head = Head::of(token)?;
        // What has to be understood and is not (RFC 7515 section 4.1.11); nothing is.
        if head.crit.is_some() {
            return None;
        }
        let keys = self.keys.load_full();
        if let Some(authenticated) = self.check_by(&keys, &head, token) {
            return Some(authenticated);
        }
        let (refresh, id) = (self.refresh.as_ref()?, head.kid.as_deref()?);
        if keys::knows(&keys, id) || !refresh.happens().await {
            return None;
        }
        self.check_by(&self.keys.load(), &head, token)
    }

    fn check_by(&self, keys: &[Key], head: &Head, token: &str) -> Option<Authenticated> {
        let mut validation = Validation::new(head.alg);
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
        keys::candidates(keys, head.alg, head.kid.as_deref())
            .filter(|key| !head.is_long || is_signed_by(key, token))
            .find_map(|key| jsonwebtoken::decode::<Claims>(token, &key.check, &validation).ok())
            .and_then(|data| self.authenticated(&data.claims))
    }

    fn authenticated(&self, claims: &Claims) -> Option<Authenticated> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let ends = Duration::try_from_secs_f64(claims.exp).unwrap_or(Duration::MAX);
        let ends = ends.saturating_add(self.leeway);
        let remaining = ends.saturating_sub(now);
        // The library counts in whole seconds: whoever was just closed would come back for the rest
        // of one.
        (!remaining.is_zero()).then(|| Authenticated {
            subject: claims.sub.as_deref().map(Subject::from),
            remaining: Some(remaining),
        })
    }
}

impl Refresh {
    /// Has the key set fetched, and waits for that; or not, where it was not long ago.
    async fn happens(&self) -> bool {
        let mut ended = self.ended.subscribe();
        {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if now >= *next {
                *next = now + REFRESH_GAP;
                self.under_way.store(true, Ordering::Release);
                self.wanted.notify_one();
            } else if !self.under_way.load(Ordering::Acquire) {
                return false;
            }
        }
        let ended = timeout(self.patience.saturating_mul(2), ended.changed()).await;
        matches!(ended, Ok(Ok(())))
    }
}

/// Reads keys again: all of them every `auth.refresh_interval`, and those of an address when a token
/// names one that is not there. What cannot be read leaves the last that could.
pub struct KeyRefresher {
    jwt: Arc<Jwt>,
    settings: config::AuthSettings,
    source: Option<Source>,
    from_files: Vec<Key>,
    fetched: Vec<Key>,
}

impl KeyRefresher {
    /// Keeps the keys, for ever.
    pub async fn run(mut self) {
        let mut due = self.due();
        loop {
            // The time is kept while somebody asks, or whoever makes up keys would put it off for ever.
            let is_asked = tokio::select! {
                () = self.jwt.is_refresh_wanted() => true,
                () = sleep_until(due) => false,
            };
            if !is_asked {
                self.read();
            }
            self.fetch().await;
            self.publish();
            if !is_asked {
                due = self.due();
            } else if let Some(refresh) = &self.jwt.refresh {
                // Who has asked is answered by a fetch that began behind the question, and by no other.
                refresh.under_way.store(false, Ordering::Release);
                refresh.ended.send_modify(|count| *count += 1);
            }
        }
    }

    /// When all keys are to be read again; sooner while an address has never told any.
    fn due(&self) -> Instant {
        let interval = self.settings.refresh_interval;
        let is_bare = self.source.is_some() && self.fetched.is_empty();
        Instant::now() + interval.min(if is_bare { REFRESH_GAP } else { interval })
    }

    fn read(&mut self) {
        match keys::from_files(&self.settings) {
            Ok(keys) => self.from_files = keys,
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "keys cannot be read again: the last ones stay"
            ),
        }
    }

    async fn fetch(&mut self) {
        let Some(source) = &self.source else { return };
        let url = self.settings.jwks_url.as_deref().unwrap_or_default();
        let fetched = match source.fetch().await {
            Ok(body) => keys::from_set(&body, url, Secrets::LeftOut).map_err(anyhow_error),
            Err(error) => Err(anyhow_error(error)),
        };
        match fetched {
            Ok(keys) => {
                if self.fetched.len() != keys.len() {
                    info!(url, keys = keys.len(), "key set fetched");
                }
                self.fetched = keys;
            }
            Err(error) => warn!(
                url,
                error = &*error,
                keys = self.fetched.len(),
                "the key set cannot be fetched: the last one stays"
            ),
        }
    }

    fn publish(&self) {
        let keys = self.from_files.iter().chain(&self.fetched).cloned();
        self.jwt.keys.store(Arc::new(keys.collect()));
    }
}

fn anyhow_error(
    error: impl std::error::Error + Send + Sync + 'static,
) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

impl fmt::Debug for KeyRefresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRefresher")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a token of our own says.
#[derive(Debug, Serialize)]
struct Issued<'a> {
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
    /// There is nothing to sign with.
    #[error("there is nothing to sign with: name it by --key-file, or set auth.secret_file")]
    NoKey,
    /// The key cannot be read.
    #[error("the key to sign with")]
    Key(#[from] SecretError),
    /// The file has a private key that is of no use.
    #[error("{path} is no private key in PEM: RSA, or in PKCS #8 P-256, P-384 or Ed25519")]
    NoPrivateKey {
        /// The file's name.
        path: PathBuf,
    },
    /// The key does not fit the algorithm.
    #[error("the key is none for {0:?}")]
    OtherAlgorithm(config::Algorithm),
}

/// Signs a token as these settings want it, by a shared secret or a private key in PEM from `key_file`,
/// else by the first of `auth.secret_file`. As for those who check it, `auth.algorithm` is for the keys
/// that it fits.
pub fn issue_from(
    settings: &config::AuthSettings,
    key_file: Option<&Path>,
    subject: &str,
    lifetime: Duration,
) -> Result<String, IssueError> {
    let first = || settings.secret_file.first().map(PathBuf::as_path);
    let path = key_file.or_else(first).ok_or(IssueError::NoKey)?;
    let secret = Secret::read(path)?;
    let is_private =
        key_file.is_some() && memmem::find(secret.expose(), b"PRIVATE KEY-----").is_some();
    let asked = settings.algorithm;
    let algorithm = if is_private {
        let asked = asked.filter(|asked| !is_hmac(*asked));
        asked
            .or_else(|| algorithm_of(&secret))
            .ok_or_else(|| IssueError::NoPrivateKey {
                path: path.to_owned(),
            })?
    } else {
        let asked = asked.filter(|asked| key_file.is_some() || is_hmac(*asked));
        asked.unwrap_or(config::Algorithm::HS256)
    };
    let settings = config::AuthSettings {
        algorithm: Some(algorithm),
        ..settings.clone()
    };
    issue(&settings, &secret, subject, lifetime)
}

/// The first algorithm that a private key in PEM can sign by.
fn algorithm_of(secret: &Secret) -> Option<config::Algorithm> {
    let all = [
        config::Algorithm::RS256,
        config::Algorithm::ES256,
        config::Algorithm::ES384,
        config::Algorithm::EdDSA,
    ];
    all.into_iter().find(|algorithm| {
        let key = encoding_key(*algorithm, secret.expose());
        key.is_ok_and(|key| crypto::signs(keys::algorithm(*algorithm), &key))
    })
}

fn is_hmac(algorithm: config::Algorithm) -> bool {
    keys::algorithm(algorithm).family() == AlgorithmFamily::Hmac
}

fn encoding_key(
    algorithm: config::Algorithm,
    bytes: &[u8],
) -> jsonwebtoken::errors::Result<EncodingKey> {
    match algorithm {
        config::Algorithm::HS256 | config::Algorithm::HS384 | config::Algorithm::HS512 => {
            Ok(EncodingKey::from_secret(bytes))
        }
        config::Algorithm::RS256 | config::Algorithm::RS384 | config::Algorithm::RS512 => {
            EncodingKey::from_rsa_pem(bytes)
        }
        config::Algorithm::ES256 | config::Algorithm::ES384 => EncodingKey::from_ec_pem(bytes),
        config::Algorithm::EdDSA => EncodingKey::from_ed_pem(bytes),
    }
}

/// Signs a token for `subject` that is good for `lifetime`, as these settings want it: with `secret`,
/// the bytes of a shared secret or of a private key in PEM.
pub fn issue(
    settings: &config::AuthSettings,
    secret: &Secret,
    subject: &str,
    lifetime: Duration,
) -> Result<String, IssueError> {
    crypto::install();
    let asked = settings.algorithm.unwrap_or(config::Algorithm::HS256);
    let algorithm = keys::algorithm(asked);
    let key = encoding_key(asked, secret.expose());
    let key = key.map_err(|_| IssueError::OtherAlgorithm(asked))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let iat = now.unwrap_or_default().as_secs();
    let claims = Issued {
        sub: subject,
        iat,
        exp: iat.saturating_add(lifetime.as_secs()),
        iss: settings.issuer.as_deref(),
        aud: settings.audience.as_deref(),
    };
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &key)
        .map_err(|_| IssueError::OtherAlgorithm(asked))
}
