//! Store directory, store path, and the two hashes that name things: the hash in a
//! path's name and the sha256 of its NAR.
//!
//! Spec: `libstore/path.cc` of Nix (`checkName`) and the store path section of its manual.

use std::fmt;

use super::base32::{self, Base32Error};

/// Length of a name, in characters; Nix refuses longer ones.
const MAX_NAME_BYTES: usize = 211;

/// Length of the hash part of a base name, in characters.
const HASH_CHARACTERS: usize = 32;

/// The bytes that it stands for.
const HASH_BYTES: usize = 20;

/// Why a text is not a store path (or a part of one).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// The store directory does not begin with a slash.
    #[error("a store directory must be absolute")]
    NotAbsolute,
    /// The store directory is the root, ends in a slash, or has an empty, `.` or `..` component.
    #[error("a store directory must be normalized, without a trailing slash, and not the root")]
    NotNormalized,
    /// The store directory has a blank or a control character in it.
    #[error("a store directory must not contain the character {character:?}")]
    DirectoryCharacter {
        /// The first such character.
        character: char,
    },
    /// The path is not directly below the store directory.
    #[error("the path is not directly below {dir}")]
    OutsideStore {
        /// The store directory it should be in.
        dir: Box<str>,
    },
    /// The hash part is not 32 nix-base32 characters.
    #[error("the hash part is not valid")]
    Hash(#[source] Base32Error),
    /// No dash follows the hash part.
    #[error("no dash between hash and name")]
    NoDash,
    /// The name is empty.
    #[error("the name is empty")]
    EmptyName,
    /// The name is longer than Nix allows.
    #[error("the name has {length} bytes, more than {MAX_NAME_BYTES}")]
    TooLong {
        /// Bytes in the name.
        length: usize,
    },
    /// The name has a byte that Nix does not allow.
    #[error("byte {byte:#04x} at {position} is not allowed in a name")]
    NameCharacter {
        /// The offending byte.
        byte: u8,
        /// Its offset in the name.
        position: usize,
    },
    /// The name is `.` or `..`, or begins with `.-` or `..-`.
    #[error("the name is or begins with a reserved `.` or `..`")]
    ReservedName,
    /// The NAR hash does not begin with `sha256:`.
    #[error("a NAR hash must begin with `sha256:`")]
    NotSha256,
    /// The NAR hash is not 52 nix-base32 characters.
    #[error("the NAR hash is not valid nix-base32")]
    NarHashBase32(#[source] Base32Error),
    /// The NAR hash has the length of hexadecimal but is not.
    #[error("the NAR hash is not valid hexadecimal")]
    NarHashBase16(#[source] data_encoding::DecodeError),
}

/// The logical store directory, absolute and without a trailing slash: `/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreDir(Box<str>);

impl StoreDir {
    /// Accepts an absolute, normalized directory.
    pub fn new(dir: &str) -> Result<Self, StorePathError> {
        let Some(components) = dir.strip_prefix('/') else {
            return Err(StorePathError::NotAbsolute);
        };
        if components
            .split('/')
            .any(|component| matches!(component, "" | "." | ".."))
        {
            return Err(StorePathError::NotNormalized);
        }
        if let Some(character) = dir.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(StorePathError::DirectoryCharacter { character });
        }
        Ok(Self(dir.into()))
    }

    /// The directory as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The 32 nix-base32 characters that begin a store path's base name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePathHash([u8; HASH_CHARACTERS]);

impl StorePathHash {
    /// Parses exactly 32 characters of the nix-base32 alphabet.
    pub fn parse(text: &[u8]) -> Result<Self, StorePathError> {
        let characters: [u8; HASH_CHARACTERS] = text.try_into().map_err(|_| {
            StorePathError::Hash(Base32Error::Length {
                expected: HASH_CHARACTERS,
                found: text.len(),
            })
        })?;
        // 32 characters are 160 bits, 20 whole bytes: digits are all there is to check.
        match characters.iter().position(|&byte| !base32::is_digit(byte)) {
            None => Ok(Self(characters)),
            Some(position) => Err(StorePathError::Hash(Base32Error::Character {
                byte: characters[position],
                position,
            })),
        }
    }

    /// The 160 bits that the characters stand for.
    #[expect(
        clippy::expect_used,
        reason = "32 digits are 20 whole bytes, and all constructors take digits only"
    )]
    pub fn to_raw(self) -> [u8; HASH_BYTES] {
        base32::decode(&self.0).expect("32 digits")
    }

    /// The characters for 160 bits.
    pub fn from_raw(raw: [u8; HASH_BYTES]) -> Self {
        let mut characters = [b'0'; HASH_CHARACTERS];
        for (character, digit) in characters.iter_mut().zip(base32::characters(&raw)) {
            *character = digit as u8;
        }
        Self(characters)
    }

    /// The characters.
    #[expect(
        clippy::expect_used,
        reason = "the constructor accepts nix-base32 digits only"
    )]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("nix-base32 digits are ASCII")
    }

    /// The characters as ASCII bytes, as on the wire.
    pub fn as_bytes(&self) -> &[u8; HASH_CHARACTERS] {
        &self.0
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A store path without its directory: `HASH-NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePath(Box<str>);

impl StorePath {
    /// Parses `HASH-NAME`.
    pub fn from_basename(basename: &str) -> Result<Self, StorePathError> {
        let (hash, rest) = basename
            .as_bytes()
            .split_at_checked(HASH_CHARACTERS)
            .unwrap_or((basename.as_bytes(), b""));
        StorePathHash::parse(hash)?;
        check_name(rest.strip_prefix(b"-").ok_or(StorePathError::NoDash)?)?;
        Ok(Self(basename.into()))
    }

    /// Parses `DIR/HASH-NAME`; the directory must be `dir`.
    pub fn parse(dir: &StoreDir, path: &str) -> Result<Self, StorePathError> {
        let basename = path
            .strip_prefix(dir.as_str())
            .and_then(|rest| rest.strip_prefix('/'));
        let Some(basename) = basename else {
            return Err(StorePathError::OutsideStore { dir: dir.0.clone() });
        };
        Self::from_basename(basename)
    }

    /// The hash part.
    #[expect(clippy::expect_used, reason = "the constructor checks the hash part")]
    pub fn hash(&self) -> StorePathHash {
        let characters = self
            .0
            .as_bytes()
            .first_chunk()
            .expect("a base name begins with 32 digits");
        StorePathHash(*characters)
    }

    /// The name part.
    pub fn name(&self) -> &str {
        &self.0[HASH_CHARACTERS + 1..]
    }

    /// `HASH-NAME`.
    pub fn basename(&self) -> &str {
        &self.0
    }

    /// `DIR/HASH-NAME`, for printing.
    pub fn display<'a>(&'a self, dir: &'a StoreDir) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| write!(f, "{dir}/{}", self.0))
    }

    /// Appends `DIR/HASH-NAME` to `text`.
    pub(super) fn push_to(&self, dir: &StoreDir, text: &mut String) {
        text.push_str(dir.as_str());
        text.push('/');
        text.push_str(&self.0);
    }
}

fn check_name(name: &[u8]) -> Result<(), StorePathError> {
    if name.is_empty() {
        return Err(StorePathError::EmptyName);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(StorePathError::TooLong { length: name.len() });
    }
    if let Some(position) = name.iter().position(|&byte| !is_name_byte(byte)) {
        return Err(StorePathError::NameCharacter {
            byte: name[position],
            position,
        });
    }
    match name {
        b"." | b".." | [b'.', b'-', ..] | [b'.', b'.', b'-', ..] => {
            Err(StorePathError::ReservedName)
        }
        _ => Ok(()),
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
}

/// The sha256 of a NAR. Displays as its 52 nix-base32 characters, without a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NarHash([u8; 32]);

impl NarHash {
    /// Wraps a digest.
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Parses 52 nix-base32 characters.
    pub fn parse_base32(text: &[u8]) -> Result<Self, StorePathError> {
        base32::decode(text)
            .map(Self)
            .map_err(StorePathError::NarHashBase32)
    }

    /// Parses `sha256:` and 52 nix-base32 or 64 hexadecimal characters (the database has the latter).
    pub fn parse_prefixed(text: &str) -> Result<Self, StorePathError> {
        let digest = text
            .strip_prefix("sha256:")
            .ok_or(StorePathError::NotSha256)?;
        let mut bytes = [0; 32];
        if digest.len() != 2 * bytes.len() {
            return Self::parse_base32(digest.as_bytes());
        }
        data_encoding::HEXLOWER_PERMISSIVE
            .decode_mut(digest.as_bytes(), &mut bytes)
            .map_err(|partial| StorePathError::NarHashBase16(partial.error))?;
        Ok(Self(bytes))
    }

    /// The digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        base32::format(&self.0, f)
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "ab3li50xq0nl4q5lxdyinb8w8y13my9s";

    #[test]
    fn a_store_directory_is_absolute_and_normalized() {
        for good in ["/nix/store", "/s", "/home/ü/.local/nix", "/a/...b"] {
            assert_eq!(StoreDir::new(good).unwrap().as_str(), good);
        }
        assert_eq!(StoreDir::new("nix/store"), Err(StorePathError::NotAbsolute));
        assert_eq!(StoreDir::new(""), Err(StorePathError::NotAbsolute));
        for bad in [
            "/",
            "//",
            "/nix/store/",
            "/nix//store",
            "/nix/./store",
            "/nix/../store",
            "/..",
        ] {
            assert_eq!(
                StoreDir::new(bad),
                Err(StorePathError::NotNormalized),
                "{bad}"
            );
        }
        for bad in ["/nix store", "/nix\n", "/nix\0", "/nix/\u{a0}", "/\u{85}"] {
            assert!(
                matches!(
                    StoreDir::new(bad),
                    Err(StorePathError::DirectoryCharacter { .. })
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_store_path_has_its_parts() {
        let dir = StoreDir::default();
        let path = StorePath::parse(&dir, &format!("/nix/store/{HASH}-f-1.0?=+_.drv")).unwrap();
        assert_eq!(path.hash().as_str(), HASH);
        assert_eq!(path.name(), "f-1.0?=+_.drv");
        assert_eq!(path.basename(), format!("{HASH}-f-1.0?=+_.drv"));
        assert_eq!(
            path.display(&dir).to_string(),
            format!("/nix/store/{HASH}-f-1.0?=+_.drv")
        );
    }

    #[test]
    fn a_store_path_must_be_directly_in_its_store() {
        let dir = StoreDir::default();
        for bad in [
            format!("/gnu/store/{HASH}-f"),
            format!("/nix/storey/{HASH}-f"),
            format!("{HASH}-f"),
            "/nix/store".into(),
        ] {
            assert!(
                matches!(
                    StorePath::parse(&dir, &bad),
                    Err(StorePathError::OutsideStore { .. })
                ),
                "{bad}"
            );
        }
        for bad in [
            format!("/nix/store//{HASH}-f"),
            format!("/nix/store/../store/{HASH}-f"),
        ] {
            assert!(
                matches!(StorePath::parse(&dir, &bad), Err(StorePathError::Hash(_))),
                "{bad}"
            );
        }
        let below = StorePath::parse(&dir, &format!("/nix/store/{HASH}-f/bin"));
        assert_eq!(
            below,
            Err(StorePathError::NameCharacter {
                byte: b'/',
                position: 1
            })
        );
    }

    #[test]
    fn names_follow_the_rules_of_nix() {
        let parse = |name: &str| StorePath::from_basename(&format!("{HASH}-{name}"));
        for good in ["a", ".a", "..a", "...", ".a-", "-", "=", &"x".repeat(211)] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [".", "..", ".-", "..-", ".-a", "..-a"] {
            assert_eq!(parse(bad), Err(StorePathError::ReservedName), "{bad}");
        }
        assert_eq!(parse(""), Err(StorePathError::EmptyName));
        assert_eq!(
            parse(&"x".repeat(212)),
            Err(StorePathError::TooLong { length: 212 })
        );
        for bad in ["a b", "a\n", "a/b", "ä", "a%", "a\0", "a*", "a~"] {
            assert!(
                matches!(parse(bad), Err(StorePathError::NameCharacter { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_hash_part_is_checked() {
        assert_eq!(StorePath::from_basename(HASH), Err(StorePathError::NoDash));
        assert_eq!(
            StorePath::from_basename(&format!("{HASH}x-a")),
            Err(StorePathError::NoDash)
        );
        for bad in [
            "",
            "a-b",
            "AB3LI50XQ0NL4Q5LXDYINB8W8Y13MY9S-f",
            "eb3li50xq0nl4q5lxdyinb8w8y13my9s-f",
        ] {
            assert!(
                matches!(StorePath::from_basename(bad), Err(StorePathError::Hash(_))),
                "{bad}"
            );
        }
        // A character boundary at the cut is not taken for granted.
        let split = StorePath::from_basename(&format!("{}ä-name", &HASH[..31]));
        assert!(matches!(split, Err(StorePathError::Hash(_))));
    }

    #[test]
    fn a_nar_hash_has_two_text_forms() {
        let base32 = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let base16 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let hash = NarHash::parse_base32(base32.as_bytes()).unwrap();
        assert_eq!(hash.to_string(), base32);
        assert_eq!(format!("{hash:?}"), format!("sha256:{base32}"));
        assert_eq!(
            NarHash::parse_prefixed(&format!("sha256:{base32}")),
            Ok(hash)
        );
        assert_eq!(
            NarHash::parse_prefixed(&format!("sha256:{base16}")),
            Ok(hash)
        );
        assert_eq!(
            NarHash::parse_prefixed(base32),
            Err(StorePathError::NotSha256)
        );
        assert_eq!(
            NarHash::parse_prefixed(&format!("sha512:{base32}")),
            Err(StorePathError::NotSha256)
        );
        let not_hex = format!("sha256:{}", "g".repeat(64));
        assert!(matches!(
            NarHash::parse_prefixed(&not_hex),
            Err(StorePathError::NarHashBase16(_))
        ));
        assert!(matches!(
            NarHash::parse_prefixed("sha256:"),
            Err(StorePathError::NarHashBase32(_))
        ));
    }

    proptest! {
        #[test]
        fn parses_what_it_prints(basename in "[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+_?=][0-9a-zA-Z+._?=-]{0,210}", dir in "(/[a-z]{1,8}){1,3}") {
            let dir = StoreDir::new(&dir).unwrap();
            let path = StorePath::from_basename(&basename).unwrap();
            prop_assert_eq!(path.basename(), &basename);
            prop_assert_eq!(StorePath::parse(&dir, &path.display(&dir).to_string()), Ok(path.clone()));
            prop_assert_eq!(format!("{}-{}", path.hash(), path.name()), basename);
        }

        #[test]
        fn never_panics(text: String, bytes: Vec<u8>, tail in "[ -~]{0,40}") {
            StoreDir::new(&text).ok();
            StorePath::from_basename(&text).ok();
            StorePath::from_basename(&format!("{HASH}{text}")).ok();
            StorePath::parse(&StoreDir::default(), &format!("/nix/store/{HASH}-{tail}")).ok();
            StorePathHash::parse(&bytes).ok();
            NarHash::parse_base32(&bytes).ok();
            NarHash::parse_prefixed(&text).ok();
            NarHash::parse_prefixed(&format!("sha256:{text}")).ok();
        }
    }
}
