//! Steps that several scenarios share.

use std::time::Duration;

use crate::connection::Role;
use crate::error::BenchError;
use crate::number::rounded;
use crate::outcome::{Fact, Outcome, Row};
use crate::scenario_run::ScenarioRun;

/// Time for a new load to become steady, and for the server to free memory.
pub(super) const SETTLE: Duration = Duration::from_millis(300);

/// The default rate of the bystanders, messages a second: far below the capacity of a server.
pub(super) const BYSTANDERS_RATE: u32 = 2000;

/// The default rate of a quiet pair, messages a second.
pub(super) const QUIET_RATE: u32 = 500;

/// The default number of messages that a pair has in flight.
pub(super) const WINDOW: u32 = 64;

/// The slots in pairs, in order.
pub(super) fn in_pairs(slots: &[usize]) -> &[[usize; 2]] {
    slots.as_chunks().0
}

pub(super) fn count(number: u32) -> usize {
    number as usize
}

/// Starts pairs that exchange messages at a fixed rate, to show the effect of everything else on them. Returns
/// their group.
pub(super) fn start_bystanders(
    run: &mut ScenarioRun<'_>,
    pairs: u32,
    rate: u32,
) -> Result<usize, BenchError> {
    let group = run.engine.add_group("bystanders");
    let slots = run.connect(Role::Talker, 2 * count(pairs))?;
    let flows = run.flows(in_pairs(&slots), group, run.options.size)?;
    run.engine.pace(&flows, rate);
    run.engine.run_for(run.options.warmup);
    Ok(group)
}

/// How many messages have arrived on each flow.
pub(super) fn arrived(run: &ScenarioRun<'_>, flows: &[usize]) -> Vec<u32> {
    let expected = |flow: &usize| run.engine.flows[*flow].track.expected();
    flows.iter().map(expected).collect()
}

/// Adds the ratio of the slowest flow to the fastest one between two calls of [`arrived`].
pub(super) fn add_fairness(
    run: &mut ScenarioRun<'_>,
    name: &'static str,
    before: &[u32],
    after: &[u32],
) {
    let shares = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before);
    let (least, most) = shares.fold((u32::MAX, 0), |(least, most), share| {
        (least.min(share), most.max(share))
    });
    run.fact(name, f64::from(least) / f64::from(most.max(1)), "");
}

/// Adds the ratios of rate and latency of two rows: one `during` a disturbance, and one `before` it.
pub(super) fn add_ratios(outcome: &mut Outcome, [before, during]: [&str; 2]) {
    let (Some(before), Some(during)) = (outcome.row(before), outcome.row(during)) else {
        return;
    };
    let p99 = |row: &Row| row.latency_us.map(|latency| latency.p99);
    let ratio = p99(during)
        .zip(p99(before))
        .map(|(during, before)| during / before);
    let kept = during.messages_per_second / before.messages_per_second.max(1.0);
    let facts = [
        Some(("rate_during_to_before", kept)),
        ratio.map(|ratio| ("p99_during_to_before", ratio)),
    ];
    outcome
        .facts
        .extend(facts.into_iter().flatten().map(|(name, value)| Fact {
            name,
            value: rounded(value, 3),
            unit: "",
        }));
}
