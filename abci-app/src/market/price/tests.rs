//! The price's arithmetic, and simulations of a market under it.

use super::*;
use crate::market::params;

const REGISTERED: TokenPrices = TokenPrices { prompt: 10_000, cached_prompt: 2_500, completion: 30_000 };

#[test]
fn outside_of_the_band_the_price_moves_by_the_gain_and_never_by_more_than_a_step() {
    let params = params::default();
    let next = |bps| next_level(LEVEL_ONE, bps, &REGISTERED, &params);
    for (utilization_bps, level) in [
        (0, 875_000_000),
        (2_000, 937_500_000),
        (3_999, 999_968_750),
        (4_000, LEVEL_ONE),
        (5_000, LEVEL_ONE),
        (6_000, LEVEL_ONE),
        (6_001, 1_000_031_250),
        (8_000, 1_062_500_000),
        (10_000, 1_125_000_000),
    ] {
        assert_eq!(next(utilization_bps), level, "{utilization_bps}");
    }
    let steep = Params { price_gain_bps: 100_000, ..params.clone() };
    assert_eq!(next_level(LEVEL_ONE, 10_000, &REGISTERED, &steep), 1_125_000_000, "one step");
    assert_eq!(next_level(LEVEL_ONE, 0, &REGISTERED, &steep), 875_000_000);
    // Floor and ceiling, from beyond them too.
    assert_eq!(next_level(101_000_000, 0, &REGISTERED, &params), 100_000_000);
    assert_eq!(next_level(7, 5_000, &REGISTERED, &params), 100_000_000);
    let top = LEVEL_ONE * (PRICE_MAX / 30_000) + LEVEL_ONE / 3;
    assert_eq!(next_level(top - 1, 10_000, &REGISTERED, &params), top);
    assert_eq!(at_level(&REGISTERED, top).completion, PRICE_MAX - 1, "rounded down");
    let cheapest = TokenPrices { prompt: 1, cached_prompt: 0, completion: 1 };
    assert_eq!(next_level(u64::MAX, 10_000, &cheapest, &params), u64::MAX);
    assert_eq!(at_level(&cheapest, u64::MAX).prompt, u64::MAX / LEVEL_ONE);
    assert_eq!(at_level(&cheapest, 1), cheapest, "a computed token is never free");
    assert_eq!(
        at_level(&REGISTERED, 500_000_000),
        TokenPrices { prompt: 5_000, cached_prompt: 1_250, completion: 15_000 }
    );
}

#[test]
fn a_token_counts_by_what_was_paid_for_it() {
    // 1,000 computed prompt tokens for 10,000 uplk; of them half were paid; all, and more; nothing was committed.
    for (committed, redeemed, tokens) in
        [(10_000, 10_000, 1_000), (10_000, 5_000, 500), (10_000, 99_999, 1_000), (0, 9, 0)]
    {
        assert_eq!(paid_tokens(1_000, Amount(committed), Amount(redeemed), &REGISTERED), tokens);
    }
    // Found in the cache for a quarter, or for nothing; dear completion counts once.
    assert_eq!(paid_tokens(1_000, Amount(2_500), Amount(2_500), &REGISTERED), 250);
    assert_eq!(paid_tokens(u64::MAX, Amount(1), Amount(1), &REGISTERED), 0);
    assert_eq!(paid_tokens(1_000, Amount(30_000), Amount(30_000), &REGISTERED), 1_000);
    assert_eq!(paid_tokens(u64::MAX, Amount(u128::MAX / 2), Amount(u128::MAX), &REGISTERED), u64::MAX);
}

#[test]
fn a_bond_backs_the_capacity_of_all_offers_together() {
    let plk = |n: u128| Amount(n * 1_000_000);
    for (declared, in_all, bond, expected) in [
        (1_000_000, 1_000_000, plk(100), 1_000_000),
        (1_000_000, 1_000_000, plk(50), 500_000),
        (1_000_000, 4_000_000, plk(100), 250_000),
        (1_000, 1_000, plk(100), 1_000),
        (u64::MAX, u128::from(u64::MAX) * 16, Amount(u128::MAX), u64::MAX),
        (5, 0, plk(1), 0),
    ] {
        assert_eq!(capacity_tokens(declared, in_all, bond, 10_000), expected);
    }
    let mut usage = Usage::default();
    assert_eq!(usage.utilization_bps(), None, "nobody offers anything");
    usage.add(900, 100);
    usage.add(0, 100);
    assert_eq!(usage.utilization_bps(), Some(5_000), "beyond its capacity nothing counts");
}

/// Epochs of a market: demand in tokens by epoch at the registered price, falling with the price by `elasticity`; what is
/// paid in an epoch moves the price of the one after the next. Returns the level and the utilisation of each.
fn simulate(epochs: usize, capacity: u64, elasticity: f64, demand: impl Fn(usize) -> f64) -> Vec<(u64, u32)> {
    let params = params::default();
    let (mut levels, mut seen) = (vec![LEVEL_ONE, LEVEL_ONE], vec![]);
    for epoch in 0..epochs {
        let price = levels[epoch] as f64 / LEVEL_ONE as f64;
        let mut usage = Usage::default();
        usage.add((demand(epoch) * price.powf(-elasticity)) as u64, capacity);
        let used = usage.utilization_bps().unwrap();
        seen.push((levels[epoch], used));
        levels.push(next_level(levels[epoch + 1], used, &REGISTERED, &params));
    }
    seen
}

/// Changes of direction of the price.
fn turns(seen: &[(u64, u32)]) -> usize {
    let moves: Vec<i64> =
        seen.windows(2).map(|w| w[1].0 as i64 - w[0].0 as i64).filter(|change| *change != 0).collect();
    moves.windows(2).filter(|w| (w[0] < 0) != (w[1] < 0)).count()
}

#[test]
fn a_shock_of_demand_is_followed_into_the_band_without_swinging() {
    // Ten times the demand, and a tenth, for a market that was in the middle of its band; and back after 100 epochs.
    for elasticity in [0.5, 1.0, 1.5] {
        for factor in [10.0, 0.1] {
            let shock = |epoch: usize| if (20..120).contains(&epoch) { 5_000.0 * factor } else { 5_000.0 };
            let seen = simulate(220, 10_000, elasticity, shock);
            assert!(seen[..20].iter().all(|(level, _)| *level == LEVEL_ONE), "at rest it stays");
            let clamp = |w: &[(u64, u32)]| {
                let change = (w[1].0 as f64 / w[0].0 as f64 - 1.0).abs();
                change <= 0.125 + 1e-6
            };
            assert!(seen.windows(2).all(clamp), "a step");
            let name = format!("elasticity {elasticity}, {factor} times the demand");
            let settled = |at: usize| (3_900..=6_100).contains(&seen[at].1);
            let at_floor = |at: usize| seen[at].0 == LEVEL_ONE / 10;
            for at in [119, 219] {
                assert!(settled(at) || at_floor(at), "{name}: {:?} in epoch {at}", seen[at]);
            }
            // Once up and once down; a lag of two epochs may overshoot a little, which turns it once more each time.
            assert!(turns(&seen) <= 3, "{name}: {} turns", turns(&seen));
        }
    }
}

#[test]
fn even_very_elastic_demand_does_not_swing_beyond_the_steps() {
    // Demand that falls with the third power of the price: the swings after a shock must die out.
    let seen = simulate(400, 10_000, 3.0, |epoch| if epoch < 10 { 5_000.0 } else { 12_000.0 });
    let spread = |part: &[(u64, u32)]| {
        let levels = || part.iter().map(|(level, _)| *level as f64);
        levels().fold(0.0, f64::max) / levels().fold(f64::MAX, f64::min)
    };
    assert!(spread(&seen[10..60]) < 1.125_f64.powi(4), "{}", spread(&seen[10..60]));
    assert!(spread(&seen[350..]) < 1.001, "{:?}", &seen[390..]);
}

#[test]
fn idle_workers_bring_the_price_to_its_floor_and_full_ones_back() {
    let seen = simulate(120, 10_000, 0.0, |epoch| if epoch < 40 { 0.0 } else { 10_000.0 });
    assert_eq!(seen[40].0, LEVEL_ONE / 10, "the floor");
    assert!(seen[30..40].iter().all(|(level, _)| *level == LEVEL_ONE / 10), "and no further");
    assert!(seen[70].0 > 2 * LEVEL_ONE, "nothing sticks at the floor: {}", seen[70].0);
}
