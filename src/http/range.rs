//! The `Range` header of a request, RFC 9110 section 14, for a body of known size.

use std::ops::Range;

/// What part of a body to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it: no range, or one that may be ignored (another unit, several ranges, not
    /// well-formed).
    Whole,
    /// These bytes; not empty.
    Bytes(Range<u64>),
    /// Bytes that do not exist.
    Unsatisfiable,
}

impl Part {
    /// The part that `header` asks for, of `size` bytes.
    pub fn parse(header: &[u8], size: u64) -> Self {
        Self::requested(header, size).unwrap_or(Self::Whole)
    }

    fn requested(header: &[u8], size: u64) -> Option<Self> {
        let (unit, set) = std::str::from_utf8(header).ok()?.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        let range = match (position(first)?, position(last)?) {
            (None, None) => return None,
            (None, Some(suffix)) => size.saturating_sub(suffix)..size,
            (Some(first), None) => first..size,
            (Some(first), Some(last)) if last < first => return None,
            (Some(first), Some(last)) => first..last.saturating_add(1).min(size),
        };
        Some(if range.is_empty() {
            Self::Unsatisfiable
        } else {
            Self::Bytes(range)
        })
    }
}

/// Digits alone, or nothing. A number beyond u64 is beyond any body.
fn position(text: &str) -> Option<Option<u64>> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_range_is_honoured() {
        for (header, part) in [
            ("bytes=0-", Part::Bytes(0..100)),
            ("bytes=7-", Part::Bytes(7..100)),
            ("bytes=7-9", Part::Bytes(7..10)),
            ("bytes=7-7", Part::Bytes(7..8)),
            ("bytes=90-1000", Part::Bytes(90..100)),
            ("bytes=-10", Part::Bytes(90..100)),
            ("bytes=-1000", Part::Bytes(0..100)),
            ("Bytes= 1-2", Part::Bytes(1..3)),
            ("bytes=0-99999999999999999999999", Part::Bytes(0..100)),
            ("bytes=0-18446744073709551615", Part::Bytes(0..100)),
            ("bytes=100-", Part::Unsatisfiable),
            ("bytes=100-200", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
        ] {
            assert_eq!(Part::parse(header.as_bytes(), 100), part, "{header}");
        }
    }

    #[test]
    fn what_is_not_one_range_of_bytes_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "bytes=5-4",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=\u{661}-",
        ] {
            assert_eq!(Part::parse(header.as_bytes(), 100), Part::Whole, "{header}");
        }
        assert_eq!(Part::parse(b"\xff", 100), Part::Whole);
    }

    proptest! {
        #[test]
        fn a_part_is_always_within_the_body(header: Vec<u8>, digits in "bytes=[0-9]{0,21}-[0-9]{0,21}", size: u64) {
            for header in [header.as_slice(), digits.as_bytes()] {
                if let Part::Bytes(range) = Part::parse(header, size) {
                    prop_assert!(range.start < range.end && range.end <= size);
                }
            }
        }
    }
}
