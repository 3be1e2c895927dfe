//! A schedule: when the next message of some flows is due.

use crate::number::{float, whole};

/// Sends on each of its flows in turn, at a fixed rate for all of them together.
#[derive(Debug)]
pub(crate) struct Pacer {
    flows: Vec<usize>,
    /// Index of the flow whose turn is next.
    turn: usize,
    interval_ns: f64,
    /// When the next message is due. Fractions of a nanosecond add up to the exact rate.
    next: f64,
}

impl Pacer {
    pub(super) fn new(flows: Vec<usize>, per_second: u32, now: u64) -> Self {
        Self {
            flows,
            turn: 0,
            interval_ns: 1e9 / f64::from(per_second),
            next: float(now),
        }
    }

    /// When the next message is due.
    pub(super) fn due(&self) -> u64 {
        whole(self.next)
    }

    /// Moves on to the next message; returns the flow of this one.
    pub(super) fn advance(&mut self) -> usize {
        let flow = self.flows[self.turn];
        self.turn = (self.turn + 1) % self.flows.len();
        self.next += self.interval_ns;
        flow
    }
}
