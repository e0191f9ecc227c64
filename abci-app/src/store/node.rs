//! The tree's nodes as they lie in their rows, and their hashes.
//!
//! ```text
//! row    = n ‖ version (8) ‖ nibbles of the path (1) ‖ the path, an odd last nibble filled with zeros
//! node   = 0                                                                  an empty tree's root
//!        | 1 ‖ SHA-256 of the key (32) ‖ SHA-256 of the value (32)            leaf
//!        | 2 ‖ children that are there (2) ‖ of them leaves (2) ‖ children    branch
//! child  = its hash (32) ‖ age: the node's version less the child's (LEB128)
//! ```
//!
//! Integers are big-endian, child 0 is the lowest bit. Hashes are those of `jmt`; a row up to the depth of six nibbles
//! is so short that the database keeps it without memory of its own.

use fjall::Slice;
use jmt::storage::{Node, NodeKey};
use jmt::{KeyHash, ValueHash};
use sha2::{Digest, Sha256};

use super::tree::{EMPTY_ROOT, NODE};

const EMPTY: u8 = 0;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

/// The longest encoding of a node: a branch of sixteen old children.
const NODE_BYTES_MAX: usize = 5 + 16 * (32 + 10);

/// The row of the node at the first `nibbles` of `path`.
pub(super) fn row(path: &[u8; 32], nibbles: usize, version: u64) -> Slice {
    let mut row = [0; 42];
    row[0] = NODE;
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

/// The row of a node of `jmt`.
pub(super) fn row_of(key: &NodeKey) -> Slice {
    let mut path = [0; 32];
    for (at, nibble) in key.nibble_path().nibbles().enumerate() {
        path[at / 2] |= u8::from(nibble) << if at.is_multiple_of(2) { 4 } else { 0 };
    }
    row(&path, key.nibble_path().num_nibbles(), key.version())
}

/// The version and the path of a node's row.
pub(super) fn parse_row(row: &[u8]) -> Option<(u64, usize, &[u8])> {
    let (version, rest) = row.strip_prefix(&[NODE])?.split_first_chunk()?;
    let (&nibbles, path) = rest.split_first()?;
    Some((u64::from_be_bytes(*version), nibbles.into(), path))
}

/// A branch's child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub hash: [u8; 32],
    pub version: u64,
    pub leaf: bool,
}

/// A node with sixteen children, of which some are there.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    present: u16,
    leaves: u16,
    hashes: [[u8; 32]; 16],
    versions: [u64; 16],
}

/// A node.
#[expect(clippy::large_enum_variant, reason = "most are branches, and none is kept")]
pub(super) enum Stored {
    Empty,
    Leaf { key: [u8; 32], value: [u8; 32] },
    Branch(Branch),
}

impl Branch {
    pub(super) fn new() -> Self {
        Branch { present: 0, leaves: 0, hashes: [[0; 32]; 16], versions: [0; 16] }
    }

    pub(super) fn child(&self, nibble: usize) -> Option<Child> {
        let there = self.present >> nibble & 1 == 1;
        let leaf = self.leaves >> nibble & 1 == 1;
        there.then(|| Child { hash: self.hashes[nibble], version: self.versions[nibble], leaf })
    }

    pub(super) fn set(&mut self, nibble: usize, child: Option<Child>) {
        let bit = 1 << nibble;
        self.present &= !bit;
        self.leaves &= !bit;
        if let Some(Child { hash, version, leaf }) = child {
            self.present |= bit;
            self.leaves |= if leaf { bit } else { 0 };
            (self.hashes[nibble], self.versions[nibble]) = (hash, version);
        }
    }

    /// Which children are there, and which of them are leaves; the lowest bit is child 0.
    pub(super) fn shape(&self) -> (u16, u16) {
        (self.present, self.leaves)
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash_of(0, 16)
    }

    /// The hash of a binary tree over so many of the children.
    fn hash_of(&self, start: usize, width: usize) -> [u8; 32] {
        let mask = (((1_u32 << width) - 1) << start) as u16;
        let (present, leaves) = (self.present & mask, self.leaves & mask);
        if present == 0 {
            return EMPTY_ROOT;
        }
        if width == 1 || (present.is_power_of_two() && leaves != 0) {
            return self.hashes[present.trailing_zeros() as usize];
        }
        let half = width / 2;
        let (left, right) = (self.hash_of(start, half), self.hash_of(start + half, half));
        Sha256::new().chain_update(b"JMT::IntrnalNode").chain_update(left).chain_update(right).finalize().into()
    }

    /// Its encoding in a row of this version.
    pub(super) fn encode(&self, version: u64) -> Slice {
        let mut bytes = [0; NODE_BYTES_MAX];
        bytes[0] = BRANCH;
        bytes[1..3].copy_from_slice(&self.present.to_be_bytes());
        bytes[3..5].copy_from_slice(&self.leaves.to_be_bytes());
        let mut end = 5;
        let mut left = self.present;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            bytes[end..end + 32].copy_from_slice(&self.hashes[at]);
            end += 32;
            let mut age = version.wrapping_sub(self.versions[at]);
            while age >= 0x80 {
                bytes[end] = age as u8 | 0x80;
                (age, end) = (age >> 7, end + 1);
            }
            bytes[end] = age as u8;
            end += 1;
        }
        Slice::from(&bytes[..end])
    }
}

/// The hash of a leaf.
pub(super) fn leaf_hash(key: &[u8; 32], value: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(b"JMT::LeafNode").chain_update(key).chain_update(value).finalize().into()
}

/// The encoding of a leaf.
pub(super) fn encode_leaf(key: &[u8; 32], value: &[u8; 32]) -> Slice {
    let mut bytes = [LEAF; 65];
    bytes[1..33].copy_from_slice(key);
    bytes[33..].copy_from_slice(value);
    Slice::from(&bytes[..])
}

/// The encoding of an empty tree's root.
pub(super) fn encode_empty() -> Slice {
    Slice::from(&[EMPTY][..])
}

/// The node of a row of this version; None where it is not a node's encoding.
pub(super) fn decode(bytes: &[u8], version: u64) -> Option<Stored> {
    let (kind, mut rest) = bytes.split_first()?;
    match *kind {
        EMPTY => rest.is_empty().then_some(Stored::Empty),
        LEAF => {
            let (key, value) = rest.split_first_chunk()?;
            Some(Stored::Leaf { key: *key, value: value.try_into().ok()? })
        }
        BRANCH => {
            let mut bits = || Some(u16::from_be_bytes(*rest.split_off(..2)?.first_chunk()?));
            let mut branch = Branch { present: bits()?, leaves: bits()?, ..Branch::new() };
            let mut left = branch.present;
            while left != 0 {
                let at = left.trailing_zeros() as usize;
                left &= left - 1;
                branch.hashes[at] = *rest.split_off(..32)?.first_chunk()?;
                let (mut age, mut shift) = (0_u64, 0);
                loop {
                    let byte = *rest.split_off_first()?;
                    age |= u64::from(byte & 0x7f).checked_shl(shift)?;
                    shift += 7;
                    if byte < 0x80 {
                        break;
                    }
                }
                branch.versions[at] = version.wrapping_sub(age);
            }
            rest.is_empty().then_some(Stored::Branch(branch))
        }
        _ => None,
    }
}

/// The encoding of a node of `jmt`.
pub(super) fn encode(key: &NodeKey, node: &Node) -> Slice {
    match node {
        Node::Null => encode_empty(),
        Node::Leaf(leaf) => {
            // `jmt` hides the value's hash from all but its encoding.
            let parts: ([u8; 32], [u8; 32]) = borsh::to_vec(leaf)
                .and_then(|bytes| borsh::from_slice(&bytes))
                .expect("the encoding of a leaf is that of its two hashes");
            encode_leaf(&parts.0, &parts.1)
        }
        Node::Internal(internal) => {
            let mut branch = Branch::new();
            for (nibble, child) in internal.children_sorted() {
                let child = Child { hash: child.hash, version: child.version, leaf: child.is_leaf() };
                branch.set(nibble.as_usize(), Some(child));
            }
            branch.encode(key.version())
        }
    }
}

impl Stored {
    /// As `jmt` reads it, without the numbers of leaves below branches: nothing that we ask of it looks at those.
    pub(super) fn into_jmt(self) -> anyhow::Result<Node> {
        Ok(match self {
            Stored::Empty => Node::Null,
            Stored::Leaf { key, value } => Node::Leaf(jmt::storage::LeafNode::new(KeyHash(key), ValueHash(value))),
            Stored::Branch(branch) => {
                // `jmt` makes such a node from its encoding only.
                let mut bytes = vec![1];
                for at in 0..16 {
                    let child = branch
                        .child(at)
                        .map(|Child { hash, version, leaf }| (hash, version, if leaf { None } else { Some(0_u64) }));
                    borsh::to_writer(&mut bytes, &child)?;
                }
                borsh::to_writer(&mut bytes, &(u64::from(branch.present.count_ones()), 0_u64))?;
                borsh::from_slice(&bytes)?
            }
        })
    }
}
