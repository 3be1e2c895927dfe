//! One poll of a session, and what it borrows from its worker thread. Must not touch a connection.

use std::cell::Cell;
use std::pin::pin;
use std::task::Context;

use hyper_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio::task::yield_now;

use super::context::{SessionConfig, SessionContext};
use super::frames::READ_CHUNK_BYTES;
use crate::directory::Wakes;
use crate::protocol::Dialect;

/// Bytes that tungstenite asks for at once. It zeroes as many before each read, so more of them cost
/// time where little comes, and fewer cost more reads where much comes.
const READ_BUFFER_BYTES: usize = 1024;

/// One poll of a session.
pub(super) struct Turn<'a, 'w> {
    pub(super) cx: &'a mut Context<'w>,
    pub(super) scratch: &'a mut Scratch,
    /// When the turn began.
    pub(super) now: u64,
    /// Bytes that this turn has read.
    pub(super) chunk_bytes: usize,
    /// A system call was made, so that `now` is out of date.
    is_late: bool,
}

impl<'a, 'w> Turn<'a, 'w> {
    pub(super) fn new(cx: &'a mut Context<'w>, scratch: &'a mut Scratch, now: u64) -> Self {
        Self {
            cx,
            scratch,
            now,
            chunk_bytes: 0,
            is_late: false,
        }
    }

    /// Notes a system call, which takes much longer than the rest of a turn.
    pub(super) fn made_system_call(&mut self) {
        self.is_late = true;
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

    /// Ends a turn that has more to do; the task runs again after others have.
    ///
    /// Tokio puts a task that wakes itself in front of what the sockets have for others. A few such tasks
    /// would delay all others for the dozens of turns between two looks at the sockets, so this defers
    /// the wake-up until after the next look.
    pub(super) fn yield_turn(&mut self) {
        let yielded = pin!(yield_now()).poll(self.cx);
        debug_assert!(yielded.is_pending(), "it wakes the task now or later");
    }
}

/// What a turn borrows from its worker thread, so that an idle connection owns no buffer at all.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Room for a read chunk.
    pub(super) chunk: Vec<u8>,
    pub(super) wakes: Wakes,
    /// Tungstenite's side of a connection; it has a buffer, and no way to shrink it. A connection keeps
    /// one of its own only while half a message is in it.
    pub(super) websocket: Option<Box<WebSocketContext>>,
}

thread_local! {
    // Boxed, so that a turn moves a pointer there and back.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "it is the thread's box, and goes back there"
    )]
    pub(super) fn borrow() -> Box<Self> {
        SCRATCH.take().unwrap_or_else(|| {
            Box::new(Self {
                chunk: vec![0; READ_CHUNK_BYTES],
                wakes: Wakes::default(),
                websocket: None,
            })
        })
    }

    pub(super) fn give_back(mut self: Box<Self>) {
        self.wakes.wake();
        SCRATCH.set(Some(self));
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
