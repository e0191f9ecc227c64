//! The tree against an obvious model, and every way to lie with a path.

use super::*;
use proptest::prelude::*;

fn leaves(amounts: &[u64]) -> Vec<Leaf> {
    amounts
        .iter()
        .enumerate()
        .map(|(i, a)| Leaf {
            session: i as u64 / 3,
            index: i as u64,
            receipt: Digest::of(&a.to_be_bytes()),
            tokens: a % 100,
            amount: Amount(u128::from(*a)),
        })
        .collect()
}

#[test]
fn an_empty_tree_has_a_root_and_no_path() {
    let tree = Tree::new(vec![]).unwrap();
    assert_eq!(*tree.root(), Sum::empty());
    assert_eq!(tree.path(0), Err(SumError::Index { index: 0, count: 0 }));
    assert_eq!(tree.leaf_at(Amount(0)), None);
}

#[test]
fn order_and_duplicates_are_refused() {
    let mut unsorted = leaves(&[1, 2, 3]);
    unsorted.swap(0, 1);
    assert_eq!(Tree::new(unsorted).err(), Some(SumError::Order(1)));
    let twice = vec![leaves(&[5])[0]; 2];
    assert_eq!(Tree::new(twice).err(), Some(SumError::Order(1)));
}

#[test]
fn overflow_is_refused() {
    let mut two = leaves(&[1, 2]);
    two[0].amount = Amount(u128::MAX);
    assert_eq!(Tree::new(two).err(), Some(SumError::Overflow));
}

#[test]
fn every_altered_field_is_noticed() {
    let tree = Tree::new(leaves(&[3, 0, 9, 4, 7])).unwrap();
    let path = tree.path(2).unwrap();
    let leaf = tree.leaves()[2];
    let root = *tree.root();
    assert_eq!(verify(&leaf, &path, &root), Ok(Amount(3)));
    for broken in [
        Leaf { session: 9, ..leaf },
        Leaf { index: 9, ..leaf },
        Leaf { receipt: Digest([0; 32]), ..leaf },
        Leaf { tokens: leaf.tokens + 1, ..leaf },
        Leaf { amount: Amount(1), ..leaf },
    ] {
        assert!(verify(&broken, &path, &root).is_err(), "{broken:?}");
    }
    assert_eq!(verify(&leaf, &path, &Sum { amount: Amount(24), ..root }), Err(SumError::Sums));
    let mut moved = path.clone();
    moved.leaf_index = 1;
    assert!(verify(&leaf, &moved, &root).is_err());
    let mut flipped = path.clone();
    flipped.steps[0].sibling_is_left = !flipped.steps[0].sibling_is_left;
    assert!(verify(&leaf, &flipped, &root).is_err());
    let mut inflated = path;
    inflated.steps[1].sibling.as_mut().unwrap().amount = "1".into();
    assert!(verify(&leaf, &inflated, &root).is_err());
}

proptest! {
    #[test]
    fn each_point_belongs_to_one_provable_leaf(amounts in prop::collection::vec(0_u64..50, 1..40), at in any::<prop::sample::Index>()) {
        let tree = Tree::new(leaves(&amounts)).unwrap();
        let total: u64 = amounts.iter().sum();
        prop_assert_eq!(tree.root().amount, Amount(u128::from(total)));
        prop_assert_eq!(tree.root().count, amounts.len() as u64);
        if total > 0 {
            let point = Amount(at.index(total as usize) as u128);
            let index = tree.leaf_at(point).unwrap();
            let leaf = tree.leaves()[index];
            prop_assert_eq!(verify_sample(&leaf, &tree.path(index).unwrap(), tree.root(), point), Ok(()));
            for other in (0..amounts.len()).filter(|i| *i != index) {
                let path = tree.path(other).unwrap();
                prop_assert!(verify_sample(&tree.leaves()[other], &path, tree.root(), point).is_err());
            }
        }
    }
}
