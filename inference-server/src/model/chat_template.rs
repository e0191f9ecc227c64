//! The chat template of `tokenizer_config.json`: a conversation to token ids.
//!
//! What always holds: text that a user wrote never becomes a special token. A conversation without such texts is encoded
//! as one rendered text, as everybody does; otherwise the contents are encoded apart from the template around them.

use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use super::error::ModelError;
use super::tokenizer::Tokenizer;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, as the template knows them.
    pub role: String,
    /// Text.
    pub content: String,
}

/// Special tokens that templates refer to by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct TemplateTokens {
    pub(crate) bos: String,
    pub(crate) eos: String,
}

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    text: String,
    tokens: TemplateTokens,
}

/// Surrounds the number of a content while the template is rendered around it; a private-use character that no
/// tokenizer treats specially.
const MARK: char = '\u{f8ff}';

impl ChatTemplate {
    pub(crate) fn parse(text: String, tokens: TemplateTokens) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", text.clone()).map_err(template_error)?;
        Ok(Self { environment, text, tokens })
    }

    /// The template's own text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The conversation as one text, with the beginning of the assistant's answer.
    ///
    /// # Errors
    /// [`ModelError::Template`]: what the template says against the conversation, such as an unknown role.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, ModelError> {
        let template = self.environment.get_template("chat").map_err(template_error)?;
        template
            .render(context! {
                messages => messages,
                add_generation_prompt => true,
                bos_token => self.tokens.bos,
                eos_token => self.tokens.eos,
            })
            .map_err(template_error)
    }

    /// The conversation's token ids: the prompt of a request.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn encode(&self, messages: &[ChatMessage], tokenizer: &Tokenizer) -> Result<Vec<u32>, ModelError> {
        let plain = |role: &str| !role.is_empty() && role.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if let Some(message) = messages.iter().find(|message| !plain(&message.role)) {
            return Err(ModelError::Template { reason: format!("role {:?} is not a plain word", message.role) });
        }
        if !messages.iter().any(|message| tokenizer.has_special(&message.content)) {
            return tokenizer.encode(&self.render(messages)?);
        }
        let marked: Vec<ChatMessage> = messages
            .iter()
            .enumerate()
            .map(|(i, message)| ChatMessage { role: message.role.clone(), content: format!("{MARK}{i}{MARK}") })
            .collect();
        // Odd pieces are numbers of contents.
        let mut ids = Vec::new();
        for (i, piece) in self.render(&marked)?.split(MARK).enumerate() {
            match piece.parse::<usize>().ok().filter(|_| i % 2 == 1).and_then(|index| messages.get(index)) {
                Some(message) => ids.extend(tokenizer.encode_plain(&message.content)?),
                None => ids.extend(tokenizer.encode(piece)?),
            }
        }
        Ok(ids)
    }
}

fn template_error(error: minijinja::Error) -> ModelError {
    let reason = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    ModelError::Template { reason }
}
