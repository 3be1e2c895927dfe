//! Settings of a run: small limits and short times, so that a run meets them.

use std::num::NonZeroU32;
use std::time::Duration;

use super::schedule::Shape;
use crate::config::{Overflow, Settings, Strategy};

pub(super) fn settings(shape: &Shape, rng: &mut fastrand::Rng) -> Settings {
    let mut settings = Settings::default();
    let mailbox = &mut settings.mailbox;
    mailbox.messages = rng.u32(4..64);
    mailbox.bytes = 1 << rng.u32(11..16);
    mailbox.total_bytes = 1 << rng.u32(17..20);
    mailbox.overflow = [
        Overflow::DropNewest,
        Overflow::DropOldest,
        Overflow::Disconnect,
    ][rng.usize(..3)];
    let keepalive = &mut settings.keepalive;
    keepalive.ping_interval = Duration::from_secs(4);
    keepalive.pong_timeout = Duration::from_secs(3);
    keepalive.write_timeout = Duration::from_secs(3);
    keepalive.close_timeout = Duration::from_secs(1);
    let limits = &mut settings.limits;
    limits.message_bytes = 1024;
    limits.frame_bytes = 4096;
    limits.outcomes_pending = rng.u32(8..256);
    limits.bad_messages = 3;
    limits.connection_age = Duration::from_secs([0, 0, 12][rng.usize(..3)]);
    let drain = &mut settings.drain;
    drain.delay = Duration::from_millis(rng.u64(..1_000));
    drain.spread = Duration::from_millis(rng.u64(..2_000));
    drain.timeout = drain.delay + Duration::from_millis(rng.u64(1_000..5_000));
    let cluster = &mut settings.cluster;
    if shape.has_cluster {
        cluster.nats_url = vec!["nats://model".to_owned()];
    }
    cluster.block_size = NonZeroU32::new(rng.u32(2..16)).expect("it is above zero");
    cluster.lease_replicas = if shape.servers == 3 { 3 } else { 1 };
    cluster.link_timeout = Duration::from_secs(2);
    cluster.node_timeout = Duration::from_millis(rng.u64(4_000..6_000));
    // Short, so that entries are renewed within a run.
    cluster.entry_ttl = Duration::from_secs(rng.u64(12..60));
    cluster.joins = rng.u32(2..16);
    cluster.routes = rng.u32(2..16);
    cluster.outcome_timeout = Duration::from_secs(rng.u64(2..6));
    cluster.outcomes_pending = rng.u32(16..1_000);
    cluster.user_messages = rng.u32(4..64);
    cluster.user_bytes = 1 << rng.u32(13..17);
    cluster.queue_bytes = 1 << rng.u32(16..19);
    cluster.in_flight_bytes = 1 << rng.u32(16..18);
    cluster.inbound_messages = rng.u32(64..2_000);
    settings.routing.strategy = if shape.is_routed {
        Strategy::Router
    } else {
        Strategy::Directory
    };
    settings.routing.router_queue = rng.usize(4..64);
    settings
}
