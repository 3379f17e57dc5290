//! What may leave this machine: the sharing rule, and the signatures that go with a path.

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use sha2::{Digest, Sha256};

use super::LocalPath;
use crate::{
    config::{Globs, SharePaths},
    format::{
        PathInfo, SecretKey, Signature, StoreDir, StorePath, StorePathHash, TrustedKeys,
        signature::fingerprint,
    },
};

/// Most paths that are read to decide about one; the closure of a NixOS system has some 2,000.
const MOST_VISITED: usize = 20_000;

/// Decisions remembered with their signatures, about 250 bytes each.
const DECISIONS: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// References remembered as shared, about 100 bytes each: as many as one decision may visit.
const SHARED: NonZeroUsize = NonZeroUsize::new(MOST_VISITED).unwrap();

/// Whether a path that is held is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is, with the signatures to send.
    Shared(PathInfo),
    /// It is not.
    NotShared(NotSharedReason),
}

/// Why a path is not shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSharedReason {
    /// `share.paths` is `none`.
    #[error("nothing is shared: share.paths is \"none\"")]
    Nothing,
    /// `share.paths` is `signed`, and it is not.
    #[error("no key of share.keys has signed it")]
    NotSigned,
    /// A glob of `share.exclude` matches, and no key of `share.keys` has signed it.
    #[error("its name matches share.exclude, and no key of share.keys has signed it")]
    Excluded,
    /// Content-addressed and unsigned: source trees and the like.
    #[error("it is content-addressed, as sources are, and no key of share.keys has signed it")]
    ContentAddressed,
    /// Neither signed nor built here: imported without signatures.
    #[error("it was not built here, and no key of share.keys has signed it")]
    NotBuiltHere,
    /// Something that it refers to, perhaps through others, is not shared.
    #[error("it refers to {}, which is not shared: {reason}", reference.basename())]
    ReferenceNotShared {
        /// What it refers to.
        reference: StorePath,
        /// Why that is not shared.
        reason: Box<NotSharedReason>,
    },
    /// No longer valid, or nothing that the database says of it makes sense.
    #[error("the database does not have it")]
    NotHeld,
    /// The database says that it refers to itself through others, which Nix never makes.
    #[error("it refers to itself through others")]
    Cycle,
    /// More than 20,000 paths would have to be looked at.
    #[error("it refers to too many paths")]
    TooMany,
}

/// The sharing rule with all that it needs. What it has decided is remembered in it, so new
/// settings are a new policy.
pub struct SharePolicy {
    store_dir: StoreDir,
    rule: SharePaths,
    exclude: Globs,
    /// Those of `share.keys`, and the public halves of `signing`.
    keys: TrustedKeys,
    signing: Vec<SecretKey>,
    memory: Mutex<Memory>,
}

/// Positive decisions only: a path that is shared stays shared as long as its row is the same,
/// one that is not may become so by what happens to others.
struct Memory {
    decisions: LruCache<i64, Remembered>,
    /// Shared, whatever refers to them: by id, and by hash in case the database is another one.
    shared: LruCache<(i64, StorePathHash), ()>,
}

struct Remembered {
    /// Of the row that was decided about.
    digest: [u8; 32],
    /// What to send instead of the row's own signatures.
    signatures: Option<Vec<Signature>>,
}

/// What a path's own row says about it.
enum Judgement {
    Signed,
    /// Shared if all that it refers to is.
    Built,
    /// Shared, whatever it refers to.
    Freely,
    Refused(NotSharedReason),
}

impl SharePolicy {
    /// `rule` and `exclude` as in `[share]`, `keys` those of `share.keys`, and the keys that sign
    /// what was built here, which belong to `keys` by themselves.
    pub fn new(
        store_dir: StoreDir,
        rule: SharePaths,
        exclude: Globs,
        mut keys: TrustedKeys,
        signing: Vec<SecretKey>,
    ) -> Self {
        keys.extend(signing.iter().map(SecretKey::public_key));
        let memory = Memory {
            decisions: LruCache::new(DECISIONS),
            shared: LruCache::new(SHARED),
        };
        Self {
            store_dir,
            rule,
            exclude,
            keys,
            signing,
            memory: Mutex::new(memory),
        }
    }

    /// Decides about `path`; `lookup` finds what it refers to, when that matters.
    pub fn decide<E>(
        &self,
        path: LocalPath,
        lookup: impl FnMut(StorePathHash) -> Result<Option<LocalPath>, E>,
    ) -> Result<Decision, E> {
        if self.rule == SharePaths::None {
            return Ok(Decision::NotShared(NotSharedReason::Nothing));
        }
        let signed_text = fingerprint(&self.store_dir, &path.info);
        let digest = digest(&signed_text, &path);
        if let Some(signatures) = self.recall(path.id, &digest) {
            return Ok(Decision::Shared(with_signatures(path.info, signatures)));
        }

        let signatures = match self.judge(&path) {
            Judgement::Refused(reason) => return Ok(Decision::NotShared(reason)),
            Judgement::Signed => None,
            Judgement::Freely => self.sign(&signed_text, &path.info),
            Judgement::Built => {
                if let Some(reason) = self.refused_reference(&path, lookup)? {
                    return Ok(Decision::NotShared(reason));
                }
                self.sign(&signed_text, &path.info)
            }
        };
        let remembered = Remembered {
            digest,
            signatures: signatures.clone(),
        };
        let mut memory = self.memory();
        memory.decisions.put(path.id, remembered);
        memory.shared.put(key(&path), ());
        drop(memory);
        Ok(Decision::Shared(with_signatures(path.info, signatures)))
    }

    fn judge(&self, path: &LocalPath) -> Judgement {
        use NotSharedReason::{ContentAddressed, Excluded, NotBuiltHere, NotSigned, Nothing};

        if self.rule == SharePaths::None {
            return Judgement::Refused(Nothing);
        }
        if self.keys.verify(&self.store_dir, &path.info).is_some() {
            return Judgement::Signed;
        }
        if self.rule == SharePaths::Signed {
            return Judgement::Refused(NotSigned);
        }
        if self.exclude.matches(path.info.path.name()) {
            return Judgement::Refused(Excluded);
        }
        if self.rule == SharePaths::All {
            return Judgement::Freely;
        }
        if path.info.ca.is_some() {
            return Judgement::Refused(ContentAddressed);
        }
        if !path.ultimate {
            return Judgement::Refused(NotBuiltHere);
        }
        Judgement::Built
    }

    /// Walks what `root` refers to, as far as it was built here, depth first: what has been found
    /// shared stays remembered even when something else is refused.
    fn refused_reference<E>(
        &self,
        root: &LocalPath,
        mut lookup: impl FnMut(StorePathHash) -> Result<Option<LocalPath>, E>,
    ) -> Result<Option<NotSharedReason>, E> {
        let mut stack = vec![Visit::new(root)];
        // By path; true once all below it is known to be shared.
        let mut visited = HashMap::from([(key(root), false)]);

        while let Some(visit) = stack.last_mut() {
            let Some((id, reference)) = visit.pending.pop() else {
                let done = visit.key;
                visited.insert(done, true);
                self.memory().shared.put(done, ());
                stack.pop();
                continue;
            };
            let reference_key = (id, reference.hash());
            if reference_key == visit.key || self.memory().shared.get(&reference_key).is_some() {
                continue;
            }
            let refuse = |reason| {
                Ok(Some(NotSharedReason::ReferenceNotShared {
                    reference: reference.clone(),
                    reason: Box::new(reason),
                }))
            };
            match visited.get(&reference_key) {
                Some(true) => continue,
                Some(false) => return refuse(NotSharedReason::Cycle),
                None if visited.len() >= MOST_VISITED => return refuse(NotSharedReason::TooMany),
                None => {}
            }
            let Some(found) = lookup(reference.hash())? else {
                return refuse(NotSharedReason::NotHeld);
            };
            match self.judge(&found) {
                Judgement::Refused(reason) => return refuse(reason),
                Judgement::Built => {
                    visited.insert(key(&found), false);
                    stack.push(Visit::new(&found));
                }
                Judgement::Signed | Judgement::Freely => {
                    visited.insert(key(&found), true);
                    self.memory().shared.put(key(&found), ());
                }
            }
        }
        Ok(None)
    }

    /// The path's signatures with ours, ours replacing older ones by the same key; none if there
    /// is no key to sign with.
    fn sign(&self, signed_text: &str, info: &PathInfo) -> Option<Vec<Signature>> {
        if self.signing.is_empty() {
            return None;
        }
        let ours = |signature: &&Signature| {
            let name = signature.key_name();
            self.signing.iter().any(|key| key.name() == name)
        };
        let others = info.signatures.iter().filter(|it| !ours(it)).cloned();
        let made = self.signing.iter().map(|key| key.sign(signed_text));
        Some(others.chain(made).collect())
    }

    fn recall(&self, id: i64, digest: &[u8; 32]) -> Option<Option<Vec<Signature>>> {
        let mut memory = self.memory();
        let remembered = memory.decisions.get(&id)?;
        (remembered.digest == *digest).then(|| remembered.signatures.clone())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Each change of it is one call, so it is whole even after a panic.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharePolicy")
            .field("rule", &self.rule)
            .field("keys", &self.keys.len())
            .field("signing", &self.signing)
            .finish_non_exhaustive()
    }
}

/// A path built here whose references are being looked at.
struct Visit {
    key: (i64, StorePathHash),
    pending: Vec<(i64, StorePath)>,
}

impl Visit {
    fn new(path: &LocalPath) -> Self {
        let ids = path.reference_ids.iter().copied();
        Self {
            key: key(path),
            pending: ids.zip(path.info.references.iter().cloned()).collect(),
        }
    }
}

fn key(path: &LocalPath) -> (i64, StorePathHash) {
    (path.id, path.info.path.hash())
}

fn with_signatures(info: PathInfo, signatures: Option<Vec<Signature>>) -> PathInfo {
    match signatures {
        Some(signatures) => PathInfo { signatures, ..info },
        None => info,
    }
}

/// Of everything in a row that a decision depends on.
fn digest(signed_text: &str, path: &LocalPath) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(signed_text);
    digest.update([u8::from(path.ultimate), u8::from(path.info.ca.is_some())]);
    for signature in &path.info.signatures {
        // Neither the text that is signed nor a signature has a line break in it.
        digest.update(format!("\n{signature}"));
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use data_encoding::BASE64;

    use super::*;
    use crate::format::{ContentAddress, NarHash};

    fn secret(name: &str, seed: u8) -> SecretKey {
        let pair = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).to_keypair_bytes();
        SecretKey::parse(&format!("{name}:{}", BASE64.encode(&pair))).expect("key")
    }

    fn path(number: i64, name: &str, references: &[i64]) -> LocalPath {
        let store_path = |number: i64, name: &str| {
            StorePath::from_basename(&format!("{number:032}-{name}")).expect("path")
        };
        let names = references.iter().map(|&it| {
            let name = if it == number { name } else { "reference" };
            store_path(it, name)
        });
        LocalPath {
            info: PathInfo {
                path: store_path(number, name),
                nar_hash: NarHash::from_digest([number as u8; 32]),
                nar_size: 1_000,
                references: names.collect(),
                deriver: None,
                signatures: Vec::new(),
                ca: None,
            },
            id: number,
            ultimate: true,
            reference_ids: references.to_vec(),
        }
    }

    fn signed(mut path: LocalPath, key: &SecretKey) -> LocalPath {
        let signature = key.sign_info(&StoreDir::default(), &path.info);
        path.info.signatures.push(signature);
        path
    }

    fn imported(path: LocalPath) -> LocalPath {
        LocalPath {
            ultimate: false,
            ..path
        }
    }

    fn addressed(mut path: LocalPath) -> LocalPath {
        let ca = ContentAddress::parse(&format!("text:sha256:{}", "0".repeat(52)));
        path.info.ca = Some(ca.expect("content address"));
        path
    }

    /// Paths by number, and how often they were read.
    struct Holdings {
        paths: BTreeMap<i64, LocalPath>,
        reads: usize,
    }

    impl Holdings {
        fn new(paths: impl IntoIterator<Item = LocalPath>) -> Self {
            let paths = paths.into_iter().map(|path| (path.id, path)).collect();
            Self { paths, reads: 0 }
        }

        fn decide(&mut self, policy: &SharePolicy, number: i64) -> Decision {
            let path = self.paths[&number].clone();
            let lookup = |hash: StorePathHash| -> Result<_, Infallible> {
                self.reads += 1;
                let mut all = self.paths.values();
                Ok(all.find(|path| path.info.path.hash() == hash).cloned())
            };
            policy.decide(path, lookup).expect("infallible")
        }

        fn reason(&mut self, policy: &SharePolicy, number: i64) -> NotSharedReason {
            match self.decide(policy, number) {
                Decision::NotShared(reason) => reason,
                Decision::Shared(info) => panic!("{info:?} is shared"),
            }
        }

        fn shares(&mut self, policy: &SharePolicy, number: i64) -> PathInfo {
            match self.decide(policy, number) {
                Decision::Shared(info) => info,
                Decision::NotShared(reason) => panic!("{number}: {reason}"),
            }
        }
    }

    fn policy(rule: SharePaths, signing: Vec<SecretKey>) -> SharePolicy {
        let exclude = Globs::new(["*.drv", "*secret*"]).expect("globs");
        let trusted = [secret("trusted-1", 1).public_key()].into_iter().collect();
        SharePolicy::new(StoreDir::default(), rule, exclude, trusted, signing)
    }

    /// Verifies under `key` alone.
    fn is_signed_by(info: &PathInfo, key: &SecretKey) -> bool {
        let keys: TrustedKeys = [key.public_key()].into_iter().collect();
        keys.verify(&StoreDir::default(), info).is_some()
    }

    #[test]
    fn what_each_rule_shares() {
        use NotSharedReason::{
            ContentAddressed, Excluded, NotBuiltHere, NotSigned, Nothing, ReferenceNotShared,
        };
        use SharePaths::{All, Built, None, Signed};

        let trusted = secret("trusted-1", 1);
        let stranger = secret("stranger-1", 2);
        // The trusted key's name alone.
        let forged = secret("trusted-1", 3);
        let mut altered = signed(path(4, "altered", &[]), &trusted);
        altered.info.nar_size += 1;
        let mut holdings = Holdings::new([
            signed(imported(path(1, "signed", &[])), &trusted),
            signed(path(2, "by-stranger", &[]), &stranger),
            signed(imported(path(3, "forged", &[])), &forged),
            imported(altered),
            path(5, "built", &[]),
            imported(path(6, "imported", &[])),
            addressed(path(7, "source", &[])),
            path(8, "my-secret", &[]),
            signed(path(9, "x.drv", &[]), &trusted),
            signed(addressed(path(10, "signed-source", &[])), &trusted),
            path(11, "refers-to-source", &[7]),
            path(12, "refers-to-built", &[5, 12]),
            signed(path(13, "signed-refers-to-source", &[7]), &trusted),
        ]);
        let because = |reason: NotSharedReason| {
            Some(ReferenceNotShared {
                reference: path(7, "reference", &[]).info.path,
                reason: Box::new(reason),
            })
        };
        type Reason = Option<NotSharedReason>;
        let shared: Reason = Option::None;
        // By number: signed, built, all.
        let expected: [(i64, [Reason; 3]); 13] = [
            (1, [shared.clone(), shared.clone(), shared.clone()]),
            (2, [Some(NotSigned), shared.clone(), shared.clone()]),
            (3, [Some(NotSigned), Some(NotBuiltHere), shared.clone()]),
            (4, [Some(NotSigned), Some(NotBuiltHere), shared.clone()]),
            (5, [Some(NotSigned), shared.clone(), shared.clone()]),
            (6, [Some(NotSigned), Some(NotBuiltHere), shared.clone()]),
            (7, [Some(NotSigned), Some(ContentAddressed), shared.clone()]),
            (8, [Some(NotSigned), Some(Excluded), Some(Excluded)]),
            (9, [shared.clone(), shared.clone(), shared.clone()]),
            (10, [shared.clone(), shared.clone(), shared.clone()]),
            (
                11,
                [Some(NotSigned), because(ContentAddressed), shared.clone()],
            ),
            (12, [Some(NotSigned), shared.clone(), shared.clone()]),
            (13, [shared.clone(), shared.clone(), shared.clone()]),
        ];
        for (number, reasons) in expected {
            for (rule, expected) in [Signed, Built, All].into_iter().zip(reasons) {
                let policy = policy(rule, Vec::new());
                // The second time from memory.
                for _ in 0..2 {
                    let found = match holdings.decide(&policy, number) {
                        Decision::Shared(info) => {
                            assert_eq!(info, holdings.paths[&number].info, "no key to sign with");
                            Option::None
                        }
                        Decision::NotShared(reason) => Some(reason),
                    };
                    assert_eq!(found, expected, "path {number} under {rule:?}");
                }
            }
            assert_eq!(holdings.reason(&policy(None, Vec::new()), number), Nothing);
        }
    }

    #[test]
    fn what_was_built_here_is_signed_on_the_fly() {
        let trusted = secret("trusted-1", 1);
        let [first, second] = [secret("first-1", 4), secret("second-1", 5)];
        let old = secret("first-1", 6);
        let stranger = secret("stranger-1", 7);
        let built = signed(signed(path(1, "built", &[]), &stranger), &old);
        let mut holdings = Holdings::new([
            built,
            signed(path(2, "signed", &[]), &trusted),
            imported(path(3, "imported", &[])),
        ]);
        for rule in [SharePaths::Built, SharePaths::All] {
            let policy = policy(rule, vec![secret("first-1", 4), secret("second-1", 5)]);
            for _ in 0..2 {
                let info = holdings.shares(&policy, 1);
                let names: Vec<_> = info.signatures.iter().map(Signature::key_name).collect();
                assert_eq!(names, ["stranger-1", "first-1", "second-1"]);
                assert!(is_signed_by(&info, &first) && is_signed_by(&info, &second));
                assert!(is_signed_by(&info, &stranger) && !is_signed_by(&info, &old));

                // Others' paths are sent as they are.
                assert_eq!(holdings.shares(&policy, 2), holdings.paths[&2].info);
            }
        }
        let all = policy(SharePaths::All, vec![secret("first-1", 4)]);
        assert!(
            is_signed_by(&holdings.shares(&all, 3), &first),
            "its owner chose to share it"
        );
        let signed_rule = policy(SharePaths::Signed, vec![secret("first-1", 4)]);
        assert_eq!(holdings.reason(&signed_rule, 1), NotSharedReason::NotSigned);
        // What our key has signed is shared without being named in share.keys.
        let ours = signed(path(4, "a", &[]), &first);
        holdings.paths.insert(4, ours.clone());
        assert_eq!(holdings.shares(&signed_rule, 4), ours.info);
    }

    #[test]
    fn everything_below_a_built_path_must_be_shared() {
        let trusted = secret("trusted-1", 1);
        // 1 -> 2 -> 3 -> 4, and 1 -> 5.
        let mut holdings = Holdings::new([
            path(1, "a", &[1, 2, 5]),
            path(2, "reference", &[3]),
            path(3, "reference", &[3, 4]),
            imported(path(4, "reference", &[])),
            signed(imported(path(5, "reference", &[4])), &trusted),
        ]);
        let policy = policy(SharePaths::Built, vec![secret("ours-1", 8)]);
        for number in [1, 2, 3] {
            let NotSharedReason::ReferenceNotShared { reference, reason } =
                holdings.reason(&policy, number)
            else {
                panic!("another reason");
            };
            assert_eq!(reference, holdings.paths[&4].info.path);
            assert_eq!(*reason, NotSharedReason::NotBuiltHere);
        }
        // As soon as the lowest is signed, all are shared: no refusal is remembered.
        let lowest = holdings.paths.remove(&4).expect("there");
        holdings.paths.insert(4, signed(lowest, &trusted));
        for number in [1, 2, 3] {
            holdings.shares(&policy, number);
        }
        holdings.paths.remove(&4);
        holdings.paths.remove(&3);
        assert_eq!(
            holdings.reason(&super::tests::policy(SharePaths::Built, Vec::new()), 2),
            NotSharedReason::ReferenceNotShared {
                reference: path(3, "reference", &[]).info.path,
                reason: Box::new(NotSharedReason::NotHeld),
            }
        );
    }

    #[test]
    fn a_closure_is_read_once() {
        let count = 1_000;
        let chain = (1..=count).map(|number| {
            let below: Vec<_> = (number + 1..=count.min(number + 5)).collect();
            path(number, "reference", &below)
        });
        let mut holdings = Holdings::new(chain);
        let policy = policy(SharePaths::Built, vec![secret("ours-1", 8)]);
        holdings.shares(&policy, 1);
        assert_eq!(holdings.reads as i64, count - 1);
        for number in 1..=count {
            holdings.shares(&policy, number);
        }
        assert_eq!(holdings.reads as i64, count - 1, "all others were known");
    }

    #[test]
    fn a_remembered_decision_is_for_the_same_row_alone() {
        let trusted = secret("trusted-1", 1);
        let original = signed(imported(path(1, "a", &[])), &trusted);
        let mut holdings = Holdings::new([original.clone()]);
        let signed_policy = policy(SharePaths::Signed, Vec::new());
        let built_policy = policy(SharePaths::Built, vec![secret("ours-1", 8)]);
        holdings.shares(&signed_policy, 1);

        let mut changed = original.clone();
        changed.info.nar_hash = NarHash::from_digest([9; 32]);
        let mut unsigned = original.clone();
        unsigned.info.signatures.clear();
        let mut refers = original.clone();
        refers.info.references = vec![path(2, "b", &[]).info.path];
        for other in [changed, unsigned, refers] {
            holdings.paths.insert(1, other);
            assert_eq!(
                holdings.reason(&signed_policy, 1),
                NotSharedReason::NotSigned
            );
        }
        // Another registration, without a signature but with the same facts.
        let built = path(1, "a", &[]);
        holdings.paths.insert(1, built.clone());
        holdings.shares(&built_policy, 1);
        holdings.paths.insert(1, imported(built.clone()));
        assert_eq!(
            holdings.reason(&built_policy, 1),
            NotSharedReason::NotBuiltHere
        );
        holdings.paths.insert(1, addressed(built));
        assert_eq!(
            holdings.reason(&built_policy, 1),
            NotSharedReason::ContentAddressed
        );
    }

    #[test]
    fn nonsense_in_the_database_ends_somewhere() {
        let policy = policy(SharePaths::Built, Vec::new());
        let mut circle = Holdings::new([
            path(1, "a", &[2]),
            path(2, "reference", &[3]),
            path(3, "reference", &[2]),
        ]);
        assert!(matches!(
            circle.reason(&policy, 1),
            NotSharedReason::ReferenceNotShared { reason, .. } if *reason == NotSharedReason::Cycle
        ));

        let most = MOST_VISITED as i64;
        let wide: Vec<_> = (2..=most + 2).collect();
        let rows = wide.iter().map(|&number| path(number, "reference", &[]));
        let rows: BTreeMap<_, _> = rows.map(|row| (row.info.path.hash(), row)).collect();
        let decided = policy.decide(path(1, "a", &wide), |hash| -> Result<_, Infallible> {
            Ok(rows.get(&hash).cloned())
        });
        assert!(matches!(
            decided.expect("infallible"),
            Decision::NotShared(NotSharedReason::ReferenceNotShared { reason, .. })
                if *reason == NotSharedReason::TooMany
        ));
    }

    #[test]
    fn memory_is_bounded() {
        let policy = policy(SharePaths::Built, vec![secret("ours-1", 8)]);
        for number in 1..=DECISIONS.get() as i64 + 100 {
            Holdings::new([path(number, "a", &[])]).shares(&policy, number);
        }
        let memory = policy.memory();
        assert_eq!(memory.decisions.len(), DECISIONS.get());
        assert!(memory.shared.len() <= SHARED.get());
    }

    #[test]
    fn no_secret_is_printed() {
        let secret_text = BASE64.encode(&[8; 32]);
        let policy = policy(SharePaths::Built, vec![secret("ours-1", 8)]);
        let text = format!("{policy:?}");
        assert!(
            text.contains("ours-1") && !text.contains(&secret_text[..20]),
            "{text}"
        );
    }
}
