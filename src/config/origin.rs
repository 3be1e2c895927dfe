//! Web origins (RFC 6454): whose pages may connect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// An origin, all origins with a host below a domain, or all origins of a scheme.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OriginPattern {
    scheme: String,
    hosts: Hosts,
    /// Not set: the scheme's default port.
    port: Option<u16>,
}

/// The hosts that a pattern means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    One(String),
    /// Those below this one, without itself.
    Below(String),
    Any,
}

/// A text that is not an [`OriginPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an origin such as \"https://example.com\", \"https://*.example.com\", \"file://\" or \"null\""
)]
pub struct InvalidOrigin;

/// This relay as the client of one handshake addresses it.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The `Host` header.
    pub host: &'a str,
    /// The client's address.
    pub client_addr: IpAddr,
    /// Whether the relay itself speaks TLS on this connection. If not, a proxy may do so.
    pub is_tls: bool,
    /// `server.allowed_hosts`.
    pub names: &'a [String],
}

/// The origin of a page: scheme, host and port.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Empty for `null`, the origin of pages that have no other one.
    scheme: &'a str,
    /// Empty for `null`, and for schemes without hosts, such as `file://`.
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    /// Parses an `Origin` header. Returns `None` for any text that is not an origin.
    pub fn parse(text: &'a str) -> Option<Self> {
        if text == NULL {
            let (scheme, host, port) = ("", "", None);
            return Some(Self { scheme, host, port });
        }
        let (scheme, authority) = text.split_once("://")?;
        let mut bytes = scheme.bytes();
        let is_valid = bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let (host, port) = match authority {
            "" if default_port(scheme).is_none() => ("", None),
            _ => split_authority(authority)?,
        };
        is_valid.then_some(Self { scheme, host, port })
    }

    /// Whether a page of this origin was loaded from this relay.
    ///
    /// Host and origin of a foreign page are the same, too, if its host name was changed to resolve to this
    /// relay (DNS rebinding). So if host names are set, no other name counts. For a client on this machine, a name
    /// that is not set never counts, because the foreign page could not reach a local relay otherwise. Addresses
    /// and `localhost` cannot be rebound.
    pub fn is_of(&self, site: &Site<'_>) -> bool {
        let is_name = |name: &String| self.host.eq_ignore_ascii_case(name);
        let is_fixed = !self.is_resolved() || site.names.iter().any(is_name);
        let may_be_any = site.names.is_empty() && !site.client_addr.is_loopback();
        self.is_at(site) && (is_fixed || may_be_any)
    }

    /// Whether the page has the host and the port by which the client addresses this relay.
    pub fn is_at(&self, site: &Site<'_>) -> bool {
        let is_same = split_authority(site.host).is_some_and(|(host, port)| {
            host.eq_ignore_ascii_case(self.host)
                && port.or(default_port(self.scheme)) == self.effective_port()
        });
        is_same && (!site.is_tls || self.scheme.eq_ignore_ascii_case("https"))
    }

    /// Whether a name server resolves the host.
    fn is_resolved(&self) -> bool {
        let is_local = self.host.rsplit('.').next();
        let is_local = is_local.is_some_and(|last| last.eq_ignore_ascii_case("localhost"));
        let is_address = self.host.starts_with('[') || self.host.parse::<Ipv4Addr>().is_ok();
        !is_local && !is_address
    }

    fn effective_port(&self) -> Option<u16> {
        self.port.or(default_port(self.scheme))
    }
}

impl OriginPattern {
    /// Whether this is `null`, which any page can get as its origin, by a sandboxed frame.
    pub(super) fn is_null(&self) -> bool {
        self.scheme.is_empty()
    }

    /// The host, or the domain of the hosts.
    pub fn host(&self) -> &str {
        match &self.hosts {
            Hosts::One(host) | Hosts::Below(host) => host,
            Hosts::Any => "",
        }
    }

    /// Whether the pattern means this origin.
    pub fn allows(&self, origin: &Origin<'_>) -> bool {
        let is_host = match &self.hosts {
            Hosts::Any => true,
            Hosts::One(host) => origin.host.eq_ignore_ascii_case(host),
            // There is a dot before the domain, and a label before the dot.
            Hosts::Below(domain) => {
                let head = origin.host.len().checked_sub(domain.len() + 1);
                let below = head.filter(|head| *head > 0).and_then(|head| {
                    let below = origin.host.get(head..)?.strip_prefix('.')?;
                    Some(below)
                });
                below.is_some_and(|host| host.eq_ignore_ascii_case(domain))
            }
        };
        is_host
            && origin.scheme.eq_ignore_ascii_case(&self.scheme)
            && origin.effective_port() == self.port.or(default_port(&self.scheme))
    }
}

impl TryFrom<String> for OriginPattern {
    type Error = InvalidOrigin;

    fn try_from(text: String) -> Result<Self, InvalidOrigin> {
        // All hosts of a scheme of the web would be all pages.
        let any = text.strip_suffix("://*");
        if let Some(scheme) = any.filter(|scheme| default_port(scheme).is_none()) {
            let plain = format!("{scheme}://");
            let Origin { scheme, .. } = Origin::parse(&plain).ok_or(InvalidOrigin)?;
            return Ok(Self {
                scheme: scheme.to_ascii_lowercase(),
                hosts: Hosts::Any,
                port: None,
            });
        }
        let plain = text.replacen("://*.", "://", 1);
        let Origin { scheme, host, port } = Origin::parse(&plain).ok_or(InvalidOrigin)?;
        let is_below = plain != text;
        // No host is below an address. A name of one label (`com`, `com.`) would mean too many hosts.
        let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
        let is_narrow = host.contains('.') && host.split('.').all(|label| !label.is_empty());
        if is_below && (is_address || !is_narrow) {
            return Err(InvalidOrigin);
        }
        let hosts = if is_below { Hosts::Below } else { Hosts::One };
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            hosts: hosts(host.to_ascii_lowercase()),
            port,
        })
    }
}

impl From<OriginPattern> for String {
    fn from(pattern: OriginPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = &self.scheme;
        match &self.hosts {
            _ if scheme.is_empty() => f.write_str(NULL)?,
            Hosts::Any => write!(f, "{scheme}://*")?,
            Hosts::One(host) => write!(f, "{scheme}://{host}")?,
            Hosts::Below(domain) => write!(f, "{scheme}://*.{domain}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The origin of a page that has no other one (RFC 6454 section 6.1).
const NULL: &str = "null";

/// Splits an authority into a host (an IPv6 address in brackets) and its port (RFC 3986 section 3.2).
fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at_checked(end)?;
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_valid) {
        return None;
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(digits.parse().ok()?)))
        }
        _ => None,
    }
}

/// Whether the text is a host without a port.
pub(super) fn is_host_name(text: &str) -> bool {
    matches!(split_authority(text), Some((_, None)))
}

fn default_port(scheme: &str) -> Option<u16> {
    if scheme.eq_ignore_ascii_case("https") {
        Some(443)
    } else if scheme.eq_ignore_ascii_case("http") {
        Some(80)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_connect_to_its_own_relay() {
        for (origin, host, same) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
            ("http://localhost:8080", "127.0.0.1:8080", false),
            ("https://chat.example.com", "chat.example.com", true),
            ("https://chat.example.com", "chat.example.com:443", true),
            ("https://chat.example.com:443", "CHAT.example.com", true),
            ("http://chat.example.com", "chat.example.com:443", false),
            ("http://chat.example.com", "chat.example.com:8080", false),
            ("https://example.com", "chat.example.com", false),
            (
                "https://chat.example.com.evil.com",
                "chat.example.com",
                false,
            ),
            ("http://[::1]:8080", "[::1]:8080", true),
            ("http://[::1]", "[::1]:80", true),
            ("http://[::1]:8080", "[::1", false),
            ("app://localhost", "localhost", true),
        ] {
            let parsed = Origin::parse(origin).unwrap();
            assert_eq!(parsed.is_of(&asked(host)), same, "{origin} at {host}");
        }
    }

    /// From another machine, without TLS, with no host names set.
    fn asked(host: &str) -> Site<'_> {
        Site {
            host,
            client_addr: [192, 0, 2, 1].into(),
            is_tls: false,
            names: &[],
        }
    }

    #[test]
    fn a_rebound_host_name_is_not_the_relays() {
        let names = ["chat.example.com".to_owned()];
        for (origin, host, elsewhere, here, named) in [
            ("http://evil.com:8080", "evil.com:8080", true, false, false),
            (
                "http://localhost.evil.com",
                "localhost.evil.com",
                true,
                false,
                false,
            ),
            (
                "http://127.0.0.1.evil.com",
                "127.0.0.1.evil.com",
                true,
                false,
                false,
            ),
            (
                "http://CHAT.example.com",
                "chat.example.com",
                true,
                false,
                true,
            ),
            ("http://localhost:8080", "localhost:8080", true, true, true),
            (
                "http://a.localhost:8080",
                "a.localhost:8080",
                true,
                true,
                true,
            ),
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true, true, true),
            ("http://[::1]:8080", "[::1]:8080", true, true, true),
            ("http://evil.com", "chat.example.com", false, false, false),
        ] {
            let origin = Origin::parse(origin).unwrap();
            let is_of = |site| origin.is_of(&site);
            assert_eq!(is_of(asked(host)), elsewhere, "{origin:?} elsewhere");
            for client_addr in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()] {
                let here_asked = Site {
                    client_addr,
                    ..asked(host)
                };
                assert_eq!(is_of(here_asked), here, "{origin:?} here");
            }
            let named_asked = Site {
                names: &names,
                ..asked(host)
            };
            assert_eq!(is_of(named_asked), named, "{origin:?} with names");
        }
    }

    #[test]
    fn a_page_without_tls_is_not_from_a_relay_with_tls() {
        for (origin, same) in [
            ("http://chat.example.com", false),
            ("https://chat.example.com", true),
        ] {
            let origin = Origin::parse(origin).unwrap();
            let is_tls = Site {
                is_tls: true,
                ..asked("chat.example.com")
            };
            assert_eq!(origin.is_of(&is_tls), same, "{origin:?}");
        }
    }

    #[test]
    fn invalid_origins_are_refused() {
        for text in [
            "",
            "NULL",
            "example.com",
            "://example.com",
            "https://",
            "https://a b",
            "https://example.com/",
            "https://example.com/path",
            "https://user@example.com",
            "https://example.com:",
            "https://example.com:99999",
            "https://example.com:+1",
            "https://[::1",
            "https://[::1]8080",
            "https://exämple.com",
            "9p://example.com",
        ] {
            let origin = Origin::parse(text);
            assert!(origin.is_none(), "{text}: {origin:?}");
        }
    }

    #[test]
    fn a_pattern_allows_its_own_origins_only() {
        for (pattern, origin, allowed) in [
            ("https://example.com", "https://example.com", true),
            ("https://example.com", "https://example.com:443", true),
            ("https://Example.com", "HTTPS://example.COM", true),
            ("https://example.com", "http://example.com", false),
            ("https://example.com", "https://example.com:8443", false),
            ("https://example.com", "https://www.example.com", false),
            ("https://*.example.com", "https://www.example.com", true),
            ("https://*.example.com", "https://a.b.example.com", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "https://.example.com", false),
            ("https://*.example.com", "https://evilexample.com", false),
            (
                "https://*.example.com",
                "https://example.com.evil.com",
                false,
            ),
            (
                "https://*.example.com:8443",
                "https://a.example.com:8443",
                true,
            ),
            ("https://*.example.com:8443", "https://a.example.com", false),
            ("http://localhost:3000", "http://localhost:3000", true),
            ("http://localhost:3000", "http://localhost:3001", false),
            ("null", "null", true),
            ("null", "file://", false),
            ("file://", "file://", true),
            ("file://", "null", false),
            ("file://", "file://host", false),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("capacitor://localhost", "ionic://localhost", false),
            ("app://-", "app://-", true),
            ("app://*", "app://-", true),
            ("app://*", "app://", true),
            ("app://*", "https://app", false),
            ("moz-extension://*", "moz-extension://5f1c-9a", true),
        ] {
            let pattern = OriginPattern::try_from(pattern.to_owned()).unwrap();
            let parsed = Origin::parse(origin).unwrap();
            assert_eq!(pattern.allows(&parsed), allowed, "{pattern} and {origin}");
            assert_eq!(OriginPattern::try_from(pattern.to_string()), Ok(pattern));
        }
        for text in [
            "*",
            "https://*",
            "https://*.",
            "https://*.com",
            "https://*.*.example.com",
            "https://a.*.example.com",
            "https://*.[::1]",
            "https://*.192.0.2.1",
            "https://*.com.",
            "https://*..com",
            "http://*",
            "://*",
            "*://*",
            "file:///",
            "app://*:80",
            "https://example.com/",
        ] {
            let pattern = OriginPattern::try_from(text.to_owned());
            assert_eq!(pattern, Err(InvalidOrigin), "{text}");
        }
    }
}
