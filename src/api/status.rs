//! `GET /api/status`: the node, its ledger, its drain and its link to other nodes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use serde::Serialize;
use tracing::error;

use super::problem::ProblemDetails;
use super::response::{ApiResponse, json, time_text};
use super::state::ApiState;
use crate::ledger::LedgerTotals;
use crate::lifecycle::Stage;
use crate::telemetry::metrics::{ClusterStats, DirectoryStats, DropReason};

#[derive(Serialize)]
struct NodeStatus {
    version: &'static str,
    node: String,
    started: String,
    ready: bool,
    users: u64,
    messages: MessageTotals,
    queue: QueueTotals,
    drain: Option<DrainStatus>,
    cluster: Option<ClusterStatus>,
}

/// The ledger.
#[derive(Serialize)]
struct MessageTotals {
    received: u64,
    delivered: u64,
    dropped: BTreeMap<&'static str, u64>,
    mailbox: u64,
    cluster_received: u64,
    cluster_sent: u64,
}

#[derive(Serialize)]
struct QueueTotals {
    messages: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct DrainStatus {
    stage: &'static str,
    until: String,
}

#[derive(Serialize)]
struct ClusterStatus {
    up: bool,
    blocks: u64,
    ids_left: u64,
    outcomes_pending: u64,
    queue: QueueTotals,
}

pub(super) async fn get(state: &ApiState) -> Result<ApiResponse, ProblemDetails> {
    let relay = state.relay.clone();
    // On a thread for blocking work, because it walks all users.
    let counted = tokio::task::spawn_blocking(move || {
        let mut users = DirectoryStats::default();
        let totals = LedgerTotals::read(relay.metrics(), || {
            users = relay.stats();
            users.mailbox_messages
        });
        (users, totals)
    });
    let (users, totals) = counted.await.map_err(|error| {
        error!(%error, "cannot count users");
        ProblemDetails::internal()
    })?;
    let metrics = state.relay.metrics();
    let reached = state.shutdown.stage();
    let body = NodeStatus {
        version: env!("CARGO_PKG_VERSION"),
        node: state.node.clone(),
        started: time_text(state.started),
        ready: reached == Stage::Ready && !state.relay.is_full() && state.relay.ready().is_ok(),
        users: users.connections,
        messages: MessageTotals::from(totals),
        queue: QueueTotals {
            messages: users.mailbox_messages,
            bytes: users.mailbox_bytes,
        },
        drain: drain_status(reached, metrics.drain_deadline()),
        cluster: users.link.map(ClusterStatus::from),
    };
    Ok(json(StatusCode::OK, &body))
}

impl From<LedgerTotals> for MessageTotals {
    fn from(totals: LedgerTotals) -> Self {
        let reasons = DropReason::ALL.map(DropReason::as_str);
        Self {
            received: totals.received,
            delivered: totals.delivered,
            dropped: reasons.into_iter().zip(totals.dropped_by).collect(),
            mailbox: totals.mailbox,
            cluster_received: totals.cluster_received,
            cluster_sent: totals.cluster_sent,
        }
    }
}

impl From<ClusterStats> for ClusterStatus {
    fn from(stats: ClusterStats) -> Self {
        Self {
            up: stats.up,
            blocks: stats.blocks,
            ids_left: stats.ids_left,
            outcomes_pending: stats.outcomes_pending,
            queue: QueueTotals {
                messages: stats.queue_messages,
                bytes: stats.queue_bytes,
            },
        }
    }
}

fn drain_status(stage: Stage, deadline: Option<Duration>) -> Option<DrainStatus> {
    let stage = match stage {
        Stage::Ready => return None,
        Stage::Unready => "delay",
        Stage::Draining => "spread",
    };
    let until = time_text(SystemTime::UNIX_EPOCH + deadline?);
    Some(DrainStatus { stage, until })
}
