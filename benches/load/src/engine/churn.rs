//! Users who come, stay a moment and go, by a schedule.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Engine, histogram};
use crate::codec::CLOSE;
use crate::connection::{Role, State};
use crate::number::{float, nanos, whole};
use switchboard::protocol::close_code;

/// How long the server may take to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Churn that may be under way; beyond that the schedule skips one.
const UNDER_WAY_MAX: u64 = 2000;

/// Who comes and goes.
#[derive(Debug)]
pub(crate) struct Churn {
    pub(crate) opened: u64,
    /// Who left with a close handshake.
    pub(crate) left: u64,
    /// Whose close frame was not answered.
    pub(crate) cut_off: u64,
    /// Who did not get in, or was thrown out.
    pub(crate) failed: u64,
    /// Who did not even try, since so many were under way.
    pub(crate) skipped: u64,
    pub(crate) latency: Histogram<u64>,
    under_way: u64,
    comes: bool,
    interval_ns: f64,
    next: f64,
    hold_ns: u64,
    /// When whose time is over.
    staying: VecDeque<PeerDeadline>,
    /// When who has waited long enough for a close frame.
    leaving: VecDeque<PeerDeadline>,
}

/// One of them. A slot may have been given to another meanwhile: then it was born later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerDeadline {
    until: u64,
    slot: usize,
    born: u64,
}

impl Churn {
    pub(crate) fn new(per_second: u32, hold: Duration, now: u64) -> Self {
        Self {
            opened: 0,
            left: 0,
            cut_off: 0,
            failed: 0,
            skipped: 0,
            latency: histogram(),
            under_way: 0,
            comes: true,
            interval_ns: 1e9 / f64::from(per_second),
            next: float(now),
            hold_ns: nanos(hold),
            staying: VecDeque::new(),
            leaving: VecDeque::new(),
        }
    }

    /// Nobody comes any more.
    pub(crate) fn stop(&mut self) {
        self.comes = false;
    }

    pub(crate) fn under_way(&self) -> u64 {
        self.under_way
    }

    pub(super) fn opened(&mut self, slot: usize, born: u64, now: u64) {
        self.opened += 1;
        self.latency.saturating_record((now - born).max(1));
        let until = now + self.hold_ns;
        self.staying.push_back(PeerDeadline { until, slot, born });
    }

    pub(super) fn ended(&mut self, state: State) {
        self.under_way -= 1;
        match state {
            State::Leaving => self.left += 1,
            _ => self.failed += 1,
        }
    }

    /// How many are to come by now.
    fn due(&mut self, now: u64) -> u64 {
        let mut due = 0;
        while self.comes && whole(self.next) <= now {
            self.next += self.interval_ns;
            if self.under_way + due < UNDER_WAY_MAX {
                due += 1;
            } else {
                self.skipped += 1;
            }
        }
        due
    }

    fn soonest(&self) -> u64 {
        let next = self.comes.then(|| whole(self.next));
        let ends = [self.staying.front(), self.leaving.front()];
        let ends = ends.into_iter().flatten().map(|visit| visit.until);
        ends.chain(next).min().unwrap_or(u64::MAX)
    }
}

/// Takes the first that is over.
fn take_over(visits: &mut VecDeque<PeerDeadline>, now: u64) -> Option<PeerDeadline> {
    let is_over = visits.front()?.until <= now;
    is_over.then(|| visits.pop_front()).flatten()
}

impl Engine {
    /// Lets those come and go whose time it is; returns when the next one's is.
    pub(super) fn move_visitors(&mut self, now: u64) -> u64 {
        let Some(mut visitors) = self.visitors.take() else {
            return u64::MAX;
        };
        for _ in 0..visitors.due(now) {
            match self.begin(Role::ShortLived) {
                Ok(_) => visitors.under_way += 1,
                Err(error) => {
                    visitors.failed += 1;
                    self.faults.refused(|| format!("a visitor: {error}"));
                }
            }
        }
        while let Some(visit) = take_over(&mut visitors.staying, now) {
            if self.is_at(visit, State::Open) {
                self.connections[visit.slot].state = State::Leaving;
                let code = close_code::NORMAL.to_be_bytes();
                self.push_control(visit.slot, CLOSE, &code);
                let until = now + nanos(CLOSE_TIMEOUT);
                visitors.leaving.push_back(PeerDeadline { until, ..visit });
            }
        }
        while let Some(visit) = take_over(&mut visitors.leaving, now) {
            if self.is_at(visit, State::Leaving) {
                visitors.cut_off += 1;
                visitors.under_way -= 1;
                self.cut(&[visit.slot]);
            }
        }
        let soonest = visitors.soonest();
        self.visitors = Some(visitors);
        soonest
    }

    fn is_at(&self, visit: PeerDeadline, state: State) -> bool {
        let connection = &self.connections[visit.slot];
        connection.state == state && connection.born == visit.born
    }
}
