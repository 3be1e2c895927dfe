//! Conversions between whole and floating numbers, in one place each with its reason.

use std::time::Duration;

/// Exact to 2^53, which no count of a run reaches.
#[allow(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

/// Rounded; nothing below zero.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates at both ends"
)]
pub(super) fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Up to 584 years.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds as seconds.
pub(super) fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}

/// To `places` behind the point.
pub(super) fn rounded(number: f64, places: i32) -> f64 {
    let factor = 10_f64.powi(places);
    (number * factor).round() / factor
}
