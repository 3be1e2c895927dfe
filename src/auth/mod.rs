//! Authentication: from the head of a handshake to an [`Authenticated`], or a refusal without a reason. Must not
//! know of connections.

mod credentials;
mod crypto;
mod error;
mod explain;
mod issue;
mod jwt;
mod key;
mod key_files;
mod key_set;
mod key_source;
mod refresh;

use std::sync::Arc;

use hyper::HeaderMap;

pub use credentials::{authorization, bearer_entries, token};
pub use error::{AuthError, Denied, KeyError, KeySourceError};
pub use issue::{IssueError, issue, issue_from};
pub use jwt::{Authenticated, Jwt};
pub use refresh::KeyRefresher;

use crate::config::{AuthMode, AuthSettings};
use key_source::KeySource;

/// How clients authenticate: a cheap handle.
#[derive(Clone, Debug)]
pub enum Auth {
    /// No client needs a token.
    None,
    /// A client needs a token that a known key has signed.
    Jwt(Arc<Jwt>),
}

impl Auth {
    /// Loads the keys. Fetches a key set once; if that fails, the refresher tries again. The refresher has to run
    /// as long as the app.
    pub async fn load(settings: &AuthSettings) -> Result<(Self, Option<KeyRefresher>), AuthError> {
        if settings.mode == AuthMode::None {
            return Ok((Self::None, None));
        }
        crypto::install();
        let refresher = KeyRefresher::load(settings).await?;
        let jwt = Jwt::new(settings, refresher.store());
        Ok((Self::Jwt(Arc::new(jwt)), Some(refresher)))
    }

    /// Checks the key files and the form of `auth.jwks_url`, without a connection.
    pub fn check_files(settings: &AuthSettings) -> Result<(), AuthError> {
        key_files::read_all(settings)?;
        KeySource::new(settings)?;
        Ok(())
    }

    /// Verifies a token.
    pub async fn verify(&self, token: &str) -> Result<Authenticated, Denied> {
        match self {
            Self::None => Err(Denied),
            Self::Jwt(jwt) => jwt.verify(token).await.ok_or(Denied),
        }
    }

    /// The reason why [`Auth::verify`] has refused a token, for the operator alone: a peer could learn from it.
    pub fn explain(&self, token: &str) -> String {
        match self {
            Self::None => "auth.mode is \"none\", so there is no key".to_owned(),
            Self::Jwt(jwt) => jwt.explain(token),
        }
    }

    /// Authenticates a handshake by the token in its head.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Authenticated, Denied> {
        match self {
            Self::None => Ok(Authenticated::default()),
            Self::Jwt(jwt) => {
                let query = query.filter(|_| jwt.query_token);
                let token = token(headers, query).ok_or(Denied)?;
                jwt.verify(token).await.ok_or(Denied)
            }
        }
    }
}

#[cfg(test)]
mod tests;
