//! Products: their activations converted, and cut into tiles for the workers.
#![allow(unsafe_code)] // items write disjoint rows; functions compiled for an instruction set

use super::gemm::{self, Activations, Product, TILE_ROWS};
use super::isa::InstructionSet;
use super::packed::{Packed, PackedValues, Quants, Takes};
use super::pool::{Pool, SharedSlice};
use super::tiles::{self, Laid};
use super::{CpuOperations, SMALL, elementwise, kquants};
use crate::backend::PairOrder;
use crate::operations::Poisoned;
use crate::quantise::BLOCK;

/// Rows up to which the weights are read once, in long stretches: tiles are then as wide as the workers' number allows.
const FEW_ROWS: usize = TILE_ROWS;

/// Tiles per worker of a product of few rows: enough that no worker waits long for the last one.
const FEW_ROWS_TILES: usize = 12;

/// Strips of a tile, where there are as many: less would be claimed too often, and asked for too late.
const TILE_STRIPS: usize = 8;

/// Activations that are kept in the second-level cache while the weights pass by: half of a small one.
const CACHED_BYTES: usize = 512 << 10;

impl CpuOperations {
    /// Converts the rows of a product to what the matrix takes.
    pub(crate) fn convert(&mut self, matrix: &Packed, input: &[f32]) -> Result<(), Poisoned> {
        let inputs = matrix.shape.inputs;
        self.convert_rows(matrix, input.len() / inputs, input.len(), &|row, _| &input[row * inputs..][..inputs])
    }

    /// As [`Self::convert`]; `row(number, worker)` gives each row.
    pub(super) fn convert_rows<'a>(
        &mut self,
        matrix: &Packed,
        rows: usize,
        values: usize,
        row: &(dyn Fn(usize, usize) -> &'a [f32] + Sync),
    ) -> Result<(), Poisoned> {
        let (set, inputs) = (self.set, matrix.shape.inputs);
        let (blocks, bytes) = (inputs / BLOCK, inputs / 4 * set.quad_bytes());
        let mut activations = std::mem::take(&mut self.activations);
        let Activations { pairs, quads, scales, sums, offsets, halves, .. } = &mut activations;
        let (pairs, quads) = (SharedSlice::new(pairs), SharedSlice::new(quads));
        let (scales, sums, halves) = (SharedSlice::new(scales), SharedSlice::new(sums), SharedSlice::new(halves));
        let offsets = offsets.each_mut().map(|offsets| SharedSlice::new(offsets));
        let factors =
            [false, true].map(|nibbles| if nibbles || !set.takes_signs() { -Quants::offset(nibbles) } else { 0 });
        // SAFETY (both): each item has its own row; the machine has `set`.
        let done = match matrix.takes() {
            Takes::Floats => Ok(()),
            Takes::Pairs => self.each_on(rows, values, &|r, worker| unsafe {
                elementwise::round(set, row(r, worker), pairs.part(r * inputs, inputs));
            }),
            Takes::Integers => self.each_on(rows, values, &|r, worker| unsafe {
                let row = row(r, worker);
                let (scales, sums) = (scales.part(r * blocks, blocks), sums.part(r * blocks, blocks));
                let halves = halves.part(r * blocks, blocks);
                let [unsigned, nibbles] = offsets.each_ref().map(|offsets| offsets.part(r * blocks, blocks));
                let offsets = [(unsigned, factors[0]), (nibbles, factors[1])];
                elementwise::quantise(set, row, quads.part(r * bytes, bytes), scales, sums, halves, offsets);
            }),
        };
        self.activations = activations;
        if done.is_ok() && tiles::used(set, matrix, rows) {
            return Laid::fill(&mut self.pool, &mut self.activations, matrix.takes(), rows, inputs);
        }
        done
    }

    /// The product of rows that are converted.
    pub(super) fn multiply(
        &mut self,
        matrix: &Packed,
        input: &[f32],
        output: &mut [f32],
        bias: Option<&[f32]>,
        residual: bool,
    ) -> Result<(), Poisoned> {
        let (output, width) = (SharedSlice::new(output), matrix.shape.outputs);
        let mut first = 0;
        for matrix in matrix.sections() {
            let bias = bias.map(|bias| &bias[first..]);
            let (activations, output) = (&self.activations, &output);
            let product = Product { matrix, input, activations, output, width, first, bias, residual };
            run(&mut self.pool, self.set, &product)?;
            first += matrix.shape.outputs;
        }
        Ok(())
    }
}

/// One matrix's product, its activations converted already.
fn run(pool: &mut Pool, set: InstructionSet, product: &Product<'_>) -> Result<(), Poisoned> {
    let (matrix, inputs) = (product.matrix, product.matrix.shape.inputs);
    let rows = product.input.len() / inputs;
    let by_tiles = tiles::used(set, matrix, rows);
    let strips = matrix.strips();
    let few = if rows <= FEW_ROWS { strips / (pool.workers() * FEW_ROWS_TILES) } else { 0 };
    let wide = few.next_multiple_of(4).max(TILE_STRIPS);
    let (columns, runs) = (strips.div_ceil(wide), rows.div_ceil(TILE_ROWS));
    let small = rows * inputs * matrix.shape.outputs < SMALL;
    // Runs of rows that stay in the second-level cache together while the weights pass by.
    let row_bytes = match matrix.takes() {
        Takes::Floats => inputs * size_of::<f32>(),
        Takes::Pairs => inputs * size_of::<u16>(),
        Takes::Integers => inputs / 4 * set.quad_bytes(),
    };
    let together = (CACHED_BYTES / (TILE_ROWS * row_bytes)).max(1);
    let tile = |index: usize, _: usize| {
        let first = index / (together * columns) * together;
        let (within, width) = (index % (together * columns), together.min(runs - first));
        let (column, run) = (within / width, first + within % width);
        let rows = (run * TILE_ROWS, rows.min((run + 1) * TILE_ROWS));
        let strips = (column * wide, strips.min((column + 1) * wide));
        // SAFETY: each tile has its own rows and strips; the machine has `set`.
        unsafe {
            match &matrix.values {
                _ if by_tiles => tiles::tile(set, product, rows, strips),
                PackedValues::Bf16Pairs(weights, PairOrder::Amx) => {
                    tiles::steps::tile(set, product, weights, rows, strips);
                }
                PackedValues::K(quants) => kquants::tile(set, product, quants, rows, strips),
                _ => gemm::tile(set, product, rows, strips),
            }
        }
    };
    if small {
        return pool.run(1, &|_, worker| (0..columns * runs).for_each(|index| tile(index, worker)));
    }
    pool.run(columns * runs, &tile)
}
