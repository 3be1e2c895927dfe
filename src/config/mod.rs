//! The settings: what they are, where they come from, what they must be. The only reader of the
//! environment; must not know of any part that it configures.
//!
//! To add a setting: a field here, its line in `config/default.toml` (the only place of a default), a
//! rule in `rules.rs`, then `UPDATE=1 cargo it documents`. A key without a default is an `Option`, and
//! what has to be set together is a rule: each source is read over the defaults by itself.

mod capacity;
mod error;
mod exposure;
mod load;
mod origin;
mod otel;
mod read;
mod refusal;
mod rules;
mod secret;
mod secret_files;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use toml::Table;

pub use capacity::Machine;
pub use error::{ConfigError, Problem};
pub use load::Sources;
pub use origin::{Origin, OriginPattern, Served};
pub use secret::{PRIVATE_KEYS, Secret, SecretError};
pub use secret_files::SecretFileError;
pub(crate) use units::duration_text;
pub use units::{parse_duration, parse_size};

/// `config/default.toml`: the lowest layer, and the documentation of every setting.
pub const DEFAULT: &str = include_str!("../../config/default.toml");

/// All settings of one relay. Displays as TOML that loads to the same settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where users connect.
    pub server: ServerSettings,
    /// Where operators and probes connect.
    pub admin: AdminSettings,
    /// Who may connect.
    pub auth: AuthSettings,
    /// What one peer, and all of them together, may ask for.
    pub limits: LimitSettings,
    /// What waits for users that do not read.
    pub mailbox: MailboxSettings,
    /// How dead connections are noticed.
    pub keepalive: KeepaliveSettings,
    /// How a message finds its recipient.
    pub routing: RoutingSettings,
    /// How nodes find each other.
    pub cluster: ClusterSettings,
    /// How the relay ends.
    pub drain: DrainSettings,
    /// How users keep their ids.
    pub tickets: TicketSettings,
    /// What people see.
    pub ui: UiSettings,
    /// What is logged, and how.
    pub log: LogSettings,
    /// What is traced, and where the spans go.
    pub tracing: TracingSettings,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    /// Addresses to listen on; default `127.0.0.1:8080` and `[::1]:8080`. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Origins whose pages may connect, beside those served from the same host; default none.
    pub allowed_origins: Vec<OriginPattern>,
    /// The names under which browsers reach this relay; default none, any but on this machine.
    pub allowed_hosts: Vec<String>,
    /// Networks whose word on a client's address is taken; default none.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it; default [`ForwardedHeader::XForwardedFor`].
    pub forwarded_header: ForwardedHeader,
    /// Whether their connections begin with a PROXY protocol header; default no.
    pub proxy_protocol: bool,
    /// The certificate; default none, no TLS.
    pub tls: TlsSettings,
}

/// `[server.tls]` and `[admin.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// A file with the certificate and those between it and the root, in PEM.
    pub cert_file: Option<PathBuf>,
    /// A file with its private key, in PEM.
    pub key_file: Option<PathBuf>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    /// Address that `/metrics` and health move to; default none, they stay on `server.listen`.
    pub listen: Option<SocketAddr>,
    /// A file with the token that `/metrics` there and the API ask for; default none, no API.
    pub token_file: Option<PathBuf>,
    /// Time for the API to learn what became of a message; default 5 s.
    #[serde(with = "units::duration")]
    pub outcome_timeout: Duration,
    /// The certificate; default none, no TLS.
    pub tls: TlsSettings,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSettings {
    /// What somebody has to show; default [`AuthMode::None`].
    pub mode: AuthMode,
    /// Files with shared secrets; default none.
    #[serde(deserialize_with = "units::one_or_more")]
    pub secret_file: Vec<PathBuf>,
    /// Files with public keys in PEM; default none.
    #[serde(deserialize_with = "units::one_or_more")]
    pub public_key_file: Vec<PathBuf>,
    /// A file with a JSON Web Key Set; default none.
    pub jwks_file: Option<PathBuf>,
    /// The address of one; default none.
    pub jwks_url: Option<String>,
    /// Time for it to answer; default 5 s.
    #[serde(with = "units::duration")]
    pub jwks_timeout: Duration,
    /// From one reading of all keys to the next; default 5 min.
    #[serde(with = "units::duration")]
    pub refresh_interval: Duration,
    /// The algorithm of keys that do not say one; default HS256 for a secret, RS256 for RSA.
    pub algorithm: Option<Algorithm>,
    /// The `iss` that a token must have; default none, any or none.
    pub issuer: Option<String>,
    /// The `aud` that a token must have; default none, any or none.
    pub audience: Option<String>,
    /// How far clocks may differ; default 30 s.
    #[serde(with = "units::duration")]
    pub leeway: Duration,
    /// Whether a token may come in the address; default no.
    pub query_token: bool,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// Users, upgrades in progress included; default none. [`Limits::connections_within`] says how
    /// many that makes.
    pub connections: Option<usize>,
    /// HTTP connections that are not users (yet); default 400, within the reserve of descriptors.
    pub handshakes: usize,
    /// Bytes of a request head; default 8 KiB.
    #[serde(with = "units::size")]
    pub header_bytes: usize,
    /// Time for a request head, and again for the upgrade; default 5 s.
    #[serde(with = "units::duration")]
    pub header_timeout: Duration,
    /// Age at which a connection is sent away to come back, give or take a fifth; 0, the default: none.
    #[serde(with = "units::duration")]
    pub connection_age: Duration,
    /// Bytes of a whole message as sent; default 64 KiB.
    #[serde(with = "units::size")]
    pub message_bytes: usize,
    /// Bytes of one frame, and of a message put together from fragments; default 128 KiB.
    #[serde(with = "units::size")]
    pub frame_bytes: usize,
    /// Bad messages of a `switchboard.v1` connection before it is closed; default 16.
    pub bad_messages: u32,
    /// Outcomes outstanding on one connection; default 1024.
    pub outcomes_pending: u32,
    /// Messages a second from one connection; default none, any number.
    pub message_rate: Option<u32>,
    /// Bytes of messages a second from one connection; default none, any number.
    #[serde(default, with = "units::optional_size")]
    pub byte_rate: Option<u64>,
    /// Connections a second that are accepted; default none, any number.
    pub accept_rate: Option<u32>,
    /// Handshakes a second, over all; default none, any number.
    pub handshake_rate: Option<u32>,
    /// Handshakes a second from one address; default none, any number.
    pub address_handshake_rate: Option<u32>,
    /// TLS handshakes a second, over all; default none, any number.
    pub tls_handshake_rate: Option<u32>,
    /// TLS handshakes a second from one address; default none, any number.
    pub address_tls_handshake_rate: Option<u32>,
    /// Users from one address; default none, any number.
    pub address_connections: Option<u32>,
    /// Failed authentications a minute from one address; default none, any number.
    pub address_auth_failures: Option<u32>,
}

/// `[mailbox]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailboxSettings {
    /// Messages that wait for one user; default 256.
    pub messages: u32,
    /// Bytes that wait for one user; default 1 MiB.
    #[serde(with = "units::size")]
    pub bytes: usize,
    /// Bytes that wait for all users together; default 256 MiB.
    #[serde(with = "units::size")]
    pub total_bytes: u64,
    /// What a full mailbox does; default [`Overflow::DropNewest`].
    pub overflow: Overflow,
}

/// `[keepalive]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepaliveSettings {
    /// Time between two pings; default 25 s.
    #[serde(with = "units::duration")]
    pub ping_interval: Duration,
    /// Time for the pong; default 10 s.
    #[serde(with = "units::duration")]
    pub pong_timeout: Duration,
    /// Time for a write without progress; default 10 s.
    #[serde(with = "units::duration")]
    pub write_timeout: Duration,
    /// Time for the peer's close frame after ours; default 5 s.
    #[serde(with = "units::duration")]
    pub close_timeout: Duration,
}

/// `[routing]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingSettings {
    /// Who looks the recipient up; default [`Strategy::Directory`].
    pub strategy: Strategy,
    /// Messages that wait for the router; default 1024.
    pub router_queue: usize,
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// NATS servers, any of which joins this node to the others; default none, a node by itself.
    pub nats_url: Vec<String>,
    /// What all names on NATS begin with; default `switchboard`.
    pub name: String,
    /// The user to NATS; default none.
    pub user: Option<String>,
    /// A file with its password; default none.
    pub password_file: Option<PathBuf>,
    /// A file with a token; default none.
    pub token_file: Option<PathBuf>,
    /// A file with the seed of an nkey; default none.
    pub nkey_file: Option<PathBuf>,
    /// A file with a JWT and the seed of its nkey; default none.
    pub creds_file: Option<PathBuf>,
    /// A file with the authorities whose certificates NATS may show; default the machine's.
    pub tls_ca_file: Option<PathBuf>,
    /// A file with the certificate to show NATS; default none.
    pub tls_cert_file: Option<PathBuf>,
    /// A file with its key; default none.
    pub tls_key_file: Option<PathBuf>,
    /// Whether a node without NATS is not ready; default no.
    pub required: bool,
    /// Ids in a block, the same on all nodes; default 1024.
    pub block_size: NonZeroU32,
    /// NATS servers that keep the leases; default 1.
    pub lease_replicas: u32,
    /// Time for another node to say what became of a message; default 5 s.
    #[serde(with = "units::duration")]
    pub outcome_timeout: Duration,
    /// Outcomes from other nodes outstanding on this one; default 65536.
    pub outcomes_pending: u32,
    /// Ids of this node's blocks that others may have, and of other blocks that may be here; default 65536.
    pub claims: u32,
    /// How long another node has such an id without a word; default 15 s.
    #[serde(with = "units::duration")]
    pub claim_timeout: Duration,
    /// Time for NATS to answer; default 3 s.
    #[serde(with = "units::duration")]
    pub link_timeout: Duration,
    /// Messages that wait to go to one remote user; default 256.
    pub user_messages: u32,
    /// Bytes that wait to go to one remote user; default 1 MiB.
    #[serde(with = "units::size")]
    pub user_bytes: usize,
    /// Bytes that wait to go to all remote users together; default 64 MiB.
    #[serde(with = "units::size")]
    pub queue_bytes: usize,
    /// Bytes between this node and NATS, or the holder of a block; default 256 KiB.
    #[serde(with = "units::size")]
    pub in_flight_bytes: usize,
    /// Messages from NATS for one block that wait to be looked at; default 65536.
    pub inbound_messages: u32,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainSettings {
    /// Time from the signal while everything still works; default 5 s.
    #[serde(with = "units::duration")]
    pub delay: Duration,
    /// Time over which users are sent away; default 30 s.
    #[serde(with = "units::duration")]
    pub spread: Duration,
    /// Time from the signal to the end, at the latest; default 40 s.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
}

/// `[tickets]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketSettings {
    /// A file with the secret that signs them; default none, a random one for this process.
    pub secret_file: Option<PathBuf>,
    /// How long one holds, from the beginning of the connection that it was given to; default 24 h.
    #[serde(with = "units::duration")]
    pub ttl: Duration,
}

/// `[ui]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UiSettings {
    /// Whether the page and the client that it uses are served; default true.
    pub enabled: bool,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// How a line looks; default [`LogFormat::Text`].
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`; default `info`.
    pub filter: String,
}

/// `[tracing]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracingSettings {
    /// URL of an OTLP receiver that takes spans over HTTP; default none, nothing is traced.
    pub otlp_endpoint: Option<String>,
    /// Share of handshakes and messages that are traced; default 0.01.
    pub sample_ratio: f64,
    /// Whether a client's `traceparent` decides in place of the share; default false.
    pub trust_clients: bool,
    /// Spans that wait to be sent; default 2048.
    pub queue_spans: usize,
    /// Time for one request to the receiver; default 10 s.
    #[serde(with = "units::duration")]
    pub export_timeout: Duration,
    /// Time at the end of the process for the spans that still wait; default 5 s.
    #[serde(with = "units::duration")]
    pub flush_timeout: Duration,
}

/// What happens to a message for a full mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The message itself is dropped.
    DropNewest,
    /// What has waited longest is dropped for it.
    DropOldest,
    /// The user that does not read is disconnected.
    Disconnect,
}

/// How a message finds its recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The sender's task looks the recipient up, without a lock.
    Directory,
    /// One task owns the users, and messages pass through it.
    Router,
}

/// What somebody has to show to come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMode {
    /// Nothing.
    None,
    /// A JSON Web Token.
    Jwt,
}

/// A token's signature algorithm (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "their names are all there is to say")]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    EdDSA,
}

/// The header in which proxies say whom they forward for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One flat JSON object a line.
    Json,
}

impl AuthSettings {
    /// Whether tokens could be checked.
    fn has_keys(&self) -> bool {
        !self.secret_file.is_empty()
            || !self.public_key_file.is_empty()
            || self.jwks_file.is_some()
            || self.jwks_url.is_some()
    }
}

impl TracingSettings {
    /// The URL that spans are posted to, where anything is traced.
    pub fn endpoint(&self) -> Option<String> {
        self.otlp_endpoint.as_deref().map(otel::with_path)
    }
}

impl Settings {
    /// The keys whose values differ from those of `other`.
    pub fn changes(&self, other: &Self) -> Vec<String> {
        let [ours, theirs] = [self, other].map(|settings| {
            let mut values = BTreeMap::new();
            let table = Table::try_from(settings).expect("settings print as TOML: a test says so");
            flatten("", table.into(), &mut values);
            values
        });
        let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let changed = keys
            .into_iter()
            .filter(|key| ours.get(*key) != theirs.get(*key));
        changed.cloned().collect()
    }
}

/// All values by their keys, those of tables by the keys that lead to them.
fn flatten(key: &str, value: toml::Value, values: &mut BTreeMap<String, toml::Value>) {
    let toml::Value::Table(table) = value else {
        values.insert(key.to_owned(), value);
        return;
    };
    for (name, value) in table {
        let key = if key.is_empty() {
            name
        } else {
            format!("{key}.{name}")
        };
        flatten(&key, value, values);
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::resolve(&Sources::default()).expect("config/default.toml holds: a test loads it")
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}
