//! Follows the frames of a client by their headers (RFC 6455 section 5.2). Finds frames that tungstenite
//! accepts and no client may send, and knows when the stream is between two messages. Must not look at
//! payloads, except for the code of a close frame: tungstenite hides the codes that it does not know.

/// Header bytes of a masked frame with a payload of at most 125 bytes.
const SHORT_HEADER_BYTES: usize = 6;

/// The largest header: 2 bytes, 8 of length, 4 of mask.
const HEADER_BYTES_MAX: usize = 14;

#[derive(Debug, Default)]
pub(super) struct FrameTracker {
    /// A header of which `header_len` bytes have come.
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// Of the current frame.
    opcode: u8,
    in_message: bool,
    /// Frames that end no message: control frames and fragments. The reader sets it back to 0.
    pub(super) non_message_frames: u32,
    /// Frames that came whole. The reader sets it back to 0.
    pub(super) frames_ended: u32,
    /// The code of a close frame, as far as it has come; none yet if 0.
    pub(super) close_code: u16,
    /// A close frame has come whole.
    pub(super) is_closed: bool,
    /// A header has come that no client may send.
    pub(super) is_violated: bool,
    /// Payload bytes of the current frame that are still to come.
    payload_left: u64,
}

impl FrameTracker {
    /// Follows `bytes`. Returns how many of them come before a header that no client may send.
    ///
    /// Behind such a header it goes by the length that the header gives, so that it still finds the
    /// peer's close frame.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut sound = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.header_len == 0
                && self.payload_left == 0
                && let Some(short) = bytes[at..].first_chunk::<SHORT_HEADER_BYTES>()
                && short[1] & 0x80 != 0
                && short[1] & 0x7f < 126
            {
                // Nearly every header: whole, and of its shortest form.
                self.header[..SHORT_HEADER_BYTES].copy_from_slice(short);
                if !self.begin_frame() {
                    self.is_violated = true;
                    sound.get_or_insert(at);
                }
                at += SHORT_HEADER_BYTES;
                self.end_frame_if_whole();
                continue;
            }
            if self.payload_left > 0 {
                let count = usize::try_from(self.payload_left)
                    .map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                if self.opcode == 8 && !self.is_closed {
                    self.read_close_code(&bytes[at..at + count]);
                }
                self.payload_left -= count as u64;
                at += count;
                self.end_frame_if_whole();
                continue;
            }
            // Byte by byte is fast enough here, because a header rarely comes in two pieces.
            let header_at = at;
            loop {
                self.header[usize::from(self.header_len)] = bytes[at];
                self.header_len += 1;
                at += 1;
                if self.header_len >= 2
                    && usize::from(self.header_len) == header_bytes(self.header[1])
                {
                    break;
                }
                if at == bytes.len() {
                    return sound.unwrap_or(at);
                }
            }
            if !self.begin_frame() {
                self.is_violated = true;
                sound.get_or_insert(header_at);
            }
            self.end_frame_if_whole();
        }
        sound.unwrap_or(at)
    }

    /// Takes the header, which is whole now. Returns whether a client may send it.
    fn begin_frame(&mut self) -> bool {
        self.header_len = 0;
        let [first, second, ..] = self.header;
        let length = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => u64::from_be_bytes(self.header[2..10].try_into().expect("eight bytes")),
            short => u64::from(short),
        };
        // RFC 6455 section 5.2: the shortest form of the length, and its highest bit is 0.
        let is_minimal = match second & 0x7f {
            126 => length > 125,
            127 => length > 0xffff && length >> 63 == 0,
            _ => true,
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        // Section 5.5: control frames are not fragmented, and carry at most 125 bytes.
        let is_known = match opcode {
            0..=2 => true,
            8..=10 => fin && length <= 125,
            _ => false,
        };
        let is_masked = second & 0x80 != 0;
        if opcode <= 2 {
            self.in_message = !fin;
        }
        if opcode > 2 || !fin {
            self.non_message_frames = self.non_message_frames.saturating_add(1);
        }
        self.opcode = opcode;
        self.payload_left = length;
        // The reserved bits are of extensions, and none is negotiated.
        is_minimal && is_known && is_masked && first & 0x70 == 0
    }

    /// Reads the code from a part of a close frame's payload: its first two bytes (RFC 6455 section 5.5.1).
    #[cold]
    fn read_close_code(&mut self, payload: &[u8]) {
        // A close frame has at most 125 bytes, or is no frame that a client may send: then the code does not
        // matter. The header with the mask stays until the next frame begins.
        let length = u64::from(self.header[1] & 0x7f);
        let begin = length.saturating_sub(self.payload_left);
        for (at, byte) in (begin..2).zip(payload) {
            let mask = self.header[if at == 0 { 2 } else { 3 }];
            self.close_code = self.close_code << 8 | u16::from(byte ^ mask);
        }
    }

    fn end_frame_if_whole(&mut self) {
        if self.payload_left == 0 {
            self.frames_ended = self.frames_ended.saturating_add(1);
            if std::mem::take(&mut self.opcode) == 8 {
                self.is_closed = true;
            }
        }
    }

    /// Whether the bytes so far end with a whole message.
    ///
    /// Never true behind a header that no client may send, because a part of it may have come in an
    /// earlier chunk, and tungstenite has that part.
    pub(super) fn is_between_messages(&self) -> bool {
        self.header_len == 0 && self.payload_left == 0 && !self.in_message && !self.is_violated
    }
}

/// Returns the length of a header by its second byte.
fn header_bytes(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + length + mask
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of each length form, control frames between fragments, and last one that no client may send.
    fn frames() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (first, length) in [
            (0x81, 0),
            (0x81, 5),
            (0x02, 125),
            (0x89, 4),
            (0x00, 126),
            (0x8a, 0),
            (0x80, 70_000),
            (0x88, 2),
            (0xc1, 3),
        ] {
            match length {
                0..126 => bytes.extend([first, 0x80 | u8::try_from(length).unwrap()]),
                126..0x1_0000 => {
                    bytes.extend([first, 0xfe]);
                    bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
                }
                _ => {
                    bytes.extend([first, 0xff]);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            bytes.extend([7; 4]);
            bytes.resize(bytes.len() + length, b'x');
        }
        bytes
    }

    fn state(tracker: &FrameTracker) -> (u32, u32, bool, bool, bool) {
        let FrameTracker {
            non_message_frames,
            frames_ended,
            is_closed,
            is_violated,
            ..
        } = *tracker;
        let between = tracker.is_between_messages();
        (
            non_message_frames,
            frames_ended,
            is_closed,
            is_violated,
            between,
        )
    }

    #[test]
    fn a_code_is_of_the_close_frame_and_of_no_other() {
        let mut tracker = FrameTracker::default();
        tracker.feed(&[0x81, 0x82, 0, 0, 0, 0, b'4', b'2']);
        tracker.feed(&[0x88, 0x80, 0, 0, 0, 0]);
        assert_eq!((tracker.is_closed, tracker.close_code), (true, 0));
        let mut tracker = FrameTracker::default();
        tracker.feed(&[0x88, 0x82, 1, 2, 0, 0, 0x03 ^ 1, 0xe8 ^ 2]);
        assert_eq!((tracker.is_closed, tracker.close_code), (true, 1000));
    }

    #[test]
    fn a_frame_without_a_mask_is_none_that_a_client_may_send() {
        let (masked, plain) = ([0x81, 0x80, 0, 0, 0, 0], [0x81, 0]);
        let mut tracker = FrameTracker::default();
        assert_eq!(tracker.feed(&[&masked[..], &plain].concat()), masked.len());
        assert!(tracker.is_violated);
    }

    #[test]
    fn frames_are_followed_alike_in_pieces_of_any_size() {
        let bytes = frames();
        let sound = bytes.len() - 9;
        let mut whole = FrameTracker::default();
        assert_eq!(whole.feed(&bytes), sound);
        assert_eq!(state(&whole), (5, 9, true, true, false));

        for piece in [1, 2, 3, 5, 6, 7, 64, 1000] {
            let mut tracker = FrameTracker::default();
            let mut passed = 0;
            for piece in bytes.chunks(piece) {
                let was_sound = !tracker.is_violated;
                let count = tracker.feed(piece);
                passed += if was_sound { count } else { 0 };
            }
            assert_eq!(state(&tracker), state(&whole), "in pieces of {piece}");
            // The bytes of the bad header that came before it was whole count as sound.
            assert!((sound..sound + 6).contains(&passed), "in pieces of {piece}");
        }
    }
}
