//! Buckets of the model, and their leader in a cluster of servers. A write is done once the leader and a majority
//! of the servers reach each other. A leader that was cut off reads what it knew, and writes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::link::Down;
use super::{BEGIN, ELECTION, Event, LinkId, STEP_DOWN, World};
use crate::cluster::nats::{
    BucketConfig, BucketFailure, BucketIdentity, DELETED_MAX_AGE, Entry, Revision,
};

/// What is asked of JetStream.
#[derive(Clone, Debug)]
pub(crate) enum StreamCall {
    /// With the first revision of the bucket if it is made.
    Open(BucketConfig, u64),
    Get(Arc<str>, String),
    Write(Arc<str>, String, Option<Bytes>, Revision),
    LastSequence(String),
}

/// What JetStream says.
#[derive(Clone, Debug)]
pub(crate) enum StreamAnswer {
    Opened(BucketIdentity),
    Got(Entry),
    Written(Revision),
    Conflict,
    LastSequence(Option<u64>),
    Failed(BucketFailure),
}

impl StreamAnswer {
    pub(super) fn failure(self) -> BucketFailure {
        match self {
            Self::Failed(failure) => failure,
            other => unreachable!("an answer to another call: {other:?}"),
        }
    }
}

/// Writes that a server may not have on its disk yet: with `sync_interval`, those of minutes.
const UNSYNCED_MAX: usize = 64;

pub(super) struct JetStream {
    buckets: BTreeMap<Arc<str>, Stream>,
    /// How long a deleted entry keeps its revision.
    pub(super) deleted_max_age: Duration,
    /// The last writes, as what has to be put back to undo them.
    unsynced: VecDeque<(Arc<str>, String, Option<Stored>, u64)>,
    /// Calls on their way to the leader.
    calls: BTreeMap<u64, Pending>,
    arrived: u64,
    /// Calls that wait for a majority.
    stalled: Vec<u64>,
    leader: usize,
    is_electing: bool,
    /// A former leader that does not know that it is none, until when, and what it knows.
    deposed: Option<(usize, u64, BTreeMap<Arc<str>, Stream>)>,
}

struct Pending {
    server: usize,
    from: (LinkId, u64),
    call: StreamCall,
}

#[derive(Clone)]
struct Stream {
    config: BucketConfig,
    identity: BucketIdentity,
    deleted_max_age: Duration,
    /// The sequence number of the last write.
    last: u64,
    entries: BTreeMap<String, Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    value: Option<Bytes>,
    revision: u64,
    at: u64,
}

impl JetStream {
    pub(super) fn new() -> Self {
        Self {
            buckets: BTreeMap::new(),
            deleted_max_age: DELETED_MAX_AGE,
            unsynced: VecDeque::new(),
            calls: BTreeMap::new(),
            arrived: 0,
            stalled: Vec::new(),
            leader: 0,
            is_electing: false,
            deposed: None,
        }
    }

    pub(super) fn forget(&mut self) {
        self.buckets.clear();
        self.unsynced.clear();
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.buckets.remove(name);
        self.unsynced.retain(|(bucket, ..)| **bucket != *name);
    }

    /// The keys of a bucket that have values.
    pub(super) fn entries(&self, bucket: &str, now: u64) -> Vec<(String, Bytes)> {
        let Some(stream) = self.buckets.get(bucket) else {
            return Vec::new();
        };
        let value = |key: &String| Some((key.clone(), stream.current(key, now)?.value?));
        stream.entries.keys().filter_map(value).collect()
    }

    /// Takes the last writes back.
    pub(super) fn lose_last(&mut self, count: usize) {
        for _ in 0..count {
            let Some((bucket, key, before, last)) = self.unsynced.pop_back() else {
                break;
            };
            if let Some(stream) = self.buckets.get_mut(&bucket) {
                stream.last = last;
                match before {
                    Some(before) => stream.entries.insert(key, before),
                    None => stream.entries.remove(&key),
                };
            }
        }
    }

    /// Makes a bucket that begins with this revision.
    pub(super) fn make(&mut self, config: &BucketConfig, first: u64, now: u64) {
        self.open(config, first, now);
    }

    /// A call has come to a server.
    pub(super) fn arrive(&mut self, server: usize, from: (LinkId, u64), call: StreamCall) -> u64 {
        self.arrived += 1;
        let pending = Pending { server, from, call };
        self.calls.insert(self.arrived, pending);
        self.arrived
    }

    fn run(&mut self, call: &StreamCall, now: u64) -> StreamAnswer {
        match call {
            StreamCall::Open(config, first) => self.open(config, *first, now),
            StreamCall::Get(bucket, key) => read(&self.buckets, bucket, key, now),
            StreamCall::Write(bucket, key, value, over) => {
                self.write(bucket, key, (value, *over), now)
            }
            StreamCall::LastSequence(stream) => {
                let bucket = stream.strip_prefix("KV_").unwrap_or(stream);
                let stream = self.buckets.get(bucket);
                StreamAnswer::LastSequence(stream.map(|stream| stream.last))
            }
        }
    }

    fn open(&mut self, config: &BucketConfig, first: u64, now: u64) -> StreamAnswer {
        let name: Arc<str> = config.name.as_str().into();
        let stream = self.buckets.entry(name).or_insert_with(|| Stream {
            config: config.clone(),
            identity: BucketIdentity(format!("{}", BEGIN + now).into()),
            deleted_max_age: self.deleted_max_age,
            last: first - 1,
            entries: BTreeMap::new(),
        });
        if stream.config.max_age != config.max_age {
            let refused = format!("bucket {} is another", config.name);
            return StreamAnswer::Failed(BucketFailure::Refused(refused));
        }
        StreamAnswer::Opened(stream.identity.clone())
    }

    fn write(
        &mut self,
        bucket: &Arc<str>,
        key: &str,
        (value, over): (&Option<Bytes>, Revision),
        now: u64,
    ) -> StreamAnswer {
        let Some(stream) = self.buckets.get_mut(bucket) else {
            return StreamAnswer::Failed(BucketFailure::Missing);
        };
        let before = stream.current(key, now);
        let revision = before.as_ref().map_or(0, |before| before.revision);
        if revision != over.0 {
            return StreamAnswer::Conflict;
        }
        let undone = (bucket.clone(), key.to_owned(), before, stream.last);
        self.unsynced.push_back(undone);
        if self.unsynced.len() > UNSYNCED_MAX {
            self.unsynced.pop_front();
        }
        stream.last += 1;
        let stored = Stored {
            value: value.clone(),
            revision: stream.last,
            at: now,
        };
        stream.entries.insert(key.to_owned(), stored);
        StreamAnswer::Written(Revision(stream.last))
    }
}

impl Stream {
    fn current(&self, key: &str, now: u64) -> Option<Stored> {
        let micros = |age: Duration| u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        let stored = self.entries.get(key)?;
        let max_age = match micros(self.config.max_age) {
            0 => u64::MAX,
            max_age => max_age,
        };
        let max_age = match stored.value {
            Some(_) => max_age,
            None => max_age.min(micros(self.deleted_max_age)),
        };
        (now < stored.at.saturating_add(max_age)).then(|| stored.clone())
    }
}

fn read(buckets: &BTreeMap<Arc<str>, Stream>, bucket: &str, key: &str, now: u64) -> StreamAnswer {
    let Some(stream) = buckets.get(bucket) else {
        return StreamAnswer::Failed(BucketFailure::Missing);
    };
    StreamAnswer::Got(match stream.current(key, now) {
        Some(stored) => Entry {
            value: stored.value,
            revision: Revision(stored.revision),
        },
        None => Entry {
            value: None,
            revision: Revision::NONE,
        },
    })
}

impl World {
    /// A call is due at the leader.
    pub(super) fn apply(&mut self, number: u64) {
        let Some(Pending { server, call, .. }) = self.jetstream.calls.get(&number) else {
            return;
        };
        let (server, call, now) = (*server, call.clone(), self.now);
        if let Some((old, until, buckets)) = &self.jetstream.deposed
            && now < *until
            && self.reaches(server, *old)
            && !self.reaches(server, self.jetstream.leader)
        {
            // The leader that this side of the partition knows.
            return match call {
                StreamCall::Get(bucket, key) => {
                    let answer = read(buckets, &bucket, &key, now);
                    self.answer(number, answer);
                }
                _ => drop(self.jetstream.calls.remove(&number)),
            };
        }
        if !self.reaches(server, self.jetstream.leader) {
            // A server that knows of no leader says so; a leader that was lost just now says nothing.
            if self.rng.bool() {
                let refused = BucketFailure::Refused("temporarily unavailable".to_owned());
                self.answer(number, StreamAnswer::Failed(refused));
            } else {
                self.jetstream.calls.remove(&number);
            }
            return;
        }
        let is_read = matches!(call, StreamCall::Get(..) | StreamCall::LastSequence(_));
        if !is_read && !self.has_majority(self.jetstream.leader) {
            self.jetstream.stalled.push(number);
            return;
        }
        let answer = self.jetstream.run(&call, now);
        self.note(|| format!("{call:?} = {answer:?}"));
        self.answer(number, answer);
    }

    fn answer(&mut self, number: u64, answer: StreamAnswer) {
        if let Some(Pending { from, .. }) = self.jetstream.calls.remove(&number)
            && self.is_open_at_server(from.0)
        {
            self.push_down(from.0, Down::Answer(from.1, answer));
        }
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        let both_run = self.servers[one].is_running && self.servers[other].is_running;
        both_run && !self.is_cut(one, other)
    }

    fn has_majority(&self, server: usize) -> bool {
        let reached = (0..self.servers.len()).filter(|other| self.reaches(server, *other));
        reached.count() * 2 > self.servers.len()
    }

    /// Elects another leader after a while, if the present one is cut off.
    pub(super) fn watch_leader(&mut self) {
        let leader = self.jetstream.leader;
        if !self.has_majority(leader) && !self.jetstream.is_electing {
            self.jetstream.is_electing = true;
            let patience = self.random(&ELECTION);
            self.after(patience, Event::Elect);
        }
    }

    pub(super) fn elect(&mut self) {
        self.jetstream.is_electing = false;
        let old = self.jetstream.leader;
        if self.has_majority(old) {
            return;
        }
        let able = (0..self.servers.len()).filter(|server| self.has_majority(*server));
        let able: Vec<_> = able.collect();
        if able.is_empty() {
            return self.watch_leader();
        }
        let new = able[self.rng.usize(..able.len())];
        self.note(|| format!("server {new} leads in place of {old}"));
        self.jetstream.leader = new;
        let known = self.jetstream.buckets.clone();
        self.jetstream.deposed = Some((old, self.now + STEP_DOWN, known));
        // What the old leader could not get through is dropped.
        for number in std::mem::take(&mut self.jetstream.stalled) {
            self.jetstream.calls.remove(&number);
        }
    }

    /// A majority may be back for what has waited for one.
    pub(super) fn retry_stalled(&mut self) {
        for number in std::mem::take(&mut self.jetstream.stalled) {
            self.after(0, Event::Apply(number));
        }
        self.watch_leader();
    }
}
