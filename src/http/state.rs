//! What the HTTP connections of an app share, and what a listener serves.

use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;

use super::client_address::TrustedProxies;
use super::origins::Origins;
use super::scrapes::Scrapes;
use crate::admission::{AcceptLimiter, AddressLimiter, HandshakeThrottle};
use crate::api::Api;
use crate::auth::{self, Auth};
use crate::config::Secret;
use crate::lifecycle::Shutdown;
use crate::net::background::BackgroundPool;
use crate::net::tls::Tls;
use crate::relay::Relay;
use crate::session::SessionContext;
use crate::ticket::Tickets;

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerRole {
    /// Upgrades, metrics and health.
    All,
    /// Upgrades only, because metrics and health have a listener of their own.
    Users,
    /// Metrics, health and the API only.
    Admin,
}

/// What all HTTP connections of an app share.
#[derive(Debug)]
pub(crate) struct HttpState {
    /// The relay that upgraded users join.
    pub(crate) relay: Relay,
    /// What sessions share.
    pub(crate) sessions: Arc<SessionContext>,
    /// The stage of the process and its tasks.
    pub(crate) shutdown: Shutdown,
    /// `limits.header_timeout`.
    pub(crate) header_timeout: Duration,
    /// `limits.header_bytes`.
    pub(crate) header_bytes: usize,
    /// Decides which pages may connect.
    pub(crate) origins: Origins,
    /// `server.trusted_proxies` and `server.forwarded_header`.
    pub(crate) proxies: TrustedProxies,
    /// `server.proxy_protocol`.
    pub(crate) proxy_protocol: bool,
    /// Issues and reads the tickets by which users come back with their ids.
    pub(crate) tickets: Tickets,
    /// `ui.enabled`.
    pub(crate) page: bool,
    /// Checks the tokens of users.
    pub(crate) auth: Auth,
    /// `server.tls`.
    pub(crate) tls: Option<Tls>,
    /// `admin.tls`.
    pub(crate) admin_tls: Option<Tls>,
    /// Computes TLS handshakes.
    pub(crate) background: BackgroundPool,
    /// `admin.token_file`: the token of the API. None where there is no API.
    pub(crate) operator_token: Option<Secret>,
    /// The token of `/metrics` on the admin listener. None if a scrape needs none.
    pub(crate) metrics_token: Option<Secret>,
    /// `admin.ready_when_full`.
    pub(crate) ready_when_full: bool,
    /// The operators' API on the admin listener. None without a token.
    pub(crate) api: Option<Api>,
    /// Shares the worker threads between users and pending connections.
    pub(crate) throttle: HandshakeThrottle,
    /// `limits.accept_rate`, where it is set.
    pub(crate) accept_limiter: Option<AcceptLimiter>,
    /// The limits of addresses, where any is set.
    pub(crate) address_limiter: Option<AddressLimiter>,
    /// Shares scrapes among requests for metrics.
    pub(crate) scrapes: Scrapes,
}

impl ListenerRole {
    pub(super) fn serves_users(self) -> bool {
        self != Self::Admin
    }

    pub(super) fn serves_operators(self) -> bool {
        self != Self::Users
    }
}

impl HttpState {
    /// Whether the request may use the API.
    pub(super) fn is_operators(&self, headers: &HeaderMap) -> bool {
        has_token(headers, self.operator_token.as_ref())
    }

    /// Whether the request may read `/metrics` on the admin listener.
    pub(super) fn is_scrapers(&self, headers: &HeaderMap) -> bool {
        has_token(headers, self.metrics_token.as_ref())
    }

    /// The certificate of a listener that speaks TLS.
    pub(super) fn tls(&self, role: ListenerRole) -> Option<&Tls> {
        if role.serves_users() {
            self.tls.as_ref()
        } else {
            self.admin_tls.as_ref()
        }
    }
}

/// Whether the request has the token. True where there is no token.
fn has_token(headers: &HeaderMap, expected: Option<&Secret>) -> bool {
    expected.is_none_or(|expected| {
        auth::authorization(headers).is_some_and(|token| expected.is(token.as_bytes()))
    })
}
