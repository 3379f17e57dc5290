//! The Nix database in all its states, read by a user who may not write it: every state, and
//! every way from one to another, gives what is right or holds nothing.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

#[path = "fixtures/local_store.rs"]
mod local_store;
#[path = "fixtures/nix_database.rs"]
mod nix_database;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix_database::{Lab, Reader, read_as_told};

#[test]
#[ignore = "run by the other tests, as another user"]
fn reader_process() {
    read_as_told();
}

#[test]
fn a_quiescent_database_is_read() {
    let lab = Lab::new();
    lab.write(|writer| writer.add(1, 100));
    assert!(
        !lab.beside("-wal").exists() && !lab.beside("-shm").exists(),
        "quiescent"
    );

    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "100");
    assert_eq!(reader.size(2), "not held");
    assert_eq!(reader.ask("status"), "available");
    assert!(
        !lab.beside("-wal").exists() && !lab.beside("-shm").exists(),
        "no trace"
    );
}

#[test]
fn an_empty_database_holds_nothing() {
    let lab = Lab::new();
    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "not held");
}

#[test]
fn rows_that_are_only_in_a_live_writers_log_are_seen() {
    let lab = Lab::new();
    lab.write(|writer| writer.add(1, 100));
    let writer = lab.writer();
    writer.add(2, 200);

    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "100");
    assert_eq!(reader.size(2), "200");
    writer.execute("UPDATE ValidPaths SET narSize = 201 WHERE id = 2");
    assert_eq!(reader.size(2), "201");
    // What is not committed is not there.
    writer.execute("BEGIN; UPDATE ValidPaths SET narSize = 202 WHERE id = 2");
    assert_eq!(reader.size(2), "201");
    writer.execute("COMMIT");
    assert_eq!(reader.size(2), "202");
}

#[test]
fn writers_may_come_and_go_under_one_reader() {
    let lab = Lab::new();
    let mut reader = lab.reader();
    for round in 0..20 {
        // Quiescent, or with a log that the reader's own connection keeps there.
        lab.write(|writer| writer.add(2 * round, 100 + round as i64));
        assert_eq!(reader.size(2 * round), (100 + round).to_string());
        let writer = lab.writer();
        writer.add(2 * round + 1, 500);
        assert_eq!(reader.size(2 * round + 1), "500");
    }
    assert_eq!(reader.ask("log"), "", "nothing worth a word happened");
}

#[test]
fn an_immutable_connection_never_outlives_a_change() {
    let lab = Lab::new();
    lab.write(|writer| writer.add(1, 1_000));
    let mut reader = lab.reader();
    for size in 1_001..1_200 {
        assert_eq!(reader.size(1), (size - 1).to_string());
        lab.write(|writer| writer.execute(&format!("UPDATE ValidPaths SET narSize = {size}")));
        assert!(
            !lab.beside("-wal").exists(),
            "the reader was immutable: nothing held the log"
        );
    }
}

#[test]
fn an_ask_to_a_locked_database_is_undecided_at_once_and_absent_when_that_lasts() {
    let lab = Lab::new().without_wal();
    lab.write(|writer| writer.add(1, 100));
    lab.add_file(1);
    let mut reader = lab.reader();
    assert_eq!(
        eventually_decided(&mut reader, &[1, 2]),
        "[Present, Absent] in time"
    );

    let writer = lab.writer();
    writer.execute("BEGIN EXCLUSIVE");
    assert_eq!(reader.states(&[1, 2]), "[Undecided, Undecided] in time");
    let began = Instant::now();
    loop {
        match &*reader.states(&[1]) {
            "[Absent] in time" => break,
            "[Undecided] in time" => {}
            other => panic!("{other}"),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it lasts");
    }
    assert!(
        began.elapsed() > Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );
    writer.execute("COMMIT");
    assert_eq!(eventually_decided(&mut reader, &[1]), "[Present] in time");
}

#[test]
fn an_ask_is_never_answered_wrongly_while_writers_come_and_go() {
    let lab = Lab::new();
    let mut reader = lab.reader();
    for number in 0..40 {
        lab.add_file(number);
        if number % 2 == 0 {
            lab.write(|writer| writer.add(number, 100));
            assert_eq!(
                eventually_decided(&mut reader, &[number]),
                "[Present] in time"
            );
        } else {
            let writer = lab.writer();
            writer.add(number, 100);
            assert_eq!(
                eventually_decided(&mut reader, &[number]),
                "[Present] in time"
            );
        }
    }
    let all: Vec<_> = (0..41).collect();
    let answer = eventually_decided(&mut reader, &all);
    assert_eq!(answer.matches("Present").count(), 40, "{answer}");
}

/// Asks until nothing is undecided.
fn eventually_decided(reader: &mut Reader, numbers: &[u64]) -> String {
    let began = Instant::now();
    loop {
        let answer = reader.states(numbers);
        if !answer.contains("Undecided") {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{answer}");
    }
}

#[test]
fn the_log_of_a_writer_that_died_is_read() {
    let lab = Lab::new();
    lab.write(|writer| writer.add(1, 100));
    leave_wal(&lab);

    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "100");
    assert_eq!(reader.size(2), "200");
    // The next writer recovers it.
    lab.write(|writer| writer.add(3, 300));
    assert_eq!(reader.size(3), "300");
}

#[test]
fn a_log_that_cannot_be_read_holds_nothing() {
    let lab = Lab::new();
    lab.write(|writer| writer.add(1, 100));
    leave_wal(&lab);
    lab.open_up();
    fs::remove_file(lab.beside("-shm")).expect("remove");
    lab.lock_down();

    let mut reader = lab.reader();
    for number in [1, 2] {
        let answer = reader.size(number);
        assert!(answer.contains("through its write-ahead log"), "{answer}");
    }
    lab.write(|writer| writer.add(3, 300));
    assert_eq!(reader.size(2), "200");
    let log = reader.ask("log");
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert_eq!(log.matches("INFO").count(), 1, "{log}");
}

/// Leaves the log of a writer that was killed after it added path 2.
fn leave_wal(lab: &Lab) {
    let writer = lab.writer();
    writer.add(2, 200);
    let kept: Vec<_> = ["", "-wal", "-shm"]
        .map(|suffix| {
            (
                lab.beside(suffix),
                fs::read(lab.beside(suffix)).expect("read"),
            )
        })
        .into();
    drop(writer);
    lab.open_up();
    // New files: no lock is held on them.
    for (path, bytes) in kept {
        if path.exists() {
            fs::remove_file(&path).expect("remove");
        }
        fs::write(path, bytes).expect("write");
    }
    lab.lock_down();
}

#[test]
fn a_database_without_a_log_is_read_while_it_is_written() {
    let lab = Lab::new().without_wal();
    lab.write(|writer| writer.add(1, 100));
    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "100");

    let writer = lab.writer();
    writer.execute("BEGIN IMMEDIATE; UPDATE ValidPaths SET narSize = 101");
    assert!(fs::metadata(lab.beside("-journal")).expect("journal").len() > 0);
    assert_eq!(reader.size(1), "100");
    assert_eq!(lab.reader().size(1), "100", "by a new connection as well");
    writer.execute("COMMIT");
    assert_eq!(reader.size(1), "101");
}

#[test]
fn a_locked_database_is_waited_for_a_moment_and_no_scandal() {
    let lab = Lab::new().without_wal();
    lab.write(|writer| writer.add(1, 100));
    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "100");

    let writer = lab.writer();
    writer.execute("BEGIN EXCLUSIVE");
    for mut reader in [reader, lab.reader()] {
        let begin = Instant::now();
        let answer = reader.size(1);
        assert!(answer.contains("is locked"), "{answer}");
        assert!(
            begin.elapsed() < Duration::from_millis(1_500),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(reader.ask("status"), "available");
        assert_eq!(reader.ask("log"), "");
    }
    writer.execute("COMMIT");
    assert_eq!(lab.reader().size(1), "100");
}

#[test]
fn a_hot_journal_holds_nothing_until_it_is_rolled_back() {
    let lab = Lab::new().without_wal();
    lab.write(|writer| {
        for number in 0..2_000 {
            writer.add(number, 100);
        }
    });
    let mut early = lab.reader();
    assert_eq!(early.size(7), "100");
    leave_hot_journal(&lab);

    for mut reader in [early, lab.reader()] {
        let answer = reader.size(7);
        assert!(
            answer.contains("has a journal"),
            "half-written rows: {answer}"
        );
        assert!(reader.ask("status").contains("has a journal"));
        assert!(
            reader.ask("open").contains("opened"),
            "no reason not to start"
        );
        lab.write(|writer| {
            assert_eq!(
                writer.query::<i64>("SELECT max(narSize) FROM ValidPaths"),
                100
            )
        });
        assert_eq!(reader.size(7), "100");
        leave_hot_journal(&lab);
    }
}

/// Leaves the files of a writer that was killed with half of its change in the database.
fn leave_hot_journal(lab: &Lab) {
    let writer = lab.writer();
    // A cache of a few pages spills into the database before the commit.
    writer.execute("PRAGMA cache_size = 4; BEGIN; UPDATE ValidPaths SET narSize = 666");
    let kept = [lab.path.clone(), lab.beside("-journal")].map(|path| {
        let bytes = fs::read(&path).expect("read");
        (path, bytes)
    });
    writer.execute("ROLLBACK");
    drop(writer);
    lab.open_up();
    for (path, bytes) in kept {
        fs::remove_file(&path).ok();
        fs::write(path, bytes).expect("write");
    }
    lab.lock_down();
}

#[test]
fn a_database_may_come_go_and_come_back() {
    let lab = Lab::without_database("db");
    let mut reader = lab.reader();
    assert_eq!(reader.ask("open"), "opened");
    for _ in 0..3 {
        assert!(reader.size(1).contains("there is no Nix database"));
    }
    assert!(
        reader
            .ask("status")
            .starts_with("unavailable: there is no Nix database")
    );
    assert_eq!(reader.ask("log").matches("WARN").count(), 1);

    lab.make_database(&lab.path);
    lab.write(|writer| writer.add(1, 100));
    assert_eq!(reader.size(1), "100");
    assert_eq!(reader.ask("status"), "available");
    assert_eq!(reader.ask("log").matches("INFO").count(), 1);

    lab.open_up();
    fs::remove_file(&lab.path).expect("remove");
    lab.lock_down();
    assert!(reader.size(1).contains("there is no Nix database"));
    assert_eq!(reader.ask("log").matches("WARN").count(), 1);

    lab.open_up();
    let parent = lab.path.parent().expect("a parent");
    fs::remove_dir_all(parent).expect("remove");
    assert!(reader.size(1).contains("there is no Nix database"));
    fs::create_dir(parent).expect("mkdir");
    lab.make_database(&lab.path);
    lab.write(|writer| writer.add(1, 101));
    assert_eq!(reader.size(1), "101");
}

#[test]
fn a_database_renamed_into_place_is_noticed() {
    for live in [false, true] {
        let lab = Lab::new();
        lab.write(|writer| writer.add(1, 100));
        let writer = live.then(|| lab.writer());
        let mut reader = lab.reader();
        assert_eq!(reader.size(1), "100");

        let other = Lab::new();
        other.write(|writer| writer.add(1, 999));
        drop(writer);
        lab.open_up();
        for suffix in ["-wal", "-shm"] {
            fs::remove_file(lab.beside(suffix)).ok();
        }
        let beside = lab.path.with_extension("new");
        fs::copy(&other.path, &beside).expect("copy");
        fs::rename(beside, &lab.path).expect("rename");
        lab.lock_down();
        assert_eq!(reader.size(1), "999", "live: {live}");
    }
}

#[test]
fn no_read_transaction_outlives_a_query() {
    let lab = Lab::new();
    let writer = lab.writer();
    writer.add(1, 100);
    let mut reader = lab.reader();
    assert_eq!(reader.size(1), "100");
    writer.add(2, 200);
    let busy: i64 = writer.query("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(busy, 0, "somebody reads an old state");
    assert_eq!(fs::metadata(lab.beside("-wal")).expect("wal").len(), 0);
    assert_eq!(reader.size(2), "200");
}

#[test]
fn a_path_and_its_references_are_of_one_moment() {
    for (wal, keeps_open) in [(true, true), (true, false), (false, true), (false, false)] {
        let lab = if wal {
            Lab::new()
        } else {
            Lab::new().without_wal()
        };
        lab.write(|writer| {
            writer.add(0, 1);
            for number in 1..=20 {
                writer.add(number, 1);
            }
        });
        let mut reader = lab.reader();
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let stopped = Arc::clone(&stop);
            let lab = &lab;
            scope.spawn(move || {
                let mut round = 0;
                let change = |writer: &nix_database::Writer, round: i64| {
                    let references = round % 20;
                    let mut sql = String::from("BEGIN IMMEDIATE; DELETE FROM Refs;");
                    for reference in 0..references {
                        sql += &format!("INSERT INTO Refs VALUES (1, {});", reference + 2);
                    }
                    sql += &format!(
                        "UPDATE ValidPaths SET narSize = {} WHERE id = 1; COMMIT",
                        references + 1
                    );
                    writer.execute("PRAGMA busy_timeout = 10000; PRAGMA synchronous = off");
                    writer.execute(&sql);
                };
                while !stopped.load(Ordering::Relaxed) {
                    round += 1;
                    if keeps_open {
                        let writer = lab.writer();
                        for more in 0..20 {
                            change(&writer, round + more);
                        }
                    } else {
                        lab.write(|writer| change(writer, round));
                    }
                }
            });
            let question = format!("consistent {}", local_store::hash(0));
            let answers: Vec<_> = (0..2_000).map(|_| reader.ask(&question)).collect();
            stop.store(true, Ordering::Relaxed);
            let wrong = answers.iter().find(|answer| answer.starts_with("false"));
            assert_eq!(wrong, None);
            let right = answers.iter().filter(|it| it.starts_with("true")).count();
            println!("wal {wal}, keeps open {keeps_open}: {right} of 2000 answered");
            // Mere refusals would not show anything.
            assert!(right > 20, "only {right} answers");
        });
    }
}

#[test]
fn odd_names_are_paths_and_not_parameters() {
    for name in [
        "a b",
        "what?mode=rw",
        "hash#tag",
        "100%41",
        "ünïcode",
        "a&b=c;d",
        "'\"\\",
    ] {
        let lab = Lab::without_database(name);
        lab.make_database(&lab.path);
        lab.write(|writer| writer.add(1, 100));
        assert_eq!(lab.reader().size(1), "100", "{name}");
        let _writer = lab.writer();
        assert_eq!(lab.reader().size(1), "100", "{name}, live");
    }
}

#[test]
fn a_linked_database_has_its_log_beside_the_real_one() {
    let lab = Lab::new();
    lab.write(|writer| writer.add(1, 100));
    let link = lab.dir.path().join("link.sqlite");
    symlink(&lab.path, &link).expect("symlink");
    let mut reader = Reader::of(&link);
    assert_eq!(reader.size(1), "100");
    let writer = lab.writer();
    writer.execute("UPDATE ValidPaths SET narSize = 101");
    assert_eq!(reader.size(1), "101");
    drop(writer);

    let other = Lab::new();
    other.write(|writer| writer.add(1, 102));
    fs::remove_file(&link).expect("remove");
    symlink(&other.path, &link).expect("symlink");
    assert_eq!(reader.size(1), "102");
}

#[test]
fn what_an_operator_must_repair_is_an_error_at_the_start() {
    let lab = Lab::new();
    lab.open_up();

    fs::set_permissions(&lab.path, Permissions::from_mode(0o000)).expect("chmod");
    let answer = lab.reader().ask("open");
    assert!(answer.contains("may not read"), "{answer}");
    assert!(lab.reader().size(1).contains("may not read"));
    fs::set_permissions(&lab.path, Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(lab.reader().ask("open"), "opened");

    let parent = lab.path.parent().expect("a parent");
    fs::set_permissions(parent, Permissions::from_mode(0o000)).expect("chmod");
    let answer = lab.reader().ask("open");
    assert!(answer.contains("cannot look at"), "{answer}");
    lab.open_up();

    fs::write(
        &lab.path,
        "This is not a database, but long enough to be one. ".repeat(100),
    )
    .expect("write");
    let answer = lab.reader().ask("open");
    assert!(answer.contains("not a sound SQLite database"), "{answer}");

    for content in [
        "",
        "CREATE TABLE Other (id integer)",
        "CREATE TABLE ValidPaths (id integer)",
    ] {
        fs::remove_file(&lab.path).expect("remove");
        let connection = rusqlite::Connection::open(&lab.path).expect("create");
        connection.execute_batch(content).expect(content);
        drop(connection);
        let answer = lab.reader().ask("open");
        assert!(answer.contains("not a database of Nix"), "{answer}");
        assert!(lab.reader().size(1).contains("not a database of Nix"));
    }
    fs::remove_file(&lab.path).expect("remove");
    assert_eq!(lab.reader().ask("open"), "opened");
}

#[test]
fn the_start_leaves_no_trace_even_as_root() {
    let lab = Lab::new();
    lab.open_up();
    let settings = local_store::settings(lab.dir.path(), &lab.path);
    peerix::store::LocalStore::open(&settings).expect("open");
    let parent = lab.path.parent().expect("a parent");
    let files = fs::read_dir(parent).expect("list").count();
    assert_eq!(files, 1, "the database alone");
}

#[test]
fn what_cannot_be_understood_is_not_held() {
    let lab = Lab::new();
    let rows = [
        ("narSize = NULL", "not held"),
        ("narSize = 0", "not held"),
        ("narSize = -5", "not held"),
        ("narSize = 'many'", "not held"),
        ("hash = 'sha256:abcd'", "not held"),
        ("hash = 'md5:d41d8cd98f00b204e9800998ecf8427e'", "not held"),
        ("deriver = 'nonsense'", "100"),
        ("sigs = 'nonsense  also:nonsense'", "100"),
        ("ultimate = NULL", "100"),
    ];
    lab.write(|writer| {
        for (number, (change, _)) in rows.iter().enumerate() {
            let id = writer.add(number as u64, 100);
            writer.execute(&format!("UPDATE ValidPaths SET {change} WHERE id = {id}"));
        }
        let odd = writer.add(50, 100);
        writer.execute(&format!(
            "UPDATE ValidPaths SET path = '/nix/store/odd' WHERE id = {odd}"
        ));
        let refers = writer.add(51, 100);
        writer.refer(refers, odd);
        let elsewhere = writer.add(52, 100);
        let path = format!("/gnu/store/{}-x", local_store::hash(52));
        writer.execute(&format!(
            "UPDATE ValidPaths SET path = '{path}' WHERE id = {elsewhere}"
        ));
    });
    let mut reader = lab.reader();
    for (number, (change, expected)) in rows.iter().enumerate() {
        assert_eq!(reader.size(number as u64), *expected, "{change}");
    }
    for number in [50, 51, 52] {
        assert_eq!(reader.size(number), "not held", "{number}");
    }
}

#[test]
fn all_facts_of_a_row_are_read() {
    let lab = Lab::new();
    let signature = format!("cache.example.org-1:{}", "A".repeat(86) + "==");
    lab.write(|writer| {
        let path = writer.add(1, 4_711);
        for number in [9, 5, 7] {
            let reference = writer.add(number, 1);
            writer.refer(path, reference);
        }
        writer.refer(path, path);
        writer.execute(&format!(
            "UPDATE ValidPaths SET ultimate = 1, sigs = 'bad {signature} worse', \
             deriver = '/nix/store/{}-x.drv' WHERE id = {path}",
            local_store::hash(77)
        ));
    });
    let path = lab.reader().ask(&format!("path {}", local_store::hash(1)));
    let order: Vec<_> = [1, 5, 7, 9]
        .map(|number| {
            path.rfind(local_store::hash(number).as_str())
                .expect("reference")
        })
        .into();
    assert!(order.is_sorted(), "{path}");
    for part in [
        "nar_size: 4711",
        "ultimate: true",
        "x.drv",
        "cache.example.org-1",
        "reference_ids: [1, 3, 4, 2]",
    ] {
        assert!(path.contains(part), "{part} in {path}");
    }
    assert!(!path.contains("worse"));
}

#[test]
fn what_nix_itself_registers_is_read() {
    let lab = Lab::without_database("unused");
    let root = lab.dir.path().join("root");
    let nix_store = |arguments: &[&str]| {
        let output = Command::new("nix-store")
            .arg("--store")
            .arg(&root)
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        output.ok().map(|output| {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout)
                .expect("text")
                .trim()
                .to_owned()
        })
    };
    let file = lab.dir.path().join("file");
    fs::write(&file, "content").expect("write");
    let Some(path) = nix_store(&["--add", file.to_str().expect("text")]) else {
        println!("skipped: no nix-store here");
        return;
    };
    let size = nix_store(&["--query", "--size", &path]).expect("size");
    let hash = nix_store(&["--query", "--hash", &path]).expect("hash");
    let store_hash = &path["/nix/store/".len()..][..32];

    let mut reader = Reader::of(&root.join("nix/var/nix/db/db.sqlite"));
    let read = reader.ask(&format!("path {store_hash}"));
    for part in [
        &format!("nar_size: {size}"),
        &hash,
        "ca: Some(Fixed",
        "ultimate: false",
    ] {
        assert!(read.contains(part), "{part} in {read}");
    }
    nix_store(&["--delete", &path]).expect("delete");
    assert_eq!(reader.ask(&format!("path {store_hash}")), "not held");
}

/// Prints how many questions a second are answered, 16 at a time, about 100,000 paths with ten
/// references each.
#[test]
#[ignore = "a measurement: cargo test --release --test store_database -- --ignored measure --nocapture"]
fn measure() {
    const PATHS: u64 = 100_000;
    const QUESTIONS: u64 = 200_000;
    let lab = Lab::new();
    let signature = format!("cache.example.org-1:{}", "A".repeat(86) + "==");
    lab.write(|writer| {
        writer.execute("BEGIN");
        for number in 0..PATHS {
            let id = writer.add(number * 7_919 % PATHS, 1_000);
            for reference in (0..10).filter(|_| id > 400) {
                writer.refer(id, id - 1 - reference * 37);
            }
        }
        writer.execute(&format!(
            "UPDATE ValidPaths SET sigs = '{signature}'; COMMIT"
        ));
    });
    let store_dir = lab.dir.path().join("store");
    fs::create_dir(&store_dir).expect("mkdir");
    let all = peerix::config::SharePaths::All;
    let globs = peerix::config::Globs::new(["*.drv"]).expect("globs");
    let policy = peerix::store::SharePolicy::new(
        peerix::format::StoreDir::default(),
        all,
        globs,
        peerix::format::TrustedKeys::default(),
        Vec::new(),
    );
    let policy = Arc::new(policy);
    for number in 0..PATHS {
        fs::write(
            store_dir.join(local_store::store_path(number, "path").basename()),
            "",
        )
        .expect("write");
    }
    // Root makes a log to read through where others would read the file alone.
    for access in ["live", "quiescent"] {
        let _writer = (access == "live").then(|| lab.writer());
        let store =
            peerix::store::LocalStore::unchecked(&local_store::settings(&store_dir, &lab.path));
        let kinds = [
            ("hits", true, false, PATHS),
            ("hits of a closure of 205", true, false, 205),
            ("misses", false, false, PATHS),
            ("shared", true, true, PATHS),
            ("shared of a closure of 205", true, true, 205),
        ];
        for (what, hit, shared, paths) in kinds {
            let begin = Instant::now();
            local_store::block_on(async {
                let tasks: Vec<_> = (0..16)
                    .map(|task| {
                        let (store, policy) = (store.clone(), Arc::clone(&policy));
                        tokio::spawn(async move {
                            for question in 0..QUESTIONS / 16 {
                                let number = (question * 16 + task) * 104_729 % paths;
                                let hash =
                                    local_store::hash(if hit { number } else { PATHS + number });
                                let found = if shared {
                                    store
                                        .shared(hash, &policy)
                                        .await
                                        .expect("an answer")
                                        .is_some()
                                } else {
                                    store.query(hash).await.expect("an answer").is_some()
                                };
                                assert_eq!(found, hit);
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("task");
                }
            });
            let rate = QUESTIONS as f64 / begin.elapsed().as_secs_f64();
            println!("{access}, {what}: {rate:.0} a second");
        }
    }
    let status = fs::read_to_string("/proc/self/status").expect("status");
    println!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .expect("VmRSS")
    );
}
