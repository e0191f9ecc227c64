//! Accounts by the rules that the SDK states (`x/auth/ante`), in its order: who has which number, sequence and key, and what
//! of a transaction is wrong first.

use std::collections::BTreeMap;

use super::{Flaw, Gas, Said, Sent, Signing};
use crate::bank::Pool;

/// Accounts of one key, then of several, then one that comes into being, then one that nobody ever sends anything to.
pub const NOBODY: u8 = 8;
/// With others that only receive.
pub const ALL: u8 = 10;
/// Account, how many sign, whose keys.
pub const MULTI: [(u8, usize, &[u8]); 2] = [(5, 2, &[1, 2, 3]), (6, 1, &[4, 2])];
/// Gas and fee of a transaction where nothing else is said: a fee is 0.025 of the gas at least.
pub const GAS: u64 = 300_000;
pub const FEE: u128 = 7_500;

/// What is known of an account.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub sequence: u64,
    /// Whether it has signed.
    pub key: bool,
}

/// Why a transaction has failed; whether it has paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: u32,
    pub paid: bool,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub accounts: BTreeMap<u8, Known>,
    /// In the order of their numbers; those of pools and of the validator come before.
    pub people: Vec<u8>,
    pub held: BTreeMap<u8, u128>,
    pub fees: u128,
    /// Keys and characters of a memo that a transaction may have: in this block, and in the next.
    pub rules: (u64, u64),
    pub next_rules: (u64, u64),
}

/// Who must sign: whose coins are sent, each once, and who pays.
pub fn signers(sends: &[(u8, u8, u128)], payer: Option<u8>) -> Vec<u8> {
    let mut all = Vec::new();
    for n in sends.iter().map(|(from, ..)| *from).chain(payer) {
        if !all.contains(&n) {
            all.push(n);
        }
    }
    all
}

impl Model {
    pub fn new() -> Self {
        let held =
            BTreeMap::from([(1, 9_000_000), (2, 7_000_000), (3, 200_000), (4, 5_000_000), (5, 6_000_000), (6, 60_000)]);
        Model {
            accounts: held.keys().map(|n| (*n, Known::default())).collect(),
            people: held.keys().copied().collect(),
            held,
            fees: 0,
            rules: (7, 256),
            next_rules: (7, 256),
        }
    }

    pub fn number(&self, n: u8) -> Option<u64> {
        let before = Pool::ALL.len() as u64 + 1;
        self.people.iter().position(|found| *found == n).map(|at| before + at as u64)
    }

    fn held(&self, n: u8) -> u128 {
        self.held.get(&n).copied().unwrap_or(0)
    }

    /// What becomes of a transaction.
    pub fn judge(&self, tx: &Sent, height: u64) -> Result<(), Refused> {
        self.before(tx, height).map_err(|code| Refused { code, paid: false })?;
        let after = |code: u32| Err(Refused { code, paid: true });
        if tx.gas == Gas::Mid {
            return after(11);
        }
        let mut held = self.held.clone();
        *held.entry(tx.payer.unwrap_or(tx.sends[0].0)).or_default() -= tx.fee;
        for (from, to, amount) in &tx.sends {
            let left = held.get(from).copied().unwrap_or(0).checked_sub(*amount);
            let Some(left) = left else { return after(5) };
            held.insert(*from, left);
            *held.entry(*to).or_default() += amount;
        }
        Ok(())
    }

    /// What stands before the messages.
    fn before(&self, tx: &Sent, height: u64) -> Result<(), u32> {
        let signatures = tx.signers.len().saturating_add_signed(tx.surplus.into());
        if tx.memo > 256 {
            return Err(12);
        }
        match signatures {
            0 => return Err(15),
            8.. => return Err(14),
            _ if tx.surplus != 0 => return Err(4),
            _ => {}
        }
        let keys =
            |signing: &Signing| MULTI.iter().find(|(n, ..)| *n == signing.account).map_or(1, |(.., keys)| keys.len());
        if tx.signers.iter().map(|signing| if signing.key == Said::Own { keys(signing) } else { 1 }).sum::<usize>() > 7
        {
            return Err(14);
        }
        if tx.gas == Gas::Huge {
            return Err(41);
        }
        if tx.timeout > 0 && height > tx.timeout {
            return Err(30);
        }
        if tx.memo as u64 > self.rules.1 {
            return Err(12);
        }
        if tx.gas == Gas::Tiny {
            return Err(11);
        }
        if tx.fee * 1_000 < u128::from(tx.gas_limit) * 25 {
            return Err(13);
        }
        let payer = tx.payer.unwrap_or(tx.sends[0].0);
        if !self.accounts.contains_key(&payer) {
            return Err(9);
        }
        if self.held(payer) < tx.fee {
            return Err(5);
        }
        // All keys, then all sequences and signatures.
        let mut count = 0;
        for signing in &tx.signers {
            let known = self.accounts.get(&signing.account).ok_or(9_u32)?;
            if signing.key == Said::Other {
                return Err(8);
            }
            count += if known.key || signing.key == Said::Own { keys(signing) } else { 1 };
        }
        if count as u64 > self.rules.0 {
            return Err(14);
        }
        tx.signers.iter().try_for_each(|signing| self.signed(signing))
    }

    fn signed(&self, signing: &Signing) -> Result<(), u32> {
        let known = &self.accounts[&signing.account];
        if !known.key && signing.key == Said::Nothing {
            return Err(8);
        }
        if signing.sequence != known.sequence {
            return Err(32);
        }
        let enough =
            MULTI.iter().find(|(n, ..)| *n == signing.account).is_none_or(|(_, of, _)| signing.parts.len() >= *of);
        let right = signing.flaw == Flaw::None && Some(signing.number) == self.number(signing.account);
        if enough && right { Ok(()) } else { Err(4) }
    }

    /// What a transaction leaves.
    pub fn apply(&mut self, tx: &Sent, outcome: Result<(), Refused>) {
        if outcome.is_err_and(|refused| !refused.paid) {
            return;
        }
        *self.held.get_mut(&tx.payer.unwrap_or(tx.sends[0].0)).unwrap() -= tx.fee;
        self.fees += tx.fee;
        for signing in &tx.signers {
            let known = self.accounts.get_mut(&signing.account).unwrap();
            known.sequence += 1;
            known.key = true;
        }
        if outcome.is_ok() {
            for (from, to, amount) in &tx.sends {
                *self.held.get_mut(from).unwrap() -= amount;
                *self.held.entry(*to).or_default() += amount;
                if !self.people.contains(to) {
                    self.people.push(*to);
                    self.accounts.insert(*to, Known::default());
                }
            }
        }
    }
}
