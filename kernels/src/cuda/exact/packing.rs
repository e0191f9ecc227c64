//! Weights as the exact kernels read them: `int8_forms.cuh` says where what lies, `gemm_f32.cu` for floats.

use polylink_protocol::exact_math::{e4m3_to_f32, f32_to_f16_saturating};

use super::ExactError;
use crate::blocks::{KBlock, KKind};
use crate::quantise::BLOCK;
use crate::weights::{FP8_BLOCK, PlainMatrix, PlainValues, fp8_blocks};

/// Outputs of a strip of integers, blocks of a record.
const STRIP: usize = 8;
const GROUP: usize = 8;
/// Lanes of a warp.
const LANES: usize = 32;
/// Outputs of a strip of floats.
pub(super) const FLOAT_STRIP: usize = 32;

/// In which form a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Q8_0,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
    F32,
    Bf16,
}

impl Form {
    pub const INTEGERS: [Form; 5] = [Form::Q8_0, Form::Q4_0, Form::Q4K, Form::Q5K, Form::Q6K];
    pub const FLOATS: [Form; 2] = [Form::F32, Form::Bf16];

    /// Whether it takes activations of 8 bits.
    pub fn takes_integers(self) -> bool {
        !Self::FLOATS.contains(&self)
    }

    /// Bytes of a record of 8 outputs × 256 inputs (`RECORD` in `int8_forms.cuh`).
    pub fn record(self) -> usize {
        match self {
            Form::Q8_0 => 2176,
            Form::Q4_0 => 1152,
            Form::Q4K => 1184,
            Form::Q5K => 1440,
            Form::Q6K => 1680,
            Form::F32 | Form::Bf16 => 0,
        }
    }

    /// Bytes of a packed matrix.
    pub fn bytes(self, outputs: usize, inputs: usize) -> usize {
        let floats = outputs.next_multiple_of(2 * FLOAT_STRIP) * inputs.next_multiple_of(32);
        match self {
            Form::F32 => 4 * floats,
            Form::Bf16 => 2 * floats,
            _ => outputs.div_ceil(STRIP) * inputs.div_ceil(BLOCK).div_ceil(GROUP) * self.record(),
        }
    }
}

/// A packed matrix of one form.
pub(crate) struct Packed {
    pub form: Form,
    pub outputs: usize,
    pub bytes: Vec<u8>,
}

/// Packs a matrix, or those of a stack.
///
/// # Errors
/// [`ExactError::Unsupported`] for bf16 in pairs (not exact), and for a later shard of a split over K.
pub(crate) fn pack(plain: &PlainMatrix) -> Result<Vec<Packed>, ExactError> {
    let shape = plain.shape;
    if shape.planes != 1 {
        let reason = "CUDA does not yet hold later shards of a split over K: give this device the first columns, or \
                      split by pipeline";
        return Err(ExactError::Unsupported(reason.into()));
    }
    let (outputs, inputs) = (shape.outputs, shape.inputs);
    let (form, bytes) = match &plain.values {
        PlainValues::Stack(sections) => {
            let mut packed = Vec::with_capacity(sections.len());
            for section in sections {
                packed.append(&mut pack(section)?);
            }
            return Ok(packed);
        }
        PlainValues::F32(values) => (Form::F32, floats(outputs, inputs, values, f32::to_le_bytes)),
        PlainValues::Bf16(values) => (Form::Bf16, floats(outputs, inputs, values, u16::to_le_bytes)),
        PlainValues::Bf16Pairs(..) => {
            return Err(ExactError::Unsupported("products of bf16 pairs are a processor's family, not CUDA's".into()));
        }
        PlainValues::Int8 { quants, scales, nibbles } => plain_records(outputs, inputs, quants, scales, *nibbles),
        // In f32 here.
        PlainValues::Fp8 { numbers, scales, first } => {
            let blocks = fp8_blocks(*first, inputs);
            let value = |(i, &number): (usize, &u8)| {
                e4m3_to_f32(number) * scales[i / inputs * blocks + (first + i % inputs) / FP8_BLOCK]
            };
            let values: Vec<f32> = numbers.iter().enumerate().map(value).collect();
            (Form::F32, floats(outputs, inputs, &values, f32::to_le_bytes))
        }
        PlainValues::K { first, .. } if *first != 0 => {
            return Err(ExactError::Unsupported("a shard that begins within a superblock has no kernel".into()));
        }
        PlainValues::K { kind, blocks, .. } => super_records(outputs, inputs, *kind, blocks),
    };
    Ok(vec![Packed { form, outputs, bytes }])
}

/// `[strip of 32 outputs][input][32]`.
fn floats<T: Copy, const N: usize>(outputs: usize, inputs: usize, values: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    let padded = inputs.next_multiple_of(32);
    let mut packed = vec![0; outputs.next_multiple_of(2 * FLOAT_STRIP) * padded * N];
    for (n, row) in values.chunks_exact(inputs).enumerate() {
        for (k, &value) in row.iter().enumerate() {
            let at = ((n / FLOAT_STRIP * padded + k) * FLOAT_STRIP + n % FLOAT_STRIP) * N;
            packed[at..at + N].copy_from_slice(&bytes(value));
        }
    }
    packed
}

/// Input of a block → the lane that takes it (for output `o` of the strip), its word (0: b0, 1: b1) and its byte there.
fn place(o: usize, k: usize) -> (usize, usize, usize) {
    (o * 4 + k % 16 / 4, k / 16, k % 4)
}

fn put_f16(record: &mut [u8], at: usize, value: f32) {
    record[at..at + 2].copy_from_slice(&f32_to_f16_saturating(value).to_le_bytes());
}

/// Calls `each` with every (record, output of the strip, block of the group, number of the block in the matrix).
fn records(form: Form, outputs: usize, inputs: usize, mut each: impl FnMut(&mut [u8], usize, usize, usize)) -> Vec<u8> {
    let blocks = inputs / BLOCK;
    let (groups, size) = (blocks.div_ceil(GROUP), form.record());
    let mut bytes = vec![0; form.bytes(outputs, inputs)];
    for n in 0..outputs {
        for block in 0..blocks {
            let record = &mut bytes[(n / STRIP * groups + block / GROUP) * size..][..size];
            each(record, n % STRIP, block % GROUP, n * blocks + block);
        }
    }
    bytes
}

fn plain_records(outputs: usize, inputs: usize, quants: &[i8], scales: &[f32], nibbles: bool) -> (Form, Vec<u8>) {
    let form = if nibbles { Form::Q4_0 } else { Form::Q8_0 };
    let bytes = records(form, outputs, inputs, |record, o, block, number| {
        for (k, &quant) in quants[number * BLOCK..][..BLOCK].iter().enumerate() {
            let (lane, word, byte) = place(o, k);
            if nibbles {
                record[(block * LANES + lane) * 4 + byte] |= (quant as u8 & 15) << (4 * word);
            } else {
                record[(block * LANES + lane) * 8 + word * 4 + byte] = quant as u8;
            }
        }
        let numbers = GROUP * LANES * if nibbles { 4 } else { 8 };
        put_f16(record, numbers + (block * STRIP + o) * 2, scales[number]);
    });
    (form, bytes)
}

fn super_records(outputs: usize, inputs: usize, kind: KKind, blocks: &[KBlock]) -> (Form, Vec<u8>) {
    let form = match kind {
        KKind::Q4 => Form::Q4K,
        KKind::Q5 => Form::Q5K,
        KKind::Q6 => Form::Q6K,
    };
    const NIBBLES: usize = GROUP * LANES * 4;
    let bytes = records(form, outputs, inputs, |record, o, block, number| {
        let source = &blocks[number];
        for (k, &quant) in source.quants.iter().enumerate() {
            let (lane, word, byte) = place(o, k);
            let quant = (i32::from(quant) - kind.offset()) as u8;
            record[(block * LANES + lane) * 4 + byte] |= (quant & 15) << (4 * word);
            match kind {
                KKind::Q4 => {}
                KKind::Q5 => {
                    record[NIBBLES + (block / 4 * LANES + lane) * 4 + byte] |= (quant >> 4) << (2 * (block % 4) + word);
                }
                KKind::Q6 => {
                    record[NIBBLES + (block / 2 * LANES + lane) * 4 + byte] |=
                        (quant >> 4 & 3) << (4 * (block % 2) + 2 * word);
                }
            }
        }
        let numbers = NIBBLES
            + match kind {
                KKind::Q4 => 0,
                KKind::Q5 => GROUP / 4 * LANES * 4,
                KKind::Q6 => GROUP / 2 * LANES * 4,
            };
        put_f16(record, numbers + o * 2, source.d);
        if kind == KKind::Q6 {
            for (half, &scale) in source.scales.iter().enumerate() {
                record[numbers + 16 + (block * 2 + half) * STRIP + o] = scale as u8;
            }
        } else {
            put_f16(record, numbers + 16 + o * 2, source.dmin);
            record[numbers + 32 + block * STRIP + o] = source.scales[0] as u8;
            record[numbers + 96 + block * STRIP + o] = source.min;
        }
    });
    (form, bytes)
}
