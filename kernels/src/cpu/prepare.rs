//! Packing while loading: pieces of a matrix on all workers, each quantised, packed and put in its place.
//!
//! A piece is a run of whole strips, so that it lies in one part of each array; beside the packed matrix there is never
//! more than a piece per worker. Each output is packed alone, so pieces change nothing.

use std::sync::{Mutex, PoisonError};

use super::lanes::WIDTH;
use super::packed::Packed;
use super::pool::Pool;
use crate::backend::{BackendError, KRanges, Part, WeightForm};
use crate::weights;

/// Values of a piece.
const PIECE_VALUES: usize = 1 << 20;

/// What was packed so far.
struct Growing {
    packed: Option<Packed>,
    error: Option<BackendError>,
}

/// Packs a weight.
///
/// # Errors
/// As [`crate::Backend::prepare`].
pub(super) fn prepare(
    pool: &mut Pool,
    parts: &[Part<'_>],
    ranges: KRanges,
    form: WeightForm,
) -> Result<Packed, BackendError> {
    let outputs: usize = parts.iter().map(|part| part.shard.rows.len()).sum();
    let rows = (PIECE_VALUES / ranges.inputs.max(1)).next_multiple_of(WIDTH).max(WIDTH);
    let one_type = parts.windows(2).all(|pair| pair[0].tensor.dtype == pair[1].tensor.dtype);
    if outputs <= rows || !one_type {
        return Ok(Packed::new(weights::matrix(parts, ranges, form)?));
    }
    let state = Mutex::new(Growing { packed: None, error: None });
    pool.run(outputs.div_ceil(rows), &|piece, _| {
        let first = piece * rows;
        let packed =
            weights::matrix(&weights::outputs(parts, first, rows.min(outputs - first)), ranges, form).map(Packed::new);
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match packed {
            Ok(packed) => {
                state.packed.get_or_insert_with(|| packed.grown(outputs)).put(first / WIDTH, &packed);
            }
            Err(error) => _ = state.error.get_or_insert(error),
        }
    })?;
    let Growing { packed, error } = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (packed, error) {
        (_, Some(error)) => Err(error),
        (Some(packed), None) => Ok(packed),
        (None, None) => Err(BackendError::Poisoned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Dtype, Shard, TensorView};

    #[test]
    fn pieces_make_the_matrix_that_is_packed_at_once() {
        // Rows that do not end with a piece, of two tensors.
        let (first, second, inputs) = (PIECE_VALUES / 512 + 7, 2 * PIECE_VALUES / 512 + 30, 512);
        let data: Vec<u8> = (0..2 * (first + second) * inputs)
            .map(|i| if i % 2 == 0 { (i / 2 * 31 % 256) as u8 } else { 0x3c + (i / 2 % 3) as u8 })
            .collect();
        let shapes = [[first, inputs], [second, inputs]];
        let (a, b) = data.split_at(2 * first * inputs);
        let view = |shape, data| TensorView { name: "w", shape, dtype: Dtype::Bf16, data };
        let parts =
            [view(&shapes[0], a), view(&shapes[1], b)].map(|tensor| Part { shard: Shard::whole(tensor.shape), tensor });
        for form in [WeightForm::Float, WeightForm::Bf16, WeightForm::Q8_0, WeightForm::Q4_0, WeightForm::Q5K] {
            let ranges = KRanges::whole(inputs);
            let whole = Packed::new(weights::matrix(&parts, ranges, form).unwrap());
            let pieces = prepare(&mut Pool::new(3), &parts, ranges, form).unwrap();
            assert_eq!(whole.shape, pieces.shape);
            let (mut expected, mut found) = (vec![0f32; inputs], vec![1f32; inputs]);
            for n in 0..first + second {
                whole.row(n, &mut expected);
                pieces.row(n, &mut found);
                assert!(expected == found, "{form:?}, output {n}");
            }
        }
    }

    #[test]
    fn a_bad_value_in_any_piece_is_named() {
        let (rows, inputs) = (3 * PIECE_VALUES / 512, 512);
        let mut data = vec![0u8; 4 * rows * inputs];
        data[4 * (rows - 1) * inputs + 8..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let shape = [rows, inputs];
        let tensor = TensorView { name: "w", shape: &shape, dtype: Dtype::F32, data: &data };
        let part = Part { tensor, shard: Shard::whole(&shape) };
        let error = prepare(&mut Pool::new(2), &[part], KRanges::whole(inputs), WeightForm::Q8_0).err().unwrap();
        assert!(error.to_string().contains(&format!("element ({}, 2) is NaN", rows - 1)), "{error}");
    }
}
