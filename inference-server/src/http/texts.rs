//! `/tokenize` and `/detokenize`, as vLLM names them: what a model's tokenizer and chat template make of a text.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::local::TextModel;
use super::request::{Kind, prompt_of};
use super::sampling::token_ids;

/// Most token ids of one call.
const IDS_MAX: usize = 1 << 20;

/// A call that was understood, for a model.
pub(crate) enum TextCall {
    /// Text or conversation to token ids.
    Tokenize {
        /// What is to be encoded.
        prompt: super::request::Prompt,
        /// As in a request.
        add_special_tokens: Option<bool>,
        /// The tokens' texts too.
        strings: bool,
    },
    /// Token ids to text.
    Detokenize(Vec<u32>),
}

/// Reads a body of `/tokenize` or `/detokenize`: the model's name, which may be absent where there is only one, and the
/// call.
pub(crate) fn read(decode: bool, body: &[u8]) -> Result<(Option<String>, TextCall), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.text("model")?;
    if decode {
        let ids = token_ids(&mut fields, "tokens", IDS_MAX)?;
        let missing = || ApiError::field("tokens", "`tokens` is missing: a list of token ids is expected");
        return Ok((model, TextCall::Detokenize(ids.ok_or_else(missing)?)));
    }
    let kind = if fields.has("messages") { Kind::Chat } else { Kind::Completion };
    let prompt = prompt_of(kind, &mut fields)?;
    let add_special_tokens = fields.boolean("add_special_tokens")?;
    let strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    Ok((model, TextCall::Tokenize { prompt, add_special_tokens, strings }))
}

/// Answers a call; takes as long as the text is long.
pub(crate) fn answer(call: &TextCall, text: &TextModel) -> Result<Value, ApiError> {
    match call {
        TextCall::Tokenize { prompt, add_special_tokens, strings } => {
            let ids = text.encode(prompt, *add_special_tokens)?;
            let mut object = json!({"count": ids.len(), "max_model_len": text.context_length, "tokens": ids});
            if *strings {
                object["token_strs"] = ids.iter().map(|id| text.tokenizer.token_text(*id)).collect();
            }
            Ok(object)
        }
        TextCall::Detokenize(ids) => {
            text.encode(&super::request::Prompt::Ids(ids.clone()), None).map_err(|mut error| {
                error.param = Some("tokens".into());
                error
            })?;
            Ok(json!({"prompt": text.tokenizer.decode_all(ids)}))
        }
    }
}
