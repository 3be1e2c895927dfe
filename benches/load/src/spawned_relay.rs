//! A relay that the load generator starts itself: on a free port of loopback, on CPUs of its own. Dropping
//! the handle stops the relay.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::time::Instant;

use crate::error::BenchError;
use crate::process::MonitoredProcess;

/// How long the relay may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// A relay that runs until this handle is dropped.
#[derive(Debug)]
pub(crate) struct SpawnedRelay {
    child: Child,
    process: MonitoredProcess,
    address: SocketAddr,
}

impl SpawnedRelay {
    /// Starts the relay with this routing strategy and the default settings, and waits until it listens. The
    /// relay gets only PATH of this program's environment, so no other setting.
    pub(crate) fn start(strategy: &str, cpus: &CpuPinning) -> Result<Self, BenchError> {
        let starting = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => BenchError::RelayNotFound,
            _ => BenchError::RelayNotStarted { source },
        };
        let mut command = Command::new(switchboard::cli::installed("switchboard"));
        command
            .arg("serve")
            .env_clear()
            // The program is looked up on the PATH of the child.
            .env("PATH", env::var_os("PATH").unwrap_or_default())
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
                // Both fail where the process has ended, which is the aim.
                drop(child.kill());
                drop(child.wait());
                return Err(starting(io::ErrorKind::NotConnected.into()));
            }
            thread::sleep(CHECK_INTERVAL);
        }
    }

    pub(crate) fn process(&self) -> MonitoredProcess {
        self.process
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SpawnedRelay {
    fn drop(&mut self) {
        // Both fail where the process has ended, which is the aim.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Which CPUs the two sides run on. Drop restores the CPUs of the calling thread.
#[derive(Debug)]
pub(crate) struct CpuPinning {
    sides: Option<Sides>,
}

#[derive(Debug)]
struct Sides {
    all: CpuSet,
    server: CpuSet,
    own: CpuSet,
}

impl CpuPinning {
    /// Both sides on all CPUs.
    pub(crate) fn shared() -> Self {
        Self { sides: None }
    }

    /// The last CPU for the calling thread and all others for relays, where there are at least two.
    pub(crate) fn apart() -> io::Result<Self> {
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

    pub(crate) fn are_apart(&self) -> bool {
        self.sides.is_some()
    }

    /// Starts a child on the CPUs of the relay: a child inherits the CPUs of the thread that starts it.
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
            // Cannot fail, because the thread was allowed to use these CPUs before.
            let _ = sched_setaffinity(None, &sides.all);
        }
    }
}
