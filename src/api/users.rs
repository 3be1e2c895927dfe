//! `/api/users`: what is known of users, never what they say, and their removal.
//!
//! The relay keeps two counters for each client for this, and no rates. A rate is the difference between two
//! reads of the counters.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use rustc_hash::FxHasher;
use serde::Serialize;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{error, info};

use super::problem::ProblemDetails;
use super::request;
use super::response::{ApiResponse, json, time_text};
use super::state::ApiState;
use crate::directory::{Client, ClientStats, Command};
use crate::identity::{Subject, UserId};
use crate::protocol::{CLOSE_REASON_BYTES_MAX, Dialect, SUBPROTOCOL};
use crate::relay::Relay;

/// The most users in one response.
const USERS_MAX: u64 = 1000;

/// Users in a response to a request without `limit`.
const USERS_DEFAULT: u64 = 20;

/// The close reason of a removal without `reason`.
const REMOVED: &str = "removed by an operator";

/// The time between the two reads from which a rate is computed. With one second, the difference is messages a
/// second.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// The order of users in a list, largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum SortKey {
    /// Queued bytes: finds slow readers.
    Queue,
    /// Messages sent a second: finds loud senders.
    Rate,
}

/// One user.
#[derive(Debug, Serialize)]
struct User {
    id: u64,
    online: bool,
    node: String,
    #[serde(flatten)]
    connection: Option<UserConnection>,
}

/// The connection of a user on this node.
#[derive(Debug, Serialize)]
struct UserConnection {
    since: String,
    protocol: &'static str,
    subject: Option<String>,
    queue: UserQueue,
    counts: MessageCounts,
    /// Messages that the user sent in the last second.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
}

#[derive(Debug, Serialize)]
struct UserQueue {
    messages: u32,
    bytes: usize,
}

#[derive(Debug, Serialize)]
struct MessageCounts {
    sent: u32,
    delivered: u32,
}

/// `GET /api/users/{id}`
pub(super) fn get(
    state: &ApiState,
    id: UserId,
    query: Option<&str>,
) -> Result<ApiResponse, ProblemDetails> {
    let [] = request::query(query, [])?;
    let user = state.relay.directory().with(id, |client| User {
        id: id.get(),
        online: client.is_some(),
        node: state.node.clone(),
        connection: client.map(|client| connection(&state.relay, client, client.stats(), None)),
    });
    Ok(json(StatusCode::OK, &user))
}

/// `GET /api/users`
pub(super) async fn list(
    state: &ApiState,
    query: Option<&str>,
) -> Result<ApiResponse, ProblemDetails> {
    #[derive(Serialize)]
    struct UserList {
        sort: SortKey,
        users: Vec<User>,
    }
    let [sort, limit] = request::query(query, ["sort", "limit"])?;
    let sort = match sort.as_deref() {
        None | Some("queue") => SortKey::Queue,
        Some("rate") => SortKey::Rate,
        Some(_) => return Err(ProblemDetails::invalid("sort", "queue or rate")),
    };
    let limit = match limit {
        None => USERS_DEFAULT,
        Some(limit) => request::number(&limit, "limit", 1..=USERS_MAX)?,
    };
    let limit = usize::try_from(limit).expect("number has checked the range");
    let ranked = rank(state, sort, limit).await.map_err(|error| {
        error!(%error, "cannot read the statistics of all users");
        ProblemDetails::internal()
    })?;
    let users = ranked.into_iter().map(|ranked| User {
        id: ranked.client.id().get(),
        online: true,
        node: state.node.clone(),
        connection: Some(connection(
            &state.relay,
            &ranked.client,
            ranked.stats,
            ranked.rate,
        )),
    });
    let users = users.collect();
    Ok(json(StatusCode::OK, &UserList { sort, users }))
}

/// `DELETE /api/users/{id}`
pub(super) fn remove(
    state: &ApiState,
    id: UserId,
    query: Option<&str>,
) -> Result<ApiResponse, ProblemDetails> {
    #[derive(Serialize)]
    struct Removal {
        id: u64,
        removed: bool,
    }
    let [reason] = request::query(query, ["reason"])?;
    let reason = reason.as_deref().unwrap_or(REMOVED);
    if reason.chars().count() > CLOSE_REASON_BYTES_MAX {
        let expected = format!("at most {CLOSE_REASON_BYTES_MAX} characters");
        let limit = CLOSE_REASON_BYTES_MAX as u64;
        return Err(ProblemDetails::over("reason", &expected, limit));
    }
    let command = Command::Remove {
        reason: reason.into(),
    };
    let command = |client: &Arc<Client>| client.command(command);
    let commanded = state.relay.directory();
    let commanded = commanded.with(id, |client| client.map(command));
    let removed = commanded.is_some();
    if removed {
        info!(user = %id, "an operator removes a user");
    }
    let id = id.get();
    Ok(json(StatusCode::OK, &Removal { id, removed }))
}

fn connection(
    relay: &Relay,
    client: &Client,
    stats: ClientStats,
    rate: Option<u32>,
) -> UserConnection {
    let ClientStats {
        queue_messages: messages,
        queue_bytes: bytes,
        received,
        delivered,
    } = stats;
    UserConnection {
        since: time_text(relay.joined_at(client)),
        protocol: match client.dialect() {
            Dialect::Bare => "bare",
            Dialect::V1 => SUBPROTOCOL,
        },
        subject: client.subject().map(Subject::as_str).map(str::to_owned),
        queue: UserQueue { messages, bytes },
        counts: MessageCounts {
            sent: received,
            delivered,
        },
        rate,
    }
}

/// The users of this node with the largest values. Walks all users on a thread for blocking work, because a
/// walk would delay the messages of a worker thread. Fails only if that thread panics.
async fn rank(state: &ApiState, sort: SortKey, limit: usize) -> Result<Vec<RankedUser>, JoinError> {
    let relay = state.relay.clone();
    match sort {
        SortKey::Queue => spawn_blocking(move || rank_by_queue(&relay, limit)).await,
        SortKey::Rate => {
            // One request at a time, because each holds a counter for each user.
            let _permit = state.rate_measurement.acquire().await;
            let first = state.relay.clone();
            let before = spawn_blocking(move || sent_counts(&first)).await?;
            tokio::time::sleep(RATE_INTERVAL).await;
            spawn_blocking(move || rank_by_rate(&relay, &before, limit)).await
        }
    }
}

/// A user with the value by which it is ranked.
struct RankedUser {
    value: u64,
    client: Arc<Client>,
    stats: ClientStats,
    rate: Option<u32>,
}

/// Finds the `limit` users with the largest values. Holds about twice as many, however many are offered.
struct Ranking {
    limit: usize,
    users: Vec<RankedUser>,
}

impl Ranking {
    fn new(limit: usize) -> Self {
        let users = Vec::new();
        Self { limit, users }
    }

    fn offer(&mut self, user: RankedUser) {
        self.users.push(user);
        if self.users.len() >= 2 * self.limit + 64 {
            self.trim();
        }
    }

    fn trim(&mut self) {
        self.users.sort_unstable_by(|one, other| {
            let by_value = other.value.cmp(&one.value);
            by_value.then_with(|| one.client.id().cmp(&other.client.id()))
        });
        self.users.truncate(self.limit);
    }

    fn finish(mut self) -> Vec<RankedUser> {
        self.trim();
        self.users
    }
}

fn rank_by_queue(relay: &Relay, limit: usize) -> Vec<RankedUser> {
    let mut ranking = Ranking::new(limit);
    relay.directory().for_each(|client| {
        let stats = client.stats();
        ranking.offer(RankedUser {
            value: stats.queue_bytes as u64,
            client: client.clone(),
            stats,
            rate: None,
        });
    });
    ranking.finish()
}

/// Messages sent by each user. The hash has no random key, because peers do not choose ids.
type SentCounts = HashMap<UserId, u32, BuildHasherDefault<FxHasher>>;

/// What each user has sent so far, without the users that have sent nothing.
fn sent_counts(relay: &Relay) -> SentCounts {
    let mut counts = SentCounts::default();
    relay.directory().for_each(|client| {
        let received = client.stats().received;
        if received > 0 {
            counts.insert(client.id(), received);
        }
    });
    counts
}

fn rank_by_rate(relay: &Relay, before: &SentCounts, limit: usize) -> Vec<RankedUser> {
    let mut ranking = Ranking::new(limit);
    relay.directory().for_each(|client| {
        let stats = client.stats();
        let before = before.get(&client.id()).copied().unwrap_or(0);
        let rate = match stats.received.wrapping_sub(before) {
            // The count went down: a newer connection of this id has replaced the client and counts from 0.
            wrapped if wrapped > u32::MAX / 2 => stats.received,
            rate => rate,
        };
        ranking.offer(RankedUser {
            value: rate.into(),
            client: client.clone(),
            stats,
            rate: Some(rate),
        });
    });
    ranking.finish()
}
