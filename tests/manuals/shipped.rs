//! What systemd/peerix.toml says: the one commented list of all settings. A test of the config
//! module holds its keys and defaults against the code.

use peerix::config::{ByteSize, Config, ConfigError, parse_duration};

const TEXT: &str = include_str!("../../systemd/peerix.toml");

/// What a list holds, and what a text is that is not any text.
const KINDS: [(&str, &str); 9] = [
    ("allowed-networks", "list of networks"),
    ("interfaces.include", "list of globs"),
    ("interfaces.exclude", "list of globs"),
    ("discovery.peers", "list of peers"),
    ("share.exclude", "list of globs"),
    ("share.keys", "list of public keys, or names of keys"),
    ("share.paths", "one of these texts"),
    ("trust.public-keys", "list of public keys"),
    ("signing.key-file", "path"),
];

/// What holds without a key that has no default of its own.
const UNSET: [(&str, &str); 7] = [
    ("group", "the user's own group"),
    ("idle.timeout", "5min with sockets from systemd, else never"),
    ("discovery.domain", "none"),
    (
        "share.paths",
        "`\"built\"` with a signing key, else `\"signed\"`",
    ),
    ("signing.key-file", "none"),
    ("store.real-dir", "the same as `store.dir`"),
    ("limits.upload", "unlimited"),
];

/// What the file does not say, and a reader should know.
const REMARKS: [(&str, &str); 3] = [
    (
        "port",
        "1 to 65535, or 0: any free port for the daemon's own sockets.",
    ),
    (
        "store.database",
        "An absolute path, as is `store.real-dir`.",
    ),
    (
        "trust.public-keys",
        "Nix does not read them: what peers offer must also satisfy its own `trusted-public-keys`.",
    ),
];

/// A setting that is out of each bound that the settings have.
const OUT_OF_BOUNDS: [&str; 10] = [
    "limits.connections = 0",
    "limits.buffer = \"0B\"",
    "limits.narinfo = \"0B\"",
    "limits.upload = \"0B\"",
    "limits.drain = \"1h\"",
    "limits.stall = \"1ms\"",
    "limits.stall-alone = \"1h\"",
    "discovery.timeout = \"1h\"",
    "discovery.wake-timeout = \"1h\"",
    "store.database = \"here\"",
];

/// [`OUT_OF_BOUNDS`], and the one that is too long to be written down.
fn out_of_bounds() -> impl Iterator<Item = String> {
    let many = format!("discovery.peers = [{}]", "\"a\",".repeat(513));
    OUT_OF_BOUNDS.into_iter().map(str::to_owned).chain([many])
}

/// `[discovery]`, or the keys before the first table.
pub(crate) struct Table {
    /// Empty for the keys before the first table.
    pub(crate) name: String,
    pub(crate) keys: Vec<Key>,
}

/// One setting.
pub(crate) struct Key {
    /// With its table: `discovery.timeout`.
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    /// What holds without it.
    pub(crate) default: String,
    /// A value that it could have, where it has no default.
    pub(crate) example: Option<String>,
    pub(crate) comment: Comment,
    /// What bounds it, and what else is to be said.
    pub(crate) remarks: Vec<String>,
}

/// What stands above a key.
#[derive(Clone, Default)]
pub(crate) struct Comment {
    pub(crate) text: String,
    /// Values and what they mean, within the text.
    pub(crate) values: Vec<(String, String)>,
    /// The text after them.
    pub(crate) rest: String,
}

impl Comment {
    fn add(&mut self, line: &str) {
        let value = line
            .strip_prefix("  \"")
            .and_then(|rest| rest.split_once("\"  "));
        if let Some((value, meaning)) = value {
            let meaning = meaning.trim().to_owned();
            return self.values.push((format!("\"{value}\""), meaning));
        }
        let text = if self.values.is_empty() {
            &mut self.text
        } else {
            &mut self.rest
        };
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(line.trim());
    }
}

/// All tables, in the order of the file.
pub(crate) fn tables() -> Vec<Table> {
    let mut tables = vec![Table {
        name: String::new(),
        keys: Vec::new(),
    }];
    let mut comment = Comment::default();
    let mut has_comment = false;
    // The head of the file is about the file.
    let body = TEXT.split_once("\n\n").expect("a head").1;
    let mut lines = body.lines();
    while let Some(line) = lines.next() {
        let table = tables.last_mut().expect("never empty");
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').expect("a table").to_owned();
            tables.push(Table {
                name,
                keys: Vec::new(),
            });
        } else if let Some((name, value)) = assignment(line) {
            let mut value = value.to_owned();
            while value.starts_with('[') && !value.ends_with(']') {
                let next = lines.next().expect("the end of a list").trim();
                if next != "]" && !value.ends_with('[') {
                    value.push(' ');
                }
                value.push_str(next);
            }
            let value = value.replace(",]", "]");
            table.keys.push(key(
                &table.name,
                name,
                &value,
                line.starts_with('#'),
                comment.clone(),
            ));
            has_comment = false;
        } else if let Some(text) = line.strip_prefix('#') {
            // A comment is about all keys below it, up to the next one.
            if !has_comment {
                comment = Comment::default();
                has_comment = true;
            }
            comment.add(text.strip_prefix(' ').unwrap_or(text));
        } else {
            assert!(line.is_empty(), "what is {line:?}?");
        }
    }
    tables
}

/// `key = value`, commented or not.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("# ").unwrap_or(line);
    let is_key = |key: &&str| key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    line.split_once(" = ").filter(|(key, _)| is_key(key))
}

fn key(table: &str, name: &str, value: &str, is_commented: bool, comment: Comment) -> Key {
    assert!(!comment.text.is_empty(), "{name} has no comment");
    let name = if table.is_empty() {
        name.to_owned()
    } else {
        format!("{table}.{name}")
    };
    let (default, example) = if is_commented {
        let unset = of(&UNSET, &name).unwrap_or_else(|| panic!("what holds without {name}?"));
        (unset.to_owned(), Some(value.to_owned()))
    } else {
        (format!("`{value}`"), None)
    };
    let bound = out_of_bounds().find_map(|line| bound(&line, &name));
    let remark = of(&REMARKS, &name).map(str::to_owned);
    Key {
        kind: of(&KINDS, &name).unwrap_or_else(|| kind(&name, value)),
        default,
        example,
        comment,
        remarks: bound.into_iter().chain(remark).collect(),
        name,
    }
}

fn of(table: &[(&'static str, &'static str)], name: &str) -> Option<&'static str> {
    let found = table.iter().find(|(key, _)| *key == name);
    found.map(|(_, text)| *text)
}

fn kind(name: &str, value: &str) -> &'static str {
    let Some(text) = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    else {
        return match value {
            "true" | "false" => "true or false",
            number if number.parse::<u64>().is_ok() => "whole number",
            _ => panic!("what does {name} take? Say it in KINDS"),
        };
    };
    if parse_duration(text).is_ok() {
        "duration"
    } else if ByteSize::parse(text).is_ok() {
        "size"
    } else if text.starts_with('/') {
        "path"
    } else {
        "text"
    }
}

/// What the code would take instead of a value that is out of its bounds, if that is about `name`.
fn bound(line: &str, name: &str) -> Option<String> {
    match Config::parse(line) {
        Err(ConfigError::Bounds { key, right, .. }) => {
            (key == name).then(|| format!("Allowed: {right}."))
        }
        other => panic!("{line} is not out of bounds: {other:?}"),
    }
}

/// As long as this fails, a bound of the code is not in the manual.
#[test]
fn every_bound_of_the_code_is_told() {
    let code = include_str!("../../src/config/bounds.rs");
    assert_eq!(
        code.matches("Err(outside(").count(),
        out_of_bounds().count()
    );
}

#[test]
fn what_is_said_of_keys_is_said_of_keys_that_exist() {
    let names: Vec<String> = tables()
        .into_iter()
        .flat_map(|table| table.keys)
        .map(|key| key.name)
        .collect();
    for (key, _) in KINDS.iter().chain(&UNSET).chain(&REMARKS) {
        assert!(names.iter().any(|name| name == key), "there is no {key}");
    }
}

#[test]
fn what_holds_without_a_key_is_what_the_code_does() {
    use std::{path::Path, time::Duration};

    use peerix::config::SharePaths;

    let config = Config::default();
    assert_eq!(config.group, None);
    assert_eq!(config.idle.timeout(true), Some(Duration::from_secs(300)));
    assert_eq!(config.idle.timeout(false), None);
    assert_eq!(config.discovery.domain, None);
    assert_eq!(config.share.rule(true), SharePaths::Built);
    assert_eq!(config.share.rule(false), SharePaths::Signed);
    assert_eq!(config.signing.key_file, None);
    assert_eq!(
        config.store.real_dir(),
        Path::new(config.store.dir.as_str())
    );
    assert_eq!(config.limits.upload, None);
}
