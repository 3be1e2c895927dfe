//! One poll of a session, with the buffers that it borrows from its worker thread. Must not touch a
//! connection.

use std::cell::Cell;
use std::pin::pin;
use std::task::Context;

use hyper_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio::task::yield_now;

use super::context::{SessionConfig, SessionContext};
use super::frames::READ_CHUNK_BYTES;
use super::timers::NEVER;
use crate::directory::Wakes;
use crate::protocol::Dialect;

/// Bytes that tungstenite asks for at once. It zeroes as many before each read, so more of them cost
/// time where little comes, and fewer cost more reads where much comes.
const READ_BUFFER_BYTES: usize = 1024;

/// The most reads of a turn that bring something. TLS brings at most a record of 16 KiB with each, so a turn
/// still reads a chunk. A read goes on over records that are empty; rustls refuses more than 32 of these in a row.
const READS_MAX: u32 = 4;

/// One poll of a session. Its buffers belong to the worker thread, so that an idle connection owns none.
#[derive(Debug)]
pub(super) struct Turn {
    /// When the turn began.
    pub(super) now: u64,
    /// A system call was made, which takes much longer than the rest of a turn: `now` is out of date.
    pub(super) is_late: bool,
    /// When the session has to drop a message that waits behind a blocked write; [`NEVER`] while none is.
    pub(super) next_expiry: u64,
    /// Reads of this turn that have brought something.
    reads: u32,
    /// Bytes that this turn has read.
    chunk_bytes: usize,
    /// Room for a read chunk.
    pub(super) chunk: Vec<u8>,
    pub(super) wakes: Wakes,
    /// Tungstenite's side of a connection. It has a buffer, and no way to shrink it, so a connection keeps
    /// one of its own only while half a message is in it.
    pub(super) websocket: Option<Box<WebSocketContext>>,
}

thread_local! {
    // Boxed, so that a turn moves a pointer there and back.
    static TURN: Cell<Option<Box<Turn>>> = const { Cell::new(None) };
}

impl Turn {
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "it is the thread's box, and goes back there"
    )]
    pub(super) fn begin(now: u64) -> Box<Self> {
        let mut turn = TURN.take().unwrap_or_else(|| {
            Box::new(Self {
                now,
                is_late: false,
                next_expiry: NEVER,
                reads: 0,
                chunk_bytes: 0,
                chunk: vec![0; READ_CHUNK_BYTES],
                wakes: Wakes::default(),
                websocket: None,
            })
        });
        turn.now = now;
        turn.is_late = false;
        turn.next_expiry = NEVER;
        turn.reads = 0;
        turn.chunk_bytes = 0;
        turn
    }

    /// Notes that a read has brought so many bytes.
    pub(super) fn on_read(&mut self, bytes: usize) {
        self.reads += 1;
        self.chunk_bytes += bytes;
    }

    /// Whether the turn has read its share: a chunk's bytes, which TLS brings in several pieces. A peer that
    /// puts each byte into a TLS record of its own makes a read cost as much as for a full record.
    pub(super) fn has_read_enough(&self) -> bool {
        self.chunk_bytes >= READ_CHUNK_BYTES || self.reads >= READS_MAX
    }

    /// Whether each read has brought next to nothing, as from a peer that puts each byte into a TLS record of its own.
    /// The smallest frame of a client has 6 bytes (RFC 6455 section 5.2).
    pub(super) fn has_read_crumbs(&self) -> bool {
        self.reads >= READS_MAX && self.chunk_bytes < 6 * READS_MAX as usize
    }

    /// Gives the buffers back to the thread, and wakes the tasks that this turn has something for.
    pub(super) fn end(mut self: Box<Self>) {
        self.wakes.wake();
        TURN.set(Some(self));
    }

    /// Returns the time. Reads the clock only after a system call, because a read costs as much as the
    /// lookup of a recipient.
    pub(super) fn time(&self, context: &SessionContext) -> u64 {
        if self.is_late {
            context.now()
        } else {
            self.now
        }
    }

    /// Takes a side of tungstenite's that is new, or as good as new.
    pub(super) fn take_websocket(
        &mut self,
        config: &SessionConfig,
        dialect: Dialect,
    ) -> Box<WebSocketContext> {
        // Bare closes on any message over the limit, so such a message need not be read. In
        // switchboard.v1 it is read for its id, which the outcome needs.
        let bytes_max = match dialect {
            Dialect::Bare => config.message_bytes,
            Dialect::V1 => config.frame_bytes,
        };
        let mut websocket = self.websocket.take().unwrap_or_else(|| {
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER_BYTES)
                .write_buffer_size(0)
                .max_write_buffer_size(READ_BUFFER_BYTES);
            Box::new(WebSocketContext::new(Role::Server, Some(config)))
        });
        if websocket.get_config().max_frame_size != Some(bytes_max) {
            websocket.set_config(|config| {
                config.max_message_size = Some(bytes_max);
                config.max_frame_size = Some(bytes_max);
            });
        }
        websocket
    }
}

/// Ends a turn that has more to do; the task runs again after others have.
///
/// Tokio puts a task that wakes itself in front of what the sockets have for others. A few such tasks would
/// delay all others for the dozens of turns between two looks at the sockets, so this defers the wake-up
/// until after the next look.
pub(super) fn yield_turn(cx: &mut Context<'_>) {
    let yielded = pin!(yield_now()).poll(cx);
    debug_assert!(yielded.is_pending(), "it wakes the task now or later");
}
