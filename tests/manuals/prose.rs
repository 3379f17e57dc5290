//! The hand-written sections of peerix(8), in the order of man-pages(7).

use crate::page::{
    Block::{self, Example, Item, Text},
    Section,
};

pub(crate) const DESCRIPTION: Section = Section {
    title: "DESCRIPTION",
    blocks: &[
        Text(
            "`peerix` is a substituter for the Nix of this machine, at `http://127.0.0.1:12304/`: it \
             asks the neighbours on the local network for store paths, and passes on what it has \
             verified: signed by a key that this Nix trusts, or content-addressed. And it answers the neighbours' questions about the store \
             of this machine. By default it shares only paths that cache.nixos.org has signed; see \
             `share.paths` and `share.keys` in `peerix.toml`(5).",
        ),
        Text(
            "systemd starts it: `peerix.socket` holds TCP and UDP port 12304 open, and the first \
             connection or datagram starts `peerix.service`. The daemon exits when nothing has been \
             asked for `idle.timeout`, by default 5 minutes. What arrives then waits in the socket \
             and starts the next one.",
        ),
        Text(
            "With sockets from systemd, settings, keys, a {nix.conf} or a Nix database that are \
             broken do not end the daemon. It is degraded: it answers 404 for every narinfo, shares \
             nothing, and the reason stands in the journal and in `systemctl status peerix.service`. \
             Repair what is broken, then reload.",
        ),
        Text(
            "Without sockets from systemd the daemon opens its own, ends at the same errors with the \
             exit status below, and stays until it is stopped unless `idle.timeout` is set. Started \
             as root it becomes `user` and `group` of the settings before it answers anything, and \
             refuses to run if a privilege is left.",
        ),
        Text(
            "Machines in `allowed-networks` can use `http://`{HOST}`:12304/local` as a binary cache, \
             with any Nix. For this machine alone there are `/status` (JSON), `/metrics` \
             (OpenMetrics) and `/healthz`.",
        ),
    ],
};

pub(crate) const ABOUT_OPTIONS: &str = "These are given without a command, or after the word `serve`. They win over the settings, also \
     after a reload. The options of other commands come after their names, see COMMANDS.";

pub(crate) const MORE_ABOUT_OPTIONS: &[Block] = &[
    Text(
        "`--timeout` takes 1 to 5000. It stands for `discovery.timeout`, and raises \
         `discovery.wake-timeout` if that is shorter. `--port` stands for `port`, and \
         `--private-key` for `signing.key-file`, which a key from systemd comes before.",
    ),
    Text(
        "`--check-config` reads with the rights of whoever runs it, and cannot see the credential \
         that systemd passes to the service. Without an error it exits with 0, else as told under \
         EXIT STATUS.",
    ),
];

/// What is to be said of a command beside its options.
pub(crate) const ABOUT_COMMANDS: &[(&str, &[Block])] = &[
    ("serve", &[Text("Its options are those above.")]),
    (
        "refresh",
        &[
            Text(
                "Nix remembers for an hour, or for {narinfo-cache-negative-ttl} seconds, that a \
                 substituter did not have a path, and does not ask again in that time. This command \
                 takes from Nix's memory the misses of the gateway of this machine, and nothing else. \
                 For each file of that memory it prints a line.",
            ),
            Text(
                "Whose memory counts depends: with a Nix daemon it is root's. Run as root the command \
                 refreshes root's and, if it was called through `sudo`(8), `doas`(1) or `pkexec`(1), \
                 also the caller's, in a process of that user. Run by somebody else it refreshes that \
                 user's own; if there is a Nix daemon it then ends with 77, as root's is left.",
            ),
        ],
    ),
    (
        "completions",
        &[
            Text("The script goes to standard output. For bash, in the running shell:"),
            Example("source <(peerix completions bash)"),
        ],
    ),
];

pub(crate) const ABOUT_HELP: &str = "Print the help of the program, or of a command. Every command \
                                     also takes `-h` and `--help`.";

pub(crate) const AFTER_COMMANDS: [Section; 8] = [
    Section {
        title: "EXIT STATUS",
        blocks: &[
            Item(
                "`0`",
                "The daemon stopped as it was told, or because it was idle; a command did its work.",
            ),
            Item("`64`", "Wrong arguments."),
            Item("`70`", "Something broke that should not."),
            Item(
                "`77`",
                "No permission to read or write a file, or privileges that cannot be dropped.",
            ),
            Item(
                "`78`",
                "A wrong config file, key, {nix.conf} or Nix database, or sockets that cannot be used.",
            ),
            Text(
                "With sockets from systemd a wrong config file, key, {nix.conf} or database ends \
                 nothing, as said in the description.",
            ),
        ],
    },
    Section {
        title: "ENVIRONMENT",
        blocks: &[
            Item(
                "`NIX_SECRET_KEY_FILE`",
                "The secret key to sign with, when there is no `--private-key`.",
            ),
            Item(
                "`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`",
                "The sockets that systemd passes, as in `sd_listen_fds`(3): at least one TCP listener, \
                 and UDP sockets to find neighbours with. Anything else among them is an error.",
            ),
            Item(
                "`CREDENTIALS_DIRECTORY`",
                "Where systemd puts credentials. The file {peerix.signing-key} in it, if there is one, \
                 holds the keys to sign with, one a line.",
            ),
            Item(
                "`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`",
                "Where, and how often, systemd wants to hear how the daemon is; see `sd_notify`(3).",
            ),
            Item(
                "`RUNTIME_DIRECTORY`",
                "Where the state is kept that outlives an idle exit. Without it none is kept.",
            ),
            Item(
                "`CACHE_DIRECTORY`",
                "Where is kept what was decided about sharing, so that it need not be decided again \
                 after an idle exit. Without it nothing is kept.",
            ),
            Item(
                "`JOURNAL_STREAM`",
                "If standard error is the journal, entries go there with the fields below; else they \
                 go to standard error, one line each, with the time in UTC.",
            ),
            Item(
                "`NIX_CACHE_HOME`, `XDG_CACHE_HOME`, `HOME`",
                "Where `refresh` finds the memory of Nix, as Nix itself does.",
            ),
            Item(
                "`SUDO_UID`, `PKEXEC_UID`, `DOAS_USER`",
                "Who called root to run `refresh`.",
            ),
            Item(
                "`NIX_DAEMON_SOCKET_PATH`",
                "By which `refresh` tells whether there is a Nix daemon, if its socket is not in the \
                 usual place.",
            ),
            Text("Variables that name a proxy have no effect."),
        ],
    },
    Section {
        title: "FILES",
        blocks: &[
            Item(
                "{/etc/peerix/peerix.toml}",
                "The settings, see `peerix.toml`(5). Optional.",
            ),
            Item(
                "{/etc/credstore/peerix.signing-key}",
                "The secret key to sign with, as `nix-store --generate-binary-cache-key` writes it. \
                 Optional. systemd hands it to the daemon, whose user cannot read the file; a new one \
                 counts from the next start.",
            ),
            Item(
                "{/etc/nix/nix.conf}",
                "Which keys are trusted: `trusted-public-keys`, `extra-trusted-public-keys` and \
                 `require-sigs`, here and in the files that it includes. An included file that cannot be \
                 read is passed over. A change is noticed within seconds.",
            ),
            Item(
                "{/nix/var/nix/db/db.sqlite}",
                "The Nix database, which names the valid paths. It is only read. Without one nothing \
                 is held, and neighbours are asked all the same.",
            ),
            Item(
                "{/run/peerix/state}",
                "Which neighbours are known and which are banned, over an idle exit. It is gone after \
                 a reboot.",
            ),
            Item(
                "{/var/cache/peerix}",
                "What was decided about sharing, by digests of rows of the database. It may be removed \
                 while the daemon does not run.",
            ),
            Item(
                "{binary-cache-v*.sqlite} in {/root/.cache/nix} or {~/.cache/nix}",
                "What Nix remembers of its substituters. Only `refresh` writes to it.",
            ),
        ],
    },
    Section {
        title: "SIGNALS",
        blocks: &[
            Item(
                "`SIGTERM`, `SIGINT`",
                "Stop: no new connection is accepted, requests under way may take `limits.drain`, then \
                 connections are cut. Nix resumes a download that was cut.",
            ),
            Item(
                "`SIGHUP`",
                "Read settings, keys and {nix.conf} again; `systemctl reload peerix.service` sends it. \
                 If something is wrong in them it is said, and the old ones stay in force.",
            ),
        ],
    },
    Section {
        title: "JOURNAL FIELDS",
        blocks: &[
            Text("Entries have these fields, as far as they apply:"),
            Item(
                "`PEERIX_HASH`",
                "The hash of the store path, 32 characters. On both machines of a transfer it finds \
                 the entry about it.",
            ),
            Item("`PEERIX_STORE_PATH`", "The store path."),
            Item("`PEERIX_PEER`", "The IP address of the neighbour."),
            Item(
                "`PEERIX_BYTES`",
                "How many bytes of the NAR were sent or fetched.",
            ),
            Item(
                "`PEERIX_DURATION_US`",
                "How long that took, in microseconds.",
            ),
            Item(
                "`PEERIX_REASON`",
                "Why something was refused or failed: a word such as {wrong-bytes}, or a message.",
            ),
        ],
    },
    Section {
        title: "EXAMPLES",
        blocks: &[
            Text(
                "Start it, and have Nix use it by a line in {nix.conf}; where there is a Nix daemon, it reads that line when it is started again:",
            ),
            Example(
                "systemctl enable --now peerix.socket\n\
                 echo 'extra-substituters = http://127.0.0.1:12304/' >> /etc/nix/nix.conf\n\
                 systemctl restart nix-daemon.service",
            ),
            Text("Check changed settings, and put them into force:"),
            Example("peerix --check-config && systemctl reload peerix.service"),
            Text("Where a path came from, and who fetched it:"),
            Example("journalctl PEERIX_HASH=s66mzxpvicwk07gjbjfw9izjfa797vsw"),
            Text("Who is there:"),
            Example("curl -s http://127.0.0.1:12304/status"),
            Text("A second daemon by hand, with settings and a port of its own:"),
            Example("peerix --config ./peerix.toml --port 12400 --verbose"),
            Text("Let Nix ask the neighbours again for what they did not have:"),
            Example("sudo peerix refresh"),
        ],
    },
    Section {
        title: "NOTES",
        blocks: &[Text(
            "Questions are broadcast: everybody on the network sees which store hashes this machine \
             looks for. `discovery.broadcast = false` ends that.",
        )],
    },
    Section {
        title: "SEE ALSO",
        blocks: &[Text(
            "`peerix.toml`(5), `journalctl`(1), `nix.conf`(5), `nix-store`(1), `sd_listen_fds`(3), \
             `sd_notify`(3), `systemd.socket`(5)",
        )],
    },
];
