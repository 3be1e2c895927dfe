//! The writing half of a turn: all that has come for this user since the last turn leaves in as few
//! writes as the socket takes, and each message is settled when its frame has left.

use std::task::{Context, Poll, ready};

use super::endpoint::Endpoint;
use super::machine::Machine;
use super::state::SessionState;
use super::timers::{NEVER, micros};
use super::turn::{Turn, yield_turn};
use crate::directory::{QueuedMessage, Wakes, give_back};
use crate::net::Transport;
use crate::protocol::Status;

/// Writes in one turn, so that the task of a fast reader lets others run.
const WRITES_MAX: usize = 8;

impl<S: Transport> Machine<S> {
    pub(super) fn write(&mut self, turn: &mut Turn, cx: &mut Context<'_>) {
        for _ in 0..WRITES_MAX {
            if self.write_once(turn, cx).is_pending() {
                return;
            }
        }
        yield_turn(cx);
    }

    /// Writes the buffer, then fills it again. Pending where the session waits, for the socket or for
    /// something to write, and where it has ended.
    fn write_once(&mut self, turn: &mut Turn, cx: &mut Context<'_>) -> Poll<()> {
        if let SessionState::Lingering { ending, .. } = &mut self.state {
            if self.endpoint.io.poll_end(ending, cx).is_ready() {
                self.state = SessionState::end();
            } else {
                self.settle(turn);
            }
            return Poll::Pending;
        }
        ready!(self.poll_flush(turn, cx));
        match &mut self.state {
            SessionState::Open(open) if self.endpoint.io.take_owed_pong() => {
                if let Some(websocket) = &mut open.websocket {
                    let io = &mut self.endpoint.io;
                    // Twice, because tungstenite's own buffer may be full: the first flush then only makes room there for
                    // the newest pong. Where there is no room in `io` again, the pong stays owed.
                    let _still_owed = (0..2).any(|_| websocket.flush(io).is_err());
                }
                return Poll::Ready(());
            }
            // Nothing may follow a close frame (RFC 6455 section 5.5.1).
            SessionState::Discarding { .. } => self.settle(turn),
            _ => self.take(turn, cx),
        }
        if !self.endpoint.io.output.is_empty() && !self.state.has_ended() {
            return Poll::Ready(());
        }
        self.poll_advance(turn)
    }

    /// Writes the buffer and settles what has left. Pending while the socket takes no more, and where
    /// the session has ended.
    fn poll_flush(&mut self, turn: &mut Turn, cx: &mut Context<'_>) -> Poll<()> {
        let endpoint = &mut self.endpoint;
        if endpoint.io.output.is_empty() {
            return Poll::Ready(());
        }
        let flushed_before = endpoint.io.flushed();
        let flushed = endpoint.io.poll_flush(cx);
        turn.is_late = true;
        if let Poll::Ready(Err(error)) = flushed {
            self.state = if self.state.is_open() {
                SessionState::fail(&error, endpoint)
            } else {
                SessionState::end()
            };
            return Poll::Pending;
        }
        let bytes = endpoint.io.flushed() - flushed_before;
        endpoint.context.metrics.bytes_written(bytes);
        endpoint.on_flushed(&mut turn.wakes);
        let was_blocked = endpoint.write_deadline != NEVER;
        // Taken wherever the write stops, so that it is never of an earlier write.
        let goes_on = flushed.is_pending() && endpoint.io.take_activity().write || bytes > 0;
        if let SessionState::Open(open) = &mut self.state {
            open.heartbeat.on_written(bytes);
            if was_blocked && goes_on {
                let config = &endpoint.context.config;
                open.heartbeat.on_sign_of_life(config, turn.now);
            }
        }
        if flushed.is_pending() {
            if goes_on || !was_blocked {
                endpoint.write_deadline = turn.now + micros(endpoint.config().write_timeout);
            }
            self.settle(turn);
            return Poll::Pending;
        }
        endpoint.write_deadline = NEVER;
        endpoint.replies.on_flushed(&endpoint.context.metrics);
        if self.state.is_reading_paused() {
            // There may be room for outcomes again, which the next turn's reading looks at.
            cx.waker().wake_by_ref();
        }
        let in_flight = std::mem::take(&mut endpoint.in_flight);
        give_back(endpoint.io.take_flushed(), in_flight);
        Poll::Ready(())
    }

    /// Takes what has come for this user, and a command.
    fn take(&mut self, turn: &mut Turn, cx: &mut Context<'_>) {
        let endpoint = &mut self.endpoint;
        let taken_before = endpoint.in_flight.len();
        let taken = endpoint.membership.client().take(
            std::mem::take(&mut endpoint.flushed),
            &mut endpoint.io.output,
            &mut endpoint.in_flight,
            cx,
        );
        if taken.messages {
            endpoint.on_taken(taken_before, turn.time(&endpoint.context));
        }
        endpoint
            .replies
            .on_taken(taken.outcomes, taken.outcome_bytes);
        if let Some(command) = taken.command {
            self.on_command(command, turn.now);
        }
    }

    /// Settles what has left and takes a command, but no messages. Messages that the socket has not begun to
    /// take go back into the mailbox, where they can make room for others.
    fn settle(&mut self, turn: &mut Turn) {
        let endpoint = &mut self.endpoint;
        let flushed = std::mem::take(&mut endpoint.flushed);
        let command = endpoint.membership.client().settle(flushed);
        if self.state.is_open() {
            endpoint.put_back();
            let client = endpoint.membership.client();
            turn.next_expiry = client.expire(turn.now, &mut turn.wakes);
        }
        if let Some(command) = command {
            self.on_command(command, turn.now);
        }
    }

    /// With nothing left to write: goes on to the next state of a connection that closes. Pending where
    /// the state has to wait for something else.
    fn poll_advance(&mut self, turn: &Turn) -> Poll<()> {
        let endpoint = &mut self.endpoint;
        match &self.state {
            SessionState::Open(_) | SessionState::Lingering { .. } | SessionState::Ended { .. } => {
                Poll::Pending
            }
            SessionState::AwaitingOutcomes { close, .. } => {
                if endpoint.replies.owed() > 0 {
                    return Poll::Pending;
                }
                // The next take finds the messages that came in between.
                self.state = SessionState::flush(close.clone(), endpoint, turn.now);
                Poll::Ready(())
            }
            SessionState::Flushing { close, .. } => {
                self.state = SessionState::discard(close, endpoint, turn.now);
                Poll::Ready(())
            }
            SessionState::Discarding { deadline } => {
                if !endpoint.io.has_peer_closed() {
                    return Poll::Pending;
                }
                self.state = SessionState::linger(endpoint, *deadline);
                Poll::Ready(())
            }
        }
    }
}

impl<S> Endpoint<S> {
    /// Notes where the frames of the messages end that were taken just now, behind `taken_before` others.
    fn on_taken(&mut self, taken_before: usize, now: u64) {
        let metrics = &self.context.metrics;
        let waited = |read_at, count| metrics.mailbox_waited(now.saturating_sub(read_at), count);
        let mut stamps = StampRun::default();
        let mut end = self.io.output.len();
        for message in self.in_flight.range_mut(taken_before..).rev() {
            message.end = u32::try_from(end).expect("a write buffer is far below 4 GiB");
            end -= message.bytes as usize;
            if let Some(trace) = message
                .receipt
                .as_mut()
                .and_then(|receipt| receipt.trace_mut())
            {
                trace.taken();
                metrics.traced_mailbox_waited(trace, now.saturating_sub(message.read_at));
            }
            stamps.add(message.read_at, waited);
        }
        stamps.end(waited);
    }

    /// Settles the messages whose frames have left.
    fn on_flushed(&mut self, wakes: &mut Wakes) {
        let flushed = self.io.flushed();
        let has_left = |message: &QueuedMessage| message.end as usize <= flushed;
        if !self.in_flight.front().is_some_and(has_left) {
            return;
        }
        let now = self.context.now();
        let metrics = &self.context.metrics;
        let took = |read_at, count| metrics.delivery_took(now.saturating_sub(read_at), count);
        let mut stamps = StampRun::default();
        while let Some(message) = self.in_flight.pop_front_if(|message| has_left(message)) {
            stamps.add(message.read_at, took);
            self.flushed.messages += 1;
            self.flushed.bytes += message.bytes;
            if let Some(receipt) = message.receipt {
                if let Some(trace) = receipt.trace() {
                    metrics.traced_delivery_took(trace, now.saturating_sub(message.read_at));
                }
                self.flushed.receipt_bytes += receipt.bytes();
                receipt.settle(Status::Delivered, wakes);
            }
        }
        stamps.end(took);
    }

    /// Puts the last messages in the write buffer back into the mailbox of which the stream has taken no
    /// byte. A frame of another kind between messages stays, and so does what is before it.
    fn put_back(&mut self) {
        let written = self.io.written();
        let end = self.in_flight.back().map_or(0, |last| last.end) as usize;
        let mut from = end;
        let mut keep = self.in_flight.len();
        while let Some(message) = keep.checked_sub(1).map(|last| &self.in_flight[last]) {
            let begin = (message.end - message.bytes) as usize;
            if message.end as usize != from || begin < written {
                break;
            }
            from = begin;
            keep -= 1;
        }
        let messages = self.in_flight.split_off(keep);
        self.membership
            .client()
            .put_back(&self.io.output[from..end], messages);
        self.io.output.drain(from..end);
    }
}

/// Neighbours that were read at the same time: they make one observation, because an observation costs
/// more than the comparison.
#[derive(Default)]
struct StampRun {
    read_at: u64,
    count: u64,
}

impl StampRun {
    /// Adds a message; observes the run before it if that was read at another time.
    fn add(&mut self, read_at: u64, observe: impl FnOnce(u64, u64)) {
        if read_at != self.read_at {
            self.end(observe);
            self.read_at = read_at;
        }
        self.count += 1;
    }

    fn end(&mut self, observe: impl FnOnce(u64, u64)) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            observe(self.read_at, count);
        }
    }
}
