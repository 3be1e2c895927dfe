//! Scenarios about neighbours: the effect of one user or pair on the others.

use super::steps::{
    BYSTANDERS_RATE, QUIET_RATE, SETTLE, WINDOW, add_ratios, count, in_pairs, start_bystanders,
};
use crate::connection::Role;
use crate::error::BenchError;
use crate::number::float;
use crate::outcome::Outcome;
use crate::scenario_run::ScenarioRun;

/// Bytes of a flood that may wait in this program before messages are withheld: the socket is full by then.
const FLOOD_BACKLOG_BYTES: usize = 256 * 1024;

/// One user stops reading while another floods it, beside bystanders.
pub(super) fn slow_reader(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (pairs, rate) = (
        options.pairs.unwrap_or(10),
        options.rate.unwrap_or(BYSTANDERS_RATE),
    );
    let (flood_rate, flood_size) = (options.flood_rate, options.flood_size);
    run.describe(format!(
        "one user stops reading and gets {flood_rate} messages/s of {flood_size} B; beside it \
         {pairs} pairs with {rate} messages/s in all"
    ));
    let others = start_bystanders(&mut run, pairs, rate)?;
    let flood = run.engine.add_group("flood");
    let reader = run.connect(Role::SlowReader, 1)?[0];
    let sender = run.connect(Role::Talker, 1)?[0];
    let flooding = run.flows(&[[sender, reader]], flood, flood_size)?;
    run.engine.flows[flooding[0]].backlog_bytes_max = FLOOD_BACKLOG_BYTES;
    run.measure("before", &[("before", others)], options.duration());
    let memory = run.server_memory();
    run.engine.pause_reading(reader);
    run.engine.pace(&flooding, flood_rate);
    run.measure(
        "one does not read",
        &[("one does not read", others)],
        options.duration(),
    );
    let grown = run.server_memory().zip(memory);
    // The flood is the last pacer.
    run.engine.pacers.pop();
    run.engine.resume_reading(reader)?;
    run.measure(
        "it reads again",
        &[("it reads again", others)],
        options.duration(),
    );
    if let Some((with, without)) = grown {
        run.fact("server_memory_growth", with - without, "B");
    }
    let thrown_out = !run.engine.is_open(reader);
    run.fact("slow_reader_thrown_out", float(u64::from(thrown_out)), "");
    let flow = flooding[0];
    let flooded = u64::from(run.engine.flows[flow].track.upcoming());
    run.fact("flood_messages", float(flooded), "");
    let mut outcome = run.finish();
    add_ratios(&mut outcome, ["before", "one does not read"]);
    Ok(outcome)
}

/// A quiet pair beside busy ones.
pub(super) fn isolation(mut run: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (rate, window) = (
        options.rate.unwrap_or(QUIET_RATE),
        options.window.unwrap_or(WINDOW),
    );
    let flood_rate = options.flood_rate;
    run.describe(format!(
        "a quiet pair with {rate} messages/s beside none, beside two with {flood_rate} messages/s \
         together, beside A, beside A and B with {window} under way each"
    ));
    let groups = ["quiet", "A", "B"].map(|name| run.engine.add_group(name));
    let [quiet, a, b] = groups;
    let slots = run.connect(Role::Talker, 6)?;
    let mut flows = Vec::new();
    for (pair, group) in in_pairs(&slots).iter().zip(groups) {
        flows.extend(run.flows(&[*pair], group, options.size)?);
    }
    run.engine.pace(&flows[..1], rate);
    run.engine.run_for(options.warmup);
    run.measure("alone", &[("quiet, alone", quiet)], options.duration());

    run.engine.pace(&flows[1..], flood_rate);
    run.engine.run_for(SETTLE);
    let label = format!("quiet, beside {flood_rate}/s");
    run.measure(
        "beside a fixed rate",
        &[(&label, quiet)],
        options.duration(),
    );
    run.engine.pacers.pop();

    run.engine.start_loops(&flows[1..2], window);
    run.engine.run_for(SETTLE);
    let rows = [("quiet, beside A", quiet), ("A, alone", a)];
    run.measure("beside A", &rows, options.duration());

    run.engine.start_loops(&flows[2..], window);
    run.engine.run_for(SETTLE);
    let rows = [
        ("quiet, beside A and B", quiet),
        ("A, beside B", a),
        ("B, beside A", b),
    ];
    run.measure("beside A and B", &rows, options.duration());
    let mut outcome = run.finish();
    add_ratios(&mut outcome, ["quiet, alone", "quiet, beside A and B"]);
    Ok(outcome)
}

/// A quiet pair beside a growing number of pairs that flood, with a row for each number.
pub(crate) fn beside_floods(
    mut run: ScenarioRun<'_>,
    floods: &[u32],
) -> Result<Outcome, BenchError> {
    let options = run.options;
    let (rate, window) = (
        options.rate.unwrap_or(QUIET_RATE),
        options.window.unwrap_or(WINDOW),
    );
    run.describe(format!(
        "a quiet pair with {rate} messages/s beside pairs with {window} under way each"
    ));
    let groups = ["quiet", "flood"].map(|name| run.engine.add_group(name));
    let [quiet, flood] = groups;
    let most = floods.iter().copied().max().unwrap_or(0);
    let slots = run.connect(Role::Talker, 2 + 2 * count(most))?;
    let (first, others) = in_pairs(&slots).split_at(1);
    let talk = run.flows(first, quiet, options.size)?;
    let flooding = run.flows(others, flood, options.size)?;
    run.engine.pace(&talk, rate);
    run.engine.run_for(options.warmup);
    let mut started = 0;
    for &number in floods {
        let more = &flooding[started..count(number)];
        run.engine.start_loops(more, window);
        started = count(number);
        run.engine.run_for(SETTLE);
        let label = format!("quiet, beside {number} floods");
        run.measure("floods", &[(&label, quiet)], options.duration());
    }
    Ok(run.finish())
}
