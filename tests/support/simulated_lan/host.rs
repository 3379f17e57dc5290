//! One host of the simulated LAN: how it speaks, where it is, and what it holds.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    rc::Rc,
    time::{Duration, Instant},
};

use peerix::{
    format::StorePathHash,
    protocol::{Discovery, discovery::Saved},
};

pub(crate) const PORT: u16 = 12_304;

/// Hosts in one /24; all of the LAN is one /16.
const HOSTS_PER_NETWORK: usize = 200;

/// IPv4 address of a host.
pub(crate) fn address(host: usize) -> SocketAddr {
    let (network, number) = (host / HOSTS_PER_NETWORK, host % HOSTS_PER_NETWORK);
    SocketAddr::new([10, 0, network as u8, 1 + number as u8].into(), PORT)
}

/// Its link-local IPv6 address.
pub(crate) fn address_v6(host: usize) -> SocketAddr {
    let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1 + host as u16);
    SocketAddrV6::new(ip, PORT, 0, 2).into()
}

/// The host that has `address`.
pub(crate) fn host_at(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(v4) => {
            let [_, _, network, number] = v4.ip().octets();
            usize::from(network) * HOSTS_PER_NETWORK + usize::from(number) - 1
        }
        SocketAddr::V6(v6) => usize::from(v6.ip().segments()[7]) - 1,
    }
}

/// Paths are numbers.
pub(crate) fn hash(number: u32) -> StorePathHash {
    StorePathHash::parse(format!("{number:032}").as_bytes()).expect("a hash")
}

fn number(hash: StorePathHash) -> u32 {
    let digits = hash.as_bytes().iter();
    digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
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
        self.contains(number(*hash))
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
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

/// How a host speaks.
#[derive(Debug)]
pub(crate) enum Speech {
    New(Box<Discovery>),
    /// The first peerix: answers what it has, ignores all but requests.
    Old,
    /// Its socket is open, and the first datagram starts the daemon.
    Asleep {
        saved: Saved,
        boot: Duration,
    },
    /// Off, or not there yet.
    Gone,
}

/// By what a host is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    V4,
    /// Its IPv4 is filtered, or it has none.
    V6,
    Both,
}

impl Reach {
    pub(crate) fn by(self, is_ipv6: bool) -> bool {
        match self {
            Self::V4 => !is_ipv6,
            Self::V6 => is_ipv6,
            Self::Both => true,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) speech: Speech,
    pub(crate) holds: Holdings,
    pub(crate) generation: u64,
    pub(crate) reach: Reach,
    /// It slept when the run began.
    pub(crate) was_asleep: bool,
    /// What came in before the daemon was up.
    pub(super) queue: Vec<(SocketAddr, Rc<[u8]>)>,
    /// When its daemon is to be woken by its timer.
    pub(super) clock: Option<Instant>,
}

impl Host {
    pub(super) fn new(speech: Speech, holds: Holdings) -> Self {
        Self {
            was_asleep: matches!(speech, Speech::Asleep { .. }),
            speech,
            generation: holds.len(),
            holds,
            reach: Reach::V4,
            queue: Vec::new(),
            clock: None,
        }
    }

    /// Whether it answers at once.
    pub(crate) fn is_awake(&self) -> bool {
        matches!(self.speech, Speech::New(_) | Speech::Old)
    }
}
