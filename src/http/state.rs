//! What the HTTP connections of an app share, and what a listener is for.

use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;

use super::Proxies;
use crate::admission::{AcceptLimiter, AddressLimiter, HandshakeThrottle};
use crate::api::Api;
use crate::auth::{self, Auth};
use crate::config::{OriginPattern, Secret};
use crate::lifecycle::Shutdown;
use crate::net::background::BackgroundPool;
use crate::net::tls::Tls;
use crate::relay::Relay;
use crate::session::SessionContext;
use crate::ticket::Tickets;

/// What a listener's connections may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerRole {
    /// Upgrades, metrics and health.
    All,
    /// Upgrades only: metrics and health have a listener of their own.
    Users,
    /// Metrics, health and the API only.
    Admin,
}

/// What every HTTP connection of an app shares.
#[derive(Debug)]
pub(crate) struct HttpState {
    /// The relay that upgrades join.
    pub(crate) relay: Relay,
    /// What sessions share.
    pub(crate) sessions: Arc<SessionContext>,
    /// The stage, and where tasks are spawned.
    pub(crate) shutdown: Shutdown,
    /// `limits.header_timeout`.
    pub(crate) header_timeout: Duration,
    /// `limits.header_bytes`.
    pub(crate) header_bytes: usize,
    /// `server.allowed_origins`.
    pub(crate) allowed_origins: Vec<OriginPattern>,
    /// `server.allowed_hosts`.
    pub(crate) allowed_hosts: Vec<String>,
    /// Whose word on a client's address is taken.
    pub(crate) proxies: Proxies,
    /// `server.proxy_protocol`.
    pub(crate) proxy_protocol: bool,
    /// What lets a user come back with its id.
    pub(crate) tickets: Tickets,
    /// `ui.enabled`.
    pub(crate) page: bool,
    /// Who may come in.
    pub(crate) auth: Auth,
    /// `server.tls`.
    pub(crate) tls: Option<Tls>,
    /// `admin.tls`.
    pub(crate) admin_tls: Option<Tls>,
    /// Where TLS handshakes are computed.
    pub(crate) background: BackgroundPool,
    /// What operators show on the admin listener; nothing if they need not.
    pub(crate) operator_token: Option<Secret>,
    /// The operator's API, on the admin listener; nothing without a token.
    pub(crate) api: Option<Api>,
    /// What keeps those who are not users yet from taking the time of those who are.
    pub(crate) throttle: HandshakeThrottle,
    /// How fast users' connections are accepted, where that is bounded.
    pub(crate) accept_limiter: Option<AcceptLimiter>,
    /// How often one address may come, where that is bounded.
    pub(crate) address_limiter: Option<AddressLimiter>,
}

impl HttpState {
    /// Whether the request is an operator's, by the token of the admin listener.
    pub(super) fn is_operators(&self, headers: &HeaderMap) -> bool {
        self.operator_token.as_ref().is_none_or(|expected| {
            auth::authorization(headers).is_some_and(|token| expected.is(token.as_bytes()))
        })
    }

    pub(super) fn tls(&self, role: ListenerRole) -> Option<&Tls> {
        match role {
            ListenerRole::Admin => self.admin_tls.as_ref(),
            ListenerRole::All | ListenerRole::Users => self.tls.as_ref(),
        }
    }
}
