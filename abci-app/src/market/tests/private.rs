//! Private sessions: a root and a pot of their own, which no judge draws from, and what that is worth.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::sign_receipt;
use polylink_protocol::market_v1::*;
use polylink_protocol::merkle_sum::{Leaf, Tree};
use polylink_protocol::tiqe_v1::Score;
use polylink_protocol::{Amount, DENOM, Digest};

use crate::bank::{self, Pool};
use crate::market::testbed::*;
use crate::market::{Kind, keys, records};
use crate::store::StateRead;

fn honest(_: u8, _: u32) -> Score {
    Score { cross_bps: 8_000, evidence_milli: -500, replayed: true, tokens: 10, ..Default::default() }
}

fn text(amount: &str) -> u128 {
    amount.parse().unwrap()
}

/// A worker with a session of either kind, of 1 PLK each, in the receipts window of epoch 0.
fn served(judges: u8) -> (Bed, u64, u64) {
    let mut bed = Bed::new(judges);
    let (open, private) = (bed.open_session(1_000_000), bed.open_private_session(1_000_000));
    bed.until(1, 1);
    (bed, open, private)
}

#[test]
fn no_sample_is_drawn_from_what_is_private() {
    let (mut bed, open, private) = served(3);
    assert!(bed.ask(&QuerySessionRequest { session: private }).unwrap().session.unwrap().private);
    assert!(!bed.ask(&QuerySessionRequest { session: open }).unwrap().session.unwrap().private);
    let audited = root(2, 10);
    // Nearly all of the money, and nearly all of the receipts.
    bed.commit_both(0, audited.clone(), Some(root(50, 20_000))).unwrap();
    bed.run_round(0, &[0, 1, 2], honest);
    let samples = bed.round(0).samples;
    assert_eq!(samples.len(), 2, "one for each receipt that may be seen");
    assert!(samples.iter().all(|sample| sample.root.as_ref() == Some(&audited) && text(&sample.point) < 20));
}

#[test]
fn without_audited_receipts_there_is_no_round_and_the_floor_is_paid() {
    let (mut bed, _, private) = served(3);
    bed.commit_both(0, root(0, 0), Some(root(5, 20_000))).unwrap();
    bed.redeem(private, 0, 100_000, 5).unwrap();
    let burned = bank::flows(&bed.state, DENOM).1.0;
    bed.until(1, 19);
    let profile_digest = bed.profile.to_vec();
    assert!(bed.ask(&polylink_protocol::tiqe_v1::QueryRoundRequest { epoch: 0, profile_digest }).is_err());
    // As in an audited pot up to R' = 90,250, of which 30 % of the 63,175 that are not the judges' are the worker's.
    let pot = bed.pot_of(Kind::Private, 0);
    assert_eq!((pot.alpha_bps, pot.private, pot.judge_reward.as_str()), (3_000, true, "0"));
    assert_eq!([&pot.paid, &pot.royalty, &pot.worker_reward].map(|a| text(a)), [100_000, 4_750, 18_952]);
    assert_eq!(bank::flows(&bed.state, DENOM).1.0 - burned, 10_000 + 90_250 - 18_952);
    assert_eq!((bed.balance(Pool::MarketPots), bed.balance(Pool::MarketVesting)), (0, 18_952));
}

#[test]
fn beside_audited_money_private_money_is_worth_as_much_and_the_judges_get_nothing_of_it() {
    for (private_count, alpha) in [(1, 9_999), (5, 9_999), (10, 6_499), (20, 4_749)] {
        let (mut bed, open, private) = served(3);
        bed.commit_both(0, root(5, 20_000), Some(root(private_count, 20_000))).unwrap();
        bed.redeem(open, 0, 100_000, 5).unwrap();
        bed.redeem(private, 0, 20_000 * u128::from(private_count), private_count).unwrap();
        // Below a baseline that is one better, so that α is not whole.
        let key = crate::tiqe::keys::BASELINE;
        let baseline = [&[key][..], &bed.profile.0].concat();
        crate::store::StateWrite::put(&mut bed.state, baseline, 8_000_800_u64.to_be_bytes().to_vec());
        let judges: u128 = (0..3).map(|n| bed.balance(judge(n))).sum();
        bed.run_round(0, &[0, 1, 2], honest);
        assert_eq!(bed.pot(0).alpha_bps, 9_999);
        let pot = bed.pot_of(Kind::Private, 0);
        assert_eq!((pot.alpha_bps, pot.judge_reward.as_str()), (alpha, "0"), "{private_count}");
        let paid = (0..3).map(|n| bed.balance(judge(n))).sum::<u128>() - judges;
        assert_eq!(paid + bed.balance(Pool::Distribution), text(&bed.pot(0).judge_reward));
    }
}

#[test]
fn neither_root_covers_the_others_money() {
    let (mut bed, open, private) = served(0);
    // Receipts of the open session are said to be private: the open one's voucher is then paid by nothing.
    bed.commit_both(0, root(0, 0), Some(root(5, 20_000))).unwrap();
    bed.redeem(open, 0, 100_000, 5).unwrap();
    bed.redeem(private, 0, 3, 1).unwrap();
    bed.until(3, 0);
    assert_eq!([&bed.pot(0).paid, &bed.pot(0).carried_out].map(|a| text(a)), [0, 100_000]);
    assert_eq!(text(&bed.pot(1).expired), 100_000, "burned");
    assert_eq!(text(&bed.pot_of(Kind::Private, 0).paid), 3);
    // And the other way round, one epoch late.
    let (mut bed, _, private) = served(0);
    bed.commit(0, root(5, 20_000)).unwrap();
    bed.redeem(private, 0, 100_000, 5).unwrap();
    bed.until(3, 0);
    assert_eq!(text(&bed.pot_of(Kind::Private, 0).paid), 0);
    assert_eq!(text(&bed.pot_of(Kind::Private, 1).expired), 100_000);
}

#[test]
fn late_private_money_is_worth_no_more_than_in_its_own_epoch() {
    let (mut bed, open, private) = served(0);
    bed.commit_both(0, root(0, 0), Some(root(5, 20_000))).unwrap();
    bed.until(2, 1);
    bed.commit_both(1, root(5, 20_000), Some(root(1, 1))).unwrap();
    bed.redeem(open, 1, 100_000, 5).unwrap();
    bed.redeem(private, 1, 50_000, 3).unwrap();
    bed.until(2, 19);
    assert_eq!(bed.pot(1).alpha_bps, 5_000);
    let pot = bed.pot_of(Kind::Private, 1);
    assert_eq!((text(&pot.paid), pot.alpha_bps), (50_000, 3_000), "nothing was audited in epoch 0");
}

#[test]
fn private_roots_are_refused_by_name() {
    let (mut bed, _, _) = served(0);
    let message = |private_root| MsgCommitReceipts {
        operator: WORKER.account(),
        epoch: 0,
        profile_digest: polylink_protocol::market::profile_digest(&profile()).to_vec(),
        root: Some(root(1, 5)),
        private_root,
    };
    for (private_root, code) in [
        (Some(root(0, 0)), 28),
        (Some(SumNode { amount: "-1".into(), ..root(1, 1) }), 28),
        (Some(SumNode { hash: vec![], ..root(1, 1) }), 28),
        (Some(SumNode { amount: u128::MAX.to_string(), ..root(1, 1) }), 28),
        (Some(root(1, 1_000_001)), 37),
    ] {
        assert_eq!(bed.refused(&message(private_root.clone())), ("market", code), "{private_root:?}");
    }
    bed.send(&message(Some(root(1, 1_000_000)))).unwrap();
    bed.send(&message(Some(root(1, 1_000_000)))).unwrap();
    // What was committed stands, and so does what was left out.
    assert_eq!(bed.refused(&message(Some(root(1, 999_999)))), ("market", 27));
    assert_eq!(bed.refused(&message(None)), ("market", 27));
    bed.until(2, 1);
    bed.send(&MsgCommitReceipts { epoch: 1, ..message(None) }).unwrap();
    assert_eq!(bed.refused(&MsgCommitReceipts { epoch: 1, ..message(Some(root(1, 5))) }), ("market", 27));
}

/// A receipt of an open session under the private root is an omission like any other.
#[test]
fn who_hides_a_receipt_among_the_private_ones_is_slashed() {
    let (mut bed, open, private) = served(0);
    let receipt = |session| {
        let receipt = Receipt {
            worker: WORKER.account(),
            session,
            profile_digest: bed.profile.to_vec(),
            amount: "20000".into(),
            prompt_tokens: 60,
            completion_tokens: 40,
            ..Default::default()
        };
        sign_receipt(receipt, &ServiceKey::from_bytes(&[9; 32]))
    };
    let receipts = [receipt(open), receipt(private)];
    let leaf = |signed: &SignedReceipt| {
        let receipt = signed.receipt.as_ref().unwrap();
        let digest: Digest = polylink_protocol::market::receipt_digest(receipt);
        Leaf { session: receipt.session, index: 0, receipt: digest, tokens: 100, amount: Amount(20_000) }
    };
    let hidden = Tree::new(receipts.iter().map(leaf).collect()).unwrap();
    bed.commit_both(0, root(0, 0), Some(hidden.root().to_proto())).unwrap();
    bed.until(1, 5);
    for (id, receipt) in (1..).zip(&receipts) {
        let report = MsgReportOmitted { payer: PAYER.account(), receipt: Some(receipt.clone()) };
        assert_eq!(bed.send(&report).unwrap().report, id);
    }
    let show =
        |report| MsgShowReceipt { operator: WORKER.account(), report, path: hidden.path(report as usize - 1).ok() };
    assert_eq!(bed.refused(&show(1)), ("market", 42));
    bed.send(&show(2)).unwrap();
    bed.until(6, 1);
    assert_eq!(records::worker(&bed.state, &WORKER).unwrap().bond, "95000000");
}

#[test]
fn what_is_private_counts_as_use_and_is_asked_for_by_name() {
    let (mut bed, _, private) = served(0);
    bed.commit_both(0, root(0, 0), Some(root(5, 20_000))).unwrap();
    bed.redeem(private, 0, 100_000, 5).unwrap();
    bed.until(1, 19);
    let history = QueryPriceHistoryRequest { profile_digest: bed.profile.to_vec(), pagination: None };
    let prices = bed.ask(&history).unwrap().prices;
    assert_eq!(prices.iter().map(|price| (price.used_epoch, price.paid_tokens)).collect::<Vec<_>>(), [(0, 500)]);
    let query =
        |private| QueryPotRequest { epoch: 0, worker: WORKER.account(), profile_digest: bed.profile.to_vec(), private };
    assert!(
        bed.ask(&query(true)).unwrap().pot.unwrap().private && !bed.ask(&query(false)).unwrap().pot.unwrap().private
    );
    let all = |private| bed.ask(&QueryPotsRequest { epoch: 0, pagination: None, private }).unwrap().pots;
    assert_eq!([false, true].map(|private| all(private).len()), [1, 1]);
    assert_eq!(bed.state.iter_prefix(&[keys::PRIVATE_POT]).count(), 1);
}
