//! What is owed for one message: its outcome, to the addressee that asked for it, and the end of its
//! trace. A client's mailbox holds receipts, so a receipt knows its addressee by a trait only.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::outcomes::PendingOutcomes;
use super::wake::Wakes;
use crate::ledger::InHand;
use crate::protocol::{JsonString, Status};
use crate::telemetry::metrics::{DropReason, Metrics};
use crate::telemetry::traces::Traced;

/// The name that an addressee gave a message: a user's JSON integer or string, or a node's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MessageId {
    Number(i64),
    Text(Box<str>),
}

impl MessageId {
    pub(super) fn new(literal: &str) -> Self {
        // Of all integers in JSON, this one alone does not read back as it came.
        match literal.parse::<i64>() {
            Ok(number) if literal != "-0" => Self::Number(number),
            _ => Self::Text(shortest(literal).into()),
        }
    }
}

/// Whether a JSON literal can be longer than another one of its value.
fn may_be_longer(literal: &str) -> bool {
    literal.starts_with('"') && literal.contains('\\')
}

/// The shortest JSON literal of the same value, because a string may be spelt with six bytes a letter.
fn shortest(literal: &str) -> Cow<'_, str> {
    if !may_be_longer(literal) {
        return literal.into();
    }
    let decoded = serde_json::from_str::<JsonString<'_>>(literal);
    let encoded = decoded.and_then(|text| serde_json::to_string(&text.0));
    encoded.map_or(literal.into(), Cow::Owned)
}

/// What an outcome with this id takes while it is outstanding: its receipt, which is less, and then its frame.
pub(crate) fn outcome_bytes(id: &str) -> u32 {
    let bytes = if may_be_longer(id) {
        shortest(id).len()
    } else {
        id.len()
    };
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    bytes.saturating_add(OUTCOME_BYTES)
}

/// The bytes of an outcome beside its id.
const OUTCOME_BYTES: u32 = 96;

/// The receiver of outcomes: a connected user, another node, or a task of this node.
pub(super) trait Addressee: fmt::Debug + Send + Sync {
    /// Takes the outcome of one message. Returns the waker to call.
    fn tell(&self, id: &MessageId, status: Status) -> Option<Waker>;
}

/// The outcome and the end of the trace that are owed for one message. Dropping it without
/// [`Receipt::settle`] tells `disconnected`.
#[derive(Debug)]
pub struct Receipt {
    // Two words for the handle and two for the id. An enum of the three addressees would add a tag.
    to: Option<(Arc<dyn Addressee>, MessageId)>,
    trace: Option<Box<Traced>>,
}

impl Receipt {
    /// A receipt, or nothing where neither an outcome nor a trace is owed.
    pub(super) fn new(
        to: Option<(Arc<dyn Addressee>, MessageId)>,
        trace: Option<Box<Traced>>,
    ) -> Option<Box<Self>> {
        if to.is_none() && trace.is_none() {
            return None;
        }
        Some(Box::new(Self { to, trace }))
    }

    /// For a message from another node. `outcomes` is set where the node asked for an outcome, with its
    /// token for the message; the outcome is owed from `now`, microseconds of the app's clock.
    pub(crate) fn to_node(
        outcomes: Option<(Arc<PendingOutcomes>, u64)>,
        trace: Option<Box<Traced>>,
        now: u64,
    ) -> Option<Box<Self>> {
        let to = outcomes.map(|(outcomes, token)| {
            outcomes.open(token, now);
            let id = MessageId::Number(token.cast_signed());
            (outcomes as Arc<dyn Addressee>, id)
        });
        Self::new(to, trace)
    }

    /// For a message that no connected user sent, with the channel on which its outcome arrives.
    pub(crate) fn to_task(trace: Option<Box<Traced>>) -> (Box<Self>, oneshot::Receiver<Status>) {
        let (outcome_tx, outcome_rx) = oneshot::channel();
        let task = Arc::new(WaitingTask(Mutex::new(Some(outcome_tx))));
        let to: Option<(Arc<dyn Addressee>, _)> = Some((task, MessageId::Number(0)));
        (Box::new(Self { to, trace }), outcome_rx)
    }

    /// Its bytes in memory.
    pub(crate) fn bytes(&self) -> u32 {
        let id = match &self.to {
            Some((_, MessageId::Text(id))) => id.len(),
            Some((_, MessageId::Number(_))) | None => 0,
        };
        let trace = self.trace.as_ref().map_or(0, |_| size_of::<Traced>());
        u32::try_from(size_of::<Self>() + id + trace).expect("an id is short")
    }

    /// The trace of the message.
    pub(crate) fn trace(&self) -> Option<&Traced> {
        self.trace.as_deref()
    }

    /// The trace of the message, to go on with.
    pub(crate) fn trace_mut(&mut self) -> Option<&mut Traced> {
        self.trace.as_deref_mut()
    }

    /// Takes the trace out. The receipt that remains is nothing where no outcome is owed.
    pub(crate) fn without_trace(mut self: Box<Self>) -> (Option<Box<Self>>, Option<Box<Traced>>) {
        let trace = self.trace.take();
        (self.to.is_some().then_some(self), trace)
    }

    /// Tells the outcome and ends the trace. The waker of the addressee goes into `wakes`.
    pub(crate) fn settle(mut self, status: Status, wakes: &mut Wakes) {
        wakes.add(self.tell(status));
    }

    fn tell(&mut self, status: Status) -> Option<Waker> {
        if let Some(trace) = self.trace.take() {
            match status {
                Status::Delivered => trace.delivered(),
                lost => trace.dropped(lost.as_str()),
            }
        }
        let (addressee, id) = self.to.take()?;
        addressee.tell(&id, status)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(waker) = self.tell(Status::Disconnected) {
            waker.wake();
        }
    }
}

/// Why a message cannot be put into a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undeliverable {
    /// The recipient is not connected.
    Offline,
    /// The recipient's mailbox is full.
    Full,
}

/// Settles a message as dropped, and tells its sender why.
pub(crate) fn settle_undeliverable<M: Deref<Target = Metrics>>(
    in_hand: InHand<M>,
    receipt: Option<Box<Receipt>>,
    why: Undeliverable,
    wakes: &mut Wakes,
) {
    let (reason, status) = match why {
        Undeliverable::Offline => (DropReason::Offline, Status::Offline),
        Undeliverable::Full => (DropReason::QueueFull, Status::QueueFull),
    };
    in_hand.dropped(reason);
    if let Some(receipt) = receipt {
        receipt.settle(status, wakes);
    }
}

impl Addressee for PendingOutcomes {
    fn tell(&self, id: &MessageId, status: Status) -> Option<Waker> {
        match id {
            MessageId::Number(token) => self.settle(token.cast_unsigned(), status),
            MessageId::Text(_) => unreachable!("a node's token is a number"),
        }
    }
}

/// A task of this node that waits for the outcome of one message.
#[derive(Debug)]
struct WaitingTask(Mutex<Option<oneshot::Sender<Status>>>);

impl Addressee for WaitingTask {
    fn tell(&self, _id: &MessageId, status: Status) -> Option<Waker> {
        let outcome_tx = self.0.lock().take()?;
        // A task that stopped waiting has told its own caller so.
        let _stopped_waiting = outcome_tx.send(status).is_err();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_as_the_shortest_literal_of_its_value() {
        let spelt = format!("\"{}\"", "\\u0041".repeat(64));
        let long = format!("\"{}\"", "A".repeat(64));
        for (given, kept) in [
            (&*spelt, &*long),
            (r#""plain""#, r#""plain""#),
            (r#""\/\u00e9\ud83d\ude00""#, r#""/é😀""#),
            (r#""\u0022\u005c\u000a""#, r#""\"\\\n""#),
            ("-0", "-0"),
        ] {
            assert_eq!(MessageId::new(given), MessageId::Text(kept.into()));
            assert_eq!(outcome_bytes(given), outcome_bytes(kept));
        }
        assert_eq!(MessageId::new("-7"), MessageId::Number(-7));
    }

    #[test]
    fn a_receipt_counts_for_its_own_bytes_and_those_of_a_text() {
        let bytes = |literal: &str| {
            let task = Arc::new(WaitingTask(Mutex::new(None)));
            let to = Some((task as Arc<dyn Addressee>, MessageId::new(literal)));
            Receipt::new(to, None).map_or(0, |receipt| receipt.bytes())
        };
        let number = bytes("7");
        assert_eq!(number as usize, size_of::<Receipt>());
        assert_eq!(bytes(&format!("\"{}\"", "A".repeat(64))) - number, 66);
    }
}
