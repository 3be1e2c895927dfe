//! All clocks at one moment: the engine's, and the CPU time of the load generator, the server and the machine.

use crate::engine::Engine;
use crate::number::float;
use crate::process::{self, CpuTimes, MonitoredProcess};

/// The share of a CPU from which on the server counts as using all of it.
const SERVER_FULL: f64 = 0.9;

/// All clocks at one moment, nanoseconds. A clock that cannot be read is absent.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) at: u64,
    waited: u64,
    own: Option<u64>,
    server: Option<CpuTimes>,
    machine: Option<u64>,
}

impl Snapshot {
    pub(crate) fn take(engine: &Engine, server: Option<MonitoredProcess>) -> Self {
        Self {
            at: engine.now(),
            waited: engine.waited_ns(),
            own: process::own_cpu_ns(),
            server: server.and_then(MonitoredProcess::cpu),
            machine: process::machine_busy_ns(),
        }
    }

    /// Time since `before`.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        self.at - before.at
    }

    /// CPU time of the server since `before`.
    pub(crate) fn server_since(&self, before: &Self) -> Option<u64> {
        Some(self.server.as_ref()?.since(before.server.as_ref()?))
    }

    /// Share of the time since `before` in which the load generator worked.
    pub(crate) fn busy_since(&self, before: &Self) -> f64 {
        1.0 - float(self.waited - before.waited) / float(self.since(before))
    }

    /// Whether the server used all the CPUs that it can use since `before`, or one thread used a whole CPU.
    pub(crate) fn server_is_full_since(&self, before: &Self, server: MonitoredProcess) -> bool {
        let (Some(earlier), Some(later)) = (&before.server, &self.server) else {
            return false;
        };
        let wall = float(self.since(before));
        let cores = server.cores_beside_us().unwrap_or(1);
        float(later.since(earlier)) > SERVER_FULL * wall * float(cores as u64)
            || float(later.busiest_since(earlier)) > SERVER_FULL * wall
    }

    /// CPUs that programs other than the load generator and the server used since `before`.
    pub(crate) fn other_programs_since(&self, before: &Self) -> Option<f64> {
        let machine = self.machine? - before.machine?;
        let own = self.own? - before.own?;
        let other = machine.saturating_sub(own + self.server_since(before)?);
        Some(float(other) / float(self.since(before)))
    }
}
