//! The three buckets of a cluster.

use std::time::Duration;

use tokio::try_join;

use super::nats::{Bucket, BucketConfig, BucketFailure, BucketIdentity, NatsLink};
use super::shared::Shared;

#[derive(Clone)]
pub(super) struct Buckets<L: NatsLink> {
    /// Where each id is.
    pub(super) ids: L::Bucket,
    /// Which nodes live.
    pub(super) nodes: L::Bucket,
    /// The counter of blocks.
    pub(super) blocks: L::Bucket,
}

impl<L: NatsLink> Buckets<L> {
    /// Opens the buckets, or makes them.
    pub(super) async fn open(shared: &Shared, link: &L) -> Result<Self, BucketFailure> {
        let settings = &shared.settings;
        let config = |name: &str, max_age, description: &str| BucketConfig {
            name: shared.subjects.bucket(name),
            max_age,
            replicas: settings.lease_replicas as usize,
            description: description.to_owned(),
        };
        let ids = config(
            "ids",
            settings.entry_ttl,
            "Switchboard: the node of each id",
        );
        let nodes = config(
            "nodes",
            settings.node_timeout,
            "Switchboard: the nodes that live",
        );
        let blocks = config(
            "blocks",
            Duration::ZERO,
            "Switchboard: the next block of ids",
        );
        let (ids, nodes, blocks) = try_join!(
            link.open_bucket(&ids),
            link.open_bucket(&nodes),
            link.open_bucket(&blocks),
        )?;
        Ok(Self { ids, nodes, blocks })
    }

    pub(super) fn identities(&self) -> [BucketIdentity; 3] {
        [&self.ids, &self.nodes, &self.blocks].map(|bucket| bucket.identity().clone())
    }
}
