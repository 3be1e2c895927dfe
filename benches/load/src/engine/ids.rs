//! Learns the ids of connections. Switchboard announces them in a header; the essay's programs do
//! not, so one user writes to each id that may have been given and sees who hears it.

use std::time::Duration;

use serde::Deserialize;

use super::Engine;
use crate::BenchError;
use crate::codec::{self, TEXT};
use crate::faults::quoted;
use switchboard::identity::UserId;

/// What stands before the id in the text of a probe.
const PROBE: &str = "#probe ";

/// Ids that are tried at once. The server may have given others to users that left.
const IDS_AT_ONCE: u64 = 256;

/// How many ids are tried in all.
const IDS_MAX: u64 = 200_000;

/// How long a probe may take.
const PATIENCE: Duration = Duration::from_millis(50);

/// Probes as messages, for the books.
#[derive(Debug, Default)]
pub(super) struct Probes {
    sent: u64,
    arrived: u64,
    /// Whom the probes that arrived say they are from.
    sender: Option<u64>,
}

#[derive(Deserialize)]
struct ProbeMessage {
    sender_id: u64,
    message: String,
}

impl Engine {
    /// Learns the ids of these connections, from `first` on where they are not announced.
    pub(crate) fn learn_ids(&mut self, slots: &[usize], first: u64) -> Result<(), BenchError> {
        let Some(&prober) = slots.first() else {
            return Ok(());
        };
        let mut next = first;
        while self.unknown(slots) > 0 {
            if next - first > IDS_MAX {
                return Err(BenchError::IdsNotFound {
                    unknown: self.unknown(slots),
                    first,
                    last: next - 1,
                });
            }
            let unknown = self.unknown(slots);
            for id in next..next + IDS_AT_ONCE {
                let text = format!("{{\"recipient_id\":{id},\"message\":\"{PROBE}{id}\"}}");
                let mask = fastrand::u32(..).to_ne_bytes();
                let out = self.connections[prober].out();
                codec::push_frame(out, TEXT, mask, text.as_bytes());
            }
            self.queue(prober);
            self.probes.sent += IDS_AT_ONCE;
            self.run_until(PATIENCE, |engine| engine.unknown(slots) == 0);
            // As long as some are found more may be on their way.
            if self.unknown(slots) == unknown {
                next += IDS_AT_ONCE;
            }
        }
        let told = self.probes.sender;
        let known = self.id(prober).map(UserId::get);
        if told.is_some() && told != known {
            self.faults
                .altered(|| format!("messages of user {known:?} say sender_id {told:?}"));
        }
        Ok(())
    }

    fn unknown(&self, slots: &[usize]) -> usize {
        slots
            .iter()
            .filter(|slot| self.id(**slot).is_none())
            .count()
    }

    /// The largest id that is known.
    pub(crate) fn last_id(&self) -> Option<u64> {
        let ids = self
            .connections
            .iter()
            .filter_map(|connection| connection.id);
        ids.map(UserId::get).max()
    }

    /// Probes that were sent, and those of them that arrived.
    pub(crate) fn probes(&self) -> (u64, u64) {
        (self.probes.sent, self.probes.arrived)
    }

    /// A text without a label is a probe, or nothing that we sent.
    #[cold]
    pub(super) fn on_unlabelled(&mut self, slot: usize, payload: &[u8]) {
        let probe = serde_json::from_slice::<ProbeMessage>(payload)
            .ok()
            .and_then(|text| {
                let id = text.message.strip_prefix(PROBE)?.parse().ok()?;
                Some((text.sender_id, UserId::new(id)?))
            });
        let known = &mut self.connections[slot].id;
        match probe {
            Some((sender, id)) if known.is_none_or(|known| known == id) => {
                *known = Some(id);
                self.probes.sender = Some(sender);
                self.probes.arrived += 1;
            }
            Some((_, id)) => self
                .faults
                .misrouted(|| format!("a probe of id {id} at connection {slot}")),
            None => self.faults.altered(|| quoted(payload)),
        }
    }
}
