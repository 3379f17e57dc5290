//! From a tree, entry by entry, to its layout.

use super::{
    ALIGNMENT, DirectoryId, FileId, Layout,
    layout::{DirectoryRecord, FileRecord},
    padding,
};

const ARCHIVE: [u8; 24] = words(&["nix-archive-1"]);
const ENTRY: [u8; 48] = words(&["entry", "(", "name"]);
const NODE: [u8; 16] = words(&["node"]);
const REGULAR: [u8; 64] = words(&["(", "type", "regular", "contents"]);
const EXECUTABLE: [u8; 96] = words(&["(", "type", "regular", "executable", "", "contents"]);
const SYMLINK: [u8; 64] = words(&["(", "type", "symlink", "target"]);
const DIRECTORY: [u8; 56] = words(&["(", "type", "directory"]);
const CLOSE: [u8; 16] = words(&[")"]);

/// More framing than any one entry adds beside its name and target.
const MOST_FRAMING_OF_AN_ENTRY: usize = 512;

/// Why a tree has no NAR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A name that does not come after the one before it in its directory.
    #[error("the entry \"{}\" comes out of order", name.escape_ascii())]
    Order {
        /// The name.
        name: Box<[u8]>,
    },
    /// A name that is empty, `.` or `..`, or has a slash or NUL in it.
    #[error("an entry cannot be named \"{}\"", name.escape_ascii())]
    Name {
        /// The name.
        name: Box<[u8]>,
    },
    /// A target that is empty or has a NUL in it.
    #[error("the symbolic link \"{}\" cannot have that target", name.escape_ascii())]
    Target {
        /// The link's name.
        name: Box<[u8]>,
    },
    /// A second root, or a directory closed that was not open, or one still open at the end.
    #[error("directories are not balanced")]
    Unbalanced,
    /// There is nothing at all.
    #[error("the tree has no root")]
    NoRoot,
    /// More than 4 GiB of framing, or more than 2^64 bytes in all.
    #[error("the tree is too large")]
    TooLarge,
}

/// Takes a tree in NAR order and makes its [`Layout`]. Never recursive: depth costs no stack.
/// A call that fails adds nothing.
#[derive(Debug, Default)]
pub struct LayoutBuilder {
    framing: Vec<u8>,
    files: Vec<FileRecord>,
    filled: Vec<u32>,
    directories: Vec<DirectoryRecord>,
    /// From the root to the directory that entries go to.
    open: Vec<OpenDirectory>,
    /// Bytes of files so far; never so many that the NAR's length overflows.
    contents: u64,
}

/// A directory that may get more entries.
#[derive(Debug)]
struct OpenDirectory {
    id: u32,
    /// Where in the framing the name of its last entry begins; 0, the archive's head, for none.
    last_name: u32,
}

impl LayoutBuilder {
    /// An empty builder: the next call describes the root, whose name is not used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a directory; its entries follow, sorted bytewise, then [`Self::leave_directory`].
    pub fn enter_directory(&mut self, name: &[u8]) -> Result<DirectoryId, LayoutError> {
        let id = next_id(self.directories.len())?;
        let parent = self.directory().into();
        let name = self.begin_entry(name, 0, 0)?;
        self.framing.extend_from_slice(&DIRECTORY);
        self.directories.push(DirectoryRecord { parent, name });
        self.open.push(OpenDirectory { id, last_name: 0 });
        Ok(DirectoryId(id))
    }

    /// Closes the directory opened last.
    pub fn leave_directory(&mut self) -> Result<(), LayoutError> {
        if self.open.is_empty() {
            return Err(LayoutError::Unbalanced);
        }
        self.check_size(0, 0)?;
        self.open.pop();
        self.end_entry();
        Ok(())
    }

    /// A regular file of `size` bytes.
    pub fn file(
        &mut self,
        name: &[u8],
        executable: bool,
        size: u64,
    ) -> Result<FileId, LayoutError> {
        let id = next_id(self.files.len())?;
        let directory = self.directory().into();
        let name = self.begin_entry(name, 0, size)?;
        self.framing
            .extend_from_slice(if executable { &EXECUTABLE } else { &REGULAR });
        self.framing.extend_from_slice(&size.to_le_bytes());

        let cut = self.framing_len();
        let begin = u64::from(cut) + self.contents;
        self.files.push(FileRecord {
            begin,
            size,
            cut,
            name,
            directory,
        });
        if size > 0 {
            self.filled.push(id);
        }
        self.contents += size;

        self.pad(padding(size));
        self.end_entry();
        Ok(FileId(id))
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), LayoutError> {
        if target.is_empty() || target.contains(&0) {
            return Err(LayoutError::Target { name: name.into() });
        }
        self.begin_entry(name, target.len(), 0)?;
        self.framing.extend_from_slice(&SYMLINK);
        self.word(target);
        self.end_entry();
        Ok(())
    }

    /// The layout of the whole tree.
    pub fn finish(mut self) -> Result<Layout, LayoutError> {
        if self.framing.is_empty() {
            return Err(LayoutError::NoRoot);
        }
        if !self.open.is_empty() {
            return Err(LayoutError::Unbalanced);
        }
        self.framing.shrink_to_fit();
        self.files.shrink_to_fit();
        self.filled.shrink_to_fit();
        self.directories.shrink_to_fit();
        Ok(Layout {
            nar_size: self.framing.len() as u64 + self.contents,
            framing: self.framing,
            files: self.files,
            filled: self.filled,
            directories: self.directories,
        })
    }

    /// Checks everything that can be wrong with an entry, then writes what is before its node.
    /// Returns where its name begins.
    fn begin_entry(&mut self, name: &[u8], target: usize, size: u64) -> Result<u32, LayoutError> {
        self.check_size(name.len().saturating_add(target), size)?;
        let Some(directory) = self.open.last() else {
            if !self.framing.is_empty() {
                return Err(LayoutError::Unbalanced);
            }
            self.framing.extend_from_slice(&ARCHIVE);
            return Ok(0);
        };

        if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(LayoutError::Name { name: name.into() });
        }
        let last_name = directory.last_name;
        if last_name != 0 && super::layout::word_at(&self.framing, last_name) >= name {
            return Err(LayoutError::Order { name: name.into() });
        }

        self.framing.extend_from_slice(&ENTRY);
        let at = self.framing_len() + ALIGNMENT as u32;
        self.word(name);
        self.framing.extend_from_slice(&NODE);
        if let Some(directory) = self.open.last_mut() {
            directory.last_name = at;
        }
        Ok(at)
    }

    /// Writes what is after a node's own words: the end of the node, and of its entry.
    fn end_entry(&mut self) {
        self.framing.extend_from_slice(&CLOSE);
        if !self.open.is_empty() {
            self.framing.extend_from_slice(&CLOSE);
        }
    }

    /// Whether an entry with that many bytes of text and of content still fits.
    fn check_size(&self, text: usize, content: u64) -> Result<(), LayoutError> {
        let framing = text
            .checked_add(MOST_FRAMING_OF_AN_ENTRY)
            .and_then(|more| self.framing.len().checked_add(more))
            .and_then(|length| u32::try_from(length).ok());
        let length = framing.and_then(|framing| {
            self.contents
                .checked_add(content)?
                .checked_add(u64::from(framing))
        });
        length.map(|_| ()).ok_or(LayoutError::TooLarge)
    }

    /// `check_size` keeps it below 2^32.
    fn framing_len(&self) -> u32 {
        self.framing.len() as u32
    }

    fn directory(&self) -> Option<DirectoryId> {
        self.open.last().map(|open| DirectoryId(open.id))
    }

    fn word(&mut self, text: &[u8]) {
        let length = text.len() as u64;
        self.framing.extend_from_slice(&length.to_le_bytes());
        self.framing.extend_from_slice(text);
        self.pad(padding(length));
    }

    fn pad(&mut self, zeros: usize) {
        self.framing.extend_from_slice(&[0; ALIGNMENT][..zeros]);
    }
}

fn next_id(used: usize) -> Result<u32, LayoutError> {
    // The highest number stands for no directory.
    u32::try_from(used)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or(LayoutError::TooLarge)
}

/// The words as they are in a NAR; a wrong `N` does not compile.
const fn words<const N: usize>(words: &[&str]) -> [u8; N] {
    let mut bytes = [0; N];
    let (mut at, mut index) = (0, 0);
    while index < words.len() {
        let word = words[index].as_bytes();
        // Every word is shorter than 256 bytes: one byte of the length is enough.
        bytes[at] = word.len() as u8;
        let mut offset = 0;
        while offset < word.len() {
            bytes[at + ALIGNMENT + offset] = word[offset];
            offset += 1;
        }
        at += ALIGNMENT + word.len() + padding(word.len() as u64);
        index += 1;
    }
    assert!(at == N);
    bytes
}
