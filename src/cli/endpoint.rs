//! Where a command reaches the relay of the settings: the URL of a listener, and a client that it trusts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyper::Uri;

use crate::config::Settings;
use crate::net::http_client::{HttpClient, HttpError, Limits};
use crate::net::trust::{Trust, TrustError};

/// A listener as a client sees it.
#[derive(Debug)]
pub(super) struct Listener {
    /// Scheme, host and port.
    base: String,
    pub(super) client: HttpClient,
}

/// Why a relay cannot be asked, or what it answers instead.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The file of its certificate contains none.
    #[error("cannot check the server's certificate")]
    Trust(#[from] TrustError),
    /// The relay does not answer, or its status is not 200.
    #[error(transparent)]
    Http(#[from] HttpError),
}

impl Listener {
    /// The first address of `server.listen`.
    pub(super) fn users(settings: &Settings, limits: Limits) -> Result<Self, TrustError> {
        // On this listener, this address may be one of a trusted proxy, which begins with a header.
        let networks = if settings.server.proxy_protocol {
            settings.server.trusted_proxies.clone()
        } else {
            Vec::new()
        };
        // The rules of the settings refuse an empty list.
        let (address, tls) = (settings.server.listen[0], &settings.server.tls);
        let trust = tls.cert_file.as_deref().map(Trust::Certificate);
        let client = HttpClient::as_proxy(trust, limits, networks)?;
        Ok(Self::at(address, trust, client))
    }

    /// `admin.listen`, if there is one.
    pub(super) fn admin(settings: &Settings, limits: Limits) -> Result<Option<Self>, TrustError> {
        let Some(address) = settings.admin.listen else {
            return Ok(None);
        };
        let trust = settings.admin.tls.cert_file.as_deref();
        let trust = trust.map(Trust::Certificate);
        let client = HttpClient::as_proxy(trust, limits, Vec::new())?;
        Ok(Some(Self::at(address, trust, client)))
    }

    /// A URL that the command line names.
    pub(super) fn named(url: &Uri, limits: Limits) -> Result<Self, TrustError> {
        let scheme = url.scheme_str().unwrap_or_default();
        let scheme = if matches!(scheme, "https" | "wss") {
            "https"
        } else {
            "http"
        };
        let host = url.authority().map_or("", |authority| authority.as_str());
        let client = match scheme {
            "https" => HttpClient::new(Trust::System, limits)?,
            _ => HttpClient::plain(limits),
        };
        let base = format!("{scheme}://{host}");
        Ok(Self { base, client })
    }

    fn at(address: SocketAddr, trust: Option<Trust<'_>>, client: HttpClient) -> Self {
        let scheme = if trust.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", reachable(address));
        Self { base, client }
    }

    /// The URL of a path.
    pub(super) fn url(&self, path: &str) -> Uri {
        let url = format!("{}{path}", self.base);
        url.parse().expect("made of the parts of a URL")
    }
}

/// A URL with one of these schemes and a host.
pub(super) fn url(text: &str, schemes: [&str; 2]) -> Result<Uri, String> {
    let [plain, tls] = schemes;
    let url = text.parse::<Uri>().ok();
    url.filter(|url| {
        let has_user = url
            .authority()
            .is_some_and(|host| host.as_str().contains('@'));
        url.scheme_str()
            .is_some_and(|scheme| schemes.contains(&scheme))
            && !has_user
    })
    .ok_or_else(|| format!("a URL that begins with {plain}:// or {tls}://, without a user name"))
}

/// The address to connect to for an address to listen on: `0.0.0.0` and `[::]` become the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
