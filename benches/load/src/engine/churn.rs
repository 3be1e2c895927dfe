//! The schedule of short-lived peers: when the next one connects, and when each one leaves. Knows of no
//! socket.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::group::histogram;
use crate::connection::State;
use crate::number::{float, nanos, whole};

/// How long the server may take to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Short-lived peers that may be connected at a time. Beyond that the schedule skips peers.
const CONNECTED_MAX: u64 = 2000;

/// The short-lived peers: counts, and the schedule.
#[derive(Debug)]
pub(crate) struct Churn {
    /// Peers that were upgraded.
    pub(crate) opened: u64,
    /// Peers that left with a close handshake.
    pub(crate) left: u64,
    /// Peers that sent a close frame and got no answer in time.
    pub(crate) unanswered: u64,
    /// Peers that the schedule skipped, because too many were connected.
    pub(crate) skipped: u64,
    /// From the beginning of each connection to its upgrade.
    pub(crate) latency: Histogram<u64>,
    connected: u64,
    is_stopped: bool,
    interval_ns: f64,
    next: f64,
    hold_ns: u64,
    /// When each peer sends its close frame.
    closing_times: VecDeque<PeerDeadline>,
    /// When the wait for the server's close frame ends.
    close_timeouts: VecDeque<PeerDeadline>,
}

/// A deadline of one peer. The slot may belong to another connection by then: that one was born later.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerDeadline {
    pub(super) slot: usize,
    pub(super) born: u64,
    at: u64,
}

impl Churn {
    pub(crate) fn new(per_second: u32, hold: Duration, now: u64) -> Self {
        Self {
            opened: 0,
            left: 0,
            unanswered: 0,
            skipped: 0,
            latency: histogram(),
            connected: 0,
            is_stopped: false,
            interval_ns: 1e9 / f64::from(per_second),
            next: float(now),
            hold_ns: nanos(hold),
            closing_times: VecDeque::new(),
            close_timeouts: VecDeque::new(),
        }
    }

    /// No further peer connects.
    pub(crate) fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Peers that are connecting, connected or leaving.
    pub(crate) fn connected(&self) -> u64 {
        self.connected
    }

    /// Returns how many peers are to connect by now.
    pub(super) fn due(&mut self, now: u64) -> u64 {
        let mut due = 0;
        while !self.is_stopped && whole(self.next) <= now {
            self.next += self.interval_ns;
            if self.connected + due < CONNECTED_MAX {
                due += 1;
            } else {
                self.skipped += 1;
            }
        }
        due
    }

    /// A peer begins to connect.
    pub(super) fn begun(&mut self) {
        self.connected += 1;
    }

    /// A peer is upgraded.
    pub(super) fn opened(&mut self, slot: usize, born: u64, now: u64) {
        self.opened += 1;
        self.latency.saturating_record((now - born).max(1));
        let at = now + self.hold_ns;
        self.closing_times
            .push_back(PeerDeadline { slot, born, at });
    }

    /// A peer sends its close frame.
    pub(super) fn leaving(&mut self, peer: PeerDeadline, now: u64) {
        let at = now + nanos(CLOSE_TIMEOUT);
        self.close_timeouts.push_back(PeerDeadline { at, ..peer });
    }

    /// The server has not answered the close frame of a peer.
    pub(super) fn unanswered(&mut self) {
        self.unanswered += 1;
        self.connected -= 1;
    }

    /// The connection of a peer has ended in this state.
    pub(super) fn ended(&mut self, state: State) {
        self.connected -= 1;
        if state == State::Leaving {
            self.left += 1;
        }
    }

    /// Takes a peer that is to leave by now.
    pub(super) fn take_closing(&mut self, now: u64) -> Option<PeerDeadline> {
        take_due(&mut self.closing_times, now)
    }

    /// Takes a peer that has waited for the server's close frame for long enough.
    pub(super) fn take_unanswered(&mut self, now: u64) -> Option<PeerDeadline> {
        take_due(&mut self.close_timeouts, now)
    }

    /// When the next event of the schedule is due.
    pub(super) fn next_event(&self) -> u64 {
        let connect = (!self.is_stopped).then(|| whole(self.next));
        let deadlines = [self.closing_times.front(), self.close_timeouts.front()];
        let deadlines = deadlines.into_iter().flatten().map(|peer| peer.at);
        deadlines.chain(connect).min().unwrap_or(u64::MAX)
    }
}

/// Takes the first deadline if it is due. The deadlines are in order, because all wait equally long.
fn take_due(deadlines: &mut VecDeque<PeerDeadline>, now: u64) -> Option<PeerDeadline> {
    let is_due = deadlines.front()?.at <= now;
    is_due.then(|| deadlines.pop_front()).flatten()
}
