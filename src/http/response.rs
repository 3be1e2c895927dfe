//! The response of every route: a small body in memory.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};

/// A response of the relay.
pub(super) type HttpResponse = Response<Full<Bytes>>;

/// Tells the peer that the connection ends behind this response (RFC 9112 section 9.6); hyper then ends it.
pub(super) fn close_after(response: &mut HttpResponse) {
    let value = if response.headers().contains_key(UPGRADE) {
        // RFC 9110 section 7.8 requires this option wherever Upgrade is sent.
        HeaderValue::from_static("upgrade, close")
    } else {
        HeaderValue::from_static("close")
    };
    response.headers_mut().insert(CONNECTION, value);
}

/// A plain text that no cache keeps.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
