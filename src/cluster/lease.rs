//! The lease of this node: how long its own key in the table of nodes says that it is alive, and whether its
//! entries were compared since the lease began. No I/O.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The lease. Times are microseconds of the app's clock.
#[derive(Debug, Default)]
pub(super) struct NodeLease {
    since: AtomicU64,
    until: AtomicU64,
    /// Counts the leases of this process: 0 before the first.
    number: AtomicU64,
    is_compared: AtomicBool,
}

impl NodeLease {
    /// The key was written, by a call that began at `begun`. Returns the number of the lease if all entries have to
    /// be compared, because it is a new one.
    pub(super) fn renewed(&self, begun: u64, timeout: u64) -> Option<u64> {
        let lasts = begun < self.until.load(Ordering::Acquire);
        if lasts {
            self.until.store(begun + timeout, Ordering::Release);
            return None;
        }
        self.is_compared.store(false, Ordering::Release);
        self.since.store(begun, Ordering::Release);
        self.until.store(begun + timeout, Ordering::Release);
        Some(self.number.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The key was not as this node has written it: others may have taken this node for dead.
    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
        self.is_compared.store(false, Ordering::Release);
    }

    /// The number of the lease.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// All entries were compared for the lease of this number.
    pub(super) fn compared(&self, number: u64) {
        if self.number.load(Ordering::Acquire) == number {
            self.is_compared.store(true, Ordering::Release);
        }
    }

    /// Whether messages of other nodes are taken.
    pub(super) fn takes(&self, now: u64) -> bool {
        now < self.until.load(Ordering::Acquire) && self.is_compared.load(Ordering::Acquire)
    }

    /// Whether this node can tell a dead node from one whose key was lost with the bucket: each node that lives has
    /// written its key since this lease began.
    pub(super) fn can_judge(&self, now: u64, timeout: u64) -> bool {
        now < self.until.load(Ordering::Acquire)
            && now >= self.since.load(Ordering::Acquire) + timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_from_the_begin_of_its_last_write() {
        let lease = NodeLease::default();
        assert!(!lease.takes(0));
        assert_eq!(lease.renewed(0, 100), Some(1));
        assert!(!lease.takes(1), "its entries were not compared");
        lease.compared(1);
        assert!(lease.takes(99) && !lease.takes(100));
        assert_eq!(lease.renewed(60, 100), None);
        assert!(lease.takes(159) && !lease.takes(160));
        assert!(!lease.can_judge(99, 100) && lease.can_judge(100, 100));
    }

    #[test]
    fn a_lease_that_had_ended_is_another_one() {
        let lease = NodeLease::default();
        lease.renewed(10, 100);
        lease.compared(1);
        assert_eq!(lease.renewed(110, 100), Some(2));
        assert_eq!(lease.number(), 2);
        lease.compared(1);
        assert!(!lease.takes(111), "the comparison was for another lease");
        lease.compared(2);
        assert!(lease.takes(111));
        lease.end();
        assert!(!lease.takes(111) && !lease.can_judge(111, 0));
        assert_eq!(lease.renewed(112, 100), Some(3));
    }
}
