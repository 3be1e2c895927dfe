//! Who runs where. The relay has a core for itself: whatever else the machine does is kept off it. On the
//! other are the pair, the attackers and all the rest.

use std::fs;
use std::process::{Command, Stdio};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The relay's.
pub(crate) const RELAYS: usize = 0;
const OTHER: usize = 1;

/// The cores as they are to be, until this is dropped.
#[derive(Debug)]
pub(crate) struct Cores {
    /// Threads that were moved, and where they could be.
    moved: Vec<(Pid, CpuSet)>,
    softirqs: Option<Pid>,
}

impl Cores {
    /// Moves all threads that can be moved off the relay's core, this process first; nothing where there is
    /// no core to be given. Needs the right to do so, and to a real-time priority.
    pub(crate) fn divide() -> Option<Self> {
        let this = Pid::this();
        let mut both = CpuSet::new();
        both.set(RELAYS)
            .and(both.set(OTHER))
            .expect("a set has room for two");
        // Whoever was interrupted may have left this one core to whatever starts now.
        if sched_setaffinity(this, &both).is_err()
            || !sched_getaffinity(this).is_ok_and(|found| found == both)
        {
            eprintln!("there are no two cores: the relay shares one with its attackers");
            return None;
        }
        // The pair goes before all attackers, or the kernel puts two messages that wait for the reader into
        // one packet, which has one stamp.
        prefer(&["--fifo", "--reset-on-fork"], 1, this);
        // So do the packets on their core, whoever they are from: the pair's to the relay wait behind the
        // attackers' there, where on their way through a network they would not.
        let softirqs = threads()
            .into_iter()
            .find(|thread| is_called(*thread, &format!("ksoftirqd/{OTHER}")));
        if let Some(softirqs) = softirqs {
            prefer(&["--fifo"], 2, softirqs);
        }
        let mut cores = Self {
            moved: Vec::new(),
            softirqs,
        };
        let mut other = CpuSet::new();
        other.set(OTHER).expect("a second core");
        for thread in threads() {
            // It may have ended, or may be the kernel's on this core.
            if let Ok(before) = sched_getaffinity(thread)
                && sched_setaffinity(thread, &other).is_ok()
            {
                cores.moved.push((thread, before));
            }
        }
        assert!(
            cores.moved.iter().any(|(thread, _)| *thread == this),
            "this process has a core"
        );
        Some(cores)
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        for (thread, before) in &self.moved {
            // It may have ended.
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
        .expect("chrt is there");
    assert!(done.success(), "the priority of {thread} may be set");
}

/// All threads of the machine, the kernel's included.
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

fn is_called(thread: Pid, name: &str) -> bool {
    let found = fs::read_to_string(format!("/proc/{thread}/comm"));
    found.is_ok_and(|found| found.trim_end() == name)
}
