//! Places for machines of the LAN: a limit for all, and one for each address, so that one faulty
//! peer does not shut out the others.
//!
//! An address is one machine's, also in IPv6: a /64 is the whole LAN, whose machines must not share
//! the limit of one. A machine with many addresses gets more, up to the limit for all.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// NAR streams of one address: a Nix has 25 connections, and some of them resume or end.
pub(super) const NARS_OF_ONE: usize = 32;

/// Connections of one address, however few there are for the LAN.
const FEWEST_CONNECTIONS_OF_ONE: usize = 32;

/// Connections of one address, of `room` for the LAN.
pub(super) fn connections_of_one(room: usize) -> usize {
    (room / 4).max(FEWEST_CONNECTIONS_OF_ONE)
}

/// Who has how many places. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only addresses that have one.
    of: HashMap<IpAddr, usize>,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// A place for `address`, if it has fewer than `of_one`, and all together fewer than `in_all`.
    pub(super) fn take(&self, address: IpAddr, of_one: usize, in_all: usize) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.of.get(&address).copied().unwrap_or(0);
        if own >= of_one || taken.all >= in_all {
            return None;
        }
        taken.of.insert(address, own + 1);
        taken.all += 1;
        Some(Place {
            places: self.clone(),
            address,
        })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing between the changes of one call can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        match taken.of.get_mut(&self.address) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.of.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number))
    }

    #[test]
    fn one_address_never_has_more_than_its_part_nor_all_together_more_than_all() {
        let places = Places::default();
        let take = |number| places.take(address(number), 4, 10);
        let first: Vec<_> = std::iter::from_fn(|| take(1)).collect();
        assert_eq!(first.len(), 4);
        let second: Vec<_> = std::iter::from_fn(|| take(2)).collect();
        assert_eq!(second.len(), 4);
        let others: Vec<_> = (3..100).filter_map(take).collect();
        assert_eq!(others.len(), 2);
        drop(second);
        assert!(take(1).is_none(), "still has its part");
        drop(first);
        assert!(take(1).is_some());
        drop(others);
        let taken = places.lock();
        assert!(taken.all == 0 && taken.of.is_empty(), "{taken:?}");
    }

    #[test]
    fn one_address_has_a_quarter_of_the_room_and_enough_for_a_nix() {
        assert_eq!(connections_of_one(960), 240);
        assert_eq!(connections_of_one(64), 32);
    }
}
