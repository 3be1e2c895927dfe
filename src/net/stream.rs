//! The byte stream of a connection, plain or TLS. The session is written once for both, and a plain connection is
//! no larger for it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Join, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The most that one write encrypts, bytes. A write encrypts the next bytes only when the last ones have left: so
/// the session sees whether a write makes progress, and little is buffered inside.
const TLS_WRITE_BYTES_MAX: usize = 8 * 1024;

/// The longest that a connection is idle before the kernel probes whether its peer is there. The shortest is half of
/// it.
pub(super) const PROBE_AFTER_MAX: Duration = Duration::from_mins(2);

/// A byte stream that also tells what its reads and writes do not show, so that a slow peer is not taken for a dead
/// one. In memory there is nothing to tell, so the defaults are for streams of tests.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Asks the kernel in which directions the connection can go on.
    ///
    /// Tokio learns it only when it looks at the sockets, at most 1024 of them a look. Until then its reads and
    /// writes are pending without a system call, however much has come.
    fn readiness(&self) -> Directions {
        Directions::default()
    }

    /// Takes the directions in which bytes have gone since the last call. A part of a TLS record shows up here and
    /// nowhere else: on a slow link, a record of 16 KiB takes seconds.
    fn take_activity(&mut self) -> Directions {
        Directions::default()
    }
}

/// Something about each direction of a byte stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directions {
    /// From the peer.
    pub read: bool,
    /// To the peer.
    pub write: bool,
}

impl Transport for DuplexStream {}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Transport for Join<R, W> {}

impl Transport for TcpStream {
    fn readiness(&self) -> Directions {
        let mut fds = [PollFd::new(self, PollFlags::IN | PollFlags::OUT)];
        // A call that fails, such as for lack of memory, says nothing against the peer.
        let ready = match poll(&mut fds, 0) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::all(),
        };
        // The end of the stream and an error are for the next read or write to find.
        let has_ended = ready.intersects(PollFlags::HUP | PollFlags::ERR);
        Directions {
            read: has_ended || ready.contains(PollFlags::IN),
            write: has_ended || ready.contains(PollFlags::OUT),
        }
    }
}

/// The byte stream of a connection.
#[derive(Debug)]
pub(crate) enum ByteStream {
    Plain(TcpStream),
    // Boxed, because a TLS stream is about 30 times as large.
    Tls(Box<TlsStream<RecordStream>>),
}

impl ByteStream {
    /// Ends the connection with a reset: one packet, after which neither kernel keeps any state. An orderly end
    /// takes four packets, and this kernel would remember the connection for a minute (RFC 9293 section 3.6.1).
    pub(crate) fn reset(self) {
        // If the option cannot be set, the connection ends in order.
        let _reset = self.tcp().set_zero_linger();
    }

    /// Gives the connection a time of its own at which the kernel probes whether an idle peer is there. Users who came
    /// at once would otherwise be probed at once, which loses packets.
    pub(crate) fn spread_probes(&self) {
        let after = PROBE_AFTER_MAX.mul_f64(0.5 + fastrand::f64() / 2.0);
        // If the option cannot be set, the listener's holds.
        let _spread =
            SockRef::from(self.tcp()).set_tcp_keepalive(&TcpKeepalive::new().with_time(after));
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0.tcp(),
        }
    }
}

impl Transport for ByteStream {
    fn readiness(&self) -> Directions {
        self.tcp().readiness()
    }

    fn take_activity(&mut self) -> Directions {
        match self {
            Self::Plain(_) => Directions::default(),
            Self::Tls(stream) => std::mem::take(&mut stream.get_mut().0.activity),
        }
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                let bytes = &bytes[..bytes.len().min(TLS_WRITE_BYTES_MAX)];
                Pin::new(stream).poll_write(cx, bytes)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The TCP stream below TLS. Notes that bytes of records come and go.
#[derive(Debug)]
pub(crate) struct RecordStream {
    tcp: TcpStream,
    activity: Directions,
}

impl RecordStream {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        let activity = Directions::default();
        Self { tcp, activity }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn note_write(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.write |= matches!(written, Poll::Ready(Ok(1..)));
        written
    }
}

impl AsyncRead for RecordStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        self.activity.read |= buffer.filled().len() > before;
        read
    }
}

impl AsyncWrite for RecordStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_no_larger_for_tls() {
        assert_eq!(size_of::<ByteStream>(), size_of::<TcpStream>());
    }
}
