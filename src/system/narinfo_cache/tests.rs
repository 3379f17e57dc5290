//! Databases as several versions of Nix leave them, and what is left of them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::unistd::{Uid, geteuid};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::{database::forget_within, *};

const PORT: u16 = 12_304;
const BRIEFLY: Duration = Duration::from_millis(100);

/// Nix 2.0 to 2.3.
const V5: &str = "
    create table BinaryCaches (id integer primary key autoincrement not null,
        url text unique not null, timestamp integer not null, storeDir text not null,
        wantMassQuery integer not null, priority integer not null);
    create table NARs (cache integer not null, hashPart text not null, namePart text, url text,
        compression text, fileHash text, fileSize integer, narHash text, narSize integer,
        refs text, deriver text, sigs text, ca text, timestamp integer not null,
        present integer not null, primary key (cache, hashPart),
        foreign key (cache) references BinaryCaches(id) on delete cascade);
    create table LastPurge (dummy text primary key, value integer);
";

/// Nix 2.4 and later have this as well.
const V6: &str = "
    create table Realisations (cache integer not null, outputId text not null, content blob,
        timestamp integer not null, primary key (cache, outputId),
        foreign key (cache) references BinaryCaches(id) on delete cascade);
";

/// And the newest ones this instead.
const V8: &str = "
    create table BuildTrace (cache integer not null, drvPath text not null,
        outputName text not null, outputPath text, sigs text, timestamp integer not null,
        primary key (cache, drvPath, outputName),
        foreign key (cache) references BinaryCaches(id) on delete cascade);
";

/// Substituters of the fixtures in the order of their ids, and whether they are the gateway.
const CACHES: [(&str, bool); 6] = [
    ("https://cache.nixos.org", false),
    ("http://127.0.0.1:12304", true),
    ("http://127.0.0.1:12304/local", false),
    ("http://127.0.0.1:123040", false),
    ("http://localhost:12304/", true),
    ("http://[::1]:12304//", true),
];

/// Misses of the gateway in one table of a fixture: two for each of its names.
const OURS: u64 = 6;

/// A cache directory as a test's Nix would keep it.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// A file with these tables, each with two misses and two hits of every substituter.
    fn database(&self, version: &str, schema: &[&str], journal: &str) -> PathBuf {
        let path = self.file(&format!("binary-cache-{version}.sqlite"));
        let connection = Connection::open(&path).unwrap();
        connection
            .pragma_update(None, "journal_mode", journal)
            .unwrap();
        connection.execute_batch(&schema.concat()).unwrap();
        for (index, (url, _)) in CACHES.iter().enumerate() {
            let cache = index as i64 + 1;
            connection
                .execute(
                    "insert into BinaryCaches values (?, ?, 1, '/nix/store', 1, 20)",
                    (cache, url),
                )
                .unwrap();
            for row in 0..4 {
                let is_hit = row >= 2;
                let hit = is_hit.then_some("hit");
                connection
                    .execute(
                        "insert into NARs (cache, hashPart, namePart, timestamp, present)
                         values (?, ?, ?, 1, ?)",
                        (cache, row, hit, is_hit),
                    )
                    .unwrap();
                if schema.contains(&V6) {
                    connection
                        .execute(
                            "insert into Realisations values (?, ?, ?, 1)",
                            (cache, row, hit),
                        )
                        .unwrap();
                }
                if schema.contains(&V8) {
                    connection
                        .execute(
                            "insert into BuildTrace values (?, ?, 'out', ?, null, 1)",
                            (cache, row, hit),
                        )
                        .unwrap();
                }
            }
        }
        connection
            .execute_batch("insert into LastPurge values ('', 1)")
            .unwrap();
        connection.close().unwrap();
        path
    }

    fn v6(&self) -> PathBuf {
        self.database("v6", &[V5, V6], "truncate")
    }

    /// The files of the directory with their bytes.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let bytes = fs::read(entry.path()).unwrap_or_default();
                (entry.file_name().into_string().unwrap(), bytes)
            })
            .collect()
    }

    fn names(&self) -> Vec<String> {
        self.files().into_keys().collect()
    }
}

fn gateway() -> Gateway {
    Gateway::at(PORT).unwrap()
}

fn forget(path: &Path) -> Result<u64, NarinfoCacheError> {
    forget_within(BRIEFLY, path, gateway(), Locks::Posix)
}

fn count(connection: &Connection, what: &str) -> i64 {
    connection
        .query_row(&format!("select count(*) from {what}"), (), |row| {
            row.get(0)
        })
        .unwrap()
}

/// What is left, and that it is what should be: all but the gateway's misses.
fn assert_forgotten(path: &Path, tables: &[Table]) {
    let connection = Connection::open(path).unwrap();
    assert_eq!(count(&connection, "BinaryCaches"), 6);
    assert_eq!(count(&connection, "LastPurge"), 1);
    for (table, is_miss) in tables {
        for (index, (url, is_ours)) in CACHES.iter().enumerate() {
            let of_cache = format!("{table} where cache = {} and {is_miss}", index + 1);
            let misses = count(&connection, &of_cache);
            let all = count(&connection, &format!("{table} where cache = {}", index + 1));
            let expected = if *is_ours { (0, 2) } else { (2, 4) };
            assert_eq!((misses, all), expected, "{table} {url}");
        }
    }
    connection.close().unwrap();
}

/// A table, and which of its rows are misses.
type Table = (&'static str, &'static str);

const NARS: Table = ("NARs", "present = 0");
const REALISATIONS: Table = ("Realisations", "content is null");
const BUILD_TRACE: Table = ("BuildTrace", "outputPath is null");

fn journal_mode(path: &Path) -> String {
    let connection = Connection::open(path).unwrap();
    connection
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap()
}

#[test]
fn forgets_the_misses_of_the_gateway_and_nothing_else() {
    let layouts: [(&str, &[&str], &str, &[Table]); 4] = [
        ("v5", &[V5], "truncate", &[NARS]),
        ("v6", &[V5, V6], "truncate", &[NARS, REALISATIONS]),
        ("v7", &[V5, V6], "wal", &[NARS, REALISATIONS]),
        ("v8", &[V5, V8], "wal", &[NARS, BUILD_TRACE]),
    ];
    let cache = Cache::new();
    for (version, schema, journal, tables) in layouts {
        let path = cache.database(version, schema, journal);
        let names = cache.names();
        let mode = journal_mode(&path);
        assert_eq!(forget(&path).unwrap(), OURS * tables.len() as u64);
        assert_forgotten(&path, tables);
        assert_eq!(journal_mode(&path), mode, "{version}");
        assert_eq!(cache.names(), names, "nothing is left behind");
        assert_eq!(forget(&path).unwrap(), 0, "{version}");
    }
    let found = databases(cache.0.path()).unwrap();
    let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
    let expected = ["v5", "v6", "v7", "v8"]
        .map(|version| std::ffi::OsString::from(format!("binary-cache-{version}.sqlite")));
    assert_eq!(names, expected);
}

#[test]
fn what_is_no_miss_of_this_gateway_stays_as_it_is_to_the_byte() {
    let cache = Cache::new();
    cache.v6();
    cache.database("v8", &[V5, V8], "wal");
    let before = cache.files();
    for path in databases(cache.0.path()).unwrap() {
        let elsewhere = Gateway::at(1).unwrap();
        assert_eq!(
            forget_within(BRIEFLY, &path, elsewhere, Locks::Posix).unwrap(),
            0
        );
    }
    assert!(cache.files() == before, "{:?}", cache.names());
}

#[test]
fn works_beside_a_nix_that_has_the_file_open() {
    for (version, schema, journal) in [("v6", V6, "truncate"), ("v8", V8, "wal")] {
        let cache = Cache::new();
        let path = cache.database(version, &[V5, schema], journal);
        let nix = Connection::open(&path).unwrap();
        nix.pragma_update(None, "journal_mode", journal).unwrap();
        nix.pragma_update(None, "synchronous", "off").unwrap();
        let insert = "insert or replace into NARs (cache, hashPart, timestamp, present)
                      values (2, ?, 1, 0)";
        for round in 0..20 {
            nix.execute(insert, [format!("new {round}")]).unwrap();
            let expected = if round == 0 { 2 * OURS + 1 } else { 1 };
            assert_eq!(forget(&path).unwrap(), expected, "{version}");
            // The same connection sees it and goes on, as Nix does.
            assert_eq!(count(&nix, "NARs where cache = 2 and present = 0"), 0);
        }
        assert_eq!(count(&nix, "NARs where cache = 1 and present = 0"), 2);
        let soundness: String = nix
            .pragma_query_value(None, "integrity_check", |row| row.get(0))
            .unwrap();
        assert_eq!(soundness, "ok");
        let has_log = cache.file("binary-cache-v8.sqlite-wal").exists();
        assert_eq!(has_log, journal == "wal", "the log of a Nix at work stays");
        nix.close().unwrap();
        assert!(!cache.names().iter().any(|name| name.ends_with("-wal")));
    }
}

#[test]
fn a_writer_is_waited_for() {
    for journal in ["truncate", "wal"] {
        let cache = Cache::new();
        let path = cache.database("v6", &[V5, V6], journal);
        let nix = Connection::open(&path).unwrap();
        nix.execute_batch("begin immediate").unwrap();

        let began = Instant::now();
        let error = forget(&path).unwrap_err();
        assert!(matches!(error, NarinfoCacheError::Locked { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
        assert!(!error.is_permission() && began.elapsed() >= BRIEFLY);
        assert_eq!(count(&nix, "NARs where present = 0"), 12, "nothing is gone");

        let (waits, waiting) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || {
                waits.send(()).unwrap();
                forget_misses(&path, gateway(), Locks::Posix)
            }
        });
        waiting.recv().unwrap();
        nix.execute_batch("commit").unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), 2 * OURS, "{journal}");
    }
}

#[test]
fn locks_as_nix_does_without_write_ahead_logs() {
    let cache = Cache::new();
    let path = cache.v6();
    let before = cache.names();
    let nix =
        Connection::open_with_flags_and_vfs(&path, OpenFlags::default(), "unix-dotfile").unwrap();
    nix.execute_batch("begin immediate").unwrap();
    let error = forget_within(BRIEFLY, &path, gateway(), Locks::Dotfile).unwrap_err();
    let lock = cache.file("binary-cache-v6.sqlite.lock");
    assert!(
        matches!(&error, NarinfoCacheError::LockedByDotfile { lock: named, .. } if *named == lock),
        "{error}"
    );
    assert!(lock.is_dir(), "the error names what is there");
    nix.execute_batch("commit").unwrap();
    assert_eq!(
        forget_within(BRIEFLY, &path, gateway(), Locks::Dotfile).unwrap(),
        2 * OURS
    );
    nix.close().unwrap();
    assert_forgotten(&path, &[NARS, REALISATIONS]);
    assert_eq!(cache.names(), before);
}

#[test]
fn signals_are_let_in_again_after_a_dotfile_lock() {
    let blocked = || nix::sys::signal::SigSet::thread_get_mask().unwrap();
    let before = blocked();
    let cache = Cache::new();
    let path = cache.v6();
    forget_within(BRIEFLY, &path, gateway(), Locks::Dotfile).unwrap();
    assert_eq!(blocked(), before);
    fs::write(&path, "no database").unwrap();
    forget_within(BRIEFLY, &path, gateway(), Locks::Dotfile).unwrap_err();
    assert_eq!(blocked(), before);
}

#[test]
fn what_is_no_sound_database_is_named_and_untouched() {
    let cache = Cache::new();
    let path = cache.v6();
    let sound = fs::read(&path).unwrap();
    let pages = sound.len() / 4096;
    let mut without_second_half = sound.clone();
    without_second_half.truncate(pages / 2 * 4096);
    let mut overwritten = sound.clone();
    overwritten[4096..].fill(0xa5);
    for broken in [
        b"this is no database, and long enough to be looked at as one, says SQLite ............"
            .to_vec(),
        without_second_half,
        overwritten,
    ] {
        fs::write(&path, &broken).unwrap();
        let before = cache.files();
        let error = forget(&path).unwrap_err();
        assert!(
            matches!(error, NarinfoCacheError::NotSqlite { .. }),
            "{error:?}"
        );
        assert!(error.to_string().starts_with(path.to_str().unwrap()));
        assert!(cache.files() == before, "{:?}", cache.names());
    }
}

#[test]
fn an_unknown_layout_is_named_and_untouched() {
    let cache = Cache::new();
    for (schema, table) in [
        (
            "create table Things (id integer, url text);",
            "BinaryCaches",
        ),
        (
            "create table BinaryCaches (id integer, uri text);",
            "BinaryCaches",
        ),
        (
            "create table BinaryCaches (id integer, url text);
             insert into BinaryCaches values (1, 'http://127.0.0.1:12304');",
            "NARs",
        ),
        (
            "create table BinaryCaches (id integer, url text);
             create table NARs (cache integer, found integer);",
            "NARs",
        ),
        (
            "create table BinaryCaches (id integer, url text);
             create table NARs (cache integer, present integer);
             create table BuildTrace (cache integer, outPath text);",
            "BuildTrace",
        ),
    ] {
        let path = cache.file("binary-cache-v9.sqlite");
        fs::remove_file(&path).unwrap_or_default();
        Connection::open(&path)
            .unwrap()
            .execute_batch(schema)
            .unwrap();
        let before = cache.files();
        let error = forget(&path).unwrap_err();
        assert!(
            matches!(error, NarinfoCacheError::Layout { table: named, .. } if named == table),
            "{error:?}"
        );
        assert!(cache.files() == before, "{:?}", cache.names());
    }
}

#[test]
fn a_file_that_nix_is_just_making_has_no_misses() {
    let cache = Cache::new();
    let path = cache.file("binary-cache-v6.sqlite");
    assert_eq!(forget(&path).unwrap(), 0);
    assert!(!path.exists(), "nothing is created");
    fs::write(&path, "").unwrap();
    assert_eq!(forget(&path).unwrap(), 0);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let first = "create table BinaryCaches (id integer, url text);";
    Connection::open(&path)
        .unwrap()
        .execute_batch(first)
        .unwrap();
    assert_eq!(forget(&path).unwrap(), 0);
    assert_eq!(cache.names(), ["binary-cache-v6.sqlite"]);
}

#[test]
fn no_link_is_followed_and_nothing_but_a_file_opened() {
    let elsewhere = Cache::new();
    let target = elsewhere.v6();
    let before = elsewhere.files();
    let cache = Cache::new();
    let link = cache.file("binary-cache-v6.sqlite");
    symlink(&target, &link).unwrap();
    let directory = cache.file("binary-cache-v7.sqlite");
    fs::create_dir(&directory).unwrap();
    assert_eq!(
        databases(cache.0.path()).unwrap(),
        [link.clone(), directory.clone()]
    );
    for (path, kind) in [(link, "a symbolic link"), (directory, "a directory")] {
        let error = forget(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{} is {kind}, not a regular file; it is left alone",
                path.display()
            )
        );
    }
    assert!(elsewhere.files() == before, "{:?}", elsewhere.names());
    assert_eq!(cache.names().len(), 2);
}

#[test]
fn a_directory_may_be_reached_through_a_link_that_is_its_owners() {
    let cache = Cache::new();
    let path = cache.v6();
    let other = Cache::new();
    let link = other.file("nix");
    symlink(cache.0.path(), &link).unwrap();
    assert_eq!(databases(&link).unwrap(), [path]);
}

#[test]
fn finds_nothing_where_nothing_is() {
    let cache = Cache::new();
    assert_eq!(
        databases(&cache.file("missing")).unwrap(),
        [] as [PathBuf; 0]
    );
    for name in [
        "binary-cache-v6.sqlite-journal",
        "binary-cache-v6.sqlite.lock",
        "binary-cache-6.sqlite",
        "fetcher-cache-v1.sqlite",
    ] {
        fs::write(cache.file(name), "").unwrap();
    }
    assert_eq!(databases(cache.0.path()).unwrap(), [] as [PathBuf; 0]);
    let of_a_file = cache.file("binary-cache-6.sqlite").join("nix");
    assert_eq!(databases(&of_a_file).unwrap(), [] as [PathBuf; 0]);
}

/// Whether this test can run: others' files are made by root alone.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        // Past the capture of the test harness.
        writeln!(io::stderr(), "skipped: files of several users: not root").unwrap();
    }
    is_root
}

#[test]
fn root_does_not_touch_what_others_can_change() {
    if !is_root() {
        return;
    }
    let cache = Cache::new();
    let inner = cache.file("home/.cache/nix");
    fs::create_dir_all(&inner).unwrap();
    assert_eq!(databases(&inner).unwrap(), [] as [PathBuf; 0]);

    let home = cache.file("home");
    let refused = |part: &Path| {
        let error = databases(&inner).unwrap_err();
        assert!(error.is_permission());
        assert!(
            matches!(&error, NarinfoCacheError::Shared { part: named, .. } if named == part),
            "{error}"
        );
    };
    chown(&home, Some(65_534), None).unwrap();
    refused(&home);
    chown(&home, Some(0), None).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for open in [0o777, 0o775, 0o722] {
        mode(&home, open).unwrap();
        refused(&home);
    }
    mode(&home, 0o1777).unwrap();
    assert_eq!(databases(&inner).unwrap(), [] as [PathBuf; 0]);
    mode(&inner, 0o1777).unwrap();
    refused(&inner);
    mode(&inner, 0o755).unwrap();
    assert_eq!(databases(&inner).unwrap(), [] as [PathBuf; 0]);
}

#[test]
fn the_file_of_another_user_is_named_and_untouched() {
    if !is_root() {
        return;
    }
    let cache = Cache::new();
    let path = cache.v6();
    let before = cache.files();
    chown(&path, Some(65_534), None).unwrap();
    let error = forget(&path).unwrap_err();
    assert!(error.is_permission());
    assert!(
        error
            .to_string()
            .contains("belongs to user 65534, not to user 0"),
        "{error}"
    );
    assert!(cache.files() == before, "{:?}", cache.names());
    assert_eq!(fs::metadata(&path).unwrap().uid(), 65_534);
}

#[test]
fn the_cache_directory_is_the_one_that_nix_takes() {
    let me = geteuid();
    let mine = tempfile::tempdir().unwrap();
    let mine = mine.path().to_str().unwrap();
    let directory = |variables: &[(&str, &str)], user: Uid| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        };
        cache_directory(variable, user, || Ok::<_, ()>("/home/listed".into())).unwrap()
    };
    for (variables, expected) in [
        (&[][..], "/home/listed/.cache/nix"),
        (&[("HOME", "")], "/home/listed/.cache/nix"),
        (&[("HOME", "/not/there")], "/not/there/.cache/nix"),
        (&[("HOME", mine)], &format!("{mine}/.cache/nix")),
        (&[("HOME", mine), ("XDG_CACHE_HOME", "/x")], "/x/nix"),
        (&[("NIX_CACHE_HOME", "/n"), ("XDG_CACHE_HOME", "/x")], "/n"),
        (
            &[("NIX_CACHE_HOME", ""), ("XDG_CACHE_HOME", "/x")],
            "/x/nix",
        ),
    ] {
        assert_eq!(directory(variables, me), Path::new(expected));
    }
    // Who is listed nowhere still has the home of the environment.
    let here = cache_directory(|_| Some("/x".into()), me, || Err("not asked for"));
    assert_eq!(here, Ok("/x".into()));
    // A home that `sudo` left in place is somebody else's.
    let other = Uid::from_raw(me.as_raw() + 1);
    assert_eq!(
        directory(&[("HOME", mine)], other),
        Path::new("/home/listed/.cache/nix")
    );
}
