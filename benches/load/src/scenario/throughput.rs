//! Scenarios without a disturbance: as many messages as the server relays, or a fixed rate.

use super::steps::{WINDOW, add_fairness, arrived, count, in_pairs};
use crate::connection::Role;
use crate::error::BenchError;
use crate::outcome::Outcome;
use crate::scenario_run::ScenarioRun;

/// Pairs that always have the same number of messages in flight.
pub(super) fn pairs(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, window) = (
        options.pairs.unwrap_or(100),
        options.window.unwrap_or(WINDOW),
    );
    let size = options.size;
    run.describe(format!(
        "{pairs} pairs, {window} messages of {size} B under way in each"
    ));
    let group = run.engine.add_group("messages");
    let slots = run.connect(Role::Talker, 2 * count(pairs))?;
    let flows = run.flows(in_pairs(&slots), group, size)?;
    run.engine.start_loops(&flows, window);
    run.engine.run_for(options.warmup);
    let before = arrived(&run, &flows);
    run.measure("steady", &[("steady", group)], options.duration());
    let after = arrived(&run, &flows);
    add_fairness(&mut run, "slowest_pair_to_fastest", &before, &after);
    Ok(run.finish())
}

/// Pairs at a fixed rate.
pub(super) fn open_loop(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, rate) = (options.pairs.unwrap_or(10), options.rate.unwrap_or(10_000));
    let size = options.size;
    run.describe(format!(
        "{pairs} pairs, {rate} messages/s of {size} B in all, whatever the server does"
    ));
    let group = run.engine.add_group("messages");
    let slots = run.connect(Role::Talker, 2 * count(pairs))?;
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
    let group = run.engine.add_group("messages");
    let slots = run.connect(Role::Talker, 1 + count(senders))?;
    let pairs: Vec<_> = slots[1..]
        .iter()
        .map(|sender| [*sender, slots[0]])
        .collect();
    let flows = run.flows(&pairs, group, size)?;
    run.engine.start_loops(&flows, window);
    run.engine.run_for(options.warmup);
    let before = arrived(&run, &flows);
    run.measure("steady", &[("steady", group)], options.duration());
    let after = arrived(&run, &flows);
    add_fairness(&mut run, "slowest_sender_to_fastest", &before, &after);
    Ok(run.finish())
}
