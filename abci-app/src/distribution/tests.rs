//! Tests of the distribution on a running chain: numbers worked out by hand, withdrawals, queries, refusals.

mod random;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::v1beta1::{Coin, DecCoin};
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::*;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{MsgDelegate, MsgUndelegate};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};

use crate::bank::Pool;
use crate::store::{MemoryState, Overlay, StateWrite};
use crate::testing::{GAS_LIMIT, TestChain, genesis, key};
use crate::tx::ante::least_fee;

/// One vote's worth.
const PLK: u128 = 1_000_000;

fn address(n: u8) -> Address {
    key(n).address()
}

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn delegate(n: u8, amount: u128) -> Any {
    any(&MsgDelegate {
        delegator_address: address(n).account(),
        validator_address: address(200).valoper(),
        amount: Some(coin(amount)),
    })
}

fn withdraw(n: u8, validator: u8) -> Any {
    any(&MsgWithdrawDelegatorReward {
        delegator_address: address(n).account(),
        validator_address: address(validator).valoper(),
    })
}

fn commission(n: u8) -> Any {
    any(&MsgWithdrawValidatorCommission { validator_address: address(n).valoper() })
}

fn withdraw_to(n: u8, to: Address) -> Any {
    any(&MsgSetWithdrawAddress { delegator_address: address(n).account(), withdraw_address: to.account() })
}

fn fund(n: u8, coins: Vec<Coin>) -> Any {
    any(&MsgFundCommunityPool { depositor: address(n).account(), amount: coins })
}

fn ask<Q: Message, R: Message + Default>(chain: &TestChain, method: &str, request: Q) -> Result<R, String> {
    chain.query(&format!("/cosmos.distribution.v1beta1.Query/{method}"), &request)
}

/// An amount of a list of coins, in atomics.
fn atomics(coins: &[DecCoin]) -> u128 {
    coins.iter().map(|coin| coin.amount.parse::<u128>().unwrap()).sum()
}

fn pending(chain: &TestChain, n: u8) -> u128 {
    let (delegator_address, validator_address) = (address(n).account(), address(200).valoper());
    let request = QueryDelegationRewardsRequest { delegator_address, validator_address };
    atomics(&ask::<_, QueryDelegationRewardsResponse>(chain, "DelegationRewards", request).unwrap().rewards)
}

fn community(chain: &TestChain) -> u128 {
    let answer: QueryCommunityPoolResponse = ask(chain, "CommunityPool", QueryCommunityPoolRequest {}).unwrap();
    atomics(&answer.pool)
}

const ONE: u128 = 1_000_000_000_000_000_000;

#[test]
fn fees_go_to_the_community_the_validator_and_its_delegators() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let fee = least_fee(GAS_LIMIT, 25).0;
    assert_eq!(fee, 50_000);
    // 1,000 PLK of the validator's own, and as much of account 1. The fee is shared out one block later.
    assert_eq!(chain.send(1, vec![delegate(1, 1_000 * PLK)]).code, 0);
    assert_eq!((chain.balance(Pool::FeeCollector), chain.balance(Pool::Distribution)), (Amount(fee), Amount::ZERO));
    chain.advance(1);
    // 2 % of 50,000 to the community; 10 % of 49,000 commission; 22,050 for each half.
    assert_eq!(community(&chain), 1_000 * ONE);
    assert_eq!((pending(&chain, 1), pending(&chain, 200)), (22_050 * ONE, 22_050 * ONE));
    for kind in ["commission", "rewards"] {
        let event = chain.block_events.iter().find(|event| event.r#type == kind).unwrap();
        let amount = if kind == "commission" { "4900" } else { "49000" };
        assert_eq!(event.attributes[0].value, format!("{amount}.000000000000000000uplk"));
    }
    let info = QueryValidatorDistributionInfoRequest { validator_address: address(200).valoper() };
    let info: QueryValidatorDistributionInfoResponse = ask(&chain, "ValidatorDistributionInfo", info).unwrap();
    assert_eq!((atomics(&info.commission), atomics(&info.self_bond_rewards)), (4_900 * ONE, 22_050 * ONE));

    let before = chain.balance(address(1)).0;
    let result = chain.send(1, vec![withdraw(1, 200)]);
    assert_eq!(result.code, 0, "{}", result.log);
    let event = result.events.iter().find(|event| event.r#type == "withdraw_rewards").unwrap();
    assert_eq!(event.attributes[0].value, "22050uplk");
    assert_eq!(chain.balance(address(1)).0, before - fee + 22_050);
    assert_eq!(pending(&chain, 1), 0);
    // The commission of this fee and of the last one.
    let before = chain.balance(address(200)).0;
    assert_eq!(chain.send(200, vec![commission(200)]).code, 0);
    assert_eq!(chain.balance(address(200)).0, before - fee + 2 * 4_900);
    assert_eq!(chain.balance(Pool::FeeCollector).0, fee);
    chain.advance(1);
    let refused = chain.send(2, vec![commission(2)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("distribution", 7));
    chain.checked_supply();
}

#[test]
fn rewards_are_paid_when_stake_changes_and_to_the_address_that_is_set() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    assert_eq!(chain.send(1, vec![delegate(1, 1_000 * PLK)]).code, 0);
    assert_eq!(chain.send(1, vec![withdraw_to(1, address(2))]).code, 0);
    let other = chain.balance(address(2)).0;
    // What 1,000 PLK have earned of two fees, before more are added.
    assert_eq!(chain.send(1, vec![delegate(1, 500 * PLK)]).code, 0);
    assert_eq!(chain.balance(address(2)).0, other + 2 * 22_050);
    let undelegate = any(&MsgUndelegate {
        delegator_address: address(1).account(),
        validator_address: address(200).valoper(),
        amount: Some(coin(1_500 * PLK)),
    });
    // 1,500 of 2,500 PLK.
    let result = chain.send(1, vec![undelegate]);
    assert_eq!(result.code, 0, "{}", result.log);
    assert_eq!(chain.balance(address(2)).0, other + 2 * 22_050 + 44_100 * 3 / 5);
    let gone = chain.send(1, vec![withdraw(1, 200)]);
    assert_eq!((gone.codespace.as_str(), gone.code), ("distribution", 5));
    let request = QueryDelegatorWithdrawAddressRequest { delegator_address: address(1).account() };
    let answer: QueryDelegatorWithdrawAddressResponse = ask(&chain, "DelegatorWithdrawAddress", request).unwrap();
    assert_eq!(answer.withdraw_address, address(2).account());
    chain.checked_supply();
}

#[test]
fn fractions_of_a_unit_go_to_the_community_pool() {
    let mut chain = TestChain::start(&genesis(1));
    chain.advance(1);
    assert_eq!(chain.send(1, vec![delegate(1, 7 * PLK)]).code, 0);
    chain.advance(1);
    // 44,100 / 1,007 a PLK, cut off at 18 decimals a token.
    let ratio = Dec::from_amount(Amount(44_100)).quo_truncate(Dec::from_amount(Amount(1_007 * PLK))).unwrap();
    let raw = ratio.mul_truncate(Dec::from_amount(Amount(7 * PLK))).unwrap();
    assert_eq!(pending(&chain, 1), raw.to_atomics_string().parse().unwrap());
    let before = community(&chain);
    assert_eq!(chain.send(1, vec![withdraw(1, 200)]).code, 0);
    let fraction: u128 = raw.fraction().to_atomics_string().parse().unwrap();
    assert_eq!(raw.truncate().unwrap(), Amount(306));
    assert_eq!(community(&chain), before + fraction, "the fee of this block comes with the next");
    chain.checked_supply();
}

#[test]
fn who_does_not_sign_is_paid_too_and_who_is_not_there_is_not() {
    // The SDK pays by the set of the last block, not by signatures.
    let mut chain = TestChain::start(&genesis(1));
    chain
        .absent
        .insert(Address::of_consensus_key(&polylink_protocol::keys::ServiceKey::from_bytes(&[200; 32]).public_key()));
    chain.advance(1);
    assert_eq!(chain.send(1, vec![fund(1, vec![coin(5)])]).code, 0);
    chain.advance(1);
    assert_eq!(community(&chain), 1_005 * ONE);
    assert_eq!(pending(&chain, 200), 44_100 * ONE);
    let request = QueryValidatorOutstandingRewardsRequest { validator_address: address(200).valoper() };
    let answer: QueryValidatorOutstandingRewardsResponse = ask(&chain, "ValidatorOutstandingRewards", request).unwrap();
    assert_eq!(atomics(&answer.rewards.unwrap().rewards), 49_000 * ONE);
}

#[test]
fn refusals_by_name() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let other = Coin { denom: "uatom".into(), amount: "1".into() };
    for (name, by, message, codespace, code) in [
        ("no such validator", 1, withdraw(1, 2), "distribution", 6),
        ("nothing delegated", 1, withdraw(1, 200), "distribution", 5),
        ("no commission", 1, commission(1), "distribution", 7),
        ("to a pool", 1, withdraw_to(1, Pool::Distribution.address()), "sdk", 4),
        ("no coins", 1, fund(1, vec![]), "sdk", 10),
        ("another coin", 1, fund(1, vec![other]), "sdk", 10),
        ("more than there is", 1, fund(1, vec![coin(u128::from(u64::MAX))]), "sdk", 5),
    ] {
        let result = chain.send(by, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), (codespace, code), "{name}: {}", result.log);
    }
    let mut closed = genesis(1);
    closed.distribution.withdraw_address_enabled = false;
    let mut chain = TestChain::start(&closed);
    chain.advance(1);
    assert_eq!(chain.send(1, vec![withdraw_to(1, address(2))]).code, 8);
    let unknown = QueryValidatorCommissionRequest { validator_address: address(1).valoper() };
    let error = ask::<_, QueryValidatorCommissionResponse>(&chain, "ValidatorCommission", unknown).unwrap_err();
    assert!(error.contains("code = NotFound"), "{error}");
    let reversed = QueryValidatorSlashesRequest { starting_height: 2, ending_height: 1, ..Default::default() };
    let error = ask::<_, QueryValidatorSlashesResponse>(&chain, "ValidatorSlashes", reversed).unwrap_err();
    assert!(error.contains("InvalidArgument"), "{error}");
}

#[test]
fn what_is_owed_without_being_held_stops_the_block() {
    let mut base = MemoryState::default();
    super::records::set_community_pool(&mut base, Dec::ZERO);
    let mut layer = Overlay::new(&base);
    super::records::set_outstanding(&mut layer, &address(1), Dec::one());
    let breach = super::check_conservation(&base, layer.changes()).unwrap_err();
    assert_eq!((breach.owed_before, breach.owed_after), (Dec::ZERO, Dec::one()));
    let held = crate::bank::balance_key(&Pool::Distribution.address(), DENOM);
    layer.put(held, 1_u128.to_be_bytes().to_vec());
    assert_eq!(super::check_conservation(&base, layer.changes()), Ok(()));
    let changes = layer.into_changes();
    base.apply(&changes);
    assert_eq!(super::scan(&base), Ok(()));
    super::records::set_community_pool(&mut base, Dec::one());
    assert!(super::scan(&base).is_err());
}

#[test]
fn amino_json_of_the_messages_of_distribution() {
    use crate::tx::amino_document;
    let (me, validator) = (address(1).account(), address(200).valoper());
    for (message, expected) in [
        (
            withdraw(1, 200),
            format!(
                r#"{{"type":"cosmos-sdk/MsgWithdrawDelegationReward","value":{{"delegator_address":"{me}","validator_address":"{validator}"}}}}"#
            ),
        ),
        (
            commission(200),
            format!(
                r#"{{"type":"cosmos-sdk/MsgWithdrawValCommission","value":{{"validator_address":"{validator}"}}}}"#
            ),
        ),
        (
            withdraw_to(1, address(1)),
            format!(
                r#"{{"type":"cosmos-sdk/MsgModifyWithdrawAddress","value":{{"delegator_address":"{me}","withdraw_address":"{me}"}}}}"#
            ),
        ),
        (
            fund(1, vec![coin(5)]),
            format!(
                r#"{{"type":"cosmos-sdk/MsgFundCommunityPool","value":{{"amount":[{{"amount":"5","denom":"uplk"}}],"depositor":"{me}"}}}}"#
            ),
        ),
    ] {
        assert!(amino_document(&message).unwrap().contains(&expected), "{expected}");
    }
}
