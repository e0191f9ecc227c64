//! Tests of vesting accounts on a running chain. Random sequences against a model are in [`random`].

mod random;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::{QueryAccountRequest, QueryAccountResponse};
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    MsgSend, QuerySpendableBalanceByDenomRequest, QuerySpendableBalanceByDenomResponse, QuerySpendableBalancesRequest,
    QuerySpendableBalancesResponse,
};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{MsgDelegate, MsgUndelegate};
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::*;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Message, Name};

use super::{GenesisPeriod, GenesisVesting, vesting};
use crate::bank::Pool;
use crate::genesis::GenesisAccount;
use crate::testing::{GAS_LIMIT, GENESIS_SECONDS, TestChain, genesis, key};
use crate::tx::ante::least_fee;

/// A whole coin.
const PLK: u128 = 1_000_000;

fn address(n: u8) -> Address {
    key(n).address()
}

fn coins(amount: u128) -> Vec<Coin> {
    vec![Coin { denom: DENOM.into(), amount: amount.to_string() }]
}

fn fee() -> u128 {
    least_fee(GAS_LIMIT, 25).0
}

fn send(from: u8, to: u8, amount: u128) -> Any {
    any(&MsgSend { from_address: address(from).account(), to_address: address(to).account(), amount: coins(amount) })
}

fn delegate(n: u8, amount: u128) -> Any {
    let (delegator_address, validator_address) = (address(n).account(), address(200).valoper());
    any(&MsgDelegate { delegator_address, validator_address, amount: coins(amount).pop() })
}

fn create(to: u8, amount: u128, seconds: i64, delayed: bool) -> MsgCreateVestingAccount {
    MsgCreateVestingAccount {
        from_address: address(1).account(),
        to_address: address(to).account(),
        amount: coins(amount),
        end_time: GENESIS_SECONDS + seconds,
        delayed,
    }
}

fn spendable(chain: &TestChain, n: u8) -> u128 {
    let request = QuerySpendableBalancesRequest { address: address(n).account(), pagination: None };
    let path = "/cosmos.bank.v1beta1.Query/SpendableBalances";
    let all: QuerySpendableBalancesResponse = chain.query(path, &request).unwrap();
    let request = QuerySpendableBalanceByDenomRequest { address: address(n).account(), denom: DENOM.into() };
    let path = "/cosmos.bank.v1beta1.Query/SpendableBalanceByDenom";
    let one: QuerySpendableBalanceByDenomResponse = chain.query(path, &request).unwrap();
    let amount = all.balances.first().map_or("0", |coin| coin.amount.as_str());
    assert_eq!(one.balance.unwrap().amount, amount);
    amount.parse().unwrap()
}

fn account(chain: &TestChain, n: u8) -> Any {
    let request = QueryAccountRequest { address: address(n).account() };
    let answer: QueryAccountResponse = chain.query("/cosmos.auth.v1beta1.Query/Account", &request).unwrap();
    answer.account.unwrap()
}

#[test]
fn coins_can_be_sent_as_they_vest() {
    let mut chain = TestChain::start(&genesis(2));
    // Block 1 is second 1: 100 PLK until second 101.
    assert_eq!(chain.send(1, vec![any(&create(50, 100 * PLK, 101, false))]).code, 0);
    // In the block of second 2 a hundredth has vested, and pays the fee.
    let refused = chain.send(50, vec![send(50, 2, PLK)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("sdk", 5), "{}", refused.log);
    chain.advance_to(26);
    assert_eq!(spendable(&chain, 50), 25 * PLK - fee());
    let refused = chain.send(50, vec![send(50, 2, 26 * PLK)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("sdk", 5), "{}", refused.log);
    // In the block of second 28, 27 have vested; two fees were paid, a third one is.
    assert_eq!(chain.send(50, vec![send(50, 2, 27 * PLK - 3 * fee())]).code, 0);
    assert_eq!((spendable(&chain, 50), chain.balance(address(50)).0), (0, 73 * PLK));
    // What it receives is its own.
    assert_eq!(chain.send(1, vec![send(1, 50, 5 * PLK)]).code, 0);
    assert_eq!(spendable(&chain, 50), 6 * PLK);
    chain.advance_to(101);
    assert_eq!(spendable(&chain, 50), 78 * PLK);
    let found = account(&chain, 50);
    assert_eq!(found.type_url, ContinuousVestingAccount::type_url());
    let found = ContinuousVestingAccount::decode(found.value.as_slice()).unwrap();
    let base = found.base_vesting_account.unwrap();
    assert_eq!((found.start_time, base.end_time), (GENESIS_SECONDS + 1, GENESIS_SECONDS + 101));
    assert_eq!((base.original_vesting, base.base_account.unwrap().sequence), (coins(100 * PLK), 3));
    chain.checked_supply();
}

#[test]
fn locked_coins_can_be_staked_and_come_back_locked() {
    let mut start = genesis(2);
    start.staking.unbonding_seconds = 4;
    let mut chain = TestChain::start(&start);
    assert_eq!(chain.send(1, vec![any(&create(50, 100 * PLK, 10_000, true))]).code, 0);
    assert_eq!(chain.send(1, vec![send(1, 50, 10 * PLK)]).code, 0);
    assert_eq!(chain.send(50, vec![delegate(50, 104 * PLK)]).code, 0);
    let state = || vesting(&chain.state(), &address(50)).unwrap();
    assert_eq!((state().delegated_vesting.0, state().delegated_free.0), (100 * PLK, 4 * PLK));
    // 110 less what is staked and a fee, all of it free.
    assert_eq!(spendable(&chain, 50), 6 * PLK - fee());
    let refused = chain.send(50, vec![delegate(50, 7 * PLK)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("sdk", 5), "{}", refused.log);
    let undelegate = MsgUndelegate {
        delegator_address: address(50).account(),
        validator_address: address(200).valoper(),
        amount: coins(54 * PLK).pop(),
    };
    assert_eq!(chain.send(50, vec![any(&undelegate)]).code, 0);
    let before = chain.balance(address(50)).0;
    chain.advance(4);
    assert_eq!(chain.balance(address(50)).0, before + 54 * PLK);
    let state = vesting(&chain.state(), &address(50)).unwrap();
    assert_eq!((state.delegated_vesting.0, state.delegated_free.0), (50 * PLK, 0));
    // The fifty that came back are locked again. (The first three fees were paid, and some rewards came.)
    assert_eq!(spendable(&chain, 50), chain.balance(address(50)).0 - 50 * PLK);
    let refused = chain.send(50, vec![send(50, 2, 20 * PLK)]);
    assert_eq!((refused.codespace.as_str(), refused.code), ("sdk", 5), "{}", refused.log);
    assert_eq!(chain.send(50, vec![delegate(50, 50 * PLK)]).code, 0, "and can be staked again");
    chain.checked_supply();
}

#[test]
fn schedules_that_cannot_be_are_refused() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let good = || create(50, PLK, 100, false);
    let periodic = |start_time, periods: Vec<(i64, u128)>| {
        any(&MsgCreatePeriodicVestingAccount {
            from_address: address(1).account(),
            to_address: address(50).account(),
            start_time,
            vesting_periods: periods.into_iter().map(|(length, part)| Period { length, amount: coins(part) }).collect(),
        })
    };
    let permanent = |to: String, amount: Vec<Coin>| {
        any(&MsgCreatePermanentLockedAccount { from_address: address(1).account(), to_address: to, amount })
    };
    let other = vec![Coin { denom: "other".into(), amount: "1".into() }];
    for (name, message, code) in [
        ("an account that is there", any(&create(2, PLK, 100, false)), 18),
        ("no end", any(&MsgCreateVestingAccount { end_time: 0, ..good() }), 18),
        ("nothing", any(&MsgCreateVestingAccount { amount: coins(0), ..good() }), 10),
        ("another coin", any(&MsgCreateVestingAccount { amount: other.clone(), ..good() }), 10),
        ("no address", any(&MsgCreateVestingAccount { to_address: "x".into(), ..good() }), 7),
        ("more than there is", any(&create(50, 2_000_000 * PLK, 100, false)), 5),
        ("a module's account", permanent(Pool::Gov.address().account(), coins(5)), 4),
        ("no start", periodic(0, vec![(1, 1)]), 18),
        ("no periods", periodic(1, vec![]), 18),
        ("a period of nothing", periodic(1, vec![(1, 1), (0, 1)]), 18),
        ("a part of nothing", periodic(1, vec![(1, 0)]), 10),
        ("too many periods", periodic(1, vec![(1, 1); 257]), 18),
        ("a time beyond all", periodic(1, vec![(i64::MAX, 1)]), 18),
        ("amounts beyond all", periodic(1, vec![(1, u128::MAX), (1, 1)]), 18),
    ] {
        let result = chain.send(1, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), ("sdk", code), "{name}: {}", result.log);
    }
    assert_eq!(vesting(&chain.state(), &address(50)), None);
    for (n, message) in [(50, periodic(1, vec![(5, 7), (6, 8)])), (51, permanent(address(51).account(), coins(9)))] {
        assert_eq!(chain.send(1, vec![message]).code, 0);
        let kind = account(&chain, n).type_url;
        let expected = [PeriodicVestingAccount::type_url(), PermanentLockedAccount::type_url()];
        assert_eq!(kind, expected[usize::from(n - 50)]);
    }
    assert_eq!((spendable(&chain, 50), spendable(&chain, 51)), (15, 0));
}

#[test]
fn accounts_of_the_genesis_document_vest() {
    let start = || {
        let mut start = genesis(1);
        let at = |seconds: i64| GENESIS_SECONDS + seconds;
        let amount = Amount(60);
        for (n, vesting) in [
            (40, GenesisVesting::Continuous { amount, start_seconds: at(0), end_seconds: at(6) }),
            (41, GenesisVesting::Delayed { amount, end_seconds: at(3) }),
            (
                42,
                GenesisVesting::Periodic {
                    start_seconds: at(0),
                    periods: vec![
                        GenesisPeriod { seconds: 2, amount: Amount(10) },
                        GenesisPeriod { seconds: 2, amount },
                    ],
                },
            ),
            (43, GenesisVesting::Permanent { amount }),
        ] {
            let (address, balance) = (address(n).account(), Amount(100));
            start.accounts.push(GenesisAccount { address, balance, vesting: Some(vesting) });
        }
        start
    };
    let mut chain = TestChain::start(&start());
    let mut seen = Vec::new();
    for _ in 0..6 {
        chain.advance(1);
        seen.push([40, 41, 42, 43].map(|n| spendable(&chain, n)));
    }
    let expected = [[50, 40, 30, 40], [60, 40, 40, 40], [70, 100, 40, 40], [80, 100, 100, 40], [90, 100, 100, 40]];
    assert_eq!(seen[..5], expected);
    assert_eq!(seen[5], [100, 100, 100, 40]);
    let text = start().to_json().to_string();
    assert_eq!(crate::Genesis::from_json(text.as_bytes()), Ok(start()), "round through JSON");
    let mut wrong = start();
    let last = wrong.accounts.last_mut().unwrap();
    last.vesting = Some(GenesisVesting::Permanent { amount: Amount(101) });
    let error = crate::chain::genesis("c-1", crate::context::BlockTime::default(), &wrong).unwrap_err();
    assert!(error.to_string().contains("accounts[5].vesting"), "{error}");
}
