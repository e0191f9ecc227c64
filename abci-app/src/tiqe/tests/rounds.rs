//! Rounds: beacons, seats, samples, medians, pay and penalties.

use polylink_protocol::Digest;
use polylink_protocol::tiqe::{VRF_OUTPUT_BYTES, genesis_beacon, next_beacon};
use polylink_protocol::tiqe_v1::*;

use crate::market::testbed::*;

fn bond(bed: &Bed, number: u8) -> u128 {
    let judge = crate::tiqe::judges::judge(&bed.state, &judge(number)).unwrap();
    judge.bond.parse().unwrap()
}

/// An epoch's receipts, committed and redeemed, in the first blocks of the next one.
fn served(bed: &mut Bed, session: u64, epoch: u64) {
    bed.until(epoch + 1, 1);
    bed.commit(epoch, root(8, 5_000)).unwrap();
    bed.redeem(session, epoch, 40_000 * u128::from(epoch + 1), 8 * (epoch + 1)).unwrap();
}

#[test]
fn a_round_draws_scores_and_settles() {
    // Enough seats for every ticket, so that the outlier has a third of them.
    let mut bed = Bed::with(3, |genesis| genesis.tiqe.params.seats = 64);
    let session = bed.open_session(1_000_000);
    served(&mut bed, session, 0);
    bed.block();
    assert_eq!(bed.round(0).phase(), RoundPhase::Receipts);
    bed.until(1, 5);
    assert_eq!(bed.round(0).phase(), RoundPhase::Beacon);
    bed.run_round(0, &[0, 1, 2], |number, sample| Score {
        // The third judge is an outlier.
        cross_bps: if number == 2 { 0 } else { 6_000 + 1_000 * (sample % 4) },
        evidence_milli: if number == 2 { 6_000 } else { -700 },
        ..Default::default()
    });
    let round = bed.round(0);
    assert_eq!(round.phase(), RoundPhase::Settled);
    assert_eq!(round.outputs.len(), 3);
    let mut outputs: Vec<[u8; VRF_OUTPUT_BYTES]> = vec![];
    round.outputs.iter().for_each(|output| outputs.push(output.beta.as_slice().try_into().unwrap()));
    assert_eq!(round.beacon, next_beacon(&genesis_beacon(CHAIN, &bed.profile), &outputs).to_vec());
    assert_eq!(round.seats.iter().map(|seat| seat.seats).sum::<u32>(), 30);
    assert_eq!(round.samples.len(), 4);
    assert!(round.samples.iter().all(|sample| sample.point.parse::<u128>().unwrap() < 40_000));
    assert_eq!(round.results.iter().map(|r| r.quality_bps).collect::<Vec<_>>(), [6_000, 7_000, 8_000, 9_000]);
    assert!(round.results.iter().all(|result| result.evidence_milli == -700));
    let pay = |number: u8| round.seats.iter().find(|seat| seat.judge == judge(number).account()).unwrap().pay_weight;
    assert!(pay(0) > 2 * pay(2) && pay(0) == pay(1), "{:?}", round.seats);
    let query = QueryQualityRequest { worker: WORKER.account(), profile_digest: bed.profile.to_vec() };
    let quality = bed.ask(&query).unwrap().quality.unwrap();
    assert_eq!((quality.alpha_bps, quality.audits, quality.cusum_milli), (10_000, 4, 0));

    // The next round continues from this beacon.
    served(&mut bed, session, 1);
    bed.run_round(1, &[0, 1, 2], |_, _| Score { cross_bps: 3_750, evidence_milli: -700, ..Default::default() });
    let previous = Digest::from_slice(&round.beacon).unwrap();
    let round = bed.round(1);
    outputs = round.outputs.iter().map(|output| output.beta.as_slice().try_into().unwrap()).collect();
    assert_eq!(round.beacon, next_beacon(&previous, &outputs).to_vec());
    // Half of the profile's quality: the average of a whole and a half, three to one.
    let quality = bed.ask(&query).unwrap().quality.unwrap();
    assert_eq!((quality.alpha_bps, quality.quality_bps, quality.audits), (8_750, 6_562, 8));
    assert_eq!(bed.pot(1).alpha_bps, 8_750);
}

#[test]
fn absent_judges_are_penalised_and_the_round_goes_on() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    served(&mut bed, session, 0);
    bed.run_round(0, &[0, 1], |_, _| Score { cross_bps: 5_000, ..Default::default() });
    assert_eq!([0, 1, 2].map(|number| bond(&bed, number)), [100_000_000, 100_000_000, 99_000_000]);
    assert!(bed.round(0).seats.iter().all(|seat| seat.judge != judge(2).account()));
}

#[test]
fn a_seat_that_does_not_reveal_is_penalised() {
    let mut bed = Bed::with(2, |genesis| genesis.tiqe.params.seats = 64);
    let session = bed.open_session(1_000_000);
    served(&mut bed, session, 0);
    bed.until(1, 5);
    [0, 1].iter().for_each(|number| bed.submit_beacon(*number, 0).unwrap());
    bed.until(1, 9);
    assert_eq!(bed.round(0).seats.len(), 2);
    bed.until(1, 19);
    assert_eq!([0, 1].map(|number| bond(&bed, number)), [99_000_000, 99_000_000]);
    // Nobody revealed: as if it had been postponed.
    assert!(bed.round(0).results.is_empty());
    assert_eq!((bed.pot(0).settled, bed.pot(0).alpha_bps), (true, 5_000));
}

#[test]
fn too_few_outputs_postpone_the_round() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    served(&mut bed, session, 0);
    bed.until(1, 5);
    bed.submit_beacon(0, 0).unwrap();
    bed.until(1, 9);
    assert_eq!(bed.round(0).phase(), RoundPhase::Postponed);
    let query = QueryBeaconRequest { epoch: 0, profile_digest: bed.profile.to_vec() };
    assert_eq!(bed.ask(&query).unwrap().beacon, genesis_beacon(CHAIN, &bed.profile).to_vec());
    assert_eq!(bond(&bed, 1), 99_000_000);
}

#[test]
fn a_judge_that_lost_half_its_bond_is_out() {
    let mut bed = Bed::with(3, |genesis| genesis.tiqe.params.slash_judge_bps = 3_000);
    let session = bed.open_session(1_000_000);
    for epoch in 0..2 {
        served(&mut bed, session, epoch);
        bed.run_round(epoch, &[0, 1], |_, _| Score { cross_bps: 5_000, ..Default::default() });
    }
    let judges = bed.ask(&QueryJudgesRequest {}).unwrap().judges;
    assert_eq!(judges.iter().map(|judge| judge.jailed).collect::<Vec<_>>(), [false, false, true]);
    served(&mut bed, session, 2);
    bed.until(3, 5);
    assert_eq!(bed.submit_beacon(2, 2).unwrap_err().code(), ("tiqe", 9));
    assert_eq!(bond(&bed, 2), 49_000_000);
}

#[test]
fn an_idle_epoch_has_no_round() {
    let mut bed = Bed::new(3);
    bed.until(1, 1);
    bed.commit(0, root(0, 0)).unwrap();
    bed.until(1, 5);
    assert_eq!(bed.submit_beacon(0, 0).unwrap_err().code(), ("tiqe", 12));
    bed.until(2, 0);
    assert!([0, 1, 2].iter().all(|number| bond(&bed, *number) == 100_000_000));
    assert_eq!(crate::market::worker(&bed.state, &WORKER).unwrap().last_heartbeat_epoch, 0);
}
