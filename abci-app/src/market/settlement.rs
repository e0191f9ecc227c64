//! The settlement's arithmetic: what of a pot counts, and who gets it. Pure, integers only; every rounding is stated.
//!
//! Invariants: `redeemed + carried_in = paid + carried_out + expired` ([`cover`]);
//! `paid + emission = fees_burned + royalty + judges + worker + withheld` ([`split`]). Nothing is lost to rounding:
//! each share is rounded down and the last one, which is burned, is the rest.

use polylink_protocol::{Amount, Bps};

/// What of a pot's money its commitments cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Counts as fees now.
    pub paid: Amount,
    /// Redeemed in this epoch, not covered: has one more chance in the next pot.
    pub carried_out: Amount,
    /// Had its second chance: burned. Nobody gains by what is not committed, neither payer nor worker.
    pub expired: Amount,
    /// Committed in this epoch and not paid: covers vouchers that come one epoch late.
    pub allowance_out: Amount,
}

/// Pays the epoch's own money first, then what was carried in, up to `committed + allowance`.
pub fn cover(redeemed: Amount, carried_in: Amount, committed: Amount, allowance: Amount) -> Cover {
    let limit = Amount(committed.0.saturating_add(allowance.0));
    let own = redeemed.min(limit);
    let late = carried_in.min(limit.saturating_sub(own));
    let paid = Amount(own.0.saturating_add(late.0));
    Cover {
        paid,
        carried_out: redeemed.saturating_sub(own),
        expired: carried_in.saturating_sub(late),
        allowance_out: limit.saturating_sub(paid).min(committed),
    }
}

/// By what a pot is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Share of the fees that is burned.
    pub fee_burn: Bps,
    /// Emission is at most this share of what the fees burned.
    pub kappa: Bps,
    /// β: the judges' share.
    pub judge_share: Bps,
    /// The model provider's share, off the top.
    pub royalty: Bps,
    /// α: the quality of what was served.
    pub alpha: Bps,
    /// What the epoch's emission budget still holds.
    pub emission_left: Amount,
    /// Whether any judge is there to be paid; without one the judges' share is withheld.
    pub judged: bool,
}

/// Who gets what of a pot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// floor(fee_burn · paid), burned.
    pub fees_burned: Amount,
    /// min(floor(κ · fees_burned), budget), minted.
    pub emission: Amount,
    /// floor(royalty · R), R = paid − fees_burned + emission.
    pub royalty: Amount,
    /// floor(β · R'), R' = R − royalty.
    pub judges: Amount,
    /// floor(α · (R' − floor(β · R'))).
    pub worker: Amount,
    /// The rest, burned.
    pub withheld: Amount,
}

/// Shares out the fees that count.
pub fn split(paid: Amount, terms: &Terms) -> Split {
    let fees_burned = terms.fee_burn.of_floor(paid);
    let emission = terms.kappa.of_floor(fees_burned).min(terms.emission_left);
    // κ < 1, so that emission is below what was burned and the sum does not exceed `paid`.
    let reward = Amount(paid.0 - fees_burned.0 + emission.0);
    let royalty = terms.royalty.of_floor(reward);
    let shared = Amount(reward.0 - royalty.0);
    let beta = terms.judge_share.of_floor(shared);
    let worker = terms.alpha.of_floor(Amount(shared.0 - beta.0));
    let judges = if terms.judged { beta } else { Amount::ZERO };
    Split { fees_burned, emission, royalty, judges, worker, withheld: Amount(shared.0 - worker.0 - judges.0) }
}

/// α of a private pot: of what it is paid, as much as `share_bps` of what the worker's audited pot was paid counts at the
/// audited α, the rest at no more than the floor's; the mean of both, rounded down. So what nobody looks at is never worth
/// more than what everybody may look at, and nothing like as much where there is little of that.
pub fn private_alpha(alpha: Bps, floor: Bps, audited: Amount, share_bps: u32, paid: Amount) -> Bps {
    let least = alpha.min(floor);
    let vouched = audited.mul_div_floor(u128::from(share_bps), 10_000).unwrap_or(paid).min(paid);
    let above = vouched.mul_div_floor(u128::from(alpha.get() - least.get()), paid.0).unwrap_or(Amount::ZERO);
    // At most the difference of two α.
    Bps::clamped(least.get().saturating_add(u32::try_from(above.0).unwrap_or(0)))
}

/// Shares `total` by weights, each share rounded down; returns the shares and the remainder.
pub fn by_weight(total: Amount, weights: &[u64]) -> (Vec<Amount>, Amount) {
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let share = |w: &u64| total.mul_div_floor(u128::from(*w), sum).unwrap_or(Amount::ZERO);
    let shares: Vec<Amount> = weights.iter().map(share).collect();
    let given: Amount = shares.iter().copied().sum();
    (shares, total.saturating_sub(given))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount() -> impl Strategy<Value = Amount> {
        prop_oneof![(0_u128..20), (0_u128..1_000_000_000), (0..u128::MAX / 4)].prop_map(Amount)
    }
    fn bps() -> impl Strategy<Value = Bps> {
        prop_oneof![Just(0), Just(10_000), 0_u32..=10_000].prop_map(Bps::clamped)
    }

    proptest! {
        #[test]
        fn cover_conserves_and_never_pays_beyond_commitments(
            redeemed in amount(), carried in amount(), committed in amount(), allowance in amount()
        ) {
            let c = cover(redeemed, carried, committed, allowance);
            prop_assert_eq!(redeemed.0 + carried.0, c.paid.0 + c.carried_out.0 + c.expired.0);
            prop_assert!(c.paid.0 <= committed.0 + allowance.0);
            prop_assert!(c.allowance_out <= committed);
            // What is not covered and what covers nothing cannot both be there.
            prop_assert!(c.paid.0 == committed.0 + allowance.0 || (c.carried_out.is_zero() && c.expired.is_zero()));
        }

        #[test]
        fn split_conserves_to_the_micro_unit(
            paid in amount(), fee_burn in bps(), kappa in 0_u32..10_000, judge_share in bps(), royalty in bps(),
            alpha in bps(), emission_left in amount(), judged: bool
        ) {
            let kappa = Bps::clamped(kappa);
            let s = split(paid, &Terms { fee_burn, kappa, judge_share, royalty, alpha, emission_left, judged });
            prop_assert_eq!(
                paid.0 + s.emission.0,
                s.fees_burned.0 + s.royalty.0 + s.judges.0 + s.worker.0 + s.withheld.0
            );
            // Paying oneself never farms emission: what comes back is never more than what went in.
            prop_assert!(s.royalty.0 + s.judges.0 + s.worker.0 <= paid.0);
            prop_assert!(s.emission <= emission_left && s.emission <= s.fees_burned);
            prop_assert!(judged || s.judges.is_zero());
        }

        #[test]
        fn private_money_is_worth_no_more_than_audited_money(
            alpha in bps(), floor in bps(), audited in amount(), share in 0_u32..=20_000, paid in amount(), more in amount()
        ) {
            let of = |audited: Amount, paid: Amount| private_alpha(alpha, floor, audited, share, paid);
            let found = of(audited, paid);
            prop_assert!(alpha.min(floor) <= found && found <= alpha);
            // More of what is audited is never worse, more of what is not never better.
            prop_assert!(of(Amount(audited.0.saturating_add(more.0)), paid) >= found);
            prop_assert!(paid.is_zero() || of(audited, Amount(paid.0.saturating_add(more.0))) <= found);
            prop_assert_eq!(of(Amount::ZERO, paid), alpha.min(floor), "nothing was audited");
        }

        #[test]
        fn shares_by_weight_conserve(total in amount(), weights in prop::collection::vec(any::<u64>(), 0..8)) {
            let (shares, rest) = by_weight(total, &weights);
            prop_assert_eq!(shares.iter().map(|s| s.0).sum::<u128>() + rest.0, total.0);
            prop_assert!(weights.iter().all(|w| *w == 0) || rest.0 < weights.len() as u128);
        }
    }

    #[test]
    fn a_worked_example() {
        let terms = Terms {
            fee_burn: Bps::clamped(1_000),
            kappa: Bps::clamped(5_000),
            judge_share: Bps::clamped(3_000),
            royalty: Bps::clamped(500),
            alpha: Bps::clamped(9_000),
            emission_left: Amount(1_000_000),
            judged: true,
        };
        // 10,000 paid: 1,000 burned, 500 minted, R = 9,500; royalty 475; R' = 9,025; judges 2,707 (of 2,707.5);
        // worker 0.9 · 6,318 = 5,686 (of 5,686.2); the rest 632 is burned.
        let expected = Split {
            fees_burned: Amount(1_000),
            emission: Amount(500),
            royalty: Amount(475),
            judges: Amount(2_707),
            worker: Amount(5_686),
            withheld: Amount(632),
        };
        assert_eq!(split(Amount(10_000), &terms), expected);
    }

    #[test]
    fn a_private_pot_by_example() {
        let of = |alpha, audited, share, paid| {
            private_alpha(Bps::clamped(alpha), Bps::clamped(3_000), Amount(audited), share, Amount(paid)).get()
        };
        for (alpha, audited, share, paid, expected) in [
            (9_000, 1_000, 10_000, 1_000, 9_000),
            (9_000, 1_000, 10_000, 400, 9_000),
            (9_000, 1_000, 10_000, 4_000, 4_500),
            (9_000, 1_000, 5_000, 1_000, 6_000),
            (9_000, 0, 10_000, 4_000, 3_000),
            (9_000, 1_000, 0, 1_000, 3_000),
            (2_000, 0, 10_000, 4_000, 2_000),
            (10_000, 1, 10_000, 3, 5_333),
            (9_000, 5, 10_000, 0, 3_000),
        ] {
            assert_eq!(of(alpha, audited, share, paid), expected, "{alpha} {audited} {share} {paid}");
        }
    }

    #[test]
    fn late_money_has_exactly_one_more_epoch() {
        let first = cover(Amount(100), Amount(0), Amount(60), Amount(0));
        assert_eq!((first.paid, first.carried_out, first.expired), (Amount(60), Amount(40), Amount(0)));
        let second = cover(Amount(50), first.carried_out, Amount(60), first.allowance_out);
        assert_eq!((second.paid, second.carried_out, second.expired), (Amount(60), Amount(0), Amount(30)));
        let late = cover(Amount(0), Amount(0), Amount(60), Amount(0));
        assert_eq!(cover(Amount(70), Amount(0), Amount(10), late.allowance_out).paid, Amount(70));
    }
}
