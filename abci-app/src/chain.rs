//! The state machine: genesis and blocks as pure functions of the state before them.
//!
//! Nothing here knows of sockets or disks. [`genesis`] and [`block`] read a state and return the changes to it;
//! conservation of money is verified on those changes before they are handed out, so that a breach can never be
//! committed.

use polylink_protocol::DENOM;

use crate::context::{BlockTime, Commit, Context, Event, ValidatorUpdate};
use crate::error::{GenesisError, TxError};
use crate::genesis::Genesis;
use crate::modules::MODULES;
use crate::store::{Changes, Moment, Overlay, StateRead, StateWrite};
use crate::tx::{self, Mode, Outcome};
use crate::upgrade::{self, Halt, Upgrades};
use crate::{bank, distribution, export, staking};

/// The version of the keys and values of the state, and of the store's layout. A change to any raises it.
pub const SCHEMA_VERSION: u64 = 11;

/// The chain's id: `0x01` → UTF-8.
pub const CHAIN_ID: u8 = 0x01;
/// Blocks of an epoch: `0x02` → u64.
pub const EPOCH_BLOCKS: u8 = 0x02;
/// Time of the last block: `0x03` → seconds i64 ‖ nanoseconds i32.
pub const LAST_TIME: u8 = 0x03;

/// What never changes after genesis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constants {
    /// The chain's id.
    pub chain_id: String,
    /// Blocks of an epoch.
    pub epoch_blocks: u64,
}

/// The constants of a chain that has begun.
pub fn constants(state: &dyn StateRead) -> Option<Constants> {
    let chain_id = String::from_utf8(state.get(&[CHAIN_ID])?).ok()?;
    let epoch_blocks = u64::from_be_bytes(state.get(&[EPOCH_BLOCKS])?.try_into().ok()?);
    Some(Constants { chain_id, epoch_blocks })
}

/// The time of the last block.
pub fn last_time(state: &dyn StateRead) -> BlockTime {
    let parse = |bytes: Vec<u8>| {
        let seconds = i64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        Some(BlockTime { seconds, nanos: i32::from_be_bytes(bytes.get(8..)?.try_into().ok()?) })
    };
    state.get(&[LAST_TIME]).and_then(parse).unwrap_or_default()
}

/// A block's time, with how long blocks are needed by the state before it: the unbonding time.
pub fn moment(state: &dyn StateRead, time: BlockTime) -> Moment {
    let window = staking::params(state).unbonding_time.map_or(0, |time| time.seconds);
    Moment { seconds: u64::try_from(time.seconds).unwrap_or(0), window_seconds: u64::try_from(window).unwrap_or(0) }
}

pub(crate) fn set_last_time(state: &mut dyn StateWrite, time: BlockTime) {
    let mut value = time.seconds.to_be_bytes().to_vec();
    value.extend_from_slice(&time.nanos.to_be_bytes());
    state.put(vec![LAST_TIME], value);
}

/// The state before the first block.
pub fn genesis(
    chain_id: &str,
    time: BlockTime,
    genesis: &Genesis,
) -> Result<(Changes, Vec<ValidatorUpdate>), GenesisError> {
    if chain_id.is_empty() || chain_id.len() > 50 {
        return Err(GenesisError::invalid("chain_id", "1 to 50 characters are expected"));
    }
    if let Some(exported) = &genesis.exported {
        return export::import(chain_id, time, genesis, exported);
    }
    if genesis.epoch_blocks() == 0 {
        return Err(GenesisError::invalid("market.params.epoch_blocks", "an epoch has at least one block"));
    }
    let empty = crate::store::MemoryState::default();
    let mut state = Overlay::new(&empty as &dyn StateRead);
    state.put(vec![CHAIN_ID], chain_id.as_bytes().to_vec());
    state.put(vec![EPOCH_BLOCKS], genesis.epoch_blocks().to_be_bytes().to_vec());
    set_last_time(&mut state, time);
    let mut ctx = Context::new(chain_id, 0, time, genesis.epoch_blocks());
    for module in MODULES {
        (module.genesis)(&mut ctx, &mut state, genesis)?;
    }
    if ctx.validator_updates.is_empty() {
        return Err(GenesisError::invalid("staking.validators", "a chain needs at least one validator with power"));
    }
    bank::scan(&state).map_err(|breach| GenesisError::invalid("accounts", breach))?;
    Ok((state.into_changes(), ctx.validator_updates))
}

/// A block to execute.
pub struct Block<'a> {
    /// Its height.
    pub height: u64,
    /// Its time.
    pub time: BlockTime,
    /// Its transactions.
    pub txs: &'a [bytes::Bytes],
    /// What is reported of the validators.
    pub commit: Commit,
    /// What this node knows of upgrades.
    pub upgrades: &'a Upgrades,
}

/// What a block did.
pub struct Executed {
    /// The changes to the state before it.
    pub changes: Changes,
    /// What became of each transaction, in order.
    pub outcomes: Vec<Outcome>,
    /// Events of the begin and the end of the block.
    pub events: Vec<Event>,
    /// Changes of the validator set.
    pub validator_updates: Vec<ValidatorUpdate>,
}

/// Why a block cannot be executed: an invariant is broken. The process stops; nothing of the block is committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// A hook failed.
    #[error("block {height}: the {hook} hook of {module} failed, which it never may: {error}; nothing was committed")]
    Hook {
        /// The block.
        height: u64,
        /// Of which module.
        module: &'static str,
        /// `begin` or `end`.
        hook: &'static str,
        /// What it said.
        error: TxError,
    },
    /// Money appeared or disappeared.
    #[error("block {height}: {breach}")]
    Conservation {
        /// The block.
        height: u64,
        /// How.
        breach: Box<bank::Breach>,
    },
    /// The distribution owes another amount than it holds.
    #[error("block {height}: {breach}")]
    Distribution {
        /// The block.
        height: u64,
        /// How.
        breach: Box<distribution::Breach>,
    },
    /// Another program is needed.
    #[error(transparent)]
    Upgrade(#[from] Halt),
    /// The state lacks what genesis writes.
    #[error("block {0}: the state has no chain id: it was never initialised, or the database is not this chain's")]
    NoGenesis(u64),
}

/// Executes a block on the state before it.
pub fn block(base: &dyn StateRead, block: Block<'_>) -> Result<Executed, Fatal> {
    let height = block.height;
    let constants = constants(base).ok_or(Fatal::NoGenesis(height))?;
    let mut ctx = Context::new(&constants.chain_id, height, block.time, constants.epoch_blocks);
    ctx.commit = block.commit;
    ctx = ctx.under_rules_of(base);
    let mut state = Overlay::new(base);
    set_last_time(&mut state, block.time);
    upgrade::before_block(&mut ctx, &mut state, block.upgrades)?;
    for module in MODULES {
        (module.begin_block)(&mut ctx, &mut state).map_err(|error| Fatal::Hook {
            height,
            module: module.name,
            hook: "begin",
            error,
        })?;
    }
    let decoded = tx::ahead::decode(block.txs);
    tx::ahead::verify(base, &constants.chain_id, &decoded);
    let outcomes: Vec<Outcome> =
        decoded.into_iter().map(|tx| tx::run_decoded(&ctx, &mut state, tx, Mode::Deliver)).collect();
    for module in MODULES {
        (module.end_block)(&mut ctx, &mut state).map_err(|error| Fatal::Hook {
            height,
            module: module.name,
            hook: "end",
            error,
        })?;
    }
    bank::check_conservation(base, state.changes()).map_err(|breach| Fatal::Conservation { height, breach })?;
    distribution::check_conservation(base, state.changes()).map_err(|breach| Fatal::Distribution { height, breach })?;
    tracing::debug!(height, txs = outcomes.len(), supply = %bank::supply(&state, DENOM), "block executed");
    Ok(Executed {
        changes: state.into_changes(),
        outcomes,
        events: ctx.events,
        validator_updates: ctx.validator_updates,
    })
}

/// The surroundings of a transaction that is checked or simulated on `state` as if the next block held it.
pub fn next_block_context(state: &dyn StateRead, height: u64) -> Option<Context> {
    let constants = constants(state)?;
    let ctx = Context::new(&constants.chain_id, height + 1, last_time(state), constants.epoch_blocks);
    Some(ctx.under_rules_of(state))
}
