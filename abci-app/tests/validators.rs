//! The validator set and the parameters of consensus under a real CometBFT: a validator that is created enters its set, and
//! one that never signs is slashed, jailed and leaves it; what governance decides of blocks and evidence, CometBFT keeps to.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use comet::Comet;
use polylink_abci_app::consensus::proto::{MsgUpdateParams, QueryParamsRequest, QueryParamsResponse};
use polylink_abci_app::server::{self, Address as Socket, Options, RequestLog, check_grammar};
use polylink_abci_app::store::Store;
use polylink_abci_app::testing::{CHAIN_ID, genesis, key};
use polylink_abci_app::{App, bank, chain::SCHEMA_VERSION, distribution, gov, slashing, staking};
use polylink_protocol::client::ChainClient;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::gov::v1::{MsgSubmitProposal, MsgVote, VoteOption};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{CommissionRates, Description, MsgCreateValidator};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::cosmos::tendermint::types::{BlockParams, EvidenceParams, ValidatorParams};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::tx::{SignContext, any, sign_direct};
use polylink_protocol::{Amount, DENOM};
use tendermint_rpc::{Client, HttpClient, Paging};

/// The powers in CometBFT's newest set.
async fn powers(client: &HttpClient) -> Result<Vec<u64>, String> {
    let status = client.status().await.map_err(|error| error.to_string())?;
    let newest = status.sync_info.latest_block_height;
    let set = client.validators(newest, Paging::All).await.map_err(|error| error.to_string())?;
    Ok(set.validators.iter().map(|validator| validator.power.value()).collect())
}

#[tokio::test]
async fn a_validator_enters_the_set_and_leaves_it_when_it_does_not_sign() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let socket = home.join("abci.sock");
    let mut comet = Comet::init(&home, &socket, 50);
    let mut start = genesis(1);
    start.staking.validators[0].consensus_key = comet.consensus_key();
    start.slashing.signed_blocks_window = 8;
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = start.to_json();
    });
    let log = RequestLog::new(1_000_000);
    let app = App::new(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0);
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    let server = server::serve(&Socket::unix(&socket).unwrap(), app.clone(), options).unwrap();
    let client = comet.start().await;
    assert_eq!(powers(&client).await.unwrap(), vec![1_000]);

    // 100 of 1,100 votes: the chain goes on without them.
    let operator = key(1).address();
    let message = MsgCreateValidator {
        description: Some(Description { moniker: "absent".into(), ..Default::default() }),
        commission: Some(CommissionRates::default()),
        min_self_delegation: "1".into(),
        validator_address: operator.valoper(),
        pubkey: Some(any(&PubKey { key: ServiceKey::from_bytes(&[1; 32]).public_key().to_vec() })),
        value: Some(Coin { denom: DENOM.into(), amount: "100000000".into() }),
        ..Default::default()
    };
    let context = SignContext {
        chain_id: CHAIN_ID.into(),
        account_number: 12,
        sequence: 0,
        gas_limit: 400_000,
        fee: Amount(10_000),
        memo: String::new(),
    };
    let sent = client.broadcast_tx_sync(sign_direct(vec![any(&message)], &context, &key(1))).await.unwrap();
    assert!(sent.code.is_ok(), "{}", sent.log);
    let becomes = async |expected: Vec<u64>| {
        let what = format!("the powers {expected:?}");
        comet
            .wait_for(&what, || async {
                let found = powers(&client).await?;
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await;
    };
    becomes(vec![1_000, 100]).await;
    becomes(vec![1_000]).await;

    let state = app.store().snapshot();
    let record = staking::validator(&state, &operator).unwrap();
    assert!(record.jailed);
    assert_eq!(record.tokens, "99000000", "1 % of its stake");
    assert_eq!(bank::flows(&state, DENOM).1, Amount(1_000_000));
    assert_eq!((staking::scan(&state), slashing::scan(&state)), (Ok(()), Ok(())));
    distribution::scan(&state).unwrap();
    assert!(comet.stop(), "the node must stop on SIGTERM");
    server.shutdown();
    assert!(check_grammar(&log.entries(), 0).is_ok(), "{:?}", check_grammar(&log.entries(), 0));
}

#[tokio::test]
async fn cometbft_keeps_to_the_parameters_that_governance_decides() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let socket = home.join("abci.sock");
    let mut comet = Comet::init(&home, &socket, 50);
    let mut start = genesis(1);
    start.staking.validators[0].consensus_key = comet.consensus_key();
    (start.gov.voting_seconds, start.gov.expedited_voting_seconds) = (2, 1);
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = start.to_json();
    });
    let log = RequestLog::new(1_000_000);
    let app = App::new(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0);
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    let server = server::serve(&Socket::unix(&socket).unwrap(), app.clone(), options).unwrap();
    let client = comet.start().await;
    let chain = ChainClient::new(&comet.url()).unwrap();
    let query = async || {
        let path = "/cosmos.consensus.v1.Query/Params";
        chain.query::<_, QueryParamsResponse>(path, &QueryParamsRequest {}).await.unwrap().params.unwrap()
    };
    // The ledger knows from `InitChain` what CometBFT begins with.
    let begun = client.consensus_params(1u32).await.unwrap().consensus_params;
    let known = query().await;
    assert_eq!(known.block.map(|block| block.max_bytes as u64), Some(begun.block.max_bytes));
    assert_eq!(
        known.evidence.map(|evidence| evidence.max_age_num_blocks as u64),
        Some(begun.evidence.max_age_num_blocks)
    );

    let update = MsgUpdateParams {
        authority: gov::authority().account(),
        block: Some(BlockParams { max_bytes: 600_000, max_gas: 30_000_000 }),
        evidence: Some(EvidenceParams {
            max_age_num_blocks: 77,
            max_age_duration: Some(Duration { seconds: 30 * 24 * 3_600, nanos: 5 }),
            max_bytes: 10_000,
        }),
        validator: Some(ValidatorParams { pub_key_types: vec!["ed25519".into()] }),
        abci: None,
    };
    let proposal = MsgSubmitProposal {
        messages: vec![any(&update)],
        initial_deposit: vec![Coin { denom: DENOM.into(), amount: "10000000".into() }],
        proposer: key(1).address().account(),
        title: "smaller blocks".into(),
        summary: "and older evidence".into(),
        ..Default::default()
    };
    chain.broadcast(&key(1), vec![any(&proposal)]).await.unwrap();
    let (voter, option) = (key(200).address().account(), VoteOption::Yes.into());
    let vote = MsgVote { proposal_id: 1, voter, option, ..Default::default() };
    chain.broadcast(&key(200), vec![any(&vote)]).await.unwrap();
    let (height, found) = comet
        .wait_for("the new parameters", || async {
            let status = client.status().await.map_err(|error| error.to_string())?;
            let newest = status.sync_info.latest_block_height;
            let found = client.consensus_params(newest).await.map_err(|error| error.to_string())?.consensus_params;
            if found.block.max_bytes == 600_000 { Ok((newest.value(), found)) } else { Err(format!("{found:?}")) }
        })
        .await;
    assert_eq!((found.block.max_gas, found.evidence.max_age_num_blocks), (30_000_000, 77));
    assert_eq!(found.evidence.max_age_duration.0, std::time::Duration::new(30 * 24 * 3_600, 5));
    assert_eq!(found.evidence.max_bytes, 10_000);
    let known = query().await;
    assert_eq!((known.block, known.evidence), (update.block, update.evidence));
    // The program's version is not governance's: it stays.
    assert_eq!(found.version.map(|version| version.app), begun.version.map(|version| version.app));
    comet.wait_for_height(&client, height + 3).await;
    assert!(comet.stop(), "the node must stop on SIGTERM");
    server.shutdown();
    assert_eq!(check_grammar(&log.entries(), 0), Ok(app.store().height() as i64));
}
