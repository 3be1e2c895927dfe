//! Warnings about settings that are less safe than the defaults, a sentence each. The defaults are the safe
//! choice, except that rates have no limit: the right rate depends on the users.

use std::net::{IpAddr, SocketAddr};

use hyper::Uri;

use super::choices::AuthMode;
use super::rules::rules;
use super::settings::Settings;

impl Settings {
    /// Warnings about rates without a limit, and about settings that are less safe than the defaults.
    pub fn exposure_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<_> = self.unset_rates().into_iter().collect();
        warnings.extend(self.reachable());
        warnings.extend(self.per_address());
        warnings.extend(self.authentication());
        warnings.extend(self.refused_without_response());
        warnings.extend(self.between_nodes());
        warnings.extend(self.traced());
        warnings.extend(self.above_defaults());
        warnings.extend(self.weak_tokens());
        warnings
    }

    fn unset_rates(&self) -> Option<String> {
        let mut unset = self.rates(false);
        unset.retain(|key| match *key {
            "limits.address_auth_failures" => self.auth.mode != AuthMode::None,
            key => self.speaks_tls() || !key.contains("tls_"),
        });
        (!unset.is_empty()).then(|| format!("rates without a limit: {}", unset.join(", ")))
    }

    /// The keys of rates with or without a limit.
    fn rates(&self, is_limited: bool) -> Vec<&'static str> {
        let rules = rules(self).into_iter();
        let rates = rules.filter(|rule| rule.is_limited == Some(is_limited));
        rates.map(|rule| rule.key).collect()
    }

    /// Addresses that other machines can reach.
    fn reachable(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let open = self.server.listen.iter().filter(|addr| !is_loopback(addr));
        let open: Vec<_> = open.map(ToString::to_string).collect();
        if !open.is_empty() {
            let open = open.join(", ");
            if self.auth.mode == AuthMode::None {
                warnings.push(format!(
                    "auth.mode is \"none\": any client that reaches {open} may connect"
                ));
            }
            if self.auth.mode == AuthMode::None && self.server.allowed_hosts.is_empty() {
                warnings.push(format!(
                    "server.allowed_hosts is not set: a page under any host name that resolves to {open} \
                     may connect from every browser that opens it"
                ));
            }
            if !self.speaks_tls() {
                warnings.push(format!(
                    "server.tls is not set: messages to {open} can be read on the network, unless a \
                     proxy in front speaks TLS"
                ));
            }
            if self.admin.listen.is_none() {
                warnings.push(format!(
                    "admin.listen is not set: any client that reaches {open} can read /metrics"
                ));
            }
        }
        if let Some(admin) = self.admin.listen.filter(|addr| !is_loopback(addr)) {
            let (token, metrics_token) = (&self.admin.token_file, &self.admin.metrics_token_file);
            if metrics_token.is_none() {
                warnings.push(match token {
                    None => format!(
                        "admin.metrics_token_file is not set: any client that reaches {admin} can read \
                         /metrics"
                    ),
                    Some(_) => "admin.metrics_token_file is not set: a scrape needs the token of \
                         admin.token_file, which can also send messages, remove users and drain"
                        .to_owned(),
                });
            }
            if (token.is_some() || metrics_token.is_some()) && self.admin.tls.cert_file.is_none() {
                warnings.push(format!(
                    "admin.tls is not set: the token can be read on the network to {admin}"
                ));
            }
        }
        warnings
    }

    /// How the relay learns a client's address.
    fn per_address(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut shared = self.rates(true);
        shared.retain(|key| key.contains(".address_"));
        if !shared.is_empty() && self.server.trusted_proxies.is_empty() {
            warnings.push(format!(
                "server.trusted_proxies is not set: all clients of a proxy in front share one address, \
                 and with it {}",
                shared.join(", ")
            ));
        }
        for network in &self.server.trusted_proxies {
            if network.prefix_len() == 0 {
                warnings.push(format!(
                    "server.trusted_proxies: {network} lets every client choose the address that it \
                     counts by"
                ));
            }
        }
        warnings
    }

    /// Which pages and which tokens are accepted.
    fn authentication(&self) -> Vec<String> {
        let origins = self.server.allowed_origins.iter().map(|origin| {
            let pages = if origin.is_null() {
                "any page can get the origin null, by a sandboxed frame: all pages".to_owned()
            } else {
                format!("pages of {origin}")
            };
            format!(
                "server.allowed_origins: {pages} may connect from every browser that opens them"
            )
        });
        let mut warnings: Vec<_> = origins.collect();
        let auth = &self.auth;
        if auth.mode == AuthMode::None {
            if auth.has_keys() {
                let unused = "auth.mode is \"none\": no token is checked, although auth names keys";
                warnings.push(unused.to_owned());
            }
            return warnings;
        }
        if auth.query_token {
            warnings.push("auth.query_token: tokens appear in the logs of proxies".to_owned());
        }
        if auth.audience.is_none() {
            warnings.push(
                "auth.audience is not set: a token that was issued for another service is accepted"
                    .to_owned(),
            );
        }
        if let Some(url) = &auth.jwks_url
            && url.starts_with("http://")
        {
            warnings.push(format!(
                "auth.jwks_url: an attacker on the network between this machine and {url} can choose \
                 the keys"
            ));
        }
        warnings
    }

    /// Limits that refuse a client before the relay can send a response with `Retry-After`.
    fn refused_without_response(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let limits = &self.limits;
        if let (Some(accepted), Some(rate)) = (limits.accept_rate, limits.handshake_rate)
            && accepted <= rate
        {
            warnings.push(
                "limits.accept_rate is not above limits.handshake_rate: a client above the rate waits, \
                 and no response tells it when to retry"
                    .to_owned(),
            );
        }
        let rates = [
            (
                ("tls_handshake_rate", limits.tls_handshake_rate),
                ("handshake_rate", limits.handshake_rate),
            ),
            (
                (
                    "address_tls_handshake_rate",
                    limits.address_tls_handshake_rate,
                ),
                ("address_handshake_rate", limits.address_handshake_rate),
            ),
        ];
        for ((tls_key, tls_rate), (key, rate)) in rates {
            let Some(tls_rate) = tls_rate else { continue };
            if !self.speaks_tls() {
                warnings.push(format!(
                    "server.tls is not set: limits.{tls_key} has no effect"
                ));
                continue;
            }
            // A TLS handshake comes before each handshake, so at an equal rate the TLS limit refuses first.
            if rate.is_some_and(|rate| tls_rate <= rate) {
                warnings.push(format!(
                    "limits.{tls_key} is not above limits.{key}: a client above the rate is reset, and \
                     no response tells it when to retry"
                ));
            }
            if self.admin.listen.is_none() {
                warnings.push(format!(
                    "admin.listen is not set: limits.{tls_key} also resets health checks and scrapes of \
                     /metrics"
                ));
            }
        }
        warnings
    }

    /// Whether users connect by TLS.
    fn speaks_tls(&self) -> bool {
        self.server.tls.cert_file.is_some()
    }

    /// The way to NATS. A client of NATS can read all messages between nodes, and write in the name of any user.
    fn between_nodes(&self) -> Vec<String> {
        let cluster = &self.cluster;
        let is_remote = |url: &&String| {
            let url = url.parse::<Uri>().ok();
            let host = url.as_ref().and_then(Uri::host).unwrap_or_default();
            let host = host.trim_matches(['[', ']']);
            host != "localhost" && !host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        };
        let mut remote = cluster.nats_url.iter().filter(is_remote);
        let Some(url) = remote.clone().next() else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let secrets = [
            &cluster.password_file,
            &cluster.token_file,
            &cluster.nkey_file,
            &cluster.creds_file,
            &cluster.tls_cert_file,
        ];
        if secrets.iter().all(|secret| secret.is_none()) {
            warnings.push(format!(
                "cluster: no secret is set for {url}: any client that reaches it can read all messages \
                 between nodes, and write in the name of any user"
            ));
        }
        let asks_for_tls = cluster.tls_ca_file.is_some() || cluster.tls_cert_file.is_some();
        let in_the_clear = remote.find(|url| !asks_for_tls && !url.starts_with("tls://"));
        if let Some(url) = in_the_clear {
            warnings.push(format!(
                "cluster: messages to {url} can be read on the network, unless the NATS server requires \
                 TLS"
            ));
        }
        warnings
    }

    fn traced(&self) -> Option<String> {
        let tracing = &self.tracing;
        (tracing.trust_clients && tracing.otlp_endpoint.is_some()).then(|| {
            "tracing.trust_clients: any client can have all of its messages traced".to_owned()
        })
    }

    fn above_defaults(&self) -> Vec<String> {
        let defaults = rules(&Self::default());
        let rules = rules(self);
        let pairs = rules.iter().zip(&defaults);
        pairs
            .filter_map(|(rule, default)| rule.warning(default))
            .collect()
    }
}

fn is_loopback(addr: &SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}
