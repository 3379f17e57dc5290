//! The narinfo's `URL`: RFC 3986 section 4.2, narrowed to what stays below the cache.

use super::NarinfoError;
use crate::format::{NarHash, StorePathHash};

/// Longest reference, in bytes. The longest that we print has 97.
const MAX_URL_BYTES: usize = 1024;

/// Why a text is not a reference to a NAR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Longer than any reference to a NAR.
    #[error("{length} bytes are more than {MAX_URL_BYTES}")]
    TooLong {
        /// Bytes in the text.
        length: usize,
    },
    /// A byte that is not printable ASCII, or a backslash, or a `#`.
    #[error("byte {byte:#04x} at {position} is not allowed")]
    Character {
        /// The offending byte.
        byte: u8,
        /// Its offset in the text.
        position: usize,
    },
    /// It has a scheme (`http:`).
    #[error("it is not relative")]
    Scheme,
    /// A segment of the path is empty (also a leading slash), `.` or `..`.
    #[error("a segment of the path is empty, `.` or `..`")]
    Segment,
    /// The path has a `%` without two hexadecimal digits, or one that stands for a dot, a
    /// slash, a backslash or a control character.
    #[error("the path has a percent-encoding that is malformed or not allowed")]
    Escape,
}

/// A relative reference to a NAR: printable ASCII, no scheme, no authority, no leading
/// slash, no `.` or `..` segment (also not percent-encoded), at most 1,024 bytes.
/// A query may follow the path; it is not looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarUrl(Box<str>);

impl NarUrl {
    /// Accepts a relative reference that stays below the cache's root.
    pub fn parse(text: &str) -> Result<Self, NarinfoError> {
        match check(text) {
            Ok(()) => Ok(Self(text.into())),
            Err(error) => Err(NarinfoError::Url(error)),
        }
    }

    /// `PREFIXnar/HASH-NARHASH.nar`, the form of our own caches; the prefix is empty or ends
    /// in a slash.
    pub fn of(prefix: &'static str, hash: StorePathHash, nar_hash: &NarHash) -> Self {
        Self(format!("{prefix}nar/{hash}-{nar_hash}.nar").into())
    }

    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(text: &str) -> Result<(), UrlError> {
    if text.len() > MAX_URL_BYTES {
        return Err(UrlError::TooLong { length: text.len() });
    }
    let refused = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b'#');
    if let Some(position) = text.bytes().position(refused) {
        return Err(UrlError::Character {
            byte: text.as_bytes()[position],
            position,
        });
    }

    let path = text.split('?').next().unwrap_or_default();
    for (index, segment) in path.split('/').enumerate() {
        // A colon makes a scheme of what is before the first slash only.
        if index == 0 && segment.contains(':') {
            return Err(UrlError::Scheme);
        }
        if matches!(segment, "" | "." | "..") {
            return Err(UrlError::Segment);
        }
    }
    check_escapes(path)
}

fn check_escapes(path: &str) -> Result<(), UrlError> {
    for escape in path.split('%').skip(1) {
        let byte = escape.get(..2).and_then(|digits| {
            data_encoding::HEXLOWER_PERMISSIVE
                .decode(digits.as_bytes())
                .ok()
        });
        match byte.as_deref() {
            Some([byte]) if !byte.is_ascii_control() && !matches!(byte, b'.' | b'/' | b'\\') => {}
            _ => return Err(UrlError::Escape),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<(), UrlError> {
        match NarUrl::parse(text) {
            Ok(url) => {
                assert_eq!(url.as_str(), text);
                Ok(())
            }
            Err(NarinfoError::Url(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn takes_what_caches_send() {
        for good in [
            "nar/1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3.nar.xz",
            "nar/ab3li50xq0nl4q5lxdyinb8w8y13my9s-1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3.nar",
            "nar/x.nar?hash=ab3li50xq0nl4q5lxdyinb8w8y13my9s",
            "nar/x.nar?redirect=../..//%2e:%zz?",
            "local/nar/L25peC9zdG9yZS8=.nar",
            "v2/remote/192.168.0.1/12304/hash/a:b",
            "a%20b%25.nar",
            "...",
            "..a/.b",
            &"x".repeat(1024),
        ] {
            assert_eq!(parse(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn refuses_what_leaves_the_cache() {
        for bad in [
            "http://host/nar/x",
            "http:x",
            "a:b/c",
            "file:///etc/passwd",
            ":",
        ] {
            assert_eq!(parse(bad), Err(UrlError::Scheme), "{bad}");
        }
        for bad in [
            "", "/", "/nar/x", "//host/x", "nar//x", "nar/", "?x", ".", "..", "../x", "nar/../x",
            "nar/./x", "nar/..?x",
        ] {
            assert_eq!(parse(bad), Err(UrlError::Segment), "{bad}");
        }
        for bad in [
            "%2e%2e/x",
            "nar/%2E./x",
            "nar/%2fx",
            "nar/%2Fx",
            "nar%5cx",
            "nar/%",
            "nar/%2",
            "nar/%zz",
            "nar/%0a",
            "nar/%00",
            "a%7f",
            "%%41",
            "%4?1",
        ] {
            assert_eq!(parse(bad), Err(UrlError::Escape), "{bad}");
        }
        for bad in [
            "nar/x y", "nar\\x", "nar/x#y", "nar/ü", "nar/\n", "nar/\0", "x?\r", "x?#",
        ] {
            assert!(
                matches!(parse(bad), Err(UrlError::Character { .. })),
                "{bad:?}"
            );
        }
        assert_eq!(
            parse(&"x".repeat(1025)),
            Err(UrlError::TooLong { length: 1025 })
        );
    }

    proptest! {
        #[test]
        fn never_panics(text: String, close in "[a%.:/?0-2ef]{0,16}") {
            NarUrl::parse(&text).ok();
            NarUrl::parse(&close).ok();
        }
    }
}
