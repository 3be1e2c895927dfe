//! The client's address of a request that came through proxies. Believes only trusted proxies, and of a list of
//! addresses only the part that trusted proxies wrote.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use tracing::warn;

use crate::config::ForwardedHeader;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies that are believed, and the header that they write.
#[derive(Debug)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    header: ForwardedHeader,
    /// A header from an address that is not trusted was seen and logged.
    warned: AtomicBool,
}

impl TrustedProxies {
    /// Believes proxies in these networks, which write this header.
    pub fn new(networks: Vec<IpNet>, header: ForwardedHeader) -> Self {
        Self {
            networks,
            header,
            warned: AtomicBool::new(false),
        }
    }

    /// Whether the address is of a trusted proxy.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// The client's address of a request with these headers that came from `peer`.
    pub fn client_addr(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            if headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED) {
                self.warn_once(peer, "a forwarding header");
            }
            return peer;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => &X_FORWARDED_FOR,
            ForwardedHeader::Forwarded => &FORWARDED,
        };
        // Each proxy appends the address of its peer, so entries of the client itself are at the front. From
        // the back, the first address that is no trusted proxy is the client. The search ends at an entry
        // that is no address, because the client may have written everything in front of it.
        let mut client_addr = peer;
        for value in headers.get_all(name).iter().rev() {
            for entry in value.as_bytes().rsplit(|byte| *byte == b',') {
                let entry = str::from_utf8(entry).ok();
                let entry = entry.and_then(|entry| match self.header {
                    ForwardedHeader::XForwardedFor => address(entry.trim()),
                    ForwardedHeader::Forwarded => forwarded_for(entry),
                });
                let Some(entry) = entry else {
                    return client_addr;
                };
                client_addr = entry;
                if !self.trusts(client_addr) {
                    return client_addr;
                }
            }
        }
        client_addr
    }

    /// Logs once that a header of a proxy came from an address that is not trusted.
    pub(super) fn warn_once(&self, peer: IpAddr, what: &str) {
        if !self.warned.swap(true, Relaxed) {
            warn!(
                peer.addr = %peer,
                "{what} from an address that is not in server.trusted_proxies is ignored; this is logged once"
            );
        }
    }
}

/// An address with or without a port. An IPv6 address with a port is in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let address = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())?;
    Some(address.to_canonical())
}

/// The address in `for=` of one element of a `Forwarded` header (RFC 7239 section 4). A comma within quotes splits
/// an element in two; the parts are no address then, because an address has no comma.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    });
    let (value, None) = (pairs.next()?.trim(), pairs.next()) else {
        return None;
    };
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => value,
    };
    address(value)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn client(header: ForwardedHeader, peer: &str, values: &[&'static str]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let proxies = TrustedProxies::new(trusted.to_vec(), header);
        let mut headers = HeaderMap::new();
        for value in values {
            let name = match header {
                ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
                ForwardedHeader::Forwarded => FORWARDED,
            };
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        proxies
            .client_addr(peer.parse().unwrap(), &headers)
            .to_string()
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        for (peer, values, expected) in [
            ("192.0.2.1", &["1.1.1.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.2.3.4"], "1.1.1.1"),
            (
                "10.0.0.1",
                &["6.6.6.6", "1.1.1.1,10.2.3.4", "10.0.0.9"],
                "1.1.1.1",
            ),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("fd00::1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["6.6.6.6, "], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1 2.2.2.2"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            // The client's part may be any bytes; the proxy's part is behind it.
            ("10.0.0.1", &["ü, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, ü, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["ü", "1.1.1.1"], "1.1.1.1"),
        ] {
            let found = client(ForwardedHeader::XForwardedFor, peer, values);
            assert_eq!(found, expected, "{peer} {values:?}");
        }
    }

    #[test]
    fn forwarded_is_read_like_x_forwarded_for() {
        for (peer, values, expected) in [
            ("192.0.2.1", &["for=1.1.1.1"][..], "192.0.2.1"),
            (
                "10.0.0.1",
                &["for=1.1.1.1;proto=https;by=10.0.0.1"],
                "1.1.1.1",
            ),
            ("10.0.0.1", &["proto=https; FOR=\"1.1.1.1:80\""], "1.1.1.1"),
            (
                "10.0.0.1",
                &["for=6.6.6.6, for=\"[2001:db8::1]:80\""],
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                &["for=\"[2001:db8::1]\", for=10.0.0.2"],
                "2001:db8::1",
            ),
            ("10.0.0.1", &["for=6.6.6.6, for=_hidden"], "10.0.0.1"),
            ("10.0.0.1", &["for=6.6.6.6, for=unknown"], "10.0.0.1"),
            ("10.0.0.1", &["for=6.6.6.6;for=7.7.7.7"], "10.0.0.1"),
            (
                "10.0.0.1",
                &["for=1.1.1.1;by=\"a,for=6.6.6.6\""],
                "10.0.0.1",
            ),
            ("10.0.0.1", &["by=10.0.0.1"], "10.0.0.1"),
            ("10.0.0.1", &["for=\"ü, for=1.1.1.1"], "1.1.1.1"),
        ] {
            let found = client(ForwardedHeader::Forwarded, peer, values);
            assert_eq!(found, expected, "{peer} {values:?}");
        }
    }

    #[test]
    fn only_the_configured_header_counts() {
        let trusted = vec!["10.0.0.0/8".parse().unwrap()];
        let proxies = TrustedProxies::new(trusted, ForwardedHeader::Forwarded);
        let mut headers = HeaderMap::new();
        headers.append(X_FORWARDED_FOR, "6.6.6.6".parse().unwrap());
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(proxies.client_addr(peer, &headers), peer);
    }
}
