//! Appeals: a conviction holds only when its worker has not appealed, or is convicted by fresh samples again.

use polylink_protocol::market_v1::MsgUnbond;
use polylink_protocol::tiqe_v1::*;

use crate::bank::{self, Pool};
use crate::market::testbed::*;
use crate::market::{self, vesting};

const DEPOSIT: u128 = 10_000_000;

fn trial(bed: &Bed) -> Trial {
    bed.ask(&QueryTrialsRequest { worker: WORKER.account() }).unwrap().trials.remove(0)
}

fn findings(trial: &Trial) -> Scores {
    let score = |sample: &Sample| Score { sample: sample.number, evidence_milli: 6_000, ..Default::default() };
    Scores { scores: trial.samples.iter().map(score).collect() }
}

fn vote(bed: &mut Bed, votes: &[(u8, bool)]) {
    let trial = trial(bed);
    votes.iter().for_each(|(n, guilty)| bed.vote(*n, trial.id, *guilty, &findings(&trial)).unwrap());
}

/// Nothing but beacons in the round over `epoch`; up to its last block.
fn beacons(bed: &mut Bed, epoch: u64) {
    bed.until(epoch + 1, 5);
    [0, 1, 2].iter().for_each(|number| bed.submit_beacon(*number, epoch).unwrap());
    bed.until(epoch + 1, 19);
}

fn appeal(id: u64) -> MsgAppeal {
    MsgAppeal { worker: WORKER.account(), trial: id }
}

fn bond(bed: &Bed) -> String {
    market::worker(&bed.state, &WORKER).unwrap().bond
}

/// A worker that all three judges have convicted for epoch 0, in the last block but one of epoch 2. It may appeal until epoch 4.
fn convicted() -> Bed {
    let mut bed = Bed::with(3, |genesis| {
        genesis.tiqe.params.appeal_epochs = 2;
        genesis.market.params.unbonding_epochs = 1;
    });
    let session = bed.open_session(1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(20, 2_000)).unwrap();
    bed.redeem(session, 0, 40_000, 20).unwrap();
    bed.run_round(0, &[0, 1, 2], |_, _| Score { evidence_milli: 6_000, cross_bps: 7_000, ..Default::default() });
    beacons(&mut bed, 1);
    vote(&mut bed, &[(0, true), (1, true), (2, true)]);
    bed.block();
    let trial = trial(&bed);
    assert_eq!((trial.state(), trial.appeal_until_epoch, trial.appealed_epoch), (TrialState::Convicted, 4, 0));
    bed
}

#[test]
fn a_conviction_is_executed_when_nobody_has_appealed_and_not_before() {
    let mut bed = convicted();
    let held = bed.balance(Pool::MarketVesting);
    bed.send(&MsgUnbond { operator: WORKER.account(), amount: "100000000".into() }).unwrap();
    let (burned, worker) = (bank::flows(&bed.state, "uplk").1.0, bed.balance(WORKER));
    bed.until(4, 19);
    // Its pay and its bond wait, and it votes nobody away.
    assert_eq!((bed.balance(Pool::MarketVesting), bed.balance(WORKER)), (held, worker));
    assert_eq!((bank::flows(&bed.state, "uplk").1.0, trial(&bed).state()), (burned, TrialState::Convicted));
    assert!(!market::worker(&bed.state, &WORKER).unwrap().jailed);
    assert_eq!(bed.vote(0, 1, true, &Scores::default()).unwrap_err().code(), ("tiqe", 22));
    bed.block();
    let found = trial(&bed);
    assert_eq!((found.state(), found.slashed.as_str()), (TrialState::Guilty, "50000000"));
    assert_eq!(found.clawed_back, held.to_string());
    assert!(market::worker(&bed.state, &WORKER).unwrap().jailed);
    assert_eq!(bed.refused(&appeal(1)), ("tiqe", 25), "too late");
}

#[test]
fn an_appeal_is_decided_by_fresh_samples_and_fresh_votes() {
    let mut bed = convicted();
    let first = trial(&bed).samples;
    let held = bed.balance(Pool::MarketVesting);
    bed.until(4, 19);
    let balance = bed.balance(WORKER);
    bed.send(&appeal(1)).unwrap();
    assert_eq!(bed.balance(WORKER), balance - DEPOSIT);
    let found = trial(&bed);
    assert_eq!((found.state(), found.appealed_epoch, found.samples.len()), (TrialState::Open, 4, 0));
    assert_eq!(bed.refused(&appeal(1)), ("tiqe", 25), "once at a time");
    assert_eq!(bed.vote(0, 1, true, &Scores::default()).unwrap_err().code(), ("tiqe", 22), "nothing is drawn yet");
    // The beacon of the epoch in which it appealed: nobody knew it then.
    beacons(&mut bed, 4);
    let found = trial(&bed);
    assert_eq!((found.samples.len(), found.deadline_epoch), (8, 8));
    assert!(found.samples.iter().all(|sample| sample.number >= 2_000_000 && sample.epoch == 0));
    let points = |samples: &[Sample]| samples.iter().map(|sample| sample.point.clone()).collect::<Vec<_>>();
    assert_ne!(points(&found.samples), points(&first));
    // All have voted once. What they said then counts for nothing now, and who says nothing now is penalised.
    vote(&mut bed, &[(0, true), (1, false)]);
    assert_eq!(bed.vote(1, 1, true, &findings(&trial(&bed))).unwrap_err().code(), ("tiqe", 14));
    bed.until(9, 0);
    let found = trial(&bed);
    assert_eq!((found.state(), found.slashed.as_str()), (TrialState::Acquitted, ""));
    assert_eq!((bed.balance(WORKER), bond(&bed).as_str()), (balance, "100000000"), "the deposit is back");
    let judges = bed.ask(&QueryJudgesRequest {}).unwrap().judges;
    assert!(judges.iter().map(|judge| judge.bond.as_str()).eq(["100000000", "100000000", "99000000"]));
    assert_eq!(bed.refused(&appeal(1)), ("tiqe", 25));
    // And what had waited is released.
    bed.until(18, 1);
    assert_eq!(vesting::of(&bed.state, &WORKER, 18).amount, "0");
    assert_eq!(bed.balance(WORKER), balance + held);
}

#[test]
fn who_is_convicted_again_loses_the_deposit_too() {
    let mut bed = convicted();
    bed.until(3, 3);
    bed.send(&appeal(1)).unwrap();
    beacons(&mut bed, 3);
    let burned = bank::flows(&bed.state, "uplk").1.0;
    vote(&mut bed, &[(0, true), (1, true), (2, true)]);
    bed.block();
    let found = trial(&bed);
    assert_eq!(
        (found.state(), found.slashed.as_str(), bond(&bed).as_str()),
        (TrialState::Guilty, "50000000", "50000000")
    );
    let uplk = |text: &str| text.parse::<u128>().unwrap();
    let expected = 50_000_000 + uplk(&found.clawed_back) - uplk(&found.refunds) + DEPOSIT;
    assert_eq!(bank::flows(&bed.state, "uplk").1.0 - burned, expected);
    assert_eq!(bed.refused(&appeal(1)), ("tiqe", 25), "there is one appeal");
}

#[test]
fn appeals_are_refused_by_name() {
    let mut bed = convicted();
    assert_eq!(bed.refused(&appeal(9)), ("tiqe", 21));
    assert_eq!(bed.refused(&MsgAppeal { worker: STRANGER.account(), trial: 1 }), ("tiqe", 25));
    let all = bed.balance(WORKER);
    bank::transfer(&mut bed.ctx, &mut bed.state, WORKER, STRANGER, polylink_protocol::Amount(all - 1)).unwrap();
    assert_eq!(bed.refused(&appeal(1)), ("sdk", 5), "no deposit");
    assert_eq!(trial(&bed).state(), TrialState::Convicted);
    // An open trial is none to appeal against.
    let mut bed = Bed::with(3, |genesis| genesis.tiqe.params.appeal_epochs = 2);
    bed.open_session(1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(20, 2_000)).unwrap();
    bed.run_round(0, &[0, 1, 2], |_, _| Score { evidence_milli: 6_000, ..Default::default() });
    assert_eq!(bed.refused(&appeal(1)), ("tiqe", 25));
}
