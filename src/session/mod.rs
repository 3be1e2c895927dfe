//! The life of one connection, in one task. Only a session touches the socket of its user.
//!
//! A turn, which is one poll of the task, does what is due, reads a chunk and sends the messages in it,
//! and then writes all that has come for this user. The states of a connection are in [`state`].
//!
//! A session is a future written by hand, because its size is most of what an idle connection costs.

mod context;
mod endpoint;
mod frames;
mod heartbeat;
mod machine;
mod rates;
mod read;
mod receive;
mod replies;
mod state;
mod timers;
mod tracker;
mod turn;
mod write;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use context::{SessionConfig, SessionContext, Welcome};
use endpoint::{Endpoint, THROTTLE_MICROS};
use frames::FrameIo;
use machine::Machine;
use state::SessionState;
use timers::{Timer, micros};
use turn::Turn;

use crate::net::Transport;
use crate::net::ending::Ending;
use crate::protocol::Outbound;
use crate::relay::Membership;

pin_project_lite::pin_project! {
    /// One connection: a future that ends with it.
    pub struct Session<S> {
        machine: Machine<S>,
        #[pin]
        timer: Timer,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Creates a session over `io`, the socket of a complete handshake, of which `read` was read already.
    /// Needs a runtime, for its timer.
    pub fn new(
        io: S,
        read: &[u8],
        membership: Membership,
        welcome: &Welcome,
        context: Arc<SessionContext>,
    ) -> Self {
        let now = context.now();
        let ping_interval = context.config.ping_interval;
        let message_bytes = context.config.message_bytes;
        let mut endpoint = Endpoint::new(FrameIo::new(io, read), membership, context);
        endpoint.push(Outbound::Welcome {
            user_id: endpoint.membership.client().id(),
            heartbeat_ms: u64::try_from(ping_interval.as_millis()).unwrap_or(u64::MAX),
            max_message_bytes: message_bytes,
            ticket: &welcome.ticket,
            resumed: welcome.resumed,
            reason: welcome.reason,
        });
        Self {
            machine: Machine::new(endpoint, now),
            timer: Timer::new(),
        }
    }

    /// Closes the connection with 4401 after this time.
    pub fn expire_in(&mut self, remaining: Duration) {
        let now = self.machine.endpoint.context.now();
        if let SessionState::Open(open) = &mut self.machine.state {
            open.expire_at(now.saturating_add(micros(remaining)));
        }
    }
}

impl<S: Transport> Future for Session<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let machine = &mut *this.machine;
        let now = machine.endpoint.context.now();
        // Asked in every poll, whatever has woken the task: a timer that has fired is armed again below.
        let is_due = this.timer.as_mut().has_fired(now);
        let mut turn = Turn::begin(now);
        // A panic ends this connection and no other: the ledger's types settle what it held.
        let result = catch_unwind(AssertUnwindSafe(|| machine.turn(&mut turn, is_due, cx)));
        if result.is_err() {
            machine.recover(cx);
        }
        // In this order, also after a panic: the chunk goes back to the thread, and the tasks that this turn has
        // something for are woken once, when all of it is queued.
        machine.endpoint.io.end_turn(&mut turn.chunk);
        let next_expiry = turn.next_expiry;
        turn.end();
        if machine.state.has_ended() {
            // A deadline or an abort has ended the session: what the socket takes at once still ends it in order.
            let _pending = machine.endpoint.io.poll_end(&mut Ending::default(), cx);
            return Poll::Ready(());
        }
        let mut next = machine.next_deadline().min(next_expiry);
        // Read again, because a turn with system calls takes long enough to matter here.
        if machine.endpoint.io.is_throttled {
            next = next.min(machine.endpoint.context.now() + THROTTLE_MICROS);
        }
        let epoch = machine.endpoint.context.epoch();
        this.timer.arm(next, epoch, cx);
        Poll::Pending
    }
}

impl<S: Transport> Machine<S> {
    fn turn(&mut self, turn: &mut Turn, is_due: bool, cx: &mut Context<'_>) {
        if is_due {
            self.endpoint.io.is_throttled = false;
        }
        let was_open = self.state.is_open();
        self.read(turn, cx);
        // After the read: a relay that was frozen finds the deadline passed, and the pong in its socket.
        if is_due && !self.state.has_ended() {
            self.on_deadline(turn.now);
        }
        if !self.state.has_ended() {
            self.write(turn, cx);
        }
        if was_open && !self.state.is_open() {
            // An open session may have paused reading, and so not be woken by what the peer sends. The next turn
            // begins with a read.
            cx.waker().wake_by_ref();
        }
    }
}

impl<S> std::fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("membership", &self.machine.endpoint.membership)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ByteStream;

    /// The sessions of idle users are most of the memory of a relay.
    #[test]
    fn a_session_has_at_most_512_bytes() {
        assert!(size_of::<Session<ByteStream>>() <= 512);
    }
}
