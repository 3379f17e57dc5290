//! One machine whose Nix asks for a closure, and what its daemon does for that: looks each path
//! up, and asks those that say they have it for the narinfo over HTTP; the first that gives it
//! ends the lookup.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use peerix::protocol::{
    PeerAddr,
    discovery::{End, LookupId},
};

use super::{Lan, News, closure, host::host_at};

/// What a narinfo takes at its holder, beside the round trip.
const SERVING: Duration = Duration::from_micros(300);

/// The next candidate is asked beside one that has not answered after this.
const HEDGE: Duration = Duration::from_millis(2);

/// What any request may take without being paid.
const FREE_WAIT: Duration = Duration::from_millis(5);

/// How Nix asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many paths in one moment, the next ones when all were answered.
    Rounds(usize),
    /// So many connections; from an answer to the next question of the same connection it takes
    /// this long, and up to as much again.
    Connections(usize, Duration),
}

/// From an answer of the gateway to the next question of the same connection of Nix.
pub(crate) const PAUSE: Duration = Duration::from_micros(150);

impl Pace {
    /// One path after the other, as along a chain of references.
    pub(crate) const CHAIN: Self = Self::Connections(1, PAUSE);
    /// As Nix asks for a closure.
    pub(crate) const CLOSURE: Self = Self::Connections(25, PAUSE);
    /// The 25 connections of Nix in step.
    pub(crate) const ROUNDS: Self = Self::Rounds(25);
}

/// A path that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) path: u32,
    pub(crate) took: Duration,
    /// The host that gave it.
    pub(crate) from: Option<usize>,
    /// How its lookup ended: `None` if it was cancelled.
    pub(crate) end: Option<End>,
    /// A host had it, from the question to the end.
    pub(crate) is_held: bool,
}

#[derive(Debug)]
struct Task {
    path: u32,
    began: Instant,
    holders: BTreeSet<usize>,
    lookup: Option<LookupId>,
    end: Option<End>,
    /// Whom to ask over HTTP; peers with a known round trip come first.
    candidates: VecDeque<PeerAddr>,
    /// Who was asked and has not answered, and whether the wait for it is paid.
    asking: BTreeMap<PeerAddr, bool>,
    paid_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Alarm {
    Next,
    /// A host has answered.
    Tried(u64, PeerAddr),
    /// Another candidate may be asked.
    Hedge(u64),
    /// The wait for a host is no longer free.
    Late(u64, PeerAddr),
    /// The budget may be used up.
    Over(u64),
}

pub(crate) struct Gateway {
    host: usize,
    paths: VecDeque<u32>,
    pace: Pace,
    tasks: BTreeMap<u64, Task>,
    tasks_by_lookup: HashMap<LookupId, u64>,
    alarms: HashMap<u64, Alarm>,
    counter: u64,
    /// Peers that did not answer in all the time that there was.
    failed: BTreeSet<PeerAddr>,
    pub(crate) asked: Vec<Asked>,
}

impl Gateway {
    /// Asks for `paths`.
    pub(crate) fn new(lan: &mut Lan, host: usize, paths: Vec<u32>, pace: Pace) -> Self {
        let mut gateway = Self {
            host,
            paths: paths.into(),
            pace,
            tasks: BTreeMap::new(),
            tasks_by_lookup: HashMap::new(),
            alarms: HashMap::new(),
            counter: 0,
            failed: BTreeSet::new(),
            asked: Vec::new(),
        };
        let (Pace::Rounds(parallel) | Pace::Connections(parallel, _)) = pace;
        for _ in 0..parallel {
            gateway.alarm(lan, Duration::ZERO, Alarm::Next);
        }
        gateway
    }

    /// Until all paths, or `count` more, have been asked for.
    pub(crate) fn run(&mut self, lan: &mut Lan, count: usize) {
        let far = lan.now + Duration::from_secs(3_600);
        let until = self.asked.len().saturating_add(count);
        while self.asked.len() < until && !(self.paths.is_empty() && self.tasks.is_empty()) {
            assert!(lan.step(far), "a lookup never ends");
            for news in lan.news() {
                self.take(lan, news);
            }
        }
    }

    /// What is asked for next.
    pub(crate) fn next_path(&self) -> Option<u32> {
        self.paths.front().copied()
    }

    fn take(&mut self, lan: &mut Lan, news: News) {
        match news {
            News::Alarm(number) => match self.alarms.remove(&number) {
                Some(Alarm::Next) => self.begin_next(lan),
                Some(Alarm::Tried(task, peer)) => self.take_answer(lan, task, peer),
                Some(Alarm::Hedge(task)) => self.ask_next(lan, task),
                Some(Alarm::Late(task, peer)) => self.pay(lan, task, peer),
                Some(Alarm::Over(task)) => self.check_budget(lan, task),
                None => {}
            },
            News::Candidate(host, lookup, peer) if host == self.host => {
                if let Some(&number) = self.tasks_by_lookup.get(&lookup)
                    && let Some(task) = self.tasks.get_mut(&number)
                {
                    match lan.core(host).round_trip(peer) {
                        Some(_) => task.candidates.push_front(peer),
                        None => task.candidates.push_back(peer),
                    }
                    if task.asking.is_empty() {
                        self.ask_next(lan, number);
                    }
                }
            }
            News::Finished(host, lookup, outcome) if host == self.host => {
                if let Some(number) = self.tasks_by_lookup.remove(&lookup)
                    && let Some(task) = self.tasks.get_mut(&number)
                {
                    task.lookup = None;
                    task.end = Some(outcome.end);
                    self.end_if_over(lan, number);
                }
            }
            News::Candidate(..) | News::Finished(..) => {}
        }
    }

    fn begin_next(&mut self, lan: &mut Lan) {
        let Some(path) = self.paths.pop_front() else {
            return;
        };
        let id = lan.lookup(self.host, path);
        let task = Task {
            path,
            began: lan.now,
            holders: closure::holders(lan, self.host, path),
            lookup: Some(id),
            end: None,
            candidates: VecDeque::new(),
            asking: BTreeMap::new(),
            paid_since: None,
        };
        self.counter += 1;
        self.tasks.insert(self.counter, task);
        self.tasks_by_lookup.insert(id, self.counter);
    }

    /// Asks one more candidate for the narinfo.
    fn ask_next(&mut self, lan: &mut Lan, number: u64) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        let Some(peer) = task.candidates.pop_front() else {
            return self.end_if_over(lan, number);
        };
        let now = lan.now;
        let core = lan.core(self.host);
        if self.failed.contains(&peer) && core.budget().left(now).is_zero() {
            return self.ask_next(lan, number);
        }
        task.asking.insert(peer, false);
        let free = match core.round_trip(peer) {
            Some(time) if core.is_trusted_to_answer(now, peer) => time.max(FREE_WAIT),
            _ => FREE_WAIT,
        };
        let host = host_at(peer.socket_addr()).filter(|&host| host < lan.hosts.len());
        let is_up = |&host: &usize| lan.hosts[host].is_awake() && !lan.hosts[host].is_http_stuck;
        if let Some(host) = host.filter(is_up) {
            let takes = lan.round_trip(self.host, host) + SERVING;
            self.alarm(lan, takes, Alarm::Tried(number, peer));
        }
        self.alarm(lan, free, Alarm::Late(number, peer));
        self.alarm(lan, HEDGE, Alarm::Hedge(number));
    }

    fn take_answer(&mut self, lan: &mut Lan, number: u64, peer: PeerAddr) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        // It may have been given up.
        if task.asking.remove(&peer).is_none() {
            return;
        }
        let host = host_at(peer.socket_addr()).expect("it has answered");
        let holder = &lan.hosts[host];
        if holder.holds.contains(task.path) && holder.is_awake() {
            let (now, paid_since) = (lan.now, task.paid_since);
            let core = lan.core(self.host);
            core.record_given(now, peer);
            self.failed.remove(&peer);
            if let Some(since) = paid_since {
                core.budget().refund(now, since..now);
            }
            return self.finish(lan, number, Some(host));
        }
        self.stop_paying(lan, number);
        if self.tasks[&number].asking.is_empty() {
            self.ask_next(lan, number);
        }
    }

    fn pay(&mut self, lan: &mut Lan, number: u64, peer: PeerAddr) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        if let Some(is_paid) = task.asking.get_mut(&peer) {
            *is_paid = true;
            if task.paid_since.is_none() {
                task.paid_since = Some(lan.now);
                let now = lan.now;
                lan.core(self.host).budget().begin(now);
            }
            self.check_budget(lan, number);
        }
    }

    /// With the budget used up, only free waits go on.
    fn check_budget(&mut self, lan: &mut Lan, number: u64) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        if task.paid_since.is_none() {
            return;
        }
        let now = lan.now;
        let left = lan.core(self.host).budget().left(now);
        if !left.is_zero() {
            return self.alarm(lan, left, Alarm::Over(number));
        }
        let late = task.asking.iter().filter(|(_, is_paid)| **is_paid);
        self.failed.extend(late.map(|(&peer, _)| peer));
        task.asking.retain(|_, is_paid| !*is_paid);
        self.stop_paying(lan, number);
        if self.tasks[&number].asking.is_empty() {
            self.ask_next(lan, number);
        }
    }

    fn stop_paying(&mut self, lan: &mut Lan, number: u64) {
        let task = self.tasks.get_mut(&number).expect("a task");
        let is_paying = task.asking.values().any(|&is_paid| is_paid);
        if !is_paying && task.paid_since.take().is_some() {
            let now = lan.now;
            lan.core(self.host).budget().end(now);
        }
    }

    fn end_if_over(&mut self, lan: &mut Lan, number: u64) {
        let task = &self.tasks[&number];
        let is_waiting = !task.asking.is_empty() || !task.candidates.is_empty();
        if task.lookup.is_none() && !is_waiting {
            self.finish(lan, number, None);
        }
    }

    fn finish(&mut self, lan: &mut Lan, number: u64, from: Option<usize>) {
        let task = self.tasks.get_mut(&number).expect("a task");
        task.asking.clear();
        self.stop_paying(lan, number);
        let task = self.tasks.remove(&number).expect("a task");
        if let Some(id) = task.lookup {
            self.tasks_by_lookup.remove(&id);
            // It may have ended with the news that are taken next.
            if lan.found(self.host, id).ended.is_none() {
                lan.cancel(self.host, id);
            }
        }
        let still = |&host: &usize| !lan.hosts[host].is_off();
        self.asked.push(Asked {
            path: task.path,
            took: lan.now - task.began,
            from,
            end: task.end,
            is_held: task.holders.iter().any(still),
        });
        match self.pace {
            Pace::Rounds(parallel) => {
                if self.tasks.is_empty() {
                    for _ in 0..parallel {
                        self.schedule_next(lan, PAUSE);
                    }
                }
            }
            Pace::Connections(_, pause) => {
                let more = lan.draws.below(pause.as_micros() as u64);
                self.schedule_next(lan, pause + Duration::from_micros(more));
            }
        }
    }

    fn schedule_next(&mut self, lan: &mut Lan, pause: Duration) {
        self.alarm(lan, pause, Alarm::Next);
    }

    fn alarm(&mut self, lan: &mut Lan, after: Duration, alarm: Alarm) {
        self.counter += 1;
        self.alarms.insert(self.counter, alarm);
        lan.alarm(after, self.counter);
    }
}
