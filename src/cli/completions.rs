//! `peerix completions SHELL`: the script for a shell, on stdout.

use std::io::{self, Write};

use anyhow::Context;

use super::{Completions, Failure, definition};

impl Completions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        // clap_complete panics when it cannot write, and a closed pipe is no bug.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut shown(), "peerix", &mut script);
        io::stdout()
            .write_all(&script)
            .context("cannot print the script")
            .map_err(Failure::bug)
    }
}

/// The definition without what help does not show either: clap_complete would offer it.
fn shown() -> clap::Command {
    definition().mut_subcommand("refresh", |refresh| {
        let about = refresh.get_about().cloned().unwrap_or_default();
        let arguments = refresh.get_arguments().filter(|arg| !arg.is_hide_set());
        clap::Command::new("refresh")
            .about(about)
            .args(arguments.cloned())
    })
}
