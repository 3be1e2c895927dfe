//! Other nodes as receivers of answers: what each is owed, and by which link its messages come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::envelope::{Answer, Node};
use crate::directory::{Notifier, PendingOutcomes};
use crate::identity::UserId;

/// The most ids that a node is told at a time that are not here. Of the others it learns when it writes to them.
const GONE_MAX: usize = 65_536;

/// A node whose link was confirmed by its key.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) answers: Arc<PendingOutcomes>,
    /// What else the node is to be told.
    notes: Mutex<Notes>,
    /// Its present link: messages of others are late, or forged.
    link: AtomicU64,
    /// When it was last heard of, microseconds.
    pub(super) heard_at: AtomicU64,
}

#[derive(Debug, Default)]
struct Notes {
    answers: Vec<Answer>,
    /// Ids that are not here.
    gone: BTreeSet<UserId>,
}

/// The nodes that send something here.
#[derive(Debug)]
pub(super) struct Peers {
    // In order, so that a run is the same each time with the same seed. There are few.
    all: ArcSwap<BTreeMap<Node, Arc<Peer>>>,
    notifier: Arc<Notifier>,
}

impl Peers {
    pub(super) fn new(notifier: Arc<Notifier>) -> Self {
        Self {
            all: ArcSwap::default(),
            notifier,
        }
    }

    pub(super) fn get(&self, node: Node) -> Option<Arc<Peer>> {
        self.all.load().get(&node).cloned()
    }

    pub(super) fn all(&self) -> Arc<BTreeMap<Node, Arc<Peer>>> {
        self.all.load_full()
    }

    /// Takes messages of a node by this link from now on, and by no other.
    pub(super) fn accept(&self, node: Node, link: u64, now: u64) {
        if let Some(peer) = self.get(node) {
            return peer.link.store(link, Ordering::Release);
        }
        let peer = Arc::new(Peer {
            answers: Arc::new(PendingOutcomes::new(self.notifier.clone())),
            notes: Mutex::default(),
            link: AtomicU64::new(link),
            heard_at: AtomicU64::new(now),
        });
        self.all.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.insert(node, peer.clone());
            all
        });
    }

    /// Notes for all that an id is not here any more. Whether there is any to be told.
    pub(super) fn note_gone(&self, id: UserId) -> bool {
        let all = self.all.load();
        all.values().for_each(|peer| peer.note_gone(id));
        !all.is_empty()
    }

    /// Forgets those that were not heard of since `before` and are owed nothing.
    pub(super) fn forget(&self, before: u64) {
        let is_gone = |peer: &Peer| {
            peer.heard_at.load(Ordering::Relaxed) < before && peer.answers.is_settled()
        };
        if self.all.load().values().any(|peer| is_gone(peer)) {
            self.all.rcu(|all| {
                let mut all = BTreeMap::clone(all);
                all.retain(|_, peer| !is_gone(peer));
                all
            });
        }
    }

    /// Notes for each node which of its messages have been here since before `before` and are not settled. Whether
    /// there is any.
    pub(super) fn note_held(&self, before: u64) -> bool {
        let mut any = false;
        for peer in self.all.load().values() {
            let open = peer.answers.open_since(before);
            any |= !open.is_empty();
            peer.notes
                .lock()
                .answers
                .extend(open.into_iter().map(Answer::Held));
        }
        any
    }
}

impl Peer {
    pub(super) fn has_link(&self, link: u64) -> bool {
        self.link.load(Ordering::Acquire) == link
    }

    pub(super) fn note_seen(&self, link: u64, mark: u64) {
        self.notes.lock().answers.push(Answer::Seen { link, mark });
    }

    /// Notes that an id is not here.
    pub(super) fn note_gone(&self, id: UserId) {
        let mut notes = self.notes.lock();
        if notes.gone.len() < GONE_MAX {
            notes.gone.insert(id);
        }
    }

    /// All that the node is to be told.
    pub(super) fn take_answers(&self) -> Vec<Answer> {
        let Notes { mut answers, gone } = std::mem::take(&mut *self.notes.lock());
        answers.extend(gone.into_iter().map(Answer::Gone));
        let settled = self.answers.take().into_iter();
        answers.extend(settled.map(|(token, status)| Answer::Settled(token, status)));
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Receipt, Wakes};
    use crate::protocol::Status;

    #[test]
    fn a_node_that_was_not_heard_of_is_forgotten_when_it_is_owed_nothing() {
        let peers = Peers::new(Arc::default());
        for (node, now) in [(1, 10), (2, 20), (3, 10)] {
            peers.accept(Node(node), 7, now);
        }
        let known = || peers.all().keys().map(|node| node.0).collect::<Vec<_>>();
        let owing = peers.get(Node(3)).unwrap();
        let receipt = Receipt::to_node(Some((owing.answers.clone(), 9)), None, 10).unwrap();
        peers.forget(10);
        assert_eq!(known(), [1, 2, 3]);
        peers.forget(11);
        assert_eq!(known(), [2, 3]);
        receipt.settle(Status::Delivered, &mut Wakes::default());
        peers.forget(11);
        assert_eq!(known(), [2, 3], "its answer was not taken");
        let answers = owing.take_answers();
        assert!(matches!(*answers, [Answer::Settled(9, Status::Delivered)]));
        peers.forget(11);
        assert_eq!(known(), [2]);
    }
}
