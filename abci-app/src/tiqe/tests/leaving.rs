//! A judge gets its bond back: not before it has done what it owes, and not before the unbonding is over.

use polylink_protocol::tiqe_v1::*;

use crate::bank::Pool;
use crate::market::testbed::*;

fn leave(bed: &mut Bed, number: u8) -> Result<u64, (&'static str, u32)> {
    let message = MsgUnbondJudge { operator: judge(number).account() };
    bed.send(&message).map(|response| response.release_epoch).map_err(|error| error.code())
}

fn scores(round: &Round) -> Scores {
    let score = |sample: &Sample| Score { sample: sample.number, cross_bps: 5_000, ..Default::default() };
    Scores { scores: round.samples.iter().map(score).collect() }
}

#[test]
fn a_judge_leaves_once_it_owes_nothing() {
    let mut bed = Bed::with(4, |genesis| {
        genesis.tiqe.params.seats = 64;
        genesis.market.params.unbonding_epochs = 3;
    });
    let session = bed.open_session(1_000_000);
    assert_eq!(leave(&mut bed, 9), Err(("tiqe", 2)));
    bed.until(1, 1);
    bed.commit(0, root(8, 5_000)).unwrap();
    bed.redeem(session, 0, 40_000, 8).unwrap();
    // Before the outputs are taken it knows nothing and owes nothing.
    assert_eq!(leave(&mut bed, 3), Ok(4));
    assert_eq!(leave(&mut bed, 3), Err(("tiqe", 23)));
    bed.until(1, 5);
    assert_eq!(leave(&mut bed, 2), Err(("tiqe", 24)), "a beacon output is owed");
    (0..3).for_each(|number| bed.submit_beacon(number, 0).unwrap());
    assert_eq!(bed.submit_beacon(3, 0).unwrap_err().code(), ("tiqe", 23));
    // Its output stays in the beacon; its tickets are drawn no more.
    assert_eq!(leave(&mut bed, 2), Ok(4));
    bed.until(1, 9);
    let round = bed.round(0);
    assert_eq!((round.outputs.len(), round.seats.len()), (3, 2));
    assert_eq!(leave(&mut bed, 1), Err(("tiqe", 24)), "scores are owed");
    (0..2).for_each(|number| bed.commit_scores(number, 0, &scores(&round)).unwrap());
    bed.until(1, 14);
    assert_eq!(leave(&mut bed, 1), Err(("tiqe", 24)));
    (0..2).for_each(|number| bed.reveal_scores(number, 0, &scores(&round)).unwrap());
    assert_eq!(leave(&mut bed, 1), Ok(4));
    // Nobody was penalised; the bonds come back, and the keys are free again.
    assert_eq!(bed.balance(Pool::JudgeBonds), 400_000_000);
    bed.until(4, 0);
    assert_eq!(bed.balance(judge(2)), FUNDS - 100_000_000);
    bed.until(4, 1);
    assert_eq!([2, 3].map(|number| bed.balance(judge(number))), [FUNDS; 2]);
    assert_eq!(bed.balance(Pool::JudgeBonds), 100_000_000);
    assert_eq!(bed.ask(&QueryJudgesRequest {}).unwrap().judges.len(), 1);
    bed.send(&register_judge(2)).unwrap();
}

#[test]
fn a_jailed_judge_makes_room_and_gets_back_what_is_left() {
    let mut bed = Bed::with(3, |genesis| {
        genesis.tiqe.params.slash_judge_bps = 6_000;
        genesis.market.params.unbonding_epochs = 1;
    });
    bed.open_session(1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(8, 5_000)).unwrap();
    bed.run_round(0, &[0, 1], |_, _| Score { cross_bps: 5_000, ..Default::default() });
    assert!(bed.ask(&QueryJudgesRequest {}).unwrap().judges[2].jailed);
    let places = |bed: &Bed| {
        use crate::store::StateRead;
        bed.state.iter_prefix(&[crate::tiqe::keys::JUDGE_OF]).count()
    };
    assert_eq!(places(&bed), 2);
    bed.until(2, 1);
    assert_eq!(leave(&mut bed, 2), Ok(3));
    bed.until(3, 1);
    assert_eq!(bed.balance(judge(2)), FUNDS - 60_000_000);
    assert_eq!(places(&bed), 2);
}

#[test]
fn decided_trials_are_dropped_after_their_retention() {
    let mut bed = Bed::with(3, |genesis| {
        let params = &mut genesis.market.params;
        params.epoch_blocks = 20;
        genesis.tiqe.params.trial_epochs = 1;
    });
    let session = bed.open_session(1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(8, 5_000)).unwrap();
    bed.redeem(session, 0, 40_000, 8).unwrap();
    bed.run_round(0, &[0, 1, 2], |_, _| Score { evidence_milli: 6_000, ..Default::default() });
    bed.until(2, 5);
    (0..3).for_each(|number| bed.submit_beacon(number, 1).unwrap());
    bed.until(2, 9);
    let trials = |bed: &Bed| bed.ask(&QueryTrialsRequest { worker: WORKER.account() }).unwrap().trials;
    let trial = trials(&bed).remove(0);
    let found = |at: &Sample| Score { sample: at.number, evidence_milli: -1, ..Default::default() };
    let found = Scores { scores: trial.samples.iter().map(found).collect() };
    (0..3).for_each(|number| bed.vote(number, 1, false, &found).unwrap());
    bed.until(2 + crate::market::POT_RETENTION_EPOCHS, 19);
    assert_eq!(trials(&bed)[0].votes.len(), 3);
    bed.until(3 + crate::market::POT_RETENTION_EPOCHS, 1);
    assert!(trials(&bed).is_empty());
    assert!(crate::tiqe::trial::votes(&bed.state, 1).is_empty());
}
