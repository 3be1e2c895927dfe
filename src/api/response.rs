//! Builds the responses of the API: JSON, times in RFC 3339, never cached.

use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) type ApiResponse = Response<Full<Bytes>>;

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> ApiResponse {
    let body = serde_json::to_vec(body).expect("the types of the API serialize");
    response(status, "application/json", body)
}

pub(super) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> ApiResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A time in RFC 3339, to the second.
pub(super) fn time_text(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time).replace_nanosecond(0);
    time.ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .expect("the year of a time of this process has four digits")
}
