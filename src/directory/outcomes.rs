//! The outcomes that this node owes another one: one for each message that came from there and asked
//! for it. A task of the cluster waits for the notifier and sends them in batches. Must not know how an
//! outcome travels.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use rustc_hash::FxHasher;

use super::wake::Notifier;
use crate::protocol::Status;

// Tokens come from another node of this cluster, so no peer can choose them to collide.
type Open = HashMap<u64, u64, BuildHasherDefault<FxHasher>>;

/// The outcomes that one other node is owed.
#[derive(Debug)]
pub(crate) struct PendingOutcomes {
    notifier: Arc<Notifier>,
    owed: Mutex<Owed>,
}

/// State behind the lock.
#[derive(Debug, Default)]
struct Owed {
    /// Messages that are not settled, by the other node's token, with the time of arrival in
    /// microseconds of the app's clock.
    open: Open,
    settled: Vec<(u64, Status)>,
}

impl PendingOutcomes {
    /// Nothing is owed yet. Each settled message notifies `notifier`.
    pub(crate) fn new(notifier: Arc<Notifier>) -> Self {
        Self {
            notifier,
            owed: Mutex::default(),
        }
    }

    /// Owes an outcome for the token from now on; `now` is in microseconds of the app's clock.
    pub(super) fn open(&self, token: u64, now: u64) {
        self.owed.lock().open.insert(token, now);
    }

    /// Adds the outcome of a message. A token that the node used twice gets one outcome.
    pub(super) fn settle(&self, token: u64, status: Status) -> Option<Waker> {
        let mut owed = self.owed.lock();
        owed.open.remove(&token)?;
        owed.settled.push((token, status));
        drop(owed);
        self.notifier.notify()
    }

    /// Takes the outcomes that were added since the last call.
    pub(crate) fn take(&self) -> Vec<(u64, Status)> {
        std::mem::take(&mut self.owed.lock().settled)
    }

    /// The tokens of messages that arrived before `before` and are not settled.
    pub(crate) fn open_since(&self, before: u64) -> Vec<u64> {
        let owed = self.owed.lock();
        let open = owed.open.iter().filter(|(_, since)| **since < before);
        open.map(|(token, _)| *token).collect()
    }

    /// Whether nothing is owed.
    pub(crate) fn is_settled(&self) -> bool {
        let owed = self.owed.lock();
        owed.open.is_empty() && owed.settled.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_owed_until_it_is_taken() {
        let outcomes = PendingOutcomes::new(Arc::default());
        assert!(outcomes.is_settled());
        outcomes.open(1, 10);
        assert!(outcomes.open_since(10).is_empty());
        assert_eq!(outcomes.open_since(11), [1]);
        assert!(!outcomes.is_settled());
        // The second is of a token that was used twice.
        drop(outcomes.settle(1, Status::Delivered));
        drop(outcomes.settle(1, Status::Offline));
        assert!(outcomes.open_since(11).is_empty());
        assert!(!outcomes.is_settled());
        assert_eq!(outcomes.take(), [(1, Status::Delivered)]);
        assert!(outcomes.is_settled());
    }
}
