//! Cuts a step's attention into pieces that keep the device busy.
//!
//! Rows are packed as (token, query head of the KV head's group): `flat = token × group + head`, tokens counted from the
//! sequence's first row in the step. A **tile** is up to 16 (narrow) or 128 (wide) neighbouring flat rows of one sequence; a
//! **piece** is some of a tile's splits, for each KV head. A tile of one piece is finished by its block; the pieces of any
//! other leave their splits in memory, and the block that comes last folds them. Neither changes a bit.
//!
//! The plan, words of u32: `[narrow pieces, wide pieces, number of the first wide one, 0…]` (8), then pieces of 8 words, by
//! descending cost: `AttentionItem` in `kernels/cuda/attention_bf16.cuh`.

use super::{NARROW_ROWS_MAX, NARROW_TILE, SPLIT};

/// Words before the pieces.
pub(super) const HEADER_WORDS: usize = 8;
/// Words of a piece.
pub(super) const ITEM_WORDS: usize = 8;
/// Sequences of up to so many flat rows are cut into narrow tiles.
const NARROW_FLATS_MAX: u32 = 32;
/// Pieces beyond one per tile that there may be of each kind.
const EXTRA_PIECES: u32 = 2048;
/// What a split costs, and a piece beside its splits: one that is a whole tile, and one that leaves its splits in memory. (As
/// seen of decodes on an H200: a split of 256 keys of 128 values takes 3.6 us of a block's share of the memory's rate.)
const SPLIT_COST: u64 = 10;
const WHOLE_COST: u64 = 3;
const PARTIAL_COST: u64 = 11;
/// No partial rows: the piece is the whole tile.
pub(super) const NO_PARTIALS: u32 = u32::MAX;

/// A sequence's rows of a step, as the planner needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanSequence {
    pub first_position: u32,
    pub rows: u32,
    /// Its first entry in the step's block tables.
    pub table_start: u32,
}

/// Some splits of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub first_row: u32,
    pub first_flat: u32,
    pub first_position: u32,
    pub table_start: u32,
    pub begin: u32,
    pub end: u32,
    pub tile_begin: u32,
    pub tile_end: u32,
    pub flats: u32,
    pub pieces: u32,
    pub partials: u32,
}

impl Piece {
    fn words(&self) -> [u32; ITEM_WORDS] {
        [
            self.first_row,
            self.first_flat,
            self.first_position,
            self.table_start,
            self.begin | self.end << 16,
            self.tile_begin | self.tile_end << 16,
            self.flats | self.pieces << 16,
            self.partials,
        ]
    }

    #[cfg(test)]
    pub(super) fn of_words(words: &[u32]) -> Self {
        let halves = |word: u32| (word & 0xffff, word >> 16);
        let ((begin, end), (tile_begin, tile_end)) = (halves(words[4]), halves(words[5]));
        let (flats, pieces) = halves(words[6]);
        let [first_row, first_flat, first_position, table_start] = [words[0], words[1], words[2], words[3]];
        let partials = words[7];
        Self {
            first_row,
            first_flat,
            first_position,
            table_start,
            begin,
            end,
            tile_begin,
            tile_end,
            flats,
            pieces,
            partials,
        }
    }
}

/// Memory of the planner, reused from step to step.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlanScratch {
    tiles: Vec<Piece>,
    pieces: Vec<Piece>,
}

impl PlanScratch {
    /// Room for steps of these sizes.
    pub fn with_limits(planner: &Planner, rows: usize, sequences: usize) -> Self {
        let [narrow, wide] = planner.items_max(rows, sequences);
        let most = narrow.max(wide) as usize;
        Self { tiles: Vec::with_capacity(most), pieces: Vec::with_capacity(most) }
    }
}

/// What the planner knows of a shape and of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planner {
    /// Query heads per KV head.
    pub group: u32,
    pub kv_heads: u32,
    /// Flat rows of a wide tile.
    pub wide_tile: u32,
    /// Blocks that run at once: narrow, wide.
    pub blocks: [u32; 2],
    /// Room for rows of splits that are folded by the last block.
    pub partial_rows: u32,
}

impl Planner {
    /// Most pieces, narrow and wide, of a step of so many rows and sequences.
    pub fn items_max(&self, rows: usize, sequences: usize) -> [u32; 2] {
        let sequences = sequences.min(rows);
        let tiles = |tile: u32| ((rows * self.group as usize).div_ceil(tile as usize) + sequences) as u32;
        let extra = EXTRA_PIECES.min(self.partial_rows);
        if rows > NARROW_ROWS_MAX {
            // Narrow tiles are of sequences of few rows only.
            let narrow = tiles(NARROW_TILE).min((sequences as u32) * NARROW_FLATS_MAX.div_ceil(NARROW_TILE));
            [narrow + extra, tiles(self.wide_tile) + extra]
        } else {
            [tiles(NARROW_TILE) + extra, 0]
        }
    }

    /// Words that a plan of such a step may have.
    pub fn words_max(&self, rows: usize, sequences: usize) -> usize {
        let [narrow, wide] = self.items_max(rows, sequences);
        HEADER_WORDS + ITEM_WORDS * (narrow + wide) as usize
    }

    /// Writes the plan of a step, for launches made for up to `rows` rows and `most` sequences; returns how many words it
    /// has.
    ///
    /// `sequences` are in the order of their rows. `window`: of the layers that use this plan; `None` is good for all.
    pub fn plan(
        &self,
        sequences: impl Iterator<Item = PlanSequence> + Clone,
        window: Option<u32>,
        (rows, most): (usize, usize),
        scratch: &mut PlanScratch,
        words: &mut [u32],
    ) -> usize {
        words[..HEADER_WORDS].fill(0);
        let (mut at, mut partials) = (HEADER_WORDS, 0);
        for wide in [false, true] {
            let which = usize::from(wide);
            self.tiles(sequences.clone(), window, wide, rows, &mut scratch.tiles);
            self.cut(wide, self.items_max(rows, most)[which], &mut partials, scratch);
            if wide {
                words[2] = words[0];
            }
            words[which] = scratch.pieces.len() as u32;
            for piece in &scratch.pieces {
                words[at..at + ITEM_WORDS].copy_from_slice(&piece.words());
                at += ITEM_WORDS;
            }
        }
        at
    }

    /// The tiles of one kind, by descending cost.
    fn tiles(
        &self,
        sequences: impl Iterator<Item = PlanSequence>,
        window: Option<u32>,
        wide: bool,
        rows: usize,
        tiles: &mut Vec<Piece>,
    ) {
        tiles.clear();
        let tile_rows = if wide { self.wide_tile } else { NARROW_TILE };
        let mut first_row = 0;
        for PlanSequence { first_position, rows: own, table_start } in sequences {
            let flats = own * self.group;
            if wide == (rows > NARROW_ROWS_MAX && flats > NARROW_FLATS_MAX) {
                for first_flat in (0..flats).step_by(tile_rows as usize) {
                    let count = tile_rows.min(flats - first_flat);
                    let lowest = first_position + first_flat / self.group;
                    let highest = first_position + (first_flat + count - 1) / self.group;
                    let begin = window.map_or(0, |window| (lowest + 1).saturating_sub(window)) / SPLIT;
                    let end = highest / SPLIT + 1;
                    tiles.push(Piece {
                        first_row,
                        first_flat,
                        first_position,
                        table_start,
                        begin,
                        end,
                        tile_begin: begin,
                        tile_end: end,
                        flats: count,
                        pieces: 1,
                        partials: NO_PARTIALS,
                    });
                }
            }
            first_row += own;
        }
        tiles.sort_unstable_by_key(|tile| (u32::MAX - (tile.end - tile.begin), tile.first_row, tile.first_flat));
    }

    /// The largest number of splits of a piece with which the step is expected to be done first.
    fn best_size(&self, wide: bool, tiles: &[Piece]) -> u32 {
        let blocks = u64::from(self.blocks[usize::from(wide)].max(1));
        let longest = tiles.first().map_or(1, |tile| tile.end - tile.begin);
        let expected = |size: u32| {
            let (mut pieces, mut work, mut longest) = (0u64, 0u64, 0u64);
            for tile in tiles {
                let splits = tile.end - tile.begin;
                let count = splits.div_ceil(size);
                let own = if count == 1 { WHOLE_COST } else { PARTIAL_COST };
                pieces += u64::from(count);
                work += u64::from(splits) * SPLIT_COST + u64::from(count) * own;
                longest = longest.max(u64::from(splits.div_ceil(count)) * SPLIT_COST + own);
            }
            let heads = u64::from(self.kv_heads);
            let (pieces, work) = (pieces * heads, work * heads);
            // Pieces of like cost are done in rounds; unlike ones leave about the longest of them unshared.
            let rounds = pieces.div_ceil(blocks) * work / pieces.max(1);
            longest.max(rounds.min(work / blocks + longest))
        };
        let sizes = (0..32).map(|i| longest.div_ceil(i + 1)).chain([1]);
        sizes.min_by_key(|&size| (expected(size), u32::MAX - size)).unwrap_or(1)
    }

    /// Cuts tiles that would keep a block busy for too long, as far as there is room for it.
    fn cut(&self, wide: bool, most: u32, partials: &mut u32, scratch: &mut PlanScratch) {
        let PlanScratch { tiles, pieces } = scratch;
        pieces.clear();
        let size = self.best_size(wide, tiles);
        for (index, tile) in tiles.iter().enumerate() {
            let splits = tile.end - tile.begin;
            let count = splits.div_ceil(size);
            let rest = (tiles.len() - index) as u32;
            let room = pieces.len() as u32 + count + rest - 1 <= most
                && u64::from(*partials) + u64::from(splits * tile.flats) <= u64::from(self.partial_rows);
            if count <= 1 || !room {
                pieces.push(*tile);
                continue;
            }
            let size = splits.div_ceil(count);
            let count = splits.div_ceil(size);
            for begin in (tile.begin..tile.end).step_by(size as usize) {
                let end = tile.end.min(begin + size);
                pieces.push(Piece { begin, end, pieces: count, partials: *partials, ..*tile });
            }
            *partials += splits * tile.flats;
        }
        pieces.sort_unstable_by_key(|piece| {
            (u32::MAX - (piece.end - piece.begin), piece.first_row, piece.first_flat, piece.begin)
        });
    }
}
