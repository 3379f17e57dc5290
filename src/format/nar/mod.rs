//! The NAR as a layout: a pure function of a tree's sorted entries and sizes that maps
//! any byte range to framing bytes and pieces of files.
//!
//! Spec: the Nix archive format (E. Dolstra, *The Purely Functional Software Deployment Model*,
//! figure 5.2; `libutil/archive.cc` of Nix). Every word is a little-endian u64 length, the bytes,
//! and zeros up to a multiple of 8:
//!
//! ```text
//! archive = "nix-archive-1" node
//! node    = "(" "type" "regular" ["executable" ""] "contents" FILE ")"
//!         | "(" "type" "symlink" "target" TARGET ")"
//!         | "(" "type" "directory" entry* ")"
//! entry   = "entry" "(" "name" NAME "node" node ")"        names ascending bytewise, unique
//! ```
//!
//! Everything but the bytes of `FILE` is *framing*. It lies in one buffer, in order, so what is
//! between two files' bytes is one slice of it, whatever it is made of.

mod builder;
mod layout;

pub use builder::{LayoutBuilder, LayoutError};
pub use layout::{DirectoryId, FileId, Layout, Segment};

/// Every word begins at a multiple of this many bytes.
const ALIGNMENT: usize = 8;

/// The zeros after `length` bytes.
const fn padding(length: u64) -> usize {
    // Less than 8, so nothing is lost.
    (length.wrapping_neg() % ALIGNMENT as u64) as usize
}

#[cfg(test)]
mod tests;
