//! Compares all entries of this node with the table, a number of them at a time.

use super::{Action, Registry, WINDOW};
use crate::identity::UserId;

impl Registry {
    /// All entries are to be compared with the table, because the lease of this number begins.
    pub(in crate::cluster) fn compare(&mut self, lease: u64, now: u64) {
        for work in self.procedures.values_mut() {
            work.is_compared = false;
        }
        self.comparing = 0;
        self.to_compare = self.holders.keys().copied().collect();
        self.compared_for = Some(lease);
        self.go_on_comparing(now);
    }

    pub(super) fn go_on_comparing(&mut self, now: u64) {
        while self.comparing < WINDOW
            && let Some(id) = self.to_compare.pop()
        {
            if self.holders.contains_key(&id) {
                let work = self.procedures.entry(id).or_default();
                (work.read, work.renew, work.is_compared) = (true, true, true);
                self.comparing += 1;
                self.step(id, now);
            }
        }
        if self.comparing == 0
            && let Some(lease) = self.compared_for.take()
        {
            self.has_compared = true;
            self.actions.push_back(Action::Compared(lease));
        }
    }

    /// Counts an id as compared if it was: it is lost, or as the table has it.
    pub(super) fn end_comparison(&mut self, id: UserId) {
        let Some(work) = self.procedures.get_mut(&id) else {
            return;
        };
        let is_settled = !work.read && !work.renew && work.call.is_none();
        let is_over = is_settled || !self.holders.contains_key(&id);
        if is_over && std::mem::take(&mut work.is_compared) {
            self.comparing -= 1;
        }
    }
}
