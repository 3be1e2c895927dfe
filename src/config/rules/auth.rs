//! The rules of `[auth]`.

use std::time::Duration;

use hyper::Uri;

use crate::config::choices::AuthMode;
use crate::config::rule::{DAY, HOUR, MINUTE, ONE_MS, Rule, SECOND, time};
use crate::config::settings::AuthSettings;

/// Files of secrets, and files of public keys. A token without a key id is tried on as many keys (`TRIES_MAX`
/// in src/auth/key.rs).
const KEY_FILES_MAX: usize = 8;

pub(super) fn rules(auth: &AuthSettings) -> Vec<Rule> {
    let AuthSettings {
        mode,
        secret_file,
        public_key_file,
        jwks_file: _,
        jwks_url,
        jwks_timeout,
        refresh_interval,
        algorithm: _,
        issuer: _,
        audience: _,
        leeway,
        query_token: _,
    } = auth;
    let paths = |key, paths: usize| {
        let allowed = format!("a path, or a list of up to {KEY_FILES_MAX} paths");
        Rule::new(key, allowed, paths <= KEY_FILES_MAX)
    };
    vec![
        Rule::new(
            "auth.mode",
            "\"none\", or \"jwt\" with at least one of auth.secret_file, auth.public_key_file, \
             auth.jwks_file and auth.jwks_url",
            *mode == AuthMode::None || auth.has_keys(),
        ),
        paths("auth.secret_file", secret_file.len()),
        paths("auth.public_key_file", public_key_file.len()),
        Rule::new(
            "auth.jwks_url",
            "an http or https URL without a user and a password, such as \
             \"https://example.com/.well-known/jwks.json\"",
            jwks_url.as_deref().is_none_or(is_key_set_url),
        ),
        time("auth.jwks_timeout", *jwks_timeout, ONE_MS..=MINUTE).warn_above_default(),
        time("auth.refresh_interval", *refresh_interval, SECOND..=DAY).warn_above_default(),
        time("auth.leeway", *leeway, Duration::ZERO..=HOUR).warn_above_default(),
    ]
}

/// Whether a key set can be at this URL. A user or a password does not belong here, because the URL is printed
/// and logged.
fn is_key_set_url(url: &str) -> bool {
    let has_scheme = url.starts_with("https://") || url.starts_with("http://");
    let uri = url.parse::<Uri>().ok().filter(|_| has_scheme);
    let authority = uri.as_ref().and_then(Uri::authority);
    authority
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
}
