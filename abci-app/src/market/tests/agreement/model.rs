//! The market once more, slow and obvious: every account's coins in a map, every epoch's terms, prices and pots kept for
//! ever, nothing indexed, nothing trimmed, every rule written out where it applies. It shares no code with the market.

mod settling;

use std::collections::BTreeMap;

/// Why a message is refused: codespace and code.
pub type Refusal = (&'static str, u32);

pub const EPOCH_BLOCKS: u64 = 20;
pub const MIN_BOND: u128 = 100_000_000;
pub const UNBONDING: u64 = 2;
pub const VESTING: u64 = 3;
pub const DISPUTE: u64 = 2;
const LEVEL_ONE: u128 = 1_000_000_000;

/// Accounts by the byte that their addresses are made of.
pub const PROVIDER: u8 = 2;

#[derive(Clone, Debug)]
pub struct Session {
    pub payer: u8,
    pub payee: u8,
    /// Pays a worker for the profile.
    pub named: bool,
    pub private: bool,
    pub deposit: u128,
    pub cap: u128,
    pub redeemed: u128,
    pub count: u64,
    pub newest: u64,
    pub opened: u64,
    pub expiry: u64,
    pub closed: bool,
    pub revoked: bool,
}

/// (count, tokens, amount)
pub type Root = (u64, u64, u128);
/// (prompt, cached, completion)
pub type Prices = (u64, u64, u64);

#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    pub from: u64,
    pub key: u8,
    /// Ask and capacity; None: it offers nothing.
    pub offer: Option<(Prices, u64)>,
}

#[derive(Clone, Debug)]
pub struct Worker {
    pub bond: u128,
    /// (release epoch, amount)
    pub unbonding: Vec<(u64, u128)>,
    /// All that ever held.
    pub terms: Vec<Terms>,
    pub place: bool,
}

impl Worker {
    pub fn at(&self, epoch: u64) -> Option<&Terms> {
        self.terms.iter().rev().find(|terms| terms.from <= epoch)
    }

    fn set(&mut self, terms: Terms) {
        self.terms.retain(|old| old.from < terms.from);
        self.terms.push(terms);
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pot {
    pub redeemed: u128,
    pub carried_in: u128,
    pub allowance: u128,
    pub root: Option<Root>,
    pub key: u8,
    pub price: Prices,
    pub settled: bool,
    pub paid: u128,
    pub burned: u128,
    pub emission: u128,
    pub royalty: u128,
    pub worker: u128,
    pub withheld: u128,
    pub carried_out: u128,
    pub expired: u128,
    pub alpha: u128,
}

pub struct Model {
    pub height: u64,
    pub coins: BTreeMap<u8, u128>,
    pub minted: u128,
    pub burned: u128,
    pub sessions: Vec<Session>,
    pub workers: BTreeMap<u8, Worker>,
    /// By epoch, worker, and whether it is that of private sessions.
    pub pots: BTreeMap<(u64, u8, bool), Pot>,
    pub vesting: BTreeMap<(u64, u8), u128>,
    /// (from epoch, basis points)
    pub royalties: Vec<(u64, u32)>,
    /// Level of the price from an epoch on.
    pub levels: BTreeMap<u64, u128>,
    pub registered: Prices,
}

impl Model {
    pub fn epoch(&self) -> u64 {
        self.height / EPOCH_BLOCKS
    }

    pub fn offset(&self) -> u64 {
        self.height % EPOCH_BLOCKS
    }

    pub fn price(&self, epoch: u64) -> Prices {
        let level = self.levels.range(..=epoch).next_back().map_or(LEVEL_ONE, |(_, level)| *level);
        let at = |price: u64| (u128::from(price) * level / LEVEL_ONE) as u64;
        let (prompt, cached, completion) = self.registered;
        (at(prompt).max(1), at(cached), at(completion).max(1))
    }

    pub fn royalty(&self, epoch: u64) -> u32 {
        self.royalties.iter().rev().find(|(from, _)| *from <= epoch).map_or(0, |(_, bps)| *bps)
    }

    fn take(&mut self, account: u8, amount: u128) -> Result<(), Refusal> {
        let coins = self.coins.entry(account).or_default();
        *coins = coins.checked_sub(amount).ok_or(("sdk", 5))?;
        Ok(())
    }

    fn give(&mut self, account: u8, amount: u128) {
        *self.coins.entry(account).or_default() += amount;
    }

    pub fn open(
        &mut self,
        payer: u8,
        payee: u8,
        (deposit, cap): (u128, Option<u128>),
        (named, private): (bool, bool),
        expiry: u64,
    ) -> Result<(), Refusal> {
        let cap = cap.unwrap_or(deposit);
        if private && !named {
            return Err(("market", 23));
        }
        if payer == payee {
            return Err(("market", 18));
        }
        if deposit == 0 || cap == 0 {
            return Err(("market", 20));
        }
        let now = self.epoch();
        if expiry <= now {
            return Err(("market", 22));
        }
        if let Some(worker) = self.workers.get(&payee) {
            if worker.bond < MIN_BOND {
                return Err(("market", 13));
            }
            let offered = worker.at(now + 1).is_some_and(|terms| terms.offer.is_some());
            if !named || !offered {
                return Err(("market", 19));
            }
        } else if named {
            return Err(("market", 19));
        }
        self.take(payer, deposit)?;
        self.sessions.push(Session {
            payer,
            payee,
            named,
            private,
            deposit,
            cap,
            redeemed: 0,
            count: 0,
            newest: 0,
            opened: now,
            expiry,
            closed: false,
            revoked: false,
        });
        Ok(())
    }

    /// Ids begin with 1.
    fn session(&mut self, id: u64) -> Result<&mut Session, Refusal> {
        let at = usize::try_from(id).unwrap().checked_sub(1).ok_or(("market", 17))?;
        self.sessions.get_mut(at).ok_or(("market", 17))
    }

    pub fn top_up(&mut self, payer: u8, id: u64, amount: u128, cap: Option<u128>) -> Result<(), Refusal> {
        if amount == 0 {
            return Err(("market", 20));
        }
        let now = self.epoch();
        let session = self.session(id)?.clone();
        let cap = cap.unwrap_or(session.cap + amount);
        let refusal = match () {
            () if session.payer != payer => Some(24),
            () if session.closed => Some(25),
            () if session.revoked => Some(38),
            () if now > session.expiry => Some(35),
            () if cap < session.cap => Some(20),
            () => None,
        };
        if let Some(code) = refusal {
            return Err(("market", code));
        }
        self.take(payer, amount)?;
        let session = self.session(id)?;
        session.deposit += amount;
        session.cap = cap;
        Ok(())
    }

    pub fn revoke(&mut self, payer: u8, id: u64) -> Result<(), Refusal> {
        let now = self.epoch();
        let session = self.session(id)?;
        let refusal = match () {
            () if session.payer != payer => Some(24),
            () if session.closed => Some(25),
            () if session.revoked => Some(38),
            () => None,
        };
        if let Some(code) = refusal {
            return Err(("market", code));
        }
        session.revoked = true;
        session.expiry = session.expiry.min(now + 1);
        Ok(())
    }

    fn pay(&mut self, id: u64, (epoch, amount, count): (u64, u128, u64)) -> Result<(), Refusal> {
        let (now, offset) = (self.epoch(), self.offset());
        let session = self.session(id)?.clone();
        let refusal = match () {
            () if session.closed => Some(25),
            () if now > session.expiry + DISPUTE => Some(35),
            () if epoch > now || epoch > session.expiry => Some(36),
            () if epoch < session.newest || epoch < session.opened => Some(36),
            () if amount > session.deposit || amount > session.cap => Some(33),
            () if amount <= session.redeemed || count <= session.count => Some(34),
            () => None,
        };
        if let Some(code) = refusal {
            return Err(("market", code));
        }
        let increase = amount - session.redeemed;
        if session.named {
            // Pots of an epoch take money until its reveals are over in the next one.
            let oldest = if offset < 18 { now.saturating_sub(1) } else { now };
            let place = (epoch.max(oldest), session.payee, session.private);
            self.pots.entry(place).or_default().redeemed += increase;
        } else {
            self.give(session.payee, increase);
        }
        let session = self.session(id)?;
        (session.redeemed, session.count, session.newest) = (amount, count, epoch);
        Ok(())
    }

    pub fn redeem(&mut self, payee: u8, id: u64, voucher: (u64, u128, u64)) -> Result<(), Refusal> {
        if self.session(id)?.payee != payee {
            return Err(("market", 24));
        }
        self.pay(id, voucher)
    }

    pub fn close(&mut self, signer: u8, id: u64, voucher: Option<(u64, u128, u64)>) -> Result<(), Refusal> {
        let now = self.epoch();
        let session = self.session(id)?.clone();
        if session.closed {
            return Err(("market", 25));
        }
        let late = now > session.expiry + DISPUTE;
        if signer != session.payee && !(signer == session.payer && late) {
            return Err(("market", 24));
        }
        if let Some(voucher) = voucher {
            self.pay(id, voucher)?;
        }
        let session = self.session(id)?;
        session.closed = true;
        let (payer, rest) = (session.payer, session.deposit - session.redeemed);
        self.give(payer, rest);
        Ok(())
    }

    pub fn register(&mut self, operator: u8, bond: u128, key: u8, offer: (Prices, u64)) -> Result<(), Refusal> {
        if self.workers.contains_key(&operator) {
            return Err(("market", 9));
        }
        if bond < MIN_BOND {
            return Err(("market", 13));
        }
        self.take(operator, bond)?;
        let terms = vec![Terms { from: self.epoch(), key, offer: Some(offer) }];
        self.workers.insert(operator, Worker { bond, unbonding: vec![], terms, place: true });
        Ok(())
    }

    fn worker(&mut self, operator: u8) -> Result<&mut Worker, Refusal> {
        self.workers.get_mut(&operator).ok_or(("market", 8))
    }

    pub fn update(&mut self, operator: u8, key: u8, offer: Option<(Prices, u64)>) -> Result<(), Refusal> {
        let from = self.epoch() + 1;
        let worker = self.worker(operator)?;
        let newest = worker.terms.last().unwrap().clone();
        if offer.is_some() {
            if worker.bond < MIN_BOND {
                return Err(("market", 13));
            }
            worker.place = true;
        }
        let terms = Terms { from, key, offer: offer.or(newest.offer) };
        if (terms.key, &terms.offer) != (newest.key, &newest.offer) {
            worker.set(terms);
        }
        Ok(())
    }

    pub fn bond(&mut self, operator: u8, amount: u128) -> Result<(), Refusal> {
        if amount == 0 {
            return Err(("sdk", 10));
        }
        self.worker(operator)?;
        self.take(operator, amount)?;
        self.worker(operator)?.bond += amount;
        Ok(())
    }

    pub fn unbond(&mut self, operator: u8, amount: u128) -> Result<(), Refusal> {
        if amount == 0 {
            return Err(("sdk", 10));
        }
        let now = self.epoch();
        let worker = self.worker(operator)?;
        let rest = worker.bond.checked_sub(amount).ok_or(("market", 16))?;
        if rest > 0 && rest < MIN_BOND {
            return Err(("market", 13));
        }
        worker.bond = rest;
        worker.unbonding.push((now + UNBONDING, amount));
        if rest == 0 {
            worker.place = false;
            let newest = worker.terms.last().unwrap().clone();
            if newest.offer.is_some() {
                worker.set(Terms { from: now + 1, key: newest.key, offer: None });
            }
        }
        Ok(())
    }

    pub fn commit(&mut self, operator: u8, epoch: u64, root: Root, private: Option<Root>) -> Result<(), Refusal> {
        if private.is_some_and(|root| root.0 == 0) {
            return Err(("market", 28));
        }
        let (now, offset) = (self.epoch(), self.offset());
        let terms = self.worker(operator)?.at(epoch).cloned();
        if epoch + 1 != now || offset >= 5 {
            return Err(("market", 26));
        }
        let terms = terms.ok_or(("market", 12))?;
        let there = self.pots.get(&(epoch, operator, false));
        if terms.offer.is_none() && (root.0 > 0 || private.is_some() || there.is_none()) {
            return Err(("market", 12));
        }
        let deposits = |private: bool| -> u128 {
            let open = |s: &&Session| s.named && s.payee == operator && !s.closed && s.private == private;
            self.sessions.iter().filter(open).map(|session| session.deposit).sum()
        };
        if root.2 > deposits(false) || private.is_some_and(|root| root.2 > deposits(true)) {
            return Err(("market", 37));
        }
        if let Some(earlier) = there.and_then(|pot| pot.root) {
            let other = self.pots.get(&(epoch, operator, true)).and_then(|pot| pot.root);
            return if (earlier, other) == (root, private) { Ok(()) } else { Err(("market", 27)) };
        }
        let epoch_price = self.price(epoch);
        let ask = terms.offer.map_or((0, 0, 0), |(ask, _)| ask);
        for (root, of_private) in [(Some(root), false), (private, true)] {
            let Some(root) = root else { continue };
            let pot = self.pots.entry((epoch, operator, of_private)).or_default();
            pot.root = Some(root);
            pot.key = terms.key;
            pot.price = (epoch_price.0.max(ask.0), epoch_price.1.max(ask.1), epoch_price.2.max(ask.2));
        }
        Ok(())
    }

    pub fn change_royalty(&mut self, provider: u8, bps: u32) -> Result<(), Refusal> {
        if bps > 5_000 {
            return Err(("market", 6));
        }
        if provider != PROVIDER {
            return Err(("market", 39));
        }
        let from = self.epoch() + 2;
        self.royalties.retain(|(old, _)| *old < from);
        self.royalties.push((from, bps));
        Ok(())
    }
}
