//! Why a handshake is refused, and the response to it. The response tells a peer that may connect what it could do
//! better; a peer without a valid token learns nothing.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
    WWW_AUTHENTICATE,
};

use super::response::{HttpResponse, text};
use crate::admission::LimitExceeded;
use crate::relay::JoinError;
use crate::telemetry::metrics::Rejection;

/// The seconds that `Retry-After` adds to the known wait. They are random, so that refused peers do not all come
/// back at the same moment.
const RETRY_AFTER_SECONDS: std::ops::RangeInclusive<u16> = 1..=10;

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeRefusal {
    /// A handshake without `Upgrade`: a proxy has removed it.
    NoUpgrade,
    /// The version of the protocol is not 13.
    Version,
    /// The request is no handshake. The text names the header.
    Malformed(&'static str),
    /// The page's origin may not connect.
    Origin,
    /// No token, or an invalid one.
    Unauthorized,
    /// Too many handshakes, failures or users.
    LimitExceeded(LimitExceeded),
    /// The server drains.
    Draining,
    /// The relay has no client for the user.
    NotJoined(JoinError),
}

impl HandshakeRefusal {
    /// The reason by which metrics count the refusal.
    pub(super) fn reason(self) -> Rejection {
        match self {
            Self::NoUpgrade => Rejection::NoUpgrade,
            Self::Version => Rejection::Version,
            Self::Malformed(_) => Rejection::Malformed,
            Self::Origin => Rejection::Origin,
            Self::Unauthorized => Rejection::Unauthorized,
            Self::LimitExceeded(LimitExceeded { reason, .. }) => reason,
            Self::Draining => Rejection::Draining,
            Self::NotJoined(JoinError::Full) => Rejection::Full,
            Self::NotJoined(JoinError::NoId) => Rejection::NoId,
            Self::NotJoined(JoinError::Unavailable) => Rejection::Cluster,
        }
    }

    /// The response to the peer.
    pub(super) fn response(self) -> HttpResponse {
        match self {
            Self::NoUpgrade => with(
                StatusCode::UPGRADE_REQUIRED,
                "a WebSocket handshake without Upgrade: websocket: a proxy in front must pass the headers \
                 Upgrade and Connection, over HTTP/1.1",
                &[(UPGRADE, "websocket"), (CONNECTION, "upgrade")],
            ),
            Self::Version => with(
                StatusCode::UPGRADE_REQUIRED,
                "Sec-WebSocket-Version must be 13",
                &[
                    (SEC_WEBSOCKET_VERSION, "13"),
                    (UPGRADE, "websocket"),
                    (CONNECTION, "upgrade"),
                ],
            ),
            Self::Malformed(fault) => with(StatusCode::BAD_REQUEST, fault, &[]),
            Self::Origin => with(
                StatusCode::FORBIDDEN,
                "this page may not connect: its origin is not in server.allowed_origins, nor its host in \
                 server.allowed_hosts",
                &[],
            ),
            Self::Unauthorized => with(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                &[(WWW_AUTHENTICATE, "Bearer")],
            ),
            Self::LimitExceeded(LimitExceeded { reason, wait }) => {
                let (status, message) = match reason {
                    Rejection::Rate => (StatusCode::SERVICE_UNAVAILABLE, "too many handshakes"),
                    _ => (StatusCode::TOO_MANY_REQUESTS, "too many from this address"),
                };
                retry_after(wait, with(status, message, &[]))
            }
            Self::Draining => unavailable("the server is draining"),
            Self::NotJoined(refused) => unavailable(&refused.to_string()),
        }
    }
}

fn with(status: StatusCode, message: &str, fields: &[(HeaderName, &'static str)]) -> HttpResponse {
    let mut response = text(status, format!("{message}\n"));
    for (name, value) in fields {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

fn unavailable(message: &str) -> HttpResponse {
    let response = with(StatusCode::SERVICE_UNAVAILABLE, message, &[]);
    retry_after(Duration::ZERO, response)
}

/// Adds `Retry-After`: the wait and a random number of seconds.
fn retry_after(wait: Duration, mut response: HttpResponse) -> HttpResponse {
    let seconds = wait.as_secs() + u64::from(fastrand::u16(RETRY_AFTER_SECONDS));
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

impl From<LimitExceeded> for HandshakeRefusal {
    fn from(exceeded: LimitExceeded) -> Self {
        Self::LimitExceeded(exceeded)
    }
}
