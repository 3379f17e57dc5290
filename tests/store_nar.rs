//! NARs of real trees through the real walker: the bytes of `nix-store --dump`, any range of
//! them, and an error instead of a byte that is not so.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

#[path = "fixtures/local_store.rs"]
mod local_store;

use std::{
    fs::{self, File, Permissions},
    io::{Read, Write},
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, mkdirat},
    unistd::mkfifo,
};
use peerix::{
    format::{NarHash, PathInfo, StorePath},
    store::{CHUNK_BYTES, LocalStore, Nar, NarError},
};
use tempfile::TempDir;

use local_store::{block_on, settings, store_path};

/// A store directory with one path in it.
struct Tree {
    dir: TempDir,
    store: LocalStore,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = LocalStore::unchecked(&settings(dir.path(), &dir.path().join("none")));
        Self { dir, store }
    }

    /// A tree whose root is a directory with these files.
    fn with_files(files: &[(&str, &[u8])]) -> Self {
        let tree = Self::new();
        for (name, content) in files {
            let file = tree.root().join(name);
            fs::create_dir_all(file.parent().expect("a parent")).expect("mkdir");
            fs::write(file, content).expect("write");
        }
        tree
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join(store_path(1, "tree").basename())
    }

    /// As the store has it, told the right size.
    async fn nar(&self) -> Nar {
        let size = match self.open(0).await {
            Err(NarError::SizeMismatch { found, .. }) => found,
            other => panic!("a NAR of 0 bytes: {other:?}"),
        };
        self.open(size).await.expect("NAR")
    }

    async fn open(&self, size: u64) -> Result<Nar, NarError> {
        self.store.nar(&info(store_path(1, "tree"), size)).await
    }

    async fn whole(&self) -> Vec<u8> {
        let nar = self.nar().await;
        let size = nar.size();
        let (bytes, end) = read(nar, 0..size).await;
        end.expect("the whole NAR");
        bytes
    }
}

/// Facts about a path that has no references or signatures.
fn info(path: StorePath, nar_size: u64) -> PathInfo {
    PathInfo {
        path,
        nar_hash: NarHash::from_digest([7; 32]),
        nar_size,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        ca: None,
    }
}

/// All that a stream gives, and how it ended.
async fn read(nar: Nar, range: Range<u64>) -> (Vec<u8>, Result<(), NarError>) {
    let mut bytes = Vec::new();
    let mut stream = nar.read(range);
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => {
                assert!(!chunk.is_empty() && chunk.len() <= CHUNK_BYTES);
                bytes.extend_from_slice(&chunk);
            }
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing after an error");
                return (bytes, Err(error));
            }
        }
    }
    (bytes, Ok(()))
}

/// The NAR as Nix makes it, or nothing where there is no Nix.
fn nix_dump(path: &Path) -> Option<Vec<u8>> {
    let dumped = Command::new("nix-store")
        .arg("--dump")
        .arg(path)
        .stderr(Stdio::inherit())
        .output();
    match dumped {
        Ok(output) => {
            assert!(output.status.success(), "nix-store --dump");
            Some(output.stdout)
        }
        Err(_) => {
            println!("skipped: no nix-store here to compare with");
            None
        }
    }
}

/// The NAR as the nix-nar crate makes it.
fn crate_dump(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    nix_nar::Encoder::new(path)
        .expect("encoder")
        .read_to_end(&mut bytes)
        .expect("encode");
    bytes
}

fn assert_same(ours: &[u8], theirs: &[u8], whose: &str) {
    let differs = ours.iter().zip(theirs).position(|(a, b)| a != b);
    assert!(
        ours == theirs,
        "{} bytes, {} of {whose}, first difference at {differs:?}",
        ours.len(),
        theirs.len()
    );
}

/// Bytes that show when they are shifted.
fn content(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed)
        .collect()
}

fn nasty_tree() -> Tree {
    let tree = Tree::new();
    let root = tree.root();
    let at = |name: &[u8]| root.join(std::ffi::OsStr::from_bytes(name));
    fs::create_dir(&root).expect("mkdir");

    for length in 0..=17 {
        fs::write(root.join(format!("padding-{length}")), content(length, 1)).expect("write");
    }
    for length in [
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES + 5,
    ] {
        fs::write(root.join(format!("chunk-{length}")), content(length, 2)).expect("write");
    }
    // In the order of bytes "a-" < "a.b" < "a/…" < "a0": a path's order is another.
    for name in [
        b"a-".as_slice(),
        b"a.b",
        b"a0",
        b"A",
        b"\xc3\xa9",
        b"\xff\xfe",
        b" ",
        b"\n",
    ] {
        fs::write(at(name), name).expect("write");
    }
    fs::write(at(&[b'n'; 255]), b"long").expect("write");
    fs::create_dir_all(root.join("a/b/c")).expect("mkdir");
    fs::write(root.join("a/b/file"), b"nested").expect("write");
    fs::create_dir(root.join("empty")).expect("mkdir");
    fs::write(root.join("a/b/c/last"), b"").expect("write");

    for (name, mode) in [
        ("owner", 0o744),
        ("group", 0o654),
        ("others", 0o645),
        ("all", 0o555),
    ] {
        fs::write(root.join(name), name).expect("write");
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).expect("chmod");
    }
    symlink("no/such/file", root.join("dangling")).expect("symlink");
    symlink("/", root.join("slash")).expect("symlink");
    symlink("..", root.join("up")).expect("symlink");
    symlink("t".repeat(4_000), root.join("long-target")).expect("symlink");
    symlink(
        std::ffi::OsStr::from_bytes(b"\xff"),
        root.join("odd-target"),
    )
    .expect("symlink");
    tree
}

#[test]
fn a_nasty_tree_is_dumped_as_nix_does() {
    let tree = nasty_tree();
    let ours = block_on(tree.whole());
    if let Some(dump) = nix_dump(&tree.root()) {
        assert_same(&ours, &dump, "nix-store --dump");
    } else {
        // UTF-8 alone is what the crate takes, and any x bit is executable to it.
        for name in [b"\xff\xfe".as_slice(), b"odd-target", b"group", b"others"] {
            fs::remove_file(tree.root().join(std::ffi::OsStr::from_bytes(name))).expect("remove");
        }
        assert_same(
            &block_on(tree.whole()),
            &crate_dump(&tree.root()),
            "nix-nar",
        );
    }
}

#[test]
fn a_root_of_any_kind_is_dumped_as_nix_does() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 6] = [
        ("file", |root| fs::write(root, b"content").expect("write")),
        ("empty file", |root| fs::write(root, b"").expect("write")),
        ("executable", |root| {
            fs::write(root, b"#!/bin/sh\n").expect("write");
            fs::set_permissions(root, Permissions::from_mode(0o555)).expect("chmod");
        }),
        ("link", |root| {
            symlink("/etc/passwd", root).expect("symlink")
        }),
        ("dangling link", |root| {
            symlink("nowhere", root).expect("symlink")
        }),
        ("empty directory", |root| {
            fs::create_dir(root).expect("mkdir")
        }),
    ];
    for (kind, make) in kinds {
        let tree = Tree::new();
        make(&tree.root());
        let ours = block_on(tree.whole());
        assert_same(
            &ours,
            &crate_dump(&tree.root()),
            &format!("nix-nar, {kind}"),
        );
        if let Some(dump) = nix_dump(&tree.root()) {
            assert_same(&ours, &dump, &format!("nix-store --dump, {kind}"));
        }
    }
}

/// A chain of directories, each with a file before and one after the next directory.
struct Chain(Tree);

impl Chain {
    fn new(depth: usize, name: &[u8]) -> Self {
        let chain = Self(Tree::new());
        fs::create_dir(chain.0.root()).expect("mkdir");
        // By descriptors: the paths may be too long to be named.
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = open(&chain.0.root(), directory, Mode::empty()).expect("open");
        for level in 0..=depth {
            for file in [&b"a"[..], b"z"] {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
                let fd = openat(&at, file, flags, Mode::S_IRUSR).expect("create");
                write!(File::from(fd), "{level}").expect("write");
            }
            if level < depth {
                mkdirat(&at, name, Mode::S_IRWXU).expect("mkdirat");
                at = openat(&at, name, directory, Mode::empty()).expect("openat");
            }
        }
        chain
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // The standard library would keep every level open.
        let removed = Command::new("rm").arg("-rf").arg(self.0.root()).status();
        assert!(removed.expect("rm").success());
    }
}

#[test]
fn a_thousand_levels_are_dumped_as_nix_does() {
    let chain = Chain::new(1_000, b"d");
    let ours = block_on(chain.0.whole());
    assert_same(&ours, &chain_nar(1_000, b"d"), "the test's own");
    if let Some(dump) = nix_dump(&chain.0.root()) {
        assert_same(&ours, &dump, "nix-store --dump");
    }
}

#[test]
fn paths_far_beyond_path_max_are_read() {
    let name = [b'n'; 250];
    let chain = Chain::new(400, &name);
    let ours = block_on(chain.0.whole());
    assert_same(&ours, &chain_nar(400, &name), "the test's own");
}

#[test]
fn few_descriptors_are_open_however_deep_the_tree_is() {
    let chain = Chain::new(800, b"d");
    block_on(async {
        let mut stream = chain.0.nar().await.read(0..u64::MAX);
        let mut most = 0;
        while let Some(chunk) = stream.next().await {
            chunk.expect("chunk");
            most = most.max(open_below(chain.0.dir.path()));
        }
        assert!((1..=20).contains(&most), "{most} descriptors");
    });
}

/// The NAR of a [`Chain`], written down anew.
fn chain_nar(depth: usize, name: &[u8]) -> Vec<u8> {
    fn word(out: &mut Vec<u8>, text: &[u8]) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    fn words(out: &mut Vec<u8>, texts: &[&[u8]]) {
        for text in texts {
            word(out, text);
        }
    }
    let mut out = Vec::new();
    word(&mut out, b"nix-archive-1");
    let file = |out: &mut Vec<u8>, file: &[u8], level: usize| {
        words(out, &[b"entry", b"(", b"name", file, b"node"]);
        words(
            out,
            &[
                b"(",
                b"type",
                b"regular",
                b"contents",
                level.to_string().as_bytes(),
            ],
        );
        words(out, &[b")", b")"]);
    };
    for level in 0..=depth {
        words(&mut out, &[b"(", b"type", b"directory"]);
        file(&mut out, b"a", level);
        if level < depth {
            words(&mut out, &[b"entry", b"(", b"name", name, b"node"]);
        }
    }
    for level in (0..=depth).rev() {
        file(&mut out, b"z", level);
        word(&mut out, b")");
        if level > 0 {
            word(&mut out, b")");
        }
    }
    out
}

#[test]
fn every_range_is_a_slice_of_the_whole() {
    let tree = Tree::with_files(&[
        ("a", b"12345678"),
        ("b/c", b"x"),
        ("b/d", b""),
        ("e", b"yz"),
    ]);
    block_on(async {
        let whole = tree.whole().await;
        let size = whole.len() as u64;
        for start in (0..size).step_by(3) {
            for end in [
                start,
                start + 1,
                start + 9,
                start + 100,
                size,
                size + 5,
                u64::MAX,
            ] {
                let (bytes, ended) = read(tree.nar().await, start..end).await;
                ended.expect("range");
                let expected = &whole[start as usize..end.min(size) as usize];
                assert_eq!(bytes, expected, "{start}..{end}");
            }
        }
        for start in [size, size + 1, u64::MAX] {
            assert!(read(tree.nar().await, start..u64::MAX).await.0.is_empty());
        }
    });
}

#[test]
fn ranges_of_large_files_are_slices_of_the_whole() {
    let tree = nasty_tree();
    block_on(async {
        let whole = tree.whole().await;
        let size = whole.len() as u64;
        let chunk = CHUNK_BYTES as u64;
        for at in [
            1,
            chunk - 1,
            chunk,
            chunk + 1,
            2 * chunk + 7,
            size - chunk,
            size - 1,
        ] {
            for length in [1, 1_000, chunk, chunk + 1] {
                let end = size.min(at + length);
                let (bytes, ended) = read(tree.nar().await, at..end).await;
                ended.expect("range");
                assert_eq!(bytes, &whole[at as usize..end as usize], "{at}..{end}");
            }
        }
    });
}

#[test]
fn a_sparse_file_of_five_gib_is_read_at_any_offset() {
    const SIZE: u64 = 5 << 30;
    let tree = Tree::with_files(&[("after", b"after"), ("big", b"")]);
    let big = File::options()
        .write(true)
        .open(tree.root().join("big"))
        .expect("open");
    big.set_len(SIZE).expect("sparse");
    let marks = [0, (4 << 30) - 3, SIZE - 4];
    for mark in marks {
        std::os::unix::fs::FileExt::write_all_at(&big, b"mark", mark).expect("write");
    }
    block_on(async {
        let nar = tree.nar().await;
        // The file is the last entry: the NAR ends with four words of one bracket.
        let begin = nar.size() - SIZE - 3 * 16;
        for mark in marks {
            let (bytes, ended) = read(tree.nar().await, begin + mark..begin + mark + 4).await;
            ended.expect("range");
            assert_eq!(bytes, b"mark", "at {mark}");
        }
    });
}

#[test]
fn a_range_reads_nothing_before_it() {
    let large = content(2 * CHUNK_BYTES, 3);
    let files: [(&str, &[u8]); 4] = [
        ("a/first", &large),
        ("b/second", b"22"),
        ("c", b"333"),
        ("d/last", b"4444"),
    ];
    let tree = Tree::with_files(&files);
    block_on(async {
        let whole = tree.whole().await;
        let nar = tree.nar().await;
        fs::remove_dir_all(tree.root().join("a")).expect("remove");
        fs::write(tree.root().join("b/second"), b"longer now").expect("write");
        fs::remove_file(tree.root().join("c")).expect("remove");

        let from = position(&whole, b"4444") as u64 - 8;
        let (bytes, ended) = read(nar, from..u64::MAX).await;
        ended.expect("only the last file is read");
        assert_eq!(bytes, &whole[from as usize..]);
    });
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    bytes
        .windows(part.len())
        .rposition(|window| window == part)
        .expect("it is there")
}

/// Walks, changes the tree, reads: what comes must be a beginning of the NAR, then an error.
fn after_the_walk(change: impl FnOnce(&Path)) -> NarError {
    let files: [(&str, &[u8]); 3] = [
        ("a", &content(CHUNK_BYTES, 4)),
        ("dir/victim", b"the content"),
        ("z", b"last"),
    ];
    let tree = Tree::with_files(&files);
    block_on(async {
        let whole = tree.whole().await;
        let nar = tree.nar().await;
        change(&tree.root());
        let (bytes, ended) = read(nar, 0..u64::MAX).await;
        assert!(bytes.len() < position(&whole, b"the content") + 11);
        assert!(whole.starts_with(&bytes), "nothing is made up");
        ended.expect_err("the change was noticed")
    })
}

#[test]
fn a_file_removed_after_the_walk_ends_the_stream() {
    let error = after_the_walk(|root| fs::remove_file(root.join("dir/victim")).expect("remove"));
    let NarError::Read { file, source, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(file, Path::new("dir/victim"));
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_directory_removed_after_the_walk_ends_the_stream() {
    let error = after_the_walk(|root| fs::remove_dir_all(root.join("dir")).expect("remove"));
    assert!(matches!(error, NarError::Read { .. }), "{error:?}");
}

#[test]
fn a_file_truncated_or_grown_after_the_walk_ends_the_stream() {
    for (now, length) in [
        (b"the conten".as_slice(), 10),
        (b"the content.", 12),
        (b"", 0),
    ] {
        let error = after_the_walk(|root| fs::write(root.join("dir/victim"), now).expect("write"));
        let NarError::Changed {
            file,
            expected,
            found,
            ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (file.as_path(), expected, found),
            (Path::new("dir/victim"), 11, length)
        );
    }
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let error = after_the_walk(|root| {
        fs::write(root.join("../secret"), b"The Secret!").expect("write");
        fs::remove_file(root.join("dir/victim")).expect("remove");
        symlink("../../secret", root.join("dir/victim")).expect("symlink");
    });
    assert!(matches!(error, NarError::Read { .. }), "{error:?}");
}

#[test]
fn a_link_in_the_place_of_a_directory_is_not_followed() {
    let error = after_the_walk(|root| {
        fs::create_dir(root.join("../elsewhere")).expect("mkdir");
        fs::write(root.join("../elsewhere/victim"), b"The Secret!").expect("write");
        fs::remove_dir_all(root.join("dir")).expect("remove");
        symlink("../elsewhere", root.join("dir")).expect("symlink");
    });
    assert!(matches!(error, NarError::Read { .. }), "{error:?}");
}

#[test]
fn a_pipe_in_the_place_of_a_file_hangs_nobody() {
    let error = after_the_walk(|root| {
        fs::remove_file(root.join("dir/victim")).expect("remove");
        mkfifo(&root.join("dir/victim"), Mode::S_IRWXU).expect("mkfifo");
    });
    assert!(matches!(error, NarError::Kind { .. }), "{error:?}");
}

/// Changes a file of many chunks once its first one has come.
fn in_mid_stream(change: impl FnOnce(&File)) -> (usize, NarError) {
    let large = content(8 * CHUNK_BYTES, 5);
    let tree = Tree::with_files(&[("large", &large)]);
    block_on(async {
        let whole = tree.whole().await;
        let mut stream = tree.nar().await.read(0..u64::MAX);
        let mut bytes = stream
            .next()
            .await
            .expect("a chunk")
            .expect("a chunk")
            .to_vec();
        let file = File::options()
            .append(true)
            .open(tree.root().join("large"))
            .expect("open");
        change(&file);
        let error = loop {
            match stream.next().await.expect("an error before the end") {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(error) => break error,
            }
        };
        assert!(stream.next().await.is_none());
        assert!(whole.starts_with(&bytes), "nothing is made up");
        assert!(bytes.len() < whole.len());
        (bytes.len(), error)
    })
}

#[test]
fn a_file_truncated_in_mid_stream_ends_it() {
    let length = 5 * CHUNK_BYTES as u64 + 100;
    let (given, error) = in_mid_stream(|file| file.set_len(length).expect("truncate"));
    assert!(given as u64 <= length + 200, "no bytes that are gone");
    assert!(
        matches!(error, NarError::Changed { found, .. } if found == length),
        "{error:?}"
    );
}

#[test]
fn a_file_that_grows_in_mid_stream_ends_it() {
    let (_, error) = in_mid_stream(|mut file| file.write_all(b"more").expect("append"));
    assert!(matches!(error, NarError::Changed { .. }), "{error:?}");
}

#[test]
fn the_collector_in_mid_stream_ends_it() {
    let files: Vec<(String, Vec<u8>)> = (0..64)
        .map(|at| (format!("{at:02}"), content(CHUNK_BYTES / 4, at)))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(n, c)| (n.as_str(), c.as_slice()))
        .collect();
    let tree = Tree::with_files(&files);
    block_on(async {
        let whole = tree.whole().await;
        let mut stream = tree.nar().await.read(0..u64::MAX);
        let mut bytes = stream
            .next()
            .await
            .expect("a chunk")
            .expect("a chunk")
            .to_vec();
        fs::remove_dir_all(tree.root()).expect("remove");
        let error = loop {
            match stream.next().await.expect("an error before the end") {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(error) => break error,
            }
        };
        assert!(whole.starts_with(&bytes));
        assert!(matches!(error, NarError::Read { .. }), "{error:?}");
    });
}

#[test]
fn other_kinds_of_files_have_no_nar() {
    let pipe = Tree::with_files(&[("dir/a", b"")]);
    mkfifo(&pipe.root().join("dir/pipe"), Mode::S_IRWXU).expect("mkfifo");
    let socket = Tree::with_files(&[("dir/a", b"")]);
    let _listener = UnixListener::bind(socket.root().join("dir/socket")).expect("bind");
    let root = Tree::new();
    mkfifo(&root.root(), Mode::S_IRWXU).expect("mkfifo");

    for (tree, name) in [(pipe, "dir/pipe"), (socket, "dir/socket"), (root, "")] {
        let error = block_on(tree.open(1)).expect_err(name);
        assert!(
            matches!(&error, NarError::Kind { file, .. } if file == Path::new(name)),
            "{error:?}"
        );
    }
}

#[test]
fn a_tree_of_another_size_than_registered_is_not_given() {
    let tree = Tree::with_files(&[("a", b"content")]);
    block_on(async {
        let size = tree.nar().await.size();
        for wrong in [1, size - 8, size + 8] {
            let error = tree.open(wrong).await.expect_err("damaged");
            assert!(
                matches!(error, NarError::SizeMismatch { registered, found, .. }
                    if registered == wrong && found == size),
                "{error:?}"
            );
        }
    });
}

#[test]
fn a_path_without_a_file_is_missing() {
    let error = block_on(Tree::new().open(1)).expect_err("nothing there");
    assert!(matches!(error, NarError::Missing { .. }), "{error:?}");
    // Nor is there one when the whole store is not there.
    let nowhere = Path::new("/nonexistent/store");
    let store = LocalStore::unchecked(&settings(nowhere, nowhere));
    let error = block_on(store.nar(&info(store_path(1, "tree"), 1))).expect_err("no store");
    assert!(matches!(error, NarError::Missing { .. }), "{error:?}");
}

#[test]
fn a_large_tree_is_walked_once_as_long_as_it_is_sound() {
    let names: Vec<String> = (0..1_000).map(|at| format!("{at:04}")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|it| (it.as_str(), &b"content"[..]))
        .collect();
    let tree = Tree::with_files(&files);
    block_on(async {
        let whole = tree.whole().await;
        let size = whole.len() as u64;
        // Seen by a walk only: what is asked for does not need it.
        fs::write(tree.root().join("new"), "").expect("write");
        let error = tree
            .open(size + 8)
            .await
            .expect_err("not the size that is asked for");
        assert!(matches!(error, NarError::SizeMismatch { .. }), "{error:?}");
        let (bytes, ended) = read(tree.open(size).await.expect("NAR"), 99..size / 2).await;
        ended.expect("half of the NAR");
        assert_same(&bytes, &whole[99..whole.len() / 2], "the whole");

        fs::write(tree.root().join("0500"), "damaged").expect("write");
        fs::remove_file(tree.root().join("0600")).expect("remove");
        let (_, ended) = read(tree.open(size).await.expect("NAR"), 0..size).await;
        ended.expect_err("a file is gone");
        let error = tree.open(size).await.expect_err("walked anew");
        assert!(matches!(error, NarError::SizeMismatch { .. }), "{error:?}");
        fs::remove_dir_all(tree.root()).expect("remove");
        let error = tree.open(size).await.expect_err("gone");
        assert!(matches!(error, NarError::Missing { .. }), "{error:?}");
    });
}

#[test]
fn a_dropped_stream_lets_go_of_its_files() {
    let large = content(32 * CHUNK_BYTES, 6);
    let tree = Tree::with_files(&[("large", &large)]);
    block_on(async {
        let mut stream = tree.nar().await.read(0..u64::MAX);
        stream.next().await.expect("a chunk").expect("a chunk");
        assert!(open_below(tree.dir.path()) > 0, "the test would see them");
        drop(stream);
        let deadline = Instant::now() + Duration::from_secs(10);
        while open_below(tree.dir.path()) > 0 {
            assert!(Instant::now() < deadline, "files are still open");
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_consumer_may_keep_what_it_was_given() {
    let large = content(8 * CHUNK_BYTES, 7);
    let tree = Tree::with_files(&[("large", &large)]);
    block_on(async {
        let whole = tree.whole().await;
        let chunks: Vec<_> = tree.nar().await.read(0..u64::MAX).collect().await;
        let bytes: Vec<u8> = chunks
            .into_iter()
            .flat_map(|chunk| chunk.expect("chunk").to_vec())
            .collect();
        assert_same(&bytes, &whole, "one that lets go");
    });
}

/// Descriptors of this process below `dir`; other tests use other directories.
fn open_below(dir: &Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| fs::read_link(entry.expect("entry").path()).ok())
        .filter(|target| target.starts_with(dir))
        .count()
}

/// Prints how fast NARs are read, beside `cat` of the same bytes. Warm: each is read once before.
#[test]
#[ignore = "a measurement: cargo test --release --test store_nar -- --ignored --nocapture"]
fn measure() {
    let big = Tree::with_files(&[("big", &content(1 << 30, 8))]);
    let small = Tree::new();
    for at in 0..20_000 {
        let directory = small.root().join(format!("{:03}", at / 100));
        fs::create_dir_all(&directory).expect("mkdir");
        fs::write(directory.join(format!("{at:05}")), content(5_800, 9)).expect("write");
    }
    for (what, tree) in [
        ("1 GiB in one file", &big),
        ("116 MB in 20,000 files", &small),
    ] {
        for _ in 0..3 {
            block_on(async {
                let begin = Instant::now();
                let nar = tree.nar().await;
                // Walked twice at first: once for its size.
                let walk = begin.elapsed() / 2;
                let size = nar.size();
                let begin = Instant::now();
                let mut stream = nar.read(0..u64::MAX);
                let mut given = 0;
                while let Some(chunk) = stream.next().await {
                    given += chunk.expect("chunk").len() as u64;
                }
                let time = begin.elapsed();
                assert_eq!(given, size);
                let rate = |time: Duration| size as f64 / 1e9 / time.as_secs_f64();
                println!(
                    "{what}: walk {walk:?}, read {time:?}: {:.2} GB/s, {:.2} with the walk",
                    rate(time),
                    rate(walk + time)
                );
                let begin = Instant::now();
                let nar = tree.open(size).await.expect("NAR");
                let (bytes, ended) = read(nar, size - 1_000..size).await;
                ended.expect("range");
                println!(
                    "{what}: last {} bytes in {:?}",
                    bytes.len(),
                    begin.elapsed()
                );
            });
        }
    }
}
