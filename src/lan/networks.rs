//! The networks we are on, listed afresh while lookups are made: laptops move.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use crate::protocol::{Interface, Network, networks};

/// Lists the interfaces of the host.
pub type ListInterfaces = Box<dyn Fn() -> Vec<Interface> + Send + Sync>;

/// The list is at most this old when a request is broadcast.
const MAX_AGE: Duration = Duration::from_secs(1);

/// And at least this old when an error makes it suspect.
const MIN_AGE: Duration = Duration::from_millis(100);

/// A network that was away for less is still the one that heard our hello.
const ABSENCE: Duration = Duration::from_secs(60);

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// There is a network to broadcast on.
    pub(super) any: bool,
    /// One of them has not been there of late.
    pub(super) new: bool,
}

pub(super) struct Networks {
    list: ListInterfaces,
    listed: Option<Instant>,
    targets: Vec<Network>,
    addresses: HashSet<IpAddr>,
    seen: HashMap<(u32, Ipv4Addr), Instant>,
}

impl Networks {
    pub(super) fn new(list: ListInterfaces) -> Self {
        Self {
            list,
            listed: None,
            targets: Vec::new(),
            addresses: HashSet::new(),
            seen: HashMap::new(),
        }
    }

    /// Where to broadcast.
    pub(super) fn targets(&self) -> &[Network] {
        &self.targets
    }

    /// Whether `ip` is an address of this machine.
    pub(super) fn is_ours(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// Forgets when the list was made.
    pub(super) fn invalidate(&mut self) {
        self.listed = None;
    }

    /// Lists the interfaces unless that was done a moment ago; `suspect`: a send has failed
    /// as if the list were wrong. `allow` says which names to broadcast on.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        suspect: bool,
        allow: impl Fn(&str) -> bool,
    ) -> Option<Change> {
        let age = if suspect { MIN_AGE } else { MAX_AGE };
        if self.listed.is_some_and(|at| now < at + age) {
            return None;
        }
        self.listed = Some(now);
        let interfaces = (self.list)();
        self.addresses = interfaces
            .iter()
            .map(|one| one.address.to_canonical())
            .collect();
        self.targets = networks(&interfaces, allow);
        self.seen.retain(|_, &mut at| now < at + ABSENCE);
        let mut new = false;
        for network in &self.targets {
            let key = (network.interface, network.broadcast);
            new |= self.seen.insert(key, now).is_none();
        }
        Some(Change {
            any: !self.targets.is_empty(),
            new,
        })
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks")
            .field("listed", &self.listed)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}
