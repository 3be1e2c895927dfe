//! Users as the operator sees them: everything but what they say. Nothing is kept for it but two counts
//! and a time a client; who is loud is found out by looking twice.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHasher;
use serde::Serialize;

use super::{Api, time_text};
use crate::directory::{Client, ClientStats};
use crate::identity::{Subject, UserId};
use crate::protocol::{Dialect, SUBPROTOCOL};
use crate::relay::Relay;

/// From the one look to the other, by which a rate is known.
pub(super) const SAMPLE: Duration = Duration::from_secs(1);

/// By what users are ordered, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sort {
    /// Bytes that wait for them: the slow.
    Queue,
    /// Messages that they send: the loud.
    Rate,
}

/// One user.
#[derive(Debug, Serialize)]
pub(super) struct User {
    id: u64,
    online: bool,
    node: String,
    #[serde(flatten)]
    presence: Option<Presence>,
}

/// What is known of one who is here.
#[derive(Debug, Serialize)]
struct Presence {
    since: String,
    protocol: &'static str,
    subject: Option<String>,
    queue: Queue,
    counts: Counts,
    /// Messages a second that the user sent while it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Queue {
    messages: u32,
    bytes: usize,
}

#[derive(Debug, Serialize)]
struct Counts {
    sent: u32,
    delivered: u32,
}

impl Api {
    /// One user, here or not.
    pub(super) fn user(&self, id: UserId) -> User {
        self.relay.directory().with(id, |client| User {
            id: id.get(),
            online: client.is_some(),
            node: self.node.clone(),
            presence: client.map(|client| self.presence(client, client.stats(), None)),
        })
    }

    fn presence(&self, client: &Client, stats: ClientStats, rate: Option<u32>) -> Presence {
        let ClientStats {
            queue: (messages, bytes),
            received,
            delivered,
        } = stats;
        Presence {
            since: time_text(self.relay.joined_at(client)),
            protocol: match client.dialect() {
                Dialect::Bare => "bare",
                Dialect::V1 => SUBPROTOCOL,
            },
            subject: client.subject().map(Subject::as_str).map(str::to_owned),
            queue: Queue { messages, bytes },
            counts: Counts {
                sent: received,
                delivered,
            },
            rate,
        }
    }

    /// The users of this node that have the most of something. Fails only where a thread does.
    pub(super) async fn top(
        &self,
        sort: Sort,
        limit: usize,
    ) -> Result<Vec<User>, tokio::task::JoinError> {
        let relay = self.relay.clone();
        let found = match sort {
            Sort::Queue => blocking(move || by_queue(&relay, limit)).await?,
            Sort::Rate => {
                // One at a time: each remembers what everybody had sent before.
                let _turn = self.sampling.acquire().await;
                let before = blocking({
                    let relay = relay.clone();
                    move || sent_by_all(&relay)
                });
                let before = before.await?;
                tokio::time::sleep(SAMPLE).await;
                blocking(move || by_rate(&relay, &before, limit)).await?
            }
        };
        Ok(found
            .into_iter()
            .map(|found| User {
                id: found.client.id().get(),
                online: true,
                node: self.node.clone(),
                presence: Some(self.presence(&found.client, found.stats, found.rate)),
            })
            .collect())
    }
}

/// A walk over all users does not belong on a thread that relays.
async fn blocking<T: Send + 'static>(
    walk: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(walk).await
}

/// A user among those that have the most.
struct Found {
    most: u64,
    client: Arc<Client>,
    stats: ClientStats,
    rate: Option<u32>,
}

/// Those that have the most; never many more than are wanted, however many are offered.
struct Top {
    limit: usize,
    found: Vec<Found>,
}

impl Top {
    fn new(limit: usize) -> Self {
        let found = Vec::new();
        Self { limit, found }
    }

    fn offer(&mut self, found: Found) {
        self.found.push(found);
        if self.found.len() >= 2 * self.limit + 64 {
            self.trim();
        }
    }

    fn trim(&mut self) {
        self.found.sort_unstable_by(|one, other| {
            let by_most = other.most.cmp(&one.most);
            by_most.then_with(|| one.client.id().cmp(&other.client.id()))
        });
        self.found.truncate(self.limit);
    }

    fn take(mut self) -> Vec<Found> {
        self.trim();
        self.found
    }
}

fn by_queue(relay: &Relay, limit: usize) -> Vec<Found> {
    let mut top = Top::new(limit);
    relay.directory().for_each(|client| {
        let stats = client.stats();
        top.offer(Found {
            most: stats.queue.1 as u64,
            client: client.clone(),
            stats,
            rate: None,
        });
    });
    top.take()
}

// Keys are ids that we gave out.
type Sent = HashMap<UserId, u32, BuildHasherDefault<FxHasher>>;

/// What each user has sent so far, where that is anything.
fn sent_by_all(relay: &Relay) -> Sent {
    let mut sent = Sent::default();
    relay.directory().for_each(|client| {
        let received = client.stats().received;
        if received > 0 {
            sent.insert(client.id(), received);
        }
    });
    sent
}

fn by_rate(relay: &Relay, before: &Sent, limit: usize) -> Vec<Found> {
    let mut top = Top::new(limit);
    relay.directory().for_each(|client| {
        let stats = client.stats();
        let before = before.get(&client.id()).copied().unwrap_or(0);
        let rate = match stats.received.wrapping_sub(before) {
            // Somebody has taken the place over, and begun from 0.
            more if more > u32::MAX / 2 => stats.received,
            more => more,
        };
        top.offer(Found {
            most: rate.into(),
            client: client.clone(),
            stats,
            rate: Some(rate),
        });
    });
    top.take()
}
