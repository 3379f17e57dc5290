//! Asking again: those who were silent, and those who come later.

use std::time::Instant;

use super::{Action, Discovery, asking::MOST_DIRECT, slots::Slots};
use crate::format::StorePathHash;

impl Discovery {
    /// Asks again who has not answered.
    pub(super) fn repeat(&mut self, now: Instant, number: u64, actions: &mut Vec<Action>) {
        let Some(ask) = self.asks.ask(number) else {
            return;
        };
        // Who was asleep has said by now that it is there, or will.
        let from = if now < ask.settles {
            self.peers.present()
        } else {
            self.peers.waited()
        };
        let silent = from.minus(self.peers.covered()).minus(&ask.answered);
        let is_quiet = ask.is_quiet;
        let open: Vec<(u32, StorePathHash)> = ask
            .lookups
            .iter()
            .filter_map(|&id| self.asks.get(id).map(|lookup| (id, lookup)))
            .filter(|(_, lookup)| lookup.candidates.is_empty() || !is_quiet)
            .map(|(id, lookup)| (id, lookup.hash))
            .collect();
        // Where many are silent they are not there: what is sent to them would fill our socket.
        let worth_it = is_quiet || (1..=MOST_DIRECT).contains(&silent.len());
        if open.is_empty() || !worth_it {
            return;
        }
        self.counters.repeated += 1;
        if is_quiet {
            self.ask_all(now, &open, true, 0, actions);
        } else {
            self.ask_some(now, &silent, &open, actions);
        }
    }

    /// Asks a peer that has just shown itself, and that broadcast does not reach, for what the
    /// others were asked before. One word of it must not bring many of ours: its source may be
    /// forged.
    pub(super) fn catch_up(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        if !self.peers.catches_up(now, slot) {
            return;
        }
        let way = self.peers.way_to(slot);
        let mut left = if way.takes_batches {
            usize::MAX
        } else {
            way.most
        };
        let mut only = Slots::default();
        only.insert(slot);
        for number in self.asks.numbers() {
            let Some(ask) = self.asks.ask(number) else {
                continue;
            };
            if ask.answered.contains(slot) {
                continue;
            }
            let open: Vec<(u32, StorePathHash)> = ask
                .lookups
                .iter()
                .filter_map(|&id| self.asks.get(id).map(|lookup| (id, lookup.hash)))
                .take(left)
                .collect();
            left -= open.len();
            if open.is_empty() {
                continue;
            }
            self.ask_some(now, &only, &open, actions);
        }
    }
}
