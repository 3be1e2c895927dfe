//! How often one address may come, and all of them together. Nothing here is kept for longer than it
//! says something, and every table is bounded, so that whoever comes from everywhere fills none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::address::Network;
use crate::config::Limits;
use crate::rate::{Bucket, Rate};
use crate::telemetry::metrics::Rejection;

/// Networks whose pace is remembered: about 5 MB. With more than these the longest unseen is
/// forgotten first, which lets it begin anew.
const NETWORKS_MAX: usize = 1 << 16;

/// Who comes, and how often: a cheap handle.
#[derive(Clone, Debug)]
pub struct Visitors {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connections_max: Option<u32>,
    handshakes: Option<Rate>,
    failures: Option<Rate>,
    all_handshakes: Option<Rate>,
    /// Time zero of the buckets.
    epoch: Instant,
    all: Mutex<Bucket>,
    /// How many users a network has. As many entries as there are users, at most.
    here: Mutex<HashMap<Network, u32>>,
    paces: Mutex<Paces>,
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
    failures: Bucket,
}

/// Too many, and how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    pub(super) reason: Rejection,
    pub(super) wait: Duration,
}

/// A user of a network, until it is dropped.
#[derive(Debug)]
pub(super) struct Visit {
    visitors: Visitors,
    network: Network,
}

impl Visitors {
    /// Bounded by these limits; nothing if they set none.
    pub fn new(limits: &Limits) -> Option<Self> {
        let per_second = |rate: Option<u32>| rate.map(|rate| Rate::per_second(rate.into(), 1));
        let per_minute = |rate: u32| Rate::per_minute(rate.into());
        let shared = Shared {
            connections_max: limits.address_connections,
            handshakes: per_second(limits.address_handshake_rate),
            failures: limits.address_auth_failures.map(per_minute),
            all_handshakes: per_second(limits.handshake_rate),
            epoch: Instant::now(),
            all: Mutex::default(),
            here: Mutex::default(),
            paces: Mutex::default(),
        };
        let bounded = shared.connections_max.is_some()
            || shared.handshakes.is_some()
            || shared.failures.is_some()
            || shared.all_handshakes.is_some();
        bounded.then(|| Self {
            shared: Arc::new(shared),
        })
    }

    /// Counts a handshake from `client`.
    pub(super) fn arrives(&self, client: IpAddr) -> Result<(), TooMany> {
        let now = self.now();
        // The address first: what it has too much of is not taken from the others.
        if let Some(rate) = self.shared.handshakes {
            let mut paces = lock(&self.shared.paces);
            let pace = paces.of(Network::of(client));
            if !pace.handshakes.take(rate, 1, now) {
                return Err(TooMany {
                    reason: Rejection::AddressRate,
                    wait: pace.handshakes.wait(rate, now),
                });
            }
        }
        if let Some(rate) = self.shared.all_handshakes {
            let mut all = lock(&self.shared.all);
            if !all.take(rate, 1, now) {
                return Err(TooMany {
                    reason: Rejection::Rate,
                    wait: all.wait(rate, now),
                });
            }
        }
        Ok(())
    }

    /// Whether `client` may try to authenticate.
    pub(super) fn may_try(&self, client: IpAddr) -> Result<(), TooMany> {
        let Some(rate) = self.shared.failures else {
            return Ok(());
        };
        let pace = *lock(&self.shared.paces).of(Network::of(client));
        match pace.failures.wait(rate, self.now()) {
            Duration::ZERO => Ok(()),
            wait => Err(TooMany {
                reason: Rejection::AddressFailures,
                wait,
            }),
        }
    }

    /// Counts a failed authentication of `client`.
    pub(super) fn failed(&self, client: IpAddr) {
        if let Some(rate) = self.shared.failures {
            let now = self.now();
            let mut paces = lock(&self.shared.paces);
            paces.of(Network::of(client)).failures.take(rate, 1, now);
        }
    }

    /// Counts a user from `client`, if it is not one too many; nothing where users are not counted.
    pub(super) fn enters(&self, client: IpAddr) -> Result<Option<Visit>, TooMany> {
        let Some(connections_max) = self.shared.connections_max else {
            return Ok(None);
        };
        let network = Network::of(client);
        let mut here = lock(&self.shared.here);
        let users = here.get(&network).copied().unwrap_or(0);
        if users >= connections_max {
            return Err(TooMany {
                reason: Rejection::AddressConnections,
                wait: Duration::ZERO,
            });
        }
        here.insert(network, users + 1);
        Ok(Some(Visit {
            visitors: self.clone(),
            network,
        }))
    }

    fn now(&self) -> Duration {
        self.shared.epoch.elapsed()
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

impl Drop for Visit {
    fn drop(&mut self) {
        let mut here = lock(&self.visitors.shared.here);
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

    fn visitors(change: impl FnOnce(&mut Limits)) -> Visitors {
        let mut limits = Settings::default().limits;
        assert!(Visitors::new(&limits).is_none(), "off by default");
        change(&mut limits);
        Visitors::new(&limits).unwrap()
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_its_own_rate_and_all_have_one_together() {
        let visitors = visitors(|limits| {
            limits.address_handshake_rate = Some(1);
            limits.handshake_rate = Some(2);
        });
        let refused = |client| {
            visitors
                .arrives(address(client))
                .map_err(|too_many| too_many.reason)
        };
        assert_eq!((refused(1), refused(1)), (Ok(()), Ok(())));
        assert_eq!(refused(1), Err(Rejection::AddressRate));
        assert_eq!((refused(2), refused(3)), (Ok(()), Ok(())));
        assert_eq!(refused(4), Err(Rejection::Rate));
        let too_many = visitors.arrives(address(1)).unwrap_err();
        assert_eq!(too_many.wait, Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(refused(1), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_and_what_succeeds_does_not() {
        let visitors = visitors(|limits| limits.address_auth_failures = Some(3));
        for _ in 0..100 {
            assert_eq!(visitors.may_try(address(1)), Ok(()));
        }
        for _ in 0..5 {
            visitors.failed(address(1));
        }
        let too_many = visitors.may_try(address(1)).unwrap_err();
        assert_eq!(too_many.reason, Rejection::AddressFailures);
        assert_eq!(too_many.wait, Duration::from_secs(20));
        assert_eq!(visitors.may_try(address(2)), Ok(()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(visitors.may_try(address(1)), Ok(()));
    }

    #[tokio::test]
    async fn an_ipv6_subscriber_is_one_and_a_place_comes_back() {
        let visitors = visitors(|limits| limits.address_connections = Some(2));
        let enter = |client: &str| visitors.enters(client.parse().unwrap());
        let first = enter("2001:db8::1").unwrap();
        let second = enter("2001:db8::ffff:2").unwrap();
        let too_many = enter("2001:db8::3").unwrap_err();
        assert_eq!(too_many.reason, Rejection::AddressConnections);
        let other = enter("2001:db8:0:1::1").unwrap();
        drop(second);
        let third = enter("2001:db8::3").unwrap();
        drop((first, third, other));
        assert!(lock(&visitors.shared.here).is_empty());
    }

    #[tokio::test]
    async fn whoever_comes_from_everywhere_fills_no_table() {
        let visitors = visitors(|limits| limits.address_handshake_rate = Some(1));
        let size = || {
            let paces = lock(&visitors.shared.paces);
            paces.recent.len() + paces.earlier.len()
        };
        for client in 0..200_000 {
            visitors.arrives(address(client)).unwrap();
            if client % 1000 == 0 {
                // One that comes all the while is not forgotten.
                let _within = visitors.arrives(address(u32::MAX));
            }
        }
        assert!(size() <= NETWORKS_MAX, "{}", size());
        visitors.arrives(address(u32::MAX)).unwrap_err();
    }
}
