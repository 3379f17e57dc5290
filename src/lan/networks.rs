//! The networks we are on, listed afresh when they change: laptops move.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::changes::Watch;
use crate::protocol::{Interface, Network, networks};

/// Lists the interfaces of the host.
pub type ListInterfaces = Box<dyn Fn() -> Vec<Interface> + Send + Sync>;

/// The list is at most this old when a request is sent, whatever the kernel tells of changes: it
/// may not let us listen, and a listing may have failed.
const MAX_AGE: Duration = Duration::from_secs(1);

/// And at least this old when an error makes it suspect.
const MIN_AGE: Duration = Duration::from_millis(100);

/// A network that was away for less is still the one that heard our hello, unless the kernel
/// says that it was interrupted.
const ABSENCE: Duration = Duration::from_secs(60);

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// There is a network to send to.
    pub(super) any: bool,
    /// One of them has not been there of late.
    pub(super) new: bool,
}

/// What our sockets can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// One of them can send to an IPv6 link.
    pub(super) links: bool,
}

pub(super) struct Networks {
    list: ListInterfaces,
    /// Tells that the list is old; None if the kernel does not let us know.
    watch: Option<Watch>,
    reach: Reach,
    listed: Option<Instant>,
    networks: Vec<Network>,
    addresses: HashSet<IpAddr>,
    seen: HashMap<Key, Instant>,
    interruptions: u64,
}

/// What makes a network one that we know: index of the interface, and for IPv4 where its
/// broadcasts go.
type Key = (u32, Option<IpAddr>);

impl Networks {
    pub(super) fn new(list: ListInterfaces, reach: Reach) -> Self {
        let watch = Watch::open()
            .inspect_err(|error| log::debug!("changes of interfaces are not told: {error}"))
            .ok();
        Self {
            list,
            watch,
            reach,
            listed: None,
            networks: Vec::new(),
            addresses: HashSet::new(),
            seen: HashMap::new(),
            interruptions: 0,
        }
    }

    /// Where to send what all should hear. `everywhere`: on each network of either kind, so that
    /// hosts of both hear it twice; else to an IPv6 link only where no broadcast is sent.
    pub(super) fn targets(&self, everywhere: bool) -> impl Iterator<Item = &Network> {
        let is_extra = |network: &Network| {
            let Network::Link { has_broadcast, .. } = *network else {
                return false;
            };
            has_broadcast
        };
        self.networks
            .iter()
            .filter(move |&network| everywhere || !is_extra(network))
    }

    /// Whether `ip` is an address of this machine. Scopes do not count: of two interfaces on one
    /// link, one hears what the other one sends.
    pub(super) fn is_ours(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// How often a link was interrupted, or one of our addresses has gone.
    pub(super) fn interruptions(&self) -> u64 {
        self.interruptions
    }

    /// Forgets when the list was made.
    pub(super) fn invalidate(&mut self) {
        self.listed = None;
    }

    /// Lists the interfaces if they have changed, or that was not done a moment ago; `suspect`: a
    /// send has failed as if the list were wrong. `allow` says which names to send on.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        suspect: bool,
        allow: impl Fn(&str) -> bool,
    ) -> Option<Change> {
        // Taken before the list is made: what changes meanwhile is told next time.
        let mut interrupted = self.take_changes();
        let age = if suspect { MIN_AGE } else { MAX_AGE };
        if self.listed.is_some_and(|at| now < at + age) {
            return None;
        }
        self.listed = Some(now);
        let interfaces = (self.list)();
        let addresses: HashSet<IpAddr> = interfaces
            .iter()
            .map(|one| one.address.to_canonical())
            .collect();
        interrupted |= !self.addresses.is_subset(&addresses);
        self.interruptions += u64::from(interrupted);
        self.addresses = addresses;
        self.networks = networks(&interfaces, allow);
        let reach = self.reach;
        self.networks
            .retain(|network| reach.links || !matches!(network, Network::Link { .. }));
        self.seen.retain(|_, &mut at| now < at + ABSENCE);
        let mut new = false;
        for network in &self.networks {
            new |= self.seen.insert(key(network), now).is_none();
        }
        Some(Change {
            any: !self.networks.is_empty(),
            new,
        })
    }

    /// Whether a link was interrupted since the last look.
    fn take_changes(&mut self) -> bool {
        let Some(watch) = &self.watch else {
            return false;
        };
        let changes = watch.take();
        if !changes.any {
            return false;
        }
        self.invalidate();
        if changes.missed {
            self.seen.clear();
        }
        let is_interrupted = |interface: &u32| changes.interrupted.contains(interface);
        self.seen
            .retain(|(interface, _), _| !is_interrupted(interface));
        // An interface that we are not on, such as one of a container, is no interruption.
        let mut ours = self.networks.iter().map(Network::interface);
        changes.missed || ours.any(|interface| is_interrupted(&interface))
    }
}

fn key(network: &Network) -> Key {
    match *network {
        Network::Broadcast {
            interface,
            broadcast,
            ..
        } => (interface, Some(broadcast.into())),
        Network::Link { interface, .. } => (interface, None),
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks")
            .field("listed", &self.listed)
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Networks of a host whose addresses the test sets, and whose kernel says nothing.
    fn host(links: bool) -> (Networks, Arc<Mutex<Vec<Interface>>>) {
        let interfaces = Arc::new(Mutex::new(Vec::new()));
        let listed = Arc::clone(&interfaces);
        let list = Box::new(move || listed.lock().unwrap().clone());
        let mut networks = Networks::new(list, Reach { links });
        networks.watch = None;
        (networks, interfaces)
    }

    fn interface(index: u32, address: &str, prefix: u8) -> Interface {
        Interface {
            name: "lan0".into(),
            index,
            is_up: true,
            can_broadcast: true,
            can_multicast: true,
            address: address.parse().unwrap(),
            is_tentative: false,
            prefix,
            broadcast: None,
        }
    }

    fn targets(networks: &Networks, everywhere: bool) -> Vec<String> {
        let targets = networks.targets(everywhere);
        targets.map(|one| one.everybody(1).to_string()).collect()
    }

    #[test]
    fn a_link_with_broadcast_is_a_target_only_where_all_are() {
        let list = [
            interface(2, "10.0.0.1", 24),
            interface(2, "fe80::1", 64),
            interface(3, "fe80::2", 64),
        ];
        for links in [true, false] {
            let (mut networks, interfaces) = host(links);
            interfaces.lock().unwrap().extend(list.clone());
            networks.refresh(Instant::now(), false, |_| true).unwrap();
            let mut expected = vec!["10.0.0.255:1"];
            expected.extend(links.then_some("[ff02::1%3]:1"));
            assert_eq!(targets(&networks, false), expected);
            expected.splice(1..1, links.then_some("[ff02::1%2]:1"));
            assert_eq!(targets(&networks, true), expected);
        }
    }

    #[test]
    fn without_a_word_from_the_kernel_the_list_is_made_again_after_a_second() {
        let (mut networks, interfaces) = host(true);
        let start = Instant::now();
        let change = networks.refresh(start, false, |_| true).unwrap();
        assert!(!change.any && !change.new);
        interfaces.lock().unwrap().push(interface(3, "fe80::2", 64));
        let soon = start + Duration::from_millis(999);
        assert_eq!(networks.refresh(soon, false, |_| true), None);
        let change = networks.refresh(start + MAX_AGE, false, |_| true).unwrap();
        assert!(change.any && change.new);
        let again = networks.refresh(start + 2 * MAX_AGE, false, |_| true);
        assert!(again.is_some_and(|change| change.any && !change.new));
    }

    #[test]
    fn an_address_that_has_gone_is_an_interruption_and_one_that_comes_is_none() {
        let (mut networks, interfaces) = host(true);
        let mut now = Instant::now();
        for (addresses, interruptions) in [
            (vec!["10.0.0.1"], 0),
            (vec!["10.0.0.1", "fe80::1"], 0),
            (vec!["fe80::1"], 1),
            (vec!["fe80::1"], 1),
            (vec!["10.0.0.2", "fe80::1"], 1),
            (vec!["10.0.0.1", "fe80::1"], 2),
        ] {
            let list = addresses.iter().map(|one| interface(2, one, 24));
            *interfaces.lock().unwrap() = list.collect();
            now += MAX_AGE;
            networks.refresh(now, false, |_| true).unwrap();
            assert_eq!(networks.interruptions(), interruptions, "{addresses:?}");
        }
    }
}
