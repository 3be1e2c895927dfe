//! Fetches a key set from `auth.jwks_url`: one GET, bounded in time and size, and no second try.

use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use tokio_rustls::rustls::pki_types::{InvalidDnsNameError, ServerName};

use crate::net::http_client::{HttpClient, HttpError, Limits};
use crate::net::trust::{Trust, TrustError};

/// The largest key set that is read, bytes. A key takes half a kilobyte.
const BODY_BYTES_MAX: usize = 256 * 1024;

const MEDIA_TYPES: &str = "application/jwk-set+json, application/json";

/// Where a key set comes from.
pub(super) struct Source {
    url: Uri,
    client: HttpClient,
}

/// Why no key set can be fetched from `auth.jwks_url`.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not a URL of HTTP.
    #[error("auth.jwks_url is not an http or https URL")]
    NoUrl,
    /// No certificate can have the name of its host.
    #[error("the host of auth.jwks_url is not a name that a certificate can have")]
    NoName(#[from] InvalidDnsNameError),
    /// Its server's certificate cannot be checked.
    #[error("cannot check the server of auth.jwks_url")]
    Trust(#[from] TrustError),
}

impl Source {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, SourceError> {
        let url: Uri = url.parse().map_err(|_| SourceError::NoUrl)?;
        let host = url.host().ok_or(SourceError::NoUrl)?;
        let limits = Limits {
            timeout,
            body_bytes_max: BODY_BYTES_MAX,
        };
        let client = match url.scheme_str() {
            Some("https") => {
                // Checked here so that `switchboard check` finds it: the client checks it when it asks.
                ServerName::try_from(host.trim_matches(['[', ']']))?;
                HttpClient::new(Trust::System, limits)?
            }
            Some("http") => HttpClient::plain(limits),
            _ => return Err(SourceError::NoUrl),
        };
        Ok(Self { url, client })
    }

    pub(super) async fn fetch(&self) -> Result<Bytes, HttpError> {
        self.client.get(&self.url, MEDIA_TYPES).await
    }
}
