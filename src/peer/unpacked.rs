//! A NAR out of a zstd file (RFC 8878), as it comes from a plain binary cache.
//!
//! What the file claims of itself counts for nothing: no window larger than [`WINDOW_BYTES`], no
//! byte more than the NAR has, no file longer than announced or than such a NAR can need. The
//! decoder gets no more than a piece at a time and lets others work in between.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::PeerError;
use crate::protocol::PeerAddr;

/// The largest window that a decoder has to support (RFC 8878, section 3.1.1.1.2). Nix uses
/// 2 MiB at its usual level and 8 MiB at level 19.
const WINDOW_BYTES: u64 = 8 << 20;

/// Memory of all decoders together: their windows.
const MEMORY_BYTES: u64 = 64 << 20;

/// What a decoder takes beside its window: its tables, a block, and what it hands out.
const DECODER_BYTES: u64 = 512 << 10;

/// What is unpacked at once.
const PIECE_BYTES: usize = 128 << 10;

/// After so much work others on the same thread have their turn: a few milliseconds.
const TURN_BYTES: usize = 1 << 20;

/// The smallest window that the decoder can be held to.
const LEAST_WINDOW_LOG: u32 = 10;

/// What a file may have beyond its NAR, where it is not told how long it is: frames of their own
/// for what does not get smaller.
const SPARE_BYTES: u64 = 1 << 20;

/// A file, as it comes.
pub(super) type Raw = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send + Sync>>;

/// The memory for decoders. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Semaphore>);

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(permits(MEMORY_BYTES) as usize)))
    }
}

/// Memory is counted in KiB: a semaphore hands out 32 bits at once.
fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// The NAR in a file: exactly as many bytes as it has, or an error.
pub(super) struct Unpacked {
    peer: PeerAddr,
    raw: Raw,
    /// What came and is not unpacked yet.
    rest: Bytes,
    decoder: Decoder<'static>,
    /// The decoder may have more, without more of the file.
    is_full: bool,
    /// Nothing is missing of what has come so far.
    at_frame_end: bool,
    /// Bytes of the file so far, and the most it may have.
    received: u64,
    most: u64,
    /// What the cache says that the file has.
    file_size: Option<u64>,
    size: u64,
    /// Bytes of the NAR still to come.
    left: u64,
    scratch: Box<[u8]>,
    /// Work since others had their turn.
    done: usize,
    _memory: OwnedSemaphorePermit,
}

impl Unpacked {
    /// Begins with the file `raw`, which holds a NAR of `size` bytes and may have a known size
    /// itself. Waits for its beginning, and for the memory.
    pub(super) async fn open(
        peer: PeerAddr,
        mut raw: Raw,
        file_size: Option<u64>,
        size: u64,
        memory: &Memory,
    ) -> Result<Self, PeerError> {
        let first = match raw.next().await {
            Some(Ok(first)) => first,
            Some(Err(source)) => return Err(PeerError::Broken { peer, source }),
            None => Bytes::new(),
        };
        let packed = |source| PeerError::Packed { peer, source };
        let window = window(&first).unwrap_or(WINDOW_BYTES);
        if window > WINDOW_BYTES {
            let source = io::Error::other(format!("its window has {window} bytes"));
            return Err(packed(source));
        }
        let log = window
            .next_power_of_two()
            .trailing_zeros()
            .max(LEAST_WINDOW_LOG);
        let mut decoder = Decoder::new().map_err(packed)?;
        // Frames that follow are held to what the first one has been given.
        decoder
            .set_parameter(DParameter::WindowLogMax(log))
            .map_err(packed)?;
        let needed = DECODER_BYTES + size.min(1 << log);
        let permit = Arc::clone(&memory.0).acquire_many_owned(permits(needed));
        let permit = permit
            .await
            .map_err(|closed| packed(io::Error::other(closed)))?;
        let mut unpacked = Self {
            peer,
            raw,
            rest: Bytes::new(),
            decoder,
            is_full: false,
            at_frame_end: false,
            received: 0,
            most: file_size.unwrap_or(size + size / 16 + SPARE_BYTES),
            file_size,
            size,
            left: size,
            scratch: vec![0; PIECE_BYTES].into(),
            done: 0,
            _memory: permit,
        };
        unpacked.came(first)?;
        Ok(unpacked)
    }

    /// Takes in more of the file.
    fn came(&mut self, piece: Bytes) -> Result<(), PeerError> {
        self.received += piece.len() as u64;
        self.rest = piece;
        if self.received > self.most {
            return Err(self.length(self.most, self.received));
        }
        Ok(())
    }

    fn length(&self, expected: u64, found: u64) -> PeerError {
        PeerError::Length {
            peer: self.peer,
            expected,
            found,
        }
    }

    /// What is wrong with a file that has ended here.
    fn end(&self) -> Result<(), PeerError> {
        match self.file_size {
            Some(expected) if expected != self.received => {
                Err(self.length(expected, self.received))
            }
            _ if self.left > 0 => Err(self.length(self.size, self.size - self.left)),
            _ if !self.at_frame_end => Err(PeerError::Packed {
                peer: self.peer,
                source: io::ErrorKind::UnexpectedEof.into(),
            }),
            _ => Ok(()),
        }
    }

    /// Unpacks one piece of what has come; it may turn out to be nothing.
    fn unpack(&mut self) -> Result<Bytes, PeerError> {
        // One byte more than there may be shows that there is more.
        let room = usize::try_from(self.left + 1).unwrap_or(usize::MAX);
        let room = room.min(PIECE_BYTES);
        let output = &mut self.scratch[..room];
        let status = self
            .decoder
            .run_on_buffers(&self.rest, output)
            .map_err(|source| PeerError::Packed {
                peer: self.peer,
                source,
            })?;
        self.rest.advance(status.bytes_read);
        self.at_frame_end = status.remaining == 0;
        self.is_full = status.bytes_written == room && !self.at_frame_end;
        self.done += status.bytes_read + status.bytes_written;
        let found = status.bytes_written as u64;
        let Some(left) = self.left.checked_sub(found) else {
            return Err(self.length(self.size, self.size - self.left + found));
        };
        self.left = left;
        Ok(Bytes::copy_from_slice(
            &self.scratch[..status.bytes_written],
        ))
    }
}

impl Stream for Unpacked {
    type Item = Result<Bytes, PeerError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.done >= TURN_BYTES {
                self.done = 0;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.rest.is_empty() && !self.is_full {
                let came = match ready!(self.raw.poll_next_unpin(context)) {
                    Some(Ok(piece)) => self.came(piece),
                    Some(Err(source)) => Err(PeerError::Broken {
                        peer: self.peer,
                        source,
                    }),
                    None => return Poll::Ready(self.end().err().map(Err)),
                };
                if let Err(error) = came {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            match self.unpack() {
                Ok(piece) if piece.is_empty() => {}
                unpacked => return Poll::Ready(Some(unpacked)),
            }
        }
    }
}

/// The window that a file needs, by the header of its first frame (RFC 8878, section 3.1.1.1);
/// none if it begins with something else, or too little of it has come.
fn window(file: &[u8]) -> Option<u64> {
    let rest = file.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (&descriptor, rest) = rest.split_first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let (exponent, mantissa) = (rest.first()? >> 3, u64::from(rest.first()? & 7));
        let base = 1_u64 << (10 + exponent);
        return Some(base + base / 8 * mantissa);
    }
    let (_dictionary, rest) = rest.split_at_checked([0, 1, 2, 4][usize::from(descriptor & 3)])?;
    let number = |bytes: usize| {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(rest.get(..bytes)?);
        Some(u64::from_le_bytes(number))
    };
    // The window is the content.
    match descriptor >> 6 {
        0 => number(1),
        1 => Some(number(2)? + 256),
        2 => number(4),
        _ => number(8),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use zstd::stream::raw::{CParameter, Encoder};

    use super::*;

    fn peer() -> PeerAddr {
        "127.0.0.1:1".parse().expect("peer")
    }

    fn raw(file: &[u8], cut: usize) -> Raw {
        let pieces: Vec<_> = file
            .chunks(cut)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        Box::pin(futures_util::stream::iter(pieces))
    }

    /// Packs as a stream, so that the header tells no size.
    fn pack(nar: &[u8], level: i32, window_log: Option<u32>) -> Vec<u8> {
        let mut encoder = Encoder::new(level).expect("encoder");
        if let Some(log) = window_log {
            encoder
                .set_parameter(CParameter::WindowLog(log))
                .expect("window");
        }
        let mut file = Vec::new();
        let mut rest = nar;
        let mut output = vec![0; 1 << 16];
        while !rest.is_empty() {
            let status = encoder.run_on_buffers(rest, &mut output).expect("packing");
            rest = &rest[status.bytes_read..];
            file.extend_from_slice(&output[..status.bytes_written]);
        }
        loop {
            let mut out = zstd::stream::raw::OutBuffer::around(&mut output[..]);
            let left = encoder.finish(&mut out, true).expect("end");
            let written = out.pos();
            file.extend_from_slice(&output[..written]);
            if left == 0 {
                return file;
            }
        }
    }

    async fn unpack(
        file: &[u8],
        cut: usize,
        file_size: Option<u64>,
        size: u64,
    ) -> Result<Vec<u8>, PeerError> {
        let memory = Memory::default();
        let mut unpacked = Unpacked::open(peer(), raw(file, cut), file_size, size, &memory).await?;
        let mut nar = Vec::new();
        while let Some(piece) = unpacked.next().await {
            nar.extend_from_slice(&piece?);
        }
        assert_eq!(nar.len() as u64, size, "exactly what was asked for");
        Ok(nar)
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("runtime")
            .block_on(future)
    }

    fn text(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at % 253 * at / 977) as u8).collect()
    }

    #[tokio::test]
    async fn what_was_packed_comes_out_however_it_is_cut() {
        let nar = text(3_000_000);
        let file = pack(&nar, 3, None);
        let file_size = Some(file.len() as u64);
        for cut in [1_000, 65_536, file.len()] {
            let unpacked = unpack(&file, cut, file_size, nar.len() as u64).await;
            assert!(unpacked.expect("NAR") == nar, "cut {cut}");
        }
        let small = zstd::stream::raw::Encoder::new(3).map(|_| pack(b"nar", 19, None));
        let small = small.expect("encoder");
        for cut in [1, 2, 5, 100] {
            assert_eq!(unpack(&small, cut, None, 3).await.expect("NAR"), b"nar");
        }
    }

    #[tokio::test]
    async fn frames_that_follow_each_other_are_one_nar() {
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let parts = [
            &pack(b"one ", 3, None)[..],
            &skipped,
            &pack(b"two", 3, None),
            &skipped,
        ];
        let file = parts.concat();
        assert_eq!(unpack(&file, 7, None, 7).await.expect("NAR"), b"one two");
        let led = [&skipped[..], &pack(b"one", 3, None)].concat();
        assert_eq!(unpack(&led, 100, None, 3).await.expect("NAR"), b"one");
    }

    #[tokio::test]
    async fn a_bomb_ends_with_the_first_byte_too_many() {
        let file = pack(&vec![0; 64 << 20], 3, None);
        assert!(file.len() < 100_000, "a bomb");
        for size in [1, 1_000_000, (64 << 20) - 1] {
            let mut unpacked =
                Unpacked::open(peer(), raw(&file, 1 << 14), None, size, &Memory::default())
                    .await
                    .expect("begin");
            let mut got = 0;
            let error = loop {
                match unpacked.next().await.expect("an error first") {
                    Ok(piece) => got += piece.len() as u64,
                    Err(error) => break error,
                }
            };
            assert!(got <= size);
            let PeerError::Length { found, .. } = error else {
                panic!("{error}");
            };
            assert!(found <= size + 1 && found > size, "{found} of {size}");
        }
    }

    #[tokio::test]
    async fn a_wrong_file_is_an_error() {
        let nar = text(100_000);
        let file = pack(&nar, 3, None);
        let size = nar.len() as u64;
        let right = Some(file.len() as u64);
        let short = &file[..file.len() - 1];
        let junk = [&file[..], b"junk"].concat();
        let mut damaged = file.clone();
        // The header of its first block.
        damaged[6..9].fill(0xff);
        for (what, file, file_size, size) in [
            ("truncated", short, None, size),
            (
                "truncated as announced",
                short,
                Some(short.len() as u64),
                size,
            ),
            ("shorter than announced", short, right, size),
            ("longer than announced", &junk, right, size),
            ("with junk behind it", &junk, None, size),
            ("of a shorter NAR", &file, right, size + 1),
            ("damaged", &damaged, None, size),
            ("empty", b"", None, size),
            ("not zstd", &nar, None, size),
        ] {
            let unpacked = unpack(file, 999, file_size, size).await;
            assert!(unpacked.is_err(), "{what}");
        }
    }

    #[tokio::test]
    async fn a_window_larger_than_eight_mib_is_refused_before_it_takes_memory() {
        let nar = text(1_000_000);
        let size = nar.len() as u64;
        for (log, is_taken) in [(17, true), (23, true), (24, false), (27, false)] {
            let file = pack(&nar, 3, Some(log));
            assert_eq!(window(&file), Some(1 << log));
            let unpacked = unpack(&file, 4096, None, size).await;
            assert_eq!(unpacked.is_ok(), is_taken, "2^{log}");
        }
        // A frame behind the first one gets no more than that was given.
        let file = [pack(&nar, 3, Some(17)), pack(&nar, 3, Some(24))].concat();
        assert!(unpack(&file, 4096, None, 2 * size).await.is_err());
        let hidden = [
            &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0][..],
            &pack(&nar, 3, Some(24)),
        ]
        .concat();
        assert!(unpack(&hidden, 4096, None, size).await.is_err());
    }

    #[tokio::test]
    async fn empty_frames_without_end_are_an_end() {
        let empty = pack(b"", 3, None);
        let frames: Vec<u8> = empty.repeat(400_000);
        let error = unpack(&frames, 1 << 16, None, 10)
            .await
            .expect_err("too many");
        assert!(matches!(error, PeerError::Length { .. }), "{error}");
    }

    #[tokio::test]
    async fn so_many_windows_at_once_and_no_more() {
        let file = pack(&vec![1; 16 << 20], 3, Some(23));
        let memory = Memory::default();
        let open = || Unpacked::open(peer(), raw(&file, 1 << 14), None, 16 << 20, &memory);
        let mut opened = Vec::new();
        while let Ok(unpacked) = tokio::time::timeout(Duration::from_millis(50), open()).await {
            opened.push(unpacked.expect("begin"));
        }
        assert_eq!(opened.len(), 7);
        opened.pop();
        open().await.expect("room again");
    }

    #[test]
    fn a_window_is_read_from_the_header() {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        for (header, expected) in [
            (&[0x00, 0x00][..], Some(1024)),
            (&[0x00, 0x58], Some(2 << 20)),
            (&[0x00, 0x68], Some(8 << 20)),
            (&[0x00, 0x69], Some(9 << 20)),
            (&[0x00, 0xff], Some((1 << 41) + (1 << 38) * 7)),
            (&[0x20, 77], Some(77)),
            (&[0x60, 1, 1], Some(0x101 + 256)),
            (&[0x61, 9, 1, 1], Some(0x101 + 256)),
            (&[0xa0, 0, 0, 0, 1], Some(1 << 24)),
            (
                &[0xe3, 9, 9, 9, 9, 1, 0, 0, 0, 0, 0, 0, 1],
                Some((1 << 56) + 1),
            ),
            (&[0xa0, 0, 0, 0], None),
            (&[0x00], None),
            (&[], None),
        ] {
            assert_eq!(
                window(&[&magic[..], header].concat()),
                expected,
                "{header:x?}"
            );
        }
        assert_eq!(window(b"PK\x03\x04"), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(file: Vec<u8>, cut in 1_usize..50, size in 1_u64..1000) {
            now(unpack(&file, cut, None, size)).ok();
            now(unpack(&[&[0x28, 0xb5, 0x2f, 0xfd], &file[..]].concat(), cut, None, size)).ok();
        }
    }
}
