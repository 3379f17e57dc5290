//! Asking: which lookups go out together, as which datagrams, to whom, and to whom again.

use std::time::{Duration, Instant};

use super::{
    Action, Discovery, End, HELLO_MEMORY, Outcome,
    asks::{Ask, Asked, QUIET_TRIES, TRIES},
    deferred,
    peers::Way,
    slots::Slots,
};
use crate::{
    format::StorePathHash,
    protocol::wire::{Datagram, MAX_BATCH, Packet},
};

/// While an ask of the last millisecond is open, lookups wait for its end or for this long, and
/// go out together: whoever asks for many things at once gets by with few datagrams.
const GATHER: Duration = Duration::from_millis(1);

/// The same where an ask takes more than [`COSTLY`] answers.
const GATHER_LONGER: Duration = Duration::from_millis(2);

/// The same while the LAN wakes: by then it is known how many peers there are.
const GATHER_WAKING: Duration = Duration::from_millis(3);

/// An ask lasts no less while somebody is silent: a machine that builds may be late by so much.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

/// With more peers than this around, those that have nothing do not answer a broadcast.
pub(super) const FEW_PEERS: u16 = 32;

/// An ask that takes so many answers is worth waiting for others to go out with, answered or not,
/// as long as lookups come together.
const COSTLY: usize = 8;

/// Among many peers only so many lookups of a burst look for old ones, which a request finds and
/// a batch does not: a new peer that has missed the batch answers the request.
const REQUESTS_OF_MANY: usize = 8;

/// So many peers whose summary is not here are asked by datagrams of their own, rather than all.
pub(super) const MOST_DIRECT: usize = 16;

/// From one broadcast to the next in a burst whose lookups summaries decide, so that peers that
/// have come, and paths that were added, are heard of. Doubles up to [`LONGEST_PROBE`] while
/// nothing changes: a broadcast wakes those who sleep.
pub(super) const FIRST_PROBE: Duration = Duration::from_secs(1);
const LONGEST_PROBE: Duration = Duration::from_secs(60);

impl Discovery {
    /// A lookup that nobody need be asked for: summaries say what every peer has.
    pub(super) fn is_covered(&self, now: Instant) -> bool {
        let in_window = self.window_ends.is_some_and(|end| now < end);
        let waited = self.peers.waited();
        !in_window
            && !waited.is_empty()
            && waited.is_subset(self.peers.covered())
            && !self.peers.may_miss_someone(now)
    }

    /// Sends a question that nobody waits for, if it is time for one.
    pub(super) fn probe(
        &mut self,
        now: Instant,
        id: u32,
        hash: StorePathHash,
        actions: &mut Vec<Action>,
    ) {
        if !self.is_probe_due(now) {
            return;
        }
        self.note_probe(now);
        let frame = self.frame(now, &[(id, hash)], true);
        self.broadcast(frame.encode(), actions);
        self.broadcast(Datagram::Request { id, hash }.encode(), actions);
        for way in self.peers.ask_directly(now) {
            let packet = if way.takes_batches {
                frame.encode()
            } else {
                Datagram::Request { id, hash }.encode()
            };
            let to = way.to;
            actions.push(Action::Send { to, packet });
        }
        self.asks.remember(id, hash, now);
    }

    /// Whether those that have a summary here, and are not asked, are to be heard again.
    fn is_probe_due(&self, now: Instant) -> bool {
        let pause = self.probe_pause;
        self.all_asked.is_none_or(|at| now >= at + pause)
    }

    fn note_probe(&mut self, now: Instant) {
        self.all_asked = Some(now);
        self.probe_pause = (self.probe_pause * 2).min(LONGEST_PROBE);
        self.counters.probes += 1;
    }

    /// Something has changed out there: look again soon.
    pub(super) fn probe_soon(&mut self) {
        self.probe_pause = FIRST_PROBE;
    }

    /// Whether lookups are to wait for others to go out with.
    pub(super) fn gathers(&self, now: Instant) -> bool {
        let in_window = self.window_ends.is_some_and(|end| now < end);
        let worth_it = in_window || self.peers.has_batchers();
        let lately = now.checked_sub(self.gather_time(now));
        worth_it
            && lately.is_some_and(|since| {
                self.asks.any_since(since) || self.joint_ask > Some(since) && self.is_costly()
            })
    }

    /// When the lookups that wait go out at the latest.
    pub(super) fn gathered_at(&self) -> Option<Instant> {
        self.queued_since
            .map(|since| since + self.gather_time(since))
    }

    fn gather_time(&self, at: Instant) -> Duration {
        if self.window_ends.is_some_and(|end| at < end) {
            GATHER_WAKING
        } else if self.is_costly() {
            // Where answers are spread over a time, a part of that more is not felt.
            GATHER_LONGER.max(deferred::spread(self.known()) / 4)
        } else {
            GATHER
        }
    }

    fn is_costly(&self) -> bool {
        self.peers.waited().minus(self.peers.covered()).len() > COSTLY
    }

    /// Sends the lookups that wait.
    pub(super) fn flush(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.queued_since = None;
        let queue = std::mem::take(&mut self.queue);
        for asked in queue.chunks(MAX_BATCH) {
            self.send_ask(now, asked, actions);
        }
    }

    fn send_ask(
        &mut self,
        now: Instant,
        asked: &[(u32, StorePathHash)],
        actions: &mut Vec<Action>,
    ) {
        let in_window = self.window_ends.is_some_and(|end| now < end);
        let known = self.known();
        // A new peer that has missed the batch answers each request, so among many there are few.
        let is_many = known > FEW_PEERS;
        let singles = if in_window && is_many {
            REQUESTS_OF_MANY.saturating_sub(self.requested)
        } else if in_window || self.peers.has_plain(is_many) || self.peers.may_miss_someone(now) {
            asked.len()
        } else {
            0
        };
        let requests = singles > 0;
        self.requested = self.requested.saturating_add(asked.len());
        let missing = self.peers.waited().minus(self.peers.covered());
        let all = in_window || requests || self.peers.covered().is_empty();
        // Now and then all are asked even so: only a batch tells of what is new.
        let is_probe = !all && self.is_probe_due(now);
        let some = !all && !is_probe && missing.len() <= MOST_DIRECT;
        let is_quiet = !some && is_many;

        let settles = self.window_ends.map_or(now, |at| at.max(now));
        let (pause, patience) = self.times(now, requests, is_quiet, &missing);
        let mut ask = Ask::new(now, settles, settles.max(now + patience), pause);
        ask.set_quiet(now, is_quiet);
        self.joint_ask = (asked.len() > 1).then_some(now);
        let ids: Vec<u32> = asked.iter().map(|&(id, _)| id).collect();
        self.asks.begin(now, ask, asked);
        if some {
            self.ask_some(now, &missing, asked, actions);
        } else {
            let was_in_one = asked.iter().any(|&(_, hash)| self.sent.knows(now, hash));
            let batch = asked.len() > 1 || is_quiet || is_probe || was_in_one;
            let singles = match batch {
                true if is_probe => 1,
                true => singles,
                false => asked.len(),
            };
            if is_probe {
                self.note_probe(now);
            }
            self.ask_all(now, asked, batch, singles, actions);
        }
        let unclear = self.peers.unclear(now);
        if !unclear.is_empty() {
            let packet = self.frame(now, asked, false).encode();
            let send = |to| Action::Send {
                to,
                packet: packet.clone(),
            };
            actions.extend(unclear.into_iter().map(send));
        }
        for id in ids {
            self.finish_if_over(now, id, actions);
        }
    }

    /// After how long an ask is repeated to the silent, and how long it lasts at most: after the
    /// wake window, and as far as those in `missing` are concerned.
    fn times(
        &self,
        now: Instant,
        requests: bool,
        is_quiet: bool,
        missing: &Slots,
    ) -> (Duration, Duration) {
        let longest = self.settings.timeout;
        let spread = if is_quiet {
            deferred::spread(self.known())
        } else {
            Duration::ZERO
        };
        let window = self.peers.window(missing.iter(), longest) + spread;
        let patience = if requests && self.peers.may_miss_someone(now) {
            longest
        } else {
            (window * 3).max(LEAST_PATIENCE).min(longest)
        };
        let parts = if is_quiet { QUIET_TRIES } else { TRIES };
        (window.min(patience / u32::from(parts)), patience)
    }

    /// Asks those in `slots` one by one.
    pub(super) fn ask_some(
        &mut self,
        now: Instant,
        slots: &Slots,
        asked: &[(u32, StorePathHash)],
        actions: &mut Vec<Action>,
    ) {
        let batch = self.frame(now, asked, false).encode();
        for slot in slots.iter() {
            let way = self.peers.way_to(slot);
            self.ask_one(way, Some(&batch), asked, actions);
        }
    }

    /// Asks everybody: with one `batch`, and with a request each for the first `singles`.
    pub(super) fn ask_all(
        &mut self,
        now: Instant,
        asked: &[(u32, StorePathHash)],
        batch: bool,
        singles: usize,
        actions: &mut Vec<Action>,
    ) {
        // A request tells nothing of who has a summary here.
        if batch || self.peers.covered().is_empty() {
            self.all_asked = Some(now);
        }
        let frame = batch.then(|| self.frame(now, asked, true).encode());
        let single = |&(id, hash): &(u32, StorePathHash)| Datagram::Request { id, hash }.encode();
        // The batch goes first: whoever has heard it does not answer the requests.
        if let Some(packet) = &frame {
            self.broadcast(packet.clone(), actions);
        }
        for packet in asked.iter().take(singles).map(single) {
            self.broadcast(packet, actions);
        }
        for way in self.peers.ask_directly(now) {
            self.ask_one(way, frame.as_ref(), asked, actions);
        }
    }

    /// Asks one peer: by the `batch`, if there is one and it understands that, or one by one.
    fn ask_one(
        &mut self,
        way: Way,
        batch: Option<&Packet>,
        asked: &[(u32, StorePathHash)],
        actions: &mut Vec<Action>,
    ) {
        let to = way.to;
        if let Some(packet) = batch.filter(|_| way.takes_batches) {
            let packet = packet.clone();
            actions.push(Action::Send { to, packet });
            return;
        }
        for (number, &(id, hash)) in asked.iter().enumerate() {
            if number < way.most {
                let packet = Datagram::Request { id, hash }.encode();
                actions.push(Action::Send { to, packet });
            } else if let Asked::Now(lookup) = self.asks.asked(id) {
                // It is not asked for this, so this need not wait for it.
                lookup.answered.insert(way.slot);
            }
        }
    }

    fn broadcast(&self, packet: Packet, actions: &mut Vec<Action>) {
        if self.has_networks {
            actions.push(Action::Broadcast {
                packet,
                everywhere: false,
            });
        }
    }

    /// A batch of these lookups, whose answers will be understood.
    fn frame(&mut self, now: Instant, asked: &[(u32, StorePathHash)], to_many: bool) -> Datagram {
        for &(_, hash) in asked {
            self.sent.note(now, hash);
        }
        let id = loop {
            let id = self.ids.draw();
            if !self.asks.knows(id) {
                break id;
            }
        };
        self.asks
            .frame(id, asked.iter().map(|&(id, _)| id).collect());
        Datagram::Batch {
            id,
            known: self.known(),
            to_many,
            hashes: asked.iter().map(|&(_, hash)| hash).collect(),
        }
    }

    /// The lookups that wait need not wait for an ask that has ended.
    pub(super) fn flush_if_answered(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.queued_since.is_some() && !self.gathers(now) {
            self.flush(now, actions);
        }
    }

    pub(super) fn say_hello(&mut self, now: Instant, id: u32, actions: &mut Vec<Action>) {
        let (about, known) = (self.about(), self.known());
        let packet = Datagram::Hello { id, about, known }.encode();
        if self.has_networks {
            actions.push(Action::Broadcast {
                packet: packet.clone(),
                everywhere: true,
            });
        }
        let direct = self.peers.ask_directly(now).into_iter();
        actions.extend(direct.map(|way| Action::Send {
            to: way.to,
            packet: packet.clone(),
        }));
    }

    /// Says hello to those that have become known since the burst began.
    pub(super) fn greet(&mut self, now: Instant, id: u32, actions: &mut Vec<Action>) {
        let strangers = std::mem::take(&mut self.strangers);
        if strangers.is_empty() {
            return;
        }
        // An answer to a hello that is long past would not be taken.
        let hello = self.hello.filter(|&(_, at)| now < at + HELLO_MEMORY / 2);
        let (id, _) = *self.hello.insert(hello.unwrap_or((id, now)));
        let (about, known) = (self.about(), self.known());
        let packet = Datagram::Hello { id, about, known }.encode();
        actions.extend(strangers.into_iter().map(|to| Action::Send {
            to,
            packet: packet.clone(),
        }));
    }

    /// How many peers are around, as far as is known. One machine can say hello and here as a
    /// thousand, and among many nobody says that it has nothing, so that silence tells nothing: of
    /// those that have answered no question only they count who found no place beside many.
    pub(super) fn known(&self) -> u16 {
        let proven = self.peers.proven().len();
        let unplaced = if proven > FEW_PEERS.into() {
            self.unplaced.len()
        } else {
            0
        };
        u16::try_from(proven + unplaced).unwrap_or(u16::MAX)
    }

    /// Ends the lookup if nothing that matters can come any more.
    pub(super) fn finish_if_over(&mut self, now: Instant, id: u32, actions: &mut Vec<Action>) {
        let Some(lookup) = self.asks.get(id) else {
            return;
        };
        let Some(ask) = self.asks.ask(lookup.ask) else {
            return;
        };
        let waited = self.peers.waited().minus(self.peers.covered());
        let end = if now >= ask.ends {
            End::Timeout
        } else if now < ask.settles
            || ask.is_quiet
            || !waited.is_subset(&lookup.answered)
            || self.peers.may_miss_someone(now)
        {
            return;
        } else if self.peers.waited().is_empty() {
            End::Alone
        } else {
            End::Answered
        };
        let outcome = Outcome {
            end,
            present: lookup.candidates.len() as u32,
            absent: lookup.absent,
            silent: waited.without(&lookup.answered).count() as u32,
        };
        self.asks.remove(id);
        self.finish(id, outcome, actions);
    }

    /// What is to be done about an ask at its time.
    pub(super) fn attend(&mut self, now: Instant, number: u64, actions: &mut Vec<Action>) {
        let Some(ask) = self.asks.ask_mut(number) else {
            return;
        };
        let is_due = ask.is_to_be_repeated(now);
        if now >= ask.ends {
            if ask.counts_silence && !ask.is_quiet {
                let answered = ask.answered.clone();
                self.peers.note_silence(&answered);
            }
        } else if is_due {
            self.repeat(now, number, actions);
        }
        let lookups = self.asks.ask(number).map(|ask| ask.lookups.clone());
        for id in lookups.unwrap_or_default() {
            self.finish_if_over(now, id, actions);
        }
        self.asks.settle(now, number);
    }
}
