//! The exact model of stake and rewards: who has what behind whom, to the last decimal, with everything done to everybody
//! at once. No periods that are counted and forgotten, no indexes, no queues: each block's rewards are handed to each
//! delegation as they come, each slash is, and lists are searched.
//!
//! Beside the number that the ledger must show, with its roundings in their order, each delegation carries what it has
//! *really* earned, block by block, and the most that the roundings may take of that; [`Book::pay`] asserts that nobody is
//! paid more than the one, nor less than it without the other.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::bed::account;
use super::number::*;

/// Tokens of one vote.
const VOTE: u128 = 1_000_000;
/// More than what [`Part::exact`] may miss: a 36th place for each block.
const EXACT: Number = Number::from_digit(1_000_000);

/// Where a validator stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Unbonded,
    /// Since a height, until a time in seconds.
    Unbonding(u64, u64),
    Bonded,
}

/// What a delegation earns with.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Its worth, in tokens.
    stake: Number,
    /// What a token has earned since it began, or since the last slash.
    ratio: Number,
    /// What it had earned before that.
    earned: Number,
    /// All that it has really earned, with 18 places more.
    exact: Number,
    /// What roundings may have taken of it, likewise.
    slack: Number,
    /// The height of its begin.
    height: u64,
}

#[derive(Clone, Debug)]
pub struct Validator {
    pub tokens: u128,
    pub shares: BTreeMap<u8, Number>,
    /// All shares.
    pub all: Number,
    /// The part of its rewards that is its own.
    pub rate: Number,
    pub status: Status,
    pub jailed: bool,
    /// Commission that was not paid.
    pub commission: Number,
    /// Whatever was not paid.
    pub outstanding: Number,
    /// What was earned since its stake last changed.
    pub running: Number,
    /// Slashes so far.
    pub slashes: usize,
    parts: BTreeMap<u8, Part>,
}

impl Validator {
    fn power(&self) -> u128 {
        if self.jailed { 0 } else { self.tokens / VOTE }
    }

    /// The worth of shares, rounded as it is paid.
    fn worth(&self, shares: Number) -> Number {
        if self.all == places(0) { self.all } else { over_even(shares * places(self.tokens), self.all) }
    }
}

/// Stake that left, and is liable until `due`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub by: u8,
    pub from: u8,
    /// Where it went; nowhere where it unbonds.
    pub to: Option<u8>,
    pub height: u64,
    pub due: u64,
    pub initial: u128,
    /// What is left of it, where it unbonds.
    pub left: u128,
    /// The shares that it bought, where it moved.
    pub shares: Number,
}

#[derive(Clone, Debug)]
pub struct Book {
    pub validators: BTreeMap<u8, Validator>,
    pub entries: Vec<Entry>,
    /// The community pool.
    pub community: Number,
    /// What each address was paid: rewards, commission, stake that came back.
    pub paid: BTreeMap<polylink_protocol::Address, u128>,
    /// Where an account's rewards go, if not to itself.
    pub purses: BTreeMap<u8, polylink_protocol::Address>,
    pub burned: u128,
    /// Validators with power at most.
    pub seats: usize,
    /// Seconds from taking stake back until it is paid.
    pub unbonding: u64,
    pub height: u64,
    /// In seconds.
    pub now: u64,
}

impl Book {
    pub fn new(seats: usize, unbonding: u64, now: u64) -> Self {
        Book {
            validators: BTreeMap::new(),
            entries: Vec::new(),
            community: places(0),
            paid: BTreeMap::new(),
            purses: BTreeMap::new(),
            burned: 0,
            seats,
            unbonding,
            height: 0,
            now,
        }
    }

    fn validator(&mut self, n: u8) -> &mut Validator {
        self.validators.get_mut(&n).unwrap()
    }

    /// An amount goes to the address of an account's choice.
    fn reward(&mut self, n: u8, amount: u128) {
        let to = self.purses.get(&n).copied().unwrap_or(account(n));
        *self.paid.entry(to).or_default() += amount;
    }

    pub fn create(&mut self, n: u8, amount: u128, rate: Number) {
        let fresh = Validator {
            tokens: 0,
            shares: BTreeMap::new(),
            all: places(0),
            rate,
            status: Status::Unbonded,
            jailed: false,
            commission: places(0),
            outstanding: places(0),
            running: places(0),
            slashes: 0,
            parts: BTreeMap::new(),
        };
        assert!(self.validators.insert(n, fresh).is_none(), "{n} is there already");
        self.delegate(n, n, amount);
    }

    /// A block's reward of a validator: its commission, and every delegation its share by stake.
    pub fn earn(&mut self, n: u8, reward: Number) {
        let validator = self.validator(n);
        let own = times_even(reward, validator.rate);
        validator.commission += own;
        validator.outstanding += reward;
        validator.running += reward - own;
        if validator.tokens > 0 {
            let tokens = places(validator.tokens);
            for part in validator.parts.values_mut() {
                part.exact += (reward - own) * part.stake / tokens;
            }
        }
    }

    /// What has run since stake last changed comes to each token. Without a token it is nobody's.
    fn settle(&mut self, n: u8) {
        let validator = self.validator(n);
        let running = std::mem::take(&mut validator.running);
        if validator.tokens == 0 {
            let nobodys = running.min(validator.outstanding);
            validator.outstanding -= nobodys;
            self.community += nobodys;
            return;
        }
        let each = running / places(validator.tokens);
        for part in validator.parts.values_mut() {
            part.ratio += each;
            part.slack += part.stake;
        }
    }

    /// What a delegation would be paid if what runs were settled.
    pub fn pending(&self, by: u8, of: u8) -> Number {
        let mut book = Book { validators: BTreeMap::from([(of, self.validators[&of].clone())]), ..self.bare() };
        book.settle(of);
        // The next block.
        book.height = self.height + 1;
        book.due(by, of)
    }

    /// Without validators and entries.
    fn bare(&self) -> Book {
        Book { height: self.height, ..Book::new(self.seats, self.unbonding, self.now) }
    }

    fn due(&self, by: u8, of: u8) -> Number {
        let validator = &self.validators[&of];
        let part = &validator.parts[&by];
        if part.height == self.height {
            return places(0);
        }
        part.earned + times(part.ratio, part.stake.min(validator.worth(validator.shares[&by])))
    }

    /// Pays what a delegation has earned, without what runs, and forgets its part.
    fn pay(&mut self, by: u8, of: u8) -> u128 {
        let (raw, fresh) = (self.due(by, of), self.validators[&of].parts[&by].height == self.height);
        let validator = self.validator(of);
        let worth = validator.worth(validator.shares[&by]);
        let part = validator.parts.remove(&by).unwrap();
        let shown = raw * places(ONE);
        let slack = part.slack + part.stake.saturating_sub(worth) * part.ratio + places(ONE);
        assert!(shown <= part.exact + EXACT, "{by} would be paid {raw}, and has earned {part:?}");
        assert!(fresh || shown + slack >= part.exact, "{by} would be paid {raw} only: {part:?}");
        let rewards = raw.min(validator.outstanding);
        validator.outstanding -= rewards;
        self.community += fraction(rewards);
        self.reward(by, floor(rewards));
        floor(rewards)
    }

    /// Before a delegation changes.
    fn touch(&mut self, by: u8, of: u8) -> u128 {
        self.settle(of);
        if self.validators[&of].parts.contains_key(&by) { self.pay(by, of) } else { 0 }
    }

    /// A delegation begins to earn.
    fn begin(&mut self, by: u8, of: u8) {
        let height = self.height;
        let validator = self.validator(of);
        let stake = validator.shares[&by] * places(validator.tokens) * places(ONE) / validator.all;
        validator.parts.insert(by, Part { stake, height, ..Part::default() });
        // Nobody's stake is counted twice: all of it is not more than is there, but for the last places.
        let all = validator.parts.values().fold(places(0), |sum, part| sum + part.stake);
        assert!(all <= whole(validator.tokens) + places(1_000_000), "{validator:?}");
    }

    pub fn withdraw(&mut self, by: u8, of: u8) -> u128 {
        let paid = self.touch(by, of);
        self.begin(by, of);
        paid
    }

    pub fn withdraw_commission(&mut self, n: u8) -> u128 {
        let validator = self.validator(n);
        let paid = floor(validator.commission.min(validator.outstanding));
        validator.commission -= whole(paid);
        validator.outstanding -= whole(paid);
        self.reward(n, paid);
        paid
    }

    /// Returns the shares that the amount bought.
    pub fn delegate(&mut self, by: u8, to: u8, amount: u128) -> Number {
        self.touch(by, to);
        let validator = self.validator(to);
        let bought = if validator.all == places(0) {
            whole(amount)
        } else {
            validator.all * places(amount) / places(validator.tokens)
        };
        validator.tokens += amount;
        validator.all += bought;
        *validator.shares.entry(by).or_insert(places(0)) += bought;
        self.begin(by, to);
        bought
    }

    /// Takes shares out; returns what they are worth.
    fn unbond(&mut self, by: u8, from: u8, shares: Number) -> u128 {
        self.touch(by, from);
        let validator = self.validator(from);
        let rest = validator.shares[&by] - shares;
        if by == from && floor(validator.worth(rest)) < 1 {
            validator.jailed = true;
        }
        if rest == places(0) {
            validator.shares.remove(&by);
        } else {
            validator.shares.insert(by, rest);
            self.begin(by, from);
        }
        let validator = self.validator(from);
        let last = validator.all == shares;
        let amount = if last { validator.tokens } else { floor(validator.worth(shares)) };
        validator.all -= shares;
        validator.tokens -= amount;
        self.forget(from);
        amount
    }

    /// A validator that nobody stands behind is gone once it is unbonded.
    fn forget(&mut self, n: u8) {
        let validator = self.validator(n);
        if validator.status != Status::Unbonded || validator.all != places(0) {
            return;
        }
        let validator = self.validators.remove(&n).unwrap();
        let own = validator.commission.min(validator.outstanding);
        self.community += validator.outstanding - own + fraction(own);
        self.reward(n, floor(own));
    }

    fn shares_of(&self, from: u8, amount: u128) -> Number {
        let validator = &self.validators[&from];
        validator.all * places(amount) / places(validator.tokens)
    }

    pub fn undelegate(&mut self, by: u8, from: u8, amount: u128) -> u128 {
        let left = self.unbond(by, from, self.shares_of(from, amount));
        let (height, due) = (self.height, self.now + self.unbonding);
        let same = |e: &&mut Entry| (e.by, e.from, e.to, e.height) == (by, from, None, height);
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.initial += left;
            entry.left += left;
        } else {
            self.entries.push(Entry { by, from, to: None, height, due, initial: left, left, shares: places(0) });
        }
        left
    }

    pub fn redelegate(&mut self, by: u8, from: u8, to: u8, amount: u128) {
        let status = self.validators[&from].status;
        let initial = self.unbond(by, from, self.shares_of(from, amount));
        let shares = self.delegate(by, to, initial);
        let (height, due) = match status {
            Status::Unbonded => return,
            Status::Unbonding(height, due) => (height, due),
            Status::Bonded => (self.height, self.now + self.unbonding),
        };
        self.entries.push(Entry { by, from, to: Some(to), height, due, initial, left: 0, shares });
    }

    /// Burns a fraction of the stake that stood behind a validator at a height; returns what it lost of its own tokens.
    pub fn slash(&mut self, n: u8, since: i64, power: u128, part: Number) -> u128 {
        if self.validators.get(&n).is_none_or(|validator| validator.status == Status::Unbonded) {
            return 0;
        }
        let of = |amount: u128| floor(part * places(amount));
        let mut owed = of(power * VOTE);
        let now = self.now;
        let liable = |e: &Entry| e.from == n && e.height as i64 >= since && e.due > now;
        if since < self.height as i64 {
            for entry in self.entries.iter_mut().filter(|e| e.to.is_none() && liable(e)) {
                let lost = of(entry.initial).min(entry.left);
                owed = owed.saturating_sub(of(entry.initial));
                entry.left -= lost;
                self.burned += lost;
            }
            let moved = self.entries.iter().filter(|e| liable(e)).filter_map(|e| Some((e.by, e.to?, e.clone())));
            let mut moved: Vec<_> = moved.collect();
            moved.sort_by_key(|(by, to, _)| (*by, *to));
            for (by, to, entry) in moved {
                let share = of(entry.initial);
                owed = owed.saturating_sub(share);
                // What has left again pays first.
                let mut rest = share;
                let gone = |e: &&mut Entry| (e.by, e.from, e.to) == (by, to, None);
                for gone in self.entries.iter_mut().filter(gone) {
                    if gone.height as i64 >= since && gone.due > now {
                        let lost = rest.min(gone.left);
                        (rest, gone.left) = (rest - lost, gone.left - lost);
                        self.burned += lost;
                    }
                }
                if rest == 0 {
                    continue;
                }
                let held = self.validators.get(&to).and_then(|validator| validator.shares.get(&by)).copied();
                let lost = times_even(part, entry.shares) * places(rest) / places(share);
                if let Some(held) = held.filter(|_| lost > places(0)) {
                    self.burned += self.unbond(by, to, lost.min(held));
                }
            }
        }
        let lost = owed.min(self.validators[&n].tokens);
        if lost == 0 {
            return 0;
        }
        self.settle(n);
        let validator = self.validator(n);
        let kept = whole(1).saturating_sub(over_up(whole(lost), whole(validator.tokens)));
        for part in validator.parts.values_mut() {
            part.earned += times(part.ratio, part.stake);
            part.ratio = places(0);
            part.stake = times(part.stake, kept);
            part.slack += places(ONE);
        }
        validator.slashes += 1;
        validator.tokens -= lost;
        self.burned += lost;
        lost
    }

    /// The strongest have power; the others lose it. Returns those that have just got it.
    pub fn choose(&mut self) -> Vec<u8> {
        let mut strong: Vec<u8> = self.validators.keys().copied().collect();
        strong.retain(|n| self.validators[n].power() > 0);
        strong.sort_by_key(|n| (Reverse(self.validators[n].power()), account(*n)));
        strong.truncate(self.seats);
        let mut fresh = Vec::new();
        for (n, validator) in self.validators.iter_mut().filter(|_| !strong.is_empty()) {
            match (strong.contains(n), validator.status) {
                (true, Status::Unbonded | Status::Unbonding(..)) => {
                    validator.status = Status::Bonded;
                    fresh.push(*n);
                }
                (false, Status::Bonded) => {
                    validator.status = Status::Unbonding(self.height, self.now + self.unbonding);
                }
                _ => {}
            }
        }
        fresh
    }

    /// The end of a block. Returns those that have just got power.
    pub fn end(&mut self) -> Vec<u8> {
        let fresh = self.choose();
        for n in self.validators.keys().copied().collect::<Vec<u8>>() {
            let now = self.now;
            let validator = self.validator(n);
            if matches!(validator.status, Status::Unbonding(_, due) if due <= now) {
                validator.status = Status::Unbonded;
                self.forget(n);
            }
        }
        let (due, waiting) = std::mem::take(&mut self.entries).into_iter().partition(|entry| entry.due <= self.now);
        self.entries = waiting;
        let due: Vec<Entry> = due;
        due.iter().for_each(|entry| *self.paid.entry(account(entry.by)).or_default() += entry.left);
        fresh
    }
}
