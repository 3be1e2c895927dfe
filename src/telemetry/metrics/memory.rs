//! The memory of the process's cgroup: its use, and the limit at which the kernel kills the process.

use std::fs;
use std::path::{Path, PathBuf};

use prometheus::proto::MetricFamily;

use super::families::gauge;

/// The folder of the cgroup's files, and the names of these files.
#[derive(Debug)]
pub(super) struct CgroupMemory {
    folder: PathBuf,
    names: &'static FileNames,
}

#[derive(Debug)]
struct FileNames {
    usage: &'static str,
    limit: &'static str,
    inactive_file: &'static str,
}

/// cgroups(7), version 2.
const V2: FileNames = FileNames {
    usage: "memory.current",
    limit: "memory.max",
    inactive_file: "inactive_file",
};

/// cgroups(7), version 1.
const V1: FileNames = FileNames {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    inactive_file: "total_inactive_file",
};

/// Version 1 writes "no limit" as the largest number of whole pages, which is a little less than 2^63.
const UNLIMITED_BYTES: u64 = 1 << 62;

impl CgroupMemory {
    /// The memory controller of the process, where there is one.
    pub(super) fn of_process() -> Option<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::find(&membership, Path::new("/sys/fs/cgroup"))
    }

    /// Finds the folder by the text of `/proc/self/cgroup`. In a container the text often names a folder
    /// outside the container, and the root of the mounted files is the folder of the container.
    fn find(membership: &str, root: &Path) -> Option<Self> {
        let candidates = membership.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            match controllers {
                "" => Some((root.to_owned(), path, &V2)),
                "memory" => Some((root.join(controllers), path, &V1)),
                _ => None,
            }
        });
        candidates
            .flat_map(|(root, path, names)| [(root.join(path), names), (root, names)])
            .find(|(folder, names)| folder.join(names.usage).exists())
            .map(|(folder, names)| Self { folder, names })
    }

    /// The use without pages of files that the kernel can drop at once, and the limit where there is one.
    pub(super) fn families(&self) -> impl Iterator<Item = MetricFamily> {
        let usage = self.usage().map(|bytes| {
            gauge(
                "switchboard_cgroup_memory_usage_bytes",
                "Memory of the cgroup, without file pages that the kernel can drop at once.",
                bytes,
            )
        });
        let limit = self.limit().map(|bytes| {
            gauge(
                "switchboard_cgroup_memory_limit_bytes",
                "Memory of the cgroup at which the kernel kills a process.",
                bytes,
            )
        });
        usage.into_iter().chain(limit)
    }

    fn usage(&self) -> Option<u64> {
        let usage = self.number(self.names.usage)?;
        let stat = self.read("memory.stat").unwrap_or_default();
        let droppable = stat.lines().find_map(|line| {
            let value = line.strip_prefix(self.names.inactive_file)?;
            value.trim().parse().ok()
        });
        Some(usage.saturating_sub(droppable.unwrap_or(0)))
    }

    fn limit(&self) -> Option<u64> {
        // Version 2 writes "no limit" as a word.
        let limit = self.number(self.names.limit);
        limit.filter(|&bytes| bytes < UNLIMITED_BYTES)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(name)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn version_2_is_read_in_the_folder_of_the_process_or_at_the_root() {
        let stat = "anon 5\ninactive_file 300\nactive_file 7\n";
        let files = [
            ("memory.current", "1000\n"),
            ("memory.max", "2000\n"),
            ("memory.stat", stat),
        ];
        let in_folder = files.map(|(name, text)| (format!("a/b/{name}"), text));
        let in_folder = in_folder
            .each_ref()
            .map(|(name, text)| (name.as_str(), *text));
        for (name, files) in [("cgroup-2-root", files), ("cgroup-2-folder", in_folder)] {
            let files = Files::new(name, &files);
            let memory = CgroupMemory::find("0::/a/b\n", &files.0).unwrap();
            assert_eq!(
                (memory.usage(), memory.limit()),
                (Some(700), Some(2000)),
                "{name}"
            );
        }
        let unlimited = [("memory.current", "1000\n"), ("memory.max", "max\n")];
        let files = Files::new("cgroup-2-unlimited", &unlimited);
        let memory = CgroupMemory::find("0::/\n", &files.0).unwrap();
        assert_eq!((memory.usage(), memory.limit()), (Some(1000), None));
        assert_eq!(memory.families().count(), 1);
    }

    #[test]
    fn version_1_is_read_where_version_2_has_no_memory() {
        let files = [
            ("memory/p/memory.usage_in_bytes", "1000\n"),
            ("memory/p/memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory/p/memory.stat",
                "inactive_file 1\ntotal_inactive_file 400\n",
            ),
        ];
        let files = Files::new("cgroup-1", &files);
        let membership = "5:cpu,cpuacct:/p\n4:memory:/p\n0::/\n";
        let memory = CgroupMemory::find(membership, &files.0).unwrap();
        assert_eq!((memory.usage(), memory.limit()), (Some(600), None));
        assert!(CgroupMemory::find("0::/\n", &files.0).is_none());
    }
}
