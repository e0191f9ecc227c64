//! What a conviction gives back to those who paid.

use std::collections::BTreeMap;

use super::{FEE_BURN, JUDGES_SHARE, KAPPA, Model, PAYERS, Pot, ROYALTY, Trial, VESTING, Verdict, is_private};

impl Model {
    /// The refunds of a conviction, of pots as they were before its block; `vesting` is what the worker had not received.
    pub fn refund(&mut self, n: u8, pots: &BTreeMap<(u64, u8, bool), Pot>, vesting: u128) {
        let guilty = |trial: &&Trial| trial.worker == n && trial.verdict == Verdict::Guilty;
        let trial = self.trials.values().find(guilty).unwrap().clone();
        let pot = |(epoch, private): (u64, bool)| pots.get(&(epoch, n, private)).copied().unwrap_or_default();
        let epochs = trial.evidence.saturating_sub(3)..=trial.evidence;
        let looked_at: Vec<(u64, bool)> =
            epochs.flat_map(|epoch| [(epoch, false), (epoch, true)]).filter(|place| pot(*place).settled).collect();
        // In basis points, what nobody has of each pot's fees; the lowest counts.
        let kept = |place: (u64, bool)| {
            let pot = pot(place);
            let parts = u128::from((trial.opened - place.0 - 1).min(VESTING));
            let released = pot.worker * parts / u128::from(VESTING);
            (pot.paid > 0).then(|| (pot.paid - pot.royalty - pot.judges - released) * 10_000 / pot.paid)
        };
        let mut rates: Vec<u128> = looked_at.iter().filter_map(|place| kept(*place)).collect();
        for private in [false, true] {
            let (newest, next) = (pot((trial.evidence, private)), (trial.evidence + 1, private));
            let carried = if newest.settled { newest.carried_out } else { 0 };
            if carried == 0 {
                continue;
            }
            if pot(next).settled {
                let pot = pot(next);
                rates.extend((pot.paid > 0).then(|| (pot.paid - pot.royalty - pot.judges) * 10_000 / pot.paid));
            } else {
                let burned = carried * FEE_BURN / 10_000;
                let shared = carried - burned + burned * KAPPA / 10_000;
                let royalty = shared * ROYALTY / 10_000;
                let judges = if private { 0 } else { (shared - royalty) * JUDGES_SHARE / 10_000 };
                rates.push((carried - royalty - judges) * 10_000 / carried);
            }
        }
        let rate = rates.into_iter().min().unwrap_or(0);
        let wanted: Vec<u128> =
            looked_at.iter().map(|place| (pot(*place).redeemed - pot(*place).carried_out) * rate / 10_000).collect();
        let (all, fund) = (wanted.iter().sum::<u128>(), self.convicted[&n] + vesting);
        let mut set_aside = 0;
        for (place, wanted) in looked_at.iter().zip(wanted).filter(|(_, wanted)| *wanted > 0) {
            let budget = if all > fund { wanted * fund / all } else { wanted };
            set_aside += budget;
            for payer in (0..PAYERS).filter(|payer| is_private(*payer) == place.1) {
                let paid = self.paid.get(&(place.0, n, payer)).copied().unwrap_or(0);
                *self.refunds.entry(payer).or_default() += budget * paid / pot(*place).redeemed;
            }
        }
        self.set_aside.insert(n, set_aside);
    }
}
