//! Scenarios without a disturbance: as many messages as the server relays, or a fixed rate.

use super::steps::{WINDOW, add_fairness, arrived, count, in_pairs};
use crate::connection::Role;
use crate::error::BenchError;
use crate::outcome::Outcome;
use crate::scenario_run::ScenarioRun;

/// Pairs that always have the same number of messages in flight.
pub(super) fn pairs(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let pairs = options.pairs.unwrap_or(100);
    let (window, size) = (options.window.unwrap_or(WINDOW), options.size);
    run.describe(format!(
        "{pairs} pairs, {window} messages of {size} B under way in each"
    ));
    let slots = run.connect(Role::Talker, 2 * count(pairs))?;
    closed_loop(run, in_pairs(&slots), window, "slowest_pair_to_fastest")
}

/// Pairs at a fixed rate.
pub(super) fn open_loop(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, rate) = (options.pairs.unwrap_or(10), options.rate.unwrap_or(10_000));
    let size = options.size;
    run.describe(format!(
        "{pairs} pairs, {rate} messages/s of {size} B in all, whatever the server does"
    ));
    let slots = run.connect(Role::Talker, 2 * count(pairs))?;
    let group = run.engine.add_group("messages");
    let flows = run.flows(in_pairs(&slots), group, size)?;
    run.engine.pace(&flows, rate);
    run.engine.run_for(options.warmup);
    run.measure("steady", &[("steady", group)], options.duration());
    Ok(run.finish())
}

/// Many senders to one recipient.
pub(super) fn fan_in(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (senders, window) = (options.senders, options.window.unwrap_or(4));
    let size = options.size;
    run.describe(format!(
        "{senders} senders to one recipient, {window} messages of {size} B under way from each"
    ));
    let slots = run.connect(Role::Talker, 1 + count(senders))?;
    let senders = slots[1..].iter();
    let pairs: Vec<_> = senders.map(|sender| [*sender, slots[0]]).collect();
    closed_loop(run, &pairs, window, "slowest_sender_to_fastest")
}

/// Keeps `window` messages in flight from the first to the second of each pair, and measures the ratio of the
/// slowest pair to the fastest one as `fairness`.
fn closed_loop(
    mut run: ScenarioRun<'_>,
    pairs: &[[usize; 2]],
    window: u32,
    fairness: &'static str,
) -> Result<Outcome, BenchError> {
    let options = run.options;
    let group = run.engine.add_group("messages");
    let flows = run.flows(pairs, group, options.size)?;
    run.engine.start_loops(&flows, window);
    run.engine.run_for(options.warmup);
    let before = arrived(&run, &flows);
    run.measure("steady", &[("steady", group)], options.duration());
    let after = arrived(&run, &flows);
    add_fairness(&mut run, fairness, &before, &after);
    Ok(run.finish())
}
