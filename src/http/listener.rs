//! Accepts connections and ends them: limits, clocks, and a stop that loses no request.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App,
    access::Client,
    activity::LoopbackConnection,
    connection::{NarUnderWay, Progress, Watched},
    places::Place,
};

/// Nix uses an idle connection again for up to 90 s; it must not find it closed.
const LOOPBACK_HEAD_TIMEOUT: Duration = Duration::from_secs(100);
/// Others may be idle, or take to send a request, for this long.
const LAN_HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest request head, in bytes.
const HEAD_BYTES: usize = 16 << 10;

/// A peer that takes its NAR more slowly than this holds a slot for nothing.
const SLOWEST_WINDOW: Duration = Duration::from_secs(30);
const SLOWEST_BYTES: u64 = 64 << 10;

/// A machine of the LAN that acknowledges nothing for this long is gone.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// With no descriptor or memory left for one more connection, this long for others to end.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);

/// How a listener and its connections are told to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// No new connections; those that are open finish their answer.
    pub drain: CancellationToken,
    /// The grace period is over: open connections are cut.
    pub cut: CancellationToken,
    /// The connections; empty when all have ended.
    pub connections: TaskTracker,
}

/// A listener that can never accept again.
#[derive(Debug, thiserror::Error)]
#[error("cannot accept connections at {address}")]
pub struct ListenerError {
    address: String,
    #[source]
    source: io::Error,
}

/// Accepts until told to stop. What peers do never ends it; a broken socket does.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: Stop) -> Result<(), ListenerError> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.drain.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => accept(stream, address, &app, &stop),
            Err(error) => match Trouble::of(&error) {
                Trouble::Connection => {}
                Trouble::Exhausted => {
                    log::debug!("no room for a connection: {error}");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                Trouble::Listener => {
                    let address = listener
                        .local_addr()
                        .map_or_else(|_| "?".into(), |address| address.to_string());
                    return Err(ListenerError {
                        address,
                        source: error,
                    });
                }
            },
        }
    }
}

/// What an error of accept(2) is about.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// The one connection, or the network on its way: go on.
    Connection,
    /// Descriptors or memory: go on a little later.
    Exhausted,
    /// The socket itself.
    Listener,
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => {
                Self::Listener
            }
            _ => Self::Connection,
        }
    }
}

fn accept(stream: TcpStream, address: SocketAddr, app: &Arc<App>, stop: &Stop) {
    let client = Client::new(address);
    let holds = if client.is_loopback() {
        Holds::Loopback(app.activity.connect_loopback())
    } else if let Some(place) = app.admit_lan(client.address.ip()) {
        Holds::Lan(place)
    } else {
        app.counters.shed();
        return;
    };
    prepare(&stream, client);
    stop.connections.spawn(converse(
        stream,
        client,
        Arc::clone(app),
        holds,
        stop.clone(),
    ));
}

/// What a connection holds until it ends.
enum Holds {
    Loopback(LoopbackConnection),
    Lan(#[expect(dead_code, reason = "free again when dropped")] Place),
}

impl Holds {
    fn loopback(&self) -> Option<&LoopbackConnection> {
        match self {
            Self::Loopback(connection) => Some(connection),
            Self::Lan(_) => None,
        }
    }
}

fn prepare(stream: &TcpStream, client: Client) {
    let socket = socket2::SockRef::from(stream);
    let user_timeout = if client.is_loopback() {
        None
    } else {
        Some(GONE_AFTER)
    };
    // A socket that refuses an option still carries bytes.
    if let Err(error) = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_user_timeout(user_timeout))
    {
        log::debug!("socket options for {}: {error}", client.address);
    }
}

/// One connection, from its first byte to its last.
async fn converse(stream: TcpStream, client: Client, app: Arc<App>, holds: Holds, stop: Stop) {
    let progress = Arc::new(Progress::default());
    let holds = Arc::new(holds);
    let loopback = client.is_loopback();
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&progress), loopback));
    let service = service_fn(|request| {
        progress.request_begins();
        let app = Arc::clone(&app);
        let progress = Arc::clone(&progress);
        let holds = Arc::clone(&holds);
        // Hyper keeps room for one answer in each connection, also in one that never asks.
        Box::pin(async move {
            let answer = app.respond(client, holds.loopback(), request).await;
            let is_nar = answer.headers().contains_key(super::answer::PEER);
            let pace = (is_nar && !loopback).then(|| NarUnderWay::new(progress));
            Ok::<_, std::convert::Infallible>(answer.map(|body| body.at_pace(pace)))
        })
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // A client may close its half once it has asked.
        .half_close(true)
        .header_read_timeout(if loopback {
            LOOPBACK_HEAD_TIMEOUT
        } else {
            LAN_HEAD_TIMEOUT
        })
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = too_slow(&progress) => return log::debug!(peer:% = client.address.ip(); "too slow, cut"),
        () = stop.drain.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            // Accepted but not yet asked: the client has been promised an answer.
            tokio::select! {
                biased;
                () = progress.first_request() => {}
                () = stop.cut.cancelled() => return,
                _ = connection.as_mut() => return,
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = stop.cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        log::debug!(peer:% = client.address.ip(); "connection of {}: {error}", client.address);
    }
}

/// Returns when a NAR for the LAN goes out more slowly than the minimum rate.
async fn too_slow(progress: &Progress) {
    let mut before = 0;
    let mut under_way = false;
    loop {
        tokio::time::sleep(SLOWEST_WINDOW).await;
        let written = progress.written.load(Relaxed);
        let nar = progress.lan_nars.load(Relaxed) > 0;
        if nar && under_way && written - before < SLOWEST_BYTES {
            return;
        }
        (before, under_way) = (written, nar);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_of_a_connection_ends_the_listener() {
        for errno in [
            libc::ECONNABORTED,
            libc::EPERM,
            libc::EPROTO,
            libc::ENETDOWN,
            libc::EHOSTUNREACH,
            libc::EINTR,
            libc::ETIMEDOUT,
            libc::ENONET,
            libc::ENETUNREACH,
            libc::ECONNRESET,
            libc::EAGAIN,
        ] {
            assert_eq!(
                Trouble::of(&io::Error::from_raw_os_error(errno)),
                Trouble::Connection,
                "{errno}"
            );
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(
                Trouble::of(&io::Error::from_raw_os_error(errno)),
                Trouble::Exhausted,
                "{errno}"
            );
        }
        assert_eq!(
            Trouble::of(&io::Error::from_raw_os_error(libc::EBADF)),
            Trouble::Listener
        );
    }
}
