//! `peerix refresh`: the real program, with caches of Nix in homes of the tests' own.
//!
//! As root each run has a mount namespace of its own, in which /etc/passwd names these homes. No
//! gateway is at the port in use, so that what this machine's Nix remembers stays as it is.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rusqlite::Connection;
use tempfile::TempDir;

use support::{is_root, skip};

const BINARY: &str = env!("CARGO_BIN_EXE_peerix");
const PORT: u16 = 12_399;
const OURS: &str = "http://127.0.0.1:12399";

/// sysexits.h
const SOFTWARE: i32 = 70;
const NO_PERMISSION: i32 = 77;
const CONFIG: i32 = 78;

const SCHEMA: &str = "
    create table BinaryCaches (id integer primary key autoincrement not null,
        url text unique not null, timestamp integer not null, storeDir text not null,
        wantMassQuery integer not null, priority integer not null);
    create table NARs (cache integer not null, hashPart text not null, namePart text,
        timestamp integer not null, present integer not null, primary key (cache, hashPart));
    create table Realisations (cache integer not null, outputId text not null, content blob,
        timestamp integer not null, primary key (cache, outputId));
    create table LastPurge (dummy text primary key, value integer);
    insert into BinaryCaches values
        (1, 'https://cache.nixos.org', 1, '/nix/store', 1, 40),
        (2, 'http://127.0.0.1:12399', 1, '/nix/store', 1, 20);
    insert into NARs values
        (1, 'a', null, 1, 0), (1, 'b', 'hit', 1, 1),
        (2, 'a', null, 1, 0), (2, 'b', 'hit', 1, 1), (2, 'c', null, 1, 0);
";

/// What of [`SCHEMA`] is left: rows of both substituters that are misses, and that are hits.
const FRESH: (i64, i64, i64) = (1, 2, 2);
const REFRESHED: (i64, i64, i64) = (1, 0, 2);

/// The ordinary user of these tests; as root another one than root.
struct Person {
    uid: u32,
    gid: u32,
}

fn person() -> Person {
    if is_root() {
        Person {
            uid: 54_321,
            gid: 54_322,
        }
    } else {
        Person {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        }
    }
}

/// A machine with two homes, a nix.conf and a peerix.toml.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().expect("directory"));
        fs::set_permissions(machine.0.path(), Permissions::from_mode(0o755)).expect("rights");
        for home in ["root", "alice"] {
            fs::create_dir_all(machine.cache_of(home)).expect("home");
        }
        machine.give_to_alice();
        machine.write("nix.conf", "");
        let nix_conf = machine.path("nix.conf");
        machine.write(
            "peerix.toml",
            &format!("port = {PORT}\ntrust.nix-conf = {nix_conf:?}\n"),
        );
        let alice = person();
        machine.write(
            "passwd",
            &format!(
                "root:x:0:0::{root}:/bin/sh\nalice:x:{}:{}::{alice_home}:/bin/sh\n",
                alice.uid,
                alice.gid,
                root = machine.path("root").display(),
                alice_home = machine.path("alice").display()
            ),
        );
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().expect("directory").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("file");
    }

    fn cache_of(&self, home: &str) -> PathBuf {
        self.path(home).join(".cache/nix")
    }

    fn give_to_alice(&self) {
        let alice = person();
        for part in ["alice", "alice/.cache", "alice/.cache/nix"] {
            chown(self.path(part), Some(alice.uid), Some(alice.gid)).expect("owner");
        }
    }

    /// A database with misses, of whoever's home it is in.
    fn remember(&self, home: &str, name: &str) -> PathBuf {
        let path = self.cache_of(home).join(name);
        Connection::open(&path)
            .expect("database")
            .execute_batch(SCHEMA)
            .expect("schema");
        if home == "alice" {
            let alice = person();
            chown(&path, Some(alice.uid), Some(alice.gid)).expect("owner");
        }
        path
    }

    /// The program with the environment of a login, and no Nix daemon.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>, home: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path(home))
            .env("NIX_DAEMON_SOCKET_PATH", self.path("socket"))
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// `peerix refresh` as alice. As root she cannot be expected to reach the build directory.
    fn as_alice(&self) -> Command {
        let mut program = PathBuf::from(BINARY);
        if is_root() {
            program = self.path("peerix");
            if !program.exists() {
                // Not by this process: while it has a file open for writing, so have the children
                // that its other threads are starting, and such a file cannot be executed.
                let mut copy = Command::new("cp");
                let copied = copy.arg(BINARY).arg(&program).status().expect("start cp");
                assert!(copied.success());
            }
        }
        let mut command = self.command(program, "alice");
        if is_root() {
            let alice = person();
            command.uid(alice.uid).gid(alice.gid);
        }
        command
            .arg("refresh")
            .arg("--config")
            .arg(self.path("peerix.toml"));
        command
    }

    /// `peerix refresh` as root, on a machine with these homes.
    fn as_root(&self) -> Command {
        let mut command = self.command("unshare", "root");
        command
            .args(["--mount", "--propagation", "private", "/bin/sh", "-c"])
            .arg("mount --bind \"$0\" /etc/passwd && exec \"$@\"")
            .arg(self.path("passwd"))
            .args([BINARY, "refresh", "--config"])
            .arg(self.path("peerix.toml"));
        command
    }
}

/// What a command said and how it ended.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("start");
    Said {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("text"),
        stderr: String::from_utf8(stderr).expect("text"),
    }
}

impl Said {
    #[track_caller]
    fn assert(&self, code: i32, stdout: &[String]) {
        let lines: Vec<&str> = self.stdout.lines().collect();
        assert_eq!(lines, stdout, "stderr: {}", self.stderr);
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert_eq!(self.stderr.is_empty(), code == 0, "{}", self.stderr);
    }
}

fn forgot(database: &Path) -> String {
    format!("forgot 2 misses of {OURS} in {}", database.display())
}

fn nothing(directory: &Path) -> String {
    format!("nothing is remembered in {}", directory.display())
}

fn left(database: &Path) -> (i64, i64, i64) {
    let connection = Connection::open(database).expect("database");
    let count = |what: &str| {
        let query = format!("select count(*) from NARs where {what}");
        connection
            .query_row(&query, (), |row| row.get(0))
            .expect("count")
    };
    (
        count("cache = 1 and present = 0"),
        count("cache = 2 and present = 0"),
        count("present = 1"),
    )
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("directory")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        })
        .collect();
    names.sort();
    names
}

/// Whether to go on: what root does, and with a namespace.
fn can_be_root() -> bool {
    if !is_root() {
        skip("refresh as root: not root");
        return false;
    }
    let unshared = Command::new("unshare").args(["--mount", "true"]).status();
    let is_possible = unshared.is_ok_and(|status| status.success());
    if !is_possible {
        skip("refresh as root: no mount namespaces here");
    }
    is_possible
}

#[test]
fn a_user_without_a_nix_daemon_refreshes_the_own_databases() {
    let machine = Machine::new();
    machine.write("nix.conf", "a nix.conf that is broken does not matter\n");
    let cache = machine.cache_of("alice");
    let said = run(&mut machine.as_alice());
    assert_eq!(said.stdout, format!("{}\n", nothing(&cache)));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("nix.conf"), "{}", said.stderr);

    machine.write("nix.conf", "");
    let v6 = machine.remember("alice", "binary-cache-v6.sqlite");
    let v7 = machine.remember("alice", "binary-cache-v7.sqlite");
    let other = machine.remember("alice", "fetcher-cache-v1.sqlite");
    let before = names(&cache);
    run(&mut machine.as_alice()).assert(0, &[forgot(&v6), forgot(&v7)]);
    assert_eq!((left(&v6), left(&v7)), (REFRESHED, REFRESHED));
    assert_eq!(left(&other), FRESH);
    assert_eq!(names(&cache), before);
    let none = |path: &Path| format!("no misses of {OURS} in {}", path.display());
    run(&mut machine.as_alice()).assert(0, &[none(&v6), none(&v7)]);
}

#[test]
fn a_user_beside_a_nix_daemon_is_told_that_root_must_do_it() {
    let machine = Machine::new();
    machine.write("socket", "");
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    let said = run(&mut machine.as_alice());
    said.assert(NO_PERMISSION, &[forgot(&path)]);
    assert!(
        said.stderr.contains("`sudo peerix refresh`"),
        "{}",
        said.stderr
    );
    assert_eq!(left(&path), REFRESHED);
}

#[test]
fn nix_decides_where_its_cache_is() {
    let machine = Machine::new();
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    let elsewhere = machine.path("elsewhere");
    let mut command = machine.as_alice();
    command.env("NIX_CACHE_HOME", &elsewhere);
    run(&mut command).assert(0, &[nothing(&elsewhere)]);
    assert_eq!(left(&path), FRESH);
    let mut command = machine.as_alice();
    command.env("XDG_CACHE_HOME", machine.path("alice/.cache"));
    command.env("HOME", "/not/there");
    run(&mut command).assert(0, &[forgot(&path)]);
}

#[test]
fn the_port_comes_from_the_settings() {
    let machine = Machine::new();
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    machine.write("peerix.toml", "port = 12398\n");
    let none = format!("no misses of http://127.0.0.1:12398 in {}", path.display());
    run(&mut machine.as_alice()).assert(0, &[none]);
    run(machine.as_alice().args(["--port", "12399"])).assert(0, &[forgot(&path)]);

    machine.write("peerix.toml", "port = 0\n");
    let said = run(&mut machine.as_alice());
    said.assert(CONFIG, &[]);
    assert!(said.stderr.contains("--port"), "{}", said.stderr);
}

#[test]
fn wrong_settings_end_it_as_they_end_the_daemon() {
    let machine = Machine::new();
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    machine.write("peerix.toml", "port = \"twelve\"\n");
    let said = run(&mut machine.as_alice());
    said.assert(CONFIG, &[]);
    assert!(said.stderr.contains("peerix.toml"), "{}", said.stderr);
    fs::remove_file(machine.path("peerix.toml")).expect("remove");
    run(&mut machine.as_alice()).assert(CONFIG, &[]);
    assert_eq!(left(&path), FRESH);
}

#[test]
fn one_bad_file_is_named_and_the_others_are_refreshed() {
    let machine = Machine::new();
    let cache = machine.cache_of("alice");
    let bad = cache.join("binary-cache-v5.sqlite");
    let unknown = cache.join("binary-cache-v9.sqlite");
    let good = machine.remember("alice", "binary-cache-v6.sqlite");
    fs::write(&bad, "not a database at all, and none of SQLite's").expect("file");
    Connection::open(&unknown)
        .expect("database")
        .execute_batch("create table Other (id integer)")
        .expect("schema");
    let alice = person();
    for path in [&bad, &unknown] {
        chown(path, Some(alice.uid), Some(alice.gid)).expect("owner");
    }
    let before = (
        fs::read(&bad).expect("file"),
        fs::read(&unknown).expect("file"),
    );
    let said = run(&mut machine.as_alice());
    said.assert(SOFTWARE, &[forgot(&good)]);
    for path in [&bad, &unknown] {
        let named = said.stderr.matches(path.to_str().expect("path")).count();
        assert_eq!(named, 1, "{}", said.stderr);
    }
    let after = (
        fs::read(&bad).expect("file"),
        fs::read(&unknown).expect("file"),
    );
    assert!(before == after);
    assert_eq!(left(&good), REFRESHED);
}

#[test]
fn a_file_that_the_user_may_not_write_is_a_matter_of_permission() {
    let machine = Machine::new();
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("rights");
    let said = run(&mut machine.as_alice());
    said.assert(NO_PERMISSION, &[]);
    assert!(
        said.stderr.contains(path.to_str().expect("path")),
        "{}",
        said.stderr
    );
    assert_eq!(left(&path), FRESH);
}

#[test]
fn a_full_output_does_not_keep_it_from_its_work() {
    let machine = Machine::new();
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let said = run(machine.as_alice().stdout(full));
    said.assert(SOFTWARE, &[]);
    assert!(said.stderr.contains("cannot print"), "{}", said.stderr);
    assert_eq!(left(&path), REFRESHED);
}

/// With POSIX locks it would not see this lock at all, and succeed.
#[test]
fn without_write_ahead_logs_it_minds_the_locks_that_nix_uses_then() {
    let machine = Machine::new();
    machine.write("nix.conf", "use-sqlite-wal = false\n");
    let path = machine.remember("alice", "binary-cache-v6.sqlite");
    let lock = path.with_extension("sqlite.lock");
    fs::create_dir(&lock).expect("lock");
    let said = run(&mut machine.as_alice());
    said.assert(SOFTWARE, &[]);
    assert!(
        said.stderr.contains(lock.to_str().expect("path")),
        "{}",
        said.stderr
    );
    assert_eq!(left(&path), FRESH);
    fs::remove_dir(&lock).expect("lock");
    run(&mut machine.as_alice()).assert(0, &[forgot(&path)]);
    assert!(!lock.exists());
}

#[test]
fn root_refreshes_the_databases_of_root_wherever_they_are() {
    if !can_be_root() {
        return;
    }
    let machine = Machine::new();
    let of_root = machine.remember("root", "binary-cache-v6.sqlite");
    let of_alice = machine.remember("alice", "binary-cache-v6.sqlite");
    // The environment says where once, the password database says so too.
    run(&mut machine.as_root()).assert(0, &[forgot(&of_root)]);
    assert_eq!((left(&of_root), left(&of_alice)), (REFRESHED, FRESH));

    // A directory of the environment that is root's counts as well; one of somebody else not.
    let elsewhere = machine.path("elsewhere");
    fs::create_dir(&elsewhere).expect("directory");
    let mut command = machine.as_root();
    command.env("NIX_CACHE_HOME", &elsewhere);
    let none = format!("no misses of {OURS} in {}", of_root.display());
    run(&mut command).assert(0, &[none.clone(), nothing(&elsewhere)]);

    let mut command = machine.as_root();
    command.env("NIX_CACHE_HOME", machine.cache_of("alice"));
    let said = run(&mut command);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stdout);
    assert_eq!(lines[0], none);
    assert!(lines[1].contains("is left alone"), "{}", said.stdout);
    assert_eq!(left(&of_alice), FRESH);

    // HOME kept by sudo: Nix does not take it either.
    let mut command = machine.as_root();
    command.env("HOME", machine.path("alice"));
    run(&mut command).assert(0, &[none]);
    assert_eq!(left(&of_alice), FRESH);
}

#[test]
fn called_through_sudo_it_refreshes_the_callers_databases_as_the_caller() {
    if !can_be_root() {
        return;
    }
    let machine = Machine::new();
    let alice = person();
    let of_root = machine.remember("root", "binary-cache-v6.sqlite");
    let of_alice = machine.remember("alice", "binary-cache-v6.sqlite");
    let wal = machine.remember("alice", "binary-cache-v8.sqlite");
    Connection::open(&wal)
        .expect("database")
        .pragma_update(None, "journal_mode", "wal")
        .expect("mode");
    chown(&wal, Some(alice.uid), Some(alice.gid)).expect("owner");
    let before = names(&machine.cache_of("alice"));
    let uid = alice.uid.to_string();
    for way in [
        ("SUDO_UID", &*uid),
        ("PKEXEC_UID", &uid),
        ("DOAS_USER", "alice"),
    ] {
        let mut command = machine.as_root();
        command.env(way.0, way.1).env("SUDO_USER", "alice");
        let expected = [&of_root, &of_alice, &wal].map(|path| forgot(path));
        run(&mut command).assert(0, &expected);
        for path in [&of_root, &of_alice, &wal] {
            assert_eq!(left(path), REFRESHED, "{way:?}");
            let again = "insert into NARs values (2, 'a', null, 1, 0), (2, 'c', null, 1, 0)";
            Connection::open(path)
                .expect("database")
                .execute_batch(again)
                .expect("misses");
        }
        assert_eq!(names(&machine.cache_of("alice")), before);
        for name in &before {
            let metadata = fs::metadata(machine.cache_of("alice").join(name)).expect("file");
            assert_eq!((metadata.uid(), metadata.gid()), (alice.uid, alice.gid));
        }
    }
    let mut command = machine.as_root();
    run(command.env("SUDO_UID", "0")).assert(0, &[forgot(&of_root)]);
}

#[test]
fn the_caller_locks_as_root_does() {
    if !can_be_root() {
        return;
    }
    let machine = Machine::new();
    machine.write("nix.conf", "use-sqlite-wal = false\n");
    let alice = person();
    let of_root = machine.remember("root", "binary-cache-v6.sqlite");
    let of_alice = machine.remember("alice", "binary-cache-v6.sqlite");
    let lock = of_alice.with_extension("sqlite.lock");
    fs::create_dir(&lock).expect("lock");
    let mut command = machine.as_root();
    let said = run(command.env("SUDO_UID", alice.uid.to_string()));
    said.assert(SOFTWARE, &[forgot(&of_root)]);
    assert!(
        said.stderr.contains(lock.to_str().expect("path")),
        "{}",
        said.stderr
    );
    assert_eq!(left(&of_alice), FRESH);
}

#[test]
fn what_a_caller_planted_makes_root_write_nowhere() {
    if !can_be_root() {
        return;
    }
    let machine = Machine::new();
    let alice = person();
    let of_root = machine.remember("root", "binary-cache-v6.sqlite");
    // Root's alone, and a database that root could write to.
    let secret = machine.path("secret");
    fs::create_dir(&secret).expect("directory");
    let target = secret.join("binary-cache-v6.sqlite");
    Connection::open(&target)
        .expect("database")
        .execute_batch(SCHEMA)
        .expect("schema");
    fs::set_permissions(&secret, Permissions::from_mode(0o700)).expect("rights");

    let link = machine.cache_of("alice").join("binary-cache-v6.sqlite");
    symlink(&target, &link).expect("link");
    lchown(&link, Some(alice.uid), Some(alice.gid)).expect("owner");
    let mut command = machine.as_root();
    command.env("SUDO_UID", alice.uid.to_string());
    let said = run(&mut command);
    said.assert(SOFTWARE, &[forgot(&of_root)]);
    assert!(said.stderr.contains("a symbolic link"), "{}", said.stderr);
    assert!(said.stderr.contains("alice"), "{}", said.stderr);
    assert_eq!(left(&target), FRESH);

    // The whole directory, in the place of hers.
    let cache = machine.cache_of("alice");
    fs::remove_dir_all(&cache).expect("remove");
    symlink(&secret, &cache).expect("link");
    let mut command = machine.as_root();
    command.env("SUDO_UID", alice.uid.to_string());
    let said = run(&mut command);
    said.assert(
        NO_PERMISSION,
        &[format!("no misses of {OURS} in {}", of_root.display())],
    );
    assert_eq!(left(&target), FRESH);
    assert_eq!(names(&secret), ["binary-cache-v6.sqlite"]);
}

#[test]
fn a_caller_who_does_not_exist_is_named() {
    if !can_be_root() {
        return;
    }
    let machine = Machine::new();
    let of_root = machine.remember("root", "binary-cache-v6.sqlite");
    let mut command = machine.as_root();
    let said = run(command.env("SUDO_UID", "54399"));
    said.assert(SOFTWARE, &[forgot(&of_root)]);
    assert!(said.stderr.contains("SUDO_UID=54399"), "{}", said.stderr);
}
