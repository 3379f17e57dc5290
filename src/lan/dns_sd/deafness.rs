//! Makes the sockets of mDNS deaf. Its thread reads as long as there is something to read, takes
//! no command meanwhile and remembers all of it: under a flood it can be stopped in no other way.

use std::{
    fs, io,
    os::fd::{BorrowedFd, RawFd},
};

use nix::sys::socket::{SockaddrStorage, getsockname};
use socket2::{SockFilter, SockRef};

/// A program of the kernel's packet filter: nothing of the packet is kept.
const KEEP_NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// From now on no datagram reaches a socket of this process that is bound to `port`; says how
/// many there are.
pub(super) fn deafen(port: u16) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if port_of(fd) != Some(port) {
            continue;
        }
        #[expect(
            unsafe_code,
            reason = "the crate that owns the sockets lends them to nobody"
        )]
        // SAFETY: it was open a moment ago. Should its owner close it now, the filter is refused, or
        // another socket that was opened meanwhile gets it: only mDNS opens and closes any
        // at this port, and what we deafen is to end.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        SockRef::from(&socket).attach_filter(&[KEEP_NOTHING])?;
        count += 1;
    }
    Ok(count)
}

fn port_of(fd: RawFd) -> Option<u16> {
    let address = getsockname::<SockaddrStorage>(fd).ok()?;
    let v4 = address.as_sockaddr_in().map(|v4| v4.port());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.port()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_is_deaf_hears_nothing_and_the_others_do() {
        let [deaf, other] = [(); 2].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            socket.set_nonblocking(true).expect("a mode");
            socket
        });
        let port = |socket: &UdpSocket| socket.local_addr().expect("an address").port();
        let say = || {
            for socket in [&deaf, &other] {
                other
                    .send_to(b"x", ("127.0.0.1", port(socket)))
                    .expect("sent");
            }
        };
        let hears = |socket: &UdpSocket| socket.recv(&mut [0; 8]).is_ok();
        say();
        assert!(hears(&deaf) && hears(&other));
        assert_eq!(deafen(port(&deaf)).expect("a filter"), 1);
        say();
        assert!(!hears(&deaf) && hears(&other));
    }
}
