//! Products of superblocks (Q4_K, Q5_K, Q6_K): packed strips that take the file's bytes, unpacked in registers.
//!
//! A superblock of a strip of 16 outputs lies in one piece, so that a product reads one stream:
//!
//! * d, dmin: `[16]` f16 each (Q6_K has no dmin, its place is empty);
//! * per block of 32 inputs, `[16]` bytes twice: scale and minimum (Q6_K: the scales of the first and the last 16 inputs);
//! * per block, low nibbles: as 4-bit weights of [`super::packed`], quads q and q + 4 in the halves of the same bytes;
//! * per block, upper bits, byte `lane × 4 + k mod 4`: Q5_K bit q that of quad q; Q6_K two rows of bytes, bits 2q of them
//!   those of quads q and q + 4.
//!
//! That is 4.63, 5.63 and 6.63 bits a weight; in the file they are 4.5, 5.5 and 6.56.
#![allow(unsafe_code)]
// vector loads from packed weights
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use std::sync::atomic::{Ordering, compiler_fence};

use polylink_protocol::exact_math::{f16_to_f32, f32_to_f16_saturating};

use super::gemm::{Activations, Product, TOGETHER};
use super::isa::multiversioned;
use super::lanes::WIDTH;
use super::lanes::bits::BitLanes;
use crate::blocks::{KBlock, KKind, SUPER_BLOCKS};
use crate::memory::Aligned;
use crate::quantise::BLOCK;
use crate::weights::MatrixShape;

/// Quads (four inputs) in a block.
const QUADS: usize = BLOCK / 4;
/// Bytes of a quad of a strip.
const QUAD: usize = 4 * WIDTH;
/// Where a superblock's scales, nibbles and upper bits begin.
const SCALES: usize = 4 * WIDTH;
const NIBBLES: usize = SCALES + SUPER_BLOCKS * 2 * WIDTH;
const UPPER: usize = NIBBLES + SUPER_BLOCKS * QUADS / 2 * QUAD;

pub(super) const Q4: u8 = 4;
pub(super) const Q5: u8 = 5;
pub(super) const Q6: u8 = 6;

/// Bytes of upper bits of a block.
#[inline(always)]
const fn upper_bytes(bits: u8) -> usize {
    (bits as usize - 4) * QUAD
}

/// Bytes of a superblock of a strip.
#[inline(always)]
const fn super_bytes(bits: u8) -> usize {
    UPPER + SUPER_BLOCKS * upper_bytes(bits)
}

/// Packed superblocks.
pub(crate) struct KQuants {
    kind: KKind,
    pub bytes: Aligned<u8>,
    /// Superblocks that the inputs touch, and the first input's block within the first of them.
    supers: usize,
    first: usize,
}

impl KQuants {
    pub fn kind(&self) -> KKind {
        self.kind
    }

    fn bits(&self) -> u8 {
        match self.kind {
            KKind::Q4 => Q4,
            KKind::Q5 => Q5,
            KKind::Q6 => Q6,
        }
    }

    /// Others of the same kind and inputs.
    pub fn with(&self, bytes: Aligned<u8>) -> Self {
        Self { kind: self.kind, bytes, supers: self.supers, first: self.first }
    }

    /// `blocks: [outputs][inputs / 32]`.
    pub fn pack(shape: MatrixShape, kind: KKind, blocks: &[KBlock], first: usize) -> Self {
        let row_blocks = shape.inputs / BLOCK;
        let supers = (first + row_blocks).div_ceil(SUPER_BLOCKS);
        let mut packed = Self { kind, bytes: Aligned::default(), supers, first };
        let size = super_bytes(packed.bits());
        let mut bytes = Aligned::<u8>::zeroed(shape.outputs.div_ceil(WIDTH) * supers * size);
        for (n, row) in blocks.chunks_exact(row_blocks).enumerate() {
            for (number, block) in row.iter().enumerate() {
                let (start, j) = packed.place(n, number);
                put(&mut bytes[start..start + size], packed.bits(), n % WIDTH, j, block);
            }
        }
        packed.bytes = bytes;
        packed
    }

    /// Where the superblock of an output's block begins, and which of its blocks it is.
    fn place(&self, n: usize, block: usize) -> (usize, usize) {
        let number = self.first + block;
        ((n / WIDTH * self.supers + number / SUPER_BLOCKS) * super_bytes(self.bits()), number % SUPER_BLOCKS)
    }

    /// Block `block` of a strip as tiles take it: quads of integers with their sign, `[8][16][4]` bytes; `beside`, `[3][16]`
    /// f32: the outputs' scales and minima, or (Q6_K) d and the scales of both halves.
    ///
    /// # Safety
    /// The machine has `L`, BITS are this kind's, strip and block exist, and there is space for both.
    #[inline(always)]
    pub(super) unsafe fn unpack<L: BitLanes, const BITS: u8>(
        &self,
        strip: usize,
        block: usize,
        bytes: *mut u8,
        beside: *mut f32,
    ) {
        let number = self.first + block;
        let (super_block, j) = (strip * self.supers + number / SUPER_BLOCKS, number % SUPER_BLOCKS);
        let from = self.bytes[super_block * super_bytes(BITS)..][..super_bytes(BITS)].as_ptr();
        // SAFETY: j < 8, step < 4: all within the superblock; the caller's space is as large as what is written.
        unsafe {
            for line in 0..super_bytes(BITS) / SUPER_BLOCKS / QUAD + 1 {
                // Some of the next superblock but one, so that all of it is asked for by its blocks.
                let part = j * super_bytes(BITS) / SUPER_BLOCKS + line * QUAD;
                L::prefetch(from.wrapping_add(2 * super_bytes(BITS) + part));
            }
            let (d, own) = (L::load_f16(from.cast()), from.add(SCALES + 2 * j * WIDTH));
            let (first, second) = (L::load_bytes(own), L::load_bytes(own.add(WIDTH)));
            if BITS == Q6 {
                L::store(beside, d);
                L::store(beside.add(WIDTH), L::load_i8(own.cast()));
                L::store(beside.add(2 * WIDTH), L::load_i8(own.add(WIDTH).cast()));
            } else {
                L::store(beside, L::mul(d, first));
                L::store(beside.add(WIDTH), L::mul(L::load_f16(from.add(2 * WIDTH).cast()), second));
            }
            for step in 0..QUADS / 2 {
                let [low, high] = quads_of::<L, BITS>(from, j, step);
                let offset = if BITS == Q6 { 32 } else { 0 };
                L::store_quads(bytes.add(step * QUAD), L::sub_bytes(low, offset));
                L::store_quads(bytes.add((step + QUADS / 2) * QUAD), L::sub_bytes(high, offset));
            }
        }
    }

    /// Output `n` as f32.
    pub fn row(&self, n: usize, output: &mut [f32]) {
        for (number, output) in output.chunks_exact_mut(BLOCK).enumerate() {
            let (start, j) = self.place(n, number);
            let block = take(&self.bytes[start..], self.bits(), n % WIDTH, j);
            output.iter_mut().enumerate().for_each(|(i, value)| *value = block.value(self.kind, i));
        }
    }
}

/// Byte of an input's upper bits among a block's, and their shift.
fn upper_at(bits: u8, lane: usize, k: usize) -> (usize, usize) {
    let (quad, within) = (k / 4, lane * 4 + k % 4);
    if bits == Q6 { (quad / 4 * QUAD + within, 2 * (quad % 4)) } else { (within, quad) }
}

/// Byte of an input's low nibble among a block's, and its shift.
fn nibble_at(lane: usize, k: usize) -> (usize, usize) {
    (k / 4 % 4 * QUAD + lane * 4 + k % 4, k / 16 * 4)
}

/// Writes an output's block `j` into a zeroed superblock of its strip.
fn put(to: &mut [u8], bits: u8, lane: usize, j: usize, block: &KBlock) {
    let mut half = |at: usize, value: f32| {
        to[at + 2 * lane..][..2].copy_from_slice(&f32_to_f16_saturating(value).to_ne_bytes());
    };
    half(0, block.d);
    half(2 * WIDTH, block.dmin);
    let second = if bits == Q6 { block.scales[1] as u8 } else { block.min };
    to[SCALES + 2 * j * WIDTH + lane] = block.scales[0] as u8;
    to[SCALES + (2 * j + 1) * WIDTH + lane] = second;
    for (k, &quant) in block.quants.iter().enumerate() {
        let (at, shift) = nibble_at(lane, k);
        to[NIBBLES + j * QUADS / 2 * QUAD + at] |= (quant & 15) << shift;
        if bits != Q4 {
            let (at, shift) = upper_at(bits, lane, k);
            to[UPPER + j * upper_bytes(bits) + at] |= quant >> 4 << shift;
        }
    }
}

/// What [`put`] wrote.
fn take(from: &[u8], bits: u8, lane: usize, j: usize) -> KBlock {
    let half = |at: usize| f16_to_f32(u16::from_ne_bytes([from[at + 2 * lane], from[at + 2 * lane + 1]]));
    let first = from[SCALES + 2 * j * WIDTH + lane];
    let second = from[SCALES + (2 * j + 1) * WIDTH + lane];
    let quants = std::array::from_fn(|k| {
        let (at, shift) = nibble_at(lane, k);
        let low = from[NIBBLES + j * QUADS / 2 * QUAD + at] >> shift & 15;
        if bits == Q4 {
            return low;
        }
        let (at, shift) = upper_at(bits, lane, k);
        let mask = if bits == Q6 { 3 } else { 1 };
        low | (from[UPPER + j * upper_bytes(bits) + at] >> shift & mask) << 4
    });
    let (last, min) = if bits == Q6 { (second, 0) } else { (first, second) };
    KBlock { quants, scales: [first as i8, last as i8], min, d: half(0), dmin: half(2 * WIDTH) }
}

/// Quads `step` and `step + 4` of block `j` of a superblock.
///
/// # Safety
/// The machine has `L`; a superblock lies there.
#[inline(always)]
unsafe fn quads_of<L: BitLanes, const BITS: u8>(from: *const u8, j: usize, step: usize) -> [L::Quads; 2] {
    // SAFETY: j < 8, step < 4: within the superblock.
    unsafe {
        let [mut low, mut high] = L::load_nibbles(from.add(NIBBLES + (j * QUADS / 2 + step) * QUAD));
        let upper = from.add(UPPER + j * upper_bytes(BITS));
        if BITS == Q5 {
            let bits = L::load_quads(upper);
            low = L::with_upper(low, bits, 4 - step as i32, 0x10);
            high = L::with_upper(high, bits, -(step as i32), 0x10);
        }
        if BITS == Q6 {
            low = L::with_upper(low, L::load_quads(upper), 4 - 2 * step as i32, 0x30);
            high = L::with_upper(high, L::load_quads(upper.add(QUAD)), 4 - 2 * step as i32, 0x30);
        }
        [low, high]
    }
}

/// R rows by S strips of a product. A range's chain takes its blocks in order: rule 3.
///
/// # Safety
/// The machine has `L`; rows and strips exist; no other worker writes them.
#[inline(always)]
unsafe fn block<L: BitLanes, const BITS: u8, const R: usize, const S: usize>(
    product: &Product<'_>,
    quants: &KQuants,
    row: usize,
    strip: usize,
) {
    let shape = product.matrix.shape;
    let blocks = shape.inputs / BLOCK;
    let row_bytes = shape.inputs / 4 * L::QUAD_BYTES;
    let strip_bytes = quants.supers * super_bytes(BITS);
    let Activations { quads, scales, sums: integers, halves, .. } = product.activations;
    let quads = &quads[row * row_bytes..][..R * row_bytes];
    let scales = &scales[row * blocks..][..R * blocks];
    let integers = &integers[row * blocks..][..R * blocks];
    let halves = &halves[row * blocks..][..R * blocks];
    let w = &quants.bytes[strip * strip_bytes..][..S * strip_bytes];
    // SAFETY: the five slices above bound every access: block < blocks, so its superblock is one of `supers`; r < R,
    // s < S, quad < 8.
    unsafe {
        let mut totals = [[L::zero(); S]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            for block in from / BLOCK..to / BLOCK {
                let (number, j) = ((quants.first + block) / SUPER_BLOCKS, (quants.first + block) % SUPER_BLOCKS);
                let w = w.as_ptr().add(number * super_bytes(BITS));
                let quads = quads.as_ptr().add(block * QUADS * L::QUAD_BYTES);
                // Of all 32 inputs, or (Q6_K) of each half of them.
                let (mut dots, mut late) = ([[L::splat_i32(0); S]; R], [[L::splat_i32(0); S]; R]);
                if BITS == Q6 {
                    for r in 0..R {
                        let half = *halves.as_ptr().add(r * blocks + block);
                        let rest = *integers.as_ptr().add(r * blocks + block) - half;
                        dots[r] = [L::splat_i32(-32 * half); S];
                        late[r] = [L::splat_i32(-32 * rest); S];
                    }
                }
                for step in 0..QUADS / 2 {
                    // As in `register_blocks::integer_block`.
                    if R > 1 {
                        compiler_fence(Ordering::SeqCst);
                    }
                    for s in 0..S {
                        let [low, high] = quads_of::<L, BITS>(w.add(s * strip_bytes), j, step);
                        for r in 0..R {
                            let quad = quads.add(r * row_bytes + step * L::QUAD_BYTES);
                            let other = quad.add(QUADS / 2 * L::QUAD_BYTES);
                            dots[r][s] = L::dot_quads(dots[r][s], low, quad);
                            if BITS == Q6 {
                                late[r][s] = L::dot_quads(late[r][s], high, other);
                            } else {
                                dots[r][s] = L::dot_quads(dots[r][s], high, other);
                            }
                        }
                    }
                }
                for s in 0..S {
                    let w = w.add(s * strip_bytes);
                    let d = L::load_f16(w.cast());
                    let own = w.add(SCALES + 2 * j * WIDTH);
                    if BITS == Q6 {
                        let (first, last) = (L::load_small(own.cast()), L::load_small(own.add(WIDTH).cast()));
                        for r in 0..R {
                            let dot = L::add_i32(L::mul_i32(dots[r][s], first), L::mul_i32(late[r][s], last));
                            let scale = L::mul(L::splat(*scales.as_ptr().add(r * blocks + block)), d);
                            sums[r][s] = L::fma(L::to_f32(dot), scale, sums[r][s]);
                        }
                        continue;
                    }
                    let scale = L::mul(d, L::load_bytes(own));
                    let min = L::mul(L::load_f16(w.add(2 * WIDTH).cast()), L::load_bytes(own.add(WIDTH)));
                    for r in 0..R {
                        let s_a = *scales.as_ptr().add(r * blocks + block);
                        // The sign is on this side: the same bits, and nothing to negate per strip.
                        let taken = -(s_a * *integers.as_ptr().add(r * blocks + block) as f32);
                        sums[r][s] = L::fma(L::to_f32(dots[r][s]), L::mul(L::splat(s_a), scale), sums[r][s]);
                        sums[r][s] = L::fma(L::splat(taken), min, sums[r][s]);
                    }
                }
            }
            let mut ended = sums;
            let kept = [ended.as_mut_ptr().cast(), totals.as_mut_ptr().cast()];
            product.end_range::<L>((row, strip), (R, S), (index, to == shape.inputs), kept);
        }
    }
}

/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn rows<L: BitLanes, const BITS: u8>(product: &Product<'_>, k: &KQuants, rows: (usize, usize), strip: usize) {
    let two = strip + 1 < product.matrix.strips();
    let mut row = rows.0;
    while row < rows.1 {
        // SAFETY: as the caller's; `step` rows are left.
        let step = unsafe {
            match (rows.1 - row, two) {
                (4.., true) => (block::<L, BITS, 4, 2>(product, k, row, strip), 4).1,
                (2.., true) => (block::<L, BITS, 2, 2>(product, k, row, strip), 2).1,
                (_, true) => (block::<L, BITS, 1, 2>(product, k, row, strip), 1).1,
                (4.., false) => (block::<L, BITS, 4, 1>(product, k, row, strip), 4).1,
                (_, false) => (block::<L, BITS, 1, 1>(product, k, row, strip), 1).1,
            }
        };
        row += step;
    }
}

/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn tile_body<L: BitLanes>(
    product: &Product<'_>,
    quants: &KQuants,
    range: (usize, usize),
    strips: (usize, usize),
) {
    let mut strip = strips.0;
    while strip < strips.1 {
        // SAFETY: as the caller's.
        unsafe {
            match quants.kind {
                KKind::Q4 => rows::<L, Q4>(product, quants, range, strip),
                KKind::Q5 => rows::<L, Q5>(product, quants, range, strip),
                KKind::Q6 => rows::<L, Q6>(product, quants, range, strip),
            }
        }
        strip += TOGETHER;
    }
}

multiversioned! {
    /// Computes rows `range.0..range.1` of the strips `strips.0..strips.1`, of which the first is even.
    ///
    /// # Safety
    /// The machine has `set`; no other worker writes these rows and strips; `quants` are the product's matrix.
    pub(crate) unsafe fn tile(
        product: &Product<'_>,
        quants: &KQuants,
        range: (usize, usize),
        strips: (usize, usize),
    ) = tile_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_from_their_strips_as_they_were() {
        for (kind, bits, quant_max) in [(KKind::Q4, Q4, 16u32), (KKind::Q5, Q5, 32), (KKind::Q6, Q6, 64)] {
            let (outputs, row_blocks, first) = (19, 11, 5);
            let mut state = 9u32;
            let mut next = |below: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) % below
            };
            let blocks: Vec<KBlock> = (0..outputs * row_blocks)
                .map(|number| {
                    let (n, supers) = (number / row_blocks, (first + number % row_blocks) / SUPER_BLOCKS);
                    let q6 = bits == Q6;
                    let scale = next(if q6 { 256 } else { 64 }) as u8 as i8;
                    KBlock {
                        quants: std::array::from_fn(|_| next(quant_max) as u8),
                        scales: [scale, if q6 { next(256) as u8 as i8 } else { scale }],
                        min: if q6 { 0 } else { next(64) as u8 },
                        d: (n * 8 + supers) as f32 * 0.25,
                        dmin: if q6 { 0.0 } else { (n + supers) as f32 },
                    }
                })
                .collect();
            let shape = MatrixShape { outputs, inputs: row_blocks * BLOCK, range_length: 352, planes: 1 };
            let packed = KQuants::pack(shape, kind, &blocks, first);
            let mut row = vec![0.0; shape.inputs];
            for n in 0..outputs {
                packed.row(n, &mut row);
                let expected = |k: usize| blocks[n * row_blocks + k / BLOCK].value(kind, k % BLOCK);
                assert!(row.iter().enumerate().all(|(k, value)| *value == expected(k)), "{kind:?} {n}");
            }
        }
    }
}
