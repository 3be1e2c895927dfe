//! Sits between tungstenite and the socket. Must not know what a message means.
//!
//! - Reading: the socket is read in large chunks, into a buffer that belongs to the worker thread.
//!   Tungstenite gets the chunk in small pieces, so that the buffer that each connection owns stays tiny.
//! - Writing: tungstenite's pongs and the relay's own frames are gathered in one buffer and leave in one
//!   write.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tracker::FrameTracker;
use crate::net::ending::Ending;
use crate::net::{Directions, Transport};

/// The most bytes of one read. It is enough that a sender with 64 small messages under way costs one
/// read, and little enough that a turn stays short.
pub(super) const READ_CHUNK_BYTES: usize = 64 * 1024;

/// The most bytes that a turn reads, and passes on, from a peer that floods small frames: pings, or
/// fragments that are next to empty. Such frames cost by their number, and other connections wait
/// meanwhile.
const SMALL_FRAME_BUDGET_BYTES: u16 = 1024;

/// The most bytes that are read and discarded at once: a few hundred small frames, or thousands of the smallest.
const DISCARD_CHUNK_BYTES: usize = 16 * 1024;

/// The most bytes of pongs that wait for a peer that does not read. Tungstenite then keeps only the
/// newest further pong, as RFC 6455 section 5.5.3 allows.
const PONG_BYTES_MAX: u16 = 4096;

/// Frames in and out of a socket.
#[derive(Debug)]
pub(super) struct FrameIo<S> {
    socket: S,
    tracker: FrameTracker,
    /// `input[..input_used]` was passed to tungstenite, `input[input_used..input_end]` was not yet. The
    /// rest is room.
    input: Vec<u8>,
    input_used: usize,
    input_end: usize,
    /// Whole frames. `output[..flushed]` has left for the socket, and `output[..written]` was taken by
    /// the stream.
    pub(super) output: Vec<u8>,
    written: usize,
    flushed: usize,
    /// Bytes of `output` that are pongs of tungstenite's.
    pong_bytes: u16,
    /// A pong found no room in `output`, so tungstenite still has it.
    owes_pong: bool,
    /// The last chunk was of many small frames that end no message.
    is_flooded: bool,
    /// Bytes that this turn may still pass on, where `is_flooded`.
    small_frame_budget: u16,
    /// The session reads nothing until its timer fires.
    pub(super) is_throttled: bool,
}

impl<S> FrameIo<S> {
    /// Wraps `socket`, of which `read` was read already.
    pub(super) fn new(socket: S, read: &[u8]) -> Self {
        let mut tracker = FrameTracker::default();
        let sound = tracker.feed(read);
        Self {
            socket,
            tracker,
            input: read.to_vec(),
            input_used: 0,
            input_end: sound,
            output: Vec::new(),
            written: 0,
            flushed: 0,
            pong_bytes: 0,
            owes_pong: false,
            is_flooded: false,
            small_frame_budget: 0,
            is_throttled: false,
        }
    }

    /// Renews the small-frame budget.
    pub(super) fn begin_turn(&mut self) {
        self.small_frame_budget = SMALL_FRAME_BUDGET_BYTES;
    }

    /// Whether this turn has passed on small frames, and so reads no further chunk.
    pub(super) fn is_budget_spent(&self) -> bool {
        self.is_flooded && self.small_frame_budget < SMALL_FRAME_BUDGET_BYTES
    }

    /// Bytes of `output` that have not left yet.
    pub(super) fn unflushed(&self) -> usize {
        self.output.len() - self.flushed
    }

    /// Whether nothing is in any buffer, tungstenite's included, and no message is half here.
    pub(super) fn is_idle(&self) -> bool {
        self.is_input_used() && !self.owes_pong && self.tracker.is_between_messages()
    }

    /// Whether the message that tungstenite gave out is all that the last chunk has brought, so that
    /// tungstenite need not be asked for another.
    pub(super) fn brought_one_message(&self) -> bool {
        self.tracker.frames_ended == 1 && self.is_idle()
    }

    /// Whether all that was read was passed on.
    pub(super) fn is_input_used(&self) -> bool {
        self.input_used == self.input_end
    }

    /// Discards what was read and not passed on.
    pub(super) fn discard_input(&mut self) {
        self.input_used = self.input_end;
    }

    /// Whether a header came that no client may send. What came before it is sound.
    pub(super) fn is_violated(&self) -> bool {
        self.tracker.is_violated
    }

    /// Whether the peer sends no more: its close frame has come whole, or its stream has ended.
    pub(super) fn has_peer_closed(&self) -> bool {
        self.tracker.is_closed
    }

    /// The code of the peer's close frame, which has come with one.
    pub(super) fn peer_close_code(&self) -> u16 {
        self.tracker.close_code
    }

    /// Whether the last chunk was of many small frames that end no message.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded
    }

    /// Returns how many frames came since the last call that end no message: pings, pongs and fragments.
    pub(super) fn take_non_message_frames(&mut self) -> u32 {
        std::mem::take(&mut self.tracker.non_message_frames)
    }

    /// Ends a turn: gives the chunk's buffer back as `chunk`, and keeps only the bytes that were not
    /// passed on.
    pub(super) fn end_turn(&mut self, chunk: &mut Vec<u8>) {
        if self.input.len() < READ_CHUNK_BYTES {
            if self.is_input_used() {
                self.input = Vec::new();
                self.input_used = 0;
                self.input_end = 0;
            }
            return;
        }
        let rest = self.input[self.input_used..self.input_end].to_vec();
        *chunk = std::mem::replace(&mut self.input, rest);
        self.input_used = 0;
        self.input_end = self.input.len();
    }

    /// Bytes of `output` that the stream has taken: they cannot be taken back.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Bytes of `output` that have left for the socket.
    pub(super) fn flushed(&self) -> usize {
        self.flushed
    }

    /// Empties `output`, all of which has left, and returns its buffer.
    pub(super) fn take_flushed(&mut self) -> Vec<u8> {
        self.written = 0;
        self.flushed = 0;
        self.pong_bytes = 0;
        std::mem::take(&mut self.output)
    }

    /// Returns true once after a pong found no room: tungstenite has to be asked for it again.
    pub(super) fn take_owed_pong(&mut self) -> bool {
        std::mem::take(&mut self.owes_pong)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameIo<S> {
    /// Reads a chunk; all that was read before must have been passed on. Returns its bytes, 0 at the end
    /// of the stream.
    ///
    /// Takes the buffer `chunk` of [`READ_CHUNK_BYTES`], which [`FrameIo::end_turn`] gives back.
    pub(super) fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        if self.input.len() < READ_CHUNK_BYTES {
            std::mem::swap(&mut self.input, chunk);
        }
        self.input_used = 0;
        self.input_end = 0;
        let bytes = if self.is_flooded {
            SMALL_FRAME_BUDGET_BYTES.into()
        } else {
            READ_CHUNK_BYTES
        };
        let mut buffer = ReadBuf::new(&mut self.input[..bytes]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.tracker.frames_ended = 0;
        self.input_end = self.tracker.feed(buffer.filled());
        self.is_flooded = is_flood(self.tracker.non_message_frames, count);
        Poll::Ready(Ok(count))
    }

    /// Reads and discards; only the tracker sees the bytes. Returns their number. Must not be called after
    /// the peer has closed.
    pub(super) fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = chunk.len().min(DISCARD_CHUNK_BYTES);
        let mut buffer = ReadBuf::new(&mut chunk[..bytes]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.tracker.feed(buffer.filled());
        self.tracker.is_closed |= count == 0;
        self.is_flooded = is_flood(self.take_non_message_frames(), count);
        Poll::Ready(Ok(count))
    }

    /// Writes `output`; ready when all of it has left. [`FrameIo::flushed`] tells how much has left.
    ///
    /// Flushes after each write and before the next: bytes that a TLS stream has taken may still be
    /// inside it, encrypted, and count as left only when the flush is done.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.flushed < self.written {
                ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
                self.flushed = self.written;
            }
            let rest = &self.output[self.written..];
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
    }

    /// Goes on with the end of the connection.
    pub(super) fn poll_end(&mut self, ending: &mut Ending, cx: &mut Context<'_>) -> Poll<()> {
        ending.poll(&mut self.socket, cx)
    }
}

impl<S: Transport> FrameIo<S> {
    /// See [`Transport::readiness`].
    pub(super) fn readiness(&self) -> Directions {
        self.socket.readiness()
    }

    /// See [`Transport::take_activity`].
    pub(super) fn take_activity(&mut self) -> Directions {
        self.socket.take_activity()
    }
}

/// Whether a chunk costs more by the frames in it that end no message than by its bytes.
fn is_flood(non_message_frames: u32, bytes: usize) -> bool {
    non_message_frames > 4 && bytes < 256 * non_message_frames as usize
}

/// For tungstenite: passes on what was read, in pieces of the size that tungstenite asks for.
impl<S> Read for FrameIo<S> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let rest = &self.input[self.input_used..self.input_end];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut count = rest.len().min(piece.len());
        if self.is_flooded {
            count = count.min(self.small_frame_budget.into());
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.small_frame_budget -= u16::try_from(count).expect("at most the budget");
        }
        piece[..count].copy_from_slice(&rest[..count]);
        self.input_used += count;
        Ok(count)
    }
}

/// For tungstenite, which writes only pongs: each call brings whole frames.
impl<S> Write for FrameIo<S> {
    fn write(&mut self, frames: &[u8]) -> io::Result<usize> {
        let bytes = u16::try_from(frames.len()).unwrap_or(u16::MAX);
        let pong_bytes = self.pong_bytes.saturating_add(bytes);
        if pong_bytes > PONG_BYTES_MAX {
            self.owes_pong = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.pong_bytes = pong_bytes;
        self.output.extend_from_slice(frames);
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn a_chunk_of_small_frames_is_a_flood() {
        // Four may be of a peer that has waited, and of large ones the bytes cost more.
        for (frames, bytes, flood) in [
            (4, 8, false),
            (5, 10, true),
            (5, 5 * 256 - 1, true),
            (5, 5 * 256, false),
        ] {
            assert_eq!(is_flood(frames, bytes), flood, "{frames} in {bytes}");
        }
    }

    #[tokio::test]
    async fn a_turn_that_has_passed_on_a_part_of_a_flood_has_spent_its_budget() {
        let (ours, mut peer) = duplex(4096);
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        peer.write_all(&ping.repeat(300)).await.unwrap();
        let mut io = FrameIo::new(ours, &[]);
        let mut chunk = vec![0; READ_CHUNK_BYTES];
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(io.poll_read_chunk(cx, &mut chunk).is_ready() && io.is_flooded());
        io.begin_turn();
        assert!(!io.is_budget_spent());
        for _ in 0..2 {
            assert_eq!(io.read(&mut [0; 512]).unwrap(), 512);
            assert!(io.is_budget_spent());
        }
        assert!(io.read(&mut [0; 512]).is_err());
        io.begin_turn();
        assert!(!io.is_budget_spent());
    }

    #[test]
    fn pongs_have_room_up_to_their_bound() {
        let mut io = FrameIo::new(tokio::io::empty(), &[]);
        let all = usize::from(PONG_BYTES_MAX);
        assert_eq!(io.write(&vec![0; all - 2]).unwrap(), all - 2);
        assert!(io.write(&[0; 3]).is_err() && io.take_owed_pong());
        assert_eq!(io.write(&[0; 2]).unwrap(), 2);
        assert!(io.write(&[0]).is_err() && io.take_owed_pong());
        assert_eq!(io.unflushed(), all);
    }

    #[tokio::test]
    async fn input_that_is_discarded_takes_no_memory() {
        let (ours, mut peer) = duplex(100);
        peer.write_all(&[0x81, 0x80, 0, 0, 0, 0]).await.unwrap();
        let mut io = FrameIo::new(ours, &[]);
        let mut chunk = vec![0; READ_CHUNK_BYTES];
        let cx = &mut Context::from_waker(Waker::noop());
        let read = io.poll_read_chunk(cx, &mut chunk);
        assert!(matches!(read, Poll::Ready(Ok(6))) && !io.is_input_used());
        io.discard_input();
        io.end_turn(&mut chunk);
        assert!(io.is_input_used());
        assert_eq!((io.input.capacity(), chunk.len()), (0, READ_CHUNK_BYTES));
    }

    #[tokio::test]
    async fn what_has_left_is_not_unflushed() {
        let (ours, mut peer) = duplex(10);
        let mut io = FrameIo::new(ours, &[]);
        io.output.extend([b'x'; 25]);
        let cx = &mut Context::from_waker(Waker::noop());
        for left in [15, 5] {
            assert!(io.poll_flush(cx).is_pending());
            assert_eq!((io.unflushed(), io.flushed()), (left, 25 - left));
            peer.read_exact(&mut [0; 10]).await.unwrap();
        }
        assert!(io.poll_flush(cx).is_ready());
        assert_eq!(io.unflushed(), 0);
        assert_eq!(io.take_flushed().len(), 25);
        assert_eq!(io.unflushed(), 0);
    }
}
