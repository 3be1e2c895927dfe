//! The routes: one match on the path. Responses are small and in memory. Only the API reads the body of
//! a request.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION, CONTENT_ENCODING,
    CONTENT_TYPE, HeaderValue, UPGRADE, VARY,
};
use hyper::{HeaderMap, Method, Request, StatusCode};

use super::refusal::HandshakeRefusal;
use super::response::{HttpResponse, text};
use super::scrapes::ScrapeForm;
use super::state::{HttpState, ListenerRole};
use super::upgrade::PendingUpgrade;
use super::{assets, handshake, opening};
use crate::api::{Api, ProblemDetails};
use crate::lifecycle::Stage;
use crate::relay::JoinError;

pub(super) async fn respond(
    request: Request<Incoming>,
    role: ListenerRole,
    state: &Arc<HttpState>,
    pending: &PendingUpgrade,
) -> HttpResponse {
    let (users, operators) = (role.serves_users(), role.serves_operators());
    match request.uri().path() {
        "/" if users => root(request, state, pending).await,
        "/handshake" if users => explain_handshake(&request, state, pending).await,
        "/metrics" if operators => match read_only(request.method()) {
            Some(refusal) => refusal,
            // A listener that serves users as well asks for no token.
            None if !users && !state.is_scrapers(request.headers()) => {
                HandshakeRefusal::Unauthorized.response()
            }
            None => metrics(request.headers(), state).await,
        },
        "/healthz" | "/livez" if operators => {
            read_only(request.method()).unwrap_or_else(|| text(StatusCode::OK, "ok\n"))
        }
        "/readyz" if operators => read_only(request.method()).unwrap_or_else(|| readiness(state)),
        path if !users
            && let Some(api) = &state.api
            && Api::has(path) =>
        {
            if state.is_operators(request.headers()) {
                api.respond(request).await
            } else {
                ProblemDetails::unauthorized().response()
            }
        }
        path if users
            && state.page
            && let Some(asset) = assets::find(path) =>
        {
            read_only(request.method()).unwrap_or_else(|| asset.response())
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// The response to a method that is not GET or HEAD.
fn read_only(method: &Method) -> Option<HttpResponse> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(response)
}

async fn root(
    request: Request<Incoming>,
    state: &Arc<HttpState>,
    pending: &PendingUpgrade,
) -> HttpResponse {
    if let Some(response) = read_only(request.method()) {
        return response;
    }
    if opening::asks_for_websocket(request.headers()) {
        return handshake::upgrade(request, state, pending).await;
    }
    if state.page && assets::accepts_html(request.headers()) {
        return assets::PAGE.response();
    }
    let mut response = text(
        StatusCode::UPGRADE_REQUIRED,
        "this is a WebSocket relay: connect to this address with a WebSocket client, for example websocat ws://HOST:PORT/\n",
    );
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // RFC 9110 section 7.8 requires this option wherever Upgrade is sent.
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// Any page may ask, and one of an origin that may not connect learns that.
async fn explain_handshake(
    request: &Request<Incoming>,
    state: &HttpState,
    pending: &PendingUpgrade,
) -> HttpResponse {
    let mut response = if *request.method() == Method::OPTIONS {
        // A browser asks first whether the page may show its token (Fetch section 3.2.2).
        text(StatusCode::NO_CONTENT, "")
    } else {
        match read_only(request.method()) {
            Some(refusal) => refusal,
            None => handshake::explain(request, state, pending.source()).await,
        }
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization"),
    );
    response
}

async fn metrics(asked: &HeaderMap, state: &HttpState) -> HttpResponse {
    let form = ScrapeForm::asked_for(asked);
    let relay = state.relay.clone();
    let scraped = state.scrapes.share(form, move || {
        let metrics = relay.metrics();
        metrics.scrape(form.exposition, || relay.stats())
    });
    match scraped.await {
        Ok(body) => {
            let mut response = text(StatusCode::OK, body);
            let headers = response.headers_mut();
            let content_type = form.exposition.content_type();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
            if form.is_gzip {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        }
        Err(error) => {
            tracing::error!(%error, "scrape failed");
            text(StatusCode::INTERNAL_SERVER_ERROR, "scrape failed\n")
        }
    }
}

fn readiness(state: &HttpState) -> HttpResponse {
    match state.shutdown.stage() {
        Stage::Ready if !state.ready_when_full && state.relay.is_full() => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", JoinError::Full),
        ),
        Stage::Ready => match state.relay.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(unready) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{unready}\n")),
        },
        Stage::Unready | Stage::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}
