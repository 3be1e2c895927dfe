//! The standard variables of OpenTelemetry, which other programs share. Most stand for a key of `[tracing]` and win
//! over `SWITCHBOARD__…`. The OpenTelemetry crates read those without a key here themselves (the resource, the
//! headers, the size of a batch). A value that is not supported is a warning, and never an error: a variable for a
//! whole platform must not stop a relay.

use std::collections::BTreeMap;

use hyper::Uri;

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROPAGATORS: &str = "OTEL_PROPAGATORS";

/// Variables whose value is that of a key, and how it is written there. A later one wins over an earlier one: that
/// for spans over that for all signals.
const KEYS: [(&str, &str, Writing); 12] = [
    (ENDPOINT, "otlp_endpoint", Writing::Base),
    (TRACES_ENDPOINT, "otlp_endpoint", Writing::Same),
    (
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        EXPORT_TIMEOUT,
        Writing::Millis,
    ),
    (
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        EXPORT_TIMEOUT,
        Writing::Millis,
    ),
    (
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "compression",
        Writing::Word,
    ),
    (
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
        "compression",
        Writing::Word,
    ),
    (
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "tls_ca_file",
        Writing::Same,
    ),
    (
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "tls_ca_file",
        Writing::Same,
    ),
    (
        "OTEL_BSP_SCHEDULE_DELAY",
        "export_interval",
        Writing::Millis,
    ),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "queue_spans", Writing::Same),
    (SAMPLER, SAMPLE_RATIO, Writing::Sampler),
    (SAMPLER_ARG, SAMPLE_RATIO, Writing::Same),
];
const EXPORT_TIMEOUT: &str = "export_timeout";
const SAMPLE_RATIO: &str = "sample_ratio";

/// Variables that the OpenTelemetry crates read as a whole number, and what they use in place of anything else.
const NUMBERS: [(&str, &str); 4] = [
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "128"),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", "128"),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", "128"),
];

/// Variables without a value that is supported.
const NO_VALUE: [(&str, Instead); 5] = [
    ("OTEL_BSP_EXPORT_TIMEOUT", Instead::Key(EXPORT_TIMEOUT)),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", NO_CERTIFICATE),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", NO_CERTIFICATE),
    (
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
        NO_CERTIFICATE,
    ),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", NO_CERTIFICATE),
];
const NO_CERTIFICATE: Instead = Instead::Fixed("no client certificate");

/// The variable for spans wins over the one for all signals.
const PROTOCOL: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];

/// The path of spans at an OTLP receiver, and the default receiver (OTLP exporter specification).
const PATH: &str = "/v1/traces";
const DEFAULT_ENDPOINT: &str = "http://localhost:4318/v1/traces";

/// How a variable writes the value of a key.
#[derive(Clone, Copy)]
enum Writing {
    /// As the key does.
    Same,
    /// In any case.
    Word,
    /// In milliseconds.
    Millis,
    /// As a URL that gets the path of spans.
    Base,
    /// As the name of a sampler. Whether a parent counts is decided by `tracing.trust_clients`.
    Sampler,
}

/// A variable, and what its value means for a key of `[tracing]`.
pub(super) struct VariableValue {
    pub(super) variable: &'static str,
    pub(super) found: String,
    pub(super) key: &'static str,
    pub(super) text: String,
}

/// A variable with a value that is not supported.
pub(super) struct Unsupported {
    pub(super) variable: &'static str,
    pub(super) found: String,
    pub(super) instead: Instead,
}

/// What is used in place of a value that is not supported.
#[derive(Clone, Copy)]
pub(super) enum Instead {
    /// The value that a key of `[tracing]` has by another source.
    Key(&'static str),
    Fixed(&'static str),
}

/// Whether these variables mean anything here.
pub(super) fn is_known(name: &str) -> bool {
    [DISABLED, EXPORTER, PROPAGATORS].contains(&name)
        || PROTOCOL.contains(&name)
        || KEYS.iter().any(|(variable, ..)| *variable == name)
        || NUMBERS.iter().any(|(variable, _)| *variable == name)
        || NO_VALUE.iter().any(|(variable, _)| *variable == name)
}

/// Whether the variables turn tracing off, even if another source turns it on.
pub(super) fn is_off(variables: &BTreeMap<String, String>) -> bool {
    is(variables, DISABLED, "true") || is(variables, EXPORTER, "none")
}

/// What the variables say about keys, the strongest last; nothing where no source turns tracing on, because the
/// variables may be meant for other programs. `has_endpoint` tells whether another source sets
/// `tracing.otlp_endpoint`.
pub(super) fn values(
    variables: &BTreeMap<String, String>,
    has_endpoint: bool,
) -> Vec<VariableValue> {
    let mut values = Vec::new();
    let mut add = |(variable, found): (&'static str, &str), key, text| {
        values.push(VariableValue {
            variable,
            found: found.to_owned(),
            key,
            text,
        });
    };
    let exporter = find(variables, EXPORTER).filter(|(_, list)| names(list).any(is_otlp));
    let has_endpoint_here =
        find(variables, ENDPOINT).is_some() || find(variables, TRACES_ENDPOINT).is_some();
    let is_on = has_endpoint || has_endpoint_here || exporter.is_some();
    if is_off(variables) || !is_on {
        return values;
    }
    if let Some(exporter) = exporter
        && !has_endpoint
    {
        add(exporter, "otlp_endpoint", DEFAULT_ENDPOINT.to_owned());
    }
    for (name, key, writing) in KEYS {
        if let Some(found) = find(variables, name)
            && (name != SAMPLER_ARG || takes_argument(variables))
        {
            add(found, key, written(found.1, writing));
        }
    }
    values
}

/// The values that are not supported, whatever a key allows. `is_on` tells whether a source turns tracing on; where
/// none does, only another exporter counts.
pub(super) fn unsupported(variables: &BTreeMap<String, String>, is_on: bool) -> Vec<Unsupported> {
    let find = |name| find(variables, name);
    let numbers = NUMBERS.iter().filter_map(|(name, default)| {
        let number = find(name).filter(|(_, text)| text.parse::<u32>().is_err());
        Some((number?, Instead::Fixed(default)))
    });
    let without = NO_VALUE
        .iter()
        .filter_map(|(name, instead)| Some((find(name)?, *instead)));
    let protocol = PROTOCOL.iter().find_map(|name| find(name));
    let protocol = protocol.filter(|(_, name)| !name.eq_ignore_ascii_case("http/protobuf"));
    let propagators = find(PROPAGATORS).filter(|(_, list)| !is_trace_context(list));
    let is_switch = |text: &str| ["true", "false"].contains(&text.to_ascii_lowercase().as_str());
    let disabled = find(DISABLED).filter(|(_, text)| !is_switch(text));
    let others = [
        protocol.map(|protocol| (protocol, Instead::Fixed("http/protobuf"))),
        propagators.map(|list| (list, Instead::Fixed("tracecontext"))),
        disabled.map(|text| (text, Instead::Fixed("false"))),
    ];
    let exporter = find(EXPORTER).filter(|(_, list)| !names(list).all(is_otlp));
    let exporter = exporter.map(|list| (list, Instead::Key("otlp_endpoint")));
    let checked = others.into_iter().flatten().chain(numbers).chain(without);
    let all = exporter.into_iter().chain(checked.filter(|_| is_on));
    all.filter(|_| !is_off(variables))
        .map(|((variable, found), instead)| Unsupported {
            variable,
            found: found.to_owned(),
            instead,
        })
        .collect()
}

fn is_otlp(name: &str) -> bool {
    name.eq_ignore_ascii_case("otlp")
}

/// Whether this list of propagators is what the relay does. It carries no baggage, but the default of the
/// specification has baggage, and so it is no reason to warn.
fn is_trace_context(list: &str) -> bool {
    names(list).any(|name| name == "tracecontext")
        && names(list).all(|name| ["tracecontext", "baggage"].contains(&name))
}

/// The value of a variable as its key writes it. A value that is not supported becomes one that the key does not allow.
fn written(found: &str, writing: Writing) -> String {
    match writing {
        Writing::Same => found.to_owned(),
        Writing::Word => found.to_ascii_lowercase(),
        Writing::Millis => format!("{found}ms"),
        Writing::Base => format!("{}{PATH}", found.trim_end_matches('/')),
        Writing::Sampler => match sampler(found).as_str() {
            // `OTEL_TRACES_SAMPLER_ARG` wins over this default of its own.
            "always_on" | "traceidratio" => "1".to_owned(),
            "always_off" => "0".to_owned(),
            other => format!("sampler {other}"),
        },
    }
}

fn sampler(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    name.strip_prefix("parentbased_")
        .unwrap_or(&name)
        .to_owned()
}

/// Whether the sampler is one that `OTEL_TRACES_SAMPLER_ARG` is for.
fn takes_argument(variables: &BTreeMap<String, String>) -> bool {
    find(variables, SAMPLER).is_some_and(|(_, name)| sampler(name) == "traceidratio")
}

/// The names in a list with commas.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

fn is(variables: &BTreeMap<String, String>, name: &'static str, word: &str) -> bool {
    find(variables, name).is_some_and(|(_, value)| value.eq_ignore_ascii_case(word))
}

/// A variable that is not empty. Names and words of OpenTelemetry are the same in any case.
fn find<'a>(
    variables: &'a BTreeMap<String, String>,
    name: &'static str,
) -> Option<(&'static str, &'a str)> {
    let value = variables.get(name)?.trim();
    (!value.is_empty()).then_some((name, value))
}

/// Whether spans can be sent to this URL.
pub(super) fn is_endpoint(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url
                .authority()
                .is_some_and(|authority| !authority.as_str().contains('@'))
    })
}

/// The URL that spans are posted to. A receiver without a path gets the standard path.
pub(super) fn with_path(endpoint: &str) -> String {
    match endpoint.parse::<Uri>() {
        Ok(url) if url.path() == "/" && url.query().is_none() => {
            format!("{}{PATH}", endpoint.trim_end_matches('/'))
        }
        _ => endpoint.to_owned(),
    }
}
