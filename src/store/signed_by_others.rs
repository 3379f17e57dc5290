//! How many paths are not shared although a key has signed them that this machine trusts.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{DatabaseError, LocalStore, SharePolicy, database::Database, rows};
use crate::format::{StoreDir, TrustedKeys};

/// Longest time that counting takes.
const COUNT_WITHIN: Duration = Duration::from_millis(100);

/// Rows that are read at once.
const ROWS: usize = 64;

/// The outcome of a count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignedByOthers {
    /// How many paths were found.
    pub paths: usize,
    /// The names of the keys that have signed them.
    pub key_names: BTreeSet<String>,
    /// Whether all paths were looked at.
    pub is_complete: bool,
}

impl LocalStore {
    /// Counts the paths that `policy` does not share and one of `others` has signed, for 100 ms at
    /// most; nothing if the store does not answer.
    pub async fn count_signed_by_others(
        &self,
        policy: &Arc<SharePolicy>,
        others: TrustedKeys,
    ) -> Option<SignedByOthers> {
        let (reply, answer) = oneshot::channel();
        let (dir, policy) = (self.inner.dir.clone(), Arc::clone(policy));
        let job = move |database: &mut Database| {
            match count(database, &dir, &policy, &others) {
                // The daemon may have stopped.
                Ok(found) => drop(reply.send(found)),
                Err(error) => log::debug!("paths signed by other keys are not counted: {error}"),
            }
        };
        self.inner.walks.submit(Box::new(job)).ok()?;
        answer.await.ok()
    }
}

fn count(
    database: &mut Database,
    dir: &StoreDir,
    policy: &SharePolicy,
    others: &TrustedKeys,
) -> Result<SignedByOthers, DatabaseError> {
    let began = Instant::now();
    let mut found = SignedByOthers::default();
    let mut before = i64::MAX;
    loop {
        let rows =
            database.read(|connection| rows::signed_before(connection, dir, before, ROWS))?;
        if rows.is_empty() {
            found.is_complete = true;
            return Ok(found);
        }
        for row in rows {
            if began.elapsed() >= COUNT_WITHIN {
                return Ok(found);
            }
            before = row.id;
            if !row.key_names().any(|name| others.has_name(name)) {
                continue;
            }
            let Some(hash) = row.hash else { continue };
            let path = database.read(|connection| rows::path(connection, dir, hash))?;
            let Some(path) = path else { continue };
            let signature = others.verify(dir, &path.info);
            if let Some(signature) = signature
                && policy.decide_alone(&path, path.digest(dir)) == Some(false)
            {
                found.paths += 1;
                found.key_names.insert(signature.key_name().to_owned());
            }
        }
    }
}
