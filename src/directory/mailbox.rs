//! One user's bounded queue: frames that wait for its socket, end to end so that few writes send them,
//! and beside them an entry for each. A sender never waits for room: a full mailbox follows
//! [`Overflow`]. Must not know of locks, wakers or sockets.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

use super::bounds::{Budget, MailboxBounds};
use super::chunks::{Frames, WRITE_BYTES};
use super::memory_pressure::SizeClass;
use super::message::{ENTRY_BYTES, Message, MessageFrame, QueuedMessage};
use super::spares::{give_back, spare_buffers};
use crate::config::Overflow;
use crate::ledger::{Held, InHand};
use crate::protocol::{Outbound, push_frame};
use crate::telemetry::metrics::{DropReason, Metrics};

/// Whether one more message fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It fits, and its bytes are reserved.
    Reserved,
    /// Likewise, and the mailbox has reserved more than before.
    Grown,
    /// This mailbox is full.
    Full,
    /// The budget of all mailboxes is spent.
    OverBudget,
}

/// Bytes that a mailbox of at least four times as many gives at once.
const EVICT_BYTES: u32 = 64 * 1024;

/// The queue itself; a client's lock guards it.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Frames that were not taken yet.
    frames: Frames,
    /// Their messages.
    queued: VecDeque<QueuedMessage>,
    /// Counts messages until they are settled, so the taken ones too.
    held: Held,
    /// Bytes of their frames.
    held_bytes: u32,
    /// Those of frames that were taken when the socket took no more. They cannot be evicted, so they do
    /// not count towards the budget, or messages that nobody can take back could use it up.
    stuck_bytes: u32,
    /// What the held messages take of the budget.
    charged: u32,
    /// Bytes reserved from the budget; at least `charged`.
    reserved: u32,
    bounds: Arc<MailboxBounds>,
}

impl Mailbox {
    pub(super) fn new(bounds: Arc<MailboxBounds>, metrics: Arc<Metrics>) -> Self {
        Self {
            frames: Frames::default(),
            queued: VecDeque::new(),
            held: Held::new(metrics),
            held_bytes: 0,
            stuck_bytes: 0,
            charged: 0,
            reserved: 0,
            bounds,
        }
    }

    /// Messages that are queued, or taken and not settled.
    pub(super) fn messages(&self) -> u32 {
        self.held.messages()
    }

    /// Bytes of the frames of [`Mailbox::messages`].
    pub(super) fn bytes(&self) -> u32 {
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

    /// The class of the bytes that it has reserved.
    pub(super) fn size_class(&self) -> SizeClass {
        SizeClass::of(self.reserved / Budget::STEP)
    }

    /// Reserves room for one more message, if it is within all bounds.
    pub(super) fn reserve(&mut self, frame: &MessageFrame<'_>) -> Fit {
        if self.held.messages() >= self.bounds.messages
            || (self.held_bytes + frame.bytes) as usize > self.bounds.bytes
        {
            return Fit::Full;
        }
        if self.charged + frame.cost <= self.reserved {
            return Fit::Reserved;
        }
        let more = self.missing(frame);
        if !self.bounds.budget.reserve(more) {
            return Fit::OverBudget;
        }
        self.reserved += more;
        Fit::Grown
    }

    /// The bytes to reserve for one more message.
    pub(super) fn missing(&self, frame: &MessageFrame<'_>) -> u32 {
        let missing = (self.charged + frame.cost).saturating_sub(self.reserved);
        missing.next_multiple_of(Budget::STEP)
    }

    /// Makes room for a frame that did not fit, if the overflow policy drops the oldest messages. Those
    /// go to `dropped`, also where all of them are too little. Returns whether room is reserved.
    pub(super) fn make_room(
        &mut self,
        frame: &MessageFrame<'_>,
        dropped: &mut Vec<QueuedMessage>,
    ) -> bool {
        while self.bounds.overflow == Overflow::DropOldest
            && let Some(oldest) = self.drop_oldest(DropReason::QueueFull)
        {
            dropped.push(oldest);
            if matches!(self.reserve(frame), Fit::Reserved | Fit::Grown) {
                return true;
            }
        }
        false
    }

    /// Appends a message. Room for it must be reserved.
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
            trace: frame.trace,
        };
        push_frame(
            self.frames.room_for(frame.bytes as usize),
            frame.dialect,
            outbound,
        );
        if let Some(trace) = receipt.as_mut().and_then(|receipt| receipt.trace_mut()) {
            trace.queued();
        }
        self.queued.push_back(QueuedMessage {
            read_at,
            receipt,
            bytes: frame.bytes,
            end: 0,
        });
        self.held.hold(in_hand);
        self.held_bytes += frame.bytes;
        self.charged += frame.cost;
    }

    /// Drops messages that were not taken until at least `bytes` are released, as far as the mailbox is
    /// larger than `floor`, from the end that the overflow policy drops from.
    pub(super) fn evict(&mut self, bytes: u32, floor: SizeClass) -> Vec<QueuedMessage> {
        // A large mailbox gives more than is needed, so that the next messages find room.
        let bytes = bytes.max(EVICT_BYTES.min(self.reserved / 4));
        let before = self.reserved;
        let mut evicted = Vec::new();
        self.release_beyond(0);
        while before - self.reserved < bytes && self.size_class() > floor {
            let dropped = match self.bounds.overflow {
                Overflow::DropOldest => self.drop_oldest(DropReason::QueueFull),
                Overflow::DropNewest | Overflow::Disconnect => {
                    self.drop_newest(DropReason::QueueFull)
                }
            };
            let Some(dropped) = dropped else { break };
            evicted.push(dropped);
            self.release_beyond(0);
        }
        evicted
    }

    /// Drops the newest message that was not taken.
    fn drop_newest(&mut self, reason: DropReason) -> Option<QueuedMessage> {
        let newest = self.queued.pop_back()?;
        self.frames.drop_last(newest.bytes as usize);
        self.dropped(&newest, reason);
        Some(newest)
    }

    /// Drops the oldest message that was not taken.
    fn drop_oldest(&mut self, reason: DropReason) -> Option<QueuedMessage> {
        let oldest = self.queued.pop_front()?;
        self.frames.drop_first(oldest.bytes as usize);
        self.dropped(&oldest, reason);
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
    /// not even in part. All other taken ones count as stuck in the socket.
    pub(super) fn put_back(&mut self, frames: &[u8], mut taken: VecDeque<QueuedMessage>) {
        if !taken.is_empty() {
            self.frames.put_back(frames);
            taken.append(&mut self.queued);
            self.queued = taken;
        }
        let queued = u32::try_from(self.frames.bytes()).expect("mailbox.bytes is below 4 GiB");
        self.charged += self.stuck_bytes;
        self.stuck_bytes = self.held_bytes - queued;
        self.charged -= self.stuck_bytes;
        self.release_beyond(Budget::STEP);
    }

    /// Drops messages that were not taken and that have waited too long at `now`, microseconds of the app's
    /// clock.
    pub(super) fn expire(&mut self, now: u64) -> Vec<QueuedMessage> {
        let mut expired = Vec::new();
        while self.next_expiry(now) <= now
            && let Some(oldest) = self.drop_oldest(DropReason::Expired)
        {
            expired.push(oldest);
        }
        expired
    }

    /// When the oldest message that was not taken will have waited too long, or one that comes at `now`.
    pub(super) fn next_expiry(&self, now: u64) -> u64 {
        let since = self.queued.front().map_or(now, |oldest| oldest.read_at);
        let max_age = u64::try_from(self.bounds.max_age.as_micros()).unwrap_or(u64::MAX);
        since.saturating_add(max_age)
    }

    /// Settles `count` taken messages, whose frames and receipts have so many bytes, as delivered.
    #[inline(never)]
    pub(super) fn delivered(&mut self, count: u32, bytes: u32, receipt_bytes: u32) {
        self.held.delivered(count);
        // What is stuck was taken first, so it leaves first.
        let stuck = self.stuck_bytes.min(bytes);
        self.stuck_bytes -= stuck;
        self.charged += stuck;
        self.release(bytes, count * ENTRY_BYTES + receipt_bytes);
    }

    /// Settles a message that was not taken as dropped.
    fn dropped(&mut self, message: &QueuedMessage, reason: DropReason) {
        self.held.dropped(1, reason);
        self.release(message.bytes, message.cost() - message.bytes);
    }

    /// Drops all messages for good, those in `taken` and those that were not taken. Returns the latter for
    /// their receipts.
    pub(super) fn drop_all(
        &mut self,
        taken: &VecDeque<QueuedMessage>,
        reason: DropReason,
    ) -> VecDeque<QueuedMessage> {
        let queued = std::mem::take(&mut self.queued);
        self.frames = Frames::default();
        let count = u32::try_from(taken.len() + queued.len()).expect("mailbox.messages is a u32");
        self.held.dropped(count, reason);
        let all = taken.iter().chain(&queued);
        self.held_bytes -= all.map(|message| message.bytes).sum::<u32>();
        (self.stuck_bytes, self.charged) = (0, 0);
        self.release_beyond(0);
        queued
    }

    /// Releases the bytes of frames that count towards the budget, and those beside them.
    fn release(&mut self, frames: u32, beside: u32) {
        self.held_bytes -= frames;
        self.charged -= frames + beside;
        // One step stays reserved beyond the need, so that a mailbox that swings around the border of
        // a step does not touch the shared counter every time.
        self.release_beyond(Budget::STEP);
    }

    /// Returns to the budget what is reserved beyond the need and `spare`. An empty mailbox keeps nothing.
    fn release_beyond(&mut self, spare: u32) {
        let keep = if self.charged == 0 {
            0
        } else {
            self.charged.next_multiple_of(Budget::STEP) + spare
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
