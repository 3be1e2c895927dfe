//! Threads for work that takes a fraction of a millisecond in one piece and must not delay users. The kernel runs
//! them only when no other thread wants the core, and stops them when one does. Must not know what the work is.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

/// How long a job waits for a background thread. Then the waiting task runs the job itself: while users take all
/// cores, the background threads get about a 300th of a user thread's time.
const START_TIMEOUT: Duration = Duration::from_millis(50);

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct BackgroundPool {
    jobs: SyncSender<Job>,
}

/// Cancels a job that has not started, when the task that waits for it is dropped. The queue then keeps nothing that
/// the job owns.
struct CancelOnDrop<W>(Arc<Mutex<Option<W>>>);

impl BackgroundPool {
    /// A pool with `threads` threads, one for each core that may have jobs, and a queue for `queue_capacity` jobs
    /// that no thread has started. Without threads, and when the queue is full, jobs run in the task that waits.
    pub(crate) fn new(threads: usize, queue_capacity: usize) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(queue_capacity);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = queue.clone();
            let named = thread::Builder::new().name("background".to_owned());
            named.spawn(move || run_jobs(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `work` and returns its result, or an error if it panics on a background thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, mut result) = oneshot::channel();
        // Shared by the queue and this task. The one that takes it runs it.
        let work = Arc::new(Mutex::new(Some(move || drop(done.send(work())))));
        let ours = CancelOnDrop(work.clone());
        let panicked = |_| io::Error::other("background work panicked");
        let job = Box::new(move || run_if_waiting(&work));
        if self.jobs.try_send(job).is_ok()
            && let Ok(result) = timeout(START_TIMEOUT, &mut result).await
        {
            return result.map_err(panicked);
        }
        run_if_waiting(&ours.0);
        // A background thread may have started the job at the last moment.
        result.await.map_err(panicked)
    }
}

impl<W> Drop for CancelOnDrop<W> {
    fn drop(&mut self) {
        drop(take(&self.0));
    }
}

fn run_if_waiting(work: &Mutex<Option<impl FnOnce()>>) {
    if let Some(work) = take(work) {
        work();
    }
}

/// Takes the work if it has not been taken. Does not wait for the lock, because its holder is about to take the work
/// and may be a background thread that does not run: a thread that serves users must never wait for that.
fn take<W>(work: &Mutex<Option<W>>) -> Option<W> {
    work.try_lock()?.take()
}

fn run_jobs(queue: &Mutex<Receiver<Job>>) {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    // Without this policy the threads compete with others for the cores, which is no worse than without a pool.
    if let Err(error) =
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
    {
        debug!(?error, "background threads have an ordinary priority");
    }
    loop {
        let next = queue.lock().recv();
        let Ok(job) = next else { return };
        // Lets the kernel choose again. A thread that serves users and is woken while it falls asleep may lose its
        // core to this thread, because it has had more than its share (EEVDF; seen on Linux 6.18). The kernel
        // would look again only after up to 4 ms, which is longer than all jobs that wait here.
        thread::yield_now();
        // The task that waits for the job learns of a panic, because the job's sender is dropped.
        let _panicked = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Barrier;

    use tokio::task::JoinSet;

    use super::*;

    const WAIT: Duration = Duration::from_mins(1);

    impl BackgroundPool {
        /// The result of `work` by one of the threads, however long a busy machine does not run them.
        async fn run_on_thread<T: Send + 'static>(
            &self,
            work: impl FnOnce() -> T + Send + 'static,
        ) -> T {
            let (done, result) = oneshot::channel();
            self.send(move || drop(done.send(work())));
            timeout(WAIT, result).await.unwrap().unwrap()
        }

        /// Keeps a thread busy until another thread waits at the barrier, too.
        fn occupy(&self) -> Arc<Barrier> {
            let barrier = Arc::new(Barrier::new(2));
            let held = barrier.clone();
            self.send(move || {
                held.wait();
            });
            barrier
        }

        fn send(&self, work: impl FnOnce() + Send + 'static) {
            self.jobs.send(Box::new(work)).unwrap();
        }
    }

    #[tokio::test]
    async fn work_runs_on_a_thread_with_the_idle_policy() {
        let background = BackgroundPool::new(2, 8).unwrap();
        let policy = || fs::read_to_string("/proc/thread-self/sched").unwrap();
        let found = background.run_on_thread(policy).await;
        let line = found.lines().find(|line| line.starts_with("policy"));
        // SCHED_IDLE (sched(7)).
        assert!(line.is_some_and(|line| line.ends_with(" 5")), "{line:?}");
        assert_eq!(background.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_that_waits_too_long_runs_in_the_waiting_task() {
        let background = BackgroundPool::new(1, 8).unwrap();
        let barrier = background.occupy();
        let here = timeout(WAIT, background.run(|| thread::current().id())).await;
        assert_eq!(here.unwrap().unwrap(), thread::current().id());
        thread::spawn(move || barrier.wait());
        let there = background.run_on_thread(|| thread::current().id()).await;
        assert_ne!(there, thread::current().id());
    }

    #[tokio::test]
    async fn work_of_a_dropped_task_is_not_run_and_owns_nothing() {
        let background = BackgroundPool::new(1, 8).unwrap();
        let (barrier, is_done) = (background.occupy(), Arc::new(Mutex::new(false)));
        let done = is_done.clone();
        let dropped = background.run(move || *done.lock() = true);
        assert!(timeout(Duration::ZERO, dropped).await.is_err());
        assert_eq!(
            Arc::strong_count(&is_done),
            1,
            "the thread has not reached it"
        );
        thread::spawn(move || barrier.wait());
        background.run_on_thread(|| ()).await;
        assert!(!*is_done.lock());
    }

    #[tokio::test]
    async fn work_without_a_thread_or_room_in_the_queue_runs_at_once() {
        let background = BackgroundPool::new(1, 1).unwrap();
        let barrier = background.occupy();
        // Blocks until the thread has taken the first job, and fills the queue.
        background.send(|| ());
        for background in [&background, &BackgroundPool::new(0, 1).unwrap()] {
            let here = timeout(Duration::ZERO, background.run(|| thread::current().id())).await;
            assert_eq!(here.unwrap().unwrap(), thread::current().id());
        }
        barrier.wait();
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_and_not_the_thread() {
        let background = Arc::new(BackgroundPool::new(1, 8).unwrap());
        let (panics, mut tasks) = (background.clone(), JoinSet::new());
        tasks.spawn(async move { panics.run(|| panic!("in the work")).await });
        // An error from the thread, or a panic of this task if the thread was too late.
        let ended: Option<Result<io::Result<()>, _>> =
            timeout(WAIT, tasks.join_next()).await.unwrap();
        assert!(!matches!(ended, Some(Ok(Ok(())))));
        background.send(|| panic!("on a thread"));
        assert_eq!(background.run_on_thread(|| 7).await, 7);
    }
}
