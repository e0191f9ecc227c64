//! A sampled transcript, checked: what a judge scores is exactly what user and worker signed and the worker committed.
//!
//! Always holds for a [`Transcript`]: both signatures verify, every digest stands for the ids it came with, and the
//! receipt is the leaf of the committed root that holds the drawn point.

use polylink_protocol::market::{self, SALT_BYTES, SKETCH_BYTES};
use polylink_protocol::market_v1::{Receipt, Request, Sampling, SumNode, TokenPrices};
use polylink_protocol::merkle_sum::{self, Leaf, Sum};
use polylink_protocol::transcript::Disclosure;
use polylink_protocol::{Amount, Digest};

/// What the chain says of the sample.
pub struct Expected<'a> {
    /// The chain's id.
    pub chain_id: &'a str,
    /// The worker's operator address.
    pub worker: &'a str,
    /// Signs the pot's receipts.
    pub receipt_key: &'a [u8],
    /// What each of them is charged at.
    pub price: &'a TokenPrices,
    /// Spend key of the session that the request names.
    pub spend_key: &'a [u8],
    /// All that the session ever held.
    pub deposit: Amount,
    /// The audited epoch.
    pub epoch: u64,
    /// The profile.
    pub profile: &'a Digest,
    /// The committed root.
    pub root: &'a SumNode,
    /// The drawn amount.
    pub point: Amount,
}

/// One choice of an answer.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Token ids, an end token included.
    pub token_ids: Vec<u32>,
    /// One sketch per token.
    pub sketches: Vec<[u8; SKETCH_BYTES]>,
}

/// A verified transcript.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// What was asked.
    pub request: Request,
    /// What was billed.
    pub receipt: Receipt,
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// Text of the grammar, where the request names one.
    pub grammar: Option<String>,
    /// The answer, by choice.
    pub completions: Vec<Completion>,
}

impl Transcript {
    /// The request's sampling parameters; present in every verified request.
    pub fn sampling(&self) -> &Sampling {
        self.request.sampling.as_ref().expect("check_request requires the sampling parameters")
    }
    /// The request's seed.
    pub fn seed(&self) -> [u8; 32] {
        self.request.seed.as_slice().try_into().expect("check_request requires a seed of 32 bytes")
    }
}

/// Why a disclosure is worth no more than a missing one.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// A signed object.
    #[error(transparent)]
    Object(#[from] market::ObjectError),
    /// The path.
    #[error(transparent)]
    Sum(#[from] merkle_sum::SumError),
    /// Anything that does not fit together.
    #[error("{0}")]
    Mismatch(String),
}

fn require(holds: bool, what: &str) -> Result<(), TranscriptError> {
    if holds { Ok(()) } else { Err(TranscriptError::Mismatch(what.into())) }
}

/// Checks a disclosure against what the chain says.
pub fn verify(disclosure: Disclosure, expected: &Expected<'_>) -> Result<Transcript, TranscriptError> {
    let request = market::verify_request(&disclosure.request, expected.spend_key)?.clone();
    market::check_request(&request)?;
    let receipt = market::verify_receipt(&disclosure.receipt, expected.receipt_key)?.clone();

    require(request.chain_id == expected.chain_id, "the request is of another chain")?;
    require(receipt.worker == expected.worker, "the receipt is another worker's")?;
    require(receipt.request_digest == market::request_digest(&request).0, "the receipt is of another request")?;
    let same = (receipt.session, receipt.index, receipt.epoch) == (request.session, request.index, request.epoch);
    require(
        same && receipt.profile_digest == request.profile_digest,
        "receipt and request name different sessions, indexes, epochs or profiles",
    )?;
    require(receipt.epoch == expected.epoch, "the receipt is of another epoch")?;
    require(receipt.profile_digest == expected.profile.0, "the receipt is of another profile")?;

    let salt = |bytes: &[u8]| {
        <[u8; SALT_BYTES]>::try_from(bytes).map_err(|_| TranscriptError::Mismatch("a salt has not 32 bytes".into()))
    };
    let prompt = market::prompt_digest(&salt(&disclosure.prompt_salt)?, &disclosure.prompt_token_ids);
    require(prompt.0 == request.prompt_digest.as_slice(), "the prompt is not the one that was asked")?;
    let grammar = market::grammar_digest(disclosure.grammar.as_deref());
    let named = request.sampling.as_ref().map_or(&[][..], |sampling| &sampling.grammar_digest);
    require(grammar == named, "the grammar is not the one that was asked")?;
    let completion = market::completion_digest(
        &salt(&disclosure.completion_salt)?,
        disclosure.completions.iter().map(Vec::as_slice),
    );
    require(completion.0 == receipt.completion_digest.as_slice(), "the completion is not the one in the receipt")?;

    let completions = pair_sketches(disclosure.completions, &disclosure.sketches)?;
    let sketches: Vec<&[[u8; SKETCH_BYTES]]> = completions.iter().map(|c| c.sketches.as_slice()).collect();
    let digest = market::sketch_digest(sketches.into_iter());
    require(digest.0 == receipt.sketch_digest.as_slice(), "the sketches are not those in the receipt")?;

    let tokens: usize = completions.iter().map(|c| c.token_ids.len()).sum();
    require(receipt.completion_tokens == tokens as u64, "the receipt counts other completion tokens than there are")?;
    require(
        receipt.prompt_tokens == disclosure.prompt_token_ids.len() as u64,
        "the receipt counts other prompt tokens than there are",
    )?;
    require(receipt.cached_tokens <= receipt.prompt_tokens, "the receipt counts more cached than prompt tokens")?;

    let amount: Amount = receipt.amount.parse().map_err(market::ObjectError::from)?;
    let cost =
        |price| market::answer_amount(price, receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens);
    // One price for all of a pot's receipts: a leaf's part of the tree is its tokens, and no answer can draw the samples
    // away from the others.
    require(amount == cost(expected.price), "the receipt's amount is not its tokens times the pot's price")?;
    let most = request.max_price.as_ref().map_or(Amount::ZERO, cost);
    require(amount <= most, "the receipt's amount is above what the request allows for its tokens")?;
    require(amount <= expected.deposit, "the receipt's amount is above the session's deposit")?;

    let leaf = Leaf {
        session: receipt.session,
        index: receipt.index,
        receipt: market::receipt_digest(&receipt),
        tokens: receipt.prompt_tokens.saturating_add(receipt.completion_tokens),
        amount,
    };
    merkle_sum::verify_sample(&leaf, &disclosure.path, &Sum::from_proto(expected.root)?, expected.point)?;
    let (prompt_ids, grammar) = (disclosure.prompt_token_ids, disclosure.grammar);
    Ok(Transcript { request, receipt, prompt_ids, grammar, completions })
}

fn pair_sketches(completions: Vec<Vec<u32>>, sketches: &[Vec<u8>]) -> Result<Vec<Completion>, TranscriptError> {
    require(completions.len() == sketches.len(), "choices and their sketches differ in number")?;
    completions
        .into_iter()
        .zip(sketches)
        .map(|(token_ids, bytes)| {
            let (chunks, rest) = bytes.as_chunks::<SKETCH_BYTES>();
            require(
                rest.is_empty() && chunks.len() == token_ids.len(),
                "a choice has not one sketch of 16 bytes per token",
            )?;
            Ok(Completion { token_ids, sketches: chunks.to_vec() })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
