//! `POST /api/messages`: sends a message and waits for its outcome.

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::problem::ProblemDetails;
use super::request;
use super::response::{ApiResponse, json};
use super::state::ApiState;
use crate::identity::{Sender, UserId};
use crate::protocol::is_sound_string;
use crate::relay::Submission;

/// Why a message was not sent. Only the router strategy has a queue in which a message can find no room.
const NOT_SENT: &str = "not sent: the router took no message within admin.outcome_timeout (routing.router_queue is full)";

pub(super) async fn post(
    state: &ApiState,
    parts: &Parts,
    body: Incoming,
) -> Result<ApiResponse, ProblemDetails> {
    let [] = request::query(parts.uri.query(), [])?;
    let body = request::body(&parts.headers, body, state.config.message_body()).await?;
    let names = ["recipient_id", "message", "sender_id"];
    let [recipient, message, sender] = request::fields(&body, names)?;
    let recipient = recipient.ok_or_else(|| ProblemDetails::missing("recipient_id"))?;
    let recipient = request::json_user(recipient, "recipient_id")?;
    let message = message.ok_or_else(|| ProblemDetails::missing("message"))?;
    if !is_sound_string(message) {
        let expected = "a string without lone surrogates";
        return Err(ProblemDetails::invalid("message", expected));
    }
    let sender = match sender {
        None => Sender::SYSTEM,
        Some(sender) => {
            let number = request::json_number(sender, "sender_id", 0..=UserId::MAX)?;
            Sender::new(number).expect("json_number has checked the range")
        }
    };
    let submission = Submission {
        sender,
        recipient,
        body: message,
        read_at: u64::try_from(state.epoch.elapsed().as_micros()).unwrap_or(u64::MAX),
    };
    send(state, submission).await
}

/// Sends a message once the relay has room for it, and waits for its outcome. A message that finds no room in
/// time was not received: the operator can send it again.
async fn send(state: &ApiState, submission: Submission<'_>) -> Result<ApiResponse, ProblemDetails> {
    #[derive(Serialize)]
    struct SendResult {
        sender_id: u64,
        recipient_id: u64,
        status: &'static str,
    }
    let deadline = Instant::now() + state.config.outcome_timeout;
    let (sender_id, recipient_id) = (submission.sender.get(), submission.recipient.get());
    let outcome = tokio::select! {
        // In this order, so that a message that finds room at once is sent even while the process ends.
        biased;
        outcome = timeout_at(deadline, state.relay.submit(submission)) => outcome.ok(),
        () = state.shutdown.stopped() => None,
    };
    let outcome = outcome.ok_or_else(|| ProblemDetails::unavailable(&NOT_SENT))?;
    let outcome = tokio::select! {
        // The channel closes without an outcome if the task with the message was dropped.
        outcome = timeout_at(deadline, outcome) => outcome.ok().and_then(Result::ok),
        () = state.shutdown.stopped() => None,
    };
    let (code, status) = match outcome {
        Some(status) => (StatusCode::OK, status.as_str()),
        None => (StatusCode::ACCEPTED, "pending"),
    };
    let result = SendResult {
        sender_id,
        recipient_id,
        status,
    };
    Ok(json(code, &result))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::super::state::ApiDependencies;
    use super::*;
    use crate::config::{Overflow, Settings};
    use crate::directory::{Budget, MailboxBounds};
    use crate::ledger::LedgerTotals;
    use crate::lifecycle::Shutdown;
    use crate::relay::{Dependencies, Relay};
    use crate::telemetry::Logs;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::traces::Traces;

    fn dependencies() -> Dependencies {
        let bounds = MailboxBounds {
            messages: 8,
            bytes: 1024,
            max_age: Duration::MAX,
            overflow: Overflow::DropNewest,
            budget: Budget::new(4096),
        };
        let metrics = Arc::new(Metrics::new(1));
        Dependencies::alone(bounds, 2, metrics, Arc::new(Traces::off()))
    }

    fn state(relay: Relay, shutdown: Shutdown) -> ApiState {
        let mut settings = Settings::default();
        settings.admin.outcome_timeout = Duration::from_secs(1);
        let dependencies = ApiDependencies {
            relay,
            shutdown,
            logs: Logs::none(),
            epoch: Instant::now(),
        };
        ApiState::new(&settings, 0, dependencies)
    }

    fn totals(relay: &Relay) -> LedgerTotals {
        LedgerTotals::read(relay.metrics(), || relay.stats().mailbox_messages)
    }

    async fn send_one(state: &ApiState) -> (u16, Value) {
        let submission = Submission {
            sender: Sender::SYSTEM,
            recipient: UserId::new(99).unwrap(),
            body: "\"Anybody?\"",
            read_at: 0,
        };
        let response = send(state, submission).await;
        let response = response.unwrap_or_else(|problem| problem.response());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// The queue of the router holds one message, and the router does not run, so a second one finds no room.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_the_router_has_no_room_for_is_not_received() {
        let (relay, router) = Relay::routed(dependencies(), 1);
        let shutdown = Shutdown::new();
        let state = state(relay.clone(), shutdown.clone());
        let (status, sent) = send_one(&state).await;
        assert_eq!((status, &sent["status"]), (202, &"pending".into()));
        for _ in 0..2 {
            let (status, problem) = send_one(&state).await;
            assert_eq!(status, 503);
            assert_eq!(problem["type"], "/api/openapi.yaml#/x-problems/unavailable");
            assert_eq!(problem["detail"], NOT_SENT);
            assert_eq!(totals(&relay).received, 1);
        }
        shutdown.spawn(router);
        let (status, sent) = send_one(&state).await;
        assert_eq!((status, &sent["status"]), (200, &"offline".into()));
        let totals = totals(&relay);
        assert_eq!((totals.received, totals.dropped, totals.gap()), (2, 2, 0));
    }

    /// A message that finds room is sent even while the process ends, so that it is in the ledger.
    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait() {
        let (relay, _router) = Relay::routed(dependencies(), 1);
        let shutdown = Shutdown::new();
        let state = state(relay.clone(), shutdown.clone());
        let started = Instant::now();
        shutdown.stop();
        assert_eq!(send_one(&state).await.0, 202);
        assert_eq!(send_one(&state).await.0, 503);
        assert_eq!(Instant::now(), started);
        assert_eq!(totals(&relay).received, 1);
    }
}
