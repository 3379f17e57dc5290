//! The bytes that outlive a sleep, in the runtime or the cache directory. What they mean, and that any
//! defect in them discards them, is the caller's.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{ReadError, regular_file};

/// The largest state that is written or read.
pub const MAX_BYTES: usize = 8 << 20;

const NAME: &str = "state";

/// Why the state was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More than [`MAX_BYTES`].
    #[error("a state of {bytes} bytes is larger than {MAX_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The new file cannot be created or written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The new file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It cannot take the old one's place.
    #[error("cannot replace {}", path.display())]
    Replace {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// One file in a directory of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    directory: PathBuf,
    name: &'static str,
}

impl StateFile {
    /// In the directory that `RuntimeDirectory=` made, if there is one.
    pub fn from_env() -> Option<Self> {
        Some(Self::new(first_directory("RUNTIME_DIRECTORY")?))
    }

    /// One of that name in the directory that `CacheDirectory=` made, if there is one: it outlives
    /// the boot.
    pub fn in_cache(name: &'static str) -> Option<Self> {
        let directory = first_directory("CACHE_DIRECTORY")?;
        Some(Self { directory, name })
    }

    /// In a directory that nobody else writes to.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            name: NAME,
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.name)
    }

    /// What was written last, if anything was.
    pub fn read(&self) -> Result<Option<Vec<u8>>, ReadError> {
        match regular_file::read(&self.path(), MAX_BYTES) {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces it as a whole: a reader finds the old bytes or the new ones, also when the
    /// process is killed in between. Not synced to disk: a file that a power cut spoils is discarded.
    pub fn write(&self, bytes: &[u8]) -> Result<(), WriteError> {
        if bytes.len() > MAX_BYTES {
            return Err(WriteError::TooLarge { bytes: bytes.len() });
        }
        let new = self.directory.join(format!("{}.new", self.name));
        create_private(&new)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(|source| WriteError::Write {
                path: new.clone(),
                source,
            })?;
        fs::rename(&new, self.path()).map_err(|source| WriteError::Replace {
            path: self.path(),
            source,
        })
    }
}

/// The first of the directories that systemd names there.
fn first_directory(variable: &str) -> Option<PathBuf> {
    let directories = env::var_os(variable)?;
    env::split_paths(&directories)
        .next()
        .filter(|directory| directory.is_absolute())
}

fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    // Left behind by a process that was killed, it keeps the mode it had.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const TEMPORARY_NAME: &str = "state.new";

    fn state_file() -> (tempfile::TempDir, StateFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path().into());
        (dir, file)
    }

    #[test]
    fn comes_back_as_written_and_private() {
        let (dir, file) = state_file();
        assert_eq!(file.read().unwrap(), None);
        for bytes in [&b"first, and longer"[..], b"second", b""] {
            file.write(bytes).unwrap();
            assert_eq!(file.read().unwrap().as_deref(), Some(bytes));
        }
        assert_eq!(
            fs::metadata(file.path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_leftover_is_overwritten_and_a_link_is_not_followed() {
        let (dir, file) = state_file();
        fs::write(dir.path().join(TEMPORARY_NAME), "half of a longer sta").unwrap();
        file.write(b"whole").unwrap();
        assert_eq!(file.read().unwrap().unwrap(), b"whole");

        symlink(
            dir.path().join("elsewhere"),
            dir.path().join(TEMPORARY_NAME),
        )
        .unwrap();
        assert!(matches!(file.write(b"more"), Err(WriteError::Write { .. })));
        assert!(!dir.path().join("elsewhere").exists());
        assert_eq!(file.read().unwrap().unwrap(), b"whole");
    }

    #[test]
    fn is_bounded() {
        let (_dir, file) = state_file();
        file.write(&vec![1; MAX_BYTES]).unwrap();
        assert!(matches!(
            file.write(&vec![1; MAX_BYTES + 1]),
            Err(WriteError::TooLarge { .. })
        ));
        assert_eq!(file.read().unwrap().unwrap().len(), MAX_BYTES);
        fs::write(file.path(), vec![1; MAX_BYTES + 1]).unwrap();
        assert!(matches!(file.read(), Err(ReadError::TooLarge { .. })));
    }
}
