//! The state of the node: what it is, what it has done, whether it drains, and how it stands with the
//! others.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use serde::Serialize;
use tracing::error;

use super::problem::Problem;
use super::{Answer, Api, json, time_text};
use crate::ledger::LedgerTotals;
use crate::lifecycle::Stage;
use crate::telemetry::metrics::DropReason;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    node: String,
    started: String,
    ready: bool,
    users: u64,
    messages: Messages,
    queue: Queue,
    drain: Option<Drain>,
    cluster: Option<Cluster>,
}

/// The ledger.
#[derive(Serialize)]
struct Messages {
    received: u64,
    delivered: u64,
    dropped: BTreeMap<&'static str, u64>,
    mailbox: u64,
    cluster_received: u64,
    cluster_sent: u64,
}

#[derive(Serialize)]
struct Queue {
    messages: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Drain {
    stage: &'static str,
    until: String,
}

#[derive(Serialize)]
struct Cluster {
    up: bool,
    blocks: u64,
    ids_left: u64,
    outcomes_pending: u64,
    queue: Queue,
}

impl Api {
    /// `GET /api/status`
    pub(super) async fn status(&self) -> Result<Answer, Problem> {
        let relay = self.relay.clone();
        // It walks all users.
        let counted = tokio::task::spawn_blocking(move || {
            let stats = relay.stats();
            (
                stats,
                LedgerTotals::read(relay.metrics(), stats.mailbox_messages),
            )
        });
        let (stats, figures) = counted.await.map_err(|error| {
            error!(%error, "cannot count users");
            Problem::internal()
        })?;
        let metrics = self.relay.metrics();
        let dropped = DropReason::ALL.iter();
        let dropped = dropped.map(|reason| (reason.as_str(), metrics.dropped(*reason)));
        let stage = self.shutdown.stage();
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            node: self.node.clone(),
            started: time_text(self.started),
            ready: stage == Stage::Ready && self.relay.ready().is_ok(),
            users: stats.connections,
            messages: Messages {
                received: figures.received,
                delivered: figures.delivered,
                dropped: dropped.collect(),
                mailbox: figures.mailbox,
                cluster_received: figures.cluster_received,
                cluster_sent: figures.cluster_sent,
            },
            queue: Queue {
                messages: stats.mailbox_messages,
                bytes: stats.mailbox_bytes,
            },
            drain: drain(stage, metrics.drain_deadline()),
            cluster: stats.link.map(|link| Cluster {
                up: link.up,
                blocks: link.blocks,
                ids_left: link.ids_left,
                outcomes_pending: link.outcomes_pending,
                queue: Queue {
                    messages: link.queue_messages,
                    bytes: link.queue_bytes,
                },
            }),
        };
        Ok(json(StatusCode::OK, &status))
    }
}

fn drain(stage: Stage, deadline: Option<Duration>) -> Option<Drain> {
    let stage = match stage {
        Stage::Ready => return None,
        Stage::Unready => "delay",
        Stage::Draining => "spread",
    };
    let until = time_text(SystemTime::UNIX_EPOCH + deadline?);
    Some(Drain { stage, until })
}
