//! Reads frames, answers pings, and judges every message that arrives.

use super::{Engine, TICK};
use crate::codec::{self, CLOSE, CONTINUATION, PING, PONG, ServerFrame, TEXT, UpgradeResponse};
use crate::connection::State;
use crate::faults::quoted;
use crate::flow::Judgement;
use crate::label;
use crate::number::nanos;
use crate::track::ArrivalOrder;

impl Engine {
    /// Reads what there is. A short read means that there is no more, but for the end of the
    /// stream: with that at hand (`ends`) it is read to it, as no further event will come.
    pub(super) fn receive(&mut self, slot: usize, ends: bool, scratch: &mut [u8]) {
        loop {
            match self.connections[slot].read(scratch) {
                Ok(None) => return,
                Ok(Some((filled, has_more))) => {
                    let now = self.now();
                    self.take_in(slot, &scratch[..filled], now);
                    if !has_more && !ends || self.connections[slot].stream.is_none() {
                        return;
                    }
                }
                Err(error) => return self.ended(slot, &error),
            }
        }
    }

    fn take_in(&mut self, slot: usize, mut bytes: &[u8], now: u64) {
        if self.connections[slot].state == State::Greeting {
            match self.handshake.answer(bytes) {
                UpgradeResponse::Unfinished => {}
                UpgradeResponse::Refused(status) => return self.ended(slot, &status),
                UpgradeResponse::Open { id, bytes: answer } => {
                    bytes = &bytes[answer..];
                    let connection = &mut self.connections[slot];
                    connection.state = State::Open;
                    connection.id = id;
                    self.opened(slot, now);
                }
            }
        }
        if self.connections[slot].state != State::Greeting {
            loop {
                match codec::first_frame(bytes) {
                    Ok(Some(frame)) => {
                        bytes = &bytes[frame.bytes..];
                        self.on_frame(slot, &frame, now);
                        if self.connections[slot].stream.is_none() {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(malformed) => {
                        self.faults
                            .altered(|| format!("connection {slot}: {malformed}"));
                        return self.ended(slot, &malformed);
                    }
                }
            }
        }
        let rest = &mut self.connections[slot].rest;
        rest.clear();
        rest.extend_from_slice(bytes);
    }

    /// An upgrade is complete.
    fn opened(&mut self, slot: usize, now: u64) {
        let born = self.connections[slot].born;
        match self.connections[slot].role {
            crate::connection::Role::IdlePeer => {
                if let Some(arrivals) = &mut self.arrivals {
                    arrivals.opened(born, now);
                }
            }
            crate::connection::Role::ShortLived => {
                if let Some(visitors) = &mut self.visitors {
                    visitors.opened(slot, born, now);
                }
            }
            _ => {}
        }
    }

    #[inline]
    fn on_frame(&mut self, slot: usize, frame: &ServerFrame<'_>, now: u64) {
        let payload = frame.payload;
        match (frame.opcode, frame.is_last) {
            (TEXT, true) => self.on_text(slot, payload, now),
            _ => self.on_rare_frame(slot, frame, now),
        }
    }

    #[cold]
    fn on_rare_frame(&mut self, slot: usize, frame: &ServerFrame<'_>, now: u64) {
        let payload = frame.payload;
        let connection = &mut self.connections[slot];
        match (frame.opcode, frame.is_last, &mut connection.fragments) {
            // A message in several frames: legal, and what the essay's programs make of one
            // beyond their write buffer.
            (TEXT, false, None) => connection.fragments = Some(payload.to_vec()),
            (CONTINUATION, is_last, Some(fragments)) => {
                fragments.extend_from_slice(payload);
                if is_last {
                    let whole = connection.fragments.take().unwrap_or_default();
                    self.on_text(slot, &whole, now);
                }
            }
            (PING, true, _) => self.push_control(slot, PONG, payload),
            (PONG, true, _) => {}
            (CLOSE, true, _) => {
                let code = payload.first_chunk().map_or_else(
                    || "no code".to_owned(),
                    |code| u16::from_be_bytes(*code).to_string(),
                );
                if self.is_open(slot) {
                    self.push_control(slot, CLOSE, payload.get(..2).unwrap_or_default());
                    self.flush(slot);
                }
                // The flush may have found it gone.
                if self.connections[slot].state != State::Gone {
                    self.ended(slot, &format_args!("closed by the server: {code}"));
                }
            }
            (opcode, ..) => {
                self.faults
                    .altered(|| format!("connection {slot}: a frame with opcode {opcode}"));
                self.ended(slot, &"a frame that has no place there");
            }
        }
    }

    #[inline]
    fn on_text(&mut self, slot: usize, payload: &[u8], now: u64) {
        let Some(found) = label::find(payload) else {
            return self.on_unlabelled(slot, payload);
        };
        let Some(flow) = self.flows.get_mut(found.flow) else {
            return self.faults.altered(|| quoted(payload));
        };
        if flow.route.sink != slot {
            let recipient = flow.route.recipient;
            return self
                .faults
                .misrouted(|| format!("a message for {recipient}: {}", quoted(payload)));
        }
        let (due, replies) = match flow.judge(payload, found) {
            Judgement::Next(due) => (Some(due), 1),
            Judgement::Numbered(ArrivalOrder::Ahead { due, skipped }) => (Some(due), 1 + skipped),
            Judgement::Numbered(ArrivalOrder::Overtaken) => {
                self.faults.reordered(|| quoted(payload));
                (None, 0)
            }
            Judgement::Numbered(ArrivalOrder::Again) => {
                return self.faults.duplicated(|| quoted(payload));
            }
            Judgement::Numbered(ArrivalOrder::Unsent) | Judgement::Altered => {
                return self.faults.altered(|| quoted(payload));
            }
        };
        let (group, loops) = (flow.group, flow.loops);
        self.count(group, due, now);
        if loops {
            for _ in 0..replies {
                self.send(found.flow, now);
            }
        }
    }

    #[inline]
    fn count(&mut self, group: usize, due: Option<u64>, now: u64) {
        let current = self.phases.len() - 1;
        let group = &mut self.groups[group];
        group.arrived[current] += 1;
        let tick = usize::try_from(now / nanos(TICK)).expect("a run ends before 2^32 ticks");
        if tick >= group.timeline.len() {
            group.timeline.resize(tick + 1, 0);
        }
        group.timeline[tick] += 1;
        let Some(due) = due else {
            return;
        };
        let mut phase = current;
        while due < self.phases[phase] {
            phase -= 1;
        }
        group.latency[phase].saturating_record(now.saturating_sub(due).max(1));
    }
}
