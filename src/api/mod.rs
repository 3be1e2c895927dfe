//! The operator's API: one match on the path, JSON in and out, problem details where something is
//! wrong. The token was looked at before; what is here asks the relay, and keeps next to nothing of
//! its own.

mod problem;
mod read;
mod status;
mod users;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info};

pub(crate) use problem::Problem;
use read::BodyMax;
use users::Sort;

use crate::config;
use crate::directory::{Client, Command};
use crate::identity::{Sender, UserId};
use crate::lifecycle::Shutdown;
use crate::protocol::{CLOSE_REASON_BYTES_MAX, is_sound_string};
use crate::relay::{Post, Relay};
use crate::telemetry::Logs;

type Answer = Response<Full<Bytes>>;

/// The description of all this.
pub const OPENAPI: &str = include_str!("openapi.yaml");

/// The most bytes of a body that is no message.
const BODY_BYTES_MAX: usize = 4096;

/// The most users in one answer.
const USERS_MAX: u64 = 1000;

/// Users in an answer where nobody says how many.
const USERS_DEFAULT: u64 = 20;

/// What a removed user is told where the operator says nothing.
const REMOVED: &str = "removed by an operator";

/// Why a message was not sent: by the router strategy, the only one in which it waits for room.
const NOT_SENT: &str = "the router took no message in time (routing.router_queue): it was not sent";

/// The operator's API of one relay.
#[derive(Debug)]
pub struct Api {
    relay: Relay,
    shutdown: Shutdown,
    logs: Logs,
    /// The name of this node, for those who ask several.
    node: String,
    /// Time zero of the microseconds that messages are stamped with.
    epoch: Instant,
    started: SystemTime,
    bounds: Bounds,
    /// One permit: for whoever looks at all users twice.
    sampling: Semaphore,
}

/// What the API may be asked for.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// `limits.message_bytes`: the most bytes of the body of a message.
    pub message_bytes: usize,
    /// `limits.header_timeout`: how long a body may take.
    pub body_timeout: Duration,
    /// `admin.outcome_timeout`: how long an outcome is waited for.
    pub outcome_timeout: Duration,
    /// How the relay ends.
    pub drain: config::DrainSettings,
}

impl Api {
    /// The API of a relay; `port` tells it from others on the machine.
    pub fn new(
        (relay, shutdown, logs): (Relay, Shutdown, Logs),
        port: u16,
        epoch: Instant,
        bounds: Bounds,
    ) -> Self {
        let system = rustix::system::uname();
        let host = system.nodename().to_string_lossy();
        Self {
            relay,
            shutdown,
            logs,
            node: format!("{host}:{port}"),
            epoch,
            started: SystemTime::now(),
            bounds,
            sampling: Semaphore::new(1),
        }
    }

    /// Whether a path is one of the API's.
    pub fn has(path: &str) -> bool {
        path == "/api" || path.starts_with("/api/")
    }

    /// Answers a request of an operator's.
    pub async fn answer(&self, request: Request<Incoming>) -> Answer {
        let done = self.route(request).await;
        done.unwrap_or_else(|problem| problem.answer())
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Problem> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        match path.strip_prefix("/api/").unwrap_or_default() {
            "openapi.yaml" => {
                read_only(&parts)?;
                Ok(with(StatusCode::OK, "application/yaml", OPENAPI))
            }
            "status" => {
                read_only(&parts)?;
                self.status().await
            }
            "messages" => {
                only(&parts, &[Method::POST], "POST")?;
                self.send(&parts, body).await
            }
            "users" => {
                only(&parts, &READ, "GET, HEAD")?;
                self.list(parts.uri.query()).await
            }
            "drain" => {
                only(&parts, &[Method::POST], "POST")?;
                self.drain(&parts, body).await
            }
            "log-filter" => {
                only(&parts, &[Method::PUT], "PUT")?;
                self.filter_logs(&parts, body).await
            }
            path => {
                let id = path.strip_prefix("users/").filter(|id| !id.contains('/'));
                self.one_user(&parts, id.ok_or_else(Problem::not_found)?)
            }
        }
    }

    fn one_user(&self, parts: &Parts, id: &str) -> Result<Answer, Problem> {
        only(parts, &USER, "GET, HEAD, DELETE")?;
        let id = read::user(id, "id")?;
        if parts.method == Method::DELETE {
            return self.remove(id, parts.uri.query());
        }
        read::query(parts.uri.query(), [])?;
        Ok(json(StatusCode::OK, &self.user(id)))
    }

    /// `POST /api/messages`
    async fn send(&self, parts: &Parts, body: Incoming) -> Result<Answer, Problem> {
        read::query(parts.uri.query(), [])?;
        let max = BodyMax {
            bytes: self.bounds.message_bytes,
            setting: Some("limits.message_bytes"),
            time: self.bounds.body_timeout,
        };
        let body = read::body(&parts.headers, body, max).await?;
        let names = ["recipient_id", "message", "sender_id"];
        let [recipient, message, sender] = read::fields(&body, names)?;
        let recipient = recipient.ok_or_else(|| Problem::missing("recipient_id"))?;
        let recipient = read::json_user(recipient, "recipient_id")?;
        let message = message.ok_or_else(|| Problem::missing("message"))?;
        if !is_sound_string(message) {
            let expected = "a string without lone surrogates";
            return Err(Problem::invalid("message", expected));
        }
        let sender = match sender {
            None => Sender::SYSTEM,
            Some(sender) => {
                let number = read::json_number(sender, "sender_id", 0..=UserId::MAX)?;
                Sender::new(number).expect("within its range")
            }
        };
        let post = Post {
            sender,
            recipient,
            message,
            read_at: u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        self.post(post).await
    }

    /// Sends a message as soon as there is room for it, and waits for what becomes of it. What found no room
    /// in time was never received, and can be sent again.
    async fn post(&self, post: Post<'_>) -> Result<Answer, Problem> {
        #[derive(Serialize)]
        struct Sent {
            sender_id: u64,
            recipient_id: u64,
            status: &'static str,
        }
        let until = Instant::now() + self.bounds.outcome_timeout;
        let (sender_id, recipient_id) = (post.sender.get(), post.recipient.get());
        let sent = tokio::select! {
            // First: what has room is sent, whatever else is the case.
            biased;
            sent = timeout_at(until, self.relay.post(post)) => sent.ok(),
            () = self.shutdown.stopped() => None,
        };
        let sent = sent.ok_or_else(|| Problem::unavailable(&NOT_SENT))?;
        let outcome = tokio::select! {
            // An end without a word is that of a task of ours that was thrown away.
            outcome = timeout_at(until, sent) => outcome.ok().and_then(Result::ok),
            () = self.shutdown.stopped() => None,
        };
        let (code, status) = match outcome {
            Some(status) => (StatusCode::OK, status.as_str()),
            None => (StatusCode::ACCEPTED, "pending"),
        };
        let sent = Sent {
            sender_id,
            recipient_id,
            status,
        };
        Ok(json(code, &sent))
    }

    /// `GET /api/users`
    async fn list(&self, query: Option<&str>) -> Result<Answer, Problem> {
        #[derive(Serialize)]
        struct List {
            sort: Sort,
            users: Vec<users::User>,
        }
        let [sort, limit] = read::query(query, ["sort", "limit"])?;
        let sort = match sort.as_deref() {
            None | Some("queue") => Sort::Queue,
            Some("rate") => Sort::Rate,
            Some(_) => return Err(Problem::invalid("sort", "queue or rate")),
        };
        let limit = match limit {
            None => USERS_DEFAULT,
            Some(limit) => read::number(&limit, "limit", 1..=USERS_MAX)?,
        };
        let limit = usize::try_from(limit).expect("within its range");
        let users = self.top(sort, limit).await.map_err(|error| {
            error!(%error, "cannot look at all users");
            Problem::internal()
        })?;
        Ok(json(StatusCode::OK, &List { sort, users }))
    }

    /// `DELETE /api/users/{id}`
    fn remove(&self, id: UserId, query: Option<&str>) -> Result<Answer, Problem> {
        #[derive(Serialize)]
        struct Removed {
            id: u64,
            removed: bool,
        }
        let [reason] = read::query(query, ["reason"])?;
        let reason = reason.as_deref().unwrap_or(REMOVED);
        if reason.chars().count() > CLOSE_REASON_BYTES_MAX {
            let expected = format!("at most {CLOSE_REASON_BYTES_MAX} characters");
            let limit = CLOSE_REASON_BYTES_MAX as u64;
            return Err(Problem::over("reason", &expected, limit));
        }
        let command = Command::Remove {
            reason: reason.into(),
        };
        let command = |client: &Arc<Client>| client.command(command);
        let removed = self
            .relay
            .directory()
            .with(id, |client| client.map(command));
        let removed = removed.is_some();
        if removed {
            info!(user = %id, "an operator removes a user");
        }
        let id = id.get();
        Ok(json(StatusCode::OK, &Removed { id, removed }))
    }

    /// `POST /api/drain`
    async fn drain(&self, parts: &Parts, body: Incoming) -> Result<Answer, Problem> {
        #[derive(Serialize)]
        struct Draining {
            spread: String,
        }
        read::query(parts.uri.query(), [])?;
        let body = read::body(&parts.headers, body, self.small_body()).await?;
        let config::DrainSettings {
            delay,
            spread: spread_default,
            timeout,
        } = self.bounds.drain;
        let spread = if body.is_empty() {
            None
        } else {
            let [spread] = read::fields(&body, ["spread"])?;
            spread
        };
        let spread = match spread {
            None => spread_default,
            Some(spread) => read::duration(spread, "spread", timeout.saturating_sub(delay))?,
        };
        let spread = self.shutdown.request_drain(spread);
        info!(?spread, "an operator asks for a drain");
        let draining = Draining {
            spread: config::duration_text(spread),
        };
        Ok(json(StatusCode::ACCEPTED, &draining))
    }

    /// `PUT /api/log-filter`
    async fn filter_logs(&self, parts: &Parts, body: Incoming) -> Result<Answer, Problem> {
        #[derive(Serialize)]
        struct Filter {
            filter: String,
        }
        read::query(parts.uri.query(), [])?;
        let body = read::body(&parts.headers, body, self.small_body()).await?;
        let [filter] = read::fields(&body, ["filter"])?;
        let filter = filter.ok_or_else(|| Problem::missing("filter"))?;
        let filter = read::log_filter(filter, "filter")?;
        // Said by the filter that goes, and by the one that comes: one of them may hide it.
        info!(filter, "an operator changes what is logged");
        self.logs
            .set_filter(&filter)
            .map_err(|error| Problem::unavailable(&error))?;
        info!(filter, "an operator has changed what is logged");
        Ok(json(StatusCode::OK, &Filter { filter }))
    }

    fn small_body(&self) -> BodyMax {
        BodyMax {
            bytes: BODY_BYTES_MAX,
            setting: None,
            time: self.bounds.body_timeout,
        }
    }
}

const READ: [Method; 2] = [Method::GET, Method::HEAD];
const USER: [Method; 3] = [Method::GET, Method::HEAD, Method::DELETE];

/// Refuses other methods than these, which `listed` says as a header does.
fn only(parts: &Parts, methods: &[Method], listed: &'static str) -> Result<(), Problem> {
    if methods.contains(&parts.method) {
        Ok(())
    } else {
        Err(Problem::method(listed))
    }
}

/// Refuses what does not only read, and any query.
fn read_only(parts: &Parts) -> Result<(), Problem> {
    only(parts, &READ, "GET, HEAD")?;
    read::query(parts.uri.query(), []).map(|[]| ())
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).expect("what is answered is JSON");
    with(status, "application/json", body)
}

fn with(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A time as RFC 3339 writes it, to the second.
fn time_text(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time).replace_nanosecond(0);
    time.ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .expect("a time of this process has four digits of a year")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::config::Overflow;
    use crate::directory::{self, Budget};
    use crate::ledger::LedgerTotals;
    use crate::relay::Dependencies;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::traces::Traces;

    fn dependencies() -> Dependencies {
        let bounds = directory::Bounds {
            messages: 8,
            bytes: 1024,
            overflow: Overflow::DropNewest,
            budget: Budget::new(4096),
        };
        let metrics = Arc::new(Metrics::new(1));
        Dependencies::alone(bounds, 2, metrics, Arc::new(Traces::off()))
    }

    fn api(relay: Relay, shutdown: Shutdown) -> Api {
        let bounds = Bounds {
            message_bytes: 1024,
            body_timeout: Duration::from_secs(1),
            outcome_timeout: Duration::from_secs(1),
            drain: config::Settings::default().drain,
        };
        let parts = (relay, shutdown, Logs::none());
        Api::new(parts, 0, Instant::now(), bounds)
    }

    fn figures(relay: &Relay) -> LedgerTotals {
        LedgerTotals::read(relay.metrics(), relay.stats().mailbox_messages)
    }

    async fn post(api: &Api) -> (u16, Value) {
        let post = Post {
            sender: Sender::SYSTEM,
            recipient: UserId::new(99).unwrap(),
            message: "\"Anybody?\"",
            read_at: 0,
        };
        let answer = api.post(post).await;
        let answer = answer.unwrap_or_else(|problem| problem.answer());
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// One message waits for a router that is busy elsewhere; for a second there is no room.
    #[tokio::test(start_paused = true)]
    async fn what_the_router_has_no_room_for_was_never_received() {
        let (relay, router) = Relay::routed(dependencies(), 1);
        let shutdown = Shutdown::new();
        let api = api(relay.clone(), shutdown.clone());
        let (status, sent) = post(&api).await;
        assert_eq!((status, &sent["status"]), (202, &"pending".into()));
        for _ in 0..2 {
            let (status, problem) = post(&api).await;
            assert_eq!(status, 503);
            assert_eq!(problem["type"], "/api/openapi.yaml#/x-problems/unavailable");
            assert_eq!(problem["detail"], NOT_SENT);
            assert_eq!(figures(&relay).received, 1);
        }
        shutdown.spawn(router);
        let (status, sent) = post(&api).await;
        assert_eq!((status, &sent["status"]), (200, &"offline".into()));
        let figures = figures(&relay);
        assert_eq!(
            (figures.received, figures.dropped, figures.gap()),
            (2, 2, 0)
        );
    }

    /// What has room is sent by a process that ends, too, so that it is in the books.
    #[tokio::test(start_paused = true)]
    async fn an_end_cuts_the_wait_short() {
        let (relay, _router) = Relay::routed(dependencies(), 1);
        let shutdown = Shutdown::new();
        let api = api(relay.clone(), shutdown.clone());
        let started = Instant::now();
        shutdown.stop();
        assert_eq!(post(&api).await.0, 202);
        assert_eq!(post(&api).await.0, 503);
        assert_eq!(Instant::now(), started);
        assert_eq!(figures(&relay).received, 1);
    }
}
