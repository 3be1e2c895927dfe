//! The URLs that the options take: plain `ws://` and `http://`, no TLS.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// `ws://HOST[:PORT][/PATH]`, or the same with `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: &'static str,
    /// Host and port, as the URL gives them; port 80 where it gives none.
    pub(crate) authority: String,
    pub(crate) path: String,
}

/// Why a text is not such a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme, TLS included.
    #[error("begins neither with ws:// nor with http:// (TLS is not measured: use the plain port)")]
    Scheme,
    /// The host is empty.
    #[error("has no host")]
    Host,
    /// A user name, or a character that would end a header line.
    #[error("has a user name, a space or a control character")]
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
    pub(crate) fn http(&self, path: &str) -> Self {
        Self {
            scheme: "http",
            authority: self.authority.clone(),
            path: path.to_owned(),
        }
    }

    /// The addresses of the host, IPv4 first: IPv4 has enough loopback addresses to give every thousand
    /// connections a source address of their own.
    pub(crate) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let mut addresses: Vec<_> = self.authority.to_socket_addrs()?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        Ok(addresses)
    }
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
}
