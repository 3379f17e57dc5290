//! The bytes of one connection, between the socket and hyper: how much went out, and one
//! correction. Hyper itself answers what it cannot parse, with a 4xx of its choice; Nix fails
//! a whole build at such an answer for a narinfo, so on loopback it becomes a 404.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};

const NOT_FOUND: &[u8] =
    b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What the service and the watcher of a connection know of it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes written to the socket.
    pub(super) written: AtomicU64,
    /// NARs for the LAN on their way, which have a minimum rate.
    pub(super) lan_nars: AtomicU64,
    asked: AtomicBool,
    ask: Notify,
}

impl Progress {
    pub(super) fn request_begins(&self) {
        if !self.asked.swap(true, SeqCst) {
            self.ask.notify_waiters();
        }
    }

    /// Returns once the connection has had a request.
    pub(super) async fn first_request(&self) {
        let ask = self.ask.notified();
        if !self.asked.load(SeqCst) {
            ask.await;
        }
    }
}

/// Marks a NAR for the LAN, from its head to its last byte.
pub(super) struct NarUnderWay(Arc<Progress>);

impl NarUnderWay {
    pub(super) fn new(progress: Arc<Progress>) -> Self {
        progress.lan_nars.fetch_add(1, Relaxed);
        Self(progress)
    }
}

impl Drop for NarUnderWay {
    fn drop(&mut self) {
        self.0.lan_nars.fetch_sub(1, Relaxed);
    }
}

/// A socket as hyper sees it.
pub(super) struct Watched {
    stream: TcpStream,
    progress: Arc<Progress>,
    loopback: bool,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, progress: Arc<Progress>, loopback: bool) -> Self {
        Self {
            stream,
            progress,
            loopback,
        }
    }

    /// Whether `bytes` begin an error answer that the service did not make: those of the
    /// service all have a content type, hyper's own have no content.
    fn is_hypers_own_error(&self, bytes: &[u8]) -> bool {
        let has_type = |head: &[u8]| {
            head.windows(13)
                .any(|name| name.eq_ignore_ascii_case(b"content-type:"))
        };
        self.loopback && bytes.starts_with(b"HTTP/1.1 4") && !has_type(bytes)
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.progress.written.fetch_add(*bytes as u64, Relaxed);
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_hypers_own_error(bytes) {
            // Nothing is before it in the socket's buffer, so these few bytes go out in one.
            return Pin::new(&mut self.stream)
                .poll_write(context, NOT_FOUND)
                .map_ok(|_| bytes.len());
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if pieces
            .first()
            .is_some_and(|first| self.is_hypers_own_error(first))
        {
            let all = pieces.iter().map(|piece| piece.len()).sum();
            return Pin::new(&mut self.stream)
                .poll_write(context, NOT_FOUND)
                .map_ok(|_| all);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
