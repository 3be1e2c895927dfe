//! One match on the path. Everything that is answered has a small body in memory; a request's body
//! is never read, but by the API.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE, VARY};
use hyper::{Method, Request, Response, StatusCode};

use super::handshake::{self, Handshake};
use super::refusal::Refusal;
use super::{HttpState, ListenerRole, assets};
use crate::api::{Api, ProblemDetails};
use crate::lifecycle::Stage;

pub(super) type Answer = Response<Full<Bytes>>;

pub(super) async fn answer(
    request: Request<Incoming>,
    role: ListenerRole,
    state: &Arc<HttpState>,
    handshake: &Handshake,
) -> Answer {
    let users = role != ListenerRole::Admin;
    let admin = role != ListenerRole::Users;
    match request.uri().path() {
        "/" if users => root(request, state, handshake).await,
        "/metrics" if admin => match read_only(request.method()) {
            Some(refusal) => refusal,
            None if role == ListenerRole::Admin && !state.is_operators(request.headers()) => {
                Refusal::Unauthorized.answer()
            }
            None => metrics(state).await,
        },
        "/healthz" | "/livez" if admin => {
            read_only(request.method()).unwrap_or_else(|| text(StatusCode::OK, "ok\n"))
        }
        "/readyz" if admin => read_only(request.method()).unwrap_or_else(|| ready(state)),
        path if role == ListenerRole::Admin
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
            && let Some(file) = assets::file(path) =>
        {
            read_only(request.method()).unwrap_or_else(|| file.answer())
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// The answer to a method that reads nothing.
fn read_only(method: &Method) -> Option<Answer> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(answer)
}

async fn root(request: Request<Incoming>, state: &Arc<HttpState>, handshake: &Handshake) -> Answer {
    if let Some(answer) = read_only(request.method()) {
        return answer;
    }
    if handshake::is_asked_for(&request) {
        return handshake::upgrade(request, state, handshake).await;
    }
    if state.page && assets::is_asked_for(request.headers()) {
        return assets::PAGE.answer();
    }
    let mut answer = text(
        StatusCode::UPGRADE_REQUIRED,
        "this is a WebSocket relay: connect to this address with a WebSocket client, for example websocat ws://HOST:PORT/\n",
    );
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // RFC 9110 section 7.8 asks for the option wherever Upgrade is sent.
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    answer
}

async fn metrics(state: &Arc<HttpState>) -> Answer {
    let relay = state.relay.clone();
    // It walks all users and reads /proc: not on a thread that relays.
    let scraped =
        tokio::task::spawn_blocking(move || relay.metrics().scrape(|| relay.stats())).await;
    match scraped {
        Ok(body) => {
            let mut answer = text(StatusCode::OK, body);
            answer.headers_mut().insert(
                CONTENT_TYPE,
                HeaderValue::from_static(prometheus::TEXT_FORMAT),
            );
            answer
        }
        Err(error) => {
            tracing::error!(%error, "scrape failed");
            text(StatusCode::INTERNAL_SERVER_ERROR, "scrape failed\n")
        }
    }
}

fn ready(state: &HttpState) -> Answer {
    match state.shutdown.stage() {
        Stage::Ready => match state.relay.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(unready) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{unready}\n")),
        },
        Stage::Unready | Stage::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
