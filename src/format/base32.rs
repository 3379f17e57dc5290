//! Nix's base-32: the alphabet without `e o u t`, digits from the last bit group to the first.
//!
//! Spec: `libutil/hash.cc` of Nix. The value is read as a little-endian number; its five-bit
//! groups are written from the highest to the lowest, so that the first character holds the
//! few bits left over at the end of the bytes.

use std::fmt::{self, Write as _};

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// What [`DIGITS`] says of a byte outside the alphabet.
const NO_DIGIT: u8 = u8::MAX;

/// The value of every byte as a digit.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        digits[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

/// Why a text is not the nix-base32 form of the expected number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Base32Error {
    /// The text has another length than the bytes need.
    #[error("expected {expected} nix-base32 characters, found {found}")]
    Length {
        /// Characters that the value needs.
        expected: usize,
        /// Characters that were given.
        found: usize,
    },
    /// A byte outside the alphabet.
    #[error("byte {byte:#04x} at {position} is not in the nix-base32 alphabet")]
    Character {
        /// The offending byte.
        byte: u8,
        /// Its offset in the text.
        position: usize,
    },
    /// Bits set beyond the last whole byte.
    #[error("the first character carries bits beyond the value")]
    Overflow,
}

/// Encodes `bytes`; 20 bytes become 32 characters, 32 bytes become 52.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(encoded_len(bytes.len()));
    encode_into(bytes, &mut text);
    text
}

/// Appends the encoding of `bytes` to `text`.
pub(super) fn encode_into(bytes: &[u8], text: &mut String) {
    text.extend(characters(bytes));
}

/// Writes the encoding of `bytes` to a formatter, allocating nothing.
pub(super) fn format(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    characters(bytes).try_for_each(|character| f.write_char(character))
}

/// The number of characters that `bytes` bytes need.
pub(super) const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Decodes exactly `N` bytes.
pub fn decode<const N: usize>(text: &[u8]) -> Result<[u8; N], Base32Error> {
    let mut bytes = [0; N];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// Decodes exactly as many bytes as `bytes` holds; what it held is lost, also on failure.
pub(super) fn decode_into(text: &[u8], bytes: &mut [u8]) -> Result<(), Base32Error> {
    let expected = encoded_len(bytes.len());
    if text.len() != expected {
        return Err(Base32Error::Length {
            expected,
            found: text.len(),
        });
    }

    bytes.fill(0);
    for (group, (position, &byte)) in text.iter().enumerate().rev().enumerate() {
        let digit = DIGITS[usize::from(byte)];
        if digit == NO_DIGIT {
            return Err(Base32Error::Character { byte, position });
        }
        let (at, shift) = (group * 5 / 8, group * 5 % 8);
        let [low, high] = (u16::from(digit) << shift).to_le_bytes();
        bytes[at] |= low;
        match bytes.get_mut(at + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return Err(Base32Error::Overflow),
            None => {}
        }
    }
    Ok(())
}

/// Whether `byte` is a digit of the alphabet.
pub const fn is_digit(byte: u8) -> bool {
    DIGITS[byte as usize] != NO_DIGIT
}

/// The digits of `bytes`, all of them ASCII.
pub(super) fn characters(bytes: &[u8]) -> impl Iterator<Item = char> {
    (0..encoded_len(bytes.len())).rev().map(|group| {
        let (at, shift) = (group * 5 / 8, group * 5 % 8);
        let next = bytes.get(at + 1).copied().unwrap_or(0);
        let pair = u16::from_le_bytes([bytes[at], next]);
        char::from(ALPHABET[usize::from(pair >> shift & 0x1f)])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        // `nix hash to-base32 sha256:…` of the empty string, and sha1 of the empty string.
        let sha256 = data_encoding::HEXLOWER
            .decode(b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
            .unwrap();
        assert_eq!(
            encode(&sha256),
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
        );
        let sha1 = data_encoding::HEXLOWER
            .decode(b"da39a3ee5e6b4b0d3255bfef95601890afd80709")
            .unwrap();
        assert_eq!(encode(&sha1), "143xibwh31h9bvxzalr0sjvbbvpa6ffs");
        assert_eq!(encode(&[]), "");
        assert_eq!(decode::<0>(b""), Ok([]));
    }

    #[test]
    fn refuses_other_lengths_characters_and_bits() {
        assert_eq!(
            decode::<20>(b"0"),
            Err(Base32Error::Length {
                expected: 32,
                found: 1
            })
        );
        assert_eq!(
            decode::<20>(b"e000000000000000000000000000000e"),
            Err(Base32Error::Character {
                byte: b'e',
                position: 31
            })
        );
        // 52 characters carry 260 bits, 32 bytes only 256: the first character is 0 or 1.
        let mut text = [b'0'; 52];
        text[0] = b'1';
        assert_eq!(decode::<32>(&text).map(|bytes| bytes[31]), Ok(0x80));
        text[0] = b'2';
        assert_eq!(decode::<32>(&text), Err(Base32Error::Overflow));
    }

    #[test]
    fn the_alphabet_has_32_digits() {
        let digits: Vec<u8> = (0..=u8::MAX).filter(|&byte| is_digit(byte)).collect();
        assert_eq!(digits, ALPHABET);
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(bytes: [u8; 32], short: [u8; 20], long in prop::collection::vec(any::<u8>(), 0..70)) {
            prop_assert_eq!(decode::<32>(encode(&bytes).as_bytes()), Ok(bytes));
            prop_assert_eq!(decode::<20>(encode(&short).as_bytes()), Ok(short));
            let mut decoded = vec![0xff; long.len()];
            prop_assert_eq!(decode_into(encode(&long).as_bytes(), &mut decoded), Ok(()));
            prop_assert_eq!(decoded, long);
        }

        #[test]
        fn what_it_decodes_is_canonical(text in "[0-9a-df-np-sv-z]{52}") {
            if let Ok(bytes) = decode::<32>(text.as_bytes()) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }

        #[test]
        fn never_panics(text: Vec<u8>) {
            decode::<32>(&text).ok();
            let mut bytes = vec![0; text.len() * 5 / 8];
            decode_into(&text, &mut bytes).ok();
        }
    }
}
