//! Reading peerix.toml. What it says is [`crate::config`]'s.

use std::path::Path;

use super::{ReadError, regular_file};

/// Far above any configuration that a person writes.
const MAX_BYTES: usize = 1 << 20;

/// The file's text.
pub fn read(path: &Path) -> Result<String, ReadError> {
    regular_file::read_text(path, MAX_BYTES)
}
