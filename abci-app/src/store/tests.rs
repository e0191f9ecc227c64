//! The store against a model, a golden vector, an independent verifier and `kill -9`.

mod crash;
mod overlay;
mod restore;
mod rollback;
mod tree;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

pub(super) fn open(dir: &TempDir, keep_heights: u64) -> Store {
    Store::open_with(dir.path(), StoreOptions { keep_heights, ..StoreOptions::new(1) }).unwrap()
}

pub(super) fn put(pairs: &[(&str, &str)]) -> Changes {
    pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), Some(value.as_bytes().to_vec()))).collect()
}

pub(super) fn commit(store: &Store, changes: Changes, height: u64) -> AppHash {
    let staged = store.stage(changes, height).unwrap();
    let root = staged.app_hash();
    store.commit(staged).unwrap();
    root
}

pub(super) fn pairs(state: &dyn StateRead) -> Vec<Pair> {
    state.iter_range(&[], None, Order::Ascending).collect()
}

#[test]
fn nothing_is_durable_before_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    assert_eq!((store.height(), store.app_hash()), (0, EMPTY_ROOT));
    commit(&store, put(&[("a", "1")]), 1);
    let before = store.app_hash();
    let staged = store.stage(put(&[("a", "2"), ("b", "3")]), 2).unwrap();
    assert_ne!(staged.app_hash(), before);
    assert_eq!((store.height(), store.app_hash(), store.get(b"b")), (1, before, None));
    drop(staged);
    drop(store);
    let store = open(&dir, 10);
    assert_eq!((store.height(), store.app_hash(), store.get(b"a")), (1, before, Some(b"1".to_vec())));
    store.check().unwrap();
}

#[test]
fn heights_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    assert!(matches!(store.stage(Changes::new(), 0), Err(StoreError::Height { .. })));
    // A chain may begin at any height; it did not exist before.
    let first = store.stage(put(&[("a", "1")]), 100).unwrap();
    let rival = store.stage(put(&[("a", "2")]), 100).unwrap();
    store.commit(first).unwrap();
    assert!(matches!(store.commit(rival), Err(StoreError::Height { height: 100, committed: 100 })));
    for height in [99, 100, 102] {
        assert!(matches!(store.stage(Changes::new(), height), Err(StoreError::Height { .. })), "{height}");
    }
    let error = store.snapshot().get_at(b"a", 99).unwrap_err().to_string();
    assert_eq!(error, "height 99 cannot be read: this node holds heights 100 to 100");
    // Blocks without changes, then without any key.
    let root = store.app_hash();
    assert_eq!(commit(&store, Changes::new(), 101), root);
    assert_eq!(commit(&store, put(&[("a", "1")]), 102), root);
    assert_eq!(commit(&store, Changes::from([(b"a".to_vec(), None)]), 103), EMPTY_ROOT);
    assert_eq!(commit(&store, Changes::new(), 104), EMPTY_ROOT);
    assert!(matches!(store.snapshot().prove(b"a", 104), Err(StoreError::Empty { height: 104 })));
    assert_eq!(commit(&store, put(&[("a", "1")]), 105), root);
    drop(store);
    assert_eq!(open(&dir, 10).app_hash(), root);
}

#[test]
fn keys_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    for bytes in [0, MAX_KEY_BYTES + 1] {
        let changes = Changes::from([(vec![7; bytes], Some(vec![1]))]);
        assert!(matches!(store.stage(changes, 1), Err(StoreError::Key { bytes: found }) if found == bytes));
    }
    commit(&store, Changes::from([(vec![7; MAX_KEY_BYTES], Some(vec![1]))]), 1);
    // Reading has no such bound: what cannot be there is not there.
    for bytes in [MAX_KEY_BYTES + 1, 70_000] {
        assert_eq!(store.get(&vec![7; bytes]), None);
        let bound = vec![7; bytes];
        let snapshot = store.snapshot();
        assert_eq!(snapshot.iter_prefix(&bound).count(), 0);
        assert_eq!(snapshot.iter_range(&[], Some(&bound), Order::Ascending).count(), 1);
        assert_eq!(snapshot.iter_range(&bound, None, Order::Descending).count(), 0);
        assert_eq!(snapshot.iter_range(&[6], Some(&vec![8; bytes]), Order::Descending).count(), 1);
    }
}

#[test]
fn a_store_of_another_schema_or_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    let error = Store::open(dir.path(), 1).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(store);
    let error = Store::open(dir.path(), 2).err().unwrap();
    assert!(matches!(error, StoreError::Schema { found: 1, wanted: 2, .. }), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    assert!(matches!(Store::open(&file, 1).err().unwrap(), StoreError::Open { .. }));
}

/// What lists keys of an older height ends where it would look at any number of younger ones.
#[test]
fn the_past_is_listed_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    commit(&store, put(&[("a", "1"), ("z", "2")]), 1);
    commit(&store, (0..1_u32 << 17).map(|key| ([b"k", &key.to_be_bytes()[..]].concat(), Some(vec![1]))).collect(), 2);
    let past = store.snapshot().past(1).unwrap();
    assert_eq!((past.get(b"z"), past.is_cut()), (Some(b"2".to_vec()), false));
    assert_eq!(past.iter_range(b"l", None, Order::Ascending).count(), 1);
    assert!(!past.is_cut());
    assert_eq!(pairs(&past), [(b"a".to_vec(), b"1".to_vec())]);
    assert!(past.is_cut(), "what was found is not all");
    assert!(store.snapshot().past(3).is_err());
}

/// The root of a small fixed state. It is what every node of a chain must agree on: if this test
/// fails, existing chains can no longer be followed.
#[test]
fn golden_root() {
    let golden = include_str!("../../tests/golden/app_hash.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let hex = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let state: Vec<Pair> =
            case["pairs"].as_array().unwrap().iter().map(|pair| (hex(&pair[0]), hex(&pair[1]))).collect();
        let root = hex(&case["root"]);
        assert_eq!(hex::encode(root_of(state.clone())), hex::encode(&root), "{}", case["name"]);
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, 10);
        let changes = state.into_iter().map(|(key, value)| (key, Some(value))).collect();
        assert_eq!(commit(&store, changes, 1).to_vec(), root, "{}", case["name"]);
    }
}

#[test]
fn snapshots_stand_still_while_blocks_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 1);
    commit(&store, put(&[("a", "1"), ("b", "1")]), 1);
    let held = store.snapshot();
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || {
            for height in 2..40 {
                let changes = put(&[("a", &height.to_string()), ("c", &height.to_string())]);
                commit(&store, changes, height);
            }
        })
    };
    for _ in 0..200 {
        assert_eq!(pairs(&held), [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"1".to_vec())]);
        let proof = held.prove(b"c", 1).unwrap();
        assert!(verify_proof(&held.app_hash(), b"c", None, &proof.encode()));
        let moving = store.snapshot();
        if moving.height() > 1 {
            assert_eq!(moving.get(b"a"), Some(moving.height().to_string().into_bytes()));
        }
    }
    writer.join().unwrap();
    assert_eq!(store.height(), 39);
}

#[test]
fn pruning_bounds_the_tree_and_spares_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let keep = 5;
    let store = open(&dir, keep);
    let mut roots = vec![EMPTY_ROOT];
    let mut rows = Vec::new();
    for height in 1..=60u64 {
        let mut changes = Changes::new();
        for index in 0..20u64 {
            // Keys come, are rewritten, vanish and come back.
            let key = KeyBuilder::new(1).u64((index * 7 + height) % 50).finish();
            changes.insert(key, (height % 3 != 0).then(|| height.to_be_bytes().to_vec()));
        }
        if height % 4 == 0 {
            changes.clear();
        }
        roots.push(commit(&store, changes, height));
        rows.push(store.tree_rows().unwrap());
        let now = store.snapshot();
        assert_eq!(now.oldest(), if height <= keep { 1 } else { height - keep });
        for old in now.oldest()..=height {
            assert_eq!(now.app_hash_at(old).unwrap(), roots[old as usize]);
            for index in (0..50u64).step_by(7) {
                let key = KeyBuilder::new(1).u64(index).finish();
                let value = now.get_at(&key, old).unwrap();
                let proof = now.prove(&key, old).unwrap();
                assert_eq!(proof.value, value);
                assert!(verify_proof(&roots[old as usize], &key, value.as_deref(), &proof.encode()));
            }
        }
        assert!(matches!(now.get_at(b"x", now.oldest() - 1), Err(StoreError::Unavailable { .. })));
    }
    let most =
        |range: std::ops::Range<usize>| rows[range].iter().copied().fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
    let (early, late) = (most(12..36), most(36..60));
    assert!(late.0 <= early.0 + 20 && late.1 <= early.1 + 20, "the tree grows: {early:?} then {late:?}");
    // Empty the state and let the window pass: nothing but the root stays.
    let all = pairs(&store.snapshot()).into_iter().map(|(key, _)| (key, None)).collect();
    commit(&store, all, 61);
    for height in 62..=80 {
        commit(&store, Changes::new(), height);
    }
    let (nodes, values) = store.tree_rows().unwrap();
    assert!(nodes <= keep as usize + 2 && values == 0, "{nodes} nodes, {values} values stay");
}

/// A shorter window leaves a backlog, in which a key can be due several times over.
#[test]
fn a_shortened_window_is_caught_up_with() {
    let dir = tempfile::tempdir().unwrap();
    let change = |height: u64| {
        let value = |index: u64| (!(height + index).is_multiple_of(3)).then(|| vec![height as u8]);
        (0..30).map(|index| (KeyBuilder::new(1).u64(index).finish(), value(index))).collect::<Changes>()
    };
    let store = open(&dir, 1000);
    for height in 1..=40 {
        commit(&store, change(height), height);
    }
    let before = store.tree_rows().unwrap();
    drop(store);
    let store = open(&dir, 2);
    assert_eq!(store.snapshot().oldest(), 1, "what was readable is so until the next commit");
    for height in 41..=50 {
        let root = commit(&store, change(height), height);
        let now = store.snapshot();
        assert_eq!(now.oldest(), height - 2);
        for index in 0..30 {
            let key = KeyBuilder::new(1).u64(index).finish();
            let proof = now.prove(&key, height).unwrap();
            assert!(verify_proof(&root, &key, proof.value.as_deref(), &proof.encode()));
        }
    }
    let after = store.tree_rows().unwrap();
    assert!(after.0 * 4 < before.0 && after.1 * 4 < before.1, "{before:?} then {after:?}");
    drop(store);
    // A longer window does not bring back what is gone.
    let store = open(&dir, 1000);
    commit(&store, change(51), 51);
    assert_eq!(store.snapshot().oldest(), 48);
    store.check().unwrap();
}

#[test]
fn proofs_do_not_hold_for_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 10);
    let root = commit(&store, put(&[("a", "1"), ("b", "2"), ("c", "3")]), 1);
    let snapshot = store.snapshot();
    let present = snapshot.prove(b"b", 1).unwrap().encode();
    let absent = snapshot.prove(b"d", 1).unwrap().encode();
    assert!(verify_proof(&root, b"b", Some(b"2"), &present));
    assert!(verify_proof(&root, b"d", None, &absent));
    let other_root = root_of([(b"a", b"1".to_vec())]);
    assert!(!verify_proof(&other_root, b"b", Some(b"2"), &present));
    assert!(!verify_proof(&root, b"b", Some(b"3"), &present));
    assert!(!verify_proof(&root, b"a", Some(b"2"), &present));
    assert!(!verify_proof(&root, b"b", None, &present));
    assert!(!verify_proof(&root, b"b", None, &absent));
    assert!(!verify_proof(&root, b"d", Some(b"2"), &absent));
    assert!(!verify_proof(&root, b"b", Some(b"2"), &[]));
    for index in 0..present.len() {
        let mut damaged = present.clone();
        damaged[index] ^= 1;
        // Whatever byte is altered, it may at most still be a proof of the same truth.
        assert!(!verify_proof(&root, b"b", Some(b"3"), &damaged));
    }
}

/// Prints what a block of 1,000 changed keys costs over a state of 20,000.
#[test]
fn commit_latency() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 100);
    let key = |index: u64| KeyBuilder::new(1).u64(index).bytes(&[7; 20]).finish();
    commit(&store, (0..20_000).map(|index| (key(index), Some(vec![1; 60]))).collect(), 1);
    let (mut staging, mut committing) = (Vec::new(), Vec::new());
    for height in 2..12u64 {
        let changes = (0..1000).map(|index| (key(index * 7919 % 20_000), Some(vec![height as u8; 60]))).collect();
        let begin = std::time::Instant::now();
        let staged = store.stage(changes, height).unwrap();
        staging.push(begin.elapsed());
        store.commit(staged).unwrap();
        committing.push(begin.elapsed() - staging[staging.len() - 1]);
    }
    staging.sort();
    committing.sort();
    println!("1,000 keys: staged in {:?}, durable in {:?} (medians of 10)", staging[5], committing[5]);
    assert_eq!(store.height(), 11);
    store.check().unwrap();
}

fn block() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
    prop::collection::vec((0u8..24, prop::option::weighted(0.7, 1u8..)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random blocks: the flat table is the model, its hash the root, the tree's values the flat
    /// ones, at the newest height and at one before; two stores agree; a reopened one too.
    #[test]
    fn the_store_is_an_ordered_map(blocks in prop::collection::vec(block(), 1..10)) {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, other) = (open(&dir, 3), open(&other_dir, 1000));
        let mut model = MemoryState::default();
        let mut last = model.clone();
        for (index, block) in blocks.iter().enumerate() {
            let height = index as u64 + 1;
            let changes: Changes =
                block.iter().map(|(key, value)| (vec![*key, 0xaa], value.map(|value| vec![value]))).collect();
            last = model.clone();
            model.apply(&changes);
            let root = commit(&store, changes.clone(), height);
            prop_assert_eq!(root, commit(&other, changes, height));
            prop_assert_eq!(root, root_of(model.0.clone()));
        }
        let height = blocks.len() as u64;
        drop(store);
        let store = open(&dir, 3);
        let now = store.snapshot();
        prop_assert_eq!(now.height(), height);
        prop_assert_eq!(pairs(&now), pairs(&model));
        for key in 0u8..24 {
            let key = vec![key, 0xaa];
            let value = model.get(&key);
            prop_assert_eq!(&now.get(&key), &value);
            if now.app_hash() != EMPTY_ROOT {
                let proof = now.prove(&key, height).unwrap();
                prop_assert_eq!(&proof.value, &value);
                prop_assert!(verify_proof(&now.app_hash(), &key, value.as_deref(), &proof.encode()));
            }
            if height > 1 {
                prop_assert_eq!(now.get_at(&key, height - 1).unwrap(), last.get(&key));
                let past = now.past(height - 1).unwrap();
                for order in [Order::Ascending, Order::Descending] {
                    for end in [None, Some(&[20, 0xaa][..])] {
                        let there: Vec<_> = past.iter_range(&key, end, order).collect();
                        prop_assert_eq!(there, last.iter_range(&key, end, order).collect::<Vec<_>>());
                    }
                }
            }
        }
    }
}
