//! Figures from /proc about the server under test, about this process and about the machine. Linux only, like
//! the relay. A figure that cannot be read is left out, not guessed.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// A process whose figures /proc shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MonitoredProcess {
    pid: u32,
}

/// CPU time of the threads of a process, nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTimes {
    /// By thread id.
    threads: Vec<(u32, u64)>,
}

impl CpuTimes {
    /// CPU time of all threads together since `before`.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        self.used(before).sum()
    }

    /// CPU time of the busiest thread since `before`.
    pub(crate) fn busiest_since(&self, before: &Self) -> u64 {
        self.used(before).max().unwrap_or(0)
    }

    fn used<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = u64> + 'a {
        self.threads.iter().map(|(thread, ns)| {
            let earlier = before.threads.iter().find(|(other, _)| other == thread);
            ns.saturating_sub(earlier.map_or(0, |(_, ns)| *ns))
        })
    }
}

impl MonitoredProcess {
    /// The process of this id, where /proc shows its memory.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let process = Self { pid };
        process.memory().map(|_| process)
    }

    /// The process that listens on a loopback address of this machine.
    pub(crate) fn listening_on(address: SocketAddr) -> Option<Self> {
        let inode = listeners()
            .into_iter()
            .find(|(listener, _)| covers(*listener, address))
            .map(|(_, inode)| format!("socket:[{inode}]"))?;
        let holds = |pid: &u32| {
            descriptors(*pid).is_some_and(|mut all| all.any(|link| link == Path::new(&inode)))
        };
        let pids = fs::read_dir("/proc").ok()?.flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(holds)
            .and_then(Self::of)
    }

    /// An address on which this process listens.
    pub(crate) fn listens_on(self) -> Option<SocketAddr> {
        let sockets: Vec<_> = descriptors(self.pid)?.collect();
        listeners()
            .into_iter()
            .find(|(_, inode)| sockets.contains(&format!("socket:[{inode}]").into()))
            .map(|(address, _)| address)
    }

    pub(crate) fn is_this_one(self) -> bool {
        self.pid == std::process::id()
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// The name of its executable.
    pub(crate) fn name(self) -> Option<String> {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?;
        Some(name.trim_end().to_owned())
    }

    /// Bytes of memory in use (`VmRSS`).
    pub(crate) fn memory(self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        field(&status, "VmRSS:").map(|kib| kib * 1024)
    }

    /// Open descriptors.
    pub(crate) fn open_files(self) -> Option<u64> {
        descriptors(self.pid).map(|all| all.count() as u64)
    }

    /// The CPU time of its threads, to the nanosecond. The time of threads that have ended is not included;
    /// servers seldom end threads.
    pub(crate) fn cpu(self) -> Option<CpuTimes> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let threads = tasks.flatten().filter_map(|task| {
            let thread = task.file_name().to_str()?.parse().ok()?;
            Some((thread, on_cpu_ns(&task.path().join("schedstat"))?))
        });
        Some(CpuTimes {
            threads: threads.collect(),
        })
    }

    /// How many CPUs this process can use while the calling thread uses one in full.
    pub(crate) fn cores_beside_us(self) -> Option<usize> {
        let its = allowed_cpus(&format!("/proc/{}/status", self.pid))?;
        let ours = allowed_cpus("/proc/thread-self/status")?;
        let shared = its.iter().filter(|cpu| ours.contains(cpu)).count();
        let all = its.len() + ours.len() - shared;
        Some(its.len().min(all - 1).max(1))
    }
}

/// CPU time of the calling thread, nanoseconds.
pub(crate) fn own_cpu_ns() -> Option<u64> {
    on_cpu_ns(Path::new("/proc/thread-self/schedstat"))
}

/// Time that the CPUs of this machine were busy since it started, nanoseconds.
pub(crate) fn machine_busy_ns() -> Option<u64> {
    /// The length of a tick in which /proc/stat counts.
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks = stat.lines().next()?.split_ascii_whitespace().skip(1);
    let ticks: Vec<u64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    // The columns: user, nice, system, idle, iowait, irq, softirq.
    let [user, nice, system, _, _, hard, soft, ..] = *ticks else {
        return None;
    };
    Some((user + nice + system + hard + soft) * TICK_NS)
}

/// Descriptors that this program has open.
pub(crate) fn own_open_files() -> u64 {
    descriptors(std::process::id()).map_or(0, |all| all.count() as u64)
}

fn on_cpu_ns(schedstat: &Path) -> Option<u64> {
    let text = fs::read_to_string(schedstat).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn descriptors(pid: u32) -> Option<impl Iterator<Item = std::path::PathBuf>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    Some(
        entries
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok()),
    )
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn allowed_cpus(status: &str) -> Option<Vec<usize>> {
    let status = fs::read_to_string(status).ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    cpu_list(list.trim())
}

/// The numbers of a list such as `0-2,5`.
fn cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(from.parse::<usize>().ok()?..=to.parse().ok()?);
    }
    Some(cpus)
}

/// All listening TCP sockets in this network namespace, with their inodes.
fn listeners() -> Vec<(SocketAddr, u64)> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| table.lines().filter_map(listener).collect::<Vec<_>>())
        .collect()
}

/// The address and the inode of a line of /proc/net/tcp, where its socket listens.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let columns: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = *columns else {
        return None;
    };
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(hex_ip(ip)?, port), inode.parse().ok()?))
}

/// An address as the kernel writes it: words of 32 bits, each in the byte order of the machine.
fn hex_ip(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..text.len())
        .step_by(8)
        .map(|at| {
            let word = text.get(at..at + 8)?;
            Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
        })
        .collect();
    match *words? {
        [v4] => Some(IpAddr::from(v4)),
        [a, b, c, d] => {
            let bytes: [u8; 16] = [a, b, c, d].concat().try_into().ok()?;
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

/// Whether a listener accepts connections to this address.
fn covers(listener: SocketAddr, address: SocketAddr) -> bool {
    let any = listener.ip().is_unspecified() && (listener.is_ipv6() || address.is_ipv4());
    listener.port() == address.port() && (listener.ip() == address.ip() || any)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_by_its_address_and_back() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let bound = listener.local_addr().unwrap();
            let asked = SocketAddr::from(([127, 0, 0, 1], bound.port()));
            let process = MonitoredProcess::listening_on(asked).unwrap();
            assert!(process.is_this_one());
            assert!(process.listens_on().is_some());
            assert!(listeners().iter().any(|(address, _)| *address == bound));
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        assert_eq!(MonitoredProcess::listening_on(address), None);
    }

    #[test]
    fn addresses_are_read_in_the_kernels_notation() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let v4 = u32::from_ne_bytes([127, 0, 0, 1]);
        assert_eq!(hex_ip(&format!("{v4:08X}")), Some(ip("127.0.0.1")));
        let last = u32::from_ne_bytes([0, 0, 0, 1]);
        assert_eq!(hex_ip(&format!("{:024}{last:08X}", 0)), Some(ip("::1")));
        assert_eq!(hex_ip("7F"), None);
    }

    #[test]
    fn cpu_time_counts_for_the_thread_that_works() {
        let this = MonitoredProcess::of(std::process::id()).unwrap();
        let (before, own_before) = (this.cpu().unwrap(), own_cpu_ns().unwrap());
        let mut sum = 0_u64;
        while own_cpu_ns().unwrap() - own_before < 20_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        let after = this.cpu().unwrap();
        assert!(after.busiest_since(&before) >= 20_000_000);
        assert!(after.since(&before) >= after.busiest_since(&before));
    }

    #[test]
    fn lists_of_cpus_are_expanded() {
        assert_eq!(cpu_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list("3"), Some(vec![3]));
        assert_eq!(cpu_list(""), None);
    }
}
