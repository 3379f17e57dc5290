//! Reading a small file whole: bounded, and never waiting for a pipe or a device that
//! somebody put in its place.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// There is something else at its path.
    #[error("{} is {kind}, not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What is there, with its article.
        kind: &'static str,
    },
    /// It is longer than such a file can be.
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is read at most.
        max_bytes: usize,
    },
    /// Opened, but not readable to its end.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Not a text.
    #[error("{} is not UTF-8 text (first at byte {at})", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that is wrong.
        at: usize,
    },
}

impl ReadError {
    /// Whether there is nothing at the path.
    pub fn is_absent(&self) -> bool {
        let Self::Open { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    }
}

/// The file's bytes, and its metadata as of just before they were read. The null device is
/// an empty file: it is how one says "none" to a setting that takes a path.
pub(super) fn read(path: &Path, max_bytes: usize) -> Result<(Vec<u8>, Metadata), ReadError> {
    let read_error = |source| ReadError::Read {
        path: path.into(),
        source,
    };
    let file = open(path)?;
    let metadata = file.metadata().map_err(read_error)?;
    if let Some(kind) = other_kind(&metadata) {
        return Err(ReadError::NotRegular {
            path: path.into(),
            kind,
        });
    }
    // One buffer that never grows: no copies of a key are left behind.
    let mut bytes = Vec::with_capacity(
        max_bytes.min(usize::try_from(metadata.len()).unwrap_or(max_bytes)) + 64,
    );
    file.take(max_bytes as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() > max_bytes {
        return Err(ReadError::TooLarge {
            path: path.into(),
            max_bytes,
        });
    }
    Ok((bytes, metadata))
}

/// The file's text.
pub(super) fn read_text(path: &Path, max_bytes: usize) -> Result<String, ReadError> {
    let (bytes, _) = read(path, max_bytes)?;
    String::from_utf8(bytes).map_err(|error| ReadError::NotText {
        path: path.into(),
        at: error.utf8_error().valid_up_to(),
    })
}

fn open(path: &Path) -> Result<File, ReadError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| ReadError::Open {
            path: path.into(),
            source,
        })
}

fn other_kind(metadata: &Metadata) -> Option<&'static str> {
    const NULL_DEVICE: libc::dev_t = libc::makedev(1, 3);
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_char_device() && metadata.rdev() == NULL_DEVICE => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs};

    use super::*;

    #[test]
    fn reads_up_to_its_bound_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [b'x'; 100]).unwrap();
        assert_eq!(read(&path, 100).unwrap().0.len(), 100);
        assert!(matches!(
            read(&path, 99),
            Err(ReadError::TooLarge { max_bytes: 99, .. })
        ));
        assert_eq!(read(Path::new("/dev/null"), 10).unwrap().0, b"");
    }

    #[test]
    fn says_what_is_there_instead() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (path, kind) in [
            (dir.path(), "a directory"),
            (&*fifo, "a pipe"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = read(path, 10).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{} is {kind}, not a regular file", path.display())
            );
        }
        let absent = read(&fifo.join("below"), 10).unwrap_err();
        assert!(absent.is_absent() && absent.source().is_some());
        assert!(!read(dir.path(), 10).unwrap_err().is_absent());
    }

    #[test]
    fn text_is_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"port\xff").unwrap();
        assert!(matches!(
            read_text(&path, 10),
            Err(ReadError::NotText { at: 4, .. })
        ));
    }
}
