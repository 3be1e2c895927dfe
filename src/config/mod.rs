//! The settings: their sources, their rules, their warnings. The only reader of the environment; must not
//! know of any part that it configures.
//!
//! To add a setting: a field in `settings.rs`, its line in `config/default.toml` (the only place of a default),
//! a rule in `rules/mod.rs`, then `UPDATE=1 cargo it documents`.

mod capacity;
mod changes;
mod choices;
mod error;
mod exposure;
mod load;
mod origin;
mod otel;
mod read;
mod read_error;
mod rule;
mod rules;
mod secret;
mod secret_files;
mod settings;
mod units;

pub use capacity::{ConnectionLimits, MachineLimits};
pub use choices::{
    Algorithm, AuthMode, Compression, ForwardedHeader, LogFormat, Overflow, Strategy,
};
pub use error::{ConfigError, SettingsProblem};
pub use load::{DEFAULT, Sources};
pub use origin::{Origin, OriginPattern, Site};
pub use secret::{PRIVATE_KEYS, Secret, SecretError};
pub use secret_files::SecretFileError;
pub use settings::{
    AdminSettings, AuthSettings, ClusterSettings, DrainSettings, KeepaliveSettings, LimitSettings,
    LogSettings, MailboxSettings, RoutingSettings, ServerSettings, Settings, TicketSettings,
    TlsSettings, TracingSettings, UiSettings,
};
pub(crate) use units::duration_text;
pub use units::{parse_duration, parse_size};
