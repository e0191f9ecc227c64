//! The price's arithmetic: how used a profile's workers were, and what that does to the price. Pure, integers only.
//!
//! The price of a profile is its registered price at a level, in 1/10^9. In the band the level stays; outside of it
//! `level' = floor(level · (1 + clamp(a · (u − nearest bound), ±step)))`, never below the floor. One level for the three
//! prices, so that they keep their proportions whatever the rounding.

use polylink_protocol::Amount;
use polylink_protocol::market_v1::{Params, TokenPrices};

use super::models::PRICE_MAX;

/// The level of the registered price.
pub const LEVEL_ONE: u64 = 1_000_000_000;

/// What a profile's workers could have served in an epoch, and what of it was paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens whose fees carried the burn, at most the capacity.
    pub paid_tokens: u64,
    /// Tokens that were offered and backed by bonds.
    pub capacity_tokens: u64,
}

impl Usage {
    /// Paid tokens / capacity in basis points, rounded down; None without any capacity.
    pub fn utilization_bps(&self) -> Option<u32> {
        let bps = u128::from(self.paid_tokens) * 10_000
            / u128::from((self.capacity_tokens > 0).then_some(self.capacity_tokens)?);
        Some(u32::try_from(bps).unwrap_or(u32::MAX).min(10_000))
    }

    /// Both of one more worker; what it has served beyond its capacity does not count.
    pub fn add(&mut self, paid_tokens: u64, capacity_tokens: u64) {
        self.paid_tokens = self.paid_tokens.saturating_add(paid_tokens.min(capacity_tokens));
        self.capacity_tokens = self.capacity_tokens.saturating_add(capacity_tokens);
    }
}

/// The tokens under a root that were paid for: their share of what was committed, and no more than the money would have
/// bought as computed prompt (or completion, where that is cheaper) at the epoch price. So a token found in the cache counts
/// by what it paid, and a token that carries no burn does not count. Rounded down.
pub fn paid_tokens(tokens: u64, committed: Amount, redeemed: Amount, price: &TokenPrices) -> u64 {
    let paid = redeemed.min(committed);
    let share = Amount(u128::from(tokens)).mul_div_floor(paid.0, committed.0).unwrap_or(Amount::ZERO);
    let bought = paid.mul_div_floor(1_000, u128::from(price.prompt.min(price.completion).max(1)));
    let counted = share.min(bought.unwrap_or(share));
    u64::try_from(counted.0).unwrap_or(u64::MAX)
}

/// What a worker's bond backs of the capacity that it declares for one profile: the bond is shared by all that it offers,
/// in proportion. Rounded down, at most what is declared.
pub fn capacity_tokens(declared: u64, declared_in_all: u128, bond: Amount, tokens_per_plk: u64) -> u64 {
    let backed = bond.mul_div_floor(u128::from(tokens_per_plk), 1_000_000).unwrap_or(Amount(u128::MAX));
    let part = backed.mul_div_floor(u128::from(declared), declared_in_all).unwrap_or(Amount::ZERO);
    u64::try_from(part.0).unwrap_or(u64::MAX).min(declared)
}

/// The next epoch's level.
pub fn next_level(level: u64, utilization_bps: u32, registered: &TokenPrices, params: &Params) -> u64 {
    let (low, high) = (params.price_band_low_bps, params.price_band_high_bps);
    let bound = utilization_bps.clamp(low, high);
    // In 1/10^8: both factors are basis points.
    let change = i128::from(params.price_gain_bps) * (i128::from(utilization_bps) - i128::from(bound));
    let step = i128::from(params.price_step_max_bps) * 10_000;
    let factor = 100_000_000 + change.clamp(-step, step);
    let moved = (i128::from(level) * factor).div_euclid(100_000_000);
    let floor = i128::from(LEVEL_ONE) * i128::from(params.price_floor_bps) / 10_000;
    let dearest = registered.prompt.max(registered.completion).max(1);
    let ceiling = (i128::from(LEVEL_ONE) * i128::from(PRICE_MAX) / i128::from(dearest)).min(i128::from(u64::MAX));
    u64::try_from(moved.max(floor).max(1).min(ceiling)).unwrap_or(LEVEL_ONE)
}

/// The registered price at a level, each field rounded down; a computed token is never free.
pub fn at_level(registered: &TokenPrices, level: u64) -> TokenPrices {
    let scaled = |price: u64| {
        let scaled = u128::from(price) * u128::from(level) / u128::from(LEVEL_ONE);
        u64::try_from(scaled).unwrap_or(PRICE_MAX).min(PRICE_MAX)
    };
    TokenPrices {
        prompt: scaled(registered.prompt).max(1),
        cached_prompt: scaled(registered.cached_prompt),
        completion: scaled(registered.completion).max(1),
    }
}

#[cfg(test)]
mod tests;
