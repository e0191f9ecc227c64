//! Does a receipt say what was streamed? Pure; the same check that a gateway makes on each answer and that anybody can
//! make later on a stored record.

use polylink_protocol::market::{
    ObjectError, SALT_BYTES, answer_amount, completion_digest, prompt_digest, request_digest, verify_receipt,
};
use polylink_protocol::market_v1::{FinishReason, Receipt, SignedRequest};
use polylink_protocol::transcript::AnswerRecord;
use polylink_protocol::{Amount, Digest};

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
}

impl From<ObjectError> for VerifyError {
    fn from(error: ObjectError) -> Self {
        Self::Object(error.to_string())
    }
}

/// Checks an answer (path and root, if any, are not looked at). Returns what it costs.
pub fn verify_answer(record: &AnswerRecord, worker: &str, receipt_key: &[u8]) -> Result<Amount, VerifyError> {
    let receipt = verify_receipt(&record.receipt, receipt_key)?;
    let amount = verify_terms(&record.request, receipt, worker)?;
    let digest = |field, found: &[u8], expected: Digest| {
        let found_text = || hex::encode(found);
        if found == expected.0 {
            Ok(())
        } else {
            Err(VerifyError::Field { field, found: found_text(), expected: expected.to_string() })
        }
    };
    let salt = |field, salt: &[u8]| -> Result<[u8; SALT_BYTES], VerifyError> {
        let expected = || format!("{SALT_BYTES} bytes");
        salt.try_into().map_err(|_| VerifyError::Field {
            field,
            found: format!("{} bytes", salt.len()),
            expected: expected(),
        })
    };
    let prompt_salt = salt("prompt salt", &record.prompt_salt)?;
    let request = record.request.request.as_ref().ok_or(ObjectError::Missing { object: "request", field: "body" })?;
    digest(
        "prompt_digest (of the request)",
        &request.prompt_digest,
        prompt_digest(&prompt_salt, &record.prompt_token_ids),
    )?;
    let completion_salt = salt("completion salt", &record.completion_salt)?;
    let completions = record.completions.iter().map(Vec::as_slice);
    digest("completion_digest", &receipt.completion_digest, completion_digest(&completion_salt, completions))?;
    let counts = [
        ("prompt_tokens", receipt.prompt_tokens, record.prompt_token_ids.len() as u64),
        ("completion_tokens", receipt.completion_tokens, record.completions.iter().map(|c| c.len() as u64).sum()),
    ];
    for (field, found, expected) in counts {
        if found != expected {
            return Err(VerifyError::Field { field, found: found.to_string(), expected: expected.to_string() });
        }
    }
    Ok(amount)
}

/// What can be checked of a receipt without the stream: that it answers this request, at a price that it allows.
pub fn verify_terms(signed: &SignedRequest, receipt: &Receipt, worker: &str) -> Result<Amount, VerifyError> {
    let request = signed.request.as_ref().ok_or(ObjectError::Missing { object: "request", field: "body" })?;
    let expect = |field, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(VerifyError::Field { field, found, expected }) }
    };
    expect("request_digest", hex::encode(&receipt.request_digest), request_digest(request).to_string())?;
    expect("worker", receipt.worker.clone(), worker.into())?;
    expect("session", receipt.session.to_string(), request.session.to_string())?;
    expect("index", receipt.index.to_string(), request.index.to_string())?;
    expect("epoch", receipt.epoch.to_string(), request.epoch.to_string())?;
    expect("profile_digest", hex::encode(&receipt.profile_digest), hex::encode(&request.profile_digest))?;
    if receipt.sketch_digest.len() != 32 {
        return expect("sketch_digest", hex::encode(&receipt.sketch_digest), "32 bytes".into()).map(|()| Amount::ZERO);
    }
    if receipt.cached_tokens > receipt.prompt_tokens {
        let most = format!("at most {}", receipt.prompt_tokens);
        return expect("cached_tokens", receipt.cached_tokens.to_string(), most).map(|()| Amount::ZERO);
    }
    let sampling = request.sampling.clone().unwrap_or_default();
    let most = u64::from(sampling.max_tokens).saturating_mul(u64::from(sampling.n.max(1)));
    if receipt.completion_tokens > most {
        let expected = format!("at most {most}");
        return expect("completion_tokens", receipt.completion_tokens.to_string(), expected).map(|()| Amount::ZERO);
    }
    if !matches!(receipt.finish_reason(), FinishReason::Stop | FinishReason::Length) {
        return expect("finish_reason", receipt.finish_reason.to_string(), "stop or length".into())
            .map(|()| Amount::ZERO);
    }
    if receipt.end_time_ms < receipt.start_time_ms {
        return expect("end_time_ms", receipt.end_time_ms.to_string(), "not before the start".into())
            .map(|()| Amount::ZERO);
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
