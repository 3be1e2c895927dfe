//! The metrics of the process, of its cgroup and of its worker threads.
//!
//! The collector of the `prometheus` crate has those of the process, but it counts CPU time in whole seconds.
//! A rate over a few scrapes would then jump, so the kernel's clock of the process replaces that value.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, MetricFamily};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use super::families::{counter_of_seconds, gauge};
use super::memory::CgroupMemory;

/// The prefix of all metrics of the relay.
const NAMESPACE: &str = "switchboard";

/// Reads the metrics of the process.
pub(super) struct ProcessMetrics {
    collector: ProcessCollector,
    memory: Option<CgroupMemory>,
}

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        let pid = i32::try_from(std::process::id()).expect("Linux limits process ids to 2^22");
        Self {
            collector: ProcessCollector::new(pid, NAMESPACE),
            memory: CgroupMemory::of_process(),
        }
    }

    /// The families of the process stand there twice: under the relay's prefix, and under the names that
    /// Prometheus's client libraries share, which common dashboards expect.
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut families = self.of_process();
        let conventional = families.clone().into_iter().map(|mut family| {
            let name = family.name().trim_start_matches(NAMESPACE);
            let name = name.trim_start_matches('_').to_owned();
            family.set_name(name);
            family
        });
        families.extend(conventional.collect::<Vec<_>>());
        families.extend(self.memory.iter().flat_map(CgroupMemory::families));
        families.extend(Handle::try_current().iter().flat_map(workers));
        families
    }

    fn of_process(&self) -> Vec<MetricFamily> {
        let mut families = self.collector.collect();
        let cpu = families
            .iter_mut()
            .find(|family| family.name() == "switchboard_process_cpu_seconds_total");
        if let Some(cpu) = cpu {
            let mut value = Counter::default();
            value.set_value(cpu_time().as_secs_f64());
            cpu.mut_metric()[0].set_counter(value);
        }
        families
    }
}

/// The threads that serve users, and how long they have worked. The share of the time that they work shows
/// a lack of CPU before the delay of messages does.
fn workers(runtime: &Handle) -> [MetricFamily; 2] {
    let metrics = runtime.metrics();
    let workers = metrics.num_workers();
    let busy = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker));
    [
        gauge(
            "switchboard_workers",
            "Threads that serve users.",
            workers as u64,
        ),
        counter_of_seconds(
            "switchboard_workers_busy_seconds_total",
            "Time that the threads that serve users have worked, together.",
            busy.sum(),
        ),
    ]
}

/// The CPU time of all threads of the process so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("the clock begins at 0");
    let nanoseconds = u32::try_from(time.tv_nsec).expect("a second has 10^9 nanoseconds");
    Duration::new(seconds, nanoseconds)
}

impl std::fmt::Debug for ProcessMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessMetrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_has_parts_of_a_second() {
        let process = ProcessMetrics::new();
        let seconds = || {
            let families = process.families();
            let cpu = families
                .iter()
                .find(|family| family.name() == "switchboard_process_cpu_seconds_total");
            cpu.unwrap().get_metric()[0].get_counter().get_value()
        };
        // With whole seconds this would be 0 at every read.
        assert!((0..100_000).any(|_| seconds().fract() > 0.001));
    }
}
