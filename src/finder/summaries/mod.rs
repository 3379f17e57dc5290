//! What peers say they share (docs/protocol.md, "Summaries"): fetched in the background once Nix
//! has asked for some tens of paths, so that those after them are asked for where they probably
//! are, and nowhere else. A summary is never believed further than that.
//!
//! Kept by address, not by instance: whoever pretends to be another peer adds its own summary,
//! and takes nothing away from that of the other.

mod keeping;
mod state;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::debug;
use tokio::sync::Notify;

pub use self::keeping::keep;
use self::state::{Burst, Live, MOST_HELD, State};
use super::standing::{Expectation, Standing};
use crate::{
    format::StorePathHash,
    peer::{PeerError, SummaryAnswer},
    protocol::{
        PeerAddr,
        discovery::{Kind, PeerInfo},
        summary::{Content, MOST_BYTES, Stamp},
    },
    system::journal::chain,
};

/// Lookups of a burst before summaries are worth their bytes.
const LOOKUPS: u32 = 32;

/// The first version of the protocol with summaries.
const VERSION: u16 = 2;

/// A summary that was fetched whole is fetched whole again after this time.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A peer whose summary is of no use is asked for none for this long; one that was busy, or has
/// less than it said, for a moment.
const SHUNNED_FOR: Duration = Duration::from_secs(600);
const BUSY_FOR: Duration = Duration::from_secs(5);

/// The summaries of peers.
#[derive(Debug, Default)]
pub struct Summaries {
    state: Mutex<State>,
    /// A burst has become long enough.
    due: Notify,
}

/// A summary to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Errand {
    peer: PeerAddr,
    /// Who it says it is, and its generation.
    instance: u64,
    generation: u64,
    known: Option<Stamp>,
    limit: u64,
}

impl Summaries {
    /// Nix asks for a path.
    pub(super) fn asked(&self, now: Instant) {
        let state = &mut *self.lock();
        let burst = match &mut state.burst {
            Some(burst) if !burst.is_over(now) => burst,
            burst => {
                for held in state.held.values_mut() {
                    (held.positives, held.wrong, held.is_confirmed) = (0, 0, false);
                }
                state.is_planned = false;
                burst.insert(Burst {
                    began: now,
                    last: now,
                    lookups: 0,
                })
            }
        };
        burst.last = now;
        burst.lookups = burst.lookups.saturating_add(1);
        if burst.lookups == LOOKUPS {
            self.due.notify_one();
        }
    }

    /// Who probably has `hash`, those first who had most of what was asked for. As long as nobody
    /// has looked who is there, whoever was.
    pub fn consult(&self, hash: StorePathHash) -> Vec<PeerAddr> {
        let state = self.lock();
        let may_be_there = |peer| !state.is_planned || state.is_live(peer);
        let held = state.held.iter();
        let mut probable: Vec<PeerAddr> = held
            .filter(|(peer, held)| may_be_there(peer) && held.summary.contains(hash))
            .map(|(peer, _)| *peer)
            .collect();
        probable.sort_by_key(|peer| std::cmp::Reverse(state.finds.peek(peer).copied()));
        probable
    }

    /// Whether everybody who is there has told what it shares, up to date.
    pub(super) fn cover_all(&self) -> bool {
        let state = self.lock();
        let is_covered = |live: &Live| {
            let stamp = state.held.get(&live.peer).map(|held| held.summary.stamp());
            stamp.is_some_and(|it| it.instance == live.instance && it.generation >= live.generation)
        };
        state.is_planned && !state.live.is_empty() && state.live.iter().all(is_covered)
    }

    /// A path was found at `peer`.
    pub(super) fn found(&self, peer: PeerAddr) {
        *self.lock().finds.get_or_insert_mut(peer, || 0) += 1;
    }

    /// `peer` has given a path, or says that it has not: that counts if it is in its summary.
    /// True if that was once too often wrong: then discovery is to be told.
    #[must_use]
    pub(super) fn answered(
        &self,
        now: Instant,
        peer: PeerAddr,
        hash: StorePathHash,
        has: bool,
    ) -> bool {
        let mut state = self.lock();
        let held = state.held.get_mut(&peer);
        let Some(held) = held.filter(|held| held.summary.contains(hash)) else {
            return false;
        };
        held.positives += 1;
        held.wrong += u32::from(!has);
        let is_dropped = held.is_too_often_wrong();
        if is_dropped {
            debug!(
                peer:% = peer.ip();
                "{} of {} paths are absent that the summary of {peer} has", held.wrong, held.positives
            );
            state.held.remove(&peer);
            state.shunned.put(peer, now + SHUNNED_FOR);
        }
        is_dropped
    }

    /// Whose paths are known up to which generation: instances, each with what is known at all its
    /// addresses. Those alone that have confirmed it in this burst: what a peer shares may have become
    /// more without a new generation.
    pub fn stamps(&self) -> Vec<(u64, u64)> {
        let state = self.lock();
        let mut stamps: HashMap<u64, u64> = HashMap::new();
        for held in state.held.values().filter(|held| held.is_confirmed) {
            let Stamp {
                instance,
                generation,
                ..
            } = held.summary.stamp();
            let known = stamps.entry(instance).or_insert(generation);
            *known = generation.min(*known);
        }
        let is_held = |instance: u64, peer: &PeerAddr| {
            let held = state.held.get(peer);
            held.is_some_and(|held| held.is_confirmed && held.summary.stamp().instance == instance)
        };
        for live in &state.live {
            if !is_held(live.instance, &live.peer) {
                stamps.remove(&live.instance);
            }
        }
        let mut stamps: Vec<(u64, u64)> = stamps.into_iter().collect();
        stamps.sort_unstable();
        stamps
    }

    /// What the next process should know: who sent it, for how long it is good, and its bytes.
    pub fn save(&self, now: Instant) -> Vec<(PeerAddr, Duration, Vec<u8>)> {
        let state = self.lock();
        let held = state.held.iter();
        held.map(|(peer, held)| {
            let left = held.until.saturating_duration_since(now);
            (*peer, left, held.summary.encode())
        })
        .collect()
    }

    /// Takes back what [`Self::save`] gave; junk is dropped.
    pub fn restore(
        &self,
        now: Instant,
        saved: impl IntoIterator<Item = (PeerAddr, Duration, Vec<u8>)>,
    ) {
        let mut state = self.lock();
        for (peer, left, bytes) in saved {
            if let Ok(Content::Whole(summary)) = Content::parse(&bytes) {
                state.hold(peer, summary, now + left.min(DAY));
            }
        }
        for held in state.held.values_mut() {
            held.is_confirmed = false;
        }
    }

    /// Whether a burst is under way that is long enough.
    fn is_burst(&self, now: Instant) -> bool {
        let burst = self.lock().burst;
        burst.is_some_and(|burst| burst.lookups >= LOOKUPS && !burst.is_over(now))
    }

    /// What is to be fetched, of the peers that are there.
    fn plan(&self, now: Instant, peers: &[PeerInfo], standing: &Standing) -> Vec<Errand> {
        let state = &mut *self.lock();
        let Some(burst) = state.burst else {
            return Vec::new();
        };
        let mut there: Vec<_> = peers
            .iter()
            .filter(|peer| is_of(peer, now, &burst))
            .filter_map(|peer| Some((peer.http?, peer.about?, peer.present)))
            .collect();
        there.sort_by_key(|(peer, _, present)| {
            std::cmp::Reverse(present + state.finds.peek(peer).copied().unwrap_or(0))
        });
        let live = there.iter().map(|(peer, about, _)| Live {
            peer: *peer,
            instance: about.instance,
            generation: about.generation,
        });
        state.live = live.collect();
        state.is_planned = true;
        let may = |peer: &PeerAddr| {
            standing.expect(now, *peer) == Expectation::Good
                && state.shunned.peek(peer).is_none_or(|until| *until <= now)
        };
        there
            .into_iter()
            .take(MOST_HELD)
            .filter(|(peer, ..)| may(peer))
            .filter_map(|(peer, about, _)| {
                let held = state.held.get(&peer).filter(|held| {
                    held.until > now && held.summary.stamp().instance == about.instance
                });
                let stamp = held.map(|held| held.summary.stamp());
                let is_good = held.is_some_and(|held| held.is_confirmed)
                    && stamp.is_some_and(|stamp| stamp.generation >= about.generation);
                (!is_good).then_some(Errand {
                    peer,
                    instance: about.instance,
                    generation: about.generation,
                    known: stamp,
                    limit: state.room_for(peer).min(MOST_BYTES),
                })
            })
            .collect()
    }

    /// Takes in what came of an errand.
    fn take(&self, now: Instant, errand: &Errand, result: Result<SummaryAnswer, PeerError>) {
        let peer = errand.peer;
        let state = &mut *self.lock();
        let outcome = match result {
            Ok(SummaryAnswer::Whole(summary)) => {
                summary.stamp().instance == errand.instance && state.hold(peer, summary, now + DAY)
            }
            Ok(SummaryAnswer::News(news)) => {
                let held = state.held.get_mut(&peer);
                let applied = held.map(|held| held.summary.apply(&news));
                // What does not follow is fetched whole a moment later.
                if !matches!(applied, Some(Ok(()))) {
                    state.held.remove(&peer);
                }
                state.fits()
            }
            Ok(SummaryAnswer::NotModified) => true,
            Err(error) => {
                debug!(peer:% = peer.ip(); "no summary of {peer}: {}", chain(&error));
                if error.may_pass() {
                    state.shunned.put(peer, now + BUSY_FOR);
                    return;
                }
                false
            }
        };
        if !outcome {
            state.held.remove(&peer);
            state.shunned.put(peer, now + SHUNNED_FOR);
        } else if let Some(held) = state.held.get_mut(&peer) {
            held.is_confirmed = true;
            if held.summary.stamp().generation < errand.generation {
                state.shunned.put(peer, now + BUSY_FOR);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Summaries are replaced whole, and wrong counts do no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `peer` was heard in this burst, and has a summary.
fn is_of(peer: &PeerInfo, now: Instant, burst: &Burst) -> bool {
    let heard = peer.heard.and_then(|ago| now.checked_sub(ago));
    // At a second address it would pass for a second holder, and be compared with itself.
    peer.kind == Kind::New
        && !peer.is_alias
        && peer.about.is_some_and(|about| about.version >= VERSION)
        && heard.is_some_and(|heard| heard >= burst.began)
}

#[cfg(test)]
mod tests {
    use super::{
        state::{FEWEST_POSITIVES, MOST_MEMORY, QUIET},
        *,
    };
    use crate::{
        format::base32,
        protocol::{
            summary::{News, Summary, key},
            wire::About,
        },
    };

    fn address(number: u16) -> PeerAddr {
        PeerAddr::new(([127, 0, 0, 1], number).into()).expect("peer")
    }

    fn hash(number: u32) -> StorePathHash {
        let bytes = [number.to_be_bytes(); 5].concat();
        StorePathHash::parse(base32::encode(&bytes).as_bytes()).expect("hash")
    }

    fn peer(number: u16, instance: u64, generation: u64) -> PeerInfo {
        PeerInfo {
            address: address(number).socket_addr(),
            http: Some(address(number)),
            kind: Kind::New,
            about: Some(About {
                instance,
                version: VERSION,
                http_port: number,
                generation,
            }),
            is_static: false,
            is_alias: false,
            has_answered: true,
            is_waited_for: true,
            heard: Some(Duration::ZERO),
            is_covered: false,
            silent_asks: 0,
            present: 0,
            absent: 0,
        }
    }

    fn summary(instance: u64, generation: u64, numbers: std::ops::Range<u32>) -> Summary {
        let stamp = Stamp {
            instance,
            rule: 1,
            generation,
        };
        let keys = numbers.map(|number| key(hash(number))).collect();
        Summary::build(stamp, keys).expect("a summary")
    }

    struct Room {
        summaries: Summaries,
        standing: Standing,
        now: Instant,
    }

    impl Room {
        /// In the middle of a burst.
        fn new() -> Self {
            let room = Self {
                summaries: Summaries::default(),
                standing: Standing::default(),
                now: Instant::now(),
            };
            room.burst();
            room
        }

        fn burst(&self) {
            for _ in 0..LOOKUPS {
                self.summaries.asked(self.now);
            }
        }

        fn plan(&self, peers: &[PeerInfo]) -> Vec<Errand> {
            self.summaries.plan(self.now, peers, &self.standing)
        }

        /// Fetches all that is planned.
        fn fetch(&self, peers: &[PeerInfo], fetched: impl Fn(&Errand) -> SummaryAnswer) -> usize {
            let errands = self.plan(peers);
            for errand in &errands {
                let answer = fetched(errand);
                self.summaries.take(self.now, errand, Ok(answer));
            }
            errands.len()
        }

        fn stamps(&self) -> Vec<(u64, u64)> {
            self.summaries.stamps()
        }
    }

    fn late(peer: PeerAddr) -> PeerError {
        PeerError::Late {
            peer,
            limit: Duration::ZERO,
        }
    }

    #[test]
    fn a_peer_at_two_addresses_is_one_holder() {
        let room = Room::new();
        let twin = PeerInfo {
            is_alias: true,
            ..peer(2, 7, 1)
        };
        let whole = |_: &Errand| SummaryAnswer::Whole(summary(7, 1, 0..50));
        assert_eq!(room.fetch(&[peer(1, 7, 1), twin], whole), 1);
        assert_eq!(room.summaries.consult(hash(3)), [address(1)]);
        assert_eq!(room.stamps(), [(7, 1)]);
    }

    #[test]
    fn a_long_burst_is_due_and_a_short_one_is_not() {
        let (summaries, now) = (Summaries::default(), Instant::now());
        for _ in 1..LOOKUPS {
            summaries.asked(now);
        }
        assert!(!summaries.is_burst(now));
        summaries.asked(now);
        assert!(summaries.is_burst(now) && !summaries.is_burst(now + QUIET));
        summaries.asked(now + QUIET);
        assert!(!summaries.is_burst(now + QUIET), "a new one");
    }

    #[test]
    fn the_whole_is_fetched_once_and_then_what_is_new() {
        let room = Room::new();
        let whole = |errand: &Errand| {
            assert_eq!(errand.known, None);
            SummaryAnswer::Whole(summary(7, 100, 0..50))
        };
        assert_eq!(room.fetch(&[peer(1, 7, 100)], whole), 1);
        assert_eq!(room.stamps(), [(7, 100)]);
        assert_eq!(room.summaries.consult(hash(49)), [address(1)]);
        assert_eq!(room.summaries.consult(hash(50)), []);
        assert!(room.summaries.cover_all());
        assert_eq!(room.plan(&[peer(1, 7, 100)]), []);

        assert_eq!(room.plan(&[peer(1, 7, 103)]).len(), 1);
        assert!(!room.summaries.cover_all());
        let news = |errand: &Errand| {
            let known = errand.known.expect("known");
            SummaryAnswer::News(News {
                stamp: Stamp {
                    generation: 103,
                    ..known
                },
                since: known.generation,
                keys: vec![key(hash(50))],
            })
        };
        assert_eq!(room.fetch(&[peer(1, 7, 103)], news), 1);
        assert_eq!(room.stamps(), [(7, 103)]);
        assert_eq!(room.summaries.consult(hash(50)), [address(1)]);
        assert_eq!(room.plan(&[peer(1, 7, 103)]), []);

        // What does not follow is dropped, and the whole is fetched.
        let gap = |errand: &Errand| {
            let stamp = errand.known.expect("known");
            SummaryAnswer::News(News {
                stamp: Stamp { rule: 9, ..stamp },
                since: stamp.generation,
                keys: Vec::new(),
            })
        };
        assert_eq!(room.fetch(&[peer(1, 7, 104)], gap), 1);
        assert_eq!(room.plan(&[peer(1, 7, 104)])[0].known, None);
    }

    #[test]
    fn only_new_peers_that_are_there_and_in_good_standing_are_asked() {
        let mut room = Room::new();
        let old = PeerInfo {
            kind: Kind::Old,
            ..peer(1, 1, 1)
        };
        let first_version = PeerInfo {
            about: peer(2, 2, 1).about.map(|about| About {
                version: 1,
                ..about
            }),
            ..peer(2, 2, 1)
        };
        let unheard = PeerInfo {
            heard: Some(Duration::from_secs(1)),
            ..peer(3, 3, 1)
        };
        room.standing.lied(room.now, address(4));
        let peers = [old, first_version, unheard, peer(4, 4, 1), peer(5, 5, 1)];
        let planned: Vec<_> = room.plan(&peers).iter().map(|it| it.peer).collect();
        assert_eq!(planned, [address(5)]);

        // One that is busy is asked again soon, one that has none much later.
        let errand = room.plan(&peers)[0];
        room.summaries
            .take(room.now, &errand, Err(late(address(5))));
        assert_eq!(room.plan(&peers), []);
        room.now += BUSY_FOR;
        room.summaries.asked(room.now);
        assert_eq!(room.plan(&[peer(5, 5, 1)]), [errand]);
        let none = PeerError::OtherBytes { peer: address(5) };
        room.summaries.take(room.now, &errand, Err(none));
        room.now += SHUNNED_FOR - Duration::from_secs(1);
        assert_eq!(room.plan(&[peer(5, 5, 1)]), []);
        room.now += Duration::from_secs(1);
        assert_eq!(room.plan(&[peer(5, 5, 1)]), [errand]);
    }

    #[test]
    fn whoever_gave_most_comes_first_and_sixteen_are_enough() {
        let room = Room::new();
        let peers: Vec<PeerInfo> = (1..=30)
            .map(|number| PeerInfo {
                present: u64::from(number),
                ..peer(number, number.into(), 1)
            })
            .collect();
        room.summaries.found(address(1));
        (0..50).for_each(|_| room.summaries.found(address(2)));
        let planned: Vec<_> = room.plan(&peers).iter().map(|it| it.peer).collect();
        assert_eq!(planned.len(), MOST_HELD);
        assert_eq!(planned[..3], [address(2), address(30), address(29)]);
        let whole = |errand: &Errand| SummaryAnswer::Whole(summary(errand.instance, 1, 0..9));
        room.fetch(&peers, whole);
        assert_eq!(room.plan(&peers), []);
        assert_eq!(room.stamps().len(), MOST_HELD);
        assert_eq!(room.summaries.consult(hash(8))[0], address(2));
        assert!(!room.summaries.cover_all(), "not those without one");
    }

    #[test]
    fn memory_is_bounded_and_those_who_have_gone_make_room() {
        let mut room = Room::new();
        // One key, and segments as of a million.
        let mut bytes = summary(0, 1, 0..1).encode();
        bytes.truncate(49);
        bytes[37..45].copy_from_slice(&[0, 4, 0, 0, 0, 0, 0, 4]);
        bytes.resize(49 + (6 << 18), 0);
        let large = || match Content::parse(&bytes) {
            Ok(Content::Whole(summary)) => summary,
            other => panic!("{other:?}"),
        };
        let bytes = large().memory_bytes();
        let most = MOST_MEMORY / bytes;
        assert!((2..16).contains(&most), "{bytes}");
        let whole = |errand: &Errand| {
            assert!(errand.limit <= MOST_BYTES);
            SummaryAnswer::Whole(large())
        };
        let peers: Vec<PeerInfo> = (1..=10).map(|number| peer(number, 0, 1)).collect();
        room.fetch(&peers, whole);
        assert_eq!(room.summaries.lock().held.len(), most);
        assert!(room.summaries.lock().memory_bytes() <= MOST_MEMORY);

        // Its own last one makes room, and those of peers that are not there.
        let planned = room.plan(
            &(1..=10)
                .map(|number| peer(number, 0, 2))
                .collect::<Vec<_>>(),
        );
        assert_eq!(planned.len(), most);
        assert!(
            planned.iter().all(|it| it.limit >= bytes as u64),
            "{planned:?}"
        );
        room.now += SHUNNED_FOR;
        room.burst();
        let planned = room.plan(&[peer(20, 0, 1)]);
        assert!(planned[0].limit >= bytes as u64, "{planned:?}");
        assert!(
            room.summaries
                .lock()
                .hold(address(20), large(), room.now + DAY)
        );
        assert_eq!(room.summaries.lock().held.len(), most);
    }

    #[test]
    fn a_summary_that_is_often_wrong_is_dropped() {
        let mut room = Room::new();
        let whole = |_: &Errand| SummaryAnswer::Whole(summary(7, 1, 0..50));
        room.fetch(&[peer(1, 7, 1)], whole);
        let answered = |room: &Room, has| {
            let summaries = &room.summaries;
            assert!(
                !summaries.answered(room.now, address(1), hash(99), has),
                "not of it"
            );
            summaries.answered(room.now, address(1), hash(7), has)
        };
        // One in twenty is still good.
        for number in 0..100 {
            assert!(!answered(&room, number % 20 != 19));
        }
        assert_eq!(room.stamps(), [(7, 1)]);
        assert!(answered(&room, false));
        assert_eq!(
            (room.stamps(), room.plan(&[peer(1, 7, 1)])),
            (vec![], vec![])
        );
        room.now += SHUNNED_FOR;
        room.burst();
        assert_eq!(room.plan(&[peer(1, 7, 1)]).len(), 1);

        room.fetch(&[peer(1, 7, 1)], whole);
        let dropped = (1..FEWEST_POSITIVES).any(|_| answered(&room, false));
        assert!(!dropped, "too few to judge by");
        room.now += QUIET;
        room.burst();
        assert_eq!(room.stamps(), [], "not confirmed in this burst");
        room.fetch(&[peer(1, 7, 1)], |_| SummaryAnswer::NotModified);
        let dropped = (1..FEWEST_POSITIVES).any(|_| answered(&room, false));
        assert!(!dropped, "another burst");
        assert_eq!(room.stamps(), [(7, 1)]);
        assert!(answered(&room, false));
        assert_eq!(room.stamps(), []);
    }

    #[test]
    fn who_pretends_to_be_another_takes_nothing_from_it() {
        let room = Room::new();
        let (honest, liar) = (peer(1, 7, 10), peer(2, 7, 10));
        let whole = |errand: &Errand| {
            let numbers = if errand.peer == address(1) {
                0..50
            } else {
                0..0
            };
            SummaryAnswer::Whole(summary(7, 10, numbers))
        };
        room.fetch(std::slice::from_ref(&liar), whole);
        assert_eq!(room.stamps(), [(7, 10)]);
        let both = [honest, liar];
        let planned = room.plan(&both);
        assert_eq!(
            room.stamps(),
            [],
            "not all that call themselves so have told"
        );
        assert_eq!(planned.len(), 1);
        room.fetch(&both, whole);
        assert_eq!(room.stamps(), [(7, 10)]);
        assert_eq!(room.summaries.consult(hash(3)), [address(1)]);

        // A summary of somebody else is none.
        let room = Room::new();
        room.fetch(&[peer(1, 8, 10)], |_| {
            SummaryAnswer::Whole(summary(7, 10, 0..9))
        });
        assert_eq!(room.stamps(), []);
    }

    #[test]
    fn what_is_saved_is_asked_about_once_in_a_new_burst() {
        let room = Room::new();
        let whole = |_: &Errand| SummaryAnswer::Whole(summary(7, 10, 0..50));
        room.fetch(&[peer(1, 7, 10)], whole);
        let mut saved = room.summaries.save(room.now);
        saved.push((address(2), DAY, b"junk".to_vec()));

        let room = Room::new();
        room.summaries.restore(room.now, saved);
        assert_eq!(room.summaries.consult(hash(3)), [address(1)], "at once");
        assert_eq!(room.stamps(), [], "what it has not may have come");
        let same = |errand: &Errand| {
            assert_eq!(errand.known, Some(summary(7, 10, 0..50).stamp()));
            SummaryAnswer::NotModified
        };
        assert_eq!(room.fetch(&[peer(1, 7, 10)], same), 1);
        assert_eq!(room.stamps(), [(7, 10)]);
        assert_eq!(room.fetch(&[peer(1, 7, 10)], same), 0);
        // Whoever is not there is not asked, until another burst may find it.
        room.fetch(&[], same);
        assert_eq!(room.summaries.consult(hash(3)), []);
        // After a day all of it is fetched.
        let later = room.now + DAY;
        for _ in 0..LOOKUPS {
            room.summaries.asked(later);
        }
        let planned = room
            .summaries
            .plan(later, &[peer(1, 7, 10)], &room.standing);
        assert_eq!(planned[0].known, None);
    }
}
