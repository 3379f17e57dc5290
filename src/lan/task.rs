//! The one task: receives, and keeps time.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time};
use tokio_util::sync::CancellationToken;

use super::{
    LanError,
    errnos::Fault,
    shared::Shared,
    sockets::{Received, Socket},
};
use crate::protocol::discovery::PeerRequest;

/// Datagrams taken from one socket before the others, the clock and the stop are looked at.
const BATCH: usize = 64;

/// Room for one datagram: more than an Ethernet frame carries.
const BUFFER_BYTES: usize = 2_048;

/// Pause after a batch in which every receive failed.
const PAUSE: Duration = Duration::from_millis(10);

/// The receiving end of the LAN; [`super::open`] makes it.
#[derive(Debug)]
pub struct Lan {
    shared: Arc<Shared>,
    requests: mpsc::Sender<PeerRequest>,
    /// The socket that is looked at first.
    next: usize,
}

/// What came of a batch.
enum Batch {
    Read,
    Failed,
}

impl Lan {
    pub(super) fn new(shared: Arc<Shared>, requests: mpsc::Sender<PeerRequest>) -> Self {
        Self {
            shared,
            requests,
            next: 0,
        }
    }

    /// Runs until `stop`; ends by itself only if a socket is broken. Datagrams that were not
    /// read stay in the sockets. All lookups end with it.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LanError> {
        let closing = Closing(Arc::clone(&self.shared));
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let now = Instant::now();
            let deadline = closing.0.lock().core.deadline(now);
            let timer = async {
                match deadline {
                    // A timer takes up to a millisecond, also if it is due.
                    Some(at) if at <= now => {}
                    Some(at) => time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // Requests that are ready now are read first: what they look up goes out together.
                () = closing.0.wake.notified() => tokio::task::yield_now().await,
                // An answer that came in time counts, however late it is read.
                () = timer => self.read_all(&mut buffer)?,
                (socket, ready) = self.readable() => {
                    let batch = match ready {
                        Ok(()) => self.read(socket, &mut buffer)?,
                        Err(source) => self.failure(socket, source)?,
                    };
                    if let Batch::Failed = batch {
                        time::sleep(PAUSE).await;
                    }
                }
            }
            let mut state = closing.0.lock();
            closing.0.expire(&mut state);
            for ping in state.pings.drain(..) {
                // The asker may have given up.
                ping.send(()).ok();
            }
        }
    }

    /// The next socket with something to read, each in its turn.
    async fn readable(&mut self) -> (usize, io::Result<()>) {
        let sockets = &self.shared.sockets;
        let count = sockets.len();
        let first = self.next;
        let ready = poll_fn(|context| {
            for offset in 0..count {
                let index = (first + offset) % count;
                if let Poll::Ready(ready) = sockets[index].poll_readable(context) {
                    return Poll::Ready((index, ready));
                }
            }
            Poll::Pending
        })
        .await;
        self.next = (ready.0 + 1) % count;
        ready
    }

    /// What has come in on any socket by now, a batch of each.
    fn read_all(&self, buffer: &mut [u8]) -> Result<(), LanError> {
        for socket in 0..self.shared.sockets.len() {
            self.take(socket, buffer, Socket::receive_now)?;
        }
        Ok(())
    }

    fn read(&self, socket: usize, buffer: &mut [u8]) -> Result<Batch, LanError> {
        self.take(socket, buffer, Socket::receive)
    }

    fn take(
        &self,
        socket: usize,
        buffer: &mut [u8],
        receive: impl Fn(&Socket, &mut [u8]) -> io::Result<Received>,
    ) -> Result<Batch, LanError> {
        let mut state = self.shared.lock();
        let mut batch = Batch::Failed;
        for _ in 0..BATCH {
            match receive(&self.shared.sockets[socket], buffer) {
                Ok(received) => {
                    batch = Batch::Read;
                    self.shared.receive(
                        &mut state,
                        socket,
                        &received,
                        &buffer[..received.length],
                        &self.requests,
                    );
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Batch::Read),
                Err(error) => {
                    self.failure(socket, error)?;
                }
            }
        }
        Ok(batch)
    }

    fn failure(&self, socket: usize, source: io::Error) -> Result<Batch, LanError> {
        self.shared.io.receive_errors.add(1);
        if Fault::of(&source) == Fault::Broken {
            let address = self.shared.sockets[socket].local();
            return Err(LanError::Receive { address, source });
        }
        Ok(Batch::Failed)
    }
}

/// Ends the lookups when the task ends, however it does.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}
