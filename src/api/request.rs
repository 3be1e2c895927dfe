//! Reads a request: its body, limited in bytes and in time, and the fields of body and query. Unknown fields
//! are refused, so that a misspelt field does not silently get its default.

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

use super::problem::ProblemDetails;
use crate::config;
use crate::identity::UserId;
use crate::protocol::JsonString;

/// The limits of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// The most bytes.
    pub(super) bytes: usize,
    /// The setting that changes `bytes`, if one does.
    pub(super) setting: Option<&'static str>,
    /// How long the body may take.
    pub(super) time: Duration,
}

/// Reads a body.
pub(super) async fn body(
    headers: &HeaderMap,
    body: Incoming,
    limits: BodyLimits,
) -> Result<Bytes, ProblemDetails> {
    let BodyLimits {
        bytes,
        setting,
        time,
    } = limits;
    if body.size_hint().lower() > bytes as u64 {
        return Err(ProblemDetails::too_large(bytes, setting));
    }
    if !body.is_end_stream() && !is_json(headers) {
        return Err(ProblemDetails::media_type());
    }
    match timeout(time, Limited::new(body, bytes).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ProblemDetails::too_large(bytes, setting))
        }
        // The connection has failed, so any response will do: no client reads it.
        Ok(Err(_)) => Err(ProblemDetails::not_json()),
        Err(_) => Err(ProblemDetails::late(time.as_secs_f64())),
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

/// The raw JSON values of these fields of a JSON object. Refuses other fields, and a field that comes twice.
pub(super) fn fields<'a, const N: usize>(
    body: &'a [u8],
    names: [&'static str; N],
) -> Result<[Option<&'a str>; N], ProblemDetails> {
    let RawFields(fields) = serde_json::from_slice(body).map_err(|_| ProblemDetails::not_json())?;
    let mut values = [None; N];
    for (name, value) in fields {
        let Some(index) = names.iter().position(|known| *known == name) else {
            return Err(ProblemDetails::unknown(&name, &names));
        };
        if values[index].replace(value.get()).is_some() {
            return Err(ProblemDetails::duplicate(&name));
        }
    }
    Ok(values)
}

/// The fields of a JSON object in their order, which a map would not keep apart if a name comes twice.
struct RawFields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawFieldsVisitor;
        impl<'de> Visitor<'de> for RawFieldsVisitor {
            type Value = RawFields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<JsonString<'_>>()? {
                    fields.push((name.0, map.next_value()?));
                }
                Ok(RawFields(fields))
            }
        }
        deserializer.deserialize_map(RawFieldsVisitor)
    }
}

/// The values of these parameters of a query. Refuses other parameters, and a parameter that comes twice.
pub(super) fn query<'a, const N: usize>(
    query: Option<&'a str>,
    names: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N], ProblemDetails> {
    let mut values = [const { None }; N];
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let Some(index) = names.iter().position(|known| *known == name) else {
            return Err(ProblemDetails::unknown(&name, &names));
        };
        if values[index].replace(value).is_some() {
            return Err(ProblemDetails::duplicate(&name));
        }
    }
    Ok(values)
}

/// An integer within a range.
pub(super) fn number(
    text: &str,
    field: &'static str,
    range: RangeInclusive<u64>,
) -> Result<u64, ProblemDetails> {
    let (min, max) = (range.start(), range.end());
    // Rust parses `+1` and `01`, which JSON does not allow.
    let is_plain = text == "0" || !text.starts_with(['+', '0']);
    text.parse()
        .ok()
        .filter(|number| is_plain && range.contains(number))
        .ok_or_else(|| {
            let expected = format!("an integer from {min} to {max}");
            ProblemDetails::over(field, &expected, *max)
        })
}

/// An integer within a range, as a JSON number such as `1`, `1.0` or `1e0`. The range must end at 2^53 - 1 at
/// most, because a float holds no larger integers exactly.
pub(super) fn json_number(
    raw: &str,
    field: &'static str,
    range: RangeInclusive<u64>,
) -> Result<u64, ProblemDetails> {
    let float = raw.parse::<f64>();
    let is_number = raw.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let whole = float.ok().filter(|float| is_number && float.fract() == 0.0);
    // Adding 0.0 makes 0 of -0. Without an integer, the empty text makes `number` refuse.
    let text = whole.map_or(String::new(), |whole| (whole + 0.0).to_string());
    number(&text, field, range)
}

/// The id of a user.
pub(super) fn user(text: &str, field: &'static str) -> Result<UserId, ProblemDetails> {
    number(text, field, ID_RANGE).map(id)
}

/// The id of a user, as a JSON number.
pub(super) fn json_user(raw: &str, field: &'static str) -> Result<UserId, ProblemDetails> {
    json_number(raw, field, ID_RANGE).map(id)
}

const ID_RANGE: RangeInclusive<u64> = 1..=UserId::MAX;

fn id(number: u64) -> UserId {
    UserId::new(number).expect("number has checked the range")
}

/// A JSON string.
pub(super) fn text(
    raw: &str,
    field: &'static str,
    expected: &str,
) -> Result<String, ProblemDetails> {
    serde_json::from_str(raw).map_err(|_| ProblemDetails::invalid(field, expected))
}

/// A log filter: levels, and targets with levels, spelt in one way only.
pub(super) fn log_filter(raw: &str, field: &'static str) -> Result<String, ProblemDetails> {
    let expected = "off, error, warn, info, debug, trace, or targets with one of these, such as \
        \"info,switchboard=debug\", at most 1024 bytes";
    let text = text(raw, field, expected)?;
    if text.len() > FILTER_BYTES_MAX {
        let limit = FILTER_BYTES_MAX as u64;
        return Err(ProblemDetails::over(field, expected, limit));
    }
    if text.split(',').all(is_directive) {
        Ok(text)
    } else {
        Err(ProblemDetails::invalid(field, expected))
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

/// A duration as the settings write it, such as `"30s"`.
pub(super) fn duration(
    raw: &str,
    field: &'static str,
    max: Duration,
) -> Result<Duration, ProblemDetails> {
    let max_text = config::duration_text(max);
    let expected = format!("a duration such as \"30s\", at most \"{max_text}\"");
    let text = text(raw, field, &expected)?;
    config::parse_duration(&text)
        .filter(|duration| *duration <= max)
        .ok_or_else(|| ProblemDetails::over(field, &expected, max_text))
}
