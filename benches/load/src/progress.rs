//! A progress bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::number::nanos;

/// How often the bar moves.
const STEP: Duration = Duration::from_millis(100);

const TEMPLATE: &str = "{prefix:>12} [{bar:30}] {elapsed:>4} of about {len} s  {msg}";

/// How far a run is.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    begin: Instant,
    next: u64,
}

impl Progress {
    /// A bar for about `expected`; on stderr, and only if that is a terminal.
    pub(super) fn new(expected: Duration) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).expect("a template that holds");
        let bar = ProgressBar::new(expected.as_secs().max(1)).with_style(style);
        Self {
            bar,
            begin: Instant::now(),
            next: 0,
        }
    }

    /// What is measured from now on.
    pub(super) fn scenario(&self, name: String) {
        self.bar.set_prefix(name);
    }

    /// What happens from now on.
    pub(super) fn step(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.set_position(self.begin.elapsed().as_secs());
    }

    /// The engine has turned; its time.
    #[inline]
    pub(super) fn tick(&mut self, now: u64) {
        if now >= self.next {
            self.next = now + nanos(STEP);
            self.bar.set_position(self.begin.elapsed().as_secs());
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
