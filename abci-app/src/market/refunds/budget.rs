//! How much the payers of a convicted worker are given back. Pure, integers only, every division rounds down.
//!
//! Whoever pays itself must not get its slash back that way. Nobody can tell such a payer from another one, and model
//! providers and judges may be the worker's too, so that a refund only returns what **nobody** has got of a payment: not the
//! royalty, not the judges' part, not what has been released to the worker. One rate holds for the whole trial, the lowest
//! of its pots', since money that a pot cannot pay is carried into the next one and must not be worth more there.
//!
//! Invariants: refunds ≤ slash + claw-back; a payer's refund ≤ its payments; and a worker that pays itself, by however many
//! payers, ends no better than one that was convicted without, where its pots have the same terms (quality, royalty, emission left;
//! to within what rounding moves: less than 8 uplk a pot).

use polylink_protocol::{Amount, Bps};

/// A pot's figures, after its settlement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What counted as fees.
    pub paid: Amount,
    /// Royalty, judges' part, and what the worker has received of its own.
    pub given: Amount,
}

/// What has been released, by the end of epoch `until`, of a reward that was settled in an epoch and vests over `epochs`.
pub fn released(reward: Amount, settled: u64, until: u64, epochs: u64) -> Amount {
    let epochs = epochs.max(1);
    let passed = until.saturating_sub(settled).min(epochs);
    reward.mul_div_floor(u128::from(passed), u128::from(epochs)).unwrap_or(reward)
}

/// The trial's rate: the lowest share of a pot's fees that nobody has got. Pots without fees say nothing.
pub fn rate(pots: impl Iterator<Item = Outcome>) -> Bps {
    let of = |pot: Outcome| pot.paid.saturating_sub(pot.given).mul_div_floor(10_000, pot.paid.0);
    let lowest = pots.filter_map(of).min().unwrap_or(Amount::ZERO);
    Bps::clamped(u32::try_from(lowest.0).unwrap_or(10_000))
}

/// What the payers of each pot get together: the rate of what was covered of their money, or, where slash and claw-back are
/// less than that in all, in proportion.
pub fn budgets(covered: &[Amount], rate: Bps, fund: Amount) -> Vec<Amount> {
    let wanted: Vec<Amount> = covered.iter().map(|covered| rate.of_floor(*covered)).collect();
    let all: Amount = wanted.iter().copied().sum();
    let part = |wanted: Amount| wanted.mul_div_floor(fund.min(all).0, all.0).unwrap_or(Amount::ZERO);
    wanted.into_iter().map(part).collect()
}

/// One payer's part of a pot's budget.
pub fn share(budget: Amount, payment: Amount, redeemed: Amount) -> Amount {
    budget.mul_div_floor(payment.0, redeemed.0).unwrap_or(Amount::ZERO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::super::super::settlement::{Terms, cover, split};
    use super::*;

    /// An epoch of a worker's pot, with the quality that it is settled at. The trial looks at the pots 1 to 4; pot 0 is the one
    /// before, pot 5 the one after.
    #[derive(Clone, Debug)]
    struct Epoch {
        honest: u128,
        /// By the worker's own payers.
        own: Vec<u128>,
        committed: u128,
    }

    #[derive(Clone, Debug)]
    struct Life {
        epochs: Vec<Epoch>,
        /// Of all pots, as is what follows: own payments move honest ones into the next pot, and where that has other terms the
        /// settlement alone may give more for them, refunds or not.
        alpha: u32,
        royalty: u32,
        emission_left: u128,
        fee_burn: u32,
        kappa: u32,
        judge_share: u32,
        vesting: u64,
        slash: u128,
        /// Whether pot 5 is settled before the verdict; else with α = 0 after it.
        settled: bool,
    }

    /// Pot `at` is of epoch `at`, settled in the next; the trial opens when pot 4 is scored.
    const OPENED: u64 = 5;

    /// What worker, provider, judges and the worker's own payers have together at the end, less what they began with.
    fn end(life: &Life, pays_itself: bool) -> i128 {
        let (mut before, mut allowance) = (Amount::ZERO, Amount::ZERO);
        let (mut have, mut clawed) = (0_i128, 0_u128);
        let (mut outcomes, mut covered, mut redeemed) = (vec![], vec![], vec![]);
        for (at, epoch) in life.epochs.iter().enumerate() {
            let own: u128 = if pays_itself { epoch.own.iter().sum() } else { 0 };
            let c = cover(Amount(epoch.honest + own), before, Amount(epoch.committed), allowance);
            let alpha = if at == 5 && !life.settled { 0 } else { life.alpha };
            let s = split(
                c.paid,
                &Terms {
                    fee_burn: Bps::clamped(life.fee_burn),
                    kappa: Bps::clamped(life.kappa),
                    judge_share: Bps::clamped(life.judge_share),
                    royalty: Bps::clamped(life.royalty),
                    alpha: Bps::clamped(alpha),
                    emission_left: Amount(life.emission_left),
                    judged: true,
                },
            );
            let free = released(s.worker, at as u64 + 1, OPENED, life.vesting);
            have += (s.royalty.0 + s.judges.0 + free.0) as i128 - own as i128;
            clawed += s.worker.0 - free.0;
            let given = Amount(s.royalty.0 + s.judges.0 + free.0);
            // As the ledger does: the pot after the last one counts where that one carried money into it.
            if (1..5).contains(&at) || (at == 5 && !before.is_zero()) {
                outcomes.push(Outcome { paid: c.paid, given });
            }
            if (1..5).contains(&at) {
                covered.push(Amount(epoch.honest + own - c.carried_out.0));
                redeemed.push(Amount(epoch.honest + own));
            }
            (before, allowance) = (c.carried_out, c.allowance_out);
        }
        let fund = Amount(life.slash + clawed);
        let budgets = budgets(&covered, rate(outcomes.into_iter()), fund);
        assert!(budgets.iter().map(|budget| budget.0).sum::<u128>() <= fund.0);
        for (at, (budget, redeemed)) in budgets.into_iter().zip(redeemed).enumerate() {
            for own in life.epochs[at + 1].own.iter().filter(|_| pays_itself) {
                let refund = share(budget, Amount(*own), redeemed);
                assert!(refund.0 <= *own, "more than it paid");
                have += refund.0 as i128;
            }
        }
        have - life.slash as i128
    }

    fn amount() -> impl Strategy<Value = u128> {
        prop_oneof![Just(0), 0_u128..50, 0_u128..1_000_000, 0_u128..1_000_000_000_000]
    }

    fn epoch() -> impl Strategy<Value = Epoch> {
        (amount(), prop::collection::vec(amount(), 0..4), amount()).prop_map(|(honest, own, committed)| Epoch {
            honest,
            own,
            committed,
        })
    }

    fn life() -> impl Strategy<Value = Life> {
        let share = || prop_oneof![Just(1_000_u32), 0_u32..=10_000];
        let slash = prop_oneof![Just(0), 0_u128..1_000_000_000_000];
        let alpha = prop_oneof![Just(0_u32), Just(10_000), 0_u32..=10_000];
        let royalty = prop_oneof![Just(500_u32), 0_u32..=5_000];
        let terms = (alpha, royalty, amount(), share(), 0_u32..10_000, share());
        (prop::collection::vec(epoch(), 6), terms, 1_u64..12, slash, any::<bool>()).prop_map(
            |(epochs, (alpha, royalty, emission_left, fee_burn, kappa, judge_share), vesting, slash, settled)| Life {
                epochs,
                alpha,
                royalty,
                emission_left,
                fee_burn,
                kappa,
                judge_share,
                vesting,
                slash,
                settled,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, rng_seed: RngSeed::Fixed(27), ..ProptestConfig::default() })]

        #[test]
        fn who_pays_itself_ends_no_better_than_one_that_was_convicted_without(life in life()) {
            let (with, without) = (end(&life, true), end(&life, false));
            prop_assert!(with <= without + 8 * 6, "{} instead of {}", with, without);
        }

        #[test]
        fn budgets_stay_within_the_fund(
            covered in prop::collection::vec((0..u128::MAX / 8).prop_map(Amount), 0..5), bps in 0_u32..=10_000,
            fund in (0..u128::MAX / 2).prop_map(Amount)
        ) {
            let rate = Bps::clamped(bps);
            let found = budgets(&covered, rate, fund);
            prop_assert!(found.iter().copied().sum::<Amount>() <= fund);
            prop_assert!(found.iter().zip(&covered).all(|(budget, covered)| *budget <= rate.of_floor(*covered)));
        }
    }

    #[test]
    fn a_worked_example() {
        // 40,000 paid: royalty 1,900, judges 10,830, worker 25,270 of which 9,476 (3 of 8 parts) were released.
        let free = released(Amount(25_270), 2, 5, 8);
        assert_eq!(free, Amount(9_476));
        let pot = Outcome { paid: Amount(40_000), given: Amount(1_900 + 10_830 + 9_476) };
        let newest = Outcome { paid: Amount(40_000), given: Amount(12_730) };
        assert_eq!(rate([newest].into_iter()), Bps::clamped(6_817));
        let rate = rate([pot, newest, Outcome::default()].into_iter());
        assert_eq!(rate, Bps::clamped(4_448));
        let covered = [Amount(40_000), Amount(10_000)];
        assert_eq!(budgets(&covered, rate, Amount(1 << 40)), [Amount(17_792), Amount(4_448)]);
        assert_eq!(budgets(&covered, rate, Amount(11_120)), [Amount(8_896), Amount(2_224)]);
        assert_eq!(share(Amount(8_896), Amount(10_000), Amount(40_000)), Amount(2_224));
        assert_eq!(super::rate(std::iter::empty()), Bps::ZERO, "nothing was paid");
    }
}
