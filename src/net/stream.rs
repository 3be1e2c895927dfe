//! The byte stream of a connection, plain or TLS. The session is written once for both, and a plain connection is
//! no larger for it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The most that one write encrypts, bytes. A write encrypts the next bytes only when the last ones have left: so
/// the session sees whether a write makes progress, and little is buffered inside.
const TLS_WRITE_BYTES_MAX: usize = 8 * 1024;

/// The byte stream of a connection.
#[derive(Debug)]
pub(crate) enum ByteStream {
    Plain(TcpStream),
    // Boxed, because a TLS stream is about 30 times as large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ByteStream {
    /// Ends the connection with a reset: one packet, after which neither kernel keeps any state. An orderly end
    /// takes four packets, and this kernel would remember the connection for a minute (RFC 9293 section 3.6.1).
    pub(crate) fn reset(self) {
        let stream = match &self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        // If the option cannot be set, the connection ends in order.
        let _reset = stream.set_zero_linger();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_no_larger_for_tls() {
        assert_eq!(size_of::<ByteStream>(), size_of::<TcpStream>());
    }
}
