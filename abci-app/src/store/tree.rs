//! The Merkle tree over the database's tables, and the encoding of its rows.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use fjall::{Keyspace, Readable};
use jmt::storage::{HasPreimage, LeafNode, Node, NodeKey, TreeReader};
use jmt::{KeyHash, OwnedValue, RootHash, Sha256Jmt, Version};
use sha2::{Digest, Sha256};

use super::AppHash;

/// The tables of the store.
#[derive(Clone)]
pub(super) struct Tables {
    /// Current values.
    pub state: Keyspace,
    /// All else; a row's first byte says what it is.
    pub tree: Keyspace,
}

/// First byte of a tree node's row.
pub(super) const NODE: u8 = b'n';
/// First byte of a value's row.
pub(super) const VALUE: u8 = b'v';
/// First byte of a preimage's row.
pub(super) const PREIMAGE: u8 = b'p';
/// First byte of a mark of staleness.
pub(super) const STALE: u8 = b's';

/// The root of a state without any key. It is never empty, as an application hash may not be.
pub const EMPTY_ROOT: AppHash = *b"SPARSE_MERKLE_PLACEHOLDER_HASH__";

/// The tree's name for a key.
pub(super) fn key_hash(key: &[u8]) -> KeyHash {
    KeyHash(Sha256::digest(key).into())
}

/// The row of a node: version first, big-endian, so that a block's nodes lie together.
pub(super) fn node_row(key: &NodeKey) -> Vec<u8> {
    let mut row = vec![NODE];
    row.extend(key.version().to_be_bytes());
    borsh::to_writer(&mut row, key.nibble_path()).expect("a Vec grows as it is written to");
    row
}

/// The encoding of a node.
pub(super) fn encode_node(node: &Node) -> Vec<u8> {
    borsh::to_vec(node).expect("a Vec grows as it is written to")
}

/// The row of a key's value at a version.
pub(super) fn value_row(key: &KeyHash, version: Version) -> Vec<u8> {
    [&[VALUE], &key.0[..], &version.to_be_bytes()].concat()
}

/// The row of a key's preimage.
pub(super) fn preimage_row(key: &KeyHash) -> Vec<u8> {
    [&[PREIMAGE], &key.0[..]].concat()
}

/// The encoding of a value or of its absence.
pub(super) fn encode_value(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        Some(value) => [&[1][..], value].concat(),
        None => vec![0],
    }
}

/// The tree as one database snapshot sees it.
pub(super) struct TreeView<'a> {
    pub tables: &'a Tables,
    pub snapshot: &'a fjall::Snapshot,
    /// The version whose root is taken to be empty: the one before the first block.
    pub empty_at: Option<Version>,
}

impl TreeReader for TreeView<'_> {
    fn get_node_option(&self, node_key: &NodeKey) -> Result<Option<Node>> {
        if let Some(row) = self.snapshot.get(&self.tables.tree, node_row(node_key))? {
            return Ok(Some(borsh::from_slice(&row).context("a tree node does not decode")?));
        }
        let is_root = node_key.nibble_path().is_empty();
        Ok((is_root && Some(node_key.version()) == self.empty_at).then_some(Node::Null))
    }

    fn get_value_option(&self, max_version: Version, key_hash: KeyHash) -> Result<Option<OwnedValue>> {
        let rows = value_row(&key_hash, 0)..=value_row(&key_hash, max_version);
        let Some(newest) = self.snapshot.range(&self.tables.tree, rows).next_back() else { return Ok(None) };
        let value = newest.value()?;
        match value.split_first() {
            Some((1, value)) => Ok(Some(value.to_vec())),
            Some((0, [])) => Ok(None),
            _ => bail!("a value row has no marker"),
        }
    }

    fn get_rightmost_leaf(&self) -> Result<Option<(NodeKey, LeafNode)>> {
        bail!("only a restore asks for the rightmost leaf, and none runs on a live store")
    }
}

impl HasPreimage for TreeView<'_> {
    fn preimage(&self, key_hash: KeyHash) -> Result<Option<Vec<u8>>> {
        Ok(self.snapshot.get(&self.tables.tree, preimage_row(&key_hash))?.map(|key| key.to_vec()))
    }
}

/// A tree with nothing in it.
struct EmptyTree;

impl TreeReader for EmptyTree {
    fn get_node_option(&self, node_key: &NodeKey) -> Result<Option<Node>> {
        Ok((node_key.nibble_path().is_empty() && node_key.version() == 0).then_some(Node::Null))
    }
    fn get_value_option(&self, _: Version, _: KeyHash) -> Result<Option<OwnedValue>> {
        Ok(None)
    }
    fn get_rightmost_leaf(&self) -> Result<Option<(NodeKey, LeafNode)>> {
        Ok(None)
    }
}

/// The root of a state given as its pairs, computed anew in memory. The root depends on the pairs
/// alone: not on their order, nor on the blocks that led to them.
pub fn root_of<K: AsRef<[u8]>>(pairs: impl IntoIterator<Item = (K, Vec<u8>)>) -> AppHash {
    let leaves: BTreeMap<_, _> = pairs.into_iter().map(|(key, value)| (key_hash(key.as_ref()), Some(value))).collect();
    let (RootHash(root), _) =
        Sha256Jmt::new(&EmptyTree).put_value_set(leaves, 1).expect("a tree in memory has all the nodes it needs");
    root
}
