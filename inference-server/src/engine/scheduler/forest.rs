//! Many heaps over one set of numbered nodes, each node in at most one of them, with removal from the middle.
//!
//! Leftist trees (Crane 1972; Knuth, TAOCP 3, 5.2.3) in arrays: inserting, removing and looking at the top take O(log n)
//! steps in the worst case, not only on average, and after [`Forest::new`] nothing is allocated, however the nodes are
//! spread over the heaps. What always holds: a node's key is at most its children's, and the way to the nearest missing
//! child is never shorter on the left.

/// "No node".
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node<K> {
    key: K,
    parent: u32,
    left: u32,
    right: u32,
    /// Nodes on the way to the nearest missing child, itself included.
    distance: u32,
}

/// One heap of a forest: its top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heap(u32);

impl Heap {
    pub const EMPTY: Self = Self(NONE);

    /// The node with the smallest key.
    pub fn top(self) -> Option<u32> {
        (self.0 != NONE).then_some(self.0)
    }
}

#[derive(Debug)]
pub(super) struct Forest<K> {
    nodes: Vec<Node<K>>,
}

impl<K: Copy + Ord + Default> Forest<K> {
    /// Nodes `0..nodes`, all in no heap.
    pub fn new(nodes: usize) -> Self {
        let node = Node { key: K::default(), parent: NONE, left: NONE, right: NONE, distance: 1 };
        Self { nodes: vec![node; nodes] }
    }

    /// The key under which a node was inserted last.
    pub fn key(&self, node: u32) -> K {
        self.nodes[node as usize].key
    }

    /// Puts a node, which is in no heap, into one.
    pub fn insert(&mut self, heap: &mut Heap, node: u32, key: K) {
        self.nodes[node as usize] = Node { key, parent: NONE, left: NONE, right: NONE, distance: 1 };
        heap.0 = self.merge(heap.0, node);
    }

    /// Takes a node out of the heap that it is in.
    pub fn remove(&mut self, heap: &mut Heap, node: u32) {
        let Node { parent, left, right, .. } = self.nodes[node as usize];
        let below = self.merge(left, right);
        if below != NONE {
            self.nodes[below as usize].parent = parent;
        }
        if parent == NONE {
            assert_eq!(heap.0, node, "a node is removed from the heap that it is in");
            heap.0 = below;
            return;
        }
        let above = &mut self.nodes[parent as usize];
        match above.left == node {
            true => above.left = below,
            false => above.right = below,
        }
        let mut at = parent;
        while at != NONE && self.balance(at) {
            at = self.nodes[at as usize].parent;
        }
    }

    /// Joins two trees; recursion goes down their right sides alone, which have at most log₂ n nodes.
    fn merge(&mut self, a: u32, b: u32) -> u32 {
        if a == NONE || b == NONE {
            return a.min(b);
        }
        let (top, other) = if self.key(b) < self.key(a) { (b, a) } else { (a, b) };
        let right = self.merge(self.nodes[top as usize].right, other);
        self.nodes[top as usize].right = right;
        self.nodes[right as usize].parent = top;
        self.balance(top);
        top
    }

    fn distance(&self, node: u32) -> u32 {
        if node == NONE { 0 } else { self.nodes[node as usize].distance }
    }

    /// Puts a node's children in order, and counts its distance again; whether that changed.
    fn balance(&mut self, node: u32) -> bool {
        let Node { left, right, distance, .. } = self.nodes[node as usize];
        let (left, right) = if self.distance(left) < self.distance(right) { (right, left) } else { (left, right) };
        let now = 1 + self.distance(right);
        let entry = &mut self.nodes[node as usize];
        (entry.left, entry.right, entry.distance) = (left, right, now);
        now != distance
    }

    /// Walks a heap and counts its nodes.
    ///
    /// # Panics
    /// When its order, its shape or a link is wrong.
    pub fn check(&self, heap: Heap) -> usize {
        let mut found = 0;
        let mut open = vec![(heap.0, NONE)];
        while let Some((at, parent)) = open.pop() {
            if at == NONE {
                continue;
            }
            found += 1;
            let node = &self.nodes[at as usize];
            assert_eq!(node.parent, parent, "a child knows its parent");
            assert!(parent == NONE || self.key(parent) <= node.key, "parents go first");
            let (left, right) = (self.distance(node.left), self.distance(node.right));
            assert!(right <= left && node.distance == 1 + right, "the right side is the short one");
            open.extend([(node.left, at), (node.right, at)]);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against sorted lists: three heaps share the nodes, which come, move between them and go in any order.
        #[test]
        fn heaps_give_what_sorted_lists_give(moves in prop::collection::vec((0u32..60, 0usize..4, 0u32..30), 0..400)) {
            let mut forest = Forest::new(60);
            let mut heaps = [Heap::EMPTY; 3];
            let mut expected: [Vec<(u32, u32)>; 3] = Default::default();
            for (node, target, key) in moves {
                let held = expected.iter().position(|list| list.iter().any(|&(_, other)| other == node));
                if let Some(held) = held {
                    forest.remove(&mut heaps[held], node);
                    expected[held].retain(|&(_, other)| other != node);
                }
                if target < 3 {
                    forest.insert(&mut heaps[target], node, key);
                    expected[target].push((key, node));
                }
                for (heap, list) in heaps.iter().zip(&expected) {
                    prop_assert_eq!(forest.check(*heap), list.len());
                    let least = list.iter().map(|&(key, _)| key).min();
                    prop_assert_eq!(heap.top().map(|top| forest.key(top)), least);
                }
            }
        }
    }

    #[test]
    fn emptied_from_the_top_a_heap_gives_its_keys_in_order() {
        let mut forest = Forest::new(5_000);
        let mut heap = Heap::EMPTY;
        for node in 0..5_000 {
            forest.insert(&mut heap, node, (node * 7_919) % 5_000);
        }
        for expected in 0..5_000 {
            let top = heap.top().expect("there are more");
            assert_eq!(forest.key(top), expected);
            forest.remove(&mut heap, top);
        }
        assert_eq!(heap, Heap::EMPTY);
    }
}
