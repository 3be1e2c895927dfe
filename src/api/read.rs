//! What a request says: its body, bounded in bytes and in time, and the fields in it and in its query.
//! What is not known is refused, so that a slip is not taken for a default.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_TYPE;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::problem::Problem;
use crate::config;
use crate::identity::UserId;
use crate::protocol::JsonString;

/// The most that a body may have, and the setting that says so, if one does.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyMax {
    pub(super) bytes: usize,
    pub(super) setting: Option<&'static str>,
    pub(super) time: Duration,
}

/// Reads a body.
pub(super) async fn body(
    headers: &HeaderMap,
    body: Incoming,
    max: BodyMax,
) -> Result<Bytes, Problem> {
    let BodyMax {
        bytes,
        setting,
        time,
    } = max;
    if body.size_hint().lower() > bytes as u64 {
        return Err(Problem::too_large(bytes, setting));
    }
    if !body.is_end_stream() && !is_json(headers) {
        return Err(Problem::media_type());
    }
    match timeout(time, Limited::new(body, bytes).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::too_large(bytes, setting)),
        // The connection has failed, and nobody will read the answer.
        Ok(Err(_)) => Err(Problem::not_json()),
        Err(_) => Err(Problem::late(time.as_secs_f64())),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).into_iter();
    let (Some(only), None) = (types.next(), types.next()) else {
        return false;
    };
    let Ok(only) = only.to_str() else {
        return false;
    };
    let mut parts = only.split(';').map(str::trim);
    let is_json = parts
        .next()
        .is_some_and(|name| name.eq_ignore_ascii_case("application/json"));
    is_json
        && parts
            .filter_map(|parameter| parameter.split_once('='))
            .filter(|(name, _)| name.eq_ignore_ascii_case("charset"))
            .all(|(_, charset)| charset.trim_matches('"').eq_ignore_ascii_case("utf-8"))
}

/// The values of these fields of a JSON object, as they came; each at most once, and no others.
pub(super) fn fields<'a, const N: usize>(
    body: &'a [u8],
    names: [&'static str; N],
) -> Result<[Option<&'a str>; N], Problem> {
    let Members(members) = serde_json::from_slice(body).map_err(|_| Problem::not_json())?;
    let mut values = [None; N];
    for (name, value) in members {
        let Some(index) = names.iter().position(|known| *known == name) else {
            return Err(Problem::unknown(&name, &names));
        };
        if values[index].replace(value.get()).is_some() {
            return Err(Problem::duplicate(&name));
        }
    }
    Ok(values)
}

struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<JsonString<'_>>()? {
                    members.push((name.0, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The parameters of a query by their names; each at most once, and no others.
pub(super) fn query<'a, const N: usize>(
    query: Option<&'a str>,
    names: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N], Problem> {
    let mut values = [const { None }; N];
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let Some(index) = names.iter().position(|known| *known == name) else {
            return Err(Problem::unknown(&name, &names));
        };
        if values[index].replace(value).is_some() {
            return Err(Problem::duplicate(&name));
        }
    }
    Ok(values)
}

/// A whole number within a range.
pub(super) fn number(
    text: &str,
    field: &'static str,
    range: RangeInclusive<u64>,
) -> Result<u64, Problem> {
    let (min, max) = (range.start(), range.end());
    // One sign and leading zeros are Rust's, not JSON's.
    let is_plain = text == "0" || !text.starts_with(['+', '0']);
    text.parse()
        .ok()
        .filter(|number| is_plain && range.contains(number))
        .ok_or_else(|| {
            let expected = format!("an integer from {min} to {max}");
            Problem::over(field, &expected, *max)
        })
}

/// A JSON number that is whole, such as `1`, `1.0` or `1e0`, within a range that ends at 2^53 - 1 at most,
/// so that it has been read exactly.
pub(super) fn json_number(
    raw: &str,
    field: &'static str,
    range: RangeInclusive<u64>,
) -> Result<u64, Problem> {
    let float = raw.parse::<f64>();
    let is_number = raw.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let whole = float.ok().filter(|float| is_number && float.fract() == 0.0);
    // Of the two zeros the one without a sign. What is not whole is refused there, in the same words.
    let text = whole.map_or(String::new(), |whole| (whole + 0.0).to_string());
    number(&text, field, range)
}

/// The id of a user.
pub(super) fn user(text: &str, field: &'static str) -> Result<UserId, Problem> {
    number(text, field, ID_RANGE).map(id)
}

/// The id of a user, as a JSON number.
pub(super) fn json_user(raw: &str, field: &'static str) -> Result<UserId, Problem> {
    json_number(raw, field, ID_RANGE).map(id)
}

const ID_RANGE: RangeInclusive<u64> = 1..=UserId::MAX;

fn id(number: u64) -> UserId {
    UserId::new(number).expect("within its range")
}

/// A JSON string.
pub(super) fn text(raw: &str, field: &'static str, expected: &str) -> Result<String, Problem> {
    serde_json::from_str(raw).map_err(|_| Problem::invalid(field, expected))
}

/// A filter of logs: levels, and targets with levels. The settings take more, such as a pattern for a
/// span's field, which is nothing to be sent to a process that runs.
pub(super) fn log_filter(raw: &str, field: &'static str) -> Result<String, Problem> {
    let expected = "off, error, warn, info, debug, trace, or targets with one of these, such as \
        \"info,switchboard=debug\", at most 1024 bytes";
    let text = text(raw, field, expected)?;
    if text.len() > FILTER_BYTES_MAX {
        let limit = FILTER_BYTES_MAX as u64;
        return Err(Problem::over(field, expected, limit));
    }
    if text.split(',').all(is_directive) {
        Ok(text)
    } else {
        Err(Problem::invalid(field, expected))
    }
}

const FILTER_BYTES_MAX: usize = 1024;

fn is_directive(text: &str) -> bool {
    let (target, level) = match text.rsplit_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, text),
    };
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    matches!(level, "off" | "error" | "warn" | "info" | "debug" | "trace")
        && target.is_none_or(|target| target.split("::").all(is_name))
}

/// A duration as in the settings.
pub(super) fn duration(raw: &str, field: &'static str, max: Duration) -> Result<Duration, Problem> {
    let max_text = config::duration_text(max);
    let expected = format!("a duration such as \"30s\", at most \"{max_text}\"");
    let text = text(raw, field, &expected)?;
    config::parse_duration(&text)
        .filter(|duration| *duration <= max)
        .ok_or_else(|| Problem::over(field, &expected, max_text))
}
