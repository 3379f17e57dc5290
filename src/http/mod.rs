//! What is served over TCP: the shared paths to the LAN, the gateway to this machine.
//!
//! | file | serves |
//! |---|---|
//! | `cache_info` | `/nix-cache-info` |
//! | `local_narinfo`, `local_nar`, `local_pieces` | `/local/…`, `/nar/…`: what this machine shares |
//! | `gateway_narinfo`, `gateway_nar` | `/HASH.narinfo`, `/v3/nar/…`, `/v2/remote/…`: what the LAN has |
//! | `status`, `metrics` | `/status`, `/metrics` |
//!
//! [`route`] says what a path asks for, [`access`] who may ask, `answer` what a failure looks
//! like, [`listener`] accepts and ends connections.

pub mod access;
pub mod activity;
mod answer;
pub mod body;
mod cache_info;
mod connection;
pub mod counters;
mod gateway_nar;
mod gateway_narinfo;
pub mod listener;
mod local_nar;
mod local_narinfo;
mod local_pieces;
mod metrics;
mod parts;
mod places;
pub mod range;
pub mod route;
mod served;
mod status;
pub mod upload;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use hyper::{Method, Request};

use crate::{
    config::Config,
    finder::{Finder, budget::Budget},
};

use access::Client;
use activity::{Activity, LoopbackConnection};
use answer::{Answer, Refusal};
use body::Body;
use counters::Counters;
use places::{Place, Places};
use route::{Audience, Route};
use upload::Upload;

/// Everything that answers need. What a reload replaces is in the [`Service`].
#[derive(Debug)]
pub struct App {
    service: RwLock<Arc<Service>>,
    /// What keeps the daemon up.
    pub activity: Activity,
    /// What was served.
    pub counters: Arc<Counters>,
    /// Open connections from the LAN.
    lan_connections: Places,
    /// NARs on their way into the LAN.
    lan_nars: Places,
    started: Instant,
    /// What is wrong although the service goes on.
    trouble: Mutex<Option<String>>,
}

/// One configuration at work.
#[derive(Debug)]
pub struct Service {
    /// The settings; the defaults when they could not be read.
    pub config: Config,
    /// Whether there is something to serve.
    pub state: State,
    budget: Budget,
    upload: Option<Arc<Upload>>,
}

/// Whether there is something to serve.
#[derive(Debug)]
pub enum State {
    /// All is well.
    Ready(Finder),
    /// Settings, keys or store are broken: nothing is shared, and every lookup is a miss, so
    /// that no Nix has to wait or fail because of us.
    Degraded {
        /// What is broken, for people.
        why: String,
    },
}

impl Service {
    /// A service by these settings.
    pub fn new(config: Config, state: State) -> Self {
        let budget = Budget::new(config.limits.buffer.bytes());
        let upload = config
            .limits
            .upload
            .map(|rate| Arc::new(Upload::new(rate.bytes())));
        Self {
            config,
            state,
            budget,
            upload,
        }
    }

    /// The finder, unless degraded.
    pub fn finder(&self) -> Option<&Finder> {
        match &self.state {
            State::Ready(finder) => Some(finder),
            State::Degraded { .. } => None,
        }
    }
}

impl App {
    /// An app that begins with `service`.
    pub fn new(service: Service, activity: Activity, counters: Arc<Counters>) -> Self {
        Self {
            service: RwLock::new(Arc::new(service)),
            activity,
            counters,
            lan_connections: Places::default(),
            lan_nars: Places::default(),
            started: Instant::now(),
            trouble: Mutex::default(),
        }
    }

    /// The service of this moment.
    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the service; requests under way finish with the old one.
    pub fn replace(&self, service: Service) {
        *self.service.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(service);
    }

    /// Says in /status what is wrong although the service goes on.
    pub fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers one request.
    async fn respond<B>(
        &self,
        client: Client,
        connection: Option<&LoopbackConnection>,
        request: Request<B>,
    ) -> Answer {
        let service = self.service();
        let path = request.uri().path();
        let audience = route::audience(path);
        let route = if client.may_use(&service.config, audience, request.uri(), request.headers()) {
            Some(Route::parse(&service.config.store.dir, path))
        } else {
            None
        };
        let open = route
            .as_ref()
            .filter(|route| route.is_work())
            .map(|_| self.activity.open(connection));
        let answer = match &route {
            None => Err(Refusal::Forbidden),
            Some(_) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                let of_nix = audience == Audience::Loopback && route::is_narinfo(path);
                Err(if of_nix {
                    Refusal::NotFound
                } else {
                    Refusal::Method
                })
            }
            Some(route) => self.answer(&service, client, route, &request).await,
        };
        let mut answer = answer.unwrap_or_else(Answer::from);
        self.counters.answered(
            route.as_ref().map_or("refused", Route::name),
            answer.status().as_u16(),
        );
        if request.method() == Method::HEAD {
            *answer.body_mut() = Body::bytes(bytes::Bytes::new());
        }
        match open {
            Some(open) => answer.map(|body| body.of(open)),
            None => answer,
        }
    }

    async fn answer<B>(
        &self,
        service: &Arc<Service>,
        client: Client,
        route: &Route,
        request: &Request<B>,
    ) -> Result<Answer, Refusal> {
        match route {
            Route::CacheInfo => Ok(cache_info::answer(service, client)),
            Route::LocalNarinfo(hash) => local_narinfo::answer(service, *hash).await,
            Route::LocalNar(hash, nar_hash) => {
                local_nar::answer(self, service, client, *hash, Some(*nar_hash), request).await
            }
            Route::LocalNarOf(path) => {
                local_nar::answer(self, service, client, path.hash(), None, request).await
            }
            Route::LocalPieces(hash, nar_hash) => {
                local_pieces::answer(service, *hash, *nar_hash, request).await
            }
            Route::Narinfo(hash) => gateway_narinfo::answer(service, *hash).await,
            Route::Nar(hash, nar_hash) => {
                gateway_nar::answer(service, *hash, Some(*nar_hash), request).await
            }
            Route::OldNar(hash) => gateway_nar::answer(service, *hash, None, request).await,
            Route::Status => Ok(status::answer(self, service)),
            Route::Metrics => Ok(metrics::answer(self, service)),
            Route::Health => Ok(answer::content("text/plain", "OK")),
            Route::Unknown => Err(Refusal::NotFound),
        }
    }

    /// The NARs that are being sent into the LAN.
    pub fn nar_streams(&self) -> usize {
        self.lan_nars.taken()
    }

    /// A place for a connection from the LAN, if there is room for one more of this address.
    fn admit_lan(&self, address: IpAddr) -> Option<Place> {
        let limit = self.service().config.limits.connections;
        let room = limit.saturating_sub(crate::config::LOOPBACK_CONNECTIONS) as usize;
        self.lan_connections
            .take(address, places::connections_of_one(room), room)
    }

    /// A place for a NAR to the LAN, if this address has not got too many.
    fn admit_lan_nar(&self, address: IpAddr) -> Option<Place> {
        self.lan_nars.take(address, places::NARS_OF_ONE, usize::MAX)
    }
}
