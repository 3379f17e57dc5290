//! A finished layout, and the pieces of a range of it.

use std::ops::Range;

use super::ALIGNMENT;

/// A regular file of the tree, by its position in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub(super) u32);

/// A directory of the tree, by its position in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirectoryId(pub(super) u32);

/// Where every byte of a NAR comes from. Memory: the framing bytes plus a small record per file.
#[derive(Debug)]
pub struct Layout {
    /// All framing, in order; less than 4 GiB.
    pub(super) framing: Vec<u8>,
    pub(super) files: Vec<FileRecord>,
    /// The files that have bytes: only they cut the framing.
    pub(super) filled: Vec<u32>,
    pub(super) directories: Vec<DirectoryRecord>,
    pub(super) nar_size: u64,
}

#[derive(Debug)]
pub(super) struct FileRecord {
    /// Where in the NAR its bytes begin.
    pub(super) begin: u64,
    pub(super) size: u64,
    /// How much framing is before its bytes.
    pub(super) cut: u32,
    /// Where in the framing its name begins; 0 for the root.
    pub(super) name: u32,
    pub(super) directory: Parent,
}

#[derive(Debug)]
pub(super) struct DirectoryRecord {
    pub(super) parent: Parent,
    /// Where in the framing its name begins; 0 for the root.
    pub(super) name: u32,
}

/// A directory or none, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent(u32);

impl From<Option<DirectoryId>> for Parent {
    fn from(directory: Option<DirectoryId>) -> Self {
        Self(directory.map_or(u32::MAX, |directory| directory.0))
    }
}

impl Parent {
    fn directory(self) -> Option<DirectoryId> {
        (self.0 != u32::MAX).then_some(DirectoryId(self.0))
    }
}

/// A piece of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Bytes of the format itself.
    Framing(&'a [u8]),
    /// Bytes of a file's content.
    File {
        /// The file.
        file: FileId,
        /// Where in the file they begin.
        offset: u64,
        /// How many there are, never 0.
        length: u64,
    },
}

impl Layout {
    /// Length of the NAR in bytes.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// The pieces of `range`, in order; found by binary search, nothing before it is visited.
    /// The range is cut at the NAR's end. Framing and files alternate.
    pub fn segments(&self, range: Range<u64>) -> impl Iterator<Item = Segment<'_>> {
        let begin = range.start.min(self.nar_size);
        let next = self
            .filled
            .partition_point(|&file| self.record(file).end() <= begin);
        Segments {
            layout: self,
            next,
            begin,
            end: range.end.min(self.nar_size),
        }
    }

    /// The size that the file must have.
    pub fn file_size(&self, file: FileId) -> u64 {
        self.record(file.0).size
    }

    /// The file's directory (none if the root is a file) and its name there.
    pub fn file_location(&self, file: FileId) -> (Option<DirectoryId>, &[u8]) {
        let record = self.record(file.0);
        (
            record.directory.directory(),
            word_at(&self.framing, record.name),
        )
    }

    /// A directory's path below the root, outermost first; empty for the root itself.
    pub fn directory_path(&self, directory: DirectoryId) -> Vec<&[u8]> {
        let mut path = Vec::new();
        let mut at = &self.directories[directory.0 as usize];
        while let Some(parent) = at.parent.directory() {
            path.push(word_at(&self.framing, at.name));
            at = &self.directories[parent.0 as usize];
        }
        path.reverse();
        path
    }

    /// About how many bytes of memory it takes, for a cache to weigh it by.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.framing.capacity()
            + self.files.capacity() * size_of::<FileRecord>()
            + self.filled.capacity() * size_of::<u32>()
            + self.directories.capacity() * size_of::<DirectoryRecord>()
    }

    fn record(&self, file: u32) -> &FileRecord {
        &self.files[file as usize]
    }
}

impl FileRecord {
    fn end(&self) -> u64 {
        self.begin + self.size
    }
}

/// The word of a NAR whose text begins at `at`; nothing at 0, where the root's name would be.
pub(super) fn word_at(framing: &[u8], at: u32) -> &[u8] {
    let at = at as usize;
    let Some(length) = framing[..at].last_chunk::<ALIGNMENT>() else {
        return b"";
    };
    // Written from a length in memory by the builder, so it fits.
    &framing[at..at + u64::from_le_bytes(*length) as usize]
}

struct Segments<'a> {
    layout: &'a Layout,
    /// Index in `filled` of the first file that ends after `begin`.
    next: usize,
    begin: u64,
    end: u64,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.begin >= self.end {
            return None;
        }
        let layout = self.layout;
        let file = layout
            .filled
            .get(self.next)
            .map(|&id| (FileId(id), layout.record(id)));
        let (segment, length) = match file {
            Some((file, record)) if record.begin <= self.begin => {
                let length = record.end().min(self.end) - self.begin;
                self.next += 1;
                (
                    Segment::File {
                        file,
                        offset: self.begin - record.begin,
                        length,
                    },
                    length,
                )
            }
            // Framing up to the next file, or to the end of the NAR.
            file => {
                let (cut, until) = match file {
                    Some((_, record)) => (record.cut as usize, record.begin),
                    None => (layout.framing.len(), layout.nar_size),
                };
                let length = until.min(self.end) - self.begin;
                // No longer than the framing, so both fit.
                let first = cut - (until - self.begin) as usize;
                (
                    Segment::Framing(&layout.framing[first..first + length as usize]),
                    length,
                )
            }
        };
        self.begin += length;
        Some(segment)
    }
}
