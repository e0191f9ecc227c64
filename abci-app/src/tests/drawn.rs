//! Whether random sequences do some of everything. They are drawn with the same seed every time: how seldom a kind of step
//! succeeds by chance is no matter of the ledger's.

use std::collections::BTreeMap;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{TestCaseError, TestRunner};

/// What happened in a sequence, and how often.
pub type Seen = BTreeMap<String, usize>;

/// Fails unless each of these kinds of things happened three times at least in `count` sequences together.
pub fn all_of<T>(
    kinds: &[&str],
    count: usize,
    sequences: impl Strategy<Value = Vec<T>>,
    run: impl Fn(&[T]) -> Result<Seen, TestCaseError>,
) {
    let mut runner = TestRunner::deterministic();
    let mut seen = Seen::new();
    for _ in 0..count {
        for (kind, times) in run(&sequences.new_tree(&mut runner).unwrap().current()).unwrap() {
            *seen.entry(kind).or_default() += times;
        }
    }
    for kind in kinds {
        let times = seen.get(*kind).copied().unwrap_or(0);
        assert!(times >= 3, "{times} of {kind} in {seen:?}");
    }
}
