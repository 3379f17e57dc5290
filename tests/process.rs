//! The daemon as a process: how it starts, what it keeps, what it tells the service manager, and
//! how it ends.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use support::{
    daemon::{Daemon, Sockets},
    documents, eventually,
    host::Host,
    http::{Connection, get},
    is_root,
    item::{Item, key, key_text},
    manager::Manager,
    peer::{self, Peer},
    skip, timed,
};

const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// sysexits.h
const USAGE: i32 = 64;
const NO_PERMISSION: i32 = 77;
const CONFIG: i32 = 78;

/// Fails unless a run ends with `code` and says all of `parts` on stderr.
fn assert_ends(run: (Option<i32>, String, String), code: i32, parts: &[&str], what: &str) {
    let (found, _, stderr) = run;
    assert_eq!(found, Some(code), "{what}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{what}: no {part:?} in {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
}

#[test]
fn a_usage_error_ends_with_64() {
    let host = Host::new();
    for args in [
        &["--no-such-flag"][..],
        &["--port", "x"],
        &["--port", "70000"],
        &["--timeout", "0"],
        &["--timeout", "-5"],
        &["no-such-command"],
        &["--config"],
        // An option of the daemon before a command would be taken and forgotten.
        &["--port", "12999", "serve"],
        &["--port", "12999", "refresh"],
    ] {
        assert_ends(
            host.launch().args(args).run(),
            USAGE,
            &["error"],
            &format!("{args:?}"),
        );
    }
    for args in ["--help", "--version"] {
        let (code, stdout, _) = host.launch().args([args]).run();
        assert_eq!(code, Some(0), "{args}");
        assert!(stdout.contains("peerix"), "{args}: {stdout}");
    }
}

#[test]
fn a_config_error_ends_with_78_and_names_key_line_and_what_would_be_right() {
    for (text, parts) in [
        ("prot = 1", &["prot", "line", "port"][..]),
        (
            "idle.timeout = 5",
            &["idle.timeout = 5", "line", "a duration in quotes"],
        ),
        (
            "idle.timeout = \"5 parsecs\"",
            &["5 parsecs", "line", "1min"],
        ),
        ("limits.buffer = \"40MB\"", &["40MB", "MiB"]),
        ("limits.connections = 3", &["limits.connections", "128"]),
        ("share.paths = \"some\"", &["some", "signed"]),
        (
            "discovery.timeout = \"10s\"",
            &["discovery.timeout", "wake-timeout"],
        ),
        (
            "user = \"no-such-user-here\"",
            &["no-such-user-here", "right would be"],
        ),
        ("user = \"root\"", &["root", "right would be"]),
        (
            "group = \"no-such-group-here\"",
            &["no-such-group-here", "right would be"],
        ),
        ("= x", &["line"]),
    ] {
        let about_users = text.starts_with("user") || text.starts_with("group");
        if about_users && !is_root() {
            continue;
        }
        let host = Host::new().with(text);
        assert_ends(host.launch().run(), CONFIG, parts, text);
        if !about_users {
            assert_ends(
                host.launch().args(["--check-config"]).run(),
                CONFIG,
                parts,
                text,
            );
            assert_ends(
                host.launch().args(["--print-config"]).run(),
                CONFIG,
                parts,
                text,
            );
        }
    }
    if !is_root() {
        skip("only root's daemon becomes another user, which may be one that is not there");
    }
    let host = Host::new();
    fs::remove_file(host.config()).expect("remove");
    assert_ends(
        host.launch().run(),
        CONFIG,
        &["peerix.toml", "No such file"],
        "no config file",
    );
    let host = Host::new();
    fs::write(
        host.database(),
        "not a database, and long enough to be looked at",
    )
    .expect("database");
    for args in [&[][..], &["--check-config"]] {
        assert_ends(
            host.launch().args(args).run(),
            CONFIG,
            &["db.sqlite"],
            "no database",
        );
    }
    let host = Host::new();
    fs::write(host.nix_conf(), "trusted-public-keys = nonsense\n").expect("nix.conf");
    assert_ends(
        host.launch().run(),
        CONFIG,
        &["nix.conf"],
        "a broken nix.conf",
    );
}

#[test]
fn a_key_error_ends_with_78_and_shows_nothing_of_the_key() {
    let whole = key_text("host-1", 9);
    let secret = whole.split_once(':').expect("a colon").1.to_owned();
    for (what, text) in [
        ("no name", secret.clone()),
        ("cut", whole[..whole.len() - 9].to_owned()),
        ("too long", format!("{whole}{secret}")),
        ("broken", whole.replace(&secret[10..12], "??")),
        ("a second line", format!("{whole}\n{secret}")),
        ("empty", String::new()),
    ] {
        let mut host = Host::new();
        host.file("key", &text, 0o444);
        host.set_file_setting("signing.key-file", "key");
        let run = host.launch().args(["--verbose"]).run();
        for part in [&secret[..12], &secret[20..32], &secret[60..72]] {
            assert!(!run.2.contains(part), "{what}: the key is shown: {}", run.2);
        }
        assert_ends(run, CONFIG, &["key"], what);
    }
    let missing = Host::new();
    let run = missing
        .launch()
        .args(["--private-key", "/nonexistent/key"])
        .run();
    assert_ends(run, CONFIG, &["/nonexistent/key"], "no key file");
}

#[test]
fn what_may_not_be_read_ends_with_77() {
    let unreadable = |path: &std::path::Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).expect("rights");
    };
    let host = Host::new();
    unreadable(&host.database());
    assert_ends(
        host.launch().run(),
        NO_PERMISSION,
        &["db.sqlite"],
        "the database",
    );
    if is_root() {
        return skip("root may read every config file and key");
    }
    let host = Host::new();
    unreadable(&host.config());
    assert_ends(
        host.launch().run(),
        NO_PERMISSION,
        &["peerix.toml"],
        "the config file",
    );
    let mut host = Host::new();
    host.file("key", key_text("host-1", 9), 0);
    host.set_file_setting("signing.key-file", "key");
    assert_ends(host.launch().run(), NO_PERMISSION, &["key"], "the key");
}

#[test]
fn each_toml_example_of_the_documents_is_in_order() {
    let blocks = documents::blocks("toml");
    assert!(blocks.len() >= 4, "only {}", blocks.len());
    for block in blocks {
        let host = Host::new();
        fs::write(host.config(), &block.text).expect("write");
        let (code, _, stderr) = host.launch().args(["--print-config"]).run();
        assert_eq!(code, Some(0), "{}: {stderr}", block.place);
    }
}

#[test]
fn check_config_says_that_all_is_well() {
    let host = Host::new();
    let (code, _, stderr) = host.launch().args(["--check-config"]).run();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn what_print_config_prints_is_the_same_configuration() {
    let host = Host::new()
        .with("idle.timeout = \"7s\"\nshare.exclude = [\"a*\", \"b?\"]\nlimits.upload = \"3MiB\"\n[interfaces]\ninclude = [\"eth*\"]");
    let print = |config: &std::path::Path, more: &[&str]| {
        let mut args = vec![
            "--print-config".to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
        ];
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let (code, stdout, stderr) = support::daemon::Launch::new(host.dir()).args(args).run();
        assert_eq!(code, Some(0), "{stderr}");
        stdout
    };
    let first = print(&host.config(), &[]);
    let again = host.file("printed.toml", &first, 0o644);
    assert_eq!(print(&again, &[]), first);
    for line in ["timeout = \"7s\"", "upload = \"3MiB\""] {
        assert!(first.contains(line), "{line}: {first}");
    }
    // The command line wins, and shows.
    let with_flags = print(&host.config(), &["--port", "1234", "--timeout", "99"]);
    assert!(
        with_flags.contains("port = 1234") && with_flags.contains("timeout = \"99ms\""),
        "{with_flags}"
    );
}

#[test]
fn a_key_comes_from_the_environment_the_command_line_a_credential_or_a_setting() {
    let item = Item::unsigned("made-here", 300).built();
    let host = Host::new().holding(&[&item]);
    for (name, seed) in [("a", 31), ("b", 32)] {
        host.file(name, key_text(&format!("{name}-1"), seed), 0o400);
    }
    let credentials = host.open_directory("credentials");
    let signed_by = |daemon: Daemon, name: &str, seed: u8| {
        let narinfo = daemon.get(&format!("/local/{}.narinfo", item.hash()));
        let expected = item.clone().sign(&key(name, seed));
        assert_eq!(narinfo.text(), expected.peer_narinfo());
    };
    let (a, b) = (host.dir().join("a"), host.dir().join("b"));
    signed_by(
        host.launch().env("NIX_SECRET_KEY_FILE", &a).start(),
        "a-1",
        31,
    );
    signed_by(
        host.launch()
            .args(["--private-key".as_ref(), a.as_os_str()])
            .start(),
        "a-1",
        31,
    );
    signed_by(
        host.launch()
            .env("NIX_SECRET_KEY_FILE", &a)
            .args(["--private-key".as_ref(), b.as_os_str()])
            .start(),
        "b-1",
        32,
    );
    fs::copy(&b, credentials.join("peerix.signing-key")).expect("copy");
    signed_by(
        host.launch()
            .env("CREDENTIALS_DIRECTORY", &credentials)
            .env("NIX_SECRET_KEY_FILE", &a)
            .start(),
        "b-1",
        32,
    );
}

#[test]
fn the_key_is_in_no_argument_log_line_or_answer() {
    let item = Item::unsigned("made-here", 300).built();
    let mut host = Host::new().holding(&[&item]);
    let text = key_text("host-1", 9);
    host.file("key", &text, 0o444);
    host.set_file_setting("signing.key-file", "key");
    let daemon = host.launch().args(["--verbose"]).start();
    let secret = &text.split_once(':').expect("a colon").1[..40];
    let mut seen = daemon.proc("cmdline");
    if is_root() {
        seen.push_str(&daemon.proc("environ"));
    } else {
        // Root's alone, because the memory may not be dumped.
        assert!(fs::read(format!("/proc/{}/environ", daemon.pid())).is_err());
    }
    for path in [
        "/status".to_owned(),
        "/metrics".to_owned(),
        format!("/local/{}.narinfo", item.hash()),
    ] {
        seen.push_str(&daemon.get(&path).text());
    }
    daemon.signal(Signal::SIGHUP);
    daemon.log.line(&["are read again"]);
    seen.push_str(&daemon.log.text());
    assert!(seen.contains("host-1") && !seen.contains(secret), "{seen}");
}

#[test]
fn a_second_daemon_on_the_same_port_fails_by_name() {
    let host = Host::new();
    let daemon = host.start();
    let port = daemon.address().port().to_string();
    let run = host.launch().args(["--port", &port]).run();
    assert_ne!(run.0, Some(0));
    assert!(
        run.2.contains(&port) && run.2.contains("in use"),
        "{}",
        run.2
    );
    // Also when the other one has the UDP port alone; a number that somebody uses for TCP is
    // of no use here.
    eventually("a failure that names UDP", || {
        let udp = UdpSocket::bind("0.0.0.0:0").expect("UDP");
        let port = udp.local_addr().expect("address").port().to_string();
        let run = host.launch().args(["--port", &port]).run();
        assert_ne!(run.0, Some(0));
        assert!(
            run.2.contains(&port) && run.2.contains("in use"),
            "{}",
            run.2
        );
        run.2.contains("UDP").then_some(())
    });
}

#[test]
fn a_restarted_daemon_gets_its_port_at_once() {
    let item = Item::signed("held", 500);
    let host = Host::new().holding(&[&item]);
    let first = host.start();
    let port = first.address().port().to_string();
    // A connection that the daemon ends leaves a socket in TIME_WAIT.
    let mut connection = Connection::open(first.address()).expect("connection");
    connection.ask("GET", "/healthz", &[]).expect("answer");
    assert_eq!(first.stop().0, Some(0));
    let again = host.launch().args(["--port", &port]).start();
    assert_eq!(again.get("/healthz").status, 200);
}

/// A daemon under a manager, with the sockets of systemd.
fn managed(host: &Host) -> (Manager, Sockets, Daemon) {
    let manager = Manager::new(host.dir());
    let sockets = Sockets::open();
    let daemon = host
        .launch()
        .env("NOTIFY_SOCKET", manager.path())
        .activate(&sockets);
    (manager, sockets, daemon)
}

#[test]
fn the_manager_is_told_when_it_is_ready() {
    let host = Host::new();
    let (manager, sockets, mut daemon) = managed(&host);
    let ready = manager.until("READY=1");
    assert!(
        ready
            .lines()
            .any(|line| line.starts_with("STATUS=") && line.contains("served")),
        "{ready}"
    );
    assert_eq!(get(sockets.address(), "/healthz").status, 200);
    daemon.assert_well();
}

#[test]
fn a_reload_is_told_with_the_monotonic_clock() {
    let mut host = Host::new();
    let (manager, _sockets, daemon) = managed(&host);
    manager.until("READY=1");
    assert!(
        daemon
            .get("/nix-cache-info")
            .text()
            .contains("Priority: 20")
    );
    host.set("priority = 7");
    daemon.signal(Signal::SIGHUP);
    let reloading = manager.until("RELOADING=1");
    let clock = reloading
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let clock: u64 = clock.and_then(|clock| clock.parse().ok()).expect("a clock");
    let uptime: f64 = fs::read_to_string("/proc/uptime")
        .expect("uptime")
        .split(' ')
        .next()
        .expect("a number")
        .parse()
        .expect("seconds");
    assert!(
        clock > 0 && clock as f64 <= uptime * 1e6 + 20_000.0,
        "{clock} at {uptime} s"
    );
    assert!(
        manager
            .next(support::PATIENCE)
            .expect("ready")
            .contains("READY=1")
    );
    assert!(daemon.get("/nix-cache-info").text().contains("Priority: 7"));
}

#[test]
fn status_counts_what_is_fetched_and_served() {
    let item = Item::signed("wanted", 3 << 20);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let (manager, _sockets, daemon) = managed(&host);
    manager.until("READY=1");
    assert_eq!(
        daemon.get(&format!("/v3/nar/{}", item.nar_name())).status,
        200
    );
    manager.until_message("a STATUS= with what was fetched", |message| {
        message.contains("1 peers") && message.contains("fetched 1 (3 MiB)")
    });
}

#[test]
fn the_watchdog_is_fed_while_all_is_well_and_not_while_it_hangs() {
    let host = Host::new();
    let manager = Manager::new(host.dir());
    let sockets = Sockets::open();
    let daemon = host
        .launch()
        .env("NOTIFY_SOCKET", manager.path())
        .env("WATCHDOG_USEC", "1000000")
        .activate(&sockets);
    let began = Instant::now();
    for _ in 0..4 {
        manager.until("WATCHDOG=1");
    }
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    daemon.signal(Signal::SIGSTOP);
    while manager.next(Duration::from_millis(100)).is_some() {}
    let silence = manager.next(Duration::from_secs(2));
    assert_eq!(silence, None, "a stopped process speaks");
    daemon.signal(Signal::SIGCONT);
    manager.until("WATCHDOG=1");
}

#[test]
fn a_stop_says_so_first_and_answers_what_is_under_way() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // Each lookup takes half a second: the peer may still wake up.
        let peer = Peer::new(|_, _| Vec::new(), |_, stream| peer::not_found(stream));
        let host = Host::new().with(&Peer::setting(&[&peer]));
        let (manager, sockets, mut daemon) = managed(&host);
        manager.until("READY=1");
        let mut under_way = Connection::open(sockets.address()).expect("connection");
        under_way
            .send(format!("GET /{HASH}.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .expect("send");
        eventually("the lookup", || {
            (!peer.datagrams().is_empty()).then_some(())
        });
        let began = Instant::now();
        daemon.signal(signal);
        assert_eq!(manager.until("STOPPING=1").trim(), "STOPPING=1");
        assert!(daemon.is_running(), "STOPPING=1 came after the end");
        assert_eq!(
            under_way.answer(false).expect("answer").status,
            404,
            "{signal}"
        );
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{signal}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn a_stop_cuts_streams_after_the_drain() {
    let item = Item::signed("large", 64 << 20);
    let host = Host::new()
        .holding(&[&item])
        .with("limits.drain = \"300ms\"");
    let (_manager, sockets, mut daemon) = managed(&host);
    let mut stream = Connection::open(sockets.address()).expect("connection");
    stream
        .send(
            format!(
                "GET /nar/{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                item.nar_name()
            )
            .as_bytes(),
        )
        .expect("send");
    assert_eq!(stream.head().expect("head").status, 200);
    daemon.signal(Signal::SIGTERM);
    let (status, took) = timed(|| daemon.wait());
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_millis(1_500), "{took:?}");
    let got = stream.rest();
    assert!(
        got.len() < item.nar.len() && item.nar.starts_with(&got),
        "{} bytes",
        got.len()
    );
}

#[test]
fn a_stop_with_nothing_under_way_takes_no_time() {
    let host = Host::new();
    let (manager, _sockets, mut daemon) = managed(&host);
    manager.until("READY=1");
    // Idle connections that were used are nobody's request.
    let mut idle = Connection::open(daemon.address()).expect("connection");
    idle.ask("GET", "/healthz", &[]).expect("answer");
    daemon.signal(Signal::SIGTERM);
    let (status, took) = timed(|| daemon.wait());
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_millis(700), "{took:?}");
}

#[test]
fn what_comes_while_it_stops_is_answered_by_the_next_one() {
    let item = Item::signed("held", 500);
    let host = Host::new()
        .holding(&[&item])
        .with("idle.timeout = \"300ms\"");
    let sockets = Sockets::open();
    let mut first = host.launch().activate(&sockets);
    assert_eq!(first.wait().code(), Some(0));
    // Nobody runs; the sockets are open.
    let mut connection = Connection::open(sockets.address()).expect("connection");
    connection
        .send(
            format!(
                "GET /local/{}.narinfo HTTP/1.1\r\nHost: x\r\n\r\n",
                item.hash()
            )
            .as_bytes(),
        )
        .expect("send");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    udp.set_read_timeout(Some(support::PATIENCE))
        .expect("timeout");
    udp.send_to(
        &[&[0, 4, 3, 2, 1], item.hash().as_bytes()].concat(),
        sockets.address(),
    )
    .expect("send");
    let _second = host.launch().activate(&sockets);
    assert_eq!(connection.answer(false).expect("answer").status, 200);
    let mut buffer = [0; 100];
    let (length, _) = udp.recv_from(&mut buffer).expect("answer");
    assert_eq!(
        buffer[..length],
        peer::present(&[4, 3, 2, 1], sockets.address().port(), &item.hash())
    );
}

#[test]
fn an_idle_daemon_exits_when_systemd_can_wake_it() {
    let host = Host::new().with("idle.timeout = \"500ms\"");
    let (manager, _sockets, mut daemon) = managed(&host);
    manager.until("READY=1");
    assert_eq!(manager.until("STOPPING=1").trim(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn an_idle_daemon_with_sockets_of_its_own_stays() {
    // Without the setting: with it, whoever set it wants it.
    let host = Host::new();
    let mut stays = host.start();
    let host = Host::new().with("idle.timeout = \"300ms\"");
    assert_eq!(host.start().wait().code(), Some(0));
    stays.assert_well();
}

#[test]
fn work_holds_off_the_idle_exit_and_looking_on_does_not() {
    let item = Item::signed("held", 500);
    let host = Host::new()
        .holding(&[&item])
        .with("idle.timeout = \"700ms\"");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("timeout");
    let request = [&[0, 0, 0, 0, 1], item.hash().as_bytes()].concat();

    let (_manager, sockets, mut busy) = managed(&host);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        // One that the store cannot decide in time is not answered.
        socket.send_to(&request, sockets.address()).expect("send");
        socket.recv_from(&mut [0; 100]).ok();
    }
    assert!(busy.is_running(), "ended while it had lookups to answer");
    drop(busy);

    let other = Host::new().with("idle.timeout = \"700ms\"");
    let (_manager, sockets, mut idle) = managed(&other);
    let who_is_there = peer::ask(1, 7, 12_304, &[]);
    let answer = peer::answer(1, 7, 12_304, &[]);
    let began = Instant::now();
    let mut lived = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(5) && idle.is_running() {
        lived = began.elapsed();
        for datagram in [
            &who_is_there[..],
            &answer,
            &[2, 0, 0, 0, 1],
            b"\xffjunk",
            b"",
        ] {
            socket.send_to(datagram, sockets.address()).expect("send");
        }
        for path in ["/", "/status", "/metrics", "/healthz"] {
            // Its last moment may be now: then the connection waits for the next daemon.
            if let Ok(stream) = TcpStream::connect(sockets.address()) {
                let mut stream = stream;
                stream
                    .set_read_timeout(Some(Duration::from_millis(200)))
                    .expect("timeout");
                use std::io::{Read, Write};
                write!(
                    stream,
                    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                .ok();
                stream.read_to_end(&mut Vec::new()).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!idle.is_running(), "looking on kept it up for {lived:?}");
    assert_eq!(idle.wait().code(), Some(0));
}

#[test]
fn an_open_connection_of_nix_holds_off_the_idle_exit() {
    let host = Host::new().with("idle.timeout = \"400ms\"");
    let (manager, sockets, mut daemon) = managed(&host);
    manager.until("READY=1");
    let mut nix = Connection::open(sockets.address()).expect("connection");
    nix.ask("GET", &format!("/{HASH}.narinfo"), &[])
        .expect("answer");
    std::thread::sleep(Duration::from_millis(2_000));
    assert!(daemon.is_running(), "ended although Nix may ask more");
    assert_eq!(
        nix.ask("GET", &format!("/{HASH}.narinfo"), &[])
            .expect("answer")
            .status,
        404
    );
    drop(nix);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn every_thread_is_without_privileges() {
    let item = Item::signed("held", 500_000);
    let host = Host::new().holding(&[&item]);
    let daemon = host.start();
    // Threads that read files are there after a NAR.
    assert_eq!(daemon.get(&format!("/nar/{}", item.nar_name())).status, 200);
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("tasks") {
        let status = task.expect("task").path().join("status");
        let Ok(status) = fs::read_to_string(&status) else {
            continue;
        };
        threads += 1;
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(field("NoNewPrivs"), ["1"]);
        if is_root() {
            let nobody = nix::unistd::User::from_name("nobody")
                .expect("users")
                .expect("nobody");
            let (uid, gid) = (nobody.uid.to_string(), nobody.gid.to_string());
            assert_eq!(field("Uid"), vec![uid; 4]);
            assert_eq!(field("Gid"), vec![gid.clone(); 4]);
            assert_eq!(field("Groups"), [gid]);
            assert_eq!(field("CapBnd"), ["0000000000000000"]);
        }
    }
    assert!(threads >= 2, "{threads}");
    if !is_root() {
        skip("only root's daemon has user, groups and a bounding set to give up");
    }
}

#[test]
fn the_open_descriptors_are_those_that_are_needed() {
    let mut host = Host::new();
    host.file("key", key_text("host-1", 9), 0o444);
    host.set_file_setting("signing.key-file", "key");
    let (manager, _sockets, daemon) = managed(&host);
    manager.until("READY=1");
    let directory = format!("/proc/{}/fd", daemon.pid());
    let Ok(listed) = fs::read_dir(&directory) else {
        return skip("the descriptors of a process that cannot be dumped are root's to see");
    };
    let mut sockets = 0;
    let mut others = BTreeSet::new();
    for entry in listed {
        let Ok(target) = fs::read_link(entry.expect("entry").path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        match target
            .split_once(':')
            .map_or(target.as_str(), |(kind, _)| kind)
        {
            "socket" => sockets += 1,
            "pipe" | "anon_inode" | "/dev/null" => {}
            _ => drop(others.insert(target)),
        }
    }
    assert!(others.is_empty(), "{others:?}");
    // TCP, UDP, the manager, the kernel's news of interfaces, and three of the runtime for signals.
    assert!((4..=7).contains(&sockets), "{sockets} sockets");
}

#[test]
fn inherited_descriptors_of_another_kind_are_refused_by_name() {
    let host = Host::new();
    let tcp = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("listener"));
    let udp = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").expect("UDP"));
    let file = || OwnedFd::from(fs::File::open(host.config()).expect("file"));
    let unix = || OwnedFd::from(UnixStream::pair().expect("pair").0);
    let connected_udp = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
        socket.connect("127.0.0.1:9").expect("connect");
        OwnedFd::from(socket)
    };
    let server = TcpListener::bind("127.0.0.1:0").expect("listener");
    let connection = || {
        OwnedFd::from(
            TcpStream::connect(server.local_addr().expect("address")).expect("connection"),
        )
    };
    for (what, third, fourth, count, parts) in [
        (
            "a file",
            tcp(),
            file(),
            "2",
            &["fd 4", "a regular file"][..],
        ),
        (
            "a Unix socket",
            unix(),
            udp(),
            "2",
            &["fd 3", "a Unix stream socket"],
        ),
        (
            "a connected UDP socket",
            tcp(),
            connected_udp(),
            "2",
            &["fd 4", "a connected UDP socket"],
        ),
        (
            "a connection",
            connection(),
            udp(),
            "2",
            &["fd 3", "a TCP connection"],
        ),
        ("no TCP listener", udp(), udp(), "2", &["ListenStream="]),
        ("one too many", tcp(), udp(), "3", &["fd 5", "not open"]),
        ("no number", tcp(), udp(), "two", &["LISTEN_FDS", "two"]),
        (
            "a negative number",
            tcp(),
            udp(),
            "-1",
            &["LISTEN_FDS", "-1"],
        ),
    ] {
        let launch = host
            .launch()
            .env("LISTEN_FDS", count)
            .env("LISTEN_FDNAMES", "peerix.socket:other.socket");
        let mut daemon = launch.activate_with(third, fourth);
        let status = daemon.wait();
        let log = daemon.log.text();
        assert_eq!(status.code(), Some(CONFIG), "{what}: {log}");
        for part in parts {
            assert!(log.contains(part), "{what}: no {part:?} in {log}");
        }
    }
    let named = host
        .launch()
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "peerix.socket:other.socket");
    let mut daemon = named.activate_with(tcp(), file());
    daemon.wait();
    assert!(
        daemon.log.text().contains("other.socket"),
        "{}",
        daemon.log.text()
    );
}

#[test]
fn several_listeners_of_both_families_are_served() {
    let host = Host::new();
    let v4 = TcpListener::bind("127.0.0.1:0").expect("listener");
    let Ok(v6) = TcpListener::bind("[::1]:0") else {
        return skip("this machine has no IPv6 on loopback");
    };
    let dual =
        socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("socket");
    dual.set_only_v6(false).expect("dual-stack");
    dual.bind(
        &"[::]:0"
            .parse::<std::net::SocketAddr>()
            .expect("address")
            .into(),
    )
    .expect("bind");
    dual.listen(16).expect("listen");
    let dual = TcpListener::from(dual);
    let dual_port = dual.local_addr().expect("address").port();
    let addresses = [
        v4.local_addr().expect("address"),
        v6.local_addr().expect("address"),
    ];
    let mut daemon = host
        .launch()
        .env("LISTEN_FDS", "2")
        .activate_with(v4.into(), v6.into());
    for address in addresses {
        assert_eq!(
            get(address, &format!("/{HASH}.narinfo")).status,
            404,
            "{address}"
        );
    }
    assert!(daemon.is_running());
    // IPv4 through a dual-stack socket is loopback all the same.
    let udp = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    let _daemon = host
        .launch()
        .env("LISTEN_FDS", "2")
        .activate_with(dual.into(), udp.into());
    for ip in ["127.0.0.1", "[::1]"] {
        let address = format!("{ip}:{dual_port}").parse().expect("address");
        assert_eq!(get(address, "/healthz").status, 200, "{address}");
    }
}

/// The instance in the first ask that a peer gets when loopback asks.
fn instance(daemon: &Daemon, peer: &Peer, before: usize) -> Vec<u8> {
    daemon.get(&format!("/{HASH}.narinfo"));
    eventually("an ask", || {
        let heard = peer.datagrams();
        let ask = heard[before..].iter().find(|datagram| datagram[0] == 2)?;
        Some(ask[9..17].to_vec())
    })
}

#[test]
fn who_it_is_and_whom_it_knows_outlive_the_process() {
    let item = Item::signed("wanted", 500);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let runtime = host.open_directory("runtime");
    let start = || host.launch().env("RUNTIME_DIRECTORY", &runtime).start();
    let first = start();
    let mine = instance(&first, &peer, 0);
    assert_eq!(first.get(&format!("/{}.narinfo", item.hash())).status, 200);
    assert_eq!(first.stop().0, Some(0));
    let state = runtime.join("state");
    assert_eq!(fs::metadata(&state).expect("state").mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&runtime).expect("directory").count(), 1);
    let saved = fs::read(&state).expect("state");

    let again = start();
    let known = &again.status()["peers"][0];
    assert_eq!(
        (&known["address"], &known["kind"]),
        (&peer.udp().to_string().into(), &"new".into())
    );
    assert_eq!(instance(&again, &peer, peer.datagrams().len()), mine);
    assert_eq!(again.stop().0, Some(0));

    // Any defect discards all of it, and nothing else happens.
    let huge = vec![b' '; 9 << 20];
    let later = String::from_utf8(saved.clone()).expect("text").replacen(
        "\"version\":3",
        "\"version\":4",
        1,
    );
    let future = a_thousand_years_later(&String::from_utf8(saved.clone()).expect("text"));
    for (what, content) in [
        ("cut", &saved[..saved.len() / 2]),
        ("empty", b""),
        ("junk", b"\xff\0junk"),
        ("of another version", later.as_bytes()),
        ("from the future", future.as_bytes()),
        ("too large", &huge),
        ("of another shape", b"{\"version\":3}"),
    ] {
        fs::remove_file(&state).ok();
        fs::write(&state, content).expect("state");
        fs::set_permissions(&state, fs::Permissions::from_mode(0o666)).expect("rights");
        let mut daemon = start();
        assert_ne!(
            instance(&daemon, &peer, peer.datagrams().len()),
            mine,
            "a state that is {what}"
        );
        daemon.assert_well();
        assert_eq!(daemon.stop().0, Some(0), "{what}");
        // And what is written then is in order.
        assert!(fs::read(&state).expect("state").starts_with(b"{"), "{what}");
    }
    fs::remove_file(&state).expect("remove");
    fs::create_dir(&state).expect("directory");
    let daemon = start();
    assert_ne!(instance(&daemon, &peer, peer.datagrams().len()), mine);
    assert_eq!(daemon.stop().0, Some(0));
}

/// The saved state, saved a thousand years later.
fn a_thousand_years_later(saved: &str) -> String {
    let (before, after) = saved.split_once("\"saved-at-unix\":").expect("a time");
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}\"saved-at-unix\":33000000000{rest}")
}

#[test]
fn it_starts_and_stops_again_and_again() {
    let host = Host::new();
    for _ in 0..20 {
        let (manager, _sockets, daemon) = managed(&host);
        manager.until("READY=1");
        assert_eq!(daemon.stop().0, Some(0));
        fs::remove_file(manager.path()).expect("remove");
    }
}
