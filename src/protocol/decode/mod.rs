//! Decodes a client's message into an [`Inbound`], or names the field that is wrong.
//!
//! Two decoders give the same answer. The general one is `serde_json`. The fast one knows the layout that nearly
//! every client sends, and copies nothing; it leaves every other layout to the general one. A property test compares
//! the two.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr, memchr2, memmem};
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
    /// The whole text of the message if it has a `traceparent`, for [`inbound_trace`]. Messages without one pay nothing
    /// for it.
    pub traced: Option<&'a str>,
}

/// The trace that a client's message belongs to, as texts that are not checked yet: a malformed one counts as absent
/// (W3C Trace Context section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundTrace<'a> {
    /// The text of `traceparent`.
    pub traceparent: &'a str,
    /// The text of `tracestate`.
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
    let members: Members<'_> = serde_json::from_str(text).ok()?;
    client_id(members.once(Field::Id as usize)?).ok()
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
            traced: None,
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
        traced: None,
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
    let members: Members<'_> = serde_json::from_str(text).map_err(|_| BadInput::NotJson)?;
    let one = |field: Field| {
        members.once(field as usize).ok_or_else(|| {
            if members.is_repeated[field as usize] {
                BadInput::Duplicate(field)
            } else {
                BadInput::Missing(field)
            }
        })
    };
    let recipient = recipient(one(Field::RecipientId)?)?;
    let message = one(Field::Message)?;
    if !is_sound_string(message) {
        return Err(BadInput::Invalid(Field::Message));
    }
    let id = match (dialect, members.last[Field::Id as usize]) {
        (Dialect::Bare, _) | (Dialect::V1, None) => None,
        (Dialect::V1, _) => Some(client_id(one(Field::Id)?)?),
    };
    let is_traced = dialect == Dialect::V1 && members.last[TRACEPARENT].is_some();
    Ok(Inbound {
        recipient,
        message,
        id,
        traced: is_traced.then_some(text),
    })
}

/// The trace of a `switchboard.v1` message that has been decoded. Parses the text a second time, as [`readable_id`]
/// does.
pub fn inbound_trace(text: &str) -> Option<InboundTrace<'_>> {
    let members: Members<'_> = serde_json::from_str(text).ok()?;
    Some(InboundTrace {
        traceparent: text_of(members.once(TRACEPARENT)?)?,
        tracestate: members.once(TRACESTATE).and_then(text_of),
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
    // Looked for byte by byte first: in a short text, a search for two bytes costs ten times as much.
    let has_code = |escape: usize| memmem::find(&raw.as_bytes()[escape..], b"\\u").is_some();
    raw.starts_with('"')
        && (!memchr(b'\\', raw.as_bytes()).is_some_and(has_code) || decoded_len(raw).is_some())
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

/// The index of `traceparent` among the [`Members`], behind each [`Field`].
const TRACEPARENT: usize = 3;
/// The index of `tracestate`.
const TRACESTATE: usize = 4;

/// The values of each [`Field`] and of the trace. The visitor is hand-written, because a derived struct also takes an
/// array and its errors do not name the field.
#[derive(Default)]
struct Members<'a> {
    /// The last value of each.
    last: [Option<&'a RawValue>; 5],
    is_repeated: [bool; 5],
}

impl<'a> Members<'a> {
    /// The value of a member that came once.
    fn once(&self, member: usize) -> Option<&'a str> {
        self.last[member]
            .filter(|_| !self.is_repeated[member])
            .map(RawValue::get)
    }
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
                let mut members = Members::default();
                while let Some(key) = map.next_key()? {
                    let Member(Some(member)) = key else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let value = map.next_value()?;
                    members.is_repeated[member] = members.last[member].replace(value).is_some();
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The index of a member, if it is one that counts.
struct Member(Option<usize>);

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Member, E> {
                Ok(Member(match name {
                    "recipient_id" => Some(Field::RecipientId as usize),
                    "message" => Some(Field::Message as usize),
                    "id" => Some(Field::Id as usize),
                    "traceparent" => Some(TRACEPARENT),
                    "tracestate" => Some(TRACESTATE),
                    _ => None,
                }))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests;
