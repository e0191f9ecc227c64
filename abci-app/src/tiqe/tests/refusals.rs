//! Every refusal of the audit, by its code.

use polylink_protocol::tiqe_v1::*;

use crate::error::SDK;
use crate::market::testbed::*;

fn altered<M: Clone>(message: &M, alter: impl FnOnce(&mut M)) -> M {
    let mut message = message.clone();
    alter(&mut message);
    message
}

#[test]
fn judges_are_refused_by_name() {
    let mut bed = Bed::new(2);
    let good = MsgRegisterJudge { operator: STRANGER.account(), ..register_judge(7) };
    let cases: Vec<(MsgRegisterJudge, &str, u32)> = vec![
        (register_judge(0), "tiqe", 3),
        (altered(&good, |m| m.vrf_key = vec![0; 32]), "tiqe", 4),
        (altered(&good, |m| m.disclosure_key = vec![1; 31]), "tiqe", 4),
        (altered(&good, |m| m.x25519_key = vec![0; 32]), "tiqe", 4),
        (altered(&good, |m| m.vrf_key = vrf(1).public_key().to_vec()), "tiqe", 5),
        (altered(&good, |m| m.tickets = 0), "tiqe", 6),
        (altered(&good, |m| m.tickets = 1_001), "tiqe", 6),
        (altered(&good, |m| m.profiles.clear()), "tiqe", 7),
        (altered(&good, |m| m.profiles.push(m.profiles[0].clone())), "tiqe", 7),
        (altered(&good, |m| m.profiles = vec![vec![5; 32]]), "market", 2),
        (altered(&good, |m| m.operator = "nobody".into()), SDK, 7),
    ];
    for (message, space, code) in cases {
        assert_eq!(bed.refused(&message), (space, code), "{message:?}");
    }
    bed.until(1, 1);
    assert_eq!(bed.send(&good).unwrap().active_from_epoch, 3);
}

#[test]
fn beacons_and_scores_are_refused_by_name() {
    // Enough seats for every ticket, so that each judge that proved has some.
    let mut bed = Bed::with(4, |genesis| genesis.tiqe.params.seats = 64);
    let session = bed.open_session(1_000_000);
    let late = MsgRegisterJudge { operator: STRANGER.account(), ..register_judge(7) };
    bed.until(1, 1);
    bed.send(&late).unwrap();
    bed.commit(0, root(3, 1_000)).unwrap();
    bed.redeem(session, 0, 3_000, 3).unwrap();
    assert_eq!(bed.submit_beacon(0, 0).unwrap_err().code(), ("tiqe", 13));
    bed.until(1, 5);
    let profile_digest = bed.profile.to_vec();
    let proof = |judge: polylink_protocol::Address, proof| MsgSubmitBeacon {
        judge: judge.account(),
        epoch: 0,
        profile_digest: profile_digest.clone(),
        proof,
    };
    assert_eq!(bed.refused(&proof(GATEWAY, vec![])), ("tiqe", 2));
    assert_eq!(bed.refused(&proof(STRANGER, vec![])), ("tiqe", 10));
    assert_eq!(bed.refused(&proof(judge(0), vec![0; 79])), ("tiqe", 15));
    assert_eq!(bed.refused(&proof(judge(0), vec![0; 80])), ("tiqe", 15));
    assert_eq!(bed.refused(&altered(&proof(judge(0), vec![]), |m| m.profile_digest = vec![1; 32])), ("tiqe", 12));
    assert_eq!(bed.refused(&altered(&proof(judge(0), vec![]), |m| m.epoch = 1)), ("tiqe", 13));
    (0..3).for_each(|number| bed.submit_beacon(number, 0).unwrap());
    assert_eq!(bed.submit_beacon(0, 0).unwrap_err().code(), ("tiqe", 14));
    let other = MsgRegisterJudge { operator: PAYER.account(), ..register_judge(8) };
    assert_eq!(bed.commit_scores(0, 0, &Scores::default()).unwrap_err().code(), ("tiqe", 13));

    bed.until(1, 9);
    let round = bed.round(0);
    assert_eq!(round.seats.iter().map(|seat| seat.seats).collect::<Vec<_>>(), [10, 10, 10]);
    let (first, second, last) = (0, 1, 2);
    let good = Scores {
        scores: round
            .samples
            .iter()
            .map(|s| Score { sample: s.number, cross_bps: 5_000, ..Default::default() })
            .collect(),
    };
    let incomplete = altered(&good, |s| s.scores.truncate(s.scores.len() - 1));
    let doubled = altered(&good, |s| s.scores[1].sample = 0);
    assert_eq!(bed.commit_scores(3, 0, &good).unwrap_err().code(), ("tiqe", 16));
    let short = MsgCommitScores {
        judge: judge(first).account(),
        epoch: 0,
        profile_digest: bed.profile.to_vec(),
        commitment: vec![1],
    };
    assert_eq!(bed.refused(&short), ("tiqe", 17));
    bed.commit_scores(first, 0, &good).unwrap();
    assert_eq!(bed.commit_scores(first, 0, &good).unwrap_err().code(), ("tiqe", 14));
    assert_eq!(bed.reveal_scores(first, 0, &good).unwrap_err().code(), ("tiqe", 13));
    bed.commit_scores(second, 0, &incomplete).unwrap();

    bed.until(1, 14);
    assert_eq!(bed.reveal_scores(last, 0, &good).unwrap_err().code(), ("tiqe", 18));
    for wrong in [&incomplete, &doubled] {
        assert_eq!(bed.reveal_scores(first, 0, wrong).unwrap_err().code(), ("tiqe", 19));
    }
    for alter in
        [(|s: &mut Score| s.cross_bps = 10_001) as fn(&mut Score), |s| s.llm_bps = 1, |s| s.token_mismatches = 1]
    {
        let wrong = altered(&good, |s| alter(&mut s.scores[0]));
        assert_eq!(bed.reveal_scores(first, 0, &wrong).unwrap_err().code(), ("tiqe", 20));
    }
    assert_eq!(bed.reveal_scores(second, 0, &incomplete).unwrap_err().code(), ("tiqe", 20));
    bed.reveal_scores(first, 0, &good).unwrap();
    assert_eq!(bed.reveal_scores(first, 0, &good).unwrap_err().code(), ("tiqe", 14));
    assert!(bed.send(&other).is_ok());
}
