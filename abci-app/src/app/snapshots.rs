//! Snapshots for nodes that join by state sync: taken every so many heights, kept as files, handed out in chunks.
//!
//! A snapshot is a folder named by its height: the chunks as the store cuts them (see [`crate::store::chunk`]) as files
//! `0`, `1`, …, and `manifest`: application hash (32) ‖ the SHA-256 of each chunk (32 each). What CometBFT passes on as
//! metadata are those digests, its hash is SHA-256 of a tag, the height, the application hash and the digests.
//!
//! *Invariant*: a folder has its name only when all of it is on the disk; a snapshot is taken by a thread of its own
//! from a held state, one at a time, so that no block waits for it; what is handed out hashes to its manifest.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::lock;
use crate::store::{AppHash, CHUNK_BYTES_MAX, Snapshot, StoreError, chunk, fault};

/// The format's number in ABCI.
pub const FORMAT: u32 = 1;

/// Chunks of a snapshot at most, as CometBFT's `max_snapshot_chunks` has it: 800 GB.
pub const CHUNKS_MAX: usize = 100_000;

const TAG: &[u8] = b"polylink/snapshot/1";
const DIGEST_BYTES: usize = 32;

/// How often snapshots are taken, and where they lie.
#[derive(Clone, Debug)]
pub struct SnapshotConfig {
    /// The folder of all of them; created where there is none.
    pub directory: PathBuf,
    /// One is taken after each block whose height is a multiple of this; 0 takes none.
    pub interval: u64,
    /// How many are kept, at least 1. Two: a node that has begun to fetch one has the next interval for the rest.
    pub keep: usize,
    /// The longest chunk, at most [`CHUNK_BYTES_MAX`] and above 24 KiB. All nodes of a chain cut alike: a node takes chunks
    /// of one snapshot from several others.
    pub chunk_bytes: usize,
}

/// What a snapshot consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The height of its state.
    pub height: u64,
    /// The state's root.
    pub app_hash: AppHash,
    /// SHA-256 of each chunk.
    pub chunks: Vec<[u8; DIGEST_BYTES]>,
}

impl Manifest {
    /// From what ABCI carries, with the application hash that the light client has verified. `None`: it is not of that
    /// state, or of a form that this program does not make.
    pub fn offered(height: u64, app_hash: &[u8], chunks: u32, hash: &[u8], metadata: &[u8]) -> Option<Self> {
        let manifest = Manifest { height, app_hash: app_hash.try_into().ok()?, chunks: digests(metadata)? };
        let fits = manifest.chunks.len() == usize::try_from(chunks).ok()? && manifest.hash() == *hash;
        fits.then_some(manifest)
    }

    /// The digests of the chunks, one after the other.
    pub fn metadata(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    /// The snapshot's hash: equal only where every byte of it is.
    pub fn hash(&self) -> [u8; DIGEST_BYTES] {
        let mut hash = Sha256::new_with_prefix(TAG);
        hash.update(self.height.to_be_bytes());
        hash.update(self.app_hash);
        hash.update(self.metadata());
        hash.finalize().into()
    }

    /// Whether `bytes` are its chunk number `index`.
    pub fn holds(&self, index: usize, bytes: &[u8]) -> bool {
        self.chunks.get(index).is_some_and(|digest| Sha256::digest(bytes).as_slice() == digest)
    }
}

fn digests(bytes: &[u8]) -> Option<Vec<[u8; DIGEST_BYTES]>> {
    let (digests, rest) = bytes.as_chunks::<DIGEST_BYTES>();
    (rest.is_empty() && !digests.is_empty() && digests.len() <= CHUNKS_MAX).then(|| digests.to_vec())
}

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}: {error}", path.display())]
    Disk { path: PathBuf, error: std::io::Error },
    #[error("the ledger stops")]
    Stopping,
}

/// The snapshots of a ledger. Dropping it ends the one that is being taken.
pub struct Snapshots {
    config: SnapshotConfig,
    shared: Arc<Shared>,
    taking: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    /// Oldest first.
    list: Mutex<Vec<Manifest>>,
    stop: AtomicBool,
}

impl Snapshots {
    /// Finds what earlier runs took. What is incomplete, or of a height that the ledger (at `height`) has not reached, as
    /// after a rollback, is removed.
    pub fn open(config: SnapshotConfig, height: u64) -> Self {
        let mut list: Vec<Manifest> = Vec::new();
        for entry in fs::read_dir(&config.directory).into_iter().flatten().flatten() {
            match read_manifest(&entry.path()).filter(|manifest| manifest.height <= height) {
                Some(manifest) => list.push(manifest),
                None => remove(&entry.path()),
            }
        }
        list.sort_by_key(|manifest| manifest.height);
        let shared = Arc::new(Shared { list: Mutex::new(list), stop: AtomicBool::default() });
        Snapshots { config, shared, taking: Mutex::default() }
    }

    /// Those that are complete, oldest first.
    pub fn list(&self) -> Vec<Manifest> {
        lock(&self.shared.list).clone()
    }

    /// The oldest height whose block a joining node needs: that of the oldest snapshot; 0 until there is one.
    pub fn needed(&self) -> u64 {
        let oldest = lock(&self.shared.list).first().map(|manifest| manifest.height);
        oldest.unwrap_or(if self.config.interval == 0 { u64::MAX } else { 0 })
    }

    /// A chunk; none where there is no such one, or where the disk has altered it.
    pub fn chunk(&self, height: u64, index: u32) -> Option<Vec<u8>> {
        let index = usize::try_from(index).ok()?;
        let manifest = lock(&self.shared.list).iter().find(|manifest| manifest.height == height).cloned()?;
        manifest.chunks.get(index)?;
        let path = self.config.directory.join(height.to_string()).join(index.to_string());
        let bytes = fs::read(&path).ok()?;
        if manifest.holds(index, &bytes) {
            return Some(bytes);
        }
        tracing::error!("{} is damaged: it is handed out to nobody", path.display());
        None
    }

    /// Begins to take a snapshot of a state that was just committed, if its height is one for it and no other is being
    /// taken.
    pub fn committed(&self, state: &Snapshot) {
        let due = state.height().checked_rem(self.config.interval) == Some(0);
        let mut taking = lock(&self.taking);
        if !due || taking.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if due {
                tracing::warn!(height = state.height(), "no snapshot is taken: the one before is not done yet");
            }
            return;
        }
        if let Some(done) = taking.take() {
            let _ = done.join();
        }
        let (config, shared, state) = (self.config.clone(), Arc::clone(&self.shared), state.clone());
        let thread = std::thread::Builder::new().name("snapshot".into()).spawn(move || {
            let height = state.height();
            match take(&config, state, &shared.stop) {
                Ok(manifest) => {
                    tracing::info!(height, chunks = manifest.chunks.len(), "snapshot taken");
                    keep(&config, &shared, manifest);
                }
                Err(TakeError::Stopping) => {}
                Err(error) => tracing::error!("no snapshot of height {height}: {error}"),
            }
        });
        match thread {
            Ok(thread) => *taking = Some(thread),
            Err(error) => tracing::error!("no snapshot: {error}"),
        }
    }

    /// Waits for the one that is being taken.
    pub fn wait(&self) {
        if let Some(thread) = lock(&self.taking).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wait();
    }
}

fn read_manifest(folder: &Path) -> Option<Manifest> {
    let height = folder.file_name()?.to_str()?.parse().ok()?;
    let bytes = fs::read(folder.join("manifest")).ok()?;
    let (app_hash, metadata) = bytes.split_first_chunk()?;
    Some(Manifest { height, app_hash: *app_hash, chunks: digests(metadata)? })
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!("{} cannot be removed: {error}", path.display());
    }
}

/// Adds the newest and drops the oldest.
fn keep(config: &SnapshotConfig, shared: &Shared, newest: Manifest) {
    let mut list = lock(&shared.list);
    list.push(newest);
    let surplus = list.len().saturating_sub(config.keep.max(1));
    for old in list.drain(..surplus) {
        remove(&config.directory.join(old.height.to_string()));
    }
}

fn take(config: &SnapshotConfig, state: Snapshot, stop: &AtomicBool) -> Result<Manifest, TakeError> {
    let directory = config.directory.as_path();
    let partial = directory.join(format!("{}.partial", state.height()));
    let whole = directory.join(state.height().to_string());
    let disk = |path: &Path| {
        let path = path.to_path_buf();
        move |error| TakeError::Disk { path, error }
    };
    for old in [&partial, &whole] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(disk(old))?;
        }
    }
    fs::create_dir_all(&partial).map_err(disk(&partial))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = partial.join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        fault::reach("snapshot: file written");
        written.map_err(disk(&path))
    };
    let mut manifest = Manifest { height: state.height(), app_hash: state.app_hash(), chunks: Vec::new() };
    chunk::cut(&state, config.chunk_bytes.min(CHUNK_BYTES_MAX), |bytes| {
        if stop.load(Ordering::Relaxed) {
            return Err(TakeError::Stopping);
        }
        write(&manifest.chunks.len().to_string(), &bytes)?;
        manifest.chunks.push(Sha256::digest(&bytes).into());
        Ok(())
    })?;
    drop(state);
    write("manifest", &[&manifest.app_hash[..], &manifest.metadata()].concat())?;
    let synced = |folder: &Path| File::open(folder).and_then(|folder| folder.sync_all());
    synced(&partial).map_err(disk(&partial))?;
    fs::rename(&partial, &whole).map_err(disk(&whole))?;
    synced(directory).map_err(disk(directory))?;
    fault::reach("snapshot: named");
    Ok(manifest)
}
