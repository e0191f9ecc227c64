//! The Merkle tree over the database's tables, and the encoding of its rows.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail};
use fjall::{Keyspace, Readable, Slice};
use jmt::storage::{HasPreimage, LeafNode, Node, NodeKey, TreeReader};
use jmt::{KeyHash, OwnedValue, RootHash, Sha256Jmt, Version};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::node::{self, Child, Leaf, Stored};
use super::update::Update;
use super::{AppHash, StoreError};

/// The tables of the store.
#[derive(Clone)]
pub(super) struct Tables {
    /// Current values.
    pub state: Keyspace,
    /// What a height writes and no later one changes: nodes, values and marks of staleness. Alone, because each height's lie
    /// behind those of the one before: the database moves them from level to level without writing them again.
    pub heights: Keyspace,
    /// All else; a row's first byte says what it is.
    pub tree: Keyspace,
}

impl Tables {
    /// Where a row lies that is none of the current values.
    pub(super) fn of(&self, row: &[u8]) -> &Keyspace {
        if row.first() == Some(&HEIGHT) { &self.heights } else { &self.tree }
    }
}

/// First byte of what a height writes; the height follows, and a byte that says what it is: a node's number of nibbles,
/// [`STALE`] or [`VALUE`].
pub(super) const HEIGHT: u8 = b'h';
/// Of marks of staleness.
pub(super) const STALE: u8 = b's';
/// Of a value.
pub(super) const VALUE: u8 = b'v';
/// First byte of a preimage's row.
pub(super) const PREIMAGE: u8 = b'p';
/// First byte of the row of a deletion.
pub(super) const DELETED: u8 = b'd';

/// The root of a state without any key. It is never empty, as an application hash may not be.
pub const EMPTY_ROOT: AppHash = *b"SPARSE_MERKLE_PLACEHOLDER_HASH__";

/// The tree's name for a key.
pub(super) fn key_hash(key: &[u8]) -> KeyHash {
    KeyHash(Sha256::digest(key).into())
}

/// The row of the value that a key was given at a height.
pub(super) fn value_row(key: &[u8; 32], height: Version) -> Slice {
    let mut row = [0; 42];
    row[0] = HEIGHT;
    row[1..9].copy_from_slice(&height.to_be_bytes());
    row[9] = VALUE;
    row[10..].copy_from_slice(key);
    Slice::from(&row[..])
}

/// The key whose value a row of a height holds.
pub(super) fn valued_key(row: &[u8]) -> Option<KeyHash> {
    let (&kind, key) = row.get(9..)?.split_first()?;
    key.try_into().ok().filter(|_| row[0] == HEIGHT && kind == VALUE).map(KeyHash)
}

/// The row of a key's preimage.
pub(super) fn preimage_row(key: &KeyHash) -> Vec<u8> {
    [&[PREIMAGE], &key.0[..]].concat()
}

/// A preimage: the height since which the key is there (or was, before it was deleted), and the key.
pub(super) fn encode_preimage(since: Version, key: &[u8]) -> Slice {
    Slice::from([&since.to_be_bytes(), key].concat())
}

/// What the row of a preimage holds.
pub(super) fn decode_preimage(row: &[u8]) -> Result<(Version, &[u8]), StoreError> {
    let (since, key) = row.split_first_chunk().ok_or_else(|| StoreError::Damaged("a preimage is cut off".into()))?;
    Ok((u64::from_be_bytes(*since), key))
}

/// The row of a key's deletion, which holds the key.
pub(super) fn deleted_row(key: &KeyHash, version: Version) -> Vec<u8> {
    [&[DELETED], &version.to_be_bytes()[..], &key.0].concat()
}

/// The nodes next to the root, of the committed tree: every block walks through them. They are at most
/// 16^0 + … + 16^4 of some 700 bytes, read at once where blocks will be executed, and else known once a block has written
/// them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Upper(Vec<[Option<(u64, Slice)>; 2]>);

/// Nibbles of the path of a node that is kept.
pub(super) const UPPER_NIBBLES: usize = 4;

/// How many nodes have a path of so many nibbles at most.
const UPPER_NODES: usize = ((1 << (4 * (UPPER_NIBBLES + 1))) - 1) / 15;

impl Upper {
    /// Where a node of so many nibbles lies; shallower ones come first.
    fn index(path: &[u8], nibbles: usize) -> Option<usize> {
        let within = (0..nibbles).try_fold(0, |index, at| Some(index << 4 | node::nibble(path, at)?));
        within.filter(|_| nibbles <= UPPER_NIBBLES).map(|within| ((1 << (4 * nibbles)) - 1) / 15 + within)
    }

    /// What the row of a node holds, or that of its base.
    pub(super) fn get(&self, path: &[u8; 32], nibbles: usize, version: u64) -> Option<Slice> {
        let rows = self.0.get(Self::index(path, nibbles)?)?;
        rows.iter().flatten().find(|(of, _)| *of == version).map(|(_, row)| row.clone())
    }

    /// Reads those of a tree, level by level, on all cores.
    pub(super) fn load(tables: &Tables, snapshot: &fjall::Snapshot, root: u64) -> Result<Self> {
        let mut upper = Upper(vec![[None, None]; UPPER_NODES]);
        let mut level = vec![([0; 32], root)];
        for nibbles in 0..=UPPER_NIBBLES {
            let read = |(path, version): &([u8; 32], u64)| {
                let mut rows = [None, None];
                let mut row = |of| {
                    let found = snapshot.get(&tables.heights, node::row(path, nibbles, of))?;
                    // Of its own: what a table gives keeps the whole block that it lies in.
                    let found = found.map(|row| Slice::from(&*row));
                    rows[usize::from(of != *version)] = found.clone().map(|row| (of, row));
                    Ok::<_, fjall::Error>(found)
                };
                let below = match read_node(&mut row, *version)?.context("a tree node is missing")? {
                    Stored::Branch(branch) => branch.branches(path, nibbles),
                    _ => Vec::new(),
                };
                Ok::<_, anyhow::Error>((rows, below))
            };
            let found = level.par_iter().map(read).collect::<Result<Vec<_>>>()?;
            for ((path, _), (rows, _)) in level.iter().zip(&found) {
                if let Some(at) = Self::index(path, nibbles) {
                    upper.0[at].clone_from(rows);
                }
            }
            level = found.into_iter().flat_map(|(_, below)| below).collect();
        }
        Ok(upper)
    }

    /// Follows a commit.
    pub(super) fn advance(&mut self, update: &Update) {
        self.0.resize(UPPER_NODES, [None, None]);
        for row in &update.stale {
            if let Some((version, nibbles, path)) = node::parse_row(row)
                && let Some(at) = Self::index(path, nibbles)
            {
                self.0[at].iter_mut().for_each(|row| drop(row.take_if(|(of, _)| *of == version)));
            }
        }
        for made in &update.nodes {
            if let Some((version, nibbles, path)) = node::parse_row(&made.row)
                && let Some(at) = Self::index(path, nibbles)
            {
                self.0[at] = [Some((version, made.node.clone())), made.base.clone()];
            }
        }
    }

    /// Forgets all: the tree is another one.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The node of a version, whose rows of any version `row` gives.
pub(super) fn read_node<E>(mut row: impl FnMut(u64) -> Result<Option<Slice>, E>, version: u64) -> Result<Option<Stored>>
where
    anyhow::Error: From<E>,
{
    let Some(bytes) = row(version)? else { return Ok(None) };
    let base =
        node::base(&bytes, version).map(|base| row(base)?.context("the base of a patch is missing")).transpose()?;
    node::decode(&bytes, version, base.as_ref()).context("a tree node does not decode").map(Some)
}

/// The tree as one database snapshot sees it. Whoever asks for a leaf has asked for its parent before.
pub(super) struct TreeView<'a> {
    tables: &'a Tables,
    snapshot: &'a fjall::Snapshot,
    /// Leaves of the branches read so far, by what their rows would be called.
    leaves: RefCell<HashMap<Slice, Leaf>>,
}

impl<'a> TreeView<'a> {
    pub(super) fn new(tables: &'a Tables, snapshot: &'a fjall::Snapshot) -> Self {
        TreeView { tables, snapshot, leaves: RefCell::default() }
    }

    /// The height that gave a key the value that it has at a readable height; none where it has none.
    fn since(&self, key: &KeyHash, height: Version) -> Result<Option<Version>> {
        let mut version = height;
        for depth in 0.. {
            let row = |of| self.snapshot.get(&self.tables.heights, node::row(&key.0, depth, of));
            let (leaf, since) = match read_node(row, version)?.context("a tree node is missing")? {
                Stored::Empty => return Ok(None),
                Stored::Leaf(leaf, since) => (leaf, since),
                Stored::Branch(branch) => match node::nibble(&key.0, depth).and_then(|at| branch.child(at)) {
                    None => return Ok(None),
                    Some(Child::Leaf { leaf, version }) => (leaf, version),
                    Some(Child::Branch { version: below, .. }) => {
                        version = below;
                        continue;
                    }
                },
            };
            return Ok((leaf.key == key.0).then_some(since));
        }
        Ok(None)
    }
}

impl TreeReader for TreeView<'_> {
    fn get_node_option(&self, key: &NodeKey) -> Result<Option<Node>> {
        if let Some(leaf) = self.leaves.borrow().get(&node::row_of(key)) {
            return Ok(Some(Node::Leaf(leaf.into_jmt())));
        }
        let of_version = |version| NodeKey::new(version, key.nibble_path().clone());
        let row = |version| self.snapshot.get(&self.tables.heights, node::row_of(&of_version(version)));
        let Some(node) = read_node(row, key.version())? else { return Ok(None) };
        if let Stored::Branch(branch) = &node {
            let leaves = branch.leaves().map(|(at, leaf, version)| (node::child_row_of(key, at, version), leaf));
            self.leaves.borrow_mut().extend(leaves);
        }
        node.into_jmt().map(Some)
    }

    fn get_value_option(&self, height: Version, key: KeyHash) -> Result<Option<OwnedValue>> {
        let Some(since) = self.since(&key, height)? else { return Ok(None) };
        let value = self.snapshot.get(&self.tables.heights, value_row(&key.0, since))?;
        value.map(|value| Some(value.to_vec())).context("a value is missing")
    }

    fn get_rightmost_leaf(&self) -> Result<Option<(NodeKey, LeafNode)>> {
        bail!("only a restore asks for the rightmost leaf, and none runs on a live store")
    }
}

impl HasPreimage for TreeView<'_> {
    fn preimage(&self, key_hash: KeyHash) -> Result<Option<Vec<u8>>> {
        let row = self.snapshot.get(&self.tables.tree, preimage_row(&key_hash))?;
        Ok(row.map(|row| decode_preimage(&row).map(|(_, key)| key.to_vec())).transpose()?)
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
