//! The relay under test: where it is, whether this run may load it, and its process.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use switchboard::auth;
use switchboard::config::{Secret, SecretError, Settings};

use crate::error::BenchError;
use crate::options::BenchOptions;
use crate::process::MonitoredProcess;
use crate::url::Url;

/// The relay under test, for all scenarios of a run.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) address: SocketAddr,
    /// The server's process, where it runs on this machine and /proc shows it.
    pub(crate) server: Option<MonitoredProcess>,
    /// The token that every connection shows.
    pub(crate) token: Option<String>,
    /// The token that the server's metrics require.
    pub(crate) metrics_token: Option<Secret>,
    /// The first id that the server may give next, where it does not announce ids.
    pub(crate) next_id: u64,
}

impl Target {
    pub(crate) fn from_options(options: &BenchOptions) -> Result<Self, BenchError> {
        let owner = if options.i_own_this_server {
            Owner::Ours
        } else {
            Owner::Unknown
        };
        let address = resolve(&options.url, owner)?;
        let server = match options.pid {
            Some(pid) => Some(MonitoredProcess::of(pid).ok_or(BenchError::NoProcess(pid))?),
            None if address.ip().is_loopback() => MonitoredProcess::listening_on(address),
            None => None,
        };
        let metrics_token = options.metrics_token_file.as_deref().map(|path| {
            let token = Secret::read(path).and_then(visible);
            token.map_err(|source| BenchError::TokenFile {
                path: path.to_owned(),
                source,
            })
        });
        Ok(Self {
            url: options.url.clone(),
            address,
            server,
            token: token(options)?,
            metrics_token: metrics_token.transpose()?,
            next_id: options.first_id,
        })
    }
}

/// How long a token is valid that is signed here: longer than a run.
const TOKEN_LIFETIME: Duration = Duration::from_hours(1);

/// The token as given, or one that is signed by --key-file. Settings of a relay in the environment do not matter: the
/// defaults know nothing of them.
fn token(options: &BenchOptions) -> Result<Option<String>, BenchError> {
    if let Some(path) = &options.key_file {
        let auth = Settings::default().auth;
        let issued = auth::issue_from(&auth, Some(path), "switchboard-bench", TOKEN_LIFETIME);
        return Ok(Some(issued?));
    }
    match &options.token {
        Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => Err(BenchError::Token),
        token => Ok(token.clone()),
    }
}

/// A token that a header can carry.
fn visible(token: Secret) -> Result<Secret, SecretError> {
    if token.expose().iter().all(u8::is_ascii_graphic) {
        Ok(token)
    } else {
        Err(SecretError::NotVisibleAscii)
    }
}

/// Whether the caller has said that the server is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Not said: the run may load loopback addresses only.
    Unknown,
    /// Said with --i-own-this-server: the run may load any address.
    Ours,
}

/// The address to load. Refuses foreign addresses, because a load is an attack on another operator's server.
fn resolve(url: &Url, owner: Owner) -> Result<SocketAddr, BenchError> {
    let resolving = |source| BenchError::Address {
        url: url.clone(),
        source,
    };
    let addresses = url.addresses().map_err(resolving)?;
    let foreign = addresses.iter().find(|address| !address.ip().is_loopback());
    if let (Some(address), Owner::Unknown) = (foreign, owner) {
        let (url, address) = (url.clone(), *address);
        return Err(BenchError::NotLoopback { url, address });
    }
    let none = || resolving(io::ErrorKind::NotFound.into());
    addresses.first().copied().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_loaded_unless_it_is_ours() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        for loopback in ["ws://127.0.0.1:1/", "ws://127.9.9.9:1/", "ws://[::1]:1/"] {
            assert!(
                resolve(&url(loopback), Owner::Unknown).is_ok(),
                "{loopback}"
            );
        }
        for foreign in [
            "ws://192.0.2.1:1/",
            "ws://0.0.0.0:1/",
            "ws://[2001:db8::1]:1/",
        ] {
            let refused = resolve(&url(foreign), Owner::Unknown);
            assert!(
                matches!(refused, Err(BenchError::NotLoopback { .. })),
                "{foreign}: {refused:?}"
            );
            assert!(resolve(&url(foreign), Owner::Ours).is_ok(), "{foreign}");
        }
    }
}
