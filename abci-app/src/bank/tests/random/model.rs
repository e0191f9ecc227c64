//! Money by the rules that the SDK states (`x/bank`), in its order.

use std::collections::BTreeMap;

use super::{ALL, DENOMS, FUNDED};
use polylink_protocol::DENOM;

/// Coins of a message: which, and how much.
pub type Said = Vec<(usize, u128)>;

/// How an account vests: since the start, over so many seconds, so much a second; at once at the end where it is `delayed`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub seconds: u64,
    pub each: u128,
    pub delayed: bool,
}

pub const SCHEDULES: [(u8, Schedule); 2] = [
    (FUNDED + 1, Schedule { seconds: 150, each: 3_000, delayed: false }),
    (FUNDED + 2, Schedule { seconds: 90, each: 1_000, delayed: true }),
];

/// What governance has said: the default, and of single coins.
#[derive(Clone, Debug)]
pub struct Rules {
    pub default: bool,
    pub single: BTreeMap<usize, bool>,
}

impl Rules {
    fn allow(&self, denom: usize) -> bool {
        self.single.get(&denom).copied().unwrap_or(self.default)
    }
}

pub type Refusal = (&'static str, u32);

/// The model: who holds what, in which order they came.
pub struct Model {
    pub held: BTreeMap<(u8, usize), u128>,
    pub supply: BTreeMap<usize, u128>,
    /// In the order of their numbers, from the first one's on.
    pub people: Vec<u8>,
    pub said: Rules,
    /// As they stood before the block.
    pub rules: Rules,
    pub now: u64,
}

/// Coins by the SDK's rules: one at least, none of nothing, in their order, each once.
fn valid(coins: &Said) -> Result<(), Refusal> {
    let sorted = coins.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let good = !coins.is_empty() && sorted && coins.iter().all(|(_, amount)| *amount > 0);
    if good { Ok(()) } else { Err(("sdk", 10)) }
}

pub fn total(lists: &[&Said]) -> Option<BTreeMap<usize, u128>> {
    let mut sums = BTreeMap::<usize, u128>::new();
    for (denom, amount) in lists.iter().flat_map(|list| list.iter()) {
        let sum = sums.entry(*denom).or_default();
        *sum = sum.checked_add(*amount)?;
    }
    Some(sums)
}

impl Model {
    pub fn held(&self, n: u8, denom: usize) -> u128 {
        self.held.get(&(n, denom)).copied().unwrap_or(0)
    }

    pub fn spendable(&self, n: u8, denom: usize) -> u128 {
        let of = SCHEDULES.iter().find(|(who, _)| *who == n && DENOMS[denom] == DENOM);
        let locked = of.map_or(0, |(_, schedule)| {
            let left = u128::from(schedule.seconds.saturating_sub(self.now));
            let parts = if schedule.delayed && left > 0 { schedule.seconds.into() } else { left };
            parts * schedule.each
        });
        self.held(n, denom).saturating_sub(locked)
    }

    fn allowed(&self, coins: &Said) -> Result<(), Refusal> {
        if coins.iter().all(|(denom, _)| self.rules.allow(*denom)) { Ok(()) } else { Err(("bank", 5)) }
    }

    fn open_to(to: u8) -> Result<(), Refusal> {
        if to > ALL { Err(("sdk", 4)) } else { Ok(()) }
    }

    pub fn take(&mut self, from: u8, coins: &Said) -> Result<(), Refusal> {
        if coins.iter().any(|(denom, amount)| self.spendable(from, *denom) < *amount) {
            return Err(("sdk", 5));
        }
        for (denom, amount) in coins {
            *self.held.entry((from, *denom)).or_default() -= amount;
        }
        Ok(())
    }

    pub fn give(&mut self, to: u8, coins: &Said) {
        for (denom, amount) in coins {
            *self.held.entry((to, *denom)).or_default() += amount;
        }
        if !self.people.contains(&to) {
            self.people.push(to);
        }
    }

    pub fn send(&mut self, from: u8, to: u8, coins: &Said) -> Result<(), Refusal> {
        valid(coins)?;
        self.allowed(coins)?;
        Self::open_to(to)?;
        self.take(from, coins)?;
        self.give(to, coins);
        Ok(())
    }

    pub fn multi(&mut self, inputs: &[Said], from: u8, outputs: &[(u8, Said)]) -> Result<(), Refusal> {
        match inputs.len() {
            0 => return Err(("bank", 2)),
            1 => {}
            _ => return Err(("bank", 9)),
        }
        if outputs.is_empty() {
            return Err(("bank", 3));
        }
        inputs.iter().chain(outputs.iter().map(|(_, coins)| coins)).try_for_each(valid)?;
        let lists: Vec<&Said> = outputs.iter().map(|(_, coins)| coins).collect();
        let out = total(&lists).ok_or(("sdk", 10))?;
        if Some(out) != total(&[&inputs[0]]) {
            return Err(("bank", 4));
        }
        self.allowed(&inputs[0])?;
        outputs.iter().try_for_each(|(to, _)| Self::open_to(*to))?;
        self.take(from, &inputs[0])?;
        outputs.iter().for_each(|(to, coins)| self.give(*to, coins));
        Ok(())
    }
}
