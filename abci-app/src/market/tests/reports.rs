//! Omitted receipts: a worker shows what it committed, or pays for what it left out.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{receipt_digest, sign_receipt};
use polylink_protocol::market_v1::*;
use polylink_protocol::merkle_sum::{Leaf, Tree};
use polylink_protocol::{Amount, DENOM};

use crate::bank;
use crate::market::testbed::*;
use crate::market::{keys, records};
use crate::store::StateRead;

const DEPOSIT: u128 = 100_000;

fn receipt(bed: &Bed, session: u64, index: u64, epoch: u64, amount: u128) -> SignedReceipt {
    let receipt = Receipt {
        request_digest: vec![index as u8; 32],
        worker: WORKER.account(),
        session,
        index,
        epoch,
        profile_digest: bed.profile.to_vec(),
        completion_digest: vec![2; 32],
        sketch_digest: vec![3; 32],
        prompt_tokens: 60,
        completion_tokens: 40,
        amount: amount.to_string(),
        finish_reason: FinishReason::Stop as i32,
        ..Default::default()
    };
    sign_receipt(receipt, &ServiceKey::from_bytes(&[9; 32]))
}

fn tree(receipts: &[&SignedReceipt]) -> Tree {
    let leaf = |signed: &&SignedReceipt| {
        let receipt = signed.receipt.as_ref().unwrap();
        let (tokens, amount) = (receipt.prompt_tokens + receipt.completion_tokens, receipt.amount.parse().unwrap());
        Leaf { session: receipt.session, index: receipt.index, receipt: receipt_digest(receipt), tokens, amount }
    };
    Tree::new(receipts.iter().map(leaf).collect()).unwrap()
}

fn report(receipt: &SignedReceipt) -> MsgReportOmitted {
    MsgReportOmitted { payer: PAYER.account(), receipt: Some(receipt.clone()) }
}

/// Three receipts of epoch 0, of which the last one is left out of the root; in the block after the receipts window.
fn omitting() -> (Bed, Vec<SignedReceipt>, Tree) {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000_000);
    let receipts: Vec<_> = (0..3).map(|index| receipt(&bed, session, index, 0, 20_000)).collect();
    let tree = tree(&[&receipts[0], &receipts[1]]);
    bed.until(1, 1);
    bed.commit(0, tree.root().to_proto()).unwrap();
    bed.until(1, 5);
    (bed, receipts, tree)
}

#[test]
fn who_shows_the_receipt_gets_the_deposit() {
    let (mut bed, receipts, tree) = omitting();
    let answer = bed.send(&report(&receipts[1])).unwrap();
    assert_eq!((answer.report, answer.deadline_epoch), (1, 5));
    let open = QueryReportsRequest { worker: WORKER.account(), pagination: None };
    assert_eq!(bed.ask(&open).unwrap().reports.len(), 1);
    assert_eq!(bed.ask(&QueryReportRequest { report: 1 }).unwrap().report.unwrap().index, 1);
    let show = |report, index| MsgShowReceipt { operator: WORKER.account(), report, path: tree.path(index).ok() };
    assert_eq!(bed.refused(&show(1, 0)), ("market", 42), "another receipt's path");
    assert_eq!(bed.refused(&MsgShowReceipt { path: None, ..show(1, 1) }), ("market", 42));
    assert_eq!(bed.refused(&MsgShowReceipt { operator: GATEWAY.account(), ..show(1, 1) }), ("market", 42));
    assert_eq!(bed.refused(&show(2, 1)), ("market", 41));
    let (worker, payer) = (bed.balance(WORKER), bed.balance(PAYER));
    bed.until(5, 18);
    bed.send(&show(1, 1)).unwrap();
    assert_eq!((bed.balance(WORKER), bed.balance(PAYER)), (worker + DEPOSIT, payer));
    assert_eq!(bed.refused(&show(1, 1)), ("market", 41));
    assert!(bed.ask(&open).unwrap().reports.is_empty());
    bed.until(8, 0);
    assert_eq!(records::worker(&bed.state, &WORKER).unwrap().bond, "100000000", "nothing is held against it");
}

#[test]
fn who_does_not_show_it_is_slashed_and_the_payer_has_its_money_back() {
    let (mut bed, receipts, tree) = omitting();
    bed.send(&MsgBond { operator: WORKER.account(), amount: "100000000".into() }).unwrap();
    let before = bed.balance(PAYER);
    bed.send(&report(&receipts[2])).unwrap();
    assert_eq!(bed.balance(PAYER), before - DEPOSIT);
    // No path proves what is not there.
    for index in 0..2 {
        let show = MsgShowReceipt { operator: WORKER.account(), report: 1, path: tree.path(index).ok() };
        assert_eq!(bed.refused(&show), ("market", 42));
    }
    bed.until(5, 19);
    let burned = bank::flows(&bed.state, DENOM).1.0;
    let events = bed.until(6, 1);
    assert!(events.iter().any(|event| event.kind == "omission"), "{events:?}");
    let show = MsgShowReceipt { operator: WORKER.account(), report: 1, path: tree.path(0).ok() };
    assert_eq!(bed.refused(&show), ("market", 41));
    // 5 % of 200 PLK, of which the answer's 20,000 uplk go to its payer.
    let record = records::worker(&bed.state, &WORKER).unwrap();
    assert_eq!((record.bond.as_str(), record.jailed), ("190000000", false));
    assert_eq!(bed.balance(PAYER), before + 20_000);
    assert_eq!(bank::flows(&bed.state, DENOM).1.0 - burned, 10_000_000 - 20_000);
    assert!(bed.state.contains(&keys::offer(&bed.profile, &WORKER)));
}

#[test]
fn a_slash_below_the_minimum_takes_the_places_and_nobody_gains_by_accusing_itself() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000_000_000_000 - 1_000_000);
    // A receipt over a fortune, from a worker to its own payer.
    let fortune = receipt(&bed, session, 0, 0, 900_000_000_000);
    bed.until(1, 1);
    bed.commit(0, root(0, 0)).unwrap();
    bed.until(1, 5);
    let before = bed.balance(PAYER);
    bed.send(&report(&fortune)).unwrap();
    bed.until(6, 1);
    assert_eq!(bed.balance(PAYER), before + DEPOSIT, "no more than a deposit comes back out of a slash of 5,000,000");
    let record = records::worker(&bed.state, &WORKER).unwrap();
    assert_eq!(record.bond, "95000000");
    assert!(!bed.state.contains(&keys::offer(&bed.profile, &WORKER)), "its bond is below the minimum");
}

#[test]
fn reports_are_refused_by_name() {
    let (mut bed, receipts, _) = omitting();
    let altered = |alter: fn(&mut MsgReportOmitted)| {
        let mut message = report(&receipts[2]);
        alter(&mut message);
        message
    };
    let inner = |alter: fn(&mut Receipt)| {
        let mut message = report(&receipts[2]);
        alter(message.receipt.as_mut().unwrap().receipt.as_mut().unwrap());
        message
    };
    let cases: Vec<(MsgReportOmitted, &str, u32)> = vec![
        (altered(|m| m.receipt = None), "market", 40),
        (altered(|m| m.receipt.as_mut().unwrap().receipt = None), "market", 40),
        (altered(|m| m.payer = STRANGER.account()), "market", 24),
        (altered(|m| m.receipt.as_mut().unwrap().signature[0] ^= 1), "market", 40),
        (inner(|r| r.amount = "1".into()), "market", 40),
        (inner(|r| r.amount = "-1".into()), "sdk", 10),
        (inner(|r| r.session = 9), "market", 17),
        (inner(|r| r.epoch = 1), "market", 40),
        (inner(|r| r.prompt_tokens = u64::MAX), "market", 40),
        (inner(|r| r.profile_digest = vec![7; 32]), "market", 40),
        (inner(|r| r.worker = GATEWAY.account()), "market", 40),
    ];
    let before = bed.state.clone();
    for (message, space, code) in cases {
        assert_eq!(bed.refused(&message), (space, code), "{message:?}");
    }
    assert!(bed.state == before, "a refused report left a trace");
    bed.send(&report(&receipts[2])).unwrap();
    assert_eq!(bed.refused(&report(&receipts[2])), ("market", 40), "each receipt once, whatever became of it");
    bed.until(4, 19);
    bed.send(&report(&receipts[0])).unwrap();
    bed.until(5, 0);
    assert_eq!(bed.refused(&report(&receipts[1])), ("market", 40), "too late");
    bed.until(6, 1);
    assert_eq!(bed.refused(&report(&receipts[2])), ("market", 40), "not a second slash");
    assert_eq!(Amount(DEPOSIT).to_string(), crate::market::params::default().report_deposit);
}

#[test]
fn reports_wait_for_the_root_and_for_parameters_that_take_them() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000_000);
    let early = receipt(&bed, session, 0, 0, 5);
    bed.until(1, 4);
    assert_eq!(bed.refused(&report(&early)), ("market", 40), "the root may still come");
    bed.until(1, 5);
    assert_eq!(bed.refused(&report(&early)), ("market", 40), "without a root it is not paid either");

    let mut bed = Bed::with(0, |genesis| genesis.market.params.report_epochs = 0);
    let session = bed.open_session(1_000_000);
    let old = receipt(&bed, session, 0, 0, 5);
    bed.until(1, 1);
    bed.commit(0, root(0, 0)).unwrap();
    bed.until(1, 6);
    assert_eq!(bed.refused(&report(&old)), ("market", 40));
}
