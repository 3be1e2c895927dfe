//! A message on its way into a mailbox, as a frame there, and as an entry beside the frames. Must not know how they
//! are queued.

use super::receipt::Receipt;
use super::wake::Wakes;
use crate::identity::Sender;
use crate::protocol::{Dialect, Status};

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
    /// The part of it that says which trace it belongs to.
    pub(super) trace: &'a str,
    /// The length of the whole frame.
    pub(super) bytes: u32,
    /// What the message takes of the budget: [`QueuedMessage::cost`].
    pub(super) cost: u32,
}

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

impl QueuedMessage {
    /// What it takes of the budget: its frame, this entry and the receipt.
    pub(super) fn cost(&self) -> u32 {
        message_cost(self.bytes, self.receipt.as_deref())
    }
}

/// What a message takes of the budget beside its frame and its receipt.
pub(super) const ENTRY_BYTES: u32 = 24;
const _: () = assert!(size_of::<QueuedMessage>() == ENTRY_BYTES as usize);

/// What a message takes of the budget.
pub(super) fn message_cost(frame_bytes: u32, receipt: Option<&Receipt>) -> u32 {
    frame_bytes + ENTRY_BYTES + receipt.map_or(0, Receipt::bytes)
}

/// Tells the senders of dropped messages. The lock must not be held.
pub(super) fn settle_dropped(
    dropped: impl IntoIterator<Item = QueuedMessage>,
    status: Status,
    wakes: &mut Wakes,
) {
    let receipts = dropped.into_iter().filter_map(|message| message.receipt);
    receipts.for_each(|receipt| receipt.settle(status, wakes));
}
