//! What operators see of a running relay. Only main starts logs and traces: they are the process's, not
//! an app's, and tests have none.

mod export;
pub(crate) mod link;
pub mod metrics;
mod process;
pub mod trace;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tracing::{Event, Subscriber, error, info, warn};
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogSettings, Settings, TracingSettings};
pub use export::ExporterError;
use export::SpanCounts;
use trace::Traces;

/// Logs and traces of the process.
#[derive(Debug)]
pub struct Telemetry {
    /// The logs.
    pub logs: Logs,
    /// What is traced.
    pub traces: Arc<Traces>,
    /// Makes spans and sends them, where anything is traced.
    provider: Option<SdkTracerProvider>,
    flush_timeout: Duration,
}

/// The logs of the process; keeps what can change while it runs.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logs or traces did not start, or change.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("log.filter is not a filter")]
    Filter(#[from] ParseError),
    /// Logs were started before.
    #[error("logs are started already")]
    Started(#[from] TryInitError),
    /// Nothing logs any more.
    #[error("logs have ended")]
    Ended(#[from] reload::Error),
    /// Spans cannot be sent like this.
    #[error("cannot send spans to tracing.otlp_endpoint")]
    Exporter(#[from] ExporterError),
}

/// Starts the logs of the process, text or JSON, on stderr: stdout belongs to verbs that print. And its
/// traces, where there is a receiver, over connections that live on `runtime`.
///
/// Records of the `log` crate are not collected: tungstenite's hold the contents of frames.
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
    let (subscriber, logs) = subscriber(log, io::stderr, provider.as_ref())?;
    subscriber.try_init()?;
    Ok(Telemetry {
        logs,
        traces: Arc::new(Traces::new(tracing, counts)),
        provider,
        flush_timeout: tracing.flush_timeout,
    })
}

impl Telemetry {
    /// Takes over what of `settings` can change in a running process, and says what did, and what else
    /// would. `running` are the settings in effect.
    pub fn reload(&self, running: &mut Settings, settings: &Settings) {
        let before = running.clone();
        match self.logs.set_filter(&settings.log.filter) {
            Ok(()) => running.log.filter.clone_from(&settings.log.filter),
            Err(error) => error!(%error, "log.filter stays"),
        }
        self.traces.set_sample_ratio(settings.tracing.sample_ratio);
        running.tracing.sample_ratio = settings.tracing.sample_ratio;
        info!(
            changed = before.changes(running).join(", "),
            needs_restart = running.changes(settings).join(", "),
            "settings reloaded"
        );
    }

    /// Sends the spans that still wait, for as long as `tracing.flush_timeout`. The runtime that the
    /// exporter was given has to be alive.
    pub async fn flush(&self) {
        let Some(provider) = self.provider.clone() else {
            return;
        };
        let timeout = self.flush_timeout;
        let flushed = spawn_blocking(move || provider.shutdown_with_timeout(timeout)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            let waiting = self.traces.counts.waiting();
            warn!(waiting, ?timeout, "spans were left unsent");
        }
    }
}

impl Logs {
    /// Those of a process that logs nothing, where no filter takes effect.
    pub fn none() -> Self {
        let (_gone, filter) = reload::Layer::new(EnvFilter::default());
        Self { filter }
    }

    /// Logs by another filter from now on.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        Ok(self.filter.reload(self::filter(filter)?)?)
    }
}

/// A filter as it is set. The NATS client says each event in its own words, where ours are said already,
/// unless it is named.
fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::try_new(text)?;
    if text.contains("async_nats") {
        return Ok(filter);
    }
    Ok(filter.add_directive("async_nats=off".parse()?))
}

fn subscriber<W>(
    settings: &LogSettings,
    writer: W,
    provider: Option<&SdkTracerProvider>,
) -> Result<(impl Subscriber + Send + Sync, Logs), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&settings.filter)?);
    // Spans that are exported are nothing to a log line but two ids, which it gets otherwise. The NATS
    // client would show the messages that it reads.
    let others = Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_target(trace::TARGET, LevelFilter::OFF)
        .with_target("async_nats", LevelFilter::DEBUG);
    let spans = provider.map(|provider| {
        let scope = InstrumentationScope::builder("switchboard")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer_with_scope(scope))
            .with_location(false)
            .with_target(false)
            .with_level(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(trace::TARGET, LevelFilter::INFO))
    });
    let subscriber = tracing_subscriber::registry()
        .with(lines(settings.format, writer).with_filter(filter.and(others)))
        .with(spans);
    Ok((subscriber, Logs { filter: handle }))
}

fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer);
    match format {
        // On a terminal the layer itself decides on colours: it honours NO_COLOR.
        LogFormat::Text if io::stderr().is_terminal() => lines.boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines
            .event_format(JsonLines(
                fmt::format()
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false),
            ))
            .fmt_fields(JsonFields::new())
            .boxed(),
    }
}

/// A JSON object a line, with the ids of the current span of a trace at its end, by the names that
/// OpenTelemetry gives them in logs of other formats.
struct JsonLines(Format<Json>);

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let current =
            opentelemetry::Context::map_current(|current| current.span().span_context().clone());
        if !current.is_valid() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        let open = line.trim_end().strip_suffix('}').ok_or(std::fmt::Error)?;
        writeln!(
            writer,
            r#"{open},"trace_id":"{}","span_id":"{}"}}"#,
            current.trace_id(),
            current.span_id()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::subscriber::with_default;
    use tracing::{debug, info, info_span};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap();
            str::from_utf8(&bytes)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        }
    }

    /// The lines of a program that logs in this way.
    fn logged(format: LogFormat, program: impl FnOnce(&Logs)) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let settings = LogSettings {
            format,
            filter: "info".to_owned(),
        };
        let (subscriber, logs) = subscriber(&settings, move || writer.clone(), None).unwrap();
        with_default(subscriber, || program(&logs));
        written.lines()
    }

    #[test]
    fn a_json_line_is_flat_and_has_its_span() {
        let lines = logged(LogFormat::Json, |_| {
            info_span!("connection", user = 7).in_scope(|| info!(reason = "reset", "closed"));
        });
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            (&line["message"], &line["reason"]),
            (&"closed".into(), &"reset".into())
        );
        assert_eq!(line["span"]["user"], 7);
        assert_eq!(
            (line.get("spans"), line.get("fields"), lines.len()),
            (None, None, 1)
        );
    }

    #[test]
    fn a_text_line_has_no_colours_where_nobody_looks() {
        let lines = logged(LogFormat::Text, |_| info!(users = 2, "started"));
        assert!(lines[0].ends_with("started users=2"), "{lines:?}");
        assert!(!lines[0].contains('\u{1b}'), "{lines:?}");
    }

    #[test]
    fn whatever_the_filter_the_nats_client_shows_no_message() {
        let lines = logged(LogFormat::Text, |logs| {
            logs.set_filter("trace,async_nats=trace").unwrap();
            tracing::trace!(target: "async_nats::connection", payload = "Go Braves!", "read");
            debug!(target: "async_nats", "received");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("async_nats: received"), "{lines:?}");
    }

    #[test]
    fn the_filter_changes_while_the_process_runs() {
        let lines = logged(LogFormat::Text, |logs| {
            debug!("before");
            logs.set_filter("debug").unwrap();
            debug!("between");
            assert!(matches!(
                logs.set_filter("a=b=c"),
                Err(TelemetryError::Filter(_))
            ));
            debug!("still");
            logs.set_filter("warn").unwrap();
            info!("after");
        });
        let words: Vec<_> = lines
            .iter()
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        assert_eq!(words, ["between", "still"]);
    }
}
