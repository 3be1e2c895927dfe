//! One flow: the frame that is sent again and again with another number, and the judgement of the messages
//! that arrive.

use std::borrow::Cow;

use serde::Deserialize;
use switchboard::identity::UserId;

use crate::codec::{self, TEXT};
use crate::label::{self, LABEL_BYTES, LabelMatch, NUMBER_BYTES};
use crate::track::{ArrivalOrder, Track};

/// The two ends of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// Slot of the sender's connection.
    pub(crate) source: usize,
    /// Slot of the recipient's connection.
    pub(crate) sink: usize,
    pub(crate) sender: UserId,
    pub(crate) recipient: UserId,
}

/// Numbered messages from one connection to another.
#[derive(Debug)]
pub(crate) struct MessageFlow {
    pub(crate) route: Route,
    /// The group whose figures it counts in.
    pub(crate) group: usize,
    /// Whether an arrival sends the next message.
    pub(crate) loops: bool,
    /// Bytes that may wait to be written before messages are withheld.
    pub(crate) backlog_bytes_max: usize,
    /// Messages that were withheld.
    pub(crate) withheld: u64,
    pub(crate) track: Track,
    index: usize,
    frame: Vec<u8>,
    number_at: usize,
    number_mask: u128,
    /// The text that follows the label.
    filler: Vec<u8>,
    /// The bytes around the label in a payload that was parsed in full and found right.
    shape: Option<PayloadShape>,
}

#[derive(Debug)]
struct PayloadShape {
    before: Vec<u8>,
    after: Vec<u8>,
}

/// What the arrival of a message means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// The message that was expected next; with the time at which it was due.
    Next(u64),
    /// A message of this flow, but not the one that was expected next.
    OutOfTurn(ArrivalOrder),
    /// The text or the sender is not what was sent.
    Altered,
}

/// A message as it arrives. A further field counts as altered.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Received<'a> {
    sender_id: u64,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// Bytes that may wait before paced messages are withheld. At any rate that a server reaches these are
/// seconds of messages.
pub(crate) const BACKLOG_BYTES_MAX: usize = 16 * 1024 * 1024;

impl MessageFlow {
    /// `index` is its number among all flows; `size` is the length of the text, at least that of a label.
    pub(crate) fn new(index: usize, route: Route, group: usize, size: usize) -> Self {
        let filler: Vec<u8> = b"Go Braves! Go Braves? Go, Braves; "
            .iter()
            .copied()
            .cycle()
            .take(size - LABEL_BYTES)
            .collect();
        let mut text =
            format!("{{\"recipient_id\":{},\"message\":\"", route.recipient).into_bytes();
        let label_at = text.len();
        text.extend_from_slice(&label::label(index, 0));
        text.extend_from_slice(&filler);
        text.extend_from_slice(b"\"}");
        // One mask for all frames of the flow, so that a frame is a copy with another number. The mask exists
        // against proxies that take a payload for a request (RFC 6455 section 10.3), and need not be secret
        // from the server.
        let mask: [u8; 4] = fastrand::u32(..).to_ne_bytes();
        let mut frame = Vec::new();
        let payload_at = codec::push_frame(&mut frame, TEXT, mask, &text);
        let number_in_payload = label_at + LABEL_BYTES - NUMBER_BYTES;
        let number_mask = std::array::from_fn(|at| mask[(number_in_payload + at) % 4]);
        Self {
            route,
            group,
            loops: false,
            backlog_bytes_max: BACKLOG_BYTES_MAX,
            withheld: 0,
            track: Track::default(),
            index,
            frame,
            number_at: payload_at + number_in_payload,
            number_mask: u128::from_ne_bytes(number_mask),
            filler,
            shape: None,
        }
    }

    /// Appends the frame of the next message.
    #[inline]
    pub(crate) fn push_next(&mut self, buffer: &mut Vec<u8>, due: u64) {
        let digits = label::number_digits(self.index, self.track.upcoming());
        let masked = u128::from_ne_bytes(digits) ^ self.number_mask;
        self.frame[self.number_at..][..NUMBER_BYTES].copy_from_slice(&masked.to_ne_bytes());
        buffer.extend_from_slice(&self.frame);
        self.track.sent(due);
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Judges a payload in which this flow's label was found.
    #[inline]
    pub(crate) fn judge(&mut self, payload: &[u8], found: LabelMatch) -> Judgement {
        let (before, after) = (&payload[..found.at], &payload[found.at + LABEL_BYTES..]);
        let known = self
            .shape
            .as_ref()
            .is_some_and(|shape| shape.before == before && shape.after == after);
        if !known && !self.learn(payload, found) {
            return Judgement::Altered;
        }
        if found.number == label::number_digits(self.index, self.track.expected()) {
            return match self.track.arrived_next() {
                Some(due) => Judgement::Next(due),
                None => Judgement::OutOfTurn(ArrivalOrder::NeverSent),
            };
        }
        match label::number(self.index, found.number) {
            Some(number) => Judgement::OutOfTurn(self.track.arrived(number)),
            None => Judgement::Altered,
        }
    }

    /// Judges a payload by its JSON. Where it is right, later payloads with the same bytes around the label are
    /// right without parsing.
    #[cold]
    fn learn(&mut self, payload: &[u8], found: LabelMatch) -> bool {
        let Ok(received) = serde_json::from_slice::<Received<'_>>(payload) else {
            return false;
        };
        let text = received.message.as_bytes();
        let is_right = received.sender_id == self.route.sender.get()
            && text.get(LABEL_BYTES..) == Some(&*self.filler)
            && label::find(text).is_some_and(|inside| inside.at == 0 && inside.flow == self.index);
        if is_right {
            self.shape = Some(PayloadShape {
                before: payload[..found.at].to_vec(),
                after: payload[found.at + LABEL_BYTES..].to_vec(),
            });
        }
        is_right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> MessageFlow {
        let id = |id| UserId::new(id).unwrap();
        let route = Route {
            source: 0,
            sink: 1,
            sender: id(7),
            recipient: id(8),
        };
        MessageFlow::new(5, route, 0, 40)
    }

    /// The next message as a relay delivers it.
    fn relayed(flow: &mut MessageFlow, due: u64) -> String {
        let mut frame = Vec::new();
        flow.push_next(&mut frame, due);
        let mask: [u8; 4] = *frame[2..].first_chunk().unwrap();
        let text: Vec<u8> = frame[6..]
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        let text = String::from_utf8(text).unwrap();
        text.replace("\"recipient_id\":8", "\"sender_id\":7")
    }

    fn judged(flow: &mut MessageFlow, payload: &str) -> Judgement {
        let found = label::find(payload.as_bytes()).unwrap();
        flow.judge(payload.as_bytes(), found)
    }

    #[test]
    fn a_message_is_right_as_it_was_sent() {
        let mut flow = flow();
        for due in 10..20 {
            let payload = relayed(&mut flow, due);
            assert_eq!(
                judged(&mut flow, &payload),
                Judgement::Next(due),
                "{payload}"
            );
        }
        // The essay's programs end a text with a newline. A relay may write spaces between the fields.
        let payload = relayed(&mut flow, 20) + "\n";
        assert_eq!(judged(&mut flow, &payload), Judgement::Next(20));
        let payload = relayed(&mut flow, 21).replace(':', ": ");
        assert_eq!(judged(&mut flow, &payload), Judgement::Next(21));
    }

    #[test]
    fn anything_else_is_altered() {
        for (from, to) in [
            ("\"sender_id\":7", "\"sender_id\":8"),
            ("Braves", "Bravos"),
            ("\"}", "\",\"x\":1}"),
            ("\"}", " \"}"),
            ("\"}", "\""),
            ("0000000", "0000001"),
            ("\"message\":\"", "\"message\":\"a"),
        ] {
            for known in [false, true] {
                let mut flow = flow();
                if known {
                    let payload = relayed(&mut flow, 0);
                    assert_eq!(judged(&mut flow, &payload), Judgement::Next(0));
                }
                let payload = relayed(&mut flow, 1);
                let altered = payload.replacen(from, to, 1);
                assert_ne!(payload, altered, "{from}");
                assert_eq!(judged(&mut flow, &altered), Judgement::Altered, "{altered}");
                assert_eq!(judged(&mut flow, &payload), Judgement::Next(1));
            }
        }
    }
}
