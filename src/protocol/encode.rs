//! Encodes an [`Outbound`] as one unmasked, unfragmented WebSocket text frame. Appends it to a buffer, which the
//! session writes in one go.

use hyper_tungstenite::tungstenite::protocol::frame::FrameHeader;
use hyper_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{CLOSE_REASON_BYTES_MAX, Dialect, Status};
use crate::identity::{Sender, UserId};

/// The longest frame header, bytes: two, a 64-bit length and a mask (RFC 6455 section 5.2).
pub const FRAME_HEADER_BYTES_MAX: usize = 14;

/// A data frame of the server. Texts that came from a client are JSON literals.
#[derive(Clone, Copy, Debug)]
pub enum Outbound<'a> {
    /// The first frame of `switchboard.v1`.
    Welcome {
        /// The id of the connected user.
        user_id: UserId,
        /// `keepalive.ping_interval`, milliseconds.
        heartbeat_ms: u64,
        /// `limits.message_bytes`.
        max_message_bytes: usize,
        /// The client shows this ticket to come back with its id. The text needs no escapes.
        ticket: &'a str,
        /// Whether the id is that of the ticket in the handshake.
        resumed: bool,
        /// Why the id differs from that of the ticket.
        reason: Option<&'static str>,
    },
    /// A message of another user: the only frame of [`Dialect::Bare`].
    Message {
        /// The sender.
        sender_id: Sender,
        /// A JSON string literal.
        message: &'a str,
        /// The [`trace_members`] of a traced message, in `switchboard.v1`; else empty.
        trace: &'a str,
    },
    /// The outcome of the message that the client sent with `id`.
    Outcome {
        /// The id as the client wrote it, a JSON literal.
        id: &'a str,
        /// The outcome.
        status: Status,
    },
    /// A message of the client could not be taken.
    Error {
        /// The kind of fault, for programs.
        code: &'a str,
        /// The fault in words. Needs no escapes, because it never quotes the client.
        detail: &'a str,
        /// The message's id as the client wrote it, a JSON literal, where it could be read.
        id: Option<&'a str>,
    },
    /// The answer to a ping.
    Pong {
        /// The ping's id as the client wrote it, a JSON literal.
        id: Option<&'a str>,
    },
    /// Messages to this client were dropped because its mailbox was full.
    Dropped {
        /// Messages dropped after the last such notice.
        count: u64,
    },
    /// The server is about to close the connection for a drain.
    Reconnect {
        /// The wait between the close and the next connection, milliseconds.
        after_ms: u64,
    },
}

/// Appends the frame of `outbound` to `buffer`. In [`Dialect::Bare`] appends nothing but messages, because every
/// other frame is of `switchboard.v1`.
pub fn push_frame(buffer: &mut Vec<u8>, dialect: Dialect, outbound: Outbound<'_>) {
    let mut number = itoa::Buffer::new();
    match (dialect, outbound) {
        (
            Dialect::Bare,
            Outbound::Message {
                sender_id, message, ..
            },
        ) => {
            let sender = number.format(sender_id.get());
            let [head, middle, tail] = BARE_PARTS;
            text_frame(buffer, [head, sender, middle, message, tail]);
        }
        (
            Dialect::V1,
            Outbound::Message {
                sender_id,
                message,
                trace,
            },
        ) => {
            let sender = number.format(sender_id.get());
            let [head, middle, tail] = V1_PARTS;
            text_frame(buffer, [head, sender, middle, message, trace, tail]);
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
            text_frame(buffer, parts);
        }
        (Dialect::V1, notice) => text_frame(buffer, [&*notice_text(notice)]),
    }
}

/// The text of a rare frame. Allocates, which the frames of messages and outcomes do not.
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
        Outbound::Error { code, detail, id } => {
            let id = id_member(id);
            format!(r#"{{"type":"error","code":"{code}","detail":"{detail}"{id}}}"#)
        }
        Outbound::Pong { id } => format!(r#"{{"type":"pong"{}}}"#, id_member(id)),
        Outbound::Dropped { count } => format!(r#"{{"type":"dropped","count":{count}}}"#),
        Outbound::Reconnect { after_ms } => {
            format!(r#"{{"type":"reconnect","after_ms":{after_ms}}}"#)
        }
        Outbound::Message { .. } | Outbound::Outcome { .. } => {
            unreachable!("push_frame writes these by itself")
        }
    }
}

/// The `id` of a frame that has one only at times, with its comma.
fn id_member(id: Option<&str>) -> String {
    id.map_or_else(String::new, |id| format!(r#","id":{id}"#))
}

/// The JSON before the sender's id, between the id and the message, and after the message and its trace.
const BARE_PARTS: [&str; 3] = ["{\"sender_id\":", ",\"message\":", "}"];
/// Likewise, in [`Dialect::V1`].
const V1_PARTS: [&str; 3] = ["{\"type\":\"message\",\"sender_id\":", ",\"message\":", "}"];

/// The JSON of a traced message that says which trace it belongs to. The texts need no escapes.
pub fn trace_members(traceparent: &str, tracestate: Option<&str>) -> String {
    let tracestate = tracestate.map_or_else(String::new, |tracestate| {
        format!(r#","tracestate":"{tracestate}""#)
    });
    format!(r#","traceparent":"{traceparent}"{tracestate}"#)
}

/// The length of the whole frame that [`push_frame`] appends for a message whose JSON literal has `message` bytes, and
/// its trace `trace` bytes. Known before the frame is made, so that a mailbox never makes a frame that does not fit.
pub fn message_frame_bytes(
    dialect: Dialect,
    sender: Sender,
    message: usize,
    trace: usize,
) -> usize {
    let fixed = match dialect {
        Dialect::Bare => bytes_of(BARE_PARTS),
        Dialect::V1 => bytes_of(V1_PARTS) + trace,
    };
    let payload = fixed + sender.get().checked_ilog10().unwrap_or(0) as usize + 1 + message;
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload
}

fn bytes_of([head, middle, tail]: [&str; 3]) -> usize {
    head.len() + middle.len() + tail.len()
}

/// Appends a text frame. Inlined, so that parts which are literals are copied without a call for each.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a fifth fewer instructions a frame")]
fn text_frame<const PARTS: usize>(buffer: &mut Vec<u8>, parts: [&str; PARTS]) {
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

/// Appends a close frame with a code and a reason, or an empty one (RFC 6455 section 5.5.1). A reason that is too
/// long ends at a character boundary.
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

/// Appends a whole data frame.
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
    fn a_message_frame_has_the_announced_length() {
        let traced = trace_members(TRACEPARENT, Some("a=b,c=d"));
        for dialect in [Dialect::Bare, Dialect::V1] {
            for sender in [0, 1, 9, 10, 99_999, UserId::MAX] {
                let sender_id = Sender::new(sender).unwrap();
                for length in [
                    0, 13, 14, 60, 61, 98, 99, 100, 65_420, 65_480, 65_500, 65_536,
                ] {
                    let message = format!("\"{}\"", "x".repeat(length));
                    for trace in ["", &*traced] {
                        let mut buffer = Vec::new();
                        let outbound = Outbound::Message {
                            sender_id,
                            message: &message,
                            trace,
                        };
                        push_frame(&mut buffer, dialect, outbound);
                        let (message, trace) = (message.len(), trace.len());
                        let announced = message_frame_bytes(dialect, sender_id, message, trace);
                        assert_eq!(buffer.len(), announced);
                    }
                }
            }
        }
    }

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_switchboard_v1_carries_a_trace() {
        let frame = |dialect, tracestate| {
            let mut buffer = Vec::new();
            let outbound = Outbound::Message {
                sender_id: Sender::new(1).unwrap(),
                message: "\"hi\"",
                trace: &trace_members("00-af-b7-01", tracestate),
            };
            push_frame(&mut buffer, dialect, outbound);
            String::from_utf8(buffer.split_off(2)).unwrap()
        };
        assert_eq!(
            frame(Dialect::V1, None),
            r#"{"type":"message","sender_id":1,"message":"hi","traceparent":"00-af-b7-01"}"#
        );
        assert_eq!(
            frame(Dialect::V1, Some("a=b")),
            r#"{"type":"message","sender_id":1,"message":"hi","traceparent":"00-af-b7-01","tracestate":"a=b"}"#
        );
        let bare = frame(Dialect::Bare, Some("a=b"));
        assert_eq!(bare, r#"{"sender_id":1,"message":"hi"}"#);
    }

    #[test]
    fn a_long_close_reason_ends_between_characters() {
        let mut buffer = Vec::new();
        push_close(&mut buffer, Some((1007, &"é".repeat(100))));
        assert_eq!(buffer.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&buffer[4..]).is_ok());
    }
}
