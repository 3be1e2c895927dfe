//! How many connections the limit of open files leaves room for.

use crate::error::BenchError;
use crate::process;

/// Descriptors kept back for /proc, for the server's metrics and for the files of a report.
const SPARE_FILES: u64 = 16;

/// The limit where it cannot be read: the usual soft limit.
const LIMIT_DEFAULT: u64 = 1024;

/// Checks that so many more connections can be opened.
pub(crate) fn require_room(connections: usize) -> Result<(), BenchError> {
    let (needed, room) = (connections as u64, room());
    if needed > room {
        return Err(BenchError::OpenFiles { needed, room });
    }
    Ok(())
}

/// How many more connections this process can open. Raises the soft limit to the hard one.
pub(crate) fn room() -> u64 {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(LIMIT_DEFAULT);
    limit.saturating_sub(process::own_open_files() + SPARE_FILES)
}
