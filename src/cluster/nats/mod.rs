//! What the cluster asks of NATS, and nothing more. Two implementations stand behind [`Nats`]: `client`, over
//! the library async-nats, and `model`, in memory on tokio's time, for tests and the simulator. One set of tests
//! runs against both, so what this file promises holds for the real server, too.
//!
//! The traits are generic, not `dyn`: a publication is on the path of every message between nodes, a generic
//! needs no boxed future there, and only the driver of the cluster is generic over them.
//!
//! # What NATS promises, and what it does not
//!
//! - A link is one connection from its making to its end. Nothing that was published on a link is sent on a later
//!   one. But what was published on a link that was given up can still arrive, late, and behind messages of the
//!   next link of the same node. A receiver that must not see this compares the number of the link.
//! - Core messages arrive at most once, and in order from one link to one subscription. A message is lost without
//!   a word if no subscription exists, if a link breaks, or if a subscription is overrun.
//! - "No responders" may come for a message with a reply subject that has no subscriber. It does not come if
//!   another client listens to the subject, so an answer may be faster by it and must never depend on it.
//! - A bucket can vanish or be made again between any two calls, with all its entries gone. Entries that were
//!   acknowledged can be missing after a server has lost power. Revisions begin again above all earlier ones only
//!   if the bucket was made again by [`NatsLink::open_bucket`], and only as far as the clocks of the nodes go.
//!   A node that compares its entries after an absence therefore reads them and compares the values (with a
//!   number in them that no other writer uses) before it writes over a revision that it remembers.

mod access;
mod client;
mod failure;
mod jetstream;
#[cfg(test)]
#[path = "../../../tests/simulate/nats/mod.rs"]
pub(crate) mod model;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;

pub(super) use access::Access;
pub(super) use client::{HEADER_BYTES, NatsClient, TRACESTATE_HEADER_BYTES};
pub use failure::AccessError;
pub(super) use failure::{BucketFailure, ConnectFailure, LinkLost, PublishFailure, WriteFailure};

/// A way to NATS.
pub(super) trait Nats: Send + Sync + 'static {
    /// A connection.
    type Link: NatsLink;

    /// Makes a connection to one of the servers. Fails after `cluster.link_timeout`, and if the server is older
    /// than the cluster needs. The caller waits before it tries again.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, ConnectFailure>> + Send;
}

/// A connection to NATS, as a cheap handle. The connection ends when its last handle, subscription and bucket is
/// dropped.
pub(super) trait NatsLink: Clone + Send + Sync + 'static {
    /// The messages of one subject.
    type Subscription: Subscription;
    /// A key-value bucket.
    type Bucket: Bucket;

    /// The most bytes that a message may have, headers included.
    fn max_payload(&self) -> usize;

    /// Hands a message to the connection. Waits while the connection takes nothing, because the number of
    /// messages and requests that wait in it is bounded. `Ok` does not mean that the message has left this node.
    ///
    /// Cancel safe: a message is handed over as a whole, or not at all.
    fn publish(&self, message: Outgoing)
    -> impl Future<Output = Result<(), PublishFailure>> + Send;

    /// Subscribes to a subject, which may have wildcards. Messages that this link has published itself come,
    /// too. The server knows of the subscription once a [`NatsLink::round_trip`] that begins later has completed.
    fn subscribe(
        &self,
        subject: Subject,
    ) -> impl Future<Output = Result<Self::Subscription, LinkLost>> + Send;

    /// Completes once the server has taken everything that was published or subscribed on this link before the
    /// call, and its answer is here. It waits without a limit; the caller decides when the link is too silent.
    fn round_trip(&self) -> impl Future<Output = Result<(), LinkLost>> + Send;

    /// Completes once the connection has ended. A connection whose peer is silent ends late, so the caller also
    /// watches [`NatsLink::round_trip`].
    fn lost(&self) -> impl Future<Output = ()> + Send;

    /// Messages that came for subscriptions of this link and were dropped, because the earlier ones were not taken.
    fn overruns(&self) -> u64;

    /// Opens a bucket, and makes it if there is none. A bucket that is made begins with a revision above all that
    /// this node has seen, and above those of every earlier bucket as far as the clock of this node goes.
    fn open_bucket(
        &self,
        config: &BucketConfig,
    ) -> impl Future<Output = Result<Self::Bucket, BucketFailure>> + Send;

    /// The last sequence number of a stream; `None` if there is no such stream.
    fn last_sequence(
        &self,
        stream: &str,
    ) -> impl Future<Output = Result<Option<u64>, BucketFailure>> + Send;
}

/// The messages of one subject. Drop unsubscribes, and what has come and was not taken is lost, and so is what the
/// server has sent until it knows. A node that stops therefore keeps its subscriptions until nothing is written to it.
pub(super) trait Subscription: Send + 'static {
    /// The next message; `None` once the connection has ended.
    ///
    /// Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Incoming>> + Send;
}

/// A key-value bucket, as a cheap handle. The bucket forgets a key after [`BucketConfig::max_age`] without a write.
/// Every call ends after `cluster.link_timeout` at the latest.
///
/// No call is repeated by this trait. After [`BucketFailure::Unknown`], a write may have happened, or may happen
/// later. It is found out by [`Bucket::get`] and a number in the value that no other write uses; and a write that
/// is late fails if the entry has changed meanwhile.
pub(super) trait Bucket: Clone + Send + Sync + 'static {
    /// Which bucket of this name it was when it was opened. A call reaches the bucket that has the name now, which
    /// may be another: open it again to compare.
    fn identity(&self) -> &BucketIdentity;

    /// Reads an entry at the leader of the bucket. This is the newest entry, unless the leader is a server that
    /// was cut off from the others and has not noticed, which can take 10 s. Only a write decides.
    fn get(&self, key: &str) -> impl Future<Output = Result<Entry, BucketFailure>> + Send;

    /// Writes an entry, or deletes it by writing no value, if it still has the revision that the caller knows.
    /// Returns the new revision, which is higher than each that any entry of this bucket had before. A value has at
    /// least one byte. A deleted entry keeps its revision for [`DELETED_MAX_AGE`], or [`BucketConfig::max_age`] if
    /// that is shorter.
    fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        over: Revision,
    ) -> impl Future<Output = Result<Revision, WriteFailure>> + Send;
}

/// How long a deleted entry keeps its revision. After that the key is as one that was never written.
const DELETED_MAX_AGE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });

/// A message on its way out.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) subject: Subject,
    pub(super) reply: Option<Subject>,
    /// The trace that it is part of (W3C Trace Context). A message without one has no headers.
    pub(super) traceparent: Option<String>,
    pub(super) tracestate: Option<String>,
    pub(super) payload: Bytes,
}

impl Outgoing {
    /// A message that is not a user's.
    pub(super) fn new(subject: Subject, payload: Bytes) -> Self {
        Self {
            subject,
            reply: None,
            traceparent: None,
            tracestate: None,
            payload,
        }
    }
}

/// A message that has come.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    pub(super) subject: Subject,
    pub(super) reply: Option<Subject>,
    pub(super) traceparent: Option<String>,
    pub(super) tracestate: Option<String>,
    pub(super) payload: Bytes,
    /// No message, but word of the server that there is no subscriber to the subject of a message whose reply subject
    /// is [`Incoming::subject`]. The payload is empty.
    pub(super) no_responders: bool,
}

/// What a bucket is to be. A bucket that exists and is otherwise is refused, except for its replicas.
#[derive(Clone, Debug)]
pub(super) struct BucketConfig {
    pub(super) name: String,
    /// After this time without a write an entry is absent. Zero: never.
    pub(super) max_age: Duration,
    pub(super) replicas: usize,
    /// For operators who look at the bucket.
    pub(super) description: String,
}

/// Tells apart two buckets that have had the same name: when it was made, as the server writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BucketIdentity(pub(super) Arc<str>);

/// The number of a write in a bucket. Later writes have higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Revision(pub(super) u64);

impl Revision {
    /// Of a key that was never written, or is forgotten.
    pub(super) const NONE: Self = Self(0);
}

/// What a bucket has for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `None`: the entry is deleted, or there was none.
    pub(super) value: Option<Bytes>,
    pub(super) revision: Revision,
}
