//! Waits between attempts: longer with each, and random, so that many nodes do not come back in one moment.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

const MIN: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn is_first(&self) -> bool {
        self.failures == 0
    }

    /// How long to wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let most = MIN.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures += 1;
        most.mul_f64(fastrand::f64())
    }
}

/// An error with all that caused it.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").expect("a String takes all that is written to it");
        source = error.source();
    }
    text
}
