//! Wires the layers below and owns every task: start, reload, supervision, stop.
//!
//! Nothing here knows a format or a datagram. A task that ends unasked ends the daemon: a
//! process that looks alive and does half its work is worse than one that is started again.

mod answer_peers;
mod beat;
mod running;
mod saved;
mod setup;
mod sharing_files;
mod watch;

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Instant,
};

use tokio::{
    sync::{mpsc, watch as watched},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    finder::{Background, Memory, background, caches, inquiry, prefetch},
    http::{
        App, Service, State,
        activity::Activity,
        counters::Counters,
        listener::{self, ListenerError, Stop},
    },
    lan::{self, LanError, Names, NamesSetup},
    peer::Client,
    protocol::Interface,
    system::{
        host_name,
        interfaces::{self, InterfaceAddress},
        journal::chain,
        notify::{Notifier, watchdog_interval},
        sockets::Sockets,
        state_file::StateFile,
    },
};

use beat::Beat;
use running::Running;
pub use setup::{CONFIG_FILE, Options, Setup, SetupError, is_permission, read_config};
pub use sharing_files::SharingFiles;

/// What a daemon is started with.
#[derive(Debug)]
pub struct Launch {
    /// The command line, for reloads.
    pub options: Options,
    /// The configuration, or why there is none: then the daemon answers, but only misses.
    pub setup: Result<Setup, SetupError>,
    /// What it listens on.
    pub sockets: Sockets,
    /// The way to the service manager.
    pub notifier: Notifier,
    /// Where the state of the last process is.
    pub state_file: Option<StateFile>,
    /// Where what sharing keeps is.
    pub sharing_files: Option<SharingFiles>,
}

/// How a running daemon is told what to do.
#[derive(Debug)]
pub struct Control {
    /// Cancelled to stop it.
    pub stop: CancellationToken,
    /// A message makes it read its files again.
    pub reload: mpsc::Receiver<()>,
}

/// Why the daemon could not run, or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A socket cannot be used with the runtime.
    #[error("cannot use the sockets")]
    Sockets(#[source] io::Error),
    /// The HTTP client cannot be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// A listener broke.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// The UDP sockets broke.
    #[error("discovery ended")]
    Lan(#[from] LanError),
    /// A task ended that should not.
    #[error("the task `{task}` ended")]
    Ended {
        /// Which.
        task: &'static str,
    },
    /// A task panicked.
    #[error("a task panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

type Tasks = JoinSet<Result<&'static str, DaemonError>>;

/// Runs until told to stop, or until nothing has been asked for `idle.timeout`.
pub async fn run(launch: Launch, mut control: Control) -> Result<(), DaemonError> {
    let Launch {
        options,
        setup,
        sockets,
        notifier,
        state_file,
        sharing_files,
    } = launch;
    let activated = sockets.activated;
    let listeners = listeners(sockets.tcp)?;
    let addresses: Vec<SocketAddr> = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect();
    let http_port = addresses.first().map_or(0, SocketAddr::port);

    let setup = setup.and_then(|setup| setup.open_store().map(|store| (setup, store)));
    let config = setup
        .as_ref()
        .map_or_else(|_| Config::default(), |(setup, _)| setup.config.clone());
    let udp = udp_sockets(sockets.udp)?;
    let udp_port = udp.first().and_then(|socket| socket.local_addr().ok());
    let memory = Memory::default();
    let (saved, remembered) = match state_file.as_ref().and_then(saved::load) {
        Some(earlier) => {
            let now = Instant::now();
            memory.health.restore(now, &earlier.bans);
            let saved = Some((earlier.discovery, earlier.asleep));
            (saved, earlier.named)
        }
        None => (None, Vec::new()),
    };
    let (asking, requests) = mpsc::channel(lan::MAX_REQUESTS);
    let identity = lan::Identity { http_port, saved };
    let (lan, lan_task) = lan::open(udp, &config, identity, Box::new(interfaces), asking)?;

    let activity = Activity::new(config.idle.timeout(activated));
    let app = Arc::new(App::new(
        Service::new(
            config,
            State::Degraded {
                why: "starting".into(),
            },
        ),
        activity.clone(),
        Arc::new(Counters::default()),
    ));
    let (names, settings) = watched::channel(app.service().config.clone());
    let (named, known_by_name) = watched::channel(remembered);
    let caches = Arc::clone(&memory.caches);
    let naming = NamesSetup {
        config: settings,
        interfaces: Box::new(interfaces),
        caches: Box::new(move |list| caches.set(list)),
        peers: named,
        udp_port: udp_port.map_or(0, |address| address.port()),
        http_port,
        host_name: host_name().unwrap_or_default(),
        is_activated: activated,
    };
    let mut naming = Names::new(lan.clone(), naming);
    naming.settle().await;
    let (inquiries, cases) = mpsc::channel(inquiry::MOST_WAITING);
    let (prefetches, errands) = mpsc::channel(prefetch::MOST_WAITING);
    let (finder_tasks, unfinished) = mpsc::channel(background::MOST_WAITING);
    let notifier = Arc::new(notifier);
    let mut daemon = Running {
        options,
        activated,
        notifier: Arc::clone(&notifier),
        client: Client::new().map_err(DaemonError::Client)?,
        memory,
        background: Background {
            inquiries,
            prefetches,
            tasks: finder_tasks,
        },
        lan,
        names,
        known_by_name,
        http_port,
        app,
        setup: None,
        trouble: None,
        status: String::new(),
    };
    match setup {
        Ok((setup, store)) => daemon.take(setup, store),
        Err(error) => daemon.degrade(&error),
    }

    let stop = Stop::default();
    let lan_stop = CancellationToken::new();
    let mut tasks = Tasks::new();
    for listener in listeners {
        let serving = listener::serve(listener, Arc::clone(&daemon.app), stop.clone());
        tasks.spawn(async move { Ok(serving.await.map(|()| "listener")?) });
    }
    let receiving = lan_task.run(lan_stop.clone());
    tasks.spawn(async move { Ok(receiving.await.map(|()| "discovery")?) });
    let [answers_beat, supervision_beat] = [(); 2].map(|()| Arc::new(Beat::default()));
    let answering = answer_peers::answer(
        requests,
        daemon.lan.clone(),
        Arc::clone(&daemon.app),
        Arc::clone(&answers_beat),
    );
    tasks.spawn(async move {
        answering.await;
        Ok("answers")
    });
    let stopped = stop.drain.clone();
    tasks.spawn(async move {
        naming.run(stopped).await;
        Ok("names")
    });
    let stopped = stop.drain.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = inquiry::run(cases) => {}
            () = stopped.cancelled() => {}
        }
        Ok("inquiries")
    });
    let probing = caches::run(daemon.memory.clone(), daemon.client.clone());
    let stopped = stop.drain.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = probing => {}
            () = stopped.cancelled() => {}
        }
        Ok("caches")
    });
    let stopped = stop.drain.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = prefetch::run(errands) => {}
            () = stopped.cancelled() => {}
        }
        Ok("prefetch")
    });
    let stopped = stop.drain.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = background::run(unfinished) => {}
            () = stopped.cancelled() => {}
        }
        Ok("requests in the background")
    });
    if let Some(every) = watchdog_interval() {
        let beats = vec![answers_beat, Arc::clone(&supervision_beat)];
        let watching = watch::watch(
            every,
            addresses.clone(),
            daemon.lan.clone(),
            beats,
            notifier,
        );
        let stopped = stop.drain.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = watching => {}
                () = stopped.cancelled() => {}
            }
            Ok("watchdog")
        });
    }

    daemon.started(&addresses);
    if let (Some(setup), Some(holdings)) = (daemon.setup.clone(), daemon.holdings()) {
        let files = sharing_files.clone();
        let stopped = stop.drain.clone();
        tasks.spawn(async move {
            if let Some(files) = files.clone() {
                sharing_files::restore(files, holdings.clone()).await;
            }
            sharing_files::tell_of_other_keys(files, setup, holdings).await;
            stopped.cancelled().await;
            Ok("sharing files")
        });
    }
    let end = daemon
        .supervise(&mut control, &mut tasks, &supervision_beat)
        .await;
    let holdings = daemon.holdings();
    let ended = daemon.stop(end, stop, lan_stop, tasks, state_file).await;
    if let (Some(files), Some(holdings)) = (&sharing_files, holdings) {
        sharing_files::save(files, &holdings);
    }
    ended
}

/// What the host lists, as discovery wants it.
fn interfaces() -> io::Result<Vec<Interface>> {
    let listed = interfaces::list();
    let listed = listed.map_err(|error| io::Error::other(chain(&error).to_string()))?;
    let discovered = |listed: InterfaceAddress| Interface {
        name: listed.name,
        index: listed.index,
        is_up: listed.up,
        can_broadcast: listed.broadcasts && !listed.loopback && !listed.point_to_point,
        can_multicast: listed.multicast
            && !listed.loopback
            && !listed.point_to_point
            && !listed.port,
        address: listed.ip,
        is_tentative: listed.tentative,
        is_wireless: listed.wireless,
        prefix: listed.prefix_length,
        broadcast: listed.broadcast,
    };
    Ok(listed.into_iter().map(discovered).collect())
}

fn listeners(sockets: Vec<TcpListener>) -> Result<Vec<tokio::net::TcpListener>, DaemonError> {
    let adopted = sockets
        .into_iter()
        .map(tokio::net::TcpListener::from_std)
        .collect::<io::Result<_>>();
    adopted.map_err(DaemonError::Sockets)
}

fn udp_sockets(sockets: Vec<UdpSocket>) -> Result<Vec<tokio::net::UdpSocket>, DaemonError> {
    let adopted = sockets
        .into_iter()
        .map(tokio::net::UdpSocket::from_std)
        .collect::<io::Result<_>>();
    adopted.map_err(DaemonError::Sockets)
}
