//! The LANs that lookups are measured on, and the limits that hold on each.

use std::time::Duration;

use super::{
    Lan,
    closure::{self, Mix},
    gateway::{Gateway, PAUSE, Pace},
    host::{Daemon, Holdings},
    report::{Limits, Report},
    weather::{WIRED, Weather},
};

/// Changes a LAN before anything is looked up.
type Arrange = fn(&mut Lan);

/// What happens in the middle of a run.
type Change = fn(&mut Lan, &mut Gateway);

/// One kind of LAN, and what is asked on it.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) weather: Weather,
    /// Peers beside the asker.
    pub(crate) peers: usize,
    pub(crate) paths: u32,
    pub(crate) mix: Mix,
    pub(crate) pace: Pace,
    /// It is run so often, each time with another seed.
    pub(crate) runs: u64,
    pub(crate) seed: u64,
    /// Percent of the peers that sleep; each needs 20 to 250 ms to wake up.
    pub(crate) sleeping: u64,
    /// Peers that speak only the first protocol.
    pub(crate) old: usize,
    /// The asker heard all peers so long ago; none: it has just been installed.
    pub(crate) heard: Option<Duration>,
    /// Peers know each other, so far as it matters: how many there are.
    pub(crate) is_settled: bool,
    /// Done before the first question: the asker is host 0.
    pub(crate) arrange: Arrange,
    /// Done after so many questions, each time.
    pub(crate) change: Option<(usize, Change)>,
    pub(crate) limits: Limits,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: String::new(),
            weather: WIRED,
            peers: 10,
            paths: 5_000,
            mix: Mix::USUAL,
            pace: Pace::CLOSURE,
            runs: 1,
            seed: 1,
            sleeping: 0,
            old: 0,
            heard: None,
            is_settled: false,
            arrange: |_| {},
            change: None,
            limits: Limits::default(),
        }
    }
}

/// Peers that a host of a settled LAN knows: enough to know the magnitude of a thousand.
const SETTLED: usize = 520;

impl Scenario {
    pub(crate) fn run(&self) -> Report {
        let mut report = Report::default();
        for run in 0..self.runs {
            let (mut lan, mut gateway) = self.lan(self.seed + run);
            match self.change {
                Some((every, change)) => {
                    while gateway.asked.len() < self.paths as usize {
                        gateway.run(&mut lan, every);
                        change(&mut lan, &mut gateway);
                    }
                }
                None => gateway.run(&mut lan, usize::MAX),
            }
            report.add(&lan, &gateway);
        }
        report
    }

    pub(crate) fn lan(&self, seed: u64) -> (Lan, Gateway) {
        let mut lan = Lan::new(seed, self.weather);
        let asker = lan.add_new([]);
        let hands = self.mix.deal(&mut lan.draws, self.peers, self.paths);
        for (number, hand) in hands.into_iter().enumerate() {
            if number < self.old {
                lan.add(Daemon::Old, hand);
            } else if lan.draws.percent(self.sleeping) {
                let boot = Duration::from_millis(20 + lan.draws.below(230));
                lan.add_asleep(boot, hand);
            } else {
                lan.add_new(hand);
            }
        }
        if self.is_settled {
            for host in 1..=self.peers {
                lan.restart(host, SETTLED, Duration::ZERO);
            }
        }
        if let Some(heard) = self.heard {
            lan.restart(asker, self.peers, heard);
        }
        (self.arrange)(&mut lan);
        let order = closure::order(&mut lan.draws, self.paths);
        let gateway = Gateway::new(&mut lan, asker, order, self.pace);
        (lan, gateway)
    }

    fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

fn us(time: u64) -> Duration {
    Duration::from_micros(time)
}

/// Sizes of a LAN.
const SIZES: [usize; 5] = [2, 10, 64, 100, 1_000];

/// What at least is found: of 1,000 paths.
fn found(loss: u64) -> Option<f64> {
    Some(if loss == 0 { 1_000.0 } else { 999.0 })
}

/// Bursts of 25 questions in one moment.
fn rounds() -> impl Iterator<Item = Scenario> {
    let kinds = [("none", Mix::NONE), ("one", Mix::ONE), ("all", Mix::ALL)];
    SIZES.into_iter().flat_map(move |peers| {
        kinds.into_iter().map(move |(name, mix)| {
            let each = 0.1 * peers.min(64) as f64 + 0.3;
            let datagrams = match name {
                _ if peers > 64 => 25.0,
                "one" => 2.0 * each,
                _ => each,
            };
            let beyond = match peers {
                ..=64 => us(500),
                65..=100 => ms(14),
                _ => ms(25),
            };
            let round_trip = match peers {
                ..=64 => WIRED.longest_round_trip(),
                _ => Duration::ZERO,
            };
            let scenario = Scenario {
                peers,
                mix,
                paths: 5_000,
                pace: Pace::ROUNDS,
                is_settled: peers > 64,
                limits: Limits {
                    found: found(0),
                    datagrams: Some(datagrams),
                    answers: Some(750),
                    miss_p99: Some(beyond + round_trip),
                    ..Limits::default()
                },
                ..Scenario::default()
            };
            scenario.named(format!("{peers} peers, held by {name}, 25 in step"))
        })
    })
}

/// A closure as Nix asks for it, in all weathers.
fn closures() -> impl Iterator<Item = Scenario> {
    SIZES.into_iter().flat_map(|peers| {
        [0, 5].into_iter().map(move |loss| {
            let weather = Weather {
                loss,
                duplicates: 5,
                reordered: 30,
                ..WIRED
            };
            let scenario = Scenario {
                peers,
                weather,
                paths: if peers <= 10 { 20_000 } else { 4_000 },
                is_settled: peers > 64,
                limits: Limits {
                    found: found(loss),
                    answers: Some(750),
                    ..Limits::default()
                },
                ..Scenario::default()
            };
            scenario.named(format!("{peers} peers, closure, loss {loss} %"))
        })
    })
}

/// Peers that sleep, or that are not known, or that come and go.
fn changes() -> impl Iterator<Item = Scenario> {
    [0, 5].into_iter().flat_map(|loss| {
        let base = Scenario {
            weather: Weather { loss, ..WIRED },
            limits: Limits {
                found: found(loss),
                ..Limits::default()
            },
            ..Scenario::default()
        };
        let name = |name: &str| format!("{name}, loss {loss} %");
        [
            Scenario {
                peers: 100,
                paths: 500,
                runs: 40,
                ..base.clone()
            }
            .named(name("100 peers unknown at first")),
            Scenario {
                peers: 10,
                paths: 500,
                runs: 40,
                sleeping: 40,
                ..base.clone()
            }
            .named(name("10 peers, some asleep, first burst")),
            Scenario {
                peers: 10,
                paths: 500,
                runs: 40,
                sleeping: 40,
                heard: Some(Duration::from_secs(600)),
                ..base.clone()
            }
            .named(name("10 known peers, some asleep")),
            Scenario {
                peers: 1_000,
                paths: 500,
                sleeping: 40,
                heard: Some(Duration::from_secs(600)),
                ..base.clone()
            }
            .named(name("1,000 known peers, some asleep")),
            Scenario {
                peers: 30,
                paths: 8_000,
                pace: Pace::Connections(25, ms(50)),
                change: Some((200, come_and_go)),
                ..base.clone()
            }
            .named(name("30 peers that come and go")),
            Scenario {
                peers: 30,
                paths: 4_000,
                pace: Pace::CHAIN,
                mix: Mix::NONE,
                change: Some((1, gain)),
                ..base
            }
            .named(name("a path of 1 ms ago")),
        ]
    })
}

/// A host leaves, or comes again.
fn come_and_go(lan: &mut Lan, _: &mut Gateway) {
    let host = 1 + lan.draws.below(lan.hosts.len() as u64 - 1) as usize;
    if lan.hosts[host].is_off() {
        lan.come(host);
    } else {
        lan.leave(host);
    }
}

/// A host gets the path that is asked for next.
fn gain(lan: &mut Lan, gateway: &mut Gateway) {
    let host = 1 + lan.draws.below(lan.hosts.len() as u64 - 1) as usize;
    if let Some(path) = gateway.next_path() {
        lan.hosts[host].holds.insert(path);
    }
}

/// One peer of ten that is off, or slow: it delays nothing that others have.
fn bad_ones() -> impl Iterator<Item = Scenario> {
    let kinds: [(&str, Arrange); 2] = [
        ("dead", |lan| {
            lan.hosts[1].holds = Holdings::default();
            lan.leave(1);
        }),
        ("slow", |lan| {
            lan.hosts[1].holds = Holdings::default();
            lan.hosts[1].distance = ms(30);
        }),
    ];
    kinds.into_iter().flat_map(|(name, arrange)| {
        [("chain", Pace::CHAIN), ("burst", Pace::ROUNDS)].map(|(kind, pace)| {
            Scenario {
                paths: 200,
                pace,
                arrange,
                heard: Some(ms(10_000)),
                limits: Limits {
                    found: found(0),
                    longest_hit: Some(WIRED.longest_round_trip() * 2 + us(300) + ms(1)),
                    ..Limits::default()
                },
                ..Scenario::default()
            }
            .named(format!("one of ten {name}, {kind}"))
        })
    })
}

/// A chain of 200 misses among peers that do not answer.
fn waits() -> impl Iterator<Item = Scenario> {
    let kinds: [(&str, Arrange); 6] = [
        ("all well", |_| {}),
        ("no only after 480 ms", |lan| {
            lan.hosts[1].distance = ms(240)
        }),
        ("HTTP stuck", |lan| {
            lan.hosts[1].is_http_stuck = true;
            lan.hosts[1].holds = (0..200).collect();
        }),
        ("configured off, sleeper", |lan| {
            lan.leave(1);
            lan.configure(0, &[1]);
            lan.add_asleep(ms(200), []);
        }),
        ("the same, old peer", |lan| {
            lan.leave(1);
            lan.configure(0, &[1]);
            lan.add_asleep(ms(200), []);
            lan.add(Daemon::Old, []);
        }),
        ("a thousand forged", |lan| {
            lan.add(Daemon::Forger, []);
        }),
    ];
    // A round trip and the pause of Nix each time.
    let each = WIRED.longest_round_trip() + PAUSE * 2;
    kinds.into_iter().map(move |(name, arrange)| {
        Scenario {
            paths: 200,
            pace: Pace::CHAIN,
            mix: Mix::NONE,
            arrange,
            heard: Some(ms(10_000)),
            limits: Limits {
                took: Some(each * 200 + ms(350)),
                ..Limits::default()
            },
            ..Scenario::default()
        }
        .named(format!("200 misses: {name}"))
    })
}

/// One holder that is far away.
fn distances() -> impl Iterator<Item = Scenario> {
    let kinds: [(u64, Arrange); 4] = [
        (1, |lan| lan.hosts[1].distance = us(500)),
        (20, |lan| lan.hosts[1].distance = ms(10)),
        (60, |lan| lan.hosts[1].distance = ms(30)),
        (150, |lan| lan.hosts[1].distance = ms(75)),
    ];
    kinds.into_iter().flat_map(|(time, arrange)| {
        [0, 5].into_iter().flat_map(move |loss| {
            [("chain", Pace::CHAIN), ("closure", Pace::CLOSURE)].map(move |(kind, pace)| {
                Scenario {
                    peers: 1,
                    paths: 200,
                    weather: Weather { loss, ..WIRED },
                    pace,
                    mix: Mix::ALL,
                    arrange,
                    limits: Limits {
                        found: Some(if loss == 0 { 1_000.0 } else { 995.0 }),
                        ..Limits::default()
                    },
                    ..Scenario::default()
                }
                .named(format!("holder {time} ms away, {kind}, loss {loss} %"))
            })
        })
    })
}

/// All that is measured.
pub(crate) fn all() -> Vec<Scenario> {
    rounds()
        .chain(closures())
        .chain(changes())
        .chain(bad_ones())
        .chain(waits())
        .chain(distances())
        .collect()
}
