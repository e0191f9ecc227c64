//! The store: opening, staging and committing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fjall::{Database, KeyspaceCreateOptions, PersistMode, Readable, Slice};
use jmt::KeyHash;
use rayon::prelude::*;

use super::snapshot::{Head, Snapshot};
use super::times::Moment;
use super::tree::{
    HEIGHT, Tables, Upper, deleted_row, encode_preimage, key_hash, preimage_row, root_of, value_row, valued_key,
};
use super::update::{Before, Change, Update, update};
use super::{AppHash, Changes, MAX_KEY_BYTES, Memo, Order, StateRead, StoreError, fault, node, prune, restore, times};

const SCHEMA: &[u8] = b"mschema";
pub(super) const HEAD: &[u8] = b"mhead";

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// The version of the layout that the program writes.
    pub schema_version: u64,
    /// Heights before the newest that stay readable and provable, at least 1. Evidence and light
    /// clients look back as far as the unbonding time; a node that serves queries keeps more.
    pub keep_heights: u64,
    /// Memory for cached blocks of the database, in bytes.
    pub cache_bytes: u64,
    /// The database's journal at most, in bytes: what it writes anew when it starts. At least [`JOURNAL_BYTES_MIN`].
    pub journal_bytes: u64,
}

/// How far the database's own thread gives way: a tenth of a core where others want it.
const NICE: i32 = 10;

/// The smallest journal that the database takes.
pub const JOURNAL_BYTES_MIN: u64 = 64 << 20;

impl StoreOptions {
    /// The defaults for a schema version: 100,000 heights kept, 256 MiB of cache, a journal of 128 MiB.
    pub fn new(schema_version: u64) -> Self {
        StoreOptions { schema_version, keep_heights: 100_000, cache_bytes: 256 << 20, journal_bytes: 128 << 20 }
    }
}

/// The ledger's state on disk. Clones share it: one writer at a time, readers on [`Snapshot`]s that
/// never wait for it.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Inner>);

pub(super) struct Inner {
    path: PathBuf,
    options: StoreOptions,
    pub database: Database,
    pub tables: Tables,
    newest: RwLock<Snapshot>,
    pub writer: Mutex<()>,
    /// What the row of [`restore`] says.
    restored: Mutex<Option<u8>>,
    pub upper: RwLock<Upper>,
}

/// A block's changes with the root they lead to: computed, not durable.
#[must_use = "what is staged is lost unless it is committed"]
pub struct Staged {
    height: u64,
    base: u64,
    app_hash: AppHash,
    /// What differs from the committed state, by key.
    changes: Changes,
    pub(super) tree: Update,
    /// What the commit writes and removes besides the tree's nodes.
    rows: Rows,
}

/// Rows of a block, made before it is committed.
struct Rows {
    /// New values and deleted keys, in their order.
    state: Vec<(Slice, Option<Slice>)>,
    /// New values and marks of staleness.
    heights: Vec<(Slice, Slice)>,
    /// New rows of the table of the rest.
    tree: Vec<(Slice, Slice)>,
    /// What no readable height needs any more.
    due: BTreeSet<Vec<u8>>,
    /// Marks of staleness below this height are then done with.
    pruned: u64,
}

impl Staged {
    /// The root after this block.
    pub fn app_hash(&self) -> AppHash {
        self.app_hash
    }

    /// The height of this block.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// The keys whose value really changes.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }
}

impl Store {
    /// Opens the store at `path`, creating it where there is none, with default options.
    pub fn open(path: impl AsRef<Path>, schema_version: u64) -> Result<Store, StoreError> {
        Store::open_with(path, StoreOptions::new(schema_version))
    }

    /// Opens the store at `path`, creating it where there is none.
    pub fn open_with(path: impl AsRef<Path>, options: StoreOptions) -> Result<Store, StoreError> {
        let path = path.as_ref().to_path_buf();
        let open = |error| match error {
            fjall::Error::Locked => StoreError::Locked { path: path.clone() },
            error => StoreError::Open { path: path.clone(), error },
        };
        std::fs::create_dir_all(&path).map_err(|error| open(error.into()))?;
        // One thread flushes and compacts: of two, one spins while the other compacts (fjall 3.1 hands it the same task
        // again and again), which takes a core from the execution of blocks.
        let builder = Database::builder(&path).cache_size(options.cache_bytes).worker_threads(1);
        let builder = builder.max_journaling_size(options.journal_bytes.max(JOURNAL_BYTES_MIN));
        let database = behind_blocks(|| builder.open()).map_err(open)?;
        let layout = || KeyspaceCreateOptions::default().max_memtable_size(16 << 20);
        // What is looked for there is there: its table needs no filter to say so.
        let of_heights = || layout().expect_point_read_hits(true);
        let tables = Tables {
            state: database.keyspace("state", layout).map_err(open)?,
            heights: database.keyspace("heights", of_heights).map_err(open)?,
            tree: database.keyspace("tree", layout).map_err(open)?,
        };
        match tables.tree.get(SCHEMA)? {
            Some(found) => {
                let found = u64::from_be_bytes(fixed(&found, "the schema version")?);
                if found != options.schema_version {
                    return Err(StoreError::Schema { path, found, wanted: options.schema_version });
                }
            }
            None => {
                tables.tree.insert(SCHEMA, options.schema_version.to_be_bytes())?;
                database.persist(PersistMode::SyncAll)?;
            }
        }
        let head = match tables.tree.get(HEAD)? {
            Some(row) => decode_head(&row)?,
            None => Head::default(),
        };
        let newest = Snapshot::new(database.snapshot(), tables.clone(), head);
        if newest.app_hash_at(head.height)? != head.app_hash {
            return Err(StoreError::Damaged(format!("the tree's root at height {} is not the head's", head.height)));
        }
        let restored = tables.tree.get(restore::RESTORE)?.and_then(|row| row.first().copied());
        let (newest, restored) = (RwLock::new(newest), Mutex::new(restored));
        let store = Store(Arc::new(Inner {
            path,
            options,
            database,
            tables,
            newest,
            writer: Mutex::default(),
            restored,
            upper: RwLock::default(),
        }));
        if store.restored() == Some(restore::UNDER_WAY) {
            store.clear()?;
        }
        Ok(store)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The version of its layout.
    pub fn schema_version(&self) -> u64 {
        self.0.options.schema_version
    }

    /// The last committed height; 0 before the first block.
    pub fn height(&self) -> u64 {
        self.snapshot().height()
    }

    /// The root after the last commit.
    pub fn app_hash(&self) -> AppHash {
        self.snapshot().app_hash()
    }

    /// The committed value of `key`. Several reads that must fit together go through one
    /// [`Snapshot`].
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.snapshot().get(key)
    }

    /// The state after the last commit; it stays as it is while later blocks are committed. To be
    /// held for the length of a query, not longer: the database keeps what it shows.
    pub fn snapshot(&self) -> Snapshot {
        self.0.newest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what every block walks through, so that the first ones take no longer than others.
    ///
    /// # Errors
    /// Of the database, or where the tree is damaged.
    pub fn warm(&self) -> Result<(), StoreError> {
        let newest = self.snapshot();
        let height = newest.height();
        if height == 0 {
            return Ok(());
        }
        let upper = Upper::load(&self.0.tables, newest.database(), height)
            .map_err(|reason| StoreError::Tree { height, reason: format!("{reason:#}") })?;
        *self.0.upper.write().unwrap_or_else(PoisonError::into_inner) = upper;
        Ok(())
    }

    pub(super) fn publish(&self, head: Head) {
        let next = Snapshot::new(self.0.database.snapshot(), self.0.tables.clone(), head);
        *self.0.newest.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    pub(super) fn restored(&self) -> Option<u8> {
        *self.0.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_restored(&self, restored: Option<u8>) {
        *self.0.restored.lock().unwrap_or_else(PoisonError::into_inner) = restored;
    }

    /// Computes the state after a block. Nothing becomes durable. The first block may have any
    /// height from 1; each one after follows the last committed. Changes that change nothing are
    /// dropped. The genesis state is staged together with the first block.
    pub fn stage(&self, changes: Changes, height: u64) -> Result<Staged, StoreError> {
        self.stage_over(&Memo::new(self.snapshot()), changes, height)
    }

    /// As [`stage`](Self::stage), with what execution has read of the committed state.
    pub fn stage_over(&self, before: &Memo<Snapshot>, changes: Changes, height: u64) -> Result<Staged, StoreError> {
        if self.restored() == Some(restore::UNDER_WAY) {
            // Given up: the chain begins at its genesis after all.
            self.clear()?;
        }
        let newest = self.snapshot();
        let base = newest.height();
        if height == 0 || (base != 0 && height != base + 1) || before.base().height() != base {
            return Err(StoreError::Height { height, committed: base });
        }
        let mut kept = BTreeMap::new();
        let mut known = Vec::new();
        for (key, value) in changes {
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(StoreError::Key { bytes: key.len() });
            }
            let current = before.get(&key);
            if current != value {
                known.push(current.is_some());
                kept.insert(key, value);
            }
        }
        let pairs: Vec<_> = kept.iter().zip(known).collect();
        let mut leaves: Vec<_> = pairs
            .par_iter()
            .map(|((key, value), known)| Change {
                key: key_hash(key),
                value: value.as_ref().map(|value| key_hash(value).0),
                since: height,
                known: *known,
            })
            .collect();
        let hashed = leaves.clone();
        leaves.par_sort_unstable_by_key(|change| change.key);
        let upper = self.0.upper.read().unwrap_or_else(PoisonError::into_inner);
        let tables = &self.0.tables;
        let version = (base != 0).then_some(base);
        let tree = Before { tables, snapshot: newest.database(), upper: &upper, version };
        let (updated, rows) = rayon::join(
            || update(&tree, &leaves, height),
            || {
                pairs
                    .par_iter()
                    .zip(&hashed)
                    .map(|((pair, _), change)| rows_of(pair, change, height))
                    .collect::<Vec<_>>()
            },
        );
        let (app_hash, tree) = updated.map_err(|reason| StoreError::Tree { height, reason: format!("{reason:#}") })?;

        let mut marks = prune::Marks::default();
        tree.stale.iter().for_each(|row| marks.row(row));
        let deleted = leaves.iter().filter(|change| change.known && change.value.is_none());
        deleted.for_each(|change| marks.row(&deleted_row(&change.key, height)));
        let changed = |key: &KeyHash| leaves.binary_search_by(|change| change.key.cmp(key)).is_ok();
        let range = (newest.pruned(), self.oldest_after(&newest, height));
        let (due, pruned) = prune::due(&newest, tables, range, 2 * marks.count() + prune::SLACK, changed)?;
        let (mut state, mut heights, mut tree_rows) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, [value, of_key]) in rows {
            state.push(pair);
            heights.extend(value);
            tree_rows.extend(of_key);
        }
        heights.extend(marks.rows(height).map(|(row, marks)| (row.into(), marks.into())));
        heights.par_sort_unstable();
        tree_rows.sort_unstable();
        let rows = Rows { state, heights, tree: tree_rows, due, pruned };
        Ok(Staged { height, base, app_hash, changes: kept, tree, rows })
    }

    /// The oldest readable height once a block of `height` is committed.
    fn oldest_after(&self, newest: &Snapshot, height: u64) -> u64 {
        let window_start = height.saturating_sub(self.0.options.keep_heights.max(1));
        if newest.height() == 0 { height } else { window_start.max(newest.oldest()) }
    }

    /// Makes a staged block durable, in one atomic batch, and prunes what has left the window.
    /// When it returns the block is on the disk; when the process dies before, none of it is, or all.
    pub fn commit(&self, staged: Staged) -> Result<(), StoreError> {
        self.commit_at(staged, None).map(|_| ())
    }

    /// As [`commit`](Self::commit), with the block's time. Returns a height all blocks below which are older than the
    /// moment's window, 0 where none is known; and what differs from the state before.
    pub fn commit_at(&self, staged: Staged, moment: Option<Moment>) -> Result<(u64, Changes), StoreError> {
        let _writing = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.snapshot();
        let Staged { height, base, app_hash, changes, tree, rows } = staged;
        if base != newest.height() {
            return Err(StoreError::Height { height, committed: newest.height() });
        }
        let tables = &self.0.tables;
        let head = Head { height, oldest: self.oldest_after(&newest, height), pruned: rows.pruned, app_hash };

        let mut batch = self.0.database.batch().durability(Some(PersistMode::SyncAll));
        for row in rows.due {
            batch.remove(tables.of(&row), row);
        }
        for made in &tree.nodes {
            batch.insert(&tables.heights, made.row.clone(), made.node.clone());
        }
        for (row, value) in rows.heights {
            batch.insert(&tables.heights, row, value);
        }
        for (row, value) in rows.tree {
            batch.insert(&tables.tree, row, value);
        }
        for (key, value) in rows.state {
            match value {
                Some(value) => batch.insert(&tables.state, key, value),
                None => batch.remove(&tables.state, key),
            }
        }
        let settled = moment.map(|moment| times::put(&mut batch, &newest, tables, height, moment)).transpose()?;
        batch.insert(&tables.tree, HEAD, encode_head(&head));
        if self.restored().is_some() {
            batch.remove(&tables.tree, restore::RESTORE);
        }
        fault::reach("commit: before the batch");
        batch.commit()?;
        fault::reach("commit: durable");
        self.0.upper.write().unwrap_or_else(PoisonError::into_inner).advance(&tree);
        self.set_restored(None);
        self.publish(head);
        fault::reach("commit: published");
        Ok((settled.unwrap_or_default(), changes))
    }

    /// Hashes the whole flat table anew and compares it with the root: a full scan, for exports and
    /// tests.
    pub fn check(&self) -> Result<(), StoreError> {
        let newest = self.snapshot();
        let root = root_of(newest.iter_range(&[], None, Order::Ascending));
        if root == newest.app_hash() {
            return Ok(());
        }
        Err(StoreError::Damaged(format!("the flat table at height {} does not hash to the root", newest.height())))
    }

    /// How many rows of tree nodes and versions of values are kept: what pruning bounds. A full scan, for
    /// tests and reports.
    pub fn tree_rows(&self) -> Result<(usize, usize), StoreError> {
        let newest = self.snapshot();
        let (mut nodes, mut values) = (0, 0);
        for row in newest.database().prefix(&self.0.tables.heights, [HEIGHT]).map(fjall::Guard::key) {
            let row = row?;
            nodes += usize::from(node::parse_row(&row).is_some());
            values += usize::from(valued_key(&row).is_some());
        }
        Ok((nodes, values))
    }
}

/// Opens the database such that its thread gives way to those that execute blocks: a thread begins with the priority of
/// the one that starts it, which ends here.
fn behind_blocks<T: Send>(open: impl FnOnce() -> T + Send) -> T {
    let opened = std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            // Of one thread on Linux, of the process elsewhere. Where it is refused, blocks share the cores with it.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::setpriority_process(None, NICE);
            open()
        });
        opener.join()
    });
    opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A row of the table of the rest, which there may be.
type Row = Option<(Slice, Slice)>;

/// The rows of a changed key: its value in the flat table; its value of this height, and where it is new its preimage, where it goes its deletion.
fn rows_of(
    (key, value): &(&Vec<u8>, &Option<Vec<u8>>),
    change: &Change,
    height: u64,
) -> ((Slice, Option<Slice>), [Row; 2]) {
    let value = value.as_deref().map(Slice::from);
    let of_height = value.clone().map(|value| (value_row(&change.key.0, height), value));
    let of_key = match (&value, change.known) {
        (Some(_), false) => Some((preimage_row(&change.key).into(), encode_preimage(height, key))),
        (None, true) => Some((deleted_row(&change.key, height).into(), key.as_slice().into())),
        _ => None,
    };
    ((key.as_slice().into(), value), [of_height, of_key])
}

pub(super) fn encode_head(head: &Head) -> Vec<u8> {
    [&head.height.to_be_bytes()[..], &head.oldest.to_be_bytes(), &head.pruned.to_be_bytes(), &head.app_hash].concat()
}

fn decode_head(row: &[u8]) -> Result<Head, StoreError> {
    let row: [u8; 56] = fixed(row, "the head")?;
    Ok(Head {
        height: u64::from_be_bytes(fixed(&row[..8], "the height")?),
        oldest: u64::from_be_bytes(fixed(&row[8..16], "the oldest height")?),
        pruned: u64::from_be_bytes(fixed(&row[16..24], "the height of pruning")?),
        app_hash: fixed(&row[24..], "the root")?,
    })
}

pub(super) fn fixed<const N: usize>(row: &[u8], what: &str) -> Result<[u8; N], StoreError> {
    row.try_into().map_err(|_| StoreError::Damaged(format!("{what} has {} bytes instead of {N}", row.len())))
}
