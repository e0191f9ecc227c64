//! Activations as tiles read them: 16 rows together, block after block, so that a tile is one stretch of memory (rows
//! kept apart by the width of a matrix fall on the same cache sets), and what the fold of a block needs on one line.

use super::ROWS;
use crate::cpu::gemm::Activations;
use crate::cpu::packed::Takes;
use crate::cpu::pool::{Pool, SharedSlice};
use crate::memory::Aligned;
use crate::operations::Poisoned;
use crate::quantise::BLOCK;

/// Blocks that are laid at a time.
const PIECE: usize = 32;

/// Laid activations. Rows beyond the last one hold what was there before: their results are dropped.
#[derive(Default)]
pub(crate) struct Laid {
    /// `[tile of rows][block][16][32]`.
    pub quants: Aligned<i8>,
    /// `[tile of rows][block][16]`.
    pub scales: Aligned<f32>,
    /// `[tile of rows][block][16]`: −(scale × sum of the integers), which minima are multiplied with.
    pub taken: Aligned<f32>,
    /// `[tile of rows][block][16][32]`, bf16.
    pub pairs: Aligned<u16>,
}

impl Laid {
    /// For so many rows of so many inputs.
    pub fn reserve(rows: usize, inputs: usize) -> Self {
        let (rows, blocks) = (rows.next_multiple_of(ROWS), inputs.div_ceil(BLOCK));
        let values = rows * blocks * BLOCK;
        let (quants, pairs) = (Aligned::zeroed(values), Aligned::zeroed(values));
        Self { quants, scales: Aligned::zeroed(rows * blocks), taken: Aligned::zeroed(rows * blocks), pairs }
    }

    /// Lays rows that were converted for instructions of four bytes a quad.
    ///
    /// # Errors
    /// [`Poisoned`]: a worker panicked.
    pub fn fill(
        pool: &mut Pool,
        activations: &mut Activations,
        takes: Takes,
        rows: usize,
        inputs: usize,
    ) -> Result<(), Poisoned> {
        let (blocks, pieces) = (inputs / BLOCK, (inputs / BLOCK).div_ceil(PIECE));
        let Activations { pairs, quads, scales, sums, laid, .. } = activations;
        let (quants_to, pairs_to) = (SharedSlice::new(&mut laid.quants), SharedSlice::new(&mut laid.pairs));
        let (scales_to, taken_to) = (SharedSlice::new(&mut laid.scales), SharedSlice::new(&mut laid.taken));
        let (pairs, quads, scales, sums) = (&pairs[..], &quads[..], &scales[..], &sums[..]);
        pool.run(rows.div_ceil(ROWS) * pieces, &|item, _| {
            let (tile, piece) = (item / pieces, item % pieces);
            let own = tile * ROWS..rows.min((tile + 1) * ROWS);
            for block in piece * PIECE..blocks.min((piece + 1) * PIECE) {
                let number = tile * blocks + block;
                if takes == Takes::Pairs {
                    // SAFETY: each item has its own blocks of its own rows.
                    let to = unsafe { pairs_to.part(number * ROWS * BLOCK, ROWS * BLOCK) };
                    for (row, to) in own.clone().zip(to.chunks_exact_mut(BLOCK)) {
                        to.copy_from_slice(&pairs[row * inputs + block * BLOCK..][..BLOCK]);
                    }
                    continue;
                }
                // SAFETY: as above.
                let (to, scales_to, taken_to) = unsafe {
                    let to = quants_to.part(number * ROWS * BLOCK, ROWS * BLOCK);
                    (to, scales_to.part(number * ROWS, ROWS), taken_to.part(number * ROWS, ROWS))
                };
                for (place, (row, to)) in own.clone().zip(to.chunks_exact_mut(BLOCK)).enumerate() {
                    to.copy_from_slice(&quads[row * inputs + block * BLOCK..][..BLOCK]);
                    let scale = scales[row * blocks + block];
                    scales_to[place] = scale;
                    taken_to[place] = -(scale * sums[row * blocks + block] as f32);
                }
            }
        })
    }
}
