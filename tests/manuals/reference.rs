//! What peerix.toml(5) and docs/configuration.md both say beside what is shipped.

use peerix::config::Config;

use crate::shipped::Table;

/// A value that may stand in the file, and what is to be known of its kind.
pub(crate) struct Syntax {
    pub(crate) kind: &'static str,
    pub(crate) text: &'static str,
    /// Lines that are of this kind.
    examples: &'static [&'static str],
}

impl Syntax {
    /// The values of the examples.
    pub(crate) fn values(&self) -> impl Iterator<Item = &'static str> {
        let value = |line: &&'static str| line.split_once(" = ").expect("an assignment").1;
        self.examples.iter().map(value)
    }
}

/// How values are written that TOML has no form of its own for.
pub(crate) const SYNTAX: [Syntax; 5] = [
    Syntax {
        kind: "duration",
        text: "A whole number with `ms`, `s`, `min` or `h`, in quotes.",
        examples: &[
            "idle.timeout = \"0s\"",
            "idle.timeout = \"300ms\"",
            "idle.timeout = \"10min\"",
            "idle.timeout = \"1h\"",
        ],
    },
    Syntax {
        kind: "size",
        text: "A whole number with `B`, `KiB`, `MiB`, `GiB` or `TiB`, which count by 1024, in quotes.",
        examples: &["limits.nar = \"64KiB\"", "limits.nar = \"2TiB\""],
    },
    Syntax {
        kind: "glob",
        text: "A name in which `*` stands for any characters, `?` for one, and `[a-z]` for one of these. \
               It must match the whole name.",
        examples: &["interfaces.include = [\"eth?\", \"wl[a-z]*\"]"],
    },
    Syntax {
        kind: "network",
        text: "An address and the number of its bits that count, IPv4 or IPv6.",
        examples: &[
            "allowed-networks = [\"192.168.178.0/24\", \"fd00:1234::/32\", \"127.0.0.1/32\"]",
        ],
    },
    Syntax {
        kind: "peer",
        text: "An IP address or the name of a host, with or without a port; an IPv6 address with a port is \
               in brackets. A link-local IPv6 address has a `%` and its interface after it, by name or number; \
               while there is no interface of that name, nobody is asked there. Or `http://`, a host, a port unless it is 80, and a path if there is one: a plain \
               binary cache. No `https://`: there is no TLS, and what a cache offers counts by its signatures.",
        examples: &[
            "discovery.peers = [\"192.168.1.5\", \"10.0.0.1:12304\", \"[fd00::5]:12304\"]",
            "discovery.peers = [\"[fe80::1%eth0]:12304\", \"fe80::1%eth0\"]",
            "discovery.peers = [\"nas.lan\", \"nas.lan:12304\", \"http://nas.lan:5000/cache\"]",
        ],
    },
];

pub(crate) const ABOUT: [&str; 3] = [
    "The file is TOML. It is optional: without it, or without a key, the defaults below hold. \
     `peerix --config` {FILE} reads another one, which then must exist. The daemon's user must be able \
     to read it, so as a rule it is readable for everybody.",
    "A key that does not exist is an error, so that a mistake in spelling does not go unnoticed. \
     `peerix --print-config` prints what is in force, without the keys that are not set and have no \
     default.",
    "A key in a table can be written below the table's name in brackets, or with that name and a dot \
     before it and above all tables: the line `discovery.broadcast = false` says the same as \
     `broadcast = false` below `[discovery]`.",
];

pub(crate) const APPLYING: [&str; 2] = [
    "`peerix --check-config` reads the file and all that it names, and says what is wrong. \
     `systemctl reload peerix.service` puts it into force; a daemon that does not run reads it when it \
     starts. Only `user`, `group`, a signing key from systemd or one that root alone may read and, for the \
     daemon's own sockets, `port` wait for a restart. Requests under way finish with the settings that they began with.",
    "If the file is wrong at a reload, the old settings stay in force. If it is wrong at a start by \
     systemd, the daemon is degraded until it is mended: it answers that no path is known, and shares \
     nothing. In both cases the error stands in the journal and in `systemctl status peerix.service`. \
     Started by hand, the daemon ends with exit status 78, or with 77 if it may not read the file.",
];

/// What is wrong with a file, and what peerix says of it.
pub(crate) fn mistakes() -> [(&'static str, String); 3] {
    [
        "[discovery]\ntimout = \"50ms\"\n",
        "[idle]\ntimeout = 5\n",
        "[limits]\nconnections = 3\n",
    ]
    .map(|text| (text, Config::parse(text).expect_err(text).to_string()))
}

/// How a table is named in a heading.
pub(crate) fn title(table: &Table) -> String {
    if table.name.is_empty() {
        "Before the first table".into()
    } else {
        format!("[{}]", table.name)
    }
}

#[test]
fn every_example_of_a_value_is_taken() {
    for line in SYNTAX.iter().flat_map(|syntax| syntax.examples) {
        Config::parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}
