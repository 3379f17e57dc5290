//! ed25519 signatures of path fingerprints, and the keys that make and check them.
//!
//! Spec: `libutil/signature` (in older versions `libstore/crypto.cc`) and
//! `ValidPathInfo::fingerprint` of Nix; RFC 8032.
//!
//! Signatures are checked with `verify_strict`: like libsodium's `crypto_sign_verify_detached`,
//! which Nix uses, it refuses keys and `R` values of small order and a scalar that is not
//! canonical. With the plain RFC 8032 check we would pass on what Nix then rejects.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use data_encoding::{BASE64, BASE64_NOPAD, DecodeError};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use super::{PathInfo, StoreDir, base32};

/// Longest key name, in bytes. Nix has no limit; names are host names with a number.
const MAX_KEY_NAME_BYTES: usize = 255;

/// Signatures of one key name that are verified for one path. Each costs 70 us, a path has one or two
/// by a key, and a narinfo of 4 MiB has room for 40,000.
const MAX_VERIFIED_OF_A_NAME: usize = 32;

/// Why a text is not a signature or key. Never carries any of the text: it may be a secret key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No colon between name and base64.
    #[error("expected NAME:BASE64")]
    NoColon,
    /// The name is empty, too long, or has blanks or control characters in it.
    #[error(
        "the key name must have 1 to {MAX_KEY_NAME_BYTES} bytes without blanks or control characters"
    )]
    Name,
    /// What follows the name is not base64.
    #[error("what follows the name is not base64")]
    Base64(#[source] DecodeError),
    /// The base64 is of another number of bytes.
    #[error("expected {expected} bytes in base64, found {found}")]
    Length {
        /// Bytes that the value has.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The bytes are no point of the curve.
    #[error("the bytes are not an ed25519 public key")]
    NotACurvePoint,
    /// The point has a small order: anybody could sign for it.
    #[error("the bytes are an ed25519 public key that anybody could sign for")]
    Weak,
    /// The public half of a secret key does not belong to its secret half.
    #[error("the two halves of the secret key do not belong together")]
    Mismatch,
}

/// `NAME:BASE64`, a signature by the key of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    key_name: Box<str>,
    bytes: [u8; 64],
}

impl Signature {
    /// Parses `NAME:BASE64`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (key_name, bytes) = parse_named(text)?;
        Ok(Self {
            key_name: key_name.into(),
            bytes,
        })
    }

    /// The name of the key that made it (claimed).
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// Length of its text form in bytes.
    pub(super) fn text_len(&self) -> usize {
        self.key_name.len() + 1 + BASE64.encode_len(self.bytes.len())
    }

    /// Appends its text form to `text`.
    pub(super) fn push_to(&self, text: &mut String) {
        text.push_str(&self.key_name);
        text.push(':');
        BASE64.encode_append(&self.bytes, text);
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}",
            self.key_name,
            BASE64.encode_display(&self.bytes)
        )
    }
}

/// `NAME:BASE64` of a public key, as in `trusted-public-keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: Box<str>,
    key: VerifyingKey,
}

impl PublicKey {
    /// Parses `NAME:BASE64`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse_named(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotACurvePoint)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self {
            name: name.into(),
            key,
        })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}",
            self.name,
            BASE64.encode_display(self.key.as_bytes())
        )
    }
}

/// A secret key as written by `nix-store --generate-binary-cache-key`. Its `Debug` shows the name alone.
#[derive(Clone)]
pub struct SecretKey {
    name: Box<str>,
    /// Wiped when it is dropped.
    key: SigningKey,
}

impl SecretKey {
    /// Parses the one line of a key file (surrounding white space is ignored).
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, mut bytes) = parse_named(text.trim())?;
        // 32 bytes of secret, then the 32 bytes of the public key that they give.
        let key = SigningKey::from_keypair_bytes(&bytes);
        bytes.fill(0);
        std::hint::black_box(&bytes);
        Ok(Self {
            name: name.into(),
            key: key.map_err(|_| KeyError::Mismatch)?,
        })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public half, as others have to trust it.
    pub fn public_key(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            key: self.key.verifying_key(),
        }
    }

    /// Signs a fingerprint.
    pub fn sign(&self, fingerprint: &str) -> Signature {
        let bytes = self.key.sign(fingerprint.as_bytes()).to_bytes();
        Signature {
            key_name: self.name.clone(),
            bytes,
        }
    }

    /// Signs the fingerprint of `info` in a store at `dir`.
    pub fn sign_info(&self, dir: &StoreDir, info: &PathInfo) -> Signature {
        self.sign(&fingerprint(dir, info))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// The text that is signed: `1;STOREPATH;sha256:NIX32;NARSIZE;REF,REF`.
pub fn fingerprint(dir: &StoreDir, info: &PathInfo) -> String {
    let in_dir = dir.as_str().len() + 2;
    let paths: usize = info
        .references
        .iter()
        .map(|it| in_dir + it.basename().len())
        .sum();
    // The rest is two digits, the separators, the hash, and a number of up to 20 digits.
    let mut text = String::with_capacity(in_dir + info.path.basename().len() + paths + 90);

    text.push_str("1;");
    info.path.push_to(dir, &mut text);
    text.push_str(";sha256:");
    base32::encode_into(info.nar_hash.digest(), &mut text);
    text.push(';');
    text.push_str(&info.nar_size.to_string());
    text.push(';');
    for (at, reference) in info.references.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        reference.push_to(dir, &mut text);
    }
    text
}

/// The keys that make a path trusted. Several keys may carry one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys {
    by_name: HashMap<Box<str>, Vec<VerifyingKey>>,
}

impl TrustedKeys {
    /// The first of `info`'s signatures that one of these keys made. Signatures of other names cost
    /// nothing, and of one name only the first 32 different ones are looked at.
    pub fn verify<'a>(&self, dir: &StoreDir, info: &'a PathInfo) -> Option<&'a Signature> {
        // Made for the first signature whose key is known: most peers' are, strangers' are not.
        let mut signed = None;
        let mut looked_at: HashMap<&str, HashSet<&[u8; 64]>> = HashMap::new();
        info.signatures.iter().find(|signature| {
            let Some(keys) = self.by_name.get(&signature.key_name) else {
                return false;
            };
            let same_name = looked_at.entry(signature.key_name()).or_default();
            if same_name.len() >= MAX_VERIFIED_OF_A_NAME || !same_name.insert(&signature.bytes) {
                return false;
            }
            let signed = signed.get_or_insert_with(|| fingerprint(dir, info));
            let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
            keys.iter()
                .any(|key| key.verify_strict(signed.as_bytes(), &bytes).is_ok())
        })
    }

    /// The keys, in no order: name, and the 32 bytes of the point.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.by_name
            .iter()
            .flat_map(|(name, keys)| keys.iter().map(|key| (&**name, key.as_bytes())))
    }

    /// Whether one of the keys has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.by_name.values().map(Vec::len).sum()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl Extend<PublicKey> for TrustedKeys {
    fn extend<I: IntoIterator<Item = PublicKey>>(&mut self, keys: I) {
        for PublicKey { name, key } in keys {
            let same_name = self.by_name.entry(name).or_default();
            if !same_name.contains(&key) {
                same_name.push(key);
            }
        }
    }
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        let mut trusted = Self::default();
        trusted.extend(keys);
        trusted
    }
}

/// Whether a key may have this name: 1 to 255 bytes without blanks or control characters.
pub fn is_key_name(name: &str) -> bool {
    let printable = !name.contains(|c: char| c.is_whitespace() || c.is_control());
    !name.is_empty() && name.len() <= MAX_KEY_NAME_BYTES && printable
}

/// Splits `NAME:BASE64` and decodes exactly `N` bytes. Like Nix it does not look at the padding;
/// bits beyond the value may not be set.
fn parse_named<const N: usize>(text: &str) -> Result<(&str, [u8; N]), KeyError> {
    let (name, base64) = text.split_once(':').ok_or(KeyError::NoColon)?;
    if !is_key_name(name) {
        return Err(KeyError::Name);
    }

    let unpadded = base64
        .strip_suffix("==")
        .or(base64.strip_suffix('='))
        .unwrap_or(base64);
    let digits = unpadded.as_bytes();
    let found = BASE64_NOPAD
        .decode_len(digits.len())
        .map_err(KeyError::Base64)?;
    if found != N {
        return Err(KeyError::Length { expected: N, found });
    }
    let mut bytes = [0; N];
    BASE64_NOPAD
        .decode_mut(digits, &mut bytes)
        .map_err(|partial| KeyError::Base64(partial.error))?;
    Ok((name, bytes))
}

#[cfg(test)]
mod tests;
