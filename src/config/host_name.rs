//! Names of hosts and domains, as DNS has them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::units;

/// Longest name, without a final dot (RFC 1035, section 3.1).
const LONGEST_NAME_BYTES: usize = 253;

/// Longest part between dots.
const LONGEST_LABEL_BYTES: usize = 63;

/// Why a text is not the name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// Nothing there, or nothing between two dots.
    #[error("a part of it is empty")]
    EmptyLabel,
    /// Too long for DNS.
    #[error(
        "it is longer than {LONGEST_NAME_BYTES} characters, or a part of it than {LONGEST_LABEL_BYTES}"
    )]
    Long,
    /// DNS knows letters, digits and hyphens; `_` occurs in practice.
    #[error(
        "`{0}` is not in names: letters, digits, `-` and `_` are, and `-` neither first nor last"
    )]
    Character(char),
    /// An address with a mistake, more likely than a name.
    #[error("it ends in a number, like an address, and is none")]
    Number,
}

/// A host or domain in DNS, mDNS or /etc/hosts: `nas`, `nas.lan`, `nas.lan.`; lower case. A
/// final dot says that no search domain is appended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    /// As it was written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the final dot.
    pub fn without_dot(&self) -> &str {
        self.0.strip_suffix('.').unwrap_or(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > LONGEST_NAME_BYTES {
            return Err(HostNameError::Long);
        }
        for label in name.split('.') {
            if label.is_empty() {
                return Err(HostNameError::EmptyLabel);
            }
            if label.len() > LONGEST_LABEL_BYTES {
                return Err(HostNameError::Long);
            }
            let is_wrong = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_';
            if let Some(wrong) = label.chars().find(|&c| is_wrong(c)) {
                return Err(HostNameError::Character(wrong));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(HostNameError::Character('-'));
            }
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HostNameError::Number);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = units::Quoted("a domain in quotes, such as \"example.org\"");
        let text = deserializer.deserialize_any(wanted)?;
        text.parse().map_err(|error| {
            de::Error::custom(format_args!(
                "`{text}` is not a domain: {error}; right would be \"example.org\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_hyphens() {
        for (text, name) in [
            ("nas", "nas"),
            ("NAS.Lan", "nas.lan"),
            ("nas.lan.", "nas.lan."),
            ("my-host.local", "my-host.local"),
            ("4ever.example.org", "4ever.example.org"),
            ("a_b.example", "a_b.example"),
        ] {
            let parsed: HostName = text.parse().expect(text);
            assert_eq!(parsed.as_str(), name);
        }
        let long = ["a23456789"; 26].join(".");
        for (text, error) in [
            ("", HostNameError::EmptyLabel),
            (".", HostNameError::EmptyLabel),
            ("a..b", HostNameError::EmptyLabel),
            (".a", HostNameError::EmptyLabel),
            ("a b", HostNameError::Character(' ')),
            ("nas/x", HostNameError::Character('/')),
            ("näs", HostNameError::Character('ä')),
            ("-a", HostNameError::Character('-')),
            ("a-.b", HostNameError::Character('-')),
            ("192.168.1.300", HostNameError::Number),
            ("12304", HostNameError::Number),
            (&"a".repeat(64), HostNameError::Long),
            (&long, HostNameError::Long),
        ] {
            assert_eq!(text.parse::<HostName>(), Err(error), "{text}");
        }
        assert_eq!(long.len(), 259);
    }
}
