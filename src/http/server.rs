//! The accept loop and its bounds, and one HTTP connection from its first byte to its end or its
//! upgrade.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::handshake::{Handshake, Joined};
use super::{HttpState, ListenerRole, routes};
use crate::admission::{LimitExceeded, PendingConnections, PendingSlot};
use crate::net::tls::Hello;
use crate::net::{Io, proxy_protocol};
use crate::session::Session;

/// How long to wait when there is no file descriptor for one more connection. One is free again as
/// soon as anybody leaves.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts connections until the app stops. `connections_max` bounds those that are not users (yet).
pub(crate) async fn serve(
    listener: TcpListener,
    role: ListenerRole,
    state: Arc<HttpState>,
    connections_max: usize,
) {
    let pending = PendingConnections::new(connections_max);
    let shutdown = state.shutdown.clone();
    let mut stopped = pin!(shutdown.stopped());
    // Operators have a listener of their own so that they get through when users do not.
    let accept_limiter = state
        .accept_limiter
        .as_ref()
        .filter(|_| role != ListenerRole::Admin);
    let next = async || {
        if let Some(accept_limiter) = accept_limiter
            && accept_limiter.acquire().await
        {
            state.relay.metrics().accept_deferred();
        }
        state.throttle.admit(accept(&listener, &pending)).await
    };
    loop {
        let accepted = tokio::select! {
            () = &mut stopped => return,
            accepted = next() => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let connection = connection(stream, peer, role, state.clone(), slot);
                if role == ListenerRole::Admin {
                    state.shutdown.spawn(connection);
                } else {
                    state.shutdown.spawn(state.throttle.admit(connection));
                }
            }
            Err(error) if is_the_peers(&error) => {
                debug!(%error, "connection failed before it was accepted");
            }
            Err(error) => {
                state.relay.metrics().accept_failed();
                warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    pending: &PendingConnections,
) -> io::Result<(TcpStream, IpAddr, PendingSlot)> {
    let (stream, peer) = listener.accept().await?;
    let peer = peer.ip().to_canonical();
    // Only with a connection at hand that needs the room, or one place would always be empty.
    let slot = pending.acquire(peer).await;
    Ok((stream, peer, slot))
}

/// Errors of the connection that was at the head of the queue, not of accepting (accept(2)).
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    role: ListenerRole,
    state: Arc<HttpState>,
    slot: PendingSlot,
) {
    let _counted = (role != ListenerRole::Admin).then(|| state.relay.metrics().http_connection());
    let mut wanted = pin!(slot.evicted());
    let opened = tokio::select! {
        () = &mut wanted => return state.relay.metrics().http_evicted(),
        opened = timeout(state.header_timeout, open(stream, peer, role, &state)) => opened,
    };
    let (io, client_addr) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(NotOpened::Refused(LimitExceeded { reason, .. }, client_addr))) => {
            debug!(client.addr = %client_addr, ?reason, "tls handshake refused");
            return state.relay.metrics().handshake_rejected(reason);
        }
        Ok(Err(NotOpened::Failed(error))) => {
            debug!(peer.addr = %peer, %error, "connection failed before its first request");
            return;
        }
        Err(_) => return,
    };
    let is_nobodys = state.proxy_protocol && client_addr == peer;
    let handshake = Arc::new(Handshake::new(client_addr, is_nobodys));
    let service = service_fn({
        let (state, handshake) = (state.clone(), handshake.clone());
        move |request| {
            let (state, handshake) = (state.clone(), handshake.clone());
            handshake.asked();
            // Boxed, since hyper gives the stream back only where a service's future is `Unpin`.
            Box::pin(async move {
                Ok::<_, Infallible>(routes::answer(request, role, &state, &handshake).await)
            })
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(state.header_timeout)
        .max_header_size(state.header_bytes)
        .max_buf_size(state.header_bytes.max(HYPER_BUFFER_BYTES_MIN))
        .serve_connection(TokioIo::new(io), service);
    let served = {
        let mut stopped = pin!(state.shutdown.stopped());
        let mut late = pin!(handshake.is_late(state.header_timeout));
        let mut stopping = false;
        loop {
            tokio::select! {
                served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break served,
                () = &mut stopped, if !stopping => {
                    stopping = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                // The client goes back with the handshake.
                () = &mut late => return,
                () = &mut wanted => {
                    state.relay.metrics().http_evicted();
                    // Whoever was answered is to have the answer.
                    if !handshake.was_asked() {
                        connection.into_parts().io.into_inner().reset();
                    }
                    return;
                }
            }
        }
    };
    if let Err(error) = served {
        debug!(%error, "http connection failed");
        return;
    }
    if let Some(joined) = handshake.take() {
        let parts = connection.into_parts();
        begin(joined, parts.io.into_inner(), &parts.read_buf, &state);
    }
}

/// Begins the session of a user over the connection that its handshake came by.
fn begin(joined: Joined, io: Io, read: &[u8], state: &HttpState) {
    let Joined {
        membership,
        welcome,
        permit,
        remaining,
    } = joined;
    let mut session = Session::new(io, read, membership, &welcome, state.sessions.clone());
    if let Some(remaining) = remaining {
        session.expire_in(remaining);
    }
    // A visit goes with its session; without one, a session is as small as it can be.
    match permit {
        None => state.shutdown.spawn(session),
        Some(permit) => state.shutdown.spawn(async move {
            session.await;
            drop(permit);
        }),
    };
}

/// What comes before the first request, within `limits.header_timeout`: whom the connection is from,
/// and TLS.
async fn open(
    stream: TcpStream,
    peer: IpAddr,
    role: ListenerRole,
    state: &HttpState,
) -> Result<(Io, IpAddr), NotOpened> {
    let client_addr = if state.proxy_protocol && role != ListenerRole::Admin {
        proxied(&stream, peer, state).await?
    } else {
        peer
    };
    let Some(tls) = state.tls(role) else {
        return Ok((Io::Plain(stream), client_addr));
    };
    // Who has not said all of it has cost next to nothing, and takes nothing of the rates.
    let hello = Hello::of(stream).await?;
    if let Err(exceeded) = may_go_on(client_addr, role, state) {
        hello.refuse();
        return Err(NotOpened::Refused(exceeded, client_addr));
    }
    let stream = tls.accept(hello, &state.background).await?;
    Ok((Io::Tls(Box::new(stream)), client_addr))
}

/// Why a connection got no further than its first request.
#[derive(Debug, thiserror::Error)]
enum NotOpened {
    /// Too many TLS handshakes come, and this was one of them.
    #[error("too many tls handshakes")]
    Refused(LimitExceeded, IpAddr),
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Counts a TLS handshake, before it costs anything. Operators have a listener of their own so that they
/// get through when users do not, and so it is not counted there.
fn may_go_on(
    client_addr: IpAddr,
    role: ListenerRole,
    state: &HttpState,
) -> Result<(), LimitExceeded> {
    let Some(address_limiter) = state
        .address_limiter
        .as_ref()
        .filter(|_| role != ListenerRole::Admin)
    else {
        return Ok(());
    };
    // A trusted proxy will say whom a request is from, and not before there is one: until then all of
    // its clients are one, who must not be held to what one may do.
    let known = Some(client_addr).filter(|client_addr| !state.proxies.trusts(*client_addr));
    address_limiter.count_tls_handshake(known)
}

/// Whom a connection is from, by the PROXY protocol header at its front if it is a proxy's.
async fn proxied(stream: &TcpStream, peer: IpAddr, state: &HttpState) -> io::Result<IpAddr> {
    if state.proxies.trusts(peer) {
        return Ok(proxy_protocol::take(stream).await?.unwrap_or(peer));
    }
    let mut first = [0; 6];
    let count = stream.peek(&mut first).await?;
    if count > 0 && proxy_protocol::begins_like_one(&first[..count]) {
        // It is left where it stands, and is no request.
        state.proxies.warn_of(peer, "a PROXY protocol header");
    }
    Ok(peer)
}

/// hyper takes no smaller buffer.
const HYPER_BUFFER_BYTES_MIN: usize = 8192;
