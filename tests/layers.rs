//! Holds the modules to the layer table of docs/architecture.md: each imports only layers below it,
//! never a sibling; the lowest two do no I/O and read no clock.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Every top-level module, and its layer.
const LAYERS: [(&str, u8); 12] = [
    ("format", 0),
    ("protocol", 1),
    ("config", 1),
    ("idle", 1),
    ("store", 2),
    ("lan", 2),
    ("peer", 2),
    ("system", 2),
    ("finder", 3),
    ("http", 4),
    ("daemon", 5),
    ("main", 6),
];

/// Modules of the program, which may use everything, and may or may not be there.
const PROGRAM: [&str; 2] = ["main", "cli"];

/// Up to this layer modules are pure.
const LAST_PURE_LAYER: u8 = 1;

/// What a pure module may name no path below.
const IMPURE_PATHS: [&str; 18] = [
    "tokio",
    "tokio_util",
    "hyper",
    "hyper_util",
    "reqwest",
    "rusqlite",
    "socket2",
    "nix",
    "libc",
    "listenfd",
    "log",
    "getrandom",
    "rand",
    "std::fs",
    "std::env",
    "std::io::stdin",
    "std::process",
    "std::thread",
];

/// Words that a pure module may not have in any path.
const IMPURE_WORDS: [&str; 11] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "ToSocketAddrs",
    "OpenOptions",
    "SystemTime",
    "println",
    "eprintln",
];

/// Lines of a file before its tests.
const LONGEST_FILE: usize = 450;

/// A source file: where it is below src, and its text.
struct Source {
    path: PathBuf,
    text: String,
}

/// A path in the code, such as `crate::format::NarHash`, with all that a group makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CodePath {
    segments: Vec<String>,
    /// Modules within the file that it is in.
    inline: usize,
    line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// All that is wrong, one line each.
fn violations(sources: &[Source]) -> Vec<String> {
    let tests = test_files(sources);
    let mut found = undeclared_modules(sources);
    for source in sources
        .iter()
        .filter(|source| !tests.contains(&source.path))
    {
        let tokens = without_tests(&tokens(&source.text));
        let module = module_of(&source.path);
        let mut say = |line: usize, what: String| {
            found.push(format!("src/{}:{line}: {what}", source.path.display()))
        };
        if tokens.last().is_some_and(|last| last.line > LONGEST_FILE) {
            say(
                LONGEST_FILE,
                format!("more than {LONGEST_FILE} lines before its tests"),
            );
        }
        for (at, window) in tokens.windows(3).enumerate() {
            let words = [window[0].text.as_str(), &window[1].text, &window[2].text];
            let attribute =
                matches!(words, ["#", "[", "allow"]) || matches!(words, ["!", "[", "allow"]);
            let conditional = words[0] == "," && words[1] == "allow" && words[2] == "(";
            if attribute || conditional {
                say(
                    window[0].line,
                    "`allow` without an expectation; right would be `expect` with a reason".into(),
                );
            }
            if words == ["tokio", "::", "main"] || (words[0] == "tokio" && at_main(&tokens, at)) {
                say(
                    window[0].line,
                    "#[tokio::main]: capabilities are per thread".into(),
                );
            }
        }
        let Some(top) = module.first() else { continue };
        let Some(layer) = layer_of(top) else { continue };
        for path in paths(&tokens) {
            let Some(path) = absolute(&module, path) else {
                continue;
            };
            if let Some(wrong) = wrong_import(top, layer, &path) {
                say(path.line, wrong);
            }
            if layer <= LAST_PURE_LAYER
                && let Some(wrong) = impurity(&path)
            {
                say(path.line, format!("`{wrong}` in a pure module"));
            }
        }
    }
    found
}

fn at_main(tokens: &[Token], at: usize) -> bool {
    let text = |offset: usize| tokens.get(at + offset).map(|token| token.text.as_str());
    text(1) == Some("::") && text(2) == Some("main")
}

/// `idle` for `idle.rs`, `http::route` for `http/route.rs`; nothing for `lib.rs`.
fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into())
        .collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}

fn layer_of(module: &str) -> Option<u8> {
    let program = PROGRAM.contains(&module).then_some(6);
    LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, layer)| *layer)
        .or(program)
}

/// Every file and directory of src is a module of the table, and those of the table are there.
fn undeclared_modules(sources: &[Source]) -> Vec<String> {
    let mut there: BTreeMap<String, &Path> = BTreeMap::new();
    for source in sources {
        if let Some(top) = module_of(&source.path).into_iter().next() {
            there.insert(top, &source.path);
        }
    }
    let unknown = there.iter().filter(|(name, _)| layer_of(name).is_none());
    let unknown =
        unknown.map(|(name, path)| format!("src/{}: `{name}` is in no layer", path.display()));
    let missing = LAYERS.iter().filter(|(name, _)| !there.contains_key(*name));
    unknown
        .chain(missing.map(|(name, _)| format!("`{name}` of the layer table is not there")))
        .collect()
}

/// The files of modules that are declared for tests alone, and what is below them.
fn test_files(sources: &[Source]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for source in sources {
        let is_root = ["mod.rs", "lib.rs", "main.rs"]
            .iter()
            .any(|name| source.path.ends_with(name));
        let directory = if is_root {
            source.path.parent().unwrap_or(Path::new("")).to_owned()
        } else {
            source.path.with_extension("")
        };
        let tokens = tokens(&source.text);
        for at in 0..tokens.len() {
            if let Some(end) = test_attribute(&tokens, at)
                && let Some(name) = module_declaration(&tokens[end..])
            {
                let below = directory.join(&name);
                let is_part =
                    |path: &Path| path == below.with_extension("rs") || path.starts_with(&below);
                files.extend(
                    sources
                        .iter()
                        .map(|it| it.path.clone())
                        .filter(|path| is_part(path)),
                );
            }
        }
    }
    files
}

/// The index after a `#[cfg(test)]` at `at`.
fn test_attribute(tokens: &[Token], at: usize) -> Option<usize> {
    let words = ["#", "[", "cfg", "(", "test", ")", "]"];
    let found = tokens.get(at..at + words.len())?;
    found
        .iter()
        .map(|token| token.text.as_str())
        .eq(words)
        .then_some(at + words.len())
}

/// `x` of `mod x;`, `pub mod x;`.
fn module_declaration(tokens: &[Token]) -> Option<String> {
    let at = tokens
        .iter()
        .position(|token| token.text == "mod")
        .filter(|at| *at <= 4)?;
    let semicolon = tokens.get(at + 2)?.text == ";";
    semicolon.then(|| tokens[at + 1].text.clone())
}

/// The tokens without what is for tests alone.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match test_attribute(tokens, at) {
            Some(end) => at = end_of_item(tokens, end),
            None => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// After the semicolon or the closing brace of the item at `at`.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && tokens[at].text == "}" {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Words and punctuation, without comments and the content of literals.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let rest = |length: usize| chars[at..].iter().take(length).collect::<String>();
        let start = at;
        let begins_raw = |prefix: usize| {
            let hashes = chars[at + prefix..]
                .iter()
                .take_while(|c| **c == '#')
                .count();
            (chars.get(at + prefix + hashes) == Some(&'"')).then_some(hashes)
        };
        match chars[at] {
            '/' if rest(2) == "//" => at += chars[at..].iter().take_while(|c| **c != '\n').count(),
            '/' if rest(2) == "/*" => {
                let mut depth = 0;
                loop {
                    let two: String = chars[at..].iter().take(2).collect();
                    match two.as_str() {
                        "/*" => (depth, at) = (depth + 1, at + 2),
                        "*/" => (depth, at) = (depth - 1, at + 2),
                        "" => break,
                        _ => at += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            'r' if begins_raw(1).is_some() => at = end_of_raw(&chars, at + 1),
            'b' if rest(2) == "br" && begins_raw(2).is_some() => at = end_of_raw(&chars, at + 2),
            '"' => at = end_of_string(&chars, at),
            '\'' => at = end_of_quote(&chars, at),
            c if c.is_alphanumeric() || c == '_' => {
                at += chars[at..]
                    .iter()
                    .take_while(|c| c.is_alphanumeric() || **c == '_')
                    .count();
                let text = chars[start..at].iter().collect();
                tokens.push(Token { text, line });
            }
            ':' if rest(2) == "::" => {
                tokens.push(Token {
                    text: "::".into(),
                    line,
                });
                at += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token {
                        text: c.into(),
                        line,
                    });
                }
                at += 1;
            }
        }
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn end_of_raw(chars: &[char], mut at: usize) -> usize {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    at += hashes + 1;
    while at < chars.len() {
        let closes = chars[at] == '"'
            && chars[at + 1..]
                .iter()
                .take(hashes)
                .filter(|c| **c == '#')
                .count()
                == hashes;
        at += 1;
        if closes {
            return at + hashes;
        }
    }
    at
}

/// The end of a character, or of the quote of a lifetime.
fn end_of_quote(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            let length = chars[at + 3..].iter().take_while(|c| **c != '\'').count();
            at + length + 4
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

/// All paths, those of groups written out.
fn paths(tokens: &[Token]) -> Vec<CodePath> {
    let mut found = Vec::new();
    // The depths of braces at which modules within the file were opened.
    let mut modules = Vec::new();
    let (mut at, mut depth) = (0, 0_usize);
    while at < tokens.len() {
        let text = |offset: usize| tokens.get(at + offset).map(|token| token.text.as_str());
        if text(0) == Some("mod") && text(2) == Some("{") {
            modules.push(depth);
        }
        match tokens[at].text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                modules.retain(|opened| *opened < depth);
            }
            _ => {}
        }
        if is_word(&tokens[at]) {
            let before = found.len();
            at = path_at(tokens, at, &[], &mut found);
            found[before..]
                .iter_mut()
                .for_each(|path| path.inline = modules.len());
        } else {
            at += 1;
        }
    }
    found
}

fn is_word(token: &Token) -> bool {
    token
        .text
        .starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads the path at `at` with `prefix` before it, and returns where it ends.
fn path_at(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<CodePath>) -> usize {
    let line = tokens[at].line;
    let mut segments = prefix.to_vec();
    segments.push(tokens[at].text.clone());
    at += 1;
    while tokens.get(at).is_some_and(|token| token.text == "::") {
        match tokens.get(at + 1) {
            Some(next) if is_word(next) => {
                segments.push(next.text.clone());
                at += 2;
            }
            Some(next) if next.text == "{" => {
                at += 2;
                let mut depth = 1;
                let mut starts = true;
                while at < tokens.len() && depth > 0 {
                    match tokens[at].text.as_str() {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        "," => starts = true,
                        _ if starts && is_word(&tokens[at]) => {
                            starts = false;
                            at = path_at(tokens, at, &segments, found);
                            continue;
                        }
                        _ => {}
                    }
                    at += 1;
                }
                return at;
            }
            Some(next) if next.text == "*" => {
                at += 2;
                break;
            }
            // A turbofish, or `<..>`.
            _ => {
                at += 1;
                break;
            }
        }
    }
    found.push(CodePath {
        segments,
        inline: 0,
        line,
    });
    at
}

/// The path from the crate's root on: `super` and `self` resolved, `peerix` taken for `crate`.
fn absolute(module: &[String], path: CodePath) -> Option<CodePath> {
    let CodePath {
        mut segments,
        inline,
        line,
    } = path;
    match segments.first().map(String::as_str) {
        Some("peerix") => segments[0] = "crate".into(),
        Some("super") => {
            let ups = segments
                .iter()
                .take_while(|segment| *segment == "super")
                .count();
            if ups <= inline {
                return None;
            }
            let base = &module[..module.len().saturating_sub(ups - inline)];
            let below = segments.split_off(ups);
            segments = std::iter::once("crate".to_owned())
                .chain(base.iter().cloned())
                .chain(below)
                .collect();
        }
        Some("self") if segments.len() > 1 => {
            let below = segments.split_off(1);
            segments = std::iter::once("crate".to_owned())
                .chain(module.iter().cloned())
                .chain(below)
                .collect();
        }
        _ => {}
    }
    let counts = segments.len() > 1 || IMPURE_WORDS.contains(&segments[0].as_str());
    counts.then_some(CodePath {
        segments,
        inline,
        line,
    })
}

fn wrong_import(top: &str, layer: u8, path: &CodePath) -> Option<String> {
    let [root, imported, ..] = path.segments.as_slice() else {
        return None;
    };
    if root != "crate" || imported == top || PROGRAM.contains(&top) {
        return None;
    }
    match layer_of(imported) {
        Some(below) if below < layer => None,
        Some(same) if same == layer => Some(format!("`{top}` imports its sibling `{imported}`")),
        Some(_) => Some(format!(
            "`{top}` (layer {layer}) imports `{imported}`, which is above it"
        )),
        None => Some(format!("`crate::{imported}` is no module of the table")),
    }
}

fn impurity(path: &CodePath) -> Option<String> {
    let whole = path.segments.join("::");
    let below = |prefix: &&str| whole == **prefix || whole.starts_with(&format!("{prefix}::"));
    let word = |word: &&str| path.segments.iter().any(|segment| segment == *word);
    let clock = whole.ends_with("Instant::now") || whole.ends_with("::elapsed");
    let found = IMPURE_PATHS
        .iter()
        .find(|it| below(it))
        .or(IMPURE_WORDS.iter().find(|it| word(it)));
    found.map(|it| (*it).to_owned()).or(clock.then_some(whole))
}

fn read(directory: &Path, below: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).expect("src") {
        let path = entry.expect("entry").path();
        let name = below.join(path.file_name().expect("a name"));
        if path.is_dir() {
            read(&path, &name, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            sources.push(Source { path: name, text });
        }
    }
}

fn own_sources() -> Vec<Source> {
    let mut sources = Vec::new();
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        Path::new(""),
        &mut sources,
    );
    sources
}

#[test]
fn every_module_keeps_to_its_layer() {
    let sources = own_sources();
    assert!(sources.len() > 50, "only {} files were read", sources.len());
    let found = violations(&sources);
    assert!(
        found.is_empty(),
        "{} violations:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn the_imports_that_there_are_are_seen() {
    // A checker that sees nothing finds nothing wrong.
    let sources = own_sources();
    let mut edges = BTreeMap::<String, Vec<String>>::new();
    for source in &sources {
        let module = module_of(&source.path);
        let Some(top) = module.first() else { continue };
        for path in paths(&tokens(&source.text))
            .into_iter()
            .filter_map(|path| absolute(&module, path))
        {
            if path.segments[0] == "crate" && path.segments[1] != *top {
                edges
                    .entry(top.clone())
                    .or_default()
                    .push(path.segments[1].clone());
            }
        }
    }
    for (from, to) in [
        ("protocol", "format"),
        ("lan", "protocol"),
        ("store", "format"),
        ("finder", "peer"),
        ("http", "finder"),
        ("daemon", "http"),
        ("main", "daemon"),
    ] {
        assert!(
            edges
                .get(from)
                .is_some_and(|all| all.iter().any(|it| it == to)),
            "{from} -> {to}: {edges:?}"
        );
    }
}

/// What is wrong with one file, the rest of the table being in order.
fn found_in(path: &str, text: &str) -> Vec<String> {
    let mut sources: Vec<Source> = LAYERS
        .iter()
        .map(|(name, _)| Source {
            path: format!("{name}.rs").into(),
            text: String::new(),
        })
        .collect();
    sources.retain(|source| source.path != Path::new(path));
    sources.push(Source {
        path: path.into(),
        text: text.into(),
    });
    violations(&sources)
}

#[test]
fn each_kind_of_violation_is_caught() {
    for (path, text, expected) in [
        (
            "format/x.rs",
            "use crate::config::Config;",
            "`format` (layer 0) imports `config`",
        ),
        (
            "config.rs",
            "use crate::protocol::wire;",
            "imports its sibling `protocol`",
        ),
        (
            "store/x.rs",
            "use crate::{format::NarHash, lan::{self, Lookup}};",
            "imports its sibling `lan`",
        ),
        (
            "store/x.rs",
            "use crate::{\n    config::{A, B},\n    // finder\n    finder,\n};",
            "src/store/x.rs:4: `store` (layer 2) imports `finder`",
        ),
        (
            "lan/x.rs",
            "fn f() { let x = crate::http::App::new(); }",
            "`lan` (layer 2) imports `http`",
        ),
        (
            "idle.rs",
            "use super::config::Config;",
            "imports its sibling `config`",
        ),
        (
            "http/deep/x.rs",
            "use super::super::super::daemon::run;",
            "imports `daemon`",
        ),
        (
            "http/x.rs",
            "mod y {\n    use super::super::super::daemon;\n}",
            "src/http/x.rs:2: `http` (layer 4) imports `daemon`",
        ),
        (
            "http/x.rs",
            "mod y {}\nuse super::super::daemon;",
            "src/http/x.rs:2: `http` (layer 4) imports `daemon`",
        ),
        (
            "peer/x.rs",
            "use crate::system as other;",
            "imports its sibling `system`",
        ),
        (
            "peer/x.rs",
            "pub(crate) use crate::finder::*;",
            "imports `finder`",
        ),
        (
            "peer/x.rs",
            "fn f() -> Result<crate::finder::X, ()> {}",
            "imports `finder`",
        ),
        (
            "finder.rs",
            "use crate::nowhere::X;",
            "`crate::nowhere` is no module",
        ),
        ("daemon.rs", "use peerix::main;", "imports `main`"),
        ("extra.rs", "", "`extra` is in no layer"),
        (
            "format/x.rs",
            "use tokio::time;",
            "`tokio` in a pure module",
        ),
        (
            "idle.rs",
            "fn f() { let now = Instant::now(); }",
            "Instant::now",
        ),
        (
            "idle.rs",
            "use std::time::{Duration, SystemTime};",
            "`SystemTime` in a pure module",
        ),
        (
            "config.rs",
            "use std::{env, fmt};",
            "`std::env` in a pure module",
        ),
        (
            "config.rs",
            "fn f() { std::fs::read(\"x\"); }",
            "`std::fs` in a pure module",
        ),
        ("config.rs", "use std::{fmt, fs::File};", "in a pure module"),
        (
            "protocol/x.rs",
            "use std::net::{IpAddr, UdpSocket};",
            "`UdpSocket` in a pure module",
        ),
        (
            "protocol/x.rs",
            "fn f() { log::debug!(\"x\"); }",
            "`log` in a pure module",
        ),
        (
            "protocol/x.rs",
            "let id = getrandom::u32();",
            "`getrandom` in a pure module",
        ),
        (
            "protocol/x.rs",
            "println!(\"x\");",
            "`println` in a pure module",
        ),
        (
            "http.rs",
            "#[allow(dead_code)]\nfn f() {}",
            "`allow` without an expectation",
        ),
        (
            "http.rs",
            "#![allow(dead_code)]",
            "`allow` without an expectation",
        ),
        (
            "http.rs",
            "#[cfg_attr(test, allow(dead_code))]\nfn f() {}",
            "`allow` without an expectation",
        ),
        (
            "main.rs",
            "#[tokio::main]\nasync fn main() {}",
            "tokio::main",
        ),
        (
            "main.rs",
            "#[tokio::main(flavor = \"x\")]\nasync fn main() {}",
            "tokio::main",
        ),
        ("http.rs", &"fn f() {}\n".repeat(451), "more than 450 lines"),
    ] {
        let found = found_in(path, text);
        assert!(
            found.iter().any(|it| it.contains(expected)),
            "{path}: {text:?} gave {found:?}"
        );
    }
    let mut sources = own_sources();
    sources.retain(|source| !source.path.starts_with("lan"));
    assert!(
        violations(&sources)
            .iter()
            .any(|it| it.contains("`lan` of the layer table is not there"))
    );
}

#[test]
fn what_is_allowed_is_not_called_a_violation() {
    for (path, text) in [
        (
            "format/x.rs",
            "use super::base32;\nuse crate::format::y;\nuse self::z::Z;",
        ),
        (
            "config.rs",
            "use crate::format::{NarHash, StoreDir};\nuse std::net::{IpAddr, SocketAddr, Ipv4Addr};",
        ),
        (
            "idle.rs",
            "use std::time::{Duration, Instant};\n// Instant::now() is the caller's\nfn f(now: Instant) {}",
        ),
        (
            "idle.rs",
            "/* use crate::http; /* nested */ use tokio; */ const X: &str = \"crate::http\"; const Y: &str = r#\"use tokio::\"x\"#;",
        ),
        (
            "idle.rs",
            "fn f<'a>(x: &'a str) -> char { '\"' }\n#[cfg(test)]\nmod tests {\n    use crate::http::App;\n    fn f() { Instant::now(); }\n}\n",
        ),
        ("idle.rs", "#[cfg(test)]\nuse crate::http::App;\nfn f() {}"),
        (
            "idle.rs",
            &format!(
                "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
                "fn f() {}\n".repeat(400),
                "fn f() {}\n".repeat(400)
            ),
        ),
        ("protocol/mod.rs", "use super::format::NarHash;"),
        (
            "config.rs",
            "mod x {\n    use super::Y;\n    fn f() { if true {} }\n    use super::Z;\n}",
        ),
        (
            "finder.rs",
            "use crate::{lan::LanHandle, peer::{Client, PeerError}, store::LocalStore, system::journal};",
        ),
        (
            "main.rs",
            "use peerix::{config::Config, daemon, system::sockets};\nfn f() { tokio::runtime::Builder::new(); }",
        ),
        (
            "http.rs",
            "#[expect(dead_code, reason = \"x\")]\nfn allow() {}",
        ),
    ] {
        let found = found_in(path, text);
        assert!(found.is_empty(), "{path}: {text:?} gave {found:?}");
    }
    // Files of modules that are declared for tests.
    let mut sources: Vec<Source> = LAYERS
        .iter()
        .map(|(name, _)| Source {
            path: format!("{name}.rs").into(),
            text: String::new(),
        })
        .collect();
    for (path, text) in [
        (
            "format/mod.rs",
            "#[cfg(test)]\nmod samples;\n#[cfg(test)]\npub(crate) mod more;\n",
        ),
        ("format/samples.rs", "use tokio::x;"),
        ("format/more/deep.rs", "use crate::http;"),
    ] {
        sources.push(Source {
            path: path.into(),
            text: text.into(),
        });
    }
    assert_eq!(violations(&sources), Vec::<String>::new());
}
