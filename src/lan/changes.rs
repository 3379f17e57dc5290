//! Changes of interfaces and addresses, as the kernel tells them: rtnetlink(7).

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

/// What is told: interfaces, and addresses and routes of both families.
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE;

/// Messages taken in at once. The socket's buffer holds fewer, unless an administrator has made
/// it larger; the rest waits for the next look.
const MAX_MESSAGES: usize = 256;

/// Header of a message: length, type, flags, sequence and sender.
const HEADER_BYTES: usize = 16;

/// As much of a message as is looked at; the kernel sends one a datagram.
const MESSAGE_BYTES: usize = 32;

/// What happened since the last look.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Changes {
    /// Something: a list of interfaces from before is old.
    pub(super) any: bool,
    /// The link behind these interfaces may be another one now: they were away, down or without a
    /// carrier, or lost an address that tells which network they are on.
    pub(super) interrupted: Vec<u32>,
    /// A route to other machines was added.
    pub(super) new_route: bool,
    /// That may be so of every interface: messages were lost.
    pub(super) missed: bool,
}

/// Hears of changes. Costs one system call a look while there are none.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub(super) fn open() -> Result<Self, Errno> {
        let watch = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(
            watch.as_raw_fd(),
            &NetlinkAddr::new(0, GROUPS.cast_unsigned()),
        )?;
        Ok(Self(watch))
    }

    /// All that happened since it was opened or last asked; never waits.
    pub(super) fn take(&self) -> Changes {
        let mut changes = Changes::default();
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..MAX_MESSAGES {
            match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) => changes.note(&message[..length.min(MESSAGE_BYTES)]),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // ENOBUFS: there were more than the socket has room for.
                Err(_) => {
                    changes.any = true;
                    changes.missed = true;
                }
            }
        }
        changes
    }
}

impl Changes {
    fn note(&mut self, message: &[u8]) {
        self.any = true;
        match interrupted(message) {
            Some(Some(interface)) => self.interrupted.push(interface),
            Some(None) => {}
            None => self.missed = true,
        }
        self.new_route |= is_new_route(message);
    }
}

/// Whether a message says that a route was added, other than those that the kernel keeps for
/// our own addresses.
fn is_new_route(message: &[u8]) -> bool {
    let kind = field(message, 4).map(u16::from_ne_bytes);
    // struct rtmsg: family, two lengths, TOS, table.
    let table = message.get(HEADER_BYTES..).and_then(|body| field(body, 4));
    kind == Some(libc::RTM_NEWROUTE) && table == Some([libc::RT_TABLE_MAIN])
}

/// The interface that a message says was interrupted, if it says so; None: not understood.
fn interrupted(message: &[u8]) -> Option<Option<u32>> {
    let kind = u16::from_ne_bytes(field(message, 4)?);
    let body = message.get(HEADER_BYTES..)?;
    let index = u32::from_ne_bytes(field(body, 4)?);
    let is_interrupted = match kind {
        libc::RTM_DELLINK => true,
        libc::RTM_NEWLINK => {
            let flags = u32::from_ne_bytes(field(body, 8)?);
            let up = (libc::IFF_UP | libc::IFF_RUNNING).cast_unsigned();
            flags & up != up
        }
        libc::RTM_DELADDR => {
            let [family, _prefix, _flags, scope] = field(body, 0)?;
            // Global IPv6 addresses come and go where privacy is wanted.
            i32::from(family) == libc::AF_INET || scope == libc::RT_SCOPE_LINK
        }
        _ => false,
    };
    Some(is_interrupted.then_some(index))
}

fn field<const LENGTH: usize>(bytes: &[u8], at: usize) -> Option<[u8; LENGTH]> {
    bytes.get(at..at.checked_add(LENGTH)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: [u8; 16]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn link(kind: u16, flags: libc::c_int) -> Vec<u8> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        message(kind, body)
    }

    fn address(kind: u16, family: libc::c_int, scope: u8) -> Vec<u8> {
        let mut body = [0; 16];
        body[0] = u8::try_from(family).unwrap();
        body[3] = scope;
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        message(kind, body)
    }

    #[test]
    fn what_may_have_moved_the_host_is_told_from_the_rest() {
        let up = libc::IFF_UP | libc::IFF_RUNNING;
        let (global, local) = (libc::RT_SCOPE_UNIVERSE, libc::RT_SCOPE_LINK);
        let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
        for (bytes, expected) in [
            (link(libc::RTM_DELLINK, up), true),
            (link(libc::RTM_NEWLINK, libc::IFF_UP), true),
            (link(libc::RTM_NEWLINK, libc::IFF_RUNNING), true),
            (link(libc::RTM_NEWLINK, up), false),
            (address(libc::RTM_DELADDR, v4, global), true),
            (address(libc::RTM_DELADDR, v6, local), true),
            (address(libc::RTM_DELADDR, v6, global), false),
            (address(libc::RTM_NEWADDR, v4, global), false),
        ] {
            assert_eq!(
                interrupted(&bytes),
                Some(expected.then_some(7)),
                "{bytes:?}"
            );
        }
        assert_eq!(interrupted(&[0; 20]), None);
        let mut route = [0; 16];
        for (table, expected) in [(libc::RT_TABLE_MAIN, true), (libc::RT_TABLE_LOCAL, false)] {
            route[4] = table;
            assert_eq!(is_new_route(&message(libc::RTM_NEWROUTE, route)), expected);
            assert!(!is_new_route(&message(libc::RTM_DELROUTE, route)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut changes = Changes::default();
            changes.note(&bytes);
            prop_assert!(changes.any);
        }
    }

    #[test]
    fn the_kernel_lets_anybody_watch() {
        let watch = Watch::open().unwrap();
        watch.take();
        assert!(!watch.take().missed);
    }
}
