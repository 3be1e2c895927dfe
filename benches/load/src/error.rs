//! Why a run ends without a result.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use switchboard::auth::IssueError;
use switchboard::config::SecretError;

use crate::url::Url;

/// Why a run ends without a result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The host of the URL has no address.
    #[error("{url} has no address")]
    Address {
        /// The URL as given.
        url: Url,
        /// Why the lookup failed.
        source: io::Error,
    },
    /// The server may belong to another operator.
    #[error(
        "{url} is at {address}, which is not loopback: a load is an attack on a server that is not \
         yours; if it is, say --i-own-this-server"
    )]
    NotLoopback {
        /// The URL as given.
        url: Url,
        /// The address of its host.
        address: SocketAddr,
    },
    /// The token cannot be in a header.
    #[error("invalid token (--token): more than one line of visible ASCII")]
    Token,
    /// The token cannot be signed.
    #[error("cannot sign a token (--key-file)")]
    Issue(#[from] IssueError),
    /// The file of a token cannot be used.
    #[error("{} (--metrics-token-file)", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SecretError,
    },
    /// A connection cannot be made.
    #[error("cannot connect to {address}")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// What goes wrong.
        source: io::Error,
    },
    /// The scenario needs more connections than this process can open.
    #[error(
        "{needed} connections are more than the {room} for which the limit of open files leaves room \
         (ulimit -Hn): take fewer --connections or --pairs"
    )]
    OpenFiles {
        /// Connections that the scenario needs.
        needed: u64,
        /// Connections that the limit leaves room for.
        room: u64,
    },
    /// The server refuses the upgrade of a connection that is to send or receive.
    #[error("{address}: no upgrade: {reason}{}", hint(reason))]
    Upgrade {
        /// The server.
        address: SocketAddr,
        /// The server's answer.
        reason: String,
    },
    /// Some of the idle peers could not connect.
    #[error(
        "{address}: {opened} of {wanted} connections opened{}",
        refusal.as_ref().map(|refusal| format!(", the last refused: {refusal}")).unwrap_or_default()
    )]
    PeersMissing {
        /// The server.
        address: SocketAddr,
        /// Connections that opened.
        opened: u64,
        /// Connections that should have opened.
        wanted: usize,
        /// The server's last refusal.
        refusal: Option<String>,
    },
    /// Some connections receive no probe, so their ids are unknown.
    #[error(
        "{address}: {unknown} connections answer to no id from {first} to {last}: where the server does not \
         announce ids, give the first that it may have given as --first-id"
    )]
    IdsNotFound {
        /// The server.
        address: SocketAddr,
        /// Connections whose id is not known.
        unknown: usize,
        /// The first id that was tried.
        first: u64,
        /// The last id that was tried.
        last: u64,
    },
    /// A flow needs the ids of both its connections.
    #[error("{0}: the ids of the connections are not known")]
    UnknownIds(SocketAddr),
    /// The first message of a flow does not arrive.
    #[error(
        "{address}: a first message did not arrive within {timeout:?}{}",
        example.as_ref().map(|example| format!("; instead: {example}")).unwrap_or_default()
    )]
    FirstMessage {
        /// The server.
        address: SocketAddr,
        /// How long the run waited for it.
        timeout: Duration,
        /// The first fault that was seen meanwhile.
        example: Option<String>,
    },
    /// /proc does not show the process that --pid names.
    #[error("process {0} does not exist, or this user may not read its entries in /proc")]
    NoProcess(u32),
    /// The relay's program is not installed.
    #[error(
        "switchboard is neither beside this program nor on PATH: \
         `cargo install --path .` installs it"
    )]
    RelayNotFound,
    /// The relay's program does not start, or does not listen in time.
    #[error("the relay does not start")]
    RelayNotStarted {
        /// What went wrong.
        source: io::Error,
    },
    /// A result cannot be written.
    #[error("cannot write {what}")]
    Write {
        /// The file, or the result itself.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// What may help where the server refuses.
fn hint(reason: &str) -> &'static str {
    if reason.contains(" 401") {
        " (--token or --key-file gives a token)"
    } else {
        ""
    }
}

impl BenchError {
    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NotLoopback { .. } | Self::OpenFiles { .. } | Self::Token
        )
    }
}
