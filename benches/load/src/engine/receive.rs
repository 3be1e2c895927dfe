//! Reads frames, answers pings, and judges every message that arrives.

use super::state::Engine;
use crate::codec::{self, CLOSE, CONTINUATION, PING, PONG, ServerFrame, TEXT, UpgradeResponse};
use crate::connection::{Role, State};
use crate::faults::quoted;
use crate::flow::Judgement;
use crate::label;
use crate::track::ArrivalOrder;

impl Engine {
    /// Reads all that has arrived. A short read means that the socket is empty. Where the stream has ended
    /// (`has_ended`), it reads on until the end, because no further event announces it.
    pub(super) fn receive(&mut self, slot: usize, has_ended: bool, scratch: &mut [u8]) {
        loop {
            match self.connections[slot].read(scratch) {
                Ok(None) => return,
                Ok(Some((filled, has_more))) => {
                    let now = self.now();
                    self.on_bytes(slot, &scratch[..filled], now);
                    if !has_more && !has_ended || self.connections[slot].stream.is_none() {
                        return;
                    }
                }
                Err(error) => return self.ended(slot, &error),
            }
        }
    }

    /// Handles the bytes that were read: the response to the upgrade, then frames. Keeps an incomplete rest.
    fn on_bytes(&mut self, slot: usize, mut bytes: &[u8], now: u64) {
        if self.connections[slot].state == State::Upgrading {
            match self.handshake.response(bytes) {
                UpgradeResponse::Incomplete => {}
                UpgradeResponse::Refused(status) => return self.ended(slot, &status),
                UpgradeResponse::Accepted { id, head_bytes } => {
                    bytes = &bytes[head_bytes..];
                    let connection = &mut self.connections[slot];
                    connection.state = State::Open;
                    connection.id = id;
                    self.opened(slot, now);
                }
            }
        }
        if self.connections[slot].state != State::Upgrading {
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
            Role::IdlePeer => {
                if let Some(batch) = &mut self.batch {
                    batch.opened(born, now);
                }
            }
            Role::ShortLived => {
                if let Some(churn) = &mut self.churn {
                    churn.opened(slot, born, now);
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
            // A message in several frames is legal. The essay's programs send one where the message is longer
            // than their write buffer.
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
                // The flush ends the connection where the socket is broken.
                if self.connections[slot].state != State::Gone {
                    self.ended(slot, &format_args!("closed by the server: {code}"));
                }
            }
            (opcode, ..) => {
                self.faults
                    .altered(|| format!("connection {slot}: a frame with opcode {opcode}"));
                self.ended(slot, &"a frame that RFC 6455 does not allow there");
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
            Judgement::OutOfTurn(ArrivalOrder::Advanced { due, skipped }) => {
                (Some(due), 1 + skipped)
            }
            Judgement::OutOfTurn(ArrivalOrder::Late) => {
                self.faults.reordered(|| quoted(payload));
                (None, 0)
            }
            Judgement::OutOfTurn(ArrivalOrder::Duplicate) => {
                return self.faults.duplicated(|| quoted(payload));
            }
            Judgement::OutOfTurn(ArrivalOrder::NeverSent) | Judgement::Altered => {
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

    /// Counts an arrival, and its latency in the phase in which the message was due.
    #[inline]
    fn count(&mut self, group: usize, due: Option<u64>, now: u64) {
        let current = self.current_phase();
        let group = &mut self.groups[group];
        group.count_arrival(current, now);
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
