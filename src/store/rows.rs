//! The rows of the Nix database, and what is made of them.

use rusqlite::{Connection, types::ValueRef};

use sha2::{Digest as _, Sha256};

use super::seen_rows::Digest;
use crate::format::{
    ContentAddress, NarHash, PathInfo, Signature, StoreDir, StorePath, StorePathHash,
    signature::fingerprint,
};

/// The path and its references in one statement: one snapshot, because we sign what we read.
const PATH: &str = "\
    SELECT p.id, p.path, p.hash, p.narSize, p.deriver, p.ultimate, p.sigs, p.ca, f.reference, r.path \
    FROM (SELECT * FROM ValidPaths WHERE path >= ?1 AND path < ?2 ORDER BY path LIMIT 1) p \
    LEFT JOIN Refs f ON f.referrer = p.id \
    LEFT JOIN ValidPaths r ON r.id = f.reference";

const SIGNED_BEFORE: &str = "\
    SELECT id, path, sigs FROM ValidPaths WHERE id < ?1 AND sigs <> '' ORDER BY id DESC LIMIT ?2";

/// What the store knows of a path, read from the database at this very request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPath {
    /// What goes into a narinfo.
    pub info: PathInfo,
    /// Number of its registration; a path that is deleted and made again gets a higher one.
    pub id: i64,
    /// Whether it was built on this machine.
    pub ultimate: bool,
    /// The ids of `info.references`, in that order.
    pub(super) reference_ids: Vec<i64>,
}

impl LocalPath {
    /// Of everything in the row that a decision about sharing depends on. A path that is deleted
    /// and made again has another one.
    pub(super) fn digest(&self, dir: &StoreDir) -> Digest {
        let mut digest = Sha256::new();
        digest.update(self.id.to_be_bytes());
        digest.update(fingerprint(dir, &self.info));
        digest.update([u8::from(self.ultimate), u8::from(self.info.ca.is_some())]);
        for signature in &self.info.signatures {
            // Neither the text that is signed nor a signature has a line break in it.
            digest.update(format!("\n{signature}"));
        }
        digest.finalize().into()
    }
}

/// Compiles the statements: fails where a query would.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare_cached(PATH)?;
    Ok(())
}

/// The valid path with that hash. A row that cannot be understood is not held.
pub(super) fn path(
    connection: &Connection,
    dir: &StoreDir,
    hash: StorePathHash,
) -> rusqlite::Result<Option<LocalPath>> {
    let mut statement = connection.prepare_cached(PATH)?;
    // All names with this hash, and nothing else: '.' is the byte after '-'.
    let first = format!("{dir}/{hash}-");
    let end = format!("{dir}/{hash}.");
    let mut rows = statement.query((first, end))?;

    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let mut found = match local_path(row, dir, hash)? {
        Ok(found) => found,
        Err(fault) => {
            log::debug!(hash:% = hash; "the database has {fault} for this path, so it is not held");
            return Ok(None);
        }
    };
    let mut references = Vec::new();
    let mut next = Some(row);
    while let Some(row) = next {
        match reference(row, dir)? {
            Ok(Some(reference)) => references.push(reference),
            Ok(None) => {}
            Err(fault) => {
                log::debug!(hash:% = hash; "the database has {fault} for this path, so it is not held");
                return Ok(None);
            }
        }
        next = rows.next()?;
    }
    references.sort_unstable();
    (found.info.references, found.reference_ids) = references.into_iter().unzip();
    Ok(Some(found))
}

/// A row that has signatures.
#[derive(Debug)]
pub(super) struct SignedRow {
    pub(super) id: i64,
    /// None if its name is no store path.
    pub(super) hash: Option<StorePathHash>,
    signatures: String,
}

impl SignedRow {
    /// The names of the keys whose signatures it claims to have.
    pub(super) fn key_names(&self) -> impl Iterator<Item = &str> {
        let signatures = self.signatures.split_ascii_whitespace();
        signatures.filter_map(|signature| Some(signature.split_once(':')?.0))
    }
}

/// Up to `most` rows with signatures and an id below `before`, the newest first.
pub(super) fn signed_before(
    connection: &Connection,
    dir: &StoreDir,
    before: i64,
    most: usize,
) -> rusqlite::Result<Vec<SignedRow>> {
    let mut statement = connection.prepare_cached(SIGNED_BEFORE)?;
    let row = |row: &rusqlite::Row<'_>| {
        let path = text(row.get_ref(1)?).and_then(|path| StorePath::parse(dir, path).ok());
        Ok(SignedRow {
            id: row.get(0)?,
            hash: path.map(|path| path.hash()),
            signatures: text(row.get_ref(2)?).unwrap_or_default().to_owned(),
        })
    };
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    statement.query_map((before, most), row)?.collect()
}

/// What makes a row unusable: for the journal at debug.
type Fault = &'static str;

fn local_path(
    row: &rusqlite::Row<'_>,
    dir: &StoreDir,
    hash: StorePathHash,
) -> rusqlite::Result<Result<LocalPath, Fault>> {
    let Some(path) = text(row.get_ref(1)?).and_then(|path| StorePath::parse(dir, path).ok()) else {
        return Ok(Err("no proper name"));
    };
    if path.hash() != hash {
        return Ok(Err("another hash"));
    }
    let nar_hash = text(row.get_ref(2)?).and_then(|hash| NarHash::parse_prefixed(hash).ok());
    let Some(nar_hash) = nar_hash else {
        return Ok(Err("no proper NAR hash"));
    };
    let nar_size = number(row.get_ref(3)?).and_then(|size| u64::try_from(size).ok());
    let Some(nar_size) = nar_size.filter(|&size| size > 0) else {
        return Ok(Err("no NAR size"));
    };
    let ca = match row.get_ref(7)? {
        ValueRef::Null => None,
        ca => match text(ca).map(ContentAddress::parse) {
            Some(Ok(ca)) => Some(ca),
            _ => return Ok(Err("a content address that we do not know")),
        },
    };
    let sigs = text(row.get_ref(6)?).unwrap_or_default();
    Ok(Ok(LocalPath {
        info: PathInfo {
            path,
            nar_hash,
            nar_size,
            references: Vec::new(),
            deriver: text(row.get_ref(4)?).and_then(|path| StorePath::parse(dir, path).ok()),
            signatures: sigs
                .split_ascii_whitespace()
                .filter_map(|sig| Signature::parse(sig).ok())
                .collect(),
            ca,
        },
        id: row.get(0)?,
        ultimate: number(row.get_ref(5)?).is_some_and(|ultimate| ultimate != 0),
        reference_ids: Vec::new(),
    }))
}

fn reference(
    row: &rusqlite::Row<'_>,
    dir: &StoreDir,
) -> rusqlite::Result<Result<Option<(StorePath, i64)>, Fault>> {
    let Some(id) = number(row.get_ref(8)?) else {
        return Ok(Ok(None));
    };
    let path = text(row.get_ref(9)?).and_then(|path| StorePath::parse(dir, path).ok());
    Ok(path
        .map(|path| Some((path, id)))
        .ok_or("a reference without a proper name"))
}

fn text(value: ValueRef<'_>) -> Option<&str> {
    value.as_str().ok()
}

fn number(value: ValueRef<'_>) -> Option<i64> {
    value.as_i64().ok()
}
