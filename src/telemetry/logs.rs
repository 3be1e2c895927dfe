//! The logs of the process: text or JSON lines on stderr, by a filter that can change while it runs.

use std::io::{self, IsTerminal};

use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::de::IgnoredAny;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::traces;
use crate::config::{LogFormat, LogSettings};

/// The filter of the process's logs. A clone changes the same filter.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<Targets, Registry>,
}

/// Why logs did not start, or did not change.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.filter` cannot be parsed.
    #[error("invalid log filter (log.filter)")]
    Filter(#[from] ParseError),
    /// The process has logs already.
    #[error("logs are started already")]
    Started(#[from] TryInitError),
    /// The subscriber of the process is gone.
    #[error("logs have ended")]
    Ended(#[from] reload::Error),
}

impl Logs {
    /// The filter of a process that logs nothing. Changing it has no effect.
    pub fn none() -> Self {
        let (_gone, filter) = reload::Layer::new(Targets::new());
        Self { filter }
    }

    /// The filter in effect, in the order in which its directives count.
    pub fn filter(&self) -> Result<String, LogError> {
        let shown = self.filter.with_current(ToString::to_string)?;
        let named = shown
            .split(',')
            .filter(|directive| *directive != "async_nats=off");
        Ok(named.collect::<Vec<_>>().join(","))
    }

    /// Replaces the filter, for example by `"info,switchboard=debug"`.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        Ok(self.filter.reload(parse_filter(filter)?)?)
    }
}

/// Starts the logs of the process, on stderr because verbs print to stdout. Spans go to `provider` where
/// there is one.
///
/// Records of the `log` crate are not collected, because those of tungstenite hold the contents of frames.
pub(super) fn init(
    settings: &LogSettings,
    provider: Option<&SdkTracerProvider>,
) -> Result<Logs, LogError> {
    let (subscriber, logs) = subscriber(settings, io::stderr, provider)?;
    subscriber.try_init()?;
    Ok(logs)
}

/// Parses a filter. The NATS client is off unless the filter names it, because this process logs the same
/// events in its own words.
fn parse_filter(text: &str) -> Result<Targets, ParseError> {
    // The library takes an empty directive as a target that all others begin with.
    let directives = text.split(',').filter(|directive| !directive.is_empty());
    let filter: Targets = directives.collect::<Vec<_>>().join(",").parse()?;
    if text.contains("async_nats") {
        return Ok(filter);
    }
    Ok(filter.with_target("async_nats", LevelFilter::OFF))
}

fn subscriber<W>(
    settings: &LogSettings,
    writer: W,
    provider: Option<&SdkTracerProvider>,
) -> Result<(impl Subscriber + Send + Sync, Logs), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_filter(&settings.filter)?);
    // A log line shows two ids of an exported span and gets them in another way (see `JsonLines`). At
    // trace level the NATS client would show the messages that it reads.
    let others = Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_target(traces::TARGET, LevelFilter::OFF)
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
            .with_filter(Targets::new().with_target(traces::TARGET, LevelFilter::INFO))
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
        // On a terminal the layer itself decides on colours, by NO_COLOR.
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

/// Writes one JSON object a line. Where the current span is traced, its ids come last, as `trace_id` and
/// `span_id`: the field names that OpenTelemetry defines for logs outside its own protocol.
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
        let mut retyped = Retyped::default();
        event.record(&mut retyped);
        if !current.is_valid() && retyped.0.is_empty() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        for (text, json) in retyped.0 {
            line = line.replacen(&text, &json, 1);
        }
        if !current.is_valid() {
            return writer.write_str(&line);
        }
        let open = line.trim_end().strip_suffix('}').ok_or(std::fmt::Error)?;
        writeln!(
            writer,
            r#"{open},"trace_id":"{}","span_id":"{}"}}"#,
            current.trace_id(),
            current.span_id()
        )
    }
}

/// The fields of an event that are lists of texts or options: as the library writes them, which is the text of
/// Debug, and as JSON has them.
#[derive(Default)]
struct Retyped(Vec<(String, String)>);

impl Visit for Retyped {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        let some = text
            .strip_prefix("Some(")
            .and_then(|text| text.strip_suffix(')'));
        let json = match (some, text.as_str()) {
            (Some(some), _) => some,
            (None, "None") => "null",
            (None, "[]") => "[]",
            (None, list) if list.starts_with("[\"") => list,
            (None, _) => return,
        };
        let name = field.name();
        if let (Ok(written), Ok(_)) = (
            serde_json::to_string(&text),
            serde_json::from_str::<IgnoredAny>(json),
        ) {
            self.0.push((
                format!("\"{name}\":{written}"),
                format!("\"{name}\":{json}"),
            ));
        }
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
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl LogBuffer {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap();
            str::from_utf8(&bytes)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        }
    }

    /// The lines that a program logs in this format.
    fn logged(format: LogFormat, program: impl FnOnce(&Logs)) -> Vec<String> {
        let written = LogBuffer::default();
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
    fn a_json_line_has_lists_and_nulls() {
        let lines = logged(LogFormat::Json, |_| {
            let urls = vec!["http://a".to_owned(), "http://[::1]:1".to_owned()];
            let (one, none) = (Some("http://b".to_owned()), None::<String>);
            info!(?urls, ?one, ?none, text = "None", peer = %"[\"]", "listening");
        });
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            line["urls"],
            serde_json::json!(["http://a", "http://[::1]:1"])
        );
        assert_eq!(
            (&line["one"], &line["none"]),
            (&"http://b".into(), &Value::Null)
        );
        assert_eq!(
            (&line["text"], &line["peer"]),
            (&"None".into(), &"[\"]".into())
        );
    }

    #[test]
    fn a_text_line_has_no_colours_outside_a_terminal() {
        let lines = logged(LogFormat::Text, |_| info!(users = 2, "started"));
        assert!(lines[0].ends_with("started users=2"), "{lines:?}");
        assert!(!lines[0].contains('\u{1b}'), "{lines:?}");
    }

    #[test]
    fn no_filter_makes_the_nats_client_show_messages() {
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
            assert_eq!(logs.filter().unwrap(), "info");
            logs.set_filter("debug").unwrap();
            assert_eq!(logs.filter().unwrap(), "debug");
            debug!("between");
            assert!(matches!(logs.set_filter("a=b=c"), Err(LogError::Filter(_))));
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
