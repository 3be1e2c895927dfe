//! The metrics of the process. The collector of the `prometheus` crate has all of them, but it counts CPU
//! time in whole seconds. A rate over a few scrapes would then jump, so CPU time is read again here.

use std::fs;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, MetricFamily};

use super::families::float;

/// Clock ticks a second in /proc (`USER_HZ`), the same on every Linux architecture that Rust supports.
const TICKS_A_SECOND: f64 = 100.0;

/// Reads the metrics of the process.
pub(super) struct ProcessMetrics {
    collector: ProcessCollector,
}

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        let pid = i32::try_from(std::process::id()).expect("Linux limits process ids to 2^22");
        Self {
            collector: ProcessCollector::new(pid, "switchboard"),
        }
    }

    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut families = self.collector.collect();
        let cpu = families
            .iter_mut()
            .find(|family| family.name() == "switchboard_process_cpu_seconds_total");
        if let Some(cpu) = cpu
            && let Ok(stat) = fs::read_to_string("/proc/self/stat")
            && let Some(ticks) = cpu_ticks(&stat)
        {
            let mut value = Counter::default();
            value.set_value(float(ticks) / TICKS_A_SECOND);
            cpu.mut_metric()[0].set_counter(value);
        }
        families
    }
}

/// The sum of `utime` and `stime`, fields 14 and 15 of /proc/PID/stat. Field 2 is a name in parentheses that
/// may contain spaces and parentheses, so fields are counted from the last `)`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut ticks = fields.split(' ').skip(11).map(str::parse::<u64>);
    ticks.next()?.ok()?.checked_add(ticks.next()?.ok()?)
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
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b 9 (c)) S 1 7 7 0 -1 4194560 114 0 0 0 250 31 5 6 20 0 1 0 7312 8 9";
        assert_eq!(cpu_ticks(stat), Some(281));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }

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
