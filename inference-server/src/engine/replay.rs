//! Fidelity replay: what would the declared model have drawn? For judges.
//!
//! One prefill over prompt and completion (in chunks), on the judge's own backend. Per committed token: the margin to
//! what the declared model draws with the request's seed, and the activation sketch. For an exact profile an honest
//! answer has margin 0 and equal sketch bits at every token, whatever the worker's hardware, batch or prefix hits.

use std::ops::Range;

use polylink_kernels::{
    Backend, BackendError, DrawInputs, ForwardStep, Limits, SampleScratch, SequenceRows, Solo, Span, Step, StepOutput,
    TEMPERATURE_MIN, TokenInput, replay_margin,
};
use polylink_protocol::market::SKETCH_BYTES;
use polylink_protocol::market_v1::Sampling;
use polylink_protocol::noise::NoiseKey;

use super::api::{end_tokens, sample_params, sketch_bytes};
use super::config::{BackendKind, EngineError};
use super::grammar::Grammars;
use super::start::{empty_backend, kv_spec};
use crate::model::{LoadedModel, SplitPlan};

/// Rows per chunk; also the wanted rows, whose logits come out whole.
const CHUNK: usize = 128;

/// What is to be replayed: one choice of one answer.
#[derive(Clone, Debug)]
pub struct ReplayRequest<'a> {
    /// The prompt.
    pub prompt_ids: &'a [u32],
    /// The choice's committed tokens.
    pub completion_ids: &'a [u32],
    /// The request's sampling parameters.
    pub sampling: &'a Sampling,
    /// Text of the request's grammar.
    pub grammar: Option<&'a str>,
    /// The request's seed.
    pub seed: &'a [u8; 32],
    /// Which choice.
    pub choice: u32,
}

/// The replay of one committed token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayedToken {
    /// Distance of the committed token from the draw, in logits; 0 if the declared model draws it, +∞ if it may not be
    /// drawn at all.
    pub margin: f32,
    /// What the declared model draws here.
    pub drawn: u32,
    /// The declared model's sketch: eight f16, little-endian.
    pub sketch: [u8; SKETCH_BYTES],
}

/// Why a replay is not possible.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The transcript does not fit the model.
    #[error("the transcript cannot be replayed: {0}")]
    Transcript(String),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What is done with every completion token: its logits, sketch and index, and the sampler's scratch.
type EachToken<'a> = dyn FnMut(&[f32], [u8; SKETCH_BYTES], usize, &mut SampleScratch) + 'a;

/// A model that replays transcripts, one at a time. Blocks while it computes: keep it on a thread of its own.
pub struct Replayer {
    backend: Box<dyn Backend>,
    limits: Limits,
    block_table: Vec<u32>,
    end_tokens: Vec<u32>,
    grammars: Grammars,
    vocabulary: usize,
    long_beyond: Option<usize>,
    tokens: Vec<TokenInput>,
    output: StepOutput,
    scratch: SampleScratch,
}

impl Replayer {
    /// Loads the model for replay. `threads` as in [`super::EngineConfig`]; the number changes no bit.
    ///
    /// # Errors
    /// As [`super::Engine::start`].
    pub fn new(model: &LoadedModel, kind: BackendKind, threads: usize) -> Result<Self, EngineError> {
        let split = SplitPlan::whole(model.config());
        let mut backend = empty_backend(kind, threads)?;
        let layout = backend.kv_layout(&kv_spec(model, &split, 0));
        let positions = model.context_length();
        let kv_blocks = positions.div_ceil(layout.block_tokens);
        let limits = Limits { rows: CHUNK, wanted_rows: CHUNK, slots: 1, kv_blocks, positions };
        let program = model.load(&split, 0, &mut *backend)?;
        backend.build(program, limits, Box::new(Solo))?;
        let vocabulary = model.config().vocab_size;
        Ok(Self {
            backend,
            limits,
            block_table: (0..kv_blocks as u32).collect(),
            end_tokens: model.end_tokens().to_vec(),
            grammars: Grammars::of(model),
            vocabulary,
            long_beyond: model.config().long_beyond,
            tokens: Vec::with_capacity(CHUNK),
            output: StepOutput::with_limits(&limits, vocabulary, true),
            scratch: SampleScratch::new(vocabulary),
        })
    }

    /// Replays one choice: one entry per committed token.
    ///
    /// # Errors
    /// [`ReplayError::Transcript`] for ids beyond the vocabulary, a transcript beyond the context, or a grammar that no
    /// engine takes.
    pub fn replay(&mut self, request: &ReplayRequest<'_>) -> Result<Vec<ReplayedToken>, ReplayError> {
        let mut replayed = Vec::with_capacity(request.completion_ids.len());
        let params = sample_params(request.sampling, request.seed, request.choice);
        if params.temperature != 0.0 && params.temperature < TEMPERATURE_MIN {
            return Err(ReplayError::Transcript(format!("no engine takes a temperature of {}", params.temperature)));
        }
        // What is beyond the vocabulary is never drawn: no engine takes it, and whoever shows it must not stop a judge by it.
        let mut ends = end_tokens(request.sampling, &self.end_tokens);
        ends.retain(|token| (*token as usize) < self.vocabulary);
        let mut bias: Vec<(u32, f32)> =
            request.sampling.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect();
        bias.retain(|(token, _)| (*token as usize) < self.vocabulary);
        let (prompt, completion) = (request.prompt_ids, request.completion_ids);
        let min_tokens = request.sampling.min_tokens as usize;
        let mut grammar = match request.grammar.map(|text| self.grammars.compile(text)).transpose() {
            Ok(grammar) => grammar,
            Err(error) => return Err(ReplayError::Transcript(format!("grammar: {error}"))),
        };
        self.forward(request, &mut |logits, sketch, index, scratch| {
            let held_back = if index < min_tokens { &ends[..] } else { &[] };
            let (suppressed, mask) = match &mut grammar {
                Some(grammar) => {
                    if let Some(before) = index.checked_sub(1) {
                        grammar.accept(completion[before]);
                    }
                    (&[][..], grammar.mask(held_back))
                }
                None => (held_back, &[][..]),
            };
            let inputs = DrawInputs {
                params: &params,
                prompt,
                completion: &completion[..index],
                logit_bias: &bias,
                suppressed,
                mask,
            };
            let position = (prompt.len() + index) as u32;
            let (margin, drawn) = match replay_margin(logits, &inputs, position, completion[index], scratch) {
                Some(margin) => (margin.value(), margin.drawn),
                None => (f32::INFINITY, 0),
            };
            replayed.push(ReplayedToken { margin, drawn, sketch });
        })?;
        Ok(replayed)
    }

    /// The raw logits that every completion token was to be drawn from, `[completion][vocabulary]`.
    ///
    /// # Errors
    /// As [`Replayer::replay`].
    pub fn logits(&mut self, prompt_ids: &[u32], completion_ids: &[u32]) -> Result<Vec<Vec<f32>>, ReplayError> {
        let mut rows = Vec::with_capacity(completion_ids.len());
        let request = ReplayRequest {
            prompt_ids,
            completion_ids,
            sampling: &Sampling::default(),
            grammar: None,
            seed: &[0; 32],
            choice: 0,
        };
        self.forward(&request, &mut |logits, _, _, _| rows.push(logits.to_vec()))?;
        Ok(rows)
    }

    /// Runs the model over prompt and completion.
    fn forward(&mut self, request: &ReplayRequest<'_>, each: &mut EachToken<'_>) -> Result<(), ReplayError> {
        let (prompt, completion) = (request.prompt_ids, request.completion_ids);
        let total = prompt.len() + completion.len();
        if prompt.is_empty() || total > self.limits.positions {
            let reason =
                format!("1 to {} tokens of prompt and completion are expected, it has {total}", self.limits.positions);
            return Err(ReplayError::Transcript(reason));
        }
        let all = || prompt.iter().chain(completion).copied();
        if let Some(token) = all().find(|&token| token as usize >= self.vocabulary) {
            return Err(ReplayError::Transcript(format!(
                "token {token} is not in the vocabulary of {}",
                self.vocabulary
            )));
        }
        let noise_key = sample_params(request.sampling, request.seed, request.choice).noise_key;
        // The last token is drawn, never read; rows from the prompt's last on give logits.
        let (rows, first) = (total - 1, prompt.len() - 1);
        // With LongRoPE, rows beyond a border read keys that are others from the first token on: a second pass.
        let border = self.long_beyond.unwrap_or(rows).min(rows);
        let passes = [(false, first..border), (true, first.max(border)..rows)];
        for (long, wanted) in passes.into_iter().filter(|(_, wanted)| !wanted.is_empty()) {
            self.pass(request, noise_key, long, wanted, each)?;
        }
        Ok(())
    }

    /// Runs the model over all rows up to the end of the wanted ones.
    fn pass(
        &mut self,
        request: &ReplayRequest<'_>,
        noise_key: NoiseKey,
        long: bool,
        wanted: Range<usize>,
        each: &mut EachToken<'_>,
    ) -> Result<(), ReplayError> {
        let all = || request.prompt_ids.iter().chain(request.completion_ids).copied();
        let Range { start: first_wanted, end: rows } = wanted;
        let mut start = 0;
        while start < rows {
            // A chunk has only wanted rows, or none.
            let end = if start < first_wanted { first_wanted.min(start + CHUNK) } else { rows.min(start + CHUNK) };
            let wanted = if start < first_wanted { 0 } else { end - start };
            self.tokens.clear();
            self.tokens.extend(all().skip(start).take(end - start).map(TokenInput::Id));
            let blocks = Span { start: 0, length: self.block_table.len() as u32 };
            let sequence = SequenceRows {
                slot: 0,
                first_position: start as u32,
                rows: (end - start) as u32,
                wanted: wanted as u32,
                blocks,
                noise_key,
                long,
            };
            let step = ForwardStep {
                sequences: &[sequence],
                tokens: &self.tokens,
                block_tables: &self.block_table,
                logits_out: wanted > 0,
            };
            let ticket = self.backend.submit(&Step::Forward(step))?;
            self.backend.wait(ticket, &mut self.output)?;
            for row in 0..wanted {
                let logits = &self.output.logits[row * self.vocabulary..][..self.vocabulary];
                let index = start + row + 1 - request.prompt_ids.len();
                each(logits, sketch_bytes(&self.output.sketches[row]), index, &mut self.scratch);
            }
            start = end;
        }
        Ok(())
    }
}
