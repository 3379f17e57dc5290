//! Durations (`300ms 5s 1min 1h`) and sizes (`64KiB 40MiB`) as the config file spells them.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number followed by a known unit.
    #[error(
        "`{text}` is not a duration; right would be a whole number with ms, s, min or h: \"300ms\", \"5s\", \"1min\", \"1h\""
    )]
    Duration {
        /// What was written.
        text: String,
    },
    /// Not a whole number followed by a known unit.
    #[error(
        "`{text}` is not a size; right would be a whole number with B, KiB, MiB, GiB or TiB: \"64KiB\", \"40MiB\""
    )]
    Size {
        /// What was written.
        text: String,
    },
}

const DURATION_UNITS_MS: [(&str, u64); 4] =
    [("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS_BYTES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A duration with the file's spelling; whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Spelled(pub(super) Duration);

/// Bytes, spelled with a binary unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes where memory is meant; saturates on a 32-bit machine.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Parses `8MiB`.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        scaled(text, &SIZE_UNITS_BYTES)
            .map(Self)
            .ok_or_else(|| UnitError::Size { text: text.into() })
    }
}

/// Parses `300ms`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    scaled(text, &DURATION_UNITS_MS)
        .map(Duration::from_millis)
        .ok_or_else(|| UnitError::Duration { text: text.into() })
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

fn print(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    match units
        .iter()
        .find(|(_, scale)| value != 0 && value.is_multiple_of(*scale))
    {
        Some((name, scale)) => write!(f, "{}{name}", value / scale),
        None => f.write_str(zero),
    }
}

impl fmt::Display for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(
            f,
            u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX),
            &DURATION_UNITS_MS,
            "0s",
        )
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &SIZE_UNITS_BYTES, "0B")
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(Quoted("a size in quotes, such as \"40MiB\""))?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// `#[serde(with)]` for a `Duration`.
pub(super) mod duration {
    use super::{Deserializer, Duration, Quoted, Serializer, Spelled, de, parse_duration};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Spelled(*value))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text =
            deserializer.deserialize_any(Quoted("a duration in quotes, such as \"300ms\""))?;
        parse_duration(&text).map_err(de::Error::custom)
    }
}

/// Takes a string and says what it wants when given anything else.
pub(super) struct Quoted(pub(super) &'static str);

impl de::Visitor<'_> for Quoted {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_four_units() {
        for (text, ms) in [
            ("300ms", 300),
            ("5s", 5_000),
            ("1min", 60_000),
            ("2h", 7_200_000),
            ("0s", 0),
            ("1 min", 60_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1d",
            "5 sec",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("40MiB", 41_943_040),
            ("1B", 1),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "64", "64kb", "64MB", "-1KiB", "99999999999999TiB"] {
            assert!(ByteSize::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(ms in 0_u64..1 << 50, bytes: u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&Spelled(duration).to_string()), Ok(duration));
            prop_assert_eq!(ByteSize::parse(&ByteSize(bytes).to_string()), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_panics(text: String) {
            parse_duration(&text).ok();
            ByteSize::parse(&text).ok();
        }
    }
}
