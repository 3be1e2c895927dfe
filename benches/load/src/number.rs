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

/// The one in the middle, or the mean of the two there; 0 of nothing.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = |numerator: usize| numbers.get(numerator / 2).copied();
    let low = middle(numbers.len().saturating_sub(1)).unwrap_or(0.0);
    f64::midpoint(low, middle(numbers.len()).unwrap_or(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        for (numbers, expected) in [
            (vec![], 0.0),
            (vec![3.0], 3.0),
            (vec![9.0, 1.0, 2.0], 2.0),
            (vec![4.0, 1.0, 2.0, 9.0], 3.0),
        ] {
            assert!((median(numbers) - expected).abs() < 1e-9);
        }
    }
}
