//! The spans of traces: how many reached the receiver, and how many were lost.

use prometheus::proto::MetricFamily;

use super::families::{counter, counter_by_reason};
use crate::telemetry::export::{SpanCounts, SpanLoss};

pub(super) fn families(spans: &SpanCounts) -> [MetricFamily; 2] {
    [
        counter(
            "switchboard_trace_spans_exported_total",
            "Spans that the OTLP receiver accepted.",
            spans.exported(),
        ),
        counter_by_reason(
            "switchboard_trace_spans_dropped_total",
            "Spans that were lost before the OTLP receiver accepted them.",
            SpanLoss::ALL.map(|loss| (loss.as_str(), spans.lost(loss))),
        ),
    ]
}
