//! A small store: files, and a database with the schema of Nix.

use std::{
    fs,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use rusqlite::Connection;

use super::item::Item;

/// The schema of Nix (`libstore/schema.sql` and `ca-specific-schema.sql` left out).
const SCHEMA: &str = "
    create table ValidPaths (
        id               integer primary key autoincrement not null,
        path             text unique not null,
        hash             text not null,
        registrationTime integer not null,
        deriver          text,
        narSize          integer,
        ultimate         integer,
        sigs             text,
        ca               text
    );
    create table Refs (
        referrer  integer not null,
        reference integer not null,
        primary key (referrer, reference),
        foreign key (referrer) references ValidPaths(id) on delete cascade,
        foreign key (reference) references ValidPaths(id) on delete restrict
    );
    create index IndexReferrer on Refs(referrer);
    create index IndexReference on Refs(reference);
    create trigger DeleteSelfRefs before delete on ValidPaths
    begin
        delete from Refs where referrer = old.id and reference = old.id;
    end;
    create table DerivationOutputs (
        drv  integer not null,
        id   text not null,
        path text not null,
        primary key (drv, id),
        foreign key (drv) references ValidPaths(id) on delete cascade
    );
    create index IndexDerivationOutputs on DerivationOutputs(path);
";

/// A store in a directory, with `store` and `db.sqlite` in it.
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    /// An empty one.
    pub(crate) fn new(directory: &Path) -> Self {
        let store = Self {
            directory: directory.to_owned(),
        };
        fs::create_dir(store.files()).expect("store");
        let database = Connection::open(store.database()).expect("database");
        database
            .pragma_update(None, "journal_mode", "wal")
            .expect("wal");
        database.execute_batch(SCHEMA).expect("schema");
        database.close().expect("close");
        store
    }

    /// Where the files of its paths are.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.join("store")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.directory.join("db.sqlite")
    }

    /// Adds a path as Nix does: first the files, then the row.
    pub(crate) fn add(&self, item: &Item) {
        item.tree
            .write(&self.files().join(item.info.path.basename()));
        self.register(item);
    }

    /// The row alone.
    pub(crate) fn register(&self, item: &Item) {
        let info = &item.info;
        let signatures: Vec<_> = info.signatures.iter().map(ToString::to_string).collect();
        let mut database = Connection::open(self.database()).expect("database");
        let change = database.transaction().expect("transaction");
        change
            .execute(
                "insert into ValidPaths (path, hash, registrationTime, narSize, ultimate, sigs, ca) \
                 values (?1, ?2, 1700000000, ?3, ?4, ?5, ?6)",
                (
                    item.path(),
                    format!("sha256:{}", HEXLOWER.encode(info.nar_hash.digest())),
                    i64::try_from(info.nar_size).expect("size"),
                    item.ultimate.then_some(1),
                    (!signatures.is_empty()).then(|| signatures.join(" ")),
                    info.ca.as_ref().map(ToString::to_string),
                ),
            )
            .expect("row");
        for reference in &info.references {
            change
                .execute(
                    "insert into Refs (referrer, reference) select a.id, b.id \
                     from ValidPaths a, ValidPaths b where a.path = ?1 and b.path = ?2",
                    (item.path(), format!("/nix/store/{}", reference.basename())),
                )
                .expect("reference");
        }
        change.commit().expect("commit");
        database.close().expect("close");
    }

    /// Takes a path away as the garbage collector does: first the row, then the files.
    pub(crate) fn forget(&self, item: &Item) {
        let database = Connection::open(self.database()).expect("database");
        database
            .pragma_update(None, "foreign_keys", 1)
            .expect("foreign keys");
        let row = database.execute("delete from ValidPaths where path = ?1", [item.path()]);
        assert_eq!(row.expect("row"), 1);
        database.close().expect("close");
        let root = self.files().join(item.info.path.basename());
        let removed = if root.is_dir() {
            fs::remove_dir_all(root)
        } else {
            fs::remove_file(root)
        };
        removed.expect("files");
    }
}
