//! Prices, signatures and the refusals of requests.

use super::*;
use crate::market_v1::Sampling;

fn request() -> Request {
    Request {
        chain_id: "polylink-test".into(),
        session: 3,
        epoch: 7,
        index: 11,
        profile_digest: vec![1; 32],
        prompt_digest: prompt_digest(&[2; 32], &[5, 6, 7]).to_vec(),
        sampling: Some(Sampling {
            temperature: 0.7,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_tokens: 16,
            n: 1,
            ..Default::default()
        }),
        max_price: Some(TokenPrices { prompt: 10, cached_prompt: 1, completion: 20 }),
        seed: vec![9; 32],
    }
}

#[test]
fn amounts_round_up_once() {
    let prices = TokenPrices { prompt: 10, cached_prompt: 1, completion: 20 };
    // 2·10 + 1·1 + 3·20 = 81 milli-uplk.
    assert_eq!(answer_amount(&prices, 3, 1, 3), Amount(1));
    assert_eq!(answer_amount(&prices, 1_100, 100, 500), Amount(21));
    assert_eq!(answer_amount(&prices, 0, 0, 0), Amount(0));
    let absurd = TokenPrices { prompt: u64::MAX, cached_prompt: u64::MAX, completion: u64::MAX };
    assert!(answer_amount(&absurd, u64::MAX, 0, u64::MAX) >= answer_amount(&absurd, u64::MAX, 0, 0));
}

#[test]
fn a_signature_covers_every_field() {
    let key = ServiceKey::from_bytes(&[4; 32]);
    let signed = sign_request(request(), &key);
    assert!(verify_request(&signed, &key.public_key()).is_ok());
    let mut altered = signed.clone();
    altered.request.as_mut().unwrap().sampling.as_mut().unwrap().temperature = 0.8;
    assert!(matches!(verify_request(&altered, &key.public_key()), Err(ObjectError::Signature { .. })));
    let other = ServiceKey::from_bytes(&[5; 32]);
    assert!(matches!(verify_request(&signed, &other.public_key()), Err(ObjectError::Signature { .. })));
    assert!(matches!(
        verify_request(&SignedRequest::default(), &key.public_key()),
        Err(ObjectError::Missing { object: "request", .. })
    ));
}

#[test]
fn wrong_requests_are_named() {
    assert_eq!(check_request(&request()), Ok(()));
    type Break = fn(&mut Request);
    let cases: [(&str, Break); 7] = [
        ("chain_id", |r| r.chain_id.clear()),
        ("seed", |r| r.seed.truncate(31)),
        ("temperature", |r| r.sampling.as_mut().unwrap().temperature = f32::NAN),
        ("top_p", |r| r.sampling.as_mut().unwrap().top_p = 0.0),
        ("max_tokens", |r| r.sampling.as_mut().unwrap().max_tokens = 0),
        ("n", |r| r.sampling.as_mut().unwrap().n = 17),
        ("max_price", |r| r.max_price = None),
    ];
    for (field, break_it) in cases {
        let mut broken = request();
        break_it(&mut broken);
        let error = check_request(&broken).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

fn terms(from_epoch: u64, key: u8) -> WorkerTerms {
    WorkerTerms { from_epoch, receipt_key: vec![key], offers: vec![] }
}

/// Updates in these epochs, each with the terms from the next one on, as (epoch, key).
fn updated(registered: u64, updates: &[(u64, u8)]) -> Worker {
    let mut worker = Worker::default();
    set_terms(&mut worker, terms(registered, 0));
    updates.iter().for_each(|(epoch, key)| set_terms(&mut worker, terms(epoch + 1, *key)));
    worker
}

#[test]
fn terms_hold_from_their_epoch() {
    type Entries = &'static [(u64, u8)];
    let cases: [(&str, Entries, Entries); 6] = [
        ("registered", &[], &[(5, 0)]),
        ("one update", &[(5, 1)], &[(5, 0), (6, 1)]),
        ("two in one epoch: the second replaces the first", &[(5, 1), (5, 2)], &[(5, 0), (6, 2)]),
        ("in following epochs", &[(5, 1), (6, 2)], &[(5, 0), (6, 1), (7, 2)]),
        ("epoch 5 is needed by no epoch from 6 on", &[(5, 1), (6, 2), (7, 3)], &[(6, 1), (7, 2), (8, 3)]),
        ("epoch 8 still needs what held in it", &[(5, 1), (9, 2)], &[(6, 1), (10, 2)]),
    ];
    for (case, updates, standing) in cases {
        let worker = updated(5, updates);
        let found: Vec<(u64, u8)> = worker.terms.iter().map(|t| (t.from_epoch, t.receipt_key[0])).collect();
        assert_eq!(found, standing, "{case}");
    }
    let worker = updated(5, &[(5, 1), (6, 2), (7, 3)]);
    let key = |epoch| terms_at(&worker, epoch).map(|terms| terms.receipt_key[0]);
    assert_eq!([4, 5, 6, 7, 8, 100].map(key), [None, None, Some(1), Some(2), Some(3), Some(3)]);
}

#[test]
fn the_terms_of_last_epoch_stand_after_any_updates() {
    // Whatever the epochs of updates, in every epoch x the terms of x − 1, x and x + 1 can be told, and only they.
    for mask in 0_u32..1 << 10 {
        let mut worker = updated(0, &[]);
        let mut expected = [0_u8; 12];
        for epoch in (0..10).filter(|epoch| mask & (1 << epoch) != 0) {
            expected[epoch + 1..].fill(epoch as u8 + 1);
            set_terms(&mut worker, terms(epoch as u64 + 1, epoch as u8 + 1));
            assert!(worker.terms.len() <= 3);
            for (at, expected) in expected.iter().enumerate().take(epoch + 2).skip(epoch.saturating_sub(1)) {
                let key = terms_at(&worker, at as u64).map(|terms| terms.receipt_key[0]);
                assert_eq!(key, Some(*expected), "{mask:b} {epoch} {at}");
            }
        }
    }
}

#[test]
fn a_price_is_the_larger_of_epoch_price_and_ask_field_by_field() {
    let profile = Digest([3; 32]);
    let prices = |prompt, cached_prompt, completion| TokenPrices { prompt, cached_prompt, completion };
    let offer = Offer { profile_digest: profile.to_vec(), ask: Some(prices(5, 9, 1)), capacity_tokens_per_epoch: 1 };
    let terms = WorkerTerms { offers: vec![offer], ..terms(0, 1) };
    assert_eq!(price_in(&terms, &profile, &prices(7, 2, 3)), prices(7, 9, 3));
    assert_eq!(price_in(&terms, &Digest([4; 32]), &prices(7, 2, 3)), prices(7, 2, 3));
}

#[test]
fn digests_of_tokens_are_salted_and_unambiguous() {
    let salt = [1; 32];
    assert_ne!(prompt_digest(&salt, &[1, 2]), prompt_digest(&[2; 32], &[1, 2]));
    let one: [&[u32]; 1] = [&[1, 2]];
    let two: [&[u32]; 2] = [&[1], &[2]];
    assert_ne!(completion_digest(&salt, one.into_iter()), completion_digest(&salt, two.into_iter()));
}
