//! The accept loop and its bounds, and one HTTP connection from its first byte to its end or its
//! upgrade.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use super::upgrade::Handshake;
use super::{Door, Host, routes};
use crate::session::Session;

/// How long to wait when there is no file descriptor for one more connection. One is free again as
/// soon as anybody leaves.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts connections until the app stops. `connections_max` bounds those that are not users (yet).
pub async fn serve(listener: TcpListener, door: Door, host: Arc<Host>, connections_max: usize) {
    let room = Arc::new(Semaphore::new(connections_max));
    let shutdown = host.shutdown.clone();
    let mut stopped = pin!(shutdown.stopped());
    loop {
        let accepted = tokio::select! {
            () = &mut stopped => return,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                host.shutdown
                    .spawn(connection(stream, door, host.clone(), place));
            }
            Err(error) if is_the_peers(&error) => {
                debug!(%error, "connection failed before it was accepted");
            }
            Err(error) => {
                host.relay.metrics().accept_failed();
                warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = room
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
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

async fn connection(stream: TcpStream, door: Door, host: Arc<Host>, place: OwnedSemaphorePermit) {
    let handshake = Arc::new(Handshake::default());
    let service = service_fn({
        let (host, handshake) = (host.clone(), handshake.clone());
        move |request| {
            let (host, handshake) = (host.clone(), handshake.clone());
            // Boxed, since hyper gives the stream back only where a service's future is `Unpin`.
            Box::pin(async move {
                Ok::<_, Infallible>(routes::answer(request, door, &host, &handshake).await)
            })
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(host.header_timeout)
        .max_header_size(host.header_bytes)
        .max_buf_size(host.header_bytes.max(HYPER_BUFFER_BYTES_MIN))
        .serve_connection(TokioIo::new(stream), service);
    let served = {
        let mut stopped = pin!(host.shutdown.stopped());
        let mut late = pin!(handshake.is_late(host.header_timeout));
        let mut stopping = false;
        loop {
            tokio::select! {
                served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break served,
                () = &mut stopped, if !stopping => {
                    stopping = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                // The seat goes back with the handshake.
                () = &mut late => return,
            }
        }
    };
    drop(place);
    if let Err(error) = served {
        debug!(%error, "http connection failed");
        return;
    }
    if let Some(membership) = handshake.take() {
        let parts = connection.into_parts();
        let session = Session::new(
            parts.io.into_inner(),
            &parts.read_buf,
            membership,
            host.sessions.clone(),
        );
        host.shutdown.spawn(session);
    }
}

/// hyper takes no smaller buffer.
const HYPER_BUFFER_BYTES_MIN: usize = 8192;
