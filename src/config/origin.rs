//! Where a web page comes from (RFC 6454), as a browser says it, and which of them may connect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// An origin, or all origins whose host is below a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OriginPattern {
    scheme: String,
    /// The host is below `host`, and not `host` itself.
    below: bool,
    host: String,
    /// As written; without it, the scheme's own.
    port: Option<u16>,
}

/// Why a text is no [`OriginPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an origin such as \"https://example.com\" or \"https://*.example.com\"")]
pub struct NoOrigin;

/// What a relay is to those who ask it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The `Host` that is asked.
    pub host: &'a str,
    /// Who asks.
    pub client_addr: IpAddr,
    /// Whether by TLS of ours; if not, there may be a proxy that speaks it.
    pub is_tls: bool,
    /// `server.allowed_hosts`.
    pub names: &'a [String],
}

/// The origin of a page: scheme, host and port.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    /// Reads the value of an `Origin` header; nothing for `null` and whatever else is none.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let mut letters = scheme.bytes();
        let sound = letters
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic())
            && letters.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let (host, port) = split_authority(authority)?;
        sound.then_some(Self { scheme, host, port })
    }

    /// Whether a page of this origin asks where it came from.
    ///
    /// The page of a stranger can do so as well, by a name of its own that it has given this relay's
    /// address meanwhile (DNS rebinding): so where names are set, no other counts, and from this machine,
    /// whose relay the stranger cannot reach otherwise, a name never counts that is not set. An address
    /// and `localhost` cannot be given another meaning.
    pub fn is_of(&self, served: &Served<'_>) -> bool {
        let is_same = split_authority(served.host).is_some_and(|(host, port)| {
            host.eq_ignore_ascii_case(self.host)
                && port.or(default_port(self.scheme)) == self.effective_port()
        });
        let is_fixed = !self.is_by_name() || served.names.iter().any(|name| self.is_at(name));
        let may_be_any = served.names.is_empty() && !served.client_addr.is_loopback();
        let is_scheme = !served.is_tls || self.scheme.eq_ignore_ascii_case("https");
        is_same && is_scheme && (is_fixed || may_be_any)
    }

    fn is_at(&self, name: &str) -> bool {
        self.host.eq_ignore_ascii_case(name)
    }

    /// Whether its host is a name that a name server gives a meaning.
    fn is_by_name(&self) -> bool {
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
    /// Whether this is the origin, or one of those, that are meant.
    pub fn allows(&self, origin: &Origin<'_>) -> bool {
        let host = if self.below {
            // The dot, and something before it.
            let head = origin.host.len().checked_sub(self.host.len() + 1);
            head.filter(|head| *head > 0).and_then(|head| {
                let below = origin.host.get(head..)?.strip_prefix('.')?;
                Some(below)
            })
        } else {
            Some(origin.host)
        };
        host.is_some_and(|host| host.eq_ignore_ascii_case(&self.host))
            && origin.scheme.eq_ignore_ascii_case(&self.scheme)
            && origin.effective_port() == self.port.or(default_port(&self.scheme))
    }
}

impl TryFrom<String> for OriginPattern {
    type Error = NoOrigin;

    fn try_from(text: String) -> Result<Self, NoOrigin> {
        let plain = text.replacen("://*.", "://", 1);
        let Origin { scheme, host, port } = Origin::parse(&plain).ok_or(NoOrigin)?;
        let below = plain != text;
        // Below an address there is nothing, and below a name of one label there is everything: `com.`
        // has no second one.
        let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
        let is_narrow = host.contains('.') && host.split('.').all(|label| !label.is_empty());
        if below && (is_address || !is_narrow) {
            return Err(NoOrigin);
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            below,
            host: host.to_ascii_lowercase(),
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
        let below = if self.below { "*." } else { "" };
        write!(f, "{}://{below}{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// A host, in brackets where it is an IPv6 address, and the port behind it (RFC 3986 section 3.2).
fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at_checked(end)?;
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    if host.is_empty() || !host.bytes().all(sound) {
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

/// Whether this is a host without a port.
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
    fn a_page_may_ask_where_it_came_from() {
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

    /// From elsewhere, in the clear, with no names set.
    fn asked(host: &str) -> Served<'_> {
        Served {
            host,
            client_addr: [192, 0, 2, 1].into(),
            is_tls: false,
            names: &[],
        }
    }

    #[test]
    fn a_name_that_was_given_our_address_is_not_ours() {
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
            let is_of = |served| origin.is_of(&served);
            assert_eq!(is_of(asked(host)), elsewhere, "{origin:?} elsewhere");
            for client_addr in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()] {
                let here_asked = Served {
                    client_addr,
                    ..asked(host)
                };
                assert_eq!(is_of(here_asked), here, "{origin:?} here");
            }
            let named_asked = Served {
                names: &names,
                ..asked(host)
            };
            assert_eq!(is_of(named_asked), named, "{origin:?} with names");
        }
    }

    #[test]
    fn a_page_in_the_clear_is_no_page_of_a_relay_that_speaks_tls() {
        for (origin, same) in [
            ("http://chat.example.com", false),
            ("https://chat.example.com", true),
        ] {
            let origin = Origin::parse(origin).unwrap();
            let is_tls = Served {
                is_tls: true,
                ..asked("chat.example.com")
            };
            assert_eq!(origin.is_of(&is_tls), same, "{origin:?}");
        }
    }

    #[test]
    fn what_is_no_origin_is_none() {
        for text in [
            "null",
            "",
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
            // An empty port is left out by browsers, and a browser is what this is for.
            let origin = Origin::parse(text);
            assert!(origin.is_none(), "{text}: {origin:?}");
        }
    }

    #[test]
    fn a_pattern_allows_what_it_says_and_no_more() {
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
        ] {
            let pattern = OriginPattern::try_from(pattern.to_owned()).unwrap();
            let parsed = Origin::parse(origin).unwrap();
            assert_eq!(pattern.allows(&parsed), allowed, "{pattern} and {origin}");
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
            "null",
            "https://example.com/",
        ] {
            let pattern = OriginPattern::try_from(text.to_owned());
            assert_eq!(pattern, Err(NoOrigin), "{text}");
        }
    }
}
