//! The signed objects of the market: their digests, signatures and prices (see `docs/wire.md`).
//!
//! A user's spend key signs a [`Request`]; the worker's receipt key signs a [`Receipt`] that names the request's
//! digest; the spend key then signs a cumulative [`Voucher`] over the chain of receipts that it pays. Each object has
//! one canonical encoding and one digest.

use crate::digest::{self, Digest, Hasher, tag};
use crate::keys::{KeyError, ServiceKey, verify_ed25519};
use crate::market_v1::{
    Model, ModelProfile, Offer, PriceTerms, Receipt, Request, RoyaltyTerms, SignedReceipt, SignedRequest,
    SignedVoucher, TokenPrices, Voucher, Worker, WorkerTerms,
};
use crate::{Amount, amount::AmountError};

/// Bytes of a salt (prompt, completion): too many to guess a short text from its digest.
pub const SALT_BYTES: usize = 32;
/// Bytes of a request's seed.
pub const SEED_BYTES: usize = 32;
/// Bytes of one token's activation sketch: eight f16.
pub const SKETCH_BYTES: usize = 16;

/// Why a signed object is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ObjectError {
    /// A required part is unset.
    #[error("the {object} has no {field}")]
    Missing {
        /// Which object.
        object: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// A field's value is out of its domain.
    #[error("the {object}'s {field} is wrong: {reason}")]
    Field {
        /// Which object.
        object: &'static str,
        /// Which field.
        field: &'static str,
        /// What is expected.
        reason: String,
    },
    /// The signature is wrong.
    #[error("the {object}'s signature: {source}")]
    Signature {
        /// Which object.
        object: &'static str,
        /// What is wrong with it.
        source: KeyError,
    },
    /// An amount's text.
    #[error(transparent)]
    Amount(#[from] AmountError),
}

/// Digest of a model profile: what a worker claims to run and a price is set for.
pub fn profile_digest(profile: &ModelProfile) -> Digest {
    digest::of_message(tag::PROFILE, profile)
}

/// What a profile's `weight_quantization` may be: made while loading, or (the last four) as the files have it.
pub const WEIGHT_QUANTIZATIONS: [&str; 10] =
    ["none", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "gguf", "fp8", "gptq", "awq"];

/// Refuses a profile with digests of another length or empty names.
pub fn check_profile(profile: &ModelProfile) -> Result<(), ObjectError> {
    let wrong = |field, reason: &str| ObjectError::Field { object: "profile", field, reason: reason.into() };
    let (name, revision) = profile.id.split_once('@').unwrap_or((&profile.id, ""));
    if name.split('/').count() != 2
        || name.split('/').any(str::is_empty)
        || revision.is_empty()
        || profile.id.len() > 200
    {
        return Err(wrong("id", "`org/name@revision` of at most 200 bytes is expected"));
    }
    for (field, bytes) in [
        ("config_digest", &profile.config_digest),
        ("tokenizer_digest", &profile.tokenizer_digest),
        ("chat_template_digest", &profile.chat_template_digest),
        ("generation_config_digest", &profile.generation_config_digest),
        ("weights_digest", &profile.weights_digest),
    ] {
        if bytes.len() != 32 {
            return Err(wrong(field, "32 bytes are expected"));
        }
    }
    for (field, text, known) in [
        ("weight_quantization", &profile.weight_quantization, &WEIGHT_QUANTIZATIONS[..]),
        ("compute_dtype", &profile.compute_dtype, &["f32", "int8", "bf16"][..]),
        ("kv_dtype", &profile.kv_dtype, &["f32", "int8", "bf16", "fp8"][..]),
    ] {
        if !known.contains(&text.as_str()) {
            return Err(wrong(field, &format!("one of {known:?} is expected")));
        }
    }
    if profile.numerics.is_empty() || profile.numerics.len() > 32 {
        return Err(wrong("numerics", "the numerics version is expected, such as `exact-1`"));
    }
    Ok(())
}

/// Salted digest of prompt token ids: `salt ‖ n ‖ ids`.
pub fn prompt_digest(salt: &[u8; SALT_BYTES], token_ids: &[u32]) -> Digest {
    ids(Hasher::new(tag::PROMPT).fixed(salt), token_ids).finish()
}

/// Digest of a grammar's text, as a request's sampling parameters name it; no bytes for no grammar.
pub fn grammar_digest(grammar: Option<&str>) -> Vec<u8> {
    grammar.map_or_else(Vec::new, |text| Hasher::new(tag::GRAMMAR).bytes(text.as_bytes()).finish().to_vec())
}

/// Salted digest of the completion token ids of every choice: `salt ‖ choices ‖ (n ‖ ids)…`.
pub fn completion_digest<'a>(salt: &[u8; SALT_BYTES], choices: impl ExactSizeIterator<Item = &'a [u32]>) -> Digest {
    let hasher = Hasher::new(tag::COMPLETION).fixed(salt).u32(choices.len() as u32);
    choices.fold(hasher, ids).finish()
}

/// Digest of the activation sketches of every choice: `choices ‖ (n ‖ n × 16 bytes)…`.
pub fn sketch_digest<'a>(choices: impl ExactSizeIterator<Item = &'a [[u8; SKETCH_BYTES]]>) -> Digest {
    let hasher = Hasher::new(tag::SKETCH).u32(choices.len() as u32);
    choices
        .fold(hasher, |h, sketches| sketches.iter().fold(h.u32(sketches.len() as u32), |h, sketch| h.fixed(sketch)))
        .finish()
}

fn ids(hasher: Hasher, token_ids: &[u32]) -> Hasher {
    token_ids.iter().fold(hasher.u32(token_ids.len() as u32), |h, id| h.u32(*id))
}

/// Digest of a request.
pub fn request_digest(request: &Request) -> Digest {
    digest::of_message(tag::REQUEST, request)
}

/// Digest of a receipt: what vouchers chain over and the Merkle tree holds.
pub fn receipt_digest(receipt: &Receipt) -> Digest {
    digest::of_message(tag::RECEIPT, receipt)
}

/// The chain hash before the first paid receipt.
pub const RECEIPT_CHAIN_START: Digest = Digest([0; 32]);

/// `H(previous ‖ receipt digest)`: the chain over paid receipts in index order.
pub fn chain_receipt(previous: Digest, receipt: Digest) -> Digest {
    Hasher::new(tag::RECEIPT_CHAIN).fixed(&previous.0).fixed(&receipt.0).finish()
}

/// What an answer costs: each count times its price per 1,000, summed, rounded up once.
pub fn answer_amount(prices: &TokenPrices, prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Amount {
    let computed = u128::from(prompt_tokens.saturating_sub(cached_tokens));
    // Three products of two u64 stay under 2^130; saturating keeps an absurd price from wrapping to a small one.
    let milli = (computed.saturating_mul(u128::from(prices.prompt)))
        .saturating_add(u128::from(cached_tokens).saturating_mul(u128::from(prices.cached_prompt)))
        .saturating_add(u128::from(completion_tokens).saturating_mul(u128::from(prices.completion)));
    Amount(milli.div_ceil(1_000))
}

/// The larger of two prices, field by field: what a user pays is max(epoch price, ask).
pub fn max_prices(a: &TokenPrices, b: &TokenPrices) -> TokenPrices {
    TokenPrices {
        prompt: a.prompt.max(b.prompt),
        cached_prompt: a.cached_prompt.max(b.cached_prompt),
        completion: a.completion.max(b.completion),
    }
}

/// The terms of a worker that hold in an epoch: the newest entry that does not begin after it. None before its
/// registration, or where the entry has been dropped because only older epochs needed it; never another epoch's terms.
pub fn terms_at(worker: &Worker, epoch: u64) -> Option<&WorkerTerms> {
    worker.terms.iter().rev().find(|terms| terms.from_epoch <= epoch)
}

/// The terms of `epoch` put in the place of what stands for it or later. `epoch − 2` and what is older is dropped once
/// newer terms replace it, so that at most 3 entries stand: those of the last, this and the next epoch for an update
/// that names the next one.
pub fn set_terms(worker: &mut Worker, terms: WorkerTerms) {
    let oldest_needed = terms.from_epoch.saturating_sub(2);
    worker.terms.retain(|old| old.from_epoch < terms.from_epoch);
    worker.terms.push(terms);
    let in_force = worker.terms.iter().rposition(|old| old.from_epoch <= oldest_needed).unwrap_or(0);
    worker.terms.drain(..in_force);
}

/// What these terms say of a profile.
pub fn offer_in<'a>(terms: &'a WorkerTerms, profile: &Digest) -> Option<&'a Offer> {
    terms.offers.iter().find(|offer| offer.profile_digest == profile.0)
}

/// What a token of a profile costs under these terms: max(epoch price, ask), field by field; the epoch price where they
/// do not offer it.
pub fn price_in(terms: &WorkerTerms, profile: &Digest, epoch_price: &TokenPrices) -> TokenPrices {
    let ask = offer_in(terms, profile).and_then(|offer| offer.ask).unwrap_or_default();
    max_prices(epoch_price, &ask)
}

/// The epoch price of a model in an epoch: the newest entry that does not begin after it, the registered price where there
/// is no entry. None where the entry has been dropped because only older epochs needed it; never another epoch's price.
/// The price of an epoch is fixed before it begins, so that a record which is read in an epoch has its price.
pub fn price_at(model: &Model, epoch: u64) -> Option<TokenPrices> {
    if model.prices.is_empty() {
        return Some(model.price.unwrap_or_default());
    }
    model.prices.iter().rev().find(|entry| entry.from_epoch <= epoch).map(|entry| entry.price.unwrap_or_default())
}

/// The entry of a later epoch put behind those that stand; what is older than `oldest_needed` is dropped. The first one
/// puts what was registered before it.
pub fn set_price(model: &mut Model, entry: PriceTerms, oldest_needed: u64) {
    if model.prices.is_empty() {
        model.prices.push(PriceTerms { from_epoch: model.registered_epoch, price: model.price });
    }
    model.prices.retain(|old| old.from_epoch < entry.from_epoch);
    model.prices.push(entry);
    let in_force = model.prices.iter().rposition(|old| old.from_epoch <= oldest_needed).unwrap_or(0);
    model.prices.drain(..in_force);
}

/// The royalty of a model in an epoch, in basis points; the oldest that is known where the entry has been dropped.
pub fn royalty_at(model: &Model, epoch: u64) -> u32 {
    let entry = model.royalties.iter().rev().find(|entry| entry.from_epoch <= epoch).or(model.royalties.first());
    entry.map_or(model.royalty_bps, |entry| entry.royalty_bps)
}

/// Entries of a model's royalties at most.
pub const ROYALTY_TERMS_MAX: usize = 16;

/// As [`set_price`]; of more than [`ROYALTY_TERMS_MAX`] entries the oldest are dropped.
pub fn set_royalty(model: &mut Model, entry: RoyaltyTerms, oldest_needed: u64) {
    if model.royalties.is_empty() {
        let (from_epoch, royalty_bps) = (model.registered_epoch, model.royalty_bps);
        model.royalties.push(RoyaltyTerms { from_epoch, royalty_bps });
    }
    model.royalties.retain(|old| old.from_epoch < entry.from_epoch);
    model.royalties.push(entry);
    let in_force = model.royalties.iter().rposition(|old| old.from_epoch <= oldest_needed).unwrap_or(0);
    model.royalties.drain(..in_force.max(model.royalties.len().saturating_sub(ROYALTY_TERMS_MAX)));
}

/// True when no field of `price` exceeds `max`.
pub fn within(price: &TokenPrices, max: &TokenPrices) -> bool {
    price.prompt <= max.prompt && price.cached_prompt <= max.cached_prompt && price.completion <= max.completion
}

macro_rules! signed_object {
    ($inner:ident, $signed:ident, $field:ident, $tag:expr, $name:literal, $sign:ident, $verify:ident) => {
        #[doc = concat!("Signs a ", $name, ".")]
        pub fn $sign($field: $inner, key: &ServiceKey) -> $signed {
            let signature = key.sign(&digest::sign_bytes($tag, &$field));
            $signed { $field: Some($field), signature }
        }
        #[doc = concat!("Checks a ", $name, "'s signature and returns it.")]
        pub fn $verify<'a>(signed: &'a $signed, public_key: &[u8]) -> Result<&'a $inner, ObjectError> {
            let object = signed.$field.as_ref().ok_or(ObjectError::Missing { object: $name, field: "body" })?;
            verify_ed25519(public_key, &digest::sign_bytes($tag, object), &signed.signature)
                .map_err(|source| ObjectError::Signature { object: $name, source })?;
            Ok(object)
        }
    };
}

signed_object!(Request, SignedRequest, request, tag::REQUEST, "request", sign_request, verify_request);
signed_object!(Receipt, SignedReceipt, receipt, tag::RECEIPT, "receipt", sign_receipt, verify_receipt);
signed_object!(Voucher, SignedVoucher, voucher, tag::VOUCHER, "voucher", sign_voucher, verify_voucher);

/// Refuses a request whose fields are out of their domains. Signature, session and prices are the caller's to check.
pub fn check_request(request: &Request) -> Result<(), ObjectError> {
    let wrong = |field, reason: &str| Err(ObjectError::Field { object: "request", field, reason: reason.into() });
    let missing = |field| Err(ObjectError::Missing { object: "request", field });
    if request.chain_id.is_empty() {
        return missing("chain_id");
    }
    if request.profile_digest.len() != 32 {
        return wrong("profile_digest", "32 bytes are expected");
    }
    if request.prompt_digest.len() != 32 {
        return wrong("prompt_digest", "32 bytes are expected");
    }
    if request.seed.len() != SEED_BYTES {
        return wrong("seed", "32 bytes are expected");
    }
    if request.max_price.is_none() {
        return missing("max_price");
    }
    let Some(s) = &request.sampling else { return missing("sampling") };
    let in_range = |x: f32, low: f32, high: f32| x.is_finite() && (low..=high).contains(&x);
    if !in_range(s.temperature, 0.0, 2.0) {
        return wrong("temperature", "0 to 2 is expected");
    }
    if !in_range(s.top_p, f32::MIN_POSITIVE, 1.0) {
        return wrong("top_p", "above 0 and at most 1 is expected");
    }
    if !in_range(s.min_p, 0.0, 1.0) {
        return wrong("min_p", "0 to 1 is expected");
    }
    if !in_range(s.repetition_penalty, 0.01, 10.0) {
        return wrong("repetition_penalty", "0.01 to 10 is expected (1 is off)");
    }
    if !in_range(s.presence_penalty, -2.0, 2.0) || !in_range(s.frequency_penalty, -2.0, 2.0) {
        return wrong("presence_penalty or frequency_penalty", "−2 to 2 is expected");
    }
    if s.logit_bias.len() > 1_024 || !s.logit_bias.windows(2).all(|w| w[0].token < w[1].token) {
        return wrong("logit_bias", "at most 1,024 tokens, ascending, each once, are expected");
    }
    if s.logit_bias.iter().any(|b| !in_range(b.bias, -100.0, 100.0)) {
        return wrong("logit_bias", "−100 to 100 is expected");
    }
    if s.max_tokens == 0 {
        return wrong("max_tokens", "at least 1 is expected");
    }
    if s.n == 0 || s.n > 16 {
        return wrong("n", "1 to 16 is expected");
    }
    if !matches!(s.grammar_digest.len(), 0 | 32) {
        return wrong("grammar_digest", "32 bytes are expected, or none where there is no grammar");
    }
    if s.stop.len() > 16 || s.stop.iter().any(|t| t.is_empty() || t.len() > 256) || s.stop_token_ids.len() > 64 {
        return wrong("stop", "at most 16 texts of 1 to 256 bytes and 64 token ids are expected");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
