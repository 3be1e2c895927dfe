//! Sends messages: at once, as a window that refills itself, or by a schedule.

use std::time::Duration;

use super::Engine;
use crate::BenchError;
use crate::codec;
use crate::flow::{MessageFlow, Route};
use crate::label::FLOWS_MAX;
use crate::number::whole;

/// Sends on each of its flows in turn, at a fixed rate in all.
#[derive(Debug)]
pub(crate) struct Pacer {
    flows: Vec<usize>,
    turn: usize,
    interval_ns: f64,
    next: f64,
}

impl Pacer {
    pub(crate) fn new(flows: Vec<usize>, per_second: u32, now: u64) -> Self {
        Self {
            flows,
            turn: 0,
            interval_ns: 1e9 / f64::from(per_second),
            next: crate::number::float(now),
        }
    }
}

/// How long a message may take when nothing else happens.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// A conversation between two connections whose ids are known.
    pub(crate) fn add_flow(
        &mut self,
        source: usize,
        sink: usize,
        group: usize,
        size: usize,
    ) -> Result<usize, BenchError> {
        let index = self.flows.len();
        let (Some(sender), Some(recipient)) = (self.id(source), self.id(sink)) else {
            return Err(BenchError::UnknownIds);
        };
        assert!(index < FLOWS_MAX, "more flows than connections can be open");
        let route = Route {
            source,
            sink,
            sender,
            recipient,
        };
        self.flows.push(MessageFlow::new(index, route, group, size));
        Ok(index)
    }

    /// Sends one message, unless too much waits already.
    #[inline]
    pub(super) fn send(&mut self, flow: usize, due: u64) {
        let flow = &mut self.flows[flow];
        let slot = flow.route.source;
        let connection = &mut self.connections[slot];
        if !connection.is_open() || connection.backlog() > flow.backlog_bytes_max {
            flow.withheld += 1;
            return;
        }
        flow.push_next(connection.out(), due);
        self.groups[flow.group].sent[self.phases.len() - 1] += 1;
        if !connection.is_queued {
            connection.is_queued = true;
            self.unflushed.push(slot);
        }
    }

    /// Starts closed loops: `window` messages under way on each, from here on.
    pub(crate) fn start_loops(&mut self, flows: &[usize], window: u32) {
        for &flow in flows {
            self.flows[flow].loops = true;
        }
        for _ in 0..window {
            let now = self.now();
            for &flow in flows {
                self.send(flow, now);
            }
        }
    }

    pub(crate) fn pace(&mut self, flows: &[usize], per_second: u32) {
        let pacer = Pacer::new(flows.to_vec(), per_second, self.now());
        self.pacers.push(pacer);
    }

    /// Nothing is sent any more by itself.
    pub(crate) fn stop_sending(&mut self) {
        self.pacers.clear();
        self.flows.iter_mut().for_each(|flow| flow.loops = false);
    }

    /// Sends one message on each flow and waits for it: what does not work at all is no load.
    pub(crate) fn try_out(&mut self, flows: &[usize]) -> Result<(), BenchError> {
        const SIDE_BY_SIDE: usize = 64;
        for some in flows.chunks(SIDE_BY_SIDE) {
            let now = self.now();
            for &flow in some {
                self.send(flow, now);
            }
            let arrived = |engine: &mut Self| {
                let outstanding = |flow: &usize| engine.flows[*flow].track.outstanding();
                some.iter().map(outstanding).sum::<u64>() == 0
            };
            if !self.run_until(FIRST_MESSAGE_TIMEOUT, arrived) {
                return Err(BenchError::Silence {
                    timeout: FIRST_MESSAGE_TIMEOUT,
                    example: self.faults.examples.first().cloned(),
                });
            }
        }
        Ok(())
    }

    /// Sends all that is due by now; returns when the next is.
    pub(super) fn send_due(&mut self, now: u64) -> u64 {
        let mut soonest = u64::MAX;
        let mut pacers = std::mem::take(&mut self.pacers);
        for pacer in &mut pacers {
            loop {
                let due = whole(pacer.next);
                if due > now {
                    soonest = soonest.min(due);
                    break;
                }
                self.send(pacer.flows[pacer.turn], due);
                pacer.turn = (pacer.turn + 1) % pacer.flows.len();
                pacer.next += pacer.interval_ns;
            }
        }
        self.pacers = pacers;
        soonest.min(self.move_visitors(now))
    }

    pub(super) fn push_control(&mut self, slot: usize, opcode: u8, payload: &[u8]) {
        let mask = fastrand::u32(..).to_ne_bytes();
        codec::push_frame(self.connections[slot].out(), opcode, mask, payload);
        self.queue(slot);
    }

    pub(super) fn queue(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if !connection.is_queued {
            connection.is_queued = true;
            self.unflushed.push(slot);
        }
    }

    pub(super) fn flush(&mut self, slot: usize) {
        if let Err(error) = self.connections[slot].flush() {
            self.ended(slot, &error);
        }
    }

    pub(super) fn flush_all(&mut self) {
        let mut unflushed = std::mem::take(&mut self.unflushed);
        for slot in unflushed.drain(..) {
            self.connections[slot].is_queued = false;
            self.flush(slot);
        }
        // An ending in between queues nothing: the list is empty still.
        self.unflushed = unflushed;
    }

    /// Messages that were sent and are neither lost to what is known nor here.
    pub(crate) fn under_way(&self) -> u64 {
        self.flows.iter().map(|flow| flow.track.under_way()).sum()
    }

    /// Messages that wait in this program still: the server never got them.
    pub(crate) fn unsent(&self) -> u64 {
        let waiting = |flow: &MessageFlow| {
            let backlog = self.connections[flow.route.source].backlog();
            (backlog / flow.frame_bytes()) as u64
        };
        self.flows.iter().map(waiting).sum()
    }
}
