//! The `app_state` of a chain's genesis document: what the ledger starts from.
//!
//! JSON, with amounts as decimal strings of uplk. Unknown fields are refused, so that a misspelt one does not silently
//! mean its default.

use serde::{Deserialize, Serialize};

use polylink_protocol::{Address, Amount};

use crate::error::GenesisError;

/// What the chain starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Genesis {
    /// Funded accounts.
    pub accounts: Vec<GenesisAccount>,
    /// The minimum gas price, in uplk per 1,000 gas.
    pub min_gas_price_milli: u64,
    /// Validators and their parameters.
    pub staking: crate::staking::StakingGenesis,
    /// The distribution's parameters.
    pub distribution: crate::distribution::DistributionGenesis,
    /// What absence and double signatures cost.
    pub slashing: crate::slashing::SlashingGenesis,
    /// Inflation.
    pub mint: crate::mint::MintGenesis,
    /// How proposals are decided.
    pub gov: crate::gov::GovGenesis,
    /// The market's parameters, and models and workers that are there from the start.
    pub market: crate::market::MarketGenesis,
    /// The audit's parameters, and judges that are there from the start.
    pub tiqe: crate::tiqe::TiqeGenesis,
    /// Instead of all of that: a state to go on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exported: Option<crate::export::Exported>,
}

/// The minimum gas price of a chain whose genesis names none: 0.025 uplk per gas.
pub const MIN_GAS_PRICE_MILLI: u64 = 25;

impl Default for Genesis {
    fn default() -> Self {
        Genesis {
            accounts: Vec::new(),
            min_gas_price_milli: MIN_GAS_PRICE_MILLI,
            staking: Default::default(),
            distribution: Default::default(),
            slashing: Default::default(),
            mint: Default::default(),
            gov: Default::default(),
            market: Default::default(),
            tiqe: Default::default(),
            exported: None,
        }
    }
}

/// An account that holds coins from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisAccount {
    /// `poly1…`.
    pub address: String,
    /// In uplk.
    pub balance: Amount,
    /// How it vests, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vesting: Option<crate::vesting::GenesisVesting>,
}

impl Genesis {
    /// From the bytes of `app_state`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, GenesisError> {
        serde_json::from_slice(bytes).map_err(|error| GenesisError::Malformed(error.to_string()))
    }

    /// As `app_state`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("strings, numbers and lists always have a JSON form")
    }

    /// Adds a funded account.
    #[must_use]
    pub fn with_account(mut self, address: &Address, balance: Amount) -> Self {
        self.accounts.push(GenesisAccount { address: address.account(), balance, vesting: None });
        self
    }

    /// The height of the first block: 1, or the one after an exported state.
    pub fn first_height(&self) -> u64 {
        self.exported.as_ref().map_or(1, |exported| exported.height.saturating_add(1))
    }

    /// Blocks of an epoch.
    pub fn epoch_blocks(&self) -> u64 {
        self.market.params.epoch_blocks
    }
}
