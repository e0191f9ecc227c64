//! What changes from step to step, in one stretch of words of which the parts in use are copied to the device.
//!
//! Where each array lies is a function of the [`Bucket`] alone, so that a recorded graph finds it: what the step has less
//! than the bucket's sizes is left as it is, and the kernels go by [`Counts`].

use std::ops::Range;

use super::driver::DevicePtr;
use crate::executor::RowState;
use crate::operations::SketchRow;
use crate::step::{ForwardStep, TokenInput};

/// Set in a token's word: the rest is the slot whose last sample it is.
pub(crate) const LAST_SAMPLE: u32 = 1 << 31;

/// Set in a sequence's flags: its positions are turned by the table of long sequences.
pub(crate) const LONG: u32 = 1;

/// `StepCounts` in `common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub rows: u32,
    pub wanted: u32,
    pub sequences: u32,
    pub attention_items: u32,
    pub attention_merges: u32,
    pub sample_rows: u32,
    pub spare: [u32; 2],
}

impl Counts {
    /// As they lie there.
    pub fn words(&self) -> [u32; COUNT_WORDS] {
        let Self { rows, wanted, sequences, attention_items, attention_merges, sample_rows, spare } = *self;
        [rows, wanted, sequences, attention_items, attention_merges, sample_rows, spare[0], spare[1]]
    }
}

const COUNT_WORDS: usize = size_of::<Counts>() / 4;

/// Sizes that a recorded step is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    /// Input rows.
    pub rows: usize,
    /// Rows whose logits are wanted.
    pub wanted: usize,
    /// Sequences.
    pub sequences: usize,
    /// Words of the attention's plan.
    pub plan_words: usize,
}

/// Where the inputs of a bucket's steps lie on the device. Arrays of u32 unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepInputs {
    /// `StepCounts`.
    pub counts: DevicePtr,
    /// `[rows]`: ids, or [`LAST_SAMPLE`] and a slot.
    pub tokens: DevicePtr,
    /// `[rows]`: within the sequence.
    pub positions: DevicePtr,
    /// `[rows]`.
    pub sequence_of: DevicePtr,
    /// `[sequences]` each: the first row, rows, position of the first row, first entry in the block tables, flags.
    pub first_row: DevicePtr,
    pub sequence_rows: DevicePtr,
    pub first_position: DevicePtr,
    pub table_start: DevicePtr,
    pub flags: DevicePtr,
    /// `[wanted]`: rows.
    pub wanted: DevicePtr,
    /// `[wanted]` u64.
    pub sketch_key: DevicePtr,
    /// `[wanted]`.
    pub sketch_position: DevicePtr,
    /// The attention's plan.
    pub plan: DevicePtr,
    /// All sequences' tables, one after the other.
    pub block_tables: DevicePtr,
}

/// First words of the arrays.
#[derive(Clone, Copy, Debug)]
struct Places {
    tokens: usize,
    positions: usize,
    sequence_of: usize,
    /// Of five arrays.
    sequences: usize,
    wanted: usize,
    sketch_key: usize,
    sketch_position: usize,
    plan: usize,
    block_tables: usize,
}

impl Bucket {
    fn places(&self) -> Places {
        let Self { rows, wanted, sequences, plan_words } = *self;
        let mut next = COUNT_WORDS;
        // Arrays begin at multiples of 16 bytes.
        let mut take = |words: usize| {
            let at = next;
            next += words.next_multiple_of(4);
            at
        };
        Places {
            tokens: take(rows),
            positions: take(rows),
            sequence_of: take(rows),
            sequences: take(5 * sequences),
            wanted: take(wanted),
            sketch_key: take(2 * wanted),
            sketch_position: take(wanted),
            plan: take(plan_words),
            block_tables: take(0),
        }
    }

    /// Words of the largest step of the bucket.
    pub fn words(&self, table_entries: usize) -> usize {
        self.places().block_tables + table_entries
    }

    /// Where the arrays lie, `base` being the first word's address.
    pub fn inputs(&self, base: DevicePtr) -> StepInputs {
        let places = self.places();
        let at = |word: usize| base + 4 * word as u64;
        let sequences = |array: usize| at(places.sequences + array * self.sequences);
        StepInputs {
            counts: base,
            tokens: at(places.tokens),
            positions: at(places.positions),
            sequence_of: at(places.sequence_of),
            first_row: sequences(0),
            sequence_rows: sequences(1),
            first_position: sequences(2),
            table_start: sequences(3),
            flags: sequences(4),
            wanted: at(places.wanted),
            sketch_key: at(places.sketch_key),
            sketch_position: at(places.sketch_position),
            plan: at(places.plan),
            block_tables: at(places.block_tables),
        }
    }

    /// Writes a checked step's inputs; `used` gets the words that are to be copied. `plan` fills in the attention's plan and
    /// adds what of it there is.
    pub fn fill(
        &self,
        step: &ForwardStep<'_>,
        rows: &RowState,
        words: &mut [u32],
        used: &mut Vec<Range<usize>>,
        plan: impl FnOnce(&mut [u32], &mut Counts, &mut Vec<Range<usize>>),
    ) {
        let places = self.places();
        for ((word, input), &token) in words[places.tokens..].iter_mut().zip(step.tokens).zip(&rows.tokens) {
            *word = match input {
                TokenInput::Id(_) => token,
                TokenInput::LastSample(slot) => LAST_SAMPLE | slot,
            };
        }
        words[places.positions..][..rows.positions.len()].copy_from_slice(&rows.positions);
        words[places.sequence_of..][..rows.sequence_of.len()].copy_from_slice(&rows.sequence_of);
        let mut first_row = 0;
        for (index, sequence) in step.sequences.iter().enumerate() {
            let flags = if sequence.long { LONG } else { 0 };
            let of = [first_row, sequence.rows, sequence.first_position, sequence.blocks.start, flags];
            for (array, value) in of.into_iter().enumerate() {
                words[places.sequences + array * self.sequences + index] = value;
            }
            first_row += sequence.rows;
        }
        words[places.wanted..][..rows.wanted.len()].copy_from_slice(&rows.wanted);
        for (index, SketchRow { noise_key, position }) in rows.sketch_rows.iter().enumerate() {
            let key = noise_key.sketch_key().bits();
            words[places.sketch_key + 2 * index] = key as u32;
            words[places.sketch_key + 2 * index + 1] = (key >> 32) as u32;
            words[places.sketch_position + index] = *position;
        }
        let mut counts = Counts {
            rows: step.tokens.len() as u32,
            wanted: rows.wanted.len() as u32,
            sequences: step.sequences.len() as u32,
            ..Counts::default()
        };
        used.clear();
        plan(&mut words[places.plan..][..self.plan_words], &mut counts, used);
        used.iter_mut().for_each(|range| *range = places.plan + range.start..places.plan + range.end);
        words[..COUNT_WORDS].copy_from_slice(&counts.words());
        words[places.block_tables..][..step.block_tables.len()].copy_from_slice(step.block_tables);
        // The plan's beginning follows the fixed arrays: one copy.
        match used.first_mut() {
            Some(first) if first.start == places.plan => first.start = 0,
            _ => used.insert(0, 0..places.plan),
        }
        used.push(places.block_tables..places.block_tables + step.block_tables.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_lie_apart_and_are_aligned() {
        for rows in [1, 2, 7, 64, 300] {
            for wanted in [1, 5, 64] {
                let bucket = Bucket { rows, wanted: wanted.min(rows), sequences: rows.min(9), plan_words: 3 * rows };
                let inputs = bucket.inputs(1 << 20);
                let arrays = [
                    (inputs.counts, COUNT_WORDS),
                    (inputs.tokens, rows),
                    (inputs.positions, rows),
                    (inputs.sequence_of, rows),
                    (inputs.first_row, bucket.sequences),
                    (inputs.sequence_rows, bucket.sequences),
                    (inputs.first_position, bucket.sequences),
                    (inputs.table_start, bucket.sequences),
                    (inputs.flags, bucket.sequences),
                    (inputs.wanted, bucket.wanted),
                    (inputs.sketch_key, 2 * bucket.wanted),
                    (inputs.sketch_position, bucket.wanted),
                    (inputs.plan, bucket.plan_words),
                    (inputs.block_tables, 1),
                ];
                for pair in arrays.windows(2) {
                    assert!(pair[0].0 + 4 * pair[0].1 as u64 <= pair[1].0, "{bucket:?}: {pair:?}");
                }
                for array in [0, 1, 2, 3, 4, 9, 10, 11, 12, 13] {
                    assert!(arrays[array].0.is_multiple_of(16), "{bucket:?}: array {array}");
                }
                assert_eq!(bucket.words(10), (inputs.block_tables - inputs.counts) as usize / 4 + 10);
            }
        }
    }
}
