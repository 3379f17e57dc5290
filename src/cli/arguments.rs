//! The arguments, as clap derives them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::daemon::Options;

/// Peer-to-peer binary cache for Nix on the local network.
#[derive(Debug, Parser)]
#[command(
    name = "peerix",
    version,
    about,
    max_term_width = 100,
    // Else `peerix --port 1 serve` would take the port and forget it.
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// Without one: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What `serve` takes is also taken without it.
    #[command(flatten)]
    pub serve: Serve,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon; this is also what happens without a command.
    Serve(Serve),
    /// Let Nix forget which paths the neighbours did not have, so that it asks again.
    Refresh(Refresh),
    /// Print a completion script for a shell.
    Completions(Completions),
}

/// Arguments of the daemon.
#[derive(Debug, Args)]
pub struct Serve {
    /// Config file, instead of /etc/peerix/peerix.toml if that is there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// TCP and UDP port, when systemd passes no sockets.
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Wait for peers that run the first peerix, in milliseconds.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=5_000))]
    pub timeout: Option<u64>,
    /// Secret key to sign with, a file of `nix-store --generate-binary-cache-key`.
    #[arg(
        long,
        value_name = "FILE",
        env = "NIX_SECRET_KEY_FILE",
        hide_env_values = true
    )]
    pub private_key: Option<PathBuf>,
    /// Also log what is only of use when something is looked for.
    #[arg(long, short)]
    pub verbose: bool,
    /// Check config file, keys, nix.conf and store, and exit.
    #[arg(long)]
    pub check_config: bool,
    /// Print the settings in force as TOML, and exit.
    #[arg(long)]
    pub print_config: bool,
}

impl Serve {
    /// What the daemon is told of them.
    pub fn options(&self) -> Options {
        Options {
            config_file: self.config.clone(),
            port: self.port,
            timeout: self.timeout.map(Duration::from_millis),
            key_file: self.private_key.clone(),
        }
    }
}

/// Arguments of `refresh`.
#[derive(Debug, Args)]
pub struct Refresh {
    /// Config file, instead of /etc/peerix/peerix.toml if that is there; it names the port.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Port of the gateway that Nix knows, when the config file does not name it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// How root starts this program for another user: that user's databases alone, locked in this
    /// way, and no file of settings is read.
    #[arg(long, value_name = "LOCKS", hide = true, requires = "port")]
    pub own: Option<OwnLocks>,
}

/// How the Nix of this machine locks its databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OwnLocks {
    /// By POSIX locks.
    Posix,
    /// By directories.
    Dotfile,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell to print for.
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}
