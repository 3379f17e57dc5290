//! One machine whose Nix asks for a closure, and what its daemon does for that: asks peers whose
//! summaries say that they probably have a path over HTTP, and the LAN for what no summary names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use peerix::protocol::{
    End,
    discovery::{Kind, PeerInfo},
};

use super::{
    Lan, News, closure,
    host::{Holdings, Speech, host_at},
    weather::Draws,
};

/// Summaries are worth their bytes after so many lookups.
const LOOKUPS_BEFORE_SUMMARIES: usize = 32;

const MOST_SUMMARIES: usize = 16;

/// From an answer of the gateway to the next question of the same connection of Nix: least, and
/// how much more it may be.
const PAUSE: (Duration, Duration) = (Duration::from_micros(100), Duration::from_micros(300));

/// What a narinfo takes at its holder, beside the round trip.
const SERVING: Duration = Duration::from_micros(300);

/// A connection to a host that is off fails after this; its summary is then of no use.
const NO_CONNECTION: Duration = Duration::from_millis(500);

/// Bytes a second of the LAN, for summaries.
const RATE: f64 = 100e6;

/// Of 1,000 paths that are not there a summary names so many.
const FALSE_POSITIVES: u64 = 4;

/// The fixed part of a summary, with the heads of HTTP.
const SUMMARY_HEAD_BYTES: u64 = 300;

const HASH_BYTES: u64 = 20;

/// A path that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) path: u32,
    pub(crate) took: Duration,
    /// The host it came from.
    pub(crate) from: Option<usize>,
    /// How its lookup ended: `None` without one, or if it was cancelled.
    pub(crate) end: Option<End>,
    /// A host that was awake all the time had it.
    pub(crate) is_held_awake: bool,
    /// A host had it, awake or not.
    pub(crate) is_held: bool,
}

#[derive(Debug)]
struct Summary {
    host: usize,
    generation: u64,
    holds: Holdings,
}

impl Summary {
    /// Whether it names `path`; at times one that is not there.
    fn names(&self, instance: u64, path: u32) -> bool {
        let drawn = Draws(instance ^ u64::from(path)).below(1_000);
        self.holds.contains(path) || drawn < FALSE_POSITIVES
    }
}

#[derive(Debug)]
struct Task {
    path: u32,
    began: Instant,
    awake_holders: BTreeSet<usize>,
    is_held: bool,
    /// Whom to ask over HTTP, one after the other.
    candidates: VecDeque<usize>,
    is_asking: bool,
    lookup: Option<u32>,
    end: Option<End>,
}

#[derive(Debug)]
enum Alarm {
    Next,
    Tried { task: u64, host: usize },
    Fetched { instance: u64, host: usize },
}

pub(crate) struct Gateway {
    host: usize,
    paths: VecDeque<u32>,
    tasks: BTreeMap<u64, Task>,
    tasks_by_lookup: HashMap<u32, u64>,
    alarms: HashMap<u64, Alarm>,
    counter: u64,
    begun: usize,
    summaries: BTreeMap<u64, Summary>,
    fetching: BTreeSet<u64>,
    pub(crate) has_summaries: bool,
    pub(crate) asked: Vec<Asked>,
    pub(crate) summary_bytes: u64,
    pub(crate) summary_fetches: u64,
}

impl Gateway {
    /// Asks for `paths`, `parallel` at once.
    pub(crate) fn new(lan: &mut Lan, host: usize, paths: Vec<u32>, parallel: usize) -> Self {
        let mut gateway = Self {
            host,
            paths: paths.into(),
            tasks: BTreeMap::new(),
            tasks_by_lookup: HashMap::new(),
            alarms: HashMap::new(),
            counter: 0,
            begun: 0,
            summaries: BTreeMap::new(),
            fetching: BTreeSet::new(),
            has_summaries: true,
            asked: Vec::new(),
            summary_bytes: 0,
            summary_fetches: 0,
        };
        for _ in 0..parallel {
            gateway.alarm(lan, Duration::ZERO, Alarm::Next);
        }
        gateway
    }

    /// Until all, or `count` paths, have been asked for.
    pub(crate) fn run(&mut self, lan: &mut Lan, count: usize) {
        let far = lan.now + Duration::from_secs(3_600);
        while self.asked.len() < count && !(self.paths.is_empty() && self.tasks.is_empty()) {
            assert!(lan.step(far), "a lookup never ends");
            for news in lan.news() {
                self.take(lan, news);
            }
        }
    }

    fn take(&mut self, lan: &mut Lan, news: News) {
        match news {
            News::Alarm(number) => match self.alarms.remove(&number) {
                Some(Alarm::Next) => self.begin_next(lan),
                Some(Alarm::Tried { task, host }) => self.take_answer(lan, task, host),
                Some(Alarm::Fetched { instance, host }) => self.take_summary(lan, instance, host),
                None => {}
            },
            News::Candidate(host, lookup, peer) if host == self.host => {
                if let Some(&number) = self.tasks_by_lookup.get(&lookup)
                    && let Some(task) = self.tasks.get_mut(&number)
                {
                    task.candidates.push_back(host_at(peer.socket_addr()));
                    self.go_on(lan, number);
                }
            }
            News::Finished(host, lookup, outcome) if host == self.host => {
                if let Some(number) = self.tasks_by_lookup.remove(&lookup)
                    && let Some(task) = self.tasks.get_mut(&number)
                {
                    task.lookup = None;
                    task.end = Some(outcome.end);
                    self.go_on(lan, number);
                }
            }
            News::Candidate(..) | News::Finished(..) => {}
        }
    }

    fn begin_next(&mut self, lan: &mut Lan) {
        let Some(path) = self.paths.pop_front() else {
            return;
        };
        self.begun += 1;
        self.choose_summaries(lan);
        let probable = self.summaries.iter();
        let probable = probable.filter(|&(&instance, summary)| summary.names(instance, path));
        let mut candidates: VecDeque<usize> = probable.map(|(_, summary)| summary.host).collect();
        if !candidates.is_empty() {
            let first = lan.draws.below(candidates.len() as u64) as usize;
            candidates.rotate_left(first);
        }
        let is_first_hand = candidates.is_empty();
        let awake_holders = closure::awake_holders(lan, self.host, path);
        let task = Task {
            path,
            began: lan.now,
            awake_holders,
            is_held: closure::is_held(lan, self.host, path),
            candidates,
            is_asking: false,
            lookup: None,
            end: None,
        };
        let number = self.number();
        self.tasks.insert(number, task);
        if is_first_hand {
            self.look_up(lan, number);
        } else {
            self.go_on(lan, number);
        }
    }

    fn look_up(&mut self, lan: &mut Lan, number: u64) {
        let task = self.tasks.get_mut(&number).expect("a task");
        let id = lan.lookup(self.host, task.path);
        task.lookup = Some(id);
        self.tasks_by_lookup.insert(id, number);
    }

    /// The next step of a task that may have one.
    fn go_on(&mut self, lan: &mut Lan, number: u64) {
        let Some(task) = self.tasks.get_mut(&number).filter(|task| !task.is_asking) else {
            return;
        };
        if let Some(host) = task.candidates.pop_front() {
            task.is_asking = true;
            let is_off = matches!(lan.hosts[host].speech, Speech::Gone);
            let takes = if is_off {
                NO_CONNECTION
            } else {
                lan.weather.round_trip(&mut lan.draws) + SERVING
            };
            let task = number;
            self.alarm(lan, takes, Alarm::Tried { task, host });
        } else if task.lookup.is_none() && task.end.is_none() {
            self.look_up(lan, number);
        } else if task.end.is_some() {
            self.finish(lan, number, None);
        }
    }

    fn take_answer(&mut self, lan: &mut Lan, number: u64, host: usize) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        task.is_asking = false;
        let holder = &lan.hosts[host];
        let is_off = matches!(holder.speech, Speech::Gone);
        if holder.holds.contains(task.path) && !is_off {
            return self.finish(lan, number, Some(host));
        }
        if is_off {
            self.summaries.retain(|_, summary| summary.host != host);
            self.tell_summaries(lan);
        }
        self.go_on(lan, number);
    }

    fn finish(&mut self, lan: &mut Lan, number: u64, from: Option<usize>) {
        let task = self.tasks.remove(&number).expect("a task");
        if let Some(id) = task.lookup {
            self.tasks_by_lookup.remove(&id);
            // It may have ended with the news that are taken next.
            if lan.found(self.host, id).ended.is_none() {
                lan.cancel(self.host, id);
            }
        }
        let still = |&host: &usize| lan.hosts[host].is_awake();
        self.asked.push(Asked {
            path: task.path,
            took: lan.now - task.began,
            from,
            end: task.end,
            is_held_awake: task.awake_holders.iter().any(still),
            is_held: task.is_held,
        });
        let (least, more) = PAUSE;
        let pause = least + Duration::from_micros(lan.draws.below(more.as_micros() as u64));
        self.alarm(lan, pause, Alarm::Next);
    }

    /// Fetches what there is room for, and what was added since to those that are here.
    fn choose_summaries(&mut self, lan: &mut Lan) {
        if !self.has_summaries || self.begun <= LOOKUPS_BEFORE_SUMMARIES {
            return;
        }
        let now = lan.now;
        let mut peers = lan.core(self.host).peers(now);
        peers.retain(|peer| peer.kind == Kind::New && peer.has_answered);
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.present));
        for PeerInfo { about, address, .. } in peers {
            let Some(about) = about.filter(|about| about.version >= 2) else {
                continue;
            };
            let instance = about.instance;
            let places = self.summaries.len() + self.new_fetches();
            let is_wanted = match self.summaries.get(&instance) {
                Some(summary) => summary.generation < about.generation,
                None => places < MOST_SUMMARIES,
            };
            if is_wanted && self.fetching.insert(instance) {
                self.fetch(lan, instance, host_at(address));
            }
        }
    }

    fn new_fetches(&self) -> usize {
        let fetching = self.fetching.iter();
        fetching
            .filter(|instance| !self.summaries.contains_key(instance))
            .count()
    }

    fn fetch(&mut self, lan: &mut Lan, instance: u64, host: usize) {
        let holder = &lan.hosts[host];
        // It stays among those that are being fetched: nobody tries again in this burst.
        if matches!(holder.speech, Speech::Gone) {
            return;
        }
        let bytes = SUMMARY_HEAD_BYTES
            + match self.summaries.get(&instance) {
                Some(summary) => (holder.generation - summary.generation) * HASH_BYTES,
                None => holder.holds.len() * 9 / 8,
            };
        self.summary_bytes += bytes;
        self.summary_fetches += 1;
        let trips: Duration = (0..3).map(|_| lan.weather.round_trip(&mut lan.draws)).sum();
        let takes = trips + SERVING + Duration::from_secs_f64(bytes as f64 / RATE);
        self.alarm(lan, takes, Alarm::Fetched { instance, host });
    }

    fn take_summary(&mut self, lan: &mut Lan, instance: u64, host: usize) {
        self.fetching.remove(&instance);
        let holder = &lan.hosts[host];
        if matches!(holder.speech, Speech::Gone) {
            return;
        }
        let summary = Summary {
            host,
            generation: holder.generation,
            holds: holder.holds.clone(),
        };
        self.summaries.insert(instance, summary);
        self.tell_summaries(lan);
    }

    fn tell_summaries(&self, lan: &mut Lan) {
        let known = self.summaries.iter();
        let known: Vec<(u64, u64)> = known
            .map(|(&instance, summary)| (instance, summary.generation))
            .collect();
        lan.core(self.host).set_summaries(&known);
    }

    fn alarm(&mut self, lan: &mut Lan, after: Duration, alarm: Alarm) {
        let number = self.number();
        self.alarms.insert(number, alarm);
        lan.alarm(after, number);
    }

    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}
