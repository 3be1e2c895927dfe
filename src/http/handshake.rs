//! The opening handshake (RFC 6455 section 4.2): every check that tungstenite's upgrade leaves out,
//! the client, which is taken before the 101 is written, and the answer.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::body::{Body, Incoming};
use hyper::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{HeaderMap, Request, StatusCode, Version};
use tokio::sync::Notify;
use tracing::{Instrument, debug, error};

use super::HttpState;
use super::refusal::Refusal;
use super::routes::{Answer, text};
use crate::admission::AddressPermit;
use crate::auth::{self, Authenticated, Denied};
use crate::config::{Origin, Served};
use crate::identity::Subject;
use crate::lifecycle::Stage;
use crate::protocol::{Dialect, SUBPROTOCOL};
use crate::relay::{Membership, Refused, Unclaimed};
use crate::session::Welcome;
use crate::telemetry::traces;
use crate::ticket::{Claim, Invalid, Tickets};

/// The response header that tells a user its id.
const USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// What a ticket's entry in the list of subprotocols starts with: the one list that a browser's page
/// may write.
const TICKET_ENTRY: &str = "ticket.";

/// The request header for everybody else's.
const TICKET: HeaderName = HeaderName::from_static("x-ticket");

/// The request header that names the trace of whoever asks (W3C Trace Context section 3.2).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A user who has a client.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) membership: Membership,
    /// What its user is told.
    pub(super) welcome: Welcome,
    /// What counts it as one of its network's.
    pub(super) permit: Option<AddressPermit>,
    /// How long its pass is good for.
    pub(super) remaining: Option<Duration>,
}

/// Where a connection's client is from the upgrade request until the 101 has left.
#[derive(Debug)]
pub(super) struct Handshake {
    /// Whom the connection is from: the socket's peer, or whom a proxy named at its beginning.
    peer: IpAddr,
    /// A proxy that passes bytes on has named nobody: what headers name is the client's own word.
    is_nobodys: bool,
    joined: Mutex<Option<Joined>>,
    told: Notify,
    /// A request has come over it.
    asked: AtomicBool,
}

impl Handshake {
    pub(super) fn new(peer: IpAddr, is_nobodys: bool) -> Self {
        Self {
            peer,
            is_nobodys,
            joined: Mutex::new(None),
            told: Notify::new(),
            asked: AtomicBool::new(false),
        }
    }

    /// A request has come.
    pub(super) fn asked(&self) {
        self.asked.store(true, Relaxed);
    }

    pub(super) fn was_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    fn put(&self, joined: Joined) {
        *self.joined.lock().unwrap_or_else(PoisonError::into_inner) = Some(joined);
        self.told.notify_one();
    }

    pub(super) fn take(&self) -> Option<Joined> {
        self.joined
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Completes if a client was taken and the upgrade is not complete within `timeout` of that.
    pub(super) async fn is_late(&self, timeout: Duration) {
        self.told.notified().await;
        tokio::time::sleep(timeout).await;
    }
}

/// Whether the request is meant as a WebSocket handshake, well formed or not.
pub(super) fn is_asked_for(request: &Request<Incoming>) -> bool {
    lists(request.headers(), &UPGRADE, "websocket")
}

/// Whether one of a header's comma-separated values is `value`, in any case.
fn lists(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    values(headers, name).any(|listed| listed.eq_ignore_ascii_case(value))
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Answers a handshake, in a span where it is traced.
pub(super) async fn upgrade(
    request: Request<Incoming>,
    state: &HttpState,
    handshake: &Handshake,
) -> Answer {
    let traceparent = the_only(request.headers(), &TRACEPARENT);
    let span = state.relay.traces().handshake(
        request.method().as_str(),
        if state.tls.is_some() { "https" } else { "http" },
        request.uri().path(),
        traceparent.and_then(|value| value.to_str().ok()),
    );
    let Some(span) = span else {
        return answer(request, state, handshake).await;
    };
    let answer = answer(request, state, handshake)
        .instrument(span.clone())
        .await;
    traces::answered(&span, answer.status().as_u16());
    answer
}

async fn answer(
    mut request: Request<Incoming>,
    state: &HttpState,
    handshake: &Handshake,
) -> Answer {
    let peer = handshake.peer;
    let client_addr = if handshake.is_nobodys && state.proxies.trusts(peer) {
        peer
    } else {
        state.proxies.client_addr(peer, request.headers())
    };
    let joined = match join(&request, state, client_addr).await {
        Ok(joined) => joined,
        Err(refusal) => {
            debug!(client.addr = %client_addr, ?refusal, "upgrade refused");
            state.relay.metrics().handshake_rejected(refusal.reason());
            return refusal.answer();
        }
    };
    // The stream comes from the connection itself once the 101 has left; hyper's way through a
    // boxed trait object would cost memory and a call for each read.
    let Ok((mut answer, _never)) = hyper_tungstenite::upgrade(&mut request, None) else {
        error!("a checked handshake was refused");
        return text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n");
    };
    let client = joined.membership.client();
    let headers = answer.headers_mut();
    headers.insert(USER_ID, HeaderValue::from(client.id().get()));
    if client.dialect() == Dialect::V1 {
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    debug!(client.addr = %client_addr, user = %client.id(), "upgrade accepted");
    handshake.put(joined);
    answer
}

/// Asks everything that a handshake is asked, the cheap questions first, and gives it a client.
async fn join(
    request: &Request<Incoming>,
    state: &HttpState,
    client_addr: IpAddr,
) -> Result<Joined, Refusal> {
    let headers = request.headers();
    let address_limiter = state.address_limiter.as_ref();
    if let Some(address_limiter) = address_limiter {
        address_limiter
            .count_upgrade(client_addr)
            .map_err(Refusal::LimitExceeded)?;
    }
    if !is_version_13(headers) {
        return Err(Refusal::Version);
    }
    check(request).map_err(Refusal::Malformed)?;
    let v1 = values(headers, &SEC_WEBSOCKET_PROTOCOL).any(|protocol| protocol == SUBPROTOCOL);
    check_bearer(headers, v1).map_err(Refusal::Malformed)?;
    if !is_origin_allowed(headers, state, client_addr) {
        return Err(Refusal::Origin);
    }
    if state.shutdown.stage() == Stage::Draining {
        return Err(Refusal::Draining);
    }
    if let Some(address_limiter) = address_limiter {
        address_limiter
            .check_may_authenticate(client_addr)
            .map_err(Refusal::LimitExceeded)?;
    }
    // Who will find no place costs no look at its token. It is taken behind that, since a key may have to
    // be asked for.
    if state.relay.is_full() {
        return Err(Refusal::NotJoined(Refused::Full));
    }
    let authenticated = state
        .auth
        .authenticate(headers, request.uri().query())
        .await;
    let Authenticated { subject, remaining } = authenticated.map_err(|Denied| {
        if let Some(address_limiter) = address_limiter {
            address_limiter.count_auth_failure(client_addr);
        }
        Refusal::Unauthorized
    })?;
    let permit = match address_limiter {
        Some(address_limiter) => address_limiter
            .connect(client_addr)
            .map_err(Refusal::LimitExceeded)?,
        None => None,
    };
    let dialect = if v1 { Dialect::V1 } else { Dialect::Bare };
    let claim = shown_ticket(headers).map(|ticket| {
        let subject = subject.as_ref().map(Subject::as_str);
        state.tickets.read(ticket, subject, SystemTime::now())
    });
    let identity = claim
        .and_then(Result::ok)
        .map(|it| (it.id, it.resumption_id));
    let membership = state.relay.join(dialect, subject, identity).await;
    let membership = membership.map_err(Refusal::NotJoined)?;
    Ok(Joined {
        welcome: welcome(&membership, claim, &state.tickets),
        membership,
        permit,
        remaining,
    })
}

/// A token among the subprotocols is never echoed, and a browser refuses an answer that selects none
/// of them: so it needs company, and is alone of its kind.
fn check_bearer(headers: &HeaderMap, v1: bool) -> Result<(), &'static str> {
    let mut tokens = auth::bearer_entries(headers);
    match (tokens.next(), tokens.next()) {
        (None, _) => Ok(()),
        (Some(_), None) if v1 => Ok(()),
        (Some(_), None) => {
            Err("Sec-WebSocket-Protocol: a bearer entry stands beside switchboard.v1 only")
        }
        (Some(_), Some(_)) => Err("Sec-WebSocket-Protocol: a bearer entry is given twice"),
    }
}

/// The ticket of an earlier connection, among the subprotocols or in a header of its own.
fn shown_ticket(headers: &HeaderMap) -> Option<&str> {
    values(headers, &SEC_WEBSOCKET_PROTOCOL)
        .find_map(|protocol| protocol.strip_prefix(TICKET_ENTRY))
        .or_else(|| the_only(headers, &TICKET)?.to_str().ok())
}

/// What becomes of a ticket that was shown, and the one for the next time.
fn welcome(
    membership: &Membership,
    claim: Option<Result<Claim, Invalid>>,
    tickets: &Tickets,
) -> Welcome {
    let client = membership.client();
    // A bare connection is told nothing.
    if client.dialect() == Dialect::Bare {
        return Welcome::default();
    }
    let (id, resumption_id) = (client.id(), client.resumption_id());
    let subject = client.subject().map(Subject::as_str);
    let reason = match claim {
        Some(Ok(claim)) if claim.id != id => Some(match membership.unclaimed() {
            Some(Unclaimed::Unavailable) => "id_unavailable",
            Some(Unclaimed::InUse) | None => "id_in_use",
        }),
        Some(Err(Invalid::Expired)) => Some("ticket_expired"),
        Some(Err(Invalid::Forged)) => Some("ticket_invalid"),
        Some(Ok(_)) | None => None,
    };
    Welcome {
        ticket: tickets.issue(Claim { id, resumption_id }, subject, SystemTime::now()),
        resumed: claim.is_some() && reason.is_none(),
        reason,
    }
}

/// Whether a page of the request's origin may connect: one that was served from here, or from an
/// allowed origin. Browsers send an origin with every handshake; what sends none is no browser, and
/// has no page's cookies or address to lend.
fn is_origin_allowed(headers: &HeaderMap, state: &HttpState, client_addr: IpAddr) -> bool {
    let mut origins = headers.get_all(ORIGIN).into_iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return true,
        (Some(origin), None) => origin.to_str().ok().and_then(Origin::parse),
        (Some(_), Some(_)) => None,
    };
    let asked = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin.is_some_and(|origin| {
        let is_ours = asked.is_some_and(|asked| {
            origin.is_of(&Served {
                host: asked,
                client_addr,
                is_tls: state.tls.is_some(),
                names: &state.allowed_hosts,
            })
        });
        is_ours
            || state
                .allowed_origins
                .iter()
                .any(|pattern| pattern.allows(&origin))
    })
}

fn is_version_13(headers: &HeaderMap) -> bool {
    the_only(headers, &SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

/// The value of a header that is given once.
fn the_only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => value,
        _ => None,
    }
}

/// The first thing wrong with a handshake (RFC 6455 section 4.2.1), naming the header.
fn check(request: &Request<Incoming>) -> Result<(), &'static str> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err("a WebSocket handshake needs HTTP/1.1");
    }
    if request.method() != hyper::Method::GET {
        return Err("a WebSocket handshake is a GET request");
    }
    let mut hosts = headers.get_all(HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => return Err("Host is missing"),
        // Of two, those in front may have looked at the other (RFC 9112 section 3.2).
        (Some(_), Some(_)) => return Err("Host is given twice"),
        _ => {}
    }
    if !lists(headers, &CONNECTION, "upgrade") {
        return Err("Connection must list Upgrade");
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).into_iter();
    match (keys.next(), keys.next()) {
        (None, _) => return Err("Sec-WebSocket-Key is missing"),
        (Some(_), Some(_)) => return Err("Sec-WebSocket-Key is given twice"),
        (Some(key), None) if !is_key(key.as_bytes()) => {
            return Err("Sec-WebSocket-Key must be 16 bytes in base64");
        }
        _ => {}
    }
    if !request.body().is_end_stream() {
        return Err("Content-Length and Transfer-Encoding have no place in a WebSocket handshake");
    }
    Ok(())
}

/// Whether these are 16 bytes in base64: 22 digits and two signs of padding (RFC 4648 section 4).
/// The four bits that the last digit has to spare are not looked at.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key.strip_suffix(b"==") {
        Some(digits) => digits.len() == 22 && digits.iter().all(digit),
        None => false,
    }
}
