//! Errors of the API as problem details (RFC 9457): a type for programs, a text for people and, where they
//! apply, the field at fault and its limit.

use std::borrow::Cow;

use hyper::StatusCode;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use serde::Serialize;

use super::response::{ApiResponse, json};

/// The address of a type: a JSON Pointer into the description of the API.
const TYPES: &str = "/api/openapi.yaml#/x-problems/";

/// The most characters of an unknown field's name that a response repeats.
const QUOTED_MAX: usize = 64;

/// The types of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProblemType {
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

impl ProblemType {
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

/// Why a request is refused or has failed.
#[derive(Clone, Debug)]
pub(crate) struct ProblemDetails {
    kind: ProblemType,
    detail: String,
    field: Option<Cow<'static, str>>,
    limit: Option<ValueLimit>,
    allow: Option<&'static str>,
}

/// The limit that a value exceeds.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ValueLimit {
    Number(u64),
    Text(String),
}

impl From<u64> for ValueLimit {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<String> for ValueLimit {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl ProblemDetails {
    fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            field: None,
            limit: None,
            allow: None,
        }
    }

    fn with_field(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    fn with_limit(mut self, limit: impl Into<ValueLimit>) -> Self {
        self.limit = Some(limit.into());
        self
    }

    /// The request has no token, or not the right one.
    pub(crate) fn unauthorized() -> Self {
        let detail = "the token of admin.token_file is required, as \"Authorization: Bearer\"";
        Self::new(ProblemType::Unauthorized, detail)
    }

    pub(super) fn not_found() -> Self {
        let detail = "unknown path: /api/openapi.yaml lists the paths";
        Self::new(ProblemType::NotFound, detail)
    }

    /// The path does not support the method. `allow` lists those that it supports, as a header does.
    pub(super) fn method(allow: &'static str) -> Self {
        let mut problem = Self::new(
            ProblemType::MethodNotAllowed,
            format!("only {allow} can be used here"),
        );
        problem.allow = Some(allow);
        problem
    }

    pub(super) fn not_json() -> Self {
        Self::new(ProblemType::NotJson, "the body is not a JSON object")
    }

    pub(super) fn media_type() -> Self {
        let detail = "the body must be application/json in UTF-8";
        Self::new(ProblemType::UnsupportedMediaType, detail).with_field("Content-Type")
    }

    /// The body did not arrive in time.
    pub(super) fn late(seconds: f64) -> Self {
        Self::new(
            ProblemType::Late,
            format!("the body did not arrive within {seconds} s (limits.header_timeout)"),
        )
    }

    /// The body has more than `bytes`. `setting` is the setting that changes this limit, if one does.
    pub(super) fn too_large(bytes: usize, setting: Option<&'static str>) -> Self {
        let by = setting.map_or_else(String::new, |setting| format!(" ({setting})"));
        let detail = format!("the body has more than {bytes} bytes{by}");
        let problem = Self::new(ProblemType::TooLarge, detail).with_limit(bytes as u64);
        match setting {
            Some(setting) => problem.with_field(setting),
            None => problem,
        }
    }

    pub(super) fn missing(field: &'static str) -> Self {
        Self::new(ProblemType::MissingField, format!("{field} is missing")).with_field(field)
    }

    pub(super) fn unknown(field: &str, known: &[&str]) -> Self {
        let field: String = field.chars().take(QUOTED_MAX).collect();
        let known = match known {
            [] => "there are none".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        Self::new(
            ProblemType::UnknownField,
            format!("{field} is not known: {known}"),
        )
        .with_field(field)
    }

    pub(super) fn duplicate(field: &str) -> Self {
        let field: String = field.chars().take(QUOTED_MAX).collect();
        Self::new(
            ProblemType::DuplicateField,
            format!("{field} is given twice"),
        )
        .with_field(field)
    }

    /// A value that the field cannot have.
    pub(super) fn invalid(field: &'static str, expected: &str) -> Self {
        Self::new(
            ProblemType::InvalidField,
            format!("{field} must be {expected}"),
        )
        .with_field(field)
    }

    /// A value that exceeds a limit of the field.
    pub(super) fn over(field: &'static str, expected: &str, limit: impl Into<ValueLimit>) -> Self {
        Self::invalid(field, expected).with_limit(limit)
    }

    /// The request cannot be done here, or not now.
    pub(super) fn unavailable(why: &impl std::fmt::Display) -> Self {
        Self::new(ProblemType::Unavailable, why.to_string())
    }

    pub(super) fn internal() -> Self {
        Self::new(
            ProblemType::Internal,
            "internal error: see the log of the relay",
        )
    }

    /// The response with this problem.
    pub(crate) fn response(&self) -> ApiResponse {
        #[derive(Serialize)]
        struct ProblemBody<'a> {
            r#type: String,
            title: &'static str,
            status: u16,
            detail: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<&'a ValueLimit>,
        }
        let status = self.kind.status();
        let body = ProblemBody {
            r#type: format!("{TYPES}{}", self.kind.name()),
            title: self.kind.title(),
            status: status.as_u16(),
            detail: &self.detail,
            field: self.field.as_deref(),
            limit: self.limit.as_ref(),
        };
        let mut response = json(status, &body);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.kind == ProblemType::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
