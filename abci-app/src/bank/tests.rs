//! Tests of the bank: the table of refusals, and that no breach of conservation goes unseen.

mod random;

use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;

use super::*;
use crate::context::BlockTime;
use crate::modules::Handle;
use crate::store::{MemoryState, Overlay};

fn address(n: u8) -> Address {
    Address([n; 20])
}

fn ctx() -> Context {
    Context::new("test-1", 1, BlockTime::default(), 20)
}

fn state() -> MemoryState {
    let mut state = MemoryState::default();
    set_balance(&mut state, &address(1), DENOM, Amount(100));
    set_balance(&mut state, &Pool::Mint.address(), DENOM, Amount(5));
    set_supply(&mut state, DENOM, Amount(105));
    state
}

#[test]
fn transfers_conserve_and_refuse_what_is_not_there() {
    let base = state();
    let mut layer = Overlay::new(&base as &dyn StateRead);
    transfer(&mut ctx(), &mut layer, address(1), address(2), Amount(60)).unwrap();
    assert_eq!(
        transfer(&mut ctx(), &mut layer, address(1), address(2), Amount(41)),
        Err(TxError::InsufficientFunds { available: 40, needed: 41, denom: DENOM.into() })
    );
    transfer(&mut ctx(), &mut layer, address(2), address(2), Amount(60)).unwrap();
    assert_eq!(balance(&layer, address(1)), Amount(40));
    assert_eq!(balance(&layer, address(2)), Amount(60));
    mint(&mut ctx(), &mut layer, Pool::Mint, Amount(7)).unwrap();
    burn(&mut ctx(), &mut layer, Pool::Mint, Amount(12)).unwrap();
    assert!(matches!(burn(&mut ctx(), &mut layer, Pool::Mint, Amount(1)), Err(TxError::InsufficientFunds { .. })));
    assert_eq!(flows(&layer, DENOM), (Amount(7), Amount(12)));
    assert_eq!(supply(&layer, DENOM), Amount(100));
    assert_eq!(check_conservation(&base, layer.changes()), Ok(()));
    assert_eq!(scan(&layer), Ok(()));
}

#[test]
fn money_written_behind_the_banks_back_is_a_breach() {
    let base = state();
    let forge: [fn(&mut dyn StateWrite); 5] = [
        |state| set_balance(state, &address(3), DENOM, Amount(1)),
        |state| set_balance(state, &address(1), DENOM, Amount(99)),
        |state| set_supply(state, DENOM, Amount(106)),
        |state| set_flows(state, DENOM, Amount(1), Amount(0)),
        |state| set_balance(state, &address(3), "other", Amount(1)),
    ];
    for (index, forge) in forge.into_iter().enumerate() {
        let mut layer = Overlay::new(&base as &dyn StateRead);
        forge(&mut layer);
        assert!(check_conservation(&base, layer.changes()).is_err(), "forgery {index}");
    }
    let mut scanned = base.clone();
    set_balance(&mut scanned, &address(3), DENOM, Amount(1));
    assert!(scan(&scanned).is_err());
}

#[test]
fn send_refuses_by_name() {
    let coin = |denom: &str, amount: &str| Coin { denom: denom.into(), amount: amount.into() };
    let good = MsgSend {
        from_address: address(1).account(),
        to_address: address(2).account(),
        amount: vec![coin(DENOM, "1")],
    };
    assert_eq!(good.check(), Ok(()));
    for (what, amount, code) in [
        ("no coins", vec![], 10),
        ("zero", vec![coin(DENOM, "0")], 10),
        ("signed", vec![coin(DENOM, "-1")], 10),
        ("no digits", vec![coin(DENOM, "")], 10),
        ("over 128 bits", vec![coin(DENOM, &"9".repeat(40))], 10),
        ("no denomination", vec![coin("1x", "1")], 10),
        ("twice", vec![coin(DENOM, "1"), coin(DENOM, "1")], 10),
        ("unsorted", vec![coin("uz", "1"), coin("uaa", "1")], 10),
    ] {
        let error = MsgSend { amount, ..good.clone() }.check().unwrap_err();
        assert_eq!(error.code(), ("sdk", code), "{what}: {error}");
    }
    let valoper = MsgSend { to_address: address(2).valoper(), ..good.clone() };
    assert_eq!(valoper.check().unwrap_err().code(), ("sdk", 7));
    let to_pool = MsgSend { to_address: Pool::MarketPots.address().account(), ..good.clone() };
    assert_eq!(to_pool.execute(&mut ctx(), &mut state()).unwrap_err().code(), ("sdk", 4));
    let unknown_coin = MsgSend { amount: vec![coin("uother", "1")], ..good };
    assert_eq!(unknown_coin.execute(&mut ctx(), &mut state()).unwrap_err().code(), ("sdk", 5));
}

#[test]
fn denominations_follow_the_sdk() {
    for (denom, ok) in
        [("uplk", true), ("ibc/27394FB0", true), ("ab", false), ("1ab", false), ("a b", false), ("aé1", false)]
    {
        assert_eq!(is_denom(denom), ok, "{denom}");
    }
}

#[test]
fn one_sends_to_many_or_to_none_of_them() {
    use polylink_protocol::cosmos::cosmos::bank::v1beta1::{Input, MsgMultiSend, Output};
    let coins = |amount: u128| vec![Coin { denom: DENOM.into(), amount: amount.to_string() }];
    let input = |amount| Input { address: address(1).account(), coins: coins(amount) };
    let output = |n, amount| Output { address: address(n).account(), coins: coins(amount) };
    let run = |inputs: Vec<Input>, outputs: Vec<Output>| {
        let (base, message) = (state(), MsgMultiSend { inputs, outputs });
        let mut layer = Overlay::new(&base as &dyn StateRead);
        message.signer().and_then(|_| message.check()).and_then(|()| message.execute(&mut ctx(), &mut layer))?;
        assert_eq!(check_conservation(&base, layer.changes()), Ok(()));
        Ok([1, 2, 3].map(|n| balance(&layer, address(n)).0))
    };
    assert_eq!(run(vec![input(70)], vec![output(2, 30), output(3, 40)]), Ok([30, 30, 40]));
    assert_eq!(run(vec![input(70)], vec![output(2, 30), output(2, 40)]), Ok([30, 70, 0]));
    let code = |result: Result<[u128; 3], TxError>| {
        let error = result.unwrap_err();
        error.code()
    };
    // It is spent once, and received by each.
    let message = MsgMultiSend { inputs: vec![input(70)], outputs: vec![output(2, 30), output(3, 40)] };
    let mut said = ctx();
    message.execute(&mut said, &mut state()).unwrap();
    let of = |kind: &str, key: &str| {
        let events = said.events.iter().filter(|event| event.kind == kind).flat_map(|event| &event.attributes);
        events.filter(|(found, _)| *found == key).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (of("coin_spent", "spender"), of("coin_spent", "amount")),
        (vec![address(1).account()], vec!["70uplk".into()])
    );
    assert_eq!(of("coin_received", "amount"), ["30uplk", "40uplk"]);
    assert_eq!(of("transfer", "recipient"), [2, 3].map(|n| address(n).account()));
    assert_eq!(code(run(vec![], vec![output(2, 1)])), ("bank", 2));
    assert_eq!(code(run(vec![input(1)], vec![])), ("bank", 3));
    assert_eq!(code(run(vec![input(1)], vec![output(2, 2)])), ("bank", 4));
    assert_eq!(code(run(vec![input(1), input(1)], vec![output(2, 2)])), ("bank", 9));
    assert_eq!(code(run(vec![input(101)], vec![output(2, 101)])), ("sdk", 5));
    assert_eq!(code(run(vec![input(0)], vec![output(2, 0)])), ("sdk", 10));
    let pool = Output { address: Pool::Mint.address().account(), coins: coins(1) };
    assert_eq!(code(run(vec![input(1)], vec![pool])), ("sdk", 4));
}
