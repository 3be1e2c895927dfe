//! How often one address may come, and all of them together. Nothing here is kept for longer than it
//! says something, and every table is bounded, so that whoever comes from everywhere fills none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::network::Network;
use crate::admission::token_bucket::{Bucket, Rate};
use crate::config::LimitSettings;
use crate::telemetry::metrics::Rejection;

/// Networks whose pace is remembered: about 6 MB. With more than these the longest unseen is
/// forgotten first, which lets it begin anew.
const NETWORKS_MAX: usize = 1 << 16;

/// Who comes, and how often: a cheap handle.
#[derive(Clone, Debug)]
pub struct AddressLimiter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connections_max: Option<u32>,
    handshakes: Rates,
    tls_handshakes: Rates,
    failures: Option<Rate>,
    /// Time zero of the buckets.
    epoch: Instant,
    /// The pace of all together.
    all: Mutex<Pace>,
    /// How many users a network has. As many entries as there are users, at most.
    here: Mutex<HashMap<Network, u32>>,
    paces: Mutex<Paces>,
}

/// What is allowed of one kind of handshake.
#[derive(Clone, Copy, Debug)]
struct Rates {
    each: Option<Rate>,
    all: Option<Rate>,
}

/// The paces of networks. The hash is keyed by chance: who chooses addresses cannot make them collide.
#[derive(Debug, Default)]
struct Paces {
    recent: HashMap<Network, Pace>,
    /// Those that were recent before; one of them that comes again is recent again.
    earlier: HashMap<Network, Pace>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    handshakes: Bucket,
    tls_handshakes: Bucket,
    failures: Bucket,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Step {
    Tls,
    Upgrade,
}

/// Too many, and how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany {
    pub(crate) reason: Rejection,
    pub(crate) wait: Duration,
}

/// A user of a network, until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressPermit {
    address_limiter: AddressLimiter,
    network: Network,
}

impl AddressLimiter {
    /// Bounded by these limits; nothing if they set none.
    pub fn new(limits: &LimitSettings) -> Option<Self> {
        let per_minute = |rate: u32| Rate::per_minute(rate.into());
        let shared = Shared {
            connections_max: limits.address_connections,
            handshakes: Rates::new(limits.address_handshake_rate, limits.handshake_rate),
            tls_handshakes: Rates::new(
                limits.address_tls_handshake_rate,
                limits.tls_handshake_rate,
            ),
            failures: limits.address_auth_failures.map(per_minute),
            epoch: Instant::now(),
            all: Mutex::default(),
            here: Mutex::default(),
            paces: Mutex::default(),
        };
        let bounded = shared.connections_max.is_some()
            || shared.handshakes.is_any()
            || shared.tls_handshakes.is_any()
            || shared.failures.is_some();
        bounded.then(|| Self {
            shared: Arc::new(shared),
        })
    }

    /// Counts a handshake from `client_addr`.
    pub(crate) fn arrives(&self, client_addr: IpAddr) -> Result<(), TooMany> {
        self.count(Step::Upgrade, Some(client_addr))
    }

    /// Counts a TLS handshake from `client_addr`, over all only where that is not known yet.
    pub(crate) fn says_hello(&self, client_addr: Option<IpAddr>) -> Result<(), TooMany> {
        self.count(Step::Tls, client_addr)
    }

    fn count(&self, step: Step, client_addr: Option<IpAddr>) -> Result<(), TooMany> {
        let (rates, for_each, for_all) = match step {
            Step::Tls => (
                self.shared.tls_handshakes,
                Rejection::AddressTlsRate,
                Rejection::TlsRate,
            ),
            Step::Upgrade => (
                self.shared.handshakes,
                Rejection::AddressRate,
                Rejection::Rate,
            ),
        };
        let now = self.now();
        let take = |pace: &mut Pace, rate, reason| {
            let bucket = match step {
                Step::Tls => &mut pace.tls_handshakes,
                Step::Upgrade => &mut pace.handshakes,
            };
            if bucket.take(rate, 1, now) {
                return Ok(());
            }
            let wait = bucket.wait(rate, now);
            Err(TooMany { reason, wait })
        };
        // The address first: what it has too much of is not taken from the others.
        if let (Some(rate), Some(client_addr)) = (rates.each, client_addr) {
            let mut paces = lock(&self.shared.paces);
            take(paces.of(Network::of(client_addr)), rate, for_each)?;
        }
        match rates.all {
            Some(rate) => take(&mut lock(&self.shared.all), rate, for_all),
            None => Ok(()),
        }
    }

    /// Whether `client_addr` may try to authenticate: it has not failed too often, and there is a place that it
    /// would have then.
    pub(crate) fn may_try(&self, client_addr: IpAddr) -> Result<(), TooMany> {
        if self.shared.connections_max.is_some() {
            self.slot(client_addr, &lock(&self.shared.here))?;
        }
        let Some(rate) = self.shared.failures else {
            return Ok(());
        };
        let pace = *lock(&self.shared.paces).of(Network::of(client_addr));
        match pace.failures.wait(rate, self.now()) {
            Duration::ZERO => Ok(()),
            wait => Err(TooMany {
                reason: Rejection::AddressFailures,
                wait,
            }),
        }
    }

    /// Counts a failed authentication of `client_addr`.
    pub(crate) fn failed(&self, client_addr: IpAddr) {
        if let Some(rate) = self.shared.failures {
            let now = self.now();
            let mut paces = lock(&self.shared.paces);
            paces
                .of(Network::of(client_addr))
                .failures
                .take(rate, 1, now);
        }
    }

    /// Counts a user from `client_addr`, if it is not one too many; nothing where users are not counted.
    pub(crate) fn enters(&self, client_addr: IpAddr) -> Result<Option<AddressPermit>, TooMany> {
        if self.shared.connections_max.is_none() {
            return Ok(None);
        }
        let network = Network::of(client_addr);
        let mut here = lock(&self.shared.here);
        let users = self.slot(client_addr, &here)?;
        here.insert(network, users + 1);
        Ok(Some(AddressPermit {
            address_limiter: self.clone(),
            network,
        }))
    }

    /// How many users the network of `client_addr` has, if there may be one more.
    fn slot(&self, client_addr: IpAddr, here: &HashMap<Network, u32>) -> Result<u32, TooMany> {
        let users = here.get(&Network::of(client_addr)).copied().unwrap_or(0);
        if self.shared.connections_max.is_some_and(|max| users >= max) {
            return Err(TooMany {
                reason: Rejection::AddressConnections,
                wait: Duration::ZERO,
            });
        }
        Ok(users)
    }

    fn now(&self) -> Duration {
        self.shared.epoch.elapsed()
    }
}

impl Rates {
    fn new(each: Option<u32>, all: Option<u32>) -> Self {
        let per_second = |rate: u32| Rate::per_second(rate.into(), 1);
        Self {
            each: each.map(per_second),
            all: all.map(per_second),
        }
    }

    fn is_any(self) -> bool {
        self.each.is_some() || self.all.is_some()
    }
}

impl Paces {
    fn of(&mut self, network: Network) -> &mut Pace {
        if !self.recent.contains_key(&network) && self.recent.len() >= NETWORKS_MAX / 2 {
            self.earlier = std::mem::take(&mut self.recent);
        }
        let earlier = &mut self.earlier;
        self.recent
            .entry(network)
            .or_insert_with(|| earlier.remove(&network).unwrap_or_default())
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut here = lock(&self.address_limiter.shared.here);
        let users = here.get(&self.network).copied().unwrap_or(0);
        if users > 1 {
            here.insert(self.network, users - 1);
        } else {
            here.remove(&self.network);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn an_address_has_its_own_rate_and_all_have_one_together() {
        let address_limiter = address_limiter(|limits| {
            limits.address_handshake_rate = Some(1);
            limits.handshake_rate = Some(2);
        });
        let refused = |client_addr| {
            address_limiter
                .arrives(address(client_addr))
                .map_err(|too_many| too_many.reason)
        };
        assert_eq!((refused(1), refused(1)), (Ok(()), Ok(())));
        assert_eq!(refused(1), Err(Rejection::AddressRate));
        assert_eq!((refused(2), refused(3)), (Ok(()), Ok(())));
        assert_eq!(refused(4), Err(Rejection::Rate));
        let too_many = address_limiter.arrives(address(1)).unwrap_err();
        assert_eq!(too_many.wait, Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(refused(1), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn tls_is_counted_by_itself_and_over_all_where_nobody_is_known() {
        let address_limiter = address_limiter(|limits| {
            limits.address_tls_handshake_rate = Some(1);
            limits.tls_handshake_rate = Some(3);
            limits.address_handshake_rate = Some(1);
        });
        let refused = |client_addr: Option<&str>| {
            let client_addr = client_addr.map(|client_addr| client_addr.parse().unwrap());
            address_limiter
                .says_hello(client_addr)
                .map_err(|too_many| too_many.reason)
        };
        // One subscriber has a whole /64.
        let subscriber = ["2001:db8::1", "2001:db8::ffff:2", "2001:db8::3"].map(Some);
        assert_eq!(subscriber.map(refused)[..2], [Ok(()), Ok(())]);
        assert_eq!(refused(subscriber[2]), Err(Rejection::AddressTlsRate));
        // Nobody in particular has no rate of its own, and what was refused above has cost nothing.
        assert_eq!([None; 4].map(refused), [Ok(()); 4]);
        assert_eq!(refused(None), Err(Rejection::TlsRate));
        assert_eq!(refused(Some("192.0.2.1")), Err(Rejection::TlsRate));
        // What they ask for then is counted anew.
        let client_addr = "2001:db8::1".parse().unwrap();
        let asks = [(); 3].map(|()| address_limiter.arrives(client_addr).is_ok());
        assert_eq!(asks, [true, true, false]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(refused(subscriber[2]), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_and_what_succeeds_does_not() {
        let address_limiter = address_limiter(|limits| limits.address_auth_failures = Some(3));
        for _ in 0..100 {
            assert_eq!(address_limiter.may_try(address(1)), Ok(()));
        }
        for _ in 0..5 {
            address_limiter.failed(address(1));
        }
        let too_many = address_limiter.may_try(address(1)).unwrap_err();
        assert_eq!(too_many.reason, Rejection::AddressFailures);
        assert_eq!(too_many.wait, Duration::from_secs(20));
        assert_eq!(address_limiter.may_try(address(2)), Ok(()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(address_limiter.may_try(address(1)), Ok(()));
    }

    #[tokio::test]
    async fn an_ipv6_subscriber_is_one_and_a_place_comes_back() {
        let address_limiter = address_limiter(|limits| limits.address_connections = Some(2));
        let enter = |client_addr: &str| address_limiter.enters(client_addr.parse().unwrap());
        let first = enter("2001:db8::1").unwrap();
        let second = enter("2001:db8::ffff:2").unwrap();
        let too_many = enter("2001:db8::3").unwrap_err();
        assert_eq!(too_many.reason, Rejection::AddressConnections);
        let other = enter("2001:db8:0:1::1").unwrap();
        drop(second);
        let third = enter("2001:db8::3").unwrap();
        drop((first, third, other));
        assert!(lock(&address_limiter.shared.here).is_empty());
    }

    #[tokio::test]
    async fn whoever_comes_from_everywhere_fills_no_table() {
        let address_limiter = address_limiter(|limits| {
            limits.address_handshake_rate = Some(1);
            limits.address_tls_handshake_rate = Some(1);
        });
        let size = || {
            let paces = lock(&address_limiter.shared.paces);
            paces.recent.len() + paces.earlier.len()
        };
        for client_addr in 0..200_000 {
            // Whoever only says hello is one as well.
            if client_addr % 2 == 0 {
                address_limiter
                    .says_hello(Some(address(client_addr)))
                    .unwrap();
            } else {
                address_limiter.arrives(address(client_addr)).unwrap();
            }
            if client_addr % 1000 == 0 {
                // One that comes all the while is not forgotten.
                let _within = address_limiter.arrives(address(u32::MAX));
            }
        }
        assert!(size() <= NETWORKS_MAX, "{}", size());
        address_limiter.arrives(address(u32::MAX)).unwrap_err();
    }
}
