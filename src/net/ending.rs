//! The one way in which every connection ends, so that its peer gets all that was written before the end. Must not
//! know what the connection was for.
//!
//! A socket that closes with unread bytes resets the connection, and the reset can overtake what was written before
//! it (RFC 9112 section 9.6). So the write side ends first, by `close_notify` where the stream is TLS (RFC 8446 section
//! 6.1), and what the peer still sends is read and discarded until the peer ends its side, too.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// The most bytes that are discarded. Behind them the kernel stops the peer, which may read until the time is over:
/// a proxy that passes on a large upload finds an early response that way, and a reset would hide it.
const DISCARDED_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one read. They lie on the stack, so that an end allocates nothing.
const READ_BYTES: usize = 4 * 1024;

/// How far the end of a connection has come. The caller bounds its time, by `keepalive.close_timeout`.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    is_shut: bool,
    discarded: usize,
}

impl Ending {
    /// Goes on with the end. Ready when the connection may be dropped.
    pub(crate) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.is_shut {
            // Pending while a TLS stream has bytes that the socket does not take.
            if ready!(Pin::new(&mut *stream).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            self.is_shut = true;
        }
        loop {
            if self.discarded >= DISCARDED_BYTES_MAX {
                // Nothing wakes the task but the end of its time.
                return Poll::Pending;
            }
            let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
            self.discarded += buffer.filled().len();
        }
    }
}

/// Ends a connection within this time. Without any, does what the socket allows at once.
pub(crate) async fn end(mut stream: impl AsyncRead + AsyncWrite + Unpin, within: Duration) {
    let mut ending = Ending::default();
    let ended = pin!(poll_fn(|cx| ending.poll(&mut stream, cx)));
    // Where the time is over, the peer keeps its side open, and gets a reset if it sends on.
    let _is_over = timeout(within, ended).await;
}
