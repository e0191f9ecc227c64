//! The obvious model: what everybody has behind whom, in floating point, with everything done to everybody at once. No
//! periods, no indexes, no queues: rewards are handed out to each delegator as they come, and lists are searched.
//!
//! It is compared with the ledger after every message and block. What the ledger rounds may differ by a micro-unit or two;
//! then the model goes on from the ledger's number, so that roundings do not add up.

use std::collections::BTreeMap;

use crate::context::Commit;
use crate::tests::bed::*;

/// Where a validator stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Status {
    Unbonded,
    /// Since a height, until a time.
    Unbonding(u64, u64),
    Bonded,
}

#[derive(Clone, Debug)]
pub struct Validator {
    pub tokens: f64,
    pub shares: BTreeMap<u8, f64>,
    pub status: Status,
    pub jailed: bool,
    pub tombstoned: bool,
    /// When it may leave jail.
    pub jailed_until: i64,
    /// Since when its signatures count.
    pub start: u64,
    /// Missed or not, since the last punishment.
    pub missed: Vec<bool>,
    /// What roundings have left of the stake of those that went: it is worth something to those that stay.
    pub dust: f64,
}

impl Validator {
    pub fn all(&self) -> f64 {
        self.shares.values().sum()
    }

    pub fn worth(&self, delegator: u8) -> f64 {
        let all = self.all();
        if all > 0.0 { self.tokens * self.shares.get(&delegator).copied().unwrap_or(0.0) / all } else { 0.0 }
    }
}

/// Stake that left, and is liable until `due`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub delegator: u8,
    pub from: u8,
    /// Where it went; nowhere where it unbonds.
    pub to: Option<u8>,
    pub height: u64,
    pub due: u64,
    pub initial: f64,
    /// What is left of it, or the shares that it bought.
    pub left: f64,
}

pub struct Model {
    pub validators: BTreeMap<u8, Validator>,
    pub entries: Vec<Entry>,
    /// Rewards and commission of each account.
    pub earned: BTreeMap<u8, f64>,
    /// How much less the ledger may pay of it: it pays by what a delegation was worth when it began, without dust.
    pub loose: BTreeMap<u8, f64>,
    pub burned: f64,
    /// Fees of the last block.
    pub fees: f64,
}

fn operator(consensus_address: &polylink_protocol::Address) -> u8 {
    OPERATORS.into_iter().find(|n| consensus(*n) == *consensus_address).unwrap()
}

impl Model {
    pub fn new() -> Self {
        let validator = |n: u8| Validator {
            tokens: f64::from(n) * 1e9 + 1.0,
            shares: BTreeMap::from([(n, f64::from(n) * 1e9 + 1.0)]),
            status: Status::Unbonded,
            jailed: false,
            tombstoned: false,
            jailed_until: 0,
            start: 0,
            missed: Vec::new(),
            dust: 0.0,
        };
        let mut model = Model {
            validators: OPERATORS.map(|n| (n, validator(n))).collect(),
            entries: Vec::new(),
            earned: BTreeMap::new(),
            loose: BTreeMap::new(),
            burned: 0.0,
            fees: 0.0,
        };
        model.choose(0, 0);
        model
    }

    /// The begin of a block: fees to those of the last one, then absence, then evidence.
    pub fn begin(&mut self, commit: &Commit, height: u64, now: u64) {
        let total: u64 = commit.votes.iter().map(|vote| vote.power).sum();
        if height > 1 {
            for vote in &commit.votes {
                let operator = operator(&vote.validator);
                let Some(validator) = self.validators.get(&operator) else { continue };
                let reward = self.fees * 0.98 * vote.power as f64 / total as f64;
                let commission = reward * f64::from(commission_bps(operator)) / 10_000.0;
                *self.earned.entry(operator).or_default() += commission;
                if validator.tokens > 0.0 {
                    for delegator in validator.shares.keys().copied() {
                        let part = validator.worth(delegator) / validator.tokens;
                        *self.earned.entry(delegator).or_default() += (reward - commission) * part;
                        let dust = part.min(validator.dust / validator.tokens);
                        *self.loose.entry(delegator).or_default() += (reward - commission) * dust;
                    }
                }
            }
            self.fees = 0.0;
        }
        for vote in &commit.votes {
            let operator = operator(&vote.validator);
            let Some(validator) = self.validators.get_mut(&operator).filter(|validator| !validator.jailed) else {
                continue;
            };
            validator.missed.push(!vote.signed);
            let missed = validator.missed.iter().rev().take(WINDOW).filter(|missed| **missed).count();
            if height > validator.start + WINDOW as u64 && missed > WINDOW / 2 {
                validator.jailed = true;
                validator.jailed_until = now as i64 + JAIL_SECONDS;
                validator.missed.clear();
                self.slash(operator, height.saturating_sub(2), vote.power, 0.01, height, now);
            }
        }
        for found in &commit.misbehavior {
            let operator = operator(&found.validator);
            let Some(validator) = self.validators.get_mut(&operator) else { continue };
            if validator.tombstoned || validator.status == Status::Unbonded {
                continue;
            }
            (validator.jailed, validator.tombstoned) = (true, true);
            self.slash(operator, found.height.saturating_sub(1), found.power, 0.05, height, now);
        }
        self.fees += FEES as f64;
    }

    fn slash(&mut self, operator: u8, since: u64, power: u64, fraction: f64, height: u64, now: u64) {
        if self.validators[&operator].status == Status::Unbonded {
            return;
        }
        let mut owed = (power as f64 * 1e6 * fraction).floor();
        if since < height {
            let entries = std::mem::take(&mut self.entries);
            // Those that unbond first, then those that have moved.
            let (mut unbonding, mut moved): (Vec<Entry>, Vec<Entry>) =
                entries.into_iter().partition(|e| e.to.is_none());
            let liable = |entry: &Entry| entry.from == operator && entry.height >= since && entry.due > now;
            for entry in unbonding.iter_mut().filter(|entry| liable(entry)) {
                let share = (entry.initial * fraction).floor();
                let taken = share.min(entry.left);
                owed -= share;
                entry.left -= taken;
                self.burned += taken;
            }
            for entry in moved.iter_mut().filter(|entry| liable(entry)) {
                let share = (entry.initial * fraction).floor();
                owed -= share;
                // What has left again pays first.
                let mut rest = share;
                let gone = |e: &&mut Entry| (Some(e.from), e.delegator) == (entry.to, entry.delegator);
                for gone in unbonding.iter_mut().filter(gone).filter(|e| e.height >= since && e.due > now) {
                    let taken = rest.min(gone.left);
                    (rest, gone.left) = (rest - taken, gone.left - taken);
                    self.burned += taken;
                }
                if rest == 0.0 {
                    continue;
                }
                let Some(validator) = entry.to.and_then(|to| self.validators.get_mut(&to)) else { continue };
                let all = validator.all();
                let Some(held) = validator.shares.get_mut(&entry.delegator) else { continue };
                let shares = (entry.left * fraction * rest / share).min(*held);
                let exact = validator.tokens * shares / all;
                let worth = exact.floor();
                validator.dust += exact - worth;
                *held -= shares;
                validator.tokens -= worth;
                self.burned += worth;
                // An operator that is slashed below its minimum is jailed for it.
                if entry.to == Some(entry.delegator) && validator.worth(entry.delegator) < 1.0 {
                    validator.jailed = true;
                }
            }
            self.entries = unbonding;
            self.entries.extend(moved);
        }
        let validator = self.validators.get_mut(&operator).unwrap();
        let burned = owed.max(0.0).min(validator.tokens);
        validator.tokens -= burned;
        self.burned += burned;
    }

    /// The strongest have power; the others lose it, and are unbonded in time.
    pub fn choose(&mut self, height: u64, now: u64) {
        let votes = |validator: &Validator| if validator.jailed { 0 } else { (validator.tokens / 1e6).floor() as u64 };
        let mut candidates: Vec<u8> =
            self.validators.keys().copied().filter(|n| votes(&self.validators[n]) > 0).collect();
        candidates.sort_by_key(|n| (std::cmp::Reverse(votes(&self.validators[n])), account(*n)));
        candidates.truncate(PLACES);
        if candidates.is_empty() {
            return;
        }
        for (n, validator) in &mut self.validators {
            match (candidates.contains(n), validator.status) {
                (true, Status::Unbonded | Status::Unbonding(..)) => {
                    validator.status = Status::Bonded;
                    validator.start = height;
                }
                (false, Status::Bonded) => validator.status = Status::Unbonding(height, now + UNBONDING),
                _ => {}
            }
        }
    }

    /// The end of a block. Returns what was paid out to whom.
    pub fn end(&mut self, height: u64, now: u64) -> BTreeMap<u8, f64> {
        self.choose(height, now);
        for validator in self.validators.values_mut() {
            if matches!(validator.status, Status::Unbonding(_, due) if due <= now) {
                validator.status = Status::Unbonded;
            }
        }
        let mut paid: BTreeMap<u8, f64> = BTreeMap::new();
        self.entries.retain(|entry| {
            if entry.due <= now && entry.to.is_none() {
                *paid.entry(entry.delegator).or_default() += entry.left;
            }
            entry.due > now
        });
        paid
    }

    pub fn delegate(&mut self, delegator: u8, operator: u8, amount: f64) -> f64 {
        let validator = self.validators.get_mut(&operator).unwrap();
        let all = validator.all();
        let bought = if all > 0.0 { amount * all / validator.tokens } else { amount };
        *validator.shares.entry(delegator).or_default() += bought;
        validator.tokens += amount;
        bought
    }

    /// Takes an amount out, of which `paid` is what the ledger found it worth.
    pub fn unbond(&mut self, delegator: u8, operator: u8, amount: f64, paid: f64) {
        assert!((amount - paid).abs() <= 1.0, "{amount} was asked, {paid} paid");
        let validator = self.validators.get_mut(&operator).unwrap();
        let shares = amount * validator.all() / validator.tokens;
        let held = validator.shares.get_mut(&delegator).unwrap();
        *held = (*held - shares).max(0.0);
        validator.tokens -= paid;
        validator.dust += (amount - paid).max(0.0);
        if delegator == operator && validator.worth(delegator) < 1.0 {
            validator.jailed = true;
        }
    }

    pub fn entries_of(&self, delegator: u8, from: u8, to: Option<u8>) -> Vec<&Entry> {
        self.entries.iter().filter(|e| (e.delegator, e.from, e.to) == (delegator, from, to)).collect()
    }
}
