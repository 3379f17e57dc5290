//! Who may still give the NAR of one stream, and what is left to try when those have failed.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use log::{debug, info};
use tokio::time::{sleep, timeout};

use super::StreamError;
use crate::{
    finder::{
        ASK_AGAIN_AFTER, Finder, Found, Holder,
        nar_sources::{Body, HolderError, Incompletable},
        peer_health::{Failure, Order, Success},
    },
    format::PathInfo,
    peer::PeerError,
    protocol::PeerAddr,
    system::journal::chain,
};

/// A stream that had to look for holders this often will not get far.
const MOST_ROUNDS: u32 = 32;

/// Holders lost in mid-stream that get a line in the journal.
const MOST_LINES: u32 = 8;

/// How long a second holder of a large NAR is looked for; and in all, where a lie was told: an answer
/// may be lost, or late on a busy machine.
const SECOND_HOLDER_WITHIN: Duration = Duration::from_millis(60);
const SECOND_HOLDER_AFTER_A_LIE_WITHIN: Duration = Duration::from_secs(1);

/// A holder whose NARs fail may stall for so many times as long as it may take for first bytes.
const STALL_FACTOR: u32 = 4;

/// What is left to try when the holders at hand have failed. Each piece that arrives begins
/// anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resort {
    /// Ask the LAN again.
    AskAgain,
    /// Try those again that may have recovered.
    TryAgain,
    /// Give up.
    Nothing,
}

/// The holders of one NAR.
pub(super) struct Holders {
    finder: Finder,
    found: Found,
    tried: Vec<PeerAddr>,
    /// Those that failed in a way that may pass, such as a restart.
    again: VecDeque<Holder>,
    resort: Resort,
    began: Instant,
    rounds: u32,
    lines: u32,
    /// Our own store gave wrong bytes.
    own_is_damaged: bool,
}

impl Holders {
    pub(super) fn new(finder: Finder, found: Found) -> Self {
        Self {
            finder,
            found,
            tried: Vec::new(),
            again: VecDeque::new(),
            resort: Resort::AskAgain,
            began: Instant::now(),
            rounds: 0,
            lines: 0,
            own_is_damaged: false,
        }
    }

    pub(super) fn finder(&self) -> &Finder {
        &self.finder
    }

    pub(super) fn found(&self) -> &Found {
        &self.found
    }

    pub(super) fn info(&self) -> &Arc<PathInfo> {
        &self.found.info
    }

    /// Holders that were not tried yet.
    pub(super) fn at_hand(&self) -> usize {
        self.found.holders.len()
    }

    /// Machines among them that may give any range of their NAR: one may answer at two addresses.
    pub(super) fn with_ranges(&self) -> usize {
        let holders = self.found.holders.iter();
        let addresses = holders
            .filter(|holder| !holder.is_packed())
            .map(Holder::address);
        let machine = |address: Option<PeerAddr>| {
            let instance = address.and_then(|address| self.finder.0.lan.instance_of(address));
            instance.ok_or(address)
        };
        addresses.map(machine).collect::<HashSet<_>>().len()
    }

    /// Whether another holder can go on, or might be found.
    pub(super) fn may_be_others(&self) -> bool {
        self.at_hand() > 0 || self.resort == Resort::AskAgain
    }

    /// The next one to try: the healthiest.
    pub(super) fn take(&mut self) -> Option<Holder> {
        let hash = self.info().path.hash();
        let holders = self.found.holders.iter().enumerate();
        let order = |holder: &Holder| match holder.address() {
            Some(peer) => self.finder.order_of(peer, hash),
            None => Order::Healthy,
        };
        let (next, _) = holders.min_by_key(|(at, holder)| (order(holder), *at))?;
        let holder = self.found.holders.remove(next)?;
        self.tried.extend(holder.address());
        Some(holder)
    }

    /// Another try with one that was taken, after those at hand.
    pub(super) fn put_back(&mut self, holder: Holder) {
        self.found.holders.push_back(holder);
    }

    /// Our own store is not asked any more.
    pub(super) fn own_is_damaged(&mut self) {
        self.own_is_damaged = true;
    }

    /// Keeps one for later that cannot do what is wanted now.
    pub(super) fn put_aside(&mut self, holder: Holder) {
        self.again.push_back(holder);
    }

    /// Bytes came.
    pub(super) fn progress(&mut self) {
        self.resort = Resort::AskAgain;
    }

    /// How long `holder` may be silent while others could be asked, and while nobody else can. One
    /// whose NARs fail gets less, until it has `begun` and after.
    pub(super) fn stall_limits(&self, holder: &Holder, has_begun: bool) -> [Duration; 2] {
        let limits = self.finder.limits();
        let health = &self.finder.memory().health;
        match holder.address().filter(|peer| health.nars_fail(*peer)) {
            Some(peer) => {
                let within = self.finder.first_bytes_within(peer);
                let factor = if has_begun { STALL_FACTOR } else { 1 };
                [limits.stall.min(factor * within); 2]
            }
            // Its last NAR failed: this one is not waited for as long. A command has 4 s for both, and
            // for what Nix itself takes to try again.
            None if holder
                .address()
                .is_some_and(|it| health.last_nar_failed(it)) =>
            {
                [limits.stall / 2; 2]
            }
            None => [limits.stall, limits.stall_alone],
        }
    }

    /// Accounts for a holder that cannot give the bytes from `position` on.
    pub(super) fn failed(&mut self, holder: Holder, error: &HolderError, position: u64) {
        let hash = self.info().path.hash();
        let peer = holder.address();
        // Another build of the path is nobody's failure, nor is an old version, nor our own queue.
        let blamed = !matches!(
            error,
            HolderError::OtherNar
                | HolderError::WithoutRanges
                | HolderError::Busy { .. }
                | HolderError::NarsFail
        );
        let memory = self.finder.memory();
        if let Some(peer) = peer {
            self.record_failure(peer, error);
            memory.counters.refused(error.kind());
        }
        if matches!(error, HolderError::Silent { .. }) {
            let nar_hash = self.info().nar_hash;
            let sources = &self.finder.memory().nar_sources;
            sources.give_up(Instant::now(), hash, nar_hash, Incompletable::Silent);
        }
        self.lines += 1;
        let level = if blamed && self.lines <= MOST_LINES {
            log::Level::Info
        } else {
            log::Level::Debug
        };
        let ip = peer.map_or_else(String::new, |peer| peer.ip().to_string());
        log::log!(
            level, hash:% = hash, peer = ip.as_str(), reason = error.kind();
            "{holder} cannot give {hash} from byte {position}: {}", chain(error)
        );
        if error.may_pass() && !self.again.contains(&holder) {
            self.again.push_back(holder);
        }
    }

    /// Its NAR failed, unless the narinfo did, which has been recorded, or nobody is to blame.
    fn record_failure(&self, peer: PeerAddr, error: &HolderError) {
        let failure = match error {
            HolderError::Refused(_) | HolderError::Unproven | HolderError::OtherNar => return,
            HolderError::NarsFail => return,
            HolderError::WithoutRanges | HolderError::Busy { .. } | HolderError::Overtaken => {
                return;
            }
            HolderError::Own(_) | HolderError::OwnStore(_) | HolderError::NotOurs => return,
            HolderError::Peer(PeerError::Connect { .. }) => {
                let last_answer = self.finder.0.lan.last_answer(peer);
                // The stream may have begun long ago, and the attempt to connect just now.
                let asked = Instant::now();
                Failure::Transport { asked, last_answer }
            }
            HolderError::Stalled { .. } | HolderError::Silent { .. } | HolderError::Slow { .. } => {
                let asked = self.began;
                Failure::Nar {
                    asked,
                    is_stall: true,
                }
            }
            HolderError::Peer(_) | HolderError::NoEnd | HolderError::Contradiction => {
                let asked = self.began;
                Failure::Nar {
                    asked,
                    is_stall: false,
                }
            }
        };
        let health = &self.finder.memory().health;
        health.record_failure(Instant::now(), peer, failure);
    }

    /// Opens the bytes from `range.start` at a holder that agrees to give them. When those at
    /// hand have failed, the LAN is asked once more, then those that may have recovered are
    /// tried once more: a holder that restarts answers a second later, its socket is open all
    /// the time.
    pub(super) async fn open(&mut self, range: Range<u64>) -> Result<(Holder, Body), StreamError> {
        loop {
            while let Some(holder) = self.take() {
                if !self.may_ask(&holder) {
                    self.failed(holder, &HolderError::NarsFail, range.start);
                    continue;
                }
                match self.open_at(holder, range.clone()).await {
                    Ok(opened) => return Ok(opened),
                    Err((holder, error)) => self.failed(holder, &error, range.start),
                }
            }
            self.rounds += 1;
            match self.resort {
                Resort::AskAgain if self.rounds <= MOST_ROUNDS => self.ask_again().await,
                Resort::TryAgain => {
                    self.resort = Resort::Nothing;
                    self.found.holders = std::mem::take(&mut self.again);
                }
                Resort::AskAgain | Resort::Nothing => {
                    let hash = self.info().path.hash();
                    self.finder.memory().nar_sources.forget(hash);
                    return Err(StreamError::NoHolder {
                        hash,
                        position: range.start,
                    });
                }
            }
        }
    }

    /// Whether `holder` is worth asking: Nix has had its narinfos before its NARs failed.
    fn may_ask(&self, holder: &Holder) -> bool {
        let health = &self.finder.memory().health;
        let now = Instant::now();
        holder
            .address()
            .is_none_or(|peer| health.may_ask_nar(now, peer))
    }

    /// Opens the NAR at one holder. One that is silent is left for another one, if there is any.
    async fn open_at(
        &mut self,
        holder: Holder,
        range: Range<u64>,
    ) -> Result<(Holder, Body), (Holder, HolderError)> {
        let (finder, info) = (self.finder.clone(), Arc::clone(self.info()));
        let limits = finder.limits();
        let [stall, stall_alone] = self.stall_limits(&holder, false);
        let queued = holder.clone();
        let mut turn = pin!(finder.opening_turn(&queued));
        let _turn = match timeout(limits.stall, turn.as_mut()).await {
            Ok(turn) => turn,
            Err(_) if self.has_others().await => {
                let after = limits.stall;
                return Err((holder, HolderError::Busy { after }));
            }
            Err(_) => {
                let after = limits.stall_alone;
                match timeout(after, turn).await {
                    Ok(turn) => turn,
                    Err(_) => return Err((holder, HolderError::Busy { after })),
                }
            }
        };
        let asked = holder.clone();
        let mut opening = pin!(async {
            let proved = finder.prove(asked, &info).await?;
            match finder.open(&proved, &info, range).await {
                Ok(body) => Ok((proved, body)),
                Err(error) => Err((proved, error)),
            }
        });
        if let Ok(opened) = timeout(stall, opening.as_mut()).await {
            return opened;
        }
        let error = if self.has_others().await {
            HolderError::Stalled { after: stall }
        } else {
            let after = stall_alone;
            match timeout(after.saturating_sub(stall), opening).await {
                Ok(opened) => return opened,
                Err(_) => HolderError::Silent { after },
            }
        };
        Err((holder, error))
    }

    /// Whether another holder is at hand; the LAN is asked for one if that may help.
    async fn has_others(&mut self) -> bool {
        if self.at_hand() == 0 && self.may_be_others() {
            self.ask_again().await;
        }
        self.at_hand() > 0
    }

    /// Asks the LAN, then our own store, for holders that have not failed.
    pub(super) async fn ask_again(&mut self) {
        self.resort = Resort::TryAgain;
        let (hash, nar_hash) = (self.info().path.hash(), Some(self.info().nar_hash));
        let again = match self.finder.ask(hash, nar_hash, &self.tried).await {
            Some(found) => Some(found),
            None if self.own_is_damaged => None,
            None => self.finder.own(hash, nar_hash).await,
        };
        self.add(again);
    }

    /// Whether what was passed on of this NAR a moment ago was wrong.
    pub(super) fn was_wrong(&self) -> bool {
        let (hash, nar_hash) = (self.info().path.hash(), self.info().nar_hash);
        let sources = &self.finder.memory().nar_sources;
        sources.incompletable(Instant::now(), hash, nar_hash) == Some(Incompletable::Wrong)
    }

    /// Looks for a second holder if there is none: again and again for a NAR that was wrong, as the
    /// only one that is known may be the one that sent that.
    pub(super) async fn look_for_second(&mut self) {
        let since = Instant::now();
        while self.with_ranges() < 2 {
            self.look_for_more(SECOND_HOLDER_WITHIN).await;
            let is_late = since.elapsed() >= SECOND_HOLDER_AFTER_A_LIE_WITHIN;
            if self.with_ranges() >= 2 || is_late || !self.was_wrong() {
                return;
            }
            sleep(ASK_AGAIN_AFTER).await;
        }
    }

    /// Looks for more holders than the one that is known, `patience` at most: a question to
    /// the LAN is cheap against a large NAR.
    async fn look_for_more(&mut self, patience: Duration) {
        let (hash, nar_hash) = (self.info().path.hash(), Some(self.info().nar_hash));
        let known: Vec<PeerAddr> = self
            .found
            .holders
            .iter()
            .filter_map(Holder::address)
            .collect();
        let asked = self.finder.ask(hash, nar_hash, &known);
        let more = timeout(patience, asked).await;
        let before = std::mem::take(&mut self.found.holders);
        self.add(more.ok().flatten());
        self.found.holders = before
            .into_iter()
            .chain(std::mem::take(&mut self.found.holders))
            .collect();
        if self.at_hand() > 1 {
            debug!(hash:% = hash; "{} holders of {hash}", self.at_hand());
        }
    }

    fn add(&mut self, more: Option<Found>) {
        let info = self.info();
        if let Some(more) = more.filter(|more| more.info.nar_size == info.nar_size) {
            self.found.holders = more.holders;
        }
    }

    /// `holder` gave all that it was asked for.
    pub(super) fn record_success(&self, holder: &Holder) {
        if let Some(peer) = holder.address() {
            let health = &self.finder.memory().health;
            health.record_success(peer, Success::Nar);
        }
    }

    /// One line for a NAR that came from `peer` to its end.
    pub(super) fn report(&self, peer: PeerAddr, others: usize, bytes: u64, elapsed: Duration) {
        let info = self.info();
        let memory = self.finder.memory();
        memory.counters.fetched();
        let duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let path = info.path.display(&self.finder.0.trust.store_dir);
        let beside = match others {
            0 => String::new(),
            1 => " and another peer".to_owned(),
            more => format!(" and {more} other peers"),
        };
        info!(
            hash:% = info.path.hash(), store_path:% = path, peer:% = peer.ip(), bytes = bytes, duration_us = duration_us;
            "fetched {path} from {peer}{beside}: {bytes} bytes in {} ms", elapsed.as_millis()
        );
    }
}
