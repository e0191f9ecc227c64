//! Trials: evidence opens one, fresh samples and two thirds of the bond convict, and only then anyone is slashed.

use polylink_protocol::market_v1::{MsgCloseSession, MsgRedeem, MsgUnbond, QueryRefundsRequest};
use polylink_protocol::tiqe_v1::*;
use polylink_protocol::{Address, Amount};

use crate::bank::Pool;
use crate::market::testbed::*;
use crate::market::{self, keys, vesting};
use crate::store::StateRead;

fn cheating(_: u8, _: u32) -> Score {
    Score {
        cross_bps: 7_000,
        evidence_milli: 6_000,
        replayed: true,
        tokens: 9,
        token_mismatches: 3,
        ..Default::default()
    }
}

fn serve(bed: &mut Bed, session: u64, epoch: u64, score: impl Fn(u8, u32) -> Score) {
    bed.until(epoch + 1, 1);
    bed.commit(epoch, root(20, 2_000)).unwrap();
    bed.redeem(session, epoch, 40_000 * u128::from(epoch + 1), 20 * (epoch + 1)).unwrap();
    bed.run_round(epoch, &[0, 1, 2], score);
}

fn trials(bed: &Bed) -> Vec<Trial> {
    bed.ask(&QueryTrialsRequest { worker: WORKER.account() }).unwrap().trials
}

fn findings(trial: &Trial, evidence_milli: i64) -> Scores {
    let score = |sample: &Sample| Score { sample: sample.number, evidence_milli, ..Default::default() };
    Scores { scores: trial.samples.iter().map(score).collect() }
}

/// A bed with a trial over the receipts of epoch 0 whose samples are drawn, in epoch 2.
fn tried() -> (Bed, u64, Trial) {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    serve(&mut bed, session, 0, cheating);
    let open = trials(&bed);
    assert_eq!((open.len(), open[0].state(), open[0].opened_epoch), (1, TrialState::Open, 1));
    assert!(open[0].samples.is_empty());
    assert_eq!(bed.vote(0, 1, true, &Scores::default()).unwrap_err().code(), ("tiqe", 22));
    serve(&mut bed, session, 1, cheating);
    let trial = trials(&bed).remove(0);
    assert_eq!(trials(&bed).len(), 1, "one trial at a time");
    assert_eq!((trial.evidence_epoch, trial.deadline_epoch, trial.samples.len()), (0, 5, 8));
    (bed, session, trial)
}

#[test]
fn a_cheating_worker_is_convicted_slashed_and_jailed() {
    let (mut bed, session, trial) = tried();
    // Pay and unbonding wait for the verdict.
    let (held, balance) = (bed.balance(Pool::MarketVesting), bed.balance(WORKER));
    bed.until(3, 2);
    assert_eq!((bed.balance(Pool::MarketVesting), bed.balance(WORKER)), (held, balance));
    bed.send(&MsgUnbond { operator: WORKER.account(), amount: "100000000".into() }).unwrap();

    for number in [0, 1, 2] {
        bed.vote(number, trial.id, true, &findings(&trial, 6_000)).unwrap();
    }
    assert_eq!(bed.vote(0, trial.id, true, &findings(&trial, 6_000)).unwrap_err().code(), ("tiqe", 14));
    let (burned, paid) = (crate::bank::flows(&bed.state, "uplk").1.0, bed.balance(PAYER));
    let events = bed.block();
    let trial = trials(&bed).remove(0);
    assert_eq!(trial.state(), TrialState::Guilty);
    assert_eq!(trial.votes.len(), 3);
    // Half of the bond, although it is unbonding, and all that had not vested.
    assert_eq!((trial.slashed.as_str(), trial.clawed_back.as_str()), ("50000000", held.to_string().as_str()));
    // Of 40,000 paid into the pot of epoch 0, which was settled when the trial opened, 1,900 are the provider's and 10,830 the
    // judges': 68.17 % of it nobody has.
    assert_eq!(trial.refunds, "27268");
    assert_eq!(crate::bank::flows(&bed.state, "uplk").1.0 - burned, 50_000_000 + held - 27_268);
    assert_eq!(bed.balance(PAYER) - paid, 27_268);
    let refunds = bed.ask(&QueryRefundsRequest { payer: PAYER.account(), pagination: None }).unwrap().refunds;
    let refund =
        refunds.iter().map(|refund| (refund.trial, refund.worker.clone(), refund.amount.as_str(), refund.epoch));
    assert_eq!(refund.collect::<Vec<_>>(), [(1, WORKER.account(), "27268", 3)]);
    let kinds = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!((kinds("refund"), kinds("refunded")), (1, 1));
    assert_eq!(bed.balance(Pool::MarketVesting), 0);
    let worker = market::worker(&bed.state, &WORKER).unwrap();
    assert!(worker.jailed);
    assert_eq!(worker.unbonding[0].amount, "50000000");

    // No receipts, vouchers or sessions any more; the payer has the rest back at once.
    assert_eq!(bed.commit(2, root(1, 1)).unwrap_err().code(), ("market", 14));
    let voucher = Some(voucher(session, 2, 100_000, 50));
    assert_eq!(bed.refused(&MsgRedeem { payee: WORKER.account(), voucher }), ("market", 14));
    let close = MsgCloseSession { signer: PAYER.account(), session, voucher: None };
    assert_eq!(bed.send(&close).unwrap().refund, "920000");
    assert!(!crate::tiqe::on_trial(&bed.state, &WORKER));
}

/// Many payers are refunded block by block, each once, by what it paid.
#[test]
fn payers_are_refunded_a_bounded_number_in_a_block() {
    let payers: Vec<Address> = (10..160_u8).map(|number| Address([number; 20])).collect();
    // Much more is paid than slash and vesting pay hold.
    let mut bed = Bed::with(3, |genesis| {
        genesis.tiqe.params.slash_worker_bps = 1;
        let known = |payer: &&Address| genesis.accounts.iter().any(|account| account.address == payer.account());
        let new: Vec<Address> = payers.iter().filter(|payer| !known(payer)).copied().collect();
        for payer in new {
            *genesis = std::mem::take(genesis).with_account(&payer, Amount(FUNDS));
        }
    });
    let sessions: Vec<u64> = payers.iter().map(|payer| bed.open_session_of(*payer, WORKER, 1_000_000)).collect();
    bed.until(1, 1);
    let paid = |at: usize| 1_000 + 100 * at as u128;
    let sum: u128 = (0..payers.len()).map(paid).sum();
    bed.commit(0, root(10, sum / 10)).unwrap();
    for (at, session) in sessions.iter().enumerate() {
        bed.redeem(*session, 0, paid(at), 1).unwrap();
    }
    bed.run_round(0, &[0, 1, 2], cheating);
    beacons(&mut bed, 1, &[0, 1, 2]);
    let trial = trials(&bed).remove(0);
    (0..3).for_each(|number| bed.vote(number, trial.id, true, &findings(&trial, 6_000)).unwrap());
    let before: Vec<u128> = payers.iter().map(|payer| bed.balance(*payer)).collect();
    let mut seen = vec![];
    for _ in 0..4 {
        let events = bed.block();
        seen.push(events.iter().filter(|event| event.kind == "refund").count());
    }
    assert_eq!(seen, [64, 64, 22, 0]);
    let trial = trials(&bed).remove(0);
    let (slashed, clawed_back): (u128, u128) = (trial.slashed.parse().unwrap(), trial.clawed_back.parse().unwrap());
    let fund: u128 = trial.refunds.parse().unwrap();
    assert_eq!((slashed, fund), (10_000, slashed + clawed_back), "all of it, and it is not enough");
    for (at, payer) in payers.iter().enumerate() {
        let refund = bed.balance(*payer) - before[at];
        assert_eq!(refund, fund * paid(at) / sum, "payer {at}");
    }
    assert_eq!(bed.balance(Pool::MarketEscrow), 150 * 1_000_000 - sum, "what rounding left is burned");
    assert_eq!([keys::PAID, keys::REFUNDING, keys::REFUND].map(|prefix| rows(&bed, prefix)), [0, 0, 150]);
}

fn rows(bed: &Bed, prefix: u8) -> usize {
    bed.state.iter_prefix(&[prefix]).count()
}

#[test]
fn notes_of_payments_and_records_of_refunds_are_dropped_in_their_time() {
    let (mut bed, _, trial) = tried();
    (0..3).for_each(|number| bed.vote(number, trial.id, true, &findings(&trial, 6_000)).unwrap());
    bed.block();
    let tables = |bed: &Bed| [keys::PAID, keys::REFUND, keys::REFUND_MADE].map(|prefix| rows(bed, prefix));
    assert_eq!((bed.ctx.epoch, tables(&bed)), (3, [1, 1, 1]), "of epoch 1, which the trial did not look at");
    bed.until(513, 19);
    assert_eq!(tables(&bed), [1, 1, 1]);
    bed.until(514, 1);
    assert_eq!(tables(&bed), [0, 1, 1]);
    bed.until(514, 19);
    assert_eq!(tables(&bed), [0, 1, 1]);
    bed.until(515, 1);
    assert_eq!(tables(&bed), [0, 0, 0]);
}

#[test]
fn two_thirds_of_the_bond_do_not_convict_and_who_does_not_vote_pays() {
    let (mut bed, _, trial) = tried();
    bed.vote(0, trial.id, true, &findings(&trial, 6_000)).unwrap();
    bed.vote(1, trial.id, true, &findings(&trial, 6_000)).unwrap();
    bed.until(5, 19);
    assert_eq!(trials(&bed)[0].state(), TrialState::Open);
    bed.block();
    let trial = trials(&bed).remove(0);
    assert_eq!(trial.state(), TrialState::Acquitted);
    assert!(!market::worker(&bed.state, &WORKER).unwrap().jailed);
    let refunds = bed.ask(&QueryRefundsRequest { payer: PAYER.account(), pagination: None }).unwrap().refunds;
    assert_eq!((trial.refunds.as_str(), refunds), ("", vec![]));
    let judges = bed.ask(&QueryJudgesRequest {}).unwrap().judges;
    assert_eq!(judges.iter().map(|j| j.bond.as_str()).collect::<Vec<_>>(), ["100000000", "100000000", "99000000"]);
    // The statistic begins anew, and the pay that waited is released.
    let query = QueryQualityRequest { worker: WORKER.account(), profile_digest: bed.profile.to_vec() };
    assert_eq!(bed.ask(&query).unwrap().quality.unwrap().cusum_milli, 0);
    bed.until(16, 1);
    assert_eq!(vesting::of(&bed.state, &WORKER, 16).amount, "0");
    assert_eq!(bed.vote(2, trial.id, true, &findings(&trial, 0)).unwrap_err().code(), ("tiqe", 22));
}

#[test]
fn votes_are_refused_by_name() {
    let (mut bed, _, trial) = tried();
    assert_eq!(bed.vote(0, 99, true, &findings(&trial, 0)).unwrap_err().code(), ("tiqe", 21));
    assert_eq!(bed.vote(9, trial.id, true, &findings(&trial, 0)).unwrap_err().code(), ("tiqe", 2));
    assert_eq!(bed.vote(0, trial.id, true, &Scores::default()).unwrap_err().code(), ("tiqe", 20));
    assert_eq!(bed.vote(0, trial.id, true, &findings(&trial, 6_001)).unwrap_err().code(), ("tiqe", 20));
    bed.until(6, 0);
    assert_eq!(bed.vote(0, trial.id, true, &findings(&trial, 0)).unwrap_err().code(), ("tiqe", 22));
}

/// Nothing but beacons in the round over `epoch`; up to its last block.
fn beacons(bed: &mut Bed, epoch: u64, judges: &[u8]) {
    bed.until(epoch + 1, 5);
    judges.iter().for_each(|number| bed.submit_beacon(*number, epoch).unwrap());
    bed.until(epoch + 1, 19);
}

#[test]
fn an_accused_worker_that_goes_silent_is_tried_by_what_it_had_committed() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    serve(&mut bed, session, 0, cheating);
    let held = bed.balance(Pool::MarketVesting);
    // It commits nothing any more; the round comes all the same, for its beacon alone.
    beacons(&mut bed, 1, &[0, 1, 2]);
    let round = bed.round(1);
    assert_eq!((round.phase(), round.samples.len(), round.seats.len()), (RoundPhase::Settled, 0, 0));
    let judges = bed.ask(&QueryJudgesRequest {}).unwrap().judges;
    assert!(judges.iter().all(|judge| judge.bond == "100000000"), "nobody owes a reveal");
    let trial = trials(&bed).remove(0);
    assert_eq!((trial.samples.len(), trial.deadline_epoch), (8, 5));
    assert!(trial.samples.iter().all(|sample| sample.epoch == 0 && sample.root == bed.pot(0).root));
    assert_eq!(bed.balance(Pool::MarketVesting), held, "its pay waits");
    (0..3).for_each(|number| bed.vote(number, trial.id, true, &findings(&trial, 6_000)).unwrap());
    bed.block();
    assert!(market::worker(&bed.state, &WORKER).unwrap().jailed);
}

#[test]
fn honest_answers_after_the_accusation_do_not_help() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    // Three honest epochs, then a cheat that is found at once.
    let honest = |_: u8, _: u32| Score { cross_bps: 7_000, evidence_milli: -400, ..Default::default() };
    (0..5).for_each(|epoch| serve(&mut bed, session, epoch, honest));
    serve(&mut bed, session, 5, cheating);
    let opened = trials(&bed).remove(0);
    assert_eq!((opened.opened_epoch, opened.evidence_epoch), (6, 5));
    serve(&mut bed, session, 6, honest);
    let trial = trials(&bed).remove(0);
    // By amount over the pots of the epochs 2 to 5, each sample with the root of its own epoch.
    for sample in &trial.samples {
        assert!((2..=5).contains(&sample.epoch), "{sample:?}");
        assert_eq!(sample.root, bed.pot(sample.epoch).root);
        assert!(sample.point.parse::<u128>().unwrap() < 40_000);
    }
    let epochs: std::collections::BTreeSet<u64> = trial.samples.iter().map(|sample| sample.epoch).collect();
    assert!(epochs.len() > 1, "eight points in four equal pots: {epochs:?}");
}

#[test]
fn without_a_quorum_the_trial_waits_for_the_next_beacon() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    serve(&mut bed, session, 0, cheating);
    beacons(&mut bed, 1, &[0]);
    assert_eq!(bed.round(1).phase(), RoundPhase::Postponed);
    assert!(trials(&bed)[0].samples.is_empty());
    let bonds = |bed: &Bed| bed.ask(&QueryJudgesRequest {}).unwrap().judges.into_iter().map(|judge| judge.bond);
    assert!(bonds(&bed).eq(["100000000", "99000000", "99000000"]), "a missing output costs as always");
    beacons(&mut bed, 2, &[0, 1, 2]);
    let trial = trials(&bed).remove(0);
    assert_eq!((trial.samples.len(), trial.evidence_epoch, trial.deadline_epoch), (8, 0, 6));
    // Then there is nothing to wait for any more, and idle epochs have no rounds.
    bed.until(4, 6);
    assert_eq!(bed.submit_beacon(0, 3).unwrap_err().code(), ("tiqe", 12));
}

#[test]
fn a_worker_that_withholds_is_tried_in_three_rounds() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    // Whatever a judge writes of an answer that it did not see, the ledger counts 2 nats.
    let missing = |number: u8, _: u32| Score {
        missing: true,
        evidence_milli: if number == 0 { -6_000 } else { 0 },
        ..Default::default()
    };
    for epoch in 0..3 {
        assert!(trials(&bed).is_empty(), "after {epoch} rounds");
        serve(&mut bed, session, epoch, missing);
        assert_eq!(bed.round(epoch).results[0].evidence_milli, 2_000);
    }
    assert_eq!(trials(&bed)[0].evidence_epoch, 2);
    // One judge alone cannot say so: the median is what the others saw.
    let mut bed = Bed::with(3, |genesis| genesis.tiqe.params.seats = 64);
    let session = bed.open_session(1_000_000);
    for epoch in 0..4 {
        serve(&mut bed, session, epoch, |number, _| Score {
            missing: number == 0,
            cross_bps: 7_000,
            evidence_milli: -400,
            ..Default::default()
        });
    }
    assert!(trials(&bed).is_empty());
}

#[test]
fn an_honest_worker_is_not_tried() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(100_000_000);
    for epoch in 0..30 {
        serve(&mut bed, session, epoch, |number, sample| Score {
            cross_bps: 7_000 + 300 * (sample % 4),
            // Now and then a doubtful answer among exact ones.
            evidence_milli: if (epoch + u64::from(sample)) % 11 == 0 { 2_500 } else { -900 + i64::from(number) },
            ..Default::default()
        });
    }
    assert!(trials(&bed).is_empty());
}
