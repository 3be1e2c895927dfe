//! How a process ends: the stages of its end, the tasks that the end waits for, and the signals that start
//! it. Must not know what the tasks do.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{SetOnce, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The stages of an app, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Everything works.
    Ready,
    /// Everything works, but `/readyz` tells load balancers to use other nodes.
    Unready,
    /// Upgrades are refused, and users are told to reconnect.
    Draining,
}

/// How a drain starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// With `drain.delay`, during which everything still works.
    Drain,
    /// Without `drain.delay`.
    DrainNow,
}

/// The stage and the tasks of one app. Clones share both.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: Arc<AtomicU8>,
    /// Cancelled at [`Stage::Draining`].
    draining: CancellationToken,
    /// The spread of the drain, once one was requested.
    requested_spread: Arc<SetOnce<Duration>>,
    tracker: TaskTracker,
    stopped: CancellationToken,
}

impl Shutdown {
    /// An app that is ready and has no tasks.
    pub fn new() -> Self {
        Self {
            stage: Arc::new(AtomicU8::new(Stage::Ready as u8)),
            draining: CancellationToken::new(),
            requested_spread: Arc::default(),
            tracker: TaskTracker::new(),
            stopped: CancellationToken::new(),
        }
    }

    /// The current stage.
    pub fn stage(&self) -> Stage {
        // Sequentially consistent, as the change is: a handshake that adds its user and then reads an earlier stage
        // has added it before the drain walks the users.
        match self.stage.load(Ordering::SeqCst) {
            0 => Stage::Ready,
            1 => Stage::Unready,
            _ => Stage::Draining,
        }
    }

    /// Moves on to a stage. Does nothing if the app has passed it.
    pub fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::SeqCst);
        if stage == Stage::Draining {
            self.draining.cancel();
        }
    }

    /// Waits for [`Stage::Draining`].
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Requests a drain that spreads reconnects over `spread`. Only the first request counts; returns its
    /// spread.
    pub fn request_drain(&self, spread: Duration) -> Duration {
        let _was_requested = self.requested_spread.set(spread).is_err();
        *self
            .requested_spread
            .get()
            .expect("it was set, now or before")
    }

    /// Waits for the first request for a drain.
    pub async fn drain_requested(&self) {
        self.requested_spread.wait().await;
    }

    /// Spawns a task that [`Shutdown::finished`] waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Spawns a task that [`Shutdown::stop`] cancels.
    pub fn spawn_until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
        self.spawn(async move {
            // None if it was cancelled, which is how such a task ends.
            let _finished: Option<()> = stopped.run_until_cancelled(task).await;
        });
    }

    /// Waits for [`Shutdown::stop`].
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Tells listeners and HTTP connections to end.
    pub fn stop(&self) {
        self.stopped.cancel();
        self.tracker.close();
    }

    /// Waits for all tasks, after [`Shutdown::stop`].
    pub async fn finished(&self) {
        self.tracker.wait().await;
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals from now on. Needs a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            terminate,
            interrupt,
        })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            Some(()) = self.terminate.recv() => SignalKind::terminate(),
            Some(()) = self.interrupt.recv() => SignalKind::interrupt(),
            else => pending().await,
        }
    }

    /// Sends how to stop at the first signal: SIGTERM waits for `drain.delay`, SIGINT does not. Returns the
    /// number of the second signal.
    pub async fn stop_and_wait(mut self, stop: oneshot::Sender<Stop>) -> u8 {
        let first = match self.next().await {
            kind if kind == SignalKind::interrupt() => Stop::DrainNow,
            _ => Stop::Drain,
        };
        // Fails only if the app has ended, and then there is nothing to stop.
        let _ = stop.send(first);
        let second = self.next().await.as_raw_value();
        u8::try_from(second).expect("signal numbers end at 64")
    }
}
