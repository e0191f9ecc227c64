//! The evaluators' own threads: the cross-encoder's and the replays', which compute and so may not run where the judge
//! watches the chain. Two, so that the replays, which carry the evidence, do not wait for the cross-encoder.
//!
//! Batches that wait together share the cross-encoder's forward passes, whichever rounds, trials and workers they come
//! from. The replays go choice by choice, always of the batch whose deadline is next, so that a trial's replays do not
//! hold up a round. What is not replayed by its batch's deadline is left out: never held against the worker.
//!
//! Always holds: a batch in hand gets exactly one answer, or its asker has gone away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use polylink_inference_server::model::Tokenizer;
use polylink_protocol::Digest;
use tokio::sync::{mpsc, oneshot};

use super::held::{Held, Replayed, texts};
use crate::cross_encoder::{CrossEncoder, Pair};
use crate::{JudgeError, Transcript};

/// Batches in hand; more wait at their askers.
pub(super) const BATCHES_MAX: usize = 16;

/// Transcripts whose texts are to be scored.
pub(super) struct Texts {
    pub(super) transcripts: Arc<[Transcript]>,
    /// Texts and the cross-encoder's probability, one per transcript.
    pub(super) answer: oneshot::Sender<Result<Vec<(Pair, f32)>, JudgeError>>,
}

/// Transcripts to replay.
pub(super) struct Replays {
    pub(super) transcripts: Arc<[Transcript]>,
    /// Replays that begin later are left out.
    pub(super) until: Instant,
    /// One per transcript; None where there was no time, or the profile is not held.
    pub(super) answer: oneshot::Sender<Result<Vec<Option<Replayed>>, JudgeError>>,
}

/// What the cross-encoder's thread computes with.
pub(super) struct TextScorer {
    pub(super) cross_encoder: CrossEncoder,
    pub(super) profiles: Vec<(Digest, Arc<Tokenizer>)>,
    /// Forward passes of the cross-encoder.
    pub(super) forwards: Arc<AtomicU64>,
}

/// What the replays' thread computes with.
pub(super) struct Replayer {
    pub(super) held: Vec<Held>,
}

impl TextScorer {
    /// Runs until every asker is gone.
    pub(super) fn run(mut self, mut batches: mpsc::Receiver<Texts>) {
        while let Some(first) = batches.blocking_recv() {
            let mut together = vec![first];
            while together.len() < BATCHES_MAX
                && let Ok(batch) = batches.try_recv()
            {
                together.push(batch);
            }
            self.score(together);
        }
    }

    /// One batch of pairs for all that came together.
    fn score(&mut self, together: Vec<Texts>) {
        let pairs: Vec<Pair> = together.iter().flat_map(|b| b.transcripts.iter()).map(|t| self.texts(t)).collect();
        let scored = self.cross_encoder.score(&pairs);
        self.forwards.store(self.cross_encoder.forwards(), Ordering::Relaxed);
        let mut scored = scored.map(|scores| pairs.into_iter().zip(scores));
        for batch in together {
            let part = match &mut scored {
                Ok(scored) => Ok(scored.by_ref().take(batch.transcripts.len()).collect()),
                Err(error) => Err(JudgeError::Evaluators(error.to_string())),
            };
            // An asker that went away needs no answer.
            let _ = batch.answer.send(part);
        }
    }

    /// A profile that is not held has no tokenizer here: its texts are empty, and the cross-encoder says what it says
    /// of that.
    fn texts(&self, transcript: &Transcript) -> Pair {
        let profile = transcript.receipt.profile_digest.as_slice();
        let held = self.profiles.iter().find(|(digest, _)| digest.0 == profile);
        let nothing = Pair { question: String::new(), answer: String::new() };
        held.map_or(nothing, |(_, tokenizer)| texts(tokenizer, transcript))
    }
}

/// A batch under replay.
struct Work {
    batch: Replays,
    done: Vec<Option<Replayed>>,
    /// Of the transcript after `done`: choices replayed, and what they gave.
    choices: u32,
    current: Replayed,
}

impl Replayer {
    /// Runs until every asker is gone.
    pub(super) fn run(mut self, mut batches: mpsc::Receiver<Replays>) {
        let mut work: Vec<Work> = Vec::new();
        loop {
            let waited = if work.is_empty() { batches.blocking_recv() } else { None };
            if work.is_empty() && waited.is_none() {
                return;
            }
            let new = |batch| Work { batch, done: Vec::new(), choices: 0, current: Replayed::default() };
            work.extend(waited.map(new));
            while work.len() < BATCHES_MAX
                && let Ok(batch) = batches.try_recv()
            {
                work.push(new(batch));
            }
            let next = (0..work.len()).min_by_key(|at| work[*at].batch.until);
            if let Some(at) = next
                && let Some(answer) = self.step(&mut work[at])
            {
                let finished = work.swap_remove(at);
                let _ = finished.batch.answer.send(answer.map(|()| finished.done));
            }
        }
    }

    /// Replays one choice. Some once the batch is through, its asker has gone, or its time is over.
    fn step(&mut self, work: &mut Work) -> Option<Result<(), JudgeError>> {
        if work.batch.answer.is_closed() {
            return Some(Ok(()));
        }
        let Some(transcript) = work.batch.transcripts.get(work.done.len()) else { return Some(Ok(())) };
        if Instant::now() >= work.batch.until {
            let (left, of) = (work.batch.transcripts.len() - work.done.len(), work.batch.transcripts.len());
            tracing::warn!(left, of, "no time to replay all answers; the rest is scored without");
            work.done.resize(of, None);
            return Some(Ok(()));
        }
        let Some(held) = self.held.iter_mut().find(|h| h.is_of(transcript)) else {
            work.done.push(None);
            return None;
        };
        if work.choices == 0 && !held.shape_is_honest(transcript) {
            work.current.mismatch = true;
        } else {
            if let Err(error) = held.replay(transcript, work.choices, &mut work.current) {
                return Some(Err(error));
            }
            work.choices += 1;
            if (work.choices as usize) < transcript.completions.len() {
                return None;
            }
        }
        work.choices = 0;
        work.done.push(Some(std::mem::take(&mut work.current)));
        None
    }
}

impl Held {
    fn is_of(&self, transcript: &Transcript) -> bool {
        self.profile.0 == transcript.receipt.profile_digest.as_slice()
    }
}
