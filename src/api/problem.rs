//! What is wrong with a request, as problem details (RFC 9457): a type for programs, words for people,
//! and where they apply the field at fault and its limit.

use std::borrow::Cow;

use hyper::StatusCode;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use serde::Serialize;

use super::{Answer, json};

/// Where a type is described: an object in the document at that path, by its JSON Pointer.
const TYPES: &str = "/api/openapi.yaml#/x-problems/";

/// Of a name that somebody else chose, as much is said back, characters.
const QUOTED_MAX: usize = 64;

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NotJson,
    MissingField,
    UnknownField,
    DuplicateField,
    InvalidField,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    Late,
    TooLarge,
    UnsupportedMediaType,
    Internal,
    Unavailable,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::MissingField => "missing_field",
            Self::UnknownField => "unknown_field",
            Self::DuplicateField => "duplicate_field",
            Self::InvalidField => "invalid_field",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Late => "late",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::NotJson
            | Self::MissingField
            | Self::UnknownField
            | Self::DuplicateField
            | Self::InvalidField => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Late => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NotJson => "Not a JSON object",
            Self::MissingField => "Field missing",
            Self::UnknownField => "Unknown field",
            Self::DuplicateField => "Field given twice",
            Self::InvalidField => "Invalid field",
            Self::Unauthorized => "Unauthorized",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Late => "Request too slow",
            Self::TooLarge => "Too large",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::Internal => "Internal error",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// Why a request is not done.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: Kind,
    detail: String,
    field: Option<Cow<'static, str>>,
    limit: Option<Limit>,
    allow: Option<&'static str>,
}

/// The bound that a value is over.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Limit {
    Number(u64),
    Text(String),
}

impl From<u64> for Limit {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<String> for Limit {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Problem {
    fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            field: None,
            limit: None,
            allow: None,
        }
    }

    fn of(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    fn beyond(mut self, limit: impl Into<Limit>) -> Self {
        self.limit = Some(limit.into());
        self
    }

    /// No token, or another.
    pub(crate) fn unauthorized() -> Self {
        let detail = "the token of admin.token_file is asked for, as \"Authorization: Bearer\"";
        Self::new(Kind::Unauthorized, detail)
    }

    pub(super) fn not_found() -> Self {
        let detail = "nothing is here: /api/openapi.yaml lists what there is";
        Self::new(Kind::NotFound, detail)
    }

    /// Another method than the allowed ones, which are listed as in a header.
    pub(super) fn method(allow: &'static str) -> Self {
        let mut problem = Self::new(Kind::MethodNotAllowed, format!("only {allow}"));
        problem.allow = Some(allow);
        problem
    }

    pub(super) fn not_json() -> Self {
        Self::new(Kind::NotJson, "the body is not a JSON object")
    }

    pub(super) fn media_type() -> Self {
        let detail = "a body is application/json, in UTF-8";
        Self::new(Kind::UnsupportedMediaType, detail).of("Content-Type")
    }

    /// The body did not come in this time.
    pub(super) fn late(seconds: f64) -> Self {
        Self::new(
            Kind::Late,
            format!("the body did not come within {seconds} s"),
        )
    }

    /// The body has more bytes than this setting allows, or than a body ever needs.
    pub(super) fn too_large(bytes: usize, setting: Option<&'static str>) -> Self {
        let by = setting.map_or_else(String::new, |setting| format!(" ({setting})"));
        let detail = format!("the body has more than {bytes} bytes{by}");
        let problem = Self::new(Kind::TooLarge, detail).beyond(bytes as u64);
        match setting {
            Some(setting) => problem.of(setting),
            None => problem,
        }
    }

    pub(super) fn missing(field: &'static str) -> Self {
        Self::new(Kind::MissingField, format!("{field} is missing")).of(field)
    }

    pub(super) fn unknown(field: &str, known: &[&str]) -> Self {
        let field: String = field.chars().take(QUOTED_MAX).collect();
        let known = match known {
            [] => "there are none".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        Self::new(Kind::UnknownField, format!("{field} is not known: {known}")).of(field)
    }

    pub(super) fn duplicate(field: &str) -> Self {
        let field: String = field.chars().take(QUOTED_MAX).collect();
        Self::new(Kind::DuplicateField, format!("{field} is given twice")).of(field)
    }

    /// A value that the field cannot have.
    pub(super) fn invalid(field: &'static str, expected: &str) -> Self {
        Self::new(Kind::InvalidField, format!("{field} must be {expected}")).of(field)
    }

    /// The same, where a bound is what it is about.
    pub(super) fn over(field: &'static str, expected: &str, limit: impl Into<Limit>) -> Self {
        Self::invalid(field, expected).beyond(limit)
    }

    /// It cannot be done here, and why.
    pub(super) fn unavailable(why: &impl std::fmt::Display) -> Self {
        Self::new(Kind::Unavailable, why.to_string())
    }

    pub(super) fn internal() -> Self {
        Self::new(Kind::Internal, "a fault of ours, which is in the log")
    }

    /// The answer that says so.
    pub(crate) fn answer(&self) -> Answer {
        #[derive(Serialize)]
        struct Details<'a> {
            r#type: String,
            title: &'static str,
            status: u16,
            detail: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<&'a Limit>,
        }
        let status = self.kind.status();
        let details = Details {
            r#type: format!("{TYPES}{}", self.kind.name()),
            title: self.kind.title(),
            status: status.as_u16(),
            detail: &self.detail,
            field: self.field.as_deref(),
            limit: self.limit.as_ref(),
        };
        let mut answer = json(status, &details);
        let headers = answer.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.kind == Kind::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        answer
    }
}
