//! The places of ids that this node has looked up, at most `cluster.routes`: a cache, of which the oldest is
//! forgotten first. A place in it may be wrong; the node there then says so, and it is looked up again.

use std::collections::{HashMap, HashSet, VecDeque};

use super::envelope::Node;
use crate::identity::UserId;

#[derive(Debug)]
pub(super) struct Routes {
    max: usize,
    // Recipients are any numbers that peers write: the keys are hashed with a secret.
    nodes: HashMap<UserId, Node>,
    /// In the order in which they were added. Some were removed since.
    order: VecDeque<UserId>,
}

impl Routes {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            nodes: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn get(&self, id: UserId) -> Option<Node> {
        self.nodes.get(&id).copied()
    }

    pub(super) fn insert(&mut self, id: UserId, node: Node) {
        if self.nodes.insert(id, node).is_some() {
            return;
        }
        while self.nodes.len() > self.max {
            let oldest = self.order.pop_front();
            let oldest = oldest.expect("each id is in the order");
            self.nodes.remove(&oldest);
        }
        self.order.push_back(id);
        if self.order.len() > 2 * self.max {
            let nodes = &self.nodes;
            let mut seen = HashSet::new();
            // An id that was removed and added again is there twice.
            self.order
                .retain(|id| nodes.contains_key(id) && seen.insert(*id));
        }
    }

    /// The id is not on this node.
    pub(super) fn remove(&mut self, id: UserId, node: Node) {
        if self.get(id) == Some(node) {
            self.nodes.remove(&id);
        }
    }

    /// Nothing is on this node.
    pub(super) fn forget(&mut self, node: Node) {
        self.nodes.retain(|_, place| *place != node);
    }

    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> UserId {
        UserId::new(number).unwrap()
    }

    #[test]
    fn the_oldest_place_is_forgotten_first_and_the_order_stays_short() {
        let mut routes = Routes::new(3);
        for number in 1..=5 {
            routes.insert(id(number), Node(number));
        }
        let kept = |routes: &Routes| {
            (1..=5)
                .filter(|n| routes.get(id(*n)).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(&routes), [3, 4, 5]);
        let mut longest = 0;
        for _ in 0..100 {
            routes.remove(id(4), Node(4));
            assert_eq!(routes.get(id(4)), None);
            routes.insert(id(4), Node(4));
            longest = longest.max(routes.order.len());
        }
        assert_eq!(longest, 6);
        assert_eq!(routes.len(), 3);
    }

    #[test]
    fn only_the_node_that_an_id_is_thought_to_be_on_can_say_that_it_is_not() {
        let mut routes = Routes::new(3);
        routes.insert(id(1), Node(1));
        routes.insert(id(2), Node(2));
        routes.remove(id(1), Node(2));
        assert_eq!(routes.get(id(1)), Some(Node(1)));
        routes.insert(id(1), Node(2));
        routes.forget(Node(2));
        assert_eq!(routes.len(), 0);
    }
}
