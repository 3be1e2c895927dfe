//! Groups addresses: which of them a limit counts as one peer.

use std::net::IpAddr;

/// One IPv4 address, or the first 64 bits of an IPv6 address: a subscriber has a /64 at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Network {
    V4(u32),
    V6(u64),
}

impl Network {
    /// The network of an address. An IPv4 address that is mapped into IPv6 counts as IPv4.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments().map(u64::from);
                Self::V6(a << 48 | b << 32 | c << 16 | d)
            }
        }
    }
}
