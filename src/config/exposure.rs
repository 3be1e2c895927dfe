//! What of the settings lets more happen than the defaults do, a sentence each. The defaults are the
//! safe choice, but for rates: what is much depends on who comes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper::Uri;

use super::units::{duration_text, size_text};
use super::{AuthMode, Settings, TracingSettings};

impl Settings {
    /// What was loosened, and that rates are off where they are.
    pub fn loosened(&self) -> Vec<String> {
        let mut warnings = self.unset_rates();
        warnings.extend(self.reachable());
        warnings.extend(self.admission());
        warnings.extend(self.cut_off());
        warnings.extend(self.between_nodes());
        warnings.extend(self.traced());
        warnings.extend(self.raised(&Self::default()));
        warnings
    }

    fn unset_rates(&self) -> Vec<String> {
        let limits = &self.limits;
        let no_tls = !self.speaks_tls();
        let keys = [
            ("message_rate", limits.message_rate.is_some()),
            ("byte_rate", limits.byte_rate.is_some()),
            ("accept_rate", limits.accept_rate.is_some()),
            ("handshake_rate", limits.handshake_rate.is_some()),
            (
                "address_handshake_rate",
                limits.address_handshake_rate.is_some(),
            ),
            (
                "tls_handshake_rate",
                limits.tls_handshake_rate.is_some() || no_tls,
            ),
            (
                "address_tls_handshake_rate",
                limits.address_tls_handshake_rate.is_some() || no_tls,
            ),
            ("address_connections", limits.address_connections.is_some()),
            (
                "address_auth_failures",
                limits.address_auth_failures.is_some() || self.auth.mode == AuthMode::None,
            ),
        ];
        let unset: Vec<_> = keys
            .iter()
            .filter(|(_, is_set)| !is_set)
            .map(|(key, _)| format!("limits.{key}"))
            .collect();
        if unset.is_empty() {
            return Vec::new();
        }
        vec![format!("rates are off: {} not set", is_or_are(&unset))]
    }

    /// What others than this machine can reach.
    fn reachable(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let open: Vec<_> = self
            .server
            .listen
            .iter()
            .filter(|addr| !is_loopback(addr))
            .map(ToString::to_string)
            .collect();
        if !open.is_empty() {
            let open = open.join(", ");
            if self.auth.mode == AuthMode::None {
                warnings.push(format!(
                    "auth.mode is \"none\", and anybody can reach {open}"
                ));
            }
            if self.auth.mode == AuthMode::None && self.server.allowed_hosts.is_empty() {
                warnings.push(format!(
                    "server.allowed_hosts is not set: a page of anybody, by a name that is given the \
                     address of {open}, connects in its visitors' names"
                ));
            }
            if !self.speaks_tls() {
                warnings.push(format!(
                    "server.tls is not set: what is said over {open} can be read on its way, unless a \
                     proxy in front speaks TLS"
                ));
            }
            if self.admin.listen.is_none() {
                warnings.push(format!(
                    "admin.listen is not set: /metrics is for everybody who reaches {open}"
                ));
            }
        }
        if let Some(admin) = self.admin.listen.filter(|addr| !is_loopback(addr)) {
            if self.admin.token_file.is_none() {
                warnings.push(format!(
                    "admin.token_file is not set: /metrics is for everybody who reaches {admin}"
                ));
            } else if self.admin.tls.cert_file.is_none() {
                warnings.push(format!(
                    "admin.tls is not set: the token can be read on its way to {admin}"
                ));
            }
        }
        warnings
    }

    /// Who is let in, and who is believed.
    fn admission(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for origin in &self.server.allowed_origins {
            warnings.push(format!(
                "server.allowed_origins: pages of {origin} connect in their visitors' names"
            ));
        }
        let limits = &self.limits;
        let by_address = [
            (
                "address_handshake_rate",
                limits.address_handshake_rate.is_some(),
            ),
            (
                "address_tls_handshake_rate",
                limits.address_tls_handshake_rate.is_some(),
            ),
            ("address_connections", limits.address_connections.is_some()),
            (
                "address_auth_failures",
                limits.address_auth_failures.is_some(),
            ),
        ];
        let by_address: Vec<_> = by_address
            .iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(key, _)| format!("limits.{key}"))
            .collect();
        if !by_address.is_empty() && self.server.trusted_proxies.is_empty() {
            warnings.push(format!(
                "server.trusted_proxies is not set: if a proxy is in front, {} set for all who come \
                 through it together",
                is_or_are(&by_address)
            ));
        }
        for network in &self.server.trusted_proxies {
            if network.prefix_len() == 0 {
                warnings.push(format!(
                    "server.trusted_proxies: {network} believes everybody's word on their address"
                ));
            }
        }
        let auth = &self.auth;
        if auth.mode == AuthMode::None {
            if auth.has_keys() {
                warnings.push(
                    "auth.mode is \"none\": nobody is asked for a token, whatever else auth sets"
                        .to_owned(),
                );
            }
            return warnings;
        }
        if auth.query_token {
            warnings.push("auth.query_token: tokens stand in the logs of proxies".to_owned());
        }
        if auth.audience.is_none() {
            warnings.push(
                "auth.audience is not set: a token that was issued for another service is taken"
                    .to_owned(),
            );
        }
        if let Some(url) = &auth.jwks_url
            && url.starts_with("http://")
        {
            warnings.push(format!(
                "auth.jwks_url: whoever is between here and {url} can choose the keys"
            ));
        }
        warnings
    }

    /// Who waits or is cut off before HTTP can say anything to it.
    fn cut_off(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let limits = &self.limits;
        if let (Some(accepted), Some(rate)) = (limits.accept_rate, limits.handshake_rate)
            && accepted <= rate
        {
            warnings.push(
                "limits.accept_rate is not above limits.handshake_rate: who comes too often waits, and is \
                 not told when to come back"
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
                    "server.tls is not set: limits.{tls_key} bounds nothing"
                ));
                continue;
            }
            // Each handshake has a TLS handshake before it, so with the same rate TLS ends first.
            if rate.is_some_and(|rate| tls_rate <= rate) {
                warnings.push(format!(
                    "limits.{tls_key} is not above limits.{key}: who comes too often is cut off, and not \
                     told when to come back"
                ));
            }
            if self.admin.listen.is_none() {
                warnings.push(format!(
                    "admin.listen is not set: who is over limits.{tls_key} is cut off, probes and scrapes \
                     of /metrics included"
                ));
            }
        }
        warnings
    }

    /// Whether users come by TLS.
    fn speaks_tls(&self) -> bool {
        self.server.tls.cert_file.is_some()
    }

    /// Who can reach NATS reads what crosses, and writes in anybody's name.
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
                "cluster: {url} asks for no secret: whoever reaches it reads every message that \
                 crosses, and writes in anybody's name"
            ));
        }
        let asks_for_tls = cluster.tls_ca_file.is_some() || cluster.tls_cert_file.is_some();
        let in_the_clear = remote.find(|url| !asks_for_tls && !url.starts_with("tls://"));
        if let Some(url) = in_the_clear {
            warnings.push(format!(
                "cluster: messages can be read on their way to {url}, unless the NATS server asks for TLS"
            ));
        }
        warnings
    }

    fn traced(&self) -> Option<String> {
        let TracingSettings {
            otlp_endpoint,
            trust_clients,
            ..
        } = &self.tracing;
        (*trust_clients && otlp_endpoint.is_some()).then(|| {
            "tracing.trust_clients: any client has all that it does traced, if it asks for that"
                .to_owned()
        })
    }

    /// Bounds above their defaults.
    fn raised(&self, default: &Self) -> Vec<String> {
        let all = |settings: &Self| {
            let numbers = settings.numbers().map(|(key, number)| {
                let text = number.to_string();
                (key, number, text)
            });
            let sizes = settings
                .sizes()
                .map(|(key, bytes)| (key, bytes, size_text(bytes)));
            let times = settings.times().map(|(key, time)| {
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                (key, millis, duration_text(time))
            });
            numbers.into_iter().chain(sizes).chain(times)
        };
        all(self)
            .zip(all(default))
            .filter(|((_, found, _), (_, default, _))| found > default)
            .map(|((key, _, found), (_, _, default))| {
                format!("{key} is {found}, which is above the default of {default}")
            })
            .collect()
    }

    fn numbers(&self) -> [(&'static str, u64); 10] {
        let (limits, cluster) = (&self.limits, &self.cluster);
        [
            ("limits.handshakes", limits.handshakes as u64),
            ("limits.bad_messages", limits.bad_messages.into()),
            ("limits.outcomes_pending", limits.outcomes_pending.into()),
            ("mailbox.messages", self.mailbox.messages.into()),
            ("routing.router_queue", self.routing.router_queue as u64),
            ("cluster.outcomes_pending", cluster.outcomes_pending.into()),
            ("cluster.claims", cluster.claims.into()),
            ("cluster.user_messages", cluster.user_messages.into()),
            ("cluster.inbound_messages", cluster.inbound_messages.into()),
            ("tracing.queue_spans", self.tracing.queue_spans as u64),
        ]
    }

    fn sizes(&self) -> [(&'static str, u64); 8] {
        let (limits, cluster) = (&self.limits, &self.cluster);
        [
            ("limits.header_bytes", limits.header_bytes as u64),
            ("limits.message_bytes", limits.message_bytes as u64),
            ("limits.frame_bytes", limits.frame_bytes as u64),
            ("mailbox.bytes", self.mailbox.bytes as u64),
            ("mailbox.total_bytes", self.mailbox.total_bytes),
            ("cluster.user_bytes", cluster.user_bytes as u64),
            ("cluster.queue_bytes", cluster.queue_bytes as u64),
            ("cluster.in_flight_bytes", cluster.in_flight_bytes as u64),
        ]
    }

    fn times(&self) -> [(&'static str, Duration); 9] {
        let (auth, keepalive) = (&self.auth, &self.keepalive);
        [
            ("auth.leeway", auth.leeway),
            ("auth.jwks_timeout", auth.jwks_timeout),
            ("auth.refresh_interval", auth.refresh_interval),
            ("limits.header_timeout", self.limits.header_timeout),
            ("keepalive.ping_interval", keepalive.ping_interval),
            ("keepalive.pong_timeout", keepalive.pong_timeout),
            ("keepalive.write_timeout", keepalive.write_timeout),
            ("keepalive.close_timeout", keepalive.close_timeout),
            ("tickets.ttl", self.tickets.ttl),
        ]
    }
}

fn is_loopback(addr: &SocketAddr) -> bool {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

fn is_or_are(keys: &[String]) -> String {
    let verb = if keys.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", keys.join(", "))
}
