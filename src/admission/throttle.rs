//! The time that connections may take which are nobody's yet: a little between two looks at the
//! sockets, however many of them have something to say. A user's message waits for that much of heads,
//! handshakes and refusals, and not for hundreds of them. Who has to wait stands in a line here and not
//! in the runtime's queue, where users' sessions would stand behind it.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;

/// What they may take of a worker thread in a turn. A step of a handshake takes 10 to 20 us, so that a
/// look at the sockets, which takes 1 us where nothing has come, is paid for by a few of them.
const TURN: Duration = Duration::from_micros(50);

/// The way in: a cheap handle.
#[derive(Clone, Debug)]
pub struct HandshakeThrottle {
    line: Arc<Mutex<Line>>,
}

/// Who waits: no more than there are connections that are not users, and listeners.
#[derive(Debug)]
struct Line {
    /// By the order in which they came.
    waiting: BTreeMap<u64, Waker>,
    came: u64,
    /// What was taken of the turn.
    spent: Duration,
    /// What may be.
    turn: Duration,
    /// How many go in at a time: one for each worker thread.
    abreast: usize,
    /// The first in the line knows that it is to begin the next turn.
    is_first_told: bool,
}

pin_project_lite::pin_project! {
    /// A future that goes on when the throttle admits it.
    #[derive(Debug)]
    pub(crate) struct Throttled<F> {
        #[pin]
        future: F,
        throttle: HandshakeThrottle,
        // Its number in the line, from when it waits until it goes on.
        number: Option<u64>,
        // It has been the first, and the sockets have been looked at since.
        is_back: bool,
    }

    impl<F> PinnedDrop for Throttled<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(number) = this.number.take() {
                this.throttle.line().leave(number);
            }
        }
    }
}

impl HandshakeThrottle {
    /// A throttle for so many worker threads.
    pub fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        let line = Line {
            waiting: BTreeMap::new(),
            came: 0,
            spent: Duration::ZERO,
            turn: TURN * u32::try_from(workers).unwrap_or(u32::MAX),
            abreast: workers,
            is_first_told: false,
        };
        Self {
            line: Arc::new(Mutex::new(line)),
        }
    }

    /// Lets a future run only as the throttle admits it.
    pub(crate) fn admit<F: Future>(&self, future: F) -> Throttled<F> {
        Throttled {
            future,
            throttle: self.clone(),
            number: None,
            is_back: false,
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn is_over(&self) -> bool {
        self.spent >= self.turn
    }

    fn is_first(&self, number: u64) -> bool {
        self.waiting
            .first_key_value()
            .is_some_and(|(first, _)| *first == number)
    }

    /// Goes on with those who wait, once somebody has gone in or given up.
    fn go_on(&mut self) {
        if !self.is_over() {
            self.let_in(1);
        } else if !self.is_first_told
            && let Some((_, first)) = self.waiting.first_key_value()
        {
            self.is_first_told = true;
            first.wake_by_ref();
        }
    }

    fn let_in(&mut self, count: usize) {
        for _ in 0..count {
            if let Some((_, waker)) = self.waiting.pop_first() {
                waker.wake();
            }
        }
    }

    /// The first begins a turn.
    fn begin_turn(&mut self, first: u64) {
        self.waiting.remove(&first);
        self.is_first_told = false;
        self.spent = Duration::ZERO;
        self.let_in(self.abreast - 1);
    }

    /// Somebody gives up before it went in.
    fn leave(&mut self, number: u64) {
        let was_first = self.is_first(number);
        let waited = self.waiting.remove(&number).is_some();
        // Whom nobody waits for changes nothing.
        if !waited || was_first {
            self.is_first_told &= !was_first;
            self.go_on();
        }
    }
}

impl<F: Future> Future for Throttled<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut line = this.throttle.line();
        let number = match *this.number {
            None if line.waiting.is_empty() && !line.is_over() => None,
            None => {
                let number = line.came;
                line.came += 1;
                line.waiting.insert(number, cx.waker().clone());
                *this.number = Some(number);
                Some(number)
            }
            Some(number) if line.waiting.contains_key(&number) => Some(number),
            Some(_) => None,
        };
        if let Some(number) = number {
            if !line.is_first(number) || !line.is_over() {
                return Poll::Pending;
            }
            line.is_first_told = true;
            if !std::mem::replace(this.is_back, true) {
                drop(line);
                // Comes back behind a look at the sockets.
                let _pending = pin!(yield_now()).poll(cx);
                return Poll::Pending;
            }
            line.begin_turn(number);
        }
        drop(line);
        *this.number = None;
        *this.is_back = false;
        let _visit = Visit {
            throttle: this.throttle,
            begin: Instant::now(),
        };
        this.future.poll(cx)
    }
}

/// Somebody who has gone in, until it is out again, by a panic too.
struct Visit<'a> {
    throttle: &'a HandshakeThrottle,
    begin: Instant,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut line = self.throttle.line();
        line.spent += self.begin.elapsed();
        line.go_on();
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

    /// Takes that long.
    fn work(time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    type Log = Arc<Mutex<Vec<&'static str>>>;

    /// A user who waits for its socket, and what wakes it.
    async fn user(tasks: &mut JoinSet<()>, log: &Log) -> UnixStream {
        let (writer, reader) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut reader = tokio::net::UnixStream::from_std(reader).unwrap();
        let log = log.clone();
        tasks.spawn(async move {
            let mut message = [0];
            reader.read_exact(&mut message).await.unwrap();
            log.lock().unwrap().push("user");
        });
        yield_now().await;
        writer
    }

    #[tokio::test]
    async fn a_user_waits_for_one_of_a_crowd() {
        let (log, throttle) = (Log::default(), HandshakeThrottle::new(1));
        let mut tasks = JoinSet::new();
        let mut writer = user(&mut tasks, &log).await;
        // More than the runtime's own queue holds, in which nobody is to wait behind them.
        for _ in 0..400 {
            let log = log.clone();
            tasks.spawn(throttle.admit(async move {
                work(TURN);
                log.lock().unwrap().push("stranger");
            }));
        }
        writer.write_all(b"x").unwrap();
        timeout(PATIENCE, tasks.join_all()).await.unwrap();
        let log = log.lock().unwrap();
        let before = log.iter().position(|who| *who == "user").unwrap();
        assert!(before <= 1, "{before} went in before the user");
        assert_eq!(log.len(), 401);
        assert!(throttle.line().waiting.is_empty());
    }

    /// How often each of a few came in who always want to, once that was 1,000 times in all.
    async fn come_again(throttle: &HandshakeThrottle) -> [u32; 50] {
        let counts = Arc::new(Mutex::new([0; 50]));
        let mut tasks = JoinSet::new();
        for number in 0..50 {
            let (throttle, counts) = (throttle.clone(), counts.clone());
            tasks.spawn(async move {
                loop {
                    // Each time anew, as a listener does that always has more to accept.
                    let done = throttle.admit(async {
                        // Some go in by a turn's beginning, and some by the one before them.
                        work(TURN / 4);
                        let mut counts = counts.lock().unwrap();
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
        assert!(throttle.line().waiting.is_empty());
        *counts.lock().unwrap()
    }

    #[tokio::test]
    async fn whoever_waits_goes_in_by_order() {
        let counts = come_again(&HandshakeThrottle::new(1)).await;
        // The first has a turn for itself, before the others are there.
        let mut others = counts.iter().skip(1);
        assert!(others.all(|count| (19..=22).contains(count)), "{counts:?}");
    }

    // A thread that the machine stops takes its task out of the order, and no other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_waits_goes_in_by_two_threads() {
        let counts = come_again(&HandshakeThrottle::new(2)).await;
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }

    #[tokio::test]
    async fn whoever_gives_up_or_panics_holds_up_nobody() {
        let (throttle, tasks) = (HandshakeThrottle::new(1), Shutdown::new());
        let polled = |future: Pin<&mut Throttled<_>>| {
            let mut cx = Context::from_waker(Waker::noop());
            future.poll(&mut cx).is_ready()
        };
        let enter = || Box::pin(throttle.admit(async { work(TURN) }));
        assert!(polled(enter().as_mut()), "nobody is there");
        // The first gives up before its turn, and the next one after it was let in.
        let mut first = enter();
        assert!(!polled(first.as_mut()));
        let second = tasks.spawn(throttle.admit(async {}));
        let mut third = enter();
        yield_now().await;
        assert!(!polled(third.as_mut()));
        let fourth = tasks.spawn(throttle.admit(async { panic!("as any task may") }));
        let last = tasks.spawn(throttle.admit(async {}));
        drop(first);
        timeout(PATIENCE, second).await.unwrap().unwrap();
        assert!(!throttle.line().waiting.contains_key(&third.number.unwrap()));
        drop(third);
        let fourth = timeout(PATIENCE, fourth).await.unwrap();
        assert!(fourth.unwrap_err().is_panic());
        timeout(PATIENCE, last).await.unwrap().unwrap();
        assert!(throttle.line().waiting.is_empty());
    }
}
