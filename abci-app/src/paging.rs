//! Listings in pages: a bounded number of rows an answer, and the key at which the next page begins.

use polylink_protocol::cosmos::cosmos::base::query::v1beta1::{PageRequest, PageResponse};

use crate::error::QueryError;
use crate::store::{Order, PairIter, StateRead, prefix_end};

/// Rows of a page where the request names no number.
pub const LIMIT_DEFAULT: u64 = 100;
/// Rows of a page at most; more are asked for page by page.
pub const LIMIT_MAX: u64 = 1_000;
/// Keys that are looked at for a page at most, kept or not; then the page ends early with a `next_key`.
pub const KEYS_MAX: usize = 10_000;
/// Keys that are looked at to pass over an offset, or to count a total, at most.
pub const OFFSET_KEYS_MAX: usize = 100_000;

/// One page of the pairs under `prefix`: `row` gets the key behind the prefix and the value, and may skip it with
/// `None`. `key` is the `next_key` of the page before, or empty. Returns the rows and the next key, empty at the end.
pub fn page<T>(
    state: &dyn StateRead,
    prefix: &[u8],
    key: &[u8],
    limit: u64,
    row: impl FnMut(&[u8], &[u8]) -> Option<T>,
) -> (Vec<T>, Vec<u8>) {
    take(pairs(state, prefix, key, Order::Ascending), prefix, limit, row)
}

/// What stands under `prefix`, from a key on.
fn pairs<'a>(state: &'a dyn StateRead, prefix: &[u8], key: &[u8], order: Order) -> PairIter<'a> {
    let full: Vec<u8> = [prefix, key].concat();
    match order {
        Order::Ascending => state.iter_range(&full, prefix_end(prefix).as_deref(), order),
        Order::Descending if key.is_empty() => state.iter_range(prefix, prefix_end(prefix).as_deref(), order),
        Order::Descending => {
            // The next key itself is the page's first row, so that the range ends just behind it.
            let mut end = full;
            end.push(0);
            state.iter_range(prefix, Some(&end), order)
        }
    }
}

fn take<T>(
    pairs: PairIter<'_>,
    prefix: &[u8],
    limit: u64,
    mut row: impl FnMut(&[u8], &[u8]) -> Option<T>,
) -> (Vec<T>, Vec<u8>) {
    let limit = if limit == 0 { LIMIT_DEFAULT } else { limit.min(LIMIT_MAX) };
    let mut rows = Vec::new();
    for (seen, (key, value)) in pairs.enumerate() {
        let tail = key.get(prefix.len()..).unwrap_or_default();
        if rows.len() as u64 >= limit || seen >= KEYS_MAX {
            return (rows, tail.to_vec());
        }
        rows.extend(row(tail, &value));
    }
    (rows, Vec::new())
}

/// A page as the Cosmos SDK's `PageRequest` asks for it: by key or offset, in either direction. The total is counted
/// where asked for, and where no limit is named, up to [`OFFSET_KEYS_MAX`] keys; not for pages by key.
///
/// # Errors
/// Both a key and an offset; an offset that reaches over more than [`OFFSET_KEYS_MAX`] keys.
pub fn cosmos<T>(
    state: &dyn StateRead,
    prefix: &[u8],
    request: Option<PageRequest>,
    mut row: impl FnMut(&[u8], &[u8]) -> Option<T>,
) -> Result<(Vec<T>, PageResponse), QueryError> {
    let request = request.unwrap_or_default();
    if request.offset > 0 && !request.key.is_empty() {
        return Err(QueryError::InvalidArgument("pagination: either offset or key is expected, got both".into()));
    }
    let mut is_row = |(key, value): (Vec<u8>, Vec<u8>)| row(&key[prefix.len()..], &value).is_some();
    let total = if (request.count_total || request.limit == 0) && request.key.is_empty() {
        let seen = state.iter_prefix(prefix).take(OFFSET_KEYS_MAX);
        seen.map(&mut is_row).filter(|is_row| *is_row).count() as u64
    } else {
        0
    };
    let order = if request.reverse { Order::Descending } else { Order::Ascending };
    let mut pairs = pairs(state, prefix, &request.key, order);
    let (mut left, mut seen) = (request.offset, 0);
    while left > 0 {
        if seen >= OFFSET_KEYS_MAX {
            let reason =
                format!("pagination: an offset reaches over {OFFSET_KEYS_MAX} keys at most: go on by next_key");
            return Err(QueryError::InvalidArgument(reason));
        }
        let Some(pair) = pairs.next() else { break };
        (seen, left) = (seen + 1, left - u64::from(is_row(pair)));
    }
    let (rows, next_key) = take(pairs, prefix, request.limit, row);
    Ok((rows, PageResponse { next_key, total }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryState, StateWrite};

    fn state() -> MemoryState {
        let mut state = MemoryState::default();
        for i in 0..25_u8 {
            state.put(vec![7, i], vec![i]);
        }
        state.put(vec![6], vec![0]);
        state.put(vec![8], vec![0]);
        state
    }

    #[test]
    fn pages_join_to_the_whole_in_both_directions() {
        for reverse in [false, true] {
            let (mut all, mut key, mut pages) = (Vec::new(), Vec::new(), 0);
            loop {
                let request = PageRequest { key, limit: 10, reverse, ..Default::default() };
                let (rows, page) = cosmos(&state(), &[7], Some(request), |_, v| Some(v[0])).unwrap();
                all.extend(rows);
                pages += 1;
                key = page.next_key;
                if key.is_empty() {
                    break;
                }
            }
            let mut expected: Vec<u8> = (0..25).collect();
            if reverse {
                expected.reverse();
            }
            assert_eq!((all, pages), (expected, 3));
        }
    }

    #[test]
    fn offset_total_filter_and_limits() {
        let even = |_: &[u8], v: &[u8]| v[0].is_multiple_of(2).then_some(v[0]);
        let request = PageRequest { offset: 2, limit: 3, count_total: true, ..Default::default() };
        let (rows, page) = cosmos(&state(), &[7], Some(request), even).unwrap();
        assert_eq!((rows, page.total), (vec![4, 6, 8], 13));
        // As the SDK's `Paginate` has it, explorers are told the total where they ask for no page at all.
        let total = |request| cosmos(&state(), &[7], request, even).unwrap().1.total;
        let limited = PageRequest { limit: 3, ..Default::default() };
        let by_key = PageRequest { key: vec![1], count_total: true, ..Default::default() };
        assert_eq!([None, Some(PageRequest::default()), Some(limited), Some(by_key)].map(total), [13, 13, 0, 0]);
        let both = PageRequest { offset: 2, key: vec![1], ..Default::default() };
        assert!(matches!(cosmos(&state(), &[7], Some(both), even), Err(QueryError::InvalidArgument(_))));
        assert_eq!(page_len(u64::MAX), 25);
    }

    #[test]
    fn an_offset_is_passed_over_whole_or_refused() {
        let mut state = MemoryState::default();
        for n in 0..OFFSET_KEYS_MAX as u32 + 20 {
            state.put([&[7], &n.to_be_bytes()[..]].concat(), n.to_be_bytes().to_vec());
        }
        let ask = |offset: u64, even: bool| {
            let request = PageRequest { offset, limit: 3, ..Default::default() };
            let row = |_: &[u8], v: &[u8]| {
                (!even || v[3].is_multiple_of(2)).then(|| u32::from_be_bytes([v[0], v[1], v[2], v[3]]))
            };
            cosmos(&state, &[7], Some(request), row).map(|(rows, page)| (rows, page.next_key))
        };
        let next = |n: u32| n.to_be_bytes().to_vec();
        assert_eq!(ask(12_345, false), Ok((vec![12_345, 12_346, 12_347], next(12_348))));
        assert_eq!(ask(12_345, true), Ok((vec![24_690, 24_692, 24_694], next(24_695))));
        let most = OFFSET_KEYS_MAX as u32;
        assert_eq!(ask(most.into(), false), Ok((vec![most, most + 1, most + 2], next(most + 3))));
        for refused in [ask(u64::from(most) + 1, false), ask(u64::from(most), true), ask(u64::MAX, false)] {
            assert!(
                matches!(&refused, Err(QueryError::InvalidArgument(said)) if said.contains("next_key")),
                "{refused:?}"
            );
        }
        let whole = cosmos(&state, &[7], None, |_, _| Some(())).unwrap();
        assert_eq!((whole.0.len(), whole.1.total), (100, u64::from(most)));
        let beyond =
            cosmos(&super::tests::state(), &[7], Some(PageRequest { offset: 90, ..Default::default() }), |_, _| {
                Some(())
            });
        assert_eq!(beyond, Ok((vec![], PageResponse { next_key: vec![], total: 25 })));
    }

    fn page_len(limit: u64) -> usize {
        super::page(&state(), &[7], &[], limit, |_, v| Some(v[0])).0.len()
    }
}
