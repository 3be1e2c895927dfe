//! The byte stream that hyper reads and writes. hyper answers a head that is too large by itself, without a body;
//! this stream replaces that response by one that names the limit.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::ByteStream;

/// How hyper's response to a head that is too large begins. No route has this status.
const TOO_LARGE: &[u8] = b"HTTP/1.1 431 ";

pub(super) struct HttpStream {
    inner: ByteStream,
    /// `limits.header_bytes`.
    header_bytes: usize,
    /// The rest of the response to a head that is too large.
    refusal: Option<Bytes>,
}

impl HttpStream {
    pub(super) fn new(inner: ByteStream, header_bytes: usize) -> Self {
        Self {
            inner,
            header_bytes,
            refusal: None,
        }
    }

    pub(super) fn into_inner(self) -> ByteStream {
        self.inner
    }
}

fn refusal(header_bytes: usize) -> Bytes {
    let body = format!(
        "the request head is larger than limits.header_bytes, which is {header_bytes} bytes, or has more than \
         100 fields\n"
    );
    let length = body.len();
    let head = format!(
        "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Cache-Control: no-store\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    (head + &body).into()
}

impl AsyncRead for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !bytes.starts_with(TOO_LARGE) {
            return Pin::new(&mut this.inner).poll_write(cx, bytes);
        }
        let header_bytes = this.header_bytes;
        let rest = this.refusal.get_or_insert_with(|| refusal(header_bytes));
        while rest.has_remaining() {
            let count = ready!(Pin::new(&mut this.inner).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            rest.advance(count);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
