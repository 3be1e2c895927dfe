//! Shares the worker threads between users and connections that have not completed an upgrade. All of the
//! latter together get a turn of a few steps between two looks at the sockets, so that a user's message waits
//! for that much of their work and not for hundreds of steps. A future that has to wait stands in a queue here,
//! because in the runtime's queue the sessions of users would stand behind it.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::yield_now;
use tokio::time::Instant;

/// The time of a turn for each worker thread. A step of a handshake takes 10 to 20 µs, and a look at the
/// sockets takes 1 µs where nothing has come (measured): a few steps pay for one look.
const TURN: Duration = Duration::from_micros(50);

/// Admits futures in turns: a cheap handle.
///
/// A turn has a budget of time and begins with as many futures as there are worker threads. Each future that
/// ends its step admits the next one, until the budget is spent. Then the head of the queue yields once to the
/// runtime, which looks at the sockets, and begins the next turn.
///
/// A wake-up that gets lost would stop all handshakes, so this always holds: while futures wait, either
/// at least one is admitted and continues the queue when its step ends or when it is dropped
/// ([`TurnQueue::admit_next`]), or the head is woken and begins the next turn (`is_head_woken`).
#[derive(Clone, Debug)]
pub(crate) struct HandshakeThrottle {
    queue: Arc<Mutex<TurnQueue>>,
}

/// The futures that wait: at most one for each pending connection and each listener.
#[derive(Debug)]
struct TurnQueue {
    /// By number, which is the order of arrival. A map, because a dropped future leaves from the middle. A
    /// waker is stored once, because a task of tokio keeps its waker.
    waiting: BTreeMap<u64, Waker>,
    next_number: u64,
    /// The time that this turn's steps have taken. A step counts when it ends.
    spent: Duration,
    /// The time that a turn's steps may take together.
    budget: Duration,
    /// How many steps run at a time: one for each worker thread.
    parallel: usize,
    /// The head of the queue knows that it begins the next turn, and needs no other wake-up.
    is_head_woken: bool,
}

/// Where a future stands between two polls.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// Not in the queue: the next poll asks for admission.
    Outside,
    /// Waits in the queue, or is admitted if the queue has its number no longer.
    Queued {
        number: u64,
        /// It was the head and has let the runtime look at the sockets since.
        has_yielded: bool,
    },
}

pin_project_lite::pin_project! {
    /// A future that is polled only as the throttle admits it.
    #[derive(Debug)]
    pub(crate) struct Throttled<F> {
        #[pin]
        future: F,
        throttle: HandshakeThrottle,
        position: Position,
    }

    impl<F> PinnedDrop for Throttled<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Position::Queued { number, .. } = *this.position {
                this.throttle.queue.lock().remove_dropped(number);
            }
        }
    }
}

impl HandshakeThrottle {
    /// A throttle for this number of worker threads.
    pub(crate) fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        let queue = TurnQueue {
            waiting: BTreeMap::new(),
            next_number: 0,
            spent: Duration::ZERO,
            budget: TURN * u32::try_from(workers).unwrap_or(u32::MAX),
            parallel: workers,
            is_head_woken: false,
        };
        Self {
            queue: Arc::new(Mutex::new(queue)),
        }
    }

    /// Polls a future only as its turn allows: each poll is a step that waits for admission.
    pub(crate) fn admit<F: Future>(&self, future: F) -> Throttled<F> {
        Throttled {
            future,
            throttle: self.clone(),
            position: Position::Outside,
        }
    }

    /// Ready once the future at `position` may take a step.
    fn poll_admitted(&self, position: &mut Position, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.queue.lock();
        let (number, has_yielded) = match *position {
            Position::Outside if queue.waiting.is_empty() && !queue.is_spent() => {
                return Poll::Ready(());
            }
            Position::Outside => (queue.push(cx.waker().clone()), false),
            // `admit_waiting` has removed the number: the future is admitted.
            Position::Queued { number, .. } if !queue.waiting.contains_key(&number) => {
                *position = Position::Outside;
                return Poll::Ready(());
            }
            Position::Queued {
                number,
                has_yielded,
            } => (number, has_yielded),
        };
        *position = Position::Queued {
            number,
            has_yielded,
        };
        // Before the turn is spent, a step that runs or is about to run admits the next future. Only the
        // head may go on behind that.
        if !queue.is_head(number) || !queue.is_spent() {
            return Poll::Pending;
        }
        // The head is here, so nothing needs to wake it.
        queue.is_head_woken = true;
        if !has_yielded {
            *position = Position::Queued {
                number,
                has_yielded: true,
            };
            drop(queue);
            // The runtime wakes a task that yields only after it has looked at the sockets, so that sessions
            // with something to read run before the next turn. The wake-up outlives this future of one poll.
            let _pending = pin!(yield_now()).poll(cx);
            return Poll::Pending;
        }
        queue.begin_turn(number);
        *position = Position::Outside;
        Poll::Ready(())
    }
}

impl TurnQueue {
    fn is_spent(&self) -> bool {
        self.spent >= self.budget
    }

    fn is_head(&self, number: u64) -> bool {
        self.waiting
            .first_key_value()
            .is_some_and(|(head, _)| *head == number)
    }

    /// Appends a future and returns its number.
    fn push(&mut self, waker: Waker) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.insert(number, waker);
        number
    }

    /// Continues the queue after a step, or in place of a future that was dropped: admits the next future while
    /// the turn lasts, and wakes the head for the next turn otherwise.
    fn admit_next(&mut self) {
        if !self.is_spent() {
            self.admit_waiting(1);
        } else if !self.is_head_woken
            && let Some((_, head)) = self.waiting.first_key_value()
        {
            // Once a turn, however many steps end behind its budget.
            self.is_head_woken = true;
            head.wake_by_ref();
        }
    }

    fn admit_waiting(&mut self, count: usize) {
        for _ in 0..count {
            if let Some((_, waker)) = self.waiting.pop_first() {
                waker.wake();
            }
        }
    }

    /// Begins a turn: the head takes its first step, and the other threads get one each.
    fn begin_turn(&mut self, head: u64) {
        self.waiting.remove(&head);
        self.is_head_woken = false;
        self.spent = Duration::ZERO;
        self.admit_waiting(self.parallel - 1);
    }

    /// Removes a future that is dropped before its step.
    fn remove_dropped(&mut self, number: u64) {
        let was_head = self.is_head(number);
        let was_admitted = self.waiting.remove(&number).is_none();
        // An admitted future would have continued the queue after its step, and the head would have begun
        // the next turn: the next future has to. One from the middle of the queue has no such duty.
        if was_admitted || was_head {
            // If the head is dropped, nothing has woken the new head. Otherwise the head stays as it is.
            self.is_head_woken &= !was_head;
            self.admit_next();
        }
    }
}

impl<F: Future> Future for Throttled<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.throttle.poll_admitted(this.position, cx).is_pending() {
            return Poll::Pending;
        }
        let _step = TimedStep {
            throttle: this.throttle,
            begin: Instant::now(),
        };
        this.future.poll(cx)
    }
}

/// A step that runs. Drop ends it, after a panic too, and continues the queue.
struct TimedStep<'a> {
    throttle: &'a HandshakeThrottle,
    begin: Instant,
}

impl Drop for TimedStep<'_> {
    fn drop(&mut self) {
        let mut queue = self.throttle.queue.lock();
        queue.spent += self.begin.elapsed();
        queue.admit_next();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use tokio::io::AsyncReadExt as _;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::lifecycle::Shutdown;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Keeps the thread busy for so long.
    fn work(time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    type Log = Arc<Mutex<Vec<&'static str>>>;

    /// A session that waits for its socket. Returns the other end of the socket.
    async fn user(tasks: &mut JoinSet<()>, log: &Log) -> UnixStream {
        let (writer, reader) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut reader = tokio::net::UnixStream::from_std(reader).unwrap();
        let log = log.clone();
        tasks.spawn(async move {
            let mut message = [0];
            reader.read_exact(&mut message).await.unwrap();
            log.lock().push("user");
        });
        yield_now().await;
        writer
    }

    #[tokio::test]
    async fn a_user_waits_for_one_step_of_many_handshakes() {
        let (log, throttle) = (Log::default(), HandshakeThrottle::new(1));
        let mut tasks = JoinSet::new();
        let mut writer = user(&mut tasks, &log).await;
        // More than the runtime's local queue holds, where the user's session would wait behind them.
        for _ in 0..400 {
            let log = log.clone();
            tasks.spawn(throttle.admit(async move {
                work(TURN);
                log.lock().push("handshake");
            }));
        }
        writer.write_all(b"x").unwrap();
        timeout(PATIENCE, tasks.join_all()).await.unwrap();
        let log = log.lock();
        let before = log.iter().position(|task| *task == "user").unwrap();
        assert!(before <= 1, "{before} handshakes ran before the user");
        assert_eq!(log.len(), 401);
        assert!(throttle.queue.lock().waiting.is_empty());
    }

    /// How often each of 50 futures was admitted that always ask again, after 1,000 times in all.
    async fn admissions(throttle: &HandshakeThrottle) -> [u32; 50] {
        let counts = Arc::new(Mutex::new([0; 50]));
        let mut tasks = JoinSet::new();
        for number in 0..50 {
            let (throttle, counts) = (throttle.clone(), counts.clone());
            tasks.spawn(async move {
                loop {
                    // A new future each time, as a listener does that always has more to accept.
                    let done = throttle.admit(async {
                        // Some are admitted by the beginning of a turn, some by the step before theirs.
                        work(TURN / 4);
                        let mut counts = counts.lock();
                        counts[number] += 1;
                        counts.iter().sum::<u32>() >= 1000
                    });
                    if done.await {
                        return;
                    }
                }
            });
        }
        timeout(PATIENCE, tasks.join_all()).await.unwrap();
        assert!(throttle.queue.lock().waiting.is_empty());
        *counts.lock()
    }

    #[tokio::test]
    async fn waiting_futures_are_admitted_in_order() {
        let counts = admissions(&HandshakeThrottle::new(1)).await;
        // The first has a turn alone, before the others are spawned.
        let mut others = counts.iter().skip(1);
        assert!(others.all(|count| (19..=22).contains(count)), "{counts:?}");
    }

    // The order is not exact here: when the machine stops a thread, the future on that thread falls behind.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_waiting_future_is_admitted_by_two_threads() {
        let counts = admissions(&HandshakeThrottle::new(2)).await;
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }

    #[tokio::test]
    async fn a_dropped_or_panicking_future_does_not_stop_the_queue() {
        let (throttle, tasks) = (HandshakeThrottle::new(1), Shutdown::new());
        let polled = |future: Pin<&mut Throttled<_>>| {
            let mut cx = Context::from_waker(Waker::noop());
            future.poll(&mut cx).is_ready()
        };
        let begin = || Box::pin(throttle.admit(async { work(TURN) }));
        assert!(polled(begin().as_mut()), "the queue is empty");
        // The first is dropped before its turn, and the third after it was admitted.
        let mut first = begin();
        assert!(!polled(first.as_mut()));
        let second = tasks.spawn(throttle.admit(async {}));
        let mut third = begin();
        yield_now().await;
        assert!(!polled(third.as_mut()));
        let fourth = tasks.spawn(throttle.admit(async { panic!("as any task may") }));
        let last = tasks.spawn(throttle.admit(async {}));
        drop(first);
        timeout(PATIENCE, second).await.unwrap().unwrap();
        let Position::Queued { number, .. } = third.position else {
            panic!("the third was not polled since it was admitted");
        };
        assert!(!throttle.queue.lock().waiting.contains_key(&number));
        drop(third);
        let fourth = timeout(PATIENCE, fourth).await.unwrap();
        assert!(fourth.unwrap_err().is_panic());
        timeout(PATIENCE, last).await.unwrap().unwrap();
        assert!(throttle.queue.lock().waiting.is_empty());
    }
}
