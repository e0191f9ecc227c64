//! The Merkle tree after a block.
//!
//! The tree is `jmt`'s: its hashes, its shape, its versions. A block changes thousands of keys in it, so this is made for
//! many at a time: they come in the order of their hashes, each node that they touch is read, hashed and written once,
//! and the subtrees next to the root are worked on by all cores. What a subtree becomes depends on its keys alone, so the
//! result is the same on any number of them.
//!
//! *Shape*: a node with two leaves below it or more is a branch; a leaf lies as near to the root as it is alone there.

use anyhow::{Context, Result, bail};
use fjall::{Readable, Slice};
use jmt::KeyHash;
use rayon::prelude::*;

use super::AppHash;
use super::node::{self, Branch, Child, Stored};
use super::tree::{EMPTY_ROOT, Tables, Upper};

/// Nodes of so many nibbles and fewer hand their children to all cores…
const PARALLEL_NIBBLES: usize = 1;
/// … if so many keys change below them.
const PARALLEL_KEYS: usize = 64;

/// A key of the tree that a block changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// Its name in the tree.
    pub key: KeyHash,
    /// The hash of its value; none where it is deleted.
    pub value: Option<[u8; 32]>,
    /// Whether the tree has it.
    pub known: bool,
}

/// What a block does to the tree.
#[derive(Default)]
pub(super) struct Update {
    /// Rows of new nodes, with what they hold.
    pub nodes: Vec<(Slice, Slice)>,
    /// Rows of nodes that later heights do not need.
    pub stale: Vec<Slice>,
}

/// The tree before a block.
pub(super) struct Before<'a> {
    pub tables: &'a Tables,
    pub snapshot: &'a fjall::Snapshot,
    pub upper: &'a Upper,
    /// The version of its root, where there is any.
    pub version: Option<u64>,
}

/// What has become of a subtree. Its leaf is not written yet: it may move up.
#[derive(Clone, Copy)]
enum Subtree {
    Empty,
    Leaf { key: [u8; 32], value: [u8; 32] },
    Branch([u8; 32]),
}

/// The tree after a block, whose changes are in the order of their keys: its root, and what it writes and makes stale.
pub(super) fn update(before: &Before<'_>, changes: &[Change], height: u64) -> Result<(AppHash, Update)> {
    let mut update = Update::default();
    let path = [0; 32];
    let after = match (before.version, changes) {
        (None, changes) => create(changes, 0, height, &mut update),
        (Some(version), []) => {
            update.stale.push(node::row(&path, 0, version));
            match before.read(&path, 0, version)? {
                Stored::Empty => Subtree::Empty,
                Stored::Leaf { key, value } => Subtree::Leaf { key, value },
                Stored::Branch(branch) => put(&branch, &path, 0, height, &mut update),
            }
        }
        (Some(version), changes) => before.change(changes, 0, Some(version), height, &mut update)?,
    };
    let row = node::row(&path, 0, height);
    let root = match after {
        Subtree::Branch(hash) => hash,
        Subtree::Leaf { key, value } => {
            update.nodes.push((row, node::encode_leaf(&key, &value)));
            node::leaf_hash(&key, &value)
        }
        Subtree::Empty => {
            update.nodes.push((row, node::encode_empty()));
            EMPTY_ROOT
        }
    };
    update.nodes.par_sort_unstable();
    Ok((root, update))
}

/// The changes below each child of a node at `depth`, with the child's nibble.
fn groups(changes: &[Change], depth: usize) -> impl Iterator<Item = (usize, &[Change])> {
    let of = move |change: &Change| node::nibble(&change.key.0, depth).unwrap_or(0);
    changes.chunk_by(move |a, b| of(a) == of(b)).map(move |group| (of(&group[0]), group))
}

/// Writes a branch.
fn put(branch: &Branch, path: &[u8; 32], depth: usize, height: u64, update: &mut Update) -> Subtree {
    update.nodes.push((node::row(path, depth, height), branch.encode(height)));
    Subtree::Branch(branch.hash())
}

/// Sets what a branch's child has become, and writes it if it is a leaf: the branch stays one.
fn place(branch: &mut Branch, group: &(usize, [u8; 32], Subtree), depth: usize, height: u64, update: &mut Update) {
    let (at, path, after) = group;
    let child = match after {
        Subtree::Empty => None,
        Subtree::Branch(hash) => Some(Child { hash: *hash, version: height, leaf: false }),
        Subtree::Leaf { key, value } => {
            update.nodes.push((node::row(path, depth + 1, height), node::encode_leaf(key, value)));
            Some(Child { hash: node::leaf_hash(key, value), version: height, leaf: true })
        }
    };
    branch.set(*at, child);
}

/// A subtree where there was none.
fn create(changes: &[Change], depth: usize, height: u64, update: &mut Update) -> Subtree {
    let mut live = changes.iter().filter_map(|change| Some((change.key.0, change.value?)));
    let Some((key, value)) = live.next() else { return Subtree::Empty };
    if live.next().is_none() {
        return Subtree::Leaf { key, value };
    }
    let mut branch = Branch::new();
    for (at, group) in groups(changes, depth) {
        let after = create(group, depth + 1, height, update);
        place(&mut branch, &(at, group[0].key.0, after), depth, height, update);
    }
    put(&branch, &key, depth, height, update)
}

impl Before<'_> {
    fn read(&self, path: &[u8; 32], depth: usize, version: u64) -> Result<Stored> {
        let known = self.upper.get(path, depth, version);
        let found = match known {
            Some(known) => Some(known),
            None => self.snapshot.get(&self.tables.nodes, node::row(path, depth, version))?,
        };
        let found = found.with_context(|| format!("the node of version {version} at depth {depth} is missing"))?;
        node::decode(&found, version).context("a tree node does not decode")
    }

    /// The subtree at `depth`, whose node is of `version`, after changes below it.
    fn change(
        &self,
        changes: &[Change],
        depth: usize,
        version: Option<u64>,
        height: u64,
        update: &mut Update,
    ) -> Result<Subtree> {
        let Some(version) = version else { return Ok(create(changes, depth, height, update)) };
        let path = &changes[0].key.0;
        update.stale.push(node::row(path, depth, version));
        match self.read(path, depth, version)? {
            Stored::Empty if depth == 0 => Ok(create(changes, depth, height, update)),
            Stored::Empty => bail!("below the root a node is empty"),
            Stored::Leaf { key, value } => Ok(beside(changes, key, value, depth, height, update)),
            Stored::Branch(branch) => self.change_branch(branch, changes, depth, height, update),
        }
    }

    fn change_branch(
        &self,
        mut branch: Branch,
        changes: &[Change],
        depth: usize,
        height: u64,
        update: &mut Update,
    ) -> Result<Subtree> {
        let child = |(at, group): (usize, &[Change]), update: &mut Update| {
            let after = match branch.child(at) {
                // A leaf below which a known key changes is that key's: it need not be read.
                Some(Child { version, leaf: true, .. }) if group.iter().any(|change| change.known) => {
                    update.stale.push(node::row(&group[0].key.0, depth + 1, version));
                    create(group, depth + 1, height, update)
                }
                child => self.change(group, depth + 1, child.map(|child| child.version), height, update)?,
            };
            Ok::<_, anyhow::Error>((at, group[0].key.0, after))
        };
        if depth <= PARALLEL_NIBBLES && changes.len() >= PARALLEL_KEYS {
            let groups: Vec<_> = groups(changes, depth).collect();
            let done = groups.into_par_iter().map(|group| {
                let mut update = Update::default();
                child(group, &mut update).map(|after| (after, update))
            });
            let done = done.collect::<Result<Vec<_>>>()?;
            let mut after = Vec::with_capacity(done.len());
            for (group, part) in done {
                update.nodes.extend(part.nodes);
                update.stale.extend(part.stale);
                after.push(group);
            }
            self.join(&mut branch, &after, &changes[0].key.0, depth, height, update)
        } else {
            let after = groups(changes, depth).map(|group| child(group, update)).collect::<Result<Vec<_>>>()?;
            self.join(&mut branch, &after, &changes[0].key.0, depth, height, update)
        }
    }

    /// A branch with what its children have become.
    fn join(
        &self,
        branch: &mut Branch,
        after: &[(usize, [u8; 32], Subtree)],
        path: &[u8; 32],
        depth: usize,
        height: u64,
        update: &mut Update,
    ) -> Result<Subtree> {
        let (mut present, mut leaves) = branch.shape();
        for (at, _, subtree) in after {
            (present, leaves) = (present & !(1 << at), leaves & !(1 << at));
            present |= u16::from(!matches!(subtree, Subtree::Empty)) << at;
            leaves |= u16::from(matches!(subtree, Subtree::Leaf { .. })) << at;
        }
        if present == 0 {
            return Ok(Subtree::Empty);
        }
        if present.is_power_of_two() && leaves == present {
            let lone = present.trailing_zeros() as usize;
            if let Some((_, _, leaf)) = after.iter().find(|(at, ..)| *at == lone) {
                return Ok(*leaf);
            }
            // One that no change reached moves up.
            let mut path = *path;
            path[depth / 2] = match depth.is_multiple_of(2) {
                true => (lone as u8) << 4,
                false => path[depth / 2] & 0xf0 | lone as u8,
            };
            let version = branch.child(lone).map_or(0, |child| child.version);
            update.stale.push(node::row(&path, depth + 1, version));
            return match self.read(&path, depth + 1, version)? {
                Stored::Leaf { key, value } => Ok(Subtree::Leaf { key, value }),
                _ => bail!("a leaf's row is not of a leaf"),
            };
        }
        for group in after {
            place(branch, group, depth, height, update);
        }
        Ok(put(branch, path, depth, height, update))
    }
}

/// A subtree where there was a leaf.
fn beside(
    changes: &[Change],
    key: [u8; 32],
    value: [u8; 32],
    depth: usize,
    height: u64,
    update: &mut Update,
) -> Subtree {
    let leaf = Change { key: KeyHash(key), value: Some(value), known: true };
    match changes.binary_search_by(|change| change.key.cmp(&leaf.key)) {
        Ok(_) => create(changes, depth, height, update),
        Err(at) => {
            let with = [&changes[..at], &[leaf], &changes[at..]].concat();
            create(&with, depth, height, update)
        }
    }
}
