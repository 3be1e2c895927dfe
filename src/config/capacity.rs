//! Whether the machine has the file descriptors and the memory that the settings need.

use std::fs;
use std::io;
use std::path::Path;

use super::settings::{LimitSettings, Settings};
use super::units::size_text;

/// The highest `limits.connections`.
pub(super) const CONNECTIONS_MAX: u64 = 10_000_000;
/// File descriptors that users cannot take: for listeners, health checks, scrapes, handshakes, log, runtime.
const DESCRIPTORS_RESERVED: u64 = 500;
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

impl LimitSettings {
    /// How many users may connect if the process may open this many files: `connections`, or fewer where the
    /// files do not suffice.
    pub fn connections_within(&self, descriptors: u64) -> usize {
        let room = descriptors
            .saturating_sub(DESCRIPTORS_RESERVED)
            .min(CONNECTIONS_MAX);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        self.connections
            .map_or(room, |connections| connections.min(room))
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
        let users = settings.limits.connections_within(descriptors);
        let needed = connections.unwrap_or(1) as u64 + DESCRIPTORS_RESERVED;
        if descriptors < needed {
            warnings.push(format!(
                "RLIMIT_NOFILE is {descriptors}, which is enough for {users} users ({DESCRIPTORS_RESERVED} \
                 are reserved): raise it to {needed}{}",
                connections.map_or_else(String::new, |connections| format!(
                    ", or lower limits.connections, which is {connections}"
                )),
            ));
        }
        let idle = CONNECTION_BYTES.saturating_mul(users as u64);
        let waiting = settings.mailbox.total_bytes;
        if let Some(memory) = memory
            && idle.saturating_add(waiting) > memory
        {
            let [idle, waiting, memory] = [idle, waiting, memory].map(mebibytes);
            warnings.push(format!(
                "memory is {memory}, but {users} idle users need {idle} and mailbox.total_bytes \
                 is {waiting}: {} limits.connections or lower mailbox.total_bytes",
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
