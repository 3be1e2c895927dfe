//! Decides which handshakes and messages are traced, and makes their spans. The decision comes first, so that
//! an untraced message costs one comparison and carries nothing. No span names a user or shows a message.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use hyper::http::uri::Authority;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceId};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::export::SpanCounts;
use super::trace_context::{TraceHeaders, traceparent, tracestate};
use crate::config::TracingSettings;

/// The target of all exported spans. Nothing else has it.
pub(super) const TARGET: &str = "switchboard::trace";

/// The request of a handshake, as its span shows it.
#[derive(Clone, Copy, Debug)]
pub struct TracedRequest<'a> {
    /// The method.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The path, without the query.
    pub path: &'a str,
    /// The `Host` header.
    pub host: Option<&'a str>,
    /// Where the trace comes from.
    pub caller: TraceHeaders<'a>,
}

/// The address that users connect to, as spans show it.
#[derive(Debug)]
struct ServerAddress {
    name: String,
    port: i64,
}

/// Decides which handshakes and messages are traced.
#[derive(Debug, Default)]
pub struct Traces {
    /// A message is traced if a random number is below this. Zero traces none at random.
    threshold: AtomicU64,
    on: bool,
    trust_clients: bool,
    server: OnceLock<Arc<ServerAddress>>,
    pub(super) counts: Arc<SpanCounts>,
}

impl Traces {
    /// Traces nothing.
    pub fn off() -> Self {
        Self::default()
    }

    pub(super) fn new(settings: &TracingSettings, counts: Arc<SpanCounts>) -> Self {
        let traces = Self {
            threshold: AtomicU64::new(0),
            on: settings.otlp_endpoint.is_some(),
            trust_clients: settings.trust_clients,
            server: OnceLock::new(),
            counts,
        };
        traces.set_sample_ratio(settings.sample_ratio);
        traces
    }

    /// Traces this share of messages from now on (0 to 1). Has no effect without `tracing.otlp_endpoint`.
    pub fn set_sample_ratio(&self, ratio: f64) {
        // The cast saturates, so that 1.0 traces all random numbers but one of 2^64.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a float is exact enough for a share from 0 to 1"
        )]
        let threshold = (ratio * u64::MAX as f64) as u64;
        self.threshold
            .store(if self.on { threshold } else { 0 }, Relaxed);
    }

    /// Has spans of messages show this address, the first that users connect to. The name of this machine stands for
    /// the address of all its interfaces.
    pub fn serve_at(&self, addr: SocketAddr) {
        let name = if addr.ip().is_unspecified() {
            let names = rustix::system::uname();
            names.nodename().to_string_lossy().into_owned()
        } else {
            addr.ip().to_string()
        };
        let port = addr.port().into();
        // A process serves once.
        let _known = self
            .server
            .set(Arc::new(ServerAddress { name, port }))
            .is_err();
    }

    fn is_sampled(&self) -> bool {
        let threshold = self.threshold.load(Relaxed);
        threshold != 0 && fastrand::u64(..) < threshold
    }

    /// Whether a trace that a client names counts (`tracing.trust_clients`). If not, nobody needs to read its name.
    pub fn trusts_clients(&self) -> bool {
        self.on && self.trust_clients
    }

    /// The context of a client's trace, if clients are trusted.
    fn trusted(&self, caller: TraceHeaders<'_>) -> Option<SpanContext> {
        if self.trusts_clients() {
            caller.parse()
        } else {
            None
        }
    }

    /// Starts the span of a handshake, if it is traced. Dropping the span ends it.
    pub fn handshake(&self, request: TracedRequest<'_>) -> Option<Span> {
        let TracedRequest {
            method,
            scheme,
            path,
            host,
            caller,
        } = request;
        let parent = self.trusted(caller);
        let sampled = match &parent {
            Some(parent) => parent.is_sampled(),
            None => self.is_sampled(),
        };
        if !sampled {
            return None;
        }
        let host = host.and_then(|host| host.parse::<Authority>().ok());
        let default_port = if scheme == "https" { 443 } else { 80 };
        let port = host
            .as_ref()
            .map(|host| host.port_u16().unwrap_or(default_port));
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "handshake",
            "otel.name" = format!("{method} {path}"),
            "otel.kind" = "server",
            "otel.status_code" = Empty,
            "http.request.method" = method,
            "http.route" = path,
            "http.response.status_code" = Empty,
            "network.protocol.version" = "1.1",
            "server.address" = host.as_ref().map(Authority::host),
            "server.port" = port.map(i64::from),
            "url.path" = path,
            "url.scheme" = scheme,
            "error.type" = Empty,
        );
        continue_from(&span, parent);
        Some(span)
    }

    /// Starts the trace of a message, if it is traced. `body_bytes` is the size of its text, if known.
    #[inline]
    pub fn message(
        &self,
        caller: TraceHeaders<'_>,
        body_bytes: Option<usize>,
    ) -> Option<Box<Traced>> {
        if caller.traceparent.is_none() && !self.is_sampled() {
            return None;
        }
        self.begin(caller, body_bytes)
    }

    #[cold]
    fn begin(&self, caller: TraceHeaders<'_>, body_bytes: Option<usize>) -> Option<Box<Traced>> {
        let parent = self.trusted(caller);
        match parent {
            Some(parent) if !parent.is_sampled() => {
                return Some(Box::new(Traced::without_spans(parent)));
            }
            None if caller.traceparent.is_some() && !self.is_sampled() => return None,
            _ => {}
        }
        let body_bytes = body_bytes.map(attribute);
        let server = self.server.get().cloned();
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "send users/{id}",
            "otel.kind" = "producer",
            "otel.status_code" = Empty,
            "messaging.system" = SYSTEM,
            "messaging.operation.name" = "send",
            "messaging.operation.type" = "send",
            "messaging.destination.template" = DESTINATION,
            "messaging.message.body.size" = body_bytes,
            "server.address" = server.as_deref().map(ServerAddress::name),
            "server.port" = server.as_deref().map(|server| server.port),
            "switchboard.outcome" = Empty,
            "error.type" = Empty,
        );
        continue_from(&span, parent);
        let context = span.context().span().span_context().clone();
        // The context is invalid if this process collects no spans, as in most tests.
        context.is_valid().then(|| {
            Box::new(Traced {
                context,
                body_bytes,
                server,
                span,
                stage: TraceStage::Sending,
            })
        })
    }
}

const SYSTEM: &str = "switchboard";
/// Stands for the recipient, because spans name no user.
const DESTINATION: &str = "users/{id}";

/// A size as an attribute, whose only integer type is i64.
fn attribute(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn continue_from(span: &Span, parent: Option<SpanContext>) {
    if let Some(parent) = parent {
        let context = opentelemetry::Context::new().with_remote_span_context(parent);
        // Fails if this process collects no spans, and then there is nothing to continue.
        let _not_collected = span.set_parent(context).is_err();
    }
}

/// Records the status of a handshake's response on its span.
pub fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.record("error.type", status.to_string());
        span.record("otel.status_code", "error");
    }
}

/// The trace of one message. Its "send" span lasts from reading the message to a mailbox or a drop. Its
/// "process" span, a child of the first and linked to it, lasts from taking the message from the mailbox to
/// its outcome. Dropping the trace ends an open span without an outcome.
#[derive(Debug)]
pub struct Traced {
    /// The context of the message, which goes with it to other nodes and the recipient.
    context: SpanContext,
    body_bytes: Option<i64>,
    server: Option<Arc<ServerAddress>>,
    span: Span,
    stage: TraceStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TraceStage {
    /// The "send" span is open.
    Sending,
    /// The message is in a mailbox, and no span is open.
    Queued,
    /// The "process" span is open.
    Processing,
    /// The message only carries its context.
    WithoutSpans,
}

impl Traced {
    /// The trace of a message whose sender traces it and asks this relay not to (the sampled flag is 0).
    fn without_spans(context: SpanContext) -> Self {
        Self {
            context,
            body_bytes: None,
            server: None,
            span: Span::none(),
            stage: TraceStage::WithoutSpans,
        }
    }

    /// The trace of a message from another node, by the headers that came with it. Nothing if they are malformed or
    /// this node traces nothing.
    pub fn arrived(
        traces: &Traces,
        caller: TraceHeaders<'_>,
        body_bytes: usize,
    ) -> Option<Box<Self>> {
        let context = caller.parse().filter(|_| traces.on)?;
        if !context.is_sampled() {
            return Some(Box::new(Self::without_spans(context)));
        }
        Some(Box::new(Self {
            context,
            body_bytes: Some(attribute(body_bytes)),
            server: traces.server.get().cloned(),
            span: Span::none(),
            stage: TraceStage::Queued,
        }))
    }

    /// The `traceparent` that goes with the message.
    pub fn traceparent(&self) -> String {
        traceparent(&self.context)
    }

    /// The `tracestate` that goes with it, without characters that JSON escapes.
    pub fn tracestate(&self) -> Option<String> {
        tracestate(&self.context)
    }

    /// The trace's id, if its spans are recorded.
    pub(super) fn sampled_id(&self) -> Option<TraceId> {
        self.context.is_sampled().then_some(self.context.trace_id())
    }

    /// The message is in a mailbox, or was handed to another node.
    pub fn queued(&mut self) {
        if self.stage == TraceStage::Sending {
            self.span.record("switchboard.outcome", "queued");
            self.span = Span::none();
            self.stage = TraceStage::Queued;
        }
    }

    /// The session of the recipient has taken the message to write it.
    pub fn taken(&mut self) {
        if self.stage != TraceStage::Queued {
            return;
        }
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "process users/{id}",
            "otel.kind" = "consumer",
            "otel.status_code" = Empty,
            "messaging.system" = SYSTEM,
            "messaging.operation.name" = "process",
            "messaging.operation.type" = "process",
            "messaging.destination.template" = DESTINATION,
            "messaging.message.body.size" = self.body_bytes,
            "server.address" = self.server.as_deref().map(ServerAddress::name),
            "server.port" = self.server.as_deref().map(|server| server.port),
            "switchboard.outcome" = Empty,
            "error.type" = Empty,
        );
        continue_from(&span, Some(self.context.clone()));
        span.add_link(self.context.clone());
        self.span = span;
        self.stage = TraceStage::Processing;
    }

    /// The message was flushed to its recipient.
    pub fn delivered(mut self) {
        self.taken();
        self.span.record("switchboard.outcome", "delivered");
    }

    /// The message was dropped for this reason.
    pub fn dropped(mut self, reason: &'static str) {
        self.taken();
        self.span.record("switchboard.outcome", reason);
        self.span.record("error.type", reason);
        self.span.record("otel.status_code", "error");
    }
}

impl ServerAddress {
    fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traces(ratio: f64) -> Traces {
        let traces = Traces {
            on: true,
            ..Traces::default()
        };
        traces.set_sample_ratio(ratio);
        traces
    }

    #[test]
    fn the_share_that_is_traced_is_the_ratio() {
        fastrand::seed(7);
        let share = |ratio| {
            let traces = traces(ratio);
            (0..100_000).filter(|_| traces.is_sampled()).count()
        };
        assert_eq!(share(0.0), 0);
        assert_eq!(share(1.0), 100_000);
        let hundredth = share(0.01);
        assert!((900..1100).contains(&hundredth), "{hundredth}");
        let off = Traces::off();
        off.set_sample_ratio(1.0);
        assert!(!off.is_sampled());
    }

    #[test]
    fn a_traceparent_counts_only_if_clients_are_trusted() {
        let mut traces = traces(0.0);
        let caller = TraceHeaders {
            traceparent: Some(SAMPLED),
            tracestate: None,
        };
        assert_eq!(traces.trusted(caller), None);
        traces.trust_clients = true;
        assert!(traces.trusted(caller).is_some());
        traces.on = false;
        assert_eq!(traces.trusted(caller), None);
    }
}
