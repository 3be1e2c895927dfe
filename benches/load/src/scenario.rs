//! The scenarios: what is connected, what load it makes, which phases are measured.

use std::time::Duration;

use super::BenchError;
use super::connection::Role;
use super::engine::{BatchPace, Churn, PeerBatch};
use super::flow::BACKLOG_BYTES_MAX;
use super::number::{float, seconds};
use super::options::{BenchOptions, Scenario};
use super::outcome::{Fact, Outcome, Row};
use super::process::MonitoredProcess;
use super::scenario_run::{self, ScenarioRun, Snapshot};

/// Time for a new load to take hold, and for memory to be given back.
const SETTLE: Duration = Duration::from_millis(300);

/// What a flood may have waiting in this program: the socket is full by then.
const FLOOD_BACKLOG_BYTES: usize = 256 * 1024;

/// The quiet pair's messages a second: far from any load.
const QUIET_RATE: u32 = 500;

const RATE: u32 = 2000;

/// Runs one to its verdict.
pub(super) fn run(stage: ScenarioRun<'_>, scenario: Scenario) -> Result<Outcome, BenchError> {
    match scenario {
        Scenario::Pairs => pairs(stage),
        Scenario::OpenLoop => open_loop(stage),
        Scenario::Idle => idle(stage),
        Scenario::FanIn => fan_in(stage),
        Scenario::SlowReader => slow_reader(stage),
        Scenario::Churn => churn(stage),
        Scenario::Isolation => isolation(stage),
        Scenario::Storm => storm(stage),
        Scenario::All => unreachable!("spelt out by BenchOptions::scenarios"),
    }
}

/// How long it will take, for the progress bar.
pub(super) fn expected(options: &BenchOptions, scenario: Scenario) -> Duration {
    let phases = match scenario {
        Scenario::Pairs | Scenario::OpenLoop | Scenario::FanIn => 1,
        Scenario::Idle => 2,
        Scenario::SlowReader | Scenario::Churn | Scenario::Storm => 3,
        Scenario::Isolation => 4,
        Scenario::All => 0,
    };
    options.warmup + SETTLE + options.duration() * phases
}

/// Two and two.
fn paired(slots: &[usize]) -> &[[usize; 2]] {
    slots.as_chunks().0
}

fn count(number: u32) -> usize {
    number as usize
}

fn pairs(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (pairs, window) = (options.pairs.unwrap_or(100), options.window.unwrap_or(64));
    let size = options.size;
    stage.describe(format!(
        "{pairs} pairs, {window} messages of {size} B under way in each"
    ));
    let group = stage.engine.add_group("messages");
    let slots = stage.talkers(Role::Talker, 2 * count(pairs))?;
    let flows = stage.flows(paired(&slots), group, size)?;
    stage.engine.start_loops(&flows, window);
    stage.engine.run_for(options.warmup);
    let before = arrived(&stage, &flows);
    stage.measure("steady", &[("steady", group)], options.duration());
    let after = arrived(&stage, &flows);
    fairness(&mut stage, "slowest_pair_to_fastest", &before, &after);
    Ok(stage.finish())
}

fn open_loop(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (pairs, rate) = (options.pairs.unwrap_or(10), options.rate.unwrap_or(10_000));
    let size = options.size;
    stage.describe(format!(
        "{pairs} pairs, {rate} messages/s of {size} B in all, whatever the server does"
    ));
    let group = stage.engine.add_group("messages");
    let slots = stage.talkers(Role::Talker, 2 * count(pairs))?;
    let flows = stage.flows(paired(&slots), group, size)?;
    stage.engine.pace(&flows, rate);
    stage.engine.run_for(options.warmup);
    stage.measure("steady", &[("steady", group)], options.duration());
    Ok(stage.finish())
}

fn fan_in(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (senders, window) = (options.senders, options.window.unwrap_or(4));
    let size = options.size;
    stage.describe(format!(
        "{senders} senders to one recipient, {window} messages of {size} B under way from each"
    ));
    let group = stage.engine.add_group("messages");
    let slots = stage.talkers(Role::Talker, 1 + count(senders))?;
    let pairs: Vec<_> = slots[1..]
        .iter()
        .map(|sender| [*sender, slots[0]])
        .collect();
    let flows = stage.flows(&pairs, group, size)?;
    stage.engine.start_loops(&flows, window);
    stage.engine.run_for(options.warmup);
    let before = arrived(&stage, &flows);
    stage.measure("steady", &[("steady", group)], options.duration());
    let after = arrived(&stage, &flows);
    fairness(&mut stage, "slowest_sender_to_fastest", &before, &after);
    Ok(stage.finish())
}

/// Pairs that talk at a fixed rate, to see what they notice of all else. Returns their group.
fn bystanders(stage: &mut ScenarioRun<'_>, pairs: u32, rate: u32) -> Result<usize, BenchError> {
    let group = stage.engine.add_group("bystanders");
    let slots = stage.talkers(Role::Talker, 2 * count(pairs))?;
    let flows = stage.flows(paired(&slots), group, stage.options.size)?;
    stage.engine.pace(&flows, rate);
    stage.engine.run_for(stage.options.warmup);
    Ok(group)
}

fn idle(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (pairs, rate) = (options.pairs.unwrap_or(4), options.rate.unwrap_or(RATE));
    let crowd = crowd_size(options, 10_000, pairs)?;
    stage.describe(format!(
        "{crowd} silent users beside {pairs} pairs with {rate} messages/s in all"
    ));
    let others = bystanders(&mut stage, pairs, rate)?;
    stage.measure("alone", &[("alone", others)], options.duration());
    let (memory, before) = (stage.server_memory(), stage.snapshot());
    stage.engine.progress.step("a crowd comes");
    let arrivals = stage
        .engine
        .gather(crowd, BatchPace::Few(count(options.parallel)))?;
    let after = stage.snapshot();
    all_came(&arrivals, crowd)?;
    came(&mut stage, &arrivals, &before, &after);
    stage.engine.run_for(SETTLE);
    let grown = stage.server_memory().zip(memory);
    if let Some((with, without)) = grown {
        let each = (with - without) / float(arrivals.opened);
        stage.fact("server_memory_per_idle_user", each.round(), "B");
    }
    stage.measure(
        "beside the crowd",
        &[("beside the crowd", others)],
        options.duration(),
    );
    stage.engine.cut(&arrivals.slots);
    stage.engine.run_for(SETTLE);
    Ok(stage.finish())
}

fn storm(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (pairs, rate) = (options.pairs.unwrap_or(4), options.rate.unwrap_or(RATE));
    let crowd = crowd_size(options, 5000, pairs)?;
    stage.describe(format!(
        "{crowd} users lose their connections and come back at once, beside {pairs} pairs with \
         {rate} messages/s in all"
    ));
    let others = bystanders(&mut stage, pairs, rate)?;
    stage.engine.progress.step("a crowd comes");
    let first = stage
        .engine
        .gather(crowd, BatchPace::Few(count(options.parallel)))?;
    all_came(&first, crowd)?;
    stage.engine.run_for(SETTLE);
    stage.measure("before", &[("before", others)], options.duration());
    stage.engine.progress.step("all come back");
    let (phase, from) = (stage.engine.begin_phase(), stage.snapshot());
    stage.engine.cut(&first.slots);
    let again = stage.engine.gather(crowd, BatchPace::AtOnce)?;
    let to = stage.snapshot();
    stage.measured("storm", &[("storm", others)], phase, from.clone());
    all_came(&again, crowd)?;
    came(&mut stage, &again, &from, &to);
    stage.fact("refused_and_tried_again", float(again.refused), "");
    stage.measure("after", &[("after", others)], options.duration());
    stage.engine.cut(&again.slots);
    stage.engine.run_for(SETTLE);
    Ok(stage.finish())
}

fn slow_reader(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (pairs, rate) = (options.pairs.unwrap_or(10), options.rate.unwrap_or(RATE));
    let (flood_rate, flood_size) = (options.flood_rate, options.flood_size);
    stage.describe(format!(
        "one user stops reading and gets {flood_rate} messages/s of {flood_size} B; beside it \
         {pairs} pairs with {rate} messages/s in all"
    ));
    let others = bystanders(&mut stage, pairs, rate)?;
    let flood = stage.engine.add_group("flood");
    let reader = stage.talkers(Role::SlowReader, 1)?[0];
    let sender = stage.talkers(Role::Talker, 1)?[0];
    let flooding = stage.flows(&[[sender, reader]], flood, flood_size)?;
    stage.engine.flows[flooding[0]].backlog_bytes_max = FLOOD_BACKLOG_BYTES.min(BACKLOG_BYTES_MAX);
    stage.measure("before", &[("before", others)], options.duration());
    let memory = stage.server_memory();
    stage.engine.hold(reader);
    stage.engine.pace(&flooding, flood_rate);
    stage.measure(
        "one does not read",
        &[("one does not read", others)],
        options.duration(),
    );
    let grown = stage.server_memory().zip(memory);
    // The flood is the last pacer.
    stage.engine.pacers.pop();
    stage.engine.release(reader)?;
    stage.measure(
        "it reads again",
        &[("it reads again", others)],
        options.duration(),
    );
    if let Some((with, without)) = grown {
        stage.fact("server_memory_growth", with - without, "B");
    }
    let thrown_out = !stage.engine.is_open(reader);
    stage.fact("slow_reader_thrown_out", float(u64::from(thrown_out)), "");
    let flow = flooding[0];
    let flooded = u64::from(stage.engine.flows[flow].track.upcoming());
    stage.fact("flood_messages", float(flooded), "");
    let mut outcome = stage.finish();
    compare(&mut outcome, ["before", "one does not read"]);
    Ok(outcome)
}

fn churn(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (pairs, rate) = (options.pairs.unwrap_or(10), options.rate.unwrap_or(RATE));
    let (come, hold) = (options.churn_rate, options.hold);
    stage.describe(format!(
        "{come} users/s come, stay for {hold:?} and go; beside them {pairs} pairs with {rate} \
         messages/s in all"
    ));
    let others = bystanders(&mut stage, pairs, rate)?;
    stage.measure("before", &[("before", others)], options.duration());
    let (memory, files) = (stage.server_memory(), open_files(&stage));
    let now = stage.engine.now();
    stage.engine.visitors = Some(Churn::new(come, hold, now));
    stage.measure(
        "they come and go",
        &[("they come and go", others)],
        options.duration(),
    );
    let patience = hold + Duration::from_secs(4);
    if let Some(visitors) = &mut stage.engine.visitors {
        visitors.stop();
    }
    stage.engine.run_until(patience, |engine| {
        engine
            .visitors
            .as_ref()
            .is_none_or(|visitors| visitors.under_way() == 0)
    });
    stage.measure("after", &[("after", others)], options.duration());
    let visitors = stage.engine.visitors.take().expect("set above");
    let left_behind = stage.server_memory().zip(memory);
    if let Some((after, before)) = left_behind {
        let each = (after - before) / float(visitors.opened.max(1));
        stage.fact("server_memory_left_per_user", each.round(), "B");
    }
    if let Some((after, before)) = open_files(&stage).zip(files) {
        stage.fact("descriptors_left_open", after - before, "");
    }
    let us = |quantile| float(visitors.latency.value_at_quantile(quantile)) / 1e3;
    stage.fact("upgrade_p50", us(0.5), "µs");
    stage.fact("upgrade_p99", us(0.99), "µs");
    stage.fact("users_who_came", float(visitors.opened), "");
    stage.fact("left_with_a_close_handshake", float(visitors.left), "");
    stage.fact("close_frames_unanswered", float(visitors.cut_off), "");
    stage.fact("skipped_by_the_schedule", float(visitors.skipped), "");
    let mut outcome = stage.finish();
    compare(&mut outcome, ["before", "they come and go"]);
    Ok(outcome)
}

fn isolation(mut stage: ScenarioRun<'_>) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (rate, window) = (
        options.rate.unwrap_or(QUIET_RATE),
        options.window.unwrap_or(64),
    );
    let flood_rate = options.flood_rate;
    stage.describe(format!(
        "a quiet pair with {rate} messages/s beside none, beside two with {flood_rate} messages/s \
         together, beside A, beside A and B with {window} under way each"
    ));
    let groups = ["quiet", "A", "B"].map(|name| stage.engine.add_group(name));
    let [quiet, a, b] = groups;
    let slots = stage.talkers(Role::Talker, 6)?;
    let mut flows = Vec::new();
    for (pair, group) in paired(&slots).iter().zip(groups) {
        flows.extend(stage.flows(&[*pair], group, options.size)?);
    }
    stage.engine.pace(&flows[..1], rate);
    stage.engine.run_for(options.warmup);
    stage.measure("alone", &[("quiet, alone", quiet)], options.duration());

    stage.engine.pace(&flows[1..], flood_rate);
    stage.engine.run_for(SETTLE);
    let label = format!("quiet, beside {flood_rate}/s");
    stage.measure(
        "beside a fixed rate",
        &[(&label, quiet)],
        options.duration(),
    );
    stage.engine.pacers.pop();

    stage.engine.start_loops(&flows[1..2], window);
    stage.engine.run_for(SETTLE);
    let rows = [("quiet, beside A", quiet), ("A, alone", a)];
    stage.measure("beside A", &rows, options.duration());

    stage.engine.start_loops(&flows[2..], window);
    stage.engine.run_for(SETTLE);
    let rows = [
        ("quiet, beside A and B", quiet),
        ("A, beside B", a),
        ("B, beside A", b),
    ];
    stage.measure("beside A and B", &rows, options.duration());
    let mut outcome = stage.finish();
    compare(&mut outcome, ["quiet, alone", "quiet, beside A and B"]);
    Ok(outcome)
}

/// A quiet pair beside ever more pairs that flood; a row for each number of them.
pub(super) fn beside_floods(
    mut stage: ScenarioRun<'_>,
    floods: &[u32],
) -> Result<Outcome, BenchError> {
    let options = stage.options;
    let (rate, window) = (
        options.rate.unwrap_or(QUIET_RATE),
        options.window.unwrap_or(64),
    );
    stage.describe(format!(
        "a quiet pair with {rate} messages/s beside pairs with {window} under way each"
    ));
    let groups = ["quiet", "flood"].map(|name| stage.engine.add_group(name));
    let [quiet, flood] = groups;
    let most = floods.iter().copied().max().unwrap_or(0);
    let slots = stage.talkers(Role::Talker, 2 + 2 * count(most))?;
    let (first, others) = paired(&slots).split_at(1);
    let talk = stage.flows(first, quiet, options.size)?;
    let flooding = stage.flows(others, flood, options.size)?;
    stage.engine.pace(&talk, rate);
    stage.engine.run_for(options.warmup);
    let mut started = 0;
    for &number in floods {
        let more = &flooding[started..count(number)];
        stage.engine.start_loops(more, window);
        started = count(number);
        stage.engine.run_for(SETTLE);
        let label = format!("quiet, beside {number} floods");
        stage.measure("floods", &[(&label, quiet)], options.duration());
    }
    Ok(stage.finish())
}

/// Numbers that have arrived on each flow.
fn arrived(stage: &ScenarioRun<'_>, flows: &[usize]) -> Vec<u32> {
    let expected = |flow: &usize| stage.engine.flows[*flow].track.expected();
    flows.iter().map(expected).collect()
}

fn fairness(stage: &mut ScenarioRun<'_>, name: &'static str, before: &[u32], after: &[u32]) {
    let shares = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before);
    let (least, most) = shares.fold((u32::MAX, 0), |(least, most), share| {
        (least.min(share), most.max(share))
    });
    stage.fact(name, f64::from(least) / f64::from(most.max(1)), "");
}

/// How many silent users: as asked for, or as many as there is room for.
fn crowd_size(options: &BenchOptions, default: u64, pairs: u32) -> Result<usize, BenchError> {
    let talkers = 2 * u64::from(pairs);
    if let Some(wanted) = options.connections {
        scenario_run::make_room(count(wanted) + count(2 * pairs))?;
        return Ok(count(wanted));
    }
    let room = scenario_run::room().saturating_sub(talkers);
    Ok(usize::try_from(room.min(default)).expect("at most the default"))
}

fn all_came(arrivals: &PeerBatch, wanted: usize) -> Result<(), BenchError> {
    if arrivals.opened == wanted as u64 {
        return Ok(());
    }
    Err(BenchError::PeersMissing {
        opened: arrivals.opened,
        wanted,
        refusal: arrivals.refusal.clone(),
    })
}

/// Facts of a crowd that came between two snapshots.
fn came(stage: &mut ScenarioRun<'_>, arrivals: &PeerBatch, before: &Snapshot, after: &Snapshot) {
    let opened = float(arrivals.opened);
    let took = seconds(arrivals.took_ns);
    stage.fact("all_connected_after", took * 1e6, "µs");
    stage.fact("connections_per_second", (opened / took).round(), "/s");
    let us = |quantile| float(arrivals.latency.value_at_quantile(quantile)) / 1e3;
    stage.fact("upgrade_p50", us(0.5), "µs");
    stage.fact("upgrade_p99", us(0.99), "µs");
    if let Some(ns) = after.server_since(before) {
        stage.fact("server_cpu_per_connection", float(ns) / 1e3 / opened, "µs");
    }
}

fn open_files(stage: &ScenarioRun<'_>) -> Option<f64> {
    stage
        .server
        .and_then(MonitoredProcess::open_files)
        .map(float)
}

/// What two rows have to do with each other.
fn compare(outcome: &mut Outcome, [before, during]: [&str; 2]) {
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
            value: super::number::rounded(value, 3),
            unit: "",
        }));
}
