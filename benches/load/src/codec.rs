//! The client's side of RFC 6455 as bytes: a masked frame out, a server's frame in, the opening
//! handshake. No I/O.

use hyper_tungstenite::tungstenite::handshake::client::generate_key;
use hyper_tungstenite::tungstenite::handshake::derive_accept_key;
use memchr::memmem;
use switchboard::identity::UserId;

pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The largest payload that a frame of the server may have. A larger frame counts as altered.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 384 * 1024;

const LAST: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// Values of the length field that say how many bytes the length has that follows.
const TWO_BYTES: u8 = 126;
const EIGHT_BYTES: u8 = 127;

/// Appends a complete, masked frame; returns where its payload begins.
pub(crate) fn push_frame(buffer: &mut Vec<u8>, opcode: u8, mask: [u8; 4], payload: &[u8]) -> usize {
    buffer.push(LAST | opcode);
    match payload.len() {
        length @ 0..=125 => buffer.push(MASKED | low_byte(length)),
        length @ 126..=0xffff => {
            buffer.push(MASKED | TWO_BYTES);
            buffer.extend_from_slice(&[low_byte(length >> 8), low_byte(length)]);
        }
        length => {
            buffer.push(MASKED | EIGHT_BYTES);
            buffer.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    buffer.extend_from_slice(&mask);
    let begin = buffer.len();
    buffer.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    begin
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the function keeps the low byte only"
)]
fn low_byte(number: usize) -> u8 {
    number as u8
}

/// A frame that the server sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerFrame<'a> {
    /// Whether it is the last frame of its message.
    pub(crate) is_last: bool,
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
    /// The length of header and payload.
    pub(crate) bytes: usize,
}

/// Why bytes are not a frame that a server may send.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a masked frame")]
    Masked,
    #[error("a frame with first byte {0:#04x}")]
    FirstByte(u8),
    #[error("a frame of {0} bytes")]
    Size(u64),
}

/// The frame that `bytes` begin with, or `None` where it is not complete.
pub(crate) fn first_frame(bytes: &[u8]) -> Result<Option<ServerFrame<'_>>, Malformed> {
    let &[first, second, ref more @ ..] = bytes else {
        return Ok(None);
    };
    if first & RESERVED != 0 {
        return Err(Malformed::FirstByte(first));
    }
    let (length, header) = match (second, more) {
        (0..=125, _) => (u64::from(second), 2),
        (TWO_BYTES, &[a, b, ..]) => (u64::from(u16::from_be_bytes([a, b])), 4),
        (EIGHT_BYTES, more) => match more.first_chunk() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        (TWO_BYTES, _) => return Ok(None),
        _ => return Err(Malformed::Masked),
    };
    let payload = usize::try_from(length)
        .ok()
        .filter(|length| *length <= PAYLOAD_BYTES_MAX)
        .ok_or(Malformed::Size(length))?;
    Ok(bytes
        .get(header..header + payload)
        .map(|payload| ServerFrame {
            is_last: first & LAST != 0,
            opcode: first & 0x0f,
            payload,
            bytes: header + payload.len(),
        }))
}

/// The opening handshake. All connections of a run send the same key, because a key for each would cost
/// CPU time and check nothing more.
#[derive(Debug)]
pub(crate) struct ClientHandshake {
    pub(crate) request: Vec<u8>,
    accept: String,
}

/// The server's response to the upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UpgradeResponse {
    /// The head of the response is not complete.
    Incomplete,
    /// The connection is open.
    Accepted {
        /// The id of the user, where the server announces it.
        id: Option<UserId>,
        /// The length of the head. Frames may follow it.
        head_bytes: usize,
    },
    /// Not the 101 that the request asks for; with the first line of the response.
    Refused(String),
}

impl ClientHandshake {
    pub(crate) fn new(authority: &str, path: &str, token: Option<&str>) -> Self {
        let key = generate_key();
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let token = token.unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{token}\r\n"
        );
        Self {
            request: request.into_bytes(),
            accept: derive_accept_key(key.as_bytes()),
        }
    }

    pub(crate) fn response(&self, bytes: &[u8]) -> UpgradeResponse {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
            return UpgradeResponse::Incomplete;
        };
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        let header = |wanted: &str| {
            head.split("\r\n").skip(1).find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then_some(value.trim())
            })
        };
        if !status.starts_with("HTTP/1.1 101") {
            return UpgradeResponse::Refused(status.to_owned());
        }
        if header("sec-websocket-accept") != Some(&*self.accept) {
            return UpgradeResponse::Refused(format!(
                "{status}, with a wrong Sec-WebSocket-Accept"
            ));
        }
        UpgradeResponse::Accepted {
            id: header("x-user-id")
                .and_then(|id| id.parse().ok())
                .and_then(UserId::new),
            head_bytes: end + 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The payload as a server sees it.
    fn unmasked(frame: &[u8], begin: usize) -> Vec<u8> {
        let mask = &frame[begin - 4..begin];
        frame[begin..]
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect()
    }

    #[test]
    fn a_frame_has_the_shortest_length_and_its_mask() {
        for (length, header) in [
            (0, &[0x81_u8, 0x80] as &[u8]),
            (125, &[0x81, 0xfd]),
            (126, &[0x81, 0xfe, 0, 126]),
            (0xffff, &[0x81, 0xfe, 0xff, 0xff]),
            (0x1_0000, &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload: Vec<u8> = (0..length).map(low_byte).collect();
            let mut frame = b"before".to_vec();
            let begin = push_frame(&mut frame, TEXT, [1, 2, 3, 250], &payload);
            assert_eq!(&frame[6..begin - 4], header, "{length}");
            assert_eq!(&frame[begin - 4..begin], &[1, 2, 3, 250]);
            assert_eq!(unmasked(&frame, begin), payload);
        }
    }

    /// A server's frame: no mask.
    fn served(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let begin = push_frame(&mut frame, 0, [0; 4], payload);
        frame.drain(begin - 4..begin);
        frame[0] = first;
        frame[1] &= 0x7f;
        frame
    }

    #[test]
    fn a_frame_is_read_when_it_is_complete() {
        for length in [0, 1, 125, 126, 0xffff, 0x1_0000] {
            let payload = vec![b'x'; length];
            let mut bytes = served(0x81, &payload);
            let whole = bytes.len();
            bytes.extend_from_slice(b"\x89\x00");
            let expected = ServerFrame {
                is_last: true,
                opcode: TEXT,
                payload: &payload,
                bytes: whole,
            };
            assert_eq!(first_frame(&bytes), Ok(Some(expected)), "{length}");
            for arrived in [0, 1, 2, 3, 9, whole - 1] {
                let arrived = arrived.min(whole - 1);
                assert_eq!(
                    first_frame(&bytes[..arrived]),
                    Ok(None),
                    "{length} {arrived}"
                );
            }
        }
    }

    #[test]
    fn a_frame_that_a_server_must_not_send_is_refused() {
        assert_eq!(first_frame(&[0x81, 0x85]), Err(Malformed::Masked));
        assert_eq!(first_frame(&[0xc1, 0]), Err(Malformed::FirstByte(0xc1)));
        let long = [0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(first_frame(&long), Err(Malformed::Size(1 << 32)));
    }

    #[test]
    fn a_response_is_the_right_101_or_a_refusal() {
        let handshake = ClientHandshake::new("127.0.0.1:8080", "/", None);
        let accept = &handshake.accept;
        let head = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}");
        let accepted = |bytes: &str, id| UpgradeResponse::Accepted {
            id: UserId::new(id),
            head_bytes: bytes.find("\r\n\r\n").unwrap() + 4,
        };
        let bare = format!("{head}\r\n\r\n\u{1}\u{1}x");
        assert_eq!(handshake.response(bare.as_bytes()), accepted(&bare, 0));
        let with_id = format!("{head}\r\nX-User-Id: 17\r\n\r\n");
        assert_eq!(
            handshake.response(with_id.as_bytes()),
            accepted(&with_id, 17)
        );
        assert_eq!(
            handshake.response(head.as_bytes()),
            UpgradeResponse::Incomplete
        );
        let full = b"HTTP/1.1 503 Service Unavailable\r\n\r\n";
        let refused = UpgradeResponse::Refused("HTTP/1.1 503 Service Unavailable".to_owned());
        assert_eq!(handshake.response(full), refused);
        let wrong = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n";
        assert!(matches!(
            handshake.response(wrong),
            UpgradeResponse::Refused(_)
        ));
    }
}
