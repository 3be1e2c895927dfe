//! Token buckets: limits on how often something may happen, each as small as a number. Must not know what is
//! counted.

use std::time::Duration;

/// The burst of [`Rate::per_second`], in seconds of the rate.
const BURST_SECONDS: u64 = 2;

const SECOND_NS: u64 = 1_000_000_000;

/// A number of tokens per time, and the number that may be taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u64,
    per_ns: u64,
    burst: u64,
}

impl Rate {
    /// `count` tokens a second, and a burst of two seconds of them, but at least `burst`.
    pub fn per_second(count: u64, burst: u64) -> Self {
        Self {
            count,
            per_ns: SECOND_NS,
            burst: burst.max(count.saturating_mul(BURST_SECONDS)),
        }
    }

    /// `count` tokens a second, and a burst of a hundredth of them, but at least one.
    pub fn evenly(count: u64) -> Self {
        Self {
            count,
            per_ns: SECOND_NS,
            burst: (count / 100).max(1),
        }
    }

    /// `count` tokens a minute, and a burst of as many.
    pub fn per_minute(count: u64) -> Self {
        Self {
            count,
            per_ns: 60 * SECOND_NS,
            burst: count,
        }
    }

    /// How long the rate takes to give `count` tokens, nanoseconds.
    fn nanos_for(self, count: u64) -> u64 {
        let ns = u128::from(count) * u128::from(self.per_ns) / u128::from(self.count.max(1));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

/// What is used of a [`Rate`]: the time at which the bucket will be full again, nanoseconds. All times are of one
/// clock that begins at zero, where a new bucket is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBucket(u64);

impl TokenBucket {
    /// Takes `count` tokens if the bucket has them. Returns whether it did.
    pub fn take(&mut self, rate: Rate, count: u64, now: Duration) -> bool {
        let now = nanos(now);
        let full_at = self.0.max(now).saturating_add(rate.nanos_for(count));
        let within = full_at - now <= rate.nanos_for(rate.burst);
        if within {
            self.0 = full_at;
        }
        within
    }

    /// Takes `count` tokens even if the bucket does not have them, and owes the rest. Returns whether it owes at
    /// most a burst. It never owes more, so that a peer that stops may soon go on.
    pub fn owe(&mut self, rate: Rate, count: u64, now: Duration) -> bool {
        let now = nanos(now);
        let full_at = self.0.max(now).saturating_add(rate.nanos_for(count));
        let latest = now.saturating_add(rate.nanos_for(rate.burst).saturating_mul(2));
        self.0 = full_at.min(latest);
        full_at <= latest
    }

    /// How long it takes until the bucket has a token; zero if it has one.
    pub fn wait(&self, rate: Rate, now: Duration) -> Duration {
        let full_at = self.0.saturating_add(rate.nanos_for(1));
        let allowed = nanos(now).saturating_add(rate.nanos_for(rate.burst));
        Duration::from_nanos(full_at.saturating_sub(allowed))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_bucket_gives_a_burst_and_then_the_rate() {
        let rate = Rate::per_second(10, 0);
        let mut bucket = TokenBucket::default();
        let mut taken = |at| (0..100).filter(|_| bucket.take(rate, 1, at)).count();
        assert_eq!(taken(ms(5000)), 20);
        assert_eq!(taken(ms(5000)), 0);
        assert_eq!(taken(ms(5099)), 0);
        assert_eq!(taken(ms(5100)), 1);
        assert_eq!(taken(ms(5600)), 5);
        assert_eq!(taken(ms(60_000)), 20, "no more than a burst is saved");
        assert_eq!(bucket.wait(rate, ms(60_000)), ms(100));
        assert_eq!(bucket.wait(rate, ms(60_070)), ms(30));
        assert_eq!(bucket.wait(rate, ms(60_100)), Duration::ZERO);
    }

    #[test]
    fn a_bucket_owes_at_most_a_burst() {
        let rate = Rate::per_second(10, 0);
        let mut bucket = TokenBucket::default();
        assert!(bucket.owe(rate, 20, ms(1000)));
        assert!(!bucket.take(rate, 1, ms(1000)));
        assert!(bucket.owe(rate, 20, ms(1000)));
        assert!(!bucket.owe(rate, 1, ms(1000)));
        assert!(!bucket.owe(rate, u64::MAX, ms(1000)));
        assert_eq!(bucket.wait(rate, ms(1000)), ms(2100));
    }

    #[test]
    fn a_burst_is_at_least_the_given_one() {
        let mut bucket = TokenBucket::default();
        let rate = Rate::per_second(1000, 65_536);
        assert!(bucket.take(rate, 65_536, ms(0)));
        assert!(!bucket.take(rate, 1, ms(0)));
        let mut bucket = TokenBucket::default();
        let rate = Rate::per_minute(3);
        let taken = (0..10).filter(|_| bucket.take(rate, 1, ms(0))).count();
        assert_eq!(
            (taken, bucket.wait(rate, ms(0))),
            (3, Duration::from_secs(20))
        );
    }

    proptest! {
        #[test]
        fn no_more_is_taken_than_a_burst_and_the_rate_give(
            count in 1..10_000_u64,
            asked in prop::collection::vec((0..3_000_u64, 1..20_000_u64), 1..50),
        ) {
            let rate = Rate::per_second(count, 0);
            let (mut bucket, mut now, mut taken) = (TokenBucket::default(), 0, 0);
            for (step, asked) in asked {
                now += step;
                if bucket.take(rate, asked, ms(now)) {
                    taken += asked;
                }
                prop_assert!(taken <= 2 * count + count * now / 1000 + 1);
                prop_assert!(bucket.wait(rate, ms(now)) <= ms(1000));
            }
        }
    }
}
