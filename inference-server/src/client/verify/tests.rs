//! A sound answer is accepted; with any single field altered it is refused, and the fault is named.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{sign_receipt, sign_request};
use polylink_protocol::market_v1::{Request, Sampling, TokenPrices};

use super::*;

fn receipt_key() -> ServiceKey {
    ServiceKey::from_bytes(&[6; 32])
}

fn record(change: impl FnOnce(&mut Receipt)) -> AnswerRecord {
    let (prompt_salt, completion_salt) = ([1; 32], [2; 32]);
    let (prompt_token_ids, completions) = (vec![5, 6, 7], vec![vec![8, 9], vec![10]]);
    let request = Request {
        chain_id: "c".into(),
        session: 7,
        epoch: 3,
        index: 4,
        profile_digest: vec![9; 32],
        prompt_digest: prompt_digest(&prompt_salt, &prompt_token_ids).to_vec(),
        sampling: Some(Sampling { max_tokens: 4, n: 2, ..Default::default() }),
        max_price: Some(TokenPrices { prompt: 1_000, cached_prompt: 500, completion: 2_000 }),
        seed: vec![0; 32],
    };
    let mut receipt = Receipt {
        request_digest: request_digest(&request).to_vec(),
        worker: "poly1w".into(),
        session: 7,
        index: 4,
        epoch: 3,
        profile_digest: vec![9; 32],
        completion_digest: completion_digest(&completion_salt, completions.iter().map(Vec::as_slice)).to_vec(),
        sketch_digest: vec![3; 32],
        prompt_tokens: 3,
        cached_tokens: 1,
        completion_tokens: 3,
        amount: "9".into(),
        finish_reason: FinishReason::Stop as i32,
        start_time_ms: 10,
        end_time_ms: 20,
    };
    change(&mut receipt);
    AnswerRecord {
        request: sign_request(request, &ServiceKey::from_bytes(&[5; 32])),
        receipt: sign_receipt(receipt, &receipt_key()),
        prompt_salt: prompt_salt.to_vec(),
        prompt_token_ids,
        grammar: None,
        completion_salt: completion_salt.to_vec(),
        completions,
        path: None,
        root: None,
    }
}

fn verify(record: &AnswerRecord) -> Result<Amount, VerifyError> {
    verify_answer(record, "poly1w", &receipt_key().public_key())
}

#[test]
fn a_sound_answer_costs_what_it_says() {
    // 2 computed at 1,000, 1 cached at 500, 3 completed at 2,000 per 1,000: 8.5, rounded up.
    assert_eq!(verify(&record(|_| ())), Ok(Amount(9)));
    assert_eq!(verify(&record(|r| r.amount = "1".into())), Ok(Amount(1)), "less than allowed is fine");
}

#[test]
fn every_field_of_the_receipt_is_checked() {
    type Change = fn(&mut Receipt);
    let table: &[(&str, Change)] = &[
        ("request_digest", |r| r.request_digest[0] ^= 1),
        ("worker", |r| r.worker = "poly1x".into()),
        ("session", |r| r.session += 1),
        ("index", |r| r.index += 1),
        ("epoch", |r| r.epoch += 1),
        ("profile_digest", |r| r.profile_digest[0] ^= 1),
        ("completion_digest", |r| r.completion_digest[0] ^= 1),
        ("sketch_digest", |r| r.sketch_digest.truncate(31)),
        ("prompt_tokens", |r| r.prompt_tokens += 1),
        ("cached_tokens", |r| r.cached_tokens = 4),
        ("completion_tokens", |r| r.completion_tokens = 9),
        ("completion_tokens", |r| r.completion_tokens = 2),
        ("finish_reason", |r| r.finish_reason = FinishReason::Cancelled as i32),
        ("end_time_ms", |r| r.end_time_ms = 9),
    ];
    for (name, change) in table {
        match verify(&record(change)) {
            Err(VerifyError::Field { field, .. }) => assert_eq!(field, *name),
            // Another count allows another amount: the price is what catches it then.
            Err(VerifyError::Amount { .. }) if name.ends_with("tokens") => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    for amount in ["10", "", "-1", "x"] {
        let found = verify(&record(|r| r.amount = amount.into()));
        assert!(matches!(found, Err(VerifyError::Amount { .. })), "{amount}: {found:?}");
    }
}

#[test]
fn salts_ids_and_signatures_are_checked() {
    type Change = fn(&mut AnswerRecord);
    let table: &[(&str, Change)] = &[
        ("prompt salt", |r| r.prompt_salt[0] ^= 1),
        ("short prompt salt", |r| r.prompt_salt.truncate(31)),
        ("prompt", |r| r.prompt_token_ids[0] += 1),
        ("grammar", |r| r.grammar = Some("regex:a".into())),
        ("completion salt", |r| r.completion_salt[0] ^= 1),
        ("completion", |r| r.completions[0][1] += 1),
        ("a choice less", |r| r.completions.truncate(1)),
        ("tokens moved between choices", |r| r.completions = vec![vec![8], vec![9, 10]]),
        ("receipt's signature", |r| r.receipt.signature[5] ^= 1),
        ("receipt without signature", |r| r.receipt.signature.clear()),
        ("no receipt", |r| r.receipt.receipt = None),
        ("request's seed", |r| r.request.request.as_mut().unwrap().seed[0] ^= 1),
        ("no request", |r| r.request.request = None),
    ];
    for (name, change) in table {
        let mut altered = record(|_| ());
        change(&mut altered);
        assert!(verify(&altered).is_err(), "{name}");
    }
    let other = verify_answer(&record(|_| ()), "poly1w", &ServiceKey::from_bytes(&[7; 32]).public_key());
    assert!(matches!(other, Err(VerifyError::Object(_))));
}

fn cut(record: &AnswerRecord, seen: Option<&[Vec<u32>]>) -> Result<Amount, VerifyError> {
    let cut = CutAnswer {
        request: &record.request,
        prompt_tokens: 3,
        seen,
        receipt: &record.receipt,
        completion_salt: &record.completion_salt,
        completions: &record.completions,
    };
    verify_cut(&cut, "poly1w", &receipt_key().public_key())
}

/// A cut answer of one choice with so many tokens.
fn cut_record(tokens: u32, change: impl FnOnce(&mut Receipt)) -> AnswerRecord {
    let mut record = record(|_| ());
    let mut request = record.request.request.clone().unwrap();
    request.sampling = Some(Sampling { max_tokens: 1_000, n: 1, ..Default::default() });
    record.completions = vec![(0..tokens).collect()];
    let mut receipt = record.receipt.receipt.clone().unwrap();
    receipt.request_digest = request_digest(&request).to_vec();
    receipt.completion_tokens = u64::from(tokens);
    receipt.completion_digest = completion_digest(&[2; 32], record.completions.iter().map(Vec::as_slice)).to_vec();
    receipt.finish_reason = FinishReason::Cancelled as i32;
    // 2 at 1,000, 1 cached at 500, the completion at 2,000 per 1,000, rounded up.
    receipt.amount = (3 + 2 * u64::from(tokens)).to_string();
    change(&mut receipt);
    record.request = sign_request(request, &ServiceKey::from_bytes(&[5; 32]));
    record.receipt = sign_receipt(receipt, &receipt_key());
    record
}

#[test]
fn a_cut_answer_is_owed_what_was_sent() {
    let sound = cut_record(300, |_| ());
    let seen: Vec<Vec<u32>> = vec![(0..300 - CUT_SLACK_TOKENS as u32).collect()];
    assert_eq!(cut(&sound, Some(&seen)), Ok(Amount(603)), "as much as may have been on the wire");
    assert_eq!(cut(&sound, None), Ok(Amount(603)), "after a restart terms and digests count");
    assert!(matches!(verify(&sound), Err(VerifyError::Field { field: "finish_reason", .. })), "it is no whole answer");
    for reason in [FinishReason::Stop, FinishReason::Length] {
        let ended = cut_record(300, |r| r.finish_reason = reason as i32);
        assert_eq!(cut(&ended, Some(&seen)), Ok(Amount(603)), "only its end was lost");
    }
    assert_eq!(cut(&cut_record(0, |_| ()), Some(&[vec![]])), Ok(Amount(3)));
}

#[test]
fn a_cut_answer_is_not_owed_what_was_not_sent() {
    let sound = cut_record(300, |_| ());
    let fewer: Vec<Vec<u32>> = vec![(0..299 - CUT_SLACK_TOKENS as u32).collect()];
    assert_eq!(cut(&sound, Some(&fewer)), Err(VerifyError::Beyond { claimed: 300, seen: 43 }));
    for other in [vec![vec![1, 1]], vec![(0..301).collect()], vec![vec![0], vec![1]]] {
        assert!(matches!(cut(&sound, Some(&other)), Err(VerifyError::Streamed { .. })), "{other:?}");
    }
    let mut altered = cut_record(300, |_| ());
    altered.completions[0][299] += 1;
    assert!(matches!(cut(&altered, None), Err(VerifyError::Field { field: "completion_digest", .. })));
    type Change = fn(&mut Receipt);
    let table: &[(&str, Change)] = &[
        ("prompt_tokens", |r| (r.prompt_tokens, r.cached_tokens) = (2, 0)),
        ("completion_tokens", |r| r.completion_tokens = 299),
        ("finish_reason", |r| r.finish_reason = FinishReason::Unspecified as i32),
        ("request_digest", |r| r.request_digest[0] ^= 1),
        ("worker", |r| r.worker = "poly1x".into()),
    ];
    for (name, change) in table {
        let found = cut(
            &cut_record(300, |r| {
                change(r);
                r.amount = "1".into()
            }),
            None,
        );
        assert!(matches!(&found, Err(VerifyError::Field { field, .. }) if field == name), "{name}: {found:?}");
    }
    assert!(matches!(cut(&cut_record(300, |r| r.amount = "604".into()), None), Err(VerifyError::Amount { .. })));
    let long = cut_record(1_001, |_| ());
    assert!(matches!(cut(&long, None), Err(VerifyError::Field { field: "completion_tokens", .. })));
    let mut none = cut_record(3, |_| ());
    none.request = Default::default();
    assert!(matches!(cut(&none, None), Err(VerifyError::Object(_))), "a journal of an older version has no request");
}
