//! The opening handshake (RFC 6455 section 4.2): every check that tungstenite's upgrade leaves out,
//! the seat, which is taken before the 101 is written, and the answer.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{HeaderMap, Request, StatusCode, Version};
use tokio::sync::Notify;
use tracing::{Instrument, debug, error};

use super::Host;
use super::routes::{Answer, text};
use crate::config::{Origin, OriginPattern};
use crate::lifecycle::Stage;
use crate::protocol::{Dialect, SUBPROTOCOL};
use crate::relay::{Membership, Refused};
use crate::telemetry::metrics::Rejection;
use crate::telemetry::trace;

/// The response header that tells a user its id.
const USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// The request header that names the trace of whoever asks (W3C Trace Context section 3.2).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where a connection's seat is from the upgrade request until the 101 has left.
#[derive(Debug)]
pub(super) struct Handshake {
    /// Whom the connection is from: the socket's peer, or whom a proxy named at its beginning.
    peer: IpAddr,
    membership: Mutex<Option<Membership>>,
    joined: Notify,
}

impl Handshake {
    pub(super) fn new(peer: IpAddr) -> Self {
        Self {
            peer,
            membership: Mutex::new(None),
            joined: Notify::new(),
        }
    }

    fn put(&self, membership: Membership) {
        *self
            .membership
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(membership);
        self.joined.notify_one();
    }

    pub(super) fn take(&self) -> Option<Membership> {
        self.membership
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Completes if a seat was taken and the upgrade is not complete within `timeout` of that.
    pub(super) async fn is_late(&self, timeout: Duration) {
        self.joined.notified().await;
        tokio::time::sleep(timeout).await;
    }
}

/// Whether the request is meant as a WebSocket handshake, well formed or not.
pub(super) fn is_asked_for(request: &Request<Incoming>) -> bool {
    lists(request.headers(), &UPGRADE, "websocket")
}

/// Whether one of a header's comma-separated values is `value`, in any case.
fn lists(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    values(headers, name).any(|listed| listed.eq_ignore_ascii_case(value))
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Answers a handshake, in a span where it is traced.
pub(super) async fn upgrade(
    request: Request<Incoming>,
    host: &Host,
    handshake: &Handshake,
) -> Answer {
    let traceparent = the_only(request.headers(), &TRACEPARENT);
    let span = host.relay.traces().handshake(
        request.method().as_str(),
        request.uri().path(),
        traceparent.and_then(|value| value.to_str().ok()),
    );
    let Some(span) = span else {
        return answer(request, host, handshake).await;
    };
    let answer = answer(request, host, handshake)
        .instrument(span.clone())
        .await;
    trace::answered(&span, answer.status().as_u16());
    answer
}

async fn answer(mut request: Request<Incoming>, host: &Host, handshake: &Handshake) -> Answer {
    let client = host.proxies.client(handshake.peer, request.headers());
    let reject = |reason| {
        debug!(client.addr = %client, ?reason, "upgrade refused");
        host.relay.metrics().handshake_rejected(reason);
    };
    if !is_version_13(request.headers()) {
        reject(Rejection::Version);
        let mut answer = text(
            StatusCode::UPGRADE_REQUIRED,
            "Sec-WebSocket-Version must be 13\n",
        );
        let headers = answer.headers_mut();
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        return answer;
    }
    if let Err(fault) = check(&request) {
        reject(Rejection::Malformed);
        return text(StatusCode::BAD_REQUEST, format!("{fault}\n"));
    }
    if !is_origin_allowed(request.headers(), &host.allowed_origins) {
        reject(Rejection::Origin);
        return text(
            StatusCode::FORBIDDEN,
            "this page may not connect: its origin is not in server.allowed_origins\n",
        );
    }
    if host.shutdown.stage() == Stage::Draining {
        reject(Rejection::Draining);
        return unavailable("the server is draining");
    }
    let v1 =
        values(request.headers(), &SEC_WEBSOCKET_PROTOCOL).any(|protocol| protocol == SUBPROTOCOL);
    let dialect = if v1 { Dialect::V1 } else { Dialect::Bare };
    let membership = match host.relay.join(dialect).await {
        Ok(membership) => membership,
        Err(refused @ (Refused::Full | Refused::NoId)) => {
            reject(Rejection::Full);
            return unavailable(&refused.to_string());
        }
    };
    // The stream comes from the connection itself once the 101 has left; hyper's way through a
    // boxed trait object would cost memory and a call for each read.
    let Ok((mut answer, _never)) = hyper_tungstenite::upgrade(&mut request, None) else {
        error!("a checked handshake was refused");
        return text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n");
    };
    let headers = answer.headers_mut();
    headers.insert(USER_ID, HeaderValue::from(membership.seat().id().get()));
    if v1 {
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    debug!(client.addr = %client, user = %membership.seat().id(), "upgrade accepted");
    handshake.put(membership);
    answer
}

/// Whether a page of the request's origin may connect: one that was served from here, or from an
/// allowed origin. Browsers send an origin with every handshake; what sends none is no browser, and
/// has no page's cookies or address to lend.
fn is_origin_allowed(headers: &HeaderMap, allowed: &[OriginPattern]) -> bool {
    let mut origins = headers.get_all(ORIGIN).into_iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return true,
        (Some(origin), None) => origin.to_str().ok().and_then(Origin::parse),
        (Some(_), Some(_)) => None,
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin.is_some_and(|origin| {
        host.is_some_and(|host| origin.is_of(host))
            || allowed.iter().any(|pattern| pattern.allows(&origin))
    })
}

fn is_version_13(headers: &HeaderMap) -> bool {
    the_only(headers, &SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

/// The value of a header that is given once.
fn the_only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => value,
        _ => None,
    }
}

/// The first thing wrong with a handshake (RFC 6455 section 4.2.1), naming the header.
fn check(request: &Request<Incoming>) -> Result<(), &'static str> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err("a WebSocket handshake needs HTTP/1.1");
    }
    if request.method() != hyper::Method::GET {
        return Err("a WebSocket handshake is a GET request");
    }
    if !headers.contains_key(HOST) {
        return Err("Host is missing");
    }
    if !lists(headers, &CONNECTION, "upgrade") {
        return Err("Connection must list Upgrade");
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).into_iter();
    match (keys.next(), keys.next()) {
        (None, _) => return Err("Sec-WebSocket-Key is missing"),
        (Some(_), Some(_)) => return Err("Sec-WebSocket-Key is given twice"),
        (Some(key), None) if !is_key(key.as_bytes()) => {
            return Err("Sec-WebSocket-Key must be 16 bytes in base64");
        }
        _ => {}
    }
    if !request.body().is_end_stream() {
        return Err("Content-Length and Transfer-Encoding have no place in a WebSocket handshake");
    }
    Ok(())
}

/// Whether these are 16 bytes in base64: 22 digits and two signs of padding (RFC 4648 section 4).
/// The four bits that the last digit has to spare are not looked at.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key.strip_suffix(b"==") {
        Some(digits) => digits.len() == 22 && digits.iter().all(digit),
        None => false,
    }
}

/// 503, to be tried again after a while that differs, so that those refused do not come back in step.
fn unavailable(reason: &str) -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"));
    answer.headers_mut().insert(
        RETRY_AFTER,
        HeaderValue::from(fastrand::u16(RETRY_AFTER_SECONDS)),
    );
    answer
}

const RETRY_AFTER_SECONDS: std::ops::RangeInclusive<u16> = 1..=10;
