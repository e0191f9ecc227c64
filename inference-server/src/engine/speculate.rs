//! Guessing tokens ahead. A guess costs a row of the next step; the step then draws at every guessed position what it would
//! have drawn anyway, and goes on for as long as the guesses were right. So a guess changes how long an answer takes, and
//! no bit of it.
//!
//! Guesses are made while they pay ([`payoff`]).
//!
//! Only where a draw depends on nothing but the tokens before it: a request with penalties is not guessed, since its
//! history is the backend's, which counts all that is drawn in a step; nor one with a grammar, whose state follows each
//! token.

use polylink_kernels::{BackendError, SampleParams};

mod payoff;

pub(crate) use self::payoff::Payoff;

use super::draft_model::DraftModel;
use super::scheduler::{DRAFT_TOKENS_MAX, Scheduler, SequenceId};

/// Drawn tokens for which a sequence is not guessed after it was guessed wrong.
const PAUSE: u8 = 8;
/// How many last tokens must have occurred before, most first.
const LOOKUP_NGRAMS: [usize; 2] = [4, 3];
/// How far back they are looked for.
const LOOKUP_TOKENS: usize = 8_192;

/// How far a sequence is guessed: further while that is right, less while it is wrong, and then not for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    tokens: u8,
    pause: u8,
}

impl Reach {
    pub(crate) const START: Self = Self { tokens: 2, pause: 0 };

    /// Tokens to guess now, at most `room`.
    fn now(&mut self, room: usize) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        usize::from(self.tokens).min(room)
    }

    /// So many of `guessed` tokens were right.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        let max = DRAFT_TOKENS_MAX as u8;
        match right {
            0 if self.tokens > 1 => self.tokens /= 2,
            0 => self.pause = PAUSE,
            right if right == guessed => self.tokens = (2 * self.tokens).min(max),
            right => self.tokens = (right as u8 + 1).min(max),
        }
    }
}

/// A sequence that may be guessed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: SequenceId,
    pub(crate) slot: u32,
    /// Tokens to guess.
    pub(crate) tokens: usize,
    /// How its tokens are drawn.
    pub(crate) params: SampleParams,
}

/// Where guesses come from.
pub(crate) enum Drafter {
    /// What followed when the last tokens occurred before (Saxena, "Prompt lookup decoding", 2023).
    Lookup,
    /// What a second, smaller model draws with the same noise (Leviathan et al., ICML 2023; the noise makes its draws
    /// agree as often as the two distributions allow).
    Model(Box<DraftModel>),
}

impl std::fmt::Debug for Drafter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Drafter::Lookup => "Lookup",
            Drafter::Model(_) => "Model",
        })
    }
}

impl Drafter {
    /// Whether guessing is computing.
    pub(crate) fn has_backend(&self) -> bool {
        matches!(self, Drafter::Model(_))
    }

    /// A slot has another sequence from now on.
    pub(crate) fn forget(&mut self, slot: u32) {
        if let Drafter::Model(model) = self {
            model.forget(slot);
        }
    }

    /// Proposes guesses to the scheduler.
    ///
    /// # Errors
    /// What the second model's backend said.
    pub(crate) fn draft(&mut self, scheduler: &mut Scheduler, wanted: &[Wanted]) -> Result<(), BackendError> {
        match self {
            Drafter::Lookup => {
                for one in wanted {
                    let mut found = [0; DRAFT_TOKENS_MAX];
                    let count = lookup(&scheduler.sequence(one.id).tokens, &mut found[..one.tokens]);
                    scheduler.propose(one.id, &found[..count]);
                }
                Ok(())
            }
            Drafter::Model(model) => model.draft(scheduler, wanted),
        }
    }
}

/// Tokens to guess for a sequence that has drawn all but `left` of its tokens: the last one is drawn, never computed.
pub(crate) fn width(reach: &mut Reach, left: usize) -> usize {
    reach.now(left.saturating_sub(1).min(DRAFT_TOKENS_MAX))
}

/// Fills `into` with what followed the latest earlier occurrence of the last tokens, as if that went round and round;
/// returns how many: all or none.
fn lookup(tokens: &[u32], into: &mut [u32]) -> usize {
    let tokens = &tokens[tokens.len().saturating_sub(LOOKUP_TOKENS)..];
    for length in LOOKUP_NGRAMS {
        let Some(before) = tokens.len().checked_sub(length + 1) else { continue };
        let last = &tokens[tokens.len() - length..];
        let Some(start) = (0..=before).rev().find(|&start| tokens[start..start + length] == *last) else { continue };
        let follows = &tokens[start + length..];
        for (i, token) in into.iter_mut().enumerate() {
            *token = follows[i % follows.len()];
        }
        return into.len();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_goes_on_as_it_went_on_before() {
        let table: [(&[u32], &[u32]); 6] = [
            (&[1, 2, 3, 4, 5, 6, 7, 2, 3, 4], &[5, 6, 7, 2]),
            // The latest occurrence counts.
            (&[2, 3, 4, 8, 8, 2, 3, 4, 9, 9, 2, 3, 4], &[9, 9, 2, 3]),
            // Four tokens count more than three.
            (&[1, 2, 3, 4, 8, 8, 2, 3, 4, 9, 9, 1, 2, 3, 4], &[8, 8, 2, 3]),
            // Round and round.
            (&[7, 7, 7, 7], &[7, 7, 7, 7]),
            (&[5, 6, 5, 6, 5], &[6, 5, 6, 5]),
            (&[1, 2, 3, 4, 5, 6], &[]),
        ];
        for (tokens, expected) in table {
            let mut found = [0; 4];
            let count = lookup(tokens, &mut found);
            assert_eq!(&found[..count], expected, "{tokens:?}");
        }
        for short in 0..4 {
            assert_eq!(lookup(&vec![1; short], &mut [0; 4]), 0);
        }
    }

    #[test]
    fn the_reach_follows_what_was_right() {
        let mut reach = Reach::START;
        assert_eq!(width(&mut reach, 100), 2);
        reach.learn(2, 2);
        reach.learn(4, 4);
        reach.learn(8, 8);
        assert_eq!(width(&mut reach, 100), DRAFT_TOKENS_MAX);
        assert_eq!(width(&mut reach, 4), 3, "the last token is not computed");
        assert_eq!(width(&mut reach, 1), 0);
        reach.learn(8, 2);
        assert_eq!(width(&mut reach, 100), 3);
        (0..3).for_each(|_| reach.learn(3, 0));
        let paused = (0..100).take_while(|_| width(&mut reach, 100) == 0).count();
        assert_eq!(paused, usize::from(PAUSE));
        assert_eq!(width(&mut reach, 100), 1);
    }
}
