//! Against a reference that writes the format's grammar out recursively.

use proptest::{prelude::*, sample::Index};

use super::*;

#[derive(Debug, Clone)]
enum Node {
    File { executable: bool, content: Vec<u8> },
    Link(Vec<u8>),
    Directory(Vec<(Vec<u8>, Node)>),
}

fn word(nar: &mut Vec<u8>, text: &[u8]) {
    nar.extend((text.len() as u64).to_le_bytes());
    nar.extend(text);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

fn words(nar: &mut Vec<u8>, texts: &[&str]) {
    texts.iter().for_each(|text| word(nar, text.as_bytes()));
}

fn reference(node: &Node, nar: &mut Vec<u8>) {
    words(nar, &["(", "type"]);
    match node {
        Node::File {
            executable,
            content,
        } => {
            words(nar, &["regular"]);
            if *executable {
                words(nar, &["executable", ""]);
            }
            words(nar, &["contents"]);
            word(nar, content);
        }
        Node::Link(target) => {
            words(nar, &["symlink", "target"]);
            word(nar, target);
        }
        Node::Directory(entries) => {
            words(nar, &["directory"]);
            for (name, entry) in entries {
                words(nar, &["entry", "(", "name"]);
                word(nar, name);
                words(nar, &["node"]);
                reference(entry, nar);
                words(nar, &[")"]);
            }
        }
    }
    words(nar, &[")"]);
}

fn build<'a>(
    builder: &mut LayoutBuilder,
    name: &[u8],
    node: &'a Node,
    contents: &mut Vec<&'a [u8]>,
) {
    match node {
        Node::File {
            executable,
            content,
        } => {
            builder
                .file(name, *executable, content.len() as u64)
                .unwrap();
            contents.push(content);
        }
        Node::Link(target) => builder.symlink(name, target).unwrap(),
        Node::Directory(entries) => {
            builder.enter_directory(name).unwrap();
            for (name, entry) in entries {
                build(builder, name, entry, contents);
            }
            builder.leave_directory().unwrap();
        }
    }
}

fn layout(node: &Node) -> (Layout, Vec<&[u8]>) {
    let (mut builder, mut contents) = (LayoutBuilder::new(), Vec::new());
    build(&mut builder, b"ignored/", node, &mut contents);
    (builder.finish().unwrap(), contents)
}

fn read(layout: &Layout, contents: &[&[u8]], range: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut last_was_framing = None;
    for segment in layout.segments(range) {
        let is_framing = matches!(segment, Segment::Framing(_));
        assert_ne!(
            last_was_framing.replace(is_framing),
            Some(is_framing),
            "pieces alternate"
        );
        match segment {
            Segment::Framing(framing) => {
                assert!(!framing.is_empty());
                bytes.extend(framing);
            }
            Segment::File {
                file,
                offset,
                length,
            } => {
                assert!(length > 0);
                let content = contents[file.0 as usize];
                assert_eq!(layout.file_size(file), content.len() as u64);
                bytes.extend(&content[offset as usize..][..length as usize]);
            }
        }
    }
    bytes
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop::collection::vec(any::<u8>(), 0..20);
    let leaf = prop_oneof![
        4 => (any::<bool>(), content).prop_map(|(executable, content)| Node::File { executable, content }),
        1 => prop::collection::vec(1..=u8::MAX, 1..20).prop_map(Node::Link),
    ];
    let name = prop::collection::vec(1..=u8::MAX, 1..12).prop_filter("a name", |name| {
        !name.contains(&b'/') && name != b"." && name != b".."
    });
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop::collection::btree_map(name.clone(), inner, 0..8)
            .prop_map(|entries| Node::Directory(entries.into_iter().collect()))
    })
}

proptest! {
    #[test]
    fn every_range_is_that_of_the_grammar(node in node(), ends: [Index; 2]) {
        let (layout, contents) = layout(&node);
        let mut nar = Vec::new();
        word(&mut nar, b"nix-archive-1");
        reference(&node, &mut nar);

        let size = nar.len() as u64;
        prop_assert_eq!(layout.nar_size(), size);
        prop_assert_eq!(&read(&layout, &contents, 0..size), &nar);
        prop_assert_eq!(&read(&layout, &contents, 0..u64::MAX), &nar);
        let mut ends = ends.map(|end| end.index(nar.len() + 1));
        ends.sort_unstable();
        let [begin, end] = ends;
        prop_assert_eq!(&read(&layout, &contents, begin as u64..end as u64), &nar[begin..end]);
    }

    #[test]
    fn no_call_panics(calls in prop::collection::vec((0..4, prop::collection::vec(any::<u8>(), 0..4), any::<u64>()), 0..30)) {
        let mut builder = LayoutBuilder::new();
        for (call, name, size) in calls {
            // What a call refuses is tested elsewhere; here it must only refuse.
            let result = match call {
                0 => builder.enter_directory(&name).map(|_| ()),
                1 => builder.leave_directory(),
                2 => builder.file(&name, true, size).map(|_| ()),
                _ => builder.symlink(&name, &name),
            };
            result.ok();
        }
        if let Ok(layout) = builder.finish() {
            let lengths = layout.segments(0..u64::MAX).map(|segment| match segment {
                Segment::Framing(framing) => framing.len() as u64,
                Segment::File { length, .. } => length,
            });
            prop_assert_eq!(lengths.sum::<u64>(), layout.nar_size());
        }
    }
}

#[test]
fn every_single_range_of_a_small_tree() {
    let file = |content: &[u8]| Node::File {
        executable: false,
        content: content.into(),
    };
    let tree = Node::Directory(vec![
        (b"a".into(), file(b"")),
        (b"b".into(), file(b"12345678")),
        (
            b"c".into(),
            Node::Directory(vec![(b"\xff".into(), file(b"x"))]),
        ),
        (b"d".into(), file(b"")),
        (b"e".into(), Node::Link(b"../a".into())),
    ]);
    let (layout, contents) = layout(&tree);
    let nar = read(&layout, &contents, 0..u64::MAX);
    for begin in 0..=nar.len() {
        for end in begin..=nar.len() {
            assert_eq!(
                read(&layout, &contents, begin as u64..end as u64),
                nar[begin..end]
            );
        }
    }
    let (begin, end) = (9, 8);
    assert_eq!(read(&layout, &contents, begin..end), b"");
    assert_eq!(read(&layout, &contents, u64::MAX - 1..u64::MAX), b"");
}

#[test]
fn files_and_directories_know_where_they_are() {
    let mut builder = LayoutBuilder::new();
    let root = builder.enter_directory(b"ignored").unwrap();
    let outer = builder.enter_directory(b"outer").unwrap();
    let inner = builder.enter_directory(b"\xfe").unwrap();
    let deep = builder.file(b"deep", false, 3).unwrap();
    builder.leave_directory().unwrap();
    builder.leave_directory().unwrap();
    let top = builder.file(b"top", true, 0).unwrap();
    builder.leave_directory().unwrap();
    let layout = builder.finish().unwrap();

    assert_eq!(layout.file_location(deep), (Some(inner), &b"deep"[..]));
    assert_eq!(layout.file_location(top), (Some(root), &b"top"[..]));
    assert_eq!(layout.directory_path(root), Vec::<&[u8]>::new());
    assert_eq!(layout.directory_path(inner), [&b"outer"[..], b"\xfe"]);
    assert_eq!(layout.directory_path(outer), [b"outer"]);
    assert_eq!((layout.file_size(deep), layout.file_size(top)), (3, 0));

    let mut builder = LayoutBuilder::new();
    let only = builder.file(b"ignored", false, 1).unwrap();
    assert_eq!(
        builder.finish().unwrap().file_location(only),
        (None, &b""[..])
    );
}

#[test]
fn refuses_what_has_no_nar() {
    let in_root = || {
        let mut builder = LayoutBuilder::new();
        builder.enter_directory(b"").unwrap();
        builder
    };
    for bad in ["", ".", "..", "a/b", "a\0", "/"] {
        let name = bad.as_bytes();
        assert_eq!(
            in_root().file(name, false, 0),
            Err(LayoutError::Name { name: name.into() })
        );
    }

    let mut builder = in_root();
    builder.symlink(b"b", b"x").unwrap();
    for (name, target) in [(&b"c"[..], &b""[..]), (b"c", b"x\0")] {
        let expected = Err(LayoutError::Target { name: name.into() });
        assert_eq!(builder.symlink(name, target), expected);
    }
    for late in ["a", "b", "B", "aaaa"] {
        let expected = LayoutError::Order {
            name: late.as_bytes().into(),
        };
        assert_eq!(builder.file(late.as_bytes(), false, 1), Err(expected));
    }
    builder.file(b"ba", false, 1).unwrap();
    builder.enter_directory(b"c").unwrap();
    builder.file(b"a", false, 1).unwrap();
    assert_eq!(builder.leave_directory(), Ok(()));
    assert!(
        builder.file(b"c", false, 1).is_err(),
        "the order is that of the outer directory again"
    );
    assert_eq!(builder.leave_directory(), Ok(()));
    assert_eq!(builder.leave_directory(), Err(LayoutError::Unbalanced));
    assert_eq!(
        builder.file(b"z", false, 1),
        Err(LayoutError::Unbalanced),
        "a second root"
    );
    assert!(builder.finish().is_ok(), "what failed left no trace");

    assert_eq!(in_root().finish().map(|_| ()), Err(LayoutError::Unbalanced));
    assert_eq!(
        LayoutBuilder::new().finish().map(|_| ()),
        Err(LayoutError::NoRoot)
    );
    assert_eq!(
        LayoutBuilder::new().leave_directory(),
        Err(LayoutError::Unbalanced)
    );
}

#[test]
fn sizes_cannot_overflow() {
    let mut builder = LayoutBuilder::new();
    builder.enter_directory(b"").unwrap();
    assert_eq!(
        builder.file(b"a", false, u64::MAX),
        Err(LayoutError::TooLarge)
    );
    let half = builder.file(b"a", false, 1 << 63).unwrap();
    assert_eq!(
        builder.file(b"b", false, 1 << 63),
        Err(LayoutError::TooLarge)
    );
    builder.leave_directory().unwrap();
    let layout = builder.finish().unwrap();
    let last = layout.segments((1 << 63) + 100..(1 << 63) + 101).next();
    assert!(matches!(last, Some(Segment::File { file, length: 1, .. }) if file == half));
}

#[test]
fn depth_costs_no_stack() {
    const DEPTH: usize = 200_000;
    let mut builder = LayoutBuilder::new();
    for _ in 0..DEPTH {
        builder.enter_directory(b"d").unwrap();
    }
    let bottom = builder.file(b"f", false, 5).unwrap();
    for _ in 0..DEPTH {
        builder.leave_directory().unwrap();
    }
    let layout = builder.finish().unwrap();
    let (directory, name) = layout.file_location(bottom);
    assert_eq!(
        (layout.directory_path(directory.unwrap()).len(), name),
        (DEPTH - 1, &b"f"[..])
    );
    let pieces: Vec<_> = layout.segments(0..u64::MAX).collect();
    assert!(matches!(
        pieces[..],
        [
            Segment::Framing(_),
            Segment::File { .. },
            Segment::Framing(_)
        ]
    ));
}

#[test]
fn a_small_file_costs_its_framing_and_a_small_record() {
    let mut builder = LayoutBuilder::new();
    builder.enter_directory(b"").unwrap();
    for number in 0..10_000 {
        builder
            .file(format!("{number:08}").as_bytes(), false, 1)
            .unwrap();
    }
    builder.leave_directory().unwrap();
    let layout = builder.finish().unwrap();
    let framing = layout.nar_size() as usize - 10_000;
    assert!(
        layout.memory_bytes() <= framing + 40 * 10_000 + 1024,
        "{}",
        layout.memory_bytes()
    );
}
