//! `POST /api/drain` and `PUT /api/log-filter`: requests that change the process; and the filter that is in effect.

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde::Serialize;
use tracing::info;

use super::problem::ProblemDetails;
use super::request;
use super::response::{ApiResponse, json};
use super::state::ApiState;
use crate::config::{self, DrainSettings};

pub(super) async fn drain(
    state: &ApiState,
    parts: &Parts,
    body: Incoming,
) -> Result<ApiResponse, ProblemDetails> {
    #[derive(Serialize)]
    struct DrainRequested {
        spread: String,
    }
    let [] = request::query(parts.uri.query(), [])?;
    let body = request::body(&parts.headers, body, state.config.small_body()).await?;
    let DrainSettings {
        delay,
        spread: spread_default,
        timeout,
    } = state.config.drain;
    let spread = if body.is_empty() {
        None
    } else {
        let [spread] = request::fields(&body, ["spread"])?;
        spread
    };
    let spread = match spread {
        None => spread_default,
        Some(spread) => request::duration(spread, "spread", timeout.saturating_sub(delay))?,
    };
    let spread = state.shutdown.request_drain(spread);
    info!(?spread, "an operator requests a drain");
    let requested = DrainRequested {
        spread: config::duration_text(spread),
    };
    Ok(json(StatusCode::ACCEPTED, &requested))
}

#[derive(Serialize)]
struct LogFilter {
    filter: String,
}

pub(super) fn log_filter(
    state: &ApiState,
    query: Option<&str>,
) -> Result<ApiResponse, ProblemDetails> {
    let [] = request::query(query, [])?;
    let filter = state.logs.filter();
    let filter = filter.map_err(|error| ProblemDetails::unavailable(&error))?;
    Ok(json(StatusCode::OK, &LogFilter { filter }))
}

pub(super) async fn filter_logs(
    state: &ApiState,
    parts: &Parts,
    body: Incoming,
) -> Result<ApiResponse, ProblemDetails> {
    let [] = request::query(parts.uri.query(), [])?;
    let body = request::body(&parts.headers, body, state.config.small_body()).await?;
    let [filter] = request::fields(&body, ["filter"])?;
    let filter = filter.ok_or_else(|| ProblemDetails::missing("filter"))?;
    let filter = request::log_filter(filter, "filter")?;
    // Logged before and after, because either the old or the new filter may hide it.
    info!(filter, "an operator changes the log filter");
    state
        .logs
        .set_filter(&filter)
        .map_err(|error| ProblemDetails::unavailable(&error))?;
    info!(filter, "an operator has changed the log filter");
    Ok(json(StatusCode::OK, &LogFilter { filter }))
}
