//! The writing half of a turn: whatever has come for this user since the last one leaves in as few
//! writes as the socket takes, and each message is settled when its frame was flushed.

use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use super::read::io_end;
use super::{Core, End, NEVER, Phase, Scratch, come_again, micros};
use crate::config::Overflow;
use crate::directory::{Found, QueuedMessage, WRITE_BYTES, give_back};
use crate::protocol::{Status, push_close};

/// Writes a turn, so that a fast reader's task lets others run.
const WRITES_MAX: usize = 8;

impl<S: AsyncRead + AsyncWrite + Unpin> Core<S> {
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: u64,
    ) -> Option<End> {
        for _ in 0..WRITES_MAX {
            match self.drain(cx, scratch, now) {
                Poll::Pending => return None,
                Poll::Ready(Err(end)) => return Some(end),
                Poll::Ready(Ok(())) => {}
            }
            if !self.is_closing_frame_out() {
                if self.take_owed() {
                    continue;
                }
                let found = self.visit(cx, (!scratch.is_late).then_some(now));
                if let Some(end) = found
                    .command
                    .and_then(|command| self.on_command(command, now))
                {
                    return Some(end);
                }
                if found.anything || !self.wire.out.is_empty() {
                    continue;
                }
            } else if let Some(end) = self.settle(now) {
                return Some(end);
            }
            match self.step_out(cx, now) {
                Poll::Ready(Some(end)) => return Some(end),
                Poll::Ready(None) => {}
                Poll::Pending => return None,
            }
        }
        come_again(cx);
        None
    }

    /// Whether a close frame of ours was put into the write buffer: nothing may follow it (RFC 6455
    /// section 5.5.1).
    fn is_closing_frame_out(&self) -> bool {
        matches!(self.phase, Phase::Discarding(_) | Phase::Ending(_))
    }

    /// Asks tungstenite for a pong that found no room in the write buffer before. Whether there was
    /// one.
    fn take_owed(&mut self) -> bool {
        if !matches!(self.phase, Phase::Open) || !self.wire.take_owed() {
            return false;
        }
        if let Some(ws) = &mut self.ws {
            let _still_owed = ws.flush(&mut self.wire).is_err();
        }
        true
    }

    /// Takes what has come for this user, at `now` where the turn has made no system call yet:
    /// a clock costs as much as a message's lookup.
    fn visit(&mut self, cx: &Context<'_>, now: Option<u64>) -> Found {
        let before = self.flights.len();
        let found = self.membership.client().visit(
            std::mem::take(&mut self.flushed),
            (&mut self.wire.out, &mut self.flights),
            WRITE_BYTES,
            cx,
        );
        if found.messages {
            self.board(before, now);
        }
        self.leaving += found.outcomes;
        found
    }

    /// Settles what has left, and hears a command.
    fn settle(&mut self, now: u64) -> Option<End> {
        let flushed = std::mem::take(&mut self.flushed);
        let (command, _) = self.membership.client().settle(flushed);
        command.and_then(|command| self.on_command(command, now))
    }

    /// Notes where the frames end that were just put at the end of the write buffer, at `now` or at the
    /// time that it is.
    fn board(&mut self, before: usize, now: Option<u64>) {
        let now = now.unwrap_or_else(|| self.context.now());
        let metrics = &self.context.metrics;
        let waited = |read_at, count| metrics.mailbox_waited(now.saturating_sub(read_at), count);
        let mut run = Run::default();
        let mut end = self.wire.out.len();
        for entry in self.flights.range_mut(before..).rev() {
            entry.end = u32::try_from(end).expect("a write buffer is far below 4 GiB");
            end -= entry.bytes as usize;
            if let Some(trace) = entry
                .receipt
                .as_mut()
                .and_then(|receipt| receipt.trace_mut())
            {
                trace.taken();
            }
            run.add(entry.read_at, waited);
        }
        run.end(waited);
    }

    /// Writes the buffer, and settles what has left.
    fn drain(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: u64,
    ) -> Poll<Result<(), End>> {
        if self.wire.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let before = self.wire.left();
        let drained = self.wire.poll_drain(cx);
        scratch.is_late = true;
        if let Poll::Ready(Err(error)) = drained {
            let end = match &self.phase {
                Phase::Open => io_end(&error),
                Phase::Leaving(..) | Phase::Discarding(_) | Phase::Ending(_) => self.ending(),
            };
            return Poll::Ready(Err(end));
        }
        let count = self.wire.left() - before;
        self.context.metrics.bytes_written(count);
        self.alight(scratch);
        if drained.is_pending() {
            if count > 0 || self.due.stall == NEVER {
                self.due.stall = now + micros(self.context.config.write_timeout);
            }
            return match self.wait_blocked(now) {
                Some(end) => Poll::Ready(Err(end)),
                None => Poll::Pending,
            };
        }
        self.due.stall = NEVER;
        self.promised -= std::mem::take(&mut self.leaving);
        if self.paused.is_some() {
            cx.waker().wake_by_ref();
        }
        give_back(self.wire.take_drained(), std::mem::take(&mut self.flights));
        Poll::Ready(Ok(()))
    }

    /// While the socket takes nothing: what has left is settled, a command is heard, and what was not
    /// begun goes back into the mailbox where it may have to make room.
    fn wait_blocked(&mut self, now: u64) -> Option<End> {
        let client = self.membership.client();
        let (command, overflow) = client.settle(std::mem::take(&mut self.flushed));
        if overflow == Overflow::DropOldest && matches!(self.phase, Phase::Open) {
            self.put_back();
        }
        command.and_then(|command| self.on_command(command, now))
    }

    /// Puts the messages at the end of the write buffer that were not begun back into the mailbox.
    fn put_back(&mut self) {
        let written = self.wire.written();
        let mut from = self.wire.out.len();
        let mut keep = self.flights.len();
        while let Some(entry) = keep.checked_sub(1).map(|last| &self.flights[last]) {
            let begin = (entry.end - entry.bytes) as usize;
            if entry.end as usize != from || begin < written {
                break;
            }
            from = begin;
            keep -= 1;
        }
        if keep < self.flights.len() {
            let entries = self.flights.split_off(keep);
            self.membership
                .client()
                .put_back(&self.wire.out[from..], entries);
            self.wire.out.truncate(from);
        }
    }

    /// With nothing left to write: the next step of a connection that closes. Ready with nothing
    /// where there is something to write again.
    fn step_out(&mut self, cx: &mut Context<'_>, now: u64) -> Poll<Option<End>> {
        let by = now + micros(self.context.config.close_timeout);
        match &mut self.phase {
            Phase::Open | Phase::Discarding(_) => Poll::Pending,
            Phase::Leaving(close, until) => {
                if close.awaits_outcomes {
                    if self.promised > 0 {
                        return Poll::Pending;
                    }
                    close.awaits_outcomes = false;
                    *until = by;
                    // What came in between is found by one more visit.
                    self.membership.client().shut();
                    return Poll::Ready(None);
                }
                let (code, reason) = &close.frame;
                push_close(&mut self.wire.out, Some((*code, reason)));
                self.phase = Phase::Discarding(by);
                // The read half has to be asked, or it wakes nobody.
                cx.waker().wake_by_ref();
                Poll::Ready(None)
            }
            Phase::Ending(_) => {
                // The connection is dropped either way; this lets the peer see an orderly end.
                let _ended = self.wire.poll_shutdown(cx);
                Poll::Ready(Some(self.ending()))
            }
        }
    }

    /// Settles the messages whose frames have left.
    fn alight(&mut self, scratch: &mut Scratch) {
        let left = self.wire.left();
        let has_left = |entry: &QueuedMessage| entry.end as usize <= left;
        if !self.flights.front().is_some_and(has_left) {
            return;
        }
        let now = self.context.now();
        let metrics = &self.context.metrics;
        let took = |read_at, count| metrics.delivery_took(now.saturating_sub(read_at), count);
        let mut run = Run::default();
        while let Some(entry) = self.flights.pop_front_if(|entry| has_left(entry)) {
            run.add(entry.read_at, took);
            self.flushed.messages += 1;
            self.flushed.bytes += entry.bytes as usize;
            if let Some(receipt) = entry.receipt {
                receipt.settle(Status::Delivered, &mut scratch.wakes);
            }
        }
        run.end(took);
    }
}

/// Neighbours that were read at the same time: one observation for all of them.
#[derive(Default)]
struct Run {
    read_at: u64,
    count: u64,
}

impl Run {
    /// One more; the run before it is over where it was read at another time.
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
