//! What happens at the end of a block: pots, prices, vesting, unbonding.

use super::{LEVEL_ONE, Model, PROVIDER, VESTING};

impl Model {
    /// The end of the block in work, and the next one's begin.
    pub fn block(&mut self) {
        let (now, offset) = (self.epoch(), self.offset());
        // Pots of epochs before this one, once the reveal window of theirs is over.
        let closed = |epoch: u64| epoch + 1 < now || (epoch + 1 == now && offset >= 17);
        while let Some(key) = self.pots.iter().find(|(key, pot)| closed(key.0) && !pot.settled).map(|(key, _)| *key) {
            self.settle(key);
        }
        if now > 0 && offset == 17 {
            self.move_price();
        }
        let later = self.vesting.split_off(&(now + 1, 0));
        for ((_, owner), amount) in std::mem::replace(&mut self.vesting, later) {
            *self.coins.entry(owner).or_default() += amount;
        }
        for (operator, worker) in &mut self.workers {
            let free = worker.unbonding.iter().filter(|(release, _)| *release <= now).map(|(_, amount)| amount);
            *self.coins.entry(*operator).or_default() += free.sum::<u128>();
            worker.unbonding.retain(|(release, _)| *release > now);
        }
        self.height += 1;
    }

    fn settle(&mut self, (epoch, operator, private): (u64, u8, bool)) {
        let mut pot = self.pots[&(epoch, operator, private)].clone();
        let committed = pot.root.map_or(0, |root| root.2);
        // What is committed, and what was committed before and not paid, is paid: own money first, then what came over.
        let mut room = committed + pot.allowance;
        let own = pot.redeemed.min(room);
        room -= own;
        let late = pot.carried_in.min(room);
        room -= late;
        pot.paid = own + late;
        pot.carried_out = pot.redeemed - own;
        pot.expired = pot.carried_in - late;
        if pot.carried_out > 0 || room.min(committed) > 0 {
            let next = self.pots.entry((epoch + 1, operator, private)).or_default();
            (next.carried_in, next.allowance) = (pot.carried_out, room.min(committed));
        }
        // A tenth is burned, half of that is minted while the epoch's 1,000 PLK last.
        pot.burned = pot.paid / 10;
        let emitted: u128 = self.pots.iter().filter(|((of, ..), _)| *of == epoch).map(|(_, pot)| pot.emission).sum();
        pot.emission = (pot.burned / 2).min(1_000_000_000 - emitted);
        let reward = pot.paid - pot.burned + pot.emission;
        pot.royalty = reward * u128::from(self.royalty(epoch)) / 10_000;
        let shared = reward - pot.royalty;
        // Nobody judges, so that the worker's quality is unknown: half. Of private money as much as was paid beside it in
        // the open counts so, what is beyond it for 0.3.
        let open = self.pots.get(&(epoch, operator, false)).map_or(0, |pot| pot.paid);
        pot.alpha = match (private, pot.paid) {
            (false, _) => 5_000,
            (true, 0) => 3_000,
            (true, paid) => 3_000 + open.min(paid) * 2_000 / paid,
        };
        if pot.paid > committed
            && let Some(before) = epoch.checked_sub(1).and_then(|before| self.pots.get(&(before, operator, private)))
        {
            pot.alpha = pot.alpha.min(before.alpha);
        }
        // The judges' part is nobody's, and burned with the rest.
        pot.worker = (shared - shared * 3 / 10) * pot.alpha / 10_000;
        pot.withheld = shared - pot.worker;
        pot.settled = true;
        self.minted += pot.emission;
        self.burned += pot.burned + pot.withheld + pot.expired;
        self.give(PROVIDER, pot.royalty);
        for part in 1..=VESTING {
            let until = |part: u64| pot.worker * u128::from(part) / u128::from(VESTING);
            let amount = until(part) - until(part - 1);
            if amount > 0 {
                *self.vesting.entry((self.epoch() + part, operator)).or_default() += amount;
            }
        }
        self.pots.insert((epoch, operator, private), pot);
    }

    fn move_price(&mut self) {
        let used = self.epoch() - 1;
        let price = self.price(used);
        let (mut paid, mut capacity) = (0_u128, 0_u128);
        if !self.workers.values().any(|worker| worker.place) {
            return;
        }
        for (operator, worker) in &self.workers {
            let pots = [false, true].map(|private| self.pots.get(&(used, *operator, private)));
            if !worker.place && pots == [None, None] {
                continue;
            }
            let Some((_, declared)) = worker.at(used).and_then(|terms| terms.offer) else { continue };
            // 1 PLK backs 10,000 tokens.
            let backed = (worker.bond / 100).min(u128::from(declared));
            let tokens = pots.into_iter().flatten().filter_map(|pot| Some((pot.root?, pot.redeemed)));
            let tokens = tokens.map(|((_, tokens, amount), money)| {
                let money = money.min(amount);
                if amount == 0 {
                    return 0;
                }
                (u128::from(tokens) * money / amount).min(money * 1_000 / u128::from(price.0.min(price.2)))
            });
            paid += tokens.sum::<u128>().min(backed);
            capacity += backed;
        }
        if capacity == 0 {
            return;
        }
        let utilization = (paid * 10_000 / capacity) as i128;
        let beyond = match utilization {
            u if u < 4_000 => u - 4_000,
            u if u > 6_000 => u - 6_000,
            _ => 0,
        };
        let percent = (beyond * 3_125).clamp(-12_500_000, 12_500_000);
        let level = self.levels.values().next_back().copied().unwrap_or(LEVEL_ONE) as i128;
        let next = level * (100_000_000 + percent) / 100_000_000;
        self.levels.insert(self.epoch() + 1, (next as u128).max(LEVEL_ONE / 10));
    }
}
