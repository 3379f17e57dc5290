//! The connections that are kept open for the next request, and given up together.
//!
//! One that was made from an address that is not ours any more hangs: what is sent on it goes
//! nowhere, and nobody says so. Over another network the same address may be another machine.

use std::sync::{Arc, PoisonError, RwLock};

use reqwest::RequestBuilder;

/// Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<RwLock<Current>>);

#[derive(Debug)]
struct Current {
    http: reqwest::Client,
    /// Interruptions of our networks before these connections were made.
    interruptions: u64,
}

impl Connections {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let current = Current {
            http: client()?,
            interruptions: 0,
        };
        Ok(Self(Arc::new(RwLock::new(current))))
    }

    pub(super) fn get(&self, url: String) -> RequestBuilder {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.http.get(url)
    }

    /// Lets no request from now on use a connection from before the last of so many
    /// interruptions. Those under way go on with theirs.
    pub(super) fn renew(&self, interruptions: u64) {
        let is_current = |current: &Current| current.interruptions >= interruptions;
        if is_current(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if is_current(&current) {
            return;
        }
        current.interruptions = interruptions;
        match client() {
            Ok(http) => current.http = http,
            Err(error) => log::debug!("connections to peers are kept: {error}"),
        }
    }
}

/// A client that ignores proxies of the environment, follows no redirect, decodes nothing and
/// speaks HTTP/1.1.
fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(super::CONNECT_TIMEOUT)
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
            let answer = connections.get(url.clone()).send().await.unwrap();
            answer.bytes().await.unwrap();
            assert_eq!(accepted.load(Ordering::Relaxed), expected);
        }
    }
}
