//! A store path's tree on disk, walked into the layout of its NAR.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    vec,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, readlinkat},
    sys::stat::{Mode, SFlag, fstatat},
};

use super::{
    directories::{Directories, open_directory},
    nar_error::NarError,
};
use crate::format::{
    StorePath,
    nar::{Layout, LayoutBuilder, LayoutError},
};

/// What a walk found.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) layout: Layout,
    pub(super) root: Root,
}

/// From where the files of a tree are opened.
#[derive(Debug)]
pub(super) enum Root {
    /// The path is a directory: this one.
    Directory(OwnedFd),
    /// It is a file or a link, in this store directory.
    Store(OwnedFd),
}

/// An entry of a directory whose turn has not come.
struct Entry {
    name: CString,
    /// As the directory has it; some file systems do not say.
    kind: Option<Type>,
}

/// What is wrong with an entry, whichever it is.
enum Fault {
    System(Errno),
    /// Neither file, directory nor symbolic link.
    Kind,
    Layout(LayoutError),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl From<LayoutError> for Fault {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl Fault {
    fn of(self, path: &StorePath, file: PathBuf) -> NarError {
        let path = path.clone();
        match self {
            Self::System(Errno::ENOENT) if file.as_os_str().is_empty() => {
                NarError::Missing { path }
            }
            Self::System(errno) => NarError::Read {
                path,
                file,
                source: errno.into(),
            },
            Self::Kind => NarError::Kind { path, file },
            Self::Layout(source) => NarError::Layout { path, source },
        }
    }
}

/// Walks the tree of `path` in `store_dir`, following no link, with few descriptors open.
pub(super) fn walk(store_dir: &Path, path: &StorePath) -> Result<Tree, NarError> {
    let whole = |fault: Fault| fault.of(path, PathBuf::new());
    let store = open_store(store_dir).map_err(|errno| whole(errno.into()))?;
    let name = CString::new(path.basename()).map_err(|_| whole(Errno::EINVAL.into()))?;

    let mut layout = LayoutBuilder::new();
    let root = match add(&mut layout, store.as_fd(), &name, None, b"") {
        Ok(Added::Leaf) => Root::Store(store),
        Ok(Added::Directory) => {
            let root = open_directory(store.as_fd(), name.to_bytes())
                .map_err(|errno| whole(errno.into()))?;
            let mut at = Directories::new(root);
            add_below(&mut layout, &mut at).map_err(|(fault, file)| fault.of(path, file))?;
            Root::Directory(at.into_root())
        }
        Err(fault) => return Err(whole(fault)),
    };
    let layout = layout.finish().map_err(|error| whole(error.into()))?;
    Ok(Tree { layout, root })
}

/// Opens a path that is known to be a directory.
pub(super) fn open_root(store_dir: &Path, path: &StorePath) -> Result<Root, NarError> {
    open_store(store_dir)
        .and_then(|store| open_directory(store.as_fd(), path.basename().as_bytes()))
        .map(Root::Directory)
        .map_err(|errno| Fault::System(errno).of(path, PathBuf::new()))
}

fn open_store(store_dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(store_dir, flags, Mode::empty())
}

/// Adds the directory that `at` begins at, with everything below it. A fault comes with the path
/// to its entry.
fn add_below(layout: &mut LayoutBuilder, at: &mut Directories) -> Result<(), (Fault, PathBuf)> {
    layout
        .enter_directory(b"")
        .map_err(|error| (error.into(), PathBuf::new()))?;
    let mut pending = vec![list(at).map_err(|errno| (errno.into(), PathBuf::new()))?];

    while let Some(entries) = pending.last_mut() {
        let Some(Entry { name, kind }) = entries.next() else {
            layout
                .leave_directory()
                .map_err(|error| (error.into(), at.path_of(b"")))?;
            pending.pop();
            at.leave();
            continue;
        };
        let added = match at.current() {
            Ok(directory) => add(layout, directory, &name, kind, name.to_bytes()),
            Err(errno) => Err(errno.into()),
        };
        match added {
            Ok(Added::Leaf) => {}
            Ok(Added::Directory) => {
                let listed = layout.enter_directory(name.to_bytes());
                at.enter(name.to_bytes());
                let listed = listed
                    .map_err(Fault::from)
                    .and_then(|_| list(at).map_err(Fault::from));
                pending.push(listed.map_err(|fault| (fault, at.path_of(b"")))?);
            }
            Err(fault) => return Err((fault, at.path_of(name.to_bytes()))),
        }
    }
    Ok(())
}

/// What became of an entry.
enum Added {
    Leaf,
    /// Nothing yet: its entries are to be listed.
    Directory,
}

/// Adds an entry of `directory`, under a name that is not used if it is the root.
fn add(
    layout: &mut LayoutBuilder,
    directory: BorrowedFd<'_>,
    entry: &CStr,
    kind: Option<Type>,
    name: &[u8],
) -> Result<Added, Fault> {
    match kind {
        Some(Type::Directory) => return Ok(Added::Directory),
        Some(Type::Symlink) => {
            let target = readlinkat(directory, entry)?;
            layout.symlink(name, &target.into_vec())?;
            return Ok(Added::Leaf);
        }
        Some(Type::Fifo | Type::CharacterDevice | Type::BlockDevice | Type::Socket) => {
            return Err(Fault::Kind);
        }
        Some(Type::File) | None => {}
    }

    let stat = fstatat(directory, entry, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = stat.st_mode;
    match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => {
            let executable = mode & Mode::S_IXUSR.bits() != 0;
            // Never negative.
            layout.file(name, executable, stat.st_size.unsigned_abs())?;
            Ok(Added::Leaf)
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(directory, entry)?;
            layout.symlink(name, &target.into_vec())?;
            Ok(Added::Leaf)
        }
        SFlag::S_IFDIR => Ok(Added::Directory),
        _ => Err(Fault::Kind),
    }
}

/// The entries of the directory where `at` is, sorted bytewise as a NAR has them.
fn list(at: &mut Directories) -> Result<vec::IntoIter<Entry>, Errno> {
    let directory = at.current()?.try_clone_to_owned().map_err(errno)?;
    let mut entries = Vec::new();
    for entry in Dir::from_fd(directory)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            entries.push(Entry {
                name: name.to_owned(),
                kind: entry.file_type(),
            });
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries.into_iter())
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
