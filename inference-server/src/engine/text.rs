//! From a request's token ids to its text: incremental detokenising and stop texts, on the reader's side.
//!
//! What always holds: the texts of a choice's events, joined, are the decoded completion up to (not including) the
//! first stop text; a token that completes a stop text is the choice's last one (counted, hashed, billed); what the
//! engine generated beyond it is dropped here and counts nowhere.

use std::collections::VecDeque;
use std::sync::Arc;

use super::api::{Event, FailureCode, FinishReason, PromptToken, TokenEvent, Usage};
use super::outbox::RequestStream;
use crate::model::{Detokenizer, Tokenizer};

/// As [`Event`], with text.
#[derive(Clone, Debug, PartialEq)]
pub enum TextEvent {
    /// A prompt token's logprob.
    Prompt(PromptToken),
    /// A completion token and the text that it completes: empty while a character is unfinished or a stop text possible.
    Token {
        /// The token.
        token: TokenEvent,
        /// Text to show now.
        text: String,
    },
    /// A choice has ended.
    Finished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// The last of its text, held back until now.
        text: String,
    },
    /// All choices have ended.
    Done {
        /// What is billed: completion tokens are those given out as [`TextEvent::Token`].
        usage: Usage,
    },
    /// The request failed; nothing is billed.
    Failed {
        /// What kind of failure.
        code: FailureCode,
        /// What happened and what to do.
        message: String,
    },
}

/// A [`RequestStream`] with text and stop texts. Dropping it cancels the request.
pub struct TextStream {
    stream: RequestStream,
    stop: Vec<String>,
    choices: Vec<Choice>,
    pending: VecDeque<TextEvent>,
    completion_tokens: u64,
}

struct Choice {
    detokenizer: Detokenizer,
    /// Decoded, not yet given out: it may be the beginning of a stop text.
    held: String,
    finished: bool,
}

impl TextStream {
    /// `n` choices; `stop` as in the request's sampling parameters (each not empty).
    pub fn new(stream: RequestStream, tokenizer: Arc<Tokenizer>, n: u32, stop: Vec<String>) -> Self {
        let choices = (0..n)
            .map(|_| Choice {
                detokenizer: Detokenizer::new(Arc::clone(&tokenizer)),
                held: String::new(),
                finished: false,
            })
            .collect();
        let stop = stop.into_iter().filter(|text| !text.is_empty()).collect();
        Self { stream, stop, choices, pending: VecDeque::new(), completion_tokens: 0 }
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<TextEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let event = self.stream.next().await?;
            self.take(event);
        }
    }

    /// As [`TextStream::next`], for threads that may block.
    pub fn blocking_next(&mut self) -> Option<TextEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let event = self.stream.blocking_next()?;
            self.take(event);
        }
    }

    /// Stops all choices within one step; go on reading until `None`.
    pub fn cancel(&self) {
        self.stream.cancel();
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Prompt(token) => self.pending.push_back(TextEvent::Prompt(token)),
            Event::Token(token) => self.take_token(token),
            Event::Finished { choice, reason } => {
                let Some(state) = self.choices.get_mut(choice as usize) else { return };
                if !state.finished {
                    state.finished = true;
                    state.held.push_str(&state.detokenizer.finish());
                    let text = std::mem::take(&mut state.held);
                    self.pending.push_back(TextEvent::Finished { choice, reason, text });
                }
            }
            Event::Done { usage } => {
                let usage = Usage { completion_tokens: self.completion_tokens, ..usage };
                self.pending.push_back(TextEvent::Done { usage });
            }
            Event::Failed { code, message } => self.pending.push_back(TextEvent::Failed { code, message }),
        }
    }

    fn take_token(&mut self, token: TokenEvent) {
        let choice = token.choice;
        let Some(state) = self.choices.get_mut(choice as usize) else { return };
        if state.finished {
            return;
        }
        self.completion_tokens += 1;
        state.held.push_str(&state.detokenizer.push(token.id));
        if let Some(at) = self.stop.iter().filter_map(|stop| state.held.find(stop.as_str())).min() {
            state.held.truncate(at);
            state.finished = true;
            let text = std::mem::take(&mut state.held);
            self.stream.stop_choice(choice);
            self.pending.push_back(TextEvent::Token { token, text });
            self.pending.push_back(TextEvent::Finished { choice, reason: FinishReason::Stop, text: String::new() });
            return;
        }
        let keep = self.stop.iter().map(|stop| overlap(&state.held, stop)).max().unwrap_or(0);
        let text: String = state.held.drain(..state.held.len() - keep).collect();
        self.pending.push_back(TextEvent::Token { token, text });
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&length| stop.is_char_boundary(length) && text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
#[path = "text/tests.rs"]
mod tests;
