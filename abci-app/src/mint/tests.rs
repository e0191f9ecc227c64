//! Tests of the mint: inflation by the bonded share, within its bounds, down to the micro-unit.

mod random;

use polylink_protocol::cosmos::cosmos::mint::v1beta1::*;
use polylink_protocol::{Amount, DENOM, Dec, Message};

use super::{Params, next_inflation};
use crate::bank::{self, Pool};
use crate::testing::{TestChain, genesis};

fn ask<Q: Message, R: Message + Default>(chain: &TestChain, method: &str, request: Q) -> R {
    chain.query(&format!("/cosmos.mint.v1beta1.Query/{method}"), &request).unwrap()
}

fn params() -> Params {
    let text = |bps| Dec::from_bps(bps).to_atomics_string();
    Params {
        mint_denom: DENOM.into(),
        inflation_rate_change: text(1_300),
        inflation_max: text(2_000),
        inflation_min: text(700),
        goal_bonded: text(6_700),
        blocks_per_year: 10,
    }
}

#[test]
fn inflation_moves_towards_the_goal_and_stays_in_its_bounds() {
    let bps = Dec::from_bps;
    for (name, inflation, bonded, expected) in [
        ("nothing bonded: up by a tenth of 13 %", bps(1_000), bps(0), bps(1_130)),
        ("at the goal", bps(1_000), bps(6_700), bps(1_000)),
        // 1 − 0.335 / 0.67 = 0.5 of the way.
        ("half of the goal", bps(1_000), bps(3_350), bps(1_065)),
        // 1.34 / 0.67 − 1 = 1, were that possible.
        ("twice the goal", bps(1_000), bps(13_400), bps(870)),
        ("at the top", bps(1_999), bps(0), bps(2_000)),
        ("at the bottom", bps(701), bps(13_400), bps(700)),
    ] {
        assert_eq!(next_inflation(&params(), inflation, bonded), Some(expected), "{name}");
    }
}

#[test]
fn what_is_minted_is_distributed_and_counted() {
    let mut start = genesis(0);
    start.mint.inflation_bps = 1_000;
    start.mint.inflation_min_bps = 1_000;
    start.mint.inflation_max_bps = 1_000;
    start.mint.blocks_per_year = 1_000;
    let mut chain = TestChain::start(&start);
    chain.advance(1);
    // 10 % of 2,000 PLK in a year of 1,000 blocks.
    assert_eq!(chain.checked_supply(), Amount(2_000_200_000));
    assert_eq!(chain.balance(Pool::FeeCollector), Amount(200_000));
    chain.advance(1);
    assert_eq!(bank::flows(&chain.state(), DENOM).0, Amount(400_020));
    // The first block has no signatures to distribute by: its part comes with the second's.
    assert_eq!((chain.balance(Pool::FeeCollector), chain.balance(Pool::Distribution)), (Amount(0), Amount(400_020)));
    assert_eq!(chain.checked_supply(), Amount(2_000_400_020));
    let event = chain.block_events.iter().find(|event| event.r#type == "mint").unwrap();
    assert_eq!(event.attributes.last().map(|a| a.value.as_str()), Some("200020"));
    let answer: QueryInflationResponse = ask(&chain, "Inflation", QueryInflationRequest {});
    assert_eq!(answer.inflation, b"100000000000000000");
    let answer: QueryAnnualProvisionsResponse = ask(&chain, "AnnualProvisions", QueryAnnualProvisionsRequest {});
    assert_eq!(answer.annual_provisions, b"200020000000000000000000000");
    let answer: QueryParamsResponse = ask(&chain, "Params", QueryParamsRequest {});
    assert_eq!(answer.params.unwrap().blocks_per_year, 1_000);
}

#[test]
fn nothing_is_minted_where_genesis_does_not_ask_for_it() {
    let mut chain = TestChain::start(&genesis(0));
    chain.advance(3);
    assert_eq!(chain.checked_supply(), Amount(2_000_000_000));
    let answer: QueryInflationResponse = ask(&chain, "Inflation", QueryInflationRequest {});
    assert_eq!(answer.inflation, b"0");
}
