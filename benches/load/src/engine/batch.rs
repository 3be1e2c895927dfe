//! Users that come in numbers, all at once or a few at a time.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Engine, histogram};
use crate::BenchError;
use crate::connection::{Role, State};
use crate::number::nanos;

/// How long a crowd may take to come.
const TIMEOUT: Duration = Duration::from_mins(2);

/// How long one who was refused waits before it tries again.
const RETRY: Duration = Duration::from_millis(50);

/// How those come who come in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchPace {
    /// That many side by side; a refusal is a fault.
    Few(usize),
    /// All at once; who is refused tries again. LatencySummary is from the moment at which all began.
    AtOnce,
}

/// How they came.
#[derive(Debug)]
pub(crate) struct PeerBatch {
    /// How many are in.
    pub(crate) opened: u64,
    /// How often one was refused.
    pub(crate) refused: u64,
    /// The last refusal.
    pub(crate) refusal: Option<String>,
    /// How long it took from the first to the last, nanoseconds.
    pub(crate) took_ns: u64,
    /// From the beginning of each to its upgrade.
    pub(crate) latency: Histogram<u64>,
    /// The slots of those who are in.
    pub(crate) slots: Vec<usize>,
    /// When all began, where that counts.
    since: Option<u64>,
}

impl PeerBatch {
    pub(super) fn opened(&mut self, born: u64, now: u64) {
        let since = self.since.unwrap_or(born);
        self.opened += 1;
        self.latency.saturating_record((now - since).max(1));
    }

    pub(super) fn failed(&mut self, why: String) {
        self.refused += 1;
        self.refusal = Some(why);
    }

    fn done(&self) -> u64 {
        self.opened + self.refused
    }
}

impl Engine {
    /// Lets `count` users come, while all else goes on.
    pub(crate) fn gather(
        &mut self,
        count: usize,
        coming: BatchPace,
    ) -> Result<PeerBatch, BenchError> {
        let begin = self.now();
        let (side_by_side, since) = match coming {
            BatchPace::Few(few) => (few as u64, None),
            BatchPace::AtOnce => (u64::MAX, Some(begin)),
        };
        self.arrivals = Some(PeerBatch {
            opened: 0,
            refused: 0,
            refusal: None,
            took_ns: 0,
            latency: histogram(),
            slots: Vec::with_capacity(count),
            since,
        });
        let (mut tried, mut missed) = (0, 0);
        let mut again: VecDeque<u64> = VecDeque::new();
        let mut slots = Vec::with_capacity(count);
        let end = begin + nanos(TIMEOUT);
        loop {
            let arrivals = self.arrivals.as_ref().expect("set above");
            let (opened, refused, done) = (arrivals.opened, arrivals.refused, arrivals.done());
            if coming == BatchPace::AtOnce {
                (missed..refused).for_each(|_| again.push_back(self.now() + nanos(RETRY)));
                missed = refused;
            }
            let now = self.now();
            let is_over =
                opened == count as u64 || coming != BatchPace::AtOnce && done == count as u64;
            if is_over || now >= end {
                break;
            }
            let mut wanted = count as u64 - (tried - missed).min(count as u64);
            wanted -= again.len() as u64;
            while again.front().is_some_and(|due| *due <= now) {
                again.pop_front();
                wanted += 1;
            }
            for _ in 0..wanted
                .min(side_by_side.saturating_sub(tried - done))
                .min(AT_A_TURN)
            {
                slots.push(self.begin(Role::IdlePeer).map_err(BenchError::Connect)?);
                tried += 1;
            }
            self.turn(now + nanos(super::LOOK_AGAIN));
        }
        let mut arrivals = self.arrivals.take().expect("set above");
        arrivals.took_ns = self.now() - begin;
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|slot| self.connections[*slot].state == State::Open);
        arrivals.slots = slots;
        Ok(arrivals)
    }
}

/// Connections that are tried before the sockets are looked at again.
const AT_A_TURN: u64 = 32;
