//! A rule: which values of a key are allowed, alone or together with other keys. A rule for a number also tells
//! whether the number is less safe than the default.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{duration_text, size_text};

/// The highest count: more than any setting needs, and so low that the memory reserved for each piece cannot
/// overflow a size.
pub(super) const COUNT_MAX: u64 = 1 << 20;
pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const ONE_MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);

/// A condition on one key, or on one key with others.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) key: &'static str,
    /// The other keys that the condition looks at.
    pub(super) with: &'static [&'static str],
    /// The allowed values, in words.
    pub(super) allowed: String,
    pub(super) is_met: bool,
    /// Whether a rate has a limit; not set for a key that is not a rate.
    pub(super) is_limited: Option<bool>,
    amount: Option<Amount>,
    warns_above_default: bool,
}

/// A number, and the number as the settings write it.
#[derive(Debug)]
struct Amount {
    number: u64,
    text: String,
}

impl Rule {
    pub(super) fn new(key: &'static str, allowed: impl Into<String>, is_met: bool) -> Self {
        Self {
            key,
            with: &[],
            allowed: allowed.into(),
            is_met,
            is_limited: None,
            amount: None,
            warns_above_default: false,
        }
    }

    /// Names the other keys that the condition looks at.
    pub(super) fn with(self, with: &'static [&'static str]) -> Self {
        Self { with, ..self }
    }

    /// Has [`Self::warning`] tell where the number is above the default.
    pub(super) fn warn_above_default(self) -> Self {
        Self {
            warns_above_default: true,
            ..self
        }
    }

    /// Marks the key as a rate, with or without a limit.
    pub(super) fn rate(self, is_limited: bool) -> Self {
        Self {
            is_limited: Some(is_limited),
            ..self
        }
    }

    /// What to tell the operator of a number above that of `default`, the same rule of the default settings.
    pub(super) fn warning(&self, default: &Self) -> Option<String> {
        let (Some(found), Some(default)) = (&self.amount, &default.amount) else {
            return None;
        };
        let is_above = self.warns_above_default && found.number > default.number;
        let (key, found, default) = (self.key, &found.text, &default.text);
        is_above.then(|| format!("{key} is {found}, which is above the default of {default}"))
    }

    fn number(
        key: &'static str,
        number: u64,
        range: &RangeInclusive<u64>,
        text: fn(u64) -> String,
        kind: &str,
    ) -> Self {
        let (least, most) = (text(*range.start()), text(*range.end()));
        let amount = Some(Amount {
            number,
            text: text(number),
        });
        let allowed = format!("{kind} from {least} to {most}");
        Self {
            amount,
            ..Self::new(key, allowed, range.contains(&number))
        }
    }
}

/// A whole number from 1.
pub(super) fn count(key: &'static str, count: impl TryInto<u64>, most: u64) -> Rule {
    let count = count.try_into().unwrap_or(u64::MAX);
    let text = |count: u64| count.to_string();
    Rule::number(key, count, &(1..=most), text, "a whole number")
}

/// A number of bytes.
pub(super) fn size(
    key: &'static str,
    bytes: impl TryInto<u64>,
    range: RangeInclusive<u64>,
) -> Rule {
    let bytes = bytes.try_into().unwrap_or(u64::MAX);
    let kind = "a size such as \"512B\", \"64KiB\" or \"1MiB\", or bytes as a whole number,";
    Rule::number(key, bytes, &range, size_text, kind)
}

/// The bounds of what waits for peers: messages and bytes for one, and bytes for all. One peer's bytes hold the
/// largest message, which takes `added` bytes more than `limits.message_bytes`. All bytes hold those of one peer.
pub(super) fn waiting(
    keys: &'static [&'static str; 3],
    [messages, bytes, total_bytes]: [u64; 3],
    message_bytes: usize,
    added: u64,
) -> [Rule; 5] {
    let [messages_key, bytes_key, total_key] = *keys;
    let largest = (message_bytes as u64).saturating_add(added);
    let at_least_largest = format!("at least limits.message_bytes + {added} bytes");
    let at_least_one = format!("at least {bytes_key}");
    [
        count(messages_key, messages, COUNT_MAX).warn_above_default(),
        size(bytes_key, bytes, 1..=GIB).warn_above_default(),
        Rule::new(bytes_key, at_least_largest, bytes >= largest).with(&["limits.message_bytes"]),
        size(total_key, total_bytes, 1..=1024 * GIB).warn_above_default(),
        Rule::new(total_key, at_least_one, total_bytes >= bytes).with(&keys[1..2]),
    ]
}

/// A duration, compared to the millisecond.
pub(super) fn time(key: &'static str, duration: Duration, range: RangeInclusive<Duration>) -> Rule {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let range = millis(*range.start())..=millis(*range.end());
    let text = |millis| duration_text(Duration::from_millis(millis));
    let kind = "a duration such as \"500ms\", \"25s\" or \"2m\",";
    Rule::number(key, millis(duration), &range, text, kind)
}
