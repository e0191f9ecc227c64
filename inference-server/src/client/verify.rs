//! Does a receipt say what was streamed? Pure; the same check that a gateway makes on each answer and that anybody can
//! make later on a stored record; and the check of a receipt that is fetched later, for a stream that broke off.

use polylink_protocol::market::{
    ObjectError, SALT_BYTES, answer_amount, completion_digest, grammar_digest, prompt_digest, request_digest,
    verify_receipt,
};
use polylink_protocol::market_v1::{FinishReason, Receipt, SignedReceipt, SignedRequest};
use polylink_protocol::transcript::AnswerRecord;
use polylink_protocol::{Amount, Digest};

/// Tokens that a cut stream's receipt may count beyond those that arrived: what was on the wire, and what the worker sent
/// before it noticed.
pub const CUT_SLACK_TOKENS: u64 = 256;

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The receipt's signature or shape.
    #[error("the answer's receipt is not sound: {0}")]
    Object(String),
    /// A field is not what it has to be.
    #[error("the receipt's {field} is wrong: {found} instead of {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// In the receipt.
        found: String,
        /// As it follows from the request and the stream.
        expected: String,
    },
    /// More than the request allows.
    #[error("the receipt asks {found} uplk, the signed request allows {allowed}")]
    Amount {
        /// Asked.
        found: String,
        /// Max price × counts.
        allowed: Amount,
    },
    /// Of a cut stream: another completion than was streamed.
    #[error("choice {choice} of the receipt's completion does not begin with what was streamed")]
    Streamed {
        /// Which choice.
        choice: usize,
    },
    /// Of a cut stream: more than can have been on the wire.
    #[error(
        "the receipt counts {claimed} completion tokens, {seen} arrived, at most {CUT_SLACK_TOKENS} more can have been sent"
    )]
    Beyond {
        /// In the receipt.
        claimed: u64,
        /// That arrived.
        seen: u64,
    },
}

impl From<ObjectError> for VerifyError {
    fn from(error: ObjectError) -> Self {
        Self::Object(error.to_string())
    }
}

/// Checks a complete answer (path and root, if any, are not looked at). Returns what it costs.
pub fn verify_answer(record: &AnswerRecord, worker: &str, receipt_key: &[u8]) -> Result<Amount, VerifyError> {
    let receipt = verify_receipt(&record.receipt, receipt_key)?;
    let amount = verify_terms(&record.request, receipt, worker, &[FinishReason::Stop, FinishReason::Length])?;
    let request = record.request.request.as_ref().ok_or(ObjectError::Missing { object: "request", field: "body" })?;
    let prompt_salt = salt("prompt salt", &record.prompt_salt)?;
    same_digest(
        "prompt_digest (of the request)",
        &request.prompt_digest,
        prompt_digest(&prompt_salt, &record.prompt_token_ids),
    )?;
    let grammar = request.sampling.as_ref().map_or(&[][..], |sampling| &sampling.grammar_digest);
    if grammar != grammar_digest(record.grammar.as_deref()) {
        let (found, expected) = (hex::encode(grammar), hex::encode(grammar_digest(record.grammar.as_deref())));
        return Err(VerifyError::Field { field: "grammar_digest (of the request)", found, expected });
    }
    same_count("prompt_tokens", receipt.prompt_tokens, record.prompt_token_ids.len() as u64)?;
    verify_completion(receipt, &record.completion_salt, &record.completions)?;
    Ok(amount)
}

/// What a worker says of a stream that broke off, and what the payer knows of it.
pub struct CutAnswer<'a> {
    /// As it was signed.
    pub request: &'a SignedRequest,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// What arrived, per choice; None: the payer has restarted since and does not know.
    pub seen: Option<&'a [Vec<u32>]>,
    /// The worker's word.
    pub receipt: &'a SignedReceipt,
    /// The worker's word.
    pub completion_salt: &'a [u8],
    /// The worker's word.
    pub completions: &'a [Vec<u32>],
}

/// Checks the receipt of a stream that broke off: cancelled, or whole where only the end was lost. Returns what it costs.
pub fn verify_cut(cut: &CutAnswer<'_>, worker: &str, receipt_key: &[u8]) -> Result<Amount, VerifyError> {
    let receipt = verify_receipt(cut.receipt, receipt_key)?;
    let ends = [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled];
    let amount = verify_terms(cut.request, receipt, worker, &ends)?;
    same_count("prompt_tokens", receipt.prompt_tokens, cut.prompt_tokens)?;
    verify_completion(receipt, cut.completion_salt, cut.completions)?;
    let sampling = cut.request.request.as_ref().and_then(|r| r.sampling.as_ref());
    let (n, most) = sampling.map_or((1, 0), |s| (s.n.max(1), s.max_tokens as usize));
    same_count("number of choices", cut.completions.len() as u64, u64::from(n))?;
    for completion in cut.completions {
        if completion.len() > most {
            return Err(field("completion_tokens", completion.len(), format!("at most {most} per choice")));
        }
    }
    if let Some(seen) = cut.seen {
        let begins = |(choice, seen): (usize, &Vec<u32>)| {
            let found = cut.completions.get(choice).is_some_and(|completion| completion.starts_with(seen));
            if found { Ok(()) } else { Err(VerifyError::Streamed { choice }) }
        };
        seen.iter().enumerate().try_for_each(begins)?;
        let seen = seen.iter().map(|c| c.len() as u64).sum::<u64>();
        if receipt.completion_tokens > seen.saturating_add(CUT_SLACK_TOKENS) {
            return Err(VerifyError::Beyond { claimed: receipt.completion_tokens, seen });
        }
    }
    Ok(amount)
}

fn field(field: &'static str, found: impl ToString, expected: impl ToString) -> VerifyError {
    VerifyError::Field { field, found: found.to_string(), expected: expected.to_string() }
}

fn same_count(name: &'static str, found: u64, expected: u64) -> Result<(), VerifyError> {
    if found == expected { Ok(()) } else { Err(field(name, found, expected)) }
}

fn same_digest(name: &'static str, found: &[u8], expected: Digest) -> Result<(), VerifyError> {
    if found == expected.0 { Ok(()) } else { Err(field(name, hex::encode(found), expected)) }
}

fn salt(name: &'static str, salt: &[u8]) -> Result<[u8; SALT_BYTES], VerifyError> {
    salt.try_into().map_err(|_| field(name, format!("{} bytes", salt.len()), format!("{SALT_BYTES} bytes")))
}

/// The receipt's digest and count stand for these token ids.
fn verify_completion(receipt: &Receipt, completion_salt: &[u8], completions: &[Vec<u32>]) -> Result<(), VerifyError> {
    let completion_salt = salt("completion salt", completion_salt)?;
    let digest = completion_digest(&completion_salt, completions.iter().map(Vec::as_slice));
    same_digest("completion_digest", &receipt.completion_digest, digest)?;
    let tokens = completions.iter().map(|c| c.len() as u64).sum();
    same_count("completion_tokens", receipt.completion_tokens, tokens)
}

/// What can be checked of a receipt without the stream: that it answers this request, at a price that it allows, and
/// ended in one of these ways.
fn verify_terms(
    signed: &SignedRequest,
    receipt: &Receipt,
    worker: &str,
    ends: &[FinishReason],
) -> Result<Amount, VerifyError> {
    let request = signed.request.as_ref().ok_or(ObjectError::Missing { object: "request", field: "body" })?;
    let expect = |name, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(field(name, found, expected)) }
    };
    expect("request_digest", hex::encode(&receipt.request_digest), request_digest(request).to_string())?;
    expect("worker", receipt.worker.clone(), worker.into())?;
    expect("session", receipt.session.to_string(), request.session.to_string())?;
    expect("index", receipt.index.to_string(), request.index.to_string())?;
    expect("epoch", receipt.epoch.to_string(), request.epoch.to_string())?;
    expect("profile_digest", hex::encode(&receipt.profile_digest), hex::encode(&request.profile_digest))?;
    if receipt.sketch_digest.len() != 32 {
        return Err(field("sketch_digest", hex::encode(&receipt.sketch_digest), "32 bytes"));
    }
    if receipt.cached_tokens > receipt.prompt_tokens {
        return Err(field("cached_tokens", receipt.cached_tokens, format!("at most {}", receipt.prompt_tokens)));
    }
    let sampling = request.sampling.clone().unwrap_or_default();
    let most = u64::from(sampling.max_tokens).saturating_mul(u64::from(sampling.n.max(1)));
    if receipt.completion_tokens > most {
        return Err(field("completion_tokens", receipt.completion_tokens, format!("at most {most}")));
    }
    if !ends.contains(&receipt.finish_reason()) {
        let names: Vec<&str> = ends.iter().map(FinishReason::as_str_name).collect();
        return Err(field("finish_reason", receipt.finish_reason().as_str_name(), names.join(" or ")));
    }
    if receipt.end_time_ms < receipt.start_time_ms {
        return Err(field("end_time_ms", receipt.end_time_ms, "not before the start"));
    }
    let allowed = answer_amount(
        &request.max_price.unwrap_or_default(),
        receipt.prompt_tokens,
        receipt.cached_tokens,
        receipt.completion_tokens,
    );
    match receipt.amount.parse::<Amount>() {
        Ok(amount) if amount <= allowed => Ok(amount),
        _ => Err(VerifyError::Amount { found: receipt.amount.clone(), allowed }),
    }
}

#[cfg(test)]
mod tests;
