//! The opening handshake (RFC 6455 section 4.2): asks whether the peer may connect, takes a client for its user
//! before the 101 is written, and answers.

use std::net::IpAddr;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{HeaderMap, Request, StatusCode};
use tracing::{Instrument, debug, error};

use super::opening;
use super::refusal::HandshakeRefusal;
use super::response::{HttpResponse, text};
use super::state::HttpState;
use super::upgrade::{JoinedUser, PendingUpgrade, Source};
use crate::auth::{Authenticated, Denied};
use crate::identity::{Subject, UserIdentity};
use crate::lifecycle::{Shutdown, Stage};
use crate::protocol::{Dialect, SUBPROTOCOL};
use crate::relay::{JoinError, Membership};
use crate::session::Welcome;
use crate::telemetry::trace_context::TraceHeaders;
use crate::telemetry::traces::{self, TracedRequest};
use crate::ticket::{Invalid, Tickets};

/// The response header with the user's id.
const USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// The prefix of a ticket among the subprotocols: a page in a browser can set no other header.
const TICKET_ENTRY: &str = "ticket.";

/// The request header with a ticket, for clients that are not a page.
const TICKET: HeaderName = HeaderName::from_static("x-ticket");

/// The request headers with the caller's trace (W3C Trace Context sections 3.2 and 3.3).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Answers a handshake, within a span if it is traced. If it is accepted, `pending` has the user.
pub(super) async fn upgrade(
    request: Request<Incoming>,
    state: &HttpState,
    pending: &PendingUpgrade,
) -> HttpResponse {
    let headers = request.headers();
    let traceparent = text_of(headers, &TRACEPARENT);
    let tracestate = traceparent.map(|_| {
        let members: Vec<_> = opening::values(headers, &TRACESTATE).collect();
        members.join(",")
    });
    let span = state.relay.traces().handshake(TracedRequest {
        method: request.method().as_str(),
        scheme: if state.tls.is_some() { "https" } else { "http" },
        path: request.uri().path(),
        host: text_of(headers, &HOST),
        caller: TraceHeaders {
            traceparent,
            tracestate: tracestate.as_deref(),
        },
    });
    let Some(span) = span else {
        return respond(request, state, pending).await;
    };
    let response = respond(request, state, pending)
        .instrument(span.clone())
        .await;
    traces::answered(&span, response.status().as_u16());
    response
}

async fn respond(
    mut request: Request<Incoming>,
    state: &HttpState,
    pending: &PendingUpgrade,
) -> HttpResponse {
    let client_addr = client_addr(pending.source(), request.headers(), state);
    let joined = match join(&request, state, client_addr, pending).await {
        Ok(joined) => joined,
        Err(refusal) => {
            debug!(client.addr = %client_addr, ?refusal, "upgrade refused");
            state.relay.metrics().handshake_rejected(refusal.reason());
            return refusal.response();
        }
    };
    // The library's future of the upgraded stream is not used: it gives the stream as a boxed trait object, which
    // costs memory for each user and a call for each read. The connection takes its stream back instead.
    let Ok((mut response, _upgraded)) = hyper_tungstenite::upgrade(&mut request, None) else {
        error!("the library refused a handshake that was checked");
        return text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n");
    };
    let client = joined.membership.client();
    let headers = response.headers_mut();
    headers.insert(USER_ID, HeaderValue::from(client.id().get()));
    if client.dialect() == Dialect::V1 {
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    debug!(client.addr = %client_addr, user = %client.id(), "upgrade accepted");
    pending.put(joined);
    response
}

/// The client's address, from the forwarding headers where the proxy that wrote them is trusted.
fn client_addr(source: Source, headers: &HeaderMap, state: &HttpState) -> IpAddr {
    if source.is_unnamed_proxy {
        source.addr
    } else {
        state.proxies.client_addr(source.addr, headers)
    }
}

/// Makes all checks of a handshake, cheap checks first, and takes a client for its user.
async fn join(
    request: &Request<Incoming>,
    state: &HttpState,
    client_addr: IpAddr,
    pending: &PendingUpgrade,
) -> Result<JoinedUser, HandshakeRefusal> {
    let headers = request.headers();
    let address_limiter = state.address_limiter.as_ref();
    if let Some(address_limiter) = address_limiter {
        address_limiter.count_upgrade(client_addr)?;
    }
    if !opening::has_upgrade(headers) {
        return Err(HandshakeRefusal::NoUpgrade);
    }
    if !opening::is_version_13(headers) {
        return Err(HandshakeRefusal::Version);
    }
    opening::check(request).map_err(HandshakeRefusal::Malformed)?;
    let Authenticated { subject, remaining } =
        admit(headers, request.uri().query(), state, client_addr).await?;
    let permit = match address_limiter {
        Some(address_limiter) => address_limiter.connect(client_addr)?,
        None => None,
    };
    let claim = shown_ticket(headers).map(|ticket| {
        let subject = subject.as_ref().map(Subject::as_str);
        state.tickets.read(ticket, subject, SystemTime::now())
    });
    let resume = claim.and_then(Result::ok);
    let membership = pending
        .lending_slot(state.relay.join(opening::dialect(headers), subject, resume))
        .await
        .map_err(HandshakeRefusal::NotJoined)?;
    let (tickets, shutdown) = (&state.tickets, &state.shutdown);
    let welcome = welcome(&membership, claim, tickets, shutdown, SystemTime::now());
    Ok(JoinedUser {
        welcome: welcome.ok_or(HandshakeRefusal::Draining)?,
        membership,
        permit,
        remaining,
    })
}

/// The text of a header that is given once.
fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    opening::single(headers, name)?.to_str().ok()
}

/// Answers the question of a page why its handshake is refused: 204, or the refusal. A browser hides the answer to a
/// refused upgrade from its page (WHATWG, `WebSockets` section 3.1), so the client library asks once more over HTTP.
pub(super) async fn explain(
    request: &Request<Incoming>,
    state: &HttpState,
    source: Source,
) -> HttpResponse {
    let headers = request.headers();
    let client_addr = client_addr(source, headers, state);
    let counted = match &state.address_limiter {
        Some(limiter) => limiter.count_upgrade(client_addr).map_err(Into::into),
        None => Ok(()),
    };
    let admitted = match counted {
        Ok(()) => admit(headers, None, state, client_addr).await,
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Ok(_) => text(StatusCode::NO_CONTENT, ""),
        Err(refusal) => {
            let metrics = state.relay.metrics();
            metrics.handshake_check_refused(refusal.reason());
            refusal.response()
        }
    }
}

/// Makes the checks of a handshake that do not depend on its form, and verifies the token.
async fn admit(
    headers: &HeaderMap,
    query: Option<&str>,
    state: &HttpState,
    client_addr: IpAddr,
) -> Result<Authenticated, HandshakeRefusal> {
    let address_limiter = state.address_limiter.as_ref();
    if !state.origins.allow(headers, client_addr) {
        return Err(HandshakeRefusal::Origin);
    }
    if state.shutdown.stage() == Stage::Draining {
        return Err(HandshakeRefusal::Draining);
    }
    if let Some(address_limiter) = address_limiter {
        address_limiter.check_may_authenticate(client_addr)?;
    }
    // Checked before the token, because a token costs a signature. The client itself is taken after the token,
    // because the token's key may have to be fetched first.
    if state.relay.is_full() {
        return Err(HandshakeRefusal::NotJoined(JoinError::Full));
    }
    let authenticated = tokio::select! {
        authenticated = state.auth.authenticate(headers, query) => authenticated,
        // The key server may take longer than the drain, which waits for no handshake.
        () = state.shutdown.draining() => return Err(HandshakeRefusal::Draining),
    };
    authenticated.map_err(|Denied| {
        if let Some(address_limiter) = address_limiter {
            address_limiter.count_auth_failure(client_addr);
        }
        HandshakeRefusal::Unauthorized
    })
}

/// The ticket of an earlier connection, among the subprotocols or in a header of its own.
fn shown_ticket(headers: &HeaderMap) -> Option<&str> {
    opening::values(headers, &SEC_WEBSOCKET_PROTOCOL)
        .find_map(|protocol| protocol.strip_prefix(TICKET_ENTRY))
        .or_else(|| text_of(headers, &TICKET))
}

/// What the welcome of a user that has joined says: the next ticket, and whether the shown ticket was good for the
/// same id. `None` if a drain has begun.
pub(crate) fn welcome(
    membership: &Membership,
    claim: Option<Result<UserIdentity, Invalid>>,
    tickets: &Tickets,
    shutdown: &Shutdown,
    now: SystemTime,
) -> Option<Welcome> {
    // Behind the join: a drain that begins later finds the user in the directory and tells it, and one that began
    // before may have told all users already.
    if shutdown.stage() == Stage::Draining {
        return None;
    }
    let client = membership.client();
    // The bare dialect has no welcome.
    if client.dialect() == Dialect::Bare {
        return Some(Welcome::default());
    }
    let subject = client.subject().map(Subject::as_str);
    let reason = match claim {
        Some(Ok(claim)) if claim.id != client.id() => Some("id_in_use"),
        Some(Err(Invalid::Expired)) => Some("ticket_expired"),
        Some(Err(Invalid::Forged)) => Some("ticket_invalid"),
        Some(Ok(_)) | None => None,
    };
    Some(Welcome {
        ticket: tickets.issue(client.identity(), subject, now),
        resumed: claim.is_some() && reason.is_none(),
        reason,
    })
}
