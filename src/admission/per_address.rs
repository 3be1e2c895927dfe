//! Limits what one address may do, and all addresses together: handshakes, TLS handshakes, failed
//! authentications, connected users. Every table has a bounded size, so that a peer with many addresses
//! cannot fill the memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::network::Network;
use super::token_bucket::{Rate, TokenBucket};
use crate::config::LimitSettings;
use crate::telemetry::metrics::Rejection;

/// Networks whose buckets are kept: about 6 MB. Beyond these, the networks that have not been seen for the
/// longest time are forgotten first, and start with full buckets when they come again.
const NETWORKS_MAX: usize = 1 << 16;

/// The limits of addresses, and what is used of them: a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct AddressLimiter {
    limits: Arc<AddressLimits>,
}

#[derive(Debug)]
struct AddressLimits {
    connections_max: Option<u32>,
    upgrades: HandshakeRates,
    tls_handshakes: HandshakeRates,
    auth_failures: Option<Rate>,
    /// Time zero of the buckets.
    epoch: Instant,
    /// What all addresses together have used.
    total: Mutex<AddressBuckets>,
    /// Connected users by network: at most as many entries as there are users.
    users: Mutex<HashMap<Network, u32>>,
    networks: Mutex<NetworkBuckets>,
}

/// The rates of one kind of handshake.
#[derive(Clone, Copy, Debug)]
struct HandshakeRates {
    per_address: Option<Rate>,
    total: Option<Rate>,
}

/// The buckets of the networks that were seen last, in two generations: looking a network up moves it to the
/// young one. When that is full it becomes the old one, and the old one is dropped. The maps hash with
/// a random key, so a peer that chooses its addresses cannot make them collide.
#[derive(Debug, Default)]
struct NetworkBuckets {
    young: HashMap<Network, AddressBuckets>,
    old: HashMap<Network, AddressBuckets>,
}

#[derive(Clone, Copy, Debug, Default)]
struct AddressBuckets {
    upgrades: TokenBucket,
    tls_handshakes: TokenBucket,
    auth_failures: TokenBucket,
}

#[derive(Clone, Copy, Debug)]
enum HandshakeKind {
    Tls,
    Upgrade,
}

/// A limit is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitExceeded {
    pub(crate) reason: Rejection,
    /// How long to wait before the next attempt; zero where that is not known.
    pub(crate) wait: Duration,
}

/// Counts one connected user of a network. Drop ends that.
#[derive(Debug)]
pub(crate) struct AddressPermit {
    limits: Arc<AddressLimits>,
    network: Network,
}

impl AddressLimiter {
    /// A limiter with these limits; none if no limit of addresses is set.
    pub(crate) fn new(limits: &LimitSettings) -> Option<Self> {
        let per_minute = |rate: u32| Rate::per_minute(rate.into());
        let limits = AddressLimits {
            connections_max: limits.address_connections,
            upgrades: HandshakeRates::new(limits.address_handshake_rate, limits.handshake_rate),
            tls_handshakes: HandshakeRates::new(
                limits.address_tls_handshake_rate,
                limits.tls_handshake_rate,
            ),
            auth_failures: limits.address_auth_failures.map(per_minute),
            epoch: Instant::now(),
            total: Mutex::default(),
            users: Mutex::default(),
            networks: Mutex::default(),
        };
        let is_limited = limits.connections_max.is_some()
            || limits.upgrades.is_any()
            || limits.tls_handshakes.is_any()
            || limits.auth_failures.is_some();
        is_limited.then(|| Self {
            limits: Arc::new(limits),
        })
    }

    /// Counts an upgrade request from `client_addr`.
    pub(crate) fn count_upgrade(&self, client_addr: IpAddr) -> Result<(), LimitExceeded> {
        self.count(HandshakeKind::Upgrade, Some(client_addr))
    }

    /// Counts a TLS handshake from `client_addr`. Where the client's address is not known yet, counts it
    /// among all only.
    pub(crate) fn count_tls_handshake(
        &self,
        client_addr: Option<IpAddr>,
    ) -> Result<(), LimitExceeded> {
        self.count(HandshakeKind::Tls, client_addr)
    }

    fn count(&self, kind: HandshakeKind, client_addr: Option<IpAddr>) -> Result<(), LimitExceeded> {
        let (rates, address_reason, total_reason) = match kind {
            HandshakeKind::Tls => (
                self.limits.tls_handshakes,
                Rejection::AddressTlsRate,
                Rejection::TlsRate,
            ),
            HandshakeKind::Upgrade => (
                self.limits.upgrades,
                Rejection::AddressRate,
                Rejection::Rate,
            ),
        };
        let now = self.now();
        let take = |buckets: &mut AddressBuckets, rate, reason| {
            let bucket = match kind {
                HandshakeKind::Tls => &mut buckets.tls_handshakes,
                HandshakeKind::Upgrade => &mut buckets.upgrades,
            };
            if bucket.take(rate, 1, now) {
                return Ok(());
            }
            let wait = bucket.wait(rate, now);
            Err(LimitExceeded { reason, wait })
        };
        // The address first: a handshake beyond its own rate must not use up the rate of all.
        if let (Some(rate), Some(client_addr)) = (rates.per_address, client_addr) {
            let mut networks = self.limits.networks.lock();
            take(networks.get(Network::of(client_addr)), rate, address_reason)?;
        }
        match rates.total {
            Some(rate) => take(&mut self.limits.total.lock(), rate, total_reason),
            None => Ok(()),
        }
    }

    /// Whether `client_addr` may authenticate: it has not failed too often, and its network may have one
    /// more user. Counts nothing.
    pub(crate) fn check_may_authenticate(&self, client_addr: IpAddr) -> Result<(), LimitExceeded> {
        let network = Network::of(client_addr);
        if self.limits.connections_max.is_some() {
            self.limits
                .users_below_max(network, &self.limits.users.lock())?;
        }
        let Some(rate) = self.limits.auth_failures else {
            return Ok(());
        };
        let buckets = *self.limits.networks.lock().get(network);
        match buckets.auth_failures.wait(rate, self.now()) {
            Duration::ZERO => Ok(()),
            wait => Err(LimitExceeded {
                reason: Rejection::AddressFailures,
                wait,
            }),
        }
    }

    /// Counts a failed authentication of `client_addr`.
    pub(crate) fn count_auth_failure(&self, client_addr: IpAddr) {
        if let Some(rate) = self.limits.auth_failures {
            let now = self.now();
            let mut networks = self.limits.networks.lock();
            let buckets = networks.get(Network::of(client_addr));
            buckets.auth_failures.take(rate, 1, now);
        }
    }

    /// Counts a connected user of `client_addr` until the permit is dropped. No permit where connected
    /// users have no limit.
    pub(crate) fn connect(
        &self,
        client_addr: IpAddr,
    ) -> Result<Option<AddressPermit>, LimitExceeded> {
        if self.limits.connections_max.is_none() {
            return Ok(None);
        }
        let network = Network::of(client_addr);
        let mut users = self.limits.users.lock();
        let count = self.limits.users_below_max(network, &users)?;
        users.insert(network, count + 1);
        Ok(Some(AddressPermit {
            limits: self.limits.clone(),
            network,
        }))
    }

    fn now(&self) -> Duration {
        self.limits.epoch.elapsed()
    }
}

impl AddressLimits {
    /// The number of the network's users, if it may have one more.
    fn users_below_max(
        &self,
        network: Network,
        users: &HashMap<Network, u32>,
    ) -> Result<u32, LimitExceeded> {
        let count = users.get(&network).copied().unwrap_or(0);
        if self.connections_max.is_some_and(|max| count >= max) {
            return Err(LimitExceeded {
                reason: Rejection::AddressConnections,
                wait: Duration::ZERO,
            });
        }
        Ok(count)
    }
}

impl HandshakeRates {
    fn new(per_address: Option<u32>, total: Option<u32>) -> Self {
        let per_second = |rate: u32| Rate::per_second(rate.into(), 1);
        Self {
            per_address: per_address.map(per_second),
            total: total.map(per_second),
        }
    }

    fn is_any(self) -> bool {
        self.per_address.is_some() || self.total.is_some()
    }
}

impl NetworkBuckets {
    /// The buckets of a network, full if it is not known.
    fn get(&mut self, network: Network) -> &mut AddressBuckets {
        if !self.young.contains_key(&network) && self.young.len() >= NETWORKS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        let old = &mut self.old;
        self.young
            .entry(network)
            .or_insert_with(|| old.remove(&network).unwrap_or_default())
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut users = self.limits.users.lock();
        let count = users.get(&self.network).copied().unwrap_or(0);
        if count > 1 {
            users.insert(self.network, count - 1);
        } else {
            users.remove(&self.network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn address_limiter(change: impl FnOnce(&mut LimitSettings)) -> AddressLimiter {
        let mut limits = Settings::default().limits;
        assert!(AddressLimiter::new(&limits).is_none(), "off by default");
        change(&mut limits);
        AddressLimiter::new(&limits).unwrap()
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[tokio::test(start_paused = true)]
    async fn each_address_has_a_rate_and_all_together_have_one() {
        let address_limiter = address_limiter(|limits| {
            limits.address_handshake_rate = Some(1);
            limits.handshake_rate = Some(2);
        });
        let count = |client_addr| {
            address_limiter
                .count_upgrade(address(client_addr))
                .map_err(|exceeded| exceeded.reason)
        };
        assert_eq!((count(1), count(1)), (Ok(()), Ok(())));
        assert_eq!(count(1), Err(Rejection::AddressRate));
        assert_eq!((count(2), count(3)), (Ok(()), Ok(())));
        assert_eq!(count(4), Err(Rejection::Rate));
        let exceeded = address_limiter.count_upgrade(address(1)).unwrap_err();
        assert_eq!(exceeded.wait, Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(count(1), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn tls_handshakes_have_rates_of_their_own_and_an_unknown_address_has_only_that_of_all() {
        let address_limiter = address_limiter(|limits| {
            limits.address_tls_handshake_rate = Some(1);
            limits.tls_handshake_rate = Some(3);
            limits.address_handshake_rate = Some(1);
        });
        let count = |client_addr: Option<&str>| {
            let client_addr = client_addr.map(|client_addr| client_addr.parse().unwrap());
            address_limiter
                .count_tls_handshake(client_addr)
                .map_err(|exceeded| exceeded.reason)
        };
        // One subscriber has a whole /64.
        let subscriber = ["2001:db8::1", "2001:db8::ffff:2", "2001:db8::3"].map(Some);
        assert_eq!(subscriber.map(count)[..2], [Ok(()), Ok(())]);
        assert_eq!(count(subscriber[2]), Err(Rejection::AddressTlsRate));
        // An unknown address has no rate of its own, and the refused handshake above used nothing up.
        assert_eq!([None; 4].map(count), [Ok(()); 4]);
        assert_eq!(count(None), Err(Rejection::TlsRate));
        assert_eq!(count(Some("192.0.2.1")), Err(Rejection::TlsRate));
        // Upgrade requests are counted apart from TLS handshakes.
        let client_addr = "2001:db8::1".parse().unwrap();
        let upgrades = [(); 3].map(|()| address_limiter.count_upgrade(client_addr).is_ok());
        assert_eq!(upgrades, [true, true, false]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(count(subscriber[2]), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn only_failed_authentications_count() {
        let address_limiter = address_limiter(|limits| limits.address_auth_failures = Some(3));
        for _ in 0..100 {
            assert_eq!(address_limiter.check_may_authenticate(address(1)), Ok(()));
        }
        for _ in 0..5 {
            address_limiter.count_auth_failure(address(1));
        }
        let exceeded = address_limiter
            .check_may_authenticate(address(1))
            .unwrap_err();
        assert_eq!(exceeded.reason, Rejection::AddressFailures);
        assert_eq!(exceeded.wait, Duration::from_secs(20));
        assert_eq!(address_limiter.check_may_authenticate(address(2)), Ok(()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(address_limiter.check_may_authenticate(address(1)), Ok(()));
    }

    #[tokio::test]
    async fn an_ipv6_subscriber_is_one_network_and_a_dropped_permit_is_free_again() {
        let address_limiter = address_limiter(|limits| limits.address_connections = Some(2));
        let connect = |client_addr: &str| address_limiter.connect(client_addr.parse().unwrap());
        let first = connect("2001:db8::1").unwrap();
        let second = connect("2001:db8::ffff:2").unwrap();
        let exceeded = connect("2001:db8::3").unwrap_err();
        assert_eq!(exceeded.reason, Rejection::AddressConnections);
        let other = connect("2001:db8:0:1::1").unwrap();
        drop(second);
        let third = connect("2001:db8::3").unwrap();
        drop((first, third, other));
        assert!(address_limiter.limits.users.lock().is_empty());
    }

    #[tokio::test]
    async fn a_peer_with_many_addresses_fills_no_table() {
        let address_limiter = address_limiter(|limits| {
            limits.address_handshake_rate = Some(1);
            limits.address_tls_handshake_rate = Some(1);
        });
        let size = || {
            let networks = address_limiter.limits.networks.lock();
            networks.young.len() + networks.old.len()
        };
        for client_addr in 0..200_000 {
            // A TLS handshake fills the table as an upgrade does.
            if client_addr % 2 == 0 {
                address_limiter
                    .count_tls_handshake(Some(address(client_addr)))
                    .unwrap();
            } else {
                address_limiter.count_upgrade(address(client_addr)).unwrap();
            }
            if client_addr % 1000 == 0 {
                // An address that comes again and again is not forgotten.
                let _within = address_limiter.count_upgrade(address(u32::MAX));
            }
        }
        assert!(size() <= NETWORKS_MAX, "{}", size());
        address_limiter
            .count_upgrade(address(u32::MAX))
            .unwrap_err();
    }
}
