//! The market and the audit through signed transactions, the real application and the real store: an epoch is served,
//! committed, audited by three VRF judges and paid; a cheating worker is convicted; two runs give the same hashes.
#![allow(clippy::unwrap_used)]

use polylink_abci_app::Genesis;
use polylink_abci_app::bank::{self, Pool};
use polylink_abci_app::testing::{CHAIN_ID, TestChain, genesis, key};
use polylink_protocol::cosmos::Any;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{RECEIPT_CHAIN_START, profile_digest, sign_voucher};
use polylink_protocol::market_v1::*;
use polylink_protocol::merkle_sum::{Leaf, Tree};
use polylink_protocol::tiqe::{VrfKey, score_commitment, vrf_input};
use polylink_protocol::tiqe_v1::{
    MsgAppeal, MsgCommitScores, MsgRegisterJudge, MsgRevealScores, MsgSubmitBeacon, MsgUnbondJudge, MsgVoteTrial,
    QueryBeaconRequest, QueryBeaconResponse, QueryQualityRequest, QueryQualityResponse, QueryRoundRequest,
    QueryRoundResponse, QueryTrialsRequest, QueryTrialsResponse, Round, RoundPhase, Sample, Score, Scores, Trial,
    TrialState,
};
use polylink_protocol::tx::any;
use polylink_protocol::{Amount, DENOM, Digest};

const PAYER: u8 = 1;
const WORKER: u8 = 2;
const PROVIDER: u8 = 3;
const JUDGES: [u8; 3] = [4, 5, 6];
const EPOCH_BLOCKS: u64 = 20;

fn address(n: u8) -> String {
    key(n).address().account()
}
fn vrf(n: u8) -> VrfKey {
    VrfKey::from_bytes(&[100 + n; 32])
}
fn service(n: u8) -> ServiceKey {
    ServiceKey::from_bytes(&[150 + n; 32])
}

fn profile() -> ModelProfile {
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|byte| vec![byte; 32]);
    ModelProfile {
        id: "polylink/nano@1".into(),
        config_digest: a,
        tokenizer_digest: b,
        chat_template_digest: c,
        generation_config_digest: d,
        weights_digest: e,
        weight_quantization: "none".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        numerics: "exact-1".into(),
    }
}

fn digest() -> Digest {
    profile_digest(&profile())
}

fn start() -> TestChain {
    let mut genesis: Genesis = genesis(6);
    let price = Some(TokenPrices { prompt: 1_000, cached_prompt: 100, completion: 3_000 });
    genesis.market.models.push(MsgRegisterModel {
        provider: address(PROVIDER),
        profile: Some(profile()),
        context_length: 2_048,
        royalty_bps: 500,
        price,
    });
    genesis.tiqe.judges = JUDGES
        .map(|n| MsgRegisterJudge {
            operator: address(n),
            vrf_key: vrf(n).public_key().to_vec(),
            x25519_key: vec![n; 32],
            disclosure_key: service(n).public_key().to_vec(),
            tickets: 10,
            profiles: vec![digest().to_vec()],
        })
        .to_vec();
    // As the node does: through the text of the genesis document.
    TestChain::start(&Genesis::from_json(genesis.to_json().to_string().as_bytes()).unwrap())
}

/// Sends messages that must succeed.
fn send(chain: &mut TestChain, n: u8, messages: Vec<Any>) {
    let result = chain.send(n, messages);
    assert_eq!(result.code, 0, "{}: {}", result.codespace, result.log);
}

/// Advances until the next block is this one.
fn until(chain: &mut TestChain, epoch: u64, offset: u64) {
    let next = epoch * EPOCH_BLOCKS + offset;
    assert!(chain.height() < next, "block {next} is over");
    chain.advance_to(next - 1);
}

fn serve_setup(chain: &mut TestChain) -> u64 {
    let offer = Offer {
        profile_digest: digest().to_vec(),
        ask: Some(TokenPrices::default()),
        capacity_tokens_per_epoch: 1_000_000,
    };
    let register = MsgRegisterWorker {
        operator: address(WORKER),
        endpoint: "http://127.0.0.1:9000".into(),
        receipt_key: service(WORKER).public_key().to_vec(),
        offers: vec![offer],
        bond: "100000000".into(),
        ..Default::default()
    };
    send(chain, WORKER, vec![any(&register)]);
    let open = MsgOpenSession {
        payer: address(PAYER),
        payee: address(WORKER),
        spend_key: service(PAYER).public_key().to_vec(),
        deposit: "10000000".into(),
        window: 8,
        expiry_epoch: 100,
        profile_digest: digest().to_vec(),
        ..Default::default()
    };
    send(chain, PAYER, vec![any(&open)]);
    let request = QuerySessionsRequest { payer: address(PAYER), ..Default::default() };
    let answer: QuerySessionsResponse = chain.query("/polylink.market.v1.Query/Sessions", &request).unwrap();
    answer.sessions[0].id
}

/// Commits 20 receipts of 5,000 uplk for `epoch` and redeems them, in one transaction.
fn settle_accounts(chain: &mut TestChain, session: u64, epoch: u64) {
    let leaf = |index| Leaf { session, index, receipt: Digest([index as u8; 32]), tokens: 50, amount: Amount(5_000) };
    let root = Tree::new((0..20).map(leaf).collect()).unwrap().root().to_proto();
    let (operator, profile_digest) = (address(WORKER), digest().to_vec());
    let commit = MsgCommitReceipts { operator, epoch, profile_digest, root: Some(root), private_root: None };
    let voucher = Voucher {
        chain_id: CHAIN_ID.into(),
        session,
        epoch,
        amount: (100_000 * (u128::from(epoch) + 1)).to_string(),
        count: 20 * (epoch + 1),
        receipts_hash: RECEIPT_CHAIN_START.to_vec(),
    };
    let voucher = Some(sign_voucher(voucher, &service(PAYER)));
    let redeem = MsgRedeem { payee: address(WORKER), voucher };
    send(chain, WORKER, vec![any(&commit), any(&redeem)]);
}

fn round(chain: &TestChain, epoch: u64) -> Round {
    let request = QueryRoundRequest { epoch, profile_digest: digest().to_vec() };
    let answer: QueryRoundResponse = chain.query("/polylink.tiqe.v1.Query/Round", &request).unwrap();
    answer.round.unwrap()
}

/// One block with a transaction of each judge; all must succeed.
fn judges(chain: &mut TestChain, message: impl Fn(&TestChain, u8) -> Option<Any>) {
    let txs: Vec<Vec<u8>> = JUDGES.iter().filter_map(|n| Some(chain.sign(*n, vec![message(chain, *n)?]))).collect();
    for result in chain.deliver(txs) {
        assert_eq!(result.code, 0, "{}: {}", result.codespace, result.log);
    }
}

/// The beacon of the round over `epoch`, up to the first block after its window.
fn beacons(chain: &mut TestChain, epoch: u64) {
    let profile_digest = digest().to_vec();
    until(chain, epoch + 1, 5);
    judges(chain, |chain, n| {
        let request = QueryBeaconRequest { epoch: epoch.saturating_sub(1), profile_digest: profile_digest.clone() };
        let answer: QueryBeaconResponse = chain.query("/polylink.tiqe.v1.Query/Beacon", &request).unwrap();
        let input = vrf_input(CHAIN_ID, &Digest::from_slice(&answer.beacon).unwrap(), epoch, &digest());
        let proof = vrf(n).prove(&input).unwrap();
        Some(any(&MsgSubmitBeacon { judge: address(n), epoch, profile_digest: profile_digest.clone(), proof }))
    });
    until(chain, epoch + 1, 9);
}

/// The round over `epoch`, up to the last block before its settlement.
fn audit(chain: &mut TestChain, epoch: u64, evidence_milli: i64) {
    let profile_digest = digest().to_vec();
    beacons(chain, epoch);
    let drawn = round(chain, epoch);
    assert_eq!(drawn.phase(), RoundPhase::Commit);
    let seated = |n: u8| drawn.seats.iter().any(|seat| seat.judge == address(n));
    let score = |sample: u32| Score {
        sample,
        cross_bps: 7_000 + 500 * (sample % 3),
        evidence_milli,
        replayed: true,
        tokens: 50,
        ..Default::default()
    };
    let scores = Scores { scores: drawn.samples.iter().map(|sample| score(sample.number)).collect() };
    judges(chain, |_, n| {
        let judge = key(n).address();
        let commitment = score_commitment(CHAIN_ID, epoch, &digest(), &judge, &[n; 32], &scores).to_vec();
        let (judge, profile_digest) = (judge.account(), profile_digest.clone());
        seated(n).then(|| any(&MsgCommitScores { judge, epoch, profile_digest, commitment }))
    });
    until(chain, epoch + 1, 14);
    judges(chain, |_, n| {
        let (scores, profile_digest) = (Some(scores.clone()), profile_digest.clone());
        seated(n).then(|| any(&MsgRevealScores { judge: address(n), epoch, profile_digest, salt: vec![n; 32], scores }))
    });
    until(chain, epoch + 1, 19);
}

fn pot(chain: &TestChain, epoch: u64) -> Pot {
    let profile_digest = digest().to_vec();
    let request = QueryPotRequest { epoch, worker: address(WORKER), profile_digest, private: false };
    let answer: QueryPotResponse = chain.query("/polylink.market.v1.Query/Pot", &request).unwrap();
    answer.pot.unwrap()
}

fn trial(chain: &TestChain) -> Option<Trial> {
    let request = QueryTrialsRequest { worker: address(WORKER) };
    let answer: QueryTrialsResponse = chain.query("/polylink.tiqe.v1.Query/Trials", &request).unwrap();
    answer.trials.into_iter().next()
}

fn honest_epoch() -> (Vec<u8>, TestChain) {
    let mut chain = start();
    chain.advance(1);
    let session = serve_setup(&mut chain);
    until(&mut chain, 1, 1);
    let supply = chain.checked_supply();
    let flows = bank::flows(&chain.state(), DENOM);
    settle_accounts(&mut chain, session, 0);
    audit(&mut chain, 0, -442);
    let (minted, burned) = bank::flows(&chain.state(), DENOM);
    assert_eq!((minted.0 - flows.0.0, burned.0 - flows.1.0), (5_000, 10_000));
    assert_eq!(chain.checked_supply().0, supply.0 + 5_000 - 10_000);
    (chain.app_hash.clone(), chain)
}

#[test]
fn an_epoch_is_served_audited_and_paid() {
    let (hash, mut chain) = honest_epoch();
    let settled = pot(&chain, 0);
    assert!(settled.settled);
    assert_eq!((settled.paid.as_str(), settled.alpha_bps), ("100000", 10_000));
    assert_eq!([&settled.royalty, &settled.worker_reward, &settled.judge_reward], ["4750", "63175", "27075"]);
    let finished = round(&chain, 0);
    assert_eq!(finished.phase(), RoundPhase::Settled);
    assert_eq!(finished.results.len(), 4);
    let request = QueryQualityRequest { worker: address(WORKER), profile_digest: digest().to_vec() };
    let quality: QueryQualityResponse = chain.query("/polylink.tiqe.v1.Query/Quality", &request).unwrap();
    assert_eq!(quality.quality.unwrap().audits, 4);
    let epoch: QueryEpochResponse =
        chain.query("/polylink.market.v1.Query/Epoch", &QueryEpochRequest { number: 0, current: true }).unwrap();
    let epoch = epoch.epoch.unwrap();
    assert_eq!((epoch.number, epoch.minted.as_str(), epoch.burned.as_str()), (1, "5000", "10000"));

    let worker = chain.balance(key(WORKER).address());
    chain.advance(2);
    assert_eq!(chain.balance(key(WORKER).address()).0 - worker.0, 7_896);
    let request = QueryWorkerRequest { operator: address(WORKER) };
    let answer: QueryWorkerResponse = chain.query("/polylink.market.v1.Query/Worker", &request).unwrap();
    assert_eq!(answer.vesting.unwrap().amount, (63_175 - 7_896).to_string());

    // The same transactions give the same state.
    assert_eq!(honest_epoch().0, hash);
}

#[test]
fn a_cheating_worker_is_convicted_two_epochs_later_and_slashed_when_it_has_not_appealed() {
    let mut chain = start();
    chain.advance(1);
    let session = serve_setup(&mut chain);
    for epoch in 0..2 {
        until(&mut chain, epoch + 1, 1);
        settle_accounts(&mut chain, session, epoch);
        audit(&mut chain, epoch, 6_000);
    }
    let open = trial(&chain).unwrap();
    assert_eq!((open.state(), open.opened_epoch, open.samples.len()), (TrialState::Open, 1, 8));
    let scores = Scores {
        scores: open
            .samples
            .iter()
            .map(|sample| Score { sample: sample.number, evidence_milli: 6_000, ..Default::default() })
            .collect(),
    };
    let vesting = chain.balance(Pool::MarketVesting);
    judges(&mut chain, |_, n| {
        let scores = Some(scores.clone());
        Some(any(&MsgVoteTrial { judge: address(n), trial: open.id, guilty: true, scores }))
    });
    let convicted = trial(&chain).unwrap();
    assert_eq!((convicted.state(), convicted.slashed.as_str()), (TrialState::Convicted, ""));
    let of_another = MsgAppeal { worker: address(PAYER), trial: convicted.id };
    let refused = chain.send(PAYER, vec![any(&of_another)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("tiqe", 25), "{}", refused.log);
    // It does not appeal.
    until(&mut chain, convicted.appeal_until_epoch + 1, 1);
    let closed = trial(&chain).unwrap();
    assert_eq!(closed.state(), TrialState::Guilty);
    assert_eq!((closed.slashed.as_str(), closed.clawed_back), ("50000000", vesting.to_string()));
    assert_eq!(chain.balance(Pool::WorkerBonds), Amount(50_000_000));
    assert_eq!(chain.balance(Pool::MarketVesting), Amount::ZERO);
    chain.checked_supply();
    let open = MsgOpenSession {
        payer: address(PAYER),
        payee: address(WORKER),
        spend_key: service(PAYER).public_key().to_vec(),
        deposit: "10".into(),
        window: 8,
        expiry_epoch: 100,
        profile_digest: digest().to_vec(),
        ..Default::default()
    };
    let refused = chain.send(PAYER, vec![any(&open)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("market", 14));
    assert!(refused.log.contains("jailed"), "{}", refused.log);
}

#[test]
fn a_worker_that_goes_silent_is_convicted_and_its_judges_may_leave() {
    let mut chain = start();
    chain.advance(1);
    let session = serve_setup(&mut chain);
    until(&mut chain, 1, 1);
    settle_accounts(&mut chain, session, 0);
    audit(&mut chain, 0, 6_000);
    // It commits nothing for epoch 1; the round is held for the trial's beacon all the same.
    chain.advance(1);
    assert_eq!(trial(&chain).unwrap().samples.len(), 0);
    beacons(&mut chain, 1);
    let open = trial(&chain).unwrap();
    assert_eq!((open.samples.len(), open.evidence_epoch), (8, 0));
    assert!(open.samples.iter().all(|sample| sample.epoch == 0));
    let found = |sample: &Sample| Score { sample: sample.number, evidence_milli: 6_000, ..Default::default() };
    let scores = Scores { scores: open.samples.iter().map(found).collect() };
    judges(&mut chain, |_, n| {
        let scores = Some(scores.clone());
        Some(any(&MsgVoteTrial { judge: address(n), trial: open.id, guilty: true, scores }))
    });
    assert_eq!(trial(&chain).unwrap().state(), TrialState::Convicted);
    send(&mut chain, WORKER, vec![any(&MsgAppeal { worker: address(WORKER), trial: open.id })]);
    assert_eq!(trial(&chain).unwrap().state(), TrialState::Open);
    // With nothing owed a judge leaves; a second time it is refused by name.
    let leave = |n: u8| vec![any(&MsgUnbondJudge { operator: address(n) })];
    assert_eq!(chain.send(JUDGES[0], leave(JUDGES[0])).code, 0);
    let refused = chain.send(JUDGES[0], leave(JUDGES[0]));
    assert_eq!((refused.codespace.as_str(), refused.code), ("tiqe", 23), "{}", refused.log);
    chain.checked_supply();
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let mut chain = start();
    chain.advance(1);
    let unbuilt = [
        any(&polylink_protocol::tiqe_v1::MsgChallenge { judge: address(PAYER), ..Default::default() }),
        any(&polylink_protocol::tiqe_v1::MsgAnswerChallenge { worker: address(PAYER), ..Default::default() }),
    ];
    for message in unbuilt {
        let name = message.type_url.rsplit('.').next().unwrap().to_owned();
        let result = chain.send(PAYER, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), ("sdk", 6), "{name}: {}", result.log);
        assert!(result.log.contains(&name), "{}", result.log);
    }
}
