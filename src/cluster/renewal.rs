//! Keeps the lease of this node: writes its key, and looks whether the buckets are still the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::buckets::Buckets;
use super::nats::{Bucket, BucketFailure, NatsLink, Revision, WriteFailure};
use super::record::{decode_link, encode_link};
use super::shared::Shared;

/// Writes in the time that a key lives.
const WRITES: u32 = 4;
/// The wait before a write is repeated.
const RETRY: Duration = Duration::from_millis(200);

pub(super) struct LeaseRenewal<L: NatsLink> {
    shared: Arc<Shared>,
    link: L,
    buckets: Buckets<L>,
    /// The number of the link.
    number: u64,
    /// That of the key, where it is known.
    revision: Option<Revision>,
}

impl<L: NatsLink> LeaseRenewal<L> {
    pub(super) fn new(shared: Arc<Shared>, link: L, buckets: Buckets<L>, number: u64) -> Self {
        Self {
            shared,
            link,
            buckets,
            number,
            revision: None,
        }
    }

    /// Writes the key. Whether it is written; if not, it has another revision than was known.
    pub(super) async fn renew(&mut self) -> Result<bool, BucketFailure> {
        let shared = &self.shared;
        let (bucket, key) = (&self.buckets.nodes, shared.node.0.to_string());
        let begun = shared.now();
        let over = if let Some(revision) = self.revision.take() {
            revision
        } else {
            let entry = bucket.get(&key).await?;
            let found = entry.value.and_then(|value| decode_link(&value));
            // A link that wrote its key and was lost before it was up counts as a stranger's, which costs a comparison.
            let own = [shared.link(), self.number];
            if !found.is_some_and(|found| own.contains(&found)) {
                shared.lease.end();
            }
            entry.revision
        };
        match bucket
            .write(&key, Some(encode_link(self.number)), over)
            .await
        {
            Ok(revision) => {
                self.revision = Some(revision);
                let timeout = shared.node_timeout();
                if let Some(lease) = shared.lease.renewed(begun, timeout) {
                    // Without a link that is up it has no effect, and is done when the link comes up.
                    shared.registry().compare(lease, shared.now());
                    shared.ask();
                }
                Ok(true)
            }
            Err(WriteFailure::Conflict) => Ok(false),
            Err(WriteFailure::Failed(failure)) => Err(failure),
        }
    }

    /// Keeps the lease until `closing`, and then gives it up. Ends early if a bucket is another one.
    pub(super) async fn keep(mut self, closing: CancellationToken) -> Option<&'static str> {
        let interval = self.shared.settings.node_timeout / WRITES;
        let mut wait = interval;
        let mut failures = 0;
        loop {
            tokio::select! {
                () = sleep(wait) => {}
                () = closing.cancelled() => break,
            }
            wait = interval;
            let kept = async {
                while !self.renew().await? {}
                Buckets::open(&self.shared, &self.link).await
            };
            match kept.await {
                Ok(buckets) if buckets.identities() != self.buckets.identities() => {
                    return Some("a bucket of nats was lost and made again");
                }
                Ok(_) => failures = 0,
                Err(BucketFailure::Missing) => return Some("a bucket of nats is lost"),
                Err(error) => {
                    if failures == 0 {
                        warn!(%error, "the lease of this node is not renewed");
                    }
                    failures += 1;
                    wait = RETRY;
                }
            }
        }
        if let Some(revision) = self.revision {
            let key = self.shared.node.0.to_string();
            // If it fails, the key ends by itself.
            let _remains = self
                .buckets
                .nodes
                .write(&key, None, revision)
                .await
                .is_err();
        }
        None
    }
}
