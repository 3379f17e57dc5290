//! The program: a synchronous prologue on a single thread, then the daemon.
//!
//! Order matters here. Sockets and keys are taken while there are rights to take them; rights
//! are dropped before there is a second thread, because capabilities belong to threads.

// Not in Cargo.toml, where they would hold for the helpers of integration tests as well.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use log::LevelFilter;
use peerix::{
    config::Config,
    daemon::{self, Control, Launch, Options, Setup, SetupError},
    system::{
        descriptors,
        journal::{self, chain},
        notify::Notifier,
        privileges::{self, PrivilegeError},
        sockets,
        state_file::StateFile,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// sysexits.h
const EX_USAGE: u8 = 64;
const EX_SOFTWARE: u8 = 70;
const EX_NOPERM: u8 = 77;
const EX_CONFIG: u8 = 78;

/// Threads of the runtime: it waits more than it works, and memory counts.
const MOST_THREADS: usize = 4;

/// Threads that read files, at most one for each NAR stream.
const READING_THREADS: usize = 128;

/// Peer-to-peer binary cache for Nix on the local network.
#[derive(Debug, Parser)]
#[command(name = "peerix", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon; this is also what happens without a command.
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// Config file, instead of /etc/peerix/peerix.toml if that is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// TCP and UDP port, when systemd passes no sockets.
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Longest wait for the answer of a peer that is awake, in milliseconds.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=5_000))]
    timeout: Option<u64>,
    /// Secret key to sign with, a file of `nix-store --generate-binary-cache-key`.
    #[arg(
        long,
        value_name = "FILE",
        env = "NIX_SECRET_KEY_FILE",
        hide_env_values = true
    )]
    private_key: Option<PathBuf>,
    /// Also log what is only of use when something is looked for.
    #[arg(long, short)]
    verbose: bool,
    /// Check config file, keys, nix.conf and store, and exit.
    #[arg(long)]
    check_config: bool,
    /// Print the settings in force as TOML, and exit.
    #[arg(long)]
    print_config: bool,
}

/// A failure that ends the program, with its exit code.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let serve = match cli.command {
        Some(Command::Serve(serve)) => serve,
        None => cli.serve,
    };
    let level = if serve.verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    if journal::init(level).is_err() {
        return ExitCode::from(EX_SOFTWARE);
    }
    let options = serve.options();
    let done = if serve.print_config {
        print_config(&options)
    } else if serve.check_config {
        check_config(&options)
    } else {
        run(options)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            log::error!("{}", chain(error.as_ref()));
            ExitCode::from(code)
        }
    }
}

/// Help and version are answers; everything else of clap's is a usage error.
fn explain(error: &clap::Error) -> ExitCode {
    // A closed stdout or stderr changes nothing of what the exit code says.
    error.print().ok();
    if error.use_stderr() {
        ExitCode::from(EX_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

impl Serve {
    fn options(&self) -> Options {
        Options {
            config_file: self.config.clone(),
            port: self.port,
            timeout: self.timeout.map(Duration::from_millis),
            key_file: self.private_key.clone(),
        }
    }
}

fn print_config(options: &Options) -> Result<(), Failure> {
    let setup = Setup::read(options)?;
    let text = setup.config.to_toml().map_err(Failure::bug)?;
    use std::io::Write;
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Failure::bug)
}

fn check_config(options: &Options) -> Result<(), Failure> {
    Setup::read(options)?.open_store()?;
    log::info!("the configuration is in order");
    Ok(())
}

fn run(options: Options) -> Result<(), Failure> {
    let setup = Setup::read(&options);
    let (sockets, setup) = match sockets::inherited()? {
        Some(sockets) => (sockets, setup),
        // By hand, whoever started it is there to read what is wrong.
        None => {
            let setup = setup?;
            (sockets::bind(setup.config.port)?, Ok(setup))
        }
    };
    descriptors::raise_limit();
    let notifier = Notifier::from_env();
    let defaults = Config::default();
    let config = setup.as_ref().map_or(&defaults, |setup| &setup.config);
    let identity = privileges::drop_and_verify(&config.user, config.group.as_deref())?;
    log::debug!("running as {identity:?}");
    if !sockets.activated
        && let Ok(setup) = &setup
    {
        setup.open_store()?;
    }
    let launch = Launch {
        options,
        setup,
        sockets,
        notifier,
        state_file: StateFile::from_env(),
    };
    let threads =
        std::thread::available_parallelism().map_or(2, |cores| cores.get().min(MOST_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(READING_THREADS)
        .thread_name("peerix")
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .map_err(Failure::bug)?;
    runtime.block_on(until_signalled(launch))
}

/// Runs the daemon, with signals as its control.
async fn until_signalled(launch: Launch) -> Result<(), Failure> {
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        return Err(Failure::bug(anyhow!("cannot listen for signals")));
    };
    let stop = CancellationToken::new();
    let (reload, reloads) = mpsc::channel(1);
    let listening = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
                // One reload that waits stands for all that come meanwhile.
                _ = hangup.recv() => reload.try_send(()).unwrap_or_default(),
            }
        }
    };
    let running = daemon::run(
        launch,
        Control {
            stop: stop.clone(),
            reload: reloads,
        },
    );
    tokio::select! {
        ended = running => ended.map_err(Failure::bug),
        () = listening => Ok(()),
    }
}

impl Failure {
    fn bug(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: EX_SOFTWARE,
            error: error.into(),
        }
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        let code = if error.is_permission() {
            EX_NOPERM
        } else {
            EX_CONFIG
        };
        Self {
            code,
            error: error.into(),
        }
    }
}

impl From<sockets::SocketError> for Failure {
    fn from(error: sockets::SocketError) -> Self {
        let code = if daemon::is_permission(&error) {
            EX_NOPERM
        } else {
            EX_CONFIG
        };
        Self {
            code,
            error: error.into(),
        }
    }
}

impl From<PrivilegeError> for Failure {
    fn from(error: PrivilegeError) -> Self {
        let code = if error.is_config() {
            EX_CONFIG
        } else {
            EX_NOPERM
        };
        Self {
            code,
            error: error.into(),
        }
    }
}
