//! Promise 4, the holder's half: an answer to an ask is exact when it is sent. What is registered,
//! signed or collected between two asks shows in the second.

#[expect(dead_code, reason = "each test uses its part")]
#[path = "fixtures/local_store.rs"]
mod local_store;
#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use peerix::{
    config::{Globs, SharePaths},
    format::{StoreDir, TrustedKeys},
    protocol::PathState::{self, Absent, Present, Undecided},
    store::{LocalStore, SharePolicy},
};
use rusqlite::Connection;
use support::{
    PATIENCE,
    item::{Item, foreign_key, trusted_key},
    store::Store,
};

struct Machine {
    dir: tempfile::TempDir,
    store: Store,
    reader: LocalStore,
    policy: Arc<SharePolicy>,
}

impl Machine {
    fn new(rule: SharePaths) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::new(dir.path());
        let settings = local_store::settings(&store.files(), &store.database());
        Self {
            reader: LocalStore::unchecked(&settings),
            policy: Arc::new(policy(rule)),
            store,
            dir,
        }
    }

    /// One ask.
    async fn ask(&self, items: &[&Item]) -> Vec<PathState> {
        let hashes = items.iter().map(|item| item.info.path.hash()).collect();
        self.reader.which_shared(hashes, &self.policy).await
    }

    /// Asks as a peer does: again for what is undecided.
    async fn states(&self, items: &[&Item]) -> Vec<PathState> {
        let began = Instant::now();
        loop {
            let states = self.ask(items).await;
            if !states.contains(&Undecided) {
                return states;
            }
            assert!(began.elapsed() < PATIENCE, "still undecided: {states:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn sign(&self, item: &Item) -> Item {
        let signed = item.clone().sign(&trusted_key());
        let database = Connection::open(self.store.database()).expect("database");
        let sql = "update ValidPaths set sigs = ?1 where path = ?2";
        let signature = signed.info.signatures[0].to_string();
        let changed = database.execute(sql, (signature, item.path()));
        assert_eq!(changed.expect("sign"), 1);
        signed
    }
}

fn policy(rule: SharePaths) -> SharePolicy {
    let exclude = Globs::new(["*.drv"]).expect("globs");
    let keys = TrustedKeys::from_iter([trusted_key().public_key()]);
    SharePolicy::new(StoreDir::default(), rule, exclude, keys, Vec::new())
}

#[tokio::test]
async fn what_changed_a_moment_ago_is_in_the_answer() {
    // With a writer that stays, and between writers that come and go.
    for stays in [true, false] {
        let machine = Machine::new(SharePaths::Signed);
        let _writer = stays.then(|| {
            let writer = Connection::open(machine.store.database()).expect("database");
            let count = "select count(*) from ValidPaths";
            writer
                .query_row(count, [], |row| row.get::<_, i64>(0))
                .expect("read");
            writer
        });
        for number in 0..50 {
            let item = Item::unsigned(&format!("path-{number}"), 100);
            assert_eq!(machine.states(&[&item]).await, [Absent], "not there yet");
            machine.store.add(&item);
            assert_eq!(machine.states(&[&item]).await, [Absent], "not signed yet");
            let item = machine.sign(&item);
            assert_eq!(machine.states(&[&item]).await, [Present], "{number}");
            assert_eq!(machine.states(&[&item]).await, [Present], "{number} again");
            machine.store.forget(&item);
            assert_eq!(machine.states(&[&item]).await, [Absent], "collected");
        }
    }
}

#[tokio::test]
async fn a_full_ask_has_one_state_a_hash_in_their_order() {
    let machine = Machine::new(SharePaths::Signed);
    let item = |number: usize| match number % 4 {
        0 => Item::signed(&format!("signed-{number}"), 100),
        1 => Item::unsigned(&format!("unsigned-{number}"), 100),
        2 => Item::unsigned(&format!("theirs-{number}"), 100).sign(&foreign_key()),
        _ => Item::signed(&format!("absent-{number}"), 100),
    };
    let items: Vec<_> = (0..56).map(item).collect();
    for (number, item) in items.iter().enumerate() {
        if number % 4 != 3 {
            machine.store.add(item);
        }
    }
    // The files of one are gone.
    fs::remove_dir_all(machine.store.files().join(items[0].info.path.basename())).expect("files");
    let expected: Vec<_> = (0..56)
        .map(|number| {
            if number % 4 == 0 && number > 0 {
                Present
            } else {
                Absent
            }
        })
        .collect();
    let asked: Vec<_> = items.iter().collect();
    for _ in 0..2 {
        assert_eq!(machine.states(&asked).await, expected);
    }
    assert_eq!(machine.states(&[]).await, []);
}

#[tokio::test]
async fn a_build_is_shared_as_soon_as_all_below_it_is() {
    let machine = Machine::new(SharePaths::Built);
    let lowest = Item::unsigned("lowest", 100);
    let middle = Item::unsigned("middle", 100).built().refer_to(&[&lowest]);
    let top = Item::unsigned("top", 100).built().refer_to(&[&middle]);
    for item in [&lowest, &middle, &top] {
        machine.store.add(item);
    }
    let all = [&lowest, &middle, &top];
    for _ in 0..2 {
        assert_eq!(machine.states(&all).await, [Absent; 3]);
    }
    machine.sign(&lowest);
    for _ in 0..2 {
        assert_eq!(machine.states(&all).await, [Present; 3]);
    }
}

#[tokio::test]
async fn a_long_walk_delays_nothing_else_and_is_found_done_by_a_later_ask() {
    let machine = Machine::new(SharePaths::Built);
    let signed = Item::signed("signed", 100);
    machine.store.add(&signed);
    let mut below = vec![signed.clone()];
    for number in 0..300 {
        let item = Item::unsigned(&format!("chain-{number}"), 100).built();
        let item = item.refer_to(&[below.last().expect("not empty")]);
        machine.store.add(&item);
        below.push(item);
    }
    let top = below.last().expect("not empty");
    assert_eq!(machine.states(&[&signed]).await, [Present]);
    let states = machine.ask(&[top, &signed]).await;
    assert_eq!(states[1], Present, "beside a walk");
    assert!(matches!(states[0], Undecided | Present), "{states:?}");
    assert_eq!(machine.states(&[top, &signed]).await, [Present; 2]);

    // What the walk found outlives the process; another rule ignores it.
    let next = policy(SharePaths::Built);
    assert_eq!(next.restore(&machine.policy.save()), Some(below.len()));
    assert_eq!(
        policy(SharePaths::Signed).restore(&machine.policy.save()),
        None
    );
}

#[tokio::test]
async fn what_lasts_is_absent() {
    let machine = Machine::new(SharePaths::All);
    let item = Item::unsigned("path", 100);
    machine.store.add(&item);
    let aside = machine.dir.path().join("aside");
    fs::rename(machine.store.database(), &aside).expect("rename");
    assert_eq!(
        machine.ask(&[&item]).await,
        [Absent],
        "there is no database"
    );
    fs::write(machine.store.database(), "no database ".repeat(1_000)).expect("write");
    assert_eq!(
        machine.ask(&[&item]).await,
        [Absent],
        "it is something else"
    );
    fs::rename(&aside, machine.store.database()).expect("rename");
    assert_eq!(machine.states(&[&item]).await, [Present], "it is back");
}
