//! One line of the table: what is known of one address, and how long its answers take.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::saved::SavedPeer;
use crate::protocol::{
    PeerAddr,
    wire::{About, BATCHES_SINCE},
};

/// After this many asks in a row without a word from it a peer is not waited for, until it is
/// heard again: one that left without a goodbye costs this many times its window.
pub(super) const SILENT_ASKS: u8 = 4;

/// So many asks of a burst wait for a configured peer of which nothing is known: it may be an
/// old one, which never says that it has nothing.
pub(super) const UNKNOWN_ASKS: u8 = 16;

/// The same of one that is only announced: no old peer is, and anybody can announce one that does
/// not exist, each second another.
const ANNOUNCED_ASKS: u8 = 2;

/// Batches of its own that one who answers like an old peer is sent in a burst.
const TRIALS: u8 = 4;

/// A window is never shorter: a busy machine takes so long at times.
const LEAST_WINDOW: Duration = Duration::from_millis(2);

/// What is known of how a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing yet, or nothing since the burst began.
    Unknown,
    /// It asks and answers, and never said hello, here or absent: it answers only what it has.
    Old,
    /// It answers every request.
    New,
}

/// What a datagram says about its sender.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sign {
    Request,
    Batch,
    Response,
    Absent,
    Hello(About),
    Here(About),
    Answer(About),
}

impl Sign {
    /// Whether only who received our random id can have sent it.
    pub(super) fn answers(self) -> bool {
        match self {
            Self::Response | Self::Absent | Self::Here(_) | Self::Answer(_) => true,
            Self::Request | Self::Batch | Self::Hello(_) => false,
        }
    }

    /// Whether it ends a silence. Anybody can send a question in a peer's name, and a here can
    /// come from a daemon whose answers are lost.
    fn ends_silence(self) -> bool {
        matches!(self, Self::Response | Self::Absent | Self::Answer(_))
    }
}

/// How long answers take: a mean and how far from it they are, both moving (as in RFC 6298).
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    mean: Duration,
    deviation: Duration,
}

impl RoundTrip {
    fn window(self) -> Duration {
        (self.mean + self.deviation * 4).max(LEAST_WINDOW)
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) is_static: bool,
    /// It is so because it was announced, as anybody can be.
    pub(super) is_announced: bool,
    /// The configuration named this machine itself.
    pub(super) is_myself: bool,
    /// Broadcast reaches this static peer too: it answered the same request twice.
    pub(super) is_doubled: bool,
    /// The slot of another address at which the same peer is heard, and asked.
    pub(super) twin: Option<usize>,
    pub(super) kind: Kind,
    pub(super) about: Option<About>,
    pub(super) has_answered: bool,
    /// It has answered a question, not a hello alone.
    pub(super) takes_questions: bool,
    pub(super) heard: Option<Instant>,
    /// It has said who it is since the burst began, in answer to us.
    pub(super) is_confirmed: bool,
    /// Batches that were sent to it in this burst, to find out whether it is an old one.
    pub(super) trials: u8,
    /// In this burst it was sent what was open when it showed itself.
    pub(super) is_caught_up: bool,
    /// When it was last sent something that others were not.
    pub(super) asked_alone: Option<Instant>,
    pub(super) silent_asks: u8,
    /// When it was last asked directly.
    pub(super) asked: Option<Instant>,
    /// The last hello of it that was answered.
    pub(super) answered_hello: Option<u32>,
    pub(super) http: Option<PeerAddr>,
    pub(super) present: u64,
    pub(super) absent: u64,
    round_trip: Option<RoundTrip>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            is_static: false,
            is_announced: false,
            is_myself: false,
            is_doubled: false,
            twin: None,
            kind: Kind::Unknown,
            about: None,
            has_answered: false,
            takes_questions: false,
            heard: None,
            is_confirmed: false,
            trials: 0,
            is_caught_up: false,
            asked_alone: None,
            silent_asks: 0,
            asked: None,
            answered_hello: None,
            http: None,
            present: 0,
            absent: 0,
            round_trip: None,
        }
    }

    /// What a burst has to find out anew. Old peers stay old, they do not answer a hello.
    pub(super) fn begin_burst(&mut self) {
        self.is_myself = false;
        self.is_doubled = false;
        self.twin = None;
        self.is_confirmed = false;
        self.trials = 0;
        self.is_caught_up = false;
        self.silent_asks = 0;
        if self.kind == Kind::New {
            self.kind = Kind::Unknown;
        }
    }

    /// Takes in what a datagram says of it.
    pub(super) fn learn(&mut self, now: Instant, sign: Sign) {
        self.heard = Some(now);
        self.has_answered |= sign.answers();
        if sign.ends_silence() {
            self.silent_asks = 0;
            self.takes_questions = true;
        }
        match sign {
            Sign::Request | Sign::Response if self.kind == Kind::Unknown => self.kind = Kind::Old,
            Sign::Request | Sign::Response => {}
            Sign::Absent | Sign::Batch => self.kind = Kind::New,
            // Anybody can say hello in its name: that takes back nothing of what it said itself,
            // and confirms no other instance.
            Sign::Hello(about) => {
                self.kind = Kind::New;
                let known = self.about.filter(|known| known.instance == about.instance);
                let generation = known.map_or(0, |known| known.generation);
                self.is_confirmed &= known.is_some();
                self.introduce(About {
                    generation: about.generation.max(generation),
                    ..about
                });
            }
            Sign::Here(about) | Sign::Answer(about) => {
                self.kind = Kind::New;
                self.is_confirmed = true;
                self.introduce(about);
            }
        }
    }

    pub(super) fn introduce(&mut self, about: About) {
        self.about = Some(about);
        self.http = http_addr(self.address, about.http_port);
    }

    /// An answer came so long after the ask was `first` sent, and `last`. Of one that was sent again
    /// it is not known which of the two was answered: it counts if it came too soon for the second,
    /// or too late for both.
    pub(super) fn measure(&mut self, first: Duration, last: Duration) {
        let took = match self.round_trip {
            _ if first == last => first,
            Some(usual) if last < usual.mean / 2 => first,
            Some(usual) if last > usual.window() => last,
            _ => return,
        };
        self.round_trip = Some(match self.round_trip {
            Some(RoundTrip { mean, deviation }) => RoundTrip {
                mean: (mean * 7 + took) / 8,
                deviation: (deviation * 3 + mean.abs_diff(took)) / 4,
            },
            None => RoundTrip {
                mean: took,
                deviation: took / 2,
            },
        });
    }

    /// How long to wait for its answer before it is asked again: `longest` as long as nothing
    /// was measured.
    pub(super) fn window(&self, longest: Duration) -> Duration {
        self.round_trip
            .map_or(longest, RoundTrip::window)
            .min(longest)
    }

    /// What the next process should know of it, if it was ever heard.
    pub(super) fn save(&self, now: Instant) -> Option<SavedPeer> {
        Some(SavedPeer {
            address: self.address,
            kind: self.kind,
            about: self.about,
            has_answered: self.has_answered,
            heard_seconds_ago: now.saturating_duration_since(self.heard?).as_secs(),
        })
    }

    /// Whether it has answered without saying who it is, and may yet be found to be new.
    pub(super) fn is_unclear(&self) -> bool {
        self.has_answered && self.about.is_none() && self.trials < TRIALS
    }

    /// Whether it understands batches.
    pub(super) fn takes_batches(&self) -> bool {
        self.kind == Kind::New
            && self
                .about
                .is_some_and(|about| about.version >= BATCHES_SINCE)
    }

    pub(super) fn deserves_waiting(&self) -> bool {
        self.kind == Kind::New
            && self.has_answered
            && !self.is_myself
            && self.twin.is_none()
            && self.silent_asks < SILENT_ASKS
    }

    pub(super) fn keeps_window(&self) -> bool {
        let most = if self.is_announced {
            ANNOUNCED_ASKS
        } else {
            UNKNOWN_ASKS
        };
        self.is_static && self.kind == Kind::Unknown && !self.is_myself && self.silent_asks < most
    }

    /// Whether it is asked by datagrams of its own: configured ones, and those that broadcast
    /// does not reach, as they are heard by IPv6 alone.
    pub(super) fn is_direct(&self) -> bool {
        let by_multicast = self.address.is_ipv6() && self.kind == Kind::New && self.has_answered;
        (self.is_static || by_multicast)
            && !self.is_myself
            && !self.is_doubled
            && self.twin.is_none()
    }
}

/// Where a peer that is heard at `udp` serves.
pub(super) fn http_addr(udp: SocketAddr, port: u16) -> Option<PeerAddr> {
    let mut http = udp;
    http.set_port(port);
    PeerAddr::new(http).ok()
}
