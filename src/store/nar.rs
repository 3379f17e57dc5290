//! NARs of local paths: any range of one as a stream of chunks.
//!
//! Each chunk is filled by a job of its own on the runtime's blocking threads, so a slow consumer
//! holds no thread, and dropping the stream ends the reading at the chunk it is at.

use std::{
    fmt,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use nix::{
    fcntl::{OFlag, PosixFadviseAdvice, openat, posix_fadvise},
    sys::stat::Mode,
};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    directories::Directories,
    layouts::{Key, Layouts},
    nar_error::NarError,
    tree::{self, Root, Tree},
};
use crate::format::{
    PathInfo, StorePath,
    nar::{DirectoryId, FileId, Layout, Segment},
};

/// Most bytes in one item of a [`NarStream`].
pub const CHUNK_BYTES: usize = 256 << 10;

/// Memory that a [`NarStream`] uses for content: the chunk that its consumer has, and the next
/// one, which is read meanwhile.
pub const STREAM_BYTES: usize = 2 * CHUNK_BYTES;

/// From this size on the kernel is told that a file will be read to its end.
const LARGE_FILE_BYTES: u64 = 1 << 20;

/// The NAR of a local path, its tree walked and its size checked.
pub struct Nar {
    path: StorePath,
    layout: Arc<Layout>,
    root: Root,
    /// Where the layout may be kept.
    kept: (Key, Weak<Layouts>),
}

impl Nar {
    /// Walks the tree, unless its layout is known. Blocks.
    pub(super) fn open(
        store_dir: &Path,
        info: &PathInfo,
        layouts: &Arc<Layouts>,
    ) -> Result<Self, NarError> {
        let key = Key::of(info);
        let kept = (key, Arc::downgrade(layouts));
        let path = info.path.clone();
        let known = layouts.find(key);
        if let Some(layout) = known.filter(|layout| layout.nar_size() == info.nar_size) {
            let root = tree::open_root(store_dir, &path)?;
            return Ok(Self {
                path,
                layout,
                root,
                kept,
            });
        }

        let Tree { layout, root } = tree::walk(store_dir, &path)?;
        let found = layout.nar_size();
        if found != info.nar_size {
            return Err(NarError::SizeMismatch {
                path,
                registered: info.nar_size,
                found,
            });
        }
        let layout = Arc::new(layout);
        if matches!(root, Root::Directory(_)) {
            layouts.keep(key, &layout);
        }
        Ok(Self {
            path,
            layout,
            root,
            kept,
        })
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.layout.nar_size()
    }

    /// The bytes of `range`, cut at the end; nothing before it is read. Uses [`STREAM_BYTES`].
    /// An error ends the stream: what was given before it is right, and nothing is made up.
    pub fn read(self, range: Range<u64>) -> NarStream {
        let path = self.path.clone();
        let state = State::Resting(Box::new(self.reader(range)));
        NarStream { path, state }
    }

    /// The whole, in chunks of [`CHUNK_BYTES`] but for the last. Each step blocks.
    pub(super) fn chunks(self) -> Chunks {
        let size = self.size();
        Chunks(Some(self.reader(0..size)))
    }

    fn reader(self, range: Range<u64>) -> Reader {
        let (files, name) = match self.root {
            Root::Directory(root) => (Directories::new(root), None),
            Root::Store(store) => (
                Directories::new(store),
                Some(self.path.basename().as_bytes().into()),
            ),
        };
        let end = range.end.min(self.layout.nar_size());
        Reader {
            path: self.path,
            layout: self.layout,
            next: range.start.min(end),
            end,
            directories: files,
            directory: None,
            root_file: name,
            open: None,
            pool: Arc::default(),
            kept: self.kept,
        }
    }
}

impl fmt::Debug for Nar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nar")
            .field("path", &self.path)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// Chunks of a NAR, in order and without gaps, each at most [`CHUNK_BYTES`]. Needs to be polled
/// within a tokio runtime.
pub struct NarStream {
    path: StorePath,
    state: State,
}

impl fmt::Debug for NarStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NarStream")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

enum State {
    Resting(Box<Reader>),
    Reading(JoinHandle<(Box<Reader>, Result<Bytes, NarError>)>),
    Ended,
}

impl Stream for NarStream {
    type Item = Result<Bytes, NarError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Resting(reader) => self.state = reader.start(),
                State::Reading(mut job) => {
                    let Poll::Ready(done) = Pin::new(&mut job).poll(context) else {
                        self.state = State::Reading(job);
                        return Poll::Pending;
                    };
                    let result = match done {
                        Ok((reader, Ok(chunk))) => {
                            // Read ahead while the consumer is busy with this one.
                            self.state = reader.start();
                            Ok(chunk)
                        }
                        Ok((_, Err(error))) => Err(error),
                        Err(_) => Err(NarError::Interrupted {
                            path: self.path.clone(),
                        }),
                    };
                    return Poll::Ready(Some(result));
                }
            }
        }
    }
}

/// All chunks of a NAR, for a thread that may block; an error is the last item.
pub(super) struct Chunks(Option<Reader>);

impl Iterator for Chunks {
    type Item = Result<Bytes, NarError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = self.0.take().filter(|reader| reader.next < reader.end)?;
        let chunk = reader.fill();
        self.0 = chunk.is_ok().then_some(reader);
        Some(chunk)
    }
}

/// What fills the chunks.
struct Reader {
    path: StorePath,
    layout: Arc<Layout>,
    /// What of the NAR is still to be read.
    next: u64,
    end: u64,
    directories: Directories,
    /// Where `directories` is.
    directory: Option<DirectoryId>,
    /// If the path is a file: its name in the store directory, which `directories` is then.
    root_file: Option<Box<[u8]>>,
    /// A file whose end was not reached yet.
    open: Option<(FileId, File)>,
    pool: Arc<Pool>,
    /// Where the layout may be kept.
    kept: (Key, Weak<Layouts>),
}

impl Reader {
    /// Begins with the next chunk, if there is one.
    fn start(mut self: Box<Self>) -> State {
        if self.next >= self.end {
            return State::Ended;
        }
        State::Reading(spawn_blocking(move || {
            let result = self.fill();
            (self, result)
        }))
    }

    /// Reads the next chunk. Blocks.
    fn fill(&mut self) -> Result<Bytes, NarError> {
        let result = self.read_chunk();
        if let (Err(_), (key, layouts)) = (&result, &self.kept)
            && let Some(layouts) = layouts.upgrade()
        {
            layouts.forget(*key);
        }
        result
    }

    fn read_chunk(&mut self) -> Result<Bytes, NarError> {
        // At most CHUNK_BYTES, so it fits.
        let length = (self.end - self.next).min(CHUNK_BYTES as u64) as usize;
        let mut buffer = self.pool.take(length);
        let layout = Arc::clone(&self.layout);
        let mut rest = &mut buffer[..length];
        for segment in layout.segments(self.next..self.next + length as u64) {
            let into;
            match segment {
                Segment::Framing(framing) => {
                    (into, rest) = rest.split_at_mut(framing.len());
                    into.copy_from_slice(framing);
                }
                Segment::File {
                    file,
                    offset,
                    length,
                } => {
                    // At most as long as the chunk.
                    (into, rest) = rest.split_at_mut(length as usize);
                    self.read_file(file, offset, into)?;
                }
            }
        }
        self.next += length as u64;
        Ok(Bytes::from_owner(Chunk {
            buffer,
            length,
            pool: Arc::downgrade(&self.pool),
        }))
    }

    fn read_file(&mut self, id: FileId, offset: u64, into: &mut [u8]) -> Result<(), NarError> {
        let size = self.layout.file_size(id);
        let (file, is_new) = match self.open.take() {
            Some((open, file)) if open == id => (file, false),
            _ => (self.open_file(id)?, true),
        };
        let end = offset + into.len() as u64;
        match file.read_exact_at(into, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.changed(id, self.size_of(id, &file)?));
            }
            Err(source) => return Err(self.unreadable(id, source)),
        }
        if end < size {
            self.open = Some((id, file));
        } else if !is_new {
            // Read over some time: it may have grown.
            let found = self.size_of(id, &file)?;
            if found != size {
                return Err(self.changed(id, found));
            }
        }
        Ok(())
    }

    /// Opens a file and checks that it still has its size.
    fn open_file(&mut self, id: FileId) -> Result<File, NarError> {
        let layout = Arc::clone(&self.layout);
        let (directory, name) = layout.file_location(id);
        if let Some(directory) = directory
            && self.directory != Some(directory)
        {
            self.directories.go_to(&layout.directory_path(directory));
            self.directory = Some(directory);
        }
        let name = self.root_file.as_deref().unwrap_or(name);

        // Not blocking, should a pipe have taken the file's place.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened = self
            .directories
            .current()
            .and_then(|directory| openat(directory, name, flags, Mode::empty()));
        let file = File::from(opened.map_err(|errno| self.unreadable(id, errno.into()))?);
        let (expected, found) = (layout.file_size(id), self.size_of(id, &file)?);
        if found != expected {
            return Err(self.changed(id, found));
        }
        if expected >= LARGE_FILE_BYTES {
            // Advice alone: without it the file is read all the same.
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL).ok();
        }
        Ok(file)
    }

    fn size_of(&self, id: FileId, file: &File) -> Result<u64, NarError> {
        let metadata = file
            .metadata()
            .map_err(|source| self.unreadable(id, source))?;
        if !metadata.is_file() {
            return Err(NarError::Kind {
                path: self.path.clone(),
                file: self.name_of(id),
            });
        }
        Ok(metadata.size())
    }

    fn changed(&self, id: FileId, found: u64) -> NarError {
        NarError::Changed {
            path: self.path.clone(),
            file: self.name_of(id),
            expected: self.layout.file_size(id),
            found,
        }
    }

    fn unreadable(&self, id: FileId, source: io::Error) -> NarError {
        NarError::Read {
            path: self.path.clone(),
            file: self.name_of(id),
            source,
        }
    }

    fn name_of(&self, id: FileId) -> PathBuf {
        match self.layout.file_location(id) {
            (Some(_), name) => self.directories.path_of(name),
            (None, _) => PathBuf::new(),
        }
    }
}

/// Buffers of one stream that are not in use: what its consumer has finished with is filled again.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Box<[u8]>>>);

impl Pool {
    /// A buffer of at least `length` bytes, with any content.
    fn take(&self, length: usize) -> Box<[u8]> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match free.pop() {
            Some(buffer) if buffer.len() >= length => buffer,
            _ => vec![0; length].into_boxed_slice(),
        }
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // More than these are only there if the consumer keeps what it was given.
        if free.len() < STREAM_BYTES / CHUNK_BYTES {
            free.push(buffer);
        }
    }
}

/// A filled buffer, on its way to the consumer.
struct Chunk {
    buffer: Box<[u8]>,
    length: usize,
    pool: Weak<Pool>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(std::mem::take(&mut self.buffer));
        }
    }
}
