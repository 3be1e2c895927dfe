//! A relay that the load generator starts itself: on a free port of loopback, on CPUs of its own. Dropping
//! the handle stops the relay.

use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::time::Instant;

use super::BenchError;
use super::process::MonitoredProcess;

/// How long it may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A server that runs as long as this lives.
#[derive(Debug)]
pub(super) struct SpawnedRelay {
    child: Child,
    process: MonitoredProcess,
    address: SocketAddr,
}

impl SpawnedRelay {
    /// Starts it with the default settings, but for the routing strategy, and waits until it listens.
    /// Nothing of this program's environment reaches it.
    pub(super) fn start(strategy: &str, cpus: &CpuPinning) -> Result<Self, BenchError> {
        let starting = |source| BenchError::RelayNotStarted { source };
        let program =
            switchboard::cli::installed("switchboard").ok_or(BenchError::RelayNotFound)?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .env_clear()
            .env("SWITCHBOARD__SERVER__LISTEN", "127.0.0.1:0")
            .env("SWITCHBOARD__ROUTING__STRATEGY", strategy)
            .env("SWITCHBOARD__LOG__FILTER", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = cpus.spawn(&mut command).map_err(starting)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let process = MonitoredProcess::of(child.id());
            let listens = process.and_then(|process| Some((process, process.listens_on()?)));
            if let Some((process, address)) = listens {
                return Ok(Self {
                    child,
                    process,
                    address,
                });
            }
            let ended = child.try_wait().map_err(starting)?;
            if ended.is_some() || Instant::now() > deadline {
                // It may have ended by itself.
                drop(child.kill());
                drop(child.wait());
                return Err(starting(io::ErrorKind::NotConnected.into()));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    pub(super) fn process(&self) -> MonitoredProcess {
        self.process
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SpawnedRelay {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it is left.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Which side runs where. What was set is set back by Drop.
#[derive(Debug)]
pub(super) struct CpuPinning {
    sides: Option<Sides>,
}

#[derive(Debug)]
struct Sides {
    all: CpuSet,
    server: CpuSet,
    own: CpuSet,
}

impl CpuPinning {
    /// Both sides everywhere.
    pub(super) fn shared() -> Self {
        Self { sides: None }
    }

    /// The last CPU for the calling thread and all others for servers, if there are two.
    pub(super) fn apart() -> io::Result<Self> {
        let all = sched_getaffinity(None)?;
        let cpus: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| all.is_set(*cpu))
            .collect();
        let Some((own, server @ [_, ..])) = cpus.split_last() else {
            return Ok(Self::shared());
        };
        let sides = Sides {
            all,
            server: set(server),
            own: set(&[*own]),
        };
        sched_setaffinity(None, &sides.own)?;
        Ok(Self { sides: Some(sides) })
    }

    pub(super) fn are_apart(&self) -> bool {
        self.sides.is_some()
    }

    /// A child runs where the thread may run that starts it.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let Some(sides) = &self.sides else {
            return command.spawn();
        };
        sched_setaffinity(None, &sides.server)?;
        let child = command.spawn();
        sched_setaffinity(None, &sides.own)?;
        child
    }
}

fn set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    set
}

impl Drop for CpuPinning {
    fn drop(&mut self) {
        if let Some(sides) = &self.sides {
            // What was allowed before is allowed still, so this cannot fail.
            let _ = sched_setaffinity(None, &sides.all);
        }
    }
}
