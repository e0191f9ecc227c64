//! The seeded replay: one prefill over prompt and completion under the declared model, then per token the margin between
//! the committed token and what the model draws with the request's seed, and the activation sketch.

use polylink_inference_server::engine::{BackendKind, ReplayError, ReplayRequest, ReplayedToken, Replayer};
use polylink_inference_server::model::LoadedModel;

use crate::{JudgeError, Transcript};

/// A profile's declared model.
pub trait Replay: Send {
    /// Replays one choice; one entry per completion token. None for a transcript that no run of the declared model can
    /// have given (a token outside the vocabulary, more tokens than its context).
    fn replay(&mut self, transcript: &Transcript, choice: u32) -> Result<Option<Vec<ReplayedToken>>, JudgeError>;
}

/// The declared model on this machine.
pub struct LocalReplay(Replayer);

impl LocalReplay {
    /// Loads the model; the number of threads changes no bit.
    pub fn open(model: &LoadedModel, threads: usize) -> Result<Self, JudgeError> {
        let replayer =
            Replayer::new(model, BackendKind::Cpu, threads).map_err(|e| JudgeError::Replay(e.to_string()))?;
        Ok(Self(replayer))
    }
}

impl Replay for LocalReplay {
    fn replay(&mut self, transcript: &Transcript, choice: u32) -> Result<Option<Vec<ReplayedToken>>, JudgeError> {
        let request = ReplayRequest {
            prompt_ids: &transcript.prompt_ids,
            completion_ids: &transcript.completions[choice as usize].token_ids,
            sampling: transcript.sampling(),
            grammar: transcript.grammar.as_deref(),
            seed: &transcript.seed(),
            choice,
        };
        match self.0.replay(&request) {
            Ok(tokens) => Ok(Some(tokens)),
            Err(ReplayError::Transcript(reason)) => {
                tracing::warn!(reason, "a transcript that the declared model cannot have given");
                Ok(None)
            }
            Err(error) => Err(JudgeError::Replay(error.to_string())),
        }
    }
}
