//! The accept loop of a listener and its limits. Must not know what a connection does.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::{debug, warn};

use super::connection::{self, Accepted};
use super::state::{HttpState, ListenerRole};
use crate::admission::PendingConnections;

/// How long to wait when the process has no file descriptor for one more connection. A descriptor is free again
/// as soon as any connection ends.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts connections until the app stops. At most `connections_max` are open at a time that have not completed
/// an upgrade.
pub(crate) async fn serve(
    listener: TcpListener,
    role: ListenerRole,
    state: Arc<HttpState>,
    connections_max: usize,
) {
    let pending = PendingConnections::new(connections_max);
    let mut stopped = pin!(state.shutdown.stopped());
    loop {
        let accepted = tokio::select! {
            () = &mut stopped => return,
            accepted = accept_within_rate(&listener, &pending, role, &state) => accepted,
        };
        match accepted {
            Ok(accepted) => {
                let connection = connection::run(accepted, role, state.clone());
                if role.serves_users() {
                    state.shutdown.spawn(state.throttle.admit(connection));
                } else {
                    state.shutdown.spawn(connection);
                }
            }
            Err(error) if is_of_connection(&error) => {
                debug!(%error, "connection failed before it was accepted");
            }
            Err(error) => {
                state.relay.metrics().accept_failed();
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Accepts the next connection when the accept rate and the throttle allow it.
async fn accept_within_rate(
    listener: &TcpListener,
    pending: &PendingConnections,
    role: ListenerRole,
    state: &HttpState,
) -> io::Result<Accepted> {
    // The listener of operators has no accept rate, so that they get through when users do not.
    if role.serves_users()
        && let Some(accept_limiter) = &state.accept_limiter
        && accept_limiter.acquire().await
    {
        state.relay.metrics().accept_deferred();
    }
    state.throttle.admit(accept(listener, pending)).await
}

async fn accept(listener: &TcpListener, pending: &PendingConnections) -> io::Result<Accepted> {
    let (stream, peer) = listener.accept().await?;
    let peer = peer.ip().to_canonical();
    // Takes the slot after the connection is here: before, one slot would always be held for a connection
    // that has not come.
    let slot = pending.acquire(peer).await;
    Ok(Accepted { stream, peer, slot })
}

/// Whether the error is of the connection at the head of the kernel's queue, and not of the listener
/// (accept(2)).
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
