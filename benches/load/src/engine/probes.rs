//! Probes: the messages by which the ids of connections are found out where the server does not announce
//! them.

use serde::Deserialize;

use switchboard::identity::UserId;

/// The text of a probe before the id.
const PREFIX: &str = "#probe ";

/// Counts of probes. The server's metrics count them as messages.
#[derive(Debug, Default)]
pub(super) struct Probes {
    pub(super) sent: u64,
    pub(super) arrived: u64,
    /// The sender that the last probe to arrive names.
    pub(super) sender: Option<u64>,
}

/// A probe as it arrives.
#[derive(Deserialize)]
struct ProbeMessage {
    sender_id: u64,
    message: String,
}

/// The message that probes this id.
pub(super) fn message(id: u64) -> String {
    format!("{{\"recipient_id\":{id},\"message\":\"{PREFIX}{id}\"}}")
}

/// The sender and the probed id of a probe that has arrived.
pub(super) fn parse(payload: &[u8]) -> Option<(u64, UserId)> {
    let probe: ProbeMessage = serde_json::from_slice(payload).ok()?;
    let id = probe.message.strip_prefix(PREFIX)?.parse().ok()?;
    Some((probe.sender_id, UserId::new(id)?))
}
