//! A chain in memory: all modules, their hooks and their handlers, without signatures and without a disk. Fees are paid by
//! an account of their own. CometBFT's part, the set of validators and who signs, is played as it would be.

use std::collections::{BTreeMap, BTreeSet};

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{CommissionRates, Description, MsgCreateValidator};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec};

use crate::bank::{self, Pool};
use crate::chain;
use crate::context::{BlockTime, Commit, Context, Event, Misbehavior, ValidatorUpdate, Vote};
use crate::error::TxError;
use crate::genesis::Genesis;
use crate::modules::{Handle, MODULES, QueryContext};
use crate::staking::GenesisValidator;
use crate::store::{MemoryState, Overlay};
use crate::{distribution, slashing, staking};

/// One vote's worth.
pub const PLK: u128 = 1_000_000;
/// What each account begins with.
pub const FUNDS: u128 = 1_000_000_000 * PLK;
/// The fees of each block, where a test does not say otherwise.
pub const FEES: u128 = 1_000_000_007;
/// From taking stake back until it is paid; blocks are a second apart.
pub const UNBONDING: u64 = 6;
/// Entries of a pair, or triple, at most.
pub const ENTRIES_MAX: usize = 3;
/// Validators with power at most.
pub const PLACES: usize = 3;
/// Blocks over which signatures are counted; half of them must be there.
pub const WINDOW: usize = 6;
/// How long an absent validator stays in jail.
pub const JAIL_SECONDS: i64 = 8;
/// The accounts; the last [`OPERATORS`] of them run validators.
pub const ACCOUNTS: u8 = 7;
/// The first operator.
pub const OPERATORS: std::ops::RangeInclusive<u8> = 4..=7;
/// The commission of an operator's validator, in basis points.
pub fn commission_bps(operator: u8) -> u32 {
    u32::from(operator) * 100
}

const CHAIN: &str = "polylink-model-1";
/// Who pays all fees.
const PAYER: Address = Address([0xfe; 20]);

/// The account `n`.
pub fn account(n: u8) -> Address {
    Address([n; 20])
}

/// Where the rewards of account `n` go, and nothing else.
pub fn purse(n: u8) -> Address {
    Address([n + 100; 20])
}

/// The consensus key of operator `n`.
pub fn consensus_key(n: u8) -> [u8; 32] {
    ServiceKey::from_bytes(&[n; 32]).public_key()
}

/// Its address.
pub fn consensus(n: u8) -> Address {
    Address::of_consensus_key(&consensus_key(n))
}

/// An amount in a message.
pub fn coin(amount: u128) -> Option<Coin> {
    Some(Coin { denom: DENOM.into(), amount: amount.to_string() })
}

/// Makes operator `n` a validator, with the commission that it always has and may change to any other.
pub fn create_validator(n: u8, amount: u128) -> MsgCreateValidator {
    let most = Dec::one().to_atomics_string();
    MsgCreateValidator {
        description: Some(Description { moniker: "again".into(), ..Default::default() }),
        commission: Some(CommissionRates {
            rate: Dec::from_bps(commission_bps(n)).to_atomics_string(),
            max_rate: most.clone(),
            max_change_rate: most,
        }),
        min_self_delegation: "1".into(),
        validator_address: account(n).valoper(),
        pubkey: Some(any(&PubKey { key: consensus_key(n).to_vec() })),
        value: coin(amount),
        ..Default::default()
    }
}

/// The chain.
pub struct Bed {
    pub state: MemoryState,
    pub ctx: Context,
    /// Seconds from block to block.
    seconds: u64,
    /// The fees of each block from now on.
    pub fees: u128,
    /// Who is said to have been in the last block's set, in place of the real one.
    pub votes: Option<Vec<Vote>>,
    /// The sets of the last block, this one, and the next.
    sets: [BTreeMap<Address, u64>; 3],
    /// The sets that signed, by height.
    pub signed: BTreeMap<u64, BTreeMap<Address, u64>>,
    pub absent: BTreeSet<Address>,
    pub misbehavior: Vec<Misbehavior>,
    pub events: Vec<Event>,
}

fn time(height: u64, seconds: u64) -> BlockTime {
    BlockTime { seconds: 1_700_000_000_i64.saturating_add_unsigned(height * seconds), nanos: 0 }
}

fn update(set: &mut BTreeMap<Address, u64>, updates: &[ValidatorUpdate]) {
    let mut seen = BTreeSet::new();
    for update in updates {
        let address = Address::of_consensus_key(&update.public_key);
        assert!(seen.insert(address), "two updates of a validator");
        match update.power {
            0 => assert!(set.remove(&address).is_some(), "a removed validator was not there"),
            power => drop(set.insert(address, power)),
        }
    }
    assert!(!set.is_empty(), "CometBFT stops");
}

impl Bed {
    /// At the begin of the first block; blocks are a second apart.
    pub fn new() -> Self {
        Self::with(1, |_| {})
    }

    /// Likewise, with so many seconds from block to block and a genesis that is altered.
    pub fn with(seconds: u64, alter: impl FnOnce(&mut Genesis)) -> Self {
        let mut genesis = Genesis::default().with_account(&PAYER, Amount(FUNDS));
        for n in 1..=ACCOUNTS {
            genesis = genesis.with_account(&account(n), Amount(FUNDS));
        }
        genesis.staking.unbonding_seconds = UNBONDING;
        genesis.staking.max_entries = ENTRIES_MAX as u32;
        genesis.staking.max_validators = PLACES as u32;
        genesis.slashing.signed_blocks_window = WINDOW as u32;
        genesis.slashing.downtime_jail_seconds = JAIL_SECONDS.unsigned_abs();
        for n in OPERATORS {
            let validator =
                GenesisValidator::new(&account(n), &consensus_key(n), Amount(u128::from(n) * 1_000 * PLK + 1));
            let commission_bps = commission_bps(n);
            genesis.staking.validators.push(GenesisValidator { commission_bps, ..validator });
        }
        alter(&mut genesis);
        let begin = time(0, seconds);
        let (changes, updates) = chain::genesis(CHAIN, begin, &genesis).unwrap();
        let mut first = BTreeMap::new();
        update(&mut first, &updates);
        let mut bed = Bed {
            state: MemoryState::default(),
            ctx: Context::new(CHAIN, 0, begin, genesis.epoch_blocks()),
            seconds,
            fees: FEES,
            votes: None,
            sets: [BTreeMap::new(), first.clone(), first],
            signed: BTreeMap::new(),
            absent: BTreeSet::new(),
            misbehavior: Vec::new(),
            events: Vec::new(),
        };
        bed.state.apply(&changes);
        bed.begin();
        bed
    }

    /// What the next block will be told, before it begins.
    pub fn commit(&self) -> Commit {
        let vote = |(validator, power): (&Address, &u64)| Vote {
            validator: *validator,
            power: *power,
            signed: !self.absent.contains(validator),
        };
        let votes = self.votes.clone().unwrap_or_else(|| self.sets[0].iter().map(vote).collect());
        let misbehavior = self.misbehavior.clone();
        Commit { votes, misbehavior, ..Commit::default() }
    }

    pub fn begin(&mut self) {
        let height = self.ctx.height + 1;
        let commit = self.commit();
        self.misbehavior.clear();
        self.signed.insert(height, self.sets[1].clone());
        self.ctx = Context::new(CHAIN, height, time(height, self.seconds), self.ctx.epoch_blocks);
        self.ctx.commit = commit;
        for module in MODULES {
            (module.begin_block)(&mut self.ctx, &mut self.state).unwrap();
        }
        bank::transfer(&mut self.ctx, &mut self.state, PAYER, Pool::FeeCollector, Amount(self.fees)).unwrap();
    }

    /// Ends the block and verifies all that must hold.
    pub fn end(&mut self) {
        for module in MODULES {
            (module.end_block)(&mut self.ctx, &mut self.state).unwrap();
        }
        self.sets.rotate_left(1);
        let mut next = self.sets[1].clone();
        update(&mut next, &std::mem::take(&mut self.ctx.validator_updates));
        self.sets[2] = next;
        self.events = std::mem::take(&mut self.ctx.events);
        bank::scan(&self.state).unwrap();
        distribution::scan(&self.state).unwrap();
        staking::scan(&self.state).unwrap();
        slashing::scan(&self.state).unwrap();
    }

    /// A message: all or nothing, as in a transaction.
    pub fn send<M: Handle>(&mut self, message: &M) -> Result<M::Response, TxError> {
        let message = M::decode(message.encode_to_vec().as_slice()).unwrap();
        message.signer()?;
        message.check()?;
        let mut ctx = self.ctx.clone();
        let mut layer = Overlay::new(&self.state);
        let response = message.execute(&mut ctx, &mut layer)?;
        let changes = layer.into_changes();
        bank::check_conservation(&self.state, &changes).unwrap();
        distribution::check_conservation(&self.state, &changes).unwrap();
        self.state.apply(&changes);
        self.ctx = ctx;
        Ok(response)
    }

    /// What the ledger shows a delegation to be worth.
    pub fn worth(&self, by: u8, of: u8) -> u128 {
        let found = staking::validator(&self.state, &account(of));
        let found = found.zip(staking::delegation(&self.state, &account(by), &account(of)));
        found.map_or(0, |(validator, shares)| staking::worth(&validator, shares).0)
    }

    /// What a query of the state as it is knows besides it.
    pub fn query(&self) -> QueryContext {
        let ctx = &self.ctx;
        let (chain_id, epoch_blocks) = (ctx.chain_id.clone(), ctx.epoch_blocks);
        QueryContext { chain_id, height: ctx.height, epoch: ctx.epoch, epoch_blocks }
    }
}
