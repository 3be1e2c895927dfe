//! Why tokens cannot be verified.

pub use super::key::KeyError;
pub use super::key_source::KeySourceError;

/// Why these settings give no way to verify tokens.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A key file cannot be used.
    #[error("cannot load the keys")]
    Key(#[from] KeyError),
    /// `auth.jwks_url` cannot be used.
    #[error("cannot use auth.jwks_url")]
    Source(#[from] KeySourceError),
}

/// The token is missing or invalid. Has no reason, because a peer could learn from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid token")]
pub struct Denied;
