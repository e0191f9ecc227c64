//! The part of a receipt that needs no chain: digests, counts, and that request and receipt belong together.

use polylink_protocol::market::{
    SALT_BYTES, answer_amount, check_request, completion_digest, grammar_digest, prompt_digest, request_digest,
};
use polylink_protocol::market_v1::{FinishReason, Receipt, Request};
use polylink_protocol::transcript::AnswerRecord;
use polylink_protocol::{Address, Amount};

use super::{Fault, fault};

/// Request and receipt of a record, both there.
pub(super) fn parts(record: &AnswerRecord) -> Result<(&Request, &Receipt), Fault> {
    let request = record.request.request.as_ref().ok_or_else(|| fault("request", "is not there"))?;
    let receipt = record.receipt.receipt.as_ref().ok_or_else(|| fault("receipt", "is not there"))?;
    Ok((request, receipt))
}

fn salt(part: &str, bytes: &[u8]) -> Result<[u8; SALT_BYTES], Fault> {
    bytes.try_into().map_err(|_| fault(part, format!("{} bytes, {SALT_BYTES} are expected", bytes.len())))
}

/// Checks everything but signatures and the chain.
pub fn check_answer(record: &AnswerRecord) -> Result<(), Fault> {
    let (request, receipt) = parts(record)?;
    check_request(request).map_err(|e| fault("request", e))?;
    let same = |part: &str, holds: bool, reason: &str| if holds { Ok(()) } else { Err(fault(part, reason)) };

    let prompt = prompt_digest(&salt("prompt_salt", &record.prompt_salt)?, &record.prompt_token_ids);
    same(
        "request.prompt_digest",
        prompt.0[..] == request.prompt_digest[..],
        "prompt_token_ids with prompt_salt do not hash to it",
    )?;
    same(
        "request.sampling.grammar_digest",
        request.sampling.as_ref().is_none_or(|s| s.grammar_digest == grammar_digest(record.grammar.as_deref())),
        "the grammar does not hash to it",
    )?;
    same(
        "receipt.request_digest",
        request_digest(request).0[..] == receipt.request_digest[..],
        "the request does not hash to it",
    )?;
    same("receipt.session", receipt.session == request.session, "is not the request's")?;
    same("receipt.index", receipt.index == request.index, "is not the request's")?;
    same("receipt.epoch", receipt.epoch == request.epoch, "is not the request's")?;
    same("receipt.profile_digest", receipt.profile_digest == request.profile_digest, "is not the request's")?;

    let choices: Vec<&[u32]> = record.completions.iter().map(Vec::as_slice).collect();
    let completion = completion_digest(&salt("completion_salt", &record.completion_salt)?, choices.iter().copied());
    same(
        "receipt.completion_digest",
        completion.0[..] == receipt.completion_digest[..],
        "completions with completion_salt do not hash to it",
    )?;
    same("receipt.sketch_digest", receipt.sketch_digest.len() == 32, "32 bytes are expected")?;
    let tokens: usize = choices.iter().map(|c| c.len()).sum();
    same(
        "receipt.prompt_tokens",
        receipt.prompt_tokens == record.prompt_token_ids.len() as u64,
        "is not the prompt's length",
    )?;
    same("receipt.completion_tokens", receipt.completion_tokens == tokens as u64, "is not the completions' length")?;
    same("receipt.cached_tokens", receipt.cached_tokens <= receipt.prompt_tokens, "is more than the prompt")?;
    same("receipt.finish_reason", FinishReason::try_from(receipt.finish_reason).is_ok(), "is none that exists")?;
    same("receipt.end_time_ms", receipt.start_time_ms <= receipt.end_time_ms, "is before the start")?;
    receipt.worker.parse::<Address>().map_err(|e| fault("receipt.worker", e))?;

    let amount: Amount = receipt.amount.parse().map_err(|e| fault("receipt.amount", e))?;
    let max = request.max_price.unwrap_or_default();
    let most = answer_amount(&max, receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens);
    same(
        "receipt.amount",
        amount <= most,
        &format!("{amount} uplk is more than the request's max_price allows, {most}"),
    )
}
