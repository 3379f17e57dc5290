//! Layouts of large trees that were walked lately: a client that goes on after a break, or asks
//! for ranges, does not have the tree walked each time.
//!
//! A layout follows from a tree's content, which the NAR hash names, so an old one is never wrong
//! for a sound tree; that a tree is no longer sound shows as its files are opened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::format::{NarHash, PathInfo, StorePathHash, nar::Layout};

/// Memory for layouts, in all. One of 20,000 files takes about 5 MiB.
const MOST_BYTES: usize = 12 << 20;

/// Smaller ones are not kept: their trees are walked in less than a millisecond.
const LEAST_BYTES: usize = 64 << 10;

/// What a layout is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    path: StorePathHash,
    nar: NarHash,
}

impl Key {
    pub(super) fn of(info: &PathInfo) -> Self {
        Self {
            path: info.path.hash(),
            nar: info.nar_hash,
        }
    }
}

/// The layouts, the one used last dropped last.
#[derive(Debug)]
pub(super) struct Layouts(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    layouts: LruCache<Key, Arc<Layout>>,
    bytes: usize,
}

impl Default for Layouts {
    fn default() -> Self {
        Self(Mutex::new(Kept {
            layouts: LruCache::unbounded(),
            bytes: 0,
        }))
    }
}

impl Layouts {
    /// The layout of that path, if it is kept.
    pub(super) fn find(&self, key: Key) -> Option<Arc<Layout>> {
        self.lock().layouts.get(&key).map(Arc::clone)
    }

    /// Keeps a layout whose root is a directory, if it is worth it.
    pub(super) fn keep(&self, key: Key, layout: &Arc<Layout>) {
        let bytes = layout.memory_bytes();
        if !(LEAST_BYTES..=MOST_BYTES).contains(&bytes) {
            return;
        }
        let mut kept = self.lock();
        kept.bytes += bytes;
        if let Some(before) = kept.layouts.put(key, Arc::clone(layout)) {
            kept.bytes -= before.memory_bytes();
        }
        while kept.bytes > MOST_BYTES {
            let Some((_, oldest)) = kept.layouts.pop_lru() else {
                break;
            };
            kept.bytes -= oldest.memory_bytes();
        }
    }

    /// Forgets a layout that its tree was found not to have.
    pub(super) fn forget(&self, key: Key) {
        let mut kept = self.lock();
        if let Some(layout) = kept.layouts.pop(&key) {
            kept.bytes -= layout.memory_bytes();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing between the changes of one call can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{StorePath, nar::LayoutBuilder};

    fn key(number: u32) -> Key {
        let path = StorePath::from_basename(&format!("{number:032}-x")).expect("path");
        Key {
            path: path.hash(),
            nar: NarHash::from_digest([0; 32]),
        }
    }

    fn layout(files: u32) -> Arc<Layout> {
        let mut builder = LayoutBuilder::new();
        builder.enter_directory(b"").expect("root");
        for file in 0..files {
            let name = format!("{file:08}");
            builder.file(name.as_bytes(), false, 1).expect("file");
        }
        builder.leave_directory().expect("root");
        Arc::new(builder.finish().expect("layout"))
    }

    #[test]
    fn only_what_is_worth_it_is_kept_and_not_too_much_of_it() {
        let layouts = Layouts::default();
        layouts.keep(key(0), &layout(3));
        assert!(layouts.find(key(0)).is_none(), "too small");
        layouts.keep(key(0), &layout(100_000));
        assert!(layouts.find(key(0)).is_none(), "too large");

        let some = layout(10_000);
        let fit = MOST_BYTES / some.memory_bytes();
        for number in 0..=fit as u32 {
            layouts.keep(key(number), &some);
            // Used all the time.
            assert!(layouts.find(key(0)).is_some());
        }
        assert!(layouts.find(key(1)).is_none(), "the oldest made room");
        assert!(layouts.lock().bytes <= MOST_BYTES);

        // Twice is not more than once.
        let before = layouts.lock().bytes;
        layouts.keep(key(0), &some);
        assert_eq!(layouts.lock().bytes, before);
        for number in 0..=fit as u32 {
            layouts.forget(key(number));
        }
        assert_eq!(layouts.lock().bytes, 0);
    }
}
