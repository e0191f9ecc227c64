//! Weights as the products read them: 16 outputs (a *strip*, padded with zeros) side by side, from start to end.
//!
//! * f32, bf16: `[strip][k][16]`: one load gives the weights of 16 outputs for one input;
//! * bf16 in pairs: `[strip][k / 2][16][2]`;
//! * 8-bit: `[strip][block of 32][quad of inputs][16][4]` bytes, each 128 + the integer;
//! * 4-bit: as 8-bit, each 8 + the integer, quads q and q + 4 of a block in the low and high halves of the same bytes;
//! * scales: `[strip][block][16]`, f16;
//! * superblocks: [`super::kquants`];
//! * e4m3: `[strip][k][16]` bytes; 256 times their scales `[strip][block of 128][16]`, f32.
//!
//! So an 8-bit weight takes 1.0625 bytes and a 4-bit one 0.5625, as in their files. The offset makes the bytes unsigned,
//! as byte dot products want one side; products take it off by the sums of the activations.

use polylink_protocol::exact_math::{bf16_to_f32, e4m3_to_f32, f16_to_f32, f32_to_f16_saturating};

use super::kquants::KQuants;
use super::lanes::WIDTH;
use crate::backend::PairOrder;
use crate::memory::{Aligned, Plain};
use crate::quantise::BLOCK;
use crate::weights::{FP8_BLOCK, MatrixShape, PlainMatrix, PlainValues, fp8_blocks};

/// Integers and their scales.
pub(crate) struct Quants {
    pub bytes: Aligned<u8>,
    pub scales: Aligned<u16>,
    /// Two weights a byte.
    pub nibbles: bool,
}

impl Quants {
    /// Bytes of a block of one strip.
    #[inline(always)]
    pub const fn block_bytes(nibbles: bool) -> usize {
        if nibbles { BLOCK * WIDTH / 2 } else { BLOCK * WIDTH }
    }

    /// What was added to each integer.
    #[inline(always)]
    pub const fn offset(nibbles: bool) -> i32 {
        if nibbles { 8 } else { 128 }
    }

    /// Byte of an input of a block and an output of a strip, and how far its bits are shifted.
    #[inline(always)]
    fn place(&self, lane: usize, k: usize) -> (usize, u32) {
        let (quad, within) = (k / 4, lane * 4 + k % 4);
        match (self.nibbles, quad / (BLOCK / 8)) {
            (false, _) => (quad * 4 * WIDTH + within, 0),
            (true, 0) => (quad * 4 * WIDTH + within, 0),
            (true, _) => ((quad - BLOCK / 8) * 4 * WIDTH + within, 4),
        }
    }

    fn pack(shape: MatrixShape, plain: &[i8], scales: &[f32], nibbles: bool) -> Self {
        let (strips, blocks) = (shape.outputs.div_ceil(WIDTH), shape.inputs / BLOCK);
        let mut packed = Self { bytes: Aligned::default(), scales: Aligned::zeroed(strips * blocks * WIDTH), nibbles };
        let (block_bytes, offset) = (Self::block_bytes(nibbles), Self::offset(nibbles));
        let mut bytes = Aligned::<u8>::zeroed(strips * blocks * block_bytes);
        for (n, row) in plain.chunks_exact(shape.inputs).enumerate() {
            for (block, quants) in row.chunks_exact(BLOCK).enumerate() {
                let number = n / WIDTH * blocks + block;
                let to = &mut bytes[number * block_bytes..][..block_bytes];
                for (k, &quant) in quants.iter().enumerate() {
                    let (at, shift) = packed.place(n % WIDTH, k);
                    to[at] |= ((quant as i32 + offset) as u8) << shift;
                }
                let scale = scales[n * blocks + block];
                let half = f32_to_f16_saturating(scale);
                debug_assert_eq!(f16_to_f32(half), scale, "a block's scale is an f16");
                packed.scales[number * WIDTH + n % WIDTH] = half;
            }
        }
        packed.bytes = bytes;
        packed
    }

    /// Output `n` as f32.
    fn row(&self, n: usize, blocks: usize, output: &mut [f32]) {
        for (k, out) in output.iter_mut().enumerate() {
            let number = n / WIDTH * blocks + k / BLOCK;
            let (at, shift) = self.place(n % WIDTH, k % BLOCK);
            let byte = self.bytes[number * Self::block_bytes(self.nibbles) + at] >> shift;
            let quant = i32::from(if self.nibbles { byte & 15 } else { byte }) - Self::offset(self.nibbles);
            *out = quant as f32 * f16_to_f32(self.scales[number * WIDTH + n % WIDTH]);
        }
    }
}

/// Scales of e4m3 are kept as many times as large: products load a 256th of each number (`Lanes::load_e4m3_small`). Exact.
const FP8_RAISED: f32 = 256.0;

/// Numbers of e4m3 and their scales.
pub(crate) struct Fp8 {
    pub numbers: Aligned<u8>,
    pub scales: Aligned<f32>,
    /// Place of the first input in its block.
    pub first: usize,
}

impl Fp8 {
    fn pack(shape: MatrixShape, numbers: &[u8], scales: &[f32], first: usize) -> Self {
        let blocks = fp8_blocks(first, shape.inputs);
        let of_scales = MatrixShape { inputs: blocks, ..shape };
        let scales: Vec<f32> = scales.iter().map(|scale| FP8_RAISED * scale).collect();
        Self { numbers: pack_strips(shape, numbers), scales: pack_strips(of_scales, &scales), first }
    }

    /// Output `n` as f32.
    fn row(&self, n: usize, inputs: usize, output: &mut [f32]) {
        let (strip, lane, blocks) = (n / WIDTH, n % WIDTH, fp8_blocks(self.first, inputs));
        for (k, out) in output.iter_mut().enumerate() {
            let scale = self.scales[(strip * blocks + (self.first + k) / FP8_BLOCK) * WIDTH + lane];
            *out = e4m3_to_f32(self.numbers[(strip * inputs + k) * WIDTH + lane]) / FP8_RAISED * scale;
        }
    }
}

/// Packed values of a matrix.
pub(crate) enum PackedValues {
    F32(Aligned<f32>),
    Bf16(Aligned<u16>),
    Bf16Pairs(Aligned<u16>, PairOrder),
    Quants(Quants),
    K(KQuants),
    Fp8(Fp8),
    /// Of the same inputs and ranges, stacked along the outputs.
    Stack(Vec<Packed>),
}

/// What a product makes of its activations first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Floats,
    Pairs,
    Integers,
}

/// A packed matrix.
pub(crate) struct Packed {
    pub shape: MatrixShape,
    pub values: PackedValues,
}

fn pack_strips<T: Plain>(shape: MatrixShape, plain: &[T]) -> Aligned<T> {
    let MatrixShape { outputs, inputs, .. } = shape;
    let mut packed = Aligned::zeroed(outputs.div_ceil(WIDTH) * WIDTH * inputs);
    for (n, row) in plain.chunks_exact(inputs).enumerate() {
        let strip = &mut packed[n / WIDTH * WIDTH * inputs..];
        row.iter().enumerate().for_each(|(k, &value)| strip[k * WIDTH + n % WIDTH] = value);
    }
    packed
}

/// Place within a strip of input `k` of one output, in pairs.
#[inline(always)]
fn pair_at(lane: usize, k: usize) -> usize {
    k / 2 * (2 * WIDTH) + 2 * lane + k % 2
}

impl Packed {
    pub fn new(plain: PlainMatrix) -> Self {
        let shape = plain.shape;
        let values = match plain.values {
            PlainValues::F32(values) => PackedValues::F32(pack_strips(shape, &values)),
            PlainValues::Bf16(values) => PackedValues::Bf16(pack_strips(shape, &values)),
            PlainValues::Bf16Pairs(values, order) => {
                let mut packed = Aligned::zeroed(shape.outputs.div_ceil(WIDTH) * WIDTH * shape.inputs);
                for (n, row) in values.chunks_exact(shape.inputs).enumerate() {
                    let strip = &mut packed[n / WIDTH * WIDTH * shape.inputs..];
                    row.iter().enumerate().for_each(|(k, &value)| strip[pair_at(n % WIDTH, k)] = value);
                }
                PackedValues::Bf16Pairs(packed, order)
            }
            PlainValues::Int8 { quants, scales, nibbles } => {
                PackedValues::Quants(Quants::pack(shape, &quants, &scales, nibbles))
            }
            PlainValues::K { kind, blocks, first } => PackedValues::K(KQuants::pack(shape, kind, &blocks, first)),
            PlainValues::Fp8 { numbers, scales, first } => {
                PackedValues::Fp8(Fp8::pack(shape, &numbers, &scales, first))
            }
            PlainValues::Stack(sections) => PackedValues::Stack(sections.into_iter().map(Packed::new).collect()),
        };
        Self { shape, values }
    }

    /// Space for a matrix of so many outputs of which this is the part that came first; all zeros.
    pub fn grown(&self, outputs: usize) -> Self {
        fn space<T: Plain>(part: &Aligned<T>, strips: (usize, usize)) -> Aligned<T> {
            Aligned::zeroed(part.len() / strips.0 * strips.1)
        }
        let strips = (self.strips(), outputs.div_ceil(WIDTH));
        let values = match &self.values {
            PackedValues::F32(values) => PackedValues::F32(space(values, strips)),
            PackedValues::Bf16(values) => PackedValues::Bf16(space(values, strips)),
            PackedValues::Bf16Pairs(values, order) => PackedValues::Bf16Pairs(space(values, strips), *order),
            PackedValues::Quants(quants) => {
                let (bytes, scales) = (space(&quants.bytes, strips), space(&quants.scales, strips));
                PackedValues::Quants(Quants { bytes, scales, nibbles: quants.nibbles })
            }
            PackedValues::K(quants) => PackedValues::K(quants.with(space(&quants.bytes, strips))),
            PackedValues::Fp8(Fp8 { numbers, scales, first }) => {
                let (numbers, scales) = (space(numbers, strips), space(scales, strips));
                PackedValues::Fp8(Fp8 { numbers, scales, first: *first })
            }
            PackedValues::Stack(_) => unreachable!("a stack is not packed in parts"),
        };
        Self { shape: MatrixShape { outputs, ..self.shape }, values }
    }

    /// Puts a part of this matrix where its first strip lies.
    pub fn put(&mut self, strip: usize, part: &Packed) {
        fn copy<T: Plain>(to: &mut Aligned<T>, part: &Aligned<T>, strip: usize, strips: usize) {
            let start = part.len() / strips * strip;
            to[start..start + part.len()].copy_from_slice(part);
        }
        let strips = part.strips();
        match (&mut self.values, &part.values) {
            (PackedValues::F32(to), PackedValues::F32(part)) => copy(to, part, strip, strips),
            (PackedValues::Bf16(to), PackedValues::Bf16(part)) => copy(to, part, strip, strips),
            (PackedValues::Bf16Pairs(to, _), PackedValues::Bf16Pairs(part, _)) => copy(to, part, strip, strips),
            (PackedValues::Quants(to), PackedValues::Quants(part)) => {
                copy(&mut to.bytes, &part.bytes, strip, strips);
                copy(&mut to.scales, &part.scales, strip, strips);
            }
            (PackedValues::K(to), PackedValues::K(part)) => copy(&mut to.bytes, &part.bytes, strip, strips),
            (PackedValues::Fp8(to), PackedValues::Fp8(part)) => {
                copy(&mut to.numbers, &part.numbers, strip, strips);
                copy(&mut to.scales, &part.scales, strip, strips);
            }
            _ => unreachable!("parts of a matrix have its form"),
        }
    }

    /// The matrices of a stack, or the one that it is.
    pub fn sections(&self) -> &[Packed] {
        match &self.values {
            PackedValues::Stack(sections) => sections,
            _ => std::slice::from_ref(self),
        }
    }

    /// Of a stack: what its first matrix takes that is not floats.
    pub fn takes(&self) -> Takes {
        match &self.values {
            PackedValues::F32(_) | PackedValues::Bf16(_) | PackedValues::Fp8(_) => Takes::Floats,
            PackedValues::Bf16Pairs(..) => Takes::Pairs,
            PackedValues::Quants(_) | PackedValues::K(_) => Takes::Integers,
            PackedValues::Stack(sections) => {
                sections.iter().map(Packed::takes).find(|takes| *takes != Takes::Floats).unwrap_or(Takes::Floats)
            }
        }
    }

    pub fn strips(&self) -> usize {
        self.shape.outputs.div_ceil(WIDTH)
    }

    /// Row `n` expanded to f32 (embedding).
    pub fn row(&self, n: usize, output: &mut [f32]) {
        let (inputs, lane) = (self.shape.inputs, n % WIDTH);
        let start = n / WIDTH * WIDTH * inputs;
        match &self.values {
            PackedValues::F32(values) => {
                let strip = values[start..].chunks_exact(WIDTH);
                output.iter_mut().zip(strip).for_each(|(out, lanes)| *out = lanes[lane]);
            }
            PackedValues::Bf16(values) => {
                let strip = values[start..].chunks_exact(WIDTH);
                output.iter_mut().zip(strip).for_each(|(out, lanes)| *out = bf16_to_f32(lanes[lane]));
            }
            PackedValues::Bf16Pairs(values, _) => {
                output.iter_mut().enumerate().for_each(|(k, out)| *out = bf16_to_f32(values[start + pair_at(lane, k)]));
            }
            PackedValues::Quants(quants) => quants.row(n, inputs / BLOCK, output),
            PackedValues::K(quants) => quants.row(n, output),
            PackedValues::Fp8(fp8) => fp8.row(n, inputs, output),
            PackedValues::Stack(sections) => {
                let mut n = n;
                for section in sections {
                    if n < section.shape.outputs {
                        return section.row(n, output);
                    }
                    n -= section.shape.outputs;
                }
            }
        }
    }
}
