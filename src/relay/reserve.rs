//! An id on its way to a user that joins: a new one, or the one that the user had before. In a cluster it is
//! registered first, so that no other connection has it on any node.

use std::sync::Arc;

use super::shared::RelayShared;
use crate::cluster::{Refusal, Registration};
use crate::identity::{ResumptionId, UserIdentity};

/// New ids that are tried for one user. Others have them only if NATS has lost which blocks were leased.
const ATTEMPTS: u32 = 64;
/// After so many attempts the rest of the block is given up.
const ATTEMPTS_IN_BLOCK: u32 = 8;

/// Why a user gets no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReserveError {
    /// Another user has the id.
    InUse,
    /// No new id is left.
    NoId,
    /// It cannot be registered now.
    Unavailable,
}

/// An id that no other user gets meanwhile. Drop gives it up.
pub(super) struct ReservedId {
    pub(super) identity: UserIdentity,
    /// Set in a cluster.
    pub(super) registration: Option<Box<Registration>>,
}

impl ReservedId {
    /// A new id, with a new resumption id.
    pub(super) async fn next(shared: &Arc<RelayShared>) -> Result<Self, ReserveError> {
        for attempt in 1..=ATTEMPTS {
            let cluster = shared.cluster.as_ref();
            if cluster.is_some_and(|cluster| !cluster.can_register()) {
                // Before an id is used up for it.
                return Err(ReserveError::Unavailable);
            }
            let identity = UserIdentity {
                id: shared.sequence.next().ok_or(ReserveError::NoId)?,
                resumption_id: ResumptionId::new(),
            };
            match Self::register(shared, identity, true).await {
                Err(ReserveError::InUse) if attempt % ATTEMPTS_IN_BLOCK == 0 => {
                    shared.sequence.skip_block();
                }
                Err(ReserveError::InUse) => {}
                reserved => return reserved,
            }
        }
        Err(ReserveError::NoId)
    }

    /// The id that a user had before.
    pub(super) async fn take_back(
        shared: &Arc<RelayShared>,
        identity: UserIdentity,
    ) -> Result<Self, ReserveError> {
        shared.sequence.give_back(identity.id);
        Self::register(shared, identity, false).await
    }

    async fn register(
        shared: &Arc<RelayShared>,
        identity: UserIdentity,
        is_new: bool,
    ) -> Result<Self, ReserveError> {
        let registration = match &shared.cluster {
            Some(cluster) => {
                let registered = cluster.register(identity, is_new).await;
                Some(Box::new(registered.map_err(ReserveError::from)?))
            }
            None => None,
        };
        Ok(Self {
            identity,
            registration,
        })
    }
}

impl From<Refusal> for ReserveError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::InUse => Self::InUse,
            Refusal::Unavailable => Self::Unavailable,
        }
    }
}
