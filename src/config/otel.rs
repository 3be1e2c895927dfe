//! The standard variables of OpenTelemetry, which other programs share. Each stands for a key of `[tracing]` and
//! wins over `SWITCHBOARD__…`. The OpenTelemetry crates read those without a key here themselves (the resource,
//! the headers, the batches).

use std::collections::BTreeMap;

use hyper::Uri;

use super::error::SettingsProblem;

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const QUEUE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
/// The variable for spans wins over the one for all signals.
const PROTOCOL: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const TIMEOUT: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];

/// The path of spans at an OTLP receiver, and the default receiver (OTLP exporter specification).
const PATH: &str = "/v1/traces";
const DEFAULT_ENDPOINT: &str = "http://localhost:4318/v1/traces";

/// A value of a key of `[tracing]`, and the variable that has it.
pub(super) struct VariableValue {
    pub(super) variable: &'static str,
    pub(super) key: &'static str,
    pub(super) text: String,
}

/// Whether a variable stands for a key of `[tracing]`.
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

/// Whether the variables turn tracing off, even if another source turns it on.
pub(super) fn is_off(variables: &BTreeMap<String, String>) -> bool {
    let is = |name, off| find(variables, &[name]).is_some_and(|(_, value)| value == off);
    is(DISABLED, "true") || is(EXPORTER, "none")
}

/// The values of the variables. `has_endpoint` tells whether another source sets `tracing.otlp_endpoint`. If no
/// source turns tracing on, the variables may be meant for other programs: they are ignored and not checked.
pub(super) fn values(
    variables: &BTreeMap<String, String>,
    has_endpoint: bool,
    problems: &mut Vec<SettingsProblem>,
) -> Vec<VariableValue> {
    let find = |names: &[&'static str]| find(variables, names);
    let mut values = Vec::new();
    if is_off(variables) {
        return values;
    }
    let mut add = |variable, key, text: String| {
        values.push(VariableValue {
            variable,
            key,
            text,
        });
    };
    let mut refuse = |variable: &str, found: &str, allowed: &str| {
        problems.push(SettingsProblem::Value {
            origin: variable.to_owned(),
            key: "tracing".to_owned(),
            found: format!("{found:?}"),
            allowed: allowed.to_owned(),
        });
    };
    match endpoint(variables, has_endpoint) {
        Some((variable, url)) => add(variable, "otlp_endpoint", url),
        None if !has_endpoint => return Vec::new(),
        None => {}
    }
    if let Some((variable, other)) = find(&[EXPORTER])
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
            add(variable, "export_timeout", format!("{millis}ms"));
        } else {
            refuse(variable, millis, "milliseconds as a whole number");
        }
    }
    if let Some((variable, spans)) = find(&[QUEUE]) {
        add(variable, "queue_spans", spans.to_owned());
    }
    if let Some((variable, sampler)) = find(&[SAMPLER]) {
        // tracing.trust_clients decides whether the parent counts.
        match sampler.strip_prefix("parentbased_").unwrap_or(sampler) {
            "always_on" => add(variable, "sample_ratio", "1".to_owned()),
            "always_off" => add(variable, "sample_ratio", "0".to_owned()),
            "traceidratio" => {
                let (variable, ratio) = find(&[SAMPLER_ARG]).unwrap_or((variable, "1"));
                add(variable, "sample_ratio", ratio.to_owned());
            }
            _ => refuse(
                variable,
                sampler,
                "always_on, always_off, traceidratio, or one of them with the prefix parentbased_",
            ),
        }
    }
    values
}

/// The address that spans go to, with the variable that sets it. A variable for traces alone comes before the general
/// one; the default address counts only where the settings have none.
fn endpoint(
    variables: &BTreeMap<String, String>,
    has_endpoint: bool,
) -> Option<(&'static str, String)> {
    if let Some((variable, url)) = find(variables, &[TRACES_ENDPOINT]) {
        return Some((variable, url.to_owned()));
    }
    if let Some((variable, url)) = find(variables, &[ENDPOINT]) {
        return Some((variable, format!("{}{PATH}", url.trim_end_matches('/'))));
    }
    match find(variables, &[EXPORTER])? {
        (variable, "otlp") if !has_endpoint => Some((variable, DEFAULT_ENDPOINT.to_owned())),
        _ => None,
    }
}

/// The first of these variables that is not empty.
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

/// The URL that spans are posted to. A receiver without a path gets the standard path.
pub(super) fn with_path(endpoint: &str) -> String {
    match endpoint.parse::<Uri>() {
        Ok(url) if url.path() == "/" && url.query().is_none() => {
            format!("{}{PATH}", endpoint.trim_end_matches('/'))
        }
        _ => endpoint.to_owned(),
    }
}
