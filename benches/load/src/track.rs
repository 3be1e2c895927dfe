//! Which messages of one flow were sent, and which have arrived. Judges order, loss and repetition. Knows of
//! no socket and no clock.

use std::collections::{BTreeMap, VecDeque};

/// The numbers of one flow.
#[derive(Debug, Default)]
pub(crate) struct Track {
    /// The number that arrives next, unless something goes wrong.
    next: u32,
    /// When the messages from `next` on were due, in order.
    due: VecDeque<u64>,
    /// Numbers below `next` that have not arrived: ranges, from the first to behind the last.
    missing: BTreeMap<u32, u32>,
    missing_count: u64,
}

/// How an arrival fits into the order of its flow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ArrivalOrder {
    /// The expected message, or a later one. The skipped ones are missing until they arrive.
    Advanced {
        /// When the message was due.
        due: u64,
        /// How many messages were skipped.
        skipped: u32,
    },
    /// A message that was missing: later ones have overtaken it.
    Late,
    /// A message that has arrived before.
    Duplicate,
    /// A message that was never sent.
    NeverSent,
}

impl Track {
    /// The number of the next message to send.
    pub(crate) fn upcoming(&self) -> u32 {
        let waiting = u32::try_from(self.due.len()).expect("a run ends before 2^32 messages");
        self.next + waiting
    }

    /// The number that should arrive next.
    pub(crate) fn expected(&self) -> u32 {
        self.next
    }

    /// Notes that the next message is sent.
    pub(crate) fn sent(&mut self, due: u64) {
        self.due.push_back(due);
    }

    /// Notes that the expected message has arrived. Returns when it was due, or `None` if it was never sent.
    #[inline]
    pub(crate) fn arrived_next(&mut self) -> Option<u64> {
        let due = self.due.pop_front()?;
        self.next += 1;
        Some(due)
    }

    /// Notes that the message of this number has arrived.
    pub(crate) fn arrived(&mut self, number: u32) -> ArrivalOrder {
        if number >= self.upcoming() {
            return ArrivalOrder::NeverSent;
        }
        if number < self.next {
            return if self.take_missing(number) {
                ArrivalOrder::Late
            } else {
                ArrivalOrder::Duplicate
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
        ArrivalOrder::Advanced { due, skipped }
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

    /// Messages that were sent and have neither arrived nor been overtaken by later ones.
    pub(crate) fn in_flight(&self) -> u64 {
        self.due.len() as u64
    }

    /// Messages that were sent and have not arrived.
    pub(crate) fn outstanding(&self) -> u64 {
        self.in_flight() + self.missing_count
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

    fn advanced(due: u64, skipped: u32) -> ArrivalOrder {
        ArrivalOrder::Advanced { due, skipped }
    }

    #[test]
    fn messages_in_order_advance_the_track() {
        let mut track = of(3);
        for number in 0..3 {
            assert_eq!(track.expected(), number);
            assert_eq!(track.arrived(number), advanced(u64::from(number), 0));
        }
        assert_eq!((track.upcoming(), track.outstanding()), (3, 0));
        assert_eq!(track.arrived_next(), None);
    }

    #[test]
    fn a_skipped_message_is_missing_until_it_arrives() {
        let mut track = of(10);
        assert_eq!(track.arrived(0), advanced(0, 0));
        assert_eq!(track.arrived(6), advanced(6, 5));
        assert_eq!((track.in_flight(), track.outstanding()), (3, 8));
        assert_eq!(track.arrived(3), ArrivalOrder::Late);
        assert_eq!(track.arrived(3), ArrivalOrder::Duplicate);
        assert_eq!(track.arrived(1), ArrivalOrder::Late);
        assert_eq!(track.arrived(5), ArrivalOrder::Late);
        assert_eq!(track.outstanding(), 5, "2, 4, 7, 8 and 9");
        assert_eq!(track.arrived(7), advanced(7, 0));
        assert_eq!(track.arrived(6), ArrivalOrder::Duplicate);
        assert_eq!(track.arrived(0), ArrivalOrder::Duplicate);
        assert_eq!(track.arrived(10), ArrivalOrder::NeverSent);
        assert_eq!(track.arrived(4), ArrivalOrder::Late);
        assert_eq!(track.arrived(2), ArrivalOrder::Late);
        assert_eq!(track.outstanding(), 2);
    }
}
