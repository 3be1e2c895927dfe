//! Builds Prometheus families from plain numbers. Knows no metric by name.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::{self, MetricFamily, MetricType};
use prometheus::{IntCounter, IntGauge, Registry};

/// Registers a collector and returns a handle that counts into it.
pub(super) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("a family's name and labels are constants");
    registry
        .register(Box::new(collector.clone()))
        .expect("every family is registered once");
    collector
}

/// Registers a counter without labels.
pub(super) fn registered_counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

/// Registers a gauge without labels.
pub(super) fn registered_gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

/// A gauge with one value.
pub(super) fn gauge(name: &str, help: &str, value: u64) -> MetricFamily {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(float(value));
    let metric = proto::Metric::from_gauge(gauge);
    family(name, help, MetricType::GAUGE, vec![metric])
}

/// A counter without labels.
pub(super) fn counter(name: &str, help: &str, count: u64) -> MetricFamily {
    let metric = counter_metric(count);
    family(name, help, MetricType::COUNTER, vec![metric])
}

/// A counter of time without labels.
pub(super) fn counter_of_seconds(name: &str, help: &str, time: Duration) -> MetricFamily {
    let mut counter = proto::Counter::default();
    counter.set_value(time.as_secs_f64());
    let mut metric = proto::Metric::default();
    metric.set_counter(counter);
    family(name, help, MetricType::COUNTER, vec![metric])
}

/// A counter with one series for each `reason`.
pub(super) fn counter_by_reason<const N: usize>(
    name: &str,
    help: &str,
    counts: [(&str, u64); N],
) -> MetricFamily {
    let metrics = counts.map(|(reason, count)| {
        let mut label = proto::LabelPair::default();
        label.set_name("reason".to_owned());
        label.set_value(reason.to_owned());
        let mut metric = counter_metric(count);
        metric.set_label(vec![label]);
        metric
    });
    family(name, help, MetricType::COUNTER, metrics.into())
}

fn counter_metric(count: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(float(count));
    let mut metric = proto::Metric::default();
    metric.set_counter(counter);
    metric
}

/// A histogram without labels.
pub(super) fn histogram(name: &str, help: &str, histogram: proto::Histogram) -> MetricFamily {
    let mut metric = proto::Metric::default();
    metric.set_histogram(histogram);
    family(name, help, MetricType::HISTOGRAM, vec![metric])
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// A count as Prometheus stores it.
#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other number; exact to 2^53"
)]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
