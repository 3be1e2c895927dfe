//! What has to be done for one id, and what comes next: a decision over what is known and what is wanted. Must
//! not know of other ids.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::cluster::envelope::Node;
use crate::cluster::nats::Revision;
use crate::cluster::record::Record;
use crate::identity::{ResumptionId, UserId, UserIdentity};

/// Why an id cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A user of another resumption id has it.
    InUse,
    /// It cannot be found out or written now, or `cluster.joins` wait already.
    Unavailable,
}

/// A user that is registered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) nonce: u32,
    /// Its client is in the directory. The next join waits for that, so that clients get there in this order.
    pub(super) is_seated: bool,
    pub(super) resumption_id: ResumptionId,
    pub(super) arrival: Revision,
    /// Of the last write that is known.
    pub(super) revision: Revision,
    /// When the entry is to be written again, microseconds.
    pub(super) renew_at: u64,
}

/// A connection that wants an id.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) nonce: u32,
    pub(crate) resumption_id: ResumptionId,
    /// The id was never given before, so no user should have it.
    pub(crate) is_new: bool,
    /// When it is refused, microseconds.
    pub(crate) until: u64,
    /// Its entry may have been written: an answer is missing.
    pub(crate) is_unsure: bool,
    pub(crate) reply: oneshot::Sender<Result<(), Refusal>>,
}

/// The entry, when it was last read or written. An entry that cannot be read counts as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) revision: Revision,
    pub(super) record: Option<Record>,
}

/// What was asked of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    /// Writes the entry of the first join.
    Join(u32),
    /// Writes the holder's entry again.
    Renew,
    /// Writes the entry as it is, so that a late write of this node fails.
    Rewrite,
    Delete,
}

/// Where a call stands that no user waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CallTurn {
    /// There is none.
    #[default]
    Free,
    /// It waits until one of the others is answered.
    Queued,
    /// It is under way.
    Taken,
}

/// A node that had the id and is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tell {
    pub(super) node: Node,
    /// Comes back in the answer, which no other node can give then.
    pub(super) nonce: u32,
    /// The revision of its entry that was written over.
    pub(super) over: Revision,
    pub(super) next_at: u64,
    /// Its key is gone. It is told until then, in case that this was read at a server that did not know better.
    pub(super) dead_until: Option<u64>,
}

/// A node that waits until this node has compared its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) struct Check {
    pub(in crate::cluster) from: Node,
    /// Goes back in the answer.
    pub(in crate::cluster) nonce: u32,
    /// The revision of this node's entry that was written over.
    pub(in crate::cluster) over: Revision,
}

/// The state of one id that something is done for.
#[derive(Debug, Default)]
pub(super) struct Procedure {
    pub(super) call: Option<Call>,
    pub(super) turn: CallTurn,
    pub(super) known: Option<Known>,
    /// The entry is to be read before anything else.
    pub(super) read: bool,
    /// The holder's entry is to be written: a write decides, a read may be old.
    pub(super) renew: bool,
    /// It is one of those that are compared after the lease had ended.
    pub(super) is_compared: bool,
    /// Nothing is asked before this, microseconds.
    pub(super) wait_until: u64,
    pub(super) conflicts: u32,
    /// The node whose entry is being written over, and its revision.
    pub(super) displaced: Option<(Node, Revision)>,
    pub(super) tells: Vec<Tell>,
    pub(super) checks: Vec<Check>,
    pub(super) joins: VecDeque<Join>,
    /// A join that was given up may have written this nonce, or may do so late.
    pub(super) unsure: Option<u32>,
}

impl Holder {
    pub(super) fn record(&self, node: Node) -> Record {
        Record {
            node,
            nonce: self.nonce,
            resumption_id: self.resumption_id,
            arrival: Some(self.arrival),
        }
    }

    pub(super) fn known(&self, node: Node) -> Known {
        Known {
            revision: self.revision,
            record: Some(self.record(node)),
        }
    }

    pub(super) fn identity(&self, id: UserId) -> UserIdentity {
        UserIdentity {
            id,
            resumption_id: self.resumption_id,
        }
    }
}

impl Known {
    /// The entry of an id that was never given.
    pub(super) const NOTHING: Self = Self {
        revision: Revision::NONE,
        record: None,
    };
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An answer, a notice or a time.
    Wait,
    Read,
    /// The first join's entry is written at this revision.
    Confirm(Revision),
    /// The holder has lost the id to this one.
    Lose(Record),
    Write(Call, Known),
    AnswerChecks,
    Accept,
    Refuse(Refusal),
    Done,
}

impl Procedure {
    /// Decides what comes next on the node `own`.
    pub(super) fn next(&self, own: Node, holder: Option<&Holder>, now: u64) -> Next {
        if self.call.is_some() || now < self.wait_until {
            return Next::Wait;
        }
        if holder.is_none() && self.joins.is_empty() {
            if self.checks.iter().any(|check| self.can_answer(check)) {
                return Next::AnswerChecks;
            }
            if self.known.is_none() && !self.read && self.unsure.is_none() {
                return self.rest();
            }
        }
        let Some(known) = self.known.filter(|_| !self.read) else {
            return Next::Read;
        };
        let mine = known.record.filter(|record| record.node == own);
        let has_nonce = |nonce| mine.is_some_and(|mine| mine.nonce == nonce);
        let join = self.joins.front();
        let is_written = |join: &&Join| {
            holder.is_none_or(|holder| holder.nonce != join.nonce) && has_nonce(join.nonce)
        };
        if join.is_some_and(|join| is_written(&join)) {
            return Next::Confirm(known.revision);
        }
        match holder {
            Some(holder) if !has_nonce(holder.nonce) => match known.record {
                Some(other)
                    if other.node != own && holder.is_earlier_than(other, known.revision) =>
                {
                    return Next::Lose(other);
                }
                _ => return Next::Write(Call::Renew, known),
            },
            Some(_) if self.renew => return Next::Write(Call::Renew, known),
            _ => {}
        }
        if self.checks.iter().any(|check| self.can_answer(check)) {
            return Next::AnswerChecks;
        }
        if self.is_telling() {
            return Next::Wait;
        }
        match (join, known.record) {
            (Some(join), _) if holder.is_some_and(|holder| holder.nonce == join.nonce) => {
                Next::Accept
            }
            (Some(_), _) if holder.is_some_and(|holder| !holder.is_seated) => Next::Wait,
            (Some(join), Some(record)) if record.resumption_id != join.resumption_id => {
                Next::Refuse(Refusal::InUse)
            }
            (Some(join), _) => Next::Write(Call::Join(join.nonce), known),
            (None, Some(record)) if holder.is_none() && record.node == own => {
                Next::Write(Call::Delete, known)
            }
            (None, _) if self.unsure.is_some() => Next::Write(Call::Rewrite, known),
            (None, _) => self.rest(),
        }
    }

    /// Whether all nodes have answered whose entries were written over for the entry that this check is about. Not
    /// those of later writes: two nodes that have written over each other's entries would wait for each other.
    pub(super) fn can_answer(&self, check: &Check) -> bool {
        let is_earlier = |over: Revision| over < check.over;
        let mut told = self.tells.iter().filter(|tell| tell.dead_until.is_none());
        !told.any(|tell| is_earlier(tell.over))
            && !self.displaced.is_some_and(|(_, over)| is_earlier(over))
    }

    /// Whether a user waits, here or at another node, or all messages from other nodes. The number of these is bounded
    /// where they begin.
    pub(super) fn is_awaited(&self) -> bool {
        !self.joins.is_empty() || !self.checks.is_empty() || self.is_compared
    }

    /// Whether another node has to answer first.
    pub(super) fn is_telling(&self) -> bool {
        self.tells.iter().any(|tell| tell.dead_until.is_none())
    }

    /// Whether nothing is left but to tell nodes that are dead.
    pub(super) fn only_lingers(&self) -> bool {
        self.call.is_none() && !self.tells.is_empty() && !self.is_telling()
    }

    /// The node that is written over has to look at the entry.
    pub(super) fn tell_displaced(&mut self, now: u64) {
        if let Some((node, over)) = self.displaced.take() {
            self.tells
                .retain(|tell| tell.node != node || tell.over < over);
            self.tells.push(Tell {
                node,
                over,
                nonce: fastrand::u32(..),
                next_at: now,
                dead_until: None,
            });
        }
    }

    fn rest(&self) -> Next {
        if self.tells.is_empty() {
            Next::Done
        } else {
            Next::Wait
        }
    }
}

impl Holder {
    /// Whether its user came before that of an entry which was written at this revision. After a power failure NATS
    /// gives a revision again, so two arrivals can have the same one; then their random nonces decide, and both nodes
    /// decide alike.
    fn is_earlier_than(&self, other: Record, written: Revision) -> bool {
        (self.arrival, self.nonce) < (other.arrived(written), other.nonce)
    }
}

impl Record {
    /// The revision by which its user came; `written` is that of the entry.
    fn arrived(&self, written: Revision) -> Revision {
        self.arrival.unwrap_or(written)
    }
}
