//! An honest disclosure passes; every altered part is named.

use super::*;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::FinishReason;
use polylink_protocol::merkle_sum::Tree;

const CHAIN: &str = "polylink-test-1";
const WORKER: &str = "poly1worker";

/// An honest disclosure and what the chain says of it.
pub(crate) struct Case {
    pub(crate) disclosure: Disclosure,
    spend_key: Vec<u8>,
    receipt_key: Vec<u8>,
    profile: Digest,
    root: SumNode,
}

pub(crate) fn case() -> Case {
    case_with(|_| ())
}

/// A worker and a user that sign whatever they like.
fn case_with(alter: impl FnOnce(&mut Receipt)) -> Case {
    let (spend, signer) = (ServiceKey::from_bytes(&[1; 32]), ServiceKey::from_bytes(&[2; 32]));
    let profile = Digest([7; 32]);
    let (prompt, completion, sketch) = (vec![1, 2, 3], vec![4_u32, 5], vec![[1_u8; SKETCH_BYTES], [2; SKETCH_BYTES]]);
    let request = Request {
        chain_id: CHAIN.into(),
        session: 1,
        epoch: 4,
        index: 9,
        profile_digest: profile.to_vec(),
        prompt_digest: market::prompt_digest(&[3; 32], &prompt).to_vec(),
        sampling: Some(Sampling { top_p: 1.0, repetition_penalty: 1.0, max_tokens: 8, n: 1, ..Default::default() }),
        max_price: Some(TokenPrices { prompt: 1_000, cached_prompt: 0, completion: 1_000 }),
        seed: vec![5; 32],
    };
    let mut receipt = Receipt {
        request_digest: market::request_digest(&request).to_vec(),
        worker: WORKER.into(),
        session: 1,
        index: 9,
        epoch: 4,
        profile_digest: profile.to_vec(),
        completion_digest: market::completion_digest(&[6; 32], [completion.as_slice()].into_iter()).to_vec(),
        sketch_digest: market::sketch_digest([sketch.as_slice()].into_iter()).to_vec(),
        prompt_tokens: 3,
        cached_tokens: 0,
        completion_tokens: 2,
        amount: "5".into(),
        finish_reason: FinishReason::Stop as i32,
        start_time_ms: 1,
        end_time_ms: 2,
    };
    alter(&mut receipt);
    let (tokens, amount) =
        (receipt.prompt_tokens.saturating_add(receipt.completion_tokens), receipt.amount.parse().unwrap_or_default());
    let leaf = Leaf { session: 1, index: 9, receipt: market::receipt_digest(&receipt), tokens, amount };
    let other = Leaf { session: 2, index: 0, receipt: Digest([0; 32]), tokens: 0, amount: Amount(3) };
    let tree = Tree::new(vec![leaf, other]).unwrap();
    let root = tree.root().to_proto();
    let disclosure = Disclosure {
        request: market::sign_request(request, &spend),
        receipt: market::sign_receipt(receipt, &signer),
        path: tree.path(0).unwrap(),
        root: root.clone(),
        prompt_salt: vec![3; 32],
        prompt_token_ids: prompt,
        grammar: None,
        completion_salt: vec![6; 32],
        completions: vec![completion],
        sketches: vec![sketch.concat()],
    };
    Case {
        disclosure,
        spend_key: spend.public_key().to_vec(),
        receipt_key: signer.public_key().to_vec(),
        profile,
        root,
    }
}

pub(crate) fn check(case: &Case, disclosure: Disclosure, point: u128) -> Result<Transcript, TranscriptError> {
    check_at(1_000, case, disclosure, point)
}

fn check_at(price: u64, case: &Case, disclosure: Disclosure, point: u128) -> Result<Transcript, TranscriptError> {
    let expected = Expected {
        chain_id: CHAIN,
        worker: WORKER,
        receipt_key: &case.receipt_key,
        price: &TokenPrices { prompt: price, cached_prompt: 0, completion: price },
        spend_key: &case.spend_key,
        deposit: Amount(5),
        epoch: 4,
        profile: &case.profile,
        root: &case.root,
        point: Amount(point),
    };
    verify(disclosure, &expected)
}

#[test]
fn an_honest_disclosure_passes() {
    let case = case();
    let transcript = check(&case, case.disclosure.clone(), 4).unwrap();
    assert_eq!(transcript.completions[0].token_ids, [4, 5]);
    assert_eq!(transcript.completions[0].sketches[1], [2; SKETCH_BYTES]);
    assert!(check(&case, case.disclosure.clone(), 5).is_err(), "the point lies in another leaf");
}

#[test]
fn every_altered_part_is_refused() {
    type Alter = fn(&mut Disclosure);
    let alterations: [(&str, Alter); 12] = [
        ("grammar", |d| d.grammar = Some("regex:a".into())),
        ("prompt", |d| d.prompt_token_ids[0] = 9),
        ("prompt", |d| d.prompt_salt[0] = 9),
        ("completion", |d| d.completions[0][0] = 9),
        ("completion", |d| d.completion_salt[0] = 9),
        ("sketches", |d| d.sketches[0][0] = 9),
        ("sketch", |d| d.sketches[0].truncate(16)),
        ("request's signature", |d| d.request.request.as_mut().unwrap().index = 8),
        ("request's signature", |d| d.request.signature[0] ^= 1),
        ("receipt's signature", |d| d.receipt.receipt.as_mut().unwrap().amount = "6".into()),
        ("root", |d| d.path.steps[0].sibling.as_mut().unwrap().amount = "4".into()),
        ("salt", |d| d.prompt_salt.truncate(31)),
    ];
    let case = case();
    for (word, alter) in alterations {
        let mut altered = case.disclosure.clone();
        alter(&mut altered);
        let error = check(&case, altered, 4).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_receipt_at_another_price_than_the_pots_is_refused() {
    let case = case();
    for price in [600, 1_200, 1_000_000] {
        let error = check_at(price, &case, case.disclosure.clone(), 4).unwrap_err().to_string();
        assert!(error.contains("the pot's price"), "{price}: {error}");
    }
    // The request allows 1,000; a pot's price below it that comes to the same amount is the same charge.
    assert!(check_at(999, &case, case.disclosure.clone(), 4).is_ok());
}

#[test]
fn absurd_counts_are_refused_and_wrap_nowhere() {
    type Alter = fn(&mut Receipt);
    let alterations: [(&str, Alter); 7] = [
        ("completion tokens", |r| r.completion_tokens = u64::MAX),
        ("prompt tokens", |r| r.prompt_tokens = u64::MAX),
        ("cached", |r| r.cached_tokens = u64::MAX),
        ("the pot's price", |r| r.amount = (u128::MAX - 3).to_string()),
        ("amount", |r| r.amount = "-1".into()),
        ("epoch", |r| r.epoch = u64::MAX),
        ("session", |r| r.session = u64::MAX),
    ];
    for (word, alter) in alterations {
        let case = case_with(alter);
        let error = check(&case, case.disclosure.clone(), 4).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    // A path of absurd counts, under a root to match.
    let mut case = case();
    let sibling = case.disclosure.path.steps[0].sibling.as_mut().unwrap();
    (sibling.count, sibling.tokens, sibling.amount) = (u64::MAX, u64::MAX, u128::MAX.to_string());
    (case.root.count, case.root.tokens, case.root.amount) = (u64::MAX, u64::MAX, u128::MAX.to_string());
    let error = check(&case, case.disclosure.clone(), 4).unwrap_err().to_string();
    assert!(error.contains("overflow"), "{error}");
    case.disclosure.path.steps = vec![case.disclosure.path.steps[0].clone(); 100_000];
    let error = check(&case, case.disclosure.clone(), 4).unwrap_err().to_string();
    assert!(error.contains("100000 steps"), "{error}");
}
