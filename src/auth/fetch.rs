//! Gets a key set from its address: one GET, bounded in time and size, with no cookie, no redirect
//! and no second chance.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// The largest answer that is read, bytes. A key takes half a kilobyte.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Where a key set is to be had.
pub(super) struct Source {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

/// Why an address cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is no address.
    #[error("auth.jwks_url is no http or https address")]
    NoUrl,
    /// Its host is no name that a certificate could have.
    #[error("the host of auth.jwks_url is no name")]
    NoName(#[from] InvalidDnsNameError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The system has no certificates.
    #[error("the system has no certificates to check auth.jwks_url by")]
    NoRoots,
}

/// Why nothing was got.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect")]
    Connect(#[from] io::Error),
    #[error("http failed")]
    Http(#[from] hyper::Error),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Source {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, SourceError> {
        let uri: Uri = url.parse().map_err(|_| SourceError::NoUrl)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(SourceError::NoUrl),
        };
        let host = uri.host().ok_or(SourceError::NoUrl)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let tls = if tls {
            Some((connector()?, ServerName::try_from(host.clone())?))
        } else {
            None
        };
        let port = uri
            .port_u16()
            .unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self {
            uri,
            host,
            port,
            tls,
            timeout,
        })
    }

    pub(super) async fn fetch(&self) -> Result<Bytes, FetchError> {
        timeout(self.timeout, self.get())
            .await
            .unwrap_or(Err(FetchError::Timeout(self.timeout)))
    }

    async fn get(&self) -> Result<Bytes, FetchError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => self.ask(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await?;
                self.ask(stream).await
            }
        }
    }

    async fn ask<S>(&self, stream: S) -> Result<Bytes, FetchError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let target = self
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let request = Request::get(target)
            .header(HOST, authority)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .expect("the parts of an address that was parsed make a request");
        let exchange = async {
            let answer = sender.send_request(request).await?;
            if answer.status() != StatusCode::OK {
                return Err(FetchError::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX);
            let body = body.collect().await.map_err(FetchError::Body)?;
            Ok(body.to_bytes())
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            body = &mut exchange => body,
            // What has come before the end is still to be read.
            _ = connection => exchange.await,
        }
    }
}

/// Checks servers by the certificates that the system trusts.
fn connector() -> Result<TlsConnector, SourceError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(SourceError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
