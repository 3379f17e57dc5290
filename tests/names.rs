//! Issue 5: peers and plain caches that the settings know by name are found. Names that fail, SRV
//! records and DNS-SD need a network of their own: tests/lab/test_names.py.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::Arc,
};

use nix::sys::signal::Signal;

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    item::Item,
    peer::{self, Asked, Peer},
};

fn has_found(daemon: &Daemon, item: &Item) -> Option<()> {
    let status = daemon.get(&format!("/{}.narinfo", item.hash())).status;
    assert!(matches!(status, 200 | 404), "{status}");
    (status == 200).then_some(())
}

#[test]
fn a_peer_is_found_by_the_name_of_its_host_and_again_after_a_reload() {
    let [first, second] = ["first", "second"].map(|name| Item::signed(name, 1_000));
    let holders = [&first, &second].map(|item| Peer::honest(&[item]));
    let named = |peer: &Peer| format!("discovery.peers = [\"localhost:{}\"]", peer.udp().port());
    let mut host = Host::new().with(&named(&holders[0]));
    let daemon = host.start();
    eventually("what the named peer has", || has_found(&daemon, &first));
    assert!(statics(&daemon).contains(&holders[0].udp().to_string()));

    host.restore();
    host.set(&named(&holders[1]));
    daemon.signal(Signal::SIGHUP);
    eventually("what the other peer has", || has_found(&daemon, &second));
    let now = statics(&daemon);
    assert!(now.contains(&holders[1].udp().to_string()), "{now:?}");
    assert!(!now.contains(&holders[0].udp().to_string()), "{now:?}");
}

/// The addresses that are asked directly.
fn statics(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status();
    let peers = status["peers"].as_array().expect("peers").clone();
    let statics = peers.iter().filter(|peer| peer["configured"] == true);
    let addresses = statics.filter_map(|peer| peer["address"].as_str());
    addresses.map(str::to_owned).collect()
}

/// That one of an interface which comes later is found needs a network of its own: tests/lab/test_names.py.
#[test]
fn the_name_of_an_interface_is_its_index_and_one_that_does_not_exist_is_no_error() {
    let mut host = Host::new().with(
        "discovery.peers = [\"[fe80::7%lo]:9\", \"fe80::7%peerix-absent\", \"[fe80::8%1]:9\"]",
    );
    let daemon = host.start();
    eventually("the index of lo", || {
        let mut statics = statics(&daemon);
        statics.sort();
        (statics == ["[fe80::7%1]:9", "[fe80::8%1]:9"]).then_some(())
    });
    let said = "there is no interface peerix-absent at present; nobody is asked for it";
    eventually("what the journal says of the other", || {
        daemon.log.text().contains(said).then_some(())
    });
    host.restore();
    host.set("discovery.peers = [\"[fe80::9%lo]:9\"]");
    daemon.signal(Signal::SIGHUP);
    eventually("the peer of a reload", || {
        (statics(&daemon) == ["[fe80::9%1]:9"]).then_some(())
    });
    let log = daemon.log.text();
    assert_eq!(log.matches(said).count(), 1, "{log}");
}

#[test]
fn a_plain_cache_is_found_by_the_name_of_its_host() {
    let item = Item::signed("kept", 1_000);
    let kept = item.clone();
    let serve = move |asked: &Asked, stream: &mut std::net::TcpStream| {
        if asked.path == "/x/nix-cache-info" {
            peer::ok(stream, b"StoreDir: /nix/store\n")
        } else if asked.path == format!("/x/{}.narinfo", kept.hash()) {
            peer::ok(stream, kept.narinfo("nar/kept.nar").as_bytes())
        } else {
            peer::not_found(stream)
        }
    };
    let local = (Ipv4Addr::LOCALHOST, 0);
    let cache = Peer::on(
        TcpListener::bind(local).expect("a port"),
        UdpSocket::bind(local).expect("a port"),
        Arc::new(|_: &[u8], _| Vec::new()),
        Arc::new(serve),
    );
    let url = format!("http://localhost:{}/x", cache.http().port());
    let host = Host::new().with(&format!("discovery.peers = [{url:?}]"));
    let daemon = host.start();
    eventually("what the named cache has", || has_found(&daemon, &item));
    let status = daemon.status();
    assert_eq!(status["caches"][0]["url"], format!("{url}/"));
    assert_eq!(status["caches"][0]["address"], cache.http().to_string());
}
