//! The Merkle-sum tree of a worker's receipts: every node carries the count, tokens and amount below it, inside its
//! hash, so that a root commits to a total and a sample can be drawn by amount.
//!
//! Shape of RFC 6962 §2.1 (split at the largest power of two below n); leaf and node hashes have their own tags.
//! Leaves are sorted by (session, index), each pair once. Sums are checked: an overflow is an error, never a wrap.

use crate::digest::{Digest, Hasher, tag};
use crate::market_v1::{SumNode, SumPath, SumStep};
use crate::{Amount, amount::AmountError};

/// The longest path that is accepted: 2^40 receipts.
pub const PATH_STEPS_MAX: usize = 40;

/// One receipt as the tree holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Session id, the first part of the order.
    pub session: u64,
    /// Index within the session, the second part.
    pub index: u64,
    /// [`crate::market::receipt_digest`].
    pub receipt: Digest,
    /// Prompt and completion tokens.
    pub tokens: u64,
    /// What it costs.
    pub amount: Amount,
}

/// Hash and sums of a subtree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sum {
    /// Hash over everything below, sums included.
    pub hash: Digest,
    /// Receipts.
    pub count: u64,
    /// Tokens.
    pub tokens: u64,
    /// Uplk.
    pub amount: Amount,
}

/// Why a tree or a path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SumError {
    /// Not ascending by (session, index), or one of them twice.
    #[error("receipts are not in ascending order of (session, index) at leaf {0}")]
    Order(usize),
    /// The sums do not fit their integers.
    #[error("the tree's sums overflow")]
    Overflow,
    /// No such leaf.
    #[error("leaf {index} is asked of a tree with {count}")]
    Index {
        /// Asked for.
        index: usize,
        /// There are.
        count: usize,
    },
    /// A node on the wire is malformed.
    #[error("a node of the path is malformed: {0}")]
    Node(&'static str),
    /// An amount's text.
    #[error(transparent)]
    Amount(#[from] AmountError),
    /// Over [`PATH_STEPS_MAX`].
    #[error("the path has {0} steps, more than any tree")]
    Length(usize),
    /// The path ends at another root.
    #[error("the path leads to the root {found}, not to {expected}")]
    Root {
        /// Reached.
        found: Digest,
        /// Committed.
        expected: Digest,
    },
    /// The root's sums are not those the path adds up to.
    #[error("the path's sums are not the root's")]
    Sums,
    /// The leaf does not cover the drawn point.
    #[error("the leaf covers the amounts {from} to {to} (exclusive), the point drawn is {point}")]
    Point {
        /// First amount of the leaf.
        from: Amount,
        /// First amount after it.
        to: Amount,
        /// The one drawn.
        point: Amount,
    },
}

impl Leaf {
    /// The leaf's node.
    pub fn sum(&self) -> Sum {
        let hash = Hasher::new(tag::SUM_LEAF)
            .u64(self.session)
            .u64(self.index)
            .fixed(&self.receipt.0)
            .u64(1)
            .u64(self.tokens)
            .u128(self.amount.0)
            .finish();
        Sum { hash, count: 1, tokens: self.tokens, amount: self.amount }
    }
}

impl Sum {
    /// The tree without leaves.
    pub fn empty() -> Self {
        Self { hash: Hasher::new(tag::SUM_EMPTY).finish(), count: 0, tokens: 0, amount: Amount::ZERO }
    }
    /// The parent of two nodes.
    pub fn join(left: &Self, right: &Self) -> Result<Self, SumError> {
        let hash = [left, right]
            .iter()
            .fold(Hasher::new(tag::SUM_NODE), |h, n| h.fixed(&n.hash.0).u64(n.count).u64(n.tokens).u128(n.amount.0))
            .finish();
        Ok(Self {
            hash,
            count: left.count.checked_add(right.count).ok_or(SumError::Overflow)?,
            tokens: left.tokens.checked_add(right.tokens).ok_or(SumError::Overflow)?,
            amount: left.amount.checked_add(right.amount).ok_or(SumError::Overflow)?,
        })
    }
    /// As the wire has it.
    pub fn to_proto(&self) -> SumNode {
        SumNode { hash: self.hash.to_vec(), count: self.count, tokens: self.tokens, amount: self.amount.to_string() }
    }
    /// From the wire.
    pub fn from_proto(node: &SumNode) -> Result<Self, SumError> {
        Ok(Self {
            hash: Digest::from_slice(&node.hash).ok_or(SumError::Node("its hash is not of 32 bytes"))?,
            count: node.count,
            tokens: node.tokens,
            amount: node.amount.parse()?,
        })
    }
}

/// The tree: leaves, and every node of the recursion on demand.
pub struct Tree {
    leaves: Vec<Leaf>,
    root: Sum,
}

impl Tree {
    /// Builds the tree; leaves must be sorted by (session, index), each once.
    pub fn new(leaves: Vec<Leaf>) -> Result<Self, SumError> {
        if let Some(at) = leaves.windows(2).position(|w| (w[0].session, w[0].index) >= (w[1].session, w[1].index)) {
            return Err(SumError::Order(at + 1));
        }
        let root = subtree(&leaves)?;
        Ok(Self { leaves, root })
    }
    /// The root.
    pub fn root(&self) -> &Sum {
        &self.root
    }
    /// The leaves in order.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }
    /// The path of a leaf, from the leaf upwards.
    pub fn path(&self, index: usize) -> Result<SumPath, SumError> {
        if index >= self.leaves.len() {
            return Err(SumError::Index { index, count: self.leaves.len() });
        }
        let mut steps = Vec::new();
        let (mut leaves, mut at) = (self.leaves.as_slice(), index);
        while leaves.len() > 1 {
            let (left, right) = leaves.split_at(split(leaves.len()));
            let sibling_is_left = at >= left.len();
            let sibling = subtree(if sibling_is_left { left } else { right })?;
            steps.push(SumStep { sibling: Some(sibling.to_proto()), sibling_is_left });
            (leaves, at) = if sibling_is_left { (right, at - left.len()) } else { (left, at) };
        }
        steps.reverse();
        Ok(SumPath { leaf_index: index as u64, steps })
    }
    /// The leaf whose range of amounts `[before, before + amount)` holds the point; None beyond the total.
    pub fn leaf_at(&self, point: Amount) -> Option<usize> {
        let mut before = Amount::ZERO;
        self.leaves.iter().position(|leaf| {
            let to = Amount(before.0 + leaf.amount.0);
            let holds = point >= before && point < to;
            before = to;
            holds
        })
    }
}

/// Follows a path from a leaf to the root. Returns the amount that lies before the leaf.
pub fn verify(leaf: &Leaf, path: &SumPath, root: &Sum) -> Result<Amount, SumError> {
    if path.steps.len() > PATH_STEPS_MAX {
        return Err(SumError::Length(path.steps.len()));
    }
    let (mut node, mut before, mut index) = (leaf.sum(), Amount::ZERO, 0_u64);
    for step in &path.steps {
        let sibling = Sum::from_proto(step.sibling.as_ref().ok_or(SumError::Node("a sibling is unset"))?)?;
        node = if step.sibling_is_left {
            before = before.checked_add(sibling.amount).ok_or(SumError::Overflow)?;
            index = index.checked_add(sibling.count).ok_or(SumError::Overflow)?;
            Sum::join(&sibling, &node)?
        } else {
            Sum::join(&node, &sibling)?
        };
    }
    if node.hash != root.hash {
        return Err(SumError::Root { found: node.hash, expected: root.hash });
    }
    if node != *root {
        return Err(SumError::Sums);
    }
    if index != path.leaf_index {
        return Err(SumError::Node("the leaf's index is not the number of leaves to its left"));
    }
    Ok(before)
}

/// [`verify`], and the leaf must hold the drawn point.
pub fn verify_sample(leaf: &Leaf, path: &SumPath, root: &Sum, point: Amount) -> Result<(), SumError> {
    let from = verify(leaf, path, root)?;
    let to = from.checked_add(leaf.amount).ok_or(SumError::Overflow)?;
    if point < from || point >= to {
        return Err(SumError::Point { from, to, point });
    }
    Ok(())
}

/// The largest power of two below n (n ≥ 2).
fn split(n: usize) -> usize {
    debug_assert!(n >= 2);
    1 << (usize::BITS - 1 - (n - 1).leading_zeros())
}

fn subtree(leaves: &[Leaf]) -> Result<Sum, SumError> {
    match leaves {
        [] => Ok(Sum::empty()),
        [leaf] => Ok(leaf.sum()),
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            Sum::join(&subtree(left)?, &subtree(right)?)
        }
    }
}

#[cfg(test)]
mod tests;
