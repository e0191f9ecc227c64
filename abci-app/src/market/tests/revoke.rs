//! A revoked spend key: the payee is paid for what it served, the thief gets nothing more.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{RECEIPT_CHAIN_START, sign_voucher};
use polylink_protocol::market_v1::*;

use crate::bank::Pool;
use crate::market::testbed::*;

const DISPUTE: u64 = 4;

fn revoke(session: u64) -> MsgRevokeSpendKey {
    MsgRevokeSpendKey { payer: PAYER.account(), session, spend_key: spend_key().public_key().to_vec() }
}

fn close(signer: polylink_protocol::Address, session: u64) -> MsgCloseSession {
    MsgCloseSession { signer: signer.account(), session, voucher: None }
}

#[test]
fn a_payer_that_revokes_to_get_out_of_paying_pays_all_the_same() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(100_000);
    // Served and signed for in epoch 0, not redeemed yet.
    assert_eq!(bed.send(&revoke(session)).unwrap().redeemable_until_epoch, 1 + DISPUTE);
    assert_eq!(bed.refused(&close(PAYER, session)), ("market", 24), "not before the payee had its time");
    bed.until(1, 1);
    bed.commit(0, root(3, 20_000)).unwrap();
    bed.redeem(session, 0, 60_000, 3).unwrap();
    assert_eq!(bed.refused(&close(PAYER, session)), ("market", 24));
    // The last answer's voucher comes as late as it may.
    bed.until(1 + DISPUTE, 19);
    bed.redeem(session, 0, 70_000, 4).unwrap();
    assert_eq!(bed.refused(&close(PAYER, session)), ("market", 24));
    bed.until(DISPUTE + 2, 0);
    assert_eq!(bed.send(&close(PAYER, session)).unwrap().refund, "30000");
    assert_eq!(bed.balance(PAYER), FUNDS - 70_000);
    assert_eq!(bed.balance(Pool::MarketEscrow), 0);
}

#[test]
fn a_thief_gets_nothing_of_later_epochs_and_nothing_after_the_dispute_window() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(100_000);
    bed.until(2, 3);
    bed.redeem(session, 2, 10_000, 1).unwrap();
    bed.send(&revoke(session)).unwrap();
    let top_up = MsgTopUp { payer: PAYER.account(), session, amount: "1".into(), cap: String::new() };
    assert_eq!(bed.refused(&top_up), ("market", 38), "nothing more comes within the key's reach");
    bed.until(4, 1);
    // With the stolen key it signs for what it was given after the revocation.
    let stolen = |epoch, amount, count| MsgRedeem {
        payee: WORKER.account(),
        voucher: Some(voucher(session, epoch, amount, count)),
    };
    assert_eq!(bed.refused(&stolen(4, 50_000, 9)), ("market", 36));
    // Above the cap never; with another key never.
    assert_eq!(bed.refused(&stolen(2, 100_001, 9)), ("market", 33));
    let body = Voucher {
        chain_id: CHAIN.into(),
        session,
        epoch: 2,
        amount: "50000".into(),
        count: 9,
        receipts_hash: RECEIPT_CHAIN_START.to_vec(),
    };
    let other = sign_voucher(body, &ServiceKey::from_bytes(&[7; 32]));
    let message = MsgRedeem { payee: WORKER.account(), voucher: Some(other) };
    assert_eq!(bed.refused(&message), ("market", 32));
    bed.until(3 + DISPUTE + 1, 0);
    assert_eq!(bed.refused(&stolen(2, 50_000, 9)), ("market", 35));
    assert_eq!(bed.send(&close(PAYER, session)).unwrap().refund, "90000");
}

#[test]
fn a_gateways_session_is_revoked_alike_and_an_expired_one_stays_expired() {
    let mut bed = Bed::new(0);
    let open = MsgOpenSession {
        payer: PAYER.account(),
        payee: GATEWAY.account(),
        spend_key: spend_key().public_key().to_vec(),
        deposit: "1000".into(),
        window: 1,
        expiry_epoch: 1,
        ..Default::default()
    };
    let session = bed.send(&open).unwrap().session;
    bed.until(3, 0);
    assert_eq!(bed.send(&revoke(session)).unwrap().redeemable_until_epoch, 1 + DISPUTE, "no later than it was");
    let redeem = |epoch| MsgRedeem { payee: GATEWAY.account(), voucher: Some(voucher(session, epoch, 600, 1)) };
    assert_eq!(bed.refused(&redeem(2)), ("market", 36));
    bed.send(&redeem(1)).unwrap();
    assert_eq!(bed.balance(GATEWAY), FUNDS + 600);
}

#[test]
fn revocations_are_refused_by_name() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000);
    let good = revoke(session);
    let other = ServiceKey::from_bytes(&[7; 32]).public_key().to_vec();
    for (message, code) in [
        (MsgRevokeSpendKey { payer: WORKER.account(), ..good.clone() }, 24),
        (MsgRevokeSpendKey { session: 9, ..good.clone() }, 17),
        (MsgRevokeSpendKey { spend_key: other, ..good.clone() }, 11),
        (MsgRevokeSpendKey { spend_key: vec![], ..good.clone() }, 11),
    ] {
        assert_eq!(bed.refused(&message), ("market", code), "{message:?}");
    }
    bed.send(&good).unwrap();
    assert_eq!(bed.refused(&good), ("market", 38));
    bed.send(&close(WORKER, session)).unwrap();
    assert_eq!(bed.refused(&good), ("market", 25));
}
