//! Content addresses: their text form, and the store path that one implies.
//!
//! Spec: `libstore/content-address.cc` (text form) and `makeStorePath`, `makeFixedOutputPath`
//! and `makeTextPath` in `libstore/store-api.cc` of Nix (store path).

use std::fmt;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::{Digest, Sha256};

use super::{
    PathInfo, StoreDir, StorePath,
    base32::{self, Base32Error},
};

/// Longest text of a content address that we do not know, in bytes. Those we know need 115.
const MAX_UNKNOWN_BYTES: usize = 512;

/// Why a text is not a content address that we understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// No method before a colon.
    #[error("a content address must be METHOD:ALGORITHM:DIGEST")]
    NoMethod,
    /// A byte that is not printable ASCII.
    #[error("byte {byte:#04x} at {position} is not allowed in a content address")]
    Character {
        /// The offending byte.
        byte: u8,
        /// Its offset in the text.
        position: usize,
    },
    /// Longer than any content address.
    #[error("a content address of {length} bytes is longer than {MAX_UNKNOWN_BYTES}")]
    TooLong {
        /// Bytes in the text.
        length: usize,
    },
    /// The digest is not nix-base32 of the algorithm's length.
    #[error("the digest is not {algorithm} in nix-base32")]
    Base32 {
        /// The algorithm that the address names.
        algorithm: HashAlgorithm,
        /// What is wrong with it.
        #[source]
        source: Base32Error,
    },
    /// The digest has the length of hexadecimal or base64 but is not.
    #[error("the digest is not {algorithm} in hexadecimal or base64")]
    Digest {
        /// The algorithm that the address names.
        algorithm: HashAlgorithm,
        /// What is wrong with it.
        #[source]
        source: data_encoding::DecodeError,
    },
}

/// How a content-addressed path was hashed, with the digest. Displays in the form of the
/// narinfo's `CA` field, with the digest in nix-base32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentAddress {
    /// `text:sha256:…`: a file made by the evaluator; references allowed, self reference not.
    Text([u8; 32]),
    /// `fixed:[r:]ALGO:…`.
    Fixed {
        /// `r:`: the digest is of the NAR, not of the flat file.
        recursive: bool,
        /// md5, sha1, sha256 or sha512.
        algorithm: HashAlgorithm,
        /// The digest; its length is the algorithm's.
        digest: Vec<u8>,
    },
    /// A method or algorithm that we do not know (`fixed:git:…`), kept as it was written:
    /// printable ASCII, at most 512 bytes. It never [gives a path](Self::gives_path_of).
    Unknown(Box<str>),
}

/// A hash algorithm of Nix. Displays as Nix names it: `sha256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum HashAlgorithm {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl HashAlgorithm {
    /// Length of a digest in bytes.
    pub(super) const fn digest_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512]
            .into_iter()
            .find(|it| it.name() == name)
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ContentAddress {
    /// Parses the `CA` field of a narinfo or the `ca` column of the database.
    ///
    /// The digest may be nix-base32, hexadecimal or base64: Nix tells them apart by their length.
    pub fn parse(text: &str) -> Result<Self, ContentAddressError> {
        if text.len() > MAX_UNKNOWN_BYTES {
            return Err(ContentAddressError::TooLong { length: text.len() });
        }
        if let Some(position) = text.bytes().position(|byte| !byte.is_ascii_graphic()) {
            return Err(ContentAddressError::Character {
                byte: text.as_bytes()[position],
                position,
            });
        }
        let (method, rest) = text.split_once(':').ok_or(ContentAddressError::NoMethod)?;
        let (recursive, hash) = match rest.strip_prefix("r:") {
            Some(hash) if method == "fixed" => (true, hash),
            _ => (false, rest),
        };
        let (algorithm, digest) = hash.split_once(':').unwrap_or((hash, ""));
        match (method, HashAlgorithm::from_name(algorithm)) {
            ("", _) => Err(ContentAddressError::NoMethod),
            ("text", Some(algorithm @ HashAlgorithm::Sha256)) => {
                let mut bytes = [0; 32];
                decode_digest(algorithm, digest, &mut bytes)?;
                Ok(Self::Text(bytes))
            }
            ("fixed", Some(algorithm)) => {
                let mut bytes = vec![0; algorithm.digest_bytes()];
                decode_digest(algorithm, digest, &mut bytes)?;
                Ok(Self::Fixed {
                    recursive,
                    algorithm,
                    digest: bytes,
                })
            }
            _ => Ok(Self::Unknown(text.into())),
        }
    }

    /// Whether `info.path` is the path that this address gives to its name and references.
    /// Says nothing about the bytes: for `fixed:r:sha256` compare the digest with the NAR hash.
    pub fn gives_path_of(&self, dir: &StoreDir, info: &PathInfo) -> bool {
        let refers_to_itself = info.references.contains(&info.path);
        let (kind, inner) = match self {
            Self::Text(digest) if !refers_to_itself => (path_kind("text", dir, info), *digest),
            Self::Fixed {
                recursive: true,
                algorithm: HashAlgorithm::Sha256,
                digest,
            } => {
                let Ok(inner) = digest.as_slice().try_into() else {
                    return false;
                };
                (path_kind("source", dir, info), inner)
            }
            Self::Fixed {
                recursive,
                algorithm,
                digest,
            } if info.references.is_empty() => {
                let method = if *recursive { "r:" } else { "" };
                let inner = format!("fixed:out:{method}{algorithm}:{}:", HEXLOWER.encode(digest));
                ("output:out".to_owned(), Sha256::digest(inner).into())
            }
            Self::Text(_) | Self::Fixed { .. } | Self::Unknown(_) => return false,
        };
        info.path.hash().as_str() == store_path_hash(&kind, &inner, dir, info.path.name())
    }

    /// No less than the length of its text form, in bytes.
    pub(super) fn text_len(&self) -> usize {
        const LONGEST_PREFIX: &str = "fixed:r:sha256:";
        match self {
            Self::Text(digest) => LONGEST_PREFIX.len() + base32::encoded_len(digest.len()),
            Self::Fixed { digest, .. } => LONGEST_PREFIX.len() + base32::encoded_len(digest.len()),
            Self::Unknown(text) => text.len(),
        }
    }

    /// Appends its text form to `text`.
    pub(super) fn push_to(&self, text: &mut String) {
        match self {
            Self::Text(digest) => {
                text.push_str("text:sha256:");
                base32::encode_into(digest, text);
            }
            Self::Fixed {
                recursive,
                algorithm,
                digest,
            } => {
                text.push_str(if *recursive { "fixed:r:" } else { "fixed:" });
                text.push_str(algorithm.name());
                text.push(':');
                base32::encode_into(digest, text);
            }
            Self::Unknown(unknown) => text.push_str(unknown),
        }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(self.text_len());
        self.push_to(&mut text);
        f.write_str(&text)
    }
}

fn decode_digest(
    algorithm: HashAlgorithm,
    text: &str,
    bytes: &mut [u8],
) -> Result<(), ContentAddressError> {
    let text = text.as_bytes();
    // Hexadecimal, base64 and nix-base32 of one algorithm differ in length.
    let decoded = if text.len() == HEXLOWER.encode_len(bytes.len()) {
        HEXLOWER_PERMISSIVE.decode(text)
    } else if text.len() == BASE64.encode_len(bytes.len()) {
        BASE64.decode(text)
    } else {
        return base32::decode_into(text, bytes)
            .map_err(|source| ContentAddressError::Base32 { algorithm, source });
    };
    let decoded = decoded.map_err(|source| ContentAddressError::Digest { algorithm, source })?;
    // Base64 of one byte less or more has the same length but for its padding.
    if decoded.len() != bytes.len() {
        let expected = base32::encoded_len(bytes.len());
        let source = Base32Error::Length {
            expected,
            found: text.len(),
        };
        return Err(ContentAddressError::Base32 { algorithm, source });
    }
    bytes.copy_from_slice(&decoded);
    Ok(())
}

/// `KIND:REF:REF`, then `:self` if the path refers to itself.
fn path_kind(kind: &str, dir: &StoreDir, info: &PathInfo) -> String {
    let mut text = kind.to_owned();
    let mut others: Vec<&StorePath> = info
        .references
        .iter()
        .filter(|it| **it != info.path)
        .collect();
    others.sort_unstable();
    others.dedup();
    for reference in others {
        text.push(':');
        reference.push_to(dir, &mut text);
    }
    if info.references.contains(&info.path) {
        text.push_str(":self");
    }
    text
}

/// The hash part of the path that `inner` gives to `name`.
fn store_path_hash(kind: &str, inner: &[u8; 32], dir: &StoreDir, name: &str) -> String {
    let text = format!("{kind}:sha256:{}:{dir}:{name}", HEXLOWER.encode(inner));
    let mut folded = [0; 20];
    for (at, byte) in Sha256::digest(text).into_iter().enumerate() {
        folded[at % 20] ^= byte;
    }
    base32::encode(&folded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::samples;

    const SHA256: &str = "00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq";

    fn added(basename: &str, ca: &str) -> PathInfo {
        let (_, narinfo) = samples::narinfos().next().unwrap();
        PathInfo {
            path: StorePath::from_basename(basename).unwrap(),
            references: vec![],
            ca: Some(ContentAddress::parse(ca).unwrap()),
            ..narinfo.info
        }
    }

    fn gives_path(dir: &StoreDir, info: &PathInfo) -> bool {
        info.ca.as_ref().unwrap().gives_path_of(dir, info)
    }

    #[test]
    fn gives_the_paths_that_nix_gave() {
        for (basename, ca) in samples::ADDED {
            let info = added(basename, ca);
            assert_eq!(info.ca.as_ref().unwrap().to_string(), ca);
            assert!(gives_path(&StoreDir::default(), &info), "{basename}");
        }
        let addressed: Vec<_> = samples::narinfos()
            .filter(|(_, narinfo)| narinfo.info.ca.is_some())
            .collect();
        assert_eq!(addressed.len(), 7);
        for (dir, narinfo) in addressed {
            assert!(
                gives_path(&dir, &narinfo.info),
                "{}",
                narinfo.info.path.basename()
            );
        }
    }

    #[test]
    fn gives_no_other_path() {
        let other = StorePath::from_basename("ab3li50xq0nl4q5lxdyinb8w8y13my9s-f").unwrap();
        let dir = StoreDir::default();
        for (basename, ca) in samples::ADDED {
            let info = added(basename, ca);
            assert!(!gives_path(&StoreDir::new("/other").unwrap(), &info));
            let renamed = StorePath::from_basename(&format!("{basename}x")).unwrap();
            assert!(!gives_path(
                &dir,
                &PathInfo {
                    path: renamed,
                    ..info.clone()
                }
            ));
            assert!(!gives_path(
                &dir,
                &PathInfo {
                    path: other.clone(),
                    ..info.clone()
                }
            ));
            assert!(!gives_path(
                &dir,
                &PathInfo {
                    references: vec![other.clone()],
                    ..info.clone()
                }
            ));
            assert!(!gives_path(
                &dir,
                &PathInfo {
                    references: vec![info.path.clone()],
                    ..info
                }
            ));
        }
        for (dir, narinfo) in samples::narinfos().filter(|(_, narinfo)| narinfo.info.ca.is_some()) {
            let mut info = narinfo.info;
            let unless = info.references.clone();
            info.references.push(other.clone());
            assert!(!gives_path(&dir, &info), "a reference more");
            info.references = unless;
            if info.references.pop().is_some() {
                assert!(!gives_path(&dir, &info), "a reference less");
            }
        }
    }

    #[test]
    fn a_text_that_refers_to_itself_has_no_path() {
        let (dir, mut narinfo) = samples::narinfos()
            .find(|(_, narinfo)| narinfo.info.path.name() == "inner")
            .unwrap();
        assert!(gives_path(&dir, &narinfo.info));
        narinfo.info.references.push(narinfo.info.path.clone());
        assert!(!gives_path(&dir, &narinfo.info));
    }

    #[test]
    fn takes_the_digests_that_nix_takes() {
        let digest: [u8; 32] = base32::decode(SHA256.as_bytes()).unwrap();
        let expected = ContentAddress::Fixed {
            recursive: true,
            algorithm: HashAlgorithm::Sha256,
            digest: digest.to_vec(),
        };
        let hex = HEXLOWER.encode(&digest);
        for text in [SHA256, &hex, &hex.to_uppercase(), &BASE64.encode(&digest)] {
            assert_eq!(
                ContentAddress::parse(&format!("fixed:r:sha256:{text}")).as_ref(),
                Ok(&expected)
            );
            assert_eq!(
                ContentAddress::parse(&format!("text:sha256:{text}")),
                Ok(ContentAddress::Text(digest))
            );
        }
    }

    #[test]
    fn keeps_methods_that_it_does_not_know_but_gives_them_no_path() {
        for text in [
            "fixed:git:sha1:iwjz551fyw0cxcjgf4l6c879zabd6wpm".to_owned(),
            format!("fixed:r:blake3:{SHA256}"),
            format!("text:sha512:{SHA256}"),
            format!("text:r:sha256:{SHA256}"),
            format!("nar:sha256:{SHA256}"),
            "x:".to_owned(),
        ] {
            let ca = ContentAddress::parse(&text).unwrap();
            assert_eq!(ca, ContentAddress::Unknown(text.as_str().into()));
            assert_eq!(ca.to_string(), text);
            let info = PathInfo {
                ca: Some(ca),
                ..added(samples::ADDED[0].0, samples::ADDED[0].1)
            };
            assert!(!gives_path(&StoreDir::default(), &info));
        }
    }

    #[test]
    fn refuses_what_is_malformed() {
        use ContentAddressError as Error;

        for bad in ["", "fixed", ":", ":sha256:x"] {
            assert_eq!(ContentAddress::parse(bad), Err(Error::NoMethod), "{bad}");
        }
        for bad in [
            "fixed:sha256",
            "fixed:r:sha256:",
            "text:sha256:0",
            &format!("fixed:md5:{SHA256}"),
        ] {
            assert!(
                matches!(ContentAddress::parse(bad), Err(Error::Base32 { .. })),
                "{bad}"
            );
        }
        for bad in [
            "g".repeat(64),
            "*".repeat(44),
            format!("{}=", "A".repeat(43)).replace("AA=", "=="),
        ] {
            let text = format!("fixed:sha256:{bad}");
            let result = ContentAddress::parse(&text);
            assert!(
                matches!(result, Err(Error::Digest { .. } | Error::Base32 { .. })),
                "{text}"
            );
        }
        for bad in ["x: y", "fixed:r:sha256:\u{e9}", "x:\n", "x:\0"] {
            assert!(
                matches!(ContentAddress::parse(bad), Err(Error::Character { .. })),
                "{bad:?}"
            );
        }
        let long = format!("x:{}", "y".repeat(511));
        assert_eq!(
            ContentAddress::parse(&long),
            Err(Error::TooLong { length: 513 })
        );
        assert!(ContentAddress::parse(&long[..512]).is_ok());
    }

    proptest! {
        #[test]
        fn parses_what_it_prints(ca in samples::content_address()) {
            prop_assert_eq!(ContentAddress::parse(&ca.to_string()), Ok(ca));
        }

        #[test]
        fn never_panics(text: String, close in "(fixed:|text:)?(r:)?(sha256|md5)?:?[0-9a-z+/=]{0,64}", info in samples::info()) {
            for text in [text, close] {
                if let Ok(ca) = ContentAddress::parse(&text) {
                    ca.gives_path_of(&StoreDir::default(), &info);
                }
            }
        }
    }
}
