//! Decodes a client's message into an [`Inbound`], or names the field that is wrong.
//!
//! Two decoders give the same answer. The general one is `serde_json`. The fast one knows the layout that nearly
//! every client sends, and copies nothing; it leaves every other layout to the general one. A property test compares
//! the two.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr2, memmem};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{CLIENT_ID_BYTES_MAX, Dialect};
use crate::identity::UserId;

/// A message from a client. The texts are JSON literals as the client wrote them, with quotes and escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound<'a> {
    /// The recipient.
    pub recipient: UserId,
    /// The message, a JSON string literal.
    pub message: &'a str,
    /// The sender's id for the message, a JSON string or integer. Present where the sender asks for an outcome.
    pub id: Option<&'a str>,
    /// The text of `traceparent`, not checked yet: a malformed one counts as absent (W3C Trace Context section 4.3),
    /// and only a relay that traces needs it.
    pub traceparent: Option<&'a str>,
    /// The text of `tracestate`, which counts only beside a `traceparent`; not checked either.
    pub tracestate: Option<&'a str>,
}

/// The fields of a client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `recipient_id`
    RecipientId,
    /// `message`
    Message,
    /// `id`
    Id,
}

impl Field {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RecipientId => "recipient_id",
            Self::Message => "message",
            Self::Id => "id",
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::RecipientId => "an integer from 1 to 9007199254740991",
            Self::Message => "a string without lone surrogates",
            Self::Id => {
                "a string of at most 64 bytes or an integer of at most 9007199254740991 in size"
            }
        }
    }
}

/// Why a client's message cannot be taken. The text fits a close frame and quotes nothing of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInput {
    /// The text is not a JSON object.
    #[error("not a JSON object")]
    NotJson,
    /// A required field is missing.
    #[error("{} is missing", .0.as_str())]
    Missing(Field),
    /// A field is given twice.
    #[error("{} is given twice", .0.as_str())]
    Duplicate(Field),
    /// A field has a value that is not allowed.
    #[error("{} must be {}", .0.as_str(), .0.expected())]
    Invalid(Field),
}

impl BadInput {
    /// The `code` of a `switchboard.v1` error frame.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::Missing(_) => "missing_field",
            Self::Duplicate(_) => "duplicate_field",
            Self::Invalid(_) => "invalid_field",
        }
    }
}

/// Decodes a client's message. Ignores unknown fields; in [`Dialect::Bare`] `id` is one of these.
pub fn decode(text: &str, dialect: Dialect) -> Result<Inbound<'_>, BadInput> {
    match fast(text, dialect) {
        Some(inbound) => Ok(inbound),
        None => general(text, dialect),
    }
}

/// The `id` of a `switchboard.v1` message that [`decode`] has refused, where it can be read: the text is a JSON object
/// with one valid `id`. Parses the text a second time, so that messages that are taken do not pay for those that are
/// not.
pub fn readable_id(text: &str) -> Option<&str> {
    let Members { fields, .. } = serde_json::from_str(text).ok()?;
    match fields[Field::Id as usize] {
        Occurrence::Once(value) => client_id(value.get()).ok(),
        Occurrence::None | Occurrence::More => None,
    }
}

/// Whether a text that [`decode`] has refused for its missing recipient is a ping of `switchboard.v1`:
/// `{"type":"ping"}`, with or without an `id`. Messages pay nothing for it.
pub fn is_ping(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Typed<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
    }
    serde_json::from_str::<Typed<'_>>(text).is_ok_and(|typed| typed.kind == "ping")
}

/// Decodes `{"recipient_id":2,"message":"…"}` without escapes, with or without a space after each colon and comma.
/// In `switchboard.v1` an integer `id` may follow. Returns nothing for every other layout.
fn fast(text: &str, dialect: Dialect) -> Option<Inbound<'_>> {
    let rest = text.strip_prefix("{\"recipient_id\":")?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let (recipient, rest) = digits(rest)?;
    let recipient = UserId::new(recipient)?;
    let rest = rest.strip_prefix(',')?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let rest = rest.strip_prefix("\"message\":")?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let inner = rest.strip_prefix('"')?;
    let end = memchr2(b'"', b'\\', inner.as_bytes())?;
    let (body, tail) = inner.split_at_checked(end)?;
    if body.bytes().map(|byte| u8::from(byte < 0x20)).max() == Some(1) {
        return None;
    }
    let tail = tail.strip_prefix('"')?;
    let message = rest.get(..end + 2)?;
    if tail == "}" {
        return Some(Inbound {
            recipient,
            message,
            id: None,
            traceparent: None,
            tracestate: None,
        });
    }
    if dialect == Dialect::Bare {
        return None;
    }
    let tail = tail.strip_prefix(',')?;
    let tail = tail.strip_prefix(' ').unwrap_or(tail);
    let tail = tail.strip_prefix("\"id\":")?;
    let tail = tail.strip_prefix(' ').unwrap_or(tail);
    let (number, close) = digits(tail)?;
    if close != "}" || number > UserId::MAX {
        return None;
    }
    let id = tail.get(..tail.len() - 1)?;
    Some(Inbound {
        recipient,
        message,
        id: Some(id),
        traceparent: None,
        tracestate: None,
    })
}

/// Splits a decimal number of at most 16 digits, without leading zeros, from the head of `text`.
fn digits(text: &str) -> Option<(u64, &str)> {
    let mut number = 0;
    let mut count = 0;
    for byte in text.bytes().take_while(u8::is_ascii_digit) {
        count += 1;
        if count > 16 {
            return None;
        }
        number = number * 10 + u64::from(byte - b'0');
    }
    if count == 0 || (count > 1 && text.starts_with('0')) {
        return None;
    }
    Some((number, text.get(count..)?))
}

fn general(text: &str, dialect: Dialect) -> Result<Inbound<'_>, BadInput> {
    let Members {
        fields,
        traceparent,
        tracestate,
    } = serde_json::from_str(text).map_err(|_| BadInput::NotJson)?;
    let one = |field: Field| match fields[field as usize] {
        Occurrence::None => Err(BadInput::Missing(field)),
        Occurrence::Once(value) => Ok(value.get()),
        Occurrence::More => Err(BadInput::Duplicate(field)),
    };
    let recipient = recipient(one(Field::RecipientId)?)?;
    let message = one(Field::Message)?;
    if !is_sound_string(message) {
        return Err(BadInput::Invalid(Field::Message));
    }
    let id = match (dialect, fields[Field::Id as usize]) {
        (Dialect::Bare, _) | (Dialect::V1, Occurrence::None) => None,
        (Dialect::V1, _) => Some(client_id(one(Field::Id)?)?),
    };
    let trace = |field| match (dialect, field) {
        (Dialect::V1, Occurrence::Once(value)) => text_of(RawValue::get(value)),
        _ => None,
    };
    Ok(Inbound {
        recipient,
        message,
        id,
        traceparent: trace(traceparent),
        tracestate: trace(tracestate),
    })
}

fn recipient(raw: &str) -> Result<UserId, BadInput> {
    raw.parse()
        .ok()
        .and_then(UserId::new)
        .ok_or(BadInput::Invalid(Field::RecipientId))
}

fn client_id(raw: &str) -> Result<&str, BadInput> {
    let sound = if raw.starts_with('"') {
        decoded_len(raw).is_some_and(|bytes| bytes <= CLIENT_ID_BYTES_MAX)
    } else {
        raw.parse::<i64>()
            .is_ok_and(|number| number.unsigned_abs() <= UserId::MAX)
    };
    if sound {
        Ok(raw)
    } else {
        Err(BadInput::Invalid(Field::Id))
    }
}

/// Whether a JSON value is a string of Unicode scalar values. `serde_json` checks a raw string except that surrogate
/// escapes come in pairs.
pub(crate) fn is_sound_string(raw: &str) -> bool {
    raw.starts_with('"')
        && (memmem::find(raw.as_bytes(), b"\\u").is_none() || decoded_len(raw).is_some())
}

/// The text between the quotes of a JSON string.
fn text_of(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

fn decoded_len(raw: &str) -> Option<usize> {
    serde_json::from_str::<JsonString<'_>>(raw)
        .ok()
        .map(|text| text.0.len())
}

/// A JSON string. Copied only where it has escapes.
#[derive(serde::Deserialize)]
pub(crate) struct JsonString<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

#[derive(Clone, Copy)]
enum Occurrence<'a> {
    None,
    Once(&'a RawValue),
    More,
}

/// The values of each [`Field`] and of the trace, and how often each came. The visitor is hand-written, because a
/// derived struct also takes an array and its errors do not name the field.
struct Members<'a> {
    fields: [Occurrence<'a>; 3],
    traceparent: Occurrence<'a>,
    tracestate: Occurrence<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members {
                    fields: [Occurrence::None; 3],
                    traceparent: Occurrence::None,
                    tracestate: Occurrence::None,
                };
                while let Some(key) = map.next_key()? {
                    let seen = match key {
                        Member::Field(field) => &mut members.fields[field as usize],
                        Member::Traceparent => &mut members.traceparent,
                        Member::Tracestate => &mut members.tracestate,
                        Member::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    let value = map.next_value()?;
                    *seen = match seen {
                        Occurrence::None => Occurrence::Once(value),
                        _ => Occurrence::More,
                    };
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

enum Member {
    Field(Field),
    Traceparent,
    Tracestate,
    Other,
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Member, E> {
                Ok(match name {
                    "recipient_id" => Member::Field(Field::RecipientId),
                    "message" => Member::Field(Field::Message),
                    "id" => Member::Field(Field::Id),
                    "traceparent" => Member::Traceparent,
                    "tracestate" => Member::Tracestate,
                    _ => Member::Other,
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests;
