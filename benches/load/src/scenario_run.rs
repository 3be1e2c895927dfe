//! One scenario while it runs: its connections and flows, its measured phases, and the check at its end.

use std::net::SocketAddr;
use std::time::Duration;

use crate::codec::ClientHandshake;
use crate::connection::Role;
use crate::engine::{Engine, PollMode, TICK};
use crate::error::BenchError;
use crate::measurement::Measurement;
use crate::number::{float, nanos, rounded};
use crate::open_files;
use crate::options::{BenchOptions, Scenario};
use crate::outcome::{Check, Fact, Outcome, Row, Timeline};
use crate::process::MonitoredProcess;
use crate::progress::Progress;
use crate::server_counters::{MetricsEndpoint, MetricsError, ServerCounters};
use crate::snapshot::Snapshot;
use crate::target::Target;

/// How long the messages in flight may take when no more are sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A pause in arrivals of this length ends the drain: the messages in flight are lost, unless the server's
/// metrics say that it still has them.
const QUIET: Duration = Duration::from_secs(2);

/// The pause that ends the drain where the server's metrics say that it has no message.
const QUIET_WHEN_SETTLED: Duration = Duration::from_millis(250);

/// How often a drain looks at the server's metrics.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// From this many CPUs on, the result mentions that other programs used them.
const OTHER_PROGRAMS_CPUS: f64 = 0.3;

/// One scenario while it runs.
pub(crate) struct ScenarioRun<'a> {
    pub(crate) options: &'a BenchOptions,
    pub(crate) engine: Engine,
    /// The server's process, where it is not this process itself.
    pub(crate) server: Option<MonitoredProcess>,
    target: &'a mut Target,
    scenario: Scenario,
    load: String,
    measurements: Vec<Measurement>,
    facts: Vec<Fact>,
    notes: Vec<String>,
    /// The server's counters before the first message.
    before: Option<(MetricsEndpoint, ServerCounters)>,
    /// Why the server's counters, which it should have, could not be read: a status, or an error.
    unreadable: Option<String>,
}

impl<'a> ScenarioRun<'a> {
    pub(crate) fn new(
        options: &'a BenchOptions,
        target: &'a mut Target,
        scenario: Scenario,
        progress: Progress,
    ) -> Result<Self, BenchError> {
        let handshake = ClientHandshake::new(
            &target.url.authority,
            &target.url.path,
            target.token.as_deref(),
        );
        let poll_mode = match std::thread::available_parallelism() {
            Ok(cpus) if cpus.get() > 1 => PollMode::Spin,
            _ => PollMode::Sleep,
        };
        let engine = Engine::new(target.address, handshake, poll_mode, progress);
        let address = target.address;
        Ok(Self {
            options,
            engine: engine.map_err(|source| BenchError::Connect { address, source })?,
            server: target.server.filter(|server| !server.is_this_one()),
            target,
            scenario,
            load: String::new(),
            measurements: Vec::new(),
            facts: Vec::new(),
            notes: Vec::new(),
            before: None,
            unreadable: None,
        })
    }

    /// The address of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.target.address
    }

    /// Sets the sentence that describes the load.
    pub(crate) fn describe(&mut self, load: String) {
        self.load = load;
    }

    /// Adds a figure with a name to the result.
    pub(crate) fn fact(&mut self, name: &'static str, value: f64, unit: &'static str) {
        let value = rounded(value, 3);
        self.facts.push(Fact { name, value, unit });
    }

    /// Opens connections whose ids are known. The first call also reads the server's counters: the first
    /// connection shows what kind of server it is.
    pub(crate) fn connect(&mut self, role: Role, count: usize) -> Result<Vec<usize>, BenchError> {
        open_files::require_room(count)?;
        self.engine.progress.step("connecting");
        let slots = self.engine.open(role, count)?;
        if self.before.is_none() && self.unreadable.is_none() {
            let announces_ids = slots
                .first()
                .is_some_and(|slot| self.engine.id(*slot).is_some());
            self.read_first_counters(announces_ids);
        }
        self.engine.learn_ids(&slots, self.target.next_id)?;
        Ok(slots)
    }

    /// Reads the server's counters where --metrics names them or the server announces ids, as Switchboard
    /// does. No other server is asked, because the essay's programs crash on a request that is no upgrade.
    fn read_first_counters(&mut self, announces_ids: bool) {
        let url = match &self.options.metrics {
            Some(url) => url.clone(),
            None if announces_ids => self.target.url.http("/metrics"),
            None => return,
        };
        let token = self.target.metrics_token.clone();
        let read = MetricsEndpoint::new(&url, token).and_then(|endpoint| {
            let counters = endpoint.read()?;
            Ok((endpoint, counters))
        });
        match read {
            Ok(before) => self.before = Some(before),
            Err(error) => {
                self.unreadable = Some(error.reason());
                self.notes.push(format!(
                    "{error} (--metrics names another URL, --metrics-token-file a token for it)"
                ));
            }
        }
    }

    /// Adds a flow for each of these pairs, and waits until the first message of each has arrived.
    pub(crate) fn flows(
        &mut self,
        pairs: &[[usize; 2]],
        group: usize,
        size: usize,
    ) -> Result<Vec<usize>, BenchError> {
        let add = |&[source, sink]: &[usize; 2]| self.engine.add_flow(source, sink, group, size);
        let flows = pairs.iter().map(add).collect::<Result<Vec<_>, _>>()?;
        self.engine.send_first(&flows)?;
        Ok(flows)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.engine, self.server)
    }

    /// Runs for a while, and measures these groups in a row each.
    pub(crate) fn measure(&mut self, name: &'static str, rows: &[(&str, usize)], time: Duration) {
        self.engine.progress.step(name);
        let phase = self.engine.begin_phase();
        let from = self.snapshot();
        self.engine.run_for(time);
        self.measured(name, rows, phase, from);
    }

    /// Ends a measured phase that began with the snapshot `from`.
    pub(crate) fn measured(
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
        self.measurements.push(Measurement {
            name,
            rows: rows.collect(),
            phase,
            from,
            to,
        });
    }

    /// Bytes of memory that the server has in use.
    pub(crate) fn server_memory(&self) -> Option<f64> {
        self.server.and_then(MonitoredProcess::memory).map(float)
    }

    /// Stops the load, waits for the messages in flight, and checks every message.
    pub(crate) fn finish(mut self) -> Outcome {
        self.engine.progress.step("waiting for the last");
        self.engine.stop_sending();
        let after = self.drain();
        let check = self.check(after);
        let rows = self.measurements.iter();
        let rows: Vec<Row> = rows
            .flat_map(|measurement| measurement.rows(&self.engine, self.server))
            .collect();
        self.add_notes(&rows);
        if let Some(last) = self.engine.last_id() {
            self.target.next_id = self.target.next_id.max(last + 1);
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

    /// Waits until every message has arrived, or is accounted for by the server's counters, or for long
    /// enough. Returns the last counters that were read.
    fn drain(&mut self) -> Option<ServerCounters> {
        let begin = self.engine.now();
        let (mut last_in_flight, mut last_change) = (u64::MAX, begin);
        loop {
            let now = self.engine.now();
            let in_flight = self.engine.in_flight();
            if in_flight != last_in_flight {
                (last_in_flight, last_change) = (in_flight, now);
            }
            let quiet_ns = now - last_change;
            let counters = self.read_counters();
            let is_settled = match &counters {
                // A message that the server has dropped never arrives.
                Some(counters) if in_flight > 0 => {
                    counters.are_settled() && quiet_ns > nanos(QUIET_WHEN_SETTLED)
                }
                Some(counters) => counters.are_settled(),
                None => in_flight == 0,
            };
            if is_settled || quiet_ns > nanos(QUIET) || now - begin > nanos(DRAIN_TIMEOUT) {
                return counters;
            }
            self.engine.run_for(DRAIN_STEP);
        }
    }

    fn read_counters(&mut self) -> Option<ServerCounters> {
        let (endpoint, _) = self.before.as_ref()?;
        let read = endpoint.read();
        self.unreadable = read.as_ref().err().map(MetricsError::reason);
        read.ok()
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
        let counters = self.before.take().zip(after);
        let account = counters.map(|((_, before), after)| after.since(&before));
        let unexplained = match &account {
            Some(account) => {
                if account.has_more_than(sent + probes) {
                    self.notes.push(
                        "other clients used the server: its metrics give only an upper bound of the \
                         lost messages"
                            .to_owned(),
                    );
                }
                account.unexplained(sent + probes, lost + probes - probes_arrived)
            }
            // Nobody can say whether the server has dropped them for a reason.
            None if self.unreadable.is_some() => 0,
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
            ok: unexplained == 0 && faults.total() == 0,
            sent,
            arrived: sent - lost,
            lost,
            unexplained,
            faults,
            account,
            metrics_unreadable: self.unreadable.take(),
        }
    }

    /// Adds the notes about conditions that limit or disturb the figures.
    fn add_notes(&mut self, rows: &[Row]) {
        if rows.iter().any(|row| row.limited_by_bench) {
            self.notes.push(
                "rows with * are the limit of this load generator, not of the server: it can do more"
                    .to_owned(),
            );
        }
        let other_programs = self
            .measurements
            .iter()
            .filter_map(|measurement| measurement.to.other_programs_since(&measurement.from))
            .fold(0.0, f64::max);
        if other_programs > OTHER_PROGRAMS_CPUS {
            let cpus = rounded(other_programs, 1);
            self.notes.push(format!(
                "other programs took up to {cpus} CPUs: the figures are disturbed"
            ));
        }
    }

    fn timelines(&self) -> Vec<Timeline> {
        let phases: Vec<_> = self
            .measurements
            .iter()
            .map(|measurement| {
                let begin = float(measurement.from.at) / float(nanos(TICK));
                (begin, measurement.name)
            })
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
