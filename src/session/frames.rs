//! Between tungstenite and the socket. Reads come in gulps into a buffer that belongs to the worker
//! thread and are lent on in small pieces, so that the buffer a connection owns can be tiny. Writes
//! of tungstenite's (pongs) and our own frames are gathered in one buffer and leave together. A
//! tracker looks at every frame header that comes in: it refuses what tungstenite lets pass, and
//! knows when the connection is between two messages. Must not know what a message means.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a gulp may bring at once, bytes. Enough that a sender with 64 small messages under way costs
/// one read; few enough that its turn stays short.
pub(crate) const GULP_BYTES: usize = 64 * 1024;

/// What a gulp may bring and a turn may pass on, bytes, where nearly all of it are pings, or fragments
/// next to empty: they cost by their number, and others are to wait for no more than a few of them.
const SIP_BYTES: u16 = 1024;

/// What is read and forgotten at once, bytes.
const DISCARD_BYTES: usize = 16 * 1024;

/// A masked frame of at most 125 bytes has a header of so many (RFC 6455 section 5.2).
const SHORT_HEADER_BYTES: usize = 6;

/// Pongs that may wait for a peer that does not read, bytes. Beyond that only the newest is kept,
/// as RFC 6455 section 5.5.3 allows.
const CONTROL_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Wire<S> {
    io: S,
    tracker: Tracker,
    /// Bytes that were read; what is before `lent` has been passed on.
    inbox: Vec<u8>,
    lent: usize,
    /// Bytes that were read end here; the rest of `inbox` is room.
    filled: usize,
    /// Whole frames. What is before `left` has left; what is before `written` was given to the stream.
    pub(crate) out: Vec<u8>,
    written: usize,
    left: usize,
    control_bytes: usize,
    /// A pong was refused for want of room and is still tungstenite's.
    owes_control: bool,
    /// The last gulp was of many small frames that end no message.
    is_crowded: bool,
    /// What may still be passed on in this turn, bytes, where the last gulp was.
    sip: u16,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A wire over `io`, of which `read` was read already.
    pub(crate) fn new(io: S, read: &[u8]) -> Self {
        let mut tracker = Tracker::default();
        let sound = tracker.feed(read);
        Self {
            io,
            tracker,
            lent: 0,
            filled: sound,
            inbox: read.to_vec(),
            out: Vec::new(),
            written: 0,
            left: 0,
            control_bytes: 0,
            owes_control: false,
            is_crowded: false,
            sip: 0,
        }
    }

    /// Allows another turn's worth to be passed on.
    pub(crate) fn begin_turn(&mut self) {
        self.sip = SIP_BYTES;
    }

    /// Whether this turn has read or passed on as much as it may.
    pub(crate) fn is_sated(&self) -> bool {
        self.is_crowded && self.sip < SIP_BYTES
    }

    /// Whether nothing is in any buffer, tungstenite's included, and no message is half here.
    pub(crate) fn is_quiet(&self) -> bool {
        self.lent == self.filled && !self.owes_control && self.tracker.is_between_messages()
    }

    /// Whether the message that tungstenite gave out is all that the last gulp has brought, so that
    /// it need not be asked for another.
    pub(crate) fn brought_one_message(&self) -> bool {
        self.tracker.ended == 1 && self.is_quiet()
    }

    /// Whether all that was read was passed on.
    pub(crate) fn is_drained(&self) -> bool {
        self.lent == self.filled
    }

    /// Forgets what was read and not passed on.
    pub(crate) fn forget_inbox(&mut self) {
        self.lent = self.filled;
    }

    pub(crate) fn tracker_mut(&mut self) -> &mut Tracker {
        &mut self.tracker
    }

    pub(crate) fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Reads a gulp into a buffer of [`GULP_BYTES`], which is `room`'s until [`Wire::settle_inbox`]
    /// gives it back. Only when all that was read before was passed on. How many bytes came; none
    /// at the end of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        if self.inbox.len() < GULP_BYTES {
            std::mem::swap(&mut self.inbox, room);
        }
        self.lent = 0;
        self.filled = 0;
        let bytes = if self.is_crowded {
            SIP_BYTES.into()
        } else {
            GULP_BYTES
        };
        let mut buffer = ReadBuf::new(&mut self.inbox[..bytes]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.tracker.ended = 0;
        self.filled = self.tracker.feed(buffer.filled());
        self.is_crowded = is_crowd(self.tracker.asides, count);
        Poll::Ready(Ok(count))
    }

    /// At the end of a turn: gives the gulp's buffer back to `room`, and keeps of it only what was
    /// not passed on.
    pub(crate) fn settle_inbox(&mut self, room: &mut Vec<u8>) {
        if self.inbox.len() < GULP_BYTES {
            if self.lent == self.filled {
                self.inbox = Vec::new();
                self.lent = 0;
                self.filled = 0;
            }
            return;
        }
        let rest = self.inbox[self.lent..self.filled].to_vec();
        *room = std::mem::replace(&mut self.inbox, rest);
        self.lent = 0;
        self.filled = self.inbox.len();
    }

    /// Reads and forgets; only the tracker sees it. How many bytes came; none at the end.
    pub(crate) fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = room.len().min(DISCARD_BYTES);
        let mut buffer = ReadBuf::new(&mut room[..bytes]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        self.tracker.feed(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes what is in `out`. Ready once all has left; see [`Wire::left`] for how far it came. What
    /// the stream has taken may still be inside it, encrypted: it has left when that was flushed, and
    /// before that no more is given to it.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.left < self.written {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                self.left = self.written;
            }
            let rest = &self.out[self.written..];
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
    }

    /// Bytes of `out` that the stream has taken: they cannot be taken back.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    /// Bytes of `out` that have left for the socket.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// After all of `out` has left: empties it and returns its buffer.
    pub(crate) fn take_drained(&mut self) -> Vec<u8> {
        self.written = 0;
        self.left = 0;
        self.control_bytes = 0;
        std::mem::take(&mut self.out)
    }

    /// Whether tungstenite has to be asked again for a pong that found no room; asks once.
    pub(crate) fn take_owed(&mut self) -> bool {
        std::mem::take(&mut self.owes_control)
    }

    /// Ends our side of the connection.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Whether a gulp of so many bytes, in which so many frames began that end no message, costs by these
/// rather than by its bytes.
fn is_crowd(asides: u32, bytes: usize) -> bool {
    asides > 4 && bytes < 256 * asides as usize
}

/// For tungstenite: lends of what was read, in pieces of the size that it asks for.
impl<S> Read for Wire<S> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let rest = &self.inbox[self.lent..self.filled];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut count = rest.len().min(piece.len());
        if self.is_crowded {
            count = count.min(self.sip.into());
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.sip -= u16::try_from(count).expect("no more than there was");
        }
        piece[..count].copy_from_slice(&rest[..count]);
        self.lent += count;
        Ok(count)
    }
}

/// For tungstenite, which writes pongs only: each call brings whole frames.
impl<S> Write for Wire<S> {
    fn write(&mut self, frames: &[u8]) -> io::Result<usize> {
        if self.control_bytes + frames.len() > CONTROL_BYTES_MAX {
            self.owes_control = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.control_bytes += frames.len();
        self.out.extend_from_slice(frames);
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Follows the frames of a client by their headers (RFC 6455 section 5.2).
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    /// A header that has not come whole.
    header: [u8; 14],
    have: u8,
    /// Of the frame that is under way.
    opcode: u8,
    in_message: bool,
    /// Frames that do not end a message.
    asides: u32,
    /// Frames that have come whole with the last gulp.
    ended: u32,
    /// A close frame has come whole.
    closed: bool,
    /// A header has come that no client may send.
    violated: bool,
    /// Payload bytes of the current frame that are still to come.
    left: u64,
}

impl Tracker {
    /// Follows `bytes`; how many of them come before a header that no client may send. Behind such a
    /// header it goes by what the header says, so that the peer's close is still found.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut sound = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.have == 0
                && self.left == 0
                && let Some(&[first, second, ..]) = bytes.get(at..at + SHORT_HEADER_BYTES)
                && second & 0x80 != 0
                && second & 0x7f < 126
            {
                // Nearly every header: whole, and of its shortest form.
                self.header[..2].copy_from_slice(&[first, second]);
                if !self.begin_frame() {
                    self.violated = true;
                    sound.get_or_insert(at);
                }
                at += SHORT_HEADER_BYTES;
                self.end_frame();
                continue;
            }
            if self.left > 0 {
                let count = usize::try_from(self.left)
                    .map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                self.left -= count as u64;
                at += count;
                self.end_frame();
                continue;
            }
            // Headers rarely come in two pieces, but then byte by byte is as good as any way.
            let from = at;
            loop {
                self.header[usize::from(self.have)] = bytes[at];
                self.have += 1;
                at += 1;
                if self.have >= 2 && usize::from(self.have) == header_bytes(self.header[1]) {
                    break;
                }
                if at == bytes.len() {
                    return sound.unwrap_or(at);
                }
            }
            if !self.begin_frame() {
                self.violated = true;
                sound.get_or_insert(from);
            }
            self.end_frame();
        }
        sound.unwrap_or(at)
    }

    /// Takes the header that is whole now; whether a client may send it.
    fn begin_frame(&mut self) -> bool {
        self.have = 0;
        let [first, second, ..] = self.header;
        let length = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => u64::from_be_bytes(self.header[2..10].try_into().expect("eight bytes")),
            short => u64::from(short),
        };
        let minimal = match second & 0x7f {
            126 => length > 125,
            127 => length > 0xffff && length >> 63 == 0,
            _ => true,
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let known = match opcode {
            0..=2 => true,
            8..=10 => fin && length <= 125,
            _ => false,
        };
        let masked = second & 0x80 != 0;
        if opcode <= 2 {
            self.in_message = !fin;
        }
        if opcode > 2 || !fin {
            self.asides = self.asides.saturating_add(1);
        }
        self.opcode = opcode;
        self.left = length;
        minimal && known && masked && first & 0x70 == 0
    }

    fn end_frame(&mut self) {
        if self.left == 0 {
            self.ended = self.ended.saturating_add(1);
            if std::mem::take(&mut self.opcode) == 8 {
                self.closed = true;
            }
        }
    }

    /// Frames since the last call that do not end a message: pings, pongs and fragments.
    pub(crate) fn take_asides(&mut self) -> u32 {
        std::mem::take(&mut self.asides)
    }

    /// Whether a header came that no client may send. What came before it is sound.
    pub(crate) fn violated(&self) -> bool {
        self.violated
    }

    /// Whether a close frame has come whole.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    /// Whether all that came ends with a whole message. Never behind a header that no client may
    /// send: the part of it that came in an earlier gulp was passed on.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.in_message && !self.violated
    }
}

/// How long a header is, by its second byte.
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

    /// Frames of every form of length, control frames between fragments, and one that no client sends.
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

    fn state(tracker: &Tracker) -> (u32, u32, bool, bool, bool) {
        let Tracker {
            asides,
            ended,
            closed,
            violated,
            ..
        } = *tracker;
        let between = tracker.is_between_messages();
        (asides, ended, closed, violated, between)
    }

    #[test]
    fn frames_are_followed_alike_in_whatever_pieces_they_come() {
        let bytes = frames();
        let sound = bytes.len() - 9;
        let mut whole = Tracker::default();
        assert_eq!(whole.feed(&bytes), sound);
        assert_eq!(state(&whole), (5, 9, true, true, false));

        for piece in [1, 2, 3, 5, 6, 7, 64, 1000] {
            let mut tracker = Tracker::default();
            let mut passed = 0;
            for piece in bytes.chunks(piece) {
                let was_sound = !tracker.violated();
                let count = tracker.feed(piece);
                passed += if was_sound { count } else { 0 };
            }
            assert_eq!(state(&tracker), state(&whole), "in pieces of {piece}");
            // What of the bad header came before it was whole.
            assert!((sound..sound + 6).contains(&passed), "in pieces of {piece}");
        }
    }
}
