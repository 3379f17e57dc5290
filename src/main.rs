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

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use log::LevelFilter;
use peerix::{
    cli::{Cli, Command, EX_SOFTWARE, EX_USAGE, Failure},
    config::Config,
    daemon::{self, Control, Launch, Options, Setup, SharingFiles},
    system::{
        descriptors,
        journal::{self, chain},
        notify::Notifier,
        privileges, sockets,
        state_file::StateFile,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// Threads of the runtime: it waits more than it works, and memory counts.
const MOST_THREADS: usize = 4;

/// Threads that read files, at most one for each NAR stream.
const READING_THREADS: usize = 128;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let (command, serve) = match cli.command {
        Some(Command::Serve(serve)) => (None, serve),
        command => (command, cli.serve),
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
    let done = if let Some(done) = command.as_ref().and_then(Command::run) {
        done
    } else if serve.print_config {
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
        sharing_files: SharingFiles::from_env(),
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
    let ended = runtime.block_on(until_signalled(launch));
    // What still blocks is a lookup of a name that the system does not answer: nobody waits for it.
    runtime.shutdown_background();
    ended
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
