//! Who somebody is: `UserId` and where ids come from. Parses once, at the edge; must not know of
//! sockets, JSON or settings.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// A user's id: 1 to 2^53 - 1, so that every JSON reader holds it exactly (RFC 8259 section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(NonZeroU64);

impl UserId {
    /// The largest id, 2^53 - 1.
    pub const MAX: u64 = (1 << 53) - 1;

    /// The id of that number, or nothing where it is 0 or over [`UserId::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number)
            .filter(|number| number.get() <= Self::MAX)
            .map(Self)
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserId({})", self.0)
    }
}

/// The node's own sequence of ids: 1, 2, 3, …, never the same twice while the process lives.
#[derive(Debug)]
pub struct Sequence(AtomicU64);

impl Sequence {
    /// A sequence whose first id is 1.
    pub fn new() -> Self {
        Self(AtomicU64::new(1))
    }

    /// The next id; nothing once all 2^53 - 1 are spent.
    pub fn next(&self) -> Option<UserId> {
        UserId::new(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for Sequence {
    fn default() -> Self {
        Self::new()
    }
}
