//! Tests of the transaction path on a running chain: what is refused and with which code, what a failure costs, and the
//! bytes that a hardware wallet signs.

mod fees;
mod fuzz;
mod multisig;
mod random;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::MsgDelegate;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{AuthInfo, Fee, SignDoc, TxBody, TxRaw, mode_info::Sum};
use polylink_protocol::tx::{SignContext, any, sign_direct};
use polylink_protocol::{Amount, DENOM, Message};
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;

use super::amino;
use crate::bank::Pool;
use crate::error::TxError;
use crate::testing::{CHAIN_ID, GAS_LIMIT, TestChain, genesis, key};
use crate::tx::ante::least_fee;

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn send(from: u8, to: u8, amount: u128) -> Any {
    any(&MsgSend {
        from_address: key(from).address().account(),
        to_address: key(to).address().account(),
        amount: vec![coin(amount)],
    })
}

fn context(account_number: u64, sequence: u64) -> SignContext {
    SignContext {
        chain_id: CHAIN_ID.into(),
        account_number,
        sequence,
        gas_limit: GAS_LIMIT,
        fee: least_fee(GAS_LIMIT, 25),
        memo: String::new(),
    }
}

/// The parts of a valid transaction of account 1, number 12, sequence 0, to be altered and signed again or not.
struct Parts {
    body: TxBody,
    auth_info: AuthInfo,
    body_tail: Vec<u8>,
    auth_info_tail: Vec<u8>,
    signatures: Option<Vec<Vec<u8>>>,
}

fn parts(messages: Vec<Any>) -> Parts {
    let raw = TxRaw::decode(sign_direct(messages, &context(12, 0), &key(1)).as_slice()).unwrap();
    Parts {
        body: TxBody::decode(raw.body_bytes.as_slice()).unwrap(),
        auth_info: AuthInfo::decode(raw.auth_info_bytes.as_slice()).unwrap(),
        body_tail: Vec::new(),
        auth_info_tail: Vec::new(),
        signatures: None,
    }
}

impl Parts {
    fn fee(&mut self) -> &mut Fee {
        self.auth_info.fee.as_mut().unwrap()
    }

    fn sign(self) -> Vec<u8> {
        let body_bytes = [self.body.encode_to_vec(), self.body_tail].concat();
        let auth_info_bytes = [self.auth_info.encode_to_vec(), self.auth_info_tail].concat();
        let document = SignDoc {
            body_bytes: body_bytes.clone(),
            auth_info_bytes: auth_info_bytes.clone(),
            chain_id: CHAIN_ID.into(),
            account_number: 12,
        };
        let signatures = self.signatures.unwrap_or_else(|| vec![key(1).sign(&document.encode_to_vec()).to_vec()]);
        TxRaw { body_bytes, auth_info_bytes, signatures }.encode_to_vec()
    }
}

/// A field of bytes in protobuf: number, then a short content.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

fn set_mode(parts: &mut Parts, mode: i32) {
    if let Some(Sum::Single(single)) = &mut parts.auth_info.signer_infos[0].mode_info.as_mut().unwrap().sum {
        single.mode = mode;
    }
}

/// Each way in which a transaction may be wrong before its messages run: (name, bytes, code, part of the log).
fn refusals() -> Vec<(&'static str, Vec<u8>, u32, &'static str)> {
    let good = || parts(vec![send(1, 2, 5)]);
    let alter = |change: &dyn Fn(&mut Parts)| {
        let mut parts = good();
        change(&mut parts);
        parts.sign()
    };
    let with = |messages| parts(messages).sign();
    let signed = |context: SignContext, by: u8| sign_direct(vec![send(1, 2, 5)], &context, &key(by));
    let mut long_varint = good().sign();
    // The body's length in three bytes instead of two.
    assert!(long_varint[1] & 0x80 != 0 && long_varint[2] & 0x80 == 0);
    long_varint[2] |= 0x80;
    long_varint.insert(3, 0);
    let mut reordered = TxRaw::decode(good().sign().as_slice()).unwrap();
    let reordered = [
        field(2, &std::mem::take(&mut reordered.auth_info_bytes)),
        field(1, &std::mem::take(&mut reordered.body_bytes)),
        field(3, &reordered.signatures[0]),
    ]
    .concat();
    let unknown_in_message =
        Any { type_url: "/cosmos.bank.v1beta1.MsgSend".into(), value: [send(1, 2, 5).value, field(9, b"x")].concat() };
    let unknown_in_coin = any(&MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2).address().account(),
        amount: vec![],
    });
    let unknown_in_coin = Any {
        value: [unknown_in_coin.value, field(3, &[coin(5).encode_to_vec(), field(7, b"y")].concat())].concat(),
        ..unknown_in_coin
    };
    let url = |type_url: &str| Any { type_url: type_url.into(), value: vec![] };
    let multisig = url("/cosmos.crypto.multisig.LegacyAminoPubKey");
    vec![
        ("empty", vec![], 18, "0 messages"),
        ("garbage", b"garbage".to_vec(), 2, "TxRaw"),
        ("trailing garbage", [good().sign(), vec![0xff]].concat(), 2, "TxRaw"),
        ("unknown field of TxRaw", [good().sign(), field(4, b"x")].concat(), 2, "canonical"),
        ("long varint in TxRaw", long_varint, 2, "canonical"),
        ("TxRaw out of order", reordered, 2, "canonical"),
        ("over the size limit", alter(&|p| p.body_tail = field(2, &vec![b'm'; super::TX_BYTES_MAX])), 21, "too large"),
        ("critical unknown field of the body", alter(&|p| p.body_tail = field(9, b"x")), 2, "no field 9"),
        ("non-critical field of auth info", alter(&|p| p.auth_info_tail = field(2049, b"x")), 2, "no field 2049"),
        ("unknown field of a message", with(vec![unknown_in_message]), 2, "MsgSend has no field 9"),
        ("unknown field of a coin", with(vec![unknown_in_coin]), 2, "Coin has no field 7"),
        ("no message", with(vec![]), 18, "0 messages"),
        ("too many messages", with(vec![send(1, 2, 5); super::MESSAGES_MAX + 1]), 18, "65 messages"),
        ("message not built", with(vec![url("/cosmos.authz.v1beta1.MsgGrant")]), 6, "not built yet: /cosmos.authz"),
        ("message of another module", with(vec![url("/cosmos.group.v1.MsgVote")]), 6, "not built yet"),
        ("unknown message", with(vec![url("/foo.Bar")]), 6, "unknown message type /foo.Bar"),
        ("extension option", alter(&|p| p.body.extension_options = vec![url("/x.Y")]), 31, "/x.Y"),
        ("long memo", alter(&|p| p.body.memo = "m".repeat(257)), 12, "257"),
        ("no fee", alter(&|p| p.auth_info.fee = None), 18, "no fee"),
        ("fee below the minimum", alter(&|p| p.fee().amount = vec![coin(49_999)]), 13, "required: 50000uplk"),
        ("fee in another coin", alter(&|p| p.fee().amount[0].denom = "uatom".into()), 10, "uatom"),
        ("a fee granter that is none", alter(&|p| p.fee().granter = "x".into()), 7, "bech32"),
        ("a fee payer that is none", alter(&|p| p.fee().payer = "x".into()), 7, "bech32"),
        ("a fee payer who has not signed", alter(&|p| p.fee().payer = key(2).address().account()), 4, "expected: 2"),
        ("gas limit above the ledger's", alter(&|p| p.fee().gas_limit = super::GAS_MAX + 1), 41, "gas limit"),
        ("gas for less than the ante chain", alter(&|p| p.fee().gas_limit = 1_000), 11, "out of gas"),
        ("no signature", alter(&|p| p.signatures = Some(vec![])), 15, "no signatures"),
        ("two signatures for one signer", alter(&|p| p.signatures = Some(vec![vec![0; 64]; 2])), 4, "expected: 1"),
        ("eight signatures", alter(&|p| p.signatures = Some(vec![vec![0; 64]; 8])), 14, "limit: 7"),
        ("short signature", alter(&|p| p.signatures = Some(vec![vec![1; 63]])), 4, "verification failed"),
        ("zero signature", alter(&|p| p.signatures = Some(vec![vec![0; 64]])), 4, "verification failed"),
        ("no signer info", alter(&|p| p.auth_info.signer_infos.clear()), 4, "0 signer infos"),
        ("no mode", alter(&|p| p.auth_info.signer_infos[0].mode_info = None), 18, "sign mode"),
        ("textual mode", alter(&|p| set_mode(p, 2)), 37, "sign mode 2"),
        ("unspecified mode", alter(&|p| set_mode(p, 0)), 37, "sign mode 0"),
        (
            "none of no keys",
            alter(&|p| p.auth_info.signer_infos[0].public_key = Some(multisig.clone())),
            8,
            "cannot sign",
        ),
        ("no key", alter(&|p| p.auth_info.signer_infos[0].public_key = None), 8, "not signed before"),
        ("another chain", signed(SignContext { chain_id: "other-1".into(), ..context(12, 0) }, 1), 4, "chain-id"),
        ("another account number", signed(context(99, 0), 1), 4, "account number (12)"),
        ("a future sequence", signed(context(12, 7), 1), 32, "expected 0, got 7"),
        ("another's key", signed(context(12, 0), 2), 8, "not that of signer"),
        (
            "an account that does not exist",
            sign_direct(vec![send(9, 2, 5)], &context(99, 0), &key(9)),
            9,
            "does not exist",
        ),
        ("passed timeout", alter(&|p| p.body.timeout_height = 1), 30, "timeout height: 1"),
        ("signed without amino, marked amino", alter(&|p| set_mode(p, 127)), 4, "verification failed"),
        (
            "amino over a non-critical field",
            alter(&|p| {
                set_mode(p, 127);
                p.body_tail = field(2049, b"x");
            }),
            2,
            "direct mode",
        ),
    ]
}

#[test]
fn refusals_have_the_sdks_codes_and_cost_nothing() {
    let mut chain = TestChain::start(&genesis(3));
    chain.advance(1);
    let before = chain.balance(key(1).address());
    let supply = chain.checked_supply();
    for (name, bytes, code, text) in refusals() {
        let checked = chain.app().check_tx(pb::RequestCheckTx { tx: bytes.clone().into(), r#type: 0 });
        assert_eq!((checked.codespace.as_str(), checked.code), ("sdk", code), "CheckTx, {name}: {}", checked.log);
        let result = chain.deliver(vec![bytes]).pop().unwrap();
        assert_eq!((result.codespace.as_str(), result.code), ("sdk", code), "{name}: {}", result.log);
        assert!(result.log.contains(text), "{name}: {}", result.log);
        assert!(result.events.is_empty() && result.data.is_empty(), "{name}");
    }
    assert_eq!(chain.balance(key(1).address()), before);
    assert_eq!(chain.checked_supply(), supply);
    let sent = chain.send(1, vec![send(1, 2, 5)]);
    assert_eq!((sent.code, sent.log.as_str()), (0, ""), "the account's sequence is still 0");
}

#[test]
fn non_critical_fields_are_tolerated_in_direct_mode() {
    let mut chain = TestChain::start(&genesis(2));
    let mut parts = parts(vec![send(1, 2, 5)]);
    parts.body_tail = field(2049, b"anything");
    assert_eq!(chain.deliver(vec![parts.sign()])[0].code, 0);
}

#[test]
fn a_replayed_transaction_is_refused() {
    let mut chain = TestChain::start(&genesis(2));
    let tx = chain.sign(1, vec![send(1, 2, 5)]);
    let results = chain.deliver(vec![tx.clone(), tx.clone()]);
    assert_eq!((results[0].code, results[1].code), (0, 32));
    assert_eq!(chain.deliver(vec![tx])[0].code, 32);
}

#[test]
fn a_failed_message_keeps_fee_and_sequence_and_rolls_back_the_rest() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let (one, two) = (chain.balance(key(1).address()), chain.balance(key(2).address()));
    // The first message would succeed; the second asks for more than there is.
    let result = chain.send(1, vec![send(1, 2, 5), send(1, 2, u128::from(u64::MAX))]);
    assert_eq!((result.codespace.as_str(), result.code), ("sdk", 5));
    assert!(result.log.contains("message index: 1"), "{}", result.log);
    let fee = least_fee(GAS_LIMIT, 25);
    assert_eq!(chain.balance(key(1).address()), one.checked_sub(fee).unwrap());
    assert_eq!(chain.balance(key(2).address()), two);
    assert_eq!(chain.balance(Pool::FeeCollector), fee);
    let kinds: Vec<&str> = result.events.iter().map(|event| event.r#type.as_str()).collect();
    assert!(kinds.contains(&"tx") && !result.events.iter().any(|e| e.attributes.iter().any(|a| a.key == "msg_index")));
    assert_eq!(chain.send(1, vec![send(1, 2, 5)]).code, 0, "the next sequence is 1");
}

#[test]
fn running_out_of_gas_keeps_the_fee_and_rolls_back_the_message() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let before = chain.balance(key(2).address());
    // Enough for the ante chain, not for the transfer.
    let simulated = chain.send(1, vec![send(1, 2, 5)]);
    let limit = u64::try_from(simulated.gas_used).unwrap() - 1;
    let fee = least_fee(limit, 25);
    let tx = sign_direct(vec![send(1, 2, 5)], &SignContext { gas_limit: limit, fee, ..context(12, 1) }, &key(1));
    let result = chain.deliver(vec![tx]).pop().unwrap();
    assert_eq!((result.code, result.gas_wanted), (11, i64::try_from(limit).unwrap()), "{}", result.log);
    assert_eq!(chain.balance(key(2).address()), Amount(before.0 + 5), "only the first transfer");
    assert_eq!(chain.balance(Pool::FeeCollector), fee, "of this block");
    assert_eq!(chain.balance(Pool::Distribution), least_fee(GAS_LIMIT, 25), "of the one before");
}

#[test]
fn success_has_responses_and_events_as_wallets_expect_them() {
    use polylink_protocol::cosmos::cosmos::base::abci::v1beta1::TxMsgData;
    let mut chain = TestChain::start(&genesis(2));
    let tx = chain.sign(1, vec![send(1, 2, 5)]);
    let signature = TxRaw::decode(tx.as_slice()).unwrap().signatures.remove(0);
    let result = chain.deliver(vec![tx]).remove(0);
    assert_eq!((result.code, result.log.as_str(), result.codespace.as_str()), (0, "", ""));
    let data = TxMsgData::decode(result.data).unwrap();
    assert_eq!(data.msg_responses[0].type_url, "/cosmos.bank.v1beta1.MsgSendResponse");
    let find = |kind: &str, key: &str| {
        let events = result.events.iter().filter(|event| event.r#type == kind);
        let mut found = events.flat_map(|event| &event.attributes).filter(|attribute| attribute.key == key);
        found.next_back().map(|attribute| attribute.value.clone()).unwrap_or_default()
    };
    assert_eq!(find("message", "action"), "/cosmos.bank.v1beta1.MsgSend");
    assert_eq!(find("transfer", "recipient"), key(2).address().account());
    assert_eq!(find("coin_spent", "amount"), "5uplk");
    assert_eq!(find("tx", "acc_seq"), format!("{}/0", key(1).address()));
    // What a transaction is found by: everything that somebody looks for, and each once.
    let mut indexed = Vec::new();
    for event in &result.events {
        for attribute in &event.attributes {
            if attribute.index {
                indexed.push(format!("{}.{}={}", event.r#type, attribute.key, attribute.value));
            }
            assert!(!attribute.key.is_empty() && !attribute.value.is_empty(), "{event:?}");
            assert!(event.r#type != "tx" || !["hash", "height"].contains(&attribute.key.as_str()), "reserved");
        }
    }
    let (one, two) = (key(1).address().account(), key(2).address().account());
    let expected = [
        format!("tx.fee_payer={one}"),
        format!("tx.acc_seq={one}/0"),
        format!("tx.signature={}", BASE64.encode(signature)),
        "message.action=/cosmos.bank.v1beta1.MsgSend".into(),
        format!("message.sender={one}"),
        "message.module=bank".into(),
        format!("coin_spent.spender={one}"),
        format!("coin_received.receiver={two}"),
        format!("transfer.recipient={two}"),
        format!("transfer.sender={one}"),
    ];
    assert_eq!(indexed, expected);
    // Of one that failed only the fee is left, and it is found by its sender.
    let failed = chain.send(1, vec![send(1, 2, u128::from(u64::MAX))]);
    let mut left = failed.events.iter().flat_map(|event| &event.attributes).filter(|attribute| attribute.index);
    assert!(failed.code != 0 && left.any(|attribute| attribute.key == "sender" && attribute.value == one));
}

/// The document of a MsgSend as CosmJS and the SDK build it (sorted keys, no spaces, Go's escapes).
#[test]
fn amino_json_golden() {
    let fee = Fee { amount: vec![coin(2_000)], gas_limit: 200_000, ..Default::default() };
    let from = "poly1qypqxpq9qcrsszg2pvxq6rs0zqg3yyc52kl0fa".to_owned();
    let send = MsgSend { from_address: from.clone(), to_address: "x".into(), amount: vec![coin(1)] };
    let delegate = MsgDelegate { delegator_address: from, validator_address: "v".into(), amount: Some(coin(7)) };
    let messages = [any(&send), any(&delegate)];
    let mut document = amino::SignDoc {
        chain_id: "c-1",
        account_number: 3,
        sequence: 0,
        fee: &fee,
        messages: &messages,
        memo: "a & b < c > d \" \u{2028} \n é",
        timeout_height: 0,
    };
    let expected = concat!(
        r#"{"account_number":"3","chain_id":"c-1","fee":{"amount":[{"amount":"2000","denom":"uplk"}],"gas":"200000"},"#,
        r#""memo":"a \u0026 b \u003c c \u003e d \" \u2028 \n é","msgs":["#,
        r#"{"type":"cosmos-sdk/MsgSend","value":{"amount":[{"amount":"1","denom":"uplk"}],"#,
        r#""from_address":"poly1qypqxpq9qcrsszg2pvxq6rs0zqg3yyc52kl0fa","to_address":"x"}},"#,
        r#"{"type":"cosmos-sdk/MsgDelegate","value":{"amount":{"amount":"7","denom":"uplk"},"#,
        r#""delegator_address":"poly1qypqxpq9qcrsszg2pvxq6rs0zqg3yyc52kl0fa","validator_address":"v"}}"#,
        r#"],"sequence":"0"}"#,
    );
    assert_eq!(String::from_utf8(document.to_bytes().unwrap()).unwrap(), expected);
    document.timeout_height = 9;
    assert!(String::from_utf8(document.to_bytes().unwrap()).unwrap().ends_with(r#","timeout_height":"9"}"#));
    let unknown = [Any { type_url: "/foo.Bar".into(), value: vec![] }];
    let refused = amino::SignDoc { messages: &unknown, ..document }.to_bytes();
    assert!(matches!(refused, Err(TxError::NotSupported(_))));
}

#[test]
fn amino_json_of_a_new_validator() {
    use polylink_protocol::Dec;
    use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
    use polylink_protocol::cosmos::cosmos::staking::v1beta1::{CommissionRates, Description, MsgCreateValidator};
    let rate = || Dec::from_bps(1_000).to_atomics_string();
    let message = MsgCreateValidator {
        description: Some(Description { moniker: "m".into(), ..Default::default() }),
        commission: Some(CommissionRates { rate: rate(), max_rate: rate(), max_change_rate: String::new() }),
        min_self_delegation: "1".into(),
        validator_address: "v".into(),
        pubkey: Some(any(&PubKey { key: vec![1, 2, 3] })),
        value: Some(coin(5)),
        ..Default::default()
    };
    let document = amino::SignDoc {
        chain_id: "c",
        account_number: 0,
        sequence: 1,
        fee: &Fee::default(),
        messages: &[any(&message)],
        memo: "",
        timeout_height: 0,
    };
    let expected = concat!(
        r#"{"account_number":"0","chain_id":"c","fee":{"amount":[],"gas":"0"},"memo":"","msgs":[{"#,
        r#""type":"cosmos-sdk/MsgCreateValidator","value":{"commission":{"max_change_rate":"0.000000000000000000","#,
        r#""max_rate":"0.100000000000000000","rate":"0.100000000000000000"},"description":{"moniker":"m"},"#,
        r#""min_self_delegation":"1","pubkey":{"type":"tendermint/PubKeyEd25519","value":"AQID"},"#,
        r#""validator_address":"v","value":{"amount":"5","denom":"uplk"}}}],"sequence":"1"}"#,
    );
    assert_eq!(String::from_utf8(document.to_bytes().unwrap()).unwrap(), expected);
}

#[test]
fn an_amino_signature_is_accepted_over_exactly_its_document() {
    let mut chain = TestChain::start(&genesis(2));
    let mut signed = parts(vec![send(1, 2, 5)]);
    set_mode(&mut signed, 127);
    let fee = signed.auth_info.fee.clone().unwrap();
    let document = amino::SignDoc {
        chain_id: CHAIN_ID,
        account_number: 12,
        sequence: 0,
        fee: &fee,
        messages: &signed.body.messages,
        memo: "",
        timeout_height: 0,
    };
    let bytes = document.to_bytes().unwrap();
    signed.signatures = Some(vec![key(1).sign(&bytes).to_vec()]);
    let result = chain.deliver(vec![signed.sign()]).pop().unwrap();
    assert_eq!((result.code, result.log.as_str()), (0, ""));
}
