//! The Merkle tree after a block.
//!
//! `jmt` inserts a batch of keys so that each node that they touch is made and hashed once; deletions it takes one by one
//! only, each of which makes its path anew. Most blocks delete some key and change thousands. So the deletions come
//! first, and the batch is inserted into what they leave, as the same version.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use jmt::storage::{LeafNode, Node, NodeBatch, NodeKey, TreeReader, TreeUpdateBatch};
use jmt::{KeyHash, OwnedValue, RootHash, Sha256Jmt, Version};

use super::database::root_key;
use super::tree::TreeView;

/// The tree after a block: its root, and what it writes and makes stale.
pub(super) fn update(
    view: &TreeView<'_>,
    leaves: impl Iterator<Item = (KeyHash, Option<OwnedValue>)>,
    height: Version,
) -> Result<(RootHash, TreeUpdateBatch)> {
    // In the order of the tree, which is that of the paths that they share.
    let (mut values, mut deleted) = (BTreeMap::new(), BTreeMap::new());
    for (key, value) in leaves {
        match value {
            Some(value) => drop(values.insert(key, value)),
            None => drop(deleted.insert(key, None)),
        }
    }
    if values.is_empty() {
        return Sha256Jmt::new(view).put_value_set(deleted, height);
    }
    if deleted.is_empty() {
        return insert(view, values, height);
    }
    let (_, mut whole) = Sha256Jmt::new(view).put_value_set(deleted, height)?;
    let left = Deleted { below: view, nodes: &whole.node_batch, height };
    let (root, mut inserted) = insert(&left, values, height)?;
    // What the deletions made and the insertions made again was never stored: it is replaced, not stale.
    inserted.stale_node_index_batch.retain(|stale| stale.node_key.version() < height);
    whole.node_batch.merge(inserted.node_batch);
    whole.stale_node_index_batch.append(&mut inserted.stale_node_index_batch);
    whole.node_stats.append(&mut inserted.node_stats);
    Ok((root, whole))
}

fn insert<R: TreeReader>(
    reader: &R,
    values: BTreeMap<KeyHash, OwnedValue>,
    height: Version,
) -> Result<(RootHash, TreeUpdateBatch)> {
    let values = values.into_iter().collect();
    let (roots, batch) = Sha256Jmt::new(reader).batch_put_value_sets(vec![values], None, height)?;
    let root = roots.last().copied();
    root.map(|root| (root, batch)).ok_or_else(|| anyhow::anyhow!("a batch of one version has no root"))
}

/// The tree after a block's deletions, in place of the one before the block.
struct Deleted<'a> {
    below: &'a TreeView<'a>,
    nodes: &'a NodeBatch,
    height: Version,
}

impl TreeReader for Deleted<'_> {
    fn get_node_option(&self, key: &NodeKey) -> Result<Option<Node>> {
        let before = key.nibble_path().is_empty() && key.version() + 1 == self.height;
        let made = if before { self.nodes.nodes().get(&root_key(self.height)) } else { self.nodes.nodes().get(key) };
        made.map_or_else(|| self.below.get_node_option(key), |node| Ok(Some(node.clone())))
    }

    fn get_value_option(&self, max_version: Version, key: KeyHash) -> Result<Option<OwnedValue>> {
        self.below.get_value_option(max_version, key)
    }

    fn get_rightmost_leaf(&self) -> Result<Option<(NodeKey, LeafNode)>> {
        bail!("only a restore asks for the rightmost leaf, and none runs on a live store")
    }
}
