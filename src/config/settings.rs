//! The settings: one struct a section, one field a key. `config/default.toml` describes each key for operators
//! and is the only place of a default. Must not know how settings are loaded or checked.
//!
//! A key that may be not set is an `Option`. Keys that need each other are a rule, because each source is read
//! over the defaults by itself.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::choices::{
    Algorithm, AuthMode, Compression, ForwardedHeader, LogFormat, Overflow, Strategy,
};
use super::origin::OriginPattern;
use super::{otel, units};

/// All settings of one relay. Displays as TOML that loads to the same settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where users connect.
    pub server: ServerSettings,
    /// Where operators and health checks connect.
    pub admin: AdminSettings,
    /// Which tokens are valid.
    pub auth: AuthSettings,
    /// Limits of one peer and of all peers together.
    pub limits: LimitSettings,
    /// Messages that wait for a user.
    pub mailbox: MailboxSettings,
    /// How dead connections are detected.
    pub keepalive: KeepaliveSettings,
    /// How a message finds its recipient.
    pub routing: RoutingSettings,
    /// How nodes find each other.
    pub cluster: ClusterSettings,
    /// How the relay stops.
    pub drain: DrainSettings,
    /// How a user keeps its id on a new connection.
    pub tickets: TicketSettings,
    /// The built-in page.
    pub ui: UiSettings,
    /// The log.
    pub log: LogSettings,
    /// Which messages are traced, and where the spans go.
    pub tracing: TracingSettings,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    /// Addresses to listen on. Port 0 takes a free port.
    pub listen: Vec<SocketAddr>,
    /// Origins whose pages may connect, in addition to the page of this relay.
    pub allowed_origins: Vec<OriginPattern>,
    /// Host names of this relay. Empty: any name, but on this machine only `localhost` and addresses.
    pub allowed_hosts: Vec<String>,
    /// Networks of proxies that may tell a client's address.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which these proxies tell it.
    pub forwarded_header: ForwardedHeader,
    /// Whether connections from these proxies begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Threads that serve connections. Not set: as many as the process has CPUs.
    pub worker_threads: Option<usize>,
    /// The certificate. Not set: no TLS.
    pub tls: TlsSettings,
}

/// `[server.tls]` and `[admin.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// A file with the certificate and its intermediate certificates, in PEM.
    pub cert_file: Option<PathBuf>,
    /// A file with the certificate's private key, in PEM.
    pub key_file: Option<PathBuf>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    /// Address of `/metrics`, health checks and the API. Not set: no API, the others on `server.listen`.
    pub listen: Option<SocketAddr>,
    /// A file with the token that the API requires. Not set: no API.
    pub token_file: Option<PathBuf>,
    /// A file with the token that `/metrics` on `listen` requires. Not set: that of `token_file`.
    pub metrics_token_file: Option<PathBuf>,
    /// Whether `/readyz` answers 200 while `limits.connections` is reached.
    pub ready_when_full: bool,
    /// How long the API waits for the outcome of a message.
    #[serde(with = "units::duration")]
    pub outcome_timeout: Duration,
    /// The certificate. Not set: no TLS.
    pub tls: TlsSettings,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSettings {
    /// Whether a client needs a token.
    pub mode: AuthMode,
    /// Files with shared secrets.
    pub secret_file: Vec<PathBuf>,
    /// Files with public keys in PEM.
    pub public_key_file: Vec<PathBuf>,
    /// A file with a JSON Web Key Set.
    pub jwks_file: Option<PathBuf>,
    /// The URL of a JSON Web Key Set.
    pub jwks_url: Option<String>,
    /// How long a request for that URL may take.
    #[serde(with = "units::duration")]
    pub jwks_timeout: Duration,
    /// Time between two readings of all keys.
    #[serde(with = "units::duration")]
    pub refresh_interval: Duration,
    /// The algorithm of keys that name none. Not set: HS256 for a secret, RS256 for RSA.
    pub algorithm: Option<Algorithm>,
    /// The `iss` that a token must have. Not set: the claim is not checked.
    pub issuer: Option<String>,
    /// The `aud` that a token must have. Not set: the claim is not checked.
    pub audience: Option<String>,
    /// How far the clocks of issuer and relay may differ.
    #[serde(with = "units::duration")]
    pub leeway: Duration,
    /// Whether a token is also taken from the URL's query.
    pub query_token: bool,
}

/// `[limits]`. A rate that is not set has no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// Connected users, upgrades in progress included. [`Settings::connection_limits`] tells the effective limit.
    pub connections: Option<usize>,
    /// Connections that have not completed an upgrade.
    pub handshakes: usize,
    /// Bytes of a request head.
    #[serde(with = "units::size")]
    pub header_bytes: usize,
    /// Time for a request head, and again for the upgrade.
    #[serde(with = "units::duration")]
    pub header_timeout: Duration,
    /// Age at which a client is told to reconnect, plus or minus a fifth. 0: never.
    #[serde(with = "units::duration")]
    pub connection_age: Duration,
    /// Bytes of a whole message as sent.
    #[serde(with = "units::size")]
    pub message_bytes: usize,
    /// Bytes of one frame, and of a message that is assembled from fragments.
    #[serde(with = "units::size")]
    pub frame_bytes: usize,
    /// Bad messages of a `switchboard.v1` connection before it is closed.
    pub bad_messages: u32,
    /// Outcomes outstanding on one connection.
    pub outcomes_pending: u32,
    /// Bytes of the outcomes outstanding on all connections.
    #[serde(with = "units::size")]
    pub outcomes_bytes: u64,
    /// Messages a second from one connection.
    pub message_rate: Option<u32>,
    /// Bytes of messages a second from one connection.
    #[serde(default, with = "units::optional_size")]
    pub byte_rate: Option<u64>,
    /// Accepted connections a second.
    pub accept_rate: Option<u32>,
    /// Handshakes a second of all clients.
    pub handshake_rate: Option<u32>,
    /// Handshakes a second of one address.
    pub address_handshake_rate: Option<u32>,
    /// TLS handshakes a second of all clients.
    pub tls_handshake_rate: Option<u32>,
    /// TLS handshakes a second of one address.
    pub address_tls_handshake_rate: Option<u32>,
    /// Connected users of one address.
    pub address_connections: Option<u32>,
    /// Failed authentications a minute of one address.
    pub address_auth_failures: Option<u32>,
}

/// `[mailbox]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailboxSettings {
    /// Messages that wait for one user.
    pub messages: u32,
    /// Bytes that wait for one user.
    #[serde(with = "units::size")]
    pub bytes: usize,
    /// Bytes that wait for all users together.
    #[serde(with = "units::size")]
    pub total_bytes: u64,
    /// The longest time that a message waits.
    #[serde(with = "units::duration")]
    pub max_age: Duration,
    /// What a full mailbox does.
    pub overflow: Overflow,
}

/// `[keepalive]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepaliveSettings {
    /// Time between two pings.
    #[serde(with = "units::duration")]
    pub ping_interval: Duration,
    /// Time for a sign of life after a ping.
    #[serde(with = "units::duration")]
    pub pong_timeout: Duration,
    /// Bytes a second of the slowest link.
    #[serde(with = "units::size")]
    pub slowest_rate: u64,
    /// Time for a write without progress.
    #[serde(with = "units::duration")]
    pub write_timeout: Duration,
    /// Time for each step of a close.
    #[serde(with = "units::duration")]
    pub close_timeout: Duration,
}

/// `[routing]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingSettings {
    /// Which task looks up the recipient.
    pub strategy: Strategy,
    /// Messages that wait for the router.
    pub router_queue: usize,
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// NATS servers, any of which joins this node to the others. Empty: a node by itself.
    pub nats_url: Vec<String>,
    /// Prefix of all names on NATS.
    pub name: String,
    /// The user name for NATS.
    pub user: Option<String>,
    /// A file with the password of `user`.
    pub password_file: Option<PathBuf>,
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// A file with the seed of an nkey.
    pub nkey_file: Option<PathBuf>,
    /// A file with a JWT and the seed of its nkey.
    pub creds_file: Option<PathBuf>,
    /// A file with the certificate authorities of NATS. Not set: those of the machine.
    pub tls_ca_file: Option<PathBuf>,
    /// A file with the certificate that this node shows to NATS.
    pub tls_cert_file: Option<PathBuf>,
    /// A file with that certificate's private key.
    pub tls_key_file: Option<PathBuf>,
    /// Whether a node without NATS is not ready.
    pub required: bool,
    /// How long such a node stays ready.
    #[serde(with = "units::duration")]
    pub unready_after: Duration,
    /// Ids in a block, the same on all nodes.
    pub block_size: NonZeroU32,
    /// NATS servers that keep the table and the leases.
    pub lease_replicas: u32,
    /// How long a node lives without a sign of life.
    #[serde(with = "units::duration")]
    pub node_timeout: Duration,
    /// How long NATS keeps an id whose node does not write it again.
    #[serde(with = "units::duration")]
    pub entry_ttl: Duration,
    /// Users that wait for NATS to join.
    pub joins: u32,
    /// Places of users on other nodes that are remembered.
    pub routes: u32,
    /// How long a node waits for the outcome of a message on another node.
    #[serde(with = "units::duration")]
    pub outcome_timeout: Duration,
    /// Outcomes from other nodes outstanding on this node.
    pub outcomes_pending: u32,
    /// How long NATS may take to answer.
    #[serde(with = "units::duration")]
    pub link_timeout: Duration,
    /// Messages that wait to go to one remote user.
    pub user_messages: u32,
    /// Bytes that wait to go to one remote user.
    #[serde(with = "units::size")]
    pub user_bytes: usize,
    /// Bytes that wait to go to all remote users together.
    #[serde(with = "units::size")]
    pub queue_bytes: usize,
    /// Bytes in flight to NATS, and to each other node.
    #[serde(with = "units::size")]
    pub in_flight_bytes: usize,
    /// Received messages that wait.
    pub inbound_messages: u32,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainSettings {
    /// Time from the signal during which everything still works.
    #[serde(with = "units::duration")]
    pub delay: Duration,
    /// Time over which users are disconnected.
    #[serde(with = "units::duration")]
    pub spread: Duration,
    /// Longest time from the signal to the end of the process.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
}

/// `[tickets]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketSettings {
    /// A file with the secret that signs tickets. Not set: a random secret for this process.
    pub secret_file: Option<PathBuf>,
    /// How long a ticket is valid, from the start of the connection that got it.
    #[serde(with = "units::duration")]
    pub ttl: Duration,
}

/// `[ui]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UiSettings {
    /// Whether the page and its client script are served.
    pub enabled: bool,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// The format of a line.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::filter::Targets`.
    pub filter: String,
}

/// `[tracing]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracingSettings {
    /// URL of an OTLP receiver that takes spans over HTTP. Not set: nothing is traced.
    pub otlp_endpoint: Option<String>,
    /// A file with the authorities that may sign the receiver's certificate. Not set: those of this machine.
    pub tls_ca_file: Option<PathBuf>,
    /// How requests to the receiver are compressed.
    pub compression: Compression,
    /// Share of handshakes and messages that are traced, from 0 to 1.
    pub sample_ratio: f64,
    /// Whether a client's `traceparent` decides in place of the share.
    pub trust_clients: bool,
    /// Spans that wait to be sent.
    pub queue_spans: usize,
    /// How long a span waits for a batch to become full.
    #[serde(with = "units::duration")]
    pub export_interval: Duration,
    /// Time for one request to the receiver.
    #[serde(with = "units::duration")]
    pub export_timeout: Duration,
    /// Time at the end of the process for the spans that still wait.
    #[serde(with = "units::duration")]
    pub flush_timeout: Duration,
    /// Variables of OpenTelemetry with a value that is not supported, a sentence each.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl AuthSettings {
    /// Whether there is a key to verify tokens with.
    pub(super) fn has_keys(&self) -> bool {
        !self.secret_file.is_empty()
            || !self.public_key_file.is_empty()
            || self.jwks_file.is_some()
            || self.jwks_url.is_some()
    }
}

impl TracingSettings {
    /// The URL that spans are posted to; `None` if nothing is traced.
    pub fn endpoint(&self) -> Option<String> {
        self.otlp_endpoint.as_deref().map(otel::with_path)
    }
}
