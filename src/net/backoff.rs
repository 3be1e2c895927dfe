//! Waits between attempts: longer with each, and random, so that many programs do not come back in one moment.

use std::time::Duration;

/// The waits of one program.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of up to `min` after the first failure, and twice that after each further one, up to `max`.
    pub(crate) const fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            failures: 0,
        }
    }

    /// Whether nothing has failed since the last success.
    pub(crate) fn is_first(&self) -> bool {
        self.failures == 0
    }

    /// How long to wait after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let limit = self.min.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        limit.min(self.max).mul_f64(fastrand::f64())
    }

    /// An attempt was a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_wait_doubles_until_a_success() {
        let [min, max] = [100, 5000].map(Duration::from_millis);
        let mut backoff = Backoff::new(min, max);
        let mut limits = (0..100).map(|failures| min * (1 << failures.min(6)));
        assert!(backoff.is_first());
        assert!(limits.all(|limit| backoff.next() <= limit.min(max)));
        assert!(!backoff.is_first());
        let longest = (0..1000).map(|_| backoff.next()).max().unwrap();
        assert!(longest > max.mul_f64(0.9) && longest <= max, "{longest:?}");
        backoff.reset();
        assert!(backoff.is_first() && backoff.next() <= min);
    }
}
