//! Sends messages: at once, as a window that refills itself, or by a schedule. Flushes connections.

use std::time::Duration;

use super::pacer::Pacer;
use super::state::Engine;
use crate::codec;
use crate::error::BenchError;
use crate::flow::{MessageFlow, Route};
use crate::label::FLOWS_MAX;

/// How long the first message of a flow may take.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// Adds a flow between two connections whose ids are known; returns its number.
    pub(crate) fn add_flow(
        &mut self,
        source: usize,
        sink: usize,
        group: usize,
        size: usize,
    ) -> Result<usize, BenchError> {
        let index = self.flows.len();
        let (Some(sender), Some(recipient)) = (self.id(source), self.id(sink)) else {
            return Err(BenchError::UnknownIds(self.target));
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

    /// Sends one message, unless too many bytes wait to be written.
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
        self.queue(slot);
    }

    /// Starts closed loops: each flow has `window` messages in flight from now on.
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

    /// Sends on these flows at a fixed rate from now on.
    pub(crate) fn pace(&mut self, flows: &[usize], per_second: u32) {
        let pacer = Pacer::new(flows.to_vec(), per_second, self.now());
        self.pacers.push(pacer);
    }

    /// Stops all loops and schedules.
    pub(crate) fn stop_sending(&mut self) {
        self.pacers.clear();
        self.flows.iter_mut().for_each(|flow| flow.loops = false);
    }

    /// Sends one message on each flow and waits until it arrives, so that a flow that cannot work ends the run.
    pub(crate) fn send_first(&mut self, flows: &[usize]) -> Result<(), BenchError> {
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
                return Err(BenchError::FirstMessage {
                    address: self.target,
                    timeout: FIRST_MESSAGE_TIMEOUT,
                    example: self.faults.examples.first().cloned(),
                });
            }
        }
        Ok(())
    }

    /// Sends the messages of all schedules that are due by now; returns when the next one is due.
    pub(super) fn send_paced(&mut self, now: u64) -> u64 {
        let mut soonest = u64::MAX;
        let mut pacers = std::mem::take(&mut self.pacers);
        for pacer in &mut pacers {
            loop {
                let due = pacer.due();
                if due > now {
                    soonest = soonest.min(due);
                    break;
                }
                let flow = pacer.advance();
                self.send(flow, due);
            }
        }
        self.pacers = pacers;
        soonest
    }

    pub(super) fn push_control(&mut self, slot: usize, opcode: u8, payload: &[u8]) {
        let mask = fastrand::u32(..).to_ne_bytes();
        codec::push_frame(self.connections[slot].out(), opcode, mask, payload);
        self.queue(slot);
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
        // A connection that ends in a flush queues nothing, so no slot was added meanwhile.
        self.unflushed = unflushed;
    }

    /// Messages that were sent and have neither arrived nor been overtaken by later ones.
    pub(crate) fn in_flight(&self) -> u64 {
        self.flows.iter().map(|flow| flow.track.in_flight()).sum()
    }

    /// Messages that still wait in this program, so the server never received them.
    pub(crate) fn unsent(&self) -> u64 {
        let waiting = |flow: &MessageFlow| {
            let backlog = self.connections[flow.route.source].backlog();
            (backlog / flow.frame_bytes()) as u64
        };
        self.flows.iter().map(waiting).sum()
    }
}
