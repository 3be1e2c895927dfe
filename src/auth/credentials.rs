//! Finds the token in the head of a handshake.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

/// Prefix of a token in the list of subprotocols, where a browser's script can put one.
const BEARER_ENTRY: &str = "bearer.";

/// The token of a handshake: from `Authorization`, else from the subprotocols, else from the query. If
/// `Authorization` has a bearer token, no other place counts. Other schemes in it are for a proxy in front:
/// browsers repeat the `Basic` credentials of a site in every handshake.
pub fn token<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Option<&'a str> {
    if bearer_credentials(headers).next().is_some() {
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

/// The token in `Authorization`, if there is exactly one of the scheme `Bearer` (RFC 6750 section 2.1).
pub fn authorization(headers: &HeaderMap) -> Option<&str> {
    let mut tokens = bearer_credentials(headers);
    match (tokens.next(), tokens.next()) {
        (token, None) => token,
        (_, Some(_)) => None,
    }
}

/// The bearer tokens in all lines of `Authorization`. Some proxies fold the lines into one, with commas.
fn bearer_credentials(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(AUTHORIZATION)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(folded)
        .filter_map(|credentials| {
            let (scheme, token) = credentials.split_once(' ')?;
            let is_bearer = scheme.eq_ignore_ascii_case("bearer");
            is_bearer.then(|| token.trim())
        })
}

/// The credentials in one line. Behind a comma, a word and a space begin the next ones. An operator's token may
/// have a comma, but no space.
fn folded(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let begins_next = |next: &&str| {
            let part = next.trim_start().split(',').next();
            part.is_some_and(|part| part.trim_end().contains(' '))
        };
        let commas = line.match_indices(',').map(|(comma, _)| comma);
        let mut behind = commas.filter_map(|comma| line.get(comma + 1..));
        rest = behind.find(begins_next);
        let end = line.len() - rest.map_or(0, |rest| rest.len() + 1);
        line.get(..end).map(str::trim)
    })
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
