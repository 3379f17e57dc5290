//! The connections that are kept open for the next request, and given up together.
//!
//! One that was made from an address that is not ours any more hangs: what is sent on it goes
//! nowhere, and nobody says so. Over another network the same address may be another machine.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use reqwest::RequestBuilder;

use crate::protocol::PeerAddr;

/// A peer whose last answer is no older than this has working connections.
const JUST_ANSWERED: Duration = Duration::from_secs(1);

/// Peers whose last answer is remembered.
const MOST_ANSWERED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Connections are given up at most so often because a request on one of them had no answer: a
/// slow peer must not cost all others their connections.
const GIVEN_UP_EVERY: Duration = Duration::from_secs(1);

/// So many requests in a row must be answered on fresh connections first: a few may have lost a
/// packet each, and new connections cost packets, too.
const FRESH_IN_A_ROW: u32 = 4;

/// Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    current: Arc<RwLock<Current>>,
    answered: Arc<Mutex<LruCache<PeerAddr, Instant>>>,
    /// Requests that a fresh connection answered first, since a pooled one did.
    fresh_in_a_row: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Current {
    pooled: reqwest::Client,
    /// Opens a connection for each request and keeps none.
    unpooled: reqwest::Client,
    /// Interruptions of our networks before the pooled connections were made.
    interruptions: u64,
    given_up: Option<Instant>,
}

/// Which connection a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// One that is open already, if there is one.
    Pooled,
    /// A new one.
    Fresh,
}

impl Connections {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let current = Current {
            pooled: client(usize::MAX)?,
            unpooled: client(0)?,
            interruptions: 0,
            given_up: None,
        };
        Ok(Self {
            current: Arc::new(RwLock::new(current)),
            answered: Arc::new(Mutex::new(LruCache::new(MOST_ANSWERED))),
            fresh_in_a_row: Arc::default(),
        })
    }

    /// `peer` has answered a request on a connection of that kind.
    pub(super) fn record_answer(&self, peer: PeerAddr, connection: Connection) {
        if connection == Connection::Pooled {
            self.fresh_in_a_row.store(0, Ordering::Relaxed);
        }
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.put(peer, Instant::now());
    }

    /// Whether `peer` answered a moment ago, so that what has no answer yet is slow and not lost.
    pub(super) fn has_just_answered(&self, peer: PeerAddr) -> bool {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let at = answered.get(&peer);
        at.is_some_and(|at| at.elapsed() < JUST_ANSWERED)
    }

    pub(super) fn get(&self, connection: Connection, url: String) -> RequestBuilder {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        match connection {
            Connection::Pooled => current.pooled.get(url),
            Connection::Fresh => current.unpooled.get(url),
        }
    }

    /// A request was answered on a fresh connection and not on a pooled one.
    pub(super) fn record_fresh_was_first(&self) {
        let before = self.fresh_in_a_row.fetch_add(1, Ordering::Relaxed);
        if before + 1 >= FRESH_IN_A_ROW {
            self.give_up_pooled();
        }
    }

    /// The pooled connections may lead nowhere.
    pub(super) fn give_up_pooled(&self) {
        let now = Instant::now();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let is_early = |at| now.duration_since(at) < GIVEN_UP_EVERY;
        if !current.given_up.is_some_and(is_early) {
            current.given_up = Some(now);
            current.replace_pool();
        }
    }

    /// Lets no request from now on use a connection from before the last of so many
    /// interruptions. Those under way go on with theirs.
    pub(super) fn renew(&self, interruptions: u64) {
        let is_current = |current: &Current| current.interruptions >= interruptions;
        if is_current(&self.current.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if is_current(&current) {
            return;
        }
        current.interruptions = interruptions;
        current.replace_pool();
    }
}

impl Current {
    fn replace_pool(&mut self) {
        match client(usize::MAX) {
            Ok(pooled) => self.pooled = pooled,
            Err(error) => log::debug!("connections to peers are kept: {error}"),
        }
    }
}

/// A client that ignores proxies of the environment, follows no redirect, decodes nothing and
/// speaks HTTP/1.1. It keeps so many idle connections to each peer.
fn client(idle_connections: usize) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(super::CONNECT_TIMEOUT)
        .pool_max_idle_per_host(idle_connections)
        .pool_idle_timeout(super::IDLE_CONNECTION_TIMEOUT)
        .dns_resolver(super::address::OnlyOurNames)
        .build()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// Answers each request on each connection; what it accepted is counted.
    fn server() -> (String, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let accepted = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&accepted);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    for line in lines.map_while(Result::ok) {
                        if line.is_empty() {
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                            stream.write_all(answer).unwrap();
                        }
                    }
                });
            }
        });
        (url, accepted)
    }

    #[tokio::test]
    async fn an_interruption_costs_a_new_connection_and_nothing_else_does() {
        let (url, accepted) = server();
        let connections = Connections::new().unwrap();
        for (interruptions, expected) in [(0, 1), (0, 1), (1, 2), (1, 2), (0, 2), (5, 3)] {
            connections.clone().renew(interruptions);
            get(&connections, Connection::Pooled, &url).await;
            assert_eq!(accepted.load(Ordering::Relaxed), expected);
        }
    }

    #[tokio::test]
    async fn a_fresh_connection_is_used_once_and_pooled_ones_can_be_given_up() {
        let (url, accepted) = server();
        let connections = Connections::new().unwrap();
        for (connection, expected) in [
            (Connection::Pooled, 1),
            (Connection::Fresh, 2),
            (Connection::Fresh, 3),
            (Connection::Pooled, 3),
        ] {
            get(&connections, connection, &url).await;
            assert_eq!(accepted.load(Ordering::Relaxed), expected);
        }
        for _ in 0..2 {
            connections.give_up_pooled();
            get(&connections, Connection::Pooled, &url).await;
            assert_eq!(accepted.load(Ordering::Relaxed), 4, "not twice in a second");
        }
    }

    async fn get(connections: &Connections, connection: Connection, url: &str) {
        let response = connections.get(connection, url.to_owned()).send().await;
        response.unwrap().bytes().await.unwrap();
    }
}
