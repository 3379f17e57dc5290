//! The running daemon: puts configurations into force, watches over its tasks, stops.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use log::{error, info};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    Control, DaemonError, Tasks,
    beat::{self, Beat},
    saved,
    setup::{Options, Setup, SetupError},
};
use crate::{
    config::Config,
    finder::{Background, Finder, Holdings, Memory},
    http::{App, Service, State, listener::Stop},
    lan::LanHandle,
    peer::Client,
    store::{LocalStore, StoreStatus},
    system::{journal::chain, notify::Notifier, state_file::StateFile},
};

/// A key that is trusted from now on counts within a second.
const LOOK_AT_NIX_CONF_EVERY: Duration = Duration::from_millis(500);

/// What supervision and reload need.
pub(super) struct Running {
    pub(super) options: Options,
    pub(super) activated: bool,
    pub(super) notifier: Arc<Notifier>,
    pub(super) client: Client,
    pub(super) memory: Memory,
    pub(super) background: Background,
    pub(super) lan: LanHandle,
    pub(super) http_port: u16,
    /// The settings, for the task that looks names up.
    pub(super) names: watch::Sender<Config>,
    /// What that task has found.
    pub(super) known_by_name: watch::Receiver<Vec<SocketAddr>>,
    pub(super) app: Arc<App>,
    /// What is in force; none while degraded from the start.
    pub(super) setup: Option<Arc<Setup>>,
    /// What is wrong, for STATUS=.
    pub(super) trouble: Option<String>,
    /// The last STATUS=.
    pub(super) status: String,
}

/// Why supervision ended.
pub(super) enum End {
    Asked,
    Idle,
    Broken(DaemonError),
}

impl Running {
    /// Puts a configuration into force.
    pub(super) fn take(&mut self, setup: Setup, store: LocalStore) {
        let config = setup.config.clone();
        let finder = Finder::new(
            self.lan.clone(),
            self.client.clone(),
            setup.holdings(store),
            setup.trust(),
            config.limits.clone(),
            self.memory.clone(),
            self.background.clone(),
        );
        let idle = config.idle.timeout(self.activated);
        self.app.activity.set_timeout(idle);
        let caches = &self.memory.caches;
        caches.configure(config.store.dir.clone(), self.http_port);
        // What was refused before may be signed by a key that is trusted now.
        self.memory.health.clear_paths();
        self.app.replace(Service::new(config, State::Ready(finder)));
        self.app.set_trouble(None);
        self.setup = Some(Arc::new(setup));
        self.trouble = None;
    }

    /// What is shared now, if there is a configuration.
    pub(super) fn holdings(&self) -> Option<Holdings> {
        let service = self.app.service();
        service.finder().map(|finder| finder.holdings().clone())
    }

    /// Goes on without a configuration.
    pub(super) fn degrade(&mut self, error: &SetupError) {
        let why = chain(error).to_string();
        error!(reason:% = why; "nothing is shared and nothing is found until this is repaired: {why}");
        let state = State::Degraded { why: why.clone() };
        self.app.replace(Service::new(Config::default(), state));
        self.trouble = Some(why);
    }

    pub(super) fn started(&mut self, addresses: &[SocketAddr]) {
        let listening: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let keys: Vec<&str> = self
            .setup
            .iter()
            .flat_map(|setup| setup.key_names())
            .collect();
        let how = if self.activated {
            ", by socket activation"
        } else {
            ""
        };
        let signs = if keys.is_empty() {
            String::new()
        } else {
            format!(", signs with {}", keys.join(", "))
        };
        info!(
            "peerix {} listens on {}{how}{signs}",
            env!("CARGO_PKG_VERSION"),
            listening.join(", ")
        );
        self.status = self.status_line();
        self.notifier.ready(&self.status);
    }

    /// Does what has to be done from time to time, until there is a reason to stop.
    pub(super) async fn supervise(
        &mut self,
        control: &mut Control,
        tasks: &mut Tasks,
        beat: &Beat,
    ) -> End {
        let mut tick = interval(beat::EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK_AT_NIX_CONF_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let activity = self.app.activity.clone();
        let mut reload_open = true;
        loop {
            beat.beat();
            tokio::select! {
                () = control.stop.cancelled() => return End::Asked,
                () = activity.idle() => return End::Idle,
                Some(ended) = tasks.join_next() => return End::Broken(unasked(ended)),
                message = control.reload.recv(), if reload_open => match message {
                    Some(()) => self.reload().await,
                    None => reload_open = false,
                },
                _ = look.tick() => self.look_at_nix_conf().await,
                _ = tick.tick() => self.tick(),
            }
        }
    }

    async fn look_at_nix_conf(&mut self) {
        if let Some(setup) = self.setup.clone().filter(|setup| setup.nix_conf_changed()) {
            self.trust_anew(setup).await;
        }
    }

    fn tick(&mut self) {
        let status = self.status_line();
        if status != self.status {
            self.notifier.status(&status);
            self.status = status;
        }
    }

    /// nix.conf has changed under us: the keys of others count as it says now.
    async fn trust_anew(&mut self, setup: Arc<Setup>) {
        match off_the_runtime(move || with_store(setup.with_new_trust()?)).await {
            Some(Ok((setup, store))) => {
                self.take(setup, store);
                info!("nix.conf has changed and is read again");
            }
            Some(Err(error)) => self.keep_old(&error),
            None => {}
        }
    }

    /// Reads all files again. What is wrong is said, and the old configuration stays.
    async fn reload(&mut self) {
        self.notifier.reloading();
        let forgiven = self.memory.health.clear_all(Instant::now());
        self.memory.caches.forget();
        if forgiven > 0 {
            info!("{forgiven} bans of peers are forgotten, as always at a reload");
        }
        let (options, old) = (self.options.clone(), self.setup.clone());
        let read = move || match old {
            Some(old) => with_store(Setup::read_again(&options, &old)?),
            None => with_store(Setup::read(&options)?),
        };
        match off_the_runtime(read).await {
            Some(Ok((setup, store))) => {
                self.lan.configure(&setup.config);
                self.names.send_replace(setup.config.clone());
                self.take(setup, store);
                info!("settings, keys and nix.conf are read again");
            }
            Some(Err(error)) if self.setup.is_some() => {
                self.trouble = None;
                self.keep_old(&error);
            }
            Some(Err(error)) => self.degrade(&error),
            None => {}
        }
        self.status = self.status_line();
        self.notifier.ready(&self.status);
    }

    /// Says once what is wrong with the new files.
    fn keep_old(&mut self, error: &SetupError) {
        let why = chain(error).to_string();
        let trouble = format!("old settings in force: {why}");
        if self.trouble.as_ref() != Some(&trouble) {
            error!(reason:% = why; "the new settings are wrong, the old ones stay: {why}");
            self.app.set_trouble(Some(trouble.clone()));
            self.trouble = Some(trouble);
        }
    }

    /// What `systemctl status` shows.
    fn status_line(&self) -> String {
        if let (Some(why), None) = (&self.trouble, &self.setup) {
            return format!("degraded: {why}");
        }
        let served = self.app.counters.snapshot();
        let fetched = self.memory.counters.snapshot();
        let mut line = format!(
            "{} peers, served {} NARs ({} MiB), fetched {} ({} MiB)",
            self.lan.peers().len(),
            served.nars,
            served.nar_bytes >> 20,
            fetched.nars,
            fetched.nar_bytes >> 20,
        );
        let service = self.app.service();
        let store = service
            .finder()
            .map(|finder| finder.holdings().store.status());
        if let Some(trouble) = store.filter(|status| !matches!(status, StoreStatus::Available)) {
            line += &format!("; nothing is held, the store is {trouble}");
        }
        for warning in self.lan.warnings() {
            line += &format!("; {warning}");
        }
        if let Some(trouble) = &self.trouble {
            line += &format!("; {trouble}");
        }
        line
    }

    /// One path for every stop: requests under way finish, streams are cut, state is saved.
    pub(super) async fn stop(
        self,
        end: End,
        stop: Stop,
        lan_stop: CancellationToken,
        mut tasks: Tasks,
        state_file: Option<StateFile>,
    ) -> Result<(), DaemonError> {
        // First of all: from here on the manager starts the next daemon for what arrives.
        self.notifier.stopping();
        match &end {
            End::Asked => info!("stopping"),
            End::Idle => info!("nothing to do; the next request starts the daemon again"),
            End::Broken(error) => error!("stopping: {}", chain(error)),
        }
        let drain = self.app.service().config.limits.drain;
        stop.drain.cancel();
        stop.connections.close();
        // Lookups under way need discovery, so it goes after the connections.
        if tokio::time::timeout(drain, stop.connections.wait())
            .await
            .is_err()
        {
            info!(
                "{} connections are cut after {} ms",
                stop.connections.len(),
                drain.as_millis()
            );
            stop.cut.cancel();
            stop.connections.wait().await;
        }
        // What discovery has taken in is answered; the rest waits in the socket.
        lan_stop.cancel();
        let answered = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, answered).await.is_err() {
            info!("asks of peers are left unanswered: the store does not answer");
        }
        if let Some(file) = &state_file {
            let named = self.known_by_name.borrow().clone();
            saved::save(file, self.lan.save(), &self.memory, named);
        }
        tasks.shutdown().await;
        match end {
            End::Broken(error) => Err(error),
            End::Asked | End::Idle => Ok(()),
        }
    }
}

fn with_store(setup: Setup) -> Result<(Setup, LocalStore), SetupError> {
    let store = setup.open_store()?;
    Ok((setup, store))
}

/// Reads files where that may take time; `None` if the reading panicked, which is in the
/// journal by then.
async fn off_the_runtime<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(read).await.ok()
}

fn unasked(
    ended: Result<Result<&'static str, DaemonError>, tokio::task::JoinError>,
) -> DaemonError {
    match ended {
        Ok(Ok(task)) => DaemonError::Ended { task },
        Ok(Err(error)) => error,
        Err(error) => DaemonError::Panicked(error),
    }
}
