//! Accounts of several keys: as CosmJS makes their address and their signatures.

use polylink_protocol::cosmos::cosmos::crypto::multisig::v1beta1::{CompactBitArray, MultiSignature};
use polylink_protocol::cosmos::cosmos::tx::v1beta1::mode_info::{Multi, Single};
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{ModeInfo, SignerInfo};

use super::*;
use crate::auth::{self, PublicKey};

/// Two of the keys 1 to 3.
fn shared() -> PublicKey {
    PublicKey::Multi { threshold: 2, keys: [1, 2, 3].map(|n| key(n).public_key()).to_vec() }
}

fn pay(amount: u128) -> Any {
    any(&MsgSend {
        from_address: shared().address().account(),
        to_address: key(1).address().account(),
        amount: vec![coin(amount)],
    })
}

/// A transaction of the shared account, signed by some of the keys in a mode, with the bits as they should be or not.
fn signed(chain: &TestChain, message: Any, by: &[u8], bits: u8, mode: i32, public_key: Option<Any>) -> Vec<u8> {
    let account = auth::account(&chain.state(), &shared().address()).unwrap();
    let single = || ModeInfo { sum: Some(Sum::Single(Single { mode })) };
    let multi = Multi {
        bitarray: Some(CompactBitArray { extra_bits_stored: 3, elems: vec![bits] }),
        mode_infos: by.iter().map(|_| single()).collect(),
    };
    let fee = Fee { amount: vec![coin(least_fee(GAS_LIMIT, 25).0)], gas_limit: GAS_LIMIT, ..Default::default() };
    let signer_infos = vec![SignerInfo {
        public_key,
        mode_info: Some(ModeInfo { sum: Some(Sum::Multi(multi)) }),
        sequence: account.sequence,
    }];
    let body = TxBody { messages: vec![message], ..Default::default() };
    let auth_info_bytes = AuthInfo { signer_infos, fee: Some(fee.clone()), ..Default::default() }.encode_to_vec();
    let body_bytes = body.encode_to_vec();
    let document = if mode == 1 {
        let (body_bytes, auth_info_bytes) = (body_bytes.clone(), auth_info_bytes.clone());
        SignDoc { body_bytes, auth_info_bytes, chain_id: CHAIN_ID.into(), account_number: account.number }
            .encode_to_vec()
    } else {
        let document = amino::SignDoc {
            chain_id: CHAIN_ID,
            account_number: account.number,
            sequence: account.sequence,
            fee: &fee,
            messages: &body.messages,
            memo: "",
            timeout_height: 0,
        };
        document.to_bytes().unwrap()
    };
    let signatures = by.iter().map(|n| key(*n).sign(&document).to_vec()).collect();
    let signatures = vec![MultiSignature { signatures }.encode_to_vec()];
    TxRaw { body_bytes, auth_info_bytes, signatures }.encode_to_vec()
}

/// A chain on which the shared account has coins, and a transaction of two of its keys.
pub(super) fn paid(mut chain: TestChain) -> (TestChain, Vec<u8>) {
    let (from_address, to_address) = (key(1).address().account(), shared().address().account());
    let fund = any(&MsgSend { from_address, to_address, amount: vec![coin(1_000_000)] });
    assert_eq!(chain.send(1, vec![fund]).code, 0);
    let tx = signed(&chain, pay(5), &[1, 3], 0b1010_0000, 1, Some(shared().to_any()));
    (chain, tx)
}

#[test]
fn the_address_is_that_of_cosmjs() {
    // createMultisigThresholdPubkey(keys, 2, true) and pubkeyToAddress(…, "poly") of @cosmjs/amino 0.39.0.
    assert_eq!(shared().address().account(), "poly1896yggmlu07f0cgd8jrc8mfn2rslkjm8vulwtk");
}

#[test]
fn enough_of_the_keys_sign_for_all() {
    let mut chain = TestChain::start(&genesis(1));
    let fund = any(&MsgSend {
        from_address: key(1).address().account(),
        to_address: shared().address().account(),
        amount: vec![coin(1_000_000)],
    });
    assert_eq!(chain.send(1, vec![fund]).code, 0);
    let with = |key: &PublicKey| Some(key.to_any());
    let other = PublicKey::Multi { threshold: 1, keys: [1, 2, 3].map(|n| key(n).public_key()).to_vec() };
    let eight = PublicKey::Multi { threshold: 1, keys: (1..=8).map(|n| key(n).public_key()).collect() };
    let run = |chain: &mut TestChain, by: &[u8], bits: u8, mode: i32, public_key: Option<Any>| {
        let tx = signed(chain, pay(5), by, bits, mode, public_key);
        let result = chain.deliver(vec![tx]).remove(0);
        (result.code, result.log)
    };
    for (name, by, bits, public_key, code) in [
        ("one of two", &[1][..], 0b1000_0000, with(&shared()), 4),
        ("the bits of others", &[1, 3][..], 0b1100_0000, with(&shared()), 4),
        ("in another order", &[3, 1][..], 0b1010_0000, with(&shared()), 4),
        ("more bits than signatures", &[1, 3][..], 0b1110_0000, with(&shared()), 4),
        ("a lower threshold", &[1][..], 0b1000_0000, with(&other), 8),
        ("no key before the first", &[1, 3][..], 0b1010_0000, None, 8),
        ("eight keys", &[1, 3][..], 0b1010_0000, with(&eight), 14),
    ] {
        let (found, log) = run(&mut chain, by, bits, 127, public_key);
        assert_eq!(found, code, "{name}: {log}");
    }
    assert_eq!(run(&mut chain, &[1, 3], 0b1010_0000, 127, with(&shared())), (0, String::new()));
    // Once it is known, the key may be left out; direct mode is as good; all three may sign.
    assert_eq!(run(&mut chain, &[2, 3], 0b0110_0000, 1, None), (0, String::new()));
    assert_eq!(run(&mut chain, &[1, 2, 3], 0b1110_0000, 127, None), (0, String::new()));
    let fee = least_fee(GAS_LIMIT, 25).0;
    assert_eq!(chain.balance(shared().address()), Amount(1_000_000 - 3 * (fee + 5)));
    let account = auth::account(&chain.state(), &shared().address()).unwrap();
    assert_eq!((account.sequence, account.public_key), (3, Some(shared())));
    // A single signature is none of the shared account's.
    let single = SignContext { account_number: account.number, sequence: 3, ..context(12, 0) };
    let tx = sign_direct(vec![pay(5)], &single, &key(1));
    assert_eq!(chain.deliver(vec![tx])[0].code, 8);
}
