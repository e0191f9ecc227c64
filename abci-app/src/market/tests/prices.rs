//! Prices by utilisation on the ledger: what counts as use, when a price holds, who gets a turn when.

use polylink_protocol::market_v1::*;
use polylink_protocol::{Address, Amount, DENOM, Digest};

use crate::bank;
use crate::market::testbed::*;
use crate::market::{POT_RETENTION_EPOCHS, keys, price, prices, records};
use crate::store::StateRead;

/// All of the worker's capacity at the registered price of computed prompt tokens: 1,000,000 uplk for 1,000,000 tokens.
const ALL: u64 = 1_000_000;

fn sums(tokens: u64, amount: u128) -> SumNode {
    SumNode { hash: vec![1; 32], count: 1, tokens, amount: amount.to_string() }
}

/// Commits to tokens for an amount in an epoch, and has a part of it paid, in the epoch after; goes on to the one after that.
fn use_epoch(bed: &mut Bed, session: u64, tokens: u64, amount: u128, paid: u128) {
    let epoch = bed.ctx.epoch;
    bed.until(epoch + 1, 2);
    bed.commit(epoch, sums(tokens, amount)).unwrap();
    if paid > 0 {
        let record = records::session(&bed.state, session).unwrap();
        let (before, count) = (records::uplk(&record.redeemed).0, record.redeemed_count);
        bed.redeem(session, epoch, before + paid, count + 1).unwrap();
    }
    bed.until(epoch + 1, 18);
}

fn price_of(bed: &Bed, epoch: u64) -> QueryPriceResponse {
    bed.ask(&QueryPriceRequest { profile_digest: bed.profile.to_vec(), epoch }).unwrap()
}

fn scaled(level: u64) -> TokenPrices {
    price::at_level(&price(), level)
}

#[test]
fn a_full_epoch_raises_the_price_of_the_one_after_the_next_and_idle_ones_lower_it() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(100_000_000);
    use_epoch(&mut bed, session, ALL, ALL.into(), ALL.into());
    // Fixed before it holds: epoch 1 runs still.
    assert_eq!(price_of(&bed, 1).price, Some(price()));
    let next = price_of(&bed, 2);
    assert_eq!(next.price, Some(scaled(1_125_000_000)));
    let record = next.record.unwrap();
    assert_eq!(
        (record.used_epoch, record.paid_tokens, record.capacity_tokens, record.utilization_bps),
        (0, ALL, ALL, 10_000)
    );
    // Half used: it stays. Nothing used, twice.
    use_epoch(&mut bed, session, ALL / 2, u128::from(ALL), u128::from(ALL));
    use_epoch(&mut bed, session, 0, 0, 0);
    bed.until(4, 18);
    for (epoch, level) in [(2, 1_125_000_000), (3, 1_125_000_000), (4, 984_375_000), (5, 861_328_125)] {
        assert_eq!(price_of(&bed, epoch).price, Some(scaled(level)), "epoch {epoch}");
    }
    // Current, past, first, and not fixed yet.
    assert_eq!(price_of(&bed, 0).epoch, 4);
    assert_eq!(price_of(&bed, 1).price, Some(price()), "before the first record");
    let later = QueryPriceRequest { profile_digest: bed.profile.to_vec(), epoch: 6 };
    assert!(bed.ask(&later).unwrap_err().to_string().contains("NotFound"));
    let history = QueryPriceHistoryRequest {
        profile_digest: bed.profile.to_vec(),
        pagination: Some(PageRequest { key: vec![], limit: 3 }),
    };
    let page = bed.ask(&history).unwrap();
    assert_eq!(
        page.prices.iter().map(|p| (p.epoch, p.level)).collect::<Vec<_>>(),
        [(2, 1_125_000_000), (3, 1_125_000_000), (4, 984_375_000)]
    );
    let key = page.pagination.unwrap().next_key;
    let rest = QueryPriceHistoryRequest { pagination: Some(PageRequest { key, limit: 3 }), ..history };
    assert_eq!(bed.ask(&rest).unwrap().prices.iter().map(|p| p.epoch).collect::<Vec<_>>(), [5]);
}

#[test]
fn a_pot_is_charged_at_its_own_epochs_price() {
    let mut bed = Bed::with(0, |genesis| {
        let ask = TokenPrices { prompt: 1, cached_prompt: 1, completion: 1 };
        genesis.market.workers[0].offers[0].ask = Some(ask);
    });
    for (epoch, level) in [(0, price::LEVEL_ONE), (1, price::LEVEL_ONE), (2, 875_000_000), (3, 765_625_000)] {
        bed.until(epoch + 1, 4);
        bed.commit(epoch, root(0, 0)).unwrap();
        assert_eq!(bed.pot(epoch).price, Some(scaled(level)), "epoch {epoch}");
    }
    let model = records::model(&bed.state, &bed.profile).unwrap();
    assert!(model.prices.len() <= 4, "what no pot needs is dropped: {:?}", model.prices);
}

#[test]
fn what_carries_no_burn_does_not_lift_the_price() {
    // Receipts that nobody pays for; paid ones of tokens that were found in the cache; ones at half of what is committed.
    for (tokens, amount, paid, counted) in [
        (ALL, u128::from(ALL), 0, 0),
        (ALL, u128::from(ALL) / 10, u128::from(ALL) / 10, ALL / 10),
        (ALL, u128::from(ALL), u128::from(ALL) / 2, ALL / 2),
        (100 * ALL, u128::from(ALL) / 100, u128::from(ALL) / 100, ALL / 100),
    ] {
        let mut bed = Bed::new(0);
        let session = bed.open_session(100_000_000);
        use_epoch(&mut bed, session, tokens, amount, paid);
        let record = price_of(&bed, 2).record.unwrap();
        assert_eq!(record.paid_tokens, counted, "{tokens} tokens for {amount}, {paid} paid");
        assert!(record.level <= price::LEVEL_ONE);
    }
    // Who pays itself for a full epoch moves the price by one step, and a twentieth of the money is gone: a tenth is
    // burned, half of which comes back as emission.
    let mut bed = Bed::new(3);
    let session = bed.open_session(100_000_000);
    let before = bank::supply(&bed.state, DENOM).0;
    use_epoch(&mut bed, session, ALL, ALL.into(), ALL.into());
    bed.block();
    assert_eq!(price_of(&bed, 2).price, Some(scaled(1_125_000_000)));
    assert!(before - bank::supply(&bed.state, DENOM).0 >= u128::from(ALL) / 20);
}

#[test]
fn capacity_is_what_bonds_back_and_convicted_workers_count_for_nothing() {
    let mut bed = Bed::with(0, |genesis| {
        // 100 PLK back 1,000,000 tokens; this one declares ten times as much. Another one is idle.
        genesis.market.workers[0].offers[0].capacity_tokens_per_epoch = 10_000_000;
        genesis.market.workers.push(register_worker(GATEWAY));
    });
    let session = bed.open_session(100_000_000);
    use_epoch(&mut bed, session, 900_000, 900_000, 900_000);
    let record = price_of(&bed, 2).record.unwrap();
    assert_eq!((record.paid_tokens, record.capacity_tokens, record.utilization_bps), (900_000, 2_000_000, 4_500));
    bed.convict(WORKER, 10_000);
    bed.until(2, 18);
    let record = price_of(&bed, 3).record.unwrap();
    assert_eq!((record.paid_tokens, record.capacity_tokens), (0, 1_000_000));
}

#[test]
fn every_profile_has_its_turn_however_many_there_are() {
    let workers: Vec<Address> = (0..3).map(|number| Address([210 + number; 20])).collect();
    let mut bed = Bed::new(0);
    let mut profiles: Vec<Digest> = vec![];
    for number in 0..48 {
        let mut message = register_model();
        message.profile.as_mut().unwrap().id = format!("polylink/nano@{}", number + 2);
        profiles.push(Digest::from_slice(&bed.send(&message).unwrap().profile_digest).unwrap());
    }
    for (worker, profiles) in workers.iter().zip(profiles.chunks(16)) {
        bank::transfer(&mut bed.ctx, &mut bed.state, STRANGER, *worker, Amount(100_000_000)).unwrap();
        let offer = |profile: &Digest| Offer {
            profile_digest: profile.to_vec(),
            ask: Some(price()),
            capacity_tokens_per_epoch: 1_000,
        };
        let offers = profiles.iter().map(offer).collect();
        bed.send(&MsgRegisterWorker { offers, ..register_worker(*worker) }).unwrap();
    }
    profiles.push(bed.profile);
    // Blocks 17, 18 and 19 of an epoch give turns: 49 profiles need four.
    let mut turned = std::collections::BTreeMap::new();
    for _ in 0..2 * bed.ctx.epoch_blocks + 3 * bed.ctx.epoch_blocks {
        let events = bed.block();
        let prices: Vec<_> = events.iter().filter(|event| event.kind == "price").collect();
        assert!(prices.len() <= prices::TURNS_PER_BLOCK);
        for event in prices {
            *turned.entry(event.attributes[0].1.clone()).or_insert(0) += 1;
        }
    }
    let count = |profile: &Digest| turned.get(&profile.to_string()).copied().unwrap_or(0);
    let counts: Vec<usize> = profiles.iter().map(count).collect();
    assert!(counts.iter().all(|count| (2..=4).contains(count)), "{counts:?}");
}

#[test]
fn the_history_is_dropped_after_its_retention_and_fixed_prices_have_none() {
    let short = |genesis: &mut crate::genesis::Genesis| {
        let params = &mut genesis.market.params;
        (params.epoch_blocks, params.receipts_window_blocks, params.beacon_window_blocks) = (5, 1, 1);
        (params.commit_window_blocks, params.reveal_window_blocks) = (1, 1);
    };
    let mut bed = Bed::with(0, short);
    bed.until(POT_RETENTION_EPOCHS + 20, 4);
    let count = bed.state.iter_prefix(&[keys::PRICE]).count() as u64;
    assert!((POT_RETENTION_EPOCHS..=POT_RETENTION_EPOCHS + 3).contains(&count), "{count}");
    assert_eq!(price_of(&bed, 0).price, Some(scaled(price::LEVEL_ONE / 10)));
    let dropped = QueryPriceRequest { profile_digest: bed.profile.to_vec(), epoch: 3 };
    assert!(bed.ask(&dropped).unwrap_err().to_string().contains("NotFound"));

    let mut bed = Bed::with(0, |genesis| {
        short(genesis);
        genesis.market.params.price_gain_bps = 0;
    });
    bed.until(9, 0);
    assert_eq!(bed.state.iter_prefix(&[keys::PRICE]).count(), 0);
    assert_eq!(price_of(&bed, 0).price, Some(price()));
}

#[test]
fn parameters_that_a_document_does_not_name_are_the_defaults() {
    let named = r#"{"params": {"version": 1, "epoch_blocks": 40, "fee_burn_bps": 7}}"#;
    let genesis: crate::market::MarketGenesis = serde_json::from_str(named).unwrap();
    let expected = Params { epoch_blocks: 40, fee_burn_bps: 7, ..crate::market::params::default() };
    assert_eq!(genesis.params, expected);
    assert!(serde_json::from_str::<crate::market::MarketGenesis>(r#"{"params": {"epoch_blox": 40}}"#).is_err());
    let whole = serde_json::to_string(&genesis).unwrap();
    assert_eq!(serde_json::from_str::<crate::market::MarketGenesis>(&whole).unwrap(), genesis);
}
