//! What the watchdog checks: would a client get a response now? It sends a request to our own
//! socket, because a process that merely runs is of no use.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use log::warn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{MissedTickBehavior, interval},
};

use super::beat::Beat;
use crate::{
    lan::LanHandle,
    system::{journal::chain, notify::Notifier},
};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why the front door is not in order.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot ask ourselves at {address}")]
    Io {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("no answer of our own at {address} within {} s", PATIENCE.as_secs())]
    Late { address: SocketAddr },
    #[error("our own answer at {address} is not HTTP")]
    NotHttp { address: SocketAddr },
}

/// Pings the manager `every` so often as long as all is well: the tasks are alive, and every
/// listener answers a request from outside.
pub(super) async fn watch(
    every: Duration,
    addresses: Vec<SocketAddr>,
    lan: LanHandle,
    beats: Vec<Arc<Beat>>,
    notifier: Arc<Notifier>,
) {
    let mut ping = interval(every);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ping.tick().await;
        let front_door = async {
            for address in &addresses {
                probe(*address).await?;
            }
            Ok::<_, ProbeError>(())
        };
        let discovery = tokio::time::timeout(PATIENCE, lan.ping());
        match tokio::join!(front_door, discovery) {
            (Err(error), _) => warn!("not well: {}", chain(&error)),
            (Ok(()), Ok(true)) if beats.iter().all(|beat| beat.is_alive()) => notifier.watchdog(),
            (Ok(()), Ok(true)) => warn!("not well: a task hangs"),
            (Ok(()), _) => warn!("not well: discovery does not answer"),
        }
    }
}

/// Sends a request to the listener bound to `address` and waits for the first bytes of an
/// answer, by any of the ways that lead there from this machine.
pub(super) async fn probe(address: SocketAddr) -> Result<(), ProbeError> {
    let mut result = Err(ProbeError::NotHttp { address });
    for way in ways(address) {
        result = probe_at(way).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn probe_at(address: SocketAddr) -> Result<(), ProbeError> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) if answer == *b"HTTP/1.1" => Ok(()),
        Ok(Ok(_)) => Err(ProbeError::NotHttp { address }),
        Ok(Err(source)) => Err(ProbeError::Io { address, source }),
        Err(_) => Err(ProbeError::Late { address }),
    }
}

/// Where a listener bound to `address` is reached. A dual-stack one is bound to `[::]` also
/// where IPv6 is switched off and only 127.0.0.1 leads to it.
fn ways(address: SocketAddr) -> Vec<SocketAddr> {
    let at = |ip: IpAddr| {
        let mut way = address;
        way.set_ip(ip);
        way
    };
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![at(Ipv4Addr::LOCALHOST.into())],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![
                at(Ipv6Addr::LOCALHOST.into()),
                at(Ipv4Addr::LOCALHOST.into()),
            ]
        }
        _ => vec![address],
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_listener_that_only_ipv4_leads_to_is_found() {
        // Stands for a dual-stack listener on a host without ::1.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("connection");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
                .await
                .expect("answer");
        });
        let bound = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        probe(bound).await.expect("an answer");
    }

    #[tokio::test]
    async fn a_listener_that_does_not_answer_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("connection");
            stream.write_all(b"SSH-2.0-x").await.expect("answer");
        });
        probe(address).await.expect_err("no HTTP");
    }
}
