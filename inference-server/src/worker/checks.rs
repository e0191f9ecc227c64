//! Whether a call may be answered: pure checks of a signed request against this worker, its session and the time.

use axum::http::StatusCode;
use polylink_protocol::digest::Digest;
use polylink_protocol::market::{
    SALT_BYTES, answer_amount, check_request, grammar_digest, max_prices, offer_in, prompt_digest, terms_at,
    verify_request, within,
};
use polylink_protocol::market_v1::{Request, Sampling, Session, TokenPrices, Worker};
use polylink_protocol::transcript::GenerateCall;
use polylink_protocol::{Amount, amount::AmountError};

use super::book::SessionLimits;
use crate::http::ApiError;

/// What this worker is.
pub(crate) struct Here<'a> {
    pub(crate) chain_id: &'a str,
    pub(crate) operator: &'a str,
    pub(crate) profile: &'a Digest,
    pub(crate) context_length: usize,
    /// Answers in private sessions too.
    pub(crate) private: bool,
}

fn refuse(status: StatusCode, code: &str, message: String) -> ApiError {
    ApiError::new(status, code, message)
}

fn mismatch(param: &str, message: String) -> ApiError {
    let mut error = ApiError::field(param, message);
    error.code = Some("digest_mismatch".into());
    error
}

/// What can be said without the chain: domains, digests, lengths. Returns the request.
pub(crate) fn check_call<'a>(call: &'a GenerateCall, here: &Here) -> Result<&'a Request, ApiError> {
    let request =
        call.request.request.as_ref().ok_or_else(|| ApiError::field("request", "the signed request is missing"))?;
    check_request(request).map_err(|e| ApiError::field("request", e.to_string()))?;
    if request.chain_id != here.chain_id {
        let message =
            format!("the request is for chain `{}`, this worker serves `{}`", request.chain_id, here.chain_id);
        return Err(mismatch("request.chain_id", message));
    }
    if request.profile_digest != here.profile.0 {
        let message = format!(
            "the request is for profile {}, this worker serves {}: ask a worker that offers it",
            hex::encode(&request.profile_digest),
            here.profile
        );
        return Err(mismatch("request.profile_digest", message));
    }
    let salt: &[u8; SALT_BYTES] = call
        .prompt_salt
        .as_slice()
        .try_into()
        .map_err(|_| ApiError::field("prompt_salt", format!("{SALT_BYTES} bytes are expected")))?;
    if prompt_digest(salt, &call.prompt_token_ids).0 != request.prompt_digest[..] {
        return Err(mismatch("prompt_token_ids", "the token ids and salt do not give the signed prompt digest".into()));
    }
    let sampling = request.sampling.as_ref().map_or(&[][..], |sampling| &sampling.grammar_digest);
    if grammar_digest(call.grammar.as_deref()) != sampling {
        return Err(mismatch("grammar", "the grammar is not the one whose digest was signed".into()));
    }
    let (prompt_tokens, context_length) = (call.prompt_token_ids.len(), here.context_length);
    if prompt_tokens == 0 || prompt_tokens >= context_length {
        let mut error = ApiError::field(
            "prompt_token_ids",
            format!("the prompt has {prompt_tokens} tokens, 1 to {} fit this worker's context", context_length - 1),
        );
        error.code = Some("context_length_exceeded".into());
        return Err(error);
    }
    Ok(request)
}

/// Session, key, epochs. Returns what bounds the session.
pub(crate) fn check_session(
    call: &GenerateCall,
    request: &Request,
    session: Option<&Session>,
    here: &Here,
    epoch: u64,
) -> Result<SessionLimits, ApiError> {
    let payment = |code: &str, message: String| refuse(StatusCode::PAYMENT_REQUIRED, code, message);
    let id = request.session;
    let session = session.ok_or_else(|| {
        let message = format!(
            "there is no session {id} on chain: open one that pays {} and sign requests with its key",
            here.operator
        );
        payment("no_session", message)
    })?;
    if session.payee != here.operator {
        return Err(payment(
            "no_session",
            format!("session {id} pays {}, not this worker {}", session.payee, here.operator),
        ));
    }
    if session.closed {
        return Err(payment("session_closed", format!("session {id} is closed: open a new one")));
    }
    if session.revoked {
        let message = format!("the spend key of session {id} was revoked: open a new session with another key");
        return Err(payment("spend_key_revoked", message));
    }
    if session.profile_digest != here.profile.0 {
        return Err(payment("no_session", format!("session {id} is for another profile than {}", here.profile)));
    }
    if session.private && !here.private {
        let message = format!("session {id} is private, and this worker takes none: open one that judges may see");
        return Err(payment("private_session", message));
    }
    verify_request(&call.request, &session.spend_key).map_err(|e| {
        refuse(
            StatusCode::UNAUTHORIZED,
            "wrong_signature",
            format!("{e}; session {id} is spent by the key {}", hex::encode(&session.spend_key)),
        )
    })?;
    if request.epoch > session.expiry_epoch || epoch > session.expiry_epoch {
        return Err(payment(
            "session_expired",
            format!("session {id} expired with epoch {}: open a new one", session.expiry_epoch),
        ));
    }
    if request.epoch > epoch {
        let message = format!("the request is for epoch {}, the chain is in epoch {epoch}", request.epoch);
        return Err(refuse(StatusCode::CONFLICT, "epoch_ahead", message));
    }
    limits(session).map_err(|e| ApiError::internal(format!("session {id} on chain: {e}")))
}

/// What bounds a session, from the chain's record.
pub(crate) fn limits(session: &Session) -> Result<SessionLimits, AmountError> {
    let deposit = Amount::parse_or_zero(&session.deposit)?;
    let cap = Amount::parse_or_zero(&session.cap)?;
    Ok(SessionLimits { funds: deposit.min(cap), window: session.window })
}

/// What this worker asks in an epoch by its terms on chain. Refused where they do not let it answer: a receipt by another
/// key, or of a profile that is not offered, could not be proven.
pub(crate) fn ask_in_force(
    record: &Worker,
    epoch: u64,
    profile: &Digest,
    receipt_key: &[u8],
) -> Result<TokenPrices, ApiError> {
    let unavailable = |code: &str, message: String| ApiError::unavailable(code, message);
    let terms = terms_at(record, epoch).ok_or_else(|| {
        unavailable("not_registered", format!("the worker has no terms on chain for epoch {epoch}: ask again later"))
    })?;
    if terms.receipt_key != receipt_key {
        let from = record.terms.last().map_or(epoch, |newest| newest.from_epoch);
        let message = format!("the worker's new receipt key holds from epoch {from} on: ask again then");
        return Err(unavailable("terms_not_in_force", message));
    }
    let offer = offer_in(terms, profile).ok_or_else(|| {
        let message = format!("the worker does not offer the profile {profile} in epoch {epoch}: ask again later");
        unavailable("terms_not_in_force", message)
    })?;
    Ok(offer.ask.unwrap_or_default())
}

/// The price that the answer is charged at, and the most that it can cost.
pub(crate) fn check_price(
    request: &Request,
    epoch_price: &TokenPrices,
    ask: &TokenPrices,
    prompt_tokens: usize,
    context_length: usize,
) -> Result<(TokenPrices, Amount), ApiError> {
    let price = max_prices(epoch_price, ask);
    let max = request.max_price.unwrap_or_default();
    if !within(&price, &max) {
        let show = |p: &TokenPrices| format!("{}/{}/{}", p.prompt, p.cached_prompt, p.completion);
        let message = format!(
            "the price is {} uplk per 1,000 prompt/cached/completion tokens, the request allows {}: raise max_price",
            show(&price),
            show(&max)
        );
        return Err(refuse(StatusCode::PAYMENT_REQUIRED, "price_too_low", message));
    }
    let default = Sampling::default();
    let sampling = request.sampling.as_ref().unwrap_or(&default);
    let room = context_length.saturating_sub(prompt_tokens) as u64;
    let completion = u64::from(sampling.max_tokens).min(room).saturating_mul(u64::from(sampling.n));
    let worst = answer_amount(&price, prompt_tokens as u64, 0, completion).max(answer_amount(
        &price,
        prompt_tokens as u64,
        prompt_tokens as u64,
        completion,
    ));
    Ok((price, worst))
}

#[cfg(test)]
mod tests;
