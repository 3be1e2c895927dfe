//! A one-way conversation: the frame that is sent again and again with another number, and the
//! judgement of what arrives.

use std::borrow::Cow;

use serde::Deserialize;

use super::codec::{self, TEXT};
use super::label::{self, LABEL_BYTES, LabelMatch, NUMBER_BYTES};
use super::track::{ArrivalOrder, Track};
use switchboard::identity::UserId;

/// Who talks to whom, and about what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// Slot of the sender's connection.
    pub(super) source: usize,
    /// Slot of the recipient's.
    pub(super) sink: usize,
    pub(super) sender: UserId,
    pub(super) recipient: UserId,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct MessageFlow {
    pub(super) route: Route,
    /// Whose figures it counts in.
    pub(super) group: usize,
    /// Whether an arrival sends the next message.
    pub(super) loops: bool,
    /// Bytes that may wait to be written before messages are withheld.
    pub(super) backlog_bytes_max: usize,
    /// Messages that were withheld.
    pub(super) withheld: u64,
    pub(super) track: Track,
    index: usize,
    frame: Vec<u8>,
    number_at: usize,
    number_mask: u128,
    /// The text behind the label.
    filler: Vec<u8>,
    /// What stands around the label in a payload that was found right in full.
    shape: Option<PayloadShape>,
}

#[derive(Debug)]
struct PayloadShape {
    before: Vec<u8>,
    behind: Vec<u8>,
}

/// What an arrival means, its text included.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The next one; when it was due.
    Next(u64),
    /// A right one, but not the next.
    Numbered(ArrivalOrder),
    /// Not the text or not the sender.
    Altered,
}

/// A message as it arrives, and nothing beside it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Received<'a> {
    sender_id: u64,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// Bytes that may wait before paced messages are withheld: seconds of any rate that a server can do.
pub(super) const BACKLOG_BYTES_MAX: usize = 16 * 1024 * 1024;

impl MessageFlow {
    /// `index` is its place among all flows; `size` is the length of the text, a label at least.
    pub(super) fn new(index: usize, route: Route, group: usize, size: usize) -> Self {
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
        // One mask for all frames of the flow: it is there against proxies that mistake a payload
        // for a request (RFC 6455 section 10.3), and these payloads are no secret.
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

    /// Appends the next message's frame.
    #[inline]
    pub(super) fn push_next(&mut self, buffer: &mut Vec<u8>, due: u64) {
        let digits = label::number_digits(self.index, self.track.upcoming());
        let masked = u128::from_ne_bytes(digits) ^ self.number_mask;
        self.frame[self.number_at..][..NUMBER_BYTES].copy_from_slice(&masked.to_ne_bytes());
        buffer.extend_from_slice(&self.frame);
        self.track.sent(due);
    }

    pub(super) fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Judges a payload in which this flow's label was found.
    #[inline]
    pub(super) fn judge(&mut self, payload: &[u8], found: LabelMatch) -> Judgement {
        let (before, behind) = (&payload[..found.at], &payload[found.at + LABEL_BYTES..]);
        let known = self
            .shape
            .as_ref()
            .is_some_and(|shape| shape.before == before && shape.behind == behind);
        if !known && !self.learn(payload, found) {
            return Judgement::Altered;
        }
        if found.number == label::number_digits(self.index, self.track.expected()) {
            return match self.track.arrived_next() {
                Some(due) => Judgement::Next(due),
                None => Judgement::Numbered(ArrivalOrder::Unsent),
            };
        }
        match label::number(self.index, found.number) {
            Some(number) => Judgement::Numbered(self.track.arrived(number)),
            None => Judgement::Altered,
        }
    }

    /// Judges a payload in full, by its JSON; if it is right, others that look alike are.
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
                behind: payload[found.at + LABEL_BYTES..].to_vec(),
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

    /// What a relay makes of the next message.
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
    fn what_is_sent_is_right_when_it_arrives() {
        let mut flow = flow();
        for due in 10..20 {
            let payload = relayed(&mut flow, due);
            assert_eq!(
                judged(&mut flow, &payload),
                Judgement::Next(due),
                "{payload}"
            );
        }
        // The essay's programs end a text with a newline; others may write the fields as they like.
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
