//! Why a handshake is refused, and the answer to it. An answer says what whoever may come in could do
//! better, and to others nothing.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
    WWW_AUTHENTICATE,
};

use super::routes::{Answer, text};
use crate::admission::LimitExceeded;
use crate::relay::Refused;
use crate::telemetry::metrics::Rejection;

/// The seconds of a `Retry-After` that nothing is known about. They differ, so that those refused do
/// not come back in step.
const RETRY_AFTER_SECONDS: std::ops::RangeInclusive<u16> = 1..=10;

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another version of the protocol than 13.
    Version,
    /// What is wrong with it, naming the header.
    Malformed(&'static str),
    /// A page that may not connect.
    Origin,
    /// No token, or none that holds.
    Unauthorized,
    /// Too many come.
    LimitExceeded(LimitExceeded),
    /// The server is about to end.
    Draining,
    /// There is no client.
    NotJoined(Refused),
}

impl Refusal {
    /// How it counts.
    pub(super) fn reason(self) -> Rejection {
        match self {
            Self::Version => Rejection::Version,
            Self::Malformed(_) => Rejection::Malformed,
            Self::Origin => Rejection::Origin,
            Self::Unauthorized => Rejection::Unauthorized,
            Self::LimitExceeded(LimitExceeded { reason, .. }) => reason,
            Self::Draining => Rejection::Draining,
            Self::NotJoined(Refused::Full) => Rejection::Full,
            Self::NotJoined(Refused::NoId) => Rejection::NoId,
        }
    }

    /// What the client is told.
    pub(super) fn answer(self) -> Answer {
        match self {
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
                again_after(wait, with(status, message, &[]))
            }
            Self::Draining => unavailable("the server is draining"),
            Self::NotJoined(refused) => unavailable(&refused.to_string()),
        }
    }
}

fn with(status: StatusCode, message: &str, fields: &[(HeaderName, &'static str)]) -> Answer {
    let mut answer = text(status, format!("{message}\n"));
    for (name, value) in fields {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn unavailable(message: &str) -> Answer {
    let answer = with(StatusCode::SERVICE_UNAVAILABLE, message, &[]);
    again_after(Duration::ZERO, answer)
}

/// To be tried again after the wait, and a while that differs.
fn again_after(wait: Duration, mut answer: Answer) -> Answer {
    let seconds = wait.as_secs() + u64::from(fastrand::u16(RETRY_AFTER_SECONDS));
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(seconds));
    answer
}
