//! The standard variables of OpenTelemetry, which say the same as `[tracing]` in words that other
//! programs share: each becomes the value of a key, over all that `SWITCHBOARD__…` says. Those without
//! a key here (the resource, the headers, the batches) are read by the OpenTelemetry crates.

use std::collections::BTreeMap;

use hyper::Uri;

use super::error::Problem;

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const QUEUE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
/// Where one variable is for spans and one for everything, the former wins.
const PROTOCOL: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const TIMEOUT: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];

/// The path of spans at an OTLP receiver, and the receiver where none is named (both by the OTLP
/// exporter specification).
const PATH: &str = "/v1/traces";
const DEFAULT_ENDPOINT: &str = "http://localhost:4318/v1/traces";

/// A value of a key of `[tracing]`, and the variable that says so.
pub(super) struct Said {
    pub(super) variable: &'static str,
    pub(super) key: &'static str,
    pub(super) value: String,
}

/// Whether a variable is one of these.
pub(super) fn is_known(name: &str) -> bool {
    let single = [
        DISABLED,
        EXPORTER,
        SAMPLER,
        SAMPLER_ARG,
        TRACES_ENDPOINT,
        ENDPOINT,
        QUEUE,
    ];
    single.contains(&name) || PROTOCOL.contains(&name) || TIMEOUT.contains(&name)
}

/// Whether the variables turn tracing off, whoever turned it on.
pub(super) fn is_off(variables: &BTreeMap<String, String>) -> bool {
    let is = |name, off| find(variables, &[name]).is_some_and(|(_, value)| value == off);
    is(DISABLED, "true") || is(EXPORTER, "none")
}

/// What the variables say of `[tracing]`, `endpoint` telling whether the other sources have one. They
/// say nothing where nobody turns tracing on: they may be there for other programs.
pub(super) fn say(
    variables: &BTreeMap<String, String>,
    endpoint: bool,
    problems: &mut Vec<Problem>,
) -> Vec<Said> {
    let find = |names: &[&'static str]| find(variables, names);
    let mut said = Vec::new();
    if is_off(variables) {
        return said;
    }
    let mut say = |variable, key, value: String| {
        said.push(Said {
            variable,
            key,
            value,
        });
    };
    let mut refuse = |variable: &str, found: &str, allowed: &str| {
        problems.push(Problem::Value {
            origin: variable.to_owned(),
            key: "tracing".to_owned(),
            found: format!("{found:?}"),
            allowed: allowed.to_owned(),
        });
    };
    let exporter = find(&[EXPORTER]);
    if let Some((variable, url)) = find(&[TRACES_ENDPOINT]) {
        say(variable, "otlp_endpoint", url.to_owned());
    } else if let Some((variable, url)) = find(&[ENDPOINT]) {
        let url = format!("{}{PATH}", url.trim_end_matches('/'));
        say(variable, "otlp_endpoint", url);
    } else if let Some((variable, "otlp")) = exporter
        && !endpoint
    {
        say(variable, "otlp_endpoint", DEFAULT_ENDPOINT.to_owned());
    } else if !endpoint {
        return Vec::new();
    }
    if let Some((variable, other)) = exporter
        && other != "otlp"
    {
        refuse(variable, other, "otlp, none");
    }
    if let Some((variable, other)) = find(&PROTOCOL)
        && other != "http/protobuf"
    {
        refuse(variable, other, "http/protobuf");
    }
    if let Some((variable, millis)) = find(&TIMEOUT) {
        if millis.parse::<u64>().is_ok() {
            say(variable, "export_timeout", format!("{millis}ms"));
        } else {
            refuse(variable, millis, "milliseconds as a whole number");
        }
    }
    if let Some((variable, spans)) = find(&[QUEUE]) {
        say(variable, "queue_spans", spans.to_owned());
    }
    if let Some((variable, sampler)) = find(&[SAMPLER]) {
        // Whether a parent counts is for tracing.trust_clients to say.
        match sampler.strip_prefix("parentbased_").unwrap_or(sampler) {
            "always_on" => say(variable, "sample_ratio", "1".to_owned()),
            "always_off" => say(variable, "sample_ratio", "0".to_owned()),
            "traceidratio" => {
                let (variable, ratio) = find(&[SAMPLER_ARG]).unwrap_or((variable, "1"));
                say(variable, "sample_ratio", ratio.to_owned());
            }
            _ => refuse(
                variable,
                sampler,
                "always_on, always_off, traceidratio, each also with parentbased_ before it",
            ),
        }
    }
    said
}

/// The first of these variables that is set to something.
fn find<'a>(
    variables: &'a BTreeMap<String, String>,
    names: &[&'static str],
) -> Option<(&'static str, &'a str)> {
    names.iter().find_map(|name| {
        let value = variables.get(*name)?.trim();
        (!value.is_empty()).then_some((*name, value))
    })
}

/// Whether spans can be sent to this URL.
pub(super) fn is_endpoint(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|url| {
        url.scheme_str() == Some("http")
            && url
                .authority()
                .is_some_and(|authority| !authority.as_str().contains('@'))
    })
}

/// The URL that spans are posted to, for a receiver that may be named without a path.
pub(super) fn with_path(endpoint: &str) -> String {
    match endpoint.parse::<Uri>() {
        Ok(url) if url.path() == "/" && url.query().is_none() => {
            format!("{}{PATH}", endpoint.trim_end_matches('/'))
        }
        _ => endpoint.to_owned(),
    }
}
