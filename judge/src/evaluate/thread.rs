//! The evaluators' own thread: the cross-encoder and the replays, which compute and so may not run where the judge
//! watches the chain.
//!
//! Batches that wait together share the cross-encoder's forward passes, whichever rounds, trials and workers they come
//! from. The replays go choice by choice, always of the batch whose deadline is next, so that a trial's replays do not
//! hold up a round. What is not replayed by its batch's deadline is left out: never held against the worker.
//!
//! Always holds: a batch in hand gets exactly one answer to each of its two questions, or its asker has gone away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::held::{Held, Replayed};
use crate::cross_encoder::{CrossEncoder, Pair};
use crate::{JudgeError, Transcript};

/// Batches in hand; more wait at their askers.
pub(super) const BATCHES_MAX: usize = 16;

/// Transcripts to evaluate.
pub(super) struct Batch {
    pub(super) transcripts: Arc<[Transcript]>,
    /// Replays that begin later are left out.
    pub(super) until: Instant,
    /// Texts and the cross-encoder's probability, one per transcript.
    pub(super) cross: oneshot::Sender<Result<Vec<(Pair, f32)>, JudgeError>>,
    /// One per transcript; None where there was no time, or the profile is not held.
    pub(super) replays: oneshot::Sender<Result<Vec<Option<Replayed>>, JudgeError>>,
}

/// What the thread computes with.
pub(super) struct Evaluators {
    pub(super) cross_encoder: CrossEncoder,
    pub(super) held: Vec<Held>,
    /// Forward passes of the cross-encoder.
    pub(super) forwards: Arc<AtomicU64>,
}

/// A batch under replay.
struct Work {
    transcripts: Arc<[Transcript]>,
    until: Instant,
    replays: oneshot::Sender<Result<Vec<Option<Replayed>>, JudgeError>>,
    done: Vec<Option<Replayed>>,
    /// Of the transcript after `done`: choices replayed, and what they gave.
    choices: u32,
    current: Replayed,
}

impl Evaluators {
    /// Runs until every asker is gone.
    pub(super) fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        let mut work: Vec<Work> = Vec::new();
        loop {
            let mut new = Vec::new();
            if work.is_empty() {
                match batches.blocking_recv() {
                    Some(batch) => new.push(batch),
                    None => return,
                }
            }
            while work.len() + new.len() < BATCHES_MAX
                && let Ok(batch) = batches.try_recv()
            {
                new.push(batch);
            }
            if !new.is_empty() {
                self.cross_encode(new, &mut work);
            }
            let next = (0..work.len()).min_by_key(|at| work[*at].until);
            if let Some(at) = next
                && let Some(answer) = self.step(&mut work[at])
            {
                let finished = work.swap_remove(at);
                // An asker that went away needs no answer.
                let _ = finished.replays.send(answer.map(|()| finished.done));
            }
        }
    }

    /// One batch of pairs for all that came together.
    fn cross_encode(&mut self, new: Vec<Batch>, work: &mut Vec<Work>) {
        let pairs: Vec<Pair> = new.iter().flat_map(|b| b.transcripts.iter()).map(|t| self.texts(t)).collect();
        let scored = self.cross_encoder.score(&pairs);
        self.forwards.store(self.cross_encoder.forwards(), Ordering::Relaxed);
        let mut scored = scored.map(|scores| pairs.into_iter().zip(scores));
        for batch in new {
            let part = match &mut scored {
                Ok(scored) => Ok(scored.by_ref().take(batch.transcripts.len()).collect()),
                Err(error) => Err(JudgeError::Evaluators(error.to_string())),
            };
            if batch.cross.send(part).is_ok() {
                work.push(Work {
                    transcripts: batch.transcripts,
                    until: batch.until,
                    replays: batch.replays,
                    done: Vec::new(),
                    choices: 0,
                    current: Replayed::default(),
                });
            }
        }
    }

    /// A profile that is not held has no tokenizer here: its texts are empty, and the cross-encoder says what it says
    /// of that.
    fn texts(&self, transcript: &Transcript) -> Pair {
        let nothing = Pair { question: String::new(), answer: String::new() };
        self.held.iter().find(|h| h.is_of(transcript)).map_or(nothing, |held| held.texts(transcript))
    }

    /// Replays one choice. Some once the batch is through, its asker has gone, or its time is over.
    fn step(&mut self, work: &mut Work) -> Option<Result<(), JudgeError>> {
        if work.replays.is_closed() {
            return Some(Ok(()));
        }
        let Some(transcript) = work.transcripts.get(work.done.len()) else { return Some(Ok(())) };
        if Instant::now() >= work.until {
            let (left, of) = (work.transcripts.len() - work.done.len(), work.transcripts.len());
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
