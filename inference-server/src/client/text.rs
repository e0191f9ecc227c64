//! The text of a completion from its token ids, on the paying side: what is shown to the user follows from the ids that
//! the receipt is over, not from the worker's word. Stop texts are cut as `crate::engine::TextStream` cuts them.

use std::sync::Arc;

use crate::model::{Detokenizer, Tokenizer};

/// Decodes one choice.
pub struct ChoiceText {
    detokenizer: Detokenizer,
    stop: Arc<[String]>,
    /// Decoded, and possibly the beginning of a stop text.
    held: String,
    stopped: bool,
}

impl ChoiceText {
    /// At the start of a completion.
    pub fn new(tokenizer: Arc<Tokenizer>, stop: Arc<[String]>) -> Self {
        Self { detokenizer: Detokenizer::new(tokenizer), stop, held: String::new(), stopped: false }
    }

    /// Takes a token; returns the text to show now.
    pub fn push(&mut self, id: u32) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(&self.detokenizer.push(id));
        self.release()
    }

    /// The rest, at the end of the choice.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(&self.detokenizer.finish());
        std::mem::take(&mut self.held)
    }

    fn release(&mut self) -> String {
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    (1..=longest).rev().find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn a_possible_stop_text_is_held_back() {
        for (text, stop, expected) in
            [("abc", "cd", 1), ("abc", "abcd", 3), ("abc", "abc", 0), ("", "x", 0), ("aé", "éa", 2), ("aab", "ab!", 2)]
        {
            assert_eq!(overlap(text, stop), expected, "{text} {stop}");
        }
    }
}
