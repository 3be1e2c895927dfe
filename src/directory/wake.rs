//! Waking sessions and tasks: wakers that wait for the end of a step, and one that many notify.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

/// Wakers to call at the end of a step, so that a woken task finds all that the step brought. They
/// are called on Drop too, so that a panic in the step leaves no task asleep.
#[derive(Debug, Default)]
pub struct Wakes(Vec<Waker>);

impl Wakes {
    pub(crate) fn add(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }

    /// Calls all wakers and keeps the allocation for the next step.
    pub fn wake(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.wake();
    }
}

/// Wakes one task. Notifications that arrive before the task looks count as one.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    notified: AtomicBool,
    waker: AtomicWaker,
}

impl Notifier {
    /// Notifies. Returns the waker to call if the task waits and this is the first notification.
    #[must_use]
    pub(crate) fn notify(&self) -> Option<Waker> {
        if self.notified.swap(true, Ordering::AcqRel) {
            None
        } else {
            self.waker.take()
        }
    }

    /// Waits for a notification since the last call that was ready.
    pub(crate) fn poll_notified(&self, cx: &Context<'_>) -> Poll<()> {
        // The waker is registered before the flag is read. In the other order a notification between
        // the two would find no waker, and the task would sleep through it.
        self.waker.register(cx.waker());
        if self.notified.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
