//! Layer 6: the command line. What can be typed, the operator's commands, and the exit code of
//! each failure. The daemon itself is started by `main`, which needs its single thread.
//!
//! Manual pages and completions are made from [`Cli`] (`tests/manuals`), so that they cannot
//! tell of another program than this one.

mod arguments;
mod completions;
mod failure;
mod refresh;

pub use arguments::{Cli, Command, Completions, Refresh, Serve};
pub use failure::{EX_SOFTWARE, EX_USAGE, Failure};

use clap::CommandFactory;

/// The definition that the program is parsed by.
pub fn definition() -> clap::Command {
    Cli::command()
}

impl Command {
    /// Runs an operator's command; `None` for `serve`, which is no such command.
    pub fn run(&self) -> Option<Result<(), Failure>> {
        match self {
            Self::Serve(_) => None,
            Self::Refresh(refresh) => Some(refresh.run()),
            Self::Completions(completions) => Some(completions.run()),
        }
    }
}
