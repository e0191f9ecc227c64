//! Checks a step in full against the limits before anything is computed, and resolves its rows.

use crate::backend::{BackendError, Limits};
use crate::executor::{RowState, SlotState};
use crate::operations::SketchRow;
use crate::sampler::SampleJob;
use crate::step::{
    ForwardStep, SampleParams, SampleRow, SampleStep, SlotStart, TEMPERATURE_MIN, TOP_LOGPROBS_MAX, TokenInput,
};

type Checked = Result<(), BackendError>;

fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(BackendError::Step(reason())) }
}

/// Checks a forward step and fills in the state of its rows.
pub(crate) fn forward(
    step: &ForwardStep<'_>,
    limits: &Limits,
    block_tokens: usize,
    vocabulary: usize,
    last_sample: &[Option<u32>],
    rows: &mut RowState,
) -> Checked {
    rows.clear();
    let RowState { tokens, sequence_of, positions, wanted, sketch_rows } = rows;
    let count = step.tokens.len();
    ensure(count <= limits.rows, || format!("{count} rows, the limit is {}", limits.rows))?;
    ensure(step.sequences.len() <= limits.slots, || {
        format!("{} sequences, the limit is {}", step.sequences.len(), limits.slots)
    })?;
    let total: usize = step.sequences.iter().map(|sequence| sequence.rows as usize).sum();
    ensure(total == count, || format!("the sequences have {total} rows, the step {count} tokens"))?;
    let total: usize = step.sequences.iter().map(|sequence| sequence.wanted as usize).sum();
    ensure(total <= limits.wanted_rows, || format!("{total} wanted rows, the limit is {}", limits.wanted_rows))?;
    for (index, sequence) in step.sequences.iter().enumerate() {
        let end = sequence.first_position as usize + sequence.rows as usize;
        ensure(sequence.rows > 0 && sequence.wanted <= sequence.rows, || {
            format!("sequence {index} wants {} of {} rows", sequence.wanted, sequence.rows)
        })?;
        ensure((sequence.slot as usize) < limits.slots, || format!("slot {} of {}", sequence.slot, limits.slots))?;
        ensure(end <= limits.positions, || {
            format!("sequence {index} ends at position {end}, the limit is {}", limits.positions)
        })?;
        let Some(blocks) = sequence.blocks.of(step.block_tables) else {
            return Err(BackendError::Step(format!("sequence {index}: its block table lies outside of the tables")));
        };
        ensure(blocks.len() * block_tokens >= end, || {
            format!("sequence {index}: {} blocks do not cover {end} positions", blocks.len())
        })?;
        ensure(blocks.iter().all(|&block| (block as usize) < limits.kv_blocks), || {
            format!("sequence {index}: a block beyond the {} there are", limits.kv_blocks)
        })?;
        for row in 0..sequence.rows {
            let position = sequence.first_position + row;
            if row + sequence.wanted >= sequence.rows {
                wanted.push(positions.len() as u32);
                sketch_rows.push(SketchRow { noise_key: sequence.noise_key, position: position + 1 });
            }
            positions.push(position);
            sequence_of.push(index as u32);
        }
    }
    for input in step.tokens {
        let token = match *input {
            TokenInput::Id(token) => token,
            TokenInput::LastSample(slot) => match last_sample.get(slot as usize) {
                Some(Some(token)) => *token,
                _ => return Err(BackendError::Step(format!("slot {slot} has no last sample"))),
            },
        };
        ensure((token as usize) < vocabulary, || format!("token {token} is beyond the vocabulary of {vocabulary}"))?;
        tokens.push(token);
    }
    Ok(())
}

fn parameters(params: &SampleParams, index: usize) -> Checked {
    let SampleParams { temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } =
        *params;
    let within = |name: &str, value: f32, range: std::ops::RangeInclusive<f32>| {
        ensure(range.contains(&value), || format!("sample row {index}: {name} {value} is outside of {range:?}"))
    };
    ensure(temperature == 0.0 || (TEMPERATURE_MIN..=1e4).contains(&temperature), || {
        format!("sample row {index}: temperature {temperature} is neither 0 nor in {TEMPERATURE_MIN}..=10000")
    })?;
    within("top_p", top_p, 0.0..=1e4)?;
    within("min_p", min_p, 0.0..=1.0)?;
    within("repetition_penalty", repetition_penalty, 1e-3..=1e3)?;
    within("presence_penalty", presence_penalty, -1e3..=1e3)?;
    within("frequency_penalty", frequency_penalty, -1e3..=1e3)
}

fn start<'a>(
    start: &SlotStart,
    step: &SampleStep<'a>,
    limits: &Limits,
    vocabulary: usize,
) -> Result<(&'a [u32], &'a [u32]), BackendError> {
    ensure((start.slot as usize) < limits.slots, || format!("slot {} of {}", start.slot, limits.slots))?;
    let (Some(prompt), Some(completion)) = (start.prompt.of(step.histories), start.completion.of(step.histories))
    else {
        return Err(BackendError::Step(format!("history of slot {} lies outside of the histories", start.slot)));
    };
    let length = prompt.len() + completion.len();
    ensure(length <= limits.positions, || {
        format!("history of slot {}: {length} tokens, the limit is {}", start.slot, limits.positions)
    })?;
    let beyond = prompt.iter().chain(completion).find(|&&token| token as usize >= vocabulary);
    ensure(beyond.is_none(), || format!("history of slot {}: a token beyond the vocabulary", start.slot))?;
    Ok((prompt, completion))
}

fn row(
    row: &SampleRow,
    index: usize,
    step: &SampleStep<'_>,
    limits: &Limits,
    vocabulary: usize,
    wanted: usize,
) -> Checked {
    ensure((row.row as usize) < wanted, || format!("sample row {index}: logits row {} of {wanted}", row.row))?;
    ensure((row.slot as usize) < limits.slots, || {
        format!("sample row {index}: slot {} of {}", row.slot, limits.slots)
    })?;
    let logprobs = row.logprobs.unwrap_or(0);
    ensure(logprobs as usize <= TOP_LOGPROBS_MAX, || {
        format!("sample row {index}: {logprobs} logprobs, at most {TOP_LOGPROBS_MAX}")
    })?;
    ensure(row.given.is_none_or(|token| (token as usize) < vocabulary), || {
        format!("sample row {index}: the given token is beyond the vocabulary of {vocabulary}")
    })?;
    parameters(&row.params, index)?;
    let (Some(bias), Some(suppressed), Some(mask)) =
        (row.logit_bias.of(step.logit_bias), row.suppressed.of(step.suppressed), row.mask.of(step.masks))
    else {
        return Err(BackendError::Step(format!("sample row {index}: a span lies outside of the step's slices")));
    };
    ensure(bias.iter().all(|&(token, bias)| (token as usize) < vocabulary && bias.is_finite()), || {
        format!("sample row {index}: a logit bias beyond the vocabulary or not finite")
    })?;
    ensure(suppressed.iter().all(|&token| (token as usize) < vocabulary), || {
        format!("sample row {index}: a suppressed token beyond the vocabulary")
    })?;
    ensure(mask.is_empty() || mask.len() == vocabulary.div_ceil(32), || {
        format!("sample row {index}: a mask of {} words for {vocabulary} tokens", mask.len())
    })
}

/// Checks a sample step, applies its slot starts and fills in the jobs.
pub(crate) fn sample(
    step: &SampleStep<'_>,
    limits: &Limits,
    vocabulary: usize,
    rows: &RowState,
    slots: &mut SlotState,
) -> Checked {
    ensure(step.rows.len() <= limits.wanted_rows, || {
        format!("{} sample rows, the limit is {}", step.rows.len(), limits.wanted_rows)
    })?;
    for one in step.starts {
        start(one, step, limits, vocabulary)?;
    }
    slots.jobs.clear();
    for (index, one) in step.rows.iter().enumerate() {
        row(one, index, step, limits, vocabulary, rows.wanted.len())?;
        let known = slots.histories[one.slot as usize].known || step.starts.iter().any(|start| start.slot == one.slot);
        ensure(known || one.given.is_some() || !one.params.has_penalties(), || {
            format!("sample row {index}: penalties, but slot {} was never started", one.slot)
        })?;
        slots.jobs.push(SampleJob { row: *one, position: rows.sketch_rows[one.row as usize].position });
    }
    for one in step.starts {
        let (prompt, completion) = start(one, step, limits, vocabulary)?;
        let history = &mut slots.histories[one.slot as usize];
        history.tokens.clear();
        history.tokens.extend_from_slice(prompt);
        history.tokens.extend_from_slice(completion);
        (history.prompt_length, history.known) = (prompt.len(), true);
    }
    Ok(())
}
