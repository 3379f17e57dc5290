//! Who sent the wrong bytes? When a NAR did not have its hash, it is fetched again from one
//! holder at a time until one gives it right; whoever sent or claimed something else is banned.
//! If nobody gives it right, nobody is: the fault may be in what was signed.
//!
//! One inquiry at a time, in a task of its own. It keeps digests, never bytes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use log::{debug, info};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Finder, Found, Holder, nar_sources::HolderError};
use crate::{
    format::{NarHash, PathInfo},
    protocol::{
        PeerAddr,
        pieces::{PIECE_BYTES, PieceDigest},
    },
    system::journal::chain,
};

/// Inquiries that wait; further lies are cut, and nobody is named.
pub const MOST_WAITING: usize = 16;

/// How long one may take, over all holders.
const PATIENCE: Duration = Duration::from_secs(600);

/// What was noted of a NAR on its way.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Who sent, or claimed to have, which piece with which digest.
    pub(super) pieces: Vec<(u64, PeerAddr, PieceDigest)>,
    /// Up to which byte the NAR had which SHA-256, and who sent the bytes since the mark
    /// before; nobody knows if several did.
    pub(super) marks: Vec<Mark>,
}

/// The SHA-256 of a NAR from its start to `end`.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) end: u64,
    pub(super) sender: Option<PeerAddr>,
    pub(super) digest: PieceDigest,
}

/// A NAR that was wrong.
#[derive(Debug)]
pub struct Case {
    pub(super) finder: Finder,
    pub(super) found: Found,
    pub(super) evidence: Evidence,
}

/// The digests of a NAR that has its hash.
#[derive(Debug)]
pub(super) struct Truth {
    /// Of each piece.
    pub(super) pieces: Vec<PieceDigest>,
    /// Of the beginnings that were asked for.
    beginnings: BTreeMap<u64, PieceDigest>,
}

impl Evidence {
    /// Where the digest of what came before must be known.
    pub(super) fn beginnings(&self) -> Vec<u64> {
        self.marks.iter().map(|mark| mark.end).collect()
    }

    /// Whom `truth` convicts.
    pub(super) fn liars(&self, truth: &Truth) -> Vec<PeerAddr> {
        let mut liars: Vec<PeerAddr> = Vec::new();
        for (piece, peer, digest) in &self.pieces {
            let right = usize::try_from(*piece)
                .ok()
                .and_then(|piece| truth.pieces.get(piece));
            if right.is_some_and(|right| right != digest) {
                liars.push(*peer);
            }
        }
        let mut right_so_far = true;
        for mark in &self.marks {
            let right = truth.beginnings.get(&mark.end) == Some(&mark.digest);
            // What follows the first wrong byte has a wrong hash whoever sent it.
            if right_so_far && !right {
                liars.extend(mark.sender);
            }
            right_so_far = right;
        }
        liars.sort_unstable();
        liars.dedup();
        liars
    }

    /// Everybody who took part.
    fn peers(&self) -> Vec<PeerAddr> {
        let senders = self.marks.iter().filter_map(|mark| mark.sender);
        let mut peers: Vec<PeerAddr> = self
            .pieces
            .iter()
            .map(|(_, peer, _)| *peer)
            .chain(senders)
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

/// Works through the cases until there can be no more.
pub async fn run(mut cases: mpsc::Receiver<Case>) {
    while let Some(case) = cases.recv().await {
        let hash = case.found.info.path.hash();
        if tokio::time::timeout(PATIENCE, inquire(&case))
            .await
            .is_err()
        {
            info!(hash:% = hash, reason = "wrong-bytes"; "who sent wrong bytes for {hash} could not be found out in time");
        }
    }
}

async fn inquire(case: &Case) {
    let Case {
        finder,
        found,
        evidence,
    } = case;
    let (hash, nar_hash) = (found.info.path.hash(), Some(found.info.nar_hash));
    // A holder that took no part first: it has nothing to hide.
    let suspects = evidence.peers();
    let mut holders: Vec<Holder> = match finder.ask(hash, nar_hash, &suspects).await {
        Some(found) => found.holders.into(),
        None => Vec::new(),
    };
    holders.extend(
        suspects
            .into_iter()
            .map(|suspect| finder.holder_at(suspect)),
    );
    holders.push(Holder::Own);
    let beginnings = evidence.beginnings();
    for holder in holders {
        match examine(finder, &found.info, holder.clone(), &beginnings).await {
            Ok(Some(truth)) => {
                let liars = evidence.liars(&truth);
                for liar in &liars {
                    finder.convict(&found.info, *liar);
                }
                debug!(hash:% = hash; "{holder} has {hash} right; {} peers are convicted", liars.len());
                return;
            }
            Ok(None) => {
                debug!(hash:% = hash; "{holder} has {hash} wrong, or keeps to what it claimed")
            }
            Err(error) => debug!(hash:% = hash; "{holder} cannot be examined: {}", chain(&error)),
        }
    }
    info!(
        hash:% = hash, reason = "wrong-bytes";
        "no holder gives {hash} right, so nobody is blamed for its wrong bytes"
    );
}

/// Fetches the whole NAR from one holder; `None` if it does not have its hash.
pub(super) async fn examine(
    finder: &Finder,
    info: &Arc<PathInfo>,
    holder: Holder,
    beginnings: &[u64],
) -> Result<Option<Truth>, HolderError> {
    let stall = finder.limits().stall_alone;
    let proved = finder
        .prove(holder, info)
        .await
        .map_err(|(_, error)| error)?;
    let turn = finder.opening_turn(&proved).await;
    let mut body = finder.open(&proved, info, 0..info.nar_size).await?;
    drop(turn);
    let mut examination = Examination::new(beginnings);
    loop {
        let next = tokio::time::timeout(stall, body.next()).await;
        match next.map_err(|_| HolderError::Stalled { after: stall })? {
            Some(bytes) => examination.take(&bytes?),
            None => return Ok(examination.finish(info)),
        }
    }
}

/// Digests of a NAR that goes by.
pub(super) struct Examination {
    position: u64,
    whole: Sha256,
    piece: Sha256,
    /// Where the digest of what came so far is noted, the next one last.
    wanted: Vec<u64>,
    truth: Truth,
}

impl Examination {
    pub(super) fn new(beginnings: &[u64]) -> Self {
        let mut wanted = beginnings.to_vec();
        wanted.sort_unstable_by(|one, other| other.cmp(one));
        wanted.dedup();
        Self {
            position: 0,
            whole: Sha256::new(),
            piece: Sha256::new(),
            wanted,
            truth: Truth {
                pieces: Vec::new(),
                beginnings: BTreeMap::new(),
            },
        }
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // Up to the next place of interest, which is at most a piece away.
            let end_of_piece = (self.position / PIECE_BYTES + 1) * PIECE_BYTES;
            let mark = self.wanted.last().copied();
            let until = mark.map_or(end_of_piece, |mark| mark.min(end_of_piece));
            let (now, later) = bytes.split_at(bytes.len().min((until - self.position) as usize));
            self.whole.update(now);
            self.piece.update(now);
            self.position += now.len() as u64;
            bytes = later;
            if self.position == end_of_piece {
                self.truth.pieces.push(self.piece.finalize_reset().into());
            }
            if mark == Some(self.position) {
                let digest = self.whole.clone().finalize().into();
                self.truth.beginnings.insert(self.position, digest);
                self.wanted.pop();
            }
        }
    }

    /// What was found, if it was the NAR of `info`.
    pub(super) fn finish(mut self, info: &PathInfo) -> Option<Truth> {
        if !self.position.is_multiple_of(PIECE_BYTES) {
            self.truth.pieces.push(self.piece.finalize().into());
        }
        let right = NarHash::from_digest(self.whole.finalize().into()) == info.nar_hash;
        right.then_some(self.truth)
    }
}

impl Finder {
    /// Has it found out who sent wrong bytes, unless too many others wait.
    pub(super) fn inquire(&self, found: Found, evidence: Evidence) {
        let hash = found.info.path.hash();
        let case = Case {
            finder: self.clone(),
            found,
            evidence,
        };
        if self.0.background.inquiries.try_send(case).is_err() {
            info!(hash:% = hash, reason = "wrong-bytes"; "too many wrong NARs: who sent that of {hash} is not found out");
        }
    }

    /// A peer sent, or claimed, what is not the NAR: it is proven, and it is banned.
    pub(super) fn convict(&self, info: &PathInfo, peer: PeerAddr) {
        let path = info.path.display(&self.0.trust.store_dir);
        let ban = self.0.memory.health.ban(Instant::now(), peer);
        log::warn!(
            hash:% = info.path.hash(), store_path:% = path, peer:% = peer.ip(), reason = "wrong-bytes";
            "{peer} sent wrong bytes for {path} and is not asked for {} minutes", ban.as_secs() / 60
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> PeerAddr {
        format!("127.0.0.1:{port}").parse().expect("peer")
    }

    #[test]
    fn an_examination_finds_the_digests_however_the_bytes_are_cut() {
        let nar: Vec<u8> = (0..2 * PIECE_BYTES + 77)
            .map(|at| (at % 251) as u8)
            .collect();
        let info = PathInfo {
            path: crate::format::StorePath::from_basename(&format!("{}-x", "0".repeat(32)))
                .expect("path"),
            nar_hash: NarHash::from_digest(Sha256::digest(&nar).into()),
            nar_size: nar.len() as u64,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        let marks = [5, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 1, nar.len() as u64];
        for cut in [nar.len(), 100_003, PIECE_BYTES as usize] {
            let mut examination = Examination::new(&marks);
            for bytes in nar.chunks(cut) {
                examination.take(bytes);
            }
            let truth = examination.finish(&info).expect("right");
            let pieces = nar.chunks(PIECE_BYTES as usize);
            let digests: Vec<PieceDigest> =
                pieces.map(|piece| Sha256::digest(piece).into()).collect();
            assert_eq!(truth.pieces, digests);
            for mark in marks {
                let digest: PieceDigest = Sha256::digest(&nar[..mark as usize]).into();
                assert_eq!(truth.beginnings[&mark], digest);
            }
        }
        let mut wrong = Examination::new(&[]);
        wrong.take(&nar[1..]);
        assert!(wrong.finish(&info).is_none());
    }

    #[test]
    fn whoever_differs_from_the_truth_is_convicted_and_nobody_else() {
        let truth = Truth {
            pieces: vec![[1; 32], [2; 32]],
            beginnings: BTreeMap::new(),
        };
        let evidence = Evidence {
            pieces: vec![
                (0, peer(1), [1; 32]),
                (0, peer(2), [9; 32]),
                (1, peer(1), [2; 32]),
                (1, peer(3), [9; 32]),
                (1, peer(2), [2; 32]),
                // Beyond the end: proves nothing.
                (2, peer(4), [9; 32]),
            ],
            marks: Vec::new(),
        };
        assert_eq!(evidence.liars(&truth), [peer(2), peer(3)]);
    }

    #[test]
    fn who_sent_the_first_wrong_bytes_is_convicted_by_the_marks() {
        let beginnings = [(10, [1; 32]), (20, [2; 32]), (30, [3; 32])];
        let truth = Truth {
            pieces: Vec::new(),
            beginnings: beginnings.into(),
        };
        let mark = |end, port: Option<u16>, byte| Mark {
            end,
            sender: port.map(peer),
            digest: [byte; 32],
        };
        let evidence = |marks| Evidence {
            pieces: Vec::new(),
            marks,
        };
        let second = [
            mark(10, Some(1), 1),
            mark(20, Some(2), 9),
            mark(30, Some(3), 9),
        ];
        assert_eq!(evidence(second.into()).liars(&truth), [peer(2)]);
        let unknown = [mark(10, None, 9), mark(20, Some(2), 9)];
        assert_eq!(evidence(unknown.into()).liars(&truth), []);
    }
}
