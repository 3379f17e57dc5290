//! Peers and plain caches that are known by name: host names of the settings, SRV records of
//! a domain, and what is announced by DNS-SD.
//!
//! Never delays a lookup: a peer is handed to discovery when its address is found. The old
//! addresses stay in use until then, also when DNS fails.

mod answers;
mod lookup;
mod wanted;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use log::{info, warn};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    answers::{Answers, Notice},
    lookup::{LookupError, Lookups, on_interface},
    wanted::Wanted,
};
use super::{
    LanHandle, ListInterfaces,
    dns_sd::{DnsSd, DnsSdError, Own, Surroundings},
};
use crate::{
    config::Config,
    protocol::{Interface, PlainCache},
};

/// How often it is looked whether there is something to do.
const TICK: Duration = Duration::from_secs(1);

/// The start of the daemon is held up so long at most by names.
const SETTLED_WITHIN: Duration = Duration::from_millis(100);

/// Ticks from one listing of the interfaces to the next.
const TICKS_PER_LISTING: u32 = 5;

/// What was looked up longer ago is looked up again when lookups begin.
const FRESH: Duration = Duration::from_secs(60);

/// And so long ago, if it failed.
const FRESH_FAILURE: Duration = Duration::from_secs(10);

/// For this long after the first lookup, peers that the process before this one knew by name are
/// asked as well: there may be no answer of DNS or mDNS yet.
const REMEMBERED: Duration = Duration::from_secs(60);

/// DNS-SD rests that long when it has failed.
const DNS_SD_REST: Duration = Duration::from_secs(600);

/// A lookup that is over.
type Ended = (Wanted, Result<Vec<SocketAddr>, LookupError>);

/// Who takes the plain caches that are there at present.
pub type TakeCaches = Box<dyn Fn(Vec<PlainCache>) + Send + Sync>;

/// What the task begins with.
pub struct NamesSetup {
    /// The settings, and those of each reload.
    pub config: watch::Receiver<Config>,
    /// Lists the interfaces of the host.
    pub interfaces: ListInterfaces,
    /// Who takes the plain caches.
    pub caches: TakeCaches,
    /// The peers that are known by name, for the next process; at first those of the last one.
    pub peers: watch::Sender<Vec<SocketAddr>>,
    /// The port of our UDP socket, at which peers are asked if the settings name none.
    pub udp_port: u16,
    /// TCP port where we serve.
    pub http_port: u16,
    /// What this host is called.
    pub host_name: String,
    /// Whether systemd holds the sockets, so that this process comes and goes.
    pub is_activated: bool,
}

/// The task.
pub struct Names {
    lan: LanHandle,
    setup: NamesSetup,
    config: Config,
    started: Instant,
    wanted: Vec<Wanted>,
    answers: Answers,
    lookups: Lookups,
    running: JoinSet<Ended>,
    /// When names were last looked up.
    looked_up: Option<Instant>,
    bursts: u64,
    asked: u64,
    ticks: u32,
    listed: Vec<Interface>,
    around: Arc<Surroundings>,
    dns_sd: Option<DnsSd>,
    /// When this machine first asked for a path.
    first_asked: Option<Instant>,
    dns_sd_rests_until: Option<Instant>,
    /// What the last process knew.
    remembered: Vec<SocketAddr>,
    peers: Vec<SocketAddr>,
    caches: Vec<PlainCache>,
}

impl Names {
    /// Begins to look up. The caches whose addresses are known are handed on at once.
    pub fn new(lan: LanHandle, mut setup: NamesSetup) -> Self {
        let config = setup.config.borrow_and_update().clone();
        let listed = (setup.interfaces)().unwrap_or_default();
        let around = Arc::new(Surroundings::new(lan.instance(), config.clone(), &listed));
        let remembered = setup.peers.borrow().clone();
        let mut names = Self {
            lan,
            setup,
            config,
            started: Instant::now(),
            wanted: Vec::new(),
            answers: Answers::default(),
            lookups: Lookups::new(),
            running: JoinSet::new(),
            looked_up: None,
            bursts: 0,
            asked: 0,
            ticks: 0,
            listed,
            around,
            dns_sd: None,
            first_asked: None,
            dns_sd_rests_until: None,
            remembered,
            peers: Vec::new(),
            caches: Vec::new(),
        };
        names.apply();
        names
    }

    /// Waits a moment for what DNS knows at once, so that the first lookups of this process reach
    /// it; not if the last process has left the addresses.
    pub async fn settle(&mut self) {
        if !self.remembered.is_empty() {
            return;
        }
        let settling = async {
            while let Some(ended) = self.running.join_next().await {
                self.take_ended(ended);
            }
        };
        // What takes longer is taken in when it comes.
        timeout(SETTLED_WITHIN, settling).await.ok();
    }

    /// Looks up and listens until `stop`, then says goodbye.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = self.setup.config.changed() => self.reconfigure().await,
                Some(ended) = self.running.join_next() => self.take_ended(ended),
                _ = tick.tick(), if self.has_work() => self.tick().await,
            }
        }
        if let Some(dns_sd) = self.dns_sd.take() {
            dns_sd.stop().await;
        }
    }

    fn has_work(&self) -> bool {
        !self.wanted.is_empty() || self.wants_dns_sd()
    }

    fn wants_dns_sd(&self) -> bool {
        self.config.discovery.broadcast && self.config.discovery.dns_sd
    }

    /// The settings may be other ones.
    async fn reconfigure(&mut self) {
        let config = self.setup.config.borrow_and_update().clone();
        let has_same_networks = config.interfaces == self.config.interfaces
            && config.allowed_networks == self.config.allowed_networks;
        self.config = config;
        self.remembered.clear();
        self.look_around();
        if !has_same_networks || !self.wants_dns_sd() {
            if let Some(dns_sd) = self.dns_sd.take() {
                dns_sd.stop().await;
            }
            self.dns_sd_rests_until = None;
        }
        self.apply();
    }

    fn apply(&mut self) {
        let port = match self.config.port {
            0 => self.setup.udp_port,
            port => port,
        };
        self.wanted = Wanted::of(&self.config.discovery, port);
        self.answers.keep(&self.wanted);
        self.look_up();
        self.publish();
    }

    /// Looks everything up, from the beginning.
    fn look_up(&mut self) {
        self.running = JoinSet::new();
        self.looked_up = Some(Instant::now());
        for wanted in self.wanted.clone() {
            let lookups = self.lookups.clone();
            self.running.spawn(async move {
                let found = lookups.look_up(&wanted).await;
                (wanted, found)
            });
        }
    }

    /// Looks for the interfaces that the settings name: they come and go, with another index each time.
    fn find_interfaces(&mut self) {
        for wanted in self.wanted.clone() {
            if let Some((address, port)) = wanted.zoned() {
                let found = on_interface(address, port);
                self.take(wanted, found);
            }
        }
    }

    fn take_ended(&mut self, ended: Result<Ended, JoinError>) {
        // A lookup that panicked is one that found nothing; the panic is in the journal.
        if let Ok((wanted, found)) = ended {
            self.take(wanted, found);
        }
    }

    fn take(&mut self, wanted: Wanted, found: Result<Vec<SocketAddr>, LookupError>) {
        match self.answers.take(wanted, found, &self.config) {
            Some(Notice::Warning(text)) => warn!("{text}"),
            Some(Notice::Info(text)) => info!("{text}"),
            None => {}
        }
        self.publish();
    }

    async fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        self.find_interfaces();
        let mut is_due = false;
        if self.ticks.is_multiple_of(TICKS_PER_LISTING) {
            is_due |= self.look_around();
        }
        let counters = self.lan.counters().discovery;
        let age = self.looked_up.map(|at| at.elapsed());
        let is_older = |than| age.is_none_or(|age| age > than);
        if counters.bursts != self.bursts {
            self.bursts = counters.bursts;
            is_due |= is_older(FRESH);
        }
        if counters.lookups != self.asked {
            self.asked = counters.lookups;
            self.first_asked.get_or_insert_with(Instant::now);
            is_due |= self.answers.any_failed() && is_older(FRESH_FAILURE);
        }
        if self.first_asked.is_some_and(|at| at.elapsed() > REMEMBERED) {
            self.remembered.clear();
        }
        if is_due && !self.wanted.is_empty() {
            self.look_up();
        }
        self.tend_dns_sd().await;
        self.publish();
    }

    /// Lists the interfaces; true if they are not as they were.
    fn look_around(&mut self) -> bool {
        let listed = (self.setup.interfaces)().unwrap_or_default();
        let is_changed = listed != self.listed;
        if is_changed {
            self.remembered.clear();
        }
        let instance = self.lan.instance();
        let around = Surroundings::new(instance, self.config.clone(), &listed);
        self.around = Arc::new(around);
        self.listed = listed;
        is_changed
    }

    /// Starts DNS-SD when it is time, and hears what it has to say.
    async fn tend_dns_sd(&mut self) {
        let now = Instant::now();
        let outcome = if let Some(dns_sd) = &mut self.dns_sd {
            dns_sd.poll(&self.around)
        } else if self.may_start_dns_sd(now) {
            self.start_dns_sd()
        } else {
            return;
        };
        if let Err(error) = outcome {
            // Another program has the port for itself, which may be intended.
            match error {
                DnsSdError::Port(_) if self.dns_sd_rests_until.is_none() => {
                    info!("no peer is found by DNS-SD: {error}");
                }
                DnsSdError::Port(_) => {}
                _ => warn!(
                    "DNS-SD rests for {} min: {error}",
                    DNS_SD_REST.as_secs() / 60
                ),
            }
            self.dns_sd_rests_until = Some(now + DNS_SD_REST);
            if let Some(dns_sd) = self.dns_sd.take() {
                dns_sd.abandon().await;
            }
        }
    }

    /// Once the first lookups are over, which it would slow down. A daemon that others woke
    /// announces nothing: one ask to a thousand sleepers must not cause a thousand announcements.
    fn may_start_dns_sd(&self, now: Instant) -> bool {
        let never_sleeps = self.config.idle.timeout(self.setup.is_activated).is_none();
        let began = self.first_asked.or(never_sleeps.then_some(self.started));
        let first_answers = self.config.discovery.wake_timeout + TICK;
        let rests = self.dns_sd_rests_until.is_some_and(|until| now < until);
        self.wants_dns_sd() && !rests && began.is_some_and(|began| now > began + first_answers)
    }

    fn start_dns_sd(&mut self) -> Result<(), DnsSdError> {
        let own = Own {
            host_name: self.setup.host_name.clone(),
            instance: self.lan.instance(),
            port: self.setup.http_port,
        };
        self.dns_sd = Some(DnsSd::start(&own, &self.around)?);
        Ok(())
    }

    /// Passes the peers and caches on, if they have changed.
    fn publish(&mut self) {
        let mut peers = self.answers.peers(&self.wanted);
        keep_first(&mut peers, |peer| *peer);
        let named = peers.len();
        let mut caches = self.answers.caches(&self.config, &self.wanted);
        if let Some(dns_sd) = &self.dns_sd {
            peers.extend(self.unheard(dns_sd.peers()));
            let place = |cache: &PlainCache| (cache.address, cache.prefix.clone());
            keep_first(&mut caches, place);
            let named: Vec<_> = caches.iter().map(place).collect();
            // Anybody may announce the place of an honest cache under a wrong name, so only what the
            // settings say takes the place of an announcement.
            let mut announced = dns_sd.caches();
            announced.retain(|cache| !named.contains(&place(cache)));
            caches.extend(announced);
        }
        peers.extend(&self.remembered);
        keep_first(&mut peers, |peer| *peer);
        if peers != self.peers {
            let (named, announced) = peers.split_at(named);
            self.lan.set_named(named, announced);
            self.setup.peers.send_replace(peers.clone());
            self.peers = peers;
        }
        if caches != self.caches {
            (self.setup.caches)(caches.clone());
            self.caches = caches;
        }
    }

    /// Of `announced`, those that broadcast does not reach: the others are asked anyway.
    fn unheard(&self, mut announced: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if announced.is_empty() {
            return announced;
        }
        for peer in self.lan.peers() {
            let is_heard = peer.heard.is_some_and(|ago| ago < self.started.elapsed());
            if is_heard && peer.is_live && !peer.is_configured {
                announced.retain(|address| *address != peer.address);
            }
        }
        announced
    }
}

/// Drops what has the key of an earlier one.
fn keep_first<T, K: PartialEq>(list: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut kept: Vec<K> = Vec::with_capacity(list.len());
    list.retain(|one| {
        let key = key(one);
        let is_new = !kept.contains(&key);
        if is_new {
            kept.push(key);
        }
        is_new
    });
}
