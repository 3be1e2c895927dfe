//! Work of a fraction of a millisecond in one piece, aside from the threads that serve users: on threads
//! that the kernel runs when nobody else wants the core, and takes off it as soon as somebody does. Must
//! not know what is worked on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

/// After that, work that no thread has begun is done by whoever wants it: where users take all of the
/// cores, these threads get a three-hundredth of what they get.
const PATIENCE: Duration = Duration::from_millis(50);

type Work = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub struct BackgroundPool {
    works: SyncSender<Work>,
}

/// Work that either of two may do, given up by Drop of the one who waits for it: nothing that it holds
/// stays behind in the queue.
struct Waiting<W>(Arc<Mutex<Option<W>>>);

impl BackgroundPool {
    /// So many threads, one for each core that there may be work for, and so many places for work that
    /// none of them has begun. What finds no thread or no place is done where it is wanted.
    pub fn new(threads: usize, places: usize) -> io::Result<Self> {
        let (works, todo) = sync_channel(places);
        let todo = Arc::new(Mutex::new(todo));
        for _ in 0..threads {
            let todo = todo.clone();
            let named = thread::Builder::new().name("background".to_owned());
            named.spawn(move || work_off(&todo))?;
        }
        Ok(Self { works })
    }

    /// Does this, and gives what comes of it; an error if it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, mut result) = oneshot::channel();
        // It is wanted as long as somebody can do it.
        let work = Arc::new(Mutex::new(Some(move || drop(done.send(work())))));
        let here = Waiting(work.clone());
        let gone = |_| io::Error::other("background work was not done");
        if self
            .works
            .try_send(Box::new(move || do_once(&work)))
            .is_ok()
            && let Ok(result) = timeout(PATIENCE, &mut result).await
        {
            return result.map_err(gone);
        }
        do_once(&here.0);
        result.await.map_err(gone)
    }
}

impl<W> Drop for Waiting<W> {
    fn drop(&mut self) {
        drop(take(&self.0));
    }
}

/// Does what nobody else has begun.
fn do_once(work: &Mutex<Option<impl FnOnce()>>) {
    if let Some(work) = take(work) {
        work();
    }
}

/// Takes it, if nobody else has. Whoever finds it locked leaves it to the other of the two: a thread that
/// serves users never waits for one that may not run.
fn take<W>(work: &Mutex<Option<W>>) -> Option<W> {
    work.try_lock().ok()?.take()
}

fn work_off(todo: &Mutex<Receiver<Work>>) {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    // Without it they take their turn with the others, which is as it would be without them.
    if let Err(error) =
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
    {
        debug!(?error, "background threads have an ordinary priority");
    }
    loop {
        let next = lock(todo).recv();
        let Ok(work) = next else { return };
        // A thread that serves users, and is woken while it falls asleep, may lose its core to this one: it
        // has had more than its share (EEVDF; seen on Linux 6.18). The kernel looks again after up to 4 ms,
        // which would be all that waits here.
        thread::yield_now();
        // Its end is what whoever waits for it learns.
        let _panicked = catch_unwind(AssertUnwindSafe(work));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Barrier;

    use tokio::task::JoinSet;

    use super::*;

    const WAIT: Duration = Duration::from_mins(1);

    impl BackgroundPool {
        /// What one of the threads makes of this, however long a busy machine does not run it.
        async fn by_a_thread<T: Send + 'static>(
            &self,
            work: impl FnOnce() -> T + Send + 'static,
        ) -> T {
            let (done, result) = oneshot::channel();
            self.begin(move || drop(done.send(work())));
            timeout(WAIT, result).await.unwrap().unwrap()
        }

        /// Keeps a thread busy until somebody else waits at the barrier, too.
        fn hold(&self) -> Arc<Barrier> {
            let barrier = Arc::new(Barrier::new(2));
            let held = barrier.clone();
            self.begin(move || {
                held.wait();
            });
            barrier
        }

        fn begin(&self, work: impl FnOnce() + Send + 'static) {
            self.works.send(Box::new(work)).unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_done_aside_is_done_by_a_thread_that_gives_way() {
        let background = BackgroundPool::new(2, 8).unwrap();
        let policy = || fs::read_to_string("/proc/thread-self/sched").unwrap();
        let found = background.by_a_thread(policy).await;
        let line = found.lines().find(|line| line.starts_with("policy"));
        // SCHED_IDLE (sched(7)).
        assert!(line.is_some_and(|line| line.ends_with(" 5")), "{line:?}");
        assert_eq!(background.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn whoever_waits_too_long_does_it_itself() {
        let background = BackgroundPool::new(1, 8).unwrap();
        let barrier = background.hold();
        let here = timeout(WAIT, background.run(|| thread::current().id())).await;
        assert_eq!(here.unwrap().unwrap(), thread::current().id());
        thread::spawn(move || barrier.wait());
        let there = background.by_a_thread(|| thread::current().id()).await;
        assert_ne!(there, thread::current().id());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_done_and_holds_nothing() {
        let background = BackgroundPool::new(1, 8).unwrap();
        let (barrier, is_done) = (background.hold(), Arc::new(Mutex::new(false)));
        let done = is_done.clone();
        let given_up = background.run(move || *lock(&done) = true);
        assert!(timeout(Duration::ZERO, given_up).await.is_err());
        assert_eq!(
            Arc::strong_count(&is_done),
            1,
            "the thread has not come to it"
        );
        thread::spawn(move || barrier.wait());
        background.by_a_thread(|| ()).await;
        assert!(!*lock(&is_done));
    }

    #[tokio::test]
    async fn what_finds_no_place_or_no_thread_is_done_at_once() {
        let background = BackgroundPool::new(1, 1).unwrap();
        let barrier = background.hold();
        // In once the thread has taken the first, which it holds.
        background.begin(|| ());
        for background in [&background, &BackgroundPool::new(0, 1).unwrap()] {
            let here = timeout(Duration::ZERO, background.run(|| thread::current().id())).await;
            assert_eq!(here.unwrap().unwrap(), thread::current().id());
        }
        barrier.wait();
    }

    #[tokio::test]
    async fn a_panic_ends_what_panicked_and_no_thread() {
        let background = Arc::new(BackgroundPool::new(1, 8).unwrap());
        let (panics, mut tasks) = (background.clone(), JoinSet::new());
        tasks.spawn(async move { panics.run(|| panic!("as any work may")).await });
        // An error of the work's thread, or of this one where that came too late.
        let ended: Option<Result<io::Result<()>, _>> =
            timeout(WAIT, tasks.join_next()).await.unwrap();
        assert!(!matches!(ended, Some(Ok(Ok(())))));
        background.begin(|| panic!("by a thread for sure"));
        assert_eq!(background.by_a_thread(|| 7).await, 7);
    }
}
