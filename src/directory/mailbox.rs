//! One user's bounded queue: frames that wait for its socket, end to end so that few writes send them,
//! and beside them an entry for each. A sender never waits for room: a full mailbox follows
//! [`Overflow`]. Must not know of locks, wakers or sockets.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

use super::bounds::{Budget, MailboxBounds};
use super::chunks::{Frames, WRITE_BYTES};
use super::receipt::Receipt;
use crate::config::Overflow;
use crate::identity::Sender;
use crate::ledger::{Held, InHand};
use crate::protocol::{Dialect, Outbound, push_frame};
use crate::telemetry::metrics::{DropReason, Metrics};

/// The entry of one message that is queued or taken.
#[derive(Debug)]
pub struct QueuedMessage {
    /// When its frame was read, microseconds of the app's clock.
    pub(crate) read_at: u64,
    /// What is owed for it, if anything.
    pub(crate) receipt: Option<Box<Receipt>>,
    /// The length of its frame.
    pub(crate) bytes: u32,
    /// Where its frame ends in the session's write buffer, after it was taken.
    pub(crate) end: u32,
}

/// A message on its way into a mailbox.
#[derive(Debug)]
pub struct Message<'a> {
    /// The author.
    pub sender: Sender,
    /// The text, as a JSON string literal.
    pub body: &'a str,
    /// When its frame was read, microseconds of the app's clock.
    pub read_at: u64,
    /// What is owed for it, if anything.
    pub receipt: Option<Box<Receipt>>,
}

/// The frame that a message becomes for one recipient.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageFrame<'a> {
    pub(super) dialect: Dialect,
    pub(super) traceparent: Option<&'a str>,
    pub(super) tracestate: Option<&'a str>,
    /// The length of the whole frame.
    pub(super) bytes: usize,
}

/// Whether one more message fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It fits, and its bytes are reserved.
    Reserved,
    /// This mailbox is full.
    Full,
    /// The budget of all mailboxes is spent.
    OverBudget,
}

/// The queue itself; a client's lock guards it.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Frames that were not taken yet.
    frames: Frames,
    /// Their messages.
    queued: VecDeque<QueuedMessage>,
    /// Counts messages until they are settled, so the taken ones too.
    held: Held,
    held_bytes: usize,
    /// Bytes reserved from the budget; at least `held_bytes`.
    reserved: u64,
    bounds: Arc<MailboxBounds>,
}

impl Mailbox {
    pub(super) fn new(bounds: Arc<MailboxBounds>, metrics: Arc<Metrics>) -> Self {
        Self {
            frames: Frames::default(),
            queued: VecDeque::new(),
            held: Held::new(metrics),
            held_bytes: 0,
            reserved: 0,
            bounds,
        }
    }

    /// Messages that are queued, or taken and not settled.
    pub(super) fn messages(&self) -> u32 {
        self.held.messages()
    }

    /// Bytes of the frames of [`Mailbox::messages`].
    pub(super) fn bytes(&self) -> usize {
        self.held_bytes
    }

    /// Messages delivered from this mailbox in all; counts from 0 again after `u32::MAX`.
    pub(super) fn delivered_in_all(&self) -> u32 {
        self.held.delivered_in_all()
    }

    pub(super) fn overflow(&self) -> Overflow {
        self.bounds.overflow
    }

    pub(super) fn bounds(&self) -> &Arc<MailboxBounds> {
        &self.bounds
    }

    /// Bytes of the frames that were not taken yet.
    pub(super) fn queued_bytes(&self) -> usize {
        self.frames.bytes()
    }

    /// Reserves room for one more frame of `bytes`, if it is within all bounds.
    pub(super) fn reserve(&mut self, bytes: usize) -> Fit {
        if self.held.messages() >= self.bounds.messages
            || self.held_bytes + bytes > self.bounds.bytes
        {
            return Fit::Full;
        }
        let needed = (self.held_bytes + bytes) as u64;
        if needed <= self.reserved {
            return Fit::Reserved;
        }
        let more = (needed - self.reserved).next_multiple_of(Budget::STEP);
        if !self.bounds.budget.reserve(more) {
            return Fit::OverBudget;
        }
        self.reserved += more;
        Fit::Reserved
    }

    /// Makes room for a frame that did not fit, if the overflow policy drops the oldest messages. Those
    /// go to `dropped`, also where all of them are too little. Returns whether room is reserved.
    pub(super) fn make_room(&mut self, bytes: usize, dropped: &mut Vec<QueuedMessage>) -> bool {
        while self.bounds.overflow == Overflow::DropOldest
            && let Some(oldest) = self.drop_oldest(DropReason::QueueFull)
        {
            dropped.push(oldest);
            if self.reserve(bytes) == Fit::Reserved {
                return true;
            }
        }
        false
    }

    /// Appends a message. Room for its frame must be reserved.
    pub(super) fn append<M: Deref<Target = Metrics>>(
        &mut self,
        message: Message<'_>,
        frame: MessageFrame<'_>,
        in_hand: InHand<M>,
    ) {
        let Message {
            sender,
            body,
            read_at,
            mut receipt,
        } = message;
        if !self.frames.has_buffer() {
            let (buffer, queued) = spare_buffers();
            self.frames.reuse(buffer);
            self.queued = queued;
        }
        let outbound = Outbound::Message {
            sender_id: sender,
            message: body,
            traceparent: frame.traceparent,
            tracestate: frame.tracestate,
        };
        push_frame(self.frames.room_for(frame.bytes), frame.dialect, outbound);
        if let Some(trace) = receipt.as_mut().and_then(|receipt| receipt.trace_mut()) {
            trace.queued();
        }
        self.queued.push_back(QueuedMessage {
            read_at,
            receipt,
            bytes: u32::try_from(frame.bytes).expect("limits.frame_bytes is far below 4 GiB"),
            end: 0,
        });
        self.held.hold(in_hand);
        self.held_bytes += frame.bytes;
    }

    /// Drops messages that were not taken, at least `bytes` of them as far as there are any, from the
    /// end that the overflow policy drops from.
    pub(super) fn evict(&mut self, bytes: usize, reason: DropReason) -> Vec<QueuedMessage> {
        let mut evicted = Vec::new();
        let mut freed = 0;
        while freed < bytes {
            let dropped = match self.bounds.overflow {
                Overflow::DropOldest => self.drop_oldest(reason),
                Overflow::DropNewest | Overflow::Disconnect => self.drop_newest(reason),
            };
            let Some(dropped) = dropped else { break };
            freed += dropped.bytes as usize;
            evicted.push(dropped);
        }
        evicted
    }

    /// Drops the newest message that was not taken.
    fn drop_newest(&mut self, reason: DropReason) -> Option<QueuedMessage> {
        let newest = self.queued.pop_back()?;
        let bytes = newest.bytes as usize;
        self.frames.drop_last(bytes);
        self.dropped(1, bytes, reason);
        Some(newest)
    }

    /// Drops the oldest message that was not taken.
    fn drop_oldest(&mut self, reason: DropReason) -> Option<QueuedMessage> {
        let oldest = self.queued.pop_front()?;
        let bytes = oldest.bytes as usize;
        self.frames.drop_first(bytes);
        self.dropped(1, bytes, reason);
        Some(oldest)
    }

    /// Moves frames of up to [`WRITE_BYTES`], or one larger frame, to the end of `frames`, and their
    /// messages to the end of `taken`. They count as held until [`Mailbox::delivered`] or
    /// [`Mailbox::dropped`]. Returns whether there were any.
    pub(super) fn take(
        &mut self,
        frames: &mut Vec<u8>,
        taken: &mut VecDeque<QueuedMessage>,
    ) -> bool {
        if self.queued.is_empty() {
            return false;
        }
        if taken.is_empty() && self.frames.swap_all(frames, WRITE_BYTES) {
            std::mem::swap(taken, &mut self.queued);
            return true;
        }
        let first = self.frames.first_bytes();
        let mut bytes = 0;
        while let Some(next) = self.queued.front() {
            let with_next = bytes + next.bytes as usize;
            if with_next > first || (bytes > 0 && with_next > WRITE_BYTES) {
                break;
            }
            bytes = with_next;
            taken.extend(self.queued.pop_front());
        }
        self.frames.take(bytes, frames);
        if self.queued.is_empty() {
            give_back(
                std::mem::take(&mut self.frames).into_buffer(),
                std::mem::take(&mut self.queued),
            );
        }
        true
    }

    /// Puts taken messages back in front of all that are queued. None of them may have been written,
    /// not even in part.
    pub(super) fn put_back(&mut self, frames: &[u8], mut taken: VecDeque<QueuedMessage>) {
        self.frames.put_back(frames);
        taken.append(&mut self.queued);
        self.queued = taken;
    }

    /// Settles `count` taken messages of `bytes` bytes as delivered.
    pub(super) fn delivered(&mut self, count: u32, bytes: usize) {
        self.held.delivered(count);
        self.release_bytes(bytes);
    }

    /// Settles `count` messages of `bytes` bytes as dropped.
    pub(super) fn dropped(&mut self, count: u32, bytes: usize, reason: DropReason) {
        self.held.dropped(count, reason);
        self.release_bytes(bytes);
    }

    /// Drops all messages that were not taken, and returns them for their receipts.
    pub(super) fn drop_queued(&mut self, reason: DropReason) -> VecDeque<QueuedMessage> {
        let queued = std::mem::take(&mut self.queued);
        let bytes = std::mem::take(&mut self.frames).bytes();
        let count = u32::try_from(queued.len()).expect("mailbox.messages is a u32");
        self.dropped(count, bytes, reason);
        queued
    }

    fn release_bytes(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
        // One step stays reserved beyond the need, so that a mailbox that swings around the border of
        // a step does not touch the shared counter every time. An empty mailbox keeps nothing.
        let keep = if self.held_bytes == 0 {
            0
        } else {
            (self.held_bytes as u64).next_multiple_of(Budget::STEP) + Budget::STEP
        };
        if self.reserved > keep {
            self.bounds.budget.release(self.reserved - keep);
            self.reserved = keep;
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.bounds.budget.release(self.reserved);
    }
}

/// The most pairs of buffers that a thread keeps.
const SPARES_MAX: usize = 64;

thread_local! {
    // Buffers of emptied mailboxes. An idle user holds none, and a busy one does not go to the
    // allocator for every burst.
    static SPARES: RefCell<Vec<(Vec<u8>, VecDeque<QueuedMessage>)>> = const { RefCell::new(Vec::new()) };
}

fn spare_buffers() -> (Vec<u8>, VecDeque<QueuedMessage>) {
    SPARES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Keeps the buffers of a finished write for the next mailbox of this thread.
pub fn give_back(mut frames: Vec<u8>, mut messages: VecDeque<QueuedMessage>) {
    // A buffer that grew beyond one write goes back to the allocator.
    if frames.capacity() == 0 || frames.capacity() > WRITE_BYTES {
        return;
    }
    frames.clear();
    messages.clear();
    SPARES.with_borrow_mut(|spares| {
        if spares.len() < SPARES_MAX {
            spares.push((frames, messages));
        }
    });
}
