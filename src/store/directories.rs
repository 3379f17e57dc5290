//! Moving about in a tree by directory descriptors: no path is resolved through a symbolic link,
//! none is too long for one call, and few descriptors are open however deep the tree is.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::Mode,
};

/// Directories kept open behind the current one. Deeper trees than this are rare, and going back
/// up in one costs one more call for each directory.
const MOST_OPEN: usize = 16;

/// Longest path given to one call; PATH_MAX is 4,096 with its NUL.
const LONGEST_PATH_BYTES: usize = 4_000;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// A place in a tree.
#[derive(Debug)]
pub(super) struct Directories {
    root: OwnedFd,
    /// From the root, exclusive, to where we are.
    names: Vec<Box<[u8]>>,
    /// Open directories by their depth, ascending: the last of them is where we are, or above.
    open: Vec<(usize, OwnedFd)>,
    /// A system call filter may refuse openat2.
    has_openat2: bool,
}

impl Directories {
    /// Begins at `root`.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            names: Vec::new(),
            open: Vec::new(),
            has_openat2: true,
        }
    }

    /// The directory where we are, opened again if need be.
    pub(super) fn current(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        let depth = self.names.len();
        let (mut from, base) = match self.open.last() {
            Some((depth, fd)) => (*depth, fd.as_fd()),
            None => (0, self.root.as_fd()),
        };
        if from < depth {
            let mut reached: Option<OwnedFd> = None;
            while from < depth {
                let at = reached.as_ref().map_or(base, AsFd::as_fd);
                let (next, fd) = descend(at, &self.names, from, &mut self.has_openat2)?;
                from = next;
                reached = Some(fd);
            }
            if let Some(fd) = reached {
                if self.open.len() >= MOST_OPEN {
                    self.open.remove(0);
                }
                self.open.push((depth, fd));
            }
        }
        Ok(match self.open.last() {
            Some((_, fd)) => fd.as_fd(),
            None => self.root.as_fd(),
        })
    }

    /// Goes one down. Whether there is such a directory shows at the next [`Self::current`].
    pub(super) fn enter(&mut self, name: &[u8]) {
        self.names.push(name.into());
    }

    /// Goes one up.
    pub(super) fn leave(&mut self) {
        self.names.pop();
        let depth = self.names.len();
        while self.open.last().is_some_and(|(open, _)| *open > depth) {
            self.open.pop();
        }
    }

    /// The path of an entry here, below the root; of the directory itself if it has no name.
    pub(super) fn path_of(&self, name: &[u8]) -> PathBuf {
        let names = self.names.iter().map(|name| &**name);
        let path: PathBuf = names.map(OsStr::from_bytes).collect();
        match name {
            b"" => path,
            _ => path.join(OsStr::from_bytes(name)),
        }
    }

    /// Where it began.
    pub(super) fn into_root(self) -> OwnedFd {
        self.root
    }

    /// Goes to `path` below the root, over the nearest common directory.
    pub(super) fn go_to(&mut self, path: &[&[u8]]) {
        let pairs = self.names.iter().zip(path);
        let common = pairs.take_while(|(ours, its)| ***ours == ***its).count();
        while self.names.len() > common {
            self.leave();
        }
        for name in &path[common..] {
            self.enter(name);
        }
    }
}

/// Opens what `names` from `from` on lead to, as far as one call goes; says how far that was.
fn descend(
    base: BorrowedFd<'_>,
    names: &[Box<[u8]>],
    from: usize,
    has_openat2: &mut bool,
) -> Result<(usize, OwnedFd), Errno> {
    if *has_openat2 && names.len() - from > 1 {
        let mut path = names[from].to_vec();
        let mut to = from + 1;
        while to < names.len() && path.len() + 1 + names[to].len() <= LONGEST_PATH_BYTES {
            path.push(b'/');
            path.extend_from_slice(&names[to]);
            to += 1;
        }
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(DIRECTORY).resolve(resolve);
        match openat2(base, path.as_slice(), how) {
            Err(Errno::ENOSYS | Errno::EPERM) => *has_openat2 = false,
            opened => return opened.map(|fd| (to, fd)),
        }
    }
    // A single name has no directories before it that could be links.
    open_directory(base, &names[from]).map(|fd| (from + 1, fd))
}

/// Opens a directory that is in `base` itself.
pub(super) fn open_directory(base: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(base, name, DIRECTORY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use nix::fcntl::open;

    use super::*;

    fn root(path: &Path) -> Directories {
        Directories::new(open(path, DIRECTORY, Mode::empty()).expect("root"))
    }

    fn inode(directories: &mut Directories) -> u64 {
        let fd = directories.current().expect("current");
        nix::sys::stat::fstat(fd).expect("fstat").st_ino
    }

    #[test]
    fn deep_paths_are_reached_with_and_without_openat2() {
        let dir = tempfile::tempdir().expect("directory");
        let mut made = root(dir.path());
        // Of 255 bytes, so that many calls are needed.
        let name = [b'n'; 255];
        let mut inodes = vec![inode(&mut made)];
        for _ in 0..100 {
            let at = made.current().expect("current");
            nix::sys::stat::mkdirat(at, name.as_slice(), Mode::S_IRWXU).expect("mkdir");
            made.enter(&name);
            inodes.push(inode(&mut made));
        }
        let path = vec![name.as_slice(); 100];
        for has_openat2 in [true, false] {
            let mut walked = root(dir.path());
            walked.has_openat2 = has_openat2;
            walked.go_to(&path);
            for depth in (0..=100).rev() {
                assert_eq!(inode(&mut walked), inodes[depth], "depth {depth}");
                assert!(walked.open.len() <= MOST_OPEN);
                walked.leave();
            }
        }
        // Too deep for remove_dir_all of some versions: gone from the bottom up.
        while !made.names.is_empty() {
            made.leave();
            let at = made.current().expect("current");
            nix::unistd::unlinkat(at, name.as_slice(), nix::unistd::UnlinkatFlags::RemoveDir)
                .expect("rmdir");
        }
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir_all(dir.path().join("real/below")).expect("mkdir");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("symlink");
        for path in [&[b"link".as_slice()][..], &[b"link", b"below"]] {
            for has_openat2 in [true, false] {
                let mut walked = root(dir.path());
                walked.has_openat2 = has_openat2;
                walked.go_to(path);
                let error = walked.current().map(drop).expect_err("a link");
                assert!(matches!(error, Errno::ELOOP | Errno::ENOTDIR), "{error}");
            }
        }
    }
}
