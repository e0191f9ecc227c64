//! Tests of slashing on a running chain: absence, double signatures, jail, tombstones, and what unbonds or has moved away.

mod random;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::evidence::v1beta1::*;
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::*;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    BondStatus, CommissionRates, Description, MsgBeginRedelegate, MsgCreateValidator, MsgDelegate, MsgUndelegate,
    QueryUnbondingDelegationRequest, QueryUnbondingDelegationResponse, Validator,
};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci as pb;

use super::{scan, signing_info};
use crate::bank::{self, Pool};
use crate::genesis::Genesis;
use crate::staking;
use crate::testing::{GENESIS_SECONDS, TestChain, genesis, key};

/// One vote's worth.
const PLK: u128 = 1_000_000;
/// From undelegating to payment; blocks are a second apart.
const UNBONDING: u64 = 40;

fn address(n: u8) -> Address {
    key(n).address()
}

/// Of the consensus key of validator `n`.
fn consensus(n: u8) -> Address {
    Address::of_consensus_key(&ServiceKey::from_bytes(&[n; 32]).public_key())
}

fn coin(amount: u128) -> Option<Coin> {
    Some(Coin { denom: DENOM.into(), amount: amount.to_string() })
}

fn create(n: u8, amount: u128) -> Any {
    any(&MsgCreateValidator {
        description: Some(Description { moniker: format!("v{n}"), ..Default::default() }),
        commission: Some(CommissionRates::default()),
        min_self_delegation: "1".into(),
        validator_address: address(n).valoper(),
        pubkey: Some(any(&polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey {
            key: ServiceKey::from_bytes(&[n; 32]).public_key().to_vec(),
        })),
        value: coin(amount),
        ..Default::default()
    })
}

fn unjail(n: u8) -> Any {
    any(&MsgUnjail { validator_addr: address(n).valoper() })
}

/// Validator 200 with 1,000 PLK, validator 1 with 500 of its own and 100 of account 2; six blocks are a window, of which
/// half must be signed. Nobody earns anything.
fn chain() -> TestChain {
    let mut genesis: Genesis = genesis(3);
    genesis.staking.unbonding_seconds = UNBONDING;
    genesis.distribution.community_tax_bps = 10_000;
    genesis.slashing.signed_blocks_window = 6;
    genesis.slashing.downtime_jail_seconds = 10;
    let mut chain = TestChain::start(&genesis);
    let delegate = any(&MsgDelegate {
        delegator_address: address(2).account(),
        validator_address: address(1).valoper(),
        amount: coin(100 * PLK),
    });
    assert_eq!(chain.send(1, vec![create(1, 500 * PLK)]).code, 0);
    assert_eq!(chain.send(2, vec![delegate]).code, 0);
    chain.advance(3);
    chain
}

fn validator(chain: &TestChain, n: u8) -> Validator {
    staking::validator(&chain.state(), &address(n)).unwrap()
}

fn info(chain: &TestChain, n: u8) -> ValidatorSigningInfo {
    let request = QuerySigningInfoRequest { cons_address: consensus(n).valcons() };
    let answer: QuerySigningInfoResponse = chain.query("/cosmos.slashing.v1beta1.Query/SigningInfo", &request).unwrap();
    answer.val_signing_info.unwrap()
}

/// Proof that validator `n` signed two blocks of a height with this power.
fn double_sign(n: u8, height: u64, power: i64) -> pb::Misbehavior {
    pb::Misbehavior {
        r#type: pb::MisbehaviorType::DuplicateVote.into(),
        validator: Some(pb::Validator { address: consensus(n).0.to_vec().into(), power }),
        height: i64::try_from(height).unwrap(),
        time: Some(Timestamp { seconds: GENESIS_SECONDS.saturating_add_unsigned(height), nanos: 0 }),
        total_voting_power: 1_600,
    }
}

fn burned(chain: &TestChain) -> u128 {
    bank::flows(&chain.state(), DENOM).1.0
}

#[test]
fn an_absent_validator_is_slashed_jailed_and_let_out_again() {
    let mut chain = chain();
    chain.absent.insert(consensus(1));
    let mut blocks = 0;
    while !validator(&chain, 1).jailed {
        assert!(blocks < 12, "{:?}", info(&chain, 1));
        chain.advance(1);
        blocks += 1;
        assert_eq!(scan(&chain.state()), Ok(()));
    }
    assert_eq!(blocks, 4, "three of six may be missed");
    let slash = chain.block_events.iter().find(|event| event.r#type == "slash").unwrap();
    let value = |key: &str| slash.attributes.iter().find(|a| a.key == key).map(|a| a.value.clone()).unwrap();
    assert_eq!(
        (value("reason"), value("power"), value("burned_coins")),
        ("missing_signature".into(), "600".into(), "6000000".into())
    );
    assert_eq!(value("jailed"), consensus(1).valcons());
    assert!(chain.block_events.iter().any(|event| event.r#type == "liveness"));
    // 1 % of all that stands behind it, of the delegator's too.
    assert_eq!((validator(&chain, 1).tokens, burned(&chain)), ((594 * PLK).to_string(), 6 * PLK));
    let record = validator(&chain, 1);
    assert_eq!(
        staking::worth(&record, staking::delegation(&chain.state(), &address(2), &address(1)).unwrap()).0,
        99 * PLK
    );
    let delayed = info(&chain, 1);
    assert_eq!((delayed.missed_blocks_counter, delayed.index_offset), (0, 0));
    assert_eq!(record.status(), BondStatus::Unbonding);
    assert_eq!(chain.validator_updates.last().unwrap().power, 0);
    chain.checked_supply();

    chain.absent.clear();
    assert_eq!(chain.send(1, vec![unjail(1)]).code, 4, "too early");
    chain.advance(10);
    let result = chain.send(1, vec![unjail(1)]);
    assert_eq!(result.code, 0, "{}", result.log);
    assert_eq!(validator(&chain, 1).status(), BondStatus::Bonded);
    assert_eq!(chain.validator_updates.last().unwrap().power, 594);
    assert_eq!(chain.send(1, vec![unjail(1)]).code, 5, "it is free");
    assert_eq!(info(&chain, 1).start_height, i64::try_from(chain.height()).unwrap() - 1);
    chain.advance(12);
    assert!(!validator(&chain, 1).jailed);
    chain.checked_supply();
}

#[test]
fn a_double_signature_slashes_what_unbonds_and_what_has_moved_away_and_is_for_good() {
    let mut chain = chain();
    let before = chain.height();
    // 20 of its 100 PLK unbond, 30 move to validator 200, after the height of the wrong.
    let undelegate = any(&MsgUndelegate {
        delegator_address: address(2).account(),
        validator_address: address(1).valoper(),
        amount: coin(20 * PLK),
    });
    let redelegate = any(&MsgBeginRedelegate {
        delegator_address: address(2).account(),
        validator_src_address: address(1).valoper(),
        validator_dst_address: address(200).valoper(),
        amount: coin(30 * PLK),
    });
    assert_eq!(chain.send(2, vec![undelegate]).code, 0);
    assert_eq!(chain.send(2, vec![redelegate]).code, 0);
    assert_eq!(validator(&chain, 1).tokens, (550 * PLK).to_string());
    chain.misbehavior = vec![double_sign(1, before, 600), double_sign(1, before, 600)];
    chain.advance(1);
    // 5 % of 600: 1 of what unbonds, 1.5 of what has moved, 27.5 of what is there. The second proof is one too many.
    assert_eq!(burned(&chain), 30 * PLK);
    assert_eq!(validator(&chain, 1).tokens, (522 * PLK + PLK / 2).to_string());
    assert_eq!(validator(&chain, 200).tokens, (1_028 * PLK + PLK / 2).to_string());
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount(19 * PLK + 522 * PLK + PLK / 2));
    let slash = chain.block_events.iter().filter(|event| event.r#type == "slash").collect::<Vec<_>>();
    assert_eq!(slash.len(), 1);
    assert!(slash[0].attributes.iter().any(|a| a.key == "reason" && a.value == "double_sign"));
    let known = info(&chain, 1);
    assert!(known.tombstoned && known.jailed_until == Some(super::evidence::NEVER), "{known:?}");
    let all: QueryAllEvidenceResponse =
        chain.query("/cosmos.evidence.v1beta1.Query/AllEvidence", &QueryAllEvidenceRequest::default()).unwrap();
    let found = Equivocation::decode(all.evidence[0].value.as_slice()).unwrap();
    assert_eq!((found.height, found.power), (i64::try_from(before).unwrap(), 600));
    let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&all.evidence[0].value));
    let one = QueryEvidenceRequest { hash, ..Default::default() };
    let one: QueryEvidenceResponse = chain.query("/cosmos.evidence.v1beta1.Query/Evidence", &one).unwrap();
    assert_eq!(one.evidence.as_ref(), all.evidence.first());
    chain.skip_seconds(1_000_000);
    assert_eq!(chain.send(1, vec![unjail(1)]).code, 4, "never again");
    // Unbonded, it has nothing to answer with any more.
    chain.misbehavior = vec![double_sign(1, before, 600)];
    chain.advance(1);
    assert_eq!(burned(&chain), 30 * PLK);
    chain.checked_supply();
}

/// GHSA-86h5-xcpx-cfqc: who moves stake away and then takes it back answers for the old validator's fault all the same.
#[test]
fn stake_that_moved_and_unbonds_from_there_is_still_liable() {
    for (taken_back, unbonding, staked) in [(30, 28_500_000, 0), (1, 0, 28_500_000)] {
        let mut chain = chain();
        let before = chain.height();
        let redelegate = any(&MsgBeginRedelegate {
            delegator_address: address(2).account(),
            validator_src_address: address(1).valoper(),
            validator_dst_address: address(200).valoper(),
            amount: coin(30 * PLK),
        });
        let undelegate = any(&MsgUndelegate {
            delegator_address: address(2).account(),
            validator_address: address(200).valoper(),
            amount: coin(taken_back * PLK),
        });
        for message in [redelegate, undelegate] {
            let result = chain.send(2, vec![message]);
            assert_eq!(result.code, 0, "{}", result.log);
        }
        chain.misbehavior = vec![double_sign(1, before, 600)];
        chain.advance(1);
        // 5 % of 600: 1.5 of the 30 that have moved, of what unbonds before what is still there.
        assert_eq!(burned(&chain), 30 * PLK, "{taken_back} taken back");
        assert_eq!(validator(&chain, 1).tokens, (541 * PLK + PLK / 2).to_string());
        let request = QueryUnbondingDelegationRequest {
            delegator_addr: address(2).account(),
            validator_addr: address(200).valoper(),
        };
        let answer: QueryUnbondingDelegationResponse =
            chain.query("/cosmos.staking.v1beta1.Query/UnbondingDelegation", &request).unwrap();
        assert_eq!(answer.unbond.unwrap().entries[0].balance, unbonding.to_string(), "{taken_back} taken back");
        assert_eq!(validator(&chain, 200).tokens, (1_000 * PLK + staked).to_string(), "{taken_back} taken back");
        chain.checked_supply();
    }
}

#[test]
fn what_left_before_the_wrong_is_not_liable() {
    let mut chain = chain();
    let undelegate = any(&MsgUndelegate {
        delegator_address: address(2).account(),
        validator_address: address(1).valoper(),
        amount: coin(20 * PLK),
    });
    assert_eq!(chain.send(2, vec![undelegate]).code, 0);
    chain.advance(3);
    chain.misbehavior = vec![double_sign(1, chain.height(), 580)];
    chain.advance(1);
    assert_eq!(burned(&chain), 29 * PLK);
    assert_eq!(validator(&chain, 1).tokens, (551 * PLK).to_string());
    chain.checked_supply();
}

#[test]
fn unknown_keys_and_empty_validators_change_nothing() {
    let mut chain = chain();
    chain.misbehavior = vec![double_sign(77, 1, 5)];
    chain.advance(1);
    assert_eq!(burned(&chain), 0);
    let refused = chain.send(3, vec![unjail(3)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("slashing", 2));
    let infos: QuerySigningInfosResponse =
        chain.query("/cosmos.slashing.v1beta1.Query/SigningInfos", &QuerySigningInfosRequest::default()).unwrap();
    assert_eq!(infos.info.len(), 2);
    let params: QueryParamsResponse =
        chain.query("/cosmos.slashing.v1beta1.Query/Params", &QueryParamsRequest {}).unwrap();
    assert_eq!(params.params.unwrap().min_signed_per_window, b"500000000000000000");
    let missing = QuerySigningInfoRequest { cons_address: consensus(77).valcons() };
    let missing = chain.query::<_, QuerySigningInfoResponse>("/cosmos.slashing.v1beta1.Query/SigningInfo", &missing);
    assert!(missing.unwrap_err().contains("code = NotFound"));
    assert!(signing_info(&chain.state(), &consensus(77)).is_none());
    let expected = format!(r#"{{"type":"cosmos-sdk/MsgUnjail","value":{{"address":"{}"}}}}"#, address(3).valoper());
    assert!(crate::tx::amino_document(&unjail(3)).unwrap().contains(&expected));
}

#[test]
fn an_operator_that_was_jailed_for_too_little_stake_may_come_back_with_more() {
    let mut chain = chain();
    let all = any(&MsgUndelegate {
        delegator_address: address(1).account(),
        validator_address: address(1).valoper(),
        amount: coin(500 * PLK),
    });
    assert_eq!(chain.send(1, vec![all]).code, 0);
    assert!(validator(&chain, 1).jailed);
    assert_eq!(chain.send(1, vec![unjail(1)]).code, 6, "no stake of its own");
    let delegate = any(&MsgDelegate {
        delegator_address: address(1).account(),
        validator_address: address(1).valoper(),
        amount: coin(5 * PLK),
    });
    assert_eq!(chain.send(1, vec![delegate]).code, 0);
    let result = chain.send(1, vec![unjail(1)]);
    assert_eq!(result.code, 0, "{}", result.log);
    assert_eq!(validator(&chain, 1).status(), BondStatus::Bonded);
    assert_eq!(
        Dec::from_atomics_str(&validator(&chain, 1).delegator_shares),
        Some(Dec::from_amount(Amount(105 * PLK)))
    );
    chain.checked_supply();
}
