//! Tests of staking on a running chain. Random sequences against a model are in [`random`].

use crate::bank::Pool;
use crate::genesis::Genesis;
use crate::testing::{CHAIN_ID, GAS_LIMIT, GENESIS_SECONDS, TestChain, genesis, key};
use crate::tx::ante::least_fee;
mod random;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::*;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};

/// One vote's worth.
const PLK: u128 = 1_000_000;
/// From undelegating to payment; blocks are a second apart.
const UNBONDING: u64 = 4;

fn chain(accounts: u8) -> TestChain {
    let mut genesis: Genesis = genesis(accounts);
    genesis.staking.unbonding_seconds = UNBONDING;
    genesis.staking.max_entries = 3;
    genesis.staking.max_validators = 2;
    // Nobody earns anything here: rewards are the distribution's tests.
    genesis.distribution.community_tax_bps = 10_000;
    TestChain::start(&genesis)
}

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn operator(n: u8) -> Address {
    key(n).address()
}

fn delegate(n: u8, validator: u8, amount: u128) -> Any {
    any(&MsgDelegate {
        delegator_address: operator(n).account(),
        validator_address: operator(validator).valoper(),
        amount: Some(coin(amount)),
    })
}

fn undelegate(n: u8, validator: u8, amount: u128) -> Any {
    any(&MsgUndelegate {
        delegator_address: operator(n).account(),
        validator_address: operator(validator).valoper(),
        amount: Some(coin(amount)),
    })
}

fn redelegate(n: u8, from: u8, to: u8, amount: u128) -> Any {
    any(&MsgBeginRedelegate {
        delegator_address: operator(n).account(),
        validator_src_address: operator(from).valoper(),
        validator_dst_address: operator(to).valoper(),
        amount: Some(coin(amount)),
    })
}

fn cancel(n: u8, validator: u8, amount: u128, creation_height: i64) -> Any {
    any(&MsgCancelUnbondingDelegation {
        delegator_address: operator(n).account(),
        validator_address: operator(validator).valoper(),
        amount: Some(coin(amount)),
        creation_height,
    })
}

/// Sets the website and leaves the rest.
fn edit(n: u8) -> MsgEditValidator {
    let same = || "[do-not-modify]".to_owned();
    MsgEditValidator {
        description: Some(Description {
            moniker: same(),
            identity: same(),
            website: "https://example.org".into(),
            security_contact: same(),
            details: same(),
        }),
        validator_address: operator(n).valoper(),
        ..Default::default()
    }
}

fn create(n: u8, consensus: u8, amount: u128) -> MsgCreateValidator {
    let key = ServiceKey::from_bytes(&[consensus; 32]).public_key().to_vec();
    MsgCreateValidator {
        description: Some(Description { moniker: format!("v{n}"), ..Default::default() }),
        commission: Some(CommissionRates {
            rate: Dec::from_bps(500).to_atomics_string(),
            max_rate: Dec::from_bps(2_000).to_atomics_string(),
            max_change_rate: Dec::from_bps(100).to_atomics_string(),
        }),
        min_self_delegation: "1".into(),
        validator_address: operator(n).valoper(),
        pubkey: Some(any(&PubKey { key })),
        value: Some(coin(amount)),
        ..Default::default()
    }
}

fn query<Q: Message, R: Message + Default>(chain: &TestChain, method: &str, request: Q) -> Result<R, String> {
    chain.query(&format!("/cosmos.staking.v1beta1.Query/{method}"), &request)
}

fn validator(chain: &TestChain, n: u8) -> Validator {
    let request = QueryValidatorRequest { validator_addr: operator(n).valoper() };
    query::<_, QueryValidatorResponse>(chain, "Validator", request).unwrap().validator.unwrap()
}

/// The validator updates of the last blocks as (consensus key's number, power).
fn updates(chain: &mut TestChain, keys: &[u8]) -> Vec<(u8, i64)> {
    let of = |update: &tendermint_proto::v0_38::abci::ValidatorUpdate| {
        use tendermint_proto::v0_38::crypto::public_key::Sum;
        let Some(Sum::Ed25519(bytes)) = update.pub_key.as_ref().unwrap().sum.clone() else { panic!("no ed25519 key") };
        let number = keys.iter().find(|n| ServiceKey::from_bytes(&[**n; 32]).public_key().to_vec() == bytes);
        (*number.unwrap(), update.power)
    };
    std::mem::take(&mut chain.validator_updates).iter().map(of).collect()
}

#[test]
fn the_genesis_validator_has_power_and_its_stake_is_in_the_pool() {
    let mut chain = chain(1);
    assert_eq!(updates(&mut chain, &[200]), vec![(200, 1_000)]);
    chain.advance(1);
    assert_eq!(updates(&mut chain, &[200]), vec![]);
    let record = validator(&chain, 200);
    assert_eq!((record.status(), record.tokens.as_str()), (BondStatus::Bonded, "1000000000"));
    assert_eq!(record.delegator_shares, Dec::from_amount(Amount(1_000 * PLK)).to_atomics_string());
    assert_eq!(chain.balance(Pool::BondedTokens), Amount(1_000 * PLK));
}

#[test]
fn delegate_undelegate_and_be_paid_after_the_unbonding_time() {
    let mut chain = chain(1);
    let fee = least_fee(GAS_LIMIT, 25).0;
    chain.advance(1);
    let start = chain.balance(operator(1)).0;
    let none =
        QueryDelegationRequest { delegator_addr: operator(1).account(), validator_addr: operator(200).valoper() };
    let missing = query::<_, QueryDelegationResponse>(&chain, "Delegation", none.clone()).unwrap_err();
    assert!(missing.contains("code = NotFound") && missing.contains("key not found"), "{missing}");

    let result = chain.send(1, vec![delegate(1, 200, 5 * PLK)]);
    assert_eq!(result.code, 0, "{}", result.log);
    updates(&mut chain, &[200]);
    assert_eq!(chain.balance(operator(1)).0, start - 5 * PLK - fee);
    let found: QueryDelegationResponse = query(&chain, "Delegation", none.clone()).unwrap();
    assert_eq!(found.delegation_response.unwrap().balance, Some(coin(5 * PLK)));

    let result = chain.send(1, vec![undelegate(1, 200, 2 * PLK)]);
    assert_eq!(result.code, 0, "{}", result.log);
    assert!(result.events.iter().any(|event| event.r#type == "unbond"));
    assert_eq!(updates(&mut chain, &[200]), vec![(200, 1_003)]);
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount(2 * PLK));
    chain.advance(UNBONDING - 1);
    assert_eq!(chain.balance(operator(1)).0, start - 5 * PLK - 2 * fee, "not before its time");
    chain.advance(1);
    assert_eq!(chain.balance(operator(1)).0, start - 3 * PLK - 2 * fee);
    assert!(chain.block_events.iter().any(|event| event.r#type == "complete_unbonding"));
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount::ZERO);
    let pool: QueryPoolResponse = query(&chain, "Pool", QueryPoolRequest {}).unwrap();
    assert_eq!(pool.pool.unwrap().bonded_tokens, (1_003 * PLK).to_string());
    let all = QueryDelegatorDelegationsRequest { delegator_addr: operator(1).account(), pagination: None };
    let all: QueryDelegatorDelegationsResponse = query(&chain, "DelegatorDelegations", all).unwrap();
    assert_eq!(all.delegation_responses.len(), 1);
    chain.checked_supply();
}

#[test]
fn validators_enter_and_leave_the_set_by_their_stake() {
    let mut chain = chain(3);
    updates(&mut chain, &[200]);
    let result = chain.send(1, vec![any(&create(1, 11, 2_000 * PLK))]);
    assert_eq!(result.code, 0, "{}", result.log);
    assert_eq!(updates(&mut chain, &[11, 200]), vec![(11, 2_000)]);
    // Two places; a third candidate with less than both waits outside.
    assert_eq!(chain.send(2, vec![any(&create(2, 12, 500 * PLK))]).code, 0);
    assert_eq!(updates(&mut chain, &[11, 12, 200]), vec![]);
    assert_eq!(validator(&chain, 2).status(), BondStatus::Unbonded);
    // With more it takes the weakest one's place.
    assert_eq!(chain.send(3, vec![delegate(3, 2, 1_000 * PLK)]).code, 0);
    assert_eq!(updates(&mut chain, &[11, 12, 200]), vec![(12, 1_500), (200, 0)]);
    assert_eq!(validator(&chain, 200).status(), BondStatus::Unbonding);
    assert_eq!(chain.balance(Pool::BondedTokens), Amount(3_500 * PLK));
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount(1_000 * PLK));
    chain.advance(UNBONDING);
    assert_eq!(validator(&chain, 200).status(), BondStatus::Unbonded);
    // What is taken back waits for the unbonding time, power or not; an empty validator without power is forgotten.
    assert_eq!(chain.send(200, vec![undelegate(200, 200, 1_000 * PLK)]).code, 0);
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount(1_000 * PLK));
    let gone = QueryValidatorRequest { validator_addr: operator(200).valoper() };
    assert!(query::<_, QueryValidatorResponse>(&chain, "Validator", gone).unwrap_err().contains("NotFound"));
    let bonded = QueryValidatorsRequest { status: "BOND_STATUS_BONDED".into(), pagination: None };
    let bonded: QueryValidatorsResponse = query(&chain, "Validators", bonded).unwrap();
    assert_eq!(bonded.validators.len(), 2);
    chain.advance(UNBONDING);
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount::ZERO);
    chain.checked_supply();
}

#[test]
fn refusals_by_name() {
    let mut chain = chain(2);
    chain.advance(1);
    let other_coin = any(&MsgDelegate {
        amount: Some(Coin { denom: "uatom".into(), amount: "1".into() }),
        ..MsgDelegate::decode(delegate(1, 200, 1).value.as_slice()).unwrap()
    });
    let alter = |change: &dyn Fn(&mut MsgCreateValidator)| {
        let mut message = create(1, 11, PLK);
        change(&mut message);
        any(&message)
    };
    let bad_key = alter(&|m| m.pubkey = Some(any(&PubKey { key: vec![0; 32] })));
    let rates = alter(&|m| m.commission.as_mut().unwrap().rate = Dec::one().to_atomics_string());
    let huge = alter(&|m| m.commission.as_mut().unwrap().max_rate = Dec::from_bps(10_001).to_atomics_string());
    let change = alter(&|m| m.commission.as_mut().unwrap().max_change_rate = Dec::from_bps(2_001).to_atomics_string());
    for (name, by, message, codespace, code, text) in [
        ("no such validator", 1, delegate(1, 2, 1), "staking", 3, "does not exist"),
        ("nothing delegated", 1, undelegate(1, 200, 1), "staking", 19, "no delegation"),
        ("more than there is", 200, undelegate(200, 200, 1_001 * PLK), "sdk", 18, "1001000000"),
        ("the last power", 200, undelegate(200, 200, 1_000 * PLK), "staking", 100, "halt"),
        ("zero", 1, delegate(1, 200, 0), "sdk", 18, "positive"),
        ("more than the balance", 1, delegate(1, 200, u128::from(u64::MAX)), "sdk", 5, "insufficient"),
        ("another coin", 1, other_coin, "sdk", 18, "uatom"),
        ("second validator of an operator", 200, any(&create(200, 12, PLK)), "staking", 4, "already"),
        ("key of another validator", 1, any(&create(1, 200, PLK)), "staking", 5, "pubkey"),
        ("no consensus key", 1, bad_key, "staking", 6, "ed25519"),
        ("rate above the maximum", 1, rates, "staking", 11, "max rate"),
        ("rate above the whole", 1, huge, "staking", 10, "100%"),
        ("change above the maximum", 1, change, "staking", 14, "change rate"),
        ("no description", 1, alter(&|m| m.description = None), "sdk", 18, "empty description"),
        ("long moniker", 1, alter(&|m| m.description.as_mut().unwrap().moniker = "m".repeat(71)), "sdk", 18, "max: 70"),
        ("self-delegation", 1, alter(&|m| m.min_self_delegation = "1000001".into()), "staking", 16, "minimum"),
        ("to oneself", 200, redelegate(200, 200, 200, 1), "staking", 29, "same validator"),
        ("to nowhere", 200, redelegate(200, 200, 2, 1), "staking", 3, "does not exist"),
        ("nothing to move", 1, redelegate(1, 200, 200, 1), "staking", 19, "no delegation"),
        ("nothing to cancel", 1, cancel(1, 200, 1, 1), "sdk", 38, "not found"),
        ("cancelled at no height", 1, cancel(1, 200, 1, 0), "sdk", 18, "height"),
        ("edited by nobody", 1, any(&edit(1)), "staking", 3, "does not exist"),
    ] {
        let result = chain.send(by, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), (codespace, code), "{name}: {}", result.log);
        assert!(result.log.contains(text), "{name}: {}", result.log);
    }
    assert_eq!(chain.send(1, vec![delegate(1, 200, 100)]).code, 0);
    for entry in 0..4 {
        // Two in a block are one entry; three are the most.
        let result = chain.send(1, vec![undelegate(1, 200, 1), undelegate(1, 200, 1)]);
        assert_eq!(result.code, if entry < 2 { 0 } else { 27 }, "{entry}: {}", result.log);
        if entry == 1 {
            assert_eq!(chain.send(1, vec![undelegate(1, 200, 1)]).code, 0);
        }
    }
    chain.checked_supply();
}

#[test]
fn an_operator_that_withdraws_below_its_minimum_is_jailed() {
    let mut chain = chain(1);
    updates(&mut chain, &[200]);
    let mut message = create(1, 11, 10 * PLK);
    message.min_self_delegation = (5 * PLK).to_string();
    assert_eq!(chain.send(1, vec![any(&message)]).code, 0);
    assert_eq!(chain.send(1, vec![undelegate(1, 1, 6 * PLK)]).code, 0);
    assert!(validator(&chain, 1).jailed);
    assert_eq!(updates(&mut chain, &[11, 200]), vec![(11, 10), (11, 0)]);
}

#[test]
fn stake_moves_between_validators_and_answers_for_the_old_one() {
    let mut chain = chain(3);
    for (n, consensus) in [(2, 12), (3, 13)] {
        assert_eq!(chain.send(n, vec![any(&create(n, consensus, 500 * PLK))]).code, 0);
    }
    assert_eq!(chain.send(1, vec![delegate(1, 2, 100 * PLK)]).code, 0);
    let result = chain.send(1, vec![redelegate(1, 2, 3, 40 * PLK)]);
    assert_eq!(result.code, 0, "{}", result.log);
    let event = result.events.iter().find(|event| event.r#type == "redelegate").unwrap();
    assert!(
        event.attributes.iter().any(|a| a.key == "completion_time" && a.value == "2023-11-14T22:13:28Z"),
        "{event:?}"
    );
    assert_eq!(validator(&chain, 2).tokens, (560 * PLK).to_string());
    assert_eq!(validator(&chain, 3).tokens, (540 * PLK).to_string());
    // 3 is outside of the two places, 2 in: its stake has left the pool of the bonded.
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount(540 * PLK));
    let refused = chain.send(1, vec![redelegate(1, 3, 200, 40 * PLK)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("staking", 32), "{}", refused.log);
    let ask = |chain: &TestChain, by: &str, from: &str, to: &str| -> usize {
        let request = QueryRedelegationsRequest {
            delegator_addr: by.into(),
            src_validator_addr: from.into(),
            dst_validator_addr: to.into(),
            pagination: None,
        };
        let answer: Result<QueryRedelegationsResponse, String> = query(chain, "Redelegations", request);
        answer.map_or(0, |answer| answer.redelegation_responses.iter().map(|row| row.entries.len()).sum())
    };
    let (me, from, to) = (operator(1).account(), operator(2).valoper(), operator(3).valoper());
    let counts = |chain: &TestChain| {
        [ask(chain, &me, "", ""), ask(chain, "", &from, ""), ask(chain, &me, &from, &to), ask(chain, &me, &to, &from)]
    };
    assert_eq!(counts(&chain), [1, 1, 1, 0]);
    for _ in 0..2 {
        assert_eq!(chain.send(1, vec![redelegate(1, 2, 3, PLK)]).code, 0);
    }
    assert_eq!(counts(&chain), [3, 3, 3, 0]);
    assert_eq!(chain.send(1, vec![redelegate(1, 2, 3, PLK)]).code, 33, "three entries are the most");
    chain.checked_supply();
    chain.advance(UNBONDING - 1);
    assert!(chain.block_events.iter().any(|event| event.r#type == "complete_redelegation"));
    assert_eq!(counts(&chain), [0; 4]);
    assert_eq!(chain.send(1, vec![redelegate(1, 3, 200, 42 * PLK)]).code, 0, "free to go on");
    assert_eq!(counts(&chain), [0; 4], "one without power has done nothing to answer for");
    chain.checked_supply();
}

#[test]
fn an_unbonding_is_cancelled_in_part_and_whole() {
    let mut chain = chain(1);
    assert_eq!(chain.send(1, vec![delegate(1, 200, 10 * PLK)]).code, 0);
    assert_eq!(chain.send(1, vec![undelegate(1, 200, 6 * PLK)]).code, 0);
    let at = i64::try_from(chain.height()).unwrap();
    assert_eq!(chain.send(1, vec![cancel(1, 200, 7 * PLK, at)]).code, 18);
    assert_eq!(chain.send(1, vec![cancel(1, 200, PLK, at + 1)]).code, 38);
    let result = chain.send(1, vec![cancel(1, 200, 2 * PLK, at)]);
    assert_eq!(result.code, 0, "{}", result.log);
    assert!(result.events.iter().any(|event| event.r#type == "cancel_unbonding_delegation"));
    let request = QueryUnbondingDelegationRequest {
        delegator_addr: operator(1).account(),
        validator_addr: operator(200).valoper(),
    };
    let left: QueryUnbondingDelegationResponse = query(&chain, "UnbondingDelegation", request.clone()).unwrap();
    let entry = &left.unbond.unwrap().entries[0];
    assert_eq!((entry.balance.as_str(), entry.initial_balance.as_str()), ("4000000", "4000000"));
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount(4 * PLK));
    let rest = chain.send(1, vec![cancel(1, 200, 4 * PLK, at)]);
    assert_eq!(rest.code, 0, "{}", rest.log);
    assert!(query::<_, QueryUnbondingDelegationResponse>(&chain, "UnbondingDelegation", request).is_err());
    assert_eq!(validator(&chain, 200).tokens, (1_010 * PLK).to_string());
    chain.advance(UNBONDING);
    chain.checked_supply();
}

#[test]
fn a_validator_is_edited_within_what_it_promised() {
    let mut genesis: Genesis = genesis(1);
    genesis.distribution.community_tax_bps = 10_000;
    let mut chain = TestChain::start(&genesis);
    assert_eq!(chain.send(1, vec![any(&create(1, 11, 10 * PLK))]).code, 0);
    let rate = |bps| Dec::from_bps(bps).to_atomics_string();
    let change = |alter: &dyn Fn(&mut MsgEditValidator)| {
        let mut message = edit(1);
        alter(&mut message);
        any(&message)
    };
    for (name, message, codespace, code) in [
        ("twice a day", change(&|m| m.commission_rate = rate(550)), "staking", 12),
        ("a rate above one", change(&|m| m.commission_rate = rate(10_001)), "sdk", 18),
        ("nothing", change(&|m| m.description = None), "sdk", 18),
        ("no minimum", change(&|m| m.min_self_delegation = "0".into()), "sdk", 18),
        ("a lower minimum", change(&|m| m.min_self_delegation = "1".into()), "staking", 17),
        ("a minimum above its tokens", change(&|m| m.min_self_delegation = (11 * PLK).to_string()), "staking", 16),
    ] {
        let result = chain.send(1, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), (codespace, code), "{name}: {}", result.log);
    }
    let result = chain.send(1, vec![change(&|m| m.min_self_delegation = (2 * PLK).to_string())]);
    assert_eq!(result.code, 0, "{}", result.log);
    let record = validator(&chain, 1);
    assert_eq!((record.description.unwrap().moniker.as_str(), record.min_self_delegation.as_str()), ("v1", "2000000"));
    chain.skip_seconds(24 * 3600);
    for (bps, code) in [(2_001, 11), (601, 15), (600, 0), (599, 12)] {
        let result = chain.send(1, vec![change(&|m| m.commission_rate = rate(bps))]);
        assert_eq!(result.code, code, "{bps}: {}", result.log);
    }
    assert_eq!(validator(&chain, 1).commission.unwrap().commission_rates.unwrap().rate, rate(600));
}

#[test]
fn amino_json_of_the_messages_of_staking() {
    use crate::tx::amino_document;
    let (me, from, to) = (operator(1).account(), operator(2).valoper(), operator(3).valoper());
    let coin = r#"{"amount":"5","denom":"uplk"}"#;
    for (message, expected) in [
        (
            redelegate(1, 2, 3, 5),
            format!(
                r#"{{"type":"cosmos-sdk/MsgBeginRedelegate","value":{{"amount":{coin},"delegator_address":"{me}","validator_dst_address":"{to}","validator_src_address":"{from}"}}}}"#
            ),
        ),
        (
            cancel(1, 2, 5, 7),
            format!(
                r#"{{"type":"cosmos-sdk/MsgCancelUnbondingDelegation","value":{{"amount":{coin},"creation_height":"7","delegator_address":"{me}","validator_address":"{from}"}}}}"#
            ),
        ),
        (
            any(&MsgEditValidator { commission_rate: Dec::from_bps(600).to_atomics_string(), ..edit(2) }),
            format!(
                r#"{{"type":"cosmos-sdk/MsgEditValidator","value":{{"commission_rate":"0.060000000000000000","description":{{"details":"[do-not-modify]","identity":"[do-not-modify]","moniker":"[do-not-modify]","security_contact":"[do-not-modify]","website":"https://example.org"}},"validator_address":"{from}"}}}}"#
            ),
        ),
    ] {
        assert!(amino_document(&message).unwrap().contains(&expected), "{expected}");
    }
}

#[test]
fn the_last_headers_are_kept_with_their_sets() {
    let mut genesis: Genesis = genesis(2);
    genesis.staking.historical_entries = 3;
    let mut chain = TestChain::start(&genesis);
    assert_eq!(chain.send(1, vec![any(&create(1, 1, 2_000 * PLK))]).code, 0);
    chain.advance(5);
    let ask = |height: i64| {
        let request = QueryHistoricalInfoRequest { height };
        chain.query::<_, QueryHistoricalInfoResponse>("/cosmos.staking.v1beta1.Query/HistoricalInfo", &request)
    };
    for height in [1, 2, 3, 7] {
        assert!(ask(height).unwrap_err().contains(&format!("historical info for height {height} not found")));
    }
    assert!(ask(-1).unwrap_err().contains("negative"));
    for height in [4, 5, 6] {
        let hist = ask(height).unwrap().hist.unwrap();
        let header = hist.header.unwrap();
        assert_eq!((header.height, header.time.unwrap().seconds), (height, GENESIS_SECONDS + height));
        assert_eq!((header.chain_id.as_str(), header.app_hash.len()), (CHAIN_ID, 32));
        let set: Vec<String> = hist.valset.into_iter().map(|validator| validator.operator_address).collect();
        assert_eq!(set, [operator(1).valoper(), operator(200).valoper()], "the strongest first");
    }
}

/// The only validator with power may be left for one that gains it by that.
#[test]
fn all_power_can_move_to_another_validator() {
    let mut chain = chain(2);
    // Too little for a vote.
    assert_eq!(chain.send(1, vec![any(&create(1, 1, PLK / 2))]).code, 0);
    let refused = chain.send(200, vec![undelegate(200, 200, 1_000 * PLK)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("staking", 100), "{}", refused.log);
    let moved = chain.send(200, vec![redelegate(200, 200, 1, 1_000 * PLK)]);
    assert_eq!(moved.code, 0, "{}", moved.log);
    chain.advance(3);
    let last = chain.validator_updates.last().unwrap();
    assert_eq!((chain.validator_updates.len(), last.power), (3, 0), "one came, one went");
    chain.checked_supply();
}
