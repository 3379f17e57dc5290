//! One host of the simulated LAN: how it responds, where it is, and what it holds.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use peerix::{
    format::StorePathHash,
    protocol::{
        Discovery,
        discovery::{Arrival, PersistedState},
    },
};

pub(crate) const PORT: u16 = 12_304;

/// Hosts in one /24; all of the LAN is one /16.
const HOSTS_PER_NETWORK: usize = 200;

/// The address of a host.
pub(crate) fn address(host: usize) -> SocketAddr {
    let (network, number) = (host / HOSTS_PER_NETWORK, host % HOSTS_PER_NETWORK);
    SocketAddr::new([10, 0, network as u8, 1 + number as u8].into(), PORT)
}

/// The host that has `address`; one that does not exist may have any address outside the LAN.
pub(crate) fn host_at(address: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = address else {
        return None;
    };
    let [10, 0, network, number] = v4.ip().octets() else {
        return None;
    };
    let number = usize::from(number).checked_sub(1)?;
    Some(usize::from(network) * HOSTS_PER_NETWORK + number)
}

/// Paths are numbers.
pub(crate) fn hash(number: u32) -> StorePathHash {
    let mut raw = [0; 20];
    raw[..4].copy_from_slice(&number.to_be_bytes());
    StorePathHash::from_raw(raw)
}

fn number(hash: &StorePathHash) -> u32 {
    let [a, b, c, d, ..] = hash.to_raw();
    u32::from_be_bytes([a, b, c, d])
}

/// A set of paths.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holdings(Vec<u64>);

impl Holdings {
    pub(crate) fn insert(&mut self, number: u32) {
        let word = (number / 64) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        let word = self.0.get((number / 64) as usize);
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub(crate) fn holds(&self, hash: &StorePathHash) -> bool {
        self.contains(number(hash))
    }
}

impl FromIterator<u32> for Holdings {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut holdings = Self::default();
        numbers
            .into_iter()
            .for_each(|number| holdings.insert(number));
        holdings
    }
}

/// What answers on a host.
#[derive(Debug)]
pub(crate) enum Daemon {
    New(Box<Discovery>),
    /// The first peerix: answers with what it has, ignores all but requests.
    Old,
    /// Its socket is open, and the first datagram starts the daemon.
    Asleep {
        saved: Rc<PersistedState>,
        boot: Duration,
    },
    /// Answers every broadcast ask in the name of hosts that do not exist.
    Forger,
    /// Switched off, or not there yet.
    Off,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) daemon: Daemon,
    pub(crate) holds: Holdings,
    /// All datagrams and connections to and from it take so much longer, in each direction.
    pub(crate) distance: Duration,
    /// It takes connections and answers nothing.
    pub(crate) is_http_stuck: bool,
    /// What it holds must be found from then on.
    pub(crate) known_from: Instant,
    /// What came in before the daemon was up.
    pub(super) queue: Vec<(Arrival, Rc<[u8]>)>,
    /// When its daemon is to be woken by its timer.
    pub(super) clock: Option<Instant>,
    /// Timers that expired in the same instant, and that instant.
    pub(super) expired: (Option<Instant>, u32),
}

impl Host {
    pub(super) fn new(daemon: Daemon, holds: Holdings, known_from: Instant) -> Self {
        Self {
            daemon,
            holds,
            distance: Duration::ZERO,
            is_http_stuck: false,
            known_from,
            queue: Vec::new(),
            clock: None,
            expired: (None, 0),
        }
    }

    /// Whether it answers at once.
    pub(crate) fn is_awake(&self) -> bool {
        matches!(self.daemon, Daemon::New(_) | Daemon::Old)
    }

    pub(crate) fn is_off(&self) -> bool {
        matches!(self.daemon, Daemon::Off)
    }
}
