//! What must hold: one person for an id, each message at most once, true outcomes, order, and ledgers.

use std::collections::BTreeMap;

use super::person::ConnectionId;

/// What is known of all messages.
#[derive(Default)]
pub(super) struct Oracle {
    messages: BTreeMap<u64, Written>,
    /// The last message from one connection to another.
    last: BTreeMap<(ConnectionId, ConnectionId), u64>,
    /// When the last message to an id was written whose recipient's connection has failed.
    failed: BTreeMap<u64, u64>,
    pub(super) delivered: u64,
    pub(super) unknown: u64,
}

struct Written {
    from: ConnectionId,
    recipient: u64,
    at: u64,
    wants_outcome: bool,
    outcome: Option<String>,
    delivered_to: Option<ConnectionId>,
}

/// A promise that was broken.
pub(super) type Broken = String;

/// More than a mailbox of a run has.
const EARLIER_MAX: usize = 128;

/// Outcomes of messages that must not arrive.
const NEVER_ARRIVES: [&str; 5] = [
    "offline",
    "queue_full",
    "unavailable",
    "too_large",
    "rate_limited",
];
/// Outcomes of messages that may have arrived.
const MAY_ARRIVE: [&str; 3] = ["disconnected", "draining", "unknown"];

impl Oracle {
    /// A person has written a message, to an id at a time.
    pub(super) fn written(
        &mut self,
        message: u64,
        (from, wants_outcome): (ConnectionId, bool),
        (recipient, at): (u64, u64),
    ) {
        let written = Written {
            from,
            recipient,
            at,
            wants_outcome,
            outcome: None,
            delivered_to: None,
        };
        self.messages.insert(message, written);
    }

    /// A message was written to the socket of a connection.
    pub(super) fn arrived(
        &mut self,
        message: u64,
        (to, id): (ConnectionId, Option<u64>),
    ) -> Result<(), Broken> {
        let Some(written) = self.messages.get_mut(&message) else {
            return Err(format!("message {message} was never written"));
        };
        if let Some(before) = written.delivered_to {
            return Err(format!(
                "message {message} came twice: to connections {before} and {to}"
            ));
        }
        if id != Some(written.recipient) {
            let recipient = written.recipient;
            return Err(format!("message {message} for {recipient} came to {id:?}"));
        }
        written.delivered_to = Some(to);
        self.delivered += 1;
        if let Some(outcome) = &written.outcome
            && NEVER_ARRIVES.contains(&outcome.as_str())
        {
            return Err(format!(
                "message {message} came, and its outcome was {outcome}"
            ));
        }
        let last = self.last.entry((written.from, to)).or_default();
        if *last > message {
            return Err(format!("message {message} came behind {last}"));
        }
        *last = message;
        Ok(())
    }

    /// A sender was told an outcome.
    pub(super) fn told(
        &mut self,
        message: u64,
        to: ConnectionId,
        status: &str,
    ) -> Result<(), Broken> {
        let Some(written) = self.messages.get_mut(&message) else {
            return Err(format!(
                "an outcome for message {message}, which was never written"
            ));
        };
        if written.from != to {
            return Err(format!(
                "the outcome of message {message} came to connection {to}"
            ));
        }
        if let Some(before) = &written.outcome {
            return Err(format!(
                "message {message} has two outcomes: {before} and {status}"
            ));
        }
        written.outcome = Some(status.to_owned());
        if status == "disconnected" {
            let at = self.failed.entry(written.recipient).or_default();
            *at = written.at.max(*at);
        }
        match (status, written.delivered_to) {
            ("delivered", None) => Err(format!("message {message} is delivered, and did not come")),
            ("delivered", Some(_)) => Ok(()),
            (status, Some(_)) if NEVER_ARRIVES.contains(&status) => Err(format!(
                "message {message} came, and its outcome is {status}"
            )),
            (status, _) if NEVER_ARRIVES.contains(&status) => Ok(()),
            (status, _) if MAY_ARRIVE.contains(&status) => {
                self.unknown += u64::from(status == "unknown");
                Ok(())
            }
            (status, _) => Err(format!("there is no outcome {status}")),
        }
    }

    /// How many earlier messages of the same pair, written since then, are neither here nor settled. Counts no further
    /// than needed.
    pub(super) fn earlier_open(&self, message: u64, since: u64) -> usize {
        let Some(this) = self.messages.get(&message) else {
            return 0;
        };
        let is_open = |other: &&Written| {
            let is_same = (other.from, other.recipient) == (this.from, this.recipient);
            let is_unsettled = other.wants_outcome && other.outcome.is_none() && other.at > since;
            is_same && is_unsettled && other.delivered_to.is_none()
        };
        let earlier = self.messages.range(..message).rev().take(EARLIER_MAX);
        earlier.map(|(_, other)| other).filter(is_open).count()
    }

    pub(super) fn written_at(&self, message: u64) -> Option<u64> {
        Some(self.messages.get(&message)?.at)
    }

    pub(super) fn sender(&self, message: u64) -> Option<ConnectionId> {
        Some(self.messages.get(&message)?.from)
    }

    pub(super) fn recipient(&self, message: u64) -> Option<u64> {
        Some(self.messages.get(&message)?.recipient)
    }

    /// Whether a connection with this id has failed that took messages after `since`.
    pub(super) fn has_failed(&self, recipient: u64, since: u64) -> bool {
        self.failed.get(&recipient).is_some_and(|at| *at >= since)
    }

    pub(super) fn outcome(&self, message: u64) -> Option<&str> {
        self.messages.get(&message)?.outcome.as_deref()
    }
}
