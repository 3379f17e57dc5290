//! The holders that a window takes pieces from: what each is doing, how fast it is, and which
//! digests it has given.

use std::time::Duration;

use super::testimony::{SourceId, Vote};
use crate::{
    finder::Holder,
    format::narinfo::NarUrl,
    protocol::{PeerAddr, pieces::PieceDigest},
};

/// Holders at work at once.
const AT_ONCE: usize = 4;

/// A holder that was overtaken so often in a row is left.
const MOST_RACES_LOST: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its narinfo is on its way.
    Proving,
    Idle,
    Fetching,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claims {
    NotAsked,
    Coming,
    /// No more will come, perhaps none came.
    Ended,
}

#[derive(Debug)]
struct Source {
    holder: Holder,
    state: State,
    /// How long a piece takes it, lately.
    usual: Option<Duration>,
    races_lost: u32,
    claims: Claims,
    /// Digests of the pieces from the first one on.
    digests: Vec<PieceDigest>,
}

/// All that have taken part so far, by [`SourceId`].
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Source>);

impl Sources {
    /// Whether one more holder may begin.
    pub(super) fn has_room(&self) -> bool {
        let at_work = self.0.iter().filter(|it| it.state != State::Lost);
        at_work.count() < AT_ONCE
    }

    /// A holder whose narinfo is being asked for.
    pub(super) fn add(&mut self, holder: Holder) -> SourceId {
        self.0.push(Source {
            holder,
            state: State::Proving,
            usual: None,
            races_lost: 0,
            claims: Claims::NotAsked,
            digests: Vec::new(),
        });
        self.0.len() - 1
    }

    pub(super) fn proved(&mut self, source: SourceId, holder: Holder) {
        let it = &mut self.0[source];
        if digests_of(&holder).is_none() {
            it.claims = Claims::Ended;
        }
        it.holder = holder;
        it.state = State::Idle;
    }

    pub(super) fn holder(&self, source: SourceId) -> Holder {
        self.0[source].holder.clone()
    }

    /// Those with nothing to do.
    pub(super) fn idle(&self) -> impl Iterator<Item = SourceId> {
        self.having(|it| it.state == State::Idle)
    }

    /// Those that can send pieces.
    pub(super) fn alive(&self) -> impl Iterator<Item = SourceId> {
        self.having(|it| matches!(it.state, State::Idle | State::Fetching))
    }

    pub(super) fn is_alive(&self, source: SourceId) -> bool {
        self.alive().any(|it| it == source)
    }

    fn having(&self, wanted: impl Fn(&Source) -> bool) -> impl Iterator<Item = SourceId> {
        let all = self.0.iter().enumerate();
        all.filter(move |(_, it)| wanted(it)).map(|(id, _)| id)
    }

    /// It begins with a piece.
    pub(super) fn begin(&mut self, source: SourceId) -> Holder {
        self.0[source].state = State::Fetching;
        self.holder(source)
    }

    /// It is done with it, one way or the other.
    pub(super) fn end(&mut self, source: SourceId) {
        let it = &mut self.0[source];
        if it.state == State::Fetching {
            it.state = State::Idle;
        }
    }

    /// It cannot go on; returned the first time.
    pub(super) fn lose(&mut self, source: SourceId) -> Option<Holder> {
        let it = &mut self.0[source];
        let before = std::mem::replace(&mut it.state, State::Lost);
        if it.claims == Claims::NotAsked {
            it.claims = Claims::Ended;
        }
        (before != State::Lost).then(|| it.holder.clone())
    }

    /// Everything of this peer is lost, and what it said counts for nothing.
    pub(super) fn drop_peer(&mut self, peer: PeerAddr) {
        for source in 0..self.0.len() {
            if self.0[source].holder.address() == Some(peer) {
                self.lose(source);
                self.discredit(source);
            }
        }
    }

    /// Its digests count for nothing.
    pub(super) fn discredit(&mut self, source: SourceId) {
        let it = &mut self.0[source];
        it.claims = Claims::Ended;
        it.digests.clear();
    }

    /// A piece took it so long.
    pub(super) fn took(&mut self, source: SourceId, took: Duration) {
        let it = &mut self.0[source];
        it.usual = Some(it.usual.map_or(took, |usual| (usual * 3 + took) / 4));
        it.races_lost = 0;
    }

    /// Another holder was faster with its piece; whether that was once too often.
    pub(super) fn lost_race(&mut self, source: SourceId) -> bool {
        let others = self.alive().any(|it| it != source);
        let it = &mut self.0[source];
        it.races_lost += 1;
        others && it.races_lost >= MOST_RACES_LOST
    }

    /// How long a piece takes it.
    pub(super) fn usual(&self, source: SourceId) -> Option<Duration> {
        self.0[source].usual
    }

    /// Another one to ask for digests, until `wanted` of them give some.
    pub(super) fn next_witness(&mut self, wanted: usize) -> Option<(SourceId, PeerAddr, String)> {
        let giving = |it: &&Source| it.claims == Claims::Coming || !it.digests.is_empty();
        if self.0.iter().filter(giving).count() >= wanted {
            return None;
        }
        let source = self
            .alive()
            .find(|it| self.0[*it].claims == Claims::NotAsked)?;
        let it = &mut self.0[source];
        it.claims = Claims::Coming;
        let path = digests_of(&it.holder)?;
        Some((source, it.holder.address()?, path))
    }

    /// More of its digests.
    pub(super) fn claimed(&mut self, source: SourceId, digests: Vec<PieceDigest>) {
        let it = &mut self.0[source];
        if it.claims == Claims::Coming {
            it.digests.extend(digests);
        }
    }

    pub(super) fn claims_end(&mut self, source: SourceId) {
        self.0[source].claims = Claims::Ended;
    }

    /// No digest is waited for any more.
    pub(super) fn all_claims_end(&mut self) {
        for it in &mut self.0 {
            it.claims = Claims::Ended;
        }
    }

    /// What `source` says of a piece.
    pub(super) fn claim(&self, source: SourceId, piece: u64) -> Option<PieceDigest> {
        let digests = &self.0[source].digests;
        digests.get(usize::try_from(piece).ok()?).copied()
    }

    /// What all say of a piece.
    pub(super) fn claims(&self, piece: u64) -> Vec<Vote> {
        let claim = |source| {
            let digest = self.claim(source, piece)?;
            Some(Vote { source, digest })
        };
        (0..self.0.len()).filter_map(claim).collect()
    }

    /// Whether one of those `wanted` may yet say something.
    pub(super) fn may_claim(&self, wanted: impl Fn(SourceId) -> bool) -> bool {
        let mut may = self.having(|it| {
            let beginning = it.state == State::Proving && it.claims == Claims::NotAsked;
            it.claims == Claims::Coming || beginning
        });
        may.any(wanted)
    }

    /// All that was said, by piece.
    pub(super) fn all_claims(&self) -> impl Iterator<Item = (SourceId, u64, PieceDigest)> {
        self.0.iter().enumerate().flat_map(|(source, it)| {
            let digests = it.digests.iter().enumerate();
            digests.map(move |(piece, digest)| (source, piece as u64, *digest))
        })
    }
}

/// Where a holder has the digests of its pieces; none if it is no peer of our kind.
fn digests_of(holder: &Holder) -> Option<String> {
    match holder {
        Holder::Peer { url, .. } => digests_beside(url),
        Holder::Cache { .. } | Holder::UnprovenCache(_) => None,
        Holder::Unproven(_) | Holder::Own => None,
    }
}

fn digests_beside(url: &NarUrl) -> Option<String> {
    let name = url.as_str().strip_suffix(".nar")?;
    // `HASH-NARHASH`: other caches have other names, and no digests.
    let (_, name) = name.rsplit_once('/')?;
    let ours = name.len() == 32 + 1 + 52 && name.as_bytes()[32] == b'-';
    ours.then(|| format!("{}.pieces", url.as_str().trim_end_matches(".nar")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(port: u16) -> Holder {
        Holder::Peer {
            address: format!("127.0.0.1:{port}").parse().expect("peer"),
            url: NarUrl::parse(&format!("nar/{}-{}.nar", "0".repeat(32), "1".repeat(52)))
                .expect("URL"),
        }
    }

    #[test]
    fn digests_are_asked_of_peers_of_our_kind_alone() {
        let old = NarUrl::parse("local/nar/L25peA==.nar").expect("URL");
        assert_eq!(digests_beside(&old), None);
        assert_eq!(
            digests_of(&holder(1)),
            Some(format!("nar/{}-{}.pieces", "0".repeat(32), "1".repeat(52)))
        );
    }

    #[test]
    fn so_many_witnesses_are_asked_and_another_one_for_each_that_fails() {
        let mut sources = Sources::default();
        for port in 1..=4 {
            let source = sources.add(holder(port));
            assert!(sources.may_claim(|it| it == source), "it may yet be asked");
            sources.proved(source, holder(port));
        }
        assert!(!sources.has_room());
        let mut asked = Vec::new();
        while let Some((source, ..)) = sources.next_witness(2) {
            asked.push(source);
        }
        assert_eq!(asked, [0, 1]);
        sources.claims_end(0);
        assert_eq!(sources.next_witness(2).map(|(source, ..)| source), Some(2));
        sources.claimed(1, vec![[7; 32]]);
        sources.claims_end(1);
        assert_eq!(sources.next_witness(2), None, "it has given some");
        assert_eq!(
            sources.claims(0),
            [Vote {
                source: 1,
                digest: [7; 32]
            }]
        );
        sources.discredit(1);
        assert_eq!(sources.claims(0), []);
    }

    #[test]
    fn a_holder_that_is_overtaken_again_and_again_is_left_if_there_are_others() {
        let mut sources = Sources::default();
        for port in [1, 2] {
            let source = sources.add(holder(port));
            sources.proved(source, holder(port));
        }
        let lost: Vec<bool> = (0..3).map(|_| sources.lost_race(0)).collect();
        assert_eq!(lost, [false, false, true]);
        assert_eq!(sources.lose(1), Some(holder(2)));
        assert_eq!(sources.lose(1), None);
        assert!(!sources.lost_race(0), "the only one is kept");
    }
}
