//! Digests of the pieces of a NAR, by which a lie is told from the truth before all has come
//! (docs/protocol.md, "Digests of pieces").

/// Bytes of a NAR under one digest; the last piece may have fewer.
pub const PIECE_BYTES: u64 = 4 << 20;

/// Bytes of a digest: SHA-256.
pub const DIGEST_BYTES: usize = 32;

/// A digest of one piece.
pub type PieceDigest = [u8; DIGEST_BYTES];

/// The number of pieces of a NAR of that size.
pub const fn count(nar_size: u64) -> u64 {
    nar_size.div_ceil(PIECE_BYTES)
}

/// The length of the digests of a NAR of that size, in bytes.
pub const fn digests_bytes(nar_size: u64) -> u64 {
    // A 2^17th of the size, so it fits.
    count(nar_size) * DIGEST_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_begun_piece_has_a_digest() {
        for (size, pieces) in [
            (1, 1),
            (PIECE_BYTES - 1, 1),
            (PIECE_BYTES, 1),
            (PIECE_BYTES + 1, 2),
            (u64::MAX, 1 << 42),
        ] {
            assert_eq!(count(size), pieces, "{size}");
            assert_eq!(digests_bytes(size), pieces * 32, "{size}");
        }
    }
}
