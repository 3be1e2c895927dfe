//! One scenario on its way: connections, phases with what was used meanwhile, and the verdict.

use std::time::Duration;

use super::codec::ClientHandshake;
use super::connection::Role;
use super::engine::{Engine, Group, PollMode, TICK};
use super::number::{float, nanos, rounded, seconds};
use super::options::{BenchOptions, Scenario};
use super::outcome::{self, Check, Fact, LatencySummary, Outcome, Row, ServerUse, Timeline};
use super::process::{self, CpuTimes, MonitoredProcess};
use super::progress::Progress;
use super::server_counters::{MetricsEndpoint, ServerCounters};
use super::{BenchError, Target};

/// How long all that was sent may take to arrive when nothing more is sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that do not arrive for that long will not, unless the server says that it has them.
const QUIET: Duration = Duration::from_secs(2);

/// The same where the server says that it has none.
const SETTLED: Duration = Duration::from_millis(250);

/// From this share of its time on the load generator counts as full, and the server below that one
/// of its CPUs as not full.
const FULL: f64 = 0.95;
const SERVER_FULL: f64 = 0.9;

/// From this many CPUs on it is said that something else ran.
const DISTURBED: f64 = 0.3;

/// One scenario on its way.
pub(super) struct ScenarioRun<'a> {
    pub(super) options: &'a BenchOptions,
    pub(super) engine: Engine,
    pub(super) server: Option<MonitoredProcess>,
    subject: &'a mut Target,
    scenario: Scenario,
    load: String,
    marks: Vec<Measurement>,
    facts: Vec<Fact>,
    notes: Vec<String>,
    before: Option<(MetricsEndpoint, ServerCounters)>,
}

/// What was measured, and what the clocks said around it.
struct Measurement {
    name: &'static str,
    /// Label and group of each row.
    rows: Vec<(String, usize)>,
    phase: usize,
    from: Snapshot,
    to: Snapshot,
}

/// What the clocks say.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) at: u64,
    waited: u64,
    own: Option<u64>,
    server: Option<CpuTimes>,
    machine: Option<u64>,
}

impl Snapshot {
    /// CPU time of the server from `before` to here, nanoseconds.
    pub(super) fn server_since(&self, before: &Self) -> Option<u64> {
        Some(self.server.as_ref()?.since(before.server.as_ref()?))
    }
}

impl<'a> ScenarioRun<'a> {
    /// Connects the first of the talkers, by whom the server shows what it is.
    pub(super) fn new(
        options: &'a BenchOptions,
        subject: &'a mut Target,
        scenario: Scenario,
        progress: Progress,
    ) -> Result<Self, BenchError> {
        let handshake = ClientHandshake::new(&subject.url.authority, &subject.url.path);
        let waiting = match std::thread::available_parallelism() {
            Ok(cpus) if cpus.get() > 1 => PollMode::Busy,
            _ => PollMode::Asleep,
        };
        let engine = Engine::new(subject.address, handshake, waiting, progress);
        Ok(Self {
            options,
            engine: engine.map_err(BenchError::Connect)?,
            server: subject.server.filter(|server| !server.is_this_one()),
            subject,
            scenario,
            load: String::new(),
            marks: Vec::new(),
            facts: Vec::new(),
            notes: Vec::new(),
            before: None,
        })
    }

    /// The load in words.
    pub(super) fn describe(&mut self, load: String) {
        self.load = load;
    }

    pub(super) fn fact(&mut self, name: &'static str, value: f64, unit: &'static str) {
        let value = rounded(value, 3);
        self.facts.push(Fact { name, value, unit });
    }

    /// Talkers, who know each other's ids.
    pub(super) fn talkers(&mut self, role: Role, count: usize) -> Result<Vec<usize>, BenchError> {
        make_room(count)?;
        self.engine.progress.step("connecting");
        let slots = self.engine.open(role, count)?;
        if self.before.is_none() {
            let announces = slots
                .first()
                .is_some_and(|slot| self.engine.id(*slot).is_some());
            self.open_books(announces)?;
        }
        self.engine.learn_ids(&slots, self.subject.next_id)?;
        Ok(slots)
    }

    /// Reads the server's books, if it is asked for or the server is a Switchboard. Another one is
    /// not asked: the essay's programs die of any request that is no upgrade.
    fn open_books(&mut self, announces: bool) -> Result<(), BenchError> {
        let (source, is_wanted) = match &self.options.metrics {
            Some(url) => (MetricsEndpoint::new(url.clone()), true),
            None if announces => (
                MetricsEndpoint::new(self.subject.url.http("/metrics")),
                false,
            ),
            None => return Ok(()),
        };
        match source.read() {
            Ok(books) => self.before = Some((source, books)),
            Err(reason) if is_wanted => {
                let url = source.url().clone();
                return Err(BenchError::Metrics { url, reason });
            }
            Err(reason) => {
                let note = format!("no account of the server: {} {reason}", source.url());
                self.notes.push(note);
            }
        }
        Ok(())
    }

    /// One-way conversations of these pairs, tried out.
    pub(super) fn flows(
        &mut self,
        pairs: &[[usize; 2]],
        group: usize,
        size: usize,
    ) -> Result<Vec<usize>, BenchError> {
        let add = |&[source, sink]: &[usize; 2]| self.engine.add_flow(source, sink, group, size);
        let flows = pairs.iter().map(add).collect::<Result<Vec<_>, _>>()?;
        self.engine.try_out(&flows)?;
        Ok(flows)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            at: self.engine.now(),
            waited: self.engine.waited_ns(),
            own: process::own_cpu_ns(),
            server: self.server.and_then(MonitoredProcess::cpu),
            machine: process::machine_busy_ns(),
        }
    }

    /// Runs for a while and measures these groups, a row each.
    pub(super) fn measure(&mut self, name: &'static str, rows: &[(&str, usize)], time: Duration) {
        self.engine.progress.step(name);
        let phase = self.engine.begin_phase();
        let from = self.snapshot();
        self.engine.run_for(time);
        self.measured(name, rows, phase, from);
    }

    /// The end of a phase that began with `from`.
    pub(super) fn measured(
        &mut self,
        name: &'static str,
        rows: &[(&str, usize)],
        phase: usize,
        from: Snapshot,
    ) {
        let to = self.snapshot();
        self.engine.begin_phase();
        let rows = rows
            .iter()
            .map(|(label, group)| ((*label).to_owned(), *group));
        self.marks.push(Measurement {
            name,
            rows: rows.collect(),
            phase,
            from,
            to,
        });
    }

    /// Bytes of memory that the server has in use.
    pub(super) fn server_memory(&self) -> Option<f64> {
        self.server.and_then(MonitoredProcess::memory).map(float)
    }

    /// Stops, waits for what is under way, and judges.
    pub(super) fn finish(mut self) -> Outcome {
        self.engine.progress.step("waiting for the last");
        self.engine.stop_sending();
        let after = self.drain();
        let check = self.check(after);
        let rows: Vec<Row> = self.marks.iter().flat_map(|mark| self.rows(mark)).collect();
        if rows.iter().any(|row| row.limited_by_bench) {
            self.notes.push(
                "rows with * are the limit of this load generator, not of the server: it can do more"
                    .to_owned(),
            );
        }
        if let Some(cores) = self.disturbance() {
            let cores = rounded(cores, 1);
            let note = format!("other programs took up to {cores} CPUs: the figures are disturbed");
            self.notes.push(note);
        }
        if let Some(last) = self.engine.last_id() {
            self.subject.next_id = self.subject.next_id.max(last + 1);
        }
        let timelines = self.timelines();
        Outcome {
            scenario: self.scenario,
            load: self.load,
            rows,
            facts: self.facts,
            check,
            notes: self.notes,
            timelines,
        }
    }

    /// Waits until all has arrived, or has its end by the server's books, or long enough.
    fn drain(&mut self) -> Option<ServerCounters> {
        let begin = self.engine.now();
        let mut last = (u64::MAX, begin);
        loop {
            let now = self.engine.now();
            let under_way = self.engine.under_way();
            if under_way != last.0 {
                last = (under_way, now);
            }
            let books = self
                .before
                .as_ref()
                .and_then(|(source, _)| source.read().ok());
            // What the server has dropped does not arrive, however long one waits.
            let is_settled = match &books {
                Some(books) if under_way > 0 => {
                    books.are_settled() && now - last.1 > nanos(SETTLED)
                }
                Some(books) => books.are_settled(),
                None => under_way == 0,
            };
            let is_quiet = now - last.1 > nanos(QUIET);
            if is_settled || is_quiet || now - begin > nanos(DRAIN_TIMEOUT) {
                return books;
            }
            self.engine.run_for(Duration::from_millis(50));
        }
    }

    fn check(&mut self, after: Option<ServerCounters>) -> Check {
        let (probes, probes_arrived) = self.engine.probes();
        let flows = &self.engine.flows;
        let numbered: u64 = flows
            .iter()
            .map(|flow| u64::from(flow.track.upcoming()))
            .sum();
        let outstanding: u64 = flows.iter().map(|flow| flow.track.outstanding()).sum();
        let withheld: u64 = flows.iter().map(|flow| flow.withheld).sum();
        let unsent = self.engine.unsent();
        let sent = numbered - unsent;
        let lost = outstanding - unsent.min(outstanding);
        let books = self.before.take().zip(after);
        let account = books.map(|((_, before), after)| after.since(&before));
        let unexplained = match &account {
            Some(account) => {
                if account.has_more_than(sent + probes) {
                    self.notes.push(
                        "others used the server: its account only bounds what was lost".to_owned(),
                    );
                }
                account.unexplained(sent + probes, lost + probes - probes_arrived)
            }
            None => lost,
        };
        if withheld > 0 {
            self.fact("withheld_messages", float(withheld), "");
        }
        if unsent > 0 {
            self.fact("messages_not_taken_by_the_server", float(unsent), "");
        }
        let faults = self.engine.faults.clone();
        Check {
            ok: unexplained == 0 && faults.in_all() == 0,
            sent,
            arrived: sent - lost,
            lost,
            unexplained,
            faults,
            account,
        }
    }

    fn rows(&self, mark: &Measurement) -> Vec<Row> {
        let Measurement {
            rows,
            phase,
            from,
            to,
            ..
        } = mark;
        let groups = &self.engine.groups;
        let wall = to.at - from.at;
        // What is dropped costs the server something, too.
        let passed = |phases: fn(&Group) -> &[u64]| -> u64 {
            groups.iter().map(|group| phases(group)[*phase]).sum()
        };
        let all = passed(|group| &group.sent).max(passed(|group| &group.arrived));
        let cpu = to.server_since(from);
        let server = cpu.map(|ns| ServerUse {
            cores: rounded(float(ns) / float(wall), 3),
            cpu_us_per_message: (all > 0).then(|| rounded(float(ns) / 1e3 / float(all), 3)),
        });
        let busy = 1.0 - float(to.waited - from.waited) / float(wall);
        let limited_by_bench = busy > FULL && !self.server_is_full(from, to);
        let row = |(label, group): &(String, usize)| {
            let (messages, latency) = (
                groups[*group].arrived[*phase],
                &groups[*group].latency[*phase],
            );
            Row {
                label: label.clone(),
                seconds: rounded(seconds(wall), 3),
                messages,
                messages_per_second: rounded(float(messages) / seconds(wall), 1),
                latency_us: LatencySummary::of(latency),
                bench_busy: rounded(busy, 3),
                limited_by_bench,
                server,
                curve: outcome::curve(latency),
            }
        };
        rows.iter().map(row).collect()
    }

    /// Whether the server used all the CPU that it could have, or all of one thread.
    fn server_is_full(&self, from: &Snapshot, to: &Snapshot) -> bool {
        let (Some(before), Some(after)) = (&from.server, &to.server) else {
            return false;
        };
        let wall = float(to.at - from.at);
        let cores = self
            .server
            .and_then(MonitoredProcess::cores_beside_us)
            .unwrap_or(1);
        float(after.since(before)) > SERVER_FULL * wall * float(cores as u64)
            || float(after.hottest_since(before)) > SERVER_FULL * wall
    }

    /// CPUs that something else took in the worst phase, if that is worth a word.
    fn disturbance(&self) -> Option<f64> {
        let other = |mark: &Measurement| {
            let Measurement { from, to, .. } = mark;
            let machine = to.machine? - from.machine?;
            let own = to.own? - from.own?;
            let other = machine.saturating_sub(own + to.server_since(from)?);
            Some(float(other) / float(to.at - from.at))
        };
        let worst = self.marks.iter().filter_map(other).fold(0.0, f64::max);
        (worst > DISTURBED).then_some(worst)
    }

    fn timelines(&self) -> Vec<Timeline> {
        let phases: Vec<_> = self
            .marks
            .iter()
            .map(|mark| (float(mark.from.at) / float(nanos(TICK)), mark.name))
            .collect();
        let groups = self.engine.groups.iter();
        groups
            .map(|group| Timeline {
                name: group.name,
                per_tick: group.timeline.clone(),
                phases: phases.clone(),
            })
            .collect()
    }
}

/// Checks that so many more connections can be open.
pub(super) fn make_room(connections: usize) -> Result<(), BenchError> {
    let (needed, room) = (connections as u64, room());
    if needed > room {
        return Err(BenchError::OpenFiles { needed, room });
    }
    Ok(())
}

/// Descriptors kept back: for /proc, /metrics and the files of a report.
const SPARE_FILES: u64 = 16;

/// How many connections this process can open.
pub(super) fn room() -> u64 {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    limit.saturating_sub(process::own_open_files() + SPARE_FILES)
}
