//! Layers against a model.

use proptest::prelude::*;

use super::super::*;
use super::pairs;

#[test]
fn a_failed_layer_leaves_no_trace() {
    let mut base = MemoryState::default();
    base.put(b"a".to_vec(), b"1".to_vec());
    let mut block = Overlay::new(&base);
    block.put(b"b".to_vec(), b"2".to_vec());
    let failed: Result<(), &str> = block.attempt(|layer| {
        layer.put(b"a".to_vec(), b"9".to_vec());
        layer.delete(b"b".to_vec());
        assert_eq!((layer.get(b"a"), layer.get(b"b")), (Some(b"9".to_vec()), None));
        Err("out of gas")
    });
    assert_eq!(failed, Err("out of gas"));
    assert_eq!((block.get(b"a"), block.get(b"b")), (Some(b"1".to_vec()), Some(b"2".to_vec())));
    block
        .attempt(|layer| {
            layer.delete(b"a".to_vec());
            layer.attempt(|inner| {
                inner.put(b"c".to_vec(), b"3".to_vec());
                Ok::<_, ()>(())
            })
        })
        .unwrap();
    let expected = [(b"a".to_vec(), None), (b"b".to_vec(), Some(b"2".to_vec())), (b"c".to_vec(), Some(b"3".to_vec()))];
    assert_eq!(block.into_changes(), Changes::from(expected));
}

#[test]
fn prefixes_end_where_they_should() {
    let cases: [(&[u8], Option<&[u8]>); 5] =
        [(b"a", Some(b"b")), (&[1, 0xff], Some(&[2])), (&[0xff, 0xff], None), (&[], None), (&[0], Some(&[1]))];
    for (prefix, end) in cases {
        assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
    }
    let state = MemoryState([[1, 0xfe], [1, 0xff], [2, 0], [2, 7], [3, 0]].map(|key| (key.to_vec(), vec![1])).into());
    let keys = |pairs: PairIter<'_>| pairs.map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(state.iter_prefix(&[2])), [[2, 0], [2, 7]]);
    assert_eq!(keys(state.iter_prefix_rev(&[2])), [[2, 7], [2, 0]]);
    assert_eq!(keys(state.iter_prefix_from(&[2], &[2, 1])), [[2, 7]]);
    assert_eq!(keys(state.iter_prefix_from(&[2], &[1])), [[2, 0], [2, 7]]);
    assert!(keys(state.iter_prefix_from(&[2], &[9])).is_empty());
    assert!(keys(state.iter_range(&[3], Some(&[2]), Order::Ascending)).is_empty());
}

#[test]
fn keys_sort_by_their_fields() {
    let key = |epoch, worker: &[u8]| KeyBuilder::new(9).u64(epoch).var(worker).u32(1).finish();
    let mut keys = vec![key(2, b"a"), key(1, b"bb"), key(256, b"a"), key(1, b"a")];
    keys.sort();
    assert_eq!(keys, [key(1, b"a"), key(1, b"bb"), key(2, b"a"), key(256, b"a")]);
    assert_eq!(KeyBuilder::new(1).u8(2).bytes(&[3]).finish(), [1, 2, 3]);
    assert!(!key(1, b"ab").starts_with(&KeyBuilder::new(9).u64(1).var(b"a").finish()));
}

fn write() -> impl Strategy<Value = (u8, Option<u8>)> {
    (0u8..16, prop::option::of(1u8..))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Three layers of random writes over a store's snapshot read like the map they describe, in
    /// both directions and over any range, and flatten to it.
    #[test]
    fn layers_read_like_one_map(
        layers in prop::collection::vec(prop::collection::vec(write(), 0..10), 4),
        start in 0u8..18, end in prop::option::of(0u8..18),
    ) {
        let mut model = MemoryState::default();
        let base: Changes = changes(&layers[0]);
        model.apply(&base);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1).unwrap();
        store.commit(store.stage(base, 1).unwrap()).unwrap();

        let mut block = Overlay::new(store.snapshot());
        write_all(&mut block, &layers[1]);
        let mut tx = block.nest();
        write_all(&mut tx, &layers[2]);
        let mut message = tx.nest();
        write_all(&mut message, &layers[3]);
        for layer in &layers[1..] {
            model.apply(&changes(layer));
        }
        prop_assert_eq!(pairs(&message), pairs(&model));
        let end = end.map(|end| vec![end]);
        for order in [Order::Ascending, Order::Descending] {
            let read = |state: &dyn StateRead| state.iter_range(&[start], end.as_deref(), order).collect::<Vec<_>>();
            prop_assert_eq!(read(&message), read(&model));
        }
        for key in 0..16 {
            prop_assert_eq!(message.get(&[key]), model.get(&[key]));
        }
        let (inner, outer) = (message.into_changes(), tx.into_changes());
        block.apply(outer);
        block.apply(inner);
        store.commit(store.stage(block.into_changes(), 2).unwrap()).unwrap();
        prop_assert_eq!(pairs(&store.snapshot()), pairs(&model));
    }
}

fn changes(writes: &[(u8, Option<u8>)]) -> Changes {
    writes.iter().map(|(key, value)| (vec![*key], value.map(|value| vec![value]))).collect()
}

fn write_all(state: &mut dyn StateWrite, writes: &[(u8, Option<u8>)]) {
    for (key, value) in writes {
        match value {
            Some(value) => state.put(vec![*key], vec![*value]),
            None => state.delete(vec![*key]),
        }
    }
}
