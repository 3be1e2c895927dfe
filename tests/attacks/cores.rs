//! Assigns threads to cores: the relay has one core for itself. All other threads of the machine, including those of
//! the pair and of the attackers, share the other core.

use std::fs;
use std::process::{Command, Stdio};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The core of the relay.
pub(crate) const RELAY_CORE: usize = 0;
const OTHER_CORE: usize = 1;

/// The assignment of threads to cores. Drop restores the earlier one.
#[derive(Debug)]
pub(crate) struct Cores {
    /// The moved threads, with the cores that they could use before.
    moved: Vec<(Pid, CpuSet)>,
    softirqs: Option<Pid>,
}

impl Cores {
    /// Moves all threads away from the relay's core. Returns None if the machine has fewer than two cores. Needs the
    /// permission to move threads and to set real-time priorities.
    pub(crate) fn divide() -> Option<Self> {
        let this = Pid::this();
        let mut both = CpuSet::new();
        both.set(RELAY_CORE)
            .and(both.set(OTHER_CORE))
            .expect("a set can hold two cores");
        // An earlier run that was killed may have left this process only one core.
        if sched_setaffinity(this, &both).is_err()
            || !sched_getaffinity(this).is_ok_and(|found| found == both)
        {
            eprintln!("this machine has no two cores: the relay shares a core with its attackers");
            return None;
        }
        // The pair has priority over all attackers. Otherwise two messages could wait for the reader, and the kernel
        // would merge them into one packet with one timestamp.
        prefer(&["--fifo", "--reset-on-fork"], 1, this);
        // The thread that processes the packets of this core has priority, too. Otherwise packets of the pair would
        // wait behind the attackers' packets, which they would not do in a network.
        let softirqs = threads()
            .into_iter()
            .find(|thread| has_name(*thread, &format!("ksoftirqd/{OTHER_CORE}")));
        if let Some(softirqs) = softirqs {
            prefer(&["--fifo"], 2, softirqs);
        }
        let mut cores = Self {
            moved: Vec::new(),
            softirqs,
        };
        let mut other = CpuSet::new();
        other.set(OTHER_CORE).expect("a second core");
        for thread in threads() {
            // This fails for a thread that has ended, and for a kernel thread that belongs to one core.
            if let Ok(before) = sched_getaffinity(thread)
                && sched_setaffinity(thread, &other).is_ok()
            {
                cores.moved.push((thread, before));
            }
        }
        assert!(
            cores.moved.iter().any(|(thread, _)| *thread == this),
            "this process was not moved"
        );
        Some(cores)
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        for (thread, before) in &self.moved {
            // This fails for a thread that has ended.
            let _moved = sched_setaffinity(*thread, before);
        }
        if let Some(softirqs) = self.softirqs {
            prefer(&["--other"], 0, softirqs);
        }
    }
}

fn prefer(policy: &[&str], priority: u32, thread: Pid) {
    let mut command = Command::new("chrt");
    command.args(policy).arg("--pid");
    command.args([priority.to_string(), thread.to_string()]);
    let done = command
        .stdout(Stdio::null())
        .status()
        .expect("chrt is not installed");
    assert!(
        done.success(),
        "chrt could not set the priority of thread {thread}"
    );
}

/// All threads of the machine, including kernel threads.
fn threads() -> Vec<Pid> {
    let numbers = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
    };
    let processes: Vec<_> = numbers("/proc").collect();
    let threads = processes
        .into_iter()
        .flat_map(|process| numbers(&format!("/proc/{process}/task")));
    threads.map(Pid::from_raw).collect()
}

fn has_name(thread: Pid, name: &str) -> bool {
    let found = fs::read_to_string(format!("/proc/{thread}/comm"));
    found.is_ok_and(|found| found.trim_end() == name)
}
