//! The places of a profile: who holds one, who loses it, who comes back.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::*;
use polylink_protocol::tiqe::VrfKey;
use polylink_protocol::tiqe_v1::{MsgRegisterJudge, QueryJudgesRequest};
use polylink_protocol::{Address, Amount};

use crate::bank;
use crate::market::testbed::*;
use crate::market::{POT_RETENTION_EPOCHS, WORKERS_PER_PROFILE_MAX, records, workers};
use crate::tiqe::JUDGES_PER_PROFILE_MAX;

fn fund(bed: &mut Bed, who: Address, amount: u128) {
    bank::transfer(&mut bed.ctx, &mut bed.state, PAYER, who, Amount(amount)).unwrap();
}

/// The workers that gateways find.
fn found(bed: &Bed) -> Vec<String> {
    let pagination = Some(PageRequest { key: vec![], limit: 1_000 });
    let request = QueryWorkersRequest { profile_digest: bed.profile.to_vec(), pagination };
    bed.ask(&request).unwrap().workers.into_iter().map(|worker| worker.operator).collect()
}

fn newcomer(number: u8) -> Address {
    Address([130 + number; 20])
}

fn offers_in(bed: &Bed, who: &Address, epoch: u64) -> bool {
    workers::offers(&records::worker(&bed.state, who).unwrap(), &bed.profile, epoch)
}

#[test]
fn a_full_profile_belongs_to_the_most_bonded() {
    let mut bed = Bed::new(0);
    // Worker 0 has the least bond, the others a little more each; the worker of genesis is one of them.
    for number in 1..WORKERS_PER_PROFILE_MAX as u8 {
        let bond = 100_000_000 + u128::from(number);
        fund(&mut bed, newcomer(number), bond);
        bed.send(&MsgRegisterWorker { bond: bond.to_string(), ..register_worker(newcomer(number)) }).unwrap();
    }
    assert_eq!(found(&bed).len(), WORKERS_PER_PROFILE_MAX);
    // Squatting: as much as the least is not enough, one uplk more is.
    let squatter = register_worker(GATEWAY);
    assert_eq!(bed.refused(&squatter), ("market", 15));
    bed.send(&MsgRegisterWorker { bond: "100000001".into(), ..squatter }).unwrap();
    let now = found(&bed);
    assert_eq!(now.len(), WORKERS_PER_PROFILE_MAX);
    assert!(now.contains(&GATEWAY.account()) && !now.contains(&WORKER.account()));
    // What the displaced worker offered ends with the epoch; it may bond more and come back, in the place of the least.
    assert_eq!([0, 1].map(|epoch| offers_in(&bed, &WORKER, epoch)), [true, false]);
    let offers = register_worker(WORKER).offers;
    let back = MsgUpdateWorker { operator: WORKER.account(), offers, ..Default::default() };
    assert_eq!(bed.refused(&back), ("market", 15));
    bed.send(&MsgBond { operator: WORKER.account(), amount: "1000".into() }).unwrap();
    bed.send(&back).unwrap();
    assert_eq!(found(&bed).len(), WORKERS_PER_PROFILE_MAX);
    assert!(found(&bed).contains(&WORKER.account()));
    // Of the two with 100,000,001 the one with the higher address left.
    assert!(found(&bed).contains(&GATEWAY.account()) && !found(&bed).contains(&newcomer(1).account()));
    assert!(offers_in(&bed, &WORKER, 1));
}

#[test]
fn without_its_bond_a_worker_has_no_place() {
    let mut bed = Bed::new(0);
    bed.until(1, 1);
    bed.send(&MsgUnbond { operator: WORKER.account(), amount: "100000000".into() }).unwrap();
    assert!(found(&bed).is_empty());
    assert_eq!([1, 2].map(|epoch| offers_in(&bed, &WORKER, epoch)), [true, false]);
    // It may move its endpoint still, but offer nothing.
    let endpoint = "http://127.0.0.1:9009".to_string();
    let moved = MsgUpdateWorker { operator: WORKER.account(), endpoint: endpoint.clone(), ..Default::default() };
    bed.send(&moved).unwrap();
    assert_eq!(records::worker(&bed.state, &WORKER).unwrap().endpoint, endpoint);
    let update =
        MsgUpdateWorker { operator: WORKER.account(), offers: register_worker(WORKER).offers, ..Default::default() };
    assert_eq!(bed.refused(&update), ("market", 13));
    bed.send(&MsgBond { operator: WORKER.account(), amount: "100000000".into() }).unwrap();
    assert!(found(&bed).is_empty(), "the bond alone says nothing of what it offers");
    bed.send(&update).unwrap();
    assert_eq!((found(&bed).len(), offers_in(&bed, &WORKER, 2)), (1, true));
}

#[test]
fn without_its_bond_a_worker_is_paid_for_what_it_served_before_and_for_nothing_else() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000);
    bed.until(1, 1);
    bed.send(&MsgUnbond { operator: WORKER.account(), amount: "100000000".into() }).unwrap();
    bed.until(2, 1);
    bed.commit(1, root(1, 400)).unwrap();
    // Too late for the pot of epoch 1: the money goes into one of an epoch in which nothing was offered.
    bed.until(2, 18);
    bed.redeem(session, 1, 400, 1).unwrap();
    // A payer in league with it signs for an answer of that epoch, which no bond stands behind.
    bed.until(3, 1);
    bed.redeem(session, 2, 1_000, 2).unwrap();
    let commit = MsgCommitReceipts {
        operator: WORKER.account(),
        epoch: 2,
        profile_digest: bed.profile.to_vec(),
        root: Some(root(1, 600)),
        private_root: None,
    };
    assert_eq!(bed.refused(&commit), ("market", 12));
    bed.until(4, 0);
    let pot = bed.pot(2);
    assert!(pot.settled && bed.pot(1).settled);
    assert_eq!([pot.redeemed, pot.paid, pot.carried_out].map(|a| a.parse::<u128>().unwrap()), [1_000, 400, 600]);
    assert!(pot.alpha_bps <= bed.pot(1).alpha_bps, "paid by the quality of the epoch that was served");
    bed.until(5, 0);
    let pot = bed.pot(3);
    assert_eq!((pot.settled, pot.paid.as_str(), pot.expired.as_str()), (true, "0", "600"), "burned");
}

#[test]
fn nobody_opens_a_session_for_an_offer_that_is_about_to_end() {
    let mut bed = Bed::new(0);
    let mut message = register_model();
    message.profile.as_mut().unwrap().id = "polylink/pico@1".into();
    let pico = bed.send(&message).unwrap().profile_digest;
    let mut offers = register_worker(WORKER).offers;
    offers[0].profile_digest.clone_from(&pico);
    bed.send(&MsgUpdateWorker { operator: WORKER.account(), offers, ..Default::default() }).unwrap();
    let open = |profile_digest| MsgOpenSession {
        payer: PAYER.account(),
        payee: WORKER.account(),
        spend_key: spend_key().public_key().to_vec(),
        deposit: "10".into(),
        window: 8,
        expiry_epoch: 9,
        profile_digest,
        ..Default::default()
    };
    let nano = bed.profile.to_vec();
    assert_eq!(bed.refused(&open(nano)), ("market", 19));
    bed.send(&open(pico)).unwrap();
}

#[test]
fn a_convicted_worker_has_no_place() {
    let mut bed = Bed::new(0);
    bed.convict(WORKER, 5_000);
    assert!(found(&bed).is_empty());
    let update =
        MsgUpdateWorker { operator: WORKER.account(), offers: register_worker(WORKER).offers, ..Default::default() };
    assert_eq!(bed.refused(&update), ("market", 14));
}

#[test]
fn judges_hold_their_places_by_bond_too() {
    let mut bed = Bed::new(0);
    let judge = |number: u8, tickets| MsgRegisterJudge {
        operator: newcomer(number).account(),
        vrf_key: VrfKey::from_bytes(&[number + 1; 32]).public_key().to_vec(),
        disclosure_key: ServiceKey::from_bytes(&[number + 1; 32]).public_key().to_vec(),
        tickets,
        ..register_judge(0)
    };
    for number in 0..=JUDGES_PER_PROFILE_MAX as u8 {
        fund(&mut bed, newcomer(number), 30_000_000);
    }
    for number in 0..JUDGES_PER_PROFILE_MAX as u8 {
        bed.send(&judge(number, if number == 5 { 1 } else { 2 })).unwrap();
    }
    let late = JUDGES_PER_PROFILE_MAX as u8;
    assert_eq!(bed.refused(&judge(late, 1)), ("tiqe", 8));
    bed.send(&judge(late, 2)).unwrap();
    let judges = bed.ask(&QueryJudgesRequest {}).unwrap().judges;
    let without: Vec<_> =
        judges.iter().filter(|judge| judge.profiles.is_empty()).map(|judge| &judge.operator).collect();
    assert_eq!(without, [&newcomer(5).account()]);
}

#[test]
fn closed_sessions_are_dropped_after_their_retention() {
    let mut bed = Bed::with(0, |genesis| {
        let params = &mut genesis.market.params;
        (params.epoch_blocks, params.receipts_window_blocks, params.beacon_window_blocks) = (5, 1, 1);
        (params.commit_window_blocks, params.reveal_window_blocks) = (1, 1);
    });
    let (kept, closed) = (bed.open_session(10), bed.open_session(10));
    bed.send(&MsgCloseSession { signer: WORKER.account(), session: closed, voucher: None }).unwrap();
    bed.until(POT_RETENTION_EPOCHS, 4);
    assert!(records::session(&bed.state, closed).is_some());
    bed.until(POT_RETENTION_EPOCHS + 1, 1);
    assert!(records::session(&bed.state, closed).is_none() && records::session(&bed.state, kept).is_some());
    let all = QuerySessionsRequest { payer: PAYER.account(), ..Default::default() };
    assert_eq!(bed.ask(&all).unwrap().sessions.len(), 1);
}
