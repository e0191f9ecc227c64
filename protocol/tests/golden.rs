//! Golden vectors of every signed and hashed object: bytes, digests and signatures that must never change.
//!
//! `POLYLINK_REGENERATE_GOLDENS=1 cargo test -p polylink-protocol --test golden` writes the file anew; a difference in
//! version control is then a change of the wire format, to be made under a new tag only.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use polylink_protocol::digest::{Digest, sign_bytes, tag};
use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market_v1::*;
use polylink_protocol::merkle_sum::{Leaf, Tree};
use polylink_protocol::tiqe_v1::{Score, Scores};
use polylink_protocol::{Address, Amount, Message, market, tiqe, transcript, tx};

const CHAIN: &str = "polylink-golden-1";

fn profile() -> ModelProfile {
    ModelProfile {
        id: "polylink/nano@1".into(),
        config_digest: vec![1; 32],
        tokenizer_digest: vec![2; 32],
        chat_template_digest: vec![3; 32],
        generation_config_digest: vec![4; 32],
        weights_digest: vec![5; 32],
        weight_quantization: "none".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        numerics: "exact-1".into(),
    }
}

fn request(profile: Digest) -> Request {
    Request {
        chain_id: CHAIN.into(),
        session: 3,
        epoch: 7,
        index: 11,
        profile_digest: profile.to_vec(),
        prompt_digest: market::prompt_digest(&[6; 32], &[1, 300, 70_000]).to_vec(),
        sampling: Some(Sampling {
            temperature: 0.75,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            repetition_penalty: 1.1,
            presence_penalty: 0.5,
            frequency_penalty: -0.5,
            logit_bias: vec![LogitBias { token: 5, bias: -1.5 }, LogitBias { token: 9, bias: 2.0 }],
            max_tokens: 64,
            min_tokens: 1,
            stop: vec!["\n\n".into()],
            stop_token_ids: vec![2],
            ignore_eos: false,
            n: 2,
            grammar_digest: vec![],
        }),
        max_price: Some(TokenPrices { prompt: 100, cached_prompt: 10, completion: 300 }),
        seed: vec![7; 32],
    }
}

fn receipt(request: Digest, profile: Digest, worker: &Address) -> Receipt {
    let completions: [&[u32]; 2] = [&[8, 9], &[10]];
    let sketches: [&[[u8; 16]]; 2] = [&[[1; 16], [2; 16]], &[[3; 16]]];
    Receipt {
        request_digest: request.to_vec(),
        worker: worker.account(),
        session: 3,
        index: 11,
        epoch: 7,
        profile_digest: profile.to_vec(),
        completion_digest: market::completion_digest(&[8; 32], completions.into_iter()).to_vec(),
        sketch_digest: market::sketch_digest(sketches.into_iter()).to_vec(),
        prompt_tokens: 3,
        cached_tokens: 0,
        completion_tokens: 3,
        amount: "2".into(),
        finish_reason: FinishReason::Stop as i32,
        start_time_ms: 1_767_225_600_000,
        end_time_ms: 1_767_225_600_250,
    }
}

/// Name → hexadecimal, in the order of names.
fn vectors() -> BTreeMap<&'static str, String> {
    let mut out = BTreeMap::new();
    let mut put = |name, bytes: &[u8]| assert!(out.insert(name, hex::encode(bytes)).is_none(), "{name} twice");
    let (spend, receipt_key) = (ServiceKey::from_bytes(&[21; 32]), ServiceKey::from_bytes(&[22; 32]));
    let account = AccountKey::from_bytes(&[23; 32]).unwrap();
    let worker = account.address();

    let profile = profile();
    let profile_digest = market::profile_digest(&profile);
    put("profile.bytes", &profile.encode_to_vec());
    put("profile.digest", &profile_digest.0);

    let request = request(profile_digest);
    let request_digest = market::request_digest(&request);
    put("request.sign_bytes", &sign_bytes(tag::REQUEST, &request));
    put("request.digest", &request_digest.0);
    put("request.prompt_digest", &request.prompt_digest);
    put("request.signature", &market::sign_request(request, &spend).signature);

    let receipt = receipt(request_digest, profile_digest, &worker);
    let receipt_digest = market::receipt_digest(&receipt);
    put("receipt.sign_bytes", &sign_bytes(tag::RECEIPT, &receipt));
    put("receipt.digest", &receipt_digest.0);
    put("receipt.completion_digest", &receipt.completion_digest);
    put("receipt.sketch_digest", &receipt.sketch_digest);
    put("receipt.signature", &market::sign_receipt(receipt, &receipt_key).signature);

    let chain = market::chain_receipt(market::RECEIPT_CHAIN_START, receipt_digest);
    put("voucher.chain_1", &chain.0);
    let chain = market::chain_receipt(chain, Digest([9; 32]));
    put("voucher.chain_2", &chain.0);
    let voucher = Voucher {
        chain_id: CHAIN.into(),
        session: 3,
        epoch: 7,
        amount: "340282366920938463463374607431768211455".into(),
        count: 2,
        receipts_hash: chain.to_vec(),
    };
    put("voucher.sign_bytes", &sign_bytes(tag::VOUCHER, &voucher));
    put("voucher.signature", &market::sign_voucher(voucher, &spend).signature);

    let leaves = (0..5_u64)
        .map(|i| Leaf {
            session: 3,
            index: i,
            receipt: Digest([i as u8; 32]),
            tokens: 10 + i,
            amount: Amount(u128::from(i) * 7),
        })
        .collect();
    let tree = Tree::new(leaves).unwrap();
    put("sum.leaf", &tree.leaves()[1].sum().hash.0);
    put(
        "sum.node",
        &polylink_protocol::merkle_sum::Sum::join(&tree.leaves()[0].sum(), &tree.leaves()[1].sum()).unwrap().hash.0,
    );
    put("sum.root", &tree.root().hash.0);
    put("sum.root_bytes", &tree.root().to_proto().encode_to_vec());
    put("sum.path_of_leaf_3", &tree.path(3).unwrap().encode_to_vec());
    put("sum.empty", &polylink_protocol::merkle_sum::Sum::empty().hash.0);

    let vrf = tiqe::VrfKey::from_bytes(&[24; 32]);
    let genesis = tiqe::genesis_beacon(CHAIN, &profile_digest);
    let input = tiqe::vrf_input(CHAIN, &genesis, 7, &profile_digest);
    let proof = vrf.prove(&input).unwrap();
    let beta = tiqe::vrf_verify(&vrf.public_key(), &input, &proof).unwrap();
    put("vrf.public_key", &vrf.public_key());
    put("vrf.genesis_beacon", &genesis.0);
    put("vrf.input", &input.0);
    put("vrf.proof", &proof);
    put("vrf.output", &beta);
    let beacon = tiqe::next_beacon(&genesis, &[beta, [1; 64]]);
    put("beacon", &beacon.0);
    let candidate = |judge, beta, tickets| tiqe::Candidate { judge: Address([judge; 20]), beta, tickets };
    let candidates = [candidate(1, beta, 16), candidate(2, [1; 64], 12), candidate(3, [2; 64], 20)];
    // Whose each seat is, from the lowest ticket to the highest: who gains one when there is one more.
    let drawn = |n| tiqe::draw_seats(&candidates, n);
    let gains = |n: u32| drawn(n).into_iter().find(|(judge, seats)| drawn(n - 1).get(judge) != Some(seats)).unwrap().0;
    put("seats", &(1..=48).map(|n| gains(n).0[0]).collect::<Vec<u8>>());
    let point = tiqe::sample_point(&beacon, &worker, &profile_digest, 1, Amount(1_000_000)).unwrap();
    put("sample.point", &point.0.to_be_bytes());
    put("llm.draw", &tiqe::llm_draw_bps(&beacon, &receipt_digest).to_be_bytes());
    let scores = Scores {
        scores: vec![Score {
            sample: 1,
            cross_bps: 9_100,
            has_llm: true,
            llm_bps: 8_000,
            replayed: true,
            tokens: 3,
            margin_micro: 17,
            sketch_error_nano: 600,
            evidence_milli: -120,
            ..Default::default()
        }],
    };
    put("scores.bytes", &scores.encode_to_vec());
    put("scores.commitment", &tiqe::score_commitment(CHAIN, 7, &profile_digest, &worker, &[25; 32], &scores).0);
    put("disclosure", &transcript::disclosure_digest(CHAIN, &worker, &worker.account(), 7, &profile_digest.0, point).0);

    let context = tx::SignContext {
        chain_id: CHAIN.into(),
        account_number: 1,
        sequence: 2,
        gas_limit: 200_000,
        fee: Amount(5_000),
        memo: "golden".into(),
    };
    let message = MsgRedeem { payee: worker.account(), voucher: None };
    put("tx.raw", &tx::sign_direct(vec![tx::any(&message)], &context, &account));
    put("account.address", worker.account().as_bytes());
    out
}

#[test]
fn objects_keep_their_bytes() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/objects.json");
    let found = vectors();
    if std::env::var_os("POLYLINK_REGENERATE_GOLDENS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path).expect("tests/golden/objects.json is committed");
    let committed: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
    assert_eq!(committed.len(), found.len(), "a vector was added or removed");
    for (name, hex) in found {
        assert_eq!(committed.get(name), Some(&hex), "{name} changed: that breaks every signature made so far");
    }
}

#[test]
fn json_of_signed_objects_goes_round() {
    let signed = market::sign_request(request(Digest([1; 32])), &ServiceKey::from_bytes(&[21; 32]));
    let text = serde_json::to_string(&signed).unwrap();
    assert!(text.contains("0707070707070707"), "bytes are hexadecimal: {text}");
    assert_eq!(serde_json::from_str::<SignedRequest>(&text).unwrap(), signed);
    let misspelt = text.replace("\"session\"", "\"sesion\"");
    assert!(serde_json::from_str::<SignedRequest>(&misspelt).unwrap_err().to_string().contains("sesion"));
}
