//! How much may be on its way to the NATS server at a time, and whether the server is still there. What
//! is published goes into one pipe, where nothing overtakes: the less is in it, the sooner the next one's
//! turn comes. A probe is a round trip behind all that was published before it. Must not know of NATS or of
//! locks.

use std::collections::VecDeque;

/// Probes in a full window.
const PROBES: usize = 4;

/// The bytes under way, and the probes among them.
#[derive(Debug)]
pub(super) struct Window {
    bytes_max: usize,
    sent: u64,
    returned: u64,
    unprobed: usize,
    probes: VecDeque<Probe>,
    next: u64,
    /// When the server was last heard of, microseconds.
    heard_at: u64,
}

#[derive(Debug)]
struct Probe {
    number: u64,
    sent_at: u64,
    /// What had been sent before it.
    behind: u64,
}

impl Window {
    pub(super) fn new(bytes_max: usize, now: u64) -> Self {
        Self {
            bytes_max,
            sent: 0,
            returned: 0,
            unprobed: 0,
            probes: VecDeque::new(),
            next: 0,
            heard_at: now,
        }
    }

    /// Bytes that may be sent now.
    pub(super) fn room(&self) -> usize {
        let under_way = usize::try_from(self.sent - self.returned).unwrap_or(usize::MAX);
        self.bytes_max.saturating_sub(under_way)
    }

    /// Notes that so much was published. Whether it is time for a probe.
    pub(super) fn sent(&mut self, bytes: usize) -> bool {
        self.sent += bytes as u64;
        self.unprobed += bytes;
        self.unprobed >= self.bytes_max / PROBES
    }

    /// Whether a probe is out.
    pub(super) fn is_probing(&self) -> bool {
        !self.probes.is_empty()
    }

    /// A round trip that begins now; its number.
    pub(super) fn probe(&mut self, now: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.unprobed = 0;
        self.probes.push_back(Probe {
            number,
            sent_at: now,
            behind: self.sent,
        });
        number
    }

    /// A probe has come back; how long it took, microseconds.
    pub(super) fn came_back(&mut self, number: u64, now: u64) -> Option<u64> {
        while let Some(probe) = self.probes.pop_front_if(|probe| probe.number <= number) {
            self.returned = probe.behind;
            self.heard_at = now;
            if probe.number == number {
                return Some(now.saturating_sub(probe.sent_at));
            }
        }
        None
    }

    /// For how long a probe is out and none has come back, microseconds.
    pub(super) fn silence(&self, now: u64) -> u64 {
        self.probes.front().map_or(0, |probe| {
            now.saturating_sub(probe.sent_at.max(self.heard_at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_opens_as_probes_come_back() {
        let mut window = Window::new(1000, 0);
        assert!(!window.sent(200));
        assert!(window.sent(100), "a quarter has no probe");
        let first = window.probe(10);
        assert!(window.sent(600));
        assert_eq!(window.room(), 100);
        let second = window.probe(20);
        window.sent(500);
        assert_eq!(window.room(), 0);
        assert_eq!(window.came_back(first, 30), Some(20));
        assert_eq!(window.room(), 0);
        assert_eq!(window.came_back(second, 50), Some(30));
        assert_eq!(window.room(), 500);
        assert_eq!(window.came_back(second, 60), None);
        assert!(!window.is_probing());
    }

    #[test]
    fn one_probe_speaks_for_those_before_it() {
        let mut window = Window::new(1000, 0);
        window.sent(300);
        let _lost = window.probe(10);
        window.sent(300);
        let second = window.probe(20);
        assert_eq!(window.came_back(second, 30), Some(10));
        assert_eq!(window.room(), 1000);
    }

    #[test]
    fn silence_counts_from_the_last_that_was_heard() {
        let mut window = Window::new(1000, 0);
        assert_eq!(window.silence(5000), 0, "nothing was asked");
        let first = window.probe(5000);
        window.probe(5500);
        assert_eq!(window.silence(6000), 1000);
        window.came_back(first, 6000);
        assert_eq!(window.silence(6400), 400);
    }
}
