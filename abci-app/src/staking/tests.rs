//! Tests of staking on a running chain, and random sequences of sends and stakes against an obvious model.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::*;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};
use proptest::prelude::*;

use crate::bank::Pool;
use crate::genesis::Genesis;
use crate::testing::{GAS_LIMIT, TestChain, genesis, key};
use crate::tx::ante::least_fee;

/// One vote's worth.
const PLK: u128 = 1_000_000;
/// From undelegating to payment; blocks are a second apart.
const UNBONDING: u64 = 4;

fn chain(accounts: u8) -> TestChain {
    let mut genesis: Genesis = genesis(accounts);
    genesis.staking.unbonding_seconds = UNBONDING;
    genesis.staking.max_entries = 3;
    genesis.staking.max_validators = 2;
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
    // From a validator without power stake comes back at once; an empty one is forgotten.
    assert_eq!(chain.send(200, vec![undelegate(200, 200, 1_000 * PLK)]).code, 0);
    assert_eq!(chain.balance(Pool::NotBondedTokens), Amount::ZERO);
    let gone = QueryValidatorRequest { validator_addr: operator(200).valoper() };
    assert!(query::<_, QueryValidatorResponse>(&chain, "Validator", gone).unwrap_err().contains("NotFound"));
    let bonded = QueryValidatorsRequest { status: "BOND_STATUS_BONDED".into(), pagination: None };
    let bonded: QueryValidatorsResponse = query(&chain, "Validators", bonded).unwrap();
    assert_eq!(bonded.validators.len(), 2);
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
    for (name, by, message, codespace, code, text) in [
        ("no such validator", 1, delegate(1, 2, 1), "staking", 3, "does not exist"),
        ("nothing delegated", 1, undelegate(1, 200, 1), "staking", 19, "no delegation"),
        ("more than there is", 200, undelegate(200, 200, 1_001 * PLK), "staking", 22, "1001000000"),
        ("the last power", 200, undelegate(200, 200, 1_000 * PLK), "staking", 41, "halt"),
        ("zero", 1, delegate(1, 200, 0), "sdk", 10, "positive"),
        ("more than the balance", 1, delegate(1, 200, u128::from(u64::MAX)), "sdk", 5, "insufficient"),
        ("another coin", 1, other_coin, "staking", 40, "uatom"),
        ("second validator of an operator", 200, any(&create(200, 12, PLK)), "staking", 4, "already"),
        ("key of another validator", 1, any(&create(1, 200, PLK)), "staking", 5, "new key"),
        ("no consensus key", 1, bad_key, "staking", 6, "ed25519"),
        ("rate above the maximum", 1, rates, "staking", 10, "max_rate"),
        ("no moniker", 1, alter(&|m| m.description = None), "staking", 9, "moniker"),
        ("self-delegation", 1, alter(&|m| m.min_self_delegation = "1000001".into()), "staking", 16, "at least"),
        (
            "not built",
            1,
            Any { type_url: "/cosmos.staking.v1beta1.MsgBeginRedelegate".into(), value: vec![] },
            "sdk",
            6,
            "not built",
        ),
    ] {
        let result = chain.send(by, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), (codespace, code), "{name}: {}", result.log);
        assert!(result.log.contains(text), "{name}: {}", result.log);
    }
    assert_eq!(chain.send(1, vec![delegate(1, 200, 100)]).code, 0);
    for entry in 0..4 {
        let result = chain.deliver(vec![chain.sign(1, vec![undelegate(1, 200, 1), undelegate(1, 200, 1)])]).remove(0);
        // Two entries a block, three at most.
        assert_eq!(result.code, if entry == 0 { 0 } else { 28 }, "{}", result.log);
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

/// What may happen in a block.
#[derive(Clone, Debug)]
enum Step {
    Send(u8, u8, u128),
    Delegate(u8, u128),
    Undelegate(u8, u128),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let account = 1..=3_u8;
    let amount = prop_oneof![1..10 * PLK, 999_990 * PLK..1_000_010 * PLK];
    prop_oneof![
        (account.clone(), 1..=4_u8, amount.clone()).prop_map(|(a, b, n)| Step::Send(a, b, n)),
        (account.clone(), amount.clone()).prop_map(|(a, n)| Step::Delegate(a, n)),
        (account, amount).prop_map(|(a, n)| Step::Undelegate(a, n)),
        (1..4_u64).prop_map(Step::Wait),
    ]
}

/// The obvious model: three piles per account.
#[derive(Default)]
struct Model {
    free: BTreeMap<u8, u128>,
    staked: BTreeMap<u8, u128>,
    unbonding: Vec<(u64, u8, u128)>,
}

impl Model {
    fn mature(&mut self, height: u64) {
        let (due, rest) = std::mem::take(&mut self.unbonding).into_iter().partition(|(at, _, _)| *at <= height);
        self.unbonding = rest;
        for (_, account, amount) in due {
            *self.free.entry(account).or_default() += amount;
        }
    }

    /// Whether the message succeeds; the fee is paid in any case, where there is enough for it.
    fn apply(&mut self, height: u64, step: &Step) -> bool {
        let fee = least_fee(GAS_LIMIT, 25).0;
        let (Step::Send(account, ..) | Step::Delegate(account, _) | Step::Undelegate(account, _)) = *step else {
            return true;
        };
        // Who cannot pay the fee is refused before anything is charged.
        let Some(rest) = self.free.entry(account).or_default().checked_sub(fee) else { return false };
        self.free.insert(account, rest);
        let (free, staked) = (self.free[&account], self.staked.get(&account).copied().unwrap_or_default());
        match *step {
            Step::Send(_, to, amount) if amount <= free => {
                *self.free.entry(account).or_default() -= amount;
                *self.free.entry(to).or_default() += amount;
            }
            Step::Delegate(_, amount) if amount <= free => {
                *self.free.entry(account).or_default() -= amount;
                *self.staked.entry(account).or_default() += amount;
            }
            Step::Undelegate(_, amount) if amount <= staked => {
                if self.unbonding.iter().filter(|(_, owner, _)| *owner == account).count() >= 3 {
                    return false;
                }
                *self.staked.entry(account).or_default() -= amount;
                self.unbonding.push((height + UNBONDING, account, amount));
            }
            _ => return false,
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Random sends and stakes do what the model does, conserve the supply, and give two nodes one app hash.
    #[test]
    fn random_blocks_agree_with_the_model(steps in proptest::collection::vec(step(), 1..16)) {
        let (mut chain, mut twin) = (chain(3), chain(3));
        let mut model = Model { free: (1..=3).map(|n| (n, 1_000_000 * PLK)).collect(), ..Default::default() };
        let supply = Amount(3 * 1_000_000 * PLK + 2_000 * PLK);
        for step in &steps {
            let message = match *step {
                Step::Send(from, to, amount) => Some((from, any(&MsgSend {
                    from_address: operator(from).account(),
                    to_address: operator(to).account(),
                    amount: vec![coin(amount)],
                }))),
                Step::Delegate(n, amount) => Some((n, delegate(n, 200, amount))),
                Step::Undelegate(n, amount) => Some((n, undelegate(n, 200, amount))),
                Step::Wait(_) => None,
            };
            let blocks = if let Step::Wait(blocks) = *step { blocks } else { 1 };
            let txs: Vec<Vec<u8>> = message.map(|(n, message)| chain.sign(n, vec![message])).into_iter().collect();
            for block in 0..blocks {
                let height = chain.height() + 1;
                let txs = if block == 0 { txs.clone() } else { Vec::new() };
                let expected = block > 0 || model.apply(height, step);
                model.mature(height);
                let results = chain.deliver(txs.clone());
                twin.deliver(txs);
                prop_assert_eq!(&chain.app_hash, &twin.app_hash);
                for result in &results {
                    prop_assert_eq!(result.code == 0, expected, "{:?}: {}", step, &result.log);
                }
            }
            for n in 1..=4 {
                let free = model.free.get(&n).copied().unwrap_or_default();
                prop_assert_eq!(chain.balance(operator(n)).0, free, "account {} after {:?}", n, step);
            }
            prop_assert_eq!(chain.checked_supply(), supply);
            let unbonding: u128 = model.unbonding.iter().map(|(_, _, amount)| amount).sum();
            prop_assert_eq!(chain.balance(Pool::NotBondedTokens).0, unbonding);
            let staked: u128 = model.staked.values().sum();
            prop_assert_eq!(chain.balance(Pool::BondedTokens).0, staked + 1_000 * PLK);
        }
    }
}
