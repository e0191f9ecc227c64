//! The planner, on any machine: every row, head and split exactly once, within the bounds it states.

use std::collections::HashMap;

use super::super::plan::{HEADER_WORDS, ITEM_WORDS, NO_PARTIALS, Piece};
use super::super::*;
use super::bench_case::Random;

fn planner(group: u32, kv_heads: u32, partial_rows: u32) -> Planner {
    Planner { group, kv_heads, wide_tile: 128, blocks: [132, 132], partial_rows }
}

/// Checks a plan in full; returns its pieces, narrow and wide.
fn checked(
    planner: &Planner,
    sequences: &[PlanSequence],
    window: Option<u32>,
    bucket: (usize, usize),
) -> [Vec<Piece>; 2] {
    let mut words = vec![u32::MAX; planner.words_max(bucket.0, bucket.1)];
    let mut scratch = PlanScratch::with_limits(planner, bucket.0, bucket.1);
    let room = scratch.clone();
    let used = planner.plan(sequences.iter().copied(), window, bucket, &mut scratch, &mut words);
    assert_eq!(format!("{:?}", room), format!("{:?}", PlanScratch::default()), "room is empty");
    let (narrow, wide) = (words[0] as usize, words[1] as usize);
    assert_eq!(words[2] as usize, narrow);
    assert_eq!(used, HEADER_WORDS + ITEM_WORDS * (narrow + wide));
    let [narrow_max, wide_max] = planner.items_max(bucket.0, bucket.1);
    assert!(narrow <= narrow_max as usize && wide <= wide_max as usize, "{narrow} {wide}: {bucket:?}");
    let pieces: Vec<Piece> = words[HEADER_WORDS..used].chunks(ITEM_WORDS).map(Piece::of_words).collect();
    let (narrow, wide) = pieces.split_at(narrow);
    for (list, tile) in [(narrow, 16), (wide, planner.wide_tile)] {
        assert!(list.iter().all(|piece| piece.flats > 0 && piece.flats <= tile), "{list:?}");
        assert!(list.windows(2).all(|two| two[0].end - two[0].begin >= two[1].end - two[1].begin), "by cost: {list:?}");
    }
    // Which splits of which flat row of which sequence are computed, and by how many pieces their tile is folded.
    let mut splits: HashMap<(u32, u32), Vec<u32>> = HashMap::new();
    let mut tiles: HashMap<(u32, u32), Vec<Piece>> = HashMap::new();
    for piece in &pieces {
        assert!(piece.tile_begin <= piece.begin && piece.begin < piece.end && piece.end <= piece.tile_end, "{piece:?}");
        for flat in piece.first_flat..piece.first_flat + piece.flats {
            splits.entry((piece.first_row, flat)).or_default().extend(piece.begin..piece.end);
        }
        tiles.entry((piece.first_row, piece.first_flat)).or_default().push(*piece);
    }
    let mut taken = Vec::new();
    for pieces in tiles.values() {
        let one = pieces[0];
        assert!(pieces.iter().all(|p| p.pieces as usize == pieces.len()), "{pieces:?}");
        assert!(
            pieces
                .iter()
                .all(|p| (p.partials, p.tile_begin, p.tile_end) == (one.partials, one.tile_begin, one.tile_end))
        );
        assert_eq!(one.partials == NO_PARTIALS, pieces.len() == 1, "{pieces:?}");
        if one.partials != NO_PARTIALS {
            taken.push((one.partials, one.partials + (one.tile_end - one.tile_begin) * one.flats));
        }
    }
    taken.sort_unstable();
    assert!(taken.windows(2).all(|two| two[0].1 <= two[1].0), "partial rows are shared: {taken:?}");
    assert!(taken.last().is_none_or(|last| last.1 <= planner.partial_rows), "{taken:?}");
    let (mut first_row, mut rows) = (0, 0);
    for sequence in sequences {
        for flat in 0..sequence.rows * planner.group {
            let position = sequence.first_position + flat / planner.group;
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window)) / SPLIT;
            let mut own = splits.remove(&(first_row, flat)).unwrap_or_default();
            own.sort_unstable();
            assert!(own.windows(2).all(|two| two[0] + 1 == two[1]), "a split twice, or a gap: {own:?}");
            // A tile may begin earlier and end later than a row of it: what the row does not see changes nothing.
            assert!(own.first().is_some_and(|&begin| begin <= first), "{own:?}: {first}");
            assert!(own.last().is_some_and(|&end| end >= position / SPLIT), "{own:?}: {position}");
            rows += 1;
        }
        first_row += sequence.rows;
    }
    assert!(splits.is_empty() && rows > 0, "rows that do not exist: {splits:?}");
    [narrow.to_vec(), wide.to_vec()]
}

fn decodes(count: usize, context: u32) -> Vec<PlanSequence> {
    (0..count).map(|i| PlanSequence { first_position: context - 1, rows: 1, table_start: i as u32 * 1000 }).collect()
}

#[test]
fn every_row_head_and_split_is_computed_once() {
    let mut random = Random::fresh("attention plans");
    for _ in 0..40 {
        let planner =
            planner(1 + random.below(17), 1 + random.below(9), [0, 50, 1000, 16_384][random.below(4) as usize]);
        let count = 1 + random.below(40) as usize;
        let chunky = random.below(3) == 0;
        let sequences: Vec<PlanSequence> = (0..count)
            .map(|_| PlanSequence {
                first_position: random.below(6000),
                rows: if chunky { 1 + random.below(200) } else { 1 + random.below(3) },
                table_start: random.below(1000),
            })
            .collect();
        let rows: usize = sequences.iter().map(|s| s.rows as usize).sum();
        let window = [None, Some(1 + random.below(2000))][random.below(2) as usize];
        for bucket in [(rows, count), (rows.next_power_of_two(), count + 3), (rows + 300, count)] {
            checked(&planner, &sequences, window, bucket);
        }
    }
}

#[test]
fn one_long_decode_spreads_over_the_device() {
    let [narrow, wide] = checked(&planner(4, 8, 1 << 14), &decodes(1, 8192), None, (1, 1));
    assert!(wide.is_empty());
    assert_eq!(narrow.len(), 16, "two splits a piece, for each of 8 heads: a piece to a multiprocessor");
}

#[test]
fn decodes_that_fill_the_device_are_not_cut() {
    for count in [64, 256, 300, 1000] {
        let [narrow, _] = checked(&planner(4, 8, 1 << 14), &decodes(count, 1024), None, (count, count));
        assert_eq!(narrow.len(), count, "of {count}");
    }
    let mut ragged = decodes(40, 700);
    ragged.extend(decodes(1, 30_000));
    let [narrow, _] = checked(&planner(4, 8, 1 << 14), &ragged, None, (64, 64));
    assert!(narrow.len() > 45, "the long one is cut: {}", narrow.len());
}

#[test]
fn a_long_prompt_is_computed_by_whole_wide_tiles() {
    let prompt = [PlanSequence { first_position: 0, rows: 8192, table_start: 0 }];
    let [narrow, wide] = checked(&planner(4, 8, 1 << 14), &prompt, None, (8192, 16));
    assert!(narrow.is_empty());
    assert_eq!(wide.len(), 256);
    assert_eq!((wide[0].end - wide[0].begin, wide[255].end - wide[255].begin), (32, 1));
    let chunk = [PlanSequence { first_position: 8192, rows: 512, table_start: 0 }];
    let [_, wide] = checked(&planner(4, 8, 1 << 15), &chunk, None, (512, 16));
    assert_eq!(wide.len(), 16, "sixteen tiles of eight heads leave few multiprocessors without one");
    let chunk = [PlanSequence { first_position: 8192, rows: 100, table_start: 0 }];
    let [_, wide] = checked(&planner(4, 8, 1 << 15), &chunk, None, (512, 16));
    assert!(wide.len() > 10, "a short chunk after much is cut: {}", wide.len());
}

#[test]
fn a_window_leaves_out_what_nobody_sees() {
    let [narrow, _] = checked(&planner(4, 1, 1 << 14), &decodes(1, 32_768), Some(512), (1, 1));
    let splits: u32 = narrow.iter().map(|piece| piece.end - piece.begin).sum();
    assert_eq!(splits, 2, "{narrow:?}");
}
