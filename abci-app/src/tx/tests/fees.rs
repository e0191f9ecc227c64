//! Who pays, what the events say of it and of the signatures.

use polylink_protocol::cosmos::cosmos::crypto::multisig::v1beta1::MultiSignature;
use polylink_protocol::cosmos::cosmos::crypto::secp256k1::PubKey;
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{BasicAllowance, MsgGrantAllowance};
use polylink_protocol::cosmos::cosmos::tx::v1beta1::mode_info::Single;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{ModeInfo, SignerInfo, SimulateRequest, SimulateResponse};

use super::*;
use crate::auth;

/// A transaction of account 1 for which another pays, signed by these in this order and mode.
fn paid_by(chain: &TestChain, payer: u8, granter: Option<u8>, by: &[u8], mode: i32) -> Vec<u8> {
    let account = |n: u8| auth::account(&chain.state(), &key(n).address()).unwrap();
    let info = |n: &u8| SignerInfo {
        public_key: Some(any(&PubKey { key: key(*n).public_key().to_vec() })),
        mode_info: Some(ModeInfo { sum: Some(Sum::Single(Single { mode })) }),
        sequence: account(*n).sequence,
    };
    let address = |n: u8| key(n).address().account();
    let fee = Fee {
        amount: vec![coin(50_000)],
        gas_limit: GAS_LIMIT,
        payer: address(payer),
        granter: granter.map(address).unwrap_or_default(),
    };
    let body = TxBody { messages: vec![send(1, 3, 5)], ..Default::default() };
    let signer_infos = by.iter().map(info).collect();
    let auth_info_bytes = AuthInfo { signer_infos, fee: Some(fee.clone()), ..Default::default() }.encode_to_vec();
    let body_bytes = body.encode_to_vec();
    let document = |n: &u8| match mode {
        127 => amino::SignDoc {
            chain_id: CHAIN_ID,
            account_number: account(*n).number,
            sequence: account(*n).sequence,
            fee: &fee,
            messages: &body.messages,
            memo: "",
            timeout_height: 0,
        }
        .to_bytes()
        .unwrap(),
        _ => SignDoc {
            body_bytes: body_bytes.clone(),
            auth_info_bytes: auth_info_bytes.clone(),
            chain_id: CHAIN_ID.into(),
            account_number: account(*n).number,
        }
        .encode_to_vec(),
    };
    let signatures = by.iter().map(|n| if mode == 0 { Vec::new() } else { key(*n).sign(&document(n)).to_vec() });
    TxRaw { body_bytes: body_bytes.clone(), signatures: signatures.collect(), auth_info_bytes: auth_info_bytes.clone() }
        .encode_to_vec()
}

#[test]
fn another_than_the_first_signer_pays_where_he_signs() {
    let mut chain = TestChain::start(&genesis(3));
    chain.advance(1);
    let sequences =
        |chain: &TestChain| [1, 2, 3].map(|n| auth::account(&chain.state(), &key(n).address()).unwrap().sequence);
    for mode in [1, 127] {
        let before = [1, 2].map(|n| chain.balance(key(n).address()).0);
        let [first, second, _] = sequences(&chain);
        for (name, by, code) in
            [("the payer has not signed", &[1][..], 4), ("in another order", &[2, 1], 8), ("somebody else", &[1, 3], 8)]
        {
            let result = chain.deliver(vec![paid_by(&chain, 2, None, by, mode)]).remove(0);
            assert_eq!(result.code, code, "{name}: {}", result.log);
        }
        assert_eq!(
            (before, [first, second, 0]),
            ([1, 2].map(|n| chain.balance(key(n).address()).0), sequences(&chain))
        );
        let result = chain.deliver(vec![paid_by(&chain, 2, None, &[1, 2], mode)]).remove(0);
        assert_eq!((result.code, result.log.as_str()), (0, ""));
        assert_eq!([1, 2].map(|n| chain.balance(key(n).address()).0), [before[0] - 5, before[1] - 50_000]);
        assert_eq!(sequences(&chain), [first + 1, second + 1, 0]);
        let payer = result.events.iter().flat_map(|event| &event.attributes).find(|found| found.key == "fee_payer");
        assert_eq!(payer.map(|found| found.value.clone()), Some(key(2).address().account()));
    }
    // Whose message it is may be named as the payer as well. A payer may have his fees granted.
    assert_eq!(chain.deliver(vec![paid_by(&chain, 1, None, &[1], 1)])[0].code, 0);
    let allowance = Some(any(&BasicAllowance { spend_limit: vec![coin(60_000)], expiration: None }));
    let (granter, grantee) = (key(3).address().account(), key(2).address().account());
    assert_eq!(chain.send(3, vec![any(&MsgGrantAllowance { granter, grantee, allowance })]).code, 0);
    let before = [1, 2, 3].map(|n| chain.balance(key(n).address()).0);
    let granted = chain.deliver(vec![paid_by(&chain, 2, Some(3), &[1, 2], 1)]).remove(0);
    assert_eq!((granted.code, granted.log.as_str()), (0, ""));
    let after = [before[0] - 5, before[1], before[2] + 5 - 50_000];
    assert_eq!([1, 2, 3].map(|n| chain.balance(key(n).address()).0), after);
    // A simulation counts both signatures.
    let simulated = |chain: &TestChain, by: &[u8]| {
        let tx_bytes = paid_by(chain, *by.last().unwrap(), None, by, 0);
        let request = SimulateRequest { tx_bytes, ..Default::default() };
        let answer: Result<SimulateResponse, String> = chain.query("/cosmos.tx.v1beta1.Service/Simulate", &request);
        answer.unwrap().gas_info.unwrap().gas_used
    };
    assert!(simulated(&chain, &[1, 2]) > simulated(&chain, &[1]) + 1_000);
    chain.checked_supply();
}

/// The values of an attribute of `tx`, in their order.
fn said(result: &pb::ExecTxResult, key: &str) -> Vec<String> {
    let events = result.events.iter().filter(|event| event.r#type == "tx").flat_map(|event| &event.attributes);
    events.filter(|found| found.key == key).map(|found| found.value.clone()).collect()
}

#[test]
fn a_fee_of_nothing_is_no_coins() {
    let mut free = genesis(2);
    free.min_gas_price_milli = 0;
    let mut chain = TestChain::start(&free);
    chain.advance(1);
    let result = chain.send(1, vec![send(1, 2, 5)]);
    assert_eq!((result.code, result.log.as_str()), (0, ""));
    assert_eq!(said(&result, "fee"), [""]);
    assert_eq!(said(&result, "fee_payer"), [key(1).address().account()]);
    let mut paying = TestChain::start(&genesis(2));
    paying.advance(1);
    assert_eq!(said(&paying.send(1, vec![send(1, 2, 5)]), "fee"), ["50000uplk"]);
}

#[test]
fn a_transaction_is_found_by_its_signatures() {
    let mut chain = TestChain::start(&genesis(3));
    chain.advance(1);
    let tx = paid_by(&chain, 2, None, &[1, 2], 1);
    let signatures = TxRaw::decode(tx.as_slice()).unwrap().signatures;
    let result = chain.deliver(vec![tx]).remove(0);
    assert_eq!(said(&result, "signature"), [&signatures[0], &signatures[1]].map(|bytes| BASE64.encode(bytes)));
    assert_eq!(said(&result, "acc_seq"), [1, 2].map(|n| format!("{}/0", key(n).address().account())));
    // Of several keys: each part, and all together.
    let (chain, tx) = super::multisig::paid(chain);
    let mut chain = chain;
    let whole = TxRaw::decode(tx.as_slice()).unwrap().signatures.remove(0);
    let mut expected = MultiSignature::decode(whole.as_slice()).unwrap().signatures;
    expected.push(whole);
    let result = chain.deliver(vec![tx]).remove(0);
    assert_eq!(
        (result.code, said(&result, "signature")),
        (0, expected.iter().map(|bytes| BASE64.encode(bytes)).collect())
    );
}
