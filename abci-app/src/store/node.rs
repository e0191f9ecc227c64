//! The tree's nodes as they lie in their rows, and their hashes.
//!
//! ```text
//! row    = n ‖ version (8) ‖ nibbles of the path (1) ‖ the path, an odd last nibble filled with zeros
//! node   = 0                                                                     an empty tree's root
//!        | 1 ‖ leaf                                                              the root of a tree of one key
//!        | 2 ‖ children that are there (2) ‖ of them leaves (2) ‖ children       branch
//!        | 3 ‖ age of the base ‖ children that differ from it (2) ‖ of them there (2) ‖ of those leaves (2) ‖ those children
//! child  = its hash (32), or leaf; then its age
//! leaf   = SHA-256 of the key (32) ‖ SHA-256 of the value (32)
//! age    = the node's version less that of what it names (LEB128)
//! ```
//!
//! The third kind is a *patch* on its base, the row of the same path that held the whole branch last: a block changes one
//! or two of the sixteen children of most nodes next to the root. Leaves have no rows but lie in their parent's.
//! Integers are big-endian, child 0 is the lowest bit. Hashes are those of `jmt`; a row up to the depth of six nibbles
//! is so short that the database keeps it without memory of its own.

use fjall::Slice;
use jmt::storage::{LeafNode, Node, NodeKey};
use jmt::{KeyHash, ValueHash};
use sha2::{Digest, Sha256};

use super::tree::{EMPTY_ROOT, HEIGHT};

const EMPTY: u8 = 0;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
const PATCH: u8 = 3;

/// The longest path of a node.
const NIBBLES_MAX: u8 = 64;

/// The longest age.
const AGE_BYTES_MAX: usize = 10;
/// The longest encoding of a node: a patch of sixteen old leaves.
const NODE_BYTES_MAX: usize = 1 + AGE_BYTES_MAX + 6 + 16 * (64 + AGE_BYTES_MAX);

/// The row of the node at the first `nibbles` of `path`.
pub(super) fn row(path: &[u8; 32], nibbles: usize, version: u64) -> Slice {
    let mut row = [0; 42];
    row[0] = HEIGHT;
    row[1..9].copy_from_slice(&version.to_be_bytes());
    row[9] = nibbles as u8;
    let bytes = nibbles.div_ceil(2);
    row[10..10 + bytes].copy_from_slice(&path[..bytes]);
    if !nibbles.is_multiple_of(2) {
        row[9 + bytes] &= 0xf0;
    }
    Slice::from(&row[..10 + bytes])
}

/// A nibble of a path.
pub(super) fn nibble(path: &[u8], at: usize) -> Option<usize> {
    path.get(at / 2).map(|byte| usize::from(if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }))
}

/// The path of a node of `jmt`, and its nibbles.
fn path_of(key: &NodeKey) -> ([u8; 32], usize) {
    let mut path = [0; 32];
    for (at, nibble) in key.nibble_path().nibbles().enumerate() {
        path[at / 2] |= u8::from(nibble) << if at.is_multiple_of(2) { 4 } else { 0 };
    }
    (path, key.nibble_path().num_nibbles())
}

/// The row of a node of `jmt`.
pub(super) fn row_of(key: &NodeKey) -> Slice {
    let (path, nibbles) = path_of(key);
    row(&path, nibbles, key.version())
}

/// How a child of a node of `jmt` would be called if it had a row.
pub(super) fn child_row_of(key: &NodeKey, nibble: usize, version: u64) -> Slice {
    let (path, nibbles) = path_of(key);
    row(&below(path, nibbles, nibble), nibbles + 1, version)
}

/// A path of so many nibbles, and one more.
fn below(mut path: [u8; 32], nibbles: usize, nibble: usize) -> [u8; 32] {
    path[nibbles / 2] |= (nibble as u8) << if nibbles.is_multiple_of(2) { 4 } else { 0 };
    path
}

/// The version and the path of a node's row; none where the row is of something else.
pub(super) fn parse_row(row: &[u8]) -> Option<(u64, usize, &[u8])> {
    let (version, rest) = row.strip_prefix(&[HEIGHT])?.split_first_chunk()?;
    let (&nibbles, path) = rest.split_first().filter(|(nibbles, _)| **nibbles <= NIBBLES_MAX)?;
    Some((u64::from_be_bytes(*version), nibbles.into(), path))
}

/// A key with its value, as the tree knows them: by their hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub key: [u8; 32],
    pub value: [u8; 32],
}

impl Leaf {
    pub(super) fn hash(&self) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"JMT::LeafNode").chain_update(self.key).chain_update(self.value);
        hash.finalize().into()
    }

    fn of(bytes: &[u8; 64]) -> Self {
        let mut leaf = Leaf { key: [0; 32], value: [0; 32] };
        leaf.key.copy_from_slice(&bytes[..32]);
        leaf.value.copy_from_slice(&bytes[32..]);
        leaf
    }

    pub(super) fn into_jmt(self) -> LeafNode {
        LeafNode::new(KeyHash(self.key), ValueHash(self.value))
    }

    pub(super) fn of_jmt(leaf: &LeafNode) -> Self {
        // `jmt` hides the value's hash from all but its encoding.
        let (key, value) = borsh::to_vec(leaf)
            .and_then(|bytes| borsh::from_slice(&bytes))
            .expect("the encoding of a leaf is that of its two hashes");
        Leaf { key, value }
    }
}

/// A branch's child. A branch's version is that of its row, a leaf's the height that gave it its value: where the shape of
/// the tree moves a leaf, `jmt` makes that its version, which nothing here needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    /// It has a row of its own.
    Branch {
        hash: [u8; 32],
        version: u64,
    },
    Leaf {
        leaf: Leaf,
        version: u64,
    },
}

impl Child {
    fn hash(&self) -> [u8; 32] {
        match self {
            Child::Branch { hash, .. } => *hash,
            Child::Leaf { leaf, .. } => leaf.hash(),
        }
    }

    fn version(&self) -> u64 {
        match self {
            Child::Branch { version, .. } | Child::Leaf { version, .. } => *version,
        }
    }
}

/// The rows that hold a branch.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// The version of its row.
    pub version: u64,
    /// The version of its base: the same, where its row is no patch.
    pub base: u64,
    /// What the row of the base holds.
    pub whole: Slice,
}

/// A node with sixteen children, of which some are there.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    children: [Option<Child>; 16],
    /// Where it was read.
    pub origin: Option<Origin>,
    /// Children that may differ from its base.
    changed: u16,
}

/// A node.
#[expect(clippy::large_enum_variant, reason = "most are branches, and none is kept")]
pub(super) enum Stored {
    Empty,
    /// With the height that gave it its value.
    Leaf(Leaf, u64),
    Branch(Branch),
}

/// The numbers of the lowest bits that are set, in their order.
fn bits(mut mask: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(at)
    })
}

impl Branch {
    pub(super) fn new() -> Self {
        Branch { children: [None; 16], origin: None, changed: 0 }
    }

    pub(super) fn child(&self, nibble: usize) -> Option<Child> {
        self.children[nibble]
    }

    /// The leaves among the children.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (usize, Leaf, u64)> {
        self.children.iter().enumerate().filter_map(|(at, child)| match child {
            Some(Child::Leaf { leaf, version }) => Some((at, *leaf, *version)),
            _ => None,
        })
    }

    /// The paths and versions of the branches below one at the first `nibbles` of `path`.
    pub(super) fn branches(&self, path: &[u8; 32], nibbles: usize) -> Vec<([u8; 32], u64)> {
        let of = |(at, child)| match child {
            Some(Child::Branch { version, .. }) => Some((below(*path, nibbles, at), version)),
            _ => None,
        };
        (0..16).map(|at| (at, self.child(at))).filter_map(of).collect()
    }

    pub(super) fn set(&mut self, nibble: usize, child: Option<Child>) {
        self.children[nibble] = child;
        self.changed |= 1 << nibble;
    }

    /// Which children are there, and which of them are leaves; the lowest bit is child 0.
    pub(super) fn shape(&self) -> (u16, u16) {
        self.children.iter().enumerate().fold((0, 0), |(present, leaves), (at, child)| match child {
            None => (present, leaves),
            Some(Child::Branch { .. }) => (present | 1 << at, leaves),
            Some(Child::Leaf { .. }) => (present | 1 << at, leaves | 1 << at),
        })
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash_of(self.shape(), 0, 16)
    }

    /// The hash of a binary tree over so many of the children.
    fn hash_of(&self, shape: (u16, u16), start: usize, width: usize) -> [u8; 32] {
        let mask = (((1_u32 << width) - 1) << start) as u16;
        let (present, leaves) = (shape.0 & mask, shape.1 & mask);
        if width == 1 || (present == leaves && present.count_ones() < 2) {
            let lone = bits(present).find_map(|at| self.children[at]);
            return lone.map_or(EMPTY_ROOT, |child| child.hash());
        }
        let half = width / 2;
        let (left, right) = (self.hash_of(shape, start, half), self.hash_of(shape, start + half, half));
        Sha256::new().chain_update(b"JMT::IntrnalNode").chain_update(left).chain_update(right).finalize().into()
    }

    /// Whether so little of it differs from its base that a patch is far shorter.
    pub(super) fn is_near_base(&self) -> bool {
        self.origin.is_some() && 3 * self.changed.count_ones() <= self.shape().0.count_ones()
    }

    /// Its encoding in a row of this version.
    pub(super) fn encode(&self, version: u64) -> Slice {
        let mut bytes = Encoding::new(BRANCH);
        self.encode_children(u16::MAX, version, &mut bytes);
        bytes.finish()
    }

    /// Its encoding as a patch, where it was read.
    pub(super) fn encode_patch(&self, version: u64) -> Option<Slice> {
        let mut bytes = Encoding::new(PATCH);
        bytes.age(version, self.origin.as_ref()?.base);
        bytes.put(&self.changed.to_be_bytes());
        self.encode_children(self.changed, version, &mut bytes);
        Some(bytes.finish())
    }

    /// Those of the children that `which` names.
    fn encode_children(&self, which: u16, version: u64, bytes: &mut Encoding) {
        let (present, leaves) = self.shape();
        bytes.put(&(present & which).to_be_bytes());
        bytes.put(&(leaves & which).to_be_bytes());
        for child in bits(present & which).filter_map(|at| self.children[at]) {
            match child {
                Child::Branch { hash, .. } => bytes.put(&hash),
                Child::Leaf { leaf, .. } => {
                    bytes.put(&leaf.key);
                    bytes.put(&leaf.value);
                }
            }
            bytes.age(version, child.version());
        }
    }
}

/// An encoding that is being written.
struct Encoding {
    bytes: [u8; NODE_BYTES_MAX],
    end: usize,
}

impl Encoding {
    fn new(kind: u8) -> Self {
        let mut encoding = Encoding { bytes: [0; NODE_BYTES_MAX], end: 0 };
        encoding.put(&[kind]);
        encoding
    }

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.end..self.end + part.len()].copy_from_slice(part);
        self.end += part.len();
    }

    fn age(&mut self, version: u64, of: u64) {
        let mut age = version.wrapping_sub(of);
        while age >= 0x80 {
            self.put(&[age as u8 | 0x80]);
            age >>= 7;
        }
        self.put(&[age as u8]);
    }

    fn finish(&self) -> Slice {
        Slice::from(&self.bytes[..self.end])
    }
}

/// The encoding of a tree of one leaf in a row of this version, with the height that gave it its value.
pub(super) fn encode_leaf(leaf: &Leaf, version: u64, since: u64) -> Slice {
    let mut bytes = Encoding::new(LEAF);
    bytes.put(&leaf.key);
    bytes.put(&leaf.value);
    bytes.age(version, since);
    bytes.finish()
}

/// The encoding of an empty tree's root.
pub(super) fn encode_empty() -> Slice {
    Slice::from(&[EMPTY][..])
}

fn take_bits(rest: &mut &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*rest.split_off(..2)?.first_chunk()?))
}

/// What is of an age at a version.
fn take_version(rest: &mut &[u8], version: u64) -> Option<u64> {
    let (mut age, mut shift) = (0_u64, 0);
    loop {
        let byte = *rest.split_off_first()?;
        age |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte < 0x80 {
            return Some(version.wrapping_sub(age));
        }
    }
}

/// Those of the children `of` that are there.
fn take_children(rest: &mut &[u8], version: u64, of: u16, branch: &mut Branch) -> Option<()> {
    let (present, leaves) = (take_bits(rest)?, take_bits(rest)?);
    if present & !of != 0 || leaves & !present != 0 {
        return None;
    }
    for at in bits(present) {
        branch.children[at] = Some(if leaves >> at & 1 == 1 {
            let leaf = Leaf::of(rest.split_off(..64)?.first_chunk()?);
            Child::Leaf { leaf, version: take_version(rest, version)? }
        } else {
            let hash = *rest.split_off(..32)?.first_chunk()?;
            Child::Branch { hash, version: take_version(rest, version)? }
        });
    }
    Some(())
}

/// The version of the base of a row of this version, where it is a patch.
pub(super) fn base(bytes: &[u8], version: u64) -> Option<u64> {
    take_version(&mut bytes.strip_prefix(&[PATCH])?, version).filter(|base| *base < version)
}

/// The node of a row of this version, with what the row of its base holds where it is a patch; None where it is not a
/// node's encoding.
pub(super) fn decode(bytes: &Slice, version: u64, base: Option<&Slice>) -> Option<Stored> {
    let (kind, mut rest) = bytes.split_first()?;
    let stored = match *kind {
        EMPTY => Stored::Empty,
        LEAF => {
            let leaf = Leaf::of(rest.split_off(..64)?.first_chunk()?);
            Stored::Leaf(leaf, take_version(&mut rest, version)?)
        }
        BRANCH => {
            let origin = Origin { version, base: version, whole: bytes.clone() };
            let mut branch = Branch { origin: Some(origin), ..Branch::new() };
            take_children(&mut rest, version, u16::MAX, &mut branch)?;
            Stored::Branch(branch)
        }
        PATCH => {
            let of = self::base(bytes, version)?;
            take_version(&mut rest, version)?;
            let whole = base.filter(|whole| whole.first() == Some(&BRANCH))?;
            let Stored::Branch(mut branch) = decode(whole, of, None)? else { return None };
            let changed = take_bits(&mut rest)?;
            for at in bits(changed) {
                branch.set(at, None);
            }
            take_children(&mut rest, version, changed, &mut branch)?;
            branch.origin = Some(Origin { version, base: of, whole: whole.clone() });
            Stored::Branch(branch)
        }
        _ => return None,
    };
    rest.is_empty().then_some(stored)
}

/// The encoding of a node of `jmt`, if it has a row; `leaf` gives the leaves among its children, by what their rows would
/// be called.
pub(super) fn encode(key: &NodeKey, node: &Node, mut leaf: impl FnMut(&Slice) -> Option<Leaf>) -> Option<Slice> {
    match node {
        Node::Null => Some(encode_empty()),
        Node::Leaf(leaf) => {
            let (leaf, version) = (Leaf::of_jmt(leaf), key.version());
            key.nibble_path().is_empty().then(|| encode_leaf(&leaf, version, version))
        }
        Node::Internal(internal) => {
            let mut branch = Branch::new();
            for (nibble, child) in internal.children_sorted() {
                let (at, version) = (nibble.as_usize(), child.version);
                let child = match child.is_leaf() {
                    true => Child::Leaf { leaf: leaf(&child_row_of(key, at, version))?, version },
                    false => Child::Branch { hash: child.hash, version },
                };
                branch.set(at, Some(child));
            }
            Some(branch.encode(key.version()))
        }
    }
}

impl Stored {
    /// As `jmt` reads it, without the numbers of leaves below branches: nothing that we ask of it looks at those.
    pub(super) fn into_jmt(self) -> anyhow::Result<Node> {
        Ok(match self {
            Stored::Empty => Node::Null,
            Stored::Leaf(leaf, _) => Node::Leaf(leaf.into_jmt()),
            Stored::Branch(branch) => {
                // `jmt` makes such a node from its encoding only.
                let mut bytes = vec![1];
                for child in &branch.children {
                    let leaf = |child: &Child| matches!(child, Child::Leaf { .. });
                    let child = child
                        .as_ref()
                        .map(|child| (child.hash(), child.version(), if leaf(child) { None } else { Some(0_u64) }));
                    borsh::to_writer(&mut bytes, &child)?;
                }
                borsh::to_writer(&mut bytes, &(u64::from(branch.shape().0.count_ones()), 0_u64))?;
                borsh::from_slice(&bytes)?
            }
        })
    }
}
