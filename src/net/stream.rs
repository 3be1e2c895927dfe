//! A connection's bytes, by TLS or as they are. The session is written once for both, and is no larger
//! for the one that it is not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What is encrypted at once, bytes. The next piece is taken when the last one has left, so that a
/// write that makes progress shows it, and what waits inside is small.
const PIECE_BYTES: usize = 8 * 1024;

/// The stream of a connection.
#[derive(Debug)]
pub(crate) enum Io {
    Plain(TcpStream),
    // Apart, since a TLS stream is some thirty times as large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Ends the connection by a reset: one packet, of which neither kernel keeps anything. By FIN it
    /// would be four, and this one would remember the connection for a minute (RFC 9293 section 3.6.1).
    pub(crate) fn reset(self) {
        let stream = match &self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        // Without the option it ends as any other does.
        let _reset = stream.set_zero_linger();
    }
}

impl AsyncRead for Io {
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

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
                Pin::new(stream).poll_write(cx, piece)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_pays_nothing_for_tls() {
        assert_eq!(size_of::<Io>(), size_of::<TcpStream>());
    }
}
