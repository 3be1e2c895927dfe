//! An id on its way to a user that joins: a new one, or the one that the user had before, taken back
//! from wherever in the cluster it is.

use std::sync::Arc;

use super::shared::RelayShared;
use crate::cluster::{MigratedId, Ownership, Refusal};
use crate::identity::{ResumptionId, UserIdentity};

/// Why a user that wants its earlier id gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeError {
    /// Another user has the id.
    InUse,
    /// The node that owns the id does not give it now.
    Unavailable,
}

/// An id that no other user gets meanwhile. Drop gives it up, unless a client was registered with it.
pub(super) struct ReservedId {
    shared: Arc<RelayShared>,
    identity: UserIdentity,
    source: IdSource,
    is_registered: bool,
}

/// Where a reserved id comes from.
enum IdSource {
    /// The sequence.
    New,
    /// An earlier connection; the id is of a block of this node, or there are no other nodes.
    Local,
    /// An earlier connection; the id is of another node's block.
    Migrated(Box<MigratedId>),
}

impl ReservedId {
    /// The next new id, with a new resumption id. `None` where no id is left.
    pub(super) fn next(shared: &Arc<RelayShared>) -> Option<Self> {
        let identity = UserIdentity {
            id: shared.sequence.next()?,
            resumption_id: ResumptionId::new(),
        };
        Some(Self::of(shared, identity, IdSource::New))
    }

    /// The id that a user had before.
    pub(super) async fn take_back(
        shared: &Arc<RelayShared>,
        identity: UserIdentity,
    ) -> Result<Self, ResumeError> {
        let UserIdentity { id, resumption_id } = identity;
        let ownership = if let Some(cluster) = &shared.cluster {
            cluster.take_back(id, resumption_id).await
        } else {
            shared.sequence.give_back(id);
            Ok(Ownership::Local)
        };
        let source = match ownership {
            Ok(Ownership::Local) => IdSource::Local,
            Ok(Ownership::Migrated(migrated)) => IdSource::Migrated(migrated),
            Err(Refusal::InUse) => return Err(ResumeError::InUse),
            Err(Refusal::Unavailable) => return Err(ResumeError::Unavailable),
        };
        Ok(Self::of(shared, identity, source))
    }

    fn of(shared: &Arc<RelayShared>, identity: UserIdentity, source: IdSource) -> Self {
        Self {
            shared: shared.clone(),
            identity,
            source,
            is_registered: false,
        }
    }

    pub(super) fn identity(&self) -> UserIdentity {
        self.identity
    }

    /// Hands the id to the client that is registered with it, which gives the id up when it leaves.
    /// Returns what a migrated id needs for that.
    pub(super) fn registered(mut self) -> Option<Box<MigratedId>> {
        self.is_registered = true;
        let id = self.identity.id;
        // Another node may have claimed the id before the client was in the directory, where the claim
        // would have found it.
        let is_claimed = match (&self.source, &self.shared.cluster) {
            (IdSource::Migrated(migrated), _) => !migrated.is_current(),
            (IdSource::Local, Some(cluster)) => cluster.is_claimed(id),
            (IdSource::Local, None) | (IdSource::New, _) => false,
        };
        if is_claimed {
            self.shared.directory.revoke(self.identity);
        }
        match std::mem::replace(&mut self.source, IdSource::Local) {
            IdSource::Migrated(migrated) => Some(migrated),
            IdSource::New | IdSource::Local => None,
        }
    }
}

impl Drop for ReservedId {
    fn drop(&mut self) {
        // A migrated id gives itself up on Drop.
        if !self.is_registered && !matches!(self.source, IdSource::Migrated(_)) {
            self.shared.sequence.left(self.identity.id);
        }
    }
}
