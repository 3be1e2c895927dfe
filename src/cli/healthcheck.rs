//! `switchboard healthcheck`: asks the relay of the settings whether it is alive.

use std::time::Duration;

use super::endpoint::{EndpointError, Listener};
use crate::config::Settings;
use crate::net::http_client::Limits;

/// Containers run a health check every few seconds, so it must end sooner. The body of `/livez` is shorter.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(3),
    body_bytes_max: 64 * 1024,
};

/// Requests `/livez` from the relay of these settings: on the admin listener if there is one, else on the
/// first address of `server.listen`.
pub async fn healthcheck(settings: &Settings) -> Result<(), EndpointError> {
    let endpoint = match Listener::admin(settings, LIMITS)? {
        Some(endpoint) => endpoint,
        None => Listener::users(settings, LIMITS)?,
    };
    endpoint.client.get(&endpoint.url("/livez"), "*/*").await?;
    Ok(())
}
