//! Layer 2: the UDP sockets. Carries out what [`protocol::Discovery`](crate::protocol::Discovery)
//! decides: one task receives and keeps time ([`Lan::run`]), and a cheap handle asks and
//! answers ([`LanHandle`]).
//!
//! Never waits for a socket: a datagram that cannot be sent at once is dropped and counted.
//! Never looks into the store: asks of peers go out over a bounded channel. Never logs what a
//! stranger sends.

mod changes;
mod counters;
mod dns_sd;
mod errnos;
mod handle;
mod lookup;
mod names;
mod networks;
mod shared;
mod sockets;
mod suspension;
mod task;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, sync::mpsc};

pub use counters::{Counters, IoCounters};
pub use handle::{LanHandle, PaidWait};
pub use lookup::Lookup;
pub use names::{Names, NamesSetup, TakeCaches};
pub use networks::ListInterfaces;
pub use task::Lan;

use crate::{
    config::Config,
    protocol::{
        Discovery,
        discovery::{PeerRequest, PersistedState, Settings},
    },
};
use shared::Shared;
use sockets::Socket;

/// Asks of peers that may wait for the store; further ones are dropped.
pub const MAX_REQUESTS: usize = 1_024;

/// Why the LAN cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// A socket has no address: it is not bound.
    #[error("reading the address of a UDP socket")]
    LocalAddress(#[source] io::Error),
    /// A socket refuses an option.
    #[error("preparing the UDP socket {address}")]
    Prepare {
        /// Where it is bound.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A socket is broken; no peer can cause that.
    #[error("receiving on the UDP socket {address}")]
    Receive {
        /// Where it is bound.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system gives no random numbers.
    #[error("drawing a random number")]
    Random(#[source] getrandom::Error),
}

/// Who we are to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// TCP port where we serve.
    pub http_port: u16,
    /// What an earlier process saved, and how long ago; without it everything is new.
    pub saved: Option<(PersistedState, Duration)>,
}

/// Prepares `sockets` (bound, non-blocking; none at all is fine, then every lookup ends at
/// once). Asks of peers go to `requests`, which should hold [`MAX_REQUESTS`].
/// Nothing is received before [`Lan::run`] is polled.
pub fn open(
    sockets: Vec<UdpSocket>,
    config: &Config,
    identity: Identity,
    interfaces: ListInterfaces,
    requests: mpsc::Sender<PeerRequest>,
) -> Result<(LanHandle, Lan), LanError> {
    let sockets: Result<Vec<_>, _> = sockets.into_iter().map(Socket::new).collect();
    let sockets = sockets?;
    let settings = settings(config, &sockets, identity.http_port);
    let secret = getrandom::u64().map_err(LanError::Random)?;
    let discovery = match identity.saved {
        Some((saved, asleep)) => {
            Discovery::restore(Instant::now(), settings, &saved, asleep, secret)
        }
        None => {
            let instance = getrandom::u64().map_err(LanError::Random)?;
            Discovery::new(settings, instance, secret)
        }
    };
    let shared = Arc::new(Shared::new(
        sockets,
        config.clone(),
        discovery,
        interfaces,
        identity.http_port,
    ));
    Ok((
        LanHandle::new(Arc::clone(&shared)),
        Lan::new(shared, requests),
    ))
}

/// What the state machine needs of `config`.
fn settings(config: &Config, sockets: &[Socket], http_port: u16) -> Settings {
    let bound = sockets.first().map_or(0, |socket| socket.local().port());
    let port = if config.port == 0 { bound } else { config.port };
    let discovery = &config.discovery;
    let addresses = discovery.peers.iter();
    let addresses = addresses.filter_map(|peer| peer.address(port));
    Settings {
        timeout: discovery.timeout,
        wake_timeout: discovery.wake_timeout,
        port,
        http_port,
        configured: addresses.map(crate::protocol::canonical).collect(),
    }
}
