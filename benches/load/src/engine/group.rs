//! The figures of one group of flows, by phase.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::number::nanos;

/// The step of the timelines.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The longest latency that a histogram holds, nanoseconds: five minutes, as long as the longest phase.
const LATENCY_NS_MAX: u64 = 300_000_000_000;

/// A histogram of nanoseconds, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants in order")
}

/// The figures of one group of flows. Each list has an entry for each phase.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// Messages that were sent.
    pub(crate) sent: Vec<u64>,
    /// Messages that arrived, by the phase of their arrival.
    pub(crate) arrived: Vec<u64>,
    /// Latencies, by the phase in which the message was due.
    pub(crate) latency: Vec<Histogram<u64>>,
    /// Messages that arrived, by tick of the whole run.
    pub(crate) timeline: Vec<u64>,
}

impl Group {
    pub(super) fn new(name: &'static str, phases: usize) -> Self {
        Self {
            name,
            sent: vec![0; phases],
            arrived: vec![0; phases],
            latency: (0..phases).map(|_| histogram()).collect(),
            timeline: Vec::new(),
        }
    }

    pub(super) fn begin_phase(&mut self) {
        self.sent.push(0);
        self.arrived.push(0);
        self.latency.push(histogram());
    }

    /// Counts an arrival at `now` in a phase and in the timeline.
    #[inline]
    pub(super) fn count_arrival(&mut self, phase: usize, now: u64) {
        self.arrived[phase] += 1;
        let tick = usize::try_from(now / nanos(TICK)).expect("a run ends before 2^32 ticks");
        if tick >= self.timeline.len() {
            self.timeline.resize(tick + 1, 0);
        }
        self.timeline[tick] += 1;
    }
}
