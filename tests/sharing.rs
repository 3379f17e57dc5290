//! Promise 5: paths that a key of `share.keys` has signed are shared, and nothing else leaves the
//! machine unless its owner says so. The narinfo, the NAR and the answer over UDP always agree.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::net::UdpSocket;

use peerix::protocol::{PathState, datagram::Datagram};

use support::{
    PATIENCE,
    daemon::Daemon,
    eventually,
    host::Host,
    item::{Item, foreign_key, key, key_text, trusted_key},
    peer,
};

/// What a machine has, one of each kind.
struct Store {
    signed: Item,
    foreign: Item,
    unsigned: Item,
    built: Item,
    /// Built here, referring to what is shared.
    built_on_signed: Item,
    /// Built here, referring to what was imported without a signature.
    built_on_unsigned: Item,
    source: Item,
    signed_source: Item,
    text: Item,
    secret: Item,
    signed_secret: Item,
    drv: Item,
    etc: Item,
    system: Item,
    unit: Item,
}

impl Store {
    /// What `built` shares.
    fn shared_as_built(&self) -> [&Item; 5] {
        [
            &self.signed,
            &self.signed_source,
            &self.signed_secret,
            &self.built,
            &self.built_on_signed,
        ]
    }

    fn new() -> Self {
        let signed = Item::signed("hello-2.12", 3_000);
        let unsigned = Item::unsigned("imported", 3_000);
        let built = |name: &str| Item::unsigned(name, 500).built();
        Self {
            foreign: Item::unsigned("theirs", 500).sign(&foreign_key()),
            built: built("made-here"),
            built_on_signed: built("on-signed").refer_to(&[&signed]),
            built_on_unsigned: built("on-unsigned").refer_to(&[&unsigned]),
            source: Item::source("my-project", 4_000),
            signed_source: Item::source("public.tar", 4_000).sign(&trusted_key()),
            text: Item::text("builder.sh", b"echo private\n"),
            secret: built("my-secret-token"),
            signed_secret: Item::signed("libsecret-0.21", 500),
            drv: built("hello.drv"),
            etc: built("etc"),
            system: built("nixos-system-host-25.05"),
            unit: built("unit-sshd.service"),
            signed,
            unsigned,
        }
    }

    /// All of it, and names for messages.
    fn all(&self) -> [&Item; 15] {
        [
            &self.signed,
            &self.foreign,
            &self.unsigned,
            &self.built,
            &self.built_on_signed,
            &self.built_on_unsigned,
            &self.source,
            &self.signed_source,
            &self.text,
            &self.secret,
            &self.signed_secret,
            &self.drv,
            &self.etc,
            &self.system,
            &self.unit,
        ]
    }

    fn host(&self, settings: &str) -> Host {
        Host::new().holding(&self.all()).with(settings)
    }

    /// Fails unless exactly `shared` leaves the machine, by every way that there is.
    fn assert_shared(&self, daemon: &Daemon, shared: &[&Item]) {
        for item in self.all() {
            let expected = shared.iter().any(|it| it.path() == item.path());
            let status = if expected { 200 } else { 404 };
            for path in [
                format!("/local/{}.narinfo", item.hash()),
                format!("/nar/{}", item.nar_name()),
                format!("/local/nar/{}", item.nar_name()),
                format!("/{}", item.old_nar_url()),
            ] {
                let answer = daemon.get(&path);
                assert_eq!(answer.status, status, "{path} of {}", item.path());
                if expected && path.contains("nar/") {
                    assert!(answer.body == item.nar, "{path}");
                }
            }
            let heard = is_shared_over_udp(daemon, item);
            assert_eq!(heard, expected, "the answer over UDP for {}", item.path());
        }
    }
}

/// Whether a daemon says to new and old peers that it shares `item`.
fn is_shared_over_udp(daemon: &Daemon, item: &Item) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let id = 0xcafe_babe_u32;
    let hash = item.hash();
    let request = [&[0x00][..], &id.to_be_bytes(), hash.as_bytes()].concat();
    assert_eq!(request.len(), 37);
    socket.send_to(&request, daemon.address()).expect("send");
    let ask = peer::ask(id, 1, 80, &[&hash]);
    socket.send_to(&ask, daemon.address()).expect("send");
    let (mut to_new, mut to_old) = (None, false);
    while to_new.is_none() || to_new == Some(PathState::Present) && !to_old {
        let mut buffer = [0; 200];
        let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, daemon.address());
        match Datagram::parse(&buffer[..length]).expect("a datagram") {
            Datagram::Answer(answer) if answer.states == [PathState::Undecided] => {
                socket.send_to(&ask, daemon.address()).expect("send");
            }
            Datagram::Answer(answer) => to_new = Some(answer.states[0]),
            _ => {
                let right = peer::present(&id.to_be_bytes(), daemon.address().port(), &hash);
                assert_eq!(buffer[..length], right);
                to_old = true;
            }
        }
    }
    assert_eq!(to_old, to_new == Some(PathState::Present), "{hash}");
    to_old
}

#[test]
fn by_default_only_what_a_key_of_share_keys_signed_is_shared() {
    let store = Store::new();
    let host = store.host("");
    let daemon = host.start();
    store.assert_shared(
        &daemon,
        &[&store.signed, &store.signed_source, &store.signed_secret],
    );
}

#[test]
fn with_a_signing_key_what_was_built_here_is_shared_and_signed() {
    let store = Store::new();
    let mut host = store.host("");
    host.file("key", key_text("host-1", 9), 0o444);
    host.set_file_setting("signing.key-file", "key");
    let daemon = host.start();
    let shared = store.shared_as_built();
    store.assert_shared(&daemon, &shared);
    for item in [&store.built, &store.built_on_signed] {
        let narinfo = daemon.get(&format!("/local/{}.narinfo", item.hash()));
        let expected = item.clone().sign(&key("host-1", 9));
        assert_eq!(narinfo.text(), expected.peer_narinfo());
    }
    // What is signed already is passed on as it is.
    let narinfo = daemon.get(&format!("/local/{}.narinfo", store.signed.hash()));
    assert_eq!(narinfo.text(), store.signed.peer_narinfo());
    daemon.log.line(&["signs with host-1"]);
}

#[test]
fn what_a_key_signed_that_is_only_trusted_is_not_shared() {
    let store = Store::new();
    let trusting = format!(
        "trust.public-keys = [{:?}]\n",
        foreign_key().public_key().to_string()
    );
    let signed = [&store.signed, &store.signed_source, &store.signed_secret];
    store.assert_shared(&store.host(&trusting).start(), &signed);

    // The tests' key is only trusted then, and so is its name.
    let default =
        "share.keys = [\"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"]";
    store.assert_shared(&store.host(default).start(), &[]);

    let bare = format!("{trusting}share.keys = [\"cache.foreign-1\"]");
    store.assert_shared(&store.host(&bare).start(), &[&store.foreign]);

    let unknown = store.host("share.keys = [\"cache.foreign-1\"]");
    let daemon = unknown.start();
    store.assert_shared(&daemon, &[]);
    daemon.log.line(&["warn", "share.keys", "cache.foreign-1"]);
}

#[test]
fn the_owner_is_told_once_which_keys_share_nothing() {
    let foreign = Item::unsigned("theirs", 500).sign(&foreign_key());
    let both = Item::signed("both", 500).sign(&foreign_key());
    let host = Host::new().holding(&[&foreign, &both]).with(&format!(
        "trust.public-keys = [{:?}]",
        foreign_key().public_key().to_string()
    ));
    let cache = host.open_directory("cache");
    let start = || host.launch().env("CACHE_DIRECTORY", &cache).start();
    let told = cache.join("share-keys-told");

    let daemon = start();
    let line = daemon
        .log
        .line(&["warn", "1 paths are not shared", "cache.foreign-1"]);
    let end = format!(
        "share.keys = [\"{}\", \"cache.foreign-1\"]",
        trusted_key().public_key()
    );
    assert!(line.trim_end().ends_with(&end), "{line}");
    eventually("it is on record", || told.exists().then_some(()));
    assert_eq!(daemon.stop().0, Some(0));

    // Not at the next start; the record is looked at before paths are counted.
    let daemon = start();
    daemon.get(&format!("/local/{}.narinfo", both.hash()));
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0));
    assert!(!log.contains("are not shared"), "{log}");

    // The line that it tells does what it says.
    let host = host.with(&end);
    let daemon = host.start();
    assert_eq!(
        daemon
            .get(&format!("/local/{}.narinfo", foreign.hash()))
            .status,
        200
    );
    assert!(!daemon.log.text().contains("are not shared"));
}

#[test]
fn what_was_decided_outlives_the_process_and_any_defect_discards_it() {
    let store = Store::new();
    let host = store.host("share.paths = \"built\"");
    let cache = host.open_directory("cache");
    let decisions = cache.join("sharing-decisions");
    let shared = store.shared_as_built();
    let run = || {
        let daemon = host.launch().env("CACHE_DIRECTORY", &cache).start();
        store.assert_shared(&daemon, &shared);
        assert_eq!(daemon.stop().0, Some(0));
        std::fs::read(&decisions).expect("decisions")
    };
    let saved = run();
    assert_eq!(run().len(), saved.len());
    for defect in [&saved[..saved.len() - 1], b"", b"junk", &vec![0; 5 << 20]] {
        std::fs::write(&decisions, defect).expect("decisions");
        assert_eq!(run().len(), saved.len());
    }
}

#[test]
fn what_is_shared_carries_all_its_signatures() {
    let item = Item::signed("hello", 500).sign(&foreign_key());
    let host = Host::new().holding(&[&item]);
    let daemon = host.start();
    let narinfo = daemon.get(&format!("/local/{}.narinfo", item.hash()));
    assert_eq!(narinfo.text(), item.peer_narinfo());
    assert_eq!(narinfo.text().matches("Sig: ").count(), 2);
}

#[test]
fn a_neighbour_takes_a_path_with_many_signatures() {
    for others in [40, 999] {
        let mut item = Item::unsigned("many", 500);
        for number in 0..others {
            item = item.sign(&key(&format!("stranger-{number}"), 50));
        }
        let item = item.sign(&trusted_key());
        let holder = Host::new().holding(&[&item]);
        let holding = holder.start();
        let asker = Host::new().with(&format!(
            "discovery.peers = [{:?}]\ndiscovery.wake-timeout = \"300ms\"\nlimits.narinfo = \"4MiB\"",
            holding.address().to_string()
        ));
        let daemon = asker.start();
        let narinfo = daemon.get(&format!("/{}.narinfo", item.hash()));
        assert_eq!(narinfo.status, 200, "{others} others");
        assert_eq!(narinfo.text().matches("Sig: ").count(), others + 1);
        assert!(daemon.get(&format!("/v3/nar/{}", item.nar_name())).body == item.nar);
    }
}

#[test]
fn a_neighbour_that_trusts_the_signing_key_takes_what_was_built_here() {
    let item = Item::unsigned("made-here", 500_000).built();
    let mut holder = Host::new().holding(&[&item]);
    holder.file("key", key_text("host-1", 9), 0o444);
    holder.set_file_setting("signing.key-file", "key");
    let holding = holder.start();
    let peers = format!(
        "discovery.peers = [{:?}]\ndiscovery.wake-timeout = \"300ms\"",
        holding.address().to_string()
    );
    let path = format!("/{}.narinfo", item.hash());
    let stranger = Host::new().with(&peers);
    assert_eq!(stranger.start().get(&path).status, 404);
    let friend = Host::new().with(&peers).with(&format!(
        "trust.public-keys = [{:?}]",
        key("host-1", 9).public_key().to_string()
    ));
    let daemon = friend.start();
    assert_eq!(daemon.get(&path).status, 200);
    assert!(daemon.get(&format!("/v3/nar/{}", item.nar_name())).body == item.nar);
}

#[test]
fn built_without_a_key_shares_unsigned_what_was_built_here() {
    let store = Store::new();
    let host = store.host("share.paths = \"built\"");
    let daemon = host.start();
    let shared = store.shared_as_built();
    store.assert_shared(&daemon, &shared);
}

#[test]
fn all_shares_everything_but_what_is_excluded() {
    let store = Store::new();
    let host = store.host("share.paths = \"all\"");
    let daemon = host.start();
    let stay = [
        &store.secret,
        &store.drv,
        &store.etc,
        &store.system,
        &store.unit,
    ]
    .map(Item::path);
    let shared: Vec<&Item> = store
        .all()
        .into_iter()
        .filter(|item| !stay.contains(&item.path()))
        .collect();
    assert_eq!(shared.len(), 10);
    store.assert_shared(&daemon, &shared);
}

#[test]
fn exclude_is_the_owners_and_never_keeps_back_what_is_signed() {
    let store = Store::new();
    let host = store.host("share.paths = \"all\"\nshare.exclude = [\"hello*\", \"im*\"]");
    let daemon = host.start();
    let stay = [&store.unsigned, &store.drv].map(Item::path);
    let shared: Vec<&Item> = store
        .all()
        .into_iter()
        .filter(|item| !stay.contains(&item.path()))
        .collect();
    assert_eq!(shared.len(), 13);
    store.assert_shared(&daemon, &shared);
}

#[test]
fn none_shares_nothing() {
    let store = Store::new();
    let mut host = store.host("share.paths = \"none\"");
    host.file("key", key_text("host-1", 9), 0o444);
    host.set_file_setting("signing.key-file", "key");
    let daemon = host.start();
    store.assert_shared(&daemon, &[]);
}

#[test]
fn without_require_sigs_the_share_rule_is_the_same() {
    let store = Store::new();
    let host = store.host("");
    let conf = format!(
        "require-sigs = false\ntrusted-public-keys = {}\n",
        trusted_key().public_key()
    );
    std::fs::write(host.nix_conf(), conf).expect("nix.conf");
    let daemon = host.start();
    store.assert_shared(
        &daemon,
        &[&store.signed, &store.signed_source, &store.signed_secret],
    );
}

#[test]
fn the_gateway_does_not_give_nix_of_our_own_what_is_not_shared() {
    let store = Store::new();
    let host = store.host("");
    let daemon = host.start();
    for (item, status) in [
        (&store.signed, 200),
        (&store.unsigned, 404),
        (&store.source, 404),
        (&store.built, 404),
    ] {
        assert_eq!(
            daemon.get(&format!("/{}.narinfo", item.hash())).status,
            status,
            "{}",
            item.path()
        );
        assert_eq!(
            daemon.get(&format!("/v3/nar/{}", item.nar_name())).status,
            status,
            "{}",
            item.path()
        );
    }
}

#[test]
fn a_reload_changes_what_is_shared_at_once() {
    let store = Store::new();
    let mut host = store.host("");
    let daemon = host.start();
    store.assert_shared(
        &daemon,
        &[&store.signed, &store.signed_source, &store.signed_secret],
    );
    host.set("share.paths = \"none\"");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon
        .log
        .line(&["settings, keys and nix.conf are read again"]);
    store.assert_shared(&daemon, &[]);
}

#[test]
fn a_row_without_files_or_of_another_size_is_never_a_wrong_nar() {
    let (absent, damaged) = (Item::signed("absent", 500), Item::signed("damaged", 5_000));
    let host = Host::new().holding(&[&damaged]);
    host.register(&absent);
    host.truncate(
        &host
            .store_dir()
            .join(damaged.info.path.basename())
            .join("data"),
        4_000,
    );
    let mut daemon = host.start();
    for (item, narinfo) in [(&absent, Some(404)), (&damaged, None)] {
        let answer = daemon.get(&format!("/local/{}.narinfo", item.hash()));
        assert!(
            narinfo.is_none_or(|status| status == answer.status),
            "{}",
            item.path()
        );
        assert_eq!(
            daemon.get(&format!("/nar/{}", item.nar_name())).status,
            404,
            "{}",
            item.path()
        );
    }
    assert!(!is_shared_over_udp(&daemon, &absent));
    daemon.log.line(&["warn", "damaged"]);
    daemon.assert_well();
}

#[test]
fn a_request_with_a_tail_or_a_malformed_hash_gets_what_it_deserves() {
    let item = Item::signed("hello", 500);
    let host = Host::new().holding(&[&item]);
    let daemon = host.start();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let hash = item.hash();
    for bad in [
        vec![0; 4],
        [&[0, 9, 9, 9, 9], &hash.as_bytes()[..31]].concat(),
        [&[0, 9, 9, 9, 9], hash.to_uppercase().as_bytes()].concat(),
        [&[0, 9, 9, 9, 9][..], &[0xff; 32]].concat(),
        [&[0, 9, 9, 9, 9][..], b"../../../../../../../etc/passwd."].concat(),
    ] {
        socket.send_to(&bad, daemon.address()).expect("send");
    }
    // The tail of a known type is ignored, for later versions.
    let long = [&[0, 1, 1, 1, 1], hash.as_bytes(), b"tail"].concat();
    socket.send_to(&long, daemon.address()).expect("send");
    let mut buffer = [0; 200];
    let (length, _) = socket.recv_from(&mut buffer).expect("an answer");
    // The first answer is to the only proper request.
    assert_eq!(
        buffer[..length],
        peer::present(&[1, 1, 1, 1], daemon.address().port(), &hash)
    );
}

#[test]
fn what_a_locked_database_cannot_decide_is_undecided_and_found_by_the_repeat() {
    let item = Item::signed("held", 500);
    let host = Host::new().holding(&[&item]);
    let writer = rusqlite::Connection::open(host.database()).expect("database");
    // Only so a writer locks readers out.
    writer
        .pragma_update(None, "journal_mode", "delete")
        .expect("journal");
    let holder = host.start();
    assert!(is_shared_over_udp(&holder, &item));

    writer.execute_batch("begin exclusive").expect("lock");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let ask = peer::ask(1, 1, 80, &[&item.hash()]);
    socket.send_to(&ask, holder.address()).expect("send");
    let mut buffer = [0; 200];
    let (length, _) = socket.recv_from(&mut buffer).expect("an answer");
    let answer = Datagram::parse(&buffer[..length]).expect("a datagram");
    assert!(
        matches!(&answer, Datagram::Answer(it) if it.states == [PathState::Undecided]),
        "{answer:?}"
    );
    writer.execute_batch("commit").expect("unlock");
    assert!(is_shared_over_udp(&holder, &item));

    let asks = format!("discovery.peers = [{:?}]", holder.address().to_string());
    let asking = Host::new().with(&asks);
    let asker = asking.start();
    let received = || holder.status()["discovery"]["datagrams-received"].as_u64();
    writer.execute_batch("begin exclusive").expect("lock");
    let before = received();
    std::thread::scope(|scope| {
        let found = scope.spawn(|| asker.get(&format!("/{}.narinfo", item.hash())).status);
        eventually("the holder is asked", || {
            (received() > before).then_some(())
        });
        writer.execute_batch("commit").expect("unlock");
        assert_eq!(found.join().expect("an answer"), 200);
    });
}
