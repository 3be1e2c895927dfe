//! Registers a user of this node in the table of ids. The user is welcomed only after that.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::registry::{Join, Loss, Refusal};
use super::shared::Shared;
use crate::directory::Command;
use crate::identity::{UserId, UserIdentity};

/// A user's registration. Drop ends it.
pub(crate) struct Registration {
    shared: Arc<Shared>,
    id: UserId,
    nonce: u32,
}

impl Registration {
    /// Registers a user, and waits until the table has it and no earlier connection takes its messages. `is_new`:
    /// no user had the id before.
    pub(super) async fn create(
        shared: Arc<Shared>,
        identity: UserIdentity,
        is_new: bool,
    ) -> Result<Self, Refusal> {
        let UserIdentity { id, resumption_id } = identity;
        // Made first, so that a handshake that ends while it waits leaves again.
        let registration = Self {
            nonce: fastrand::u32(..),
            shared,
            id,
        };
        let shared = &registration.shared;
        let (reply, replied) = oneshot::channel();
        let join = Join {
            nonce: registration.nonce,
            resumption_id,
            is_new,
            until: 0,
            is_unsure: false,
            reply,
        };
        let now = shared.now();
        if !shared.registry().has_room(now) {
            return Err(Refusal::Unavailable);
        }
        shared.registry().join(id, join, now);
        shared.ask();
        // Nobody looks at the time while there is no link.
        let replied = timeout(shared.join_timeout(), replied).await;
        replied.map_or(Err(Refusal::Unavailable), |replied| {
            // The sender is dropped only with the node.
            replied.unwrap_or(Err(Refusal::Unavailable))
        })?;
        Ok(registration)
    }

    /// The client is in the directory. Returns how it has to end, if another connection has got the id meanwhile.
    pub(crate) fn seated(&self) -> Option<Command> {
        let shared = &self.shared;
        let loss = shared.registry().seated(self.id, self.nonce, shared.now());
        shared.ask();
        loss.map(Loss::end)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let shared = &self.shared;
        let was_here = shared.registry().leave(self.id, self.nonce, shared.now());
        // The others learn it now, and not by a message that comes too late.
        if was_here && shared.peers.note_gone(self.id) {
            shared.publish();
        }
        shared.ask();
    }
}
