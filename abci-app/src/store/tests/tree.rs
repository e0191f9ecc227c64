//! The tree beside that of `jmt`, which takes one key after another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jmt::storage::{LeafNode, Node, NodeKey, TreeReader};
use jmt::{KeyHash, OwnedValue, Sha256Jmt, Version};
use proptest::prelude::*;

use super::super::tree::key_hash;
use super::super::{Changes, EMPTY_ROOT, node};
use super::{commit, open};

/// The nodes of the model.
#[derive(Default)]
struct Nodes(HashMap<NodeKey, Node>);

impl TreeReader for Nodes {
    fn get_node_option(&self, key: &NodeKey) -> anyhow::Result<Option<Node>> {
        let first = key.nibble_path().is_empty() && key.version() == 0;
        Ok(self.0.get(key).cloned().or(first.then_some(Node::Null)))
    }
    fn get_value_option(&self, _: Version, _: KeyHash) -> anyhow::Result<Option<OwnedValue>> {
        anyhow::bail!("no value is read")
    }
    fn get_rightmost_leaf(&self) -> anyhow::Result<Option<(NodeKey, LeafNode)>> {
        anyhow::bail!("no leaf is looked for")
    }
}

/// A block that sets keys, that deletes them, or that does both: of few keys, of more, or of any.
fn block() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
    let key = prop_oneof![0..40_u16, 0..600_u16, any::<u16>()];
    let changes = prop::collection::vec((key, prop::option::weighted(0.6, any::<u8>()), any::<u8>()), 0..200);
    (0..3_usize, changes).prop_map(|(kind, changes)| {
        let change = |(key, either, value)| (key, [Some(value), None, either][kind]);
        changes.into_iter().map(change).collect()
    })
}

/// A row as `jmt` names it.
fn key_of(row: &[u8]) -> NodeKey {
    let (version, nibbles, path) = node::parse_row(row).unwrap();
    NodeKey::new(version, (0..nibbles).map(|at| (node::nibble(path, at).unwrap() as u8).into()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// On the same tree a block leads to the same root; to the same new nodes and the same stale ones too, unless it both
    /// sets and deletes: `jmt` then moves a leaf up and down again, which here stays where it is.
    #[test]
    fn blocks_make_the_tree_of_jmt(blocks in prop::collection::vec(block(), 1..8)) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, 1_000);
        let (mut nodes, mut state) = (Nodes::default(), BTreeMap::new());
        for (height, block) in (1..).zip(&blocks) {
            let mut changes: Changes =
                block.iter().map(|(key, value)| (key.to_be_bytes().to_vec(), value.map(|value| vec![value]))).collect();
            let staged = store.stage(changes.clone(), height).unwrap();
            changes.retain(|key, value| state.get(key) != value.as_ref());
            for (key, value) in changes.clone() {
                match value {
                    Some(value) => drop(state.insert(key, value)),
                    None => drop(state.remove(&key)),
                }
            }
            let leaves = changes.iter().map(|(key, value)| (key_hash(key), value.clone()));
            let (root, batch) = Sha256Jmt::new(&nodes).put_value_set(leaves, height).unwrap();
            prop_assert_eq!(staged.app_hash(), root.0);
            let made: BTreeMap<_, _> = staged.tree.nodes.iter().cloned().collect();
            prop_assert_eq!(made.len(), staged.tree.nodes.len());
            let stale: BTreeSet<_> = staged.tree.stale.iter().cloned().collect();
            prop_assert_eq!(stale.len(), staged.tree.stale.len());
            if changes.values().all(Option::is_some) || changes.values().all(Option::is_none) {
                let there = batch.node_batch.nodes().iter();
                let there: BTreeMap<_, _> = there.map(|(key, node)| (node::row_of(key), node::encode(key, node))).collect();
                prop_assert_eq!(&made, &there);
                let there = batch.stale_node_index_batch.iter();
                let mut there: BTreeSet<_> = there.map(|stale| node::row_of(&stale.node_key)).collect();
                // It forgets the last root where a block changes nothing, or where that was empty.
                if height > 1 {
                    there.insert(node::row(&[0; 32], 0, height - 1));
                }
                prop_assert_eq!(&stale, &there);
            }
            for row in &stale {
                prop_assert!(nodes.0.remove(&key_of(row)).is_some(), "what is stale was there");
            }
            for (row, bytes) in &made {
                let node = node::decode(bytes, height).unwrap().into_jmt().unwrap();
                prop_assert_eq!(&node::row_of(&key_of(row)), row);
                nodes.0.insert(key_of(row), node);
            }
            prop_assert_eq!(commit(&store, changes, height), root.0);
        }
        prop_assert_eq!(store.app_hash() == EMPTY_ROOT, state.is_empty());
    }
}

#[test]
fn what_is_no_node_is_refused() {
    let leaf = node::encode_leaf(&[1; 32], &[2; 32]);
    let mut branch = node::Branch::new();
    for (at, version) in [(0, 9), (7, 1), (15, 5)] {
        branch.set(at, Some(node::Child { hash: [at as u8; 32], version, leaf: at == 7 }));
    }
    for bytes in [&leaf[..], &branch.encode(1 << 40)] {
        assert!(node::decode(bytes, 1 << 40).is_some());
        for end in 0..bytes.len() {
            assert!(node::decode(&bytes[..end], 1 << 40).is_none(), "{end} of {}", bytes.len());
        }
        assert!(node::decode(&[bytes, &[0]].concat(), 1 << 40).is_none());
    }
    let Some(node::Stored::Branch(read)) = node::decode(&branch.encode(1 << 40), 1 << 40) else { panic!("no branch") };
    assert!((0..16).all(|at| read.child(at) == branch.child(at)));
    assert!(node::decode(&[3], 1).is_none() && node::decode(&[2, 0, 1, 0, 0], 1).is_none());
}
