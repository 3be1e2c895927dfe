//! The formats in which a scrape returns the metrics.

use prometheus::proto::MetricFamily;
use prometheus::{TEXT_FORMAT, TextEncoder};

use super::open_metrics::{self, ExemplarsOf};

/// A format in which a scrape returns the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// The text format of Prometheus, version 0.0.4.
    Text,
    /// `OpenMetrics` 1.0, which has exemplars.
    OpenMetrics,
}

impl Exposition {
    /// Its media type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => TEXT_FORMAT,
            Self::OpenMetrics => open_metrics::CONTENT_TYPE,
        }
    }

    pub(super) fn write(self, families: &[MetricFamily], exemplars: &[ExemplarsOf<'_>]) -> String {
        match self {
            Self::Text => TextEncoder::new()
                .encode_to_string(families)
                .expect("families that all have a name and a value"),
            Self::OpenMetrics => open_metrics::encode(families, exemplars),
        }
    }
}
