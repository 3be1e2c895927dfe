//! Fetches a key set from `auth.jwks_url`: one GET, with a limit on time and size, and no retry.

use bytes::Bytes;
use hyper::Uri;
use tokio_rustls::rustls::pki_types::{InvalidDnsNameError, ServerName};

use crate::config::AuthSettings;
use crate::net::http_client::{HttpClient, HttpError, Limits};
use crate::net::trust::{Trust, TrustError};

/// The largest key set that is read, bytes. A key takes half a kilobyte.
const BODY_BYTES_MAX: usize = 256 * 1024;

const MEDIA_TYPES: &str = "application/jwk-set+json, application/json";

/// The server of a key set.
#[derive(Debug)]
pub(super) struct KeySource {
    /// `auth.jwks_url` as written, for logs.
    pub(super) name: String,
    url: Uri,
    client: HttpClient,
}

/// Why no key set can be fetched from `auth.jwks_url`.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// Not a URL of HTTP.
    #[error("not an http or https URL")]
    NoUrl,
    /// No certificate can have the name of the host.
    #[error("the host is not a name that a certificate can have")]
    NoName(#[from] InvalidDnsNameError),
    /// The server's certificate cannot be checked.
    #[error("cannot check the server's certificate")]
    Trust(#[from] TrustError),
}

impl KeySource {
    /// The source that these settings name, if any. Does not connect.
    pub(super) fn new(settings: &AuthSettings) -> Result<Option<Self>, KeySourceError> {
        let Some(name) = settings.jwks_url.clone() else {
            return Ok(None);
        };
        let url: Uri = name.parse().map_err(|_| KeySourceError::NoUrl)?;
        let host = url.host().ok_or(KeySourceError::NoUrl)?;
        let limits = Limits {
            timeout: settings.jwks_timeout,
            body_bytes_max: BODY_BYTES_MAX,
        };
        let client = match url.scheme_str() {
            Some("https") => {
                // Checked here for `switchboard check`, because the client checks it only when it connects.
                ServerName::try_from(host.trim_matches(['[', ']']))?;
                HttpClient::new(Trust::System, limits)?
            }
            Some("http") => HttpClient::plain(limits),
            _ => return Err(KeySourceError::NoUrl),
        };
        Ok(Some(Self { name, url, client }))
    }

    pub(super) async fn fetch(&self) -> Result<Bytes, HttpError> {
        self.client.get(&self.url, MEDIA_TYPES).await
    }
}
