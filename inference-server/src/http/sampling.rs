//! Sampling parameters from OpenAI's (and vLLM's additional) fields.

use polylink_kernels::TEMPERATURE_MIN;
use polylink_protocol::digest::Hasher;
use polylink_protocol::market_v1::{LogitBias, Sampling};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, expected};

/// Most stop texts, and bytes of each (`protocol::market::check_request`).
const STOP_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 256;
/// Most stop tokens.
const STOP_TOKENS_MAX: usize = 64;
/// Most biased tokens.
const LOGIT_BIAS_MAX: usize = 1_024;

/// A client's integer seed as 32 bytes: `SHA-256("polylink/client-seed/v1" ‖ 0 ‖ u64 big-endian)`; a negative one in two's
/// complement.
pub fn client_seed(seed: i64) -> [u8; 32] {
    Hasher::new("polylink/client-seed/v1").u64(seed as u64).finish().0
}

/// Temperatures that are hardly above 0 mean "as good as greedy": the lowest that can be divided by.
pub(crate) fn usable_temperature(temperature: f32) -> f32 {
    if temperature > 0.0 { temperature.max(TEMPERATURE_MIN) } else { temperature }
}

/// Reads every field that changes which tokens come out. `max_tokens` is the caller's.
pub(crate) fn sampling(fields: &mut Fields, max_tokens: u32) -> Result<Sampling, ApiError> {
    let min_tokens = fields.integer("min_tokens", 0, i64::from(u32::MAX))?.unwrap_or(0) as u32;
    if max_tokens > 0 && min_tokens > max_tokens {
        return Err(ApiError::field(
            "min_tokens",
            format!("`min_tokens` is {min_tokens}, at most max_tokens ({max_tokens}) is expected"),
        ));
    }
    // −1 is how vLLM and others write "off".
    let top_k = fields.integer("top_k", -1, i64::from(u32::MAX))?.unwrap_or(0).max(0) as u32;
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0, 2.0)?.map_or(1.0, usable_temperature),
        // 0 leaves the likeliest token alone, as the least positive number does.
        top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE),
        top_k,
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty", 0.01, 10.0)?.unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields)?,
        max_tokens,
        min_tokens,
        stop: stop(fields)?,
        stop_token_ids: token_ids(fields, "stop_token_ids", STOP_TOKENS_MAX)?.unwrap_or_default(),
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        n: fields.integer("n", 1, i64::from(crate::engine::api::CHOICES_MAX))?.unwrap_or(1) as u32,
        grammar_digest: vec![],
    })
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stop = match fields.take("stop") {
        None => return Ok(vec![]),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(expected("stop", &other, "a text or a list of texts")),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(expected("stop", &other, "a text or a list of texts")),
    };
    if stop.len() > STOP_MAX || stop.iter().any(|text| text.is_empty() || text.len() > STOP_BYTES_MAX) {
        return Err(ApiError::field(
            "stop",
            format!("`stop` takes at most {STOP_MAX} texts of 1 to {STOP_BYTES_MAX} bytes each"),
        ));
    }
    Ok(stop)
}

/// A list of token ids.
pub(crate) fn token_ids(fields: &mut Fields, name: &str, max: usize) -> Result<Option<Vec<u32>>, ApiError> {
    let Some(value) = fields.take(name) else { return Ok(None) };
    let ids = value.as_array().and_then(|list| {
        list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect::<Option<Vec<u32>>>()
    });
    match ids {
        Some(ids) if ids.len() <= max => Ok(Some(ids)),
        Some(ids) => Err(ApiError::field(name, format!("`{name}` has {} tokens, at most {max} are taken", ids.len()))),
        None => Err(expected(name, &value, "a list of token ids")),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<LogitBias>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(vec![]),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(expected("logit_bias", &other, "an object of token id to bias")),
    };
    if map.len() > LOGIT_BIAS_MAX {
        return Err(ApiError::field(
            "logit_bias",
            format!("`logit_bias` has {} tokens, at most {LOGIT_BIAS_MAX} are taken", map.len()),
        ));
    }
    let mut list = map
        .into_iter()
        .map(|(token, bias)| {
            let id = token.parse::<u32>().ok();
            let value = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            match (id, value) {
                (Some(token), Some(bias)) => Ok(LogitBias { token, bias: bias as f32 }),
                _ => Err(ApiError::field(
                    "logit_bias",
                    format!("`logit_bias` has {token:?}: {bias}; token ids with numbers from -100 to 100 are expected"),
                )),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    // The signed request wants them ascending, each once: "1" and "01" are the same token.
    list.sort_by_key(|bias| bias.token);
    if let Some(twice) = list.windows(2).find(|pair| pair[0].token == pair[1].token) {
        return Err(ApiError::field("logit_bias", format!("`logit_bias` names the token {} twice", twice[0].token)));
    }
    Ok(list)
}
