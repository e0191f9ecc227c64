//! Every refusal of a call, in a table: what is altered, and the status and code that answer it.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::sign_request;

use super::*;

const PROFILE: Digest = Digest([4; 32]);
const SALT: [u8; 32] = [9; 32];

fn here() -> Here<'static> {
    Here { chain_id: "c", operator: "poly1worker", profile: &PROFILE, context_length: 16, private: true }
}

fn spend_key() -> ServiceKey {
    ServiceKey::from_bytes(&[3; 32])
}

fn price(p: u64) -> TokenPrices {
    TokenPrices { prompt: p, cached_prompt: p / 2, completion: 2 * p }
}

fn call(change: impl FnOnce(&mut GenerateCall, &mut Request)) -> GenerateCall {
    let prompt_token_ids = vec![1, 2, 3];
    let mut request = Request {
        chain_id: "c".into(),
        session: 7,
        epoch: 5,
        index: 0,
        profile_digest: PROFILE.to_vec(),
        prompt_digest: prompt_digest(&SALT, &prompt_token_ids).to_vec(),
        sampling: Some(Sampling {
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_tokens: 10,
            n: 1,
            ..Default::default()
        }),
        max_price: Some(price(1_000)),
        seed: vec![1; 32],
    };
    let mut call = GenerateCall {
        request: Default::default(),
        prompt_salt: SALT.to_vec(),
        prompt_token_ids,
        grammar: None,
        voucher: None,
        logprobs: 0,
        prompt_logprobs: None,
    };
    change(&mut call, &mut request);
    call.request = sign_request(request, &spend_key());
    call
}

fn session(change: impl FnOnce(&mut Session)) -> Session {
    let mut session = Session {
        id: 7,
        payee: "poly1worker".into(),
        spend_key: spend_key().public_key().to_vec(),
        deposit: "1000".into(),
        cap: "900".into(),
        window: 4,
        expiry_epoch: 9,
        profile_digest: PROFILE.to_vec(),
        ..Default::default()
    };
    change(&mut session);
    session
}

#[test]
fn what_does_not_match_its_digests_is_refused() {
    assert!(check_call(&call(|_, _| ()), &here()).is_ok());
    type Change = fn(&mut GenerateCall, &mut Request);
    let table: &[(&str, Change, &str, &str)] = &[
        ("chain", |_, r| r.chain_id = "d".into(), "digest_mismatch", "request.chain_id"),
        ("profile", |_, r| r.profile_digest = vec![5; 32], "digest_mismatch", "request.profile_digest"),
        ("token", |c, _| c.prompt_token_ids[1] = 9, "digest_mismatch", "prompt_token_ids"),
        ("salt", |c, _| c.prompt_salt[0] ^= 1, "digest_mismatch", "prompt_token_ids"),
        ("grammar", |c, _| c.grammar = Some("regex:a".into()), "digest_mismatch", "grammar"),
        ("short salt", |c, _| c.prompt_salt.truncate(31), "invalid_value", "prompt_salt"),
        ("seed", |_, r| r.seed.truncate(31), "invalid_value", "request"),
        ("sampling", |_, r| r.sampling = None, "invalid_value", "request"),
        ("max price", |_, r| r.max_price = None, "invalid_value", "request"),
        (
            "no prompt",
            |c, r| {
                c.prompt_token_ids.clear();
                r.prompt_digest = prompt_digest(&SALT, &[]).to_vec();
            },
            "context_length_exceeded",
            "prompt_token_ids",
        ),
        (
            "long prompt",
            |c, r| {
                c.prompt_token_ids = vec![1; 16];
                r.prompt_digest = prompt_digest(&SALT, &[1; 16]).to_vec();
            },
            "context_length_exceeded",
            "prompt_token_ids",
        ),
    ];
    for (name, change, code, param) in table {
        let call = call(change);
        let error = check_call(&call, &here()).expect_err(name);
        let found = (error.status.as_u16(), error.code().to_owned(), error.param.clone());
        assert_eq!(found, (400, code.to_string(), Some(param.to_string())), "{name}: {error}");
    }
}

#[test]
fn without_a_session_that_pays_there_is_no_answer() {
    type Change = fn(&mut Session);
    let table: &[(&str, Change, u16, &str)] = &[
        ("payee", |s| s.payee = "poly1other".into(), 402, "no_session"),
        ("closed", |s| s.closed = true, 402, "session_closed"),
        ("revoked", |s| s.revoked = true, 402, "spend_key_revoked"),
        ("profile", |s| s.profile_digest = vec![5; 32], 402, "no_session"),
        ("key", |s| s.spend_key = ServiceKey::from_bytes(&[8; 32]).public_key().to_vec(), 401, "wrong_signature"),
        ("expired", |s| s.expiry_epoch = 4, 402, "session_expired"),
    ];
    let call = call(|_, _| ());
    let request = check_call(&call, &here()).unwrap();
    let ask = |session: Option<&Session>, epoch| check_session(&call, request, session, &here(), epoch);
    let limits = ask(Some(&session(|_| ())), 5).unwrap();
    let private = session(|s| s.private = true);
    assert_eq!(ask(Some(&private), 5).unwrap(), limits);
    let none = Here { private: false, ..here() };
    let refused = check_session(&call, request, Some(&private), &none, 5).unwrap_err();
    assert_eq!((refused.status.as_u16(), refused.code()), (402, "private_session"));
    assert_eq!(check_session(&call, request, Some(&session(|_| ())), &none, 5).unwrap(), limits);
    assert_eq!(limits, SessionLimits { funds: Amount(900), window: 4 });
    // As the ledger counts: the lesser of the two, whatever they are. A cap of 0 is not the absence of a cap.
    let funds = |deposit: &str, cap: &str| {
        let (deposit, cap) = (deposit.to_owned(), cap.to_owned());
        ask(Some(&session(|s| (s.deposit, s.cap) = (deposit, cap))), 5).unwrap().funds
    };
    assert_eq!([funds("1000", "1200"), funds("1000", "0"), funds("0", "900")], [1_000, 0, 0].map(Amount));
    assert_eq!(ask(None, 5).unwrap_err().status.as_u16(), 402);
    assert_eq!(ask(Some(&session(|_| ())), 4).unwrap_err().code(), "epoch_ahead");
    for (name, change, status, code) in table {
        let error = ask(Some(&session(change)), 5).expect_err(name);
        assert_eq!((error.status.as_u16(), error.code()), (*status, *code), "{name}: {error}");
        assert!(error.message.contains('7') || error.message.contains("session"), "{name}: {error}");
    }
}

#[test]
fn an_altered_request_fails_its_signature() {
    let mut altered = call(|_, _| ());
    altered.request.request.as_mut().unwrap().index = 1;
    let request = check_call(&altered, &here()).unwrap();
    let error = check_session(&altered, request, Some(&session(|_| ())), &here(), 5).unwrap_err();
    assert_eq!((error.status.as_u16(), error.code()), (401, "wrong_signature"));
}

#[test]
fn the_price_is_the_larger_of_epoch_price_and_ask_within_the_signed_limit() {
    let call = call(|_, _| ());
    let request = call.request.request.as_ref().unwrap();
    let (at, worst) = check_price(request, &price(400), &price(700), 3, 16).unwrap();
    assert_eq!(at, price(700));
    // 3 prompt tokens at 700 and 10 completion tokens at 1,400 per 1,000.
    assert_eq!(worst, Amount((3_u128 * 700 + 10 * 1_400).div_ceil(1_000)));
    let (_, short) = check_price(request, &price(400), &price(700), 12, 16).unwrap();
    assert_eq!(short, Amount((12_u128 * 700 + 4 * 1_400).div_ceil(1_000)), "the context cuts the answer");
    let error = check_price(request, &price(1_001), &price(0), 3, 16).unwrap_err();
    assert_eq!((error.status.as_u16(), error.code()), (402, "price_too_low"));
}

#[test]
fn an_answer_goes_by_the_terms_of_its_epoch() {
    use polylink_protocol::market_v1::{Offer, WorkerTerms};
    let profile = Digest([1; 32]);
    let ask = |prompt| TokenPrices { prompt, ..Default::default() };
    let offer = |prompt| Offer { profile_digest: profile.to_vec(), ask: Some(ask(prompt)), ..Default::default() };
    let terms = |from_epoch, key: u8, offers| WorkerTerms { from_epoch, receipt_key: vec![key], offers };
    // In epoch 6 the new ask holds, in epoch 7 the new key, in epoch 8 the profile is not offered any more.
    let record = Worker {
        terms: vec![
            terms(5, 1, vec![offer(10)]),
            terms(6, 1, vec![offer(20)]),
            terms(7, 2, vec![offer(20)]),
            terms(8, 2, vec![]),
        ],
        ..Default::default()
    };
    let found = |epoch, key: u8| {
        ask_in_force(&record, epoch, &profile, &[key]).map(|ask| ask.prompt).map_err(|error| error.code().to_owned())
    };
    assert_eq!(found(4, 1), Err("not_registered".into()));
    assert_eq!([found(5, 1), found(6, 1)], [Ok(10), Ok(20)]);
    for (epoch, key) in [(6, 2), (7, 1), (8, 2)] {
        assert_eq!(found(epoch, key), Err("terms_not_in_force".into()), "{epoch} {key}");
    }
    assert_eq!(found(7, 2), Ok(20));
}
