//! How a guest's id stays its own: by renewals, with which others learn who is here, and by another claim where a
//! link was lost.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::Subscriber;
use futures_util::{StreamExt, stream};
use tokio::time::interval;
use tracing::debug;

use super::arrive::{Asked, ask, bid, subscribe};
use super::host::settle;
use super::{Phase, Stay, Staying};
use crate::cluster::Shared;
use crate::cluster::envelope::Node;
use crate::cluster::handover::{Ask, Claimant, Refusal, Reply};
use crate::cluster::link::{Link, Lost};
use crate::identity::{ResumptionId, UserId};

/// Ids that are claimed again, or blocks that are renewed, at a time.
const CLAIMS_AT_A_TIME: usize = 16;
/// Renewals within `cluster.claim_timeout`.
const RENEWALS: u32 = 4;
/// Ids that are renewed by one message: of 18 bytes each, far less than NATS takes.
const RENEWED_AT_A_TIME: usize = 1024;

/// A guest who is to be claimed again by a new link.
pub(in crate::cluster) struct Returning {
    staying: Staying,
    subscriber: Subscriber,
}

/// Listens again to what is for the guests who are here and are not served by this link.
pub(in crate::cluster) async fn listen_again(
    shared: &Shared,
    link: &Link,
) -> Result<Vec<Returning>, Lost> {
    let mut returning = Vec::new();
    let is_meant = |stay: &Stay| !stay.is_served_by(link.number);
    for staying in shared.guests.staying(is_meant) {
        let subscriber = subscribe(shared, link, staying.id).await?;
        returning.push(Returning {
            staying,
            subscriber,
        });
    }
    Ok(returning)
}

/// Claims again who was here, and then renews all claims for as long as the link lasts.
pub(in crate::cluster) async fn keep(
    shared: Arc<Shared>,
    link: Arc<Link>,
    mut returning: Vec<Returning>,
) {
    let mut ticks = interval(shared.settings.claim_timeout / RENEWALS);
    loop {
        stream::iter(returning)
            .for_each_concurrent(CLAIMS_AT_A_TIME, |one| claim_again(&shared, &link, one))
            .await;
        tokio::select! {
            () = link.lost.cancelled() => return,
            _ = ticks.tick() => {}
        }
        stream::iter(shared.guests_by_block())
            .for_each_concurrent(CLAIMS_AT_A_TIME, |(block, guests)| {
                renew(&shared, &link, block, guests)
            })
            .await;
        // Whose id was granted just when the link before was lost.
        returning = match listen_again(&shared, &link).await {
            Ok(returning) => returning,
            Err(Lost) => return link.lost.cancel(),
        };
    }
}

async fn claim_again(shared: &Arc<Shared>, link: &Arc<Link>, returning: Returning) {
    let Returning {
        staying,
        subscriber,
    } = returning;
    let Staying {
        id,
        resumption_id,
        number,
    } = staying;
    let mut own = None;
    if shared.leases.holds(id) {
        match shared.keeps(staying) {
            Some(true) => own = Some(shared.node),
            Some(false) => return shared.turn_out(staying, Refusal::InUse),
            None => return,
        }
    }
    let claimant = Claimant {
        node: shared.node,
        id,
        resumption_id,
        again: true,
    };
    match bid(shared, link, claimant, own, subscriber).await {
        Ok(arrival) => settle(shared, link.clone(), claimant, number, arrival),
        Err(_) if link.lost.is_cancelled() => {}
        Err(refusal) => {
            debug!(%id, ?refusal, "a guest cannot stay");
            shared.turn_out(staying, refusal);
        }
    }
}

async fn renew(shared: &Shared, link: &Link, block: u64, guests: Vec<Staying>) {
    if shared.leases.list().contains(&block) {
        // Nobody else has to be told.
        return;
    }
    let renewal = Ask::Renew(shared.node, named(&guests)).encode();
    match ask(link, shared.subjects.claim(block), renewal).await {
        Asked::Said(Reply::Lost(lost)) => {
            for staying in guests {
                if lost.contains(&staying.id) {
                    shared.turn_out(staying, Refusal::InUse);
                }
            }
        }
        Asked::Nobody => {
            for staying in guests {
                shared.guests.note_holder(staying, None);
            }
        }
        Asked::Said(_) | Asked::Silence => {}
    }
}

impl Shared {
    /// The guests who are here, by the block of their ids, so many at a time.
    fn guests_by_block(&self) -> Vec<(u64, Vec<Staying>)> {
        let blocks = self.leases.blocks();
        let mut by_block = HashMap::<_, Vec<_>>::new();
        for staying in self.guests.staying(|_| true) {
            let of_block = by_block.entry(blocks.block_of(staying.id)).or_default();
            of_block.push(staying);
        }
        let mut parts = Vec::new();
        for (block, guests) in by_block {
            for some in guests.chunks(RENEWED_AT_A_TIME) {
                parts.push((block, some.to_vec()));
            }
        }
        parts
    }

    /// This node's own claims on ids of its blocks last as long as their guests are here.
    pub(in crate::cluster) fn renew_own(&self) {
        let mut guests = self.guests.staying(|_| true);
        guests.retain(|staying| self.leases.holds(staying.id));
        for staying in guests {
            if self.keeps(staying) == Some(false) {
                self.turn_out(staying, Refusal::InUse);
            }
        }
    }

    /// Whether an id of a block of this node is still had by a guest who is here; nothing where that one
    /// has left.
    fn keeps(&self, staying: Staying) -> Option<bool> {
        let Staying {
            id,
            resumption_id,
            number,
        } = staying;
        // Under the lock, so that no claim is renewed that is being released.
        let keep = |stay: &mut Stay| {
            let is_here = stay.phase == Phase::Here;
            is_here.then(|| self.keep_own(id, resumption_id))
        };
        self.guests.with(id, number, keep).flatten()
    }

    /// Tells a node that holds blocks, from now on or again, which ids of them are here.
    pub(in crate::cluster) async fn tell_holder(&self, link: &Link, holder: Node, blocks: &[u64]) {
        for (block, guests) in self.guests_by_block() {
            if !blocks.contains(&block) {
                continue;
            }
            for staying in &guests {
                self.guests.note_holder(*staying, Some(holder));
            }
            let renewal = Ask::Renew(self.node, named(&guests)).encode();
            let to = self.subjects.claims(holder);
            // Fails where the connection has ended, and then they are claimed again by the next.
            let _ended = link.publish(to, None, renewal).await.is_err();
        }
    }
}

/// As messages name them.
fn named(guests: &[Staying]) -> Vec<(UserId, ResumptionId)> {
    let named = guests
        .iter()
        .map(|staying| (staying.id, staying.resumption_id));
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::node;
    use super::super::tests::guest;
    use super::*;

    #[test]
    fn renewals_are_of_one_block_and_of_a_bounded_size() {
        let size = u32::try_from(2 * RENEWED_AT_A_TIME).unwrap();
        let shared = node(|settings| settings.block_size = size.try_into().unwrap());
        let ids = u64::from(size) / 2..u64::from(size) * 2;
        let _guests: Vec<_> = ids.clone().map(|id| guest(&shared, id, Some(1))).collect();
        let blocks = shared.leases.blocks();
        let parts = shared.guests_by_block();
        let mut named = Vec::new();
        for (block, guests) in parts {
            assert!(guests.len() <= RENEWED_AT_A_TIME);
            assert!(guests.iter().all(|one| blocks.block_of(one.id) == block));
            named.extend(guests.iter().map(|one| one.id));
        }
        named.sort_unstable();
        assert!(named.into_iter().map(UserId::get).eq(ids));
    }
}
