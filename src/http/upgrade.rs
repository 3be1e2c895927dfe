//! What a connection and the handshake on it share until the 101 has left. The handshake takes a client in the
//! directory before the 101 is written; the connection starts the session behind it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::{AddressPermit, PendingSlot};
use crate::relay::Membership;
use crate::session::Welcome;

/// The upgrade of one connection. Dropping it without a session removes the client again.
#[derive(Debug)]
pub(super) struct PendingUpgrade {
    source: Source,
    slot: Arc<PendingSlot>,
    joined: Mutex<Option<JoinedUser>>,
    /// Notified when `joined` is set.
    has_joined: Notify,
    has_request: AtomicBool,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The socket's peer, or the address that a proxy gave in a PROXY protocol header.
    pub(super) addr: IpAddr,
    /// The connection comes through a trusted proxy that sends the PROXY protocol and named no client. Such
    /// a proxy does not edit requests, so the client itself wrote their forwarding headers.
    pub(super) is_unnamed_proxy: bool,
}

/// A user that has a client in the directory and no session yet.
#[derive(Debug)]
pub(super) struct JoinedUser {
    pub(super) membership: Membership,
    pub(super) welcome: Welcome,
    /// Counts the user as one of its network's, where those are limited.
    pub(super) permit: Option<AddressPermit>,
    /// How long the user's token is valid; without a limit if none.
    pub(super) remaining: Option<Duration>,
}

impl PendingUpgrade {
    pub(super) fn new(source: Source, slot: Arc<PendingSlot>) -> Self {
        Self {
            source,
            slot,
            joined: Mutex::new(None),
            has_joined: Notify::new(),
            has_request: AtomicBool::new(false),
        }
    }

    pub(super) fn source(&self) -> Source {
        self.source
    }

    /// Lets other connections use the slot while a join waits. Its user counts as connected then.
    pub(super) async fn lending_slot<J: Future>(&self, join: J) -> J::Output {
        let mut join = pin!(join);
        let mut lent = None;
        poll_fn(|cx| {
            let joined = join.as_mut().poll(cx);
            if joined.is_pending() && lent.is_none() {
                lent = Some(self.slot.lend());
            }
            joined
        })
        .await
    }

    /// Notes that a request has come over the connection.
    pub(super) fn on_request(&self) {
        // Relaxed, because the connection's task both writes and reads it.
        self.has_request.store(true, Relaxed);
    }

    pub(super) fn has_request(&self) -> bool {
        self.has_request.load(Relaxed)
    }

    pub(super) fn put(&self, joined: JoinedUser) {
        *self.joined.lock() = Some(joined);
        self.has_joined.notify_one();
    }

    pub(super) fn take(&self) -> Option<JoinedUser> {
        self.joined.lock().take()
    }

    /// Completes if the 101 has not left `timeout` after a user joined. Never completes before a user joins.
    pub(super) async fn times_out(&self, timeout: Duration) {
        self.has_joined.notified().await;
        tokio::time::sleep(timeout).await;
    }
}
