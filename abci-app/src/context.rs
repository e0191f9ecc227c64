//! What execution knows besides the state: the chain, the block's header, and where events and gas go.
//!
//! Invariant: everything here comes from the genesis document or from the block, so that it is the same on every node.

use crate::error::TxError;
use crate::gas::GasMeter;

/// The header's time: seconds and nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockTime {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: i32,
}

impl BlockTime {
    /// Later by whole seconds; saturates.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        BlockTime { seconds: self.seconds.saturating_add_unsigned(seconds), nanos: self.nanos }
    }
}

/// An event: its type and its attributes, all of them indexed. Keys and values are not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's type. `tx` is reserved by CometBFT's index for the keys `hash` and `height`.
    pub kind: String,
    /// Key and value.
    pub attributes: Vec<(String, String)>,
}

/// A validator's new power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidatorUpdate {
    /// Its ed25519 consensus key.
    pub public_key: [u8; 32],
    /// Votes; 0 removes it.
    pub power: u64,
}

/// One block's, transaction's or hook's surroundings.
#[derive(Clone, Debug)]
pub struct Context {
    /// From the genesis document.
    pub chain_id: String,
    /// The block in execution; 0 at genesis.
    pub height: u64,
    /// The block's time.
    pub time: BlockTime,
    /// `height / epoch_blocks`.
    pub epoch: u64,
    /// `height mod epoch_blocks`: 0 in an epoch's first block (which in epoch 0 is the genesis).
    pub epoch_offset: u64,
    /// Blocks of an epoch, fixed at genesis.
    pub epoch_blocks: u64,
    /// Changes of the validator set that the block ends with; written by staking alone.
    pub validator_updates: Vec<ValidatorUpdate>,
    /// Events emitted so far.
    pub events: Vec<Event>,
    /// Gas used so far. Charge it for work that is not reads and writes (`gas::COSTS.proof`).
    pub gas: GasMeter,
    /// True while a transaction is only checked or simulated: its effects will be thrown away.
    pub dry_run: bool,
}

impl Context {
    /// Of a block, with unlimited gas.
    pub fn new(chain_id: &str, height: u64, time: BlockTime, epoch_blocks: u64) -> Self {
        let epoch_blocks = epoch_blocks.max(1);
        Context {
            chain_id: chain_id.to_owned(),
            height,
            time,
            epoch: height / epoch_blocks,
            epoch_offset: height % epoch_blocks,
            epoch_blocks,
            validator_updates: Vec::new(),
            events: Vec::new(),
            gas: GasMeter::unlimited(),
            dry_run: false,
        }
    }

    /// The surroundings of a transaction of the same block: no events yet, gas of its own.
    #[must_use]
    pub fn for_tx(&self, gas: GasMeter) -> Self {
        Context { chain_id: self.chain_id.clone(), events: Vec::new(), validator_updates: Vec::new(), gas, ..*self }
    }

    /// Emits an event. Attributes with an empty value are left out, since clients refuse them.
    pub fn emit(&mut self, kind: &str, attributes: &[(&str, String)]) {
        let attributes = attributes
            .iter()
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        self.events.push(Event { kind: kind.to_owned(), attributes });
    }

    /// Charges gas for work other than reads and writes.
    pub fn charge(&mut self, gas: u64) -> Result<(), TxError> {
        self.gas.charge(gas)
    }
}
