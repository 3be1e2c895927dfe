//! Frames as a client reads and writes them.

use serde::Deserialize;

/// What a node has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Welcome {
        user_id: u64,
        ticket: String,
        resumed: bool,
        reason: Option<String>,
    },
    Message {
        sender_id: u64,
        message: String,
    },
    Outcome {
        id: u64,
        status: String,
    },
    Reconnect {
        after_ms: u64,
    },
    Error,
    Dropped,
    Ping(Vec<u8>),
    Pong,
    Close(u16),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Text {
    Welcome {
        user_id: u64,
        ticket: String,
        resumed: bool,
        #[serde(default)]
        reason: Option<String>,
    },
    Message {
        sender_id: u64,
        message: String,
    },
    Outcome {
        id: u64,
        status: String,
    },
    Reconnect {
        after_ms: u64,
    },
    Error {},
    Dropped {},
}

/// Takes whole frames out of the bytes that have come.
pub(super) fn parse(bytes: &mut Vec<u8>) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 2) {
        let (opcode, short) = (header[0] & 0x0f, usize::from(header[1]));
        let (header_bytes, payload_bytes) = match short {
            126 => match bytes.get(at + 2..at + 4) {
                Some(length) => (4, usize::from(u16::from_be_bytes([length[0], length[1]]))),
                None => break,
            },
            short => {
                assert!(short < 126, "no frame of the simulation is that large");
                (2, short)
            }
        };
        let begin = at + header_bytes;
        let Some(payload) = bytes.get(begin..begin + payload_bytes) else {
            break;
        };
        frames.push(frame(opcode, payload));
        at = begin + payload_bytes;
    }
    bytes.drain(..at);
    frames
}

fn frame(opcode: u8, payload: &[u8]) -> Frame {
    match opcode {
        1 => text(payload),
        8 => Frame::Close(
            payload
                .get(..2)
                .map_or(1005, |code| u16::from_be_bytes([code[0], code[1]])),
        ),
        9 => Frame::Ping(payload.to_vec()),
        10 => Frame::Pong,
        other => panic!("a frame of opcode {other}"),
    }
}

fn text(payload: &[u8]) -> Frame {
    let text = serde_json::from_slice(payload).expect("a node sends what the protocol has");
    match text {
        Text::Welcome {
            user_id,
            ticket,
            resumed,
            reason,
        } => Frame::Welcome {
            user_id,
            ticket,
            resumed,
            reason,
        },
        Text::Message { sender_id, message } => Frame::Message { sender_id, message },
        Text::Outcome { id, status } => Frame::Outcome { id, status },
        Text::Reconnect { after_ms } => Frame::Reconnect { after_ms },
        Text::Error {} => Frame::Error,
        Text::Dropped {} => Frame::Dropped,
    }
}

/// A frame of a client, masked with zeros.
pub(super) fn encode(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => bytes.push(0x80 | short),
        _ => {
            let length =
                u16::try_from(payload.len()).expect("messages of the simulation are short");
            bytes.push(0x80 | 126);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}
