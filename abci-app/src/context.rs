//! What execution knows besides the state: the chain, the block's header, and where events and gas go.
//!
//! Invariant: everything here comes from the genesis document or from the block, so that it is the same on every node.

use std::sync::Arc;

use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::{auth, bank};

use crate::error::TxError;
use crate::gas::GasMeter;
use crate::store::{MemoryState, StateRead};

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

    /// As events show it: RFC 3339 in UTC, whole seconds, years 0 to 9999.
    pub fn rfc3339(self) -> String {
        let seconds = self.seconds.clamp(-62_167_219_200, 253_402_300_799);
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Days since 0000-03-01, in cycles of 400 years: a leap day ends a year that begins in March.
        let shifted = days + 719_468;
        let (cycle, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let march = (5 * day + 2) / 153;
        let (month, day) = ((march + 2) % 12 + 1, day - (153 * march + 2) / 5 + 1);
        let year = year + 400 * cycle + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// What CometBFT reports with a block of the one before it, and of older ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The validators of the last block.
    pub votes: Vec<Vote>,
    /// Validators that are proved to have broken consensus.
    pub misbehavior: Vec<Misbehavior>,
    /// The consensus address of who proposed this block.
    pub proposer: Vec<u8>,
    /// The hash of the next block's validators, as in this one's header.
    pub next_validators_hash: Vec<u8>,
    /// The application's hash before this block, as in its header.
    pub app_hash: Vec<u8>,
}

/// A validator of the last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The address of its consensus key.
    pub validator: Address,
    /// Its votes then.
    pub power: u64,
    /// Whether it signed, for the block or for none.
    pub signed: bool,
}

/// Evidence, verified by CometBFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misbehavior {
    /// The address of its consensus key.
    pub validator: Address,
    /// Its votes then.
    pub power: u64,
    /// The height of the wrong.
    pub height: u64,
    /// The time of that height.
    pub time: BlockTime,
}

/// An event: its type and its attributes. Keys and values are not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's type. `tx` is reserved by CometBFT's index for the keys `hash` and `height`.
    pub kind: &'static str,
    /// Key and value.
    pub attributes: Vec<(&'static str, String)>,
    /// Whether it is to be found by its attributes. What another event of the same transaction says as well is not.
    pub indexed: bool,
}

impl Event {
    /// Key and value of each attribute, and whether the node shall index it: nobody looks for an amount, a fee or a message's
    /// number, and every entry of the index is written, sorted and compacted.
    pub fn into_attributes(self) -> impl Iterator<Item = (String, String, bool)> {
        let searched = move |key| self.indexed && !matches!(key, "amount" | "fee" | "msg_index");
        self.attributes.into_iter().map(move |(key, value)| (key.to_owned(), value, searched(key)))
    }
}

/// A validator's new power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidatorUpdate {
    /// Its ed25519 consensus key.
    pub public_key: [u8; 32],
    /// Votes; 0 removes it.
    pub power: u64,
}

/// What governance has decided of every transaction, as it stood before the block.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// What a transaction may have, and what its bytes and signatures cost.
    pub auth: auth::v1beta1::Params,
    /// Which coins may be sent.
    pub bank: bank::v1beta1::Params,
}

impl Rules {
    /// Those of a state.
    pub fn of(state: &dyn StateRead) -> Self {
        Rules { auth: crate::auth::params(state), bank: crate::bank::params(state) }
    }
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
    /// What is reported of the validators; empty for transactions.
    pub commit: Commit,
    /// Changes of the validator set that the block ends with; written by staking alone.
    pub validator_updates: Vec<ValidatorUpdate>,
    /// Events emitted so far.
    pub events: Vec<Event>,
    /// Gas used so far. Charge it for work that is not reads and writes ([`Self::charge_proofs`]).
    pub gas: GasMeter,
    /// What governance has decided; the defaults where nobody has read them from a state.
    pub rules: Arc<Rules>,
    /// True while a transaction is only checked or simulated: its effects will be thrown away.
    pub dry_run: bool,
    /// True while a transaction is only checked: nobody reads its events.
    pub silent: bool,
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
            commit: Commit::default(),
            validator_updates: Vec::new(),
            events: Vec::new(),
            gas: GasMeter::unlimited(),
            rules: Arc::new(Rules::of(&MemoryState::default())),
            dry_run: false,
            silent: false,
        }
    }

    /// Under the rules of a state.
    #[must_use]
    pub fn under_rules_of(self, state: &dyn StateRead) -> Self {
        Context { rules: Arc::new(Rules::of(state)), ..self }
    }

    /// The surroundings of a transaction of the same block: no events yet, gas of its own.
    #[must_use]
    pub fn for_tx(&self, gas: GasMeter) -> Self {
        Context {
            chain_id: self.chain_id.clone(),
            commit: Commit::default(),
            events: Vec::new(),
            validator_updates: Vec::new(),
            gas,
            rules: Arc::clone(&self.rules),
            ..*self
        }
    }

    /// Emits an event. Attributes with an empty value are left out, since clients refuse them; but for a fee of nothing,
    /// which the SDK shows so.
    pub fn emit<const N: usize>(&mut self, kind: &'static str, attributes: [(&'static str, String); N]) {
        if !self.silent {
            let attributes = attributes.into_iter().filter(|(key, value)| !value.is_empty() || *key == "fee");
            self.events.push(Event { kind, attributes: attributes.collect(), indexed: true });
        }
    }

    /// Charges gas for work other than reads and writes.
    pub fn charge(&mut self, gas: u64) -> Result<(), TxError> {
        self.gas.charge(gas)
    }

    /// Charges the verification of so many ed25519 signatures; a VRF proof counts as two.
    pub fn charge_proofs(&mut self, proofs: u64) -> Result<(), TxError> {
        self.charge(self.rules.auth.sig_verify_cost_ed25519.saturating_mul(proofs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_events_show_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(BlockTime { seconds, nanos: 5 }.rfc3339(), text);
        }
    }
}
