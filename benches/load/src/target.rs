//! Where the relay under test is: its URL, its address, and whether this run may load it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use super::BenchError;

/// `ws://HOST[:PORT][/PATH]`, or the same with `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: &'static str,
    /// Host and port, as they stand in the URL.
    pub(super) authority: String,
    pub(super) path: String,
}

/// Why a text is no such URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme, TLS included.
    #[error("begins neither with ws:// nor with http:// (TLS is not measured: use the plain port)")]
    Scheme,
    /// There is nothing where the host should be.
    #[error("has no host")]
    Host,
    /// A user, or a character that would end a header line.
    #[error("has a character that does not belong there")]
    Character,
}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let (scheme, rest) = ["ws", "http"]
            .iter()
            .find_map(|scheme| {
                let rest = text.strip_prefix(scheme)?.strip_prefix("://")?;
                Some((*scheme, rest))
            })
            .ok_or(BadUrl::Scheme)?;
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        if rest.bytes().any(|byte| !byte.is_ascii_graphic()) || host.contains('@') {
            return Err(BadUrl::Character);
        }
        if host.is_empty() || host.starts_with(':') {
            return Err(BadUrl::Host);
        }
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self {
            scheme,
            authority: if has_port {
                host.to_owned()
            } else {
                format!("{host}:80")
            },
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scheme,
            authority,
            path,
        } = self;
        write!(f, "{scheme}://{authority}{path}")
    }
}

impl Url {
    /// Another path on the same host, over HTTP.
    pub(super) fn http(&self, path: &str) -> Self {
        Self {
            scheme: "http",
            authority: self.authority.clone(),
            path: path.to_owned(),
        }
    }

    /// What the host's name stands for. The addresses of IPv4 come first: of those that are loopback
    /// there are enough for any number of connections.
    pub(super) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let mut addresses: Vec<_> = self.authority.to_socket_addrs()?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        Ok(addresses)
    }
}

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Not said: only loopback may be loaded.
    Unknown,
    /// Whoever runs this says that the server is theirs.
    Ours,
}

/// The address to load. A load is an attack on a server that belongs to somebody else.
pub(super) fn resolve(url: &Url, owner: Owner) -> Result<SocketAddr, BenchError> {
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
    fn urls_are_read_and_written() {
        for (text, authority, path) in [
            ("ws://127.0.0.1:8080/", "127.0.0.1:8080", "/"),
            ("ws://[::1]:8080", "[::1]:8080", "/"),
            (
                "ws://relay.example/chat?x=1",
                "relay.example:80",
                "/chat?x=1",
            ),
            ("ws://[::1]/", "[::1]:80", "/"),
            (
                "http://localhost:9090/metrics",
                "localhost:9090",
                "/metrics",
            ),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((&*url.authority, &*url.path), (authority, path), "{text}");
        }
        for (text, bad) in [
            ("wss://relay.example/", BadUrl::Scheme),
            ("127.0.0.1:8080", BadUrl::Scheme),
            ("ws://", BadUrl::Host),
            ("ws://:8080/", BadUrl::Host),
            ("ws://relay.example/\r\nX: y", BadUrl::Character),
            ("ws://me@relay.example/", BadUrl::Character),
        ] {
            assert_eq!(text.parse::<Url>(), Err(bad), "{text}");
        }
    }

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
