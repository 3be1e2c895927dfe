//! A batch of idle peers that connect: attempts, refusals and retries. Knows of no socket.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::group::histogram;
use crate::number::nanos;

/// How long a peer waits after a refusal before it tries again.
const RETRY: Duration = Duration::from_millis(50);

/// How fast the peers of a batch connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchPace {
    /// At most so many attempts at a time. A refused peer does not try again.
    Limited(usize),
    /// All at once. A refused peer tries again. Latency counts from the beginning of the batch.
    AllAtOnce,
}

/// A batch of peers that connect.
#[derive(Debug)]
pub(crate) struct PeerBatch {
    /// Peers that are connected and upgraded.
    pub(crate) opened: u64,
    /// Attempts that the server refused.
    pub(crate) refused: u64,
    /// The server's last refusal.
    pub(crate) refusal: Option<String>,
    /// How long the whole batch took, nanoseconds.
    pub(crate) took_ns: u64,
    /// From the beginning of each attempt to its upgrade, or from the beginning of the batch.
    pub(crate) latency: Histogram<u64>,
    /// The slots of the peers that are connected.
    pub(crate) slots: Vec<usize>,
    count: u64,
    pace: BatchPace,
    begin: u64,
    attempts: u64,
    /// When each refused peer tries again.
    retries: VecDeque<u64>,
}

impl PeerBatch {
    pub(super) fn new(count: usize, pace: BatchPace, begin: u64) -> Self {
        Self {
            opened: 0,
            refused: 0,
            refusal: None,
            took_ns: 0,
            latency: histogram(),
            slots: Vec::new(),
            count: count as u64,
            pace,
            begin,
            attempts: 0,
            retries: VecDeque::new(),
        }
    }

    /// An attempt that began at `born` is upgraded.
    pub(super) fn opened(&mut self, born: u64, now: u64) {
        let since = match self.pace {
            BatchPace::Limited(_) => born,
            BatchPace::AllAtOnce => self.begin,
        };
        self.opened += 1;
        self.latency.saturating_record((now - since).max(1));
    }

    /// An attempt has failed.
    pub(super) fn failed(&mut self, why: String, now: u64) {
        self.refused += 1;
        self.refusal = Some(why);
        if self.pace == BatchPace::AllAtOnce {
            self.retries.push_back(now + nanos(RETRY));
        }
    }

    pub(super) fn is_over(&self) -> bool {
        let ended = match self.pace {
            BatchPace::Limited(_) => self.opened + self.refused,
            BatchPace::AllAtOnce => self.opened,
        };
        ended >= self.count
    }

    /// Takes up to `most` attempts that may begin now; returns how many.
    pub(super) fn take_attempts(&mut self, now: u64, most: u64) -> u64 {
        while self.retries.front().is_some_and(|due| *due <= now) {
            self.retries.pop_front();
        }
        let connecting = self.attempts - self.opened - self.refused;
        let (not_to_begin, connecting_max) = match self.pace {
            BatchPace::Limited(max) => (self.refused, max as u64),
            BatchPace::AllAtOnce => (self.retries.len() as u64, u64::MAX),
        };
        let begins = self
            .count
            .saturating_sub(connecting + self.opened + not_to_begin)
            .min(connecting_max.saturating_sub(connecting))
            .min(most);
        self.attempts += begins;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_batch_counts_a_refused_peer_as_done() {
        let mut batch = PeerBatch::new(3, BatchPace::Limited(2), 0);
        assert_eq!(batch.take_attempts(0, 32), 2);
        assert_eq!(batch.take_attempts(0, 32), 0, "two are connecting");
        batch.failed("503".to_owned(), 1);
        assert_eq!(batch.take_attempts(1, 32), 1);
        batch.opened(0, 2);
        assert!(!batch.is_over());
        batch.opened(1, 3);
        assert!(batch.is_over());
        assert_eq!(batch.take_attempts(nanos(RETRY) * 2, 32), 0);
    }

    #[test]
    fn all_at_once_tries_a_refused_peer_again_after_a_pause() {
        let mut batch = PeerBatch::new(40, BatchPace::AllAtOnce, 0);
        assert_eq!(batch.take_attempts(0, 32), 32);
        assert_eq!(batch.take_attempts(0, 32), 8);
        batch.failed("503".to_owned(), 5);
        assert_eq!(batch.take_attempts(5, 32), 0, "it waits");
        assert_eq!(batch.take_attempts(5 + nanos(RETRY), 32), 1);
        (0..40).for_each(|_| batch.opened(0, 9));
        assert!(batch.is_over());
    }
}
