//! The narinfo: a binary cache's description of one store path.
//!
//! Spec: `libstore/nar-info.cc` of Nix, and what the old peerix prints and reads (a line is
//! split at its first colon, a line without one crashes it). Lines of `NAME: VALUE`, each ended
//! by a line feed. A reader bounds the whole text before it is parsed, and nothing else bounds how
//! many references and signatures there are.

use std::str::Utf8Error;

use super::{
    ContentAddress, NarHash, PathInfo, Signature, StoreDir, StorePath,
    content_address::ContentAddressError, signature::KeyError, store_path::StorePathError,
};

mod url;

pub use url::{NarUrl, UrlError};

/// Longest name of a compression method, in bytes.
const MAX_COMPRESSION_BYTES: usize = 32;

/// Why a text is not a narinfo that we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    /// The text is not UTF-8.
    #[error("the narinfo is not UTF-8")]
    NotUtf8(#[source] Utf8Error),
    /// A line is not `NAME: VALUE`, or is blank before the end, or has a carriage return.
    #[error("line {number} of the narinfo is not `NAME: VALUE`")]
    Line {
        /// 1-based line number.
        number: usize,
    },
    /// A field is not there.
    #[error("the narinfo has no {field}")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A field that may be there once is there again.
    #[error("the narinfo has more than one {field}")]
    Duplicate {
        /// The field's name.
        field: &'static str,
    },
    /// A store path, or a base name, is malformed.
    #[error("{field} of the narinfo is not a store path")]
    Path {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: StorePathError,
    },
    /// `NarHash` is malformed.
    #[error("NarHash of the narinfo is not a hash")]
    NarHash(#[source] StorePathError),
    /// A size is not a decimal number of up to 64 bits.
    #[error("{field} of the narinfo is not a number")]
    Number {
        /// The field's name.
        field: &'static str,
    },
    /// `NarSize` is 0, which no NAR has.
    #[error("NarSize of the narinfo is 0")]
    EmptyNar,
    /// `URL` is malformed.
    #[error("URL of the narinfo is not a relative reference below the cache")]
    Url(#[source] UrlError),
    /// `Compression` is no name.
    #[error("Compression of the narinfo is not a name")]
    Compression,
    /// A `Sig` is malformed.
    #[error("a Sig of the narinfo is not a signature")]
    Signature(#[source] KeyError),
    /// `CA` is malformed.
    #[error("CA of the narinfo is not a content address")]
    ContentAddress(#[source] ContentAddressError),
}

/// How the NAR behind `URL` is compressed. No `Compression` line means bzip2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compression {
    /// The NAR as it is.
    None,
    /// Zstandard.
    Zstd,
    /// Another method, by its name; we cannot read it.
    Other(Box<str>),
}

impl Compression {
    /// The method's name, as in the `Compression` field.
    fn as_str(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Other(name) => name,
        }
    }

    fn parse(text: &str) -> Result<Self, NarinfoError> {
        let is_name_byte =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        match text {
            "none" => Ok(Self::None),
            "zstd" => Ok(Self::Zstd),
            "" => Ok(Self::default()),
            _ if text.len() <= MAX_COMPRESSION_BYTES && text.bytes().all(is_name_byte) => {
                Ok(Self::Other(text.into()))
            }
            _ => Err(NarinfoError::Compression),
        }
    }
}

impl Default for Compression {
    /// What a narinfo without the field means.
    fn default() -> Self {
        Self::Other("bzip2".into())
    }
}

/// A parsed narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narinfo {
    /// The facts about the path.
    pub info: PathInfo,
    /// Where the NAR is, relative to the cache.
    pub url: NarUrl,
    /// How it is compressed there.
    pub compression: Compression,
    /// How many bytes the file there has, if the cache says so. Not printed.
    pub file_size: Option<u64>,
}

impl Narinfo {
    /// Parses what a cache sent for a store in `dir`. Unknown fields are dropped.
    ///
    /// As liberal as old caches need: blank lines and no line feed at the end, blanks after a
    /// value (the old peerix has one after `Deriver`), an empty value without the blank before it.
    pub fn parse(dir: &StoreDir, text: &[u8]) -> Result<Self, NarinfoError> {
        let text = str::from_utf8(text).map_err(NarinfoError::NotUtf8)?;
        let mut fields = Fields::default();
        for (index, line) in text.trim_end_matches('\n').split('\n').enumerate() {
            let (name, value) = split_line(line).ok_or(NarinfoError::Line { number: index + 1 })?;
            fields.take(dir, name, value)?;
        }
        fields.finish()
    }

    /// Prints it in the order of the old peerix: StorePath, URL, Compression, NarHash,
    /// NarSize, References, Deriver, Sig, then CA. Every line has a colon: the old parser needs one.
    pub fn print(&self, dir: &StoreDir) -> String {
        let info = &self.info;
        let mut text = String::with_capacity(self.printed_len(dir));

        text.push_str("StorePath: ");
        info.path.push_to(dir, &mut text);
        text.push_str("\nURL: ");
        text.push_str(self.url.as_str());
        text.push_str("\nCompression: ");
        text.push_str(self.compression.as_str());
        text.push_str("\nNarHash: sha256:");
        super::base32::encode_into(info.nar_hash.digest(), &mut text);
        text.push_str("\nNarSize: ");
        push_number(info.nar_size, &mut text);
        text.push_str("\nReferences:");
        for reference in &info.references {
            text.push(' ');
            text.push_str(reference.basename());
        }
        if info.references.is_empty() {
            text.push(' ');
        }
        if let Some(deriver) = &info.deriver {
            text.push_str("\nDeriver: ");
            text.push_str(deriver.basename());
        }
        for signature in &info.signatures {
            text.push_str("\nSig: ");
            signature.push_to(&mut text);
        }
        if let Some(ca) = &info.ca {
            text.push_str("\nCA: ");
            ca.push_to(&mut text);
        }
        text.push('\n');
        text
    }

    /// No less than the length of the printed text, so that printing allocates once.
    fn printed_len(&self, dir: &StoreDir) -> usize {
        // The names of the five fields that are always there, the hash, and 20 digits.
        const FIXED_BYTES: usize = 160;
        let info = &self.info;
        FIXED_BYTES
            + dir.as_str().len()
            + info.path.basename().len()
            + self.url.as_str().len()
            + self.compression.as_str().len()
            + info
                .references
                .iter()
                .map(|it| 1 + it.basename().len())
                .sum::<usize>()
            + info
                .deriver
                .as_ref()
                .map_or(0, |it| "\nDeriver: ".len() + it.basename().len())
            + info
                .signatures
                .iter()
                .map(|it| "\nSig: ".len() + it.text_len())
                .sum::<usize>()
            + info
                .ca
                .as_ref()
                .map_or(0, |it| "\nCA: ".len() + it.text_len())
    }
}

/// `NAME: VALUE`, or `NAME:` alone; the value without blanks after it.
fn split_line(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_end_matches(' ');
    let (name, value) = match line.split_once(": ") {
        Some(parts) => parts,
        None => (line.strip_suffix(':')?, ""),
    };
    (!name.is_empty() && !line.contains('\r')).then_some((name, value))
}

/// What the lines so far have said.
#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: Option<NarUrl>,
    compression: Option<Compression>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: Option<Vec<StorePath>>,
    /// Outer: the line was there; inner: it named a deriver. Likewise `ca`.
    deriver: Option<Option<StorePath>>,
    ca: Option<Option<ContentAddress>>,
    signatures: Vec<Signature>,
    /// Of the file at `URL`, compressed or not. Its hash is of no use to us: that of the NAR is
    /// checked.
    file_size: Option<u64>,
    file_hash: Option<()>,
}

impl Fields {
    fn take(&mut self, dir: &StoreDir, name: &str, value: &str) -> Result<(), NarinfoError> {
        match name {
            "StorePath" => {
                let path = StorePath::parse(dir, value).map_err(|source| NarinfoError::Path {
                    field: "StorePath",
                    source,
                })?;
                set(&mut self.path, "StorePath", path)
            }
            "URL" => set(&mut self.url, "URL", NarUrl::parse(value)?),
            "Compression" => set(
                &mut self.compression,
                "Compression",
                Compression::parse(value)?,
            ),
            "NarHash" => {
                let hash = NarHash::parse_prefixed(value).map_err(NarinfoError::NarHash)?;
                set(&mut self.nar_hash, "NarHash", hash)
            }
            "NarSize" => match parse_number("NarSize", value)? {
                0 => Err(NarinfoError::EmptyNar),
                size => set(&mut self.nar_size, "NarSize", size),
            },
            "References" => set(&mut self.references, "References", parse_references(value)?),
            "Deriver" => {
                let known = !matches!(value, "" | "unknown-deriver");
                let deriver = known.then(|| StorePath::from_basename(value)).transpose();
                let deriver = deriver.map_err(|source| NarinfoError::Path {
                    field: "Deriver",
                    source,
                })?;
                set(&mut self.deriver, "Deriver", deriver)
            }
            "Sig" => self.take_signature(value),
            "CA" => {
                let ca = (!value.is_empty())
                    .then(|| ContentAddress::parse(value))
                    .transpose();
                set(
                    &mut self.ca,
                    "CA",
                    ca.map_err(NarinfoError::ContentAddress)?,
                )
            }
            "FileSize" => set(
                &mut self.file_size,
                "FileSize",
                parse_number("FileSize", value)?,
            ),
            "FileHash" => set(&mut self.file_hash, "FileHash", ()),
            _ => Ok(()),
        }
    }

    fn take_signature(&mut self, value: &str) -> Result<(), NarinfoError> {
        self.signatures
            .push(Signature::parse(value).map_err(NarinfoError::Signature)?);
        Ok(())
    }

    fn finish(self) -> Result<Narinfo, NarinfoError> {
        let missing = |field| NarinfoError::Missing { field };
        Ok(Narinfo {
            info: PathInfo {
                path: self.path.ok_or(missing("StorePath"))?,
                nar_hash: self.nar_hash.ok_or(missing("NarHash"))?,
                nar_size: self.nar_size.ok_or(missing("NarSize"))?,
                references: self.references.unwrap_or_default(),
                deriver: self.deriver.flatten(),
                signatures: self.signatures,
                ca: self.ca.flatten(),
            },
            url: self.url.ok_or(missing("URL"))?,
            compression: self.compression.unwrap_or_default(),
            file_size: self.file_size,
        })
    }
}

fn set<T>(slot: &mut Option<T>, field: &'static str, value: T) -> Result<(), NarinfoError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(NarinfoError::Duplicate { field }),
    }
}

fn parse_number(field: &'static str, text: &str) -> Result<u64, NarinfoError> {
    // `u64::from_str` takes a plus sign, Nix does not.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or(NarinfoError::Number { field })
}

/// Base names separated by blanks, sorted and without repetitions as the fingerprint needs them.
fn parse_references(text: &str) -> Result<Vec<StorePath>, NarinfoError> {
    const FIELD: &str = "References";
    let mut references = text
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(StorePath::from_basename)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| NarinfoError::Path {
            field: FIELD,
            source,
        })?;
    references.sort_unstable();
    references.dedup();
    Ok(references)
}

fn push_number(number: u64, text: &mut String) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    let mut rest = number;
    loop {
        first -= 1;
        digits[first] += (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text.extend(digits[first..].iter().copied().map(char::from));
}

#[cfg(test)]
mod tests;
