//! The Merkle tree over the database's tables, and the encoding of its rows.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use fjall::{Keyspace, Readable, Slice};
use jmt::storage::{HasPreimage, LeafNode, Node, NodeKey, TreeReader};
use jmt::{KeyHash, OwnedValue, RootHash, Sha256Jmt, Version};
use sha2::{Digest, Sha256};

use super::AppHash;
use super::node;
use super::update::Update;

/// The tables of the store.
#[derive(Clone)]
pub(super) struct Tables {
    /// Current values.
    pub state: Keyspace,
    /// The tree's nodes. Alone, because each block's lie behind those of the one before: the database moves them from
    /// level to level without writing them again.
    pub nodes: Keyspace,
    /// All else; a row's first byte says what it is.
    pub tree: Keyspace,
}

impl Tables {
    /// Where a row lies that is none of the current values.
    pub(super) fn of(&self, row: &[u8]) -> &Keyspace {
        if row.first() == Some(&NODE) { &self.nodes } else { &self.tree }
    }
}

/// First byte of a tree node's row.
pub(super) const NODE: u8 = b'n';
/// First byte of a value's row.
pub(super) const VALUE: u8 = b'v';
/// First byte of a preimage's row.
pub(super) const PREIMAGE: u8 = b'p';
/// First byte of the row of a deletion.
pub(super) const DELETED: u8 = b'd';
/// First byte of a mark of staleness.
pub(super) const STALE: u8 = b's';

/// The root of a state without any key. It is never empty, as an application hash may not be.
pub const EMPTY_ROOT: AppHash = *b"SPARSE_MERKLE_PLACEHOLDER_HASH__";

/// The tree's name for a key.
pub(super) fn key_hash(key: &[u8]) -> KeyHash {
    KeyHash(Sha256::digest(key).into())
}

/// The row of a key's value at a version.
pub(super) fn value_row(key: &KeyHash, version: Version) -> Vec<u8> {
    [&[VALUE], &key.0[..], &version.to_be_bytes()].concat()
}

/// The row of a key's preimage.
pub(super) fn preimage_row(key: &KeyHash) -> Vec<u8> {
    [&[PREIMAGE], &key.0[..]].concat()
}

/// The row of a key's deletion, which holds the key.
pub(super) fn deleted_row(key: &KeyHash, version: Version) -> Vec<u8> {
    [&[DELETED], &version.to_be_bytes()[..], &key.0].concat()
}

/// The encoding of a value or of its absence.
pub(super) fn encode_value(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        Some(value) => [&[1][..], value].concat(),
        None => vec![0],
    }
}

/// The nodes next to the root, of the committed tree: every block walks through them. They are at most
/// 16^0 + … + 16^4 of some 600 bytes, and known once a block has written them.
#[derive(Default)]
pub(super) struct Upper(Vec<Option<(u64, Slice)>>);

/// Nibbles of the path of a node that is kept.
const UPPER_NIBBLES: usize = 4;

/// How many nodes have a path of so many nibbles at most.
const UPPER_NODES: usize = ((1 << (4 * (UPPER_NIBBLES + 1))) - 1) / 15;

impl Upper {
    /// Where a node of so many nibbles lies; shallower ones come first.
    fn index(path: &[u8], nibbles: usize) -> Option<usize> {
        let within = (0..nibbles).try_fold(0, |index, at| Some(index << 4 | node::nibble(path, at)?));
        within.filter(|_| nibbles <= UPPER_NIBBLES).map(|within| ((1 << (4 * nibbles)) - 1) / 15 + within)
    }

    /// What the row of a node holds.
    pub(super) fn get(&self, path: &[u8; 32], nibbles: usize, version: u64) -> Option<Slice> {
        let (of, node) = self.0.get(Self::index(path, nibbles)?)?.as_ref()?;
        (*of == version).then(|| node.clone())
    }

    /// Follows a commit.
    pub(super) fn advance(&mut self, update: &Update) {
        self.0.resize(UPPER_NODES, None);
        let index = |row: &Slice| node::parse_row(row).and_then(|(_, nibbles, path)| Self::index(path, nibbles));
        for at in update.stale.iter().filter_map(index) {
            self.0[at] = None;
        }
        for (row, node) in &update.nodes {
            if let (Some(at), Some((version, ..))) = (index(row), node::parse_row(row)) {
                self.0[at] = Some((version, node.clone()));
            }
        }
    }

    /// Forgets all: the tree is another one.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The tree as one database snapshot sees it.
pub(super) struct TreeView<'a> {
    pub tables: &'a Tables,
    pub snapshot: &'a fjall::Snapshot,
}

impl TreeReader for TreeView<'_> {
    fn get_node_option(&self, node_key: &NodeKey) -> Result<Option<Node>> {
        let Some(row) = self.snapshot.get(&self.tables.nodes, node::row_of(node_key))? else { return Ok(None) };
        let node = node::decode(&row, node_key.version()).context("a tree node does not decode")?;
        node.into_jmt().map(Some)
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
