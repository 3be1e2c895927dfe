//! What all handles of one relay share: the ways to a recipient, and the count of users.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::SystemTime;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::router::Router;
use crate::cluster::Cluster;
use crate::directory::{
    Client, Directory, MailboxBounds, Message, Undeliverable, Wakes, settle_undeliverable,
};
use crate::id_file::IdFile;
use crate::identity::{Sequence, Subject, UserId, UserIdentity};
use crate::ledger::InHand;
use crate::protocol::Dialect;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

/// The state of one relay.
#[derive(Debug)]
pub(super) struct RelayShared {
    /// In both strategies the list of connected users, for scrapes and the drain. In the directory
    /// strategy also the way to a recipient.
    pub(super) directory: Directory,
    /// The way to recipients on other nodes.
    pub(super) cluster: Option<Cluster>,
    /// The way to a recipient in the router strategy.
    pub(super) router: Option<Router>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Arc<Traces>,
    pub(super) bounds: Arc<MailboxBounds>,
    pub(super) sequence: Sequence,
    /// Keeps ids of `sequence` across a restart.
    pub(super) id_file: Option<Arc<IdFile>>,
    pub(super) users: AtomicUsize,
    pub(super) users_max: usize,
    /// Notified when the last user has left.
    pub(super) emptied: Notify,
    /// Second zero of the clock by which clients say when they joined, on two clocks.
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
}

impl RelayShared {
    /// Users, upgrades in progress included.
    pub(super) fn users(&self) -> usize {
        self.users.load(Acquire)
    }

    /// Whether no user may join now.
    pub(super) fn is_full(&self) -> bool {
        self.users.load(Relaxed) >= self.users_max
    }

    /// A client that joins now.
    pub(super) fn client(
        &self,
        identity: UserIdentity,
        dialect: Dialect,
        subject: Option<Subject>,
    ) -> Arc<Client> {
        let (bounds, metrics) = (self.bounds.clone(), self.metrics.clone());
        let client = Client::new(identity, dialect, subject, bounds, metrics);
        let seconds = self.started.elapsed().as_secs();
        Arc::new(client.with_joined_at(u32::try_from(seconds).unwrap_or(u32::MAX)))
    }

    /// Gives a message to its recipient's client, or to the cluster.
    pub(super) fn deliver<M: Deref<Target = Metrics>>(
        &self,
        recipient: UserId,
        message: Message<'_>,
        in_hand: InHand<M>,
        wakes: &mut Wakes,
    ) {
        self.directory.with(recipient, |client| match client {
            Some(client) => client.push(message, in_hand, wakes),
            None => send_elsewhere(self.cluster.as_ref(), recipient, message, in_hand, wakes),
        });
    }
}

/// Sends a message on if its recipient has no client on this node.
pub(super) fn send_elsewhere<M: Deref<Target = Metrics>>(
    cluster: Option<&Cluster>,
    recipient: UserId,
    message: Message<'_>,
    in_hand: InHand<M>,
    wakes: &mut Wakes,
) {
    match cluster {
        Some(cluster) => cluster.send(recipient, message, in_hand, wakes),
        None => settle_undeliverable(in_hand, message.receipt, Undeliverable::Offline, wakes),
    }
}

/// One of the `limits.connections` users. Drop gives it back.
#[derive(Debug)]
pub(super) struct UserPermit {
    shared: Arc<RelayShared>,
}

impl UserPermit {
    /// A permit, unless all are in use.
    pub(super) fn take(shared: &Arc<RelayShared>) -> Option<Self> {
        let max = shared.users_max;
        shared
            .users
            .try_update(Relaxed, Relaxed, |users| (users < max).then(|| users + 1))
            .ok()?;
        Some(Self {
            shared: shared.clone(),
        })
    }

    pub(super) fn shared(&self) -> &Arc<RelayShared> {
        &self.shared
    }
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        // Release here and Acquire in `users`: a drain that reads zero also sees what the users did before.
        if self.shared.users.fetch_sub(1, Release) == 1 {
            self.shared.emptied.notify_waiters();
        }
    }
}
