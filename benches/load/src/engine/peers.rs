//! Connects peers that send no messages: idle ones in a batch, and short-lived ones by a schedule.

use std::time::Duration;

use super::batch::{BatchPace, PeerBatch};
use super::churn::PeerDeadline;
use super::state::Engine;
use super::turn::CHECK_INTERVAL;
use crate::codec::CLOSE;
use crate::connection::{Role, State};
use crate::error::BenchError;
use crate::number::nanos;
use switchboard::protocol::close_code;

/// How long a batch may take.
const BATCH_TIMEOUT: Duration = Duration::from_mins(2);

/// Connections that are begun before the engine looks at its sockets again.
const BEGINS_PER_TURN: u64 = 32;

impl Engine {
    /// Connects `count` idle peers while everything else goes on.
    pub(crate) fn connect_batch(
        &mut self,
        count: usize,
        pace: BatchPace,
    ) -> Result<PeerBatch, BenchError> {
        let begin = self.now();
        let deadline = begin + nanos(BATCH_TIMEOUT);
        self.batch = Some(PeerBatch::new(count, pace, begin));
        let mut slots = Vec::with_capacity(count);
        let mut batch = loop {
            let now = self.now();
            let mut batch = self.batch.take().expect("only this function takes it");
            if batch.is_over() || now >= deadline {
                break batch;
            }
            let begins = batch.take_attempts(now, BEGINS_PER_TURN);
            self.batch = Some(batch);
            for _ in 0..begins {
                let slot = self.begin(Role::IdlePeer);
                slots.push(slot.map_err(|error| self.unconnected(error))?);
            }
            self.turn(now + nanos(CHECK_INTERVAL));
        };
        batch.took_ns = self.now() - begin;
        // A refused attempt has given its slot to a later one.
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|slot| self.is_open(*slot));
        batch.slots = slots;
        Ok(batch)
    }

    /// Connects the short-lived peers that are due, and ends the connections of those that are due to leave.
    /// Returns when the next event is due.
    pub(super) fn step_churn(&mut self, now: u64) -> u64 {
        // Taken out, because `begin`, `push_control` and `abort` borrow the engine. None of them calls `ended`,
        // which would miss the churn.
        let Some(mut churn) = self.churn.take() else {
            return u64::MAX;
        };
        for _ in 0..churn.due(now) {
            match self.begin(Role::ShortLived) {
                Ok(_) => churn.begun(),
                Err(error) => self
                    .faults
                    .refused(|| format!("a short-lived peer: {error}")),
            }
        }
        while let Some(peer) = churn.take_closing(now) {
            if self.is_in(peer, State::Open) {
                self.connections[peer.slot].state = State::Leaving;
                let code = close_code::NORMAL.to_be_bytes();
                self.push_control(peer.slot, CLOSE, &code);
                churn.leaving(peer, now);
            }
        }
        while let Some(peer) = churn.take_unanswered(now) {
            if self.is_in(peer, State::Leaving) {
                churn.unanswered();
                self.abort(&[peer.slot]);
            }
        }
        let next = churn.next_event();
        self.churn = Some(churn);
        next
    }

    fn is_in(&self, peer: PeerDeadline, state: State) -> bool {
        let connection = &self.connections[peer.slot];
        connection.state == state && connection.born == peer.born
    }
}
