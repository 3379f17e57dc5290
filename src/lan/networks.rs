//! The networks we are on, listed afresh when they change: laptops move.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::changes::Watch;
use crate::protocol::{
    Interface, Network,
    discovery::{Link, Scope},
    networks,
};

/// Lists the interfaces of the host.
pub type ListInterfaces = Box<dyn Fn() -> io::Result<Vec<Interface>> + Send + Sync>;

/// The list is at most this old when an ask is sent, whatever the kernel tells of changes: it
/// may not let us listen, and a listing may have failed.
const MAX_AGE: Duration = Duration::from_secs(1);

/// And at least this old when an error makes it suspect.
const MIN_AGE: Duration = Duration::from_millis(100);

/// A network that was away for less is not new: it has heard our discovery broadcast. Unless the
/// kernel says that it was interrupted.
const ABSENCE: Duration = Duration::from_secs(60);

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
    interfaces: Vec<Interface>,
    networks: Vec<Network>,
    addresses: HashSet<IpAddr>,
    /// Why there is no network to ask on, if so.
    warning: Option<String>,
    /// Addresses on interfaces that are used, and when each was last there.
    seen: HashMap<Key, Instant>,
    /// Whether anything is sent to all of a network.
    is_broadcasting: bool,
    interruptions: u64,
}

/// What makes a network one that we know: index of the interface, and our address there.
type Key = (u32, IpAddr);

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
            interfaces: Vec::new(),
            networks: Vec::new(),
            addresses: HashSet::new(),
            warning: None,
            seen: HashMap::new(),
            is_broadcasting: true,
            interruptions: 0,
        }
    }

    /// Where to send what everyone in `scope` should hear.
    pub(super) fn targets(&self, scope: Scope) -> impl Iterator<Item = &Network> {
        let is_in = move |network: &&Network| match (scope, **network) {
            (Scope::Everywhere, _) => true,
            (Scope::Interface(_), Network::Link { has_broadcast, .. }) if has_broadcast => false,
            (Scope::Interface(index), network) => network.interface() == index,
            (Scope::Ipv4On(index), Network::Broadcast { interface, .. }) => interface == index,
            (Scope::Ipv4, Network::Broadcast { .. }) => true,
            (Scope::Ipv4On(_) | Scope::Ipv4, Network::Link { .. }) => false,
        };
        self.networks.iter().filter(is_in)
    }

    /// The interfaces that are broadcast on.
    pub(super) fn links(&self) -> Vec<Link> {
        let mut links: Vec<Link> = Vec::new();
        for network in &self.networks {
            let interface = network.interface();
            if links.iter().all(|link| link.interface != interface) {
                let here = self.interfaces.iter().find(|one| one.index == interface);
                let is_wireless = here.is_some_and(|one| one.is_wireless);
                links.push(Link {
                    interface,
                    is_wireless,
                });
            }
        }
        links
    }

    /// The name of an interface; its index if it has gone.
    pub(super) fn name_of(&self, interface: u32) -> String {
        let here = self.interfaces.iter().find(|one| one.index == interface);
        here.map_or_else(|| interface.to_string(), |one| one.name.clone())
    }

    /// The names of the interfaces that are broadcast on.
    pub(super) fn names(&self) -> HashSet<String> {
        let interfaces = self.networks.iter().map(Network::interface);
        interfaces.map(|index| self.name_of(index)).collect()
    }

    /// Why there is no network to ask on, if so.
    pub(super) fn warning(&self) -> Option<String> {
        self.warning.clone()
    }

    /// Whether `ip` is on a network of the interface with that index; of any, if it is 0: not known.
    pub(super) fn is_on_link(&self, ip: IpAddr, interface: u32) -> bool {
        let here = |one: &&Interface| interface == 0 || one.index == interface;
        match ip {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => true,
            _ => self
                .interfaces
                .iter()
                .filter(here)
                .any(|one| one.contains(ip)),
        }
    }

    /// This machine was suspended: it may be elsewhere, and so may its peers.
    pub(super) fn note_suspension(&mut self) {
        self.invalidate();
        self.seen.clear();
        self.interruptions += 1;
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

    /// Whether anything is to be sent to all of a network.
    pub(super) fn set_broadcasting(&mut self, is_broadcasting: bool) {
        self.is_broadcasting = is_broadcasting;
    }

    /// Forgets when the list was made.
    pub(super) fn invalidate(&mut self) {
        self.listed = None;
    }

    /// Lists the interfaces if they have changed, or that was not done a moment ago; `suspect`: a
    /// send has failed as if the list were wrong. `allow` says which names are used. Returns whether
    /// an address or a carrier has come that was not there of late, if the list was made.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        suspect: bool,
        allow: impl Fn(&str) -> bool,
    ) -> Option<bool> {
        // Taken before the list is made: what changes meanwhile is told next time.
        let (mut interrupted, has_new_route) = self.take_changes();
        let age = if suspect { MIN_AGE } else { MAX_AGE };
        if self.listed.is_some_and(|at| now < at + age) {
            return None;
        }
        self.listed = Some(now);
        let listed = (self.list)();
        let failure = listed.as_ref().err().map(|error| {
            format!("cannot ask for paths: the network interfaces cannot be listed: {error}")
        });
        let interfaces = listed.unwrap_or_default();
        let addresses: HashSet<IpAddr> = interfaces
            .iter()
            .map(|one| one.address.to_canonical())
            .collect();
        interrupted |= !self.addresses.is_subset(&addresses);
        self.interruptions += u64::from(interrupted);
        self.addresses = addresses;
        let is_broadcasting = self.is_broadcasting;
        self.networks = networks(&interfaces, |name| is_broadcasting && allow(name));
        let reach = self.reach;
        self.networks
            .retain(|network| reach.links || !matches!(network, Network::Link { .. }));
        self.seen.retain(|_, &mut at| now < at + ABSENCE);
        let mut is_new = has_new_route;
        for one in interfaces.iter().filter(|one| allow(&one.name)) {
            if one.leads_elsewhere() {
                let key = (one.index, one.address);
                is_new |= self.seen.insert(key, now).is_none();
            }
        }
        self.interfaces = interfaces;
        let no_network = || is_broadcasting.then(|| self.no_network(allow)).flatten();
        let warning = failure.or_else(no_network);
        if let Some(warning) = warning
            .as_ref()
            .filter(|it| self.warning.as_ref() != Some(it))
        {
            log::warn!("{warning}");
        }
        self.warning = warning;
        Some(is_new)
    }

    /// Why none of the interfaces can be asked on, if there is one that could be expected to.
    fn no_network(&self, allow: impl Fn(&str) -> bool) -> Option<String> {
        if !self.networks.is_empty() {
            return None;
        }
        let reasons: Vec<String> = self
            .interfaces
            .iter()
            .filter(|one| one.is_up && !one.address.is_loopback() && allow(&one.name))
            .map(|one| format!("{} has {}/{}", one.name, one.address, one.prefix))
            .collect();
        if reasons.is_empty() {
            return None;
        }
        Some(format!(
            "cannot ask for paths: no interface has a private network that can be broadcast to ({})",
            reasons.join(", ")
        ))
    }

    /// Whether a link was interrupted since the last look, and whether there is a new route.
    fn take_changes(&mut self) -> (bool, bool) {
        let Some(watch) = &self.watch else {
            return (false, false);
        };
        let changes = watch.take();
        if !changes.any {
            return (false, false);
        }
        self.invalidate();
        if changes.missed {
            self.seen.clear();
        }
        let is_interrupted = |interface: &u32| changes.interrupted.contains(interface);
        // An interface that is not used, such as one of a container, is no interruption.
        let is_ours = self
            .seen
            .keys()
            .any(|(interface, _)| is_interrupted(interface));
        self.seen
            .retain(|(interface, _), _| !is_interrupted(interface));
        (changes.missed || is_ours, changes.new_route)
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
        let list = Box::new(move || Ok(listed.lock().unwrap().clone()));
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
            is_wireless: index == 3,
            prefix,
            broadcast: None,
        }
    }

    fn targets(networks: &Networks, scope: Scope) -> Vec<String> {
        let targets = networks.targets(scope);
        targets.map(|one| one.everybody(1).to_string()).collect()
    }

    #[test]
    fn a_scope_names_its_networks() {
        let list = [
            interface(2, "10.0.0.1", 24),
            interface(2, "fe80::1", 64),
            interface(3, "fe80::2", 64),
        ];
        for links in [true, false] {
            let (mut networks, interfaces) = host(links);
            interfaces.lock().unwrap().extend(list.clone());
            networks.refresh(Instant::now(), false, |_| true).unwrap();
            let on_links = |all: &[&str]| -> Vec<String> {
                let is_sent = |it: &&&str| links || !it.starts_with('[');
                all.iter()
                    .filter(is_sent)
                    .map(|it| (*it).to_owned())
                    .collect()
            };
            for (scope, all) in [
                (
                    Scope::Everywhere,
                    &["10.0.0.255:1", "[ff02::1%2]:1", "[ff02::1%3]:1"][..],
                ),
                (Scope::Interface(2), &["10.0.0.255:1"]),
                (Scope::Interface(3), &["[ff02::1%3]:1"]),
                (Scope::Ipv4, &["10.0.0.255:1"]),
                (Scope::Ipv4On(2), &["10.0.0.255:1"]),
                (Scope::Ipv4On(3), &[]),
            ] {
                assert_eq!(targets(&networks, scope), on_links(all), "{scope:?}");
            }
            let links_of = networks.links();
            assert_eq!(links_of.len(), 1 + usize::from(links));
            assert!(
                links_of
                    .iter()
                    .all(|it| it.is_wireless == (it.interface == 3))
            );
            assert!(networks.is_on_link("10.0.0.77".parse().unwrap(), 2));
            assert!(!networks.is_on_link("10.0.0.77".parse().unwrap(), 3));
            assert!(!networks.is_on_link("10.0.1.7".parse().unwrap(), 2));
            assert!(networks.is_on_link("fe80::7".parse().unwrap(), 3));
        }
    }

    #[test]
    fn a_host_without_a_network_to_ask_on_says_why() {
        let (mut networks, interfaces) = host(true);
        networks.refresh(Instant::now(), false, |_| true).unwrap();
        assert_eq!(networks.warning(), None, "nothing is plugged in");
        interfaces
            .lock()
            .unwrap()
            .push(interface(2, "10.0.0.1", 32));
        let later = Instant::now() + MAX_AGE;
        networks.refresh(later, false, |_| true).unwrap();
        let warning = networks.warning().unwrap();
        assert!(warning.contains("lan0 has 10.0.0.1/32"), "{warning}");
        networks.list = Box::new(|| Err(io::ErrorKind::PermissionDenied.into()));
        networks.refresh(later + MAX_AGE, false, |_| true).unwrap();
        let warning = networks.warning().unwrap();
        assert!(warning.contains("cannot be listed"), "{warning}");
    }

    #[test]
    fn without_a_word_from_the_kernel_the_list_is_made_again_after_a_second() {
        let (mut networks, interfaces) = host(true);
        let start = Instant::now();
        assert_eq!(networks.refresh(start, false, |_| true), Some(false));
        interfaces.lock().unwrap().push(interface(3, "fe80::2", 64));
        let soon = start + Duration::from_millis(999);
        assert_eq!(networks.refresh(soon, false, |_| true), None);
        let listed = networks.refresh(start + MAX_AGE, false, |_| true);
        assert_eq!(listed, Some(true));
        let again = networks.refresh(start + 2 * MAX_AGE, false, |_| true);
        assert_eq!(again, Some(false));
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
