//! Buffers of emptied mailboxes, which a thread keeps for the next ones. Must not know what is in them.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::chunks::WRITE_BYTES;
use super::message::QueuedMessage;

/// The most pairs of buffers that a thread keeps.
const SPARES_MAX: usize = 64;

thread_local! {
    // Buffers of emptied mailboxes. An idle user holds none, and a busy one does not go to the
    // allocator for every burst.
    static SPARES: RefCell<Vec<(Vec<u8>, VecDeque<QueuedMessage>)>> = const { RefCell::new(Vec::new()) };
}

/// A pair of empty buffers.
pub(super) fn spare_buffers() -> (Vec<u8>, VecDeque<QueuedMessage>) {
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
