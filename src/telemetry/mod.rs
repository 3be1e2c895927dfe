//! What operators see of a running relay. Only main starts the logs: they are the process's, not an
//! app's, and tests have none.

pub mod metrics;

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// The logs of the process; keeps what can change while it runs.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logs did not start, or change.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("log.filter is not a filter")]
    Filter(#[from] ParseError),
    /// Logs were started before.
    #[error("logs are started already")]
    Started(#[from] TryInitError),
    /// Nothing logs any more.
    #[error("logs have ended")]
    Ended(#[from] reload::Error),
}

/// Starts the logs of the process, text or JSON, on stderr: stdout belongs to verbs that print.
///
/// Records of the `log` crate are not collected: tungstenite's hold the contents of frames.
pub fn init(settings: &Log) -> Result<Logs, LogError> {
    let (subscriber, logs) = subscriber(settings, io::stderr)?;
    subscriber.try_init()?;
    Ok(logs)
}

impl Logs {
    /// Logs by another filter from now on.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        Ok(self.filter.reload(EnvFilter::try_new(filter)?)?)
    }
}

fn subscriber<W>(
    settings: &Log,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync, Logs), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(&settings.filter)?);
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(lines(settings.format, writer));
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
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true);
            lines.with_current_span(true).with_span_list(false).boxed()
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
        let settings = Log {
            format,
            filter: "info".to_owned(),
        };
        let (subscriber, logs) = subscriber(&settings, move || writer.clone()).unwrap();
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
    fn the_filter_changes_while_the_process_runs() {
        let lines = logged(LogFormat::Text, |logs| {
            debug!("before");
            logs.set_filter("debug").unwrap();
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
