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

#[test]
fn digests_of_tokens_are_salted_and_unambiguous() {
    let salt = [1; 32];
    assert_ne!(prompt_digest(&salt, &[1, 2]), prompt_digest(&[2; 32], &[1, 2]));
    let one: [&[u32]; 1] = [&[1, 2]];
    let two: [&[u32]; 2] = [&[1], &[2]];
    assert_ne!(completion_digest(&salt, one.into_iter()), completion_digest(&salt, two.into_iter()));
}
