//! A state cut into chunks and restored elsewhere: whole, cut off, false.

use std::cell::RefCell;

use proptest::prelude::*;

use super::super::*;
use super::{commit, open, pairs};

/// Room for the proof and about a hundred pairs.
const SMALL: usize = (17 << 10) + 4_000;

pub(super) fn chunks(snapshot: &Snapshot, bytes_max: usize) -> Vec<Vec<u8>> {
    let chunks = RefCell::new(Vec::new());
    chunk::cut(snapshot, bytes_max, |chunk| {
        chunks.borrow_mut().push(chunk);
        Ok::<_, StoreError>(())
    })
    .unwrap();
    chunks.into_inner()
}

fn keys(range: std::ops::Range<u64>, value: u8) -> Changes {
    range.map(|index| (KeyBuilder::new(1).u64(index).finish(), Some(vec![value; 20]))).collect()
}

/// A store with some history: overwritten, deleted and new keys.
fn source() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    commit(&store, keys(0..500, 1), 7);
    let mut changes = keys(100..200, 2);
    changes.extend(keys(300..400, 0).into_keys().map(|key| (key, None)));
    commit(&store, changes, 8);
    (dir, store)
}

fn same(source: &Store, target: &Store) {
    assert_eq!((target.height(), target.app_hash()), (source.height(), source.app_hash()));
    assert_eq!(pairs(&target.snapshot()), pairs(&source.snapshot()));
    target.check().unwrap();
}

#[test]
fn a_restored_store_goes_on_like_its_source() {
    let (_dir, source) = source();
    let cut = chunks(&source.snapshot(), SMALL);
    assert!(cut.len() > 3 && cut.iter().all(|chunk| chunk.len() <= SMALL), "{} chunks", cut.len());
    let target_dir = tempfile::tempdir().unwrap();
    let target = open(&target_dir, 10);
    let restore = target.restore(8, source.app_hash()).unwrap();
    for chunk in &cut {
        restore.add(chunk.clone()).unwrap();
        assert_eq!(target.height(), 0, "nothing counts before the end");
    }
    restore.finish().unwrap();
    same(&source, &target);
    assert_eq!(target.snapshot().oldest(), 8);
    drop(target);
    let target = open(&target_dir, 10);
    // The same bytes come out of it as went in.
    assert_eq!(chunks(&target.snapshot(), SMALL), cut);
    for height in 9..30 {
        let changes = keys(height * 20..height * 20 + 40, height as u8);
        assert_eq!(commit(&source, changes.clone(), height), commit(&target, changes, height));
        let key = KeyBuilder::new(1).u64(350).finish();
        let proof = target.snapshot().prove(&key, height).unwrap();
        assert!(verify_proof(&source.app_hash(), &key, proof.value.as_deref(), &proof.encode()));
    }
    same(&source, &target);
    let (ours, theirs) = (source.tree_rows().unwrap(), target.tree_rows().unwrap());
    // Patches stand on bases of other heights.
    let bounded = theirs.0 * 20 <= ours.0 * 21 && theirs.1 <= ours.1;
    assert!(bounded, "pruned as the source is: {ours:?}, {theirs:?}");
}

#[test]
fn a_restore_that_is_cut_off_leaves_nothing() {
    let (_dir, source) = source();
    let cut = chunks(&source.snapshot(), SMALL);
    let dir = tempfile::tempdir().unwrap();
    let target = open(&dir, 10);
    let restore = target.restore(8, source.app_hash()).unwrap();
    restore.add(cut[0].clone()).unwrap();
    restore.add(cut[1].clone()).unwrap();
    drop(restore);
    // Begun again in the same process.
    let restore = target.restore(8, source.app_hash()).unwrap();
    restore.add(cut[0].clone()).unwrap();
    drop(restore);
    drop(target);
    // Found by the next start: the chain may begin from its genesis, as if nothing had been.
    let target = open(&dir, 10);
    assert_eq!((target.height(), target.app_hash(), pairs(&target.snapshot())), (0, EMPTY_ROOT, vec![]));
    assert_eq!(target.tree_rows().unwrap(), (0, 0));
    let restore = target.restore(8, source.app_hash()).unwrap();
    restore.add(cut[0].clone()).unwrap();
    drop(restore);
    // Given up in the same process: the first block clears it away.
    let root = commit(&target, keys(0..3, 9), 1);
    assert_eq!(root, root_of(pairs(&target.snapshot())));
    assert_eq!(pairs(&target.snapshot()).len(), 3);
    drop(target);
    let target = open(&dir, 10);
    assert_eq!(target.height(), 1);
    assert!(matches!(target.restore(8, source.app_hash()), Err(StoreError::Occupied { height: 1 })));
}

#[test]
fn a_restored_state_may_be_replaced_until_its_first_block() {
    let (_dir, source) = source();
    let cut = chunks(&source.snapshot(), CHUNK_BYTES_MAX);
    assert_eq!(cut.len(), 1);
    let dir = tempfile::tempdir().unwrap();
    let target = open(&dir, 10);
    for _ in 0..2 {
        let restore = target.restore(8, source.app_hash()).unwrap();
        restore.add(cut[0].clone()).unwrap();
        restore.finish().unwrap();
        same(&source, &target);
    }
    commit(&target, Changes::new(), 9);
    assert!(matches!(target.restore(8, source.app_hash()), Err(StoreError::Occupied { height: 9 })));
    drop(target);
    assert!(matches!(open(&dir, 10).restore(8, source.app_hash()), Err(StoreError::Occupied { height: 9 })));
}

#[test]
fn false_chunks_are_refused_where_they_are_false() {
    let (_dir, source) = source();
    let cut = chunks(&source.snapshot(), SMALL);
    let dir = tempfile::tempdir().unwrap();
    let target = open(&dir, 10);
    let root = source.app_hash();
    let refused = |target: &Store, chunks: &[Vec<u8>]| {
        let restore = target.restore(8, root).unwrap();
        let results: Vec<_> = chunks.iter().map(|chunk| restore.add(chunk.clone())).collect();
        let good = results.iter().take_while(|result| result.is_ok()).count();
        let end = restore.finish();
        assert!(matches!(end, Err(StoreError::Chunk(_))), "{end:?}");
        assert_eq!(target.height(), 0);
        good
    };
    let last = cut.len() - 1;
    assert_eq!(refused(&target, &[]), 0);
    assert_eq!(refused(&target, &cut[..last]), last, "the end is missing");
    assert_eq!(refused(&target, &cut[1..]), 0, "the beginning is missing");
    assert_eq!(refused(&target, &[cut[0].clone(), cut[2].clone()]), 1, "the middle is missing");
    assert_eq!(refused(&target, &[cut[0].clone(), cut[0].clone()]), 1, "twice");
    // A value altered, wherever it lies: the first pair's in the second chunk.
    let mut altered = cut.clone();
    let value = 4 + 2 + 9 + 4;
    altered[1][value] ^= 1;
    assert_eq!(refused(&target, &altered), 1);
    for bytes in [vec![], vec![0; 3], vec![0; 4], vec![0xff; 64], cut[0][..cut[0].len() - 1].to_vec()] {
        assert_eq!(refused(&target, &[bytes]), 0);
    }
    // Of another state: every chunk is whole, the root is another.
    let other = tempfile::tempdir().unwrap();
    let other = open(&other, 10);
    commit(&other, keys(0..500, 3), 8);
    assert_eq!(refused(&target, &chunks(&other.snapshot(), SMALL)), 0);
    // After all that, the true one.
    let restore = target.restore(8, root).unwrap();
    for chunk in cut {
        restore.add(chunk).unwrap();
    }
    restore.finish().unwrap();
    same(&source, &target);
}

#[test]
fn blocks_are_committed_while_a_snapshot_is_cut() {
    let (_dir, source) = source();
    let held = source.snapshot();
    let (expected, root) = (chunks(&held, SMALL), held.app_hash());
    let (give, cut) = std::sync::mpsc::sync_channel(0);
    let cutter = std::thread::spawn(move || {
        chunk::cut(&held, SMALL, |chunk| {
            give.send(chunk).unwrap();
            Ok::<_, StoreError>(())
        })
    });
    // Between any two chunks, a block that changes half of the state; with a window of 10, stale nodes are pruned.
    let mut taken = Vec::new();
    for chunk in cut {
        taken.push(chunk);
        for _ in 0..5 {
            let height = source.height() + 1;
            commit(&source, keys(0..250, height as u8), height);
        }
    }
    cutter.join().unwrap().unwrap();
    assert_eq!(taken, expected);
    assert_ne!(source.app_hash(), root);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Any state, from a single key on, goes through chunks of any size.
    #[test]
    fn any_state_is_restored(
        state in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..6), prop::collection::vec(any::<u8>(), 0..40), 1..80),
        room in 100usize..2_000,
    ) {
        let (dir, target_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, target) = (open(&dir, 10), open(&target_dir, 10));
        commit(&source, state.into_iter().map(|(key, value)| (key, Some(value))).collect(), 3);
        let restore = target.restore(3, source.app_hash()).unwrap();
        for chunk in chunks(&source.snapshot(), (17 << 10) + room) {
            restore.add(chunk).unwrap();
        }
        restore.finish().unwrap();
        same(&source, &target);
        let change = Changes::from([(vec![7], Some(vec![7])), (vec![1, 1], None)]);
        prop_assert_eq!(commit(&source, change.clone(), 4), commit(&target, change, 4));
    }
}
