//! Reads tensors of a folder and hands them to a backend.

use std::ops::Range;

use polylink_kernels::{Backend, Dtype, KRanges, Part, Shard, TensorView, WeightForm, WeightId};
use polylink_protocol::exact_math::{bf16_to_f32, f16_to_f32};

use super::error::ModelError;
use super::weights::Weights;

/// One tensor's share in a weight; its shape is that of the unsharded tensor.
pub(super) struct Piece {
    pub name: String,
    pub shape: [usize; 2],
    pub shard: Shard,
}

/// Reads tensors one after the other.
pub(super) struct Loader<'a> {
    pub weights: &'a Weights,
    pub backend: &'a mut dyn Backend,
    pub form: WeightForm,
    /// Norms multiply by 1 + what their tensors hold.
    pub norm_plus_one: bool,
    /// Bytes of the pieces being prepared, reused.
    pub buffers: [Vec<u8>; 3],
}

impl Loader<'_> {
    /// Gives the buffers' memory back: after the largest tensors, which come first, so that it is not held while the rest
    /// is packed.
    pub fn release(&mut self) {
        self.buffers = Default::default();
    }

    /// Prepares one weight of pieces stacked along their outputs.
    pub fn matrix(&mut self, pieces: &[Piece], ranges: KRanges) -> Result<WeightId, ModelError> {
        let form = self.form;
        self.matrix_as(pieces, ranges, form)
    }

    /// The same in a form of its own.
    pub fn matrix_as(&mut self, pieces: &[Piece], ranges: KRanges, form: WeightForm) -> Result<WeightId, ModelError> {
        // Pieces of one tensor follow each other: it is read once.
        let mut places = Vec::with_capacity(pieces.len());
        for (index, piece) in pieces.iter().enumerate() {
            let again = index > 0 && pieces[index - 1].name == piece.name;
            let buffer = places.last().map_or(0, |(_, buffer)| if again { *buffer } else { buffer + 1 });
            let place = self.weights.expect(&piece.name, &piece.shape)?;
            if !again {
                self.weights.read(&piece.name, place, &mut self.buffers[buffer])?;
            }
            places.push((place, buffer));
        }
        let parts: Vec<Part<'_>> = pieces
            .iter()
            .zip(places)
            .map(|(piece, (place, buffer))| Part {
                tensor: TensorView {
                    name: &piece.name,
                    shape: &piece.shape,
                    dtype: place.dtype,
                    data: &self.buffers[buffer],
                },
                shard: piece.shard.clone(),
            })
            .collect();
        Ok(self.backend.prepare(&parts, ranges, form)?)
    }

    /// Prepares a norm's weight.
    pub fn norm(&mut self, name: &str, length: usize) -> Result<WeightId, ModelError> {
        let place = self.weights.expect(name, &[length])?;
        self.weights.read(name, place, &mut self.buffers[0])?;
        let mut dtype = place.dtype;
        if self.norm_plus_one {
            let bytes = &self.buffers[0];
            self.buffers[1] = match dtype {
                Dtype::F32 => plus_one(bytes, |b: [u8; 4]| f32::from_le_bytes(b)),
                Dtype::Bf16 => plus_one(bytes, |b: [u8; 2]| bf16_to_f32(u16::from_le_bytes(b))),
                Dtype::F16 => plus_one(bytes, |b: [u8; 2]| f16_to_f32(u16::from_le_bytes(b))),
                other => {
                    let reason = format!("a norm of {other:?} is not built: f32, bf16 or f16 is expected");
                    return Err(ModelError::Tensor { tensor: name.into(), reason });
                }
            };
            dtype = Dtype::F32;
        }
        let data = &self.buffers[usize::from(self.norm_plus_one)];
        let tensor = TensorView { name, shape: &[length], dtype, data };
        let part = Part { tensor, shard: Shard::whole(&[length]) };
        Ok(self.backend.prepare(&[part], KRanges::whole(1), WeightForm::Vector)?)
    }

    /// Prepares a bias of stretches of several vectors: name, whole length, elements held.
    pub fn bias(&mut self, stretches: &[(String, usize, Range<usize>)]) -> Result<WeightId, ModelError> {
        let mut dtypes = Vec::with_capacity(stretches.len());
        for ((name, length, _), buffer) in stretches.iter().zip(&mut self.buffers) {
            let place = self.weights.expect(name, &[*length])?;
            self.weights.read(name, place, buffer)?;
            dtypes.push(place.dtype);
        }
        let shapes: Vec<[usize; 1]> = stretches.iter().map(|(_, length, _)| [*length]).collect();
        let views = stretches.iter().zip(&shapes).zip(dtypes).zip(&self.buffers);
        let parts: Vec<Part<'_>> = views
            .map(|((((name, _, held), shape), dtype), data)| Part {
                tensor: TensorView { name, shape, dtype, data },
                shard: Shard { rows: held.clone(), columns: 0..1 },
            })
            .collect();
        Ok(self.backend.prepare(&parts, KRanges::whole(1), WeightForm::Vector)?)
    }
}

/// Values of a vector, plus 1 each, as f32.
fn plus_one<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<u8> {
    bytes.as_chunks::<N>().0.iter().flat_map(|bytes| (1.0 + value(*bytes)).to_le_bytes()).collect()
}
