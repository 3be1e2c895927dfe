//! The `OpenMetrics` text format 1.0, which the `prometheus` crate does not write. It has what the text format of
//! Prometheus lacks: exemplars, which lead from a bucket of a histogram to the trace of a message in it.

use std::fmt::{Display, Formatter, Result, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::TraceId;
use parking_lot::Mutex;
use prometheus::proto::{Bucket, LabelPair, MetricFamily, MetricType};

use super::shards::{BOUNDS_US, bucket_of, seconds};

/// The media type.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The units of the relay's metrics. A family with a unit ends with it.
const UNITS: [&str; 2] = ["seconds", "bytes"];

/// The newest exemplar of each bucket of a histogram. Only traced messages touch it.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<ByBucket>);

pub(super) type ByBucket = [Option<Exemplar>; BOUNDS_US.len() + 1];

/// The name of a histogram, and its exemplars.
pub(super) type ExemplarsOf<'a> = (&'a str, ByBucket);

/// The observation of a traced message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    trace_id: TraceId,
    us: u64,
    at: SystemTime,
}

impl Exemplars {
    /// Keeps an observation in place of the one before it, if the spans of its trace are recorded.
    pub(super) fn keep(&self, trace_id: Option<TraceId>, us: u64) {
        // Where another thread keeps one at this moment, that one is as good.
        if let (Some(trace_id), Some(mut kept)) = (trace_id, self.0.try_lock()) {
            let at = SystemTime::now();
            kept[bucket_of(us)] = Some(Exemplar { trace_id, us, at });
        }
    }

    pub(super) fn newest(&self) -> ByBucket {
        *self.0.lock()
    }
}

/// Writes families, with the exemplars of the histograms that have some.
pub(super) fn encode(families: &[MetricFamily], exemplars: &[ExemplarsOf<'_>]) -> String {
    let mut text = String::new();
    for family in families {
        let of_family = exemplars.iter().find(|(name, _)| *name == family.name());
        let exemplars = of_family.map_or(&[][..], |(_, exemplars)| exemplars);
        write_family(&mut text, family, exemplars).expect("a String takes everything");
    }
    text + "# EOF\n"
}

fn write_family(out: &mut String, family: &MetricFamily, exemplars: &[Option<Exemplar>]) -> Result {
    let kind = family.get_field_type();
    // The suffix of a counter belongs to its sample and not to its family.
    let (name, kind_name) = match kind {
        MetricType::COUNTER => (family.name().trim_end_matches("_total"), "counter"),
        MetricType::HISTOGRAM => (family.name(), "histogram"),
        _ => (family.name(), "gauge"),
    };
    writeln!(out, "# TYPE {name} {kind_name}")?;
    let unit = name.rsplit_once('_').map(|(_, last)| last);
    if let Some(unit) = unit.filter(|last| UNITS.contains(last)) {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    writeln!(out, "# HELP {name} {}", Escaped(family.help()))?;
    for metric in family.get_metric() {
        let labels = Labels(metric.get_label(), None);
        match kind {
            MetricType::COUNTER => {
                let count = metric.get_counter().get_value();
                writeln!(out, "{name}_total{labels} {count}")?;
            }
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let (count, sum) = (histogram.get_sample_count(), histogram.get_sample_sum());
                let mut last = Bucket::default();
                last.set_upper_bound(f64::INFINITY);
                last.set_cumulative_count(count);
                for (index, bucket) in histogram.get_bucket().iter().chain([&last]).enumerate() {
                    let labels = Labels(metric.get_label(), Some(bucket.upper_bound()));
                    write!(out, "{name}_bucket{labels} {}", bucket.cumulative_count())?;
                    if let Some(Some(exemplar)) = exemplars.get(index) {
                        write!(out, " {exemplar}")?;
                    }
                    out.push('\n');
                }
                writeln!(
                    out,
                    "{name}_count{labels} {count}\n{name}_sum{labels} {sum}"
                )?;
            }
            _ => writeln!(out, "{name}{labels} {}", metric.get_gauge().get_value())?,
        }
    }
    Ok(())
}

impl Display for Exemplar {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (trace_id, value) = (self.trace_id, seconds(self.us));
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = at.as_secs_f64();
        write!(f, "# {{trace_id=\"{trace_id}\"}} {value} {at:.3}")
    }
}

/// The labels of a sample, with the bound of a bucket.
struct Labels<'a>(&'a [LabelPair], Option<f64>);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self(pairs, bound) = self;
        let mut separator = "{";
        for pair in *pairs {
            write!(
                f,
                "{separator}{}=\"{}\"",
                pair.name(),
                Escaped(pair.value())
            )?;
            separator = ",";
        }
        if let Some(bound) = bound {
            write!(f, "{separator}le=\"{}\"", bound_label(*bound))?;
            separator = ",";
        }
        f.write_str(if separator == "{" { "" } else { "}" })
    }
}

/// A bound as all exposers of this format write it, because it becomes a label: `5e-05`, `0.0001`, `1.0`, `+Inf`.
fn bound_label(bound: f64) -> String {
    if bound.is_infinite() {
        return "+Inf".to_owned();
    }
    let text = format!("{bound:?}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
        None => text,
    }
}

/// A text inside quotes or behind `# HELP`.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.0.chars().try_for_each(|character| match character {
            '\n' => f.write_str("\\n"),
            '\\' | '"' => write!(f, "\\{character}"),
            other => f.write_char(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::families::{counter, counter_by_reason, gauge, histogram};
    use super::*;

    #[test]
    fn families_are_written_as_the_format_asks() {
        let mut waits = prometheus::proto::Histogram::default();
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(0.000_05);
        bucket.set_cumulative_count(2);
        waits.set_bucket(vec![bucket]);
        waits.set_sample_count(3);
        waits.set_sample_sum(1.5);
        let families = [
            counter("read_bytes_total", "Bytes\nread from \"C:\\\".", 7),
            counter_by_reason("drops_total", "Drops.", [("full", 1)]),
            gauge("users", "Users.", 3),
            histogram("wait_seconds", "Waits.", waits),
        ];
        let exemplars = Exemplars::default();
        let trace_id = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap();
        exemplars.keep(None, 1);
        exemplars.keep(Some(trace_id), 7);
        exemplars.keep(Some(trace_id), 20);
        let mut newest = exemplars.newest();
        newest[0].as_mut().unwrap().at = UNIX_EPOCH + std::time::Duration::from_millis(1_500);
        assert_eq!(
            encode(&families, &[("wait_seconds", newest)]),
            r#"# TYPE read_bytes counter
# UNIT read_bytes bytes
# HELP read_bytes Bytes\nread from \"C:\\\".
read_bytes_total 7
# TYPE drops counter
# HELP drops Drops.
drops_total{reason="full"} 1
# TYPE users gauge
# HELP users Users.
users 3
# TYPE wait_seconds histogram
# UNIT wait_seconds seconds
# HELP wait_seconds Waits.
wait_seconds_bucket{le="5e-05"} 2 # {trace_id="0af7651916cd43dd8448eb211c80319c"} 0.00002 1.500
wait_seconds_bucket{le="+Inf"} 3
wait_seconds_count 3
wait_seconds_sum 1.5
# EOF
"#
        );
        assert_eq!(
            [0.0001, 1.0, 2.5].map(bound_label),
            ["0.0001", "1.0", "2.5"]
        );
    }
}
