//! `nix-cache-info`: what a binary cache says of itself.
//!
//! Spec: `libstore/binary-cache-store.cc` of Nix, which reads these three fields.

use super::StoreDir;

/// The body of `/nix-cache-info`: StoreDir, WantMassQuery: 1 and Priority.
/// Of two caches Nix asks the one with the lower priority number first.
pub fn print(dir: &StoreDir, priority: u32) -> String {
    format!("StoreDir: {dir}\nWantMassQuery: 1\nPriority: {priority}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_three_lines() {
        let expected = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 20\n";
        assert_eq!(print(&StoreDir::default(), 20), expected);
    }
}
