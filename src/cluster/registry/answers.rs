//! The steps of a procedure, and what an answer of the bucket changes.

use super::{
    Action, Call, CallTurn, Check, Holder, Known, Loss, Next, Notice, RETRY, Refusal, Registry,
    WINDOW,
};
use crate::cluster::nats::{BucketFailure, Entry, Revision, WriteFailure};
use crate::cluster::record::Record;
use crate::identity::UserId;

impl Registry {
    /// Does what comes next for an id, until there is a call to wait for, or nothing.
    pub(super) fn step(&mut self, id: UserId, now: u64) {
        while self.is_up && self.procedures.contains_key(&id) {
            self.end_comparison(id);
            let work = &self.procedures[&id];
            let next = work.next(self.node, self.holders.get(&id), now);
            match next {
                Next::Wait => return,
                Next::Done => {
                    self.procedures.remove(&id);
                    return;
                }
                Next::Read | Next::Write(..) if self.must_queue(id) => return,
                Next::Read => return self.call(id, Call::Read, Action::Read(id)),
                Next::Write(call, known) => return self.write(id, call, known),
                Next::Confirm(revision) => self.confirm(id, revision, now),
                Next::Lose(to) => self.lose(id, to),
                Next::AnswerChecks => self.answer_checks(id),
                Next::Accept => self.answer_join(id, Ok(())),
                Next::Refuse(why) => self.answer_join(id, Err(why)),
            }
        }
    }

    /// Lets a call wait that no user waits for, while [`WINDOW`] of these are under way: thousands of users may leave at
    /// once, and their calls together would take longer than `cluster.link_timeout`.
    fn must_queue(&mut self, id: UserId) -> bool {
        let work = self.procedures.get_mut(&id).expect("it steps");
        if self.turns_taken < WINDOW || work.is_awaited() {
            return false;
        }
        if std::mem::replace(&mut work.turn, CallTurn::Queued) != CallTurn::Queued {
            self.queued.push_back(id);
        }
        true
    }

    /// Ends a call, which was answered.
    fn answered(&mut self, id: UserId) -> Option<Call> {
        let work = self.procedures.get_mut(&id)?;
        if work.turn == CallTurn::Taken {
            work.turn = CallTurn::Free;
            self.turns_taken -= 1;
        }
        work.call.take()
    }

    /// Goes on behind an answer: with this id, and with what waits.
    fn go_on(&mut self, id: UserId, now: u64) {
        self.step(id, now);
        while self.turns_taken < WINDOW
            && let Some(id) = self.queued.pop_front()
        {
            if let Some(work) = self.procedures.get_mut(&id)
                && work.turn == CallTurn::Queued
            {
                work.turn = CallTurn::Free;
                self.step(id, now);
            }
        }
        self.go_on_comparing(now);
    }

    fn call(&mut self, id: UserId, call: Call, action: Action) {
        let work = self.procedures.get_mut(&id).expect("it steps");
        work.call = Some(call);
        if !work.is_awaited() {
            work.turn = CallTurn::Taken;
            self.turns_taken += 1;
        }
        match call {
            Call::Read => work.read = false,
            Call::Renew => work.renew = false,
            Call::Join(_) | Call::Rewrite | Call::Delete => {}
        }
        self.actions.push_back(action);
    }

    fn write(&mut self, id: UserId, call: Call, known: Known) {
        let node = self.node;
        let work = self.procedures.get_mut(&id).expect("it steps");
        let record = match call {
            Call::Read | Call::Delete => None,
            Call::Rewrite => known.record,
            Call::Renew => self.holders.get(&id).map(|holder| holder.record(node)),
            Call::Join(nonce) => work.joins.front().map(|join| Record {
                node,
                nonce,
                resumption_id: join.resumption_id,
                arrival: None,
            }),
        };
        if matches!(call, Call::Renew | Call::Join(_)) {
            let other = known.record.map(|record| record.node);
            let other = other.filter(|other| *other != node);
            work.displaced = other.map(|other| (other, known.revision));
        }
        let value = record.map(|record| record.encode());
        self.call(id, call, Action::Write(id, value, known.revision));
    }

    /// The entry of an id was read.
    pub(in crate::cluster) fn read(
        &mut self,
        id: UserId,
        answer: Result<Entry, BucketFailure>,
        now: u64,
    ) {
        if self.answered(id) != Some(Call::Read) {
            return;
        }
        let work = self.procedures.get_mut(&id).expect("it was called");
        if let Ok(Entry { value, revision }) = answer {
            let record = value.and_then(|value| Record::decode(&value));
            work.known = Some(Known { revision, record });
            if let Some(holder) = self.holders.get_mut(&id)
                && record
                    .is_some_and(|record| record.node == self.node && record.nonce == holder.nonce)
            {
                holder.revision = revision;
            }
        } else {
            work.read = true;
            work.wait_until = now + RETRY;
        }
        self.go_on(id, now);
    }

    /// The entry of an id was written, or was not.
    pub(in crate::cluster) fn wrote(
        &mut self,
        id: UserId,
        answer: Result<Revision, WriteFailure>,
        now: u64,
    ) {
        let Some(call) = self.answered(id) else {
            return;
        };
        match answer {
            Ok(revision) => self.written(id, call, revision, now),
            Err(failure) => self.not_written(id, call, &failure, now),
        }
        self.go_on(id, now);
    }

    fn written(&mut self, id: UserId, call: Call, revision: Revision, now: u64) {
        let work = self.procedures.get_mut(&id).expect("it was called");
        work.conflicts = 0;
        match call {
            Call::Read => {}
            Call::Delete => {
                work.known = Some(Known {
                    revision,
                    record: None,
                });
            }
            Call::Rewrite => {
                work.unsure = None;
                work.known = None;
                work.read = true;
            }
            Call::Join(nonce) => {
                if work.joins.front().is_some_and(|join| join.nonce == nonce) {
                    self.confirm(id, revision, now);
                } else {
                    // It was given up meanwhile.
                    work.read = true;
                    work.tell_displaced(now);
                }
            }
            Call::Renew => {
                work.tell_displaced(now);
                let renew_at = now + self.bounds.renew_after;
                let Some(holder) = self.holders.get_mut(&id) else {
                    // It has left meanwhile.
                    work.read = true;
                    return;
                };
                (holder.revision, holder.renew_at) = (revision, renew_at);
                work.known = Some(holder.known(self.node));
                self.renewals.push_back((renew_at, id));
            }
        }
    }

    fn not_written(&mut self, id: UserId, call: Call, failure: &WriteFailure, now: u64) {
        let work = self.procedures.get_mut(&id).expect("it was called");
        let is_conflict = *failure == WriteFailure::Conflict;
        let is_unknown = *failure == WriteFailure::Failed(BucketFailure::Unknown);
        if is_unknown {
            // It may be written. A node that looks at its entry for nothing does no harm.
            work.tell_displaced(now);
        }
        work.displaced = None;
        let mut is_taken = false;
        match call {
            Call::Join(nonce) => {
                if let Some(join) = work.joins.iter_mut().find(|join| join.nonce == nonce) {
                    join.is_unsure |= is_unknown;
                    is_taken = is_conflict && join.is_new && !join.is_unsure;
                }
            }
            Call::Renew => work.renew = true,
            Call::Read | Call::Rewrite | Call::Delete => {}
        }
        if is_taken {
            // A read would say no more: the id has an entry that is not of this join.
            self.answer_join(id, Err(Refusal::InUse));
            let work = self.procedures.get_mut(&id).expect("it was called");
            work.known = None;
            return;
        }
        work.read = true;
        // A read may be older than the entry that refused the write, so the two are not repeated at full speed.
        work.conflicts += 1;
        let wait = if is_conflict && work.conflicts == 1 {
            0
        } else {
            RETRY
        };
        work.wait_until = now + wait;
    }

    /// The first join's entry is in the table.
    fn confirm(&mut self, id: UserId, revision: Revision, now: u64) {
        let renew_at = now + self.bounds.renew_after;
        let work = self.procedures.get_mut(&id).expect("it was called");
        work.tell_displaced(now);
        let Some(join) = work.joins.front() else {
            return;
        };
        let holder = Holder {
            nonce: join.nonce,
            is_seated: false,
            resumption_id: join.resumption_id,
            arrival: revision,
            revision,
            renew_at,
        };
        work.known = Some(holder.known(self.node));
        self.holders.insert(id, holder);
        self.renewals.push_back((renew_at, id));
        // The first notice goes out at once.
        self.tell(id, now);
    }

    /// Another registration has the id, which came later.
    fn lose(&mut self, id: UserId, to: Record) {
        let Some(holder) = self.holders.remove(&id) else {
            return;
        };
        let loss = if to.resumption_id == holder.resumption_id {
            Loss::TakenOver
        } else {
            Loss::Conflict
        };
        if !holder.is_seated {
            self.lost.insert(holder.nonce, loss);
        }
        self.actions
            .push_back(Action::Revoke(holder.identity(id), loss));
        if let Some(work) = self.procedures.get_mut(&id) {
            work.renew = false;
            // Its entry was written, and its user was not welcomed yet. A user that is taken over has to hear that
            // from its session, because it would come back after a refusal.
            if work
                .joins
                .front()
                .is_some_and(|join| join.nonce == holder.nonce)
            {
                self.answer_join(
                    id,
                    match loss {
                        Loss::Conflict => Err(Refusal::InUse),
                        Loss::TakenOver | Loss::Left => Ok(()),
                    },
                );
            }
        }
    }

    fn answer_checks(&mut self, id: UserId) {
        let work = self.procedures.get_mut(&id).expect("it steps");
        let (answered, waiting) = std::mem::take(&mut work.checks)
            .into_iter()
            .partition(|check| work.can_answer(check));
        work.checks = waiting;
        let answered: Vec<Check> = answered;
        for Check { from, nonce, .. } in answered {
            self.notify(from, Notice::Checked { id, nonce });
        }
    }

    fn answer_join(&mut self, id: UserId, result: Result<(), Refusal>) {
        let work = self.procedures.get_mut(&id).expect("it steps");
        let join = work.joins.pop_front().expect("it has a join");
        self.joins -= 1;
        self.reply(join.reply, result);
    }
}
