//! The file that keeps an id from being given twice where tickets outlive the process and no cluster leases ids. It
//! has a number that is ahead of all ids that were given; a relay that starts again gives ids above that number.
//!
//! The file is written by a task, 1,000 ids ahead, and replaced as a whole. A user that joins waits only where the
//! ids in the file are used up before the next number is written.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::identity::UserId;

/// How far the number in the file is ahead of the last id that was given.
const AHEAD: u64 = 1000;

/// How long a user that joins waits for the file. A slow disk must not keep users out.
const WAIT: Duration = Duration::from_secs(1);

/// Time between two attempts to write the file after one has failed.
const RETRY: Duration = Duration::from_secs(10);

/// More bytes than a number has.
const FILE_BYTES_MAX: u64 = 64;

/// What an operator can do where the file cannot be written.
const ADVICE: &str = "after a restart, new users can get ids whose owners come back with a ticket: let the relay \
    write to the folder of tickets.secret_file, or set cluster.nats_url";

/// The file.
#[derive(Debug)]
pub struct IdFile {
    path: PathBuf,
    /// The highest id that was given, by this process or by an earlier one.
    given: AtomicU64,
    written: watch::Sender<Written>,
    /// Notified when the next number should be written.
    is_low: Notify,
}

/// What is in the file.
#[derive(Clone, Copy, Debug)]
struct Written {
    number: u64,
    has_failed: bool,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdFileError {
    /// It cannot be read.
    #[error("{}: cannot be read (it keeps ids of tickets.secret_file)", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no number.
    #[error(
        "{}: no number from 1 to {max} (it keeps ids of tickets.secret_file); without the file, ids begin with 1",
        path.display(), max = UserId::MAX
    )]
    Malformed {
        /// Its path.
        path: PathBuf,
    },
}

impl IdFile {
    /// Reads the file beside `secret_file`. A file that does not exist has the number 0.
    pub fn open(secret_file: &Path) -> Result<Self, IdFileError> {
        let mut path = OsString::from(secret_file);
        path.push(".ids");
        let path = PathBuf::from(path);
        let number = match read(&path) {
            Ok(Some(number)) => number,
            Ok(None) => return Err(IdFileError::Malformed { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(IdFileError::Unreadable { path, source }),
        };
        let has_failed = false;
        Ok(Self {
            path,
            given: AtomicU64::new(number),
            written: watch::Sender::new(Written { number, has_failed }),
            is_low: Notify::new(),
        })
    }

    /// A warning where the file cannot be written, tried with another file in its folder.
    pub fn warning(&self) -> Option<String> {
        let probe = self.path.with_extension("ids.probe");
        let error = File::create(&probe).and_then(|_file| fs::remove_file(&probe));
        error.err().map(|error| {
            let path = self.path.display();
            format!("{path} cannot be written: {error}: {ADVICE}")
        })
    }

    /// The first id of this process.
    pub(crate) fn first(&self) -> u64 {
        self.given.load(Relaxed) + 1
    }

    /// Writes the file for the first time in this process, before any user joins.
    pub(crate) fn start(&self) {
        let number = self.next();
        let result = write(&self.path, number);
        self.record(number, result);
    }

    /// Writes the file whenever half of the ids that it is ahead are used up.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            self.is_low.notified().await;
            let (path, number) = (self.path.clone(), self.next());
            let result = spawn_blocking(move || write(&path, number)).await;
            let result = result.unwrap_or_else(|error| Err(io::Error::other(error)));
            let has_failed = result.is_err();
            self.record(number, result);
            if has_failed {
                sleep(RETRY).await;
            }
        }
    }

    /// Notes that this id was given, and waits until the number in the file is not below it.
    pub(crate) async fn covers(&self, id: UserId) {
        let id = id.get();
        // Relaxed: the notification below orders it before the task reads it in `next`. An id that is given while the
        // task writes leaves a permit in `is_low`, so that the task writes once more.
        let given = self.given.fetch_max(id, Relaxed).max(id);
        let written = *self.written.borrow();
        if given + AHEAD / 2 > written.number {
            self.is_low.notify_one();
        }
        if id > written.number && !written.has_failed {
            let mut written = self.written.subscribe();
            let covers = written.wait_for(|written| written.number >= id || written.has_failed);
            // Too late or not: the user joins, and the task warns if it cannot write.
            let _in_time = timeout(WAIT, covers).await.is_ok();
        }
    }

    fn next(&self) -> u64 {
        (self.given.load(Relaxed) + AHEAD).min(UserId::MAX)
    }

    fn record(&self, number: u64, result: io::Result<()>) {
        let path = self.path.display();
        let had_failed = self.written.borrow().has_failed;
        match result {
            Ok(()) => {
                self.written.send_replace(Written {
                    number,
                    has_failed: false,
                });
                if had_failed {
                    info!(%path, "the file of ids is written again");
                }
            }
            Err(error) => {
                self.written
                    .send_modify(|written| written.has_failed = true);
                if !had_failed {
                    warn!(%path, %error, "the file of ids cannot be written: {ADVICE}");
                }
            }
        }
    }
}

/// The number in the file; `None` if it has none.
fn read(path: &Path) -> io::Result<Option<u64>> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text);
    match read {
        Ok(_) => Ok(text
            .trim()
            .parse()
            .ok()
            .filter(|number| *number <= UserId::MAX)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file. A crash leaves the old number or the new one: the new file is on the disk before it gets the
/// name, and the name is on the disk at the end. Never lowers the number, because a process that is about to end
/// may write at the same time as the one that follows it. The lock of the folder keeps the two apart.
fn write(path: &Path, number: u64) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")))?;
    folder.lock()?;
    let present = read(path).ok().flatten().unwrap_or(0);
    let new = path.with_extension("ids.new");
    let mut file = File::create(&new)?;
    writeln!(file, "{}", number.max(present))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    folder.sync_all()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// A secret file in a folder of its own.
    fn secret_file(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("switchboard-ids-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir(&folder).unwrap();
        folder.join("secret")
    }

    fn number(secret_file: &Path) -> String {
        fs::read_to_string(secret_file.with_extension("ids")).unwrap()
    }

    fn id(number: u64) -> UserId {
        UserId::new(number).unwrap()
    }

    #[test]
    fn the_file_is_ahead_of_every_id_and_a_new_process_begins_behind_it() {
        let secret = secret_file("ahead");
        let ids = Arc::new(IdFile::open(&secret).unwrap());
        assert_eq!(ids.first(), 1);
        ids.start();
        assert_eq!(number(&secret), "1000\n");
        let mut process = tokio::runtime::Builder::new_current_thread();
        let process = process.enable_time().start_paused(true).build().unwrap();
        process.block_on(async {
            let begin = Instant::now();
            tokio::select! {
                () = ids.clone().run() => {}
                () = async {
                    for given in 1..=3000 {
                        ids.covers(id(given)).await;
                        let written: u64 = number(&secret).trim().parse().unwrap();
                        assert!((given..=given + AHEAD).contains(&written), "{given} {written}");
                    }
                    // An id that came back with a ticket of a time without the file.
                    ids.covers(id(7000)).await;
                    assert_eq!(number(&secret), "8000\n");
                } => {}
            }
            assert!(
                begin.elapsed() < WAIT,
                "a user has waited for a file that is written"
            );
        });
        let next = IdFile::open(&secret).unwrap();
        assert_eq!(next.first(), 8001);
        next.start();
        // The earlier process may still write. Its end waits for that.
        ids.start();
        drop(process);
        assert_eq!(number(&secret), "9000\n");
        fs::remove_dir_all(secret.parent().unwrap()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_written_keeps_nobody_out() {
        let secret = secret_file("unwritable");
        let ids = IdFile::open(&secret).unwrap();
        assert_eq!(ids.warning(), None);
        fs::remove_dir_all(secret.parent().unwrap()).unwrap();
        let warning = ids.warning().unwrap();
        assert!(warning.contains("tickets.secret_file"), "{warning}");
        ids.start();
        let begin = Instant::now();
        ids.covers(id(1)).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_file_without_a_number_is_refused() {
        let secret = secret_file("malformed");
        let path = secret.with_extension("ids");
        for text in ["", "-1", "1e3", "9007199254740992", "7\n8", "\u{0}"] {
            fs::write(&path, text).unwrap();
            let error = IdFile::open(&secret).unwrap_err().to_string();
            assert!(
                error.contains("no number from 1 to 9007199254740991"),
                "{error}"
            );
        }
        fs::write(&path, [0xff]).unwrap();
        assert!(IdFile::open(&secret).is_err());
        fs::remove_dir_all(secret.parent().unwrap()).unwrap();
    }
}
