//! Time as a session counts it, and the one timer of a session. Must not know what a deadline is for.

use std::pin::{Pin, pin};
use std::task::Context;
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep};

/// The deadline of something that is not due. Deadlines are microseconds of the app's clock.
pub(super) const NEVER: u64 = u64::MAX;

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The instant at `micros` microseconds after `epoch`.
fn instant(epoch: Instant, micros: u64) -> Instant {
    // 2^52 µs are 142 years: beyond any setting, and below an overflow of `Instant`.
    epoch + Duration::from_micros(micros.min(1 << 52))
}

pin_project_lite::pin_project! {
    /// Wakes a session at its next deadline.
    pub(super) struct Timer {
        #[pin]
        sleep: Sleep,
        // When the timer fires; `NEVER` when it has fired.
        armed: u64,
    }
}

impl Timer {
    /// Creates a timer that is not armed. Needs a runtime.
    pub(super) fn new() -> Self {
        Self {
            sleep: tokio::time::sleep(Duration::ZERO),
            armed: NEVER,
        }
    }

    /// Returns true once after the armed time has passed. The session then does what is due and arms
    /// the timer again.
    pub(super) fn has_fired(self: Pin<&mut Self>, now: u64) -> bool {
        let armed = self.project().armed;
        let has_fired = now >= *armed;
        if has_fired {
            *armed = NEVER;
        }
        has_fired
    }

    /// Makes sure that the task wakes at `next` or earlier.
    ///
    /// Resets the timer only for an earlier time, because a reset costs more than a needless turn: a
    /// deadline that moved to a later time is noticed when the timer fires.
    pub(super) fn arm(self: Pin<&mut Self>, next: u64, epoch: Instant, cx: &mut Context<'_>) {
        let this = self.project();
        if next >= *this.armed {
            return;
        }
        *this.armed = next;
        let mut sleep = this.sleep;
        sleep.as_mut().reset(instant(epoch, next));
        // Polled outside of the task's budget: with the budget used up, `Sleep` would return pending
        // without storing the waker, and the deadline would pass unnoticed.
        if pin!(unconstrained(sleep)).poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}
