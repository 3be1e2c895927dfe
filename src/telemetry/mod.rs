//! What operators see of a running relay: logs, metrics and traces. Logs and traces belong to the process, so
//! only main starts them; each app has its own metrics.

mod export;
mod logs;
pub mod metrics;
pub mod trace_context;
pub mod traces;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::config::{LogSettings, Settings, TracingSettings};
pub use export::ExporterError;
use export::{SpanCounts, with_causes};
pub use logs::{LogError, Logs};
use traces::Traces;

/// Logs and traces of the process.
#[derive(Debug)]
pub struct Telemetry {
    /// The filter of the logs.
    pub logs: Logs,
    /// Which handshakes and messages are traced.
    pub traces: Arc<Traces>,
    /// Makes spans and sends them; nothing without `tracing.otlp_endpoint`.
    provider: Option<SdkTracerProvider>,
    flush_timeout: Duration,
}

/// Why logs or traces did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Logs did not start.
    #[error(transparent)]
    Logs(#[from] LogError),
    /// The exporter of spans cannot be built.
    #[error("cannot send spans (tracing.otlp_endpoint)")]
    Exporter(#[from] ExporterError),
}

/// Starts the logs of the process and, with `tracing.otlp_endpoint`, its traces. `runtime` drives the
/// connections to the OTLP receiver.
pub fn init(
    log: &LogSettings,
    tracing: &TracingSettings,
    runtime: &Handle,
) -> Result<Telemetry, TelemetryError> {
    let counts = Arc::new(SpanCounts::default());
    let provider = tracing
        .endpoint()
        .map(|endpoint| export::provider(tracing, endpoint, &counts, runtime))
        .transpose()?;
    let logs = logs::init(log, provider.as_ref())?;
    for warning in warnings(tracing) {
        warn!("{warning}");
    }
    Ok(Telemetry {
        logs,
        traces: Arc::new(Traces::new(tracing, counts)),
        provider,
        flush_timeout: tracing.flush_timeout,
    })
}

/// What an operator should know of these settings, a sentence each. None of it stops a relay, because a variable
/// for a whole platform may be the reason.
pub fn warnings(tracing: &TracingSettings) -> Vec<String> {
    let mut warnings = tracing.warnings.clone();
    if let Err(error) = export::trust(tracing) {
        let reason = with_causes(&error);
        warnings.push(format!(
            "tracing.otlp_endpoint: no span is sent, because no receiver can be trusted (tracing.tls_ca_file, \
             OTEL_EXPORTER_OTLP_CERTIFICATE): {reason}"
        ));
    }
    warnings
}

impl Telemetry {
    /// Applies the settings that can change in a running process. Logs which settings changed, and which
    /// need a restart. `running` are the settings in effect, and are updated.
    pub fn reload(&self, running: &mut Settings, settings: &Settings) {
        let before = running.clone();
        match self.logs.set_filter(&settings.log.filter) {
            Ok(()) => running.log.filter.clone_from(&settings.log.filter),
            Err(error) => error!(%error, "log filter not changed (log.filter)"),
        }
        self.traces.set_sample_ratio(settings.tracing.sample_ratio);
        running.tracing.sample_ratio = settings.tracing.sample_ratio;
        info!(
            changed = before.changes(running).join(", "),
            needs_restart = running.changes(settings).join(", "),
            "settings reloaded"
        );
    }

    /// Sends the spans that still wait, within `tracing.flush_timeout`. The runtime that [`init`] got must
    /// still run.
    pub async fn flush(&self) {
        let Some(provider) = self.provider.clone() else {
            return;
        };
        let timeout = self.flush_timeout;
        let flushed = spawn_blocking(move || provider.shutdown_with_timeout(timeout)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            let waiting = self.traces.counts.waiting();
            warn!(
                waiting,
                ?timeout,
                "spans not sent within tracing.flush_timeout"
            );
        }
    }
}
