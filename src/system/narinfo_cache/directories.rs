//! Where Nix keeps what it remembers, and whether that is a place to work in.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, geteuid};

use super::NarinfoCacheError;

const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The cache directory of a Nix with these environment variables, run by `user` (`getCacheDir`
/// and `getHome` of Nix). The password database's `home` is asked for only where it counts: there
/// is no `HOME`, or it is somebody else's.
pub fn cache_directory<E>(
    variable: impl Fn(&str) -> Option<OsString>,
    user: Uid,
    home: impl FnOnce() -> Result<PathBuf, E>,
) -> Result<PathBuf, E> {
    let variable = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(directory) = variable("NIX_CACHE_HOME") {
        return Ok(directory);
    }
    if let Some(directory) = variable("XDG_CACHE_HOME") {
        return Ok(directory.join("nix"));
    }
    let is_usable = |home: &PathBuf| match fs::metadata(home) {
        Ok(metadata) => metadata.uid() == user.as_raw(),
        Err(error) => is_absent(&error),
    };
    let home = match variable("HOME").filter(is_usable) {
        Some(home) => home,
        None => home()?,
    };
    Ok(home.join(".cache/nix"))
}

/// The databases in a cache directory, by absolute paths without links, in order; none if the
/// directory is missing.
///
/// As root only in a directory that nobody else can change, or put others in the place of:
/// who plants a link or a journal there would choose what root writes.
pub fn databases(directory: &Path) -> Result<Vec<PathBuf>, NarinfoCacheError> {
    let look = |source| NarinfoCacheError::Look {
        path: directory.to_owned(),
        source,
    };
    let directory = match fs::canonicalize(directory) {
        Ok(real) => real,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(look(error)),
    };
    if geteuid().is_root() {
        check_is_roots(&directory)?;
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(look)? {
        let name = entry.map_err(look)?.file_name();
        if is_database(&name) {
            found.push(directory.join(name));
        }
    }
    found.sort();
    Ok(found)
}

fn check_is_roots(directory: &Path) -> Result<(), NarinfoCacheError> {
    for part in directory.ancestors() {
        let metadata = fs::metadata(part).map_err(|source| NarinfoCacheError::Look {
            path: part.to_owned(),
            source,
        })?;
        if can_be_changed_by_others(&metadata, part == directory) {
            return Err(NarinfoCacheError::Shared {
                directory: directory.to_owned(),
                part: part.to_owned(),
            });
        }
    }
    Ok(())
}

/// In a directory with the sticky bit others can add entries, but not replace root's. That is
/// enough above the directory of the databases, and too much in it.
fn can_be_changed_by_others(metadata: &Metadata, holds_databases: bool) -> bool {
    let mode = metadata.mode();
    let is_guarded = mode & STICKY != 0 && !holds_databases;
    metadata.uid() != 0 || (mode & WRITABLE_BY_OTHERS != 0 && !is_guarded)
}

/// `binary-cache-v*.sqlite`.
fn is_database(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.strip_prefix(b"binary-cache-v")
        .is_some_and(|rest| rest.ends_with(b".sqlite"))
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
