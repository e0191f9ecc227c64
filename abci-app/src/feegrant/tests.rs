//! Tests of fee grants on a running chain: who pays, until when, for what, and what is refused.

mod random;

use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::*;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{AuthInfo, SignDoc, TxRaw};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::cosmos::{Any, Timestamp};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Message};
use tendermint_proto::v0_38::abci as pb;

use crate::auth;
use crate::store::StateRead;
use crate::testing::{CHAIN_ID, GAS_LIMIT, GENESIS_SECONDS, TestChain, genesis, key};
use crate::tx::ante::least_fee;

fn address(n: u8) -> Address {
    key(n).address()
}

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn fee() -> u128 {
    least_fee(GAS_LIMIT, 25).0
}

fn basic(limit: u128, expires_in: i64) -> BasicAllowance {
    let seconds = GENESIS_SECONDS + expires_in;
    BasicAllowance {
        spend_limit: if limit > 0 { vec![coin(limit)] } else { vec![] },
        expiration: (expires_in > 0).then_some(Timestamp { seconds, nanos: 0 }),
    }
}

fn periodic(limit: u128, period_limit: u128, seconds: i64) -> PeriodicAllowance {
    PeriodicAllowance {
        basic: Some(basic(limit, 0)),
        period: Some(Duration { seconds, nanos: 0 }),
        period_spend_limit: vec![coin(period_limit)],
        period_can_spend: vec![],
        period_reset: Some(Timestamp::default()),
    }
}

fn grant(from: u8, to: u8, allowance: Any) -> Any {
    let (granter, grantee) = (address(from).account(), address(to).account());
    any(&MsgGrantAllowance { granter, grantee, allowance: Some(allowance) })
}

fn revoke(from: u8, to: u8) -> Any {
    any(&MsgRevokeAllowance { granter: address(from).account(), grantee: address(to).account() })
}

fn send(from: u8) -> Any {
    any(&MsgSend { from_address: address(from).account(), to_address: address(200).account(), amount: vec![coin(1)] })
}

/// A transaction of `by` whose fee `granter` pays.
fn granted(chain: &TestChain, by: u8, granter: u8, messages: Vec<Any>) -> Vec<u8> {
    let raw = TxRaw::decode(chain.sign(by, messages).as_slice()).unwrap();
    let mut auth_info = AuthInfo::decode(raw.auth_info_bytes.as_slice()).unwrap();
    auth_info.fee.as_mut().unwrap().granter = address(granter).account();
    let auth_info_bytes = auth_info.encode_to_vec();
    let document = SignDoc {
        body_bytes: raw.body_bytes.clone(),
        auth_info_bytes: auth_info_bytes.clone(),
        chain_id: CHAIN_ID.into(),
        account_number: auth::account(&chain.state(), &address(by)).unwrap().number,
    };
    let signatures = vec![key(by).sign(&document.encode_to_vec()).to_vec()];
    TxRaw { body_bytes: raw.body_bytes, auth_info_bytes, signatures }.encode_to_vec()
}

fn use_grant(chain: &mut TestChain, by: u8, granter: u8, message: Any) -> pb::ExecTxResult {
    let tx = granted(chain, by, granter, vec![message]);
    chain.deliver(vec![tx]).remove(0)
}

fn codes(result: &pb::ExecTxResult) -> (&str, u32) {
    (result.codespace.as_str(), result.code)
}

/// How many grants each of the three queries finds.
fn found(chain: &TestChain, granter: u8, grantee: u8) -> [usize; 3] {
    let (granter, grantee) = (address(granter).account(), address(grantee).account());
    let path = |method: &str| format!("/cosmos.feegrant.v1beta1.Query/{method}");
    let one = QueryAllowanceRequest { granter: granter.clone(), grantee: grantee.clone() };
    let one: Result<QueryAllowanceResponse, String> = chain.query(&path("Allowance"), &one);
    let of = QueryAllowancesRequest { grantee, pagination: None };
    let of: QueryAllowancesResponse = chain.query(&path("Allowances"), &of).unwrap();
    let by = QueryAllowancesByGranterRequest { granter, pagination: None };
    let by: QueryAllowancesByGranterResponse = chain.query(&path("AllowancesByGranter"), &by).unwrap();
    [usize::from(one.is_ok()), of.allowances.len(), by.allowances.len()]
}

#[test]
fn a_granter_pays_until_the_allowance_is_used_up() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    assert_eq!(codes(&use_grant(&mut chain, 2, 1, send(2))), ("feegrant", 5));
    assert_eq!(chain.send(1, vec![grant(1, 2, any(&basic(3 * fee(), 0)))]).code, 0);
    assert_eq!(chain.send(1, vec![grant(1, 2, any(&basic(0, 0)))]).code, 18, "one for a pair");
    assert_eq!(found(&chain, 1, 2), [1, 1, 1]);
    let (one, two) = (chain.balance(address(1)).0, chain.balance(address(2)).0);
    let result = use_grant(&mut chain, 2, 1, send(2));
    assert_eq!(result.code, 0, "{}", result.log);
    assert!(result.events.iter().any(|event| event.r#type == "use_feegrant"));
    assert_eq!((chain.balance(address(1)).0, chain.balance(address(2)).0), (one - fee(), two - 1));
    // A message that fails has used the allowance too.
    let failing = any(&MsgSend {
        from_address: address(2).account(),
        to_address: address(1).account(),
        amount: vec![coin(u128::from(u64::MAX))],
    });
    assert_eq!(codes(&use_grant(&mut chain, 2, 1, failing)), ("sdk", 5));
    assert_eq!(chain.balance(address(1)).0, one - 2 * fee());
    assert_eq!(use_grant(&mut chain, 2, 1, send(2)).code, 0);
    assert_eq!(found(&chain, 1, 2), [0, 0, 0], "used up");
    assert_eq!(codes(&use_grant(&mut chain, 2, 1, send(2))), ("feegrant", 5));
    chain.checked_supply();
}

#[test]
fn an_account_without_coins_may_act_by_a_grant() {
    let mut chain = TestChain::start(&genesis(1));
    assert_eq!(chain.send(1, vec![grant(1, 9, any(&basic(0, 0)))]).code, 0);
    assert_eq!(use_grant(&mut chain, 9, 1, revoke(9, 1)).code, 5, "the fee is paid, there is nothing to revoke");
    assert_eq!(auth::account(&chain.state(), &address(9)).unwrap().sequence, 1);
    assert_eq!(chain.send(1, vec![revoke(1, 9)]).code, 0);
    assert_eq!(found(&chain, 1, 9), [0, 0, 0]);
}

#[test]
fn a_period_has_its_own_limit_and_comes_back() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    // Two fees in ten seconds, five in all; the first period begins with the first use.
    assert_eq!(chain.send(1, vec![grant(1, 2, any(&periodic(5 * fee(), 2 * fee(), 10)))]).code, 0);
    let pay = |chain: &mut TestChain| {
        let result = use_grant(chain, 2, 1, send(2));
        (result.codespace.clone(), result.code)
    };
    let exceeded = ("feegrant".to_owned(), 2);
    let paid = (String::new(), 0);
    assert_eq!([pay(&mut chain), pay(&mut chain), pay(&mut chain)], [paid.clone(), paid.clone(), exceeded.clone()]);
    chain.skip_seconds(10);
    assert_eq!([pay(&mut chain), pay(&mut chain), pay(&mut chain)], [paid.clone(), paid.clone(), exceeded]);
    chain.skip_seconds(100);
    assert_eq!(pay(&mut chain), paid, "the fifth");
    assert_eq!(found(&chain, 1, 2), [0, 0, 0], "and the last");
}

#[test]
fn a_grant_may_be_for_some_messages_and_for_some_time() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let allowed = AllowedMsgAllowance {
        allowance: Some(any(&basic(0, 20))),
        allowed_messages: vec!["/cosmos.bank.v1beta1.MsgSend".into()],
    };
    assert_eq!(chain.send(1, vec![grant(1, 2, any(&allowed))]).code, 0);
    assert_eq!(codes(&use_grant(&mut chain, 2, 1, revoke(2, 1))), ("feegrant", 7));
    assert_eq!(use_grant(&mut chain, 2, 1, send(2)).code, 0);
    chain.skip_seconds(20);
    assert_eq!(codes(&use_grant(&mut chain, 2, 1, send(2))), ("feegrant", 3));
    assert_eq!(found(&chain, 1, 2), [0, 0, 0], "dropped at the end of the block");
    assert_eq!(chain.state().iter_prefix(&[super::EXPIRY]).count(), 0);
}

#[test]
fn refusals_by_name() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let other =
        BasicAllowance { spend_limit: vec![Coin { denom: "uatom".into(), amount: "1".into() }], expiration: None };
    let none = AllowedMsgAllowance { allowance: Some(any(&basic(1, 0))), allowed_messages: vec![] };
    let nested = AllowedMsgAllowance { allowance: Some(any(&none)), allowed_messages: vec!["/x".into()] };
    for (name, message, codespace, code) in [
        ("to oneself", grant(1, 1, any(&basic(1, 0))), "sdk", 7),
        ("another coin", grant(1, 2, any(&other)), "sdk", 10),
        ("of yesterday", grant(1, 2, any(&basic(1, 1))), "sdk", 18),
        ("no messages", grant(1, 2, any(&none)), "feegrant", 6),
        ("a list in a list", grant(1, 2, any(&nested)), "sdk", 37),
        ("no period", grant(1, 2, any(&periodic(5, 2, 0))), "feegrant", 4),
        ("no allowance at all", grant(1, 2, send(1)), "sdk", 37),
        ("nothing to revoke", revoke(1, 2), "feegrant", 5),
    ] {
        let result = chain.send(1, vec![message]);
        assert_eq!(codes(&result), (codespace, code), "{name}: {}", result.log);
    }
    assert_eq!(chain.state().iter_prefix(&[super::ALLOWANCE]).count(), 0);
    assert_eq!(chain.send(1, vec![any(&MsgPruneAllowances { pruner: address(1).account() })]).code, 0);
    assert_eq!(chain.balance(address(2)), Amount(1_000_000_000_000));
}

#[test]
fn amino_json_of_fee_grants() {
    use crate::tx::amino_document;
    let mut allowance = periodic(0, 2, 10);
    allowance.period_reset = Some(Timestamp { seconds: 1, nanos: 500_000_000 });
    let (me, other) = (address(1).account(), address(2).account());
    let expected = format!(
        concat!(
            r#"{{"type":"cosmos-sdk/MsgGrantAllowance","value":{{"allowance":{{"type":"cosmos-sdk/PeriodicAllowance","#,
            r#""value":{{"basic":{{"spend_limit":[]}},"period":"10000000000","period_can_spend":[],"#,
            r#""period_reset":"1970-01-01T00:00:01.5Z","period_spend_limit":[{{"amount":"2","denom":"uplk"}}]}}}},"#,
            r#""grantee":"{}","granter":"{}"}}}}"#
        ),
        other, me
    );
    let document = amino_document(&grant(1, 2, any(&allowance))).unwrap();
    assert!(document.contains(&expected), "{document}");
}
