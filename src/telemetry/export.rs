//! Sends finished spans to an OTLP receiver over HTTP. Spans wait in a bounded queue for a thread of their
//! own, so that no worker thread waits for the receiver, and spans that are lost are counted.

use std::error::Error;
use std::iter::successors;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response, Uri};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    Compression, ExporterBuildError, Protocol, SpanExporter as OtlpExporter, WithExportConfig,
    WithHttpConfig,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{
    EnvResourceDetector, ResourceDetector, SdkProvidedResourceDetector, TelemetryResourceDetector,
};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use prost::Message;
use reqwest::redirect::Policy;
use tokio::runtime::Handle;
use tokio_rustls::rustls::ClientConfig;
use tracing::{info, warn};

use crate::config::{self, TracingSettings};
use crate::net::trust::{self, Trust, TrustError};

/// Why a span did not reach the receiver: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpanLoss {
    /// `tracing.queue_spans` spans were waiting.
    QueueFull,
    /// The receiver could not be reached, did not answer, or answered with an error.
    ExportFailed,
    /// The receiver accepted the request and refused the span.
    Refused,
}

impl SpanLoss {
    pub(super) const ALL: [Self; 3] = [Self::QueueFull, Self::ExportFailed, Self::Refused];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
            Self::Refused => "refused",
        }
    }
}

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The HTTP client cannot be built.
    #[error(transparent)]
    Client(#[from] reqwest::Error),
    /// The exporter cannot be built.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// The outcomes of finished spans.
#[derive(Debug, Default)]
pub(super) struct SpanCounts {
    exported: AtomicU64,
    lost: [AtomicU64; SpanLoss::ALL.len()],
    waiting: AtomicUsize,
}

impl SpanCounts {
    pub(super) fn exported(&self) -> u64 {
        self.exported.load(Relaxed)
    }

    pub(super) fn lost(&self, loss: SpanLoss) -> u64 {
        self.lost[loss as usize].load(Relaxed)
    }

    fn lose(&self, loss: SpanLoss, count: usize) {
        self.lost[loss as usize].fetch_add(count as u64, Relaxed);
    }

    /// Spans in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

/// Makes spans and sends them to `endpoint`. `runtime` drives the connections.
pub(super) fn provider(
    settings: &TracingSettings,
    endpoint: String,
    counts: &Arc<SpanCounts>,
    runtime: &Handle,
) -> Result<SdkTracerProvider, ExporterError> {
    let timeout = settings.export_timeout;
    // A relay that cannot check the receiver still relays: each request fails, and is counted and logged.
    let tls = trust(settings).unwrap_or_else(|_| trust::no_server());
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(timeout)
        .redirect(Policy::none())
        .no_proxy() // like the other clients of this process
        .build()?;
    let client = ObservedClient {
        client,
        runtime: runtime.clone(),
        counts: counts.clone(),
        failing: AtomicBool::new(false),
    };
    let mut exporter = OtlpExporter::builder().with_http();
    if settings.compression == config::Compression::Gzip {
        exporter = exporter.with_compression(Compression::Gzip);
    }
    let exporter = exporter
        .with_http_client(client)
        .with_endpoint(endpoint)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(timeout)
        .build()?;
    let exporter = CountingExporter {
        inner: exporter,
        counts: counts.clone(),
    };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(settings.queue_spans)
        .with_scheduled_delay(settings.export_interval);
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build());
    let processor = BoundedProcessor {
        inner: batches.build(),
        counts: counts.clone(),
        spans_max: settings.queue_spans,
    };
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        // A span is made only if `Traces` has decided to trace.
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource())
        .build())
}

/// Which receivers are trusted: those that `tracing.tls_ca_file` signed, or else the system's authorities. An
/// http URL needs none, and a system may have none.
pub(super) fn trust(settings: &TracingSettings) -> Result<ClientConfig, TrustError> {
    let is_https = |url: &String| {
        let scheme = url.get(..6);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
    };
    if !settings.otlp_endpoint.as_ref().is_some_and(is_https) {
        return Ok(trust::no_server());
    }
    let trust = match &settings.tls_ca_file {
        Some(path) => Trust::Authorities(path),
        None => Trust::System,
    };
    trust.client_config()
}

/// Describes this process. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override it.
fn resource() -> Resource {
    let ours = Resource::builder_empty().with_attributes([
        KeyValue::new("service.name", "switchboard"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", uuid()),
    ]);
    let detectors: [Box<dyn ResourceDetector>; 2] = [
        Box::new(TelemetryResourceDetector),
        Box::new(EnvResourceDetector::new()),
    ];
    let resource = ours.with_detectors(&detectors);
    // Without a name this detector makes one up, `unknown_service:…`.
    let name = SdkProvidedResourceDetector
        .detect()
        .get(&Key::from_static_str("service.name"));
    match name {
        Some(name) if !name.as_str().starts_with("unknown_service") => {
            resource.with_service_name(name)
        }
        _ => resource,
    }
    .build()
}

/// A random UUID (RFC 9562 section 5.4), which OpenTelemetry's conventions ask for as the id of an instance.
fn uuid() -> String {
    let random = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let mut text = format!("{random:032x}");
    for dash in [20, 16, 12, 8] {
        text.insert(dash, '-');
    }
    text
}

/// Bounds the queue of the SDK's processor, and counts the spans that find it full. The processor has the
/// same bound, but it says neither how many spans it dropped nor how many wait.
#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchSpanProcessor,
    counts: Arc<SpanCounts>,
    spans_max: usize,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        // Counted before the span is queued: the SDK's queue has the same bound, and would drop a span uncounted if
        // it found itself full first.
        if self.counts.waiting.fetch_add(1, AcqRel) >= self.spans_max {
            self.counts.waiting.fetch_sub(1, AcqRel);
            self.counts.lose(SpanLoss::QueueFull, 1);
            return;
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts the spans of each batch that leaves the queue as exported or lost.
#[derive(Debug)]
struct CountingExporter {
    inner: OtlpExporter,
    counts: Arc<SpanCounts>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let counts = &self.counts;
        counts.waiting.fetch_sub(spans, AcqRel);
        let refused = counts.lost(SpanLoss::Refused);
        let result = self.inner.export(batch).await;
        if result.is_ok() {
            // Batches are exported one at a time, so the difference is that of this batch.
            let refused = counts.lost(SpanLoss::Refused) - refused;
            let exported = (spans as u64).saturating_sub(refused);
            counts.exported.fetch_add(exported, Relaxed);
        } else {
            counts.lose(SpanLoss::ExportFailed, spans);
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// The client of the exporter crate, on the runtime: the processor's own thread, which encodes and compresses, has no
/// reactor. Reads each response, because the exporter tells neither how many spans a receiver refused nor why a
/// request failed.
#[derive(Debug)]
struct ObservedClient {
    client: reqwest::Client,
    runtime: Handle,
    counts: Arc<SpanCounts>,
    failing: AtomicBool,
}

#[async_trait]
impl HttpClient for ObservedClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let endpoint = request.uri().clone();
        let client = self.client.clone();
        #[allow(
            clippy::disallowed_methods,
            reason = "bounded by the timeout, and the flush waits for it"
        )]
        let sent = self
            .runtime
            .spawn(async move { client.send_bytes(request).await });
        // At the end of the process the runtime drops the request, which is an error here and no panic.
        let response = sent.await?;
        self.log_change(&endpoint, &response);
        response
    }
}

impl ObservedClient {
    /// Logs when spans begin to be lost and when they are sent again, not once for each batch.
    fn log_change(&self, endpoint: &Uri, response: &Result<Response<Bytes>, HttpError>) {
        let failure = match response {
            Ok(response) if response.status().is_success() => {
                self.count_refused(response.body());
                None
            }
            Ok(response) => Some(format!("the receiver answered {}", response.status())),
            Err(error) => Some(with_causes(&**error)),
        };
        let was_failing = self.failing.swap(failure.is_some(), Relaxed);
        match failure {
            Some(error) if !was_failing => {
                warn!(%endpoint, error, "spans cannot be sent and will be lost");
            }
            None if was_failing => info!(%endpoint, "spans are sent again"),
            _ => {}
        }
    }

    /// Counts the spans that the receiver refused although it accepted the request.
    fn count_refused(&self, body: &Bytes) {
        let answer = ExportTraceServiceResponse::decode(body.clone()).unwrap_or_default();
        let refused = answer.partial_success.map_or(0, |part| part.rejected_spans);
        self.counts
            .lose(SpanLoss::Refused, usize::try_from(refused).unwrap_or(0));
    }
}

/// An error with its causes. "client error (Connect)" alone hides the kernel's reason two levels below.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = successors(Some(error), |error| (*error).source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_a_random_uuid() {
        let [one, other] = [uuid(), uuid()];
        assert_ne!(one, other);
        let shape: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(shape, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_bytes()[14], b'4', "{one}");
        assert!(b"89ab".contains(&one.as_bytes()[19]), "{one}");
    }
}
