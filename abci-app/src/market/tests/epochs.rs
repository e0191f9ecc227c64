//! Whole epochs: who has what when an epoch's receipts are settled.

use polylink_protocol::market_v1::*;
use polylink_protocol::tiqe_v1::Score;
use polylink_protocol::{Address, Amount, DENOM};

use crate::bank::{self, Pool};
use crate::market::testbed::*;
use crate::market::{Kind, POT_RETENTION_EPOCHS, keys, records, vesting};
use crate::store::StateRead;

/// What an exact replay of an honest answer finds.
fn honest(_: u8, sample: u32) -> Score {
    Score {
        cross_bps: 8_000 + 100 * (sample % 4),
        evidence_milli: -500,
        replayed: true,
        tokens: 10,
        ..Default::default()
    }
}

fn pot_of(bed: &Bed, worker: &Address) -> Option<Pot> {
    records::pot(&bed.state, Kind::Audited, 0, &bed.profile, worker)
}

#[test]
fn an_answer_is_paid_audited_and_vests() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    assert_eq!(bed.balance(PAYER), FUNDS - 1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(5, 20_000)).unwrap();
    assert_eq!(bed.redeem(session, 0, 100_000, 5), Ok(Amount(100_000)));
    let supply = bank::supply(&bed.state, DENOM).0;
    let judges_before: Vec<u128> = (0..3).map(|number| bed.balance(judge(number))).collect();
    let events = bed.run_round(0, &[0, 1, 2], honest);
    assert!(events.iter().any(|event| event.kind == "settle"));
    assert!(events.iter().all(|event| event.attributes.iter().all(|(k, v)| !k.is_empty() && !v.is_empty())));

    // 100,000 paid: 10,000 burned, 5,000 minted, R = 95,000; royalty 4,750; R' = 90,250; judges 27,075; worker 63,175.
    let pot = bed.pot(0);
    let text = |a: &str| a.parse::<u128>().unwrap();
    assert!(pot.settled);
    assert_eq!(pot.alpha_bps, 10_000);
    assert_eq!(
        [&pot.paid, &pot.fees_burned, &pot.emission, &pot.royalty].map(|a| text(a)),
        [100_000, 10_000, 5_000, 4_750]
    );
    assert_eq!([&pot.judge_reward, &pot.worker_reward, &pot.withheld].map(|a| text(a)), [27_075, 63_175, 0]);
    assert_eq!(bed.balance(PROVIDER), FUNDS + 4_750);
    assert_eq!(bed.balance(Pool::MarketPots), 0);
    assert_eq!(bed.balance(Pool::MarketVesting), 63_175);
    let paid: u128 = (0..3).map(|n| bed.balance(judge(n)) - judges_before[usize::from(n)]).sum();
    assert_eq!(paid + bed.balance(Pool::Distribution), 27_075);
    assert_eq!(bank::supply(&bed.state, DENOM).0, supply + 5_000 - 10_000);
    let epoch = bed.ask(&QueryEpochRequest { number: 1, current: false }).unwrap().epoch.unwrap();
    assert_eq!((epoch.minted.as_str(), epoch.burned.as_str()), ("5000", "10000"));

    // Released in eight parts over the next eight epochs.
    let worker = bed.balance(WORKER);
    bed.until(2, 1);
    assert_eq!(bed.balance(WORKER) - worker, 7_896);
    assert_eq!(vesting::of(&bed.state, &WORKER, 2).end_epoch, 9);
    bed.until(9, 1);
    assert_eq!(bed.balance(WORKER) - worker, 63_175);
    assert_eq!(bed.balance(Pool::MarketVesting), 0);
}

#[test]
fn nothing_is_paid_beyond_the_commitment_and_late_money_has_one_more_epoch() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    bed.until(1, 1);
    // 10,000 of the 30,000 are not committed to.
    bed.commit(0, root(2, 10_000)).unwrap();
    bed.redeem(session, 0, 30_000, 3).unwrap();
    bed.run_round(0, &[0, 1, 2], honest);
    let first = bed.pot(0);
    assert_eq!((first.paid.as_str(), first.carried_out.as_str(), first.expired.as_str()), ("20000", "10000", "0"));
    // The next epoch commits to just what it redeems: the carried money is burned.
    bed.until(2, 1);
    bed.commit(1, root(1, 7_000)).unwrap();
    bed.redeem(session, 1, 37_000, 4).unwrap();
    bed.run_round(1, &[0, 1, 2], honest);
    let second = bed.pot(1);
    assert_eq!((second.paid.as_str(), second.carried_in.as_str(), second.expired.as_str()), ("7000", "10000", "10000"));
}

#[test]
fn a_voucher_one_epoch_late_is_covered_by_what_was_committed() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(2, 10_000)).unwrap();
    bed.redeem(session, 0, 5_000, 1).unwrap();
    bed.run_round(0, &[0, 1, 2], honest);
    bed.until(2, 1);
    bed.commit(1, root(1, 1_000)).unwrap();
    // The rest of epoch 0 and epoch 1 in one voucher.
    bed.redeem(session, 1, 21_000, 3).unwrap();
    bed.run_round(1, &[0, 1, 2], honest);
    assert_eq!((bed.pot(1).paid.as_str(), bed.pot(1).allowance.as_str()), ("16000", "15000"));
}

#[test]
fn without_a_commitment_nothing_is_paid() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    bed.redeem(session, 0, 30_000, 3).unwrap();
    let burned = bank::flows(&bed.state, DENOM).1;
    bed.until(3, 0);
    assert_eq!(bed.pot(0).paid, "0");
    assert_eq!((bed.pot(1).carried_in.as_str(), bed.pot(1).expired.as_str()), ("30000", "30000"));
    assert_eq!(bank::flows(&bed.state, DENOM).1.0 - burned.0, 30_000);
    assert_eq!(bed.balance(Pool::MarketVesting), 0);
}

#[test]
fn a_postponed_round_pays_by_the_average() {
    let mut bed = Bed::new(3);
    let session = bed.open_session(1_000_000);
    bed.until(1, 1);
    bed.commit(0, root(2, 10_000)).unwrap();
    bed.redeem(session, 0, 20_000, 2).unwrap();
    bed.until(1, 6);
    bed.submit_beacon(0, 0).unwrap();
    bed.until(1, 19);
    // Never audited: half of everything; nobody judged, so that the judges' share is burned too.
    let pot = bed.pot(0);
    assert!(pot.settled);
    assert_eq!((pot.alpha_bps, pot.judge_reward.as_str()), (5_000, "0"));
    assert_eq!(pot.worker_reward, "6317");
}

#[test]
fn a_gateway_is_paid_directly_and_the_rest_goes_back() {
    let mut bed = Bed::new(0);
    let message = MsgOpenSession {
        payer: PAYER.account(),
        payee: GATEWAY.account(),
        spend_key: spend_key().public_key().to_vec(),
        deposit: "1000".into(),
        cap: "600".into(),
        window: 1,
        expiry_epoch: 3,
        ..Default::default()
    };
    let session = bed.send(&message).unwrap().session;
    let redeem =
        |amount, count| MsgRedeem { payee: GATEWAY.account(), voucher: Some(voucher(session, 0, amount, count)) };
    assert_eq!(bed.refused(&redeem(601, 1)), ("market", 33));
    bed.send(&redeem(600, 1)).unwrap();
    assert_eq!(bed.balance(GATEWAY), FUNDS + 600);
    bed.send(&MsgTopUp { payer: PAYER.account(), session, amount: "50".into(), cap: String::new() }).unwrap();
    assert_eq!(bed.refused(&redeem(651, 2)), ("market", 33));
    let close = MsgCloseSession { signer: GATEWAY.account(), session, voucher: Some(voucher(session, 0, 650, 2)) };
    assert_eq!(bed.send(&close).unwrap().refund, "400");
    assert_eq!(bed.balance(PAYER), FUNDS - 650);
    bed.check_books();
}

#[test]
fn a_bond_comes_back_after_the_unbonding() {
    let mut bed = Bed::with(0, |genesis| genesis.market.params.unbonding_epochs = 2);
    bed.until(1, 3);
    let message = MsgUnbond { operator: WORKER.account(), amount: "100000000".into() };
    assert_eq!(bed.send(&message).unwrap().release_epoch, 3);
    let payee = MsgOpenSession { payer: PAYER.account(), ..Default::default() };
    assert!(bed.send(&payee).is_err());
    bed.until(2, 19);
    assert_eq!(bed.balance(WORKER), FUNDS - 100_000_000);
    bed.until(3, 1);
    assert_eq!(bed.balance(WORKER), FUNDS);
    assert!(records::worker(&bed.state, &WORKER).unwrap().unbonding.is_empty());
}

#[test]
fn pots_are_settled_a_bounded_number_per_block() {
    let operators: Vec<_> = (0..5).map(|number| polylink_protocol::Address([210 + number; 20])).collect();
    let mut bed = Bed::with(3, |genesis| genesis.market.params.max_pots_settled_per_block = 2);
    for operator in &operators {
        bank::transfer(&mut bed.ctx, &mut bed.state, STRANGER, *operator, Amount(100_000_000)).unwrap();
        bed.send(&register_worker(*operator)).unwrap();
        bed.open_session_with(*operator, 10);
    }
    bed.until(1, 1);
    for operator in &operators {
        let (profile_digest, root) = (bed.profile.to_vec(), Some(root(1, 10)));
        let (operator, private_root) = (operator.account(), None);
        bed.send(&MsgCommitReceipts { operator, epoch: 0, profile_digest, root, private_root }).unwrap();
    }
    let settled = |bed: &Bed| operators.iter().filter(|o| pot_of(bed, o).unwrap().settled).count();
    bed.run_round(0, &[0, 1, 2], honest);
    // Reveals end with the block at offset 17; so far the blocks 17 and 18 have settled.
    assert_eq!(settled(&bed), 4);
    bed.block();
    assert_eq!(settled(&bed), 5);
}

#[test]
fn what_is_past_its_retention_is_dropped() {
    let mut bed = Bed::with(0, |genesis| {
        let params = &mut genesis.market.params;
        (params.epoch_blocks, params.receipts_window_blocks, params.beacon_window_blocks) = (5, 1, 1);
        (params.commit_window_blocks, params.reveal_window_blocks) = (1, 1);
    });
    bed.until(1, 0);
    bed.commit(0, root(0, 0)).unwrap();
    assert!(pot_of(&bed, &WORKER).is_some());
    // Epoch 0 has a pot; its totals, at which the next epoch's minting and burning begins, are kept as long.
    let ask = |number| QueryEpochRequest { number, current: false };
    let first = bed.ask(&ask(1)).unwrap().epoch;
    bed.until(POT_RETENTION_EPOCHS, 4);
    assert!(pot_of(&bed, &WORKER).is_some());
    assert!(bed.state.get(&keys::epoch(0)).is_some());
    bed.until(POT_RETENTION_EPOCHS + 1, 1);
    assert!(pot_of(&bed, &WORKER).is_none());
    assert_eq!(bed.state.iter_prefix(&[keys::EPOCH]).count() as u64, POT_RETENTION_EPOCHS + 1);
    assert!(bed.ask(&ask(0)).unwrap_err().to_string().contains("NotFound"));
    assert_eq!(bed.ask(&ask(1)).unwrap().epoch, first, "what is kept still says what its epoch minted and burned");
}

#[test]
fn queries_are_paged_and_say_what_is_missing() {
    let mut bed = Bed::new(0);
    for _ in 0..5 {
        bed.open_session(10);
    }
    let page = |key: Vec<u8>| QuerySessionsRequest {
        payer: PAYER.account(),
        payee: WORKER.account(),
        pagination: Some(PageRequest { key, limit: 3 }),
    };
    let first = bed.ask(&page(vec![])).unwrap();
    let second = bed.ask(&page(first.pagination.unwrap().next_key)).unwrap();
    assert_eq!((first.sessions.len(), second.sessions.len()), (3, 2));
    assert!(second.pagination.unwrap().next_key.is_empty());
    let by_profile = QueryWorkersRequest { profile_digest: bed.profile.to_vec(), pagination: None };
    assert_eq!(bed.ask(&by_profile).unwrap().workers.len(), 1);
    let missing = bed.ask(&QuerySessionRequest { session: 99 }).unwrap_err().to_string();
    assert_eq!(missing, "rpc error: code = NotFound desc = session 99: key not found");
    assert!(
        bed.ask(&QueryModelRequest { profile_digest: vec![1] }).unwrap_err().to_string().contains("InvalidArgument")
    );
    assert_eq!(
        bed.ask(&QueryPriceRequest { profile_digest: bed.profile.to_vec(), epoch: 0 }).unwrap().price,
        Some(price())
    );
}
