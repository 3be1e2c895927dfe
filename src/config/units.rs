//! Durations such as "25s" and sizes such as "64KiB": from text to value, and back to the shortest text of the
//! same value.

use std::time::Duration;

const DURATIONS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const SIZES: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Serde for a [`Duration`], by `#[serde(with = "units::duration")]`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::config) fn deserialize<'de, D>(deserializer: D) -> Result<Duration, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        super::parse_duration(&text)
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &"a duration"))
    }

    pub(in crate::config) fn serialize<S>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        serializer.serialize_str(&super::duration_text(*duration))
    }
}

/// Serde for a number of bytes, by `#[serde(with = "units::size")]`.
pub(super) mod size {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer, ser};

    pub(in crate::config) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<u64>,
    {
        deserializer.deserialize_any(Size(PhantomData))
    }

    pub(in crate::config) fn serialize<S, T>(bytes: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        T: Copy + TryInto<u64>,
    {
        let bytes = (*bytes)
            .try_into()
            .map_err(|_| ser::Error::custom("more bytes than 64 bits can count"))?;
        serializer.serialize_str(&super::size_text(bytes))
    }

    /// Takes text or a whole number.
    struct Size<T>(PhantomData<T>);

    impl<T: TryFrom<u64>> Visitor<'_> for Size<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size")
        }

        fn visit_i64<E: Error>(self, bytes: i64) -> Result<T, E> {
            u64::try_from(bytes)
                .ok()
                .and_then(|bytes| T::try_from(bytes).ok())
                .ok_or_else(|| E::invalid_value(Unexpected::Signed(bytes), &self))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            super::parse_size(text)
                .and_then(|bytes| T::try_from(bytes).ok())
                .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}

/// Serde for an optional number of bytes, by `#[serde(default, with = "units::optional_size")]`.
pub(super) mod optional_size {
    use serde::{Deserializer, Serializer};

    pub(in crate::config) fn deserialize<'de, D>(deserializer: D) -> Result<Option<u64>, D::Error>
    where
        D: Deserializer<'de>,
    {
        super::size::deserialize(deserializer).map(Some)
    }

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub(in crate::config) fn serialize<S>(
        bytes: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        match bytes {
            Some(bytes) => super::size::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// A duration as text in the largest unit without a remainder, such as "25s".
pub(crate) fn duration_text(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // Zero fits any unit, and "0h" would read oddly.
    if millis == 0 {
        "0s".to_owned()
    } else {
        text(millis, &DURATIONS)
    }
}

/// A size as text in the largest unit without a remainder, such as "64KiB".
pub(super) fn size_text(bytes: u64) -> String {
    if bytes == 0 {
        "0B".to_owned()
    } else {
        text(bytes, &SIZES)
    }
}

/// Parses a duration such as "500ms", "25s", "2m" or "1h".
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATIONS).map(Duration::from_millis)
}

/// Parses a size such as "512B", "64KiB", "1MiB" or "1GiB", or a number of bytes without a unit.
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZES).or_else(|| parse(&format!("{text}B"), &SIZES))
}

/// Parses digits with one of the units, into a number of the smallest unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The number in the largest unit without a remainder.
fn text(number: u64, units: &[(&str, u64)]) -> String {
    let (unit, factor) = units
        .iter()
        .find(|(_, factor)| number.is_multiple_of(*factor))
        .expect("the last unit is 1");
    format!("{}{unit}", number / factor)
}
