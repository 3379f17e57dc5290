//! What a window believes: which copy of a piece is right, who is heard when holders differ,
//! and who is convicted.

use std::{sync::Arc, time::Instant};

use log::{debug, info};

use super::{
    super::testimony::{SourceId, Verdict, judge},
    Event, Window,
};
use crate::{
    finder::{
        inquiry::{Evidence, Truth, examine},
        nar_sources::HolderError,
    },
    protocol::{
        PeerAddr,
        pieces::{PIECE_BYTES, PieceDigest},
    },
};

impl Window {
    /// What to do with the piece that is next.
    pub(super) fn verdict(&self) -> Verdict {
        let may_be_heard = self.trial.is_some() || self.untried().is_some();
        if self.careful && self.truth.is_none() && may_be_heard {
            return Verdict::Tie;
        }
        let Some(head) = self.pieces.front() else {
            return Verdict::Ask;
        };
        let votes = head.votes();
        if let Some(truth) = &self.truth {
            let right = usize::try_from(self.next)
                .ok()
                .and_then(|piece| truth.pieces.get(piece));
            return match right {
                Some(right) if votes.iter().any(|vote| vote.digest == *right) => {
                    Verdict::Pass(*right)
                }
                _ => Verdict::Ask,
            };
        }
        let claims = self.sources.claims(self.next);
        let has_voted = |source: SourceId| {
            let mut all = votes.iter().chain(&claims);
            all.any(|vote| vote.source == source)
        };
        let pending = self.sources.may_claim(|source| !has_voted(source));
        let others = head.is_fetched() || self.sources.alive().any(|it| !has_voted(it));
        match judge(&votes, &claims, pending, others) {
            // Nobody is left to send what most say it is.
            Verdict::Ask
                if !votes.is_empty()
                    && !head.is_fetched()
                    && !self
                        .sources
                        .alive()
                        .any(|it| votes.iter().all(|vote| vote.source != it)) =>
            {
                Verdict::Tie
            }
            verdict => verdict,
        }
    }

    fn untried(&self) -> Option<SourceId> {
        self.sources.alive().find(|it| !self.tried.contains(it))
    }

    /// Hears those that differ one after the other; false if all were heard.
    pub(super) fn begin_trial(&mut self) -> bool {
        let Some(source) = self.untried() else {
            return false;
        };
        self.trial.get_or_insert_with(Instant::now);
        self.tried.push(source);
        let holder = self.sources.holder(source);
        info!(
            hash:% = self.info.path.hash(), reason = "wrong-bytes";
            "holders of {} differ from byte {} on; {holder} is asked for all of it",
            self.info.path.hash(), self.next * PIECE_BYTES
        );
        let (finder, info) = (self.finder.clone(), Arc::clone(&self.info));
        self.work.push(Box::pin(async move {
            Event::Tried(source, examine(&finder, &info, holder, &[]).await)
        }));
        true
    }

    pub(super) fn tried(&mut self, source: SourceId, tried: Result<Option<Truth>, HolderError>) {
        match tried {
            Ok(Some(truth)) => {
                self.truth = Some(truth);
                self.trial = None;
                for liar in self.liars() {
                    self.finder.memory().counters.corrupt();
                    self.finder.convict(&self.info, liar);
                    self.sources.drop_peer(liar);
                }
                self.forget_the_lost();
            }
            Ok(None) => {
                // It gives its own bytes and they are wrong: that is proof by itself.
                if let Some(peer) = self.sources.holder(source).address() {
                    self.finder.memory().counters.corrupt();
                    self.finder.convict(&self.info, peer);
                    self.sources.drop_peer(peer);
                    self.forget_the_lost();
                }
                self.trial = None;
            }
            Err(error) => {
                debug!("{} cannot be heard: {error}", self.sources.holder(source));
                if !self.begin_trial() {
                    self.trial = None;
                }
            }
        }
    }

    fn forget_the_lost(&mut self) {
        let sources = &self.sources;
        for piece in &mut self.pieces {
            piece.keep(|source| sources.is_alive(source));
        }
    }

    /// Peers that sent, or claimed, something other than what is known to be right: the truth,
    /// or what was delivered once the whole has its hash.
    pub(in crate::finder::stream) fn liars(&self) -> Vec<PeerAddr> {
        let first = self.range.start / PIECE_BYTES;
        let right = |piece: u64| match &self.truth {
            Some(truth) => truth.pieces.get(piece as usize).copied(),
            None => {
                let index = piece.checked_sub(first)?;
                self.delivered.get(index as usize).copied()
            }
        };
        let differs = |piece: u64, digest: PieceDigest| right(piece).is_some_and(|it| it != digest);
        let sent = self
            .sent
            .iter()
            .filter(|(piece, vote)| differs(*piece, vote.digest));
        let mut liars: Vec<SourceId> = sent.map(|(_, vote)| vote.source).collect();
        let claims = self.sources.all_claims();
        let wrong = claims.filter(|(_, piece, digest)| differs(*piece, *digest));
        liars.extend(wrong.map(|(source, ..)| source));
        let mut liars: Vec<PeerAddr> = liars
            .into_iter()
            .filter_map(|source| self.sources.holder(source).address())
            .collect();
        liars.sort_unstable();
        liars.dedup();
        liars
    }

    /// Hands over what was noted, for an inquiry.
    pub(in crate::finder::stream) fn testify(&self, evidence: &mut Evidence) {
        let peer = |source| self.sources.holder(source).address();
        for (piece, vote) in &self.sent {
            let entry = peer(vote.source).map(|peer| (*piece, peer, vote.digest));
            evidence.pieces.extend(entry);
        }
        for (source, piece, digest) in self.sources.all_claims() {
            evidence
                .pieces
                .extend(peer(source).map(|peer| (piece, peer, digest)));
        }
    }
}
