//! From ready to gone: the stages of a process, and the tasks that a stop waits for. Must not know
//! what the tasks do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Everything works.
    Ready,
    /// Everything works; load balancers are told to look elsewhere.
    Unready,
    /// No upgrades any more; users are sent away.
    Draining,
}

/// How a stop begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// With `drain.delay`, in which everything still works.
    Drain,
    /// Without it.
    DrainNow,
}

/// The stage and the tasks of one app: a cheap handle.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: Arc<AtomicU8>,
    /// The time over which users are sent away, once a drain was asked for.
    drain: Arc<SetOnce<Duration>>,
    tracker: TaskTracker,
    stopped: CancellationToken,
}

impl Shutdown {
    /// A process that is ready, without tasks.
    pub fn new() -> Self {
        Self {
            stage: Arc::new(AtomicU8::new(Stage::Ready as u8)),
            drain: Arc::default(),
            tracker: TaskTracker::new(),
            stopped: CancellationToken::new(),
        }
    }

    /// The current stage.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Ready,
            1 => Stage::Unready,
            _ => Stage::Draining,
        }
    }

    /// Moves on to a stage; never back.
    pub fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// Asks for a drain over so long. Who asks first is obeyed: the time that holds.
    pub fn ask_for_drain(&self, spread: Duration) -> Duration {
        let _was_asked = self.drain.set(spread).is_err();
        *self.drain.get().expect("it was set, now or before")
    }

    /// Completes once a drain is asked for.
    pub async fn drain_asked_for(&self) {
        self.drain.wait().await;
    }

    /// Spawns a task that the end waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Completes once listeners and HTTP connections have to end.
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
