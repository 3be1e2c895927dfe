//! Checks that a request is an opening handshake of the WebSocket protocol (RFC 6455 section 4.2.1). The
//! library's own upgrade leaves these checks out. Must not know of users.

use hyper::body::Body;
use hyper::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, Version};

use crate::auth;
use crate::protocol::{Dialect, SUBPROTOCOL};

/// Whether the request asks for a WebSocket, well formed or not. A proxy may have removed `Upgrade`, but never
/// removes the key.
pub(super) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    has_upgrade(headers) || headers.contains_key(SEC_WEBSOCKET_KEY)
}

pub(super) fn has_upgrade(headers: &HeaderMap) -> bool {
    lists(headers, &UPGRADE, "websocket")
}

pub(super) fn is_version_13(headers: &HeaderMap) -> bool {
    single(headers, &SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

/// The dialect that the offered subprotocols choose.
pub(super) fn dialect(headers: &HeaderMap) -> Dialect {
    let is_v1 = values(headers, &SEC_WEBSOCKET_PROTOCOL).any(|protocol| protocol == SUBPROTOCOL);
    if is_v1 { Dialect::V1 } else { Dialect::Bare }
}

/// Returns the first thing that is wrong with a handshake. The text names the header.
pub(super) fn check(request: &Request<impl Body>) -> Result<(), &'static str> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err("a WebSocket handshake needs HTTP/1.1, also from a proxy in front");
    }
    if request.method() != Method::GET {
        return Err("a WebSocket handshake is a GET request");
    }
    let mut hosts = headers.get_all(HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => return Err("Host is missing"),
        // A proxy in front may have checked the other one of the two (RFC 9112 section 3.2).
        (Some(_), Some(_)) => return Err("Host is given twice"),
        _ => {}
    }
    if !lists(headers, &CONNECTION, "upgrade") {
        return Err("Connection must list Upgrade: a proxy in front must pass both headers");
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
    check_bearer(headers)
}

/// Checks a token that is given as a subprotocol. The response never repeats a token, and a browser fails
/// the connection if the response selects none of the subprotocols that it offered: so a token needs
/// `switchboard.v1` beside it.
fn check_bearer(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut tokens = auth::bearer_entries(headers);
    match (tokens.next(), tokens.next()) {
        (None, _) => Ok(()),
        (Some(_), None) if dialect(headers) == Dialect::V1 => Ok(()),
        (Some(_), None) => {
            Err("Sec-WebSocket-Protocol: a bearer entry stands beside switchboard.v1 only")
        }
        (Some(_), Some(_)) => Err("Sec-WebSocket-Protocol: a bearer entry is given twice"),
    }
}

/// Whether these are 16 bytes in base64: 22 digits and two signs of padding (RFC 4648 section 4).
/// Ignores the 4 bits of the last digit that encode nothing.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key.strip_suffix(b"==") {
        Some(digits) => digits.len() == 22 && digits.iter().all(is_digit),
        None => false,
    }
}

/// Whether a header lists `value`, in any case.
fn lists(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    values(headers, name).any(|listed| listed.eq_ignore_ascii_case(value))
}

/// The comma-separated values of a header, of all its lines.
pub(super) fn values<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The value of a header that is given once.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => value,
        _ => None,
    }
}
