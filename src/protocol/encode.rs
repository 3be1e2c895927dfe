//! From an [`Outbound`] to the bytes of one unmasked, unfragmented WebSocket text frame, appended
//! to a buffer that leaves in one write with whatever else is in it.

use hyper_tungstenite::tungstenite::protocol::frame::FrameHeader;
use hyper_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{CLOSE_REASON_BYTES_MAX, Dialect, Status};
use crate::identity::{Sender, UserId};

/// Two bytes, a 64-bit length, a mask (RFC 6455 section 5.2).
pub const FRAME_HEADER_BYTES_MAX: usize = 14;

/// What the server says in a data frame. The texts that came from a client are JSON literals.
#[derive(Clone, Copy, Debug)]
pub enum Outbound<'a> {
    /// First of all in `switchboard.v1`.
    Welcome {
        /// The user's own id.
        user_id: UserId,
        /// `keepalive.ping_interval`, milliseconds.
        heartbeat_ms: u64,
        /// `limits.message_bytes`.
        max_message_bytes: usize,
        /// What to show in order to come back with this id. It needs no escapes.
        ticket: &'a str,
        /// Whether the id is the one of the ticket that was shown.
        resumed: bool,
        /// Why it is not, where a ticket was shown.
        reason: Option<&'static str>,
    },
    /// Somebody's message; the only one that [`Dialect::Bare`] knows.
    Message {
        /// Who wrote it.
        sender_id: Sender,
        /// A JSON string literal.
        message: &'a str,
        /// The trace that it is part of, in `switchboard.v1`.
        traceparent: Option<&'a str>,
    },
    /// What became of the message that the client called `id`.
    Outcome {
        /// The client's JSON literal.
        id: &'a str,
        /// What became of it.
        status: Status,
    },
    /// The client's input was bad.
    Error {
        /// What kind of fault, for programs.
        code: &'a str,
        /// What is wrong, for people. Plain text of ours.
        detail: &'a str,
    },
    /// Messages to this client were dropped since its mailbox was full.
    Dropped {
        /// How many since the last such notice.
        count: u64,
    },
    /// The server is about to close for a drain.
    Reconnect {
        /// How long to wait after the close, milliseconds.
        after_ms: u64,
    },
}

/// Appends the frame of `outbound` to `buffer`. Everything but a message is `switchboard.v1` only:
/// in [`Dialect::Bare`] nothing is appended for it.
pub fn push_frame(buffer: &mut Vec<u8>, dialect: Dialect, outbound: Outbound<'_>) {
    let mut number = itoa::Buffer::new();
    match (dialect, outbound) {
        (
            _,
            Outbound::Message {
                sender_id,
                message,
                traceparent,
            },
        ) => {
            let [head, middle, tail] = message_parts(dialect);
            let sender = number.format(sender_id.get());
            let [before, after] = TRACEPARENT_PARTS;
            match (dialect, traceparent) {
                (Dialect::V1, Some(traceparent)) => {
                    let parts = [
                        head,
                        sender,
                        middle,
                        message,
                        before,
                        traceparent,
                        after,
                        tail,
                    ];
                    text_frame(buffer, &parts);
                }
                _ => text_frame(buffer, &[head, sender, middle, message, tail]),
            }
        }
        (Dialect::Bare, _) => {}
        (Dialect::V1, Outbound::Outcome { id, status }) => {
            let status = status.as_str();
            let parts = [
                "{\"type\":\"outcome\",\"id\":",
                id,
                ",\"status\":\"",
                status,
                "\"}",
            ];
            text_frame(buffer, &parts);
        }
        (Dialect::V1, notice) => text_frame(buffer, &[&notice_text(notice)]),
    }
}

/// The frames that are rare.
fn notice_text(notice: Outbound<'_>) -> String {
    match notice {
        Outbound::Welcome {
            user_id,
            heartbeat_ms,
            max_message_bytes,
            ticket,
            resumed,
            reason,
        } => {
            let reason =
                reason.map_or_else(String::new, |reason| format!(r#","reason":"{reason}""#));
            format!(
                r#"{{"type":"welcome","user_id":{user_id},"heartbeat_ms":{heartbeat_ms},"max_message_bytes":{max_message_bytes},"ticket":"{ticket}","resumed":{resumed}{reason}}}"#
            )
        }
        Outbound::Error { code, detail } => {
            format!(r#"{{"type":"error","code":"{code}","detail":"{detail}"}}"#)
        }
        Outbound::Dropped { count } => format!(r#"{{"type":"dropped","count":{count}}}"#),
        Outbound::Reconnect { after_ms } => {
            format!(r#"{{"type":"reconnect","after_ms":{after_ms}}}"#)
        }
        Outbound::Message { .. } | Outbound::Outcome { .. } => {
            unreachable!("push_frame writes these by itself")
        }
    }
}

/// What stands before the sender's id, between it and the message, and behind the message.
fn message_parts(dialect: Dialect) -> [&'static str; 3] {
    match dialect {
        Dialect::Bare => ["{\"sender_id\":", ",\"message\":", "}"],
        Dialect::V1 => ["{\"type\":\"message\",\"sender_id\":", ",\"message\":", "}"],
    }
}

/// What stands around a traceparent, between the message and the end.
const TRACEPARENT_PARTS: [&str; 2] = [",\"traceparent\":\"", "\""];

/// The length of the whole frame that [`push_frame`] appends for a message whose JSON literal has
/// `message` bytes: known before it is made, so that what does not fit is never made.
pub fn message_frame_bytes(
    dialect: Dialect,
    sender: Sender,
    message: usize,
    traceparent: Option<&str>,
) -> usize {
    let fixed: usize = message_parts(dialect).iter().map(|part| part.len()).sum();
    let mut payload = fixed + sender.get().checked_ilog10().unwrap_or(0) as usize + 1 + message;
    if let (Dialect::V1, Some(traceparent)) = (dialect, traceparent) {
        let [before, after] = TRACEPARENT_PARTS;
        payload += before.len() + traceparent.len() + after.len();
    }
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload
}

fn text_frame(buffer: &mut Vec<u8>, parts: &[&str]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    buffer.reserve(length + FRAME_HEADER_BYTES_MAX);
    frame_header(buffer, OpCode::Data(Data::Text), length);
    for part in parts {
        buffer.extend_from_slice(part.as_bytes());
    }
}

/// Appends the header of a whole, unmasked frame of `length` payload bytes (RFC 6455 section 5.2).
fn frame_header(buffer: &mut Vec<u8>, opcode: OpCode, length: usize) {
    let header = FrameHeader {
        is_final: true,
        opcode,
        ..FrameHeader::default()
    };
    header
        .format(length as u64, buffer)
        .expect("a Vec takes all that is written to it");
}

/// Appends a close frame; an empty one where `close` is nothing (RFC 6455 section 5.5.1). Of the
/// reason as many bytes as fit, cut between characters.
pub fn push_close(buffer: &mut Vec<u8>, close: Option<(u16, &str)>) {
    let Some((code, reason)) = close else {
        return frame_header(buffer, OpCode::Control(Control::Close), 0);
    };
    let reason = reason
        .get(..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX))
        .expect("a character boundary");
    frame_header(buffer, OpCode::Control(Control::Close), 2 + reason.len());
    buffer.extend_from_slice(&code.to_be_bytes());
    buffer.extend_from_slice(reason.as_bytes());
}

/// Appends a whole data frame of that kind.
pub fn push_data(buffer: &mut Vec<u8>, kind: Data, payload: &[u8]) {
    frame_header(buffer, OpCode::Data(kind), payload.len());
    buffer.extend_from_slice(payload);
}

/// Appends a ping without a payload (RFC 6455 section 5.5.2).
pub fn push_ping(buffer: &mut Vec<u8>) {
    frame_header(buffer, OpCode::Control(Control::Ping), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_frame_has_the_length_that_was_foretold() {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for dialect in [Dialect::Bare, Dialect::V1] {
            for sender in [0, 1, 9, 10, 99_999, UserId::MAX] {
                let sender_id = Sender::new(sender).unwrap();
                for length in [
                    0, 13, 14, 60, 61, 98, 99, 100, 65_420, 65_480, 65_500, 65_536,
                ] {
                    let message = format!("\"{}\"", "x".repeat(length));
                    for traceparent in [None, Some(traceparent)] {
                        let mut buffer = Vec::new();
                        let outbound = Outbound::Message {
                            sender_id,
                            message: &message,
                            traceparent,
                        };
                        push_frame(&mut buffer, dialect, outbound);
                        let foretold =
                            message_frame_bytes(dialect, sender_id, message.len(), traceparent);
                        assert_eq!(buffer.len(), foretold);
                    }
                }
            }
        }
    }

    #[test]
    fn only_switchboard_v1_is_told_of_a_trace() {
        let frame = |dialect| {
            let mut buffer = Vec::new();
            let outbound = Outbound::Message {
                sender_id: Sender::new(1).unwrap(),
                message: "\"hi\"",
                traceparent: Some("00-af-b7-01"),
            };
            push_frame(&mut buffer, dialect, outbound);
            String::from_utf8(buffer.split_off(2)).unwrap()
        };
        assert_eq!(
            frame(Dialect::V1),
            r#"{"type":"message","sender_id":1,"message":"hi","traceparent":"00-af-b7-01"}"#
        );
        assert_eq!(frame(Dialect::Bare), r#"{"sender_id":1,"message":"hi"}"#);
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let mut buffer = Vec::new();
        push_close(&mut buffer, Some((1007, &"é".repeat(100))));
        assert_eq!(buffer.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&buffer[4..]).is_ok());
    }
}
