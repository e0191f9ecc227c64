//! Tests of the parameters of consensus on a running chain: by governance alone, within bounds, and felt by proposals.

use std::panic::{AssertUnwindSafe, catch_unwind};

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{MsgSubmitProposal, MsgVote, VoteOption};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::cosmos::tendermint::types::{AbciParams, BlockParams, EvidenceParams, ValidatorParams};
use polylink_protocol::tx::any;
use polylink_protocol::{DENOM, Message};
use tendermint_abci::Application as _;
use tendermint_proto::v0_38::abci as pb;

use super::proto::*;
use super::{BLOCK_BYTES_MIN, BLOCK_GAS_MIN, PARAMS, block_gas_max};
use crate::context::{BlockTime, Context};
use crate::gov::authority;
use crate::modules::Handle;
use crate::store::{MemoryState, StateRead, StateWrite, Store};
use crate::testing::{GAS_LIMIT, TestChain, genesis, key};
use crate::tx::BLOCK_GAS_MAX;

fn update() -> MsgUpdateParams {
    MsgUpdateParams {
        authority: authority().account(),
        block: Some(BlockParams { max_bytes: 1 << 20, max_gas: 20_000_000 }),
        evidence: Some(EvidenceParams {
            max_age_num_blocks: 1_000,
            max_age_duration: Some(Duration { seconds: 21 * 24 * 3_600, nanos: 0 }),
            max_bytes: 1 << 16,
        }),
        validator: Some(ValidatorParams { pub_key_types: vec!["ed25519".into()] }),
        abci: None,
    }
}

#[test]
fn governance_changes_what_a_block_may_hold() {
    let mut start = genesis(1);
    (start.gov.voting_seconds, start.gov.expedited_voting_seconds) = (3, 1);
    let mut chain = TestChain::start(&start);
    chain.advance(1);
    let asked = |chain: &TestChain| {
        chain.query::<_, QueryParamsResponse>("/cosmos.consensus.v1.Query/Params", &QueryParamsRequest {})
    };
    assert!(asked(&chain).unwrap_err().contains("NotFound"), "this chain's InitChain names none");
    let refused = chain.send(1, vec![any(&update())]);
    assert_ne!(refused.code, 0, "nobody but governance");
    let proposal = MsgSubmitProposal {
        messages: vec![any(&update())],
        initial_deposit: vec![Coin { denom: DENOM.into(), amount: "10000000".into() }],
        proposer: key(1).address().account(),
        title: "t".into(),
        summary: "s".into(),
        ..Default::default()
    };
    let (voter, option) = (key(200).address().account(), VoteOption::Yes.into());
    let vote = MsgVote { proposal_id: 1, voter, option, ..Default::default() };
    for (n, message) in [(1, any(&proposal)), (200, any(&vote))] {
        let result = chain.send(n, vec![message]);
        assert_eq!(result.code, 0, "{}", result.log);
    }
    assert_eq!(block_gas_max(&chain.state()), BLOCK_GAS_MAX);
    chain.advance(2);
    let params = asked(&chain).unwrap().params.unwrap();
    assert_eq!((params.block, params.evidence, params.version), (update().block, update().evidence, None));

    // Ten transactions of 2,000,000 gas fit into 20,000,000, of twelve.
    let txs: Vec<bytes::Bytes> = (0..12).map(|ahead| chain.sign_after(1, ahead, vec![any(&proposal)]).into()).collect();
    let proposed = chain.app().prepare_proposal(pb::RequestPrepareProposal {
        txs: txs.clone(),
        max_tx_bytes: 1 << 20,
        ..Default::default()
    });
    assert_eq!(proposed.txs.len() as u64, 20_000_000 / GAS_LIMIT);
    let judged = |txs: Vec<bytes::Bytes>| {
        chain.app().process_proposal(pb::RequestProcessProposal { txs, ..Default::default() }).status()
    };
    use pb::response_process_proposal::ProposalStatus::{Accept, Reject};
    assert_eq!((judged(proposed.txs), judged(txs)), (Accept, Reject));
}

#[test]
fn what_would_harm_the_chain_is_refused() {
    let mut state = MemoryState::default();
    let mut ctx = Context::new("c-1", 1, BlockTime::default(), 20);
    let staking = crate::staking::StakingParams {
        unbonding_time: Some(Duration { seconds: 1_000_000, nanos: 0 }),
        ..Default::default()
    };
    state.put(vec![crate::staking::PARAMS], staking.encode_to_vec());
    let alter = |alter: &dyn Fn(&mut MsgUpdateParams)| {
        let mut message = update();
        alter(&mut message);
        message
    };
    let block =
        |max_bytes: i64, max_gas: i64| alter(&|message| message.block = Some(BlockParams { max_bytes, max_gas }));
    let age = |seconds: i64| {
        alter(&|message| {
            message.evidence.as_mut().unwrap().max_age_duration = Some(Duration { seconds, nanos: 0 });
        })
    };
    for (message, text) in [
        (alter(&|message| message.authority = key(1).address().account()), "invalid authority"),
        (alter(&|message| message.block = None), "all parameters must be present"),
        (alter(&|message| message.evidence = None), "all parameters must be present"),
        (alter(&|message| message.validator = None), "all parameters must be present"),
        (block(BLOCK_BYTES_MIN - 1, -1), "block.max_bytes"),
        (block((100 << 20) + 1, -1), "block.max_bytes"),
        (block(1 << 20, BLOCK_GAS_MIN - 1), "block.max_gas"),
        (block(1 << 20, -2), "block.max_gas"),
        (alter(&|message| message.evidence.as_mut().unwrap().max_age_num_blocks = 0), "max_age_num_blocks"),
        (alter(&|message| message.evidence.as_mut().unwrap().max_bytes = (1 << 20) + 1), "evidence.max_bytes"),
        (age(0), "evidence.max_age_duration"),
        (age(999_999), "at least the unbonding time"),
        (alter(&|message| message.validator.as_mut().unwrap().pub_key_types.push("secp256k1".into())), "ed25519"),
        (alter(&|message| message.abci = Some(AbciParams { vote_extensions_enable_height: 9 })), "vote_extensions"),
    ] {
        let refused = message.check().and_then(|()| message.execute(&mut ctx, &mut state).map(|_| ()));
        let error = refused.expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
        assert!(!state.contains(&[PARAMS]));
    }
    for message in [update(), block(100 << 20, -1), age(1_000_000)] {
        message.check().unwrap();
        message.execute(&mut ctx, &mut state).unwrap();
    }
    assert_eq!(block_gas_max(&state), 20_000_000);

    // Nor does stake unbond for longer than evidence is taken.
    let mut unbond_for = |seconds: i64| {
        let params = crate::staking::StakingParams {
            unbonding_time: Some(Duration { seconds, nanos: 0 }),
            max_validators: 7,
            max_entries: 7,
            bond_denom: DENOM.into(),
            min_commission_rate: "0".into(),
            ..Default::default()
        };
        let authority = authority().account();
        let message =
            polylink_protocol::cosmos::cosmos::staking::v1beta1::MsgUpdateParams { authority, params: Some(params) };
        message.check().and_then(|()| message.execute(&mut ctx, &mut state).map(|_| ()))
    };
    assert!(unbond_for(1_000_001).unwrap_err().to_string().contains("the age of evidence, 1000000 seconds"));
    assert_eq!([unbond_for(1_000_000), unbond_for(60), unbond_for(1_000_000)], [Ok(()), Ok(()), Ok(())]);
}

/// What a chain says of `consensus_params` where it starts, with stake that unbonds for `unbonding` seconds.
fn starts(age: Option<i64>, unbonding: u64) -> Result<(), String> {
    use tendermint_proto::google::protobuf::Duration;
    use tendermint_proto::v0_38::types as tm;
    let dir = tempfile::tempdir().unwrap();
    let app = crate::App::new(Store::open(dir.path(), crate::chain::SCHEMA_VERSION).unwrap(), 0);
    let mut genesis = genesis(1);
    genesis.staking.unbonding_seconds = unbonding;
    let evidence = age.map(|seconds| tm::EvidenceParams {
        max_age_num_blocks: 1,
        max_age_duration: Some(Duration { seconds, nanos: 0 }),
        max_bytes: 0,
    });
    let request = pb::RequestInitChain {
        chain_id: "c-1".into(),
        app_state_bytes: genesis.to_json().to_string().into(),
        consensus_params: Some(tm::ConsensusParams { evidence, ..Default::default() }),
        ..Default::default()
    };
    let started = catch_unwind(AssertUnwindSafe(|| app.init_chain(request)));
    started.map(|_| ()).map_err(|said| said.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn a_chain_does_not_start_with_evidence_younger_than_its_stake() {
    assert_eq!([starts(None, 1_000), starts(Some(1_000), 1_000), starts(Some(1_001), 1_000)], [Ok(()), Ok(()), Ok(())]);
    let said = starts(Some(999), 1_000).unwrap_err();
    assert!(said.contains("evidence.max_age_duration: 999 seconds are less than the unbonding time, 1000"), "{said}");
}
