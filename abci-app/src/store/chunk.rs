//! A committed state in chunks, for nodes that join by state sync.
//!
//! ```text
//! chunk = number of pairs (4) ‖ pairs ‖ proof
//! pair  = length of the key (2) ‖ key ‖ length of the value (4) ‖ value
//! ```
//!
//! Integers are big-endian. The pairs are in the order of their keys' SHA-256, through all chunks; the proof (borsh of
//! `jmt`'s range proof) shows that everything up to a chunk's last pair is in the tree, and nothing else. Two nodes cut
//! the same state into the same bytes, so that a joining node may take each chunk from another of them.
//!
//! *Invariant*: reading takes no more memory than the chunk has bytes, whatever lengths it announces.

use fjall::{Guard, Readable};
use jmt::proof::SparseMerkleRangeProof;
use jmt::{KeyHash, Sha256Jmt};
use sha2::Sha256;

use super::tree::{PREIMAGE, decode_preimage};
use super::{MAX_KEY_BYTES, Pair, Snapshot, StoreError};

/// The longest chunk that is made. CometBFT passes on 16 MB.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;

/// Kept free for the proof: a sibling for each of 256 bits, of 65 bytes each, and their number.
const PROOF_BYTES_MAX: usize = 17 << 10;

/// Shows that a chunk and those before it are the tree's beginning.
pub(super) type RangeProof = SparseMerkleRangeProof<Sha256>;

/// Cuts a state into chunks of at most `bytes_max`, in the calling thread, and gives each to `sink`; an error of the
/// sink ends it. Memory: one chunk.
pub fn cut<E: From<StoreError>>(
    snapshot: &Snapshot,
    bytes_max: usize,
    mut sink: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let mut chunk = Open::default();
    let rows = snapshot.database().prefix(&snapshot.tables().tree, [PREIMAGE]).map(Guard::into_inner);
    for row in rows {
        let (name, row) = row.map_err(StoreError::from)?;
        let (_, key) = decode_preimage(&row)?;
        // A key that was deleted within the window has its preimage still.
        let Some(value) = snapshot.read(key)? else { continue };
        let hash = name.get(1..).and_then(|hash| hash.try_into().ok()).map(KeyHash);
        let hash = hash.ok_or_else(|| StoreError::Damaged("a preimage's row is not of a hash".into()))?;
        let size = 2 + key.len() + 4 + value.len();
        if size + 4 + PROOF_BYTES_MAX > bytes_max {
            return Err(StoreError::Pair { bytes: size }.into());
        }
        if let Some(last) = chunk.last.filter(|_| 4 + chunk.pairs.len() + size + PROOF_BYTES_MAX > bytes_max) {
            sink(std::mem::take(&mut chunk).close(snapshot, last)?)?;
        }
        chunk.push(key, &value, hash);
    }
    match chunk.last {
        Some(last) => sink(chunk.close(snapshot, last)?),
        None => Ok(()),
    }
}

/// A chunk that is being filled.
#[derive(Default)]
struct Open {
    count: u32,
    pairs: Vec<u8>,
    last: Option<KeyHash>,
}

impl Open {
    fn push(&mut self, key: &[u8], value: &[u8], hash: KeyHash) {
        // Both lengths are far below the limit of a chunk.
        self.pairs.extend_from_slice(&(key.len() as u16).to_be_bytes());
        self.pairs.extend_from_slice(key);
        self.pairs.extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.pairs.extend_from_slice(value);
        self.count += 1;
        self.last = Some(hash);
    }

    fn close(self, snapshot: &Snapshot, last: KeyHash) -> Result<Vec<u8>, StoreError> {
        let height = snapshot.height();
        let failed = |reason: String| StoreError::Tree { height, reason };
        let view = snapshot.view();
        let proof =
            Sha256Jmt::new(&view).get_range_proof(last, height).map_err(|error| failed(format!("{error:#}")))?;
        let proof = borsh::to_vec(&proof).map_err(|error| failed(error.to_string()))?;
        Ok([&self.count.to_be_bytes()[..], &self.pairs, &proof].concat())
    }
}

/// Reads a chunk. The reason of a refusal is for the log: the bytes come from another node.
pub(super) fn decode(chunk: &[u8]) -> Result<(Vec<Pair>, RangeProof), String> {
    let mut rest = chunk;
    let count = u32::from_be_bytes(take(&mut rest, 4)?.try_into().map_err(|_| "no number of pairs")?);
    let mut pairs = Vec::new();
    for _ in 0..count {
        let length = take(&mut rest, 2)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let key = take(&mut rest, length)?.to_vec();
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(format!("a key of {length} bytes"));
        }
        let length = take(&mut rest, 4)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        pairs.push((key, take(&mut rest, length)?.to_vec()));
    }
    let proof = borsh::from_slice(rest).map_err(|error| format!("its proof does not decode: {error}"))?;
    Ok((pairs, proof))
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], String> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or("it is cut off")?;
    *rest = left;
    Ok(taken)
}
