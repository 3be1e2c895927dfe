//! How fast connections are taken from the kernel. A socket and a task and their end are paid for before
//! anybody can be refused anything, 57 us of a core for one that never speaks (measured); whoever waits
//! in the kernel costs the users here nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::admission::token_bucket::{Bucket, Rate};

/// What bounds the connections that are accepted, by `limits.accept_rate`.
#[derive(Debug)]
pub struct AcceptLimiter {
    rate: Rate,
    /// Time zero of the bucket.
    epoch: Instant,
    bucket: Mutex<Bucket>,
}

impl AcceptLimiter {
    /// So many connections a second.
    pub fn new(rate: u32) -> Self {
        Self {
            rate: Rate::evenly(rate.into()),
            epoch: Instant::now(),
            bucket: Mutex::default(),
        }
    }

    /// Completes when one more may be accepted, and counts it. Whether it had to wait for that.
    pub(crate) async fn one_more(&self) -> bool {
        let mut waited = false;
        while let Some(wait) = self.take() {
            waited = true;
            sleep(wait).await;
        }
        waited
    }

    /// Takes one, or says how long to wait for it.
    fn take(&self) -> Option<Duration> {
        let now = self.epoch.elapsed();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.take(self.rate, 1, now) {
            return None;
        }
        Some(bucket.wait(self.rate, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_are_taken_at_their_rate_and_one_by_one() {
        let accept_limiter = AcceptLimiter::new(500);
        let begin = Instant::now();
        let mut waited = 0;
        for _ in 0..5 {
            waited += u32::from(accept_limiter.one_more().await);
        }
        assert_eq!(
            (waited, begin.elapsed()),
            (0, Duration::ZERO),
            "10 ms' worth"
        );
        for _ in 0..500 {
            waited += u32::from(accept_limiter.one_more().await);
        }
        assert_eq!((waited, begin.elapsed()), (500, Duration::from_secs(1)));
    }
}
