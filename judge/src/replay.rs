//! The seeded replay: one prefill over prompt and completion under the declared model, then per token the margin between
//! the committed token and what the model draws with the request's seed, and the activation sketch.

use polylink_protocol::market::SKETCH_BYTES;

use crate::{JudgeError, Transcript};

/// What the declared model says of one completion token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenReplay {
    /// max(score deficit within the candidates, logits by which the token misses them); 0 where the declared model draws
    /// exactly this token.
    pub margin: f32,
    /// The sketch of the hidden state that the token was drawn from.
    pub sketch: [u8; SKETCH_BYTES],
}

/// A profile's declared model.
pub trait Replay: Send {
    /// Replays one choice; one entry per completion token.
    fn replay(&mut self, transcript: &Transcript, choice: u32) -> Result<Vec<TokenReplay>, JudgeError>;
}
