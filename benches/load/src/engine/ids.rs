//! Learns the ids of connections. Switchboard announces them in a header. The essay's programs do not: one
//! connection sends a probe to each id that the server may have given, and the connection that receives a
//! probe has its id.

use std::time::Duration;

use super::probes;
use super::state::Engine;
use crate::codec::{self, TEXT};
use crate::error::BenchError;
use crate::faults::quoted;
use switchboard::identity::UserId;

/// Ids that are probed at once. The server may have given some to users that have left.
const IDS_AT_ONCE: u64 = 256;

/// How many ids are probed in all.
const IDS_MAX: u64 = 200_000;

/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(50);

impl Engine {
    /// Learns the ids of these connections, from `first` on where the server does not announce them.
    pub(crate) fn learn_ids(&mut self, slots: &[usize], first: u64) -> Result<(), BenchError> {
        let Some(&prober) = slots.first() else {
            return Ok(());
        };
        let mut next = first;
        while self.unknown(slots) > 0 {
            if next - first > IDS_MAX {
                return Err(BenchError::IdsNotFound {
                    address: self.target,
                    unknown: self.unknown(slots),
                    first,
                    last: next - 1,
                });
            }
            let unknown = self.unknown(slots);
            for id in next..next + IDS_AT_ONCE {
                let mask = fastrand::u32(..).to_ne_bytes();
                let out = self.connections[prober].out();
                codec::push_frame(out, TEXT, mask, probes::message(id).as_bytes());
            }
            self.queue(prober);
            self.probes.sent += IDS_AT_ONCE;
            self.run_until(PROBE_TIMEOUT, |engine| engine.unknown(slots) == 0);
            // While probes still arrive, later ones of the same ids may be on their way.
            if self.unknown(slots) == unknown {
                next += IDS_AT_ONCE;
            }
        }
        let told = self.probes.sender;
        let known = self.id(prober).map(UserId::get);
        if told.is_some() && told != known {
            self.faults
                .altered(|| format!("messages of user {known:?} have sender_id {told:?}"));
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

    /// Probes that were sent, and probes that arrived.
    pub(crate) fn probes(&self) -> (u64, u64) {
        (self.probes.sent, self.probes.arrived)
    }

    /// A text without a label has arrived: a probe, or a text that this program did not send.
    #[cold]
    pub(super) fn on_unlabelled(&mut self, slot: usize, payload: &[u8]) {
        let known = &mut self.connections[slot].id;
        match probes::parse(payload) {
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
