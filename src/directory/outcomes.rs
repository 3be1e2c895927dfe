//! What another node is owed: an outcome for each message that it has sent here and wants to hear of.
//! The node is told in batches by whoever listens to the notifier. Must not know how an answer travels.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use rustc_hash::FxHasher;

use crate::protocol::Status;

/// Wakes one task, once for any number of notifications until it listens again.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    notified: AtomicBool,
    waker: AtomicWaker,
}

impl Notifier {
    /// Notifies; the waker to call, where the task waits and nobody else has notified it.
    #[must_use]
    pub(crate) fn notify(&self) -> Option<Waker> {
        if self.notified.swap(true, Ordering::AcqRel) {
            None
        } else {
            self.waker.take()
        }
    }

    /// Waits for a notification since the last time.
    pub(crate) fn poll_notified(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.notified.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

// Tokens are the other node's, which is one of ours: nobody chooses them to collide.
type Open = HashMap<u64, u64, BuildHasherDefault<FxHasher>>;

/// The answers that one other node is owed.
#[derive(Debug)]
pub(crate) struct PendingOutcomes {
    notifier: Arc<Notifier>,
    owed: Mutex<Owed>,
}

/// What the lock guards.
#[derive(Debug, Default)]
struct Owed {
    /// Messages that are not settled, by the node's own token, and since when, microseconds.
    open: Open,
    settled: Vec<(u64, Status)>,
}

impl PendingOutcomes {
    /// Nothing is owed; whoever is to send answers listens to the notifier.
    pub(crate) fn new(notifier: Arc<Notifier>) -> Self {
        Self {
            notifier,
            owed: Mutex::default(),
        }
    }

    /// Owes an answer from now on.
    pub(super) fn open(&self, token: u64, now: u64) {
        self.owed().open.insert(token, now);
    }

    /// Notes the answer. A node that asks twice by one token is told once.
    pub(super) fn settle(&self, token: u64, status: Status) -> Option<Waker> {
        let mut owed = self.owed();
        owed.open.remove(&token)?;
        owed.settled.push((token, status));
        drop(owed);
        self.notifier.notify()
    }

    /// The answers that were noted since this was last asked.
    pub(crate) fn take(&self) -> Vec<(u64, Status)> {
        std::mem::take(&mut self.owed().settled)
    }

    /// The messages that have not been settled since `before`.
    pub(crate) fn open_since(&self, before: u64) -> Vec<u64> {
        let owed = self.owed();
        let open = owed.open.iter().filter(|(_, since)| **since < before);
        open.map(|(token, _)| *token).collect()
    }

    /// Whether nothing is owed.
    pub(crate) fn is_settled(&self) -> bool {
        let owed = self.owed();
        owed.open.is_empty() && owed.settled.is_empty()
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
