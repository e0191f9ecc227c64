//! Listings in pages: a bounded number of rows an answer, and the key at which the next page begins.

use polylink_protocol::cosmos::cosmos::base::query::v1beta1::{PageRequest, PageResponse};

use crate::error::QueryError;
use crate::store::{Order, StateRead, prefix_end};

/// Rows of a page where the request names no number.
pub const LIMIT_DEFAULT: u64 = 100;
/// Rows of a page at most; more are asked for page by page.
pub const LIMIT_MAX: u64 = 1_000;
/// Keys that are looked at for a page at most, kept or not; then the page ends early with a `next_key`.
pub const KEYS_MAX: usize = 10_000;

/// One page of the pairs under `prefix`: `row` gets the key behind the prefix and the value, and may skip it with
/// `None`. `key` is the `next_key` of the page before, or empty. Returns the rows and the next key, empty at the end.
pub fn page<T>(
    state: &dyn StateRead,
    prefix: &[u8],
    key: &[u8],
    limit: u64,
    row: impl FnMut(&[u8], &[u8]) -> Option<T>,
) -> (Vec<T>, Vec<u8>) {
    walk(state, prefix, key, limit, Order::Ascending, 0, row)
}

fn walk<T>(
    state: &dyn StateRead,
    prefix: &[u8],
    key: &[u8],
    limit: u64,
    order: Order,
    skip: u64,
    mut row: impl FnMut(&[u8], &[u8]) -> Option<T>,
) -> (Vec<T>, Vec<u8>) {
    let limit = if limit == 0 { LIMIT_DEFAULT } else { limit.min(LIMIT_MAX) };
    let full: Vec<u8> = [prefix, key].concat();
    let pairs = match order {
        Order::Ascending => state.iter_range(&full, prefix_end(prefix).as_deref(), order),
        Order::Descending if key.is_empty() => state.iter_range(prefix, prefix_end(prefix).as_deref(), order),
        Order::Descending => {
            // The next key itself is the page's first row, so that the range ends just behind it.
            let mut end = full;
            end.push(0);
            state.iter_range(prefix, Some(&end), order)
        }
    };
    let (mut rows, mut skip) = (Vec::new(), skip);
    for (seen, (key, value)) in pairs.enumerate() {
        let tail = key.get(prefix.len()..).unwrap_or_default();
        if rows.len() as u64 >= limit || seen >= KEYS_MAX {
            return (rows, tail.to_vec());
        }
        if let Some(row) = row(tail, &value) {
            if skip > 0 {
                skip -= 1;
            } else {
                rows.push(row);
            }
        }
    }
    (rows, Vec::new())
}

/// A page as the Cosmos SDK's `PageRequest` asks for it: by key or offset, in either direction. The total is counted
/// where asked for, and where no limit is named, up to [`KEYS_MAX`] keys; not for pages by key.
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
    let total = if (request.count_total || request.limit == 0) && request.key.is_empty() {
        state.iter_prefix(prefix).take(KEYS_MAX).filter(|(k, v)| row(&k[prefix.len()..], v).is_some()).count() as u64
    } else {
        0
    };
    let order = if request.reverse { Order::Descending } else { Order::Ascending };
    let (rows, next_key) = walk(state, prefix, &request.key, request.limit, order, request.offset, row);
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

    fn page_len(limit: u64) -> usize {
        super::page(&state(), &[7], &[], limit, |_, v| Some(v[0])).0.len()
    }
}
