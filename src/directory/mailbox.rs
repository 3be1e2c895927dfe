//! One user's bounded queue: the frames that wait for its socket, end to end, so that they leave in few
//! writes, and beside them an entry for each. A sender never waits for room; what does not fit is an
//! answer, by [`Overflow`]. Must not know of locks, wakers or sockets.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::chunks::{Frames, WRITE_BYTES};
use super::client::Receipt;
use super::memory_pressure::Large;
use crate::config::Overflow;
use crate::identity::Sender;
use crate::ledger::{Held, InHand};
use crate::protocol::{Dialect, Outbound, message_frame_bytes, push_frame};
use crate::telemetry::metrics::{DropReason, Metrics};
use crate::telemetry::traces::Traced;

/// The bounds of mailboxes.
#[derive(Debug)]
pub struct Bounds {
    /// The most messages in one.
    pub messages: u32,
    /// The most bytes of frames in one.
    pub bytes: usize,
    /// What happens when one is full.
    pub overflow: Overflow,
    /// The bytes that all may hold together.
    pub budget: Budget,
}

/// Bytes that all mailboxes share. Each takes from it in [`Budget::STEP`]s, so that a busy mailbox
/// does not touch the shared counter for every message.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    used: AtomicU64,
    pub(super) large: Large,
}

impl Budget {
    /// The least that a mailbox takes at once, bytes.
    const STEP: u64 = 4096;

    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            used: AtomicU64::new(0),
            large: Large::default(),
        }
    }

    /// Bytes taken by mailboxes, whole steps.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.used
            .try_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.total)
            })
            .is_ok()
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// One message that is queued or taken.
#[derive(Debug)]
pub struct QueuedMessage {
    /// When its frame was read, microseconds of the app's clock.
    pub(crate) read_at: u64,
    /// Whom to tell what became of it.
    pub(crate) receipt: Option<Box<Receipt>>,
    /// Its frame's length.
    pub(crate) bytes: u32,
    /// Where its frame ends in the write buffer, once it was taken.
    pub(crate) end: u32,
}

/// A message on its way into a mailbox.
#[derive(Debug)]
pub struct Message<'a> {
    /// Who wrote it.
    pub sender: Sender,
    /// A JSON string literal.
    pub body: &'a str,
    /// When its frame was read, microseconds of the app's clock.
    pub read_at: u64,
    /// Whom to tell what became of it.
    pub receipt: Option<Box<Receipt>>,
}

/// What to do where the room for all mailboxes is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Starving {
    /// Ask others to give first.
    Ask,
    /// They were asked: go by the overflow policy.
    Settle,
}

/// What a push did besides.
pub(super) enum Pushed<'a, M: Deref<Target = Metrics>> {
    /// The message is queued; the receipts of those that made room for it.
    Queued(Vec<QueuedMessage>),
    /// The message is dropped; its own receipt, and those of others that made room in vain.
    Refused(Option<Box<Receipt>>, Vec<QueuedMessage>),
    /// Nothing, for want of so many bytes of the room for all mailboxes.
    Starved(Message<'a>, InHand<M>, usize),
}

/// Whether there is room for one more message.
enum Room {
    /// There is, and it was taken.
    Made,
    /// Not in this mailbox.
    Full,
    /// Not in all mailboxes together.
    Starved,
}

#[derive(Debug)]
pub(crate) struct Mailbox {
    /// Frames that were not taken yet.
    frames: Frames,
    entries: VecDeque<QueuedMessage>,
    /// Counts those that were taken, too, until they are settled.
    held: Held,
    held_bytes: usize,
    /// Taken from the budget; at least `held_bytes`.
    reserved: u64,
    bounds: Arc<Bounds>,
}

impl Mailbox {
    pub(crate) fn new(bounds: Arc<Bounds>, metrics: Arc<Metrics>) -> Self {
        Self {
            frames: Frames::default(),
            entries: VecDeque::new(),
            held: Held::new(metrics),
            held_bytes: 0,
            reserved: 0,
            bounds,
        }
    }

    /// Messages queued, or taken and not settled.
    pub(crate) fn messages(&self) -> u32 {
        self.held.messages()
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.held_bytes
    }

    /// Messages that were delivered from here; behind `u32::MAX` it counts from 0 again.
    pub(super) fn delivered_in_all(&self) -> u32 {
        self.held.delivered_in_all()
    }

    pub(crate) fn overflow(&self) -> Overflow {
        self.bounds.overflow
    }

    pub(super) fn bounds(&self) -> &Arc<Bounds> {
        &self.bounds
    }

    /// Bytes that were not taken yet.
    pub(super) fn queued_bytes(&self) -> usize {
        self.frames.bytes()
    }

    /// Queues a message as a frame of `dialect`, or drops it or others by the overflow policy.
    pub(super) fn push<'a, M: Deref<Target = Metrics>>(
        &mut self,
        dialect: Dialect,
        message: Message<'a>,
        in_hand: InHand<M>,
        starving: Starving,
    ) -> Pushed<'a, M> {
        let trace = message.receipt.as_ref().and_then(|receipt| receipt.trace());
        let traceparent = trace.map(Traced::traceparent);
        let traceparent = traceparent.as_deref();
        let body = message.body;
        let bytes = message_frame_bytes(dialect, message.sender, body.len(), traceparent);
        let mut evicted = Vec::new();
        loop {
            match self.make_room(bytes) {
                Room::Made => break,
                Room::Starved if starving == Starving::Ask && evicted.is_empty() => {
                    return Pushed::Starved(message, in_hand, bytes);
                }
                Room::Full | Room::Starved => {}
            }
            let oldest = match self.bounds.overflow {
                Overflow::DropOldest => self.drop_oldest(DropReason::QueueFull),
                Overflow::DropNewest | Overflow::Disconnect => None,
            };
            let Some(oldest) = oldest else {
                in_hand.dropped(DropReason::QueueFull);
                return Pushed::Refused(message.receipt, evicted);
            };
            evicted.push(oldest);
        }
        if !self.frames.has_buffer() {
            let (buffer, entries) = spare();
            self.frames.reuse(buffer);
            self.entries = entries;
        }
        let outbound = Outbound::Message {
            sender_id: message.sender,
            message: body,
            traceparent,
        };
        push_frame(self.frames.room_for(bytes), dialect, outbound);
        let mut receipt = message.receipt;
        if let Some(trace) = receipt.as_mut().and_then(|receipt| receipt.trace_mut()) {
            trace.queued();
        }
        self.entries.push_back(QueuedMessage {
            read_at: message.read_at,
            receipt,
            bytes: u32::try_from(bytes).expect("limits.frame_bytes is far below 4 GiB"),
            end: 0,
        });
        self.held.hold(in_hand);
        self.held_bytes += bytes;
        Pushed::Queued(evicted)
    }

    /// Whether one more frame of `bytes` is within all bounds; takes from the budget what it needs.
    fn make_room(&mut self, bytes: usize) -> Room {
        if self.held.messages() >= self.bounds.messages
            || self.held_bytes + bytes > self.bounds.bytes
        {
            return Room::Full;
        }
        let needed = (self.held_bytes + bytes) as u64;
        if needed <= self.reserved {
            return Room::Made;
        }
        let more = (needed - self.reserved).next_multiple_of(Budget::STEP);
        if !self.bounds.budget.take(more) {
            return Room::Starved;
        }
        self.reserved += more;
        Room::Made
    }

    /// Drops messages that were not taken, until they made so many bytes: from the end that the
    /// overflow policy drops from.
    pub(super) fn give(&mut self, bytes: usize, reason: DropReason) -> Vec<QueuedMessage> {
        let mut given = Vec::new();
        let mut freed = 0;
        while freed < bytes {
            let entry = match self.bounds.overflow {
                Overflow::DropOldest => self.drop_oldest(reason),
                Overflow::DropNewest | Overflow::Disconnect => self.drop_newest(reason),
            };
            let Some(entry) = entry else { break };
            freed += entry.bytes as usize;
            given.push(entry);
        }
        given
    }

    /// Drops the newest message that was not taken.
    fn drop_newest(&mut self, reason: DropReason) -> Option<QueuedMessage> {
        let entry = self.entries.pop_back()?;
        self.frames.drop_last(entry.bytes as usize);
        self.held.dropped(1, reason);
        self.settle_bytes(entry.bytes as usize);
        Some(entry)
    }

    /// Drops the oldest message that was not taken.
    fn drop_oldest(&mut self, reason: DropReason) -> Option<QueuedMessage> {
        let entry = self.entries.pop_front()?;
        self.frames.drop_first(entry.bytes as usize);
        self.held.dropped(1, reason);
        self.settle_bytes(entry.bytes as usize);
        Some(entry)
    }

    /// Moves frames of up to `bytes_max` bytes, or one that is larger, to the end of `frames`, and their
    /// entries to the end of `entries`. They count as held until [`Mailbox::delivered`] or
    /// [`Mailbox::dropped`]. Whether anything was moved.
    pub(crate) fn take(
        &mut self,
        frames: &mut Vec<u8>,
        entries: &mut VecDeque<QueuedMessage>,
        bytes_max: usize,
    ) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        if entries.is_empty() && self.frames.swap_all(frames, bytes_max) {
            std::mem::swap(entries, &mut self.entries);
            return true;
        }
        let first = self.frames.first_bytes();
        let mut bytes = 0;
        while let Some(entry) = self.entries.front() {
            let with_it = bytes + entry.bytes as usize;
            if with_it > first || (bytes > 0 && with_it > bytes_max) {
                break;
            }
            bytes = with_it;
            entries.extend(self.entries.pop_front());
        }
        self.frames.take(bytes, frames);
        if self.entries.is_empty() {
            give_back(
                std::mem::take(&mut self.frames).into_buffer(),
                std::mem::take(&mut self.entries),
            );
        }
        true
    }

    /// Puts back, before all that is queued, what was taken and not begun to be written.
    pub(crate) fn put_back(&mut self, frames: &[u8], mut entries: VecDeque<QueuedMessage>) {
        self.frames.put_back(frames);
        entries.append(&mut self.entries);
        self.entries = entries;
    }

    /// Settles `count` taken messages of `bytes` bytes as delivered.
    pub(crate) fn delivered(&mut self, count: u32, bytes: usize) {
        self.held.delivered(count);
        self.settle_bytes(bytes);
    }

    /// Settles `count` taken messages of `bytes` bytes as dropped.
    pub(crate) fn dropped(&mut self, count: u32, bytes: usize, reason: DropReason) {
        self.held.dropped(count, reason);
        self.settle_bytes(bytes);
    }

    /// Drops all that was not taken; the entries, for their receipts.
    pub(crate) fn drop_queued(&mut self, reason: DropReason) -> VecDeque<QueuedMessage> {
        let entries = std::mem::take(&mut self.entries);
        let bytes = std::mem::take(&mut self.frames).bytes();
        let count = u32::try_from(entries.len()).expect("mailbox.messages is a u32");
        self.held.dropped(count, reason);
        self.settle_bytes(bytes);
        entries
    }

    fn settle_bytes(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
        let keep = if self.held_bytes == 0 {
            0
        } else {
            (self.held_bytes as u64).next_multiple_of(Budget::STEP) + Budget::STEP
        };
        if self.reserved > keep {
            self.bounds.budget.give(self.reserved - keep);
            self.reserved = keep;
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.bounds.budget.give(self.reserved);
    }
}

/// Buffers that emptied mailboxes left, one store a thread: an idle user keeps none, and a busy one
/// does not go to the allocator for every burst.
const SPARES_MAX: usize = 64;

thread_local! {
    static SPARES: RefCell<Vec<(Vec<u8>, VecDeque<QueuedMessage>)>> = const { RefCell::new(Vec::new()) };
}

fn spare() -> (Vec<u8>, VecDeque<QueuedMessage>) {
    SPARES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Keeps the buffers of a write that has ended for the next mailbox of this thread.
pub fn give_back(mut frames: Vec<u8>, mut entries: VecDeque<QueuedMessage>) {
    // What grew beyond a write's worth goes back to the allocator.
    if frames.capacity() == 0 || frames.capacity() > WRITE_BYTES {
        return;
    }
    frames.clear();
    entries.clear();
    SPARES.with_borrow_mut(|spares| {
        if spares.len() < SPARES_MAX {
            spares.push((frames, entries));
        }
    });
}
