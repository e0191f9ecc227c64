//! A state that is asked once for each key: what a block's transactions, its invariants and its staging read again and
//! again, and those of the next blocks too, costs a search of the database the first time only.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::state::{Changes, Order, PairIter, StateRead};

/// Keys that are remembered at most: some 20 MB of them.
const KEYS_MAX: usize = 1 << 17;
/// Parts of what is remembered, each with a lock of its own.
const PARTS: usize = 16;

type Answers = HashMap<Vec<u8>, Option<Vec<u8>>>;

/// Remembers what the state below has answered, which does not change meanwhile. A part that is full forgets all.
pub struct Memo<R> {
    base: R,
    answers: [Mutex<Answers>; PARTS],
}

impl<R: StateRead> Memo<R> {
    /// Over a state that stays as it is.
    pub fn new(base: R) -> Self {
        Memo { base, answers: Default::default() }
    }

    /// The part that a key belongs to.
    fn part(&self, key: &[u8]) -> MutexGuard<'_, Answers> {
        let mixed = key.iter().fold(0_usize, |mixed, byte| mixed.wrapping_mul(31).wrapping_add((*byte).into()));
        self.answers[mixed % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state below.
    pub fn base(&self) -> &R {
        &self.base
    }

    /// Over the state that `changes` make of the one below.
    #[must_use]
    pub fn advance<S>(self, base: S, changes: &Changes) -> Memo<S> {
        for (key, value) in changes {
            if let Some(answer) = self.part(key).get_mut(key) {
                answer.clone_from(value);
            }
        }
        Memo { base, answers: self.answers }
    }
}

impl<R: StateRead> StateRead for Memo<R> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        if let Some(answer) = self.part(key).get(key) {
            return answer.clone();
        }
        let answer = self.base.get(key);
        let mut answers = self.part(key);
        if answers.len() >= KEYS_MAX / PARTS {
            answers.clear();
        }
        answers.insert(key.to_vec(), answer.clone());
        answer
    }

    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
        self.base.iter_range(start, end, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Counts what it is asked.
    struct Counted(Cell<usize>);

    impl StateRead for Counted {
        fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
            self.0.set(self.0.get() + 1);
            key.first().filter(|first| **first != 0).map(|first| vec![*first])
        }
        fn iter_range(&self, _: &[u8], _: Option<&[u8]>, _: Order) -> PairIter<'_> {
            Box::new(std::iter::empty())
        }
    }

    #[test]
    fn each_key_is_asked_for_once_whether_it_is_there_or_not() {
        let memo = Memo::new(Counted(Cell::new(0)));
        for _ in 0..3 {
            assert_eq!((memo.get(&[7]), memo.get(&[0])), (Some(vec![7]), None));
        }
        assert_eq!(memo.base().0.get(), 2);
        for key in 0..KEYS_MAX as u32 {
            memo.get(&key.to_be_bytes());
        }
        memo.get(&KEYS_MAX.to_be_bytes());
        let known: usize = memo.answers.iter().map(|part| part.lock().unwrap().len()).sum();
        assert!((KEYS_MAX / 2..=KEYS_MAX).contains(&known), "{known}");
        assert_eq!(memo.get(&[7]), Some(vec![7]), "also when it has forgotten");
    }

    #[test]
    fn it_goes_on_with_what_a_block_changes() {
        let memo = Memo::new(Counted(Cell::new(0)));
        for key in [7, 8, 9, 0] {
            memo.get(&[key]);
        }
        let changes = [(7, Some(vec![70])), (8, None), (0, Some(vec![1])), (5, Some(vec![50]))];
        let changes = changes.map(|(key, value)| (vec![key], value)).into_iter().collect();
        let next = memo.advance(Counted(Cell::new(0)), &changes);
        let answers = [7, 8, 9, 0].map(|key| next.get(&[key]));
        assert_eq!(answers, [Some(vec![70]), None, Some(vec![9]), Some(vec![1])]);
        assert_eq!(next.base().0.get(), 0, "what was known is not asked for again");
        next.get(&[5]);
        assert_eq!(next.base().0.get(), 1, "what was not known is");
    }
}
