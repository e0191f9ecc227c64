//! Filling an empty store with another node's state, chunk by chunk.
//!
//! Each chunk is verified against the root before it is written, and the whole once more before it counts: only then is
//! the head written, which makes the state the store's. Until then a row says that what lies there is of a restore under
//! way; whoever finds it (the next restore, the first block, the next start) clears the store. So a restore that was cut
//! off, at whatever instant, leaves nothing.
//!
//! The tree is built by `jmt`, whose builder may not change threads: it has one of its own, which ends with the
//! [`Restore`].

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use fjall::{Guard, OwnedWriteBatch, PersistMode, Readable, Slice};
use jmt::RootHash;
use jmt::restore::{JellyfishMerkleRestore, StateSnapshotReceiver};
use jmt::storage::{Node, NodeBatch, TreeWriter};
use sha2::Sha256;

use super::database::{HEAD, encode_head};
use super::node::{self, Leaf};
use super::snapshot::{Head, Snapshot};
use super::tree::{EMPTY_ROOT, Tables, encode_preimage, key_hash, preimage_row, value_row};
use super::{AppHash, Store, StoreError, chunk, fault};

/// The row that says what became of a restore: one byte of [`UNDER_WAY`] or [`RESTORED`].
pub(super) const RESTORE: &[u8] = b"mrestore";
/// What lies in the store is part of a state.
pub(super) const UNDER_WAY: u8 = 0;
/// The store holds a restored state and no block since: it may still be replaced by another.
pub(super) const RESTORED: u8 = 1;

/// Rows removed in one batch when a store is cleared.
const CLEAR_ROWS: usize = 10_000;

/// A restore under way. Dropping it gives it up.
pub struct Restore {
    jobs: SyncSender<Job>,
    answers: Receiver<Result<(), StoreError>>,
}

enum Job {
    Add(Vec<u8>),
    Finish,
}

impl Store {
    /// Begins to restore the state of `height`, whose root is `app_hash`. A store that has executed blocks refuses.
    pub fn restore(&self, height: u64, app_hash: AppHash) -> Result<Restore, StoreError> {
        if self.height() > 0 && self.restored() != Some(RESTORED) {
            return Err(StoreError::Occupied { height: self.height() });
        }
        if height == 0 || app_hash == EMPTY_ROOT {
            return Err(StoreError::Empty { height });
        }
        self.clear()?;
        let (jobs, taken) = sync_channel(0);
        let (give, answers) = sync_channel(0);
        let store = self.clone();
        std::thread::Builder::new()
            .name("restore".into())
            .spawn(move || run(&store, height, app_hash, &taken, &give))
            .map_err(|error| StoreError::Database(error.into()))?;
        Ok(Restore { jobs, answers })
    }

    /// Empties the store, leaving the mark of a restore under way.
    pub(super) fn clear(&self) -> Result<(), StoreError> {
        let _writing = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = &self.0.tables;
        let mut batch = self.0.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&tables.tree, RESTORE, [UNDER_WAY]);
        batch.remove(&tables.tree, HEAD);
        batch.commit()?;
        self.set_restored(Some(UNDER_WAY));
        self.0.upper.write().unwrap_or_else(PoisonError::into_inner).clear();
        fault::reach("restore: marked");
        let all = self.0.database.snapshot();
        for table in [&tables.state, &tables.heights, &tables.tree] {
            let mut batch = self.0.database.batch();
            let mut rows = 0;
            for key in all.iter(table).map(Guard::key) {
                let key = key?;
                if table == &tables.tree && key.starts_with(b"m") {
                    continue;
                }
                batch.remove(table, key);
                rows += 1;
                if rows % CLEAR_ROWS == 0 {
                    std::mem::replace(&mut batch, self.0.database.batch()).commit()?;
                }
            }
            batch.commit()?;
        }
        self.publish(Head::default());
        Ok(())
    }
}

impl Restore {
    /// Verifies the next chunk and writes it. [`StoreError::Chunk`]: it is not of this state, and the restore is over.
    pub fn add(&self, chunk: Vec<u8>) -> Result<(), StoreError> {
        self.ask(Job::Add(chunk))
    }

    /// Verifies that the whole state is there, and makes it the store's, durably.
    pub fn finish(self) -> Result<(), StoreError> {
        self.ask(Job::Finish)
    }

    fn ask(&self, job: Job) -> Result<(), StoreError> {
        let over = || StoreError::Chunk("the restore has ended with the chunk before".into());
        self.jobs.send(job).map_err(|_| over())?;
        self.answers.recv().map_err(|_| over())?
    }
}

/// The builder's thread: until the first error, the end, or nobody asks any more.
fn run(
    store: &Store,
    height: u64,
    app_hash: AppHash,
    jobs: &Receiver<Job>,
    answers: &SyncSender<Result<(), StoreError>>,
) {
    let sink = Arc::new(Sink::default());
    let tree = JellyfishMerkleRestore::<Sha256>::new_overwrite(Arc::clone(&sink), height, RootHash(app_hash));
    let mut tree = match tree.map_err(|reason| StoreError::Tree { height, reason: format!("{reason:#}") }) {
        Ok(tree) => Some(tree),
        Err(error) => {
            let _ = jobs.recv().is_ok_and(|_| answers.send(Err(error)).is_ok());
            return;
        }
    };
    let (mut begun, mut leaves) = (false, HashMap::new());
    while let Ok(job) = jobs.recv() {
        let answer = match (job, tree.as_mut()) {
            (Job::Add(bytes), Some(builder)) => add(store, height, builder, &sink, &mut leaves, &bytes),
            (Job::Finish, _) if begun => finish(store, height, app_hash, tree.take(), &sink, &mut leaves),
            _ => Err(StoreError::Chunk("there is none".into())),
        };
        begun = true;
        let over = answer.is_err() || tree.is_none();
        if answers.send(answer).is_err() || over {
            return;
        }
    }
}

fn add(
    store: &Store,
    height: u64,
    tree: &mut JellyfishMerkleRestore<Sha256>,
    sink: &Sink,
    leaves: &mut HashMap<Slice, Leaf>,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let (pairs, proof) = chunk::decode(bytes).map_err(StoreError::Chunk)?;
    let hashed: Vec<_> = pairs.iter().map(|(key, value)| (key_hash(key), value.clone())).collect();
    tree.add_chunk(hashed, proof).map_err(|reason| StoreError::Chunk(format!("{reason:#}")))?;
    let tables = &store.0.tables;
    let mut batch = store.0.database.batch();
    for (key, value) in pairs {
        batch.insert(&tables.tree, preimage_row(&key_hash(&key)), encode_preimage(height, &key));
        batch.insert(&tables.state, key, value);
    }
    let written = sink.take();
    put_nodes(&mut batch, tables, leaves, &written)?;
    for ((_, key), value) in written.values() {
        if let Some(value) = value {
            batch.insert(&tables.heights, value_row(&key.0, height), value.as_slice());
        }
    }
    batch.commit()?;
    fault::reach("restore: chunk written");
    Ok(())
}

/// Writes the builder's nodes. Leaves lie in their parents, which may come with a later chunk: `leaves` are those without
/// one yet, at most fifteen for each nibble of the last key.
fn put_nodes(
    batch: &mut OwnedWriteBatch,
    tables: &Tables,
    leaves: &mut HashMap<Slice, Leaf>,
    written: &NodeBatch,
) -> Result<(), StoreError> {
    for (key, node) in written.nodes() {
        if let Node::Leaf(leaf) = node {
            leaves.insert(node::row_of(key), Leaf::of_jmt(leaf));
        }
    }
    for (key, node) in written.nodes() {
        match node::encode(key, node, |row| leaves.remove(row)) {
            Some(bytes) => batch.insert(&tables.heights, node::row_of(key), bytes),
            None if matches!(node, Node::Leaf(_)) => {}
            None => return Err(StoreError::Damaged("a branch is built before its leaves".into())),
        }
    }
    Ok(())
}

fn finish(
    store: &Store,
    height: u64,
    app_hash: AppHash,
    tree: Option<JellyfishMerkleRestore<Sha256>>,
    sink: &Sink,
    leaves: &mut HashMap<Slice, Leaf>,
) -> Result<(), StoreError> {
    let tree = tree.ok_or_else(|| StoreError::Chunk("there is none".into()))?;
    tree.finish().map_err(|reason| StoreError::Chunk(format!("{reason:#}")))?;
    let tables = &store.0.tables;
    let mut batch = store.0.database.batch();
    put_nodes(&mut batch, tables, leaves, &sink.take())?;
    batch.commit()?;
    let head = Head { height, oldest: height, pruned: height, app_hash };
    let whole = Snapshot::new(store.0.database.snapshot(), tables.clone(), head);
    // What was proved of each chunk is the beginning of the tree; this is the end.
    if whole.app_hash_at(height)? != app_hash {
        return Err(StoreError::Chunk("chunks are missing at the end".into()));
    }
    let _writing = store.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = store.0.database.batch().durability(Some(PersistMode::SyncAll));
    batch.insert(&tables.tree, HEAD, encode_head(&head));
    batch.insert(&tables.tree, RESTORE, [RESTORED]);
    fault::reach("restore: before the head");
    batch.commit()?;
    fault::reach("restore: head written");
    store.set_restored(Some(RESTORED));
    store.publish(head);
    Ok(())
}

/// Reads and verifies a first chunk as a restore does, and writes nothing; for fuzzing.
pub(crate) fn probe_chunk(bytes: &[u8], app_hash: AppHash) -> Result<(), String> {
    let (pairs, proof) = chunk::decode(bytes)?;
    let leaves = pairs.into_iter().map(|(key, value)| (key_hash(&key), value)).collect();
    let sink = Arc::new(Sink::default());
    let tree = JellyfishMerkleRestore::<Sha256>::new_overwrite(sink, 1, RootHash(app_hash));
    tree.and_then(|mut tree| tree.add_chunk(leaves, proof)).map_err(|reason| format!("{reason:#}"))
}

/// Takes what the builder writes; it goes into the batch of its chunk.
#[derive(Default)]
struct Sink(Mutex<NodeBatch>);

impl Sink {
    fn take(&self) -> NodeBatch {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TreeWriter for Sink {
    fn write_node_batch(&self, batch: &NodeBatch) -> anyhow::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).merge(batch.clone());
        Ok(())
    }
}
