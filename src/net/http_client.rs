//! The client for what the process asks of servers by HTTP/1.1: key sets, and for commands a relay. The load
//! generator reads metrics by it. A request has a limit on its time and on the bytes of its response. The client
//! follows no redirect, has no cookies and keeps no connection.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONNECTION, HeaderValue};
use hyper::upgrade::{self, Upgraded};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;
use tower_service::Service;

use crate::net::proxy_protocol;
use crate::net::trust::{self, Trust, TrustError};

/// Asks servers, within limits.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
    limits: Limits,
}

/// The limits of each request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the look-up of the host's name to the last byte of the response.
    pub timeout: Duration,
    /// The largest body of a response that is read, bytes. hyper has a limit of its own for the head,
    /// about 400 KiB.
    pub body_bytes_max: usize,
}

/// Why there is no response to use.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server took too long.
    #[error("{url} does not answer within {limit:?}")]
    Timeout {
        /// What was asked for.
        url: Uri,
        /// How long the client waited.
        limit: Duration,
    },
    /// The server cannot be reached, or it sends no HTTP.
    #[error("cannot ask {url}")]
    Request {
        /// What was asked for.
        url: Uri,
        /// What went wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The status is not 200: a redirect, too.
    #[error("{url} answers {status}")]
    Status {
        /// What was asked for.
        url: Uri,
        /// The status instead.
        status: StatusCode,
    },
    /// The body ends too early, or it is too large.
    #[error("cannot read the answer of {url} (at most {limit} bytes)")]
    Body {
        /// What was asked for.
        url: Uri,
        /// The largest body that is read, bytes.
        limit: usize,
        /// What went wrong.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl HttpClient {
    /// A client for `http` URLs, and for `https` URLs of the servers that it trusts.
    pub fn new(trust: Trust<'_>, limits: Limits) -> Result<Self, TrustError> {
        Ok(Self::with(trust.client_config()?, limits, Vec::new()))
    }

    /// A client for `http` URLs.
    pub fn plain(limits: Limits) -> Self {
        Self::with(trust::no_server(), limits, Vec::new())
    }

    /// A client that begins a connection with a PROXY protocol header, if its own address is in one of these
    /// networks. The header names no client.
    pub fn as_proxy(
        trust: Option<Trust<'_>>,
        limits: Limits,
        networks: Vec<IpNet>,
    ) -> Result<Self, TrustError> {
        let tls = trust.map_or_else(|| Ok(trust::no_server()), Trust::client_config)?;
        Ok(Self::with(tls, limits, networks))
    }

    fn with(tls: ClientConfig, limits: Limits, proxy_networks: Vec<IpNet>) -> Self {
        let mut tcp = HttpConnector::new();
        // The URL may have the scheme `https`: TLS is made around this connector.
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector {
                tcp,
                proxy_networks: proxy_networks.into(),
            });
        let client = Client::builder(TokioExecutor::new())
            // Requests are seconds or minutes apart: a connection that was kept could be dead by then.
            .pool_max_idle_per_host(0)
            .build(connector);
        Self { client, limits }
    }

    /// The body of a response with the status 200. `accept` are the media types that the caller reads.
    pub async fn get(&self, url: &Uri, accept: &'static str) -> Result<Bytes, HttpError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        self.in_time(url, async {
            let response = self.exchange(request).await?;
            if response.status() == StatusCode::OK {
                return self.read(url, response.into_body()).await;
            }
            let (url, status) = (url.clone(), response.status());
            Err(HttpError::Status { url, status })
        })
        .await
    }

    /// The response of any status, with its body or with the connection that it was upgraded to.
    pub async fn ask(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Bytes>, Option<Upgraded>), HttpError> {
        let url = request.uri().clone();
        self.in_time(&url, async {
            let mut response = self.exchange(request).await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let upgraded = upgrade::on(&mut response).await;
                let upgraded = upgraded.map_err(|error| HttpError::Request {
                    url: url.clone(),
                    source: error.into(),
                })?;
                return Ok((response.map(|_| Bytes::new()), Some(upgraded)));
            }
            let (head, body) = response.into_parts();
            let body = self.read(&url, body).await?;
            Ok((Response::from_parts(head, body), None))
        })
        .await
    }

    /// Ends the work of a request where it takes too long.
    async fn in_time<T>(
        &self,
        url: &Uri,
        work: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        let limit = self.limits.timeout;
        let done = timeout(limit, work).await;
        done.unwrap_or_else(|_| {
            let url = url.clone();
            Err(HttpError::Timeout { url, limit })
        })
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, HttpError> {
        let url = request.uri().clone();
        let response = self.client.request(request).await;
        response.map_err(|error| HttpError::Request {
            url,
            source: error.into(),
        })
    }

    async fn read(&self, url: &Uri, body: Incoming) -> Result<Bytes, HttpError> {
        let limit = self.limits.body_bytes_max;
        let body = Limited::new(body, limit).collect().await;
        let body = body.map_err(|source| HttpError::Body {
            url: url.clone(),
            limit,
            source,
        })?;
        Ok(body.to_bytes())
    }
}

/// Opens connections, those of a proxy with a PROXY protocol header.
#[derive(Clone, Debug)]
struct Connector {
    tcp: HttpConnector,
    proxy_networks: Arc<[IpNet]>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connecting = self.tcp.call(url);
        let networks = self.proxy_networks.clone();
        Box::pin(async move {
            let mut stream = connecting.await?.into_inner();
            let own = stream.local_addr()?.ip().to_canonical();
            if networks.iter().any(|network| network.contains(&own)) {
                stream.write_all(proxy_protocol::UNKNOWN).await?;
            }
            Ok(TokioIo::new(stream))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LIMITS: Limits = Limits {
        timeout: Duration::from_millis(200),
        body_bytes_max: 5,
    };

    /// What a client makes of a server that sends this and, if it `ends`, closes the connection. The
    /// server's URL reads `URL` in errors.
    async fn outcome(response: &str, ends: bool) -> Result<Bytes, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let client = HttpClient::plain(LIMITS);
        let asked = url.parse().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await.unwrap();
            stream.write_all(response.as_bytes()).await.unwrap();
            if !ends {
                std::future::pending::<()>().await;
            }
        };
        let got = async {
            let got = client.get(&asked, "*/*").await;
            got.map_err(|error| {
                let source = error.source().map(|source| format!(": {source}"));
                format!("{error}{}", source.unwrap_or_default()).replace(&url, "URL")
            })
        };
        let (mut serve, mut got) = (std::pin::pin!(serve), std::pin::pin!(got));
        tokio::select! {
            got = &mut got => got,
            () = &mut serve => got.await,
        }
    }

    #[tokio::test]
    async fn a_response_within_the_limits_is_read_and_an_error_names_url_limit_and_reason() {
        let ok = "HTTP/1.1 200 OK\r\n";
        for (head, ends, expected) in [
            ("Content-Length: 5\r\n\r\nwhole", false, Ok("whole")),
            ("\r\nwhole", true, Ok("whole")),
            (
                "Content-Length: 6\r\n\r\ntoo la",
                false,
                Err("cannot read the answer of URL (at most 5 bytes): length limit exceeded"),
            ),
            (
                "Content-Length: 5\r\n\r\ncut",
                true,
                Err(
                    "cannot read the answer of URL (at most 5 bytes): error reading a body from connection",
                ),
            ),
            (
                "Content-Length: 5\r\n\r\nslow",
                false,
                Err("URL does not answer within 200ms"),
            ),
        ] {
            let got = outcome(&format!("{ok}{head}"), ends).await;
            let expected = expected.map(Bytes::from).map_err(str::to_owned);
            assert_eq!(got, expected, "{head}");
        }
        assert_eq!(
            outcome("HTTP/1.1 204 No Content\r\n\r\n", true).await,
            Err("URL answers 204 No Content".to_owned())
        );
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_like_any_other() {
        let moved = "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(
            outcome(moved, true).await,
            Err("URL answers 302 Found".to_owned())
        );
    }
}
