//! What may leave this machine: the sharing rule, and the signatures that go with a path.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::{
    LocalPath,
    decisions::{Decided, Decisions},
    not_shared::NotSharedReason,
    seen_rows::{Digest, Stamp},
};
use crate::{
    config::{Globs, SharePaths},
    format::{
        PathInfo, SecretKey, Signature, StoreDir, StorePath, StorePathHash, TrustedKeys,
        signature::fingerprint,
    },
};

/// Most paths that are read to decide about one; the closure of a NixOS system has some 2,000.
const MOST_VISITED: usize = 20_000;

/// Whether a path that is held is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is, with the signatures to send.
    Shared(PathInfo),
    /// It is not.
    NotShared(NotSharedReason),
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
    decided: Mutex<Decisions>,
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
        Self {
            store_dir,
            rule,
            exclude,
            keys,
            signing,
            decided: Mutex::new(Decisions::new()),
        }
    }

    /// Whether the row with this digest is shared, if that is known in the state `now` of the
    /// database.
    pub(super) fn is_shared(&self, digest: &Digest, now: &Stamp) -> Option<bool> {
        self.decided().is_shared(digest, now)
    }

    /// Whether `path` is shared, if that follows from its row alone.
    pub(super) fn decide_alone(&self, path: &LocalPath, digest: Digest) -> Option<bool> {
        match self.judge(path) {
            Judgement::Refused(reason) => {
                self.decided().insert(digest, Decided::Refused(reason));
                Some(false)
            }
            Judgement::Signed | Judgement::Freely => {
                self.decided().insert_shared(digest);
                Some(true)
            }
            Judgement::Built => None,
        }
    }

    /// Decides about `path` in the state `now` of the database; `lookup` finds what it refers to,
    /// when that matters.
    pub(super) fn decide<E>(
        &self,
        path: LocalPath,
        now: Stamp,
        lookup: impl FnMut(StorePathHash) -> Result<Option<LocalPath>, E>,
    ) -> Result<Decision, E> {
        let digest = path.digest(&self.store_dir);
        let found = self.decided().find(&digest, &now);
        let decided = match found {
            Some(decided) => decided,
            None => {
                let decided = match self.judge(&path) {
                    Judgement::Refused(reason) => Decided::Refused(reason),
                    Judgement::Signed => Decided::Shared(None),
                    Judgement::Freely => Decided::Shared(self.sign(&path.info)),
                    Judgement::Built => match self.refused_reference(&path, digest, lookup)? {
                        Some(reason) => Decided::ReferenceRefused(reason, now),
                        None => Decided::Shared(self.sign(&path.info)),
                    },
                };
                self.decided().insert(digest, decided.clone());
                decided
            }
        };
        Ok(match decided {
            Decided::Shared(signatures) => Decision::Shared(with_signatures(path.info, signatures)),
            Decided::Refused(reason) | Decided::ReferenceRefused(reason, _) => {
                Decision::NotShared(reason)
            }
        })
    }

    /// The paths that are known to be shared, for the next process: the content of a file.
    pub fn save(&self) -> Vec<u8> {
        self.decided().to_bytes(&self.rule_digest())
    }

    /// Takes over what [`Self::save`] gave, if it is sound and of the same rule and keys; returns
    /// how many paths that are.
    pub fn restore(&self, bytes: &[u8]) -> Option<usize> {
        let rule = self.rule_digest();
        self.decided().restore(&rule, bytes)
    }

    /// Of all that decides whether a row is shared.
    fn rule_digest(&self) -> Digest {
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_unstable();
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        };
        add(self.store_dir.as_str().as_bytes());
        add(format!("{:?}", self.rule).as_bytes());
        add(&keys.len().to_be_bytes());
        for (name, key) in keys {
            add(name.as_bytes());
            add(key);
        }
        for pattern in self.exclude.patterns() {
            add(pattern.as_bytes());
        }
        digest.finalize().into()
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
        digest: Digest,
        mut lookup: impl FnMut(StorePathHash) -> Result<Option<LocalPath>, E>,
    ) -> Result<Option<NotSharedReason>, E> {
        if self.decided().is_known_as_shared(&digest) {
            return Ok(None);
        }
        let mut stack = vec![Visit::new(root, digest)];
        // By path; true once all below it is known to be shared.
        let mut visited = HashMap::from([(key(root), false)]);

        while let Some(visit) = stack.last_mut() {
            let Some((id, reference)) = visit.pending.pop() else {
                visited.insert(visit.key, true);
                self.decided().insert_shared(visit.digest);
                stack.pop();
                continue;
            };
            let reference_key = (id, reference.hash());
            if reference_key == visit.key {
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
            let digest = found.digest(&self.store_dir);
            if self.decided().is_known_as_shared(&digest) {
                visited.insert(key(&found), true);
                continue;
            }
            match self.judge(&found) {
                Judgement::Refused(reason) => return refuse(reason),
                Judgement::Built => {
                    visited.insert(key(&found), false);
                    stack.push(Visit::new(&found, digest));
                }
                Judgement::Signed | Judgement::Freely => {
                    visited.insert(key(&found), true);
                    self.decided().insert_shared(digest);
                }
            }
        }
        Ok(None)
    }

    /// The path's signatures with ours, ours replacing older ones by the same key; none if there
    /// is no key to sign with.
    fn sign(&self, info: &PathInfo) -> Option<Vec<Signature>> {
        if self.signing.is_empty() {
            return None;
        }
        let signed_text = fingerprint(&self.store_dir, info);
        let ours = |signature: &&Signature| {
            let name = signature.key_name();
            self.signing.iter().any(|key| key.name() == name)
        };
        let others = info.signatures.iter().filter(|it| !ours(it)).cloned();
        let made = self.signing.iter().map(|key| key.sign(&signed_text));
        Some(others.chain(made).collect())
    }

    fn decided(&self) -> MutexGuard<'_, Decisions> {
        // Each change of it is one call, so it is whole even after a panic.
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
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
    digest: Digest,
    pending: Vec<(i64, StorePath)>,
}

impl Visit {
    fn new(path: &LocalPath, digest: Digest) -> Self {
        let ids = path.reference_ids.iter().copied();
        Self {
            key: key(path),
            digest,
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use data_encoding::BASE64;

    use super::{super::seen_rows::SeenRows, *};
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

        /// In a state of the database of its own.
        fn decide(&mut self, policy: &SharePolicy, number: i64) -> Decision {
            self.decide_at(policy, number, SeenRows::new().stamp())
        }

        fn decide_at(&mut self, policy: &SharePolicy, number: i64, now: &Stamp) -> Decision {
            let path = self.paths[&number].clone();
            let lookup = |hash: StorePathHash| -> Result<_, Infallible> {
                self.reads += 1;
                let mut all = self.paths.values();
                Ok(all.find(|path| path.info.path.hash() == hash).cloned())
            };
            policy
                .decide(path, now.clone(), lookup)
                .expect("infallible")
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
        // As soon as the lowest is signed, all are shared: no refusal outlives a change.
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
        let now = SeenRows::new().stamp().clone();
        let decided = policy.decide(path(1, "a", &wide), now, |hash| -> Result<_, Infallible> {
            Ok(rows.get(&hash).cloned())
        });
        assert!(matches!(
            decided.expect("infallible"),
            Decision::NotShared(NotSharedReason::ReferenceNotShared { reason, .. })
                if *reason == NotSharedReason::TooMany
        ));
    }

    #[test]
    fn a_refusal_for_a_reference_holds_until_the_database_changes() {
        let mut holdings = Holdings::new([
            path(1, "a", &[2]),
            path(2, "reference", &[3]),
            imported(path(3, "reference", &[])),
        ]);
        let policy = policy(SharePaths::Built, Vec::new());
        let mut seen = SeenRows::new();
        let refused = holdings.decide_at(&policy, 1, seen.stamp());
        assert!(matches!(refused, Decision::NotShared(_)), "{refused:?}");
        let digest = holdings.paths[&1].digest(&StoreDir::default());
        assert_eq!(policy.is_shared(&digest, seen.stamp()), Some(false));
        let reads = holdings.reads;
        assert_eq!(holdings.decide_at(&policy, 1, seen.stamp()), refused);
        assert_eq!(holdings.reads, reads, "from memory");

        seen.set_version(1);
        assert_eq!(policy.is_shared(&digest, seen.stamp()), None);
        holdings.paths.insert(3, path(3, "reference", &[]));
        let shared = holdings.decide_at(&policy, 1, seen.stamp());
        assert!(matches!(shared, Decision::Shared(_)), "{shared:?}");
        assert_eq!(
            policy.is_shared(&digest, SeenRows::new().stamp()),
            Some(true)
        );
    }

    #[test]
    fn what_follows_from_the_row_alone_needs_no_walk() {
        let trusted = secret("trusted-1", 1);
        let policy = policy(SharePaths::Built, Vec::new());
        for (path, expected) in [
            (signed(path(1, "a", &[9]), &trusted), Some(true)),
            (imported(path(2, "a", &[])), Some(false)),
            (path(3, "my-secret", &[]), Some(false)),
            (path(4, "a", &[]), None),
        ] {
            let digest = path.digest(&StoreDir::default());
            assert_eq!(policy.decide_alone(&path, digest), expected);
            assert_eq!(policy.is_shared(&digest, SeenRows::new().stamp()), expected);
        }
    }

    #[test]
    fn what_is_saved_is_known_to_the_same_rule_alone() {
        let build = |rule, exclude: &[&str], seed| {
            let keys = [secret("trusted-1", seed).public_key()];
            let exclude = Globs::new(exclude.iter().copied()).expect("globs");
            let keys = keys.into_iter().collect();
            SharePolicy::new(StoreDir::default(), rule, exclude, keys, Vec::new())
        };
        let policy = build(SharePaths::Built, &["a"], 1);
        let mut holdings = Holdings::new([path(1, "b", &[2]), path(2, "reference", &[])]);
        holdings.shares(&policy, 1);
        let bytes = policy.save();
        let same = build(SharePaths::Built, &["a"], 1);
        assert_eq!(same.restore(&bytes), Some(2));
        let reads = holdings.reads;
        holdings.shares(&same, 1);
        assert_eq!(holdings.reads, reads, "no walk");
        for other in [
            build(SharePaths::Signed, &["a"], 1),
            build(SharePaths::Built, &["b"], 1),
            build(SharePaths::Built, &["a"], 2),
        ] {
            assert_eq!(other.restore(&bytes), None);
        }
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
