//! Conversions between whole and floating numbers, each with the reason why it is exact enough; and numbers
//! as text.

use std::time::Duration;

/// Exact to 2^53, which no count of a run reaches.
#[allow(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

/// Rounded to a whole number; 0 for a negative one.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates at both ends"
)]
pub(crate) fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Nanoseconds; the largest number from 584 years on.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds as seconds.
pub(crate) fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}

/// Rounded to `places` behind the point.
pub(crate) fn rounded(number: f64, places: i32) -> f64 {
    let factor = 10_f64.powi(places);
    (number * factor).round() / factor
}

/// The median, or 0 of an empty list.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = |numerator: usize| numbers.get(numerator / 2).copied();
    let low = middle(numbers.len().saturating_sub(1)).unwrap_or(0.0);
    f64::midpoint(low, middle(numbers.len()).unwrap_or(low))
}

/// Microseconds as text, in the unit that suits.
pub(crate) fn time_text(us: f64) -> String {
    match us {
        us if us < 100.0 => format!("{us:.1} µs"),
        us if us < 1000.0 => format!("{us:.0} µs"),
        us if us < 100_000.0 => format!("{:.1} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

/// A number as text: commas between thousands, three digits at most behind the point.
pub(crate) fn number_text(value: f64) -> String {
    let places = match value.abs() {
        value if value >= 100.0 || value.fract() == 0.0 => 0,
        value if value >= 10.0 => 1,
        _ => 3,
    };
    let text = format!("{:.places$}", value.abs());
    let (integer, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (at, digit) in integer.chars().enumerate() {
        if at > 0 && (integer.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
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

    #[test]
    fn numbers_and_times_are_written_with_few_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.8671, "0.867"),
            (22.44, "22.4"),
            (1234.5, "1,234"),
            (4_152_353.0, "4,152,353"),
            (-123_456.0, "-123,456"),
        ] {
            assert_eq!(number_text(value), text);
        }
        for (us, text) in [
            (22.44, "22.4 µs"),
            (340.1, "340 µs"),
            (1638.0, "1.6 ms"),
            (250_000.0, "250 ms"),
            (1_800_000.0, "1.8 s"),
        ] {
            assert_eq!(time_text(us), text);
        }
    }
}
