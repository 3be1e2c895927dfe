//! Limits how fast connections are taken from the kernel (`limits.accept_rate`). A socket, a task and their
//! end cost 57 µs of a core for a connection that sends nothing (measured), and they are paid before any
//! other limit can refuse the connection. A connection that waits in the kernel costs the process nothing.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::token_bucket::{Rate, TokenBucket};

/// Limits accepted connections to a rate.
#[derive(Debug)]
pub(crate) struct AcceptLimiter {
    rate: Rate,
    /// Time zero of the bucket.
    epoch: Instant,
    bucket: Mutex<TokenBucket>,
}

impl AcceptLimiter {
    /// Limits to `rate` connections a second.
    pub(crate) fn new(rate: u32) -> Self {
        Self {
            rate: Rate::evenly(rate.into()),
            epoch: Instant::now(),
            bucket: Mutex::default(),
        }
    }

    /// Waits until one more connection may be accepted, and counts it. Returns true if it had to wait.
    pub(crate) async fn acquire(&self) -> bool {
        let mut waited = false;
        while let Err(wait) = self.try_acquire() {
            waited = true;
            sleep(wait).await;
        }
        waited
    }

    /// Counts one connection, or returns how long to wait for it.
    fn try_acquire(&self) -> Result<(), Duration> {
        let now = self.epoch.elapsed();
        let mut bucket = self.bucket.lock();
        if bucket.take(self.rate, 1, now) {
            return Ok(());
        }
        Err(bucket.wait(self.rate, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_are_accepted_evenly_at_the_rate() {
        let accept_limiter = AcceptLimiter::new(500);
        let begin = Instant::now();
        let mut waited = 0;
        for _ in 0..5 {
            waited += u32::from(accept_limiter.acquire().await);
        }
        assert_eq!(
            (waited, begin.elapsed()),
            (0, Duration::ZERO),
            "10 ms' worth"
        );
        for _ in 0..500 {
            waited += u32::from(accept_limiter.acquire().await);
        }
        assert_eq!((waited, begin.elapsed()), (500, Duration::from_secs(1)));
    }
}
