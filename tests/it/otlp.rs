//! An OTLP receiver over HTTP or HTTPS that decodes the protocol. The tests of the cluster use it, too.

use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::eventually;

/// How a receiver treats a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Takes,
    /// Accepts the request but refuses this many spans.
    TakesLess(i64),
    Fails(StatusCode),
    /// Never answers.
    Hangs,
}

/// An OTLP receiver over HTTP.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    pub(crate) got: Arc<Mutex<Got>>,
    /// The tasks of its connections, which end when it is dropped.
    _connections: JoinSet<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Got {
    pub(crate) heads: Vec<HeaderMap>,
    /// The bodies, decompressed.
    pub(crate) requests: Vec<Bytes>,
    pub(crate) spans: Vec<ResourceSpans>,
    /// Why TLS handshakes failed.
    pub(crate) refused: Vec<String>,
}

impl Receiver {
    pub(crate) async fn start(manner: Manner) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), manner).await
    }

    pub(crate) async fn start_at(addr: SocketAddr, manner: Manner) -> Self {
        Self::serve(addr, manner, None).await
    }

    /// Receives by HTTPS where `tls` is given.
    pub(crate) async fn serve(addr: SocketAddr, manner: Manner, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let got = Arc::<Mutex<Got>>::default();
        let mut connections = JoinSet::new();
        connections.spawn({
            let got = got.clone();
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (got, tls) = (got.clone(), tls.clone());
                    connections.spawn(async move {
                        match tls {
                            None => answer(stream, manner, &got).await,
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => answer(stream, manner, &got).await,
                                Err(error) => got.lock().unwrap().refused.push(error.to_string()),
                            },
                        }
                    });
                }
            }
        });
        Self {
            addr,
            got,
            _connections: connections,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let scopes = got.spans.iter().flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Waits for this many spans and returns all.
    pub(crate) async fn spans_once(&self, count: usize) -> Vec<Span> {
        eventually(&format!("{count} spans"), async || {
            let spans = self.spans();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }

    /// Whether any request so far contains this text.
    pub(crate) fn has_seen(&self, text: &str) -> bool {
        let got = self.got.lock().unwrap();
        let seen = |request: &Bytes| memchr::memmem::find(request, text.as_bytes()).is_some();
        got.requests.iter().any(seen)
    }
}

/// Answers the requests of a connection.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, manner: Manner, got: &Mutex<Got>) {
    let answer =
        service_fn(async |request| Ok::<_, Infallible>(receive(request, manner, got).await));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    drop(connection.await);
}

async fn receive(
    request: Request<Incoming>,
    manner: Manner,
    got: &Mutex<Got>,
) -> Response<Full<Bytes>> {
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    assert!(request.headers().contains_key("host"));
    let (head, body) = request.into_parts();
    let mut body = body.collect().await.unwrap().to_bytes();
    if let Some(encoding) = head.headers.get("content-encoding") {
        assert_eq!(encoding, "gzip");
        let mut decompressed = Vec::new();
        GzDecoder::new(&*body)
            .read_to_end(&mut decompressed)
            .unwrap();
        body = decompressed.into();
    }
    let decoded = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let mut answer = ExportTraceServiceResponse::default();
    let mut status = StatusCode::OK;
    match manner {
        Manner::Takes => {}
        Manner::TakesLess(spans) => {
            answer.partial_success = Some(ExportTracePartialSuccess {
                rejected_spans: spans,
                error_message: "too old".to_owned(),
            });
        }
        Manner::Fails(code) => status = code,
        Manner::Hangs => std::future::pending().await,
    }
    if status == StatusCode::OK {
        let mut got = got.lock().unwrap();
        got.heads.push(head.headers);
        got.requests.push(body);
        got.spans.extend(decoded.resource_spans);
    }
    let mut response = Response::new(Full::new(answer.encode_to_vec().into()));
    *response.status_mut() = status;
    response
}
