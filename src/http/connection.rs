//! One HTTP connection, from its first byte to its end or to the session of its user. Must not know what is
//! asked for.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::response::{HttpResponse, close_after};
use super::routes;
use super::state::{HttpState, ListenerRole};
use super::stream::HttpStream;
use super::upgrade::{JoinedUser, PendingUpgrade, Source};
use crate::admission::{LimitExceeded, PendingSlot};
use crate::net::tls::{ClientHello, FailedHandshake};
use crate::net::{ByteStream, ending, proxy_protocol};
use crate::session::Session;
use crate::telemetry::metrics::Rejection;

/// The smallest buffer that hyper takes, bytes.
const HYPER_BUFFER_BYTES_MIN: usize = 8192;

/// A connection that was accepted, and its slot among the pending ones.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: IpAddr,
    pub(super) slot: PendingSlot,
}

/// A connection that is ready for its first request.
struct Opened {
    stream: ByteStream,
    client_addr: IpAddr,
}

/// Why a connection ended before its first request.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("too many tls handshakes")]
    LimitExceeded {
        exceeded: LimitExceeded,
        client_addr: IpAddr,
    },
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// How the HTTP part of a connection ended.
enum HttpEnd {
    /// The connection has ended, or a 101 has left.
    Done(hyper::Result<()>),
    /// A user joined, and the 101 did not leave in time.
    UpgradeTimedOut,
    /// The slot was needed for another connection.
    Evicted,
}

type HyperConnection = http1::Connection<TokioIo<HttpStream>, RequestHandler>;

/// Serves a connection until it ends. If a request upgrades it, spawns the session of the user.
pub(super) async fn run(accepted: Accepted, role: ListenerRole, state: Arc<HttpState>) {
    let Accepted { stream, peer, slot } = accepted;
    let slot = Arc::new(slot);
    let metrics = state.relay.metrics();
    let _counted = role.serves_users().then(|| metrics.http_connection());
    // One future for the whole life, polled by reference: an eviction that comes between two of its uses is kept.
    let mut evicted = pin!(slot.evicted());
    let opened = tokio::select! {
        () = &mut evicted => return metrics.http_evicted(),
        opened = timeout(state.header_timeout, open(stream, peer, role, &state)) => opened,
    };
    let Opened {
        stream,
        client_addr,
    } = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(OpenError::LimitExceeded {
            exceeded: LimitExceeded { reason, .. },
            client_addr,
        })) => {
            debug!(client.addr = %client_addr, ?reason, "tls handshake refused");
            return metrics.handshake_rejected(reason);
        }
        Ok(Err(OpenError::Failed(error))) => {
            debug!(peer.addr = %peer, %error, "connection failed before its first request");
            return;
        }
        Err(_) => return,
    };
    let source = Source {
        addr: client_addr,
        is_unnamed_proxy: state.proxy_protocol && client_addr == peer && state.proxies.trusts(peer),
    };
    let upgrade = Arc::new(PendingUpgrade::new(source, slot.clone()));
    let handler = RequestHandler {
        role,
        state: state.clone(),
        upgrade: upgrade.clone(),
    };
    let mut connection = serve_connection(stream, handler);
    let end = serve_requests(&mut connection, &upgrade, &state, evicted.as_mut()).await;
    // Taken in every case: dropping it removes a client whose connection has failed.
    let joined = upgrade.take();
    match (end, joined) {
        (HttpEnd::Done(Ok(())), Some(joined)) => {
            let (stream, read) = into_stream(connection);
            start_session(joined, stream, &read, &state);
        }
        (HttpEnd::Done(done), joined) => {
            drop(joined);
            if let Err(error) = done {
                debug!(client.addr = %client_addr, %error, "http connection failed");
                if error.is_parse_too_large() && role.serves_users() {
                    metrics.handshake_rejected(Rejection::HeadTooLarge);
                }
            }
            end_in_order(connection, &state, evicted).await;
        }
        // The peer does not read, so that no end could reach it.
        (HttpEnd::UpgradeTimedOut, _) => {}
        (HttpEnd::Evicted, _) => {
            metrics.http_evicted();
            let (stream, _) = into_stream(connection);
            if upgrade.has_request() {
                // A reset could take a response away that the peer has not read yet.
                ending::end(stream, Duration::ZERO).await;
            } else {
                stream.reset();
            }
        }
    }
}

/// hyper's side of a connection.
fn serve_connection(stream: ByteStream, handler: RequestHandler) -> HyperConnection {
    let HttpState {
        header_timeout,
        header_bytes,
        ..
    } = *handler.state;
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_header_size(header_bytes)
        .max_buf_size(header_bytes.max(HYPER_BUFFER_BYTES_MIN))
        .serve_connection(TokioIo::new(HttpStream::new(stream, header_bytes)), handler)
}

/// The stream of a connection, and the bytes that hyper has read and not used.
fn into_stream(connection: HyperConnection) -> (ByteStream, Bytes) {
    let parts = connection.into_parts();
    (parts.io.into_inner().into_inner(), parts.read_buf)
}

/// Ends a connection that was not upgraded, so that its peer gets the whole of the last response. Its slot is in use
/// until then, so it can be evicted like any other.
async fn end_in_order(
    mut connection: HyperConnection,
    state: &HttpState,
    evicted: Pin<&mut impl Future<Output = ()>>,
) {
    let ended = async {
        // hyper is done as soon as it reads no more, which after an early response is before the response has left.
        // Polled as a future, it writes the rest; without keep-alive, so that it does not wait for a request.
        Pin::new(&mut connection).graceful_shutdown();
        // The error was logged before, or is that of a peer that has gone.
        let _failed = (&mut connection).await;
        let (stream, _) = into_stream(connection);
        tokio::select! {
            // First, because a process that ends still discards what has come.
            biased;
            () = ending::end(stream, state.sessions.close_timeout()) => {}
            () = state.shutdown.stopped() => {}
        }
    };
    tokio::select! {
        () = ended => {}
        () = evicted => state.relay.metrics().http_evicted(),
    }
}

/// Prepares a connection for its first request: reads the PROXY protocol header and completes the TLS handshake,
/// where the listener has either.
async fn open(
    stream: TcpStream,
    peer: IpAddr,
    role: ListenerRole,
    state: &HttpState,
) -> Result<Opened, OpenError> {
    let client_addr = if state.proxy_protocol && role.serves_users() {
        read_client_addr(&stream, peer, state).await?
    } else {
        peer
    };
    let Some(tls) = state.tls(role) else {
        return Ok(Opened {
            stream: ByteStream::Plain(stream),
            client_addr,
        });
    };
    // Counts a handshake only when the whole hello is here: until then the connection has cost next to nothing,
    // and peers that never send it must not use up the rates.
    let hello = match ClientHello::read(stream).await {
        Ok(hello) => hello,
        Err(failed) => return Err(end_failed(failed, state).await),
    };
    if let Err(exceeded) = count_tls_handshake(client_addr, role, state) {
        hello.refuse();
        return Err(OpenError::LimitExceeded {
            exceeded,
            client_addr,
        });
    }
    match tls.accept(hello, &state.background).await {
        Ok(stream) => Ok(Opened {
            stream: ByteStream::Tls(Box::new(stream)),
            client_addr,
        }),
        Err(failed) => Err(end_failed(failed, state).await),
    }
}

/// Ends a connection whose TLS handshake has failed, so that the client gets the alert. The caller bounds the time
/// of the whole handshake.
async fn end_failed(failed: FailedHandshake, state: &HttpState) -> OpenError {
    let FailedHandshake { error, stream } = failed;
    if let Some(stream) = stream {
        ending::end(stream, state.sessions.close_timeout()).await;
    }
    error.into()
}

/// The client's address by the PROXY protocol header, if the peer is a trusted proxy, and else the peer's.
async fn read_client_addr(
    stream: &TcpStream,
    peer: IpAddr,
    state: &HttpState,
) -> io::Result<IpAddr> {
    if state.proxies.trusts(peer) {
        return Ok(proxy_protocol::read(stream).await?.unwrap_or(peer));
    }
    let mut first = [0; 6];
    let count = stream.peek(&mut first).await?;
    if count > 0 && proxy_protocol::may_be_header(&first[..count]) {
        // The header stays in the stream. hyper refuses it, because it is no request.
        state.proxies.warn_once(peer, "a PROXY protocol header");
    }
    Ok(peer)
}

/// Counts a TLS handshake before anything is computed for it. The listener of operators has no limit, so that
/// they get through when users do not.
fn count_tls_handshake(
    client_addr: IpAddr,
    role: ListenerRole,
    state: &HttpState,
) -> Result<(), LimitExceeded> {
    let Some(address_limiter) = state
        .address_limiter
        .as_ref()
        .filter(|_| role.serves_users())
    else {
        return Ok(());
    };
    // A trusted proxy names the client in the headers of a request, and there is none yet. All clients of the
    // proxy come from one address until then, and must not share the limits of one client.
    let known_addr = Some(client_addr).filter(|addr| !state.proxies.trusts(*addr));
    address_limiter.count_tls_handshake(known_addr)
}

/// Answers requests until the connection ends, is upgraded, or has to end.
async fn serve_requests(
    connection: &mut HyperConnection,
    upgrade: &PendingUpgrade,
    state: &HttpState,
    mut evicted: Pin<&mut impl Future<Output = ()>>,
) -> HttpEnd {
    // Every arm is cancel-safe: the connection is only polled, and the others are polled by reference.
    let mut stopped = pin!(state.shutdown.stopped());
    let mut upgrade_times_out = pin!(upgrade.times_out(state.header_timeout));
    let mut is_stopping = false;
    loop {
        tokio::select! {
            // Without shutdown, because the session goes on with the stream.
            done = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                return HttpEnd::Done(done);
            }
            () = &mut stopped, if !is_stopping => {
                // The arm is ready from now on, and would spin. A request under way is still answered.
                is_stopping = true;
                Pin::new(&mut *connection).graceful_shutdown();
            }
            // hyper has no timeout for a write, and the user has a mailbox that others fill.
            () = &mut upgrade_times_out => return HttpEnd::UpgradeTimedOut,
            () = &mut evicted => return HttpEnd::Evicted,
        }
    }
}

/// Starts the session of a user on the connection that its handshake came over. `read` are the bytes that hyper
/// has read behind the handshake.
fn start_session(joined: JoinedUser, stream: ByteStream, read: &[u8], state: &HttpState) {
    let JoinedUser {
        membership,
        welcome,
        permit,
        remaining,
    } = joined;
    stream.spread_probes();
    let mut session = Session::new(stream, read, membership, &welcome, state.sessions.clone());
    if let Some(remaining) = remaining {
        session.expire_in(remaining);
    }
    // A permit lives as long as its session. The usual session, without one, is spawned as it is: a future around
    // it would be larger, and its size is most of what an idle connection costs.
    match permit {
        None => state.shutdown.spawn(session),
        Some(permit) => state.shutdown.spawn(async move {
            session.await;
            drop(permit);
        }),
    };
}

/// Answers the requests of one connection.
struct RequestHandler {
    role: ListenerRole,
    state: Arc<HttpState>,
    upgrade: Arc<PendingUpgrade>,
}

impl Service<Request<Incoming>> for RequestHandler {
    type Response = HttpResponse;
    type Error = Infallible;
    // Boxed, because hyper gives the stream back after an upgrade only if this future is `Unpin`.
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // Before the response is made: from here on an eviction must not reset the connection.
        self.upgrade.on_request();
        let (role, state, upgrade) = (self.role, self.state.clone(), self.upgrade.clone());
        // A proxy in front may take the connection for a tunnel from here on, and pass on requests that it has not
        // checked. Behind a refusal they are not answered.
        let is_tunnel = request.headers().contains_key(UPGRADE)
            || request.headers().contains_key(SEC_WEBSOCKET_KEY)
            || request.method() == Method::CONNECT;
        let has_body = !request.body().is_end_stream();
        Box::pin(async move {
            let mut response = routes::respond(request, role, &state, &upgrade).await;
            let status = response.status();
            let is_refused_tunnel = is_tunnel && status != StatusCode::SWITCHING_PROTOCOLS;
            // Most of these come before the body was read, and hyper then ends the connection.
            let may_be_early = has_body && !status.is_success();
            if is_refused_tunnel || may_be_early {
                close_after(&mut response);
            }
            Ok(response)
        })
    }
}
