//! A progress bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::number::nanos;

/// How often the bar moves.
const STEP: Duration = Duration::from_millis(100);

const TEMPLATE: &str = "{prefix:>12} [{bar:30}] {elapsed:>4} of about {len} s  {msg}";

/// The bar and its clock.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    begin: Instant,
    next: u64,
}

impl Progress {
    /// A bar for a run of about `expected`. indicatif writes it to stderr, and only to a terminal.
    pub(crate) fn new(expected: Duration) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant");
        let bar = ProgressBar::new(expected.as_secs().max(1)).with_style(style);
        Self {
            bar,
            begin: Instant::now(),
            next: 0,
        }
    }

    /// Shows which scenario is measured from now on.
    pub(crate) fn scenario(&self, name: String) {
        self.bar.set_prefix(name);
    }

    /// Shows which step of the scenario is on.
    pub(crate) fn step(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.set_position(self.begin.elapsed().as_secs());
    }

    /// Moves the bar; `now` is the time of the engine after a turn.
    #[inline]
    pub(crate) fn tick(&mut self, now: u64) {
        if now >= self.next {
            self.next = now + nanos(STEP);
            self.bar.set_position(self.begin.elapsed().as_secs());
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
