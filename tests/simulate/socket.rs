//! The byte stream between a client and its session, in memory. The client's side is not a task: the simulator calls
//! it between two steps of the nodes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::Transport;

/// The node's side.
pub(super) struct NodeSocket(Arc<Mutex<Pipe>>);

/// The client's side.
#[derive(Clone)]
pub(super) struct ClientSocket(Arc<Mutex<Pipe>>);

pub(super) struct Pipe {
    /// From the client, not read by the node.
    inbound: VecDeque<u8>,
    /// Bytes to the client that its socket holds.
    outbound_bytes: usize,
    outbound_max: usize,
    /// The most bytes of one write.
    write_max: usize,
    /// All that the node has written since the simulator looked last.
    written: Vec<u8>,
    is_finished: bool,
    is_reset: bool,
    is_closed_by_node: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

pub(super) fn pair(outbound_max: usize, write_max: usize) -> (NodeSocket, ClientSocket) {
    let pipe = Arc::new(Mutex::new(Pipe {
        inbound: VecDeque::new(),
        outbound_bytes: 0,
        outbound_max,
        write_max,
        written: Vec::new(),
        is_finished: false,
        is_reset: false,
        is_closed_by_node: false,
        reader: None,
        writer: None,
    }));
    (NodeSocket(pipe.clone()), ClientSocket(pipe))
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()] {
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl ClientSocket {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.0.lock()
    }

    pub(super) fn send(&self, bytes: &[u8]) {
        let mut pipe = self.pipe();
        if !pipe.is_finished && !pipe.is_reset {
            pipe.inbound.extend(bytes);
            pipe.wake();
        }
    }

    /// What the node has written since the last call. It stays in the socket until [`ClientSocket::read`].
    pub(super) fn take_written(&self) -> Vec<u8> {
        std::mem::take(&mut self.pipe().written)
    }

    /// Reads all that the socket holds.
    pub(super) fn read(&self) {
        let mut pipe = self.pipe();
        if pipe.outbound_bytes > 0 {
            pipe.outbound_bytes = 0;
            pipe.wake();
        }
    }

    /// Sends no more.
    pub(super) fn finish(&self) {
        let mut pipe = self.pipe();
        pipe.is_finished = true;
        pipe.wake();
    }

    /// Breaks the connection.
    pub(super) fn reset(&self) {
        let mut pipe = self.pipe();
        pipe.is_reset = true;
        pipe.wake();
    }

    pub(super) fn is_closed_by_node(&self) -> bool {
        self.pipe().is_closed_by_node
    }
}

impl Transport for NodeSocket {}

impl AsyncRead for NodeSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut pipe = self.0.lock();
        if pipe.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let count = pipe.inbound.len().min(buffer.remaining());
        if count == 0 && !pipe.is_finished {
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes: Vec<u8> = pipe.inbound.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for NodeSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.lock();
        if pipe.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = pipe.outbound_max - pipe.outbound_bytes;
        let count = bytes.len().min(room).min(pipe.write_max);
        if count == 0 && !bytes.is_empty() {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.outbound_bytes += count;
        pipe.written.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().is_closed_by_node = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for NodeSocket {
    fn drop(&mut self) {
        self.0.lock().is_closed_by_node = true;
    }
}
