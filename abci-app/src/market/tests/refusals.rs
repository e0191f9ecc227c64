//! Every refusal of the market, by its code; and that nothing of a refused message stays.

use polylink_protocol::Address;
use polylink_protocol::market_v1::*;

use crate::error::SDK;
use crate::market::testbed::*;
use crate::store::StateWrite;

fn open() -> MsgOpenSession {
    MsgOpenSession {
        payer: PAYER.account(),
        payee: WORKER.account(),
        spend_key: spend_key().public_key().to_vec(),
        deposit: "1000".into(),
        window: 4,
        expiry_epoch: 50,
        profile_digest: polylink_protocol::market::profile_digest(&profile()).to_vec(),
        ..Default::default()
    }
}

fn altered<M: Clone>(message: &M, alter: impl FnOnce(&mut M)) -> M {
    let mut message = message.clone();
    alter(&mut message);
    message
}

#[test]
fn models_are_refused_by_name() {
    let good = register_model();
    let other = altered(&good, |m| m.profile.as_mut().unwrap().id = "polylink/pico@1".into());
    let cases: Vec<(MsgRegisterModel, u32)> = vec![
        (good, 3),
        (altered(&other, |m| m.profile = None), 4),
        (altered(&other, |m| m.profile.as_mut().unwrap().id = "nameless".into()), 4),
        (altered(&other, |m| m.profile.as_mut().unwrap().weights_digest = vec![1; 31]), 4),
        (altered(&other, |m| m.price = None), 5),
        (altered(&other, |m| m.price.as_mut().unwrap().completion = 0), 5),
        (altered(&other, |m| m.price.as_mut().unwrap().cached_prompt = 1_001), 5),
        (altered(&other, |m| m.price.as_mut().unwrap().prompt = u64::MAX), 5),
        (altered(&other, |m| m.royalty_bps = 5_001), 6),
        (altered(&other, |m| m.context_length = 0), 7),
    ];
    let mut bed = Bed::new(0);
    for (message, code) in cases {
        assert_eq!(bed.refused(&message), ("market", code), "{message:?}");
    }
    bed.send(&other).unwrap();
}

#[test]
fn workers_are_refused_by_name() {
    let good = register_worker(GATEWAY);
    let cases: Vec<(MsgRegisterWorker, &str, u32)> = vec![
        (register_worker(WORKER), "market", 9),
        (altered(&good, |m| m.endpoint = "ftp://x".into()), "market", 10),
        (altered(&good, |m| m.endpoint = format!("http://{}", "x".repeat(300))), "market", 10),
        (altered(&good, |m| m.tls_key = vec![1]), "market", 11),
        (altered(&good, |m| m.receipt_key = vec![0; 32]), "market", 11),
        (altered(&good, |m| m.offers.clear()), "market", 12),
        (altered(&good, |m| m.offers.push(m.offers[0].clone())), "market", 12),
        (altered(&good, |m| m.offers[0].capacity_tokens_per_epoch = 0), "market", 12),
        (altered(&good, |m| m.offers[0].profile_digest = vec![7; 32]), "market", 2),
        (altered(&good, |m| m.offers[0].profile_digest = vec![7; 3]), "market", 4),
        (altered(&good, |m| m.bond = "99999999".into()), "market", 13),
        (altered(&good, |m| m.bond = "-1".into()), SDK, 10),
        (altered(&good, |m| m.bond = (FUNDS + 1).to_string()), SDK, 5),
        (altered(&good, |m| m.operator = "cosmos1xyz".into()), SDK, 7),
    ];
    let mut bed = Bed::new(0);
    let before = bed.state.clone();
    for (message, space, code) in cases {
        assert_eq!(bed.refused(&message), (space, code), "{message:?}");
    }
    assert!(bed.state == before, "a refused message left a trace");
    let update = MsgUpdateWorker { operator: GATEWAY.account(), offers: good.offers.clone(), ..Default::default() };
    assert_eq!(bed.refused(&update), ("market", 8));
    bed.send(&good).unwrap();
    bed.send(&update).unwrap();
}

#[test]
fn sessions_are_refused_by_name() {
    let good = open();
    let other_model = altered(&register_model(), |m| m.profile.as_mut().unwrap().id = "polylink/pico@1".into());
    let mut bed = Bed::new(0);
    let unsold = bed.send(&other_model).unwrap().profile_digest;
    let cases: Vec<(MsgOpenSession, &str, u32)> = vec![
        (altered(&good, |m| m.payee = PAYER.account()), "market", 18),
        (altered(&good, |m| m.payee = Address::of_module("market_escrow").account()), "market", 18),
        (altered(&good, |m| m.spend_key = vec![3; 5]), "market", 11),
        (altered(&good, |m| m.deposit = "0".into()), "market", 20),
        (altered(&good, |m| m.cap = "0".into()), "market", 20),
        (altered(&good, |m| m.cap = "01".into()), SDK, 10),
        (altered(&good, |m| m.deposit = (FUNDS + 1).to_string()), SDK, 5),
        (altered(&good, |m| m.window = 0), "market", 21),
        (altered(&good, |m| m.window = 257), "market", 21),
        (altered(&good, |m| m.expiry_epoch = 0), "market", 22),
        (altered(&good, |m| m.expiry_epoch = u64::MAX), "market", 22),
        (altered(&good, |m| (m.private, m.profile_digest) = (true, vec![])), "market", 23),
        (altered(&good, |m| m.profile_digest.clear()), "market", 19),
        (altered(&good, |m| m.profile_digest = unsold.clone()), "market", 19),
        (altered(&good, |m| m.payee = GATEWAY.account()), "market", 19),
        (altered(&good, |m| m.profile_digest = vec![9; 32]), "market", 2),
    ];
    for (message, space, code) in cases {
        assert_eq!(bed.refused(&message), (space, code), "{message:?}");
    }
    let session = bed.send(&good).unwrap().session;
    let top_up = MsgTopUp { payer: PAYER.account(), session, amount: "5".into(), cap: String::new() };
    assert_eq!(bed.refused(&altered(&top_up, |m| m.payer = STRANGER.account())), ("market", 24));
    assert_eq!(bed.refused(&altered(&top_up, |m| m.session = 99)), ("market", 17));
    assert_eq!(bed.refused(&altered(&top_up, |m| m.amount = "0".into())), ("market", 20));
    bed.redeem(session, 0, 10, 1).unwrap();
    // Vouchers up to the cap of 1,000 may be given already, however few are redeemed.
    for cap in ["0", "9", "10", "999"] {
        assert_eq!(bed.refused(&altered(&top_up, |m| m.cap = cap.into())), ("market", 20), "a cap of {cap}");
    }
    bed.send(&altered(&top_up, |m| m.cap = "1000".into())).unwrap();
    bed.redeem(session, 0, 1_000, 2).unwrap();
    assert_eq!(bed.redeem(session, 0, 1_001, 3).unwrap_err().code(), ("market", 33));
    let close = |signer: Address| MsgCloseSession { signer: signer.account(), session, voucher: None };
    assert_eq!(bed.refused(&close(PAYER)), ("market", 24));
    assert_eq!(bed.refused(&close(STRANGER)), ("market", 24));
    bed.send(&close(WORKER)).unwrap();
    assert_eq!(bed.refused(&close(WORKER)), ("market", 25));
    assert_eq!(bed.refused(&top_up), ("market", 25));
}

#[test]
fn vouchers_are_refused_by_name() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000);
    bed.until(2, 0);
    bed.redeem(session, 1, 500, 5).unwrap();
    let other = bed.open_session(1_000);
    let redeem = |voucher| MsgRedeem { payee: WORKER.account(), voucher };
    let forged = altered(&voucher(session, 1, 600, 6), |v| v.voucher.as_mut().unwrap().amount = "700".into());
    let resigned = |alter: fn(&mut Voucher)| {
        let body = altered(&voucher(session, 1, 600, 6).voucher.unwrap(), alter);
        Some(polylink_protocol::market::sign_voucher(body, &spend_key()))
    };
    let cases: Vec<(MsgRedeem, &str, u32)> = vec![
        (redeem(None), "market", 29),
        (redeem(Some(SignedVoucher::default())), "market", 29),
        (redeem(resigned(|v| v.chain_id = "other-1".into())), "market", 30),
        (redeem(Some(voucher(99, 1, 600, 6))), "market", 17),
        (redeem(Some(forged)), "market", 32),
        (redeem(resigned(|v| v.receipts_hash.clear())), "market", 32),
        (redeem(resigned(|v| v.amount = "x".into())), SDK, 10),
        (redeem(Some(voucher(session, 1, 1_001, 6))), "market", 33),
        (redeem(Some(voucher(session, 1, 500, 6))), "market", 34),
        (redeem(Some(voucher(session, 1, 600, 5))), "market", 34),
        (redeem(Some(voucher(session, 3, 600, 6))), "market", 36),
        (redeem(Some(voucher(session, 0, 600, 6))), "market", 36),
        (MsgRedeem { payee: STRANGER.account(), voucher: Some(voucher(session, 1, 600, 6)) }, "market", 24),
    ];
    for (message, space, code) in cases {
        assert_eq!(bed.refused(&message), (space, code), "{message:?}");
    }
    let close =
        MsgCloseSession { signer: WORKER.account(), session: other, voucher: Some(voucher(session, 1, 600, 6)) };
    assert_eq!(bed.refused(&close), ("market", 31));
    bed.redeem(session, 1, 600, 6).unwrap();
    // The deposit is 1,000 and expiry is far; an old session's vouchers end with its dispute window.
    let mut record = crate::market::session(&bed.state, session).unwrap();
    record.expiry_epoch = 1;
    bed.state.put(
        [&[super::super::keys::SESSION][..], &session.to_be_bytes()].concat(),
        polylink_protocol::Message::encode_to_vec(&record),
    );
    assert_eq!(bed.refused(&redeem(Some(voucher(session, 2, 700, 7)))), ("market", 36));
    bed.until(5, 0);
    bed.redeem(session, 1, 700, 7).unwrap();
    bed.until(6, 0);
    assert_eq!(bed.refused(&redeem(Some(voucher(session, 1, 800, 8)))), ("market", 35));
    let message = MsgCloseSession { signer: PAYER.account(), session, voucher: None };
    assert_eq!(bed.send(&message).unwrap().refund, "300");
    assert_eq!(bed.refused(&redeem(Some(voucher(session, 1, 800, 8)))), ("market", 25));
}

#[test]
fn receipts_are_refused_by_name() {
    let mut bed = Bed::new(0);
    let message = |epoch, root| MsgCommitReceipts {
        operator: WORKER.account(),
        epoch,
        profile_digest: polylink_protocol::market::profile_digest(&profile()).to_vec(),
        root,
        private_root: None,
    };
    assert_eq!(bed.refused(&message(0, Some(root(2, 5)))), ("market", 26));
    bed.open_session(9);
    bed.until(1, 2);
    assert_eq!(bed.refused(&message(0, Some(root(2, 5)))), ("market", 37));
    let second = bed.open_session(1);
    let cases: Vec<(MsgCommitReceipts, u32)> = vec![
        (message(0, None), 28),
        (message(0, Some(altered(&root(0, 0), |r| r.amount = "1".into()))), 28),
        (message(0, Some(altered(&root(0, 0), |r| r.count = 1))), 28),
        (message(0, Some(altered(&root(1, 1), |r| r.amount = u128::MAX.to_string()))), 28),
        (message(0, Some(altered(&root(1, 1), |r| r.hash = vec![]))), 28),
        (message(1, Some(root(2, 5))), 26),
        (message(u64::MAX, Some(root(2, 5))), 26),
        (altered(&message(0, Some(root(2, 5))), |m| m.operator = STRANGER.account()), 8),
        (altered(&message(0, Some(root(2, 5))), |m| m.profile_digest = vec![1; 32]), 2),
        (altered(&message(0, Some(root(2, 5))), |m| m.profile_digest = vec![1; 31]), 4),
    ];
    for (message, code) in cases {
        assert_eq!(bed.refused(&message), ("market", code), "{message:?}");
    }
    // What a closed session held covers nothing; a top-up does.
    bed.send(&MsgCloseSession { signer: WORKER.account(), session: second, voucher: None }).unwrap();
    assert_eq!(bed.refused(&message(0, Some(root(2, 5)))), ("market", 37));
    bed.send(&MsgTopUp { payer: PAYER.account(), session: 1, amount: "1".into(), cap: "".into() }).unwrap();
    bed.commit(0, root(2, 5)).unwrap();
    bed.commit(0, root(2, 5)).unwrap();
    assert_eq!(bed.refused(&message(0, Some(root(2, 4)))), ("market", 27));
    bed.until(1, 5);
    assert_eq!(bed.refused(&message(0, Some(root(2, 5)))), ("market", 26));
    bed.until(2, 0);
    assert_eq!(bed.refused(&message(0, Some(root(2, 5)))), ("market", 26));
}

#[test]
fn bonds_are_refused_by_name() {
    let mut bed = Bed::new(0);
    let unbond = |amount: &str| MsgUnbond { operator: WORKER.account(), amount: amount.into() };
    assert_eq!(bed.refused(&unbond("0")), (SDK, 10));
    assert_eq!(bed.refused(&unbond("100000001")), ("market", 16));
    assert_eq!(bed.refused(&unbond("1")), ("market", 13));
    assert_eq!(bed.refused(&MsgBond { operator: GATEWAY.account(), amount: "1".into() }), ("market", 8));
    bed.send(&MsgBond { operator: WORKER.account(), amount: "1000".into() }).unwrap();
    for epoch in 0..16 {
        bed.until(epoch, 1);
        bed.send(&unbond("1")).unwrap();
    }
    bed.until(16, 1);
    assert_eq!(bed.refused(&unbond("1")), ("market", 16));
}
