//! What sharing keeps in the cache directory from one process to the next: what it has decided, and
//! whether the owner has been told of the keys that share nothing.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::setup::Setup;
use crate::{
    config::SharePaths,
    finder::Holdings,
    format::{PublicKey, TrustedKeys},
    store::SignedByOthers,
    system::{journal::chain, state_file::StateFile},
};

/// The two files. Without a cache directory nothing is kept.
#[derive(Debug, Clone)]
pub struct SharingFiles {
    decisions: StateFile,
    told: StateFile,
}

impl SharingFiles {
    /// In the directory that `CacheDirectory=` made, if there is one.
    pub fn from_env() -> Option<Self> {
        Some(Self {
            decisions: StateFile::in_cache("sharing-decisions")?,
            told: StateFile::in_cache("share-keys-told")?,
        })
    }
}

/// Takes over the decisions of the last process.
pub(super) async fn restore(files: SharingFiles, holdings: Holdings) {
    let read = move || match files.decisions.read() {
        Ok(Some(bytes)) => match holdings.share.restore(&bytes) {
            Some(count) => log::debug!("{count} decisions about sharing are known"),
            None => log::debug!("the saved decisions about sharing are not of this rule"),
        },
        Ok(None) => {}
        Err(error) => log::debug!("no saved decisions about sharing: {}", chain(&error)),
    };
    // A panic is in the journal by then.
    spawn_blocking(read).await.ok();
}

/// Saves the decisions for the next process.
pub(super) fn save(files: &SharingFiles, holdings: &Holdings) {
    if let Err(error) = files.decisions.write(&holdings.share.save()) {
        log::debug!(
            "the decisions about sharing are not saved: {}",
            chain(&error)
        );
    }
}

/// Tells the owner once, of each set of keys, what the keys have signed that this machine trusts and
/// that are not in `share.keys`.
pub(super) async fn tell_of_other_keys(
    files: Option<SharingFiles>,
    setup: Arc<Setup>,
    holdings: Holdings,
) {
    let others = setup.trusted_keys_not_shared();
    let rule = setup.share_rule();
    if others.is_empty() || !matches!(rule, SharePaths::Signed | SharePaths::Built) {
        return;
    }
    let told: Vec<_> = others.iter().map(PublicKey::to_string).collect();
    let told = told.join("\n");
    let is_told = |files: &SharingFiles| {
        let before = files.told.read();
        before.is_ok_and(|before| before.as_deref() == Some(told.as_bytes()))
    };
    if files.as_ref().is_some_and(is_told) {
        return;
    }
    let keys = TrustedKeys::from_iter(others);
    let counted = holdings.store.count_signed_by_others(&holdings.share, keys);
    let Some(found) = counted.await else { return };
    if found.paths > 0 {
        log::warn!(
            "{}",
            notice(&found, &setup.share_keys_with(&found.key_names))
        );
    }
    // After a count that was cut off before it found anything the next start counts again.
    if let Some(files) = files.filter(|_| found.paths > 0 || found.is_complete)
        && let Err(error) = files.told.write(told.as_bytes())
    {
        log::debug!("that the owner was told is not saved: {}", chain(&error));
    }
}

fn notice(found: &SignedByOthers, line: &str) -> String {
    let names: Vec<_> = found.key_names.iter().map(String::as_str).collect();
    format!(
        "{}{} paths are not shared: of the keys that this machine trusts only {} signed them, and \
         share.keys does not have it; to share them, set in peerix.toml: {line}",
        if found.is_complete { "" } else { "at least " },
        found.paths,
        names.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_has_count_names_and_line() {
        let mut found = SignedByOthers {
            paths: 7,
            key_names: ["a-1".to_owned(), "b-1".to_owned()].into(),
            is_complete: true,
        };
        let text = notice(&found, "share.keys = [\"a-1\"]");
        assert!(text.starts_with("7 paths are not shared"), "{text}");
        assert!(text.contains("a-1, b-1"), "{text}");
        assert!(text.ends_with("share.keys = [\"a-1\"]"), "{text}");
        found.is_complete = false;
        assert!(notice(&found, "").starts_with("at least 7 paths"));
    }
}
