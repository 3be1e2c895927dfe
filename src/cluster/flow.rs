//! What goes to one other node by the present link: how much of it the node has read, and which lines wait for it.
//! The node has to take the link's number first. Must not know of the queue.

use std::collections::VecDeque;

use crate::identity::UserId;

/// The time between two greetings of a node.
const GREETING_INTERVAL: u64 = 250_000;
/// It is looked so many times less often at a node that owes nothing.
const IDLE: u64 = 4;

#[derive(Debug)]
pub(super) struct Flow {
    is_open: bool,
    greeted_at: Option<u64>,
    /// When it was last looked whether the node lives.
    polled_at: u64,
    /// The mark of what was sent last.
    sent: u64,
    /// The mark up to which the node has read.
    seen: u64,
    /// When the node was last heard of, or waited for without an answer, microseconds.
    heard_at: u64,
    /// Users whose turn has come while there was no room.
    parked: VecDeque<UserId>,
    pub(super) parked_bytes: usize,
}

impl Flow {
    /// A flow that is to be opened; its marks begin at `mark`.
    pub(super) fn new(mark: u64, now: u64) -> Self {
        Self {
            is_open: false,
            greeted_at: None,
            polled_at: now,
            sent: mark,
            seen: mark,
            heard_at: now,
            parked: VecDeque::new(),
            parked_bytes: 0,
        }
    }

    pub(super) fn is_opening(&self) -> bool {
        !self.is_open
    }

    /// Whether something may be sent.
    pub(super) fn has_room(&self, bytes_max: usize) -> bool {
        self.is_open && self.sent - self.seen < bytes_max as u64
    }

    /// So much is sent; the mark behind it.
    pub(super) fn send(&mut self, bytes: u64) -> u64 {
        self.sent += bytes;
        self.sent
    }

    pub(super) fn park(&mut self, id: UserId, bytes: usize) {
        self.parked.push_back(id);
        self.parked_bytes += bytes;
    }

    pub(super) fn take_parked(&mut self) -> Vec<UserId> {
        self.parked_bytes = 0;
        std::mem::take(&mut self.parked).into()
    }

    /// The node takes the link. Returns those who have waited.
    pub(super) fn open(&mut self, now: u64) -> Vec<UserId> {
        self.is_open = true;
        self.heard_at = now;
        self.take_parked()
    }

    /// The node takes nothing.
    pub(super) fn close(&mut self, now: u64) {
        if self.is_open {
            (self.is_open, self.greeted_at, self.heard_at) = (false, None, now);
            self.seen = self.sent;
        }
    }

    /// The node has read up to this mark. Returns those who have waited for that.
    pub(super) fn seen(&mut self, mark: u64, now: u64) -> Vec<UserId> {
        if !self.is_open || mark > self.sent || mark < self.seen {
            return Vec::new();
        }
        (self.seen, self.heard_at) = (mark, now);
        self.take_parked()
    }

    /// Whether the node is to be greeted, from time to time while it has not answered. It counts as greeted then.
    pub(super) fn is_to_be_greeted(&mut self, now: u64) -> bool {
        let is_due = self
            .greeted_at
            .is_none_or(|at| now >= at + GREETING_INTERVAL);
        let is_meant = !self.is_open && is_due && !self.parked.is_empty();
        if is_meant {
            self.greeted_at = Some(now);
        }
        is_meant
    }

    /// Whether it is to be looked whether the node lives: it was not heard of or looked at for so long. It counts as
    /// looked at then. Also a node that owes nothing, so that messages do not go to a dead one for as long as its
    /// places are remembered.
    pub(super) fn is_to_be_polled(&mut self, now: u64, interval: u64) -> bool {
        let owes = self.sent != self.seen || self.is_awaited();
        let interval = if owes { interval } else { IDLE * interval };
        let is_meant = now >= self.heard_at.max(self.polled_at) + interval;
        if is_meant {
            self.polled_at = now;
        }
        is_meant
    }

    /// Whether the node was not heard of for so long.
    pub(super) fn is_silent(&self, now: u64, patience: u64) -> bool {
        now >= self.heard_at + patience
    }

    /// Whether a user waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Takes what was under way for lost if the node was silent for so long and somebody waits. Returns those.
    pub(super) fn give_up(&mut self, now: u64, patience: u64) -> Vec<UserId> {
        if now < self.heard_at + patience || self.parked.is_empty() {
            return Vec::new();
        }
        (self.seen, self.heard_at) = (self.sent, now);
        self.take_parked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_flow() -> Flow {
        let mut flow = Flow::new(1000, 0);
        assert!(flow.is_opening() && !flow.has_room(1));
        assert_eq!(flow.open(0), []);
        flow
    }

    fn ann() -> UserId {
        UserId::new(1).unwrap()
    }

    #[test]
    fn a_node_makes_room_by_what_it_has_read() {
        let mut flow = open_flow();
        assert_eq!((flow.send(60), flow.has_room(100)), (1060, true));
        assert_eq!((flow.send(40), flow.has_room(100)), (1100, false));
        flow.park(ann(), 7);
        assert_eq!(flow.seen(1060, 1), [ann()]);
        assert!(flow.has_room(41) && !flow.has_room(40));
        assert_eq!(flow.parked_bytes, 0);
    }

    /// Answers can overtake each other, and a node may say anything.
    #[test]
    fn a_mark_from_before_or_of_nothing_sent_changes_nothing() {
        let mut flow = open_flow();
        flow.send(60);
        flow.send(40);
        assert_eq!(flow.seen(1100, 1), []);
        flow.park(ann(), 7);
        for odd in [0, 1060, 1101, u64::MAX] {
            assert_eq!(flow.seen(odd, 2), []);
            assert!(flow.has_room(1), "{odd}");
        }
        assert!(flow.is_awaited() && flow.is_silent(10, 9) && !flow.is_silent(9, 9));
    }

    #[test]
    fn a_node_that_says_nothing_is_given_up_once() {
        let mut flow = open_flow();
        flow.send(60);
        assert_eq!(flow.give_up(100, 50), [], "nobody waits");
        flow.park(ann(), 7);
        assert_eq!(flow.give_up(49, 50), []);
        assert_eq!(flow.give_up(50, 50), [ann()]);
        assert!(flow.has_room(1), "what was under way is lost");
        flow.park(ann(), 7);
        assert_eq!(flow.give_up(99, 50), []);
    }

    #[test]
    fn a_node_that_owes_nothing_is_looked_at_less_often() {
        let mut flow = open_flow();
        assert!(!flow.is_to_be_polled(39, 10) && flow.is_to_be_polled(40, 10));
        flow.send(1);
        assert!(!flow.is_to_be_polled(49, 10) && flow.is_to_be_polled(50, 10));
        flow.seen(1001, 60);
        assert!(!flow.is_to_be_polled(99, 10) && flow.is_to_be_polled(100, 10));
    }

    #[test]
    fn a_node_is_greeted_again_while_somebody_waits() {
        let mut flow = Flow::new(0, 0);
        assert!(!flow.is_to_be_greeted(5), "nobody waits");
        flow.park(ann(), 7);
        assert!(flow.is_to_be_greeted(5) && !flow.is_to_be_greeted(5 + GREETING_INTERVAL - 1));
        assert!(flow.is_to_be_greeted(5 + GREETING_INTERVAL));
        assert_eq!(flow.open(6), [ann()]);
        flow.park(ann(), 7);
        assert!(!flow.is_to_be_greeted(u64::MAX), "it has answered");
        flow.close(7);
        assert!(flow.is_to_be_greeted(8), "the next link is another one");
    }
}
