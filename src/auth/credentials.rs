//! Finds the token in the head of a handshake.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

/// Prefix of a token in the list of subprotocols, where a browser's script can put one.
const BEARER_ENTRY: &str = "bearer.";

/// The token of a handshake: from `Authorization`, else from the subprotocols, else from the query. If
/// `Authorization` is there, no other place counts.
pub fn token<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Option<&'a str> {
    if headers.contains_key(AUTHORIZATION) {
        return authorization(headers);
    }
    if let Some(token) = bearer_entries(headers).next() {
        return Some(token);
    }
    let mut tokens = query?
        .split('&')
        .filter_map(|pair| pair.strip_prefix("token="));
    tokens.next()
}

/// The token of the `Authorization` header, if there is one such header and its scheme is `Bearer` (RFC 6750
/// section 2.1).
pub fn authorization(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The tokens among the subprotocols.
pub fn bearer_entries(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|entry| entry.trim().strip_prefix(BEARER_ENTRY))
}
