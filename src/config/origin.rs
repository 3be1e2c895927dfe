//! Where a web page comes from (RFC 6454), as a browser says it, and which of them may connect.

use std::fmt;

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

    /// Whether a page of this origin that asks this `Host` asks where it came from.
    pub fn is_of(&self, host: &str) -> bool {
        split_authority(host).is_some_and(|(host, port)| {
            host.eq_ignore_ascii_case(self.host)
                && port.or(default_port(self.scheme)) == self.effective_port()
        })
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
        // Below an address there is nothing, and below a name of one label there is everything.
        if below && (host.starts_with('[') || !host.contains('.')) {
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
            assert_eq!(parsed.is_of(host), same, "{origin} at {host}");
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
            "null",
            "https://example.com/",
        ] {
            let pattern = OriginPattern::try_from(text.to_owned());
            assert_eq!(pattern, Err(NoOrigin), "{text}");
        }
    }
}
