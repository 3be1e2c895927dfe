//! Whether the machine has the file descriptors and the memory that the settings need.

use std::fs;
use std::io;
use std::path::Path;

use super::settings::{LimitSettings, Settings};
use super::units::size_text;

/// The highest `limits.connections`.
pub(super) const CONNECTIONS_MAX: u64 = 10_000_000;
/// The most HTTP connections of the admin listener. It has its own number, so that probes and scrapes get
/// through when the listeners for users are full.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// File descriptors for everything but connections of peers: listeners, the connection that a full listener has
/// accepted, files that are read again, the log, the runtime, NATS, the key set and traces.
const OTHER_DESCRIPTORS: u64 = 36;
/// Memory of an idle user: 2.2 KiB of heap, and 4 KiB of the kernel for its socket.
const CONNECTION_BYTES: u64 = 2253 + 4096;

/// The machine's limits on the process.
#[derive(Clone, Copy, Debug)]
pub struct MachineLimits {
    /// The hard limit of open files, `RLIMIT_NOFILE`. A relay raises its soft limit to it.
    pub descriptors: u64,
    /// Bytes of memory: the lowest cgroup v2 `memory.max` above the process, else `MemTotal`.
    pub memory: Option<u64>,
}

/// How many connections of each kind may be open, so that none takes the file descriptors of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connected users.
    pub users: usize,
    /// Connections on each listener for users that have not completed an upgrade.
    pub pending: usize,
    /// Connections on the admin listener.
    pub admin: usize,
}

impl Settings {
    /// The limits of a process that may open this many files: those of the settings, or lower ones where the files
    /// do not suffice.
    pub fn connection_limits(&self, descriptors: u64) -> ConnectionLimits {
        let listeners = self.server.listen.len().max(1);
        let admin = self.admin.listen.map_or(0, |_| ADMIN_CONNECTIONS_MAX);
        let free = descriptors.saturating_sub(OTHER_DESCRIPTORS + admin as u64);
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        // With few descriptors, a fifth stays for users.
        let pending = self.limits.handshakes.min(free / 5 * 4 / listeners).max(1);
        let most = usize::try_from(CONNECTIONS_MAX).unwrap_or(usize::MAX);
        let users = free.saturating_sub(pending * listeners).min(most);
        ConnectionLimits {
            users: self.limits.connections.map_or(users, |max| max.min(users)),
            pending,
            admin,
        }
    }

    /// The file descriptors that users cannot take.
    fn descriptors_reserved(&self) -> u64 {
        let admin = self.admin.listen.map_or(0, |_| ADMIN_CONNECTIONS_MAX);
        let pending = self.limits.handshakes * self.server.listen.len();
        OTHER_DESCRIPTORS + (admin + pending) as u64
    }
}

impl MachineLimits {
    /// Reads the limits from the kernel.
    pub fn read() -> io::Result<Self> {
        let (_, descriptors) = rlimit::Resource::NOFILE.get()?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let memory = group
            .and_then(|group| memory_max(Path::new("/sys/fs/cgroup"), Path::new(group)))
            .or_else(|| memory_total(&fs::read_to_string("/proc/meminfo").ok()?));
        Ok(Self {
            descriptors,
            memory,
        })
    }

    /// Warnings about settings that need more than the machine has, a sentence each.
    pub fn warnings(&self, settings: &Settings) -> Vec<String> {
        let Self {
            descriptors,
            memory,
        } = *self;
        let LimitSettings { connections, .. } = settings.limits;
        let mut warnings = Vec::new();
        let users = settings.connection_limits(descriptors).users;
        let reserved = settings.descriptors_reserved();
        let needed = connections.unwrap_or(1) as u64 + reserved;
        if descriptors < needed {
            warnings.push(format!(
                "RLIMIT_NOFILE is {descriptors}, which is enough for {users} users ({reserved} are \
                 reserved): raise it to {needed}{}",
                connections.map_or_else(String::new, |connections| format!(
                    ", or lower limits.connections, which is {connections}"
                )),
            ));
        }
        let idle = CONNECTION_BYTES.saturating_mul(users as u64);
        let waiting = settings.mailbox.total_bytes;
        let outcomes = settings.limits.outcomes_bytes;
        if let Some(memory) = memory
            && idle.saturating_add(waiting).saturating_add(outcomes) > memory
        {
            let [idle, waiting, outcomes, memory] =
                [idle, waiting, outcomes, memory].map(mebibytes);
            warnings.push(format!(
                "memory is {memory}, but {users} idle users need {idle}, mailbox.total_bytes is {waiting} \
                 and limits.outcomes_bytes is {outcomes}: {} limits.connections or lower mailbox.total_bytes",
                if connections.is_some() {
                    "lower"
                } else {
                    "set"
                },
            ));
        }
        warnings
    }
}

/// The lowest limit from the cgroup of the process up to the root, because the group itself often has none.
fn memory_max(root: &Path, group: &Path) -> Option<u64> {
    let limits = group.ancestors().filter_map(|group| {
        let limit = fs::read_to_string(root.join(group).join("memory.max")).ok()?;
        limit.trim().parse::<u64>().ok() // "max" is no limit
    });
    limits.min()
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1 << 10)
}

/// A size as text, rounded down to a mebibyte.
fn mebibytes(bytes: u64) -> String {
    size_text(bytes >> 20 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_memory_limit_above_the_process_counts() {
        let root = std::env::temp_dir().join(format!("switchboard-cgroup-{}", std::process::id()));
        let limit = |group: &str, limit: &str| {
            fs::create_dir_all(root.join(group)).unwrap();
            fs::write(root.join(group).join("memory.max"), limit).unwrap();
        };
        limit("pod/container", "max\n");
        limit("pod", "1000\n");
        limit("other", "1\n");
        let found = ["pod/container", "pod", "other", "none", ""]
            .map(|group| memory_max(&root, Path::new(group)));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [Some(1000), Some(1000), Some(1), None, None]);
    }

    #[test]
    fn the_memory_of_a_machine_is_read_in_kibibytes() {
        assert_eq!(
            memory_total("Foo: 1 kB\nMemTotal:       24689764 kB\n"),
            Some(24_689_764 << 10)
        );
        assert_eq!(memory_total("MemTotal: a lot\n"), None);
    }
}
