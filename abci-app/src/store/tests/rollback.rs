//! Going back to an older height, and pruning over a long run.

use super::super::*;
use super::{commit, open, pairs};

/// Comings, rewrites, deletions and returns, the same for a height each time.
fn changes(height: u64) -> Changes {
    let mut changes = Changes::new();
    for index in 0..30u64 {
        let key = KeyBuilder::new(1).u64((index * 7 + height * 3) % 90).finish();
        changes
            .insert(key, (!(index + height).is_multiple_of(4)).then(|| [height, index].map(u64::to_be_bytes).concat()));
    }
    changes
}

#[test]
fn a_store_goes_back_within_its_window_and_on_as_if_nothing_had_been() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 20);
    let (mut roots, mut states, mut rows) = (vec![EMPTY_ROOT], vec![vec![]], vec![(0, 0)]);
    for height in 1..=60 {
        roots.push(commit(&store, changes(height), height));
        states.push(pairs(&store.snapshot()));
        rows.push(store.tree_rows().unwrap());
    }
    assert!(matches!(store.rollback(39), Err(StoreError::Unavailable { oldest: 40, .. })));
    assert!(matches!(store.rollback(61), Err(StoreError::Unavailable { .. })));
    let mut store = store;
    for back in [60, 59, 52, 40] {
        store.rollback(back).unwrap();
        let at = back as usize;
        assert_eq!((store.height(), store.app_hash()), (back, roots[at]));
        assert_eq!(pairs(&store.snapshot()), states[at]);
        store.check().unwrap();
        // Absence is proved by the keys beside, of which some have been deleted before that height and some come back since.
        let now = store.snapshot();
        for (old, index) in (now.oldest()..=back).flat_map(|old| (0..180).step_by(7).map(move |index| (old, index))) {
            let proof = now.prove(&KeyBuilder::new(1).u64(index).finish(), old).unwrap();
            assert_eq!(proof.value, now.get_at(&proof.key, old).unwrap());
            assert!(verify_proof(&roots[old as usize], &proof.key, proof.value.as_deref(), &proof.encode()));
        }
        drop((now, store));
        store = open(&dir, 20);
        assert_eq!((store.height(), store.app_hash()), (back, roots[at]), "durable");
        for height in back + 1..=60 {
            assert_eq!(commit(&store, changes(height), height), roots[height as usize]);
        }
        assert_eq!(store.tree_rows().unwrap(), rows[60], "nothing of it stays");
        let proof = store.snapshot().prove(&KeyBuilder::new(1).u64(5).finish(), 50).unwrap();
        assert!(verify_proof(&roots[50], &proof.key, proof.value.as_deref(), &proof.encode()));
        // Another history from there on.
    }
    store.rollback(41).unwrap();
    for height in 42..=90 {
        commit(&store, changes(height + 1_000), height);
        store.check().unwrap();
    }
}

/// Bytes of all files below a folder.
fn size(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}

/// Blocks of the run below; the variable `POLYLINK_LONG_RUN_BLOCKS` says another number.
const BLOCKS: u64 = 1_000;

/// Many blocks over a state that stays as large as it is: neither rows nor files grow with the height. A small
/// journal, so that the database's files are rewritten many times meanwhile.
#[test]
fn disk_use_is_bounded_over_a_long_run() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { keep_heights: 50, journal_bytes: JOURNAL_BYTES_MIN, ..StoreOptions::new(1) };
    let store = Store::open_with(dir.path(), options).unwrap();
    let key = |index: u64| KeyBuilder::new(1).u64(index).bytes(&[7; 20]).finish();
    let block = |height: u64| -> Changes {
        let mut changes: Changes =
            (0..30).map(|index| (key((index * 7919 + height * 61) % 1_500), Some(vec![height as u8; 100]))).collect();
        // Half of what a height writes is gone two heights later.
        changes.extend((0..10).map(|index| (key(10_000 + height * 20 + index), Some(vec![1; 100]))));
        changes.extend((0..10).map(|index| (key(10_000 + height.saturating_sub(2) * 20 + index), None)));
        changes
    };
    let (mut rows, mut bytes, mut marks) = (Vec::new(), Vec::new(), 0);
    let blocks = std::env::var("POLYLINK_LONG_RUN_BLOCKS").ok().and_then(|n| n.parse().ok()).unwrap_or(BLOCKS);
    for height in 1..=blocks {
        let staged = store.stage(block(height), height).unwrap();
        marks = store.commit_at(staged, Some(Moment { seconds: 1_000 + height, window_seconds: 200 })).unwrap().0;
        if height % (blocks / 10) == 0 {
            rows.push(store.tree_rows().unwrap());
            bytes.push(size(dir.path()));
        }
    }
    println!(
        "{blocks} blocks, ten samples: rows {rows:?}, MiB {:?}",
        bytes.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>()
    );
    let late = |from: usize, to: usize| rows[from..to].iter().fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
    let (early, late) = (late(1, 5), late(5, 10));
    assert!(late.0 < early.0 * 11 / 10 && late.1 < early.1 * 11 / 10, "rows grow: {early:?}, then {late:?}");
    // While files are being rewritten both generations are there, the longer the busier the machine.
    let (early, late) = (bytes[..5].iter().max().unwrap(), bytes[7..].iter().min().unwrap());
    assert!(*late < early * 5 / 4, "files grow: {early}, then {late}");
    assert_eq!(marks, (blocks - 200) / 16 * 16, "blocks below may be forgotten");
    store.check().unwrap();
}
