//! The manual pages, the reference of settings and the completions in docs/ are made from the
//! program's own definitions, and are what those say today.
//!
//! `PEERIX_REGENERATE=1 cargo test --test manuals` writes them anew.

mod command;
mod markdown;
mod page;
mod prose;
mod reference;
mod settings_page;
mod setups;
mod shipped;
#[expect(dead_code, reason = "each test uses its part")]
#[path = "../support/mod.rs"]
mod support;

use std::{
    env, fs,
    io::{ErrorKind, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use clap::Arg;
use peerix::{cli, config::Config};

use support::skip;

const BINARY: &str = env!("CARGO_BIN_EXE_peerix");

/// Holds a file of docs/ against what it should be, or makes it so.
fn is_current(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("PEERIX_REGENERATE").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("its directory");
        return fs::write(&path, text).expect("a file that can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if committed == text {
        return;
    }
    let mut lines = committed.lines().zip(text.lines());
    let (line, (is, should_be)) = (1..)
        .zip(&mut lines)
        .find(|(_, (is, should_be))| is != should_be)
        .unwrap_or((0, ("", "(it ends elsewhere)")));
    panic!(
        "{file} is not what the program says today, first at line {line}:\n  is        {is}\n  \
         should be {should_be}\nTo write it anew: PEERIX_REGENERATE=1 cargo test --test manuals"
    );
}

/// What a program makes of an input; nothing, and it is said aloud, where there is no such program.
fn filtered(program: &str, arguments: &[&str], input: &str) -> Option<Output> {
    let started = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip(&format!("{program} is not installed"));
            return None;
        }
        started => started.unwrap_or_else(|error| panic!("{program}: {error}")),
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    // What it writes meanwhile is far less than a pipe holds.
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    Some(child.wait_with_output().expect("it ends"))
}

fn completions(shell: &str) -> String {
    let output = Command::new(BINARY)
        .args(["completions", shell])
        .output()
        .expect("the program");
    assert!(output.status.success() && output.stderr.is_empty());
    String::from_utf8(output.stdout).expect("text")
}

fn pages() -> [(&'static str, String); 2] {
    [
        ("docs/man/peerix.8", command::page(&cli::definition())),
        ("docs/man/peerix.toml.5", settings_page::page()),
    ]
}

/// What a page says, without the marks of roff.
fn unmarked(page: &str) -> String {
    let fonts = ["\\fB", "\\fI", "\\fR"];
    let page = fonts
        .iter()
        .fold(page.to_owned(), |page, font| page.replace(font, ""));
    page.replace("\\-", "-").replace("\\*(Aq", "'")
}

#[test]
fn manual_pages_are_current() {
    for (file, text) in pages() {
        is_current(file, &text);
    }
}

#[test]
fn the_reference_of_settings_is_current() {
    is_current("docs/configuration.md", &markdown::reference());
}

#[test]
fn completions_are_what_the_program_prints() {
    for (shell, file) in [
        ("bash", "peerix.bash"),
        ("zsh", "_peerix"),
        ("fish", "peerix.fish"),
    ] {
        is_current(&format!("docs/completions/{file}"), &completions(shell));
    }
}

/// Holds that a part of a page, without marks, has tagged paragraphs for all arguments.
fn lists<'a>(part: &str, place: &str, arguments: impl Iterator<Item = &'a Arg>) {
    let lines: Vec<&str> = part.lines().collect();
    let tags = lines.windows(2).filter(|pair| pair[0] == ".TP");
    let tags: Vec<&str> = tags.map(|pair| pair[1]).collect();
    for argument in arguments.filter(|one| !one.is_hide_set()) {
        let names = argument.get_value_names().unwrap_or_default();
        let value = argument
            .get_action()
            .takes_values()
            .then(|| names.join(" "));
        let long = argument.get_long().map(|long| format!("--{long}"));
        let short = argument.get_short().map(|short| format!("-{short}, "));
        let parts = [long, value].into_iter().flatten();
        let tag = short.unwrap_or_default() + &parts.collect::<Vec<_>>().join(" ");
        assert!(
            tags.contains(&tag.as_str()),
            "{place} has no {tag}: {tags:?}"
        );
    }
}

#[test]
fn peerix_8_names_every_command_and_every_option() {
    let page = unmarked(&pages()[0].1);
    let mut definition = cli::definition();
    definition.build();
    let options = page.split(".SH COMMANDS").next().expect("the options");
    lists(options, "OPTIONS", definition.get_arguments());
    let commands = definition.get_subcommands();
    for command in commands.filter(|one| !one.is_hide_set()) {
        let name = command.get_name();
        let section = page.split(&format!("\n.SS \"peerix {name}\"\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("COMMANDS has no {name}"));
        // What is said of these once is not said again.
        let told_above = |argument: &&Arg| {
            let id = argument.get_id();
            let is_of_all = definition.get_arguments().any(|one| one.get_id() == id);
            id == "help" || name == "help" || (name == "serve" && is_of_all)
        };
        let own = section.split("\n.S").next().expect("its text");
        lists(
            own,
            name,
            command.get_arguments().filter(|one| !told_above(one)),
        );
    }
    let environment = page.split(".SH ENVIRONMENT").nth(1).expect("a section");
    let variables = definition.get_arguments().filter_map(Arg::get_env);
    for variable in variables {
        let tag = format!("\n.TP\n{}\n", variable.to_string_lossy());
        assert!(environment.contains(&tag), "ENVIRONMENT has no {tag}");
    }
}

#[test]
fn no_page_refers_to_one_that_does_not_exist() {
    for (file, page) in pages() {
        let page = unmarked(&page);
        for (at, _) in page.match_indices("peerix-") {
            let word: String = page[at..]
                .chars()
                .take_while(|c| !c.is_whitespace())
                .collect();
            assert!(!word.contains('('), "{file}: {word}");
        }
    }
}

#[test]
fn both_references_name_every_setting() {
    let page = unmarked(&settings_page::page());
    let markdown = markdown::reference();
    let mut names: Vec<String> = shipped::tables()
        .into_iter()
        .flat_map(|table| table.keys)
        .map(|key| key.name)
        .collect();
    let defaults: toml::Table =
        toml::from_str(&Config::default().to_toml().expect("TOML")).expect("TOML");
    for (name, value) in &defaults {
        match value.as_table() {
            Some(table) => names.extend(table.keys().map(|key| format!("{name}.{key}"))),
            None => names.push(name.clone()),
        }
    }
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let tag = format!("\n.TP\n{name} (");
        assert!(page.contains(&tag), "peerix.toml.5 has no {name}");
        let heading = format!("\n#### `{name}`\n");
        assert_eq!(
            markdown.matches(&heading).count(),
            1,
            "configuration.md and {name}"
        );
    }
}

#[test]
fn every_example_of_a_config_file_is_accepted() {
    let text = markdown::reference();
    let blocks: Vec<&str> = text.split("```toml\n").skip(1).collect();
    assert_eq!(blocks.len(), setups::SETUPS.len());
    for block in blocks {
        let block = block.split("```").next().expect("a block");
        Config::parse(block).unwrap_or_else(|error| panic!("{error} in:\n{block}"));
    }
    for setup in &setups::SETUPS {
        let config = Config::parse(setup.file);
        let config = config.unwrap_or_else(|error| panic!("{}: {error}", setup.title));
        assert_ne!(config, Config::default(), "{} changes nothing", setup.title);
    }
}

#[test]
fn mandoc_finds_nothing_wrong_in_the_pages() {
    for (file, text) in pages() {
        let Some(output) = filtered("mandoc", &["-T", "lint", "-W", "warning"], &text) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // They have a version in the place of a date.
        let found: Vec<&str> = said
            .lines()
            .filter(|line| !line.ends_with("WARNING: missing date, using \"\": TH"))
            .collect();
        assert!(found.is_empty(), "{file}: {found:#?}");
        assert!(output.stderr.is_empty(), "{file}");
    }
}

#[test]
fn groff_finds_nothing_wrong_in_the_pages() {
    for (file, text) in pages() {
        let arguments = ["-man", "-ww", "-Tutf8"];
        let Some(output) = filtered("groff", &arguments, &text) else {
            return;
        };
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{file}");
        assert!(
            output.status.success() && output.stdout.len() > 2_000,
            "{file}"
        );
    }
}

#[test]
fn bash_completes_commands_options_and_shells() {
    let script = completions("bash");
    let Some(checked) = filtered("bash", &["-n"], &script) else {
        return;
    };
    assert!(
        checked.status.success() && checked.stderr.is_empty(),
        "{checked:?}"
    );
    for (words, expected) in [
        ("peerix re", "refresh"),
        ("peerix ser", "serve"),
        ("peerix --check", "--check-config"),
        ("peerix serve --check", "--check-config"),
        ("peerix completions f", "fish"),
    ] {
        let asking = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             _peerix peerix \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        let output = filtered("bash", &["--norc"], &asking).expect("bash, as before");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim_end(), expected, "{words}: {output:?}");
    }
}
