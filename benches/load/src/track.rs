//! Which messages of one flow were sent and which have arrived. Judges order, loss and repetition;
//! knows of no socket and no clock.

use std::collections::{BTreeMap, VecDeque};

/// The numbers of one flow.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// The next number to arrive, if nothing goes wrong.
    next: u32,
    /// When those from `next` on were due, in order.
    due: VecDeque<u64>,
    /// Numbers below `next` that have not arrived: begin to end.
    missing: BTreeMap<u32, u32>,
    missing_count: u64,
}

/// What an arrival means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ArrivalOrder {
    /// The next, or one after others that are missing until they arrive after all.
    Ahead {
        /// When it was due.
        due: u64,
        /// How many were skipped.
        skipped: u32,
    },
    /// One that was missing: later ones have overtaken it.
    Overtaken,
    /// One that has arrived before.
    Again,
    /// One that was never sent.
    Unsent,
}

impl Track {
    /// The number of the next message.
    pub(super) fn upcoming(&self) -> u32 {
        let waiting = u32::try_from(self.due.len()).expect("a run ends before 2^32 messages");
        self.next + waiting
    }

    /// The number that should arrive next.
    pub(super) fn expected(&self) -> u32 {
        self.next
    }

    /// The next message is sent.
    pub(super) fn sent(&mut self, due: u64) {
        self.due.push_back(due);
    }

    /// The next one has arrived; when it was due. `None` if it was never sent.
    #[inline]
    pub(super) fn arrived_next(&mut self) -> Option<u64> {
        let due = self.due.pop_front()?;
        self.next += 1;
        Some(due)
    }

    /// Any one has arrived.
    pub(super) fn arrived(&mut self, number: u32) -> ArrivalOrder {
        if number >= self.upcoming() {
            return ArrivalOrder::Unsent;
        }
        if number < self.next {
            return if self.take_missing(number) {
                ArrivalOrder::Overtaken
            } else {
                ArrivalOrder::Again
            };
        }
        let skipped = number - self.next;
        if skipped > 0 {
            self.missing.insert(self.next, number);
            self.missing_count += u64::from(skipped);
            self.due.drain(..skipped as usize);
        }
        self.next = number;
        let due = self.arrived_next().expect("below what was sent");
        ArrivalOrder::Ahead { due, skipped }
    }

    fn take_missing(&mut self, number: u32) -> bool {
        let Some((&begin, &end)) = self.missing.range(..=number).next_back() else {
            return false;
        };
        if number >= end {
            return false;
        }
        self.missing.remove(&begin);
        for (begin, end) in [(begin, number), (number + 1, end)] {
            if begin < end {
                self.missing.insert(begin, end);
            }
        }
        self.missing_count -= 1;
        true
    }

    /// Sent, and neither arrived nor overtaken by later ones.
    pub(super) fn under_way(&self) -> u64 {
        self.due.len() as u64
    }

    /// Sent, and not arrived.
    pub(super) fn outstanding(&self) -> u64 {
        self.under_way() + self.missing_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sent: u64) -> Track {
        let mut track = Track::default();
        (0..sent).for_each(|due| track.sent(due));
        track
    }

    fn ahead(due: u64, skipped: u32) -> ArrivalOrder {
        ArrivalOrder::Ahead { due, skipped }
    }

    #[test]
    fn in_order_is_in_order() {
        let mut track = of(3);
        for number in 0..3 {
            assert_eq!(track.expected(), number);
            assert_eq!(track.arrived(number), ahead(u64::from(number), 0));
        }
        assert_eq!((track.upcoming(), track.outstanding()), (3, 0));
        assert_eq!(track.arrived_next(), None);
    }

    #[test]
    fn what_is_skipped_is_missing_until_it_arrives() {
        let mut track = of(10);
        assert_eq!(track.arrived(0), ahead(0, 0));
        assert_eq!(track.arrived(6), ahead(6, 5));
        assert_eq!((track.under_way(), track.outstanding()), (3, 8));
        assert_eq!(track.arrived(3), ArrivalOrder::Overtaken);
        assert_eq!(track.arrived(3), ArrivalOrder::Again);
        assert_eq!(track.arrived(1), ArrivalOrder::Overtaken);
        assert_eq!(track.arrived(5), ArrivalOrder::Overtaken);
        assert_eq!(track.outstanding(), 5, "2, 4, 7, 8 and 9");
        assert_eq!(track.arrived(7), ahead(7, 0));
        assert_eq!(track.arrived(6), ArrivalOrder::Again);
        assert_eq!(track.arrived(0), ArrivalOrder::Again);
        assert_eq!(track.arrived(10), ArrivalOrder::Unsent);
        assert_eq!(track.arrived(4), ArrivalOrder::Overtaken);
        assert_eq!(track.arrived(2), ArrivalOrder::Overtaken);
        assert_eq!(track.outstanding(), 2);
    }
}
