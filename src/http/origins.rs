//! Which pages may connect. The first refusal of each origin is logged with the setting that would allow it,
//! because neither the page's script nor its user sees why a handshake failed.

use std::collections::HashSet;
use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderValue, ORIGIN};
use parking_lot::Mutex;
use tracing::warn;

use crate::config::{Origin, OriginPattern, ServerSettings, Site};

/// Refused origins that are logged. Any client can send any origin, so the log and the memory need a limit.
const LOGGED_MAX: usize = 100;
/// Bytes of an origin that are logged and remembered. The longest host name has 253.
const LOGGED_BYTES_MAX: usize = 300;

/// `server.allowed_origins` and `server.allowed_hosts`.
#[derive(Debug)]
pub(crate) struct Origins {
    allowed: Vec<OriginPattern>,
    hosts: Vec<String>,
    is_tls: bool,
    logged: Mutex<HashSet<String>>,
}

impl Origins {
    pub(crate) fn new(settings: &ServerSettings) -> Self {
        Self {
            allowed: settings.allowed_origins.clone(),
            hosts: settings.allowed_hosts.clone(),
            is_tls: settings.tls.cert_file.is_some(),
            logged: Mutex::default(),
        }
    }

    /// Whether a page of the request's origin may connect: a page that this relay served, or of an allowed
    /// origin. A browser sends the origin with every handshake. A request without an origin is not from a
    /// browser, so no page can misuse a user's cookies or address by it.
    pub(super) fn allow(&self, headers: &HeaderMap, client_addr: IpAddr) -> bool {
        let mut given = headers.get_all(ORIGIN).into_iter();
        let Some(first) = given.next() else {
            return true;
        };
        let text = first.to_str().ok().filter(|_| given.next().is_none());
        let origin = text.and_then(Origin::parse);
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let site = host.map(|host| Site {
            host,
            client_addr,
            is_tls: self.is_tls,
            names: &self.hosts,
        });
        let is_allowed = origin.is_some_and(|origin| {
            site.is_some_and(|site| origin.is_of(&site))
                || self.allowed.iter().any(|pattern| pattern.allows(&origin))
        });
        if !is_allowed {
            self.log_once(first, client_addr, || {
                let is_at_our_host = origin
                    .zip(site)
                    .is_some_and(|(origin, site)| origin.is_at(&site));
                match text.map(|text| OriginPattern::try_from(text.to_owned())) {
                    Some(Ok(pattern)) if is_at_our_host => {
                        setting("server.allowed_hosts", &self.hosts, pattern.host())
                    }
                    Some(Ok(pattern)) => setting(
                        "server.allowed_origins",
                        &self.allowed,
                        &pattern.to_string(),
                    ),
                    _ => "none, because this is not one origin".to_owned(),
                }
            });
        }
        is_allowed
    }

    fn log_once(
        &self,
        origin: &HeaderValue,
        client_addr: IpAddr,
        allowed_by: impl FnOnce() -> String,
    ) {
        let origin = origin.as_bytes();
        let origin = &origin[..origin.len().min(LOGGED_BYTES_MAX)];
        let origin = String::from_utf8_lossy(origin).into_owned();
        let mut logged = self.logged.lock();
        if logged.len() >= LOGGED_MAX || !logged.insert(origin.clone()) {
            return;
        }
        let is_last = logged.len() == LOGGED_MAX;
        drop(logged);
        warn!(
            client.addr = %client_addr,
            origin,
            allowed_by = %allowed_by(),
            "page refused: its origin may not connect; this is logged once for each origin"
        );
        if is_last {
            warn!("{LOGGED_MAX} origins were refused: no more are logged");
        }
    }
}

/// The line of a configuration that adds a value to a list.
fn setting(key: &str, present: &[impl ToString], added: &str) -> String {
    let values = present.iter().map(ToString::to_string);
    let values: Vec<_> = values.chain([added.to_owned()]).collect();
    format!("{key} = {values:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn check(given: &[&str], expected: &[&str]) {
        let mut settings = Settings::default().server;
        settings.allowed_origins = vec!["https://a.com".to_owned().try_into().unwrap()];
        let origins = Origins::new(&settings);
        for origin in given {
            let headers = [(HOST, "relay.test"), (ORIGIN, origin)];
            let headers =
                headers.map(|(name, value)| (name, HeaderValue::from_str(value).unwrap()));
            assert!(!origins.allow(&headers.into_iter().collect(), [127, 0, 0, 1].into()));
        }
        let logged = origins.logged.lock();
        let mut logged: Vec<_> = logged.iter().map(String::as_str).collect();
        logged.sort_unstable();
        assert_eq!(logged, expected);
    }

    #[test]
    fn each_refused_origin_is_remembered_once_and_in_part() {
        let long = format!("https://{}.com", "a".repeat(1000));
        let b = "https://b.com";
        check(
            &[b, "null", b, &long, &long],
            &[long.get(..LOGGED_BYTES_MAX).unwrap(), b, "null"],
        );
    }

    #[test]
    fn the_memory_of_refused_origins_has_a_limit() {
        let many: Vec<_> = (100..900).map(|n| format!("https://a{n}.com")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        check(&many, &many[..LOGGED_MAX]);
    }
}
