//! Tells the nodes that had an id to look at its entry, until they have, or are dead.

use super::procedure::{Procedure, Tell};
use super::{Action, Registry};
use crate::cluster::envelope::{Node, Notice};
use crate::identity::UserId;

/// The time between two notices to a node that had an id.
const TELL_INTERVAL: u64 = 250_000;
/// How long, and how often, a node is told whose key is gone: longer than a server that was cut off from the
/// others can go on answering.
const DEAD_LINGER: u64 = 12_000_000;
const DEAD_INTERVAL: u64 = 2_000_000;

impl Registry {
    /// The key of a node is gone.
    pub(in crate::cluster) fn node_died(&mut self, node: Node, now: u64) {
        let is_told = |work: &Procedure| work.tells.iter().any(|tell| tell.node == node);
        let ids = self.procedures.iter().filter(|(_, work)| is_told(work));
        for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
            for tell in self
                .procedures
                .get_mut(&id)
                .into_iter()
                .flat_map(|work| &mut work.tells)
            {
                if tell.node == node {
                    tell.dead_until.get_or_insert(now + DEAD_LINGER);
                }
            }
            self.step(id, now);
        }
    }

    pub(super) fn tell(&mut self, id: UserId, now: u64) {
        let Some(work) = self.procedures.get_mut(&id) else {
            return;
        };
        work.tells
            .retain(|tell| tell.dead_until.is_none_or(|until| now < until));
        for tell in work.tells.iter_mut().filter(|tell| tell.next_at <= now) {
            let interval = if tell.dead_until.is_some() {
                DEAD_INTERVAL
            } else {
                TELL_INTERVAL
            };
            tell.next_at = now + interval;
            let Tell {
                node, nonce, over, ..
            } = *tell;
            let check = Notice::Check { id, nonce, over };
            self.actions.push_back(Action::Notify(node, check));
            self.actions.push_back(Action::ReadKey(tell.node));
        }
    }
}
