//! The layout, and the files read as it says, are byte for byte what `nix-store --dump` and the
//! nix-nar crate make of the same tree: as a whole and for any range.

#![expect(
    clippy::expect_used,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    ops::Range,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use proptest::prelude::*;
use tempfile::TempDir;

use peerix::format::nar::{Layout, LayoutBuilder, Segment};

const GIB: u64 = 1 << 30;

/// A tree on disk and its layout.
struct Tree {
    layout: Layout,
    root: PathBuf,
}

impl Tree {
    /// Walks without recursion, in the order of a NAR.
    fn walk(root: &Path) -> Self {
        enum Step {
            Visit(PathBuf),
            Leave,
        }
        let mut builder = LayoutBuilder::new();
        let mut steps = vec![Step::Visit(root.to_owned())];
        while let Some(step) = steps.pop() {
            let Step::Visit(path) = step else {
                builder.leave_directory().expect("a directory is open");
                continue;
            };
            let name = path.file_name().expect("a path with a name").as_bytes();
            let metadata = fs::symlink_metadata(&path).expect("the tree stays as it is");
            if metadata.is_symlink() {
                let target = fs::read_link(&path)
                    .expect("a link")
                    .into_os_string()
                    .into_vec();
                builder.symlink(name, &target).expect("a link of a NAR");
            } else if metadata.is_dir() {
                builder.enter_directory(name).expect("a directory of a NAR");
                let entries = fs::read_dir(&path).expect("a directory");
                let mut entries: Vec<_> = entries
                    .map(|entry| entry.expect("an entry").path())
                    .collect();
                entries.sort_by(|a, b| b.as_os_str().as_bytes().cmp(a.as_os_str().as_bytes()));
                steps.push(Step::Leave);
                steps.extend(entries.into_iter().map(Step::Visit));
            } else {
                let executable = metadata.permissions().mode() & 0o100 != 0;
                builder
                    .file(name, executable, metadata.len())
                    .expect("a file of a NAR");
            }
        }
        Self {
            layout: builder.finish().expect("a whole tree"),
            root: root.to_owned(),
        }
    }

    /// Calls `take` with the bytes of `range`, in pieces of at most 1 MiB.
    fn read(&self, range: Range<u64>, mut take: impl FnMut(&[u8])) {
        let mut buffer = vec![0; 1 << 20];
        for segment in self.layout.segments(range) {
            let (file, mut offset, length) = match segment {
                Segment::Framing(framing) => {
                    take(framing);
                    continue;
                }
                Segment::File {
                    file,
                    offset,
                    length,
                } => (file, offset, length),
            };
            let (directory, name) = self.layout.file_location(file);
            let mut path = self.root.clone();
            if let Some(directory) = directory {
                path.extend(
                    self.layout
                        .directory_path(directory)
                        .into_iter()
                        .map(OsStr::from_bytes),
                );
                path.push(OsStr::from_bytes(name));
            }
            let file = File::open(path).expect("a file of the tree");
            let end = offset + length;
            while offset < end {
                let most = (end - offset).min(buffer.len() as u64) as usize;
                file.read_exact_at(&mut buffer[..most], offset)
                    .expect("as many bytes as the layout says");
                take(&buffer[..most]);
                offset += most as u64;
            }
        }
    }

    fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.read(range, |piece| bytes.extend_from_slice(piece));
        bytes
    }

    /// Where framing and files meet.
    fn borders(&self) -> Vec<u64> {
        let mut at = 0;
        let lengths = self
            .layout
            .segments(0..u64::MAX)
            .map(|segment| match segment {
                Segment::Framing(framing) => framing.len() as u64,
                Segment::File { length, .. } => length,
            });
        lengths
            .map(|length| {
                at += length;
                at
            })
            .collect()
    }
}

/// `nix-store --dump`, running; nothing, and it is said aloud, where there is no Nix.
fn start_nix_dump(tree: &Path) -> Option<Child> {
    let dump = Command::new("nix-store")
        .args(["--option", "substituters", "", "--dump"])
        .arg(tree)
        .stdout(Stdio::piped())
        .spawn();
    match dump {
        Ok(child) => Some(child),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Not `eprintln!`: the test harness would keep that to itself.
            writeln!(std::io::stderr(), "skipped: nix-store is not installed").expect("stderr");
            None
        }
        Err(error) => panic!("nix-store --dump: {error}"),
    }
}

fn nix_dump(tree: &Path) -> Option<Vec<u8>> {
    let output = start_nix_dump(tree)?
        .wait_with_output()
        .expect("nix-store runs");
    assert!(output.status.success(), "nix-store --dump failed");
    Some(output.stdout)
}

fn crate_dump(tree: &Path) -> Vec<u8> {
    let mut nar = Vec::new();
    let mut encoder = nix_nar::Encoder::new(tree).expect("a tree with UTF-8 names");
    encoder
        .read_to_end(&mut nar)
        .expect("nix-nar reads the tree");
    nar
}

fn write(path: &Path, content: &[u8], executable: bool) {
    fs::write(path, content).expect("a new file");
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a file of ours");
}

/// Everything that is odd and that both oracles can read: names are UTF-8.
fn grow_nasty_tree(root: &Path) {
    fs::create_dir(root).expect("a new directory");
    for empty in ["empty-dir", "Z", "a", "a.b", "a-b", "sub", "sub/deeper"] {
        fs::create_dir(root.join(empty)).expect("a new directory");
    }
    for name in [
        "empty",
        "sub/empty",
        "a/empty",
        "a.b/0",
        "\u{e9}",
        "\u{10ffff}",
        "~",
        " ",
        "#",
        "\n",
        "a0",
    ] {
        write(&root.join(name), b"", false);
    }
    // Names, contents and targets of every length modulo 8, and around it.
    for length in 0..=17 {
        let content = vec![b'0' + length as u8; length];
        write(
            &root.join(format!("sub/content-{length}")),
            &content,
            length % 2 == 0,
        );
        write(
            &root.join(format!("sub/deeper/{}", "n".repeat(length + 1))),
            &content,
            false,
        );
        let target = "t".repeat(length + 1);
        symlink(target, root.join(format!("link-{length}"))).expect("a new link");
    }
    write(&root.join("sub/run"), b"#!/bin/sh\n", true);
    write(&root.join("sub/run-empty"), b"", true);
    write(&root.join("n".repeat(255).as_str()), b"a long name", false);
    write(
        &root.join("large"),
        &(0..300_000u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<_>>(),
        false,
    );
    symlink("/nix/store/../..//", root.join("sub/absolute")).expect("a new link");
    symlink("a", root.join("sub/deeper/to-nothing")).expect("a new link");
    // Executable for others than its owner: not executable to Nix.
    write(&root.join("sub/others"), b"x", false);
    let mode = fs::Permissions::from_mode(0o655);
    fs::set_permissions(root.join("sub/others"), mode).expect("a file of ours");
}

/// What only Nix can read: names that are not UTF-8, whose order is that of their bytes.
fn grow_wild_names(root: &Path) {
    for name in [
        &b"\xff"[..],
        b"\x80",
        b"\xc3",
        b"\xc3\xa9",
        b"\xc3\x28",
        b"\x01",
        b"\x7f",
        b"a\xfe",
    ] {
        write(&root.join(OsStr::from_bytes(name)), name, false);
        symlink(
            OsStr::from_bytes(name),
            root.join(OsStr::from_bytes(&[b"l", name].concat())),
        )
        .expect("a new link");
    }
    let directory = root.join(OsStr::from_bytes(b"\xf0\x28"));
    fs::create_dir(&directory).expect("a new directory");
    write(
        &directory.join(OsStr::from_bytes(b"\xed\xa0\x80")),
        b"inside",
        true,
    );
}

/// The whole, every range that begins or ends near a border, and ranges at random.
fn assert_same(tree: &Tree, oracle: &[u8]) {
    let size = oracle.len() as u64;
    assert_eq!(tree.layout.nar_size(), size);
    assert!(tree.bytes(0..size) == oracle, "the whole NAR differs");
    let same = |range: Range<u64>| {
        tree.bytes(range.clone()) == oracle[range.start as usize..range.end as usize]
    };

    let borders = tree.borders();
    for border in borders {
        for (before, after) in [(0, 1), (1, 0), (1, 1), (9, 0), (0, 9), (70, 70)] {
            let range = border.saturating_sub(before)..(border + after).min(size);
            assert!(same(range.clone()), "{range:?} differs");
        }
    }
    for range in [0..0, 0..1, size - 1..size, size..size, 0..size - 1, 1..size] {
        assert!(same(range.clone()), "{range:?} differs");
    }
    assert!(
        tree.bytes(size - 3..u64::MAX) == oracle[oracle.len() - 3..],
        "cut at the end"
    );

    proptest!(|(start in 0..=size, length in prop_oneof![0..200u64, 0..=size])| {
        let range = start..(start + length).min(size);
        prop_assert!(same(range.clone()), "{:?} differs", range);
    });
}

fn temp_dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn a_nasty_tree_is_that_of_the_nix_nar_crate() {
    let dir = temp_dir();
    let root = dir.path().join("root");
    grow_nasty_tree(&root);
    // The crate takes a file for executable if anybody may execute it, Nix if its owner may.
    fs::remove_file(root.join("sub/others")).expect("grown before");
    assert_same(&Tree::walk(&root), &crate_dump(&root));
}

#[test]
fn a_nasty_tree_is_that_of_nix() {
    let dir = temp_dir();
    let root = dir.path().join("root");
    grow_nasty_tree(&root);
    grow_wild_names(&root);
    if let Some(oracle) = nix_dump(&root) {
        assert_same(&Tree::walk(&root), &oracle);
    }
}

#[test]
fn a_root_may_be_anything() {
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name);
    write(&at("empty"), b"", false);
    write(&at("file"), b"123456789", false);
    write(&at("run"), b"12345678", true);
    symlink("file", at("link")).expect("a new link");
    fs::create_dir(at("directory")).expect("a new directory");
    for name in ["empty", "file", "run", "link", "directory"] {
        let tree = Tree::walk(&at(name));
        assert_same(&tree, &crate_dump(&at(name)));
        if let Some(oracle) = nix_dump(&at(name)) {
            assert_same(&tree, &oracle);
        }
    }
}

#[test]
fn a_tree_of_many_small_files() {
    let dir = temp_dir();
    let root = dir.path().join("root");
    for directory in 0..30 {
        let directory = root.join(format!("d{directory}"));
        fs::create_dir_all(&directory).expect("a new directory");
        for file in 0..30u8 {
            write(
                &directory.join(format!("f{file}")),
                &vec![file; usize::from(file)],
                false,
            );
        }
    }
    let tree = Tree::walk(&root);
    assert_same(&tree, &crate_dump(&root));
    if let Some(oracle) = nix_dump(&root) {
        assert_same(&tree, &oracle);
    }
}

#[test]
fn a_thousand_levels() {
    let dir = temp_dir();
    let root = dir.path().join("root");
    let mut deepest = root.clone();
    for level in 0..1000 {
        deepest.push(if level % 3 == 0 { "d" } else { "\u{e9}" });
    }
    fs::create_dir_all(&deepest).expect("a path below 4,096 bytes");
    write(&deepest.join("f"), b"at the bottom", false);
    let mut level = deepest.clone();
    while level != root {
        level.pop();
        // Comes after the directory that is there already.
        if level.components().count().is_multiple_of(10) {
            write(&level.join("\u{fffd}"), b"on the way up", true);
        }
    }

    let tree = Tree::walk(&root);
    assert_same(&tree, &crate_dump(&root));
    if let Some(oracle) = nix_dump(&root) {
        assert_same(&tree, &oracle);
    }
    // Not left to the directory's own clean-up: that keeps a descriptor open for each level.
    let removed = Command::new("rm")
        .arg("-rf")
        .arg(&root)
        .status()
        .expect("rm runs");
    assert!(removed.success());
}

#[test]
fn a_sparse_file_over_4_gib() {
    // Holes cost nothing to read from memory; on a disk they fill the page cache.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| temp_dir());
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("a new directory");
    write(&root.join("a"), b"before", false);
    let sparse = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(root.join("sparse"));
    let sparse = sparse.expect("a new file");
    sparse
        .set_len(4 * GIB + 5)
        .expect("a file system with sparse files");
    for (number, offset) in (1..).zip([
        0,
        12_345,
        2 * GIB - 3,
        4 * GIB - 700,
        4 * GIB - 4,
        4 * GIB + 2,
    ]) {
        sparse
            .write_all_at(&[number; 3], offset)
            .expect("room for a few blocks");
    }
    write(&root.join("z"), b"after", false);

    let tree = Tree::walk(&root);
    let size = tree.layout.nar_size();
    assert!(size > 4 * GIB && tree.layout.segments(0..size).count() == 7);
    let Some(mut dump) = start_nix_dump(&root) else {
        return;
    };

    // Compared as they come; what is around the borders is kept for ranges.
    let kept: BTreeSet<u64> = [0, 2 * GIB - 1024, 4 * GIB - 2048, size - 2048]
        .into_iter()
        .collect();
    let mut windows: Vec<(u64, Vec<u8>)> = kept.into_iter().map(|at| (at, Vec::new())).collect();
    let mut oracle = dump.stdout.take().expect("a pipe");
    let (mut theirs, mut at) = (vec![0; 1 << 20], 0);
    tree.read(0..size, |ours| {
        let theirs = &mut theirs[..ours.len()];
        oracle.read_exact(theirs).expect("as many bytes as ours");
        assert!(*ours == *theirs, "differs somewhere after {at}");
        for (begin, window) in &mut windows {
            let next = (*begin + window.len() as u64).saturating_sub(at) as usize;
            if next < ours.len() && *begin < at + ours.len() as u64 {
                let most = (4096 - window.len()).min(ours.len() - next);
                window.extend_from_slice(&theirs[next..next + most]);
            }
        }
        at += ours.len() as u64;
    });
    assert_eq!(
        oracle.read(&mut theirs).expect("the end"),
        0,
        "Nix has more"
    );
    assert!(dump.wait().expect("nix-store ends").success());

    for (begin, window) in &windows {
        assert!(
            window.len() >= 2048,
            "kept {} bytes at {begin}",
            window.len()
        );
        proptest!(|(start in 0..=window.len(), length in 0..5000usize)| {
            let end = (start + length).min(window.len());
            let ours = tree.bytes(begin + start as u64..begin + end as u64);
            prop_assert!(ours == window[start..end], "{}+{}..{} differs", begin, start, end);
        });
    }
}
