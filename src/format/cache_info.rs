//! `nix-cache-info`: what a binary cache says of itself.
//!
//! Spec: `libstore/binary-cache-store.cc` of Nix, which reads these three fields. A cache that does
//! not say which store it is for is for any.

use super::StoreDir;

/// The store directory that a cache says it is for; none if it says nothing of it.
pub fn store_dir(text: &str) -> Option<&str> {
    let mut lines = text.lines();
    lines.find_map(|line| Some(line.strip_prefix("StoreDir:")?.trim()))
}

/// The body of `/nix-cache-info`: StoreDir, WantMassQuery: 1 and Priority.
/// Of two caches Nix asks the one with the lower priority number first.
pub fn print(dir: &StoreDir, priority: u32) -> String {
    format!("StoreDir: {dir}\nWantMassQuery: 1\nPriority: {priority}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_need_not_name_its_store() {
        assert_eq!(store_dir("Priority: 3\r\nStoreDir:  /x \r\n"), Some("/x"));
        assert_eq!(store_dir("WantMassQuery: 1\n"), None);
        assert_eq!(store_dir(""), None);
    }

    #[test]
    fn has_three_lines() {
        let expected = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 20\n";
        assert_eq!(print(&StoreDir::default(), 20), expected);
        assert_eq!(store_dir(expected), Some("/nix/store"));
    }
}
