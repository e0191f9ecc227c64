//! The Merkle tree after a block.
//!
//! The tree is `jmt`'s: its hashes, its shape, its branches' versions. A block changes thousands of keys in it, so this is made for
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
use super::node::{self, Branch, Child, Leaf, Origin, Stored};
use super::tree::{EMPTY_ROOT, Tables, UPPER_NIBBLES, Upper, read_node, value_row};

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
    /// The height that gives it.
    pub since: u64,
    /// Whether the tree has it: what else lies in the database of it is then stale.
    pub known: bool,
}

/// What a block does to the tree.
#[derive(Default)]
pub(super) struct Update {
    /// New nodes.
    pub nodes: Vec<Made>,
    /// Rows of nodes and of values that later heights do not need.
    pub stale: Vec<Slice>,
}

/// A new node.
#[derive(Clone)]
pub(super) struct Made {
    pub row: Slice,
    /// What the row holds.
    pub node: Slice,
    /// The version of its base and what that holds, where it is a patch.
    pub base: Option<(u64, Slice)>,
}

impl Update {
    fn put(&mut self, row: Slice, node: Slice) {
        self.nodes.push(Made { row, node, base: None });
    }

    /// The rows of a branch are not needed any more, but for the base where a patch stands on it.
    fn retire(&mut self, origin: &Origin, path: &[u8; 32], depth: usize, keeps_base: bool) {
        let Origin { version, base, .. } = *origin;
        if version != base {
            self.stale.push(node::row(path, depth, version));
        }
        if !keeps_base {
            self.stale.push(node::row(path, depth, base));
        }
    }
}

/// The tree before a block.
pub(super) struct Before<'a> {
    pub tables: &'a Tables,
    pub snapshot: &'a fjall::Snapshot,
    pub upper: &'a Upper,
    /// The version of its root, where there is any.
    pub version: Option<u64>,
}

/// What has become of a subtree. Its leaf, with the height that gave it its value, lies nowhere yet: it may move up.
#[derive(Clone, Copy)]
enum Subtree {
    Empty,
    Leaf(Leaf, u64),
    Branch([u8; 32]),
}

/// The tree after a block, whose changes are in the order of their keys: its root, and what it writes and makes stale.
pub(super) fn update(before: &Before<'_>, changes: &[Change], height: u64) -> Result<(AppHash, Update)> {
    let mut update = Update::default();
    let path = [0; 32];
    let after = match before.version {
        None => create(changes, 0, height, &mut update),
        Some(version) => match before.read(&path, 0, version)? {
            Stored::Branch(branch) => before.change_branch(branch, changes, &path, 0, height, &mut update)?,
            stored => {
                update.stale.push(node::row(&path, 0, version));
                match stored {
                    Stored::Leaf(leaf, since) => beside(changes, leaf, since, 0, height, &mut update),
                    _ => create(changes, 0, height, &mut update),
                }
            }
        },
    };
    let row = node::row(&path, 0, height);
    let root = match after {
        Subtree::Branch(hash) => hash,
        Subtree::Leaf(leaf, since) => {
            update.put(row, node::encode_leaf(&leaf, height, since));
            leaf.hash()
        }
        Subtree::Empty => {
            update.put(row, node::encode_empty());
            EMPTY_ROOT
        }
    };
    update.nodes.par_sort_unstable_by(|a, b| a.row.cmp(&b.row));
    Ok((root, update))
}

/// The changes below each child of a node at `depth`, with the child's nibble.
fn groups(changes: &[Change], depth: usize) -> impl Iterator<Item = (usize, &[Change])> {
    let of = move |change: &Change| node::nibble(&change.key.0, depth).unwrap_or(0);
    changes.chunk_by(move |a, b| of(a) == of(b)).map(move |group| (of(&group[0]), group))
}

/// Writes a branch: as a patch, if it is one that is kept in memory and differs little from its base.
fn put(mut branch: Branch, path: &[u8; 32], depth: usize, height: u64, update: &mut Update) -> Subtree {
    let hash = branch.hash();
    let near = depth <= UPPER_NIBBLES && branch.is_near_base();
    let patch = if near { branch.encode_patch(height) } else { None };
    let origin = branch.origin.take();
    if let Some(origin) = &origin {
        update.retire(origin, path, depth, patch.is_some());
    }
    let base = origin.filter(|_| patch.is_some()).map(|origin| (origin.base, origin.whole));
    let node = patch.unwrap_or_else(|| branch.encode(height));
    update.nodes.push(Made { row: node::row(path, depth, height), node, base });
    Subtree::Branch(hash)
}

/// What a branch's child has become.
fn child_of(after: Subtree, height: u64) -> Option<Child> {
    match after {
        Subtree::Empty => None,
        Subtree::Branch(hash) => Some(Child::Branch { hash, version: height }),
        Subtree::Leaf(leaf, since) => Some(Child::Leaf { leaf, version: since }),
    }
}

/// A subtree where there was none.
fn create(changes: &[Change], depth: usize, height: u64, update: &mut Update) -> Subtree {
    let leaf = |change: &Change| Some((Leaf { key: change.key.0, value: change.value? }, change.since));
    let mut live = changes.iter().filter_map(leaf);
    let Some((leaf, since)) = live.next() else { return Subtree::Empty };
    if live.next().is_none() {
        return Subtree::Leaf(leaf, since);
    }
    let mut branch = Branch::new();
    for (at, group) in groups(changes, depth) {
        branch.set(at, child_of(create(group, depth + 1, height, update), height));
    }
    put(branch, &leaf.key, depth, height, update)
}

/// A subtree where there was a leaf, whose value is of the height `since`.
fn beside(changes: &[Change], leaf: Leaf, since: u64, depth: usize, height: u64, update: &mut Update) -> Subtree {
    let there = Change { key: KeyHash(leaf.key), value: Some(leaf.value), since, known: true };
    match changes.binary_search_by(|change| change.key.cmp(&there.key)) {
        Ok(_) => {
            update.stale.push(value_row(&leaf.key, since));
            create(changes, depth, height, update)
        }
        Err(at) => {
            let with = [&changes[..at], &[there], &changes[at..]].concat();
            create(&with, depth, height, update)
        }
    }
}

impl Before<'_> {
    fn read(&self, path: &[u8; 32], depth: usize, version: u64) -> Result<Stored> {
        let row = |version| match self.upper.get(path, depth, version) {
            Some(known) => Ok(Some(known)),
            None => self.snapshot.get(&self.tables.heights, node::row(path, depth, version)),
        };
        let found = read_node(row, version)?;
        found.with_context(|| format!("the node of version {version} at depth {depth} is missing"))
    }

    /// The subtree at `depth` after changes below it, where there was `child`.
    fn change(
        &self,
        changes: &[Change],
        depth: usize,
        child: Option<Child>,
        height: u64,
        update: &mut Update,
    ) -> Result<Subtree> {
        match child {
            None => Ok(create(changes, depth, height, update)),
            Some(Child::Leaf { leaf, version }) => Ok(beside(changes, leaf, version, depth, height, update)),
            Some(Child::Branch { version, .. }) => {
                let path = &changes[0].key.0;
                match self.read(path, depth, version)? {
                    Stored::Branch(branch) => self.change_branch(branch, changes, path, depth, height, update),
                    _ => bail!("a branch's row is not of a branch"),
                }
            }
        }
    }

    fn change_branch(
        &self,
        mut branch: Branch,
        changes: &[Change],
        path: &[u8; 32],
        depth: usize,
        height: u64,
        update: &mut Update,
    ) -> Result<Subtree> {
        if depth <= PARALLEL_NIBBLES && changes.len() >= PARALLEL_KEYS {
            let groups: Vec<_> = groups(changes, depth).collect();
            let done = groups.into_par_iter().map(|(at, group)| {
                let mut update = Update::default();
                let after = self.change(group, depth + 1, branch.child(at), height, &mut update)?;
                Ok((at, after, update))
            });
            for (at, after, part) in done.collect::<Result<Vec<_>>>()? {
                update.nodes.extend(part.nodes);
                update.stale.extend(part.stale);
                branch.set(at, child_of(after, height));
            }
        } else {
            for (at, group) in groups(changes, depth) {
                let after = self.change(group, depth + 1, branch.child(at), height, update)?;
                branch.set(at, child_of(after, height));
            }
        }
        let (present, leaves) = branch.shape();
        let after = match present.count_ones() {
            0 => Subtree::Empty,
            // A leaf that is alone moves up.
            1 if leaves == present => {
                branch.leaves().next().map_or(Subtree::Empty, |(_, leaf, since)| Subtree::Leaf(leaf, since))
            }
            _ => return Ok(put(branch, path, depth, height, update)),
        };
        if let Some(origin) = &branch.origin {
            update.retire(origin, path, depth, false);
        }
        Ok(after)
    }
}
