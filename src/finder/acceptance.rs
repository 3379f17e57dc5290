//! Whether a narinfo from a peer may reach Nix. Pure: bytes in, an [`Offer`] or the reason.

use crate::{
    format::{
        ContentAddress, NarHash, Narinfo, PathInfo, StoreDir, StorePathHash, TrustedKeys,
        content_address::HashAlgorithm,
        narinfo::{Compression, NarUrl, NarinfoError},
    },
    peer::Packing,
};

/// Unsigned text and flat files are checked whole before their first byte is passed on,
/// so they must fit into memory.
pub const FLAT_LIMIT_BYTES: u64 = 8 << 20;

/// Whose word counts.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The store directory of this machine; a path of another one is of no use.
    pub store_dir: StoreDir,
    /// Keys of nix.conf and of our own configuration.
    pub keys: TrustedKeys,
    /// `require-sigs` of nix.conf.
    pub require_sigs: bool,
    /// Largest NAR accepted, in bytes.
    pub nar_limit: u64,
}

/// What must hold of the bytes behind an accepted narinfo, beside their length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Their sha256 is the NAR hash, which a trusted key or the path itself vouches for.
    NarHash,
    /// Also the one file in the NAR has this sha256, which the path vouches for; the NAR hash
    /// is only the peer's word.
    FlatFile([u8; 32]),
}

/// An accepted narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What it says of the path.
    pub info: PathInfo,
    /// Where its sender keeps the NAR.
    pub url: NarUrl,
    /// What remains to be checked.
    pub proof: Proof,
}

/// Why a narinfo was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not a narinfo.
    #[error("malformed narinfo")]
    Malformed(#[source] NarinfoError),
    /// It describes a path that was not asked for.
    #[error("narinfo for {found} instead of {asked}")]
    OtherPath {
        /// The hash in its StorePath.
        found: StorePathHash,
        /// The hash in the question.
        asked: StorePathHash,
    },
    /// Its NAR is compressed.
    #[error("the NAR is compressed")]
    Compressed,
    /// Its NAR is larger than `limits.nar`.
    #[error("the NAR has {size} bytes, more than limits.nar allows ({limit})")]
    TooLarge {
        /// Announced size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// No trusted key signed it, and it is not content-addressed.
    #[error("no signature by a trusted key")]
    Unsigned,
    /// Its content address does not lead to its store path or NAR hash.
    #[error("the content address does not belong to the path")]
    WrongContentAddress,
    /// Its content address is of a kind that cannot be checked, or only after too many bytes.
    #[error("unsigned, and its content address cannot be checked here")]
    UncheckableContentAddress,
}

impl Rejection {
    /// Every kind, for metrics.
    pub const KINDS: [&'static str; 7] = [
        "malformed",
        "other-path",
        "compressed",
        "too-large",
        "unsigned",
        "wrong-content-address",
        "uncheckable-content-address",
    ];

    /// A word for metrics and the journal, one of [`Self::KINDS`].
    pub fn kind(&self) -> &'static str {
        Self::KINDS[match self {
            Self::Malformed(_) => 0,
            Self::OtherPath { .. } => 1,
            Self::Compressed => 2,
            Self::TooLarge { .. } => 3,
            Self::Unsigned => 4,
            Self::WrongContentAddress => 5,
            Self::UncheckableContentAddress => 6,
        }]
    }
}

impl Trust {
    /// Judges what a peer sent when asked for `asked`. Peers pack nothing.
    pub fn judge(&self, asked: StorePathHash, narinfo: &[u8]) -> Result<Offer, Rejection> {
        match self.judge_of_cache(asked, narinfo)? {
            (offer, Packing::None) => Ok(offer),
            (_, Packing::Zstd { .. }) => Err(Rejection::Compressed),
        }
    }

    /// Judges what a plain cache sent, which may pack its NARs with zstd.
    pub fn judge_of_cache(
        &self,
        asked: StorePathHash,
        narinfo: &[u8],
    ) -> Result<(Offer, Packing), Rejection> {
        let narinfo = Narinfo::parse(&self.store_dir, narinfo).map_err(Rejection::Malformed)?;
        let info = narinfo.info;
        let found = info.path.hash();
        if found != asked {
            return Err(Rejection::OtherPath { found, asked });
        }
        let packing = match narinfo.compression {
            Compression::None => Packing::None,
            Compression::Zstd => Packing::Zstd {
                file_size: narinfo.file_size,
            },
            Compression::Other(_) => return Err(Rejection::Compressed),
        };
        if info.nar_size > self.nar_limit {
            return Err(Rejection::TooLarge {
                size: info.nar_size,
                limit: self.nar_limit,
            });
        }
        let proof = self.proof(&info)?;
        let offer = Offer {
            info,
            url: narinfo.url,
            proof,
        };
        Ok((offer, packing))
    }

    /// What vouches for `info`, if Nix would accept it.
    pub fn proof(&self, info: &PathInfo) -> Result<Proof, Rejection> {
        if !self.require_sigs || self.keys.verify(&self.store_dir, info).is_some() {
            return self
                .claims_no_other_address(info)
                .then_some(Proof::NarHash)
                .ok_or(Rejection::WrongContentAddress);
        }
        let ca = info.ca.as_ref().ok_or(Rejection::Unsigned)?;
        let proof = match ca {
            ContentAddress::Fixed {
                recursive: true,
                algorithm: HashAlgorithm::Sha256,
                digest,
            } => {
                if digest.as_slice() != info.nar_hash.digest() {
                    return Err(Rejection::WrongContentAddress);
                }
                Proof::NarHash
            }
            ContentAddress::Fixed {
                recursive: false,
                algorithm: HashAlgorithm::Sha256,
                digest,
            } => {
                let digest = digest
                    .as_slice()
                    .try_into()
                    .map_err(|_| Rejection::WrongContentAddress)?;
                Proof::FlatFile(digest)
            }
            ContentAddress::Text(digest) => Proof::FlatFile(*digest),
            _ => return Err(Rejection::UncheckableContentAddress),
        };
        if matches!(proof, Proof::FlatFile(_)) && info.nar_size > FLAT_LIMIT_BYTES {
            return Err(Rejection::UncheckableContentAddress);
        }
        if !ca.gives_path_of(&self.store_dir, info) {
            return Err(Rejection::WrongContentAddress);
        }
        Ok(proof)
    }

    /// No signature is for the content address. Nix refuses a NAR that does not have it, when all
    /// of it has been fetched. One of a kind that we do not know is left to Nix.
    fn claims_no_other_address(&self, info: &PathInfo) -> bool {
        match &info.ca {
            None | Some(ContentAddress::Unknown(_)) => true,
            Some(ca) => ca.gives_path_of(&self.store_dir, info),
        }
    }
}

impl Proof {
    /// Whether the whole NAR, whose sha256 is `nar_hash`, is what was promised.
    pub fn holds(&self, expected: &NarHash, nar_hash: &NarHash, whole: Option<&[u8]>) -> bool {
        expected == nar_hash
            && match self {
                Self::NarHash => true,
                Self::FlatFile(digest) => whole.and_then(flat_file).is_some_and(|content| {
                    use sha2::{Digest, Sha256};
                    Sha256::digest(content).as_slice() == digest
                }),
            }
    }
}

/// The content of the one regular, not executable file in a NAR.
fn flat_file(nar: &[u8]) -> Option<&[u8]> {
    /// The NAR of a regular file up to the length of its content, as lengths and padded strings.
    const HEAD: &[u8] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0\
        \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
        \x04\0\0\0\0\0\0\0type\0\0\0\0\
        \x07\0\0\0\0\0\0\0regular\0\
        \x08\0\0\0\0\0\0\0contents";
    const TAIL: &[u8] = b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0";
    let rest = nar.strip_prefix(HEAD)?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (content, rest) = rest.split_at_checked(length)?;
    let (padding, tail) = rest.split_at_checked(length.wrapping_neg() % 8)?;
    (padding.iter().all(|byte| *byte == 0) && tail == TAIL).then_some(content)
}

#[cfg(test)]
mod tests;
