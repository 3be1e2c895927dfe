//! A connection to NATS: which server, by what name, with what secrets. A client is one connection: the
//! library would connect again by itself and then send what had waited, which may be minutes old and
//! behind what was sent since by another, so that is ruled out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectOptions, Event};
use nkeys::KeyPair;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::failure::{AccessError, ConnectFailure};
use crate::config::{self, PRIVATE_KEYS, Secret, SecretError};

/// What the channel of the client library has room for beside messages: answers, subscriptions, probes.
const COMMANDS: usize = 1024;
/// The least that a message counts for in `cluster.in_flight_bytes`.
const MESSAGE_BYTES_MIN: usize = 128;

/// Where NATS is, and what it wants to see.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Access {
    settings: config::ClusterSettings,
}

/// What NATS is told of who we are.
enum Identity {
    Nobody,
    User { name: String, password: Text },
    Token(Text),
    Nkey(KeyPair),
    Credentials { jwt: Text, key: KeyPair },
}

impl Access {
    pub(in crate::cluster) fn new(settings: &config::ClusterSettings) -> Self {
        Self {
            settings: settings.clone(),
        }
    }

    /// Reads the secrets and what TLS needs, to find what is wrong with them.
    pub(in crate::cluster) fn read(&self) -> Result<(), AccessError> {
        drop(self.identity()?);
        let config::ClusterSettings {
            tls_ca_file,
            tls_cert_file,
            tls_key_file,
            ..
        } = &self.settings;
        for (key, path) in [
            ("cluster.tls_ca_file", tls_ca_file),
            ("cluster.tls_cert_file", tls_cert_file),
        ] {
            path.as_ref()
                .map_or(Ok(()), |path| certificate(key, path))?;
        }
        if let Some(path) = tls_key_file {
            let key = "cluster.tls_key_file";
            let found = read(key, path)?.pem(&PRIVATE_KEYS);
            found.ok_or_else(|| malformed(key, path, "private key in PEM"))?;
        }
        Ok(())
    }

    /// Connects to one of the servers.
    pub(super) async fn open(
        &self,
        inbox_prefix: String,
    ) -> Result<(Client, Arc<LinkState>), ConnectFailure> {
        let state = Arc::new(LinkState::default());
        let events = state.clone();
        let options = self.options(self.identity()?, inbox_prefix);
        let options = options.event_callback(move |event| {
            events.heed(&event);
            std::future::ready(())
        });
        let urls = &self.settings.nats_url;
        let url = &urls[fastrand::usize(..urls.len())];
        match options.connect(url.as_str()).await {
            Ok(client) => Ok((client, state)),
            Err(source) => {
                let url = url.clone();
                Err(ConnectFailure::Refused { url, source })
            }
        }
    }

    fn options(&self, identity: Identity, inbox_prefix: String) -> ConnectOptions {
        let config::ClusterSettings {
            nats_url: _,
            tls_ca_file,
            tls_cert_file,
            tls_key_file,
            link_timeout,
            in_flight_bytes,
            inbound_messages,
            ..
        } = &self.settings;
        let identity = Arc::new(identity);
        let was_asked = AtomicBool::new(false);
        let mut options = ConnectOptions::with_auth_callback(move |nonce| {
            // The second time is the library's attempt to connect again.
            let auth = if was_asked.swap(true, Ordering::Relaxed) {
                Err(AuthError::new("a client is one connection"))
            } else {
                identity.sign(&nonce)
            };
            std::future::ready(auth)
        })
        .max_reconnects(1)
        .reconnect_delay_callback(|_| Duration::ZERO)
        .connection_timeout(*link_timeout)
        .ping_interval(*link_timeout)
        .request_timeout(Some(*link_timeout))
        .name("switchboard")
        .custom_inbox_prefix(inbox_prefix)
        // All are made here, of parts that were checked.
        .skip_subject_validation(true)
        .client_capacity(COMMANDS + in_flight_bytes / MESSAGE_BYTES_MIN)
        .subscription_capacity(*inbound_messages as usize)
        .require_tls(tls_ca_file.is_some() || tls_cert_file.is_some());
        if let Some(authorities) = tls_ca_file {
            options = options.add_root_certificates(authorities.clone());
        }
        if let (Some(certificate), Some(key)) = (tls_cert_file, tls_key_file) {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        options
    }

    fn identity(&self) -> Result<Identity, AccessError> {
        let config::ClusterSettings {
            user,
            password_file,
            token_file,
            nkey_file,
            creds_file,
            ..
        } = &self.settings;
        if let (Some(name), Some(path)) = (user, password_file) {
            let password = secret("cluster.password_file", path)?;
            let name = name.clone();
            return Ok(Identity::User { name, password });
        }
        if let Some(path) = token_file {
            return Ok(Identity::Token(secret("cluster.token_file", path)?));
        }
        if let Some(path) = nkey_file {
            let key = "cluster.nkey_file";
            let text = secret(key, path)?;
            let mut lines = text.expose().lines().map(str::trim);
            let seed = lines.find(|line| is_seed(line));
            return Ok(Identity::Nkey(key_pair(key, path, seed)?));
        }
        if let Some(path) = creds_file {
            let key = "cluster.creds_file";
            let text = secret(key, path)?;
            let jwt = inside(text.expose(), "NATS USER JWT");
            let jwt = jwt.ok_or_else(|| malformed(key, path, "user JWT"))?;
            let pair = key_pair(key, path, inside(text.expose(), "USER NKEY SEED"))?;
            return Ok(Identity::Credentials {
                jwt: Text(Secret::new(jwt.as_bytes())),
                key: pair,
            });
        }
        Ok(Identity::Nobody)
    }
}

/// What the library tells of one connection.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    pub(super) lost: CancellationToken,
    overruns: AtomicU64,
}

impl LinkState {
    /// Messages that were dropped because nobody took the earlier ones. The library can lose count.
    pub(super) fn overruns(&self) -> u64 {
        self.overruns.load(Ordering::Relaxed)
    }

    fn heed(&self, event: &Event) {
        match event {
            Event::SlowConsumer(_) => {
                self.overruns.fetch_add(1, Ordering::Relaxed);
            }
            Event::Disconnected | Event::Closed => self.lost.cancel(),
            Event::ServerError(error) => warn!(%error, "nats refuses something"),
            Event::LameDuckMode => warn!("the nats server is about to end"),
            Event::Connected | Event::Draining | Event::ClientError(_) => {}
        }
    }
}

impl Identity {
    /// What goes into the first words to the server, which has sent a nonce to be signed.
    fn sign(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        let signing = match self {
            Self::Nobody => return Ok(auth),
            Self::User { name, password } => {
                auth.username = Some(name.clone());
                auth.password = Some(password.expose().to_owned());
                return Ok(auth);
            }
            Self::Token(token) => {
                auth.token = Some(token.expose().to_owned());
                return Ok(auth);
            }
            Self::Nkey(key) => {
                auth.nkey = Some(key.public_key());
                key
            }
            Self::Credentials { jwt, key } => {
                auth.jwt = Some(jwt.expose().to_owned());
                key
            }
        };
        auth.signature = Some(signing.sign(nonce).map_err(AuthError::new)?);
        Ok(auth)
    }
}

fn read(key: &'static str, path: &Path) -> Result<Secret, AccessError> {
    Secret::read(path).map_err(|source| unreadable(key, path, source))
}

/// Whether a file has a certificate. It may have all that a machine trusts, which is more than a secret has.
fn certificate(key: &'static str, path: &Path) -> Result<(), AccessError> {
    let first = CertificateDer::pem_file_iter(path).map(|mut all| all.next());
    match first {
        Ok(Some(Ok(_))) => Ok(()),
        Err(pem::Error::Io(error)) => Err(unreadable(key, path, error.into())),
        _ => Err(malformed(key, path, "certificate in PEM")),
    }
}

/// The secret in a file; all of those that NATS takes are text.
fn secret(key: &'static str, path: &Path) -> Result<Text, AccessError> {
    let secret = read(key, path)?;
    match std::str::from_utf8(secret.expose()) {
        Ok(_) => Ok(Text(secret)),
        Err(_) => Err(malformed(key, path, "UTF-8")),
    }
}

/// A secret that is text.
struct Text(Secret);

impl Text {
    fn expose(&self) -> &str {
        std::str::from_utf8(self.0.expose()).expect("it was text when it was read")
    }
}

fn key_pair(key: &'static str, path: &Path, seed: Option<&str>) -> Result<KeyPair, AccessError> {
    seed.and_then(|seed| KeyPair::from_seed(seed).ok())
        .ok_or_else(|| malformed(key, path, "seed of an nkey"))
}

fn is_seed(line: &str) -> bool {
    line.starts_with('S') && line.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn unreadable(key: &'static str, path: &Path, source: SecretError) -> AccessError {
    AccessError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    }
}

fn malformed(key: &'static str, path: &Path, expected: &'static str) -> AccessError {
    AccessError::Malformed {
        key,
        path: path.to_owned(),
        expected,
    }
}

/// The line behind `-----BEGIN title-----` of a credentials file.
fn inside<'a>(text: &'a str, title: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {title}-")))?;
    lines.next().filter(|line| !line.starts_with("---"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_has_a_jwt_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.sig-_\n------END NATS USER JWT------\n\n\
            ************************* IMPORTANT *************************\n\
            -----BEGIN USER NKEY SEED-----\r\nSUAABC\r\n------END USER NKEY SEED------\r\n";
        assert_eq!(inside(text, "NATS USER JWT"), Some("eyJ0.eyJq.sig-_"));
        assert_eq!(inside(text, "USER NKEY SEED"), Some("SUAABC"));
        assert_eq!(
            inside("-----BEGIN USER NKEY SEED-----", "USER NKEY SEED"),
            None
        );
        assert_eq!(inside("", "NATS USER JWT"), None);
    }

    /// The file of an nkey may have comments.
    #[test]
    fn a_seed_is_a_line_of_letters_and_digits_that_begins_with_s() {
        assert!(is_seed("SUAAVC2"));
        for line in ["Seed of the relay:", "UAAVC2", ""] {
            assert!(!is_seed(line), "{line}");
        }
    }
}
