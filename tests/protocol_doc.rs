//! The examples of docs/protocol.md and tests/vectors, checked in both directions.
//!
//! An example begins with `= ` and what it is; then come lines of hexadecimal digits and,
//! after a blank, a remark.

#![expect(clippy::expect_used, reason = "the helpers of tests are tests, too")]

use std::{collections::BTreeMap, fs, path::Path};

use peerix::{
    format::StorePathHash,
    protocol::{
        PathState,
        datagram::{Answer, Ask, Datagram, DatagramError, Magnitude, Sender},
    },
};

/// What an example says about its bytes.
#[derive(Debug, PartialEq)]
enum Meaning {
    Is(Datagram),
    /// The error, as Rust prints it.
    Refused(String),
}

#[derive(Debug)]
struct Example {
    origin: String,
    kind: String,
    meaning: Meaning,
    bytes: Vec<u8>,
}

impl Example {
    fn parse(origin: &str, text: &str) -> Self {
        let mut lines = text.lines();
        let title = lines.next().and_then(|line| line.strip_prefix("= "));
        let title = title.unwrap_or_else(|| panic!("{origin}: no title"));
        let (kind, rest) = title.split_once(' ').expect("a kind and its fields");
        let digits: String = lines
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes());
        Self {
            origin: origin.to_owned(),
            kind: kind.to_owned(),
            meaning: meaning(kind, rest),
            bytes: bytes.unwrap_or_else(|error| panic!("{origin}: {error}")),
        }
    }

    fn check(&self) {
        let parsed = Datagram::parse(&self.bytes);
        match (&self.meaning, parsed) {
            (Meaning::Is(expected), Ok(parsed)) => {
                assert_eq!(parsed, *expected, "{}", self.origin);
                let encoded = expected.encode();
                let is = |name: &str| self.origin.ends_with(name);
                let is_exact = !is("-tail.hex") && !is("-flags.hex");
                assert_eq!(is_exact, self.bytes == *encoded, "{}", self.origin);
            }
            (Meaning::Refused(expected), Err(error)) => {
                assert_eq!(format!("{error:?}"), *expected, "{}", self.origin);
            }
            (expected, found) => panic!("{}: {found:?}, not {expected:?}", self.origin),
        }
    }
}

fn meaning(kind: &str, rest: &str) -> Meaning {
    if kind == "refused" {
        return Meaning::Refused(rest.to_owned());
    }
    let fields: BTreeMap<&str, &str> = rest
        .split(' ')
        .map(|field| field.split_once('=').expect("NAME=VALUE"))
        .collect();
    let number = |name: &str| fields[name].parse::<u64>().expect("a number");
    let port = || u16::try_from(number("http-port")).expect("a port");
    let id = u32::from_str_radix(fields["id"], 16).expect("an id");
    let hash = || StorePathHash::parse(fields["hash"].as_bytes()).expect("a hash");
    let hashes = || {
        let all = fields["hashes"].split(',').filter(|text| !text.is_empty());
        all.map(|text| StorePathHash::parse(text.as_bytes()).expect("a hash"))
            .collect()
    };
    let states = || {
        let all = fields["states"].bytes();
        all.map(|digit| PathState::from_bits(digit - b'0'))
            .collect()
    };
    let magnitude = |name| Magnitude::of(number(name).try_into().expect("a count"));
    let sender = || Sender {
        http_port: port(),
        instance: u64::from_str_radix(fields["instance"], 16).expect("an instance"),
    };
    Meaning::Is(match kind {
        "request" => Datagram::Request { id, hash: hash() },
        "response" => Datagram::Response {
            id,
            http_port: port(),
            hash: hash(),
        },
        "ask" => Datagram::Ask(Ask {
            id,
            sender: sender(),
            only_if_any: number("only-if-any") == 1,
            peers: magnitude("peers"),
            hashes: hashes(),
        }),
        "answer" => Datagram::Answer(Answer {
            id,
            sender: sender(),
            streams: magnitude("streams"),
            states: states(),
        }),
        other => panic!("{other} is no kind of datagram"),
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documented() -> Vec<Example> {
    let text = fs::read_to_string(root().join("docs/protocol.md")).expect("docs/protocol.md");
    let blocks = text.split("```hex\n").skip(1).enumerate();
    blocks
        .map(|(number, rest)| {
            let (block, _) = rest.split_once("```").expect("the end of a block");
            Example::parse(&format!("docs/protocol.md, example {}", number + 1), block)
        })
        .collect()
}

fn vectors() -> Vec<Example> {
    let directory = fs::read_dir(root().join("tests/vectors")).expect("tests/vectors");
    let paths = directory.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a vector");
            Example::parse(&path.display().to_string(), &text)
        })
        .collect()
}

#[test]
fn the_examples_of_the_specification_are_right() {
    let examples = documented();
    for kind in ["request", "response", "ask", "answer", "refused"] {
        let shown = examples.iter().any(|example| example.kind == kind);
        assert!(shown, "docs/protocol.md has no example of {kind}");
    }
    examples.iter().for_each(Example::check);
}

#[test]
fn the_vectors_are_right() {
    let examples = vectors();
    assert!(examples.len() >= 20, "only {} vectors", examples.len());
    examples.iter().for_each(Example::check);
    let refused = |error: &str| {
        let matches = |meaning: &Meaning| matches!(meaning, Meaning::Refused(text) if text.starts_with(error));
        examples.iter().any(|example| matches(&example.meaning))
    };
    for error in [
        format!("{:?}", DatagramError::Empty),
        format!("{:?}", DatagramError::UnknownType(7)),
        "Truncated".to_owned(),
        format!("{:?}", DatagramError::Hash),
        format!("{:?}", DatagramError::Path),
        format!("{:?}", DatagramError::Port(0)),
        format!("{:?}", DatagramError::Version),
        format!("{:?}", DatagramError::Count(57)),
    ] {
        assert!(refused(&error), "no vector is refused for {error}");
    }
}

#[test]
fn no_answer_of_the_specification_is_longer_than_its_ask() {
    let examples = documented();
    let length = |kind: &str| {
        let example = examples.iter().find(|example| example.kind == kind);
        example.expect("an example of each").bytes.len()
    };
    assert!(2 * length("response") <= 3 * length("request"));
    assert!(length("answer") <= length("ask"));
}
