//! Why a secret, a connection, a message or a call on a bucket failed. No I/O.

use std::path::PathBuf;

use async_nats::{ConnectError, ConnectErrorKind};

use crate::cluster::unready::Unready;
use crate::config::SecretError;

/// Why the secrets for NATS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no secret in a file.
    #[error("{} ({key})", path.display())]
    Unreadable {
        /// The setting that names it.
        key: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: SecretError,
    },
    /// A file has not what it should have.
    #[error("{} has no {expected} ({key})", path.display())]
    Malformed {
        /// The setting that names it.
        key: &'static str,
        /// Its path.
        path: PathBuf,
        /// What it should have.
        expected: &'static str,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::cluster) enum ConnectFailure {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("cannot connect to {url}")]
    Refused { url: String, source: ConnectError },
    #[error("nats has version {found}, and a cluster needs {needed} or later")]
    TooOld { found: String, needed: String },
    #[error(transparent)]
    Lost(#[from] LinkLost),
}

impl ConnectFailure {
    /// The cause that `/readyz` names.
    pub(in crate::cluster) fn unready(&self) -> Unready {
        match self {
            Self::Access(_) => Unready::LoginRefused,
            Self::Refused { source, .. } => match source.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    Unready::LoginRefused
                }
                _ => Unready::Unreachable,
            },
            Self::TooOld { .. } => Unready::TooOld,
            Self::Lost(_) => Unready::Unreachable,
        }
    }
}

/// The connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection to nats has ended")]
pub(in crate::cluster) struct LinkLost;

/// Why a message was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::cluster) enum PublishFailure {
    #[error(transparent)]
    Lost(#[from] LinkLost),
    #[error("the message is larger than the max_payload of nats")]
    TooLarge,
}

/// Why a call on a bucket has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::cluster) enum BucketFailure {
    /// A write may have happened, or may happen later.
    #[error("nats has not answered")]
    Unknown,
    /// Nothing was written. The bucket has to be opened again.
    #[error("there is no such bucket")]
    Missing,
    /// Nothing was written.
    #[error("nats refuses: {0}")]
    Refused(String),
}

/// Why an entry was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::cluster) enum WriteFailure {
    /// The entry has another revision. This call has written nothing.
    #[error("the entry has changed")]
    Conflict,
    #[error(transparent)]
    Failed(#[from] BucketFailure),
}
