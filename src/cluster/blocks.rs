//! Leases blocks of new ids: takes the next number of a counter by compare-and-set, ahead of need, and keeps the
//! counter above all blocks that this node knows of.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use super::nats::{Bucket, BucketFailure, Entry, NatsLink, WriteFailure};
use super::record::Counter;
use super::shared::{BACKOFF, Shared};
use super::unready::Unready;

/// The key of the counter.
const NEXT: &str = "next";

/// Why there is no new block.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("cluster.block_size is {here}, but the cluster was made with block_size={there}")]
    BlockSize { here: u64, there: u64 },
    #[error(transparent)]
    Bucket(#[from] BucketFailure),
}

/// What is to be done with the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CounterStep {
    /// Nothing.
    Enough,
    /// Write this one, which leases the block, or none.
    Write(Counter, Option<u64>),
}

/// Leases blocks until the link is lost.
pub(super) async fn lease_blocks<L: NatsLink>(shared: Arc<Shared>, link: L, bucket: L::Bucket) {
    let mut backoff = BACKOFF;
    // The old stream has leased blocks that no table knows of.
    let mut floor = None;
    loop {
        match lease(&shared, &link, &bucket, &mut floor).await {
            Ok(true) => {
                shared.set_unready(Unready::NoId);
                backoff.reset();
                shared.leases.changed().await;
            }
            Ok(false) => {}
            Err(error) => {
                shared.set_unready(match error {
                    LeaseError::BlockSize { .. } => Unready::BlockSize,
                    LeaseError::Bucket(_) => Unready::NoJetStream,
                });
                if backoff.is_first() {
                    error!(%error, "no new block of ids");
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// One step. Whether there is enough.
async fn lease<L: NatsLink>(
    shared: &Shared,
    link: &L,
    bucket: &L::Bucket,
    floor: &mut Option<u64>,
) -> Result<bool, LeaseError> {
    let Entry { value, revision } = bucket.get(NEXT).await?;
    let counter = value.and_then(|value| Counter::decode(&value));
    if counter.is_none() && floor.is_none() {
        let last = link.last_sequence(&shared.subjects.old_stream()).await?;
        *floor = Some(last.unwrap_or(0));
    }
    let known = shared.leases.highest().max(floor.unwrap_or(0));
    let size = shared.leases.block_size();
    let is_low = shared.leases.unspent() < size;
    match next(counter, known, size, is_low)? {
        CounterStep::Enough => Ok(true),
        CounterStep::Write(counter, block) => {
            match bucket.write(NEXT, Some(counter.encode()), revision).await {
                Ok(_) => {
                    if let Some(block) = block {
                        shared.leases.add(block);
                        info!(block, "leased a block of ids");
                    }
                    Ok(false)
                }
                // Another node was first. The wait is random, so that one of many is first next time, too.
                Err(WriteFailure::Conflict) => {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await;
                    Ok(false)
                }
                // A block that is leased and not known to be is lost, and no id with it.
                Err(WriteFailure::Failed(failure)) => Err(failure.into()),
            }
        }
    }
}

/// Decides over the counter of a bucket.
fn next(
    counter: Option<Counter>,
    known: u64,
    size: u64,
    is_low: bool,
) -> Result<CounterStep, LeaseError> {
    if let Some(counter) = counter
        && counter.block_size != size
    {
        let there = counter.block_size;
        return Err(LeaseError::BlockSize { here: size, there });
    }
    let first = counter.map_or(1, |counter| counter.next);
    let block = first.max(known + 1);
    let next = if is_low { block + 1 } else { block };
    if counter.is_some() && next == first {
        return Ok(CounterStep::Enough);
    }
    let counter = Counter {
        next,
        block_size: size,
    };
    Ok(CounterStep::Write(counter, is_low.then_some(block)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(next: u64) -> Counter {
        Counter {
            next,
            block_size: 8,
        }
    }

    #[test]
    fn a_block_is_above_the_counter_and_above_all_that_are_known() {
        for (found, known, is_low, expected) in [
            (None, 0, true, CounterStep::Write(counter(2), Some(1))),
            (None, 6, true, CounterStep::Write(counter(8), Some(7))),
            (None, 6, false, CounterStep::Write(counter(7), None)),
            (Some(4), 0, true, CounterStep::Write(counter(5), Some(4))),
            (Some(4), 3, true, CounterStep::Write(counter(5), Some(4))),
            (Some(4), 9, true, CounterStep::Write(counter(11), Some(10))),
            (Some(4), 9, false, CounterStep::Write(counter(10), None)),
            (Some(4), 3, false, CounterStep::Enough),
        ] {
            let turn = next(found.map(counter), known, 8, is_low).unwrap();
            assert_eq!(turn, expected, "{found:?} {known} {is_low}");
        }
        assert!(matches!(
            next(Some(counter(4)), 0, 16, true),
            Err(LeaseError::BlockSize { here: 16, there: 8 })
        ));
    }
}
