//! Scenarios about peers that connect and leave: their cost, and their effect on bystanders.

use std::time::Duration;

use super::steps::{BYSTANDERS_RATE, SETTLE, add_ratios, count, start_bystanders};
use crate::engine::{BatchPace, Churn, PeerBatch};
use crate::error::BenchError;
use crate::number::{float, seconds};
use crate::open_files;
use crate::options::BenchOptions;
use crate::outcome::Outcome;
use crate::process::MonitoredProcess;
use crate::scenario_run::ScenarioRun;
use crate::snapshot::Snapshot;

/// How long the last short-lived peers may take to leave, beyond the time of --hold.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Many silent users beside bystanders.
pub(super) fn idle(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, rate) = (
        options.pairs.unwrap_or(4),
        options.rate.unwrap_or(BYSTANDERS_RATE),
    );
    let peers = batch_size(options, 10_000, pairs)?;
    run.describe(format!(
        "{peers} silent users beside {pairs} pairs with {rate} messages/s in all"
    ));
    let others = start_bystanders(&mut run, pairs, rate)?;
    run.measure("alone", &[("alone", others)], options.duration());
    let (memory, before) = (run.server_memory(), run.snapshot());
    run.engine.progress.step("idle peers connect");
    let batch = run
        .engine
        .connect_batch(peers, BatchPace::Limited(count(options.parallel)))?;
    let after = run.snapshot();
    require_all(&run, &batch, peers)?;
    add_connection_facts(&mut run, &batch, &before, &after);
    run.engine.run_for(SETTLE);
    let grown = run.server_memory().zip(memory);
    if let Some((with, without)) = grown {
        let each = (with - without) / float(batch.opened);
        run.fact("server_memory_per_idle_user", each.round(), "B");
    }
    run.measure(
        "beside idle peers",
        &[("beside idle peers", others)],
        options.duration(),
    );
    run.engine.abort(&batch.slots);
    run.engine.run_for(SETTLE);
    Ok(run.finish())
}

/// All users lose their connections and connect again at once, beside bystanders.
pub(super) fn storm(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, rate) = (
        options.pairs.unwrap_or(4),
        options.rate.unwrap_or(BYSTANDERS_RATE),
    );
    let peers = batch_size(options, 5000, pairs)?;
    run.describe(format!(
        "{peers} users lose their connections and come back at once, beside {pairs} pairs with \
         {rate} messages/s in all"
    ));
    let others = start_bystanders(&mut run, pairs, rate)?;
    run.engine.progress.step("idle peers connect");
    let first = run
        .engine
        .connect_batch(peers, BatchPace::Limited(count(options.parallel)))?;
    require_all(&run, &first, peers)?;
    run.engine.run_for(SETTLE);
    run.measure("before", &[("before", others)], options.duration());
    run.engine.progress.step("all connect again");
    let (phase, from) = (run.engine.begin_phase(), run.snapshot());
    run.engine.abort(&first.slots);
    let again = run.engine.connect_batch(peers, BatchPace::AllAtOnce)?;
    let to = run.snapshot();
    run.measured("storm", &[("storm", others)], phase, from.clone());
    require_all(&run, &again, peers)?;
    add_connection_facts(&mut run, &again, &from, &to);
    run.fact("refused_and_tried_again", float(again.refused), "");
    run.measure("after", &[("after", others)], options.duration());
    run.engine.abort(&again.slots);
    run.engine.run_for(SETTLE);
    Ok(run.finish())
}

/// Users connect and leave after a moment, beside bystanders.
pub(super) fn churn(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, rate) = (
        options.pairs.unwrap_or(10),
        options.rate.unwrap_or(BYSTANDERS_RATE),
    );
    let (per_second, hold) = (options.churn_rate, options.hold);
    run.describe(format!(
        "{per_second} users/s come, stay for {hold:?} and go; beside them {pairs} pairs with {rate} \
         messages/s in all"
    ));
    let others = start_bystanders(&mut run, pairs, rate)?;
    run.measure("before", &[("before", others)], options.duration());
    let (memory, files) = (run.server_memory(), server_files(&run));
    let now = run.engine.now();
    run.engine.churn = Some(Churn::new(per_second, hold, now));
    run.measure(
        "they come and go",
        &[("they come and go", others)],
        options.duration(),
    );
    let timeout = hold + LEAVE_TIMEOUT;
    if let Some(churn) = &mut run.engine.churn {
        churn.stop();
    }
    run.engine.run_until(timeout, |engine| {
        engine
            .churn
            .as_ref()
            .is_none_or(|churn| churn.connected() == 0)
    });
    run.measure("after", &[("after", others)], options.duration());
    let churn = run.engine.churn.take().expect("set above");
    let memory_left = run.server_memory().zip(memory);
    if let Some((after, before)) = memory_left {
        let each = (after - before) / float(churn.opened.max(1));
        run.fact("server_memory_left_per_user", each.round(), "B");
    }
    if let Some((after, before)) = server_files(&run).zip(files) {
        run.fact("descriptors_left_open", after - before, "");
    }
    let us = |quantile| float(churn.latency.value_at_quantile(quantile)) / 1e3;
    run.fact("upgrade_p50", us(0.5), "µs");
    run.fact("upgrade_p99", us(0.99), "µs");
    run.fact("users_who_came", float(churn.opened), "");
    run.fact("left_with_a_close_handshake", float(churn.left), "");
    run.fact("close_frames_unanswered", float(churn.unanswered), "");
    run.fact("skipped_by_the_schedule", float(churn.skipped), "");
    let mut outcome = run.finish();
    add_ratios(&mut outcome, ["before", "they come and go"]);
    Ok(outcome)
}

/// How many idle peers: as many as --connections says, or as many as there is room for.
fn batch_size(options: &BenchOptions, default: u64, pairs: u32) -> Result<usize, BenchError> {
    let bystanders = 2 * u64::from(pairs);
    if let Some(wanted) = options.connections {
        open_files::require_room(count(wanted) + count(2 * pairs))?;
        return Ok(count(wanted));
    }
    let room = open_files::room().saturating_sub(bystanders);
    Ok(usize::try_from(room.min(default)).expect("at most the default"))
}

/// Checks that all peers of a batch are connected.
fn require_all(run: &ScenarioRun<'_>, batch: &PeerBatch, wanted: usize) -> Result<(), BenchError> {
    if batch.opened == wanted as u64 {
        return Ok(());
    }
    Err(BenchError::PeersMissing {
        address: run.address(),
        opened: batch.opened,
        wanted,
        refusal: batch.refusal.clone(),
    })
}

/// Adds the facts of a batch that connected between two snapshots.
fn add_connection_facts(
    run: &mut ScenarioRun<'_>,
    batch: &PeerBatch,
    before: &Snapshot,
    after: &Snapshot,
) {
    let opened = float(batch.opened);
    let took = seconds(batch.took_ns);
    run.fact("all_connected_after", took * 1e6, "µs");
    run.fact("connections_per_second", (opened / took).round(), "/s");
    let us = |quantile| float(batch.latency.value_at_quantile(quantile)) / 1e3;
    run.fact("upgrade_p50", us(0.5), "µs");
    run.fact("upgrade_p99", us(0.99), "µs");
    if let Some(ns) = after.server_since(before) {
        run.fact("server_cpu_per_connection", float(ns) / 1e3 / opened, "µs");
    }
}

fn server_files(run: &ScenarioRun<'_>) -> Option<f64> {
    run.server.and_then(MonitoredProcess::open_files).map(float)
}
