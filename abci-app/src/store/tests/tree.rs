//! The tree beside that of `jmt`, which takes one key after another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fjall::Slice;
use jmt::storage::{LeafNode, Node, NodeKey, TreeReader};
use jmt::{KeyHash, OwnedValue, Sha256Jmt, Version};
use proptest::prelude::*;

use super::super::node::{self, Branch, Child, Leaf, Stored};
use super::super::tree::{Upper, key_hash, read_node, value_row, valued_key};
use super::super::{Changes, EMPTY_ROOT, KeyBuilder};
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
    let change = (key, prop::option::weighted(0.6, any::<u8>()), any::<u8>());
    let changes = prop_oneof![prop::collection::vec(change.clone(), 0..6), prop::collection::vec(change, 0..200)];
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

/// A branch's encoding as if its leaves were of its version.
fn without_ages(mut branch: Branch, version: u64) -> Slice {
    let leaves: Vec<_> = branch.leaves().collect();
    for (at, leaf, _) in leaves {
        branch.set(at, Some(Child::Leaf { leaf, version }));
    }
    branch.encode(version)
}

/// A tree as its rows hold it.
#[derive(Default)]
struct Walk {
    /// Its branches, and a root of another kind, whole, as if their leaves were as old as they are.
    whole: BTreeMap<Slice, Slice>,
    /// What each leaf says of the height that gave it its value.
    since: BTreeMap<[u8; 32], u64>,
    /// All nodes as `jmt` has them.
    nodes: HashMap<NodeKey, Node>,
    /// The rows that it lies in.
    used: BTreeSet<Slice>,
}

impl Walk {
    fn enter(&mut self, rows: &BTreeMap<Slice, Slice>, row: &Slice) {
        let (version, nibbles, path) = node::parse_row(row).unwrap();
        let mut whole_path = [0; 32];
        whole_path[..path.len()].copy_from_slice(path);
        let of_version = |version| {
            let row = node::row(&whole_path, nibbles, version);
            self.used.insert(row.clone());
            Ok::<_, anyhow::Error>(rows.get(&row).cloned())
        };
        let stored = read_node(of_version, version).unwrap().expect("the row is there");
        match &stored {
            Stored::Empty => drop(self.whole.insert(row.clone(), node::encode_empty())),
            Stored::Leaf(leaf, since) => {
                self.since.insert(leaf.key, *since);
                self.whole.insert(row.clone(), node::encode_leaf(leaf, version, version));
            }
            Stored::Branch(branch) => {
                self.whole.insert(row.clone(), without_ages(branch.clone(), version));
                for (at, child) in (0..16).filter_map(|at| Some((at, branch.child(at)?))) {
                    match child {
                        Child::Branch { version, .. } => {
                            self.enter(rows, &node::child_row_of(&key_of(row), at, version));
                        }
                        Child::Leaf { leaf, version } => {
                            self.since.insert(leaf.key, version);
                            let row = node::child_row_of(&key_of(row), at, version);
                            self.nodes.insert(key_of(&row), Node::Leaf(leaf.into_jmt()));
                        }
                    }
                }
            }
        }
        self.nodes.insert(key_of(row), stored.into_jmt().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// On the same tree a block leads to the same root; to the same tree with the same versions of branches too, unless it
    /// both sets and deletes: `jmt` then moves a leaf up and down again, which here stays where it is. What is not stale is
    /// needed. A leaf is of the height that gave it its value, wherever it has moved since.
    #[test]
    fn blocks_make_the_tree_of_jmt(blocks in prop::collection::vec(block(), 1..12)) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, 1_000);
        let (mut nodes, mut state, mut rows) = (Nodes::default(), BTreeMap::new(), BTreeMap::new());
        let mut since = BTreeMap::new();
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
            for row in &staged.tree.stale {
                match valued_key(row) {
                    Some(KeyHash(key)) => {
                        let of = since.remove(&key).map(|height| value_row(&key, height));
                        prop_assert_eq!(of.as_ref(), Some(row), "the value before");
                    }
                    None => prop_assert!(rows.remove(row).is_some(), "what is stale was there"),
                }
            }
            for (key, _) in changes.iter().filter(|(_, value)| value.is_some()) {
                prop_assert_eq!(since.insert(key_hash(key).0, height), None, "the value before is stale");
            }
            for made in &staged.tree.nodes {
                prop_assert!(rows.insert(made.row.clone(), made.node.clone()).is_none(), "one row of each node");
            }
            let mut ours = Walk::default();
            ours.enter(&rows, &node::row(&[0; 32], 0, height));
            prop_assert_eq!(&ours.used, &rows.keys().cloned().collect());
            prop_assert_eq!(&ours.since, &since);
            if changes.values().all(Option::is_some) || changes.values().all(Option::is_none) {
                for stale in &batch.stale_node_index_batch {
                    nodes.0.remove(&stale.node_key);
                }
                // It forgets the last root where a block changes nothing, or where that was empty.
                nodes.0.remove(&key_of(&node::row(&[0; 32], 0, height - 1)));
                nodes.0.extend(batch.node_batch.nodes().clone());
                let leaf = |row: &Slice| match nodes.0.get(&key_of(row))? {
                    Node::Leaf(leaf) => Some(Leaf::of_jmt(leaf)),
                    _ => None,
                };
                let encoded = |(key, of): (&NodeKey, &Node)| {
                    let (version, bytes) = (key.version(), node::encode(key, of, leaf)?);
                    let bytes = match node::decode(&bytes, version, None)? {
                        Stored::Branch(branch) => without_ages(branch, version),
                        _ => bytes,
                    };
                    Some((node::row_of(key), bytes))
                };
                prop_assert_eq!(&ours.whole, &nodes.0.iter().filter_map(encoded).collect());
                prop_assert_eq!(ours.nodes.len(), nodes.0.len());
            }
            nodes.0 = ours.nodes;
            prop_assert_eq!(commit(&store, changes, height), root.0);
        }
        prop_assert_eq!(store.app_hash() == EMPTY_ROOT, state.is_empty());
    }
}

/// A key that changes among thousands takes a patch of each branch on its way, and now and then a whole one.
#[test]
fn a_small_change_writes_little() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 3);
    let key = |index: u64| KeyBuilder::new(1).u64(index).finish();
    commit(&store, (0..4_000).map(|index| (key(index), Some(vec![0]))).collect(), 1);
    let mut bytes = Vec::new();
    for height in 2..40 {
        let staged = store.stage([(key(height * 97), Some(vec![1]))].into(), height).unwrap();
        bytes.push(staged.tree.nodes.iter().map(|made| made.node.len()).sum::<usize>());
        store.commit(staged).unwrap();
    }
    assert!(bytes[0] < 500 && bytes.iter().any(|bytes| *bytes > 500), "{bytes:?}");
    assert!(bytes.iter().sum::<usize>() < 600 * bytes.len(), "{bytes:?}");
    store.check().unwrap();
}

#[test]
fn what_is_no_node_is_refused() {
    let leaf = Leaf { key: [1; 32], value: [2; 32] };
    let mut branch = node::Branch::new();
    for (at, version) in [(0, 9), (7, 1), (15, 5)] {
        let child = Child::Branch { hash: [at as u8; 32], version };
        branch.set(at, Some(if at == 7 { Child::Leaf { leaf, version } } else { child }));
    }
    let whole = branch.encode(1 << 40);
    let Some(Stored::Branch(read)) = node::decode(&whole, 1 << 40, None) else { panic!("no branch") };
    assert!((0..16).all(|at| read.child(at) == branch.child(at)));
    let mut patched = read;
    patched.set(0, None);
    patched.set(3, Some(Child::Leaf { leaf, version: 1 << 41 }));
    let patch = patched.encode_patch(1 << 41).unwrap();
    assert_eq!((node::base(&patch, 1 << 41), node::base(&whole, 1 << 40)), (Some(1 << 40), None));
    let Some(Stored::Branch(read)) = node::decode(&patch, 1 << 41, Some(&whole)) else { panic!("no branch") };
    assert!((0..16).all(|at| read.child(at) == patched.child(at)));
    for (bytes, version, base) in
        [(&node::encode_leaf(&leaf, 1, 1), 1, None), (&whole, 1 << 40, None), (&patch, 1 << 41, Some(&whole))]
    {
        assert!(node::decode(bytes, version, base).is_some());
        for end in 0..bytes.len() {
            assert!(node::decode(&bytes[..end].into(), version, base).is_none(), "{end} of {}", bytes.len());
        }
        assert!(node::decode(&[bytes, &[0][..]].concat().into(), version, base).is_none());
    }
    let bad = |bytes: &[u8], base| node::decode(&bytes.into(), 9, base).is_none();
    assert!(bad(&[4], None) && bad(&[2, 0, 1, 0, 0], None), "a kind, a child that is cut off");
    assert!(bad(&[2, 0, 0, 0, 1], None), "a leaf that is not there");
    assert!(bad(&patch, None) && bad(&patch, Some(&patch)), "a patch on nothing, and on a patch");
    assert!(bad(&[3, 0, 0, 0, 0, 0, 0, 0], Some(&whole)), "on itself");
}

#[test]
fn what_is_read_ahead_is_what_blocks_have_written() {
    let dir = tempfile::tempdir().unwrap();
    let key = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes().to_vec();
    // Many keys; then few, so that branches next to the root are patches; then some less.
    let blocks = [0..3_000_u32, 5..17, 0..0, 900..905, 40..60, 41..44];
    let block = |at: usize| -> Changes {
        let value = |n: u32| (at < 4).then(|| vec![at as u8, n as u8]);
        blocks[at].clone().map(|n| (key(n), value(n))).collect()
    };
    let store = open(&dir, 3);
    for height in 1..=blocks.len() as u64 {
        commit(&store, block(height as usize - 1), height);
    }
    let written = std::mem::take(&mut *store.0.upper.write().unwrap());
    assert_ne!(written, Upper::default());
    store.warm().unwrap();
    assert!(*store.0.upper.read().unwrap() == written, "what is read ahead is not what was written");
    let nothing = tempfile::tempdir().unwrap();
    open(&nothing, 3).warm().unwrap();
}
