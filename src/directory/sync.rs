//! The cells, the counters and the locks that the directory's threads share, and nothing else. The model
//! checker replaces them by its own, so that it can try every order of their steps. The lock of rare
//! changes is std's, because loom has the same interface; that of a client is the smaller one.

use std::sync::PoisonError;

#[cfg(not(all(test, switchboard_loom)))]
pub(super) use arc_swap::{ArcSwap, ArcSwapOption};
#[cfg(not(all(test, switchboard_loom)))]
pub(super) use parking_lot::{Mutex as ClientMutex, MutexGuard as ClientGuard};
#[cfg(not(all(test, switchboard_loom)))]
pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

#[cfg(all(test, switchboard_loom))]
pub(super) use loom::sync::{
    Mutex, MutexGuard, MutexGuard as ClientGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
#[cfg(all(test, switchboard_loom))]
pub(super) use modelled::{ArcSwap, ArcSwapOption, ClientMutex};

/// Locks. A panic in another holder leaves the data whole, so poisoning is ignored.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `arc_swap`'s cells as the checker sees them. Each operation is one step on the pointer, with the
/// ordering that `arc_swap` promises and no more: a load may find a value that was already replaced,
/// unless the ordering rules that out. `arc_swap`'s own tests check how it keeps a value alive.
#[cfg(all(test, switchboard_loom))]
mod modelled {
    use std::sync::{Arc, Mutex, PoisonError};

    use loom::sync::atomic::{AtomicUsize, Ordering};

    /// A lock with the interface of `parking_lot`.
    #[derive(Debug)]
    pub(in super::super) struct ClientMutex<T>(loom::sync::Mutex<T>);

    impl<T> ClientMutex<T> {
        pub(in super::super) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(in super::super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// All values that the cell ever had, and the index of the current one.
    #[derive(Debug)]
    struct Cell<V> {
        values: Mutex<Vec<V>>,
        at: AtomicUsize,
    }

    impl<V: Clone> Cell<V> {
        fn new(value: V) -> Self {
            Self {
                values: Mutex::new(vec![value]),
                at: AtomicUsize::new(0),
            }
        }

        fn value(&self, at: usize) -> V {
            self.values.lock().expect("no holder panics")[at].clone()
        }

        fn add(&self, value: V) -> usize {
            let mut values = self.values.lock().expect("no holder panics");
            values.push(value);
            values.len() - 1
        }

        fn load(&self) -> V {
            self.value(self.at.load(Ordering::Acquire))
        }

        fn swap(&self, value: V) -> V {
            let at = self.add(value);
            self.value(self.at.swap(at, Ordering::AcqRel))
        }
    }

    #[derive(Debug)]
    pub(in super::super) struct ArcSwap<T>(Cell<Arc<T>>);

    impl<T> ArcSwap<T> {
        pub(in super::super) fn load(&self) -> Arc<T> {
            self.0.load()
        }

        pub(in super::super) fn load_full(&self) -> Arc<T> {
            self.0.load()
        }

        pub(in super::super) fn store(&self, value: Arc<T>) {
            self.0.swap(value);
        }
    }

    impl<T: Default> Default for ArcSwap<T> {
        fn default() -> Self {
            Self(Cell::new(Arc::default()))
        }
    }

    /// A value that a cell's content is compared with.
    pub(in super::super) trait AsPointer<T> {
        fn as_pointer(&self) -> *const T;
    }

    impl<T> AsPointer<T> for Arc<T> {
        fn as_pointer(&self) -> *const T {
            Arc::as_ptr(self)
        }
    }

    impl<T> AsPointer<T> for Option<Arc<T>> {
        fn as_pointer(&self) -> *const T {
            self.as_ref().map_or(std::ptr::null(), Arc::as_ptr)
        }
    }

    #[derive(Debug)]
    pub(in super::super) struct ArcSwapOption<T>(Cell<Option<Arc<T>>>);

    impl<T> ArcSwapOption<T> {
        pub(in super::super) fn empty() -> Self {
            Self(Cell::new(None))
        }

        pub(in super::super) fn load(&self) -> Option<Arc<T>> {
            self.0.load()
        }

        pub(in super::super) fn compare_and_swap(
            &self,
            current: &impl AsPointer<T>,
            new: Option<Arc<T>>,
        ) -> Option<Arc<T>> {
            let Self(cell) = self;
            let new = cell.add(new);
            loop {
                let at = cell.at.load(Ordering::Acquire);
                let found = cell.value(at);
                if found.as_pointer() != current.as_pointer() {
                    return found;
                }
                let done = cell
                    .at
                    .compare_exchange(at, new, Ordering::AcqRel, Ordering::Relaxed);
                if done.is_ok() {
                    return found;
                }
            }
        }
    }
}
